"""The daemon's life: start in order, serve, end in the reverse order.

Theory of operation. Nurseries are nested in shutdown order; closing a parent is the only way a
child ends:

    stores      database writer and readers          last: flush, checkpoint, close
      core      lag sampler, receipts' expiry        cancelled
        mesh    p2p node, replication                says goodbye, 3 s
          sessions   connections                     requests at work get drain_s, new ones 1010
            doors    the listener                    first: nobody new comes in

READY is told when the stores are open, the groups loaded and the socket listens; the mesh follows,
because being offline is normal. An exception out of any part ends the process with 70: what was
acknowledged is on disk, and a start after that checks the database. SIGINT or SIGTERM once drains,
twice does not wait, three times leaves without closing anything. SIGHUP reads the settings again;
SIGUSR1 writes the task tree into the log. Source: docs/specs/local-rpc.md s.1.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import trio

import daemon
from daemon import config as settings
from daemon.errors import ConfigError
from daemon.first_start import ensure_groups
from daemon.health import Check, disk_check
from daemon.homes import join_details, take_home
from daemon.instance import notify
from daemon.logging_setup import set_level
from daemon.wiring import Parts, build
from memory.errors import StoreError
from memory.scopes import write_scope
from p2p.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from daemon.config import Config
    from daemon.paths import Paths
    from federated.jobs.types import JobId
    from memory.storage.txn import TrustEvent
    from memory.store import MemoryEvent
    from p2p.env import Env
    from p2p.replication.cells import CellChange
    from p2p.replication.events import ReplicationEvent

log = logging.getLogger("covey.daemon")

EXIT_INTERNAL: Final = 70

MESH_RETRY_S: Final = 15.0
"""Wait before listening is tried again. Guess: a person has freed the port by then."""

WATCHDOG_S: Final = 10.0
WATCHDOG_LAG_S: Final = 5.0
"""A loop this late does not serve: let the service manager restart us (daemon.md s.1)."""

PURGE_EVERY_S: Final = 3600.0
EXPIRE_EVERY_S: Final = 300.0
NAME_TRIES: Final = 30
NAME_WAIT_S: Final = 1.0
PRELOAD_AFTER_S: Final = 1.0


class Daemon:
    """One run of the daemon; the `Control` of its methods.

    Args:
        config: the settings in force.
        paths: where the files are.
        env: clocks and random numbers.
        flags: `section.key=value` of the command line, for a reload.
    """

    def __init__(self, config: Config, paths: Paths, env: Env, flags: Sequence[str] = ()) -> None:
        self._config = config
        self._paths = paths
        self._env = env
        self._flags = flags
        self._stop = trio.Event()
        self._hurry = trio.CancelScope()
        self._signals = 0
        self._mesh_problem = ""
        # Homes are joined by hand, one in a blue moon.
        self._accepted, self._accepted_here = trio.open_memory_channel[bytes](64)
        self._over_quota, self._over_quota_here = trio.open_memory_channel[tuple[bytes, bytes]](64)
        self.parts: Parts = build(config, paths, env, self)

    def stop(self, *, now: bool) -> None:
        """End the daemon: drain first, or at once. Returns immediately."""
        self._stop.set()
        if now:
            self._hurry.cancel()

    async def run(
        self, *, unclean: bool, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until stopped.

        Args:
            unclean: whether the last run did not end cleanly: then the database is checked.
            task_status: started when READY.

        Raises:
            StoreError: the database cannot be opened, or is from a newer Covey.
        """
        parts, health = self.parts, self.parts.services.health
        notify("STATUS=opening the database\nEXTEND_TIMEOUT_USEC=600000000")
        async with trio.open_nursery() as stores:
            await stores.start(parts.db.run)
            await stores.start(parts.services.behaviour.run)
            await stores.start(parts.jobs_db.run)
            await self._load()
            async with trio.open_nursery() as core:
                self._start_core(core, unclean=unclean)
                await core.start(parts.services.jobs.run)
                await core.start(parts.services.rounds.run)
                async with trio.open_nursery() as mesh, trio.open_nursery() as sessions:
                    async with trio.open_nursery() as doors:
                        await doors.start(self._listen, sessions)
                        health.phase = "ok"
                        self._announce_ready()
                        task_status.started()
                        mesh.start_soon(self._run_mesh)
                        await self._stop.wait()
                        doors.cancel_scope.cancel()
                    await self._drain()
                    sessions.cancel_scope.cancel()
                    mesh.cancel_scope.cancel()
                core.cancel_scope.cancel()
            stores.cancel_scope.cancel()
        log.info("stopped")

    async def _listen(self, sessions: trio.Nursery, *, task_status: trio.TaskStatus[None]) -> None:
        await self.parts.server.run(sessions=sessions, task_status=task_status)

    async def _load(self) -> None:
        """What must stand before the first request: tokens, groups, our name."""
        parts = self.parts
        await parts.services.agents.load()
        # Before anything is served: a restored database may hold what was erased since.
        await parts.replica.recover_erased()
        await parts.replication.load()
        parts.replication.subscribe(self._on_replication)
        parts.memory.subscribe(self._on_memory)
        parts.replication.cells.on_change(self._on_cell)
        parts.services.trust.subscribe(self._on_trust)
        parts.services.jobs.on_event(self._on_job)
        parts.services.rounds.on_event(self._on_round)
        await ensure_groups(parts.replication, self._paths)
        await parts.memory.set_device_name(self._config.node.name)

    def _announce_ready(self) -> None:
        fields = {
            "pid": os.getpid(),
            "version": daemon.__version__,
            "node": bytes(self.parts.identity.id).hex(),
            "ms": self._env.wall_ms() - self.parts.services.started_ms,
        }
        log.info("ready", extra={"f": fields})
        notify(f"READY=1\nSTATUS=serving\nMAINPID={os.getpid()}")

    async def _run_mesh(self) -> None:
        """Run the mesh; where it cannot listen, serve on without it and try again.

        A taken port is no fault of ours, and the memory of this machine works without the others.
        """
        up = self.parts.services.mesh_up
        while True:
            try:
                await self._run_mesh_once()
            except* TransientError as problems:
                if up.is_set():
                    raise
                self._mesh_problem = str(first_leaf(problems))
                log.warning("mesh_down", extra={"f": {"why": self._mesh_problem}})
            await trio.sleep(MESH_RETRY_S)

    async def _run_mesh_once(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.parts.node.run)
            self.parts.services.mesh_up.set()
            log.info("mesh_up", extra={"f": {"listen": len(self.parts.node.report().listen)}})
            nursery.start_soon(self._watch_peers)
            await nursery.start(self.parts.replication.run)

    async def _watch_peers(self) -> None:
        """Peers that come and go, as events."""
        hub, fabric = self.parts.services.events, self.parts.node.fabric
        while True:
            # The fabric closes a full channel; what was lost is still in `peers list`.
            async for event in fabric.events():
                match type(event).__name__:
                    case "PeerUp":
                        hub.publish("peer.up", {"peer": _peer_of(event)})
                    case "PeerDown":
                        hub.publish("peer.down", {"peer": _peer_of(event)})
                    case "PathChanged":
                        path = getattr(event, "path", "")
                        hub.publish("peer.path", {"peer": _peer_of(event), "path": path})
                    case "AddrsChanged":
                        hub.publish("peer.own_addrs", {"addrs": len(getattr(event, "addrs", ()))})
                    case _:
                        continue

    async def _drain(self) -> None:
        services, dispatcher = self.parts.services, self.parts.dispatcher
        services.health.phase = "draining"
        notify("STOPPING=1\nSTATUS=finishing requests")
        log.info("draining", extra={"f": {"in_flight": dispatcher.in_flight}})
        dispatcher.drain()
        with self._hurry, trio.move_on_after(self._config.node.drain_s):
            await dispatcher.wait_idle()
            # One step more: the answers are queued, and their connections send them.
            await self.parts.server.flush()

    def _start_core(self, core: trio.Nursery, *, unclean: bool) -> None:
        services = self.parts.services
        core.start_soon(services.health.sample_lag)
        core.start_soon(self._handle_signals)
        core.start_soon(self._settle_in)
        core.start_soon(self._expire_notes)
        core.start_soon(services.trust.run)
        core.start_soon(self._note_quotas)
        core.start_soon(services.eraser.run)
        core.start_soon(services.forgetting.run)
        core.start_soon(self._purge_receipts)
        core.start_soon(self._watchdog)
        core.start_soon(self._preload_mcp)
        core.start_soon(services.embeddings.run)
        core.start_soon(services.backups.run)
        core.start_soon(services.uploads.run)
        services.health.add("backup.age", services.backups.check)
        services.health.add("store.disk", self._check_disk)
        services.health.add("store.writer", self._check_writer)
        services.health.add("mesh.listen", self._check_mesh)
        services.health.add("embed.backlog", self._check_embeddings)
        if unclean:
            core.start_soon(self._check_database)

    async def _handle_signals(self) -> None:
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        with trio.open_signal_receiver(*watched) as received:
            async for number in received:
                if number == signal.SIGHUP:
                    self.reload()
                elif number == signal.SIGUSR1:
                    log.info("task_tree", extra={"f": {"tasks": task_tree()}})
                else:
                    self._signals += 1
                    log.info("signal", extra={"f": {"number": int(number)}})
                    if self._signals > 2:
                        os._exit(EXIT_INTERNAL)
                    self.stop(now=self._signals > 1)

    def reload(self) -> None:
        """Read the settings again; the log level takes effect, the rest is named for a restart."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={int(self._env.now() * 1_000_000)}")
        try:
            fresh = settings.load(self._paths.config_file, flags=self._flags)
        except ConfigError:
            log.exception("reload_failed")
        else:
            set_level(fresh.log.level)
            changed = settings.differences(self._config, fresh)
            log.info("reloaded", extra={"f": {"restart_for": changed}})
            self.parts.services.events.publish("config.reloaded", {"restart_for": changed})
        notify("READY=1")

    async def _purge_receipts(self) -> None:
        while True:
            await trio.sleep(PURGE_EVERY_S)
            await self.parts.receipts.purge()

    async def _expire_notes(self) -> None:
        """Take notes whose time is over out of recall."""
        while True:
            await self.parts.memory.expire()
            await trio.sleep(EXPIRE_EVERY_S)

    async def _preload_mcp(self) -> None:
        """Load the MCP library before the first agent comes, if one is expected."""
        mode = self._config.mcp.preload
        expected = mode == "always" or (
            mode == "auto" and self.parts.services.agents.any_registered()
        )
        if not expected:
            return
        await trio.sleep(PRELOAD_AFTER_S)
        try:
            await self.parts.mcp.load()
        except ImportError:
            log.exception("mcp_preload_failed")

    async def _watchdog(self) -> None:
        if not os.environ.get("WATCHDOG_USEC"):
            return
        while True:
            await trio.sleep(WATCHDOG_S)
            if self.parts.services.health.lag_last_s < WATCHDOG_LAG_S:
                notify("WATCHDOG=1")

    async def _check_database(self) -> None:
        """After a run that died: SQLite's own check of the file's structure."""

        def check(connection: apsw.Connection) -> str:
            row = connection.execute("PRAGMA quick_check(1)").fetchone()
            return str(row[0]) if row else "no answer"

        found = await self.parts.db.read(check)
        sound = found == "ok"
        log.log(
            logging.INFO if sound else logging.ERROR,
            "checked_after_crash",
            extra={"f": {"sound": sound}},
        )

        async def probe() -> Check:
            await trio.lowlevel.checkpoint()
            return Check(
                name="store.integrity",
                status="ok" if sound else "failed",
                message="checked after the last run died" if sound else "the database is damaged",
                remedy=""
                if sound
                else "`covey down`, then `covey restore latest`; `covey verify` says more.",
            )

        self.parts.services.health.add("store.integrity", probe)

    async def _check_disk(self) -> Check:
        await trio.lowlevel.checkpoint()
        return disk_check(self._paths.state, self._config.node.low_disk_bytes)

    async def _check_writer(self) -> Check:
        before = self._env.now()
        await self.parts.db.write(lambda _connection: None)
        took_ms = (self._env.now() - before) * 1000
        return Check(name="store.writer", status="ok", message=f"commits in {took_ms:.1f} ms")

    async def _check_embeddings(self) -> Check:
        status = await self.parts.services.embeddings.status()
        return Check(
            name="embed.backlog",
            status="degraded" if status.problem else "ok",
            message=status.message,
            remedy="Recall goes on by words. `covey doctor store` looks at the model's file."
            if status.problem
            else "",
        )

    async def _check_mesh(self) -> Check:
        await trio.lowlevel.checkpoint()
        report = self.parts.node.report()
        if report.paused:
            return Check(
                name="mesh.listen",
                status="degraded",
                message="paused: working offline",
                remedy="`covey peers resume` connects again.",
            )
        if not self._config.p2p.listen:
            message = "no door, as [p2p] listen says: others come over relays"
            return Check(name="mesh.listen", status="ok", message=message)
        if not report.listen:
            return Check(
                name="mesh.listen",
                status="degraded",
                message=self._mesh_problem or "not listening yet",
                remedy=f"It is tried again each {MESH_RETRY_S:.0f} s; see also `covey logs`.",
            )
        return Check(name="mesh.listen", status="ok", message=", ".join(report.listen))

    def _on_replication(self, event: ReplicationEvent) -> None:
        topic = event.topic if event.topic in {"group", "sync"} else "sync"
        data: dict[str, object] = dict(event.data)
        data |= join_details(self.parts.replication, event.name, event.data)
        if event.name == "record.refused":
            refused = {
                key: value.hex()[:16] if isinstance(value, bytes) else value
                for key, value in event.data.items()
            }
            log.warning("record_refused", extra={"f": refused, "remote": True})
        group = event.data.get("group")
        author = event.data.get("author")
        if event.name == "quota.reached" and isinstance(group, bytes) and isinstance(author, bytes):
            with suppress(trio.WouldBlock):  # three a day count
                self._over_quota.send_nowait((group, author))
        if event.name == "group.joined" and isinstance(group, bytes):
            self._accepted.send_nowait(group)
        self.parts.services.events.publish(event.name, data, topic=topic)

    async def _settle_in(self) -> None:
        """In a group we just became a member of: take a home as ours, say our name."""
        async for group in self._accepted_here:
            views = self.parts.replication.groups()
            if any(view.group == group and view.home for view in views):
                await take_home(self.parts.replication, group)
            await self._say_name(group)

    async def _say_name(self, group: bytes) -> None:
        for _ in range(NAME_TRIES):
            try:
                await self.parts.memory.set_device_name(self._config.node.name, [group])
            except (TransientError, StoreError) as error:
                # The group's key may come a moment after our admission.
                log.info("name_waits", extra={"f": {"why": type(error).__name__}})
                await trio.sleep(NAME_WAIT_S)
            else:
                return

    async def _note_quotas(self) -> None:
        """Whoever fills a group beyond its share has that held against it."""
        async for group, author in self._over_quota_here:
            try:
                await self.parts.services.trust.quota_reached(group, author)
            except StoreError as error:
                log.info("quota_not_noted", extra={"f": {"why": error.reason}})

    def _on_trust(self, event: TrustEvent) -> None:
        data: dict[str, object] = {
            "device": event.device.hex(),
            "agent": event.agent,
            "before": round(event.before, 3),
            "after": round(event.after, 3),
        }
        self.parts.services.events.publish(f"trust.{event.name}", data)

    def _on_cell(self, change: CellChange) -> None:
        for view in self.parts.replication.groups():
            if view.group == change.group:
                data: dict[str, object] = {
                    "scope": write_scope(view.name, change.cell.path[0], home=view.home),
                    "group": view.name,
                    "path": list(change.cell.path),
                    "type": change.cell.type,
                    "ids": [one.hex() for one in change.ids],
                }
                self.parts.services.events.publish("state.changed", data)

    def _on_job(self, job: JobId, seq: int, kind: str, body: bytes) -> None:
        data: dict[str, object] = {"job": job.hex(), "job_seq": seq, **msgspec.json.decode(body)}
        self.parts.services.events.publish(f"job.{kind}", data)

    def _on_round(self, ident: str, kind: str, detail: str, peer: bytes | None) -> None:
        data: dict[str, object] = {"round": ident, "detail": detail}
        if peer is not None:
            data["peer"] = peer.hex()
        self.parts.services.events.publish(f"round.{kind.removeprefix('round.')}", data)

    def _on_memory(self, event: MemoryEvent) -> None:
        data: dict[str, object] = {"ids": list(event.ids), "scope": event.scope}
        self.parts.services.events.publish(f"memory.{event.name}", data)


def _peer_of(event: object) -> str:
    return bytes(getattr(event, "peer", b"")).hex()


def task_tree() -> list[str]:
    """All tasks, indented by parent."""
    lines: list[str] = []
    root = trio.lowlevel.current_root_task()
    # An explicit stack: no recursion on the depth of a tree that others grow.
    stack = [(root, 0)] if root is not None else []
    while stack:
        task, depth = stack.pop()
        lines.append(f"{'  ' * depth}{task.name}")
        for nursery in task.child_nurseries:
            stack += [(child, depth + 1) for child in nursery.child_tasks]
    return lines


def first_leaf(error: BaseException) -> BaseException:
    """The first exception that is no group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
