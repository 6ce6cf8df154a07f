"""Runs one session machine over one stream: a reader, a writer, a timer.

The reader carries out what the machine asks, one event after another, so a machine never sees a
second answer while it waits for the first. The writer takes whole frames only. Beside the driver,
the only place here that knows trio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import LimitError
from p2p.replication.exchange_types import AdmitResult, GroupReport
from p2p.replication.groups import fetch_of
from p2p.replication.heads import Summary
from p2p.replication.ranges import RangeSet
from p2p.replication.session_types import (
    Admit,
    Close,
    ControlAsk,
    FetchAsk,
    IdsAsk,
    LogsAsk,
    Query,
    RangesAsk,
    Report,
    RootsAsk,
    TailAsk,
    Unshared,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from p2p.net.seam import Stream
    from p2p.replication.core import Core
    from p2p.replication.groups import Group
    from p2p.replication.record import RecordWire
    from p2p.replication.session import Session
    from p2p.replication.session_types import Event

RECEIVE_BYTES: Final = 65_536
SEND_BYTES: Final = 256 * 1024
GRACE_S: Final = 5.0
"""For writing what is unsent after the end, and for the other side's end of file."""


async def carry_admission(
    core: Core, group: Group, wires: Sequence[RecordWire], peer: bytes
) -> AdmitResult:
    """Judge, store and follow up on records of a peer, under the group's lock."""
    async with core.keeper.turn(group):
        result, admitted = await core.admission.admit(group, wires, peer)
        await core.keeper.heard(group, admitted)
        if group.evidence:
            await core.keeper.prove(group)
    return result


class SessionRunner:
    """One session.

    Args:
        core: the parts that decide.
        machine: the session.
        stream: to the peer; closed at the end.
        note_origins: told of records before they are judged, with who brings them.
    """

    def __init__(
        self,
        core: Core,
        machine: Session,
        stream: Stream,
        note_origins: Callable[[Iterable[RecordWire], bytes], None],
    ) -> None:
        self._core = core
        self.machine = machine
        self._stream = stream
        self._note_origins = note_origins
        self._lock = trio.Lock()
        self._unsent = trio.Event()
        self._drained = trio.Event()
        """Set when the session is over and everything was written."""
        self._over = False
        self._timed_out = False
        self._receiving = trio.CancelScope()
        """Around the reader's present wait for bytes."""
        self._range_sets: dict[tuple[bytes, int], RangeSet] = {}
        self.reports: list[GroupReport] = []
        self.unshared: list[bytes] = []
        self.reason = "cut"
        self.close_peer = False
        """Whether the peer overran a limit and its connection is to end."""

    async def run(self) -> None:
        """Run to the end; every way out leaves a report of each group."""
        try:
            async with self._stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch_time)
                await self._read()
                await self._finish()
                if self._timed_out:
                    self._stream.reset()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._note(self.machine.end_of_file())

    async def _read(self) -> None:
        while not self._over:
            self._unsent.set()
            data: bytes | bytearray = b""
            with trio.CancelScope() as self._receiving:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            if self._receiving.cancelled_caught:
                return
            async with self._lock:
                if not data:
                    await self._carry(self.machine.end_of_file())
                    return
                await self._carry(self.machine.receive(bytes(data), self._core.env.now()))

    async def _write(self) -> None:
        while True:
            await self._unsent.wait()
            self._unsent = trio.Event()
            while data := self.machine.to_send(SEND_BYTES):
                await self._stream.send_all(data)
                async with self._lock:
                    await self._carry(self.machine.sent(self._core.env.now()))
            if self._over and not self.machine.unsent_bytes:
                self._drained.set()

    async def _watch_time(self) -> None:
        while (due := self.machine.next_timer()) is not None:
            await trio.sleep(max(0.0, due - self._core.env.now()))
            async with self._lock:
                await self._carry(self.machine.on_timer(self._core.env.now()))
        # Reading may wait for ever: the peer does not know that we are done with it.
        self._timed_out = True
        self._receiving.cancel()

    async def _finish(self) -> None:
        """Write what is left, say that no more comes, give the peer a moment to do the same."""
        with trio.move_on_after(GRACE_S):
            self._unsent.set()
            await self._drained.wait()
            await self._stream.send_eof()
            while await self._stream.receive_some(RECEIVE_BYTES):
                pass

    # --- events -------------------------------------------------------------------------------

    async def _carry(self, events: list[Event]) -> None:
        """Carry events out, and those that follow from them."""
        queue = list(events)
        while queue:
            event = queue.pop(0)
            match event:
                case Query():
                    result = await self._query(event)
                    queue += self.machine.answer(event.id, result, self._core.env.now())
                case Admit():
                    admitted = await self._admit(event)
                    queue += self.machine.answer(event.id, admitted, self._core.env.now())
                case _:
                    self._note([event])
            if self.machine.unsent_bytes:
                self._unsent.set()

    def _note(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Report(report=report):
                    self.reports.append(report)
                case Unshared(groups=groups):
                    self.unshared.extend(groups)
                case Close(reason=reason, error=error):
                    self._over = True
                    self.reason = reason
                    self.close_peer = self.close_peer or isinstance(error, LimitError)
                case _:
                    pass

    async def _query(self, query: Query) -> object:
        store, group = self._core.store, query.group
        match query.ask:
            case RootsAsk(salt=salt):
                control, data = [await self._ranges(group, lane) for lane in (0, 1)]
                return Summary(
                    control.fingerprint(salt, 0, len(control)),
                    data.fingerprint(salt, 0, len(data)),
                    len(control),
                    len(data),
                )
            case RangesAsk():
                return [await self._ranges(group, lane) for lane in (0, 1)]
            case LogsAsk():
                return await store.logs(group)
            case IdsAsk(places=places):
                rows = [await store.at(log, seq) for log, seq in places]
                return [None if row is None else row.id for row in rows]
            case ControlAsk():
                return await store.control(group)
            case TailAsk(log=log, first=first, last=last, bytes_max=bytes_max):
                return await store.tail(log, first, last, bytes_max)
            case FetchAsk(ids=ids):
                return await fetch_of(store, group, ids)

    async def _ranges(self, group: bytes, lane: int) -> RangeSet:
        """The set of a lane as it is now, kept while it does not change."""
        index = await self._core.store.index(group, lane)
        kept = self._range_sets.get((group, lane))
        if kept is None or kept.packed is not index.packed:
            kept = self._range_sets[group, lane] = RangeSet(index.packed)
        return kept

    async def _admit(self, event: Admit) -> AdmitResult:
        group = self._core.groups.get(event.group)
        if group is None:
            return AdmitResult()
        peer: bytes = self._stream.peer
        self._note_origins(event.wires, peer)
        return await carry_admission(self._core, group, event.wires, peer)
