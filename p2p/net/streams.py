"""A stream as the application sees it: bytes in, bytes out, over one Yamux stream.

`WireStream` owns no task. Received bytes are put into its inbox by the connection's reader; sent
bytes go into the machine's buffer and are cut into frames by the connection (`p2p.net.driver`), so
that a cancelled `send_all` leaves the connection as it was: what is in the buffer leaves whole, the
rest was never there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import trio
from typing_extensions import override

from p2p.net.seam import Stream
from p2p.net.wakeup import Wakeup
from p2p.wire.chunks import ChunkQueue

if TYPE_CHECKING:
    from p2p.identity import PeerId
    from p2p.net.seam import Path
    from p2p.wire.multistream import Dialer
    from p2p.wire.yamux import Yamux


class StreamCarrier(Protocol):
    """What a stream needs of its connection."""

    mux: Yamux
    waiting: int
    """Callers that wait for the peer on streams we opened; liveness is stricter while there are."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def flush(self) -> None:
        """Send what can be sent now, the rest soon. Never blocks."""

    def wait_for_room(self, stream: WireStream) -> None:
        """Wake `stream.writable` once its buffer is half empty."""

    def end_soon(self, stream: WireStream) -> None:
        """Call `stream.end_now`, at once or a little later."""

    def closed_by_us(self, stream: WireStream) -> None:
        """The application is done with `stream`; watch that the other side ends it too."""


class WireStream(Stream):
    """One stream of a connection.

    Args:
        carrier: the connection.
        stream_id: its Yamux id.
        peer: who is at the other end, proven.
        protocol: what it speaks.
        path: how the connection runs.
        dialer: the negotiation still under way; None on inbound streams.
    """

    def __init__(
        self,
        carrier: StreamCarrier,
        stream_id: int,
        *,
        peer: PeerId,
        protocol: str,
        path: Path,
        dialer: Dialer | None,
    ) -> None:
        self.peer = peer
        self.protocol = protocol
        self.path = path
        self.id = stream_id
        self.writable = Wakeup()
        self.own = dialer is not None
        self._carrier = carrier
        self._dialer = dialer
        self._inbox = ChunkQueue()
        self._readable = Wakeup()
        self._ended = False  # they sent FIN
        self._broken: str | None = None  # why nothing more can be sent
        self._fin_sent = False
        self._fin_held = False
        self._heard = False  # a byte of the protocol itself arrived
        self._closed = False
        self._sending = False

    # --- called by the connection ---

    def feed(self, data: bytes) -> None:
        """Bytes arrived.

        Raises:
            PeerError: the negotiation failed; the connection resets this stream.
        """
        if self._dialer is not None:
            agreed = self._dialer.receive(data)
            rest = self._dialer.rest() if agreed else b""
            self._carrier.mux.consumed(self.id, len(data) - len(rest), self._carrier.now())
            if not agreed:
                return
            self._dialer = None
            if self._fin_held:
                self._carrier.end_soon(self)
            data = rest
        if not data:
            return
        self._heard = True
        if self._fin_held:
            self.end_now()
        if self._closed:
            # Nobody will read this: say so instead of taking it for ever.
            self.reset()
            return
        self._inbox.append(data)
        self._readable.wake()

    def end_now(self) -> None:
        """Send the end that was held back."""
        # The same read may have brought their reset, which the muxer knows before we are told.
        if self._fin_held and self._carrier.mux.alive(self.id):
            self._fin_held = False
            self._carrier.mux.send_fin(self.id)

    def end(self) -> None:
        """They will send no more."""
        if self._dialer is not None:
            self.break_off("the peer closed before it agreed on the protocol")
        self._ended = True
        self._readable.wake()

    def break_off(self, why: str) -> None:
        """The stream is gone. What arrived before a clean end can still be read."""
        if self._broken is None:
            self._broken = why
        self._readable.wake()
        self.writable.wake()

    @property
    def closed(self) -> bool:
        """Whether the application is done with it."""
        return self._closed

    # --- called by the application ---

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, waiting while the stream's buffer is full.

        Cancelled, it may have sent a beginning of `data`; other streams are not touched.

        Raises:
            trio.BrokenResourceError: reset, refused, or the connection ended.
            trio.ClosedResourceError: we ended this direction.
            trio.BusyResourceError: another task is sending.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        left = data if isinstance(data, bytes) else bytes(data)
        view: bytes | memoryview = left
        carrier = self._carrier
        self._check_sendable()
        taken = carrier.mux.send(self.id, view)
        carrier.flush()
        if taken == len(view):
            return
        self._sending = True
        carrier.waiting += self.own
        try:
            while True:
                view = memoryview(view)[taken:]
                if not view:
                    return
                if carrier.mux.room(self.id):
                    await trio.lowlevel.checkpoint()
                else:
                    carrier.wait_for_room(self)
                    await self.writable.wait()
                self._check_sendable()
                taken = carrier.mux.send(self.id, view)
                carrier.flush()
        finally:
            carrier.waiting -= self.own
            self._sending = False

    @override
    async def wait_send_all_might_not_block(self) -> None:
        """Return when the buffer has room."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_sendable()
        if self._carrier.mux.room(self.id):
            return
        self._sending = True
        try:
            self._carrier.wait_for_room(self)
            await self.writable.wait()
            self._check_sendable()
        finally:
            self._sending = False

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Up to `max_bytes` bytes; b"" when the other side ended its direction.

        Raises:
            trio.BrokenResourceError: reset, refused, or the connection ended.
            trio.ClosedResourceError: we closed the stream.
            trio.BusyResourceError: another task is receiving.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._readable.waiting:
            raise trio.BusyResourceError("another task is receiving on this stream")
        carrier = self._carrier
        inbox = self._inbox
        while not inbox:
            if self._closed:
                raise trio.ClosedResourceError("the stream was closed")
            if self._ended and self._dialer is None:
                return b""
            if self._broken is not None:
                raise trio.BrokenResourceError(self._broken)
            carrier.flush()  # the opening frame may wait for a first write that never comes
            carrier.waiting += self.own
            try:
                await self._readable.wait()
            finally:
                carrier.waiting -= self.own
        if self._broken is not None and not self._ended:
            raise trio.BrokenResourceError(self._broken)
        data = inbox.take_piece(max_bytes or len(inbox))
        carrier.mux.consumed(self.id, len(data), carrier.now())
        if carrier.mux.has_output:
            carrier.flush()
        return data

    @override
    async def send_eof(self) -> None:
        """End our direction after what was sent; the other one stays usable."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self._fin_sent and not self._closed:
            return
        self._check_sendable()
        self._send_fin()

    @override
    async def aclose(self) -> None:
        """End our direction and stop reading. What was sent still arrives.

        Under a cancellation it resets instead: a clean end would make a message that was cut short
        look whole.
        """
        if trio.current_effective_deadline() == -math.inf:
            self.reset()
        else:
            self._close_now()
        await trio.lowlevel.checkpoint()

    @override
    def reset(self) -> None:
        """Abandon both directions at once."""
        self._closed = True
        self._inbox.clear()
        if self._broken is None:
            self._carrier.mux.send_reset(self.id)
            self._carrier.flush()
        self.break_off("we reset the stream")

    def _close_now(self) -> None:
        if self._closed:
            return
        self._closed = True
        unread = len(self._inbox)
        self._inbox.clear()
        if self._broken is None:
            if not self._fin_sent:
                self._send_fin()
            # Unread bytes are dropped without a reset: a reset could overtake, at the other side,
            # the answer we just sent. If more comes, `feed` resets.
            self._carrier.mux.consumed(self.id, unread, self._carrier.now())
            self._carrier.closed_by_us(self)
        self._readable.wake()
        self.writable.wake()

    def _send_fin(self) -> None:
        self._fin_sent = True
        if self._heard or not self.own:
            self._carrier.mux.send_fin(self.id)
        else:
            # Wait for their agreement and perhaps longer; see `Connection.end_soon`.
            self._fin_held = True
            if self._dialer is None:
                self._carrier.end_soon(self)
        self._carrier.flush()

    def _check_sendable(self) -> None:
        if self._closed or self._fin_sent:
            raise trio.ClosedResourceError("our direction of the stream was ended")
        if self._broken is not None:
            raise trio.BrokenResourceError(self._broken)
