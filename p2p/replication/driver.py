"""The tasks of replication: who is connected, sessions, the join door, upkeep.

Everything that decides is elsewhere; this module moves bytes between streams and machines, carries
out what the machines ask of store and admission, and knows when to start the next session.
Source: docs/specs/sync.md s.6.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import P2pError, PeerError, TransientError
from p2p.identity import PeerId
from p2p.net.seam import PeerDown, PeerUp
from p2p.replication import join, push, session
from p2p.replication.groups import STATE_MEMBER, STATE_PENDING, STATE_REFUSED
from p2p.replication.pusher import Pusher
from p2p.replication.quarantine import held_logs
from p2p.replication.runner import SessionRunner
from p2p.replication.talk import FramedTalk
from p2p.replication.views import PeerSync, SyncResult
from p2p.rpc_mesh import ADDRS, ASKED_PEERS_MAX, AddrsQuery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.net.seam import Stream
    from p2p.node import Node
    from p2p.replication.core import Core
    from p2p.replication.exchange_types import GroupReport
    from p2p.replication.groups import Group
    from p2p.replication.store import LogKey

log = logging.getLogger("covey.p2p.replication")

SESSIONS_MAX: Final = 8
"""Outgoing sessions at a time."""

THIRD_EVERY: Final = 16
"""Every so many scheduled sessions another follows, with a member drawn at random: who always meets
the same peer would never learn that it lies. Source: docs/specs/sync.md s.6."""

VERIFY_TRIES: Final = 3
"""Sessions to verify until one is not replaced by the peer's own."""

SHOWN_IDS_MAX: Final = 32
"""Ids of differing records kept of a comparison."""

MEETING: Final = b"covey group "
"""Before a group's id: the name under which its members find each other in the DHT."""
FALLBACK_S: Final = 3.0
"""The higher peer id waits so long for the lower one to open the session on connect."""


@dataclass
class _Running:
    """A session under way."""

    outgoing: bool
    scope: trio.CancelScope
    over: trio.Event
    results: list[SyncResult] = field(default_factory=list)


class Driver:
    """Runs replication over a node.

    Args:
        core: the parts that decide.
        node: the mesh.
    """

    def __init__(self, core: Core, node: Node) -> None:
        self._core = core
        self._node = node
        self._running: dict[bytes, _Running] = {}
        self._due: dict[bytes, float] = {}
        self._due_changed = trio.Event()
        self._status: dict[tuple[bytes, bytes], PeerSync] = {}
        self._scheduled_sessions = 0
        self._pinned: set[bytes] = set()
        self._nursery: trio.Nursery | None = None
        self.failures = 0
        """Faults of ours that ended a session or a round of upkeep."""
        self._slots = trio.CapacityLimiter(SESSIONS_MAX)
        self._pusher = Pusher(core, node, self._set_due)
        self._peers = self._pusher.peers
        core.keeper.members_changed = self.members_changed
        fabric = node.fabric
        fabric.handle(session.PROTOCOL, self._serve_session, per_peer_max=2)
        fabric.handle(push.PROTOCOL, self._pusher.serve, per_peer_max=2)
        fabric.handle(join.PROTOCOL, self._serve_join, per_peer_max=2)
        node.set_members(self._is_member, introduces=core.groups.introduces)

    def _is_member(self, peer: PeerId) -> bool:
        return self._core.groups.is_member(peer)

    # --- life ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self._pin_members()
                nursery.start_soon(self._watch_fabric)
                nursery.start_soon(self._schedule)
                nursery.start_soon(self._pusher.run)
                nursery.start_soon(self._upkeep)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _watch_fabric(self) -> None:
        """Follow connections; a subscription that overflowed is renewed and everything reread."""
        while True:
            events = self._node.fabric.events()
            connected = self._node.fabric.peers()
            for gone in [p for p in self._peers if p not in connected]:
                self._down(gone)
            for peer in sorted(connected):
                self._up(peer)
            async for event in events:
                if isinstance(event, PeerUp):
                    self._up(event.peer)
                elif isinstance(event, PeerDown):
                    self._down(event.peer)

    def _up(self, peer: bytes) -> None:
        if peer in self._peers or not self._core.groups.is_member(peer):
            return
        if self._nursery is None:
            return  # the daemon is stopping: an event that was waiting still wakes us once
        state = self._pusher.add(peer)
        self._nursery.start_soon(self._contained, peer, partial(self._pusher.feed, peer, state))
        self._nursery.start_soon(self._contained, peer, partial(self._learn_addrs, peer))
        # One of the two opens the session on connect, the other only if that one does not.
        self._set_due(peer, 0.0 if self._core.me < peer else FALLBACK_S)

    async def _contained(self, peer: bytes, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:  # a supervisor: what a peer sets off ends its own task, not the daemon
            self.failures += 1
            log.exception("task_failed", extra={"f": {"peer": peer.hex()[:16]}})

    def _down(self, peer: bytes) -> None:
        self._pusher.remove(peer)
        self._due.pop(peer, None)

    # --- members ------------------------------------------------------------------------------

    def members_changed(self, group: Group) -> None:
        """Members of a group came or went: pin, push and sync accordingly."""
        self._pin_members()
        if self._nursery is None:
            return
        connected = self._node.fabric.peers()
        for peer in sorted(connected):
            if peer in self._peers:
                if group.role(peer) is not None:
                    self._set_due(peer, self._core.config.resume_s)
            else:
                self._up(peer)
        for gone in [p for p in self._peers if not self._core.groups.is_member(p)]:
            self._down(gone)

    def _pin_members(self) -> None:
        wanted = set(self._core.groups.peers())
        for peer in sorted(wanted - self._pinned):
            self._node.pin(PeerId(peer), self._node.known_addrs(PeerId(peer)))
        for peer in sorted(self._pinned - wanted):
            self._node.unpin(PeerId(peer))
        self._pinned = wanted
        groups = self._core.groups.all()
        self._node.meet(MEETING + g.id for g in groups if g.founded and g.state == STATE_MEMBER)

    async def _learn_addrs(self, peer: bytes) -> None:
        """Ask a member where the members are that we do not reach."""
        connected = self._node.fabric.peers()
        missing = [p for p in self._core.groups.peers() if p not in connected and p != peer]
        if not missing:
            return
        try:
            reply = await self._node.rpc.call(
                PeerId(peer), ADDRS, AddrsQuery(missing[:ASKED_PEERS_MAX]), timeout_s=10
            )
        except P2pError:
            return
        for known in reply.known:
            if known.peer in missing:
                self._node.learn(PeerId(known.peer), known.addrs)
                self._node.pin(PeerId(known.peer), known.addrs)

    # --- scheduling ---------------------------------------------------------------------------

    def _set_due(self, peer: bytes, delay_s: float) -> None:
        at = self._core.env.now() + delay_s
        if peer in self._peers and at < self._due.get(peer, math.inf):
            self._due[peer] = at
            self._due_changed.set()

    def _set_next(self, peer: bytes) -> None:
        config = self._core.config
        factor = 1 + config.sync_jitter_ratio * (2 * self._core.env.rng.random() - 1)
        if peer in self._peers:
            self._due.setdefault(peer, self._core.env.now() + config.sync_interval_s * factor)
            self._due_changed.set()

    async def _schedule(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._due_changed = trio.Event()
                now = self._core.env.now()
                ready = [p for p in sorted(self._due) if self._due[p] <= now]
                # Who listed what it did not deliver is asked last.
                ready.sort(key=lambda p: self._core.quota.asked_last(p, now))
                for peer in ready:
                    del self._due[peer]
                    nursery.start_soon(self._scheduled, peer)
                following = min(self._due.values(), default=math.inf)
                with trio.move_on_after(following - now):
                    await self._due_changed.wait()

    async def _scheduled(self, peer: bytes) -> None:
        async with self._slots:
            if peer in self._peers and self._core.quota.may_ask(peer, self._core.env.now()):
                try:
                    await self.sync_with(peer)
                    await self._sync_with_third(peer)
                    await self._learn_addrs(peer)
                except Exception:  # a supervisor: a full disk ends this session, not the daemon
                    self.failures += 1
                    log.exception("session_failed", extra={"f": {"peer": peer.hex()[:16]}})
        self._set_next(peer)

    async def _sync_with_third(self, peer: bytes) -> None:
        """Now and then compare with a member drawn at random as well."""
        self._scheduled_sessions += 1
        if self._scheduled_sessions % THIRD_EVERY:
            return
        others = sorted(p for p in self._core.groups.peers() if p != peer)
        if others:
            await self.sync_with(self._core.env.rng.choice(others))

    # --- sessions -----------------------------------------------------------------------------

    def session_groups(self, peer: bytes) -> list[bytes]:
        """Groups to compare with a peer: both are in them, or our join is under way."""
        return [
            group.id
            for group in self._core.groups.all()
            if group.state in {STATE_MEMBER, STATE_PENDING} and group.role(peer) is not None
        ]

    async def verify_with(self, peer: bytes) -> list[SyncResult]:
        """Compare with a peer and fetch nothing; its results, none if it cannot be reached.

        A peer that does not compare by ranges gets an ordinary session, which is no verdict unless
        it ends equal.
        """
        results: list[SyncResult] = []
        for _ in range(VERIFY_TRIES):
            running = self._running.get(peer)
            if running is not None:
                await running.over.wait()
            results = await self.sync_with(peer, verify=True)
            if all(result.verified for result in results):
                break
        return results

    async def sync_with(self, peer: bytes, *, verify: bool = False) -> list[SyncResult]:
        """Run a session with a peer, or wait for the one under way; its results."""
        running = self._running.get(peer)
        if running is not None:
            await running.over.wait()
            return running.results
        groups = self.session_groups(peer)
        if not groups or self._core.quota.banned(peer, self._core.env.now()):
            return []
        try:
            stream = await self._node.fabric.open(PeerId(peer), session.PROTOCOL)
        except TransientError:
            return []
        results: list[SyncResult] = []
        if peer in self._running:
            stream.reset()  # Theirs came while we opened ours.
        else:
            results = await self._run_session(stream, outgoing=True, verify=verify)
        replaced = self._running.get(peer)
        if replaced is not None:
            await replaced.over.wait()
            results = replaced.results
        return results

    async def _serve_session(self, stream: Stream) -> None:
        peer: bytes = stream.peer
        quota, now = self._core.quota, self._core.env.now()
        if quota.banned(peer, now) or not quota.may_compare(peer, now):
            stream.reset()
            return
        running = self._running.get(peer)
        if running is not None:
            if running.outgoing and self._core.me < peer:
                stream.reset()  # Ours stays: the lower peer id's.
                return
            running.scope.cancel()
            await running.over.wait()
        await self._run_session(stream, outgoing=False)

    async def _run_session(
        self, stream: Stream, *, outgoing: bool, verify: bool = False
    ) -> list[SyncResult]:
        peer = stream.peer
        running = _Running(outgoing, trio.CancelScope(), trio.Event())
        self._running[peer] = running
        runner: SessionRunner | None = None
        try:
            with running.scope:
                machine = await self._new_session(peer, outgoing=outgoing, verify=verify)
                runner = SessionRunner(self._core, machine, stream, self._pusher.note_origins)
                await runner.run()
        finally:
            if self._running.get(peer) is running:
                del self._running[peer]
            if runner is not None:
                running.results = self._take_reports(peer, runner, outgoing=outgoing)
            running.over.set()
        if runner is not None:
            await self._after_session(peer, runner)
        return running.results

    async def _new_session(self, peer: bytes, *, outgoing: bool, verify: bool) -> session.Session:
        groups = self.session_groups(peer)
        held: dict[LogKey, int] = {}
        for group_id in groups:
            held |= await held_logs(self._core.store, group_id)
        return session.Session(
            me=self._core.me,
            groups=groups,
            held=held,
            initiator=outgoing,
            nonce=self._core.env.rng.randbytes(16),
            config=self._core.config,
            now=self._core.env.now(),
            skip_gaps=self._core.quota.skip_gaps(peer, self._core.env.now()),
            verify=verify,
        )

    def _take_reports(
        self, peer: bytes, runner: SessionRunner, *, outgoing: bool
    ) -> list[SyncResult]:
        size = runner.machine.bytes_in + runner.machine.bytes_out
        results = [self._note_report(peer, report, size) for report in runner.reports]
        if not outgoing:
            asked = sum(report.range_messages for report in runner.reports)
            self._core.quota.compared(peer, asked, self._core.env.now())
        log.info(
            "session_closed",
            extra={
                "f": {
                    "peer": peer.hex()[:16],
                    "reason": runner.reason[:200],
                    "groups": len(results),
                    "equal": sum(1 for r in results if r.equal),
                    "bytes": size,
                },
                "remote": True,
            },
        )
        return results

    def _note_report(self, peer: bytes, report: GroupReport, size: int) -> SyncResult:
        group = self._core.groups.get(report.group)
        now = self._core.env.now()
        if group is not None:
            group.synced_once = group.synced_once or report.equal
            # Who holds our control log makes it safe to go on with it.
            group.control_confirmed = group.control_confirmed or report.confirmed
        if report.withheld:
            for key in report.gaps_failed:
                self._core.quota.gap_failed(peer, key, now)
            if self._core.quota.withheld(peer, now):
                self._core.events.emit("sync.withheld", {"peer": peer, "group": report.group})
        state = PeerSync(
            group=report.group,
            peer=peer,
            last_ms=self._core.env.wall_ms(),
            equal=report.equal,
            missing=report.missing,
            received=report.received,
            sent=report.sent,
            bytes=size,
            rounds=report.rounds,
            why=report.reason,
            records=report.records,
            verified=report.equal or report.compared_all,
            only_here=len(report.only_here),
            only_there=report.only_there,
            here=report.only_here[:SHOWN_IDS_MAX],
        )
        self._status[report.group, peer] = state
        self._core.events.emit(
            "sync.finished",
            {
                "group": report.group,
                "peer": peer,
                "equal": report.equal,
                "received": report.received,
                "sent": report.sent,
                "missing": report.missing,
                "why": report.reason,
            },
        )
        return state

    async def _after_session(self, peer: bytes, runner: SessionRunner) -> None:
        """Prove forks, introduce ourselves where we are not known, go on where we were cut."""
        for report in runner.reports:
            group = self._core.groups.get(report.group)
            if group is None:
                continue
            if group.evidence:
                async with self._core.keeper.turn(group):
                    await self._core.keeper.prove(group, all_of_it=True)
            # Only progress is followed up at once: a peer that brings nothing costs no loop.
            if report.forks or (not report.equal and report.received and not report.withheld):
                self._set_due(peer, self._core.config.resume_s)
        for group_id in runner.unshared:
            await self._pusher.introduce(group_id, peer)
        if runner.close_peer:
            await self._node.fabric.disconnect(PeerId(peer))

    def status(self) -> list[PeerSync]:
        """How the last session with each peer ended, by group and peer."""
        return [self._status[key] for key in sorted(self._status)]

    # --- the join door ------------------------------------------------------------------------

    async def _serve_join(self, stream: Stream) -> None:
        talk = FramedTalk(stream)
        try:
            with trio.fail_after(self._core.config.join_s):
                await join.answer_ask(self._core, talk)
                await stream.send_eof()
        except (PeerError, trio.TooSlowError) as error:
            log.warning(
                "join_closed",
                extra={"f": {"peer": talk.peer.hex()[:16], "why": str(error)}, "remote": True},
            )
            stream.reset()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        if self._core.groups.is_member(talk.peer):
            self._up(talk.peer)

    # --- upkeep -------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        while True:
            await trio.sleep(self._core.config.upkeep_s)
            for group in self._core.groups.all():
                if group.state == STATE_REFUSED or not group.founded:
                    continue
                await self._keep(group)

    async def _keep(self, group: Group) -> None:
        try:
            async with self._core.keeper.turn(group):
                _, admitted = await self._core.admission.retry_held(group)
                await self._core.keeper.heard(group, admitted)
                await self._core.keeper.prove(group)
                await self._core.keeper.close_invites(group)
                await self._core.keeper.do_duties(group)
        except Exception:  # a supervisor: a full disk ends this round, not the daemon
            self.failures += 1
            log.exception("upkeep_failed", extra={"f": {"group": group.id.hex()[:16]}})
