"""Items of a streaming call, and the task that writes frames: the part both sides share.

A cancelled sender must not leave half a frame on the wire, so in a streaming call nobody but the
writer task touches the stream: senders queue whole frames. Unary calls need no writer: one frame
each way, and a sender cancelled in the middle of one gives up the stream.

Source: docs/specs/rpc.md s.4.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio
from trio.lowlevel import ParkingLot
from typing_extensions import override

from p2p.errors import Unreachable, UsageError
from p2p.rpc_call import CallMachine, Input
from p2p.rpc_frames import decode_body_untrusted, encode_credit, encode_end, encode_item
from p2p.rpc_types import CallStream

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from p2p.net.seam import Stream

OUTBOX_BYTES_MAX: Final = 262_144
"""Bytes queued for the writer before senders wait: what a stream's own buffer holds."""

BATCH_BYTES_MAX: Final = 65_536
"""Frames are joined up to this for one write: one Noise message."""

READ_BYTES: Final = 65_536
"""Asked of the stream at once."""

ITEM_COST_BYTES: Final = 100
"""Charged beside an item's own bytes while it is unread, so that a flood of tiny items counts.
Measured: an unread item of one byte takes 100 bytes of the interpreter's memory."""


class FrameWriter:
    """Whole frames onto one stream, by one task, whoever is cancelled.

    Args:
        stream: where they go.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._queue: deque[bytes | bytearray] = deque()
        self._queued_bytes = 0
        self._work = ParkingLot()
        self._room = ParkingLot()
        self._closing = False
        self.broken = False
        """Whether the stream died: nothing that is queued leaves any more."""

    async def run(self) -> None:
        """Write until `close` and empty, or the stream dies."""
        try:
            while self._queue or not self._closing:
                if self._queue:
                    await self._stream.send_all(self._next_batch())
                else:
                    await self._work.park()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the reader of the same stream reports it
        finally:
            self.broken = self.broken or not self._closing or bool(self._queue)
            self._room.unpark_all()

    def queue(self, frame: bytes | bytearray) -> None:
        """Have `frame` written after those before it; never waits, so only for small ones."""
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._work.unpark_all()

    @property
    def full(self) -> bool:
        """Whether senders of items should `wait_room` first."""
        return self._queued_bytes >= OUTBOX_BYTES_MAX and not self.broken

    async def wait_room(self) -> None:
        """Return when something was written, or the stream died."""
        await self._room.park()

    def drop_queued(self) -> None:
        """Forget frames that were not begun: what they belong to is over."""
        self._queue.clear()
        self._queued_bytes = 0
        self._room.unpark_all()

    def close(self) -> None:
        """Let `run` return once everything is written."""
        self._closing = True
        self._work.unpark_all()

    def _next_batch(self) -> bytes | bytearray:
        first = self._queue.popleft()
        if not self._queue or len(first) >= BATCH_BYTES_MAX:
            batch = first
        else:
            batch = bytearray(first)
            while self._queue and len(batch) + len(self._queue[0]) <= BATCH_BYTES_MAX:
                batch += self._queue.popleft()
        self._queued_bytes -= len(batch)
        self._room.unpark_all()
        return batch


class NoItems(CallStream):
    """What the handler of a unary method gets; one serves all its calls.

    Args:
        name: the method's, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @override
    async def send(self, item: object) -> None:
        """Refuse: see `CallStream.send`."""
        await trio.lowlevel.checkpoint()
        raise UsageError(f"{self._name} has no items in this direction")

    @override
    async def end(self) -> None:
        """Do nothing: there is nothing to end."""
        await trio.lowlevel.checkpoint()

    @override
    async def receive(self) -> object:
        """Refuse: see `CallStream.receive`."""
        await trio.lowlevel.checkpoint()
        raise UsageError(f"{self._name} has no items in this direction")


class Items(CallStream):
    """Items of one call in both directions; the driver feeds it what arrives.

    Args:
        name: the method's, for messages.
        machine: the call's rules.
        writer: where our frames go.
        decoder: for items that arrive; None when none may.
        sends: whether the method has items our way.
        charge: told how many bytes of unread items came (+) or went (-).
    """

    def __init__(
        self,
        name: str,
        machine: CallMachine,
        writer: FrameWriter,
        *,
        decoder: msgspec.msgpack.Decoder[object] | None,
        sends: bool,
        charge: Callable[[int], None] | None = None,
    ) -> None:
        self._name = name
        self._machine = machine
        self._writer = writer
        self._decoder = decoder
        self._sends = sends
        self._charge = charge
        self._inbox: deque[msgspec.Raw] = deque()
        self._changed = ParkingLot()
        self._complete = False
        self._error: Exception | None = None
        self._discarding = False

    # What the driver tells.

    def deliver(self, body: msgspec.Raw) -> None:
        """An item arrived."""
        if self._discarding:
            self._grant(len(body))
            return
        self._inbox.append(body)
        if self._charge is not None:
            self._charge(len(body) + ITEM_COST_BYTES)
        self._changed.unpark_all()

    def complete(self, error: Exception | None = None) -> None:
        """No more items follow; `error` is what ended the call early, if something did."""
        if not self._complete or (error is not None and self._error is None):
            self._complete = True
            self._error = error
        self._changed.unpark_all()

    def wake(self) -> None:
        """Credit came, or the call ended: let waiting senders look again."""
        self._changed.unpark_all()

    def discard(self) -> None:
        """Let unread and further items pass by."""
        self._discarding = True
        while self._inbox:
            self._took(self._inbox.popleft())

    def release(self) -> None:
        """The call is over and nobody reads any more: uncharge what is unread."""
        while self._inbox:
            self._uncharge(self._inbox.popleft())

    # What the application calls.

    @override
    async def send(self, item: object) -> None:
        """See `CallStream.send`."""
        await trio.lowlevel.checkpoint()
        if not self._sends:
            raise UsageError(f"{self._name} has no items in this direction")
        while True:
            if self._error is not None:
                raise self._error
            if not self._machine.may_send_items:
                raise self._refuse_send()
            if self._writer.full:
                await self._writer.wait_room()
            elif self._writer.broken:
                raise Unreachable(f"the stream of {self._name} died")
            elif self._machine.credit_bytes <= 0:
                await self._changed.park()
            else:
                break
        frame, size = encode_item(item)
        self._machine.send_item(size)
        self._writer.queue(frame)

    @override
    async def end(self) -> None:
        """See `CallStream.end`."""
        await trio.lowlevel.checkpoint()
        if self._machine.may_send_items:
            self._machine.send(Input.SEND_END)
            self._writer.queue(encode_end())

    @override
    async def receive(self) -> object:
        """See `CallStream.receive`."""
        await trio.lowlevel.checkpoint()
        if self._decoder is None:
            raise UsageError(f"{self._name} has no items in this direction")
        while not self._inbox:
            if self._complete:
                if self._error is not None:
                    raise self._error
                raise trio.EndOfChannel
            await self._changed.park()
        body = self._inbox.popleft()
        self._took(body)
        return decode_body_untrusted(self._decoder, body)

    def _refuse_send(self) -> Exception:
        if self._machine.live:
            return UsageError(f"{self._name}: sent an item after the end")
        return Unreachable(f"{self._name}: the call is over, the other side takes no more items")

    def _took(self, body: msgspec.Raw) -> None:
        self._uncharge(body)
        self._grant(len(body))

    def _uncharge(self, body: msgspec.Raw) -> None:
        if self._charge is not None:
            self._charge(-len(body) - ITEM_COST_BYTES)

    def _grant(self, size: int) -> None:
        grant = self._machine.take(size)
        if grant:
            self._machine.send(Input.SEND_CREDIT)
            self._writer.queue(encode_credit(grant))
