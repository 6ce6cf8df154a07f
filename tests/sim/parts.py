"""The parts of a simulated node that break: its disk, its streams, its process.

The disk takes its time and is full now and then; a crash takes with it what was not written yet, or
only the word that it was. Streams lose, repeat and exchange pushed records. All choices come from
the node's own generator, so that a new fault shifts nobody else's numbers.
"""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio
from typing_extensions import override

from p2p.errors import P2pError
from p2p.net.memory_fabric import MemFabric, MemStream
from p2p.replication import push
from p2p.replication.memstore import MemDisk, MemLog, MemStore, MemVerdict
from p2p.replication.messages import FrameReader, Records, encode_frame
from tests.helpers.mesh import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence

    from p2p.identity import PeerId
    from p2p.net.seam import Handler, Stream
    from p2p.replication.groups import Group
    from p2p.replication.memstore import MemLogState, Row
    from p2p.replication.store import CellRow, Draft, LocalRow, LogKey, Receipt, Verified
    from tests.helpers.sometimes import Sometimes

MARKER = "plain:"
"""Begins every text of the simulation: it must never be seen on the wire."""


def copy_disk(disk: MemDisk) -> MemDisk:
    """An image of a disk; records never change, so they are shared."""
    return MemDisk(
        rows={ident: replace(row) for ident, row in disk.rows.items()},
        logs={
            key: MemLog(dict(log.ids), log.contiguous, log.max_seq, log.fork_seq)
            for key, log in disk.logs.items()
        },
        local=dict(disk.local),
        receipts=dict(disk.receipts),
        erased=set(disk.erased),
        forks=list(disk.forks),
        n=disk.n,
    )


@dataclass(kw_only=True)
class Habits:
    """How a node's parts behave; the plan of a run sets them."""

    disk_s: float = 0.0
    """Longest time a transaction takes to reach the disk, and again to be told."""
    full: bool = False
    """Whether the disk takes nothing now."""
    push_lost: float = 0.0
    """Chance that a pushed record never arrives."""
    push_twice: float = 0.0
    push_mixed: float = 0.0
    """Chance that the records of a frame arrive in another order."""
    withholds: bool = False
    """Whether others' records are kept back when asked for (a liar's)."""
    claims: bool = False
    """Whether more is listed than is there (a liar's)."""
    forgets: bool = False
    """Whether what its owner wrote by hand is not kept, so that it tells nobody (a liar's)."""


class SimStore(MemStore):
    """A store on a disk that is slow, or full, or belongs to a liar."""

    def __init__(self, peer: SimPeer) -> None:
        super().__init__(peer.sealer, peer.disk)
        self._peer = peer
        self._writer = trio.Lock()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        peer, habits = self._peer, self._peer.habits
        async with self._writer:
            if habits.full:
                peer.count("full_disk_refused")
                raise OSError(errno.ENOSPC, "the simulated disk is full")
            if habits.disk_s:
                await self._take_time("crash_lost_write")
            yield
            if habits.disk_s:
                await self._take_time("crash_lost_word")

    async def _take_time(self, if_cut: str) -> None:
        """A part of a transaction that a crash may cut."""
        try:
            await trio.sleep(self._peer.env.rng.uniform(0, self._peer.habits.disk_s))
        except trio.Cancelled:
            if self._peer.crashing:
                self._peer.count(if_cut)
            raise

    @override
    async def append(
        self,
        group: bytes,
        drafts: Sequence[Draft],
        receipt: Receipt | None = None,
        local: Sequence[LocalRow] = (),
    ) -> Sequence[bytes]:
        async with self._transaction():
            return await MemStore.append(self, group, drafts, receipt, local)

    @override
    async def compose(
        self,
        group: bytes,
        tag: bytes,
        make: Callable[[Sequence[CellRow]], Sequence[Draft]],
        receipt: Receipt | None = None,
        known: Container[bytes] = (),
    ) -> Sequence[bytes]:
        async with self._transaction():
            drafts = make(await self.cell(group, tag))
            return await MemStore.append(self, group, drafts, receipt)

    @override
    async def admit(
        self, group: bytes, batch: Sequence[Verified], local: Sequence[LocalRow] = ()
    ) -> Sequence[MemVerdict]:
        kept = [r for r in batch if not (self._peer.habits.forgets and self._by_hand(r))]
        async with self._transaction():
            verdicts = {v.id: v for v in await MemStore.admit(self, group, kept, local)}
        return [verdicts.get(r.id) or MemVerdict(r.id, "duplicate") for r in batch]

    def _by_hand(self, record: Verified) -> bool:
        return record.author == self._peer.id and record.incarnation in self._peer.by_hand

    @override
    async def settle(
        self,
        group: bytes,
        *,
        void: Sequence[bytes] = (),
        revive: Sequence[bytes] = (),
        fork: Sequence[tuple[LogKey, int, bytes, bytes]] = (),
        owners: Sequence[tuple[bytes, bytes, str]] = (),
        erase: Sequence[tuple[bytes, bytes, int]] = (),
    ) -> int:
        async with self._transaction():
            return await MemStore.settle(
                self, group, void=void, revive=revive, fork=fork, owners=owners, erase=erase
            )

    @override
    async def unsealed(self, group: bytes, bodies: Sequence[tuple[bytes, bytes]]) -> None:
        async with self._transaction():
            await MemStore.unsealed(self, group, bodies)

    # What a liar's store says.

    @override
    async def tail(self, log: LogKey, first: int, last: int, bytes_max: int) -> Sequence[Row]:
        rows = await MemStore.tail(self, log, first, last, bytes_max)
        if self._peer.habits.withholds and log[1] != self._peer.id:
            self._peer.count("villain_withheld")
            return rows[: len(rows) // 2]
        return rows

    @override
    async def logs(self, group: bytes) -> Sequence[MemLogState]:
        states = await MemStore.logs(self, group)
        if self._peer.habits.claims and states:
            self._peer.count("villain_claimed")
            states = [replace(s, max_seq=s.max_seq + 3 * s.key[3]) for s in states]
        return states


class SimFabric(MemFabric):
    """Streams on which pushed records get lost, repeated and mixed; and every byte is looked at."""

    def __init__(self, peer: SimPeer) -> None:
        super().__init__(peer.net, peer.net.host(peer.ip), peer.identity.id, peer.env)
        peer.net.fabrics[self.addr] = self
        self._peer = peer

    @override
    async def open(self, peer: PeerId, protocol: str, *, direct_only: bool = False) -> Stream:
        stream = await super().open(peer, protocol, direct_only=direct_only)
        self._tap(stream, protocol)
        return stream

    @override
    def handle(self, protocol: str, fn: Handler, *, per_peer_max: int) -> None:
        async def serve(stream: Stream) -> None:
            self._tap(stream, "")
            await fn(stream)

        super().handle(protocol, serve, per_peer_max=per_peer_max)

    def _tap(self, stream: Stream, protocol: str) -> None:
        assert isinstance(stream, MemStream), "every stream here is simulated"
        send = stream.send_all
        meddles = protocol == push.PROTOCOL and self._peer.meddles

        async def send_all(data: bytes | bytearray | memoryview) -> None:
            self._peer.seen_bytes += len(data)
            if MARKER.encode() in bytes(data):
                self._peer.leaks.append(protocol)
            await send(self._peer.meddle(bytes(data)) if meddles else data)

        stream.send_all = send_all  # type: ignore[method-assign]


@dataclass(eq=False)
class SimPeer(Peer):
    """A node of the simulation."""

    habits: Habits = field(default_factory=Habits)
    sometimes: Sometimes | None = None
    crashing: bool = False
    seen_bytes: int = 0
    leaks: list[str] = field(default_factory=list)
    """Protocols on which a plain text was sent."""
    scope: trio.CancelScope | None = None
    """Of the running process; None while it is down."""
    stopped: trio.Event = field(default_factory=trio.Event)
    clients: trio.Nursery | None = None
    busy: int = 0
    """Calls under way."""
    wall_ms_max: int = 0
    """The latest its own clock ever showed."""
    by_hand: set[int] = field(default_factory=set)
    """Incarnations of logs that were written by hand."""

    def count(self, name: str, times: int = 1) -> None:
        """Note that something happened."""
        if self.sometimes is not None:
            self.sometimes(name, times)

    @override
    def new_fabric(self) -> MemFabric:
        return SimFabric(self)

    @override
    def new_store(self) -> MemStore:
        return SimStore(self)

    @property
    def meddles(self) -> bool:
        """Whether its pushes suffer."""
        return bool(self.habits.push_lost or self.habits.push_twice or self.habits.push_mixed)

    def meddle(self, data: bytes) -> bytes:
        """Whole frames of a push stream as they arrive."""
        reader, out = FrameReader(), []
        reader.feed(data)
        while (found := reader.next_message_untrusted()) is not None:
            message = found[0]
            if isinstance(message, Records):
                message = self._meddled(message)
            out.append(encode_frame(message))
        return b"".join(out)

    def _meddled(self, message: Records) -> Records:
        rng, habits = self.env.rng, self.habits
        wires = []
        for wire in message.wires:
            if rng.random() < habits.push_lost:
                self.count("push_lost")
                continue
            wires.append(wire)
            if rng.random() < habits.push_twice:
                self.count("push_twice")
                wires.append(wire)
        if len(wires) > 1 and rng.random() < habits.push_mixed:
            self.count("push_mixed")
            rng.shuffle(wires)
        return Records(message.group, tuple(wires[:256]))

    async def live(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the node, and the calls of its users, until it is stopped."""
        self.stopped = trio.Event()
        with trio.CancelScope() as self.scope:
            async with self.running(), trio.open_nursery() as self.clients:
                self.clients.start_soon(trio.sleep_forever)
                task_status.started()
        self.scope = self.clients = None
        self.crashing = False
        self.stopped.set()

    async def stop(self) -> None:
        """End the process, whatever it does."""
        if self.scope is not None:
            self.scope.cancel()
            await self.stopped.wait()

    @property
    def up(self) -> bool:
        """Whether the process runs."""
        return self.clients is not None

    def call(self, work: Callable[[], Awaitable[None]]) -> None:
        """A user's call: it ends with the process; a refusal is an answer, a full disk one too."""

        async def guarded() -> None:
            self.busy += 1
            try:
                await work()
            except P2pError as error:
                self.count("call_refused")
                self.note(f"refused {error}")
            except OSError:
                self.note("full disk")
            finally:
                self.busy -= 1

        if self.clients is not None:
            self.clients.start_soon(guarded)

    def note(self, text: str) -> None:
        """For the trace."""
        self.notes.append(text)

    notes: list[str] = field(default_factory=list)

    def group_of(self, group: bytes) -> Group:
        """Its view of a group."""
        found = self.replication._core.groups.get(group)
        assert found is not None, f"{self.name} does not know the group"
        return found

    def knows(self, group: bytes) -> bool:
        """Whether it has a view of the group."""
        if not self.up:
            return False
        found = self.replication._core.groups.get(group)
        return found is not None and found.founded

    def is_member(self, group: bytes) -> bool:
        """Whether it believes itself to be a member."""
        return self.knows(group) and self.group_of(group).role(self.id) is not None

    def look_at_clock(self) -> None:
        """Remember how late it ever was here."""
        self.wall_ms_max = max(self.wall_ms_max, self.env.wall_ms())
