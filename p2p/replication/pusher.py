"""Eager push, the tasks: a stream to each connected member, and the streams they open to us.

What to send to whom is decided in `p2p.replication.push`; admission judges what comes. A failure of
ours (a full disk) is logged and costs the batch, which a session brings again.
Source: docs/specs/sync.md s.6.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import PeerError, TransientError
from p2p.identity import PeerId
from p2p.replication import push
from p2p.replication.farewell import Farewell
from p2p.replication.groups import STATE_MEMBER, STATE_REFUSED, fetch_of
from p2p.replication.messages import Have, Records, WantBodies
from p2p.replication.push import Announced, Origins, Outbox
from p2p.replication.record import (
    LANE_CONTROL,
    LANE_DATA,
    STATE_VOID,
    decode_header_untrusted,
    lane_of,
    record_id,
)
from p2p.replication.runner import carry_admission
from p2p.replication.talk import FramedTalk
from p2p.replication.wires import FETCH_IDS, wire_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from p2p.net.seam import Stream
    from p2p.node import Node
    from p2p.replication.core import Core
    from p2p.replication.groups import Group
    from p2p.replication.messages import Message
    from p2p.replication.record import RecordWire

log = logging.getLogger("covey.p2p.replication")

RETRY_S: Final = 5.0
"""Pause before a broken push stream is opened again."""


@dataclass
class PushPeer:
    """A connected member."""

    outbox: Outbox
    wake: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Pusher:
    """Sends what was committed and takes what others send.

    Args:
        core: the parts that decide.
        node: the mesh.
        set_due: asks for a session with a peer in so many seconds.
    """

    def __init__(self, core: Core, node: Node, set_due: Callable[[bytes, float], None]) -> None:
        self._core = core
        self._node = node
        self._set_due = set_due
        self.peers: dict[bytes, PushPeer] = {}
        """Connected members."""
        self._committed: list[tuple[bytes, bytes]] = []
        self._commit_seen = trio.Event()
        self._origins = Origins()
        self._announced = Announced()
        self._announced_changed = trio.Event()
        self._farewell = Farewell(core, node)
        self._seen: dict[bytes, object] = {}
        """Group -> its standing when removals were last looked for."""
        self._nursery: trio.Nursery | None = None
        core.store.on_commit(self._on_commit)

    async def run(self) -> None:
        """Send commits and ask for announced records until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._flush_commits)
            self._nursery.start_soon(self._ask_announced)

    def add(self, peer: bytes) -> PushPeer:
        """A member is connected."""
        state = self.peers[peer] = PushPeer(Outbox(self._core.config))
        return state

    def remove(self, peer: bytes) -> None:
        """It is not any more."""
        state = self.peers.pop(peer, None)
        if state is not None:
            state.scope.cancel()

    async def introduce(self, group_id: bytes, peer: bytes) -> None:
        """Show a member the control records that made us one; it may not have heard of them."""
        group, state = self._core.groups.get(group_id), self.peers.get(peer)
        if group is None or state is None or group.state != STATE_MEMBER:
            return
        mine = {i for s in group.standing.supports(self._core.me) for i in s.op_ids}
        for row in await self._core.store.fetch(sorted(mine), bodies=True):
            state.outbox.put(group_id, wire_of(row))
        state.wake.set()

    # --- push: sending ------------------------------------------------------------------------

    def _on_commit(self, group: bytes, ids: Sequence[bytes]) -> None:
        for ident in ids:
            self._announced.arrived(ident)
        if self._core.config.push and (self.peers or self._node.fabric.peers()):
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
                try:
                    await self._push(group, ids)
                except Exception:  # a supervisor: our own failure costs this batch, no more
                    log.exception("push_failed", extra={"f": {"group": group.hex()[:16]}})

    async def _push(self, group_id: bytes, ids: list[bytes]) -> None:
        group = self._core.groups.get(group_id)
        if group is None or not group.founded:
            return
        if self._seen.get(group_id) is not group.standing:
            self._seen[group_id] = group.standing
            for connected in sorted(self._node.fabric.peers()):
                self._tell_if_removed(connected)
        peers = [p for p in sorted(self.peers) if group.role(p) is not None]
        # What its bringer alone would get is not even read: most of what a first sync stores.
        ids = [one for one in ids if any(peer != self._origins.of(one) for peer in peers)]
        if not ids:
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
            if row.state == STATE_VOID and lane_of(header.kind) == LANE_DATA:
                continue
            origin = self._origins.of(row.id)
            for peer in full:
                if peer != origin and peer in self.peers:
                    self.peers[peer].outbox.put(group_id, wire_of(row))
            for peer in by_id:
                if peer != origin and peer in self.peers:
                    self.peers[peer].outbox.announce(group_id, [row.id])
        self._wake(peers)

    def _tell_if_removed(self, peer: bytes) -> None:
        """Tell a connected device that it is out, if it is and may not know."""
        if self._nursery is not None and self._farewell.owed(peer):
            self._nursery.start_soon(self._tell_removed, peer)

    async def _tell_removed(self, peer: bytes) -> None:
        try:
            await self._farewell.tell(peer)
        except Exception:  # a supervisor: our own failure leaves it untold, no more
            log.exception("removal_untold", extra={"f": {"peer": peer.hex()[:16]}})

    def _wake(self, peers: Iterable[bytes]) -> None:
        for peer in peers:
            state = self.peers.get(peer)
            if state is None:
                continue
            if state.outbox.lagged:
                state.outbox.lagged = False
                self._core.events.emit("sync.lagging", {"peer": peer})
                self._set_due(peer, self._core.config.resume_s)
            state.wake.set()

    async def feed(self, peer: bytes, state: PushPeer) -> None:
        """Keep a push stream to a connected member; what a broken one lost a session brings."""
        with state.scope:
            while self._core.config.push:
                try:
                    stream = await self._node.fabric.open(PeerId(peer), push.PROTOCOL)
                    await self._send(stream, state)
                except (TransientError, trio.BrokenResourceError, trio.ClosedResourceError):
                    state.outbox.clear()
                    self._set_due(peer, self._core.config.resume_s)
                await trio.sleep(RETRY_S)

    async def _send(self, stream: Stream, state: PushPeer) -> None:
        async with stream:
            while True:
                while not state.outbox.empty:
                    await stream.send_all(state.outbox.take())
                state.wake = trio.Event()
                await state.wake.wait()

    # --- push: receiving ----------------------------------------------------------------------

    async def serve(self, stream: Stream) -> None:
        """Handle a push stream that a peer opened."""
        talk = FramedTalk(stream)
        self._tell_if_removed(talk.peer)
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
        if not self._core.quota.may_ask(peer, self._core.env.now()):
            # Over its rate: not even verified. A session brings them when it has room again.
            self._set_due(peer, self._core.config.sync_interval_s)
            return
        self.note_origins(wires, peer)
        result = await carry_admission(self._core, group, wires, peer)
        state = self.peers.get(peer)
        if result.missing and state is not None:
            state.outbox.ask(group.id, result.missing)
            state.wake.set()
        if any(not suspect.first for suspect in result.suspects) or result.throttled:
            self._set_due(peer, self._core.config.resume_s)
        if result.close:
            await self._node.fabric.disconnect(PeerId(peer))
            raise PeerError(result.close)

    def note_origins(self, wires: Iterable[RecordWire], peer: bytes) -> None:
        """Remember who brings records, so that they are not sent back."""
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
                state = self.peers.get(peer)
                if state is not None:
                    state.outbox.ask(group, [ident])
                    asked.add(peer)
            self._wake(sorted(asked))
            following = self._announced.next_ask()
            with trio.move_on_after(math.inf if following is None else following - now):
                await self._announced_changed.wait()

    async def _answer_push(self, group: Group, ids: Sequence[bytes], peer: bytes) -> None:
        state = self.peers.get(peer)
        if state is None:
            return
        for at in range(0, len(ids), FETCH_IDS):
            # What does not fit would push out what waits; a session brings it.
            if not state.outbox.has_room:
                state.outbox.lagged = True
                break
            for row in await fetch_of(self._core.store, group.id, ids[at : at + FETCH_IDS]):
                state.outbox.put(group.id, wire_of(row))
            self._wake([peer])


def _is_control(wire: RecordWire) -> bool:
    try:
        header = decode_header_untrusted(wire.header)
    except PeerError:
        return False
    return lane_of(header.kind) == LANE_CONTROL
