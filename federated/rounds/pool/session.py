"""One trainer's connection: records in, answers out, bytes where there is no segment for them.

Questions are answered in the order in which they are decided, not asked: an update's `done` comes
when it is folded. A trainer that does not read its answers, or stops in the middle of its bytes, is
cut off; its update then counts as never sent.
"""

from __future__ import annotations

import array
import socket
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import trio

from federated.rounds.pool.book import Place
from federated.rounds.pool.collecting import Update
from federated.rounds.pool.records import (
    NO_SEGMENT,
    RECORD_BYTES,
    Kind,
    Reason,
    Record,
    decode_record_untrusted,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from federated.rounds.numeric.engines import F32
    from federated.rounds.pool.collecting import Shown
    from federated.rounds.pool.lane import Lane
    from federated.rounds.pool.processes import Process
    from federated.rounds.pool.server import Pool

UNREAD_MAX: Final = 64
"""Answers that a trainer leaves unread; it has at most a few questions open."""
CHUNK_BYTES: Final = 256 * 1024
STALL_S: Final = 30.0
"""Without a byte in the middle of an update or a result. Guess: a swapping trainer gets through."""

GOODBYE_S: Final = 1.0


@dataclass(frozen=True)
class Outgoing:
    """An answer: the record, a descriptor beside it, bytes after it."""

    record: Record
    fd: int = -1
    payload: memoryview | None = None


class Session:
    """A connection of a trainer.

    Args:
        pool: whose.
        sock: the socket; owned from now on.
        process: at its other end.
    """

    def __init__(self, pool: Pool, sock: trio.socket.SocketType, process: Process) -> None:
        self._pool = pool
        self._sock = sock
        self.process = process
        self.scope = trio.CancelScope()
        self._answers, self._to_write = trio.open_memory_channel[Outgoing](UNREAD_MAX)
        self._lent: set[int] = set()
        self._known: set[int] = set()
        self._open_questions: set[int] = set()

    async def run(self) -> None:
        """Serve until the trainer leaves, breaks the rules, or dies."""
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    # A last answer says why; nobody may be there to read it.
                    self._answers.close()
                    nursery.cancel_scope.deadline = trio.current_time() + GOODBYE_S
        except* (OSError, trio.TooSlowError):
            pass  # it is gone: what it left behind is the pool's matter
        finally:
            self._sock.close()
            self._pool.left(self, self._lent)

    # ---- answers

    def send(self, record: Record, *, fd: int = -1, payload: memoryview | None = None) -> None:
        """Queue an answer; who does not read is cut off."""
        try:
            self._answers.send_nowait(Outgoing(record, fd, payload))
        except trio.WouldBlock:
            self.scope.cancel()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the session has ended; an update of it was folded all the same

    def refuse(self, record: Record, reason: Reason) -> None:
        """Answer a question with why not."""
        self._pool.note(
            "refused", lane=record.lane, round_=record.round, pid=self.process.pid, reason=reason
        )
        self.send(
            Record(
                kind=Kind.NACK,
                reason=reason,
                segment=record.segment,
                generation=record.generation,
                round=record.round,
                lane=record.lane,
                count=record.kind,
            )
        )

    async def _write(self) -> None:
        with self._to_write:
            async for answer in self._to_write:
                data = answer.record.encode()
                sent = 0
                if answer.fd >= 0:
                    fds = array.array("i", [answer.fd])
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
                    with trio.fail_after(STALL_S):
                        sent = await self._sock.sendmsg([data], rights)
                await self._send_all(memoryview(data)[sent:])
                if answer.payload is not None:
                    await self._send_all(answer.payload)

    async def _send_all(self, data: memoryview) -> None:
        while data:
            with trio.fail_after(STALL_S):
                sent = await self._sock.send(data[:CHUNK_BYTES])
            data = data[sent:]

    # ---- questions

    async def _read(self) -> None:
        buffer = bytearray(RECORD_BYTES)
        while await self._receive(memoryview(buffer), stall_s=float("inf")):
            try:
                record = decode_record_untrusted(buffer)
            except DecodeError:
                self.refuse(Record(kind=Kind.DONE), Reason.MALFORMED)
                return
            if not await self._answer(record):
                return

    async def _receive(self, view: memoryview, *, stall_s: float = STALL_S) -> bool:
        """Fill `view`; False at the end of the stream, however much came before.

        Raises:
            TooSlowError: no byte for `stall_s`.
        """
        while view:
            with trio.fail_after(stall_s):
                # recv, never recvmsg: descriptors that a trainer sends are closed by the kernel.
                count = await self._sock.recv_into(view[:CHUNK_BYTES])
            if not count:
                return False
            view = view[count:]
        return True

    async def _answer(self, record: Record) -> bool:
        """Do what a record asks; False ends the connection."""
        match record.kind:
            case Kind.LEND:
                await self._lend(record)
            case Kind.FILLED if record.has_segment:
                self._filled(record)
            case Kind.FILLED:
                return await self._filled_here(record)
            case Kind.DONE:
                self._done(record)
            case Kind.RESULT:
                self._result(record)
            case Kind.NACK:
                self.refuse(record, Reason.MALFORMED)
                return False
        return True

    async def _lend(self, record: Record) -> None:
        lane = self._pool.lane(record.lane)
        if lane is None:
            self.refuse(record, Reason.LANE)
            return
        if record.dtype is not lane.schema.dtype or record.nbytes != lane.schema.nbytes:
            wrong = Reason.SIZE if record.dtype is lane.schema.dtype else Reason.DTYPE
            self.refuse(record, wrong)
            return
        place = await self._pool.lend(self.process, record.nbytes)
        if not isinstance(place, Place):
            self.refuse(record, place)
            return
        self._lent.add(place.number)
        known = place.number in self._known
        self._known.add(place.number)
        self._pool.note("lent", lane=record.lane, pid=self.process.pid)
        self.send(
            Record(
                kind=Kind.LEND,
                dtype=record.dtype,
                segment=place.number,
                generation=place.generation,
                nbytes=place.size,
                lane=record.lane,
            ),
            fd=-1 if known else self._pool.segment(place.number).fd,
        )

    def _filled(self, record: Record) -> None:
        book, owner = self._pool.book, self.process.number
        reason = book.fill(
            owner, record.segment, record.generation, offset=record.offset, nbytes=record.nbytes
        )
        if reason is Reason.STALE:
            self.refuse(record, reason)
            return
        self._lent.discard(record.segment)
        if reason is not Reason.NONE:
            self.refuse(record, reason)
            return
        lane = self._pool.lane(record.lane)
        reason = Reason.LANE if lane is None else lane.rounds.admit(record)
        if lane is None or reason is not Reason.NONE:
            book.folded(record.segment)
            self.refuse(record, reason)
            return
        row = self._pool.segment(record.segment).f32(lane.schema.items, record.offset)
        self._enqueue(lane, record, row, record.segment, None)

    async def _filled_here(self, record: Record) -> bool:
        """An update whose bytes follow: read whole before anything is folded."""
        lane = self._pool.lane(record.lane)
        if lane is None or record.nbytes != lane.schema.nbytes:
            # Nobody knows how much to read past: the connection is of no use any more.
            self.refuse(record, Reason.LANE if lane is None else Reason.SIZE)
            return False
        async with self._pool.staging(record.nbytes) as staging:
            if staging is None:
                return await self._read_past(record, Reason.FULL)
            reason = lane.rounds.admit(record)
            if reason is not Reason.NONE:
                return await self._read_past(record, reason)
            crc = await self._receive_summed(staging.data, record.nbytes)
            if crc is None:
                return False
            if crc != record.crc32:
                self.refuse(record, Reason.CRC)
                return True
            reason = lane.rounds.admit(record)  # the round may have been closed meanwhile
            if reason is not Reason.NONE:
                self.refuse(record, reason)
                return True
            settled = trio.Event()
            self._enqueue(lane, record, staging.view(np.float32), None, settled)
            with trio.CancelScope(shield=True):  # the folder reads the buffer: it must stay ours
                await settled.wait()
        return True

    async def _receive_summed(self, view: memoryview, nbytes: int) -> int | None:
        crc = 0
        for start in range(0, nbytes, CHUNK_BYTES):
            piece = view[start : min(nbytes, start + CHUNK_BYTES)]
            if not await self._receive(piece):
                return None
            crc = zlib.crc32(piece, crc)
        return crc

    async def _read_past(self, record: Record, reason: Reason) -> bool:
        scratch, left = memoryview(bytearray(CHUNK_BYTES)), record.nbytes
        while left:
            piece = scratch[: min(left, CHUNK_BYTES)]
            if not await self._receive(piece):
                return False
            left -= len(piece)
        self.refuse(record, reason)
        return True

    def _enqueue(
        self, lane: Lane, record: Record, row: F32, segment: int | None, settled: trio.Event | None
    ) -> None:
        def answer(reason: Reason) -> None:
            if settled is not None:
                settled.set()
            if reason is Reason.NONE:
                self.send(
                    Record(
                        kind=Kind.DONE,
                        segment=record.segment,
                        generation=record.generation,
                        weight=record.weight,
                        round=record.round,
                        lane=record.lane,
                    )
                )
            else:
                self.refuse(record, reason)

        pid = self.process.pid
        self._pool.enqueue(lane, Update(record.round, row, record.weight, pid, segment, answer))

    def _done(self, record: Record) -> None:
        if not record.has_segment:
            self.refuse(record, Reason.STALE)
            return
        reason = self._pool.book.give_back(self.process.number, record.segment, record.generation)
        if reason is not Reason.NONE:
            self.refuse(record, reason)
            return
        self._lent.discard(record.segment)
        self.send(Record(kind=Kind.DONE, segment=record.segment, generation=record.generation))

    def _result(self, record: Record) -> None:
        lane = self._pool.lane(record.lane)
        if lane is None:
            self.refuse(record, Reason.LANE)
            return
        if record.lane in self._open_questions:
            self.refuse(record, Reason.TOO_MANY)
            return
        self._open_questions.add(record.lane)

        def answer(what: Shown | Reason) -> None:
            self._open_questions.discard(record.lane)
            if isinstance(what, Reason):
                self.refuse(record, what)
            else:
                self._send_result(record, what)

        lane.rounds.ask(record.round, answer, owner=self)

    def _send_result(self, record: Record, shown: Shown) -> None:
        number = shown.held.segment
        record = Record(
            kind=Kind.RESULT,
            dtype=shown.dtype,
            nbytes=shown.nbytes,
            weight=min(shown.held.weight, 2.0**53),
            round=shown.round,
            lane=record.lane,
            count=shown.held.count,
            crc32=shown.crc32,
            segment=NO_SEGMENT if number is None else number,
            generation=0 if number is None else self._pool.read(number, self.process),
        )
        if number is None:
            self.send(record, payload=shown.held.data.data[: shown.nbytes])
        else:
            self.send(record, fd=self._pool.segment(number).fd)
