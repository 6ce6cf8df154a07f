"""The pool from a training process: blocking, the standard library and numpy only.

    with PoolClient(socket_path, lane) as pool:
        update = pool.lend()                  # float32[n], in shared memory
        np.subtract(new, base, out=update)    # written in place: nothing is copied
        pool.filled(update, weight=examples, round_=1)
        merged = pool.wait(1).state           # read-only

`submit(array, ...)` is the same with one copy, for who has the update already. Where the pool has
no room, both send the bytes over the socket instead: slower, and nothing else differs. After
`filled` the array is the pool's: it is made read-only here. A client belongs to one thread.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import select
import socket
import struct
import sys
import weakref
import zlib
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import numpy as np

from federated.errors import FederatedError, UsageError
from federated.rounds.numeric.limits import WEIGHT_MAX
from federated.rounds.pool.records import (
    NO_SEGMENT,
    RECORD_BYTES,
    Dtype,
    Kind,
    Reason,
    Record,
    decode_record_untrusted,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    F32: TypeAlias = NDArray[np.float32]

CHUNK_BYTES: Final = 1 << 20
ANSWER_S: Final = 300.0
"""For an answer other than a result: longer than a pool takes to fold what waits before us."""
F_GET_SEALS: Final = 1034
F_SEAL_SHRINK: Final = 0x2

REMEDIES: Final = {
    Reason.LANE: "join the federation first: `covey fed join GROUP`",
    Reason.ROUND: "wait for the result and train on it: this round is over, or has not begun",
    Reason.DTYPE: "convert the update to float32",
    Reason.SIZE: "send the update as the schema has it: all tensors flattened, in its order",
    Reason.WEIGHT: "give the number of examples, above 0",
    Reason.NOT_FINITE: "look for a loss that is NaN, lower the learning rate, or clip gradients",
    Reason.STALE: "lend anew and write the update there",
    Reason.FULL: "end other trainers, or free memory",
    Reason.TOO_MANY: "hand in or give back what was lent before lending more",
    Reason.ABORTED: "train on the last result and submit again",
    Reason.CRC: "submit again",
    Reason.CLOSED: "connect again once the daemon runs: `covey status`",
    Reason.FAULT: "free memory, then train on the last result and submit again: `covey logs`",
    Reason.MALFORMED: "use one version of Covey for trainer and daemon",
}


class PoolError(FederatedError):
    """The pool is not there, or ended; the message says what to do."""


class PoolRefused(PoolError):
    """The pool refused something.

    Attributes:
        reason: why.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"{reason.text}; {REMEDIES[reason]}")
        self.reason = reason


class PoolTimeout(PoolError):
    """No result came in time; waiting again is all right."""


@dataclass(frozen=True)
class Result:
    """A round's result.

    Attributes:
        state: what was published, read-only; float32[n], or uint8[n] where it is bytes.
        round: of the result: the one waited for, or a later one.
        weight: sum of the weights of this machine's updates in it.
        count: this machine's updates in it.
    """

    state: NDArray[np.float32] | NDArray[np.uint8]
    round: int
    weight: float
    count: int


@dataclass
class _Lend:
    """What was lent: where it starts here, and what names it there. No segment: private memory."""

    view: F32
    segment: int
    generation: int


class PoolClient:
    """A connection to the pool of this user's daemon.

    Args:
        path: of the socket, as `fed.open` says.
        lane: number of the federation's lane, as `fed.open` says.
        items: elements of an update.

    Raises:
        PoolError: nobody serves there, or somebody else than this user.
    """

    def __init__(self, path: str | os.PathLike[str], lane: int, items: int) -> None:
        self._lane = lane
        self._items = items
        self._sock = _connect(os.fspath(path))
        self._maps: dict[int, NDArray[np.uint8]] = {}
        self._lends: dict[int, _Lend] = {}
        self._answers: deque[tuple[Record, int]] = deque()
        self._asked = False
        self._result: Result | None = None
        self._refused: Reason | None = None
        # Results that nobody views any more: the garbage collector adds, the next call tells.
        self._unread: deque[tuple[int, int]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. What is lent and not filled is of no use until this process ends."""
        self._sock.close()
        self._lends.clear()
        self._maps.clear()

    # ---- updates

    def lend(self) -> F32:
        """An array to write an update to; `filled` hands it in.

        Returns:
            float32[items], contents undefined: in shared memory, or private where the pool is full.

        Raises:
            PoolRefused: no such lane, or too many lends are open.
            PoolError: the pool has ended.
        """
        try:
            answer, fd = self._ask(self._about(Kind.LEND))
        except PoolRefused as refused:
            if refused.reason is not Reason.FULL:
                raise
            view = np.empty(self._items, np.float32)
            return self._note_lend(view, NO_SEGMENT, 0)
        if fd >= 0:
            self._maps[answer.segment] = _map_writable(fd, answer.nbytes)
        whole = self._maps.get(answer.segment)
        if whole is None or len(whole) < 4 * self._items:
            raise PoolError("the pool lent a segment without memory; report this")
        view = whole[: 4 * self._items].view(np.float32)
        return self._note_lend(view, answer.segment, answer.generation)

    def filled(self, update: F32, weight: float, round_: int) -> None:
        """Hand in an array of `lend`, whole and final. Returns when it is part of the round.

        Args:
            update: what `lend` returned; read-only from now on.
            weight: above 0 and at most 2^53, usually the number of examples.
            round_: the round it belongs to.

        Raises:
            PoolRefused: why it is no part of the round.
            UsageError: `update` is not lent, or the weight is none.
        """
        lend = self._lends.get(_address(update))
        if lend is None or update.size != self._items:
            raise UsageError("hand in what lend() returned, once, or use submit(array, ...)")
        _check_weight(weight)
        del self._lends[_address(update)]
        update.flags.writeable = False
        lend.view.flags.writeable = False
        if lend.segment == NO_SEGMENT:
            self._send_bytes(update, weight, round_)
        else:
            question = self._about(Kind.FILLED, lend, weight=weight, round_=round_)
            self._ask(question)

    def submit(self, update: F32, weight: float, round_: int) -> None:
        """Hand in a copy of `update`: float32[items], any shape. Returns as `filled` does.

        Raises:
            PoolRefused: why it is no part of the round.
            UsageError: not float32, another size, or the weight is none.
        """
        if update.dtype != np.float32 or update.size != self._items:
            raise UsageError(
                f"an update is float32[{self._items}], not {update.dtype}[{update.size}]"
            )
        _check_weight(weight)
        flat = update.reshape(-1)
        lent = self.lend()
        if self._lends[_address(lent)].segment == NO_SEGMENT:
            del self._lends[_address(lent)]
            self._send_bytes(np.ascontiguousarray(flat), weight, round_)
            return
        np.copyto(lent, flat)
        self.filled(lent, weight, round_)

    def give_back(self, update: F32) -> None:
        """End a lend that is not needed.

        Raises:
            UsageError: it is not lent.
        """
        lend = self._lends.pop(_address(update), None)
        if lend is None:
            raise UsageError("give back what lend() returned, once")
        update.flags.writeable = False
        if lend.segment != NO_SEGMENT:
            self._ask(self._about(Kind.DONE, lend))

    # ---- results

    def wait(self, round_: int, timeout_s: float | None = None) -> Result:
        """The result of a round, or of a later one if that is there already.

        Args:
            round_: the first one that is of interest.
            timeout_s: how long to wait for an answer; None: as long as it takes.

        Raises:
            PoolTimeout: it did not come in time.
            PoolRefused: the round was given up.
            PoolError: the pool has ended.
        """
        self._tell_unread()
        while True:
            if not self._asked:
                self._send(self._about(Kind.RESULT, round_=round_))
                self._asked = True
            while self._asked:
                if not self._readable(timeout_s):
                    raise PoolTimeout(f"no result of round {round_} within {timeout_s} s")
                self._receive_one()
            result, refused = self._result, self._refused
            self._result = self._refused = None
            if refused is not None:
                raise PoolRefused(refused)
            if result is not None and result.round >= round_:
                return result
            # An answer to an earlier question that ran out of time.

    # ---- the socket

    def _note_lend(self, view: F32, segment: int, generation: int) -> F32:
        self._lends[_address(view)] = _Lend(view, segment, generation)
        return view

    def _about(
        self, kind: Kind, lend: _Lend | None = None, *, weight: float = 0.0, round_: int = 0
    ) -> Record:
        sized = kind in (Kind.LEND, Kind.FILLED)
        return Record(
            kind=kind,
            dtype=Dtype.F32 if sized else Dtype.NONE,
            segment=NO_SEGMENT if lend is None else lend.segment,
            generation=0 if lend is None else lend.generation,
            nbytes=4 * self._items if sized else 0,
            weight=float(weight),
            round=round_,
            lane=self._lane,
        )

    def _send_bytes(self, update: F32, weight: float, round_: int) -> None:
        data = update.data.cast("B")
        crc32 = zlib.crc32(data)
        question = self._about(Kind.FILLED, weight=weight, round_=round_)
        self._ask(replace(question, crc32=crc32), data)

    def _ask(self, question: Record, payload: memoryview | None = None) -> tuple[Record, int]:
        """Send a question; the answer to it and a descriptor or -1.

        Raises:
            PoolRefused: the answer is a nack.
        """
        self._tell_unread()
        self._send(question, payload)
        while not self._answers:
            self._receive_one()
        answer, fd = self._answers.popleft()
        if answer.kind is Kind.NACK:
            raise PoolRefused(answer.reason)
        return answer, fd

    def _tell_unread(self) -> None:
        """Give back results that nobody views any more."""
        while self._unread:
            segment, generation = self._unread.popleft()
            self._ask_quietly(Record(kind=Kind.DONE, segment=segment, generation=generation))

    def _ask_quietly(self, question: Record) -> None:
        self._send(question)
        while not self._answers:
            self._receive_one()
        self._answers.popleft()

    def _send(self, record: Record, payload: memoryview | None = None) -> None:
        try:
            self._sock.sendall(record.encode())
            if payload is not None:
                self._sock.sendall(payload)
        except OSError as error:
            raise _ended(error) from None

    def _readable(self, timeout_s: float | None) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))

    def _receive_one(self) -> None:
        """Take one record off the socket, and put it where it is waited for."""
        try:
            record, fd = self._receive_record()
            about_result = record.kind is Kind.RESULT
            if about_result:
                self._result = self._read_result(record, fd)
            elif record.kind is Kind.NACK and record.count == Kind.RESULT:
                about_result, self._refused = True, record.reason
            else:
                self._answers.append((record, fd))
        except OSError as error:
            raise _ended(error) from None
        except DecodeError as error:
            raise PoolError(f"no pool answers there: {error}") from None
        if about_result:
            self._asked = False

    def _receive_record(self) -> tuple[Record, int]:
        data, fd = b"", -1
        while len(data) < RECORD_BYTES:
            piece, rights, _, _ = self._sock.recvmsg(
                RECORD_BYTES - len(data), socket.CMSG_SPACE(4), _CLOSE_ON_EXEC
            )
            if not piece:
                raise ConnectionResetError
            data += piece
            for level, kind, content in rights:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fd = array.array("i", content[:4])[0]
                    os.set_inheritable(fd, False)
        return decode_record_untrusted(data), fd

    def _read_result(self, record: Record, fd: int) -> Result:
        if record.has_segment:
            data = self._map_result(record, fd)
        else:
            data = np.empty(record.nbytes, np.uint8)
            view = data.data
            while view:
                count = self._sock.recv_into(view[:CHUNK_BYTES])
                if not count:
                    raise ConnectionResetError
                view = view[count:]
            if zlib.crc32(data.data) != record.crc32:
                raise PoolError("the result was damaged on the way; wait for it again")
        data.flags.writeable = False
        state = data.view(np.float32) if record.dtype is Dtype.F32 else data
        return Result(state, record.round, record.weight, record.count)

    def _map_result(self, record: Record, fd: int) -> NDArray[np.uint8]:
        if fd < 0:
            raise PoolError("the pool showed a result without memory; report this")
        memory = _map(fd, record.nbytes, mmap.PROT_READ)
        told = weakref.finalize(memory, self._unread.append, (record.segment, record.generation))
        told.atexit = False
        return np.frombuffer(memory, np.uint8)


_CLOSE_ON_EXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_POPULATE: Final[int] = getattr(mmap, "MAP_POPULATE", 0)


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(ANSWER_S)
    try:
        sock.connect(path)
        owner = _peer_uid(sock)
    except OSError as error:
        sock.close()
        raise PoolError(
            f"no pool at {path} ({error.strerror or error}); start the daemon with `covey up`, and"
            " take the path from `fed.open`"
        ) from None
    if owner != os.getuid():
        sock.close()
        raise PoolError(f"{path} is served by user {owner}, not by you: remove it")
    return sock


def _peer_uid(sock: socket.socket) -> int:
    """User of the process at the other end. Source: unix(7); on macOS <sys/un.h>."""
    if sys.platform == "darwin":
        return int(struct.unpack_from("i", sock.getsockopt(0, 1, 76), 4)[0])
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])


def _ended(error: OSError) -> PoolError:
    why = "no answer in time" if isinstance(error, TimeoutError) else "the connection broke"
    return PoolError(f"the pool has ended ({why}); connect again when the daemon runs")


def _map(fd: int, nbytes: int, protection: int) -> mmap.mmap:
    """Map a segment, page tables included, and let go of its descriptor."""
    try:
        if sys.platform == "linux" and not fcntl.fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK:
            raise PoolError("the pool's segment could be cut off under us; report this")
        return mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | _POPULATE, prot=protection)
    finally:
        os.close(fd)


def _map_writable(fd: int, nbytes: int) -> NDArray[np.uint8]:
    memory = _map(fd, nbytes, mmap.PROT_READ | mmap.PROT_WRITE)
    if sys.platform == "linux":
        # A fork would keep writing rights after this process has ended, which frees the segment.
        memory.madvise(mmap.MADV_DONTFORK)
    return np.frombuffer(memory, np.uint8)


def _address(view: NDArray[np.float32]) -> int:
    address: int = view.__array_interface__["data"][0]
    return address


def _check_weight(weight: float) -> None:
    if not 0 < weight <= WEIGHT_MAX:
        raise UsageError(f"a weight is above 0 and at most 2^53, not {weight!r}")
