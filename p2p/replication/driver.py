"""The tasks of replication: sessions, push streams, the join door, upkeep. The only trio in here.

Everything that decides is elsewhere; this module moves bytes between streams and machines, carries
out what the machines ask of store and admission, and knows when to start the next session.
Source: docs/specs/sync.md s.6.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import P2pError, PeerError, TransientError
from p2p.identity import PeerId
from p2p.net.seam import PeerDown, PeerUp
from p2p.replication import join, push, session
from p2p.replication.admission import held_logs
from p2p.replication.events import GroupError
from p2p.replication.groups import STATE_MEMBER, STATE_PENDING, STATE_REFUSED, fetch_of
from p2p.replication.messages import FrameReader, Have, Records, WantBodies, encode_frame
from p2p.replication.push import Announced, Origins, Outbox
from p2p.replication.record import STATE_VOID, decode_header_untrusted, record_id
from p2p.replication.runner import SessionRunner, carry_admission
from p2p.replication.session import wire_of
from p2p.replication.views import PeerSync, SyncResult
from p2p.rpc_mesh import ADDRS, ASKED_PEERS_MAX, AddrsQuery

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from p2p.net.seam import Stream
    from p2p.node import Node
    from p2p.replication.core import Core
    from p2p.replication.exchange import GroupReport
    from p2p.replication.groups import Group
    from p2p.replication.messages import Message
    from p2p.replication.record import RecordWire
    from p2p.replication.store import LogKey

log = logging.getLogger("covey.p2p.replication")

RECEIVE_BYTES: Final = 65_536
GRACE_S: Final = 5.0
"""For writing what is unsent after a session's end, and for the other side's end of file."""

SESSIONS_MAX: Final = 8
"""Outgoing sessions at a time."""

FALLBACK_S: Final = 3.0
"""The higher peer id waits so long for the lower one to open the session on connect."""

PUSH_RETRY_S: Final = 5.0
"""Pause before a broken push stream is opened again."""


class FramedTalk:
    """Messages over a stream, for the join door and push."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._reader = FrameReader()

    @property
    def peer(self) -> bytes:
        """Who it is, proven by the handshake."""
        return self._stream.peer

    async def send(self, message: Message) -> None:
        """Send one message."""
        await self._stream.send_all(encode_frame(message))

    async def receive(self) -> Message | None:
        """The next message; None at the end of the stream."""
        while True:
            found = self._reader.next_message_untrusted()
            if found is not None:
                return found[0]
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                return None
            self._reader.feed(bytes(data))


@dataclass
class _Peer:
    """What the driver knows of a connected peer."""

    outbox: Outbox
    wake: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


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
        self._peers: dict[bytes, _Peer] = {}
        self._running: dict[bytes, _Running] = {}
        self._due: dict[bytes, float] = {}
        self._due_changed = trio.Event()
        self._committed: list[tuple[bytes, bytes]] = []
        self._commit_seen = trio.Event()
        self._origins = Origins()
        self._announced = Announced()
        self._announced_changed = trio.Event()
        self._status: dict[tuple[bytes, bytes], PeerSync] = {}
        self._pinned: set[bytes] = set()
        self._nursery: trio.Nursery | None = None
        self._slots = trio.CapacityLimiter(SESSIONS_MAX)
        core.store.on_commit(self._on_commit)
        core.keeper.members_changed = self.members_changed
        fabric = node.fabric
        fabric.handle(session.PROTOCOL, self._serve_session, per_peer_max=2)
        fabric.handle(push.PROTOCOL, self._serve_push, per_peer_max=2)
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
                nursery.start_soon(self._flush_commits)
                nursery.start_soon(self._ask_announced)
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
        state = self._peers[peer] = _Peer(Outbox(self._core.config))
        assert self._nursery is not None, "called from tasks of the nursery"
        if self._core.config.push:
            self._nursery.start_soon(self._push_to, peer, state)
        self._nursery.start_soon(self._learn_addrs, peer)
        # One of the two opens the session on connect, the other only if that one does not.
        self._set_due(peer, 0.0 if self._core.me < peer else FALLBACK_S)

    def _down(self, peer: bytes) -> None:
        state = self._peers.pop(peer, None)
        if state is not None:
            state.scope.cancel()
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
                await self.sync_with(peer)
                await self._learn_addrs(peer)
        self._set_next(peer)

    # --- sessions -----------------------------------------------------------------------------

    def session_groups(self, peer: bytes) -> list[bytes]:
        """Groups to compare with a peer: both are in them, or our join is under way."""
        return [
            group.id
            for group in self._core.groups.all()
            if group.state in {STATE_MEMBER, STATE_PENDING} and group.role(peer) is not None
        ]

    async def sync_with(self, peer: bytes) -> list[SyncResult]:
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
            results = await self._run_session(stream, outgoing=True)
        replaced = self._running.get(peer)
        if replaced is not None:
            await replaced.over.wait()
            results = replaced.results
        return results

    async def _serve_session(self, stream: Stream) -> None:
        peer: bytes = stream.peer
        if self._core.quota.banned(peer, self._core.env.now()):
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

    async def _run_session(self, stream: Stream, *, outgoing: bool) -> list[SyncResult]:
        peer = stream.peer
        running = _Running(outgoing, trio.CancelScope(), trio.Event())
        self._running[peer] = running
        runner: SessionRunner | None = None
        try:
            with running.scope:
                machine = await self._new_session(peer, outgoing=outgoing)
                runner = SessionRunner(self._core, machine, stream, self._note_origins)
                await runner.run()
        finally:
            if self._running.get(peer) is running:
                del self._running[peer]
            if runner is not None:
                running.results = self._take_reports(peer, runner)
            running.over.set()
        if runner is not None:
            await self._after_session(peer, runner)
        return running.results

    async def _new_session(self, peer: bytes, *, outgoing: bool) -> session.Session:
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
        )

    def _take_reports(self, peer: bytes, runner: SessionRunner) -> list[SyncResult]:
        size = runner.machine.bytes_in + runner.machine.bytes_out
        results = [self._note_report(peer, report, size) for report in runner.reports]
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
                async with group.lock:
                    await self._core.keeper.prove(group, all_of_it=True)
            again = report.forks or (not report.equal and "goes on" in report.reason)
            if again or (not report.equal and report.received and not report.withheld):
                self._set_due(peer, self._core.config.resume_s)
        for group_id in runner.unshared:
            await self._introduce(group_id, peer)
        if runner.close_peer:
            await self._node.fabric.disconnect(PeerId(peer))

    async def _introduce(self, group_id: bytes, peer: bytes) -> None:
        """Show a member the control records that made us one; it may not have heard of them."""
        group, state = self._core.groups.get(group_id), self._peers.get(peer)
        if group is None or state is None or group.state != STATE_MEMBER:
            return
        mine = {i for s in group.standing.supports(self._core.me) for i in s.op_ids}
        for row in await self._core.store.fetch(sorted(mine), bodies=True):
            state.outbox.put(group_id, wire_of(row))
        state.wake.set()

    def status(self) -> list[PeerSync]:
        """How the last session with each peer ended, by group and peer."""
        return [self._status[key] for key in sorted(self._status)]

    # --- push: sending ------------------------------------------------------------------------

    def _on_commit(self, group: bytes, ids: Sequence[bytes]) -> None:
        for ident in ids:
            self._announced.arrived(ident)
        if self._core.config.push and self._nursery is not None and self._peers:
            self._committed.extend((group, ident) for ident in ids)
            self._commit_seen.set()
        if self._core.groups.get(group) is not None:
            self._core.events.emit("record.admitted", {"group": group, "count": len(ids)})

    async def _flush_commits(self) -> None:
        while True:
            await self._commit_seen.wait()
            await trio.sleep(self._core.config.push_delay_s)
            self._commit_seen = trio.Event()
            committed, self._committed = self._committed, []
            by_group: dict[bytes, list[bytes]] = {}
            for group, ident in committed:
                by_group.setdefault(group, []).append(ident)
            for group, ids in by_group.items():
                await self._push(group, ids)

    async def _push(self, group_id: bytes, ids: list[bytes]) -> None:
        group = self._core.groups.get(group_id)
        if group is None or not group.founded:
            return
        peers = [p for p in sorted(self._peers) if group.role(p) is not None]
        if not peers:
            return
        limit = self._core.config.push_queue_records_max
        if len(ids) > limit:
            # Nobody's queue holds so many: a session brings them at less cost.
            for peer in peers:
                self._set_due(peer, self._core.config.resume_s)
            ids = ids[-limit:]
        rows = await self._core.store.fetch(ids, bodies=True)
        full, by_id = push.spread(peers, self._core.config, self._core.env.rng)
        for row in rows:
            header = decode_header_untrusted(row.header)
            if row.state == STATE_VOID and header.kind >= 32:
                continue
            origin = self._origins.of(row.id)
            for peer in full:
                if peer != origin and peer in self._peers:
                    self._peers[peer].outbox.put(group_id, wire_of(row))
            for peer in by_id:
                if peer != origin and peer in self._peers:
                    self._peers[peer].outbox.announce(group_id, [row.id])
        self._wake(peers)

    def _wake(self, peers: Iterable[bytes]) -> None:
        for peer in peers:
            state = self._peers.get(peer)
            if state is None:
                continue
            if state.outbox.lagged:
                state.outbox.lagged = False
                self._core.events.emit("sync.lagging", {"peer": peer})
                self._set_due(peer, self._core.config.resume_s)
            state.wake.set()

    async def _push_to(self, peer: bytes, state: _Peer) -> None:
        """Keep a push stream to a connected member; what a broken one lost a session brings."""
        with state.scope:
            while True:
                try:
                    stream = await self._node.fabric.open(PeerId(peer), push.PROTOCOL)
                    await self._feed(stream, state)
                except (TransientError, trio.BrokenResourceError, trio.ClosedResourceError):
                    state.outbox.clear()
                    self._set_due(peer, self._core.config.resume_s)
                await trio.sleep(PUSH_RETRY_S)

    async def _feed(self, stream: Stream, state: _Peer) -> None:
        async with stream:
            while True:
                while not state.outbox.empty:
                    await stream.send_all(state.outbox.take())
                state.wake = trio.Event()
                await state.wake.wait()

    # --- push: receiving ----------------------------------------------------------------------

    async def _serve_push(self, stream: Stream) -> None:
        talk = FramedTalk(stream)
        try:
            while not self._core.quota.banned(talk.peer, self._core.env.now()):
                message = await talk.receive()
                if message is None:
                    return
                await self._take_push(talk.peer, message)
            stream.reset()
        except PeerError as error:
            log.warning(
                "push_closed",
                extra={"f": {"peer": talk.peer.hex()[:16], "why": str(error)}, "remote": True},
            )
            stream.reset()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _take_push(self, peer: bytes, message: Message) -> None:
        group = self._core.groups.get(getattr(message, "group", b""))
        if not isinstance(message, Records | Have | WantBodies):
            raise PeerError(f"{type(message).__name__} does not belong to a push stream")
        if group is None or not group.founded or group.state == STATE_REFUSED:
            return
        member = group.role(peer) is not None
        match message:
            case Records(wires=wires):
                # A newcomer whose admit we have not heard of may show it to us, and no more.
                taken = wires if member else tuple(w for w in wires if _is_control(w))
                if taken:
                    await self._admit_push(group, taken, peer)
            case Have(ids=ids) if member:
                await self._note_announced(group, ids, peer)
            case WantBodies(ids=ids) if member:
                await self._answer_push(group, ids, peer)

    async def _admit_push(self, group: Group, wires: tuple[RecordWire, ...], peer: bytes) -> None:
        self._note_origins(wires, peer)
        result = await carry_admission(self._core, group, wires, peer)
        state = self._peers.get(peer)
        if result.missing and state is not None:
            state.outbox.ask(group.id, result.missing)
            state.wake.set()
        if any(not suspect.first for suspect in result.suspects) or result.throttled:
            self._set_due(peer, self._core.config.resume_s)
        if result.close:
            await self._node.fabric.disconnect(PeerId(peer))
            raise PeerError(result.close)

    def _note_origins(self, wires: Iterable[RecordWire], peer: bytes) -> None:
        for wire in wires:
            self._origins.note(record_id(wire.header), peer)

    async def _note_announced(self, group: Group, ids: Sequence[bytes], peer: bytes) -> None:
        known = await self._core.store.known(ids)
        ask_at = self._core.env.now() + self._core.config.push_ask_after_s
        for ident in ids:
            if ident not in known:
                self._announced.note(group.id, ident, peer, ask_at)
        self._announced_changed.set()

    async def _ask_announced(self) -> None:
        while True:
            self._announced_changed = trio.Event()
            now = self._core.env.now()
            asked = set()
            for peer, group, ident in self._announced.due(now):
                state = self._peers.get(peer)
                if state is not None:
                    state.outbox.ask(group, [ident])
                    asked.add(peer)
            self._wake(sorted(asked))
            following = self._announced.next_ask()
            with trio.move_on_after(math.inf if following is None else following - now):
                await self._announced_changed.wait()

    async def _answer_push(self, group: Group, ids: Sequence[bytes], peer: bytes) -> None:
        state = self._peers.get(peer)
        if state is None:
            return
        for row in await fetch_of(self._core.store, group.id, ids):
            state.outbox.put(group.id, wire_of(row))
        self._wake([peer])

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
            async with group.lock:
                _, admitted = await self._core.admission.retry_held(group)
                await self._core.keeper.after(group, admitted)
                await self._core.keeper.prove(group)
                await self._core.keeper.close_invites(group)
                await self._core.keeper.do_duties(group)
        except GroupError as error:
            log.warning(
                "upkeep_failed", extra={"f": {"group": group.id.hex()[:16], "why": str(error)}}
            )


def _is_control(wire: RecordWire) -> bool:
    try:
        header = decode_header_untrusted(wire.header)
    except PeerError:
        return False
    return header.kind < 32
