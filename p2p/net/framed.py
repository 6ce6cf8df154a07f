"""Messages with their length in front, on a stream: how libp2p's small protocols talk.

Relay, hole punching and reachability send a handful of protobuf messages each and then end the
stream or hand it over, so one reader with a small bound serves them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from typing_extensions import override

from p2p.errors import DecodeError, LimitError
from p2p.wire.varint import decode_varint_untrusted, encode_varint

if TYPE_CHECKING:
    from p2p.net.seam import Stream


class FramedStream:
    """Whole messages over a stream; owns it until `release`.

    Args:
        stream: at a message boundary.
        message_bytes_max: longest message taken.
    """

    def __init__(self, stream: Stream, *, message_bytes_max: int) -> None:
        self.stream = stream
        self._message_bytes_max = message_bytes_max
        self._buffer = bytearray()

    async def send(self, message: bytes) -> None:
        """Send one message.

        Raises:
            trio.BrokenResourceError: the stream is gone.
        """
        await self.stream.send_all(encode_varint(len(message)) + message)

    async def receive(self) -> bytes:
        """The next message. The caller limits the time.

        Raises:
            DecodeError: the stream ended before or inside it, or its length is no varint.
            LimitError: it is longer than allowed; nothing of it was kept.
            trio.BrokenResourceError: the stream is gone.
        """
        while True:
            found = decode_varint_untrusted(self._buffer) if self._buffer else None
            if found is not None:
                length, start = found
                if length > self._message_bytes_max:
                    raise LimitError(f"a message over {self._message_bytes_max:,} bytes")
                if len(self._buffer) >= start + length:
                    message = bytes(self._buffer[start : start + length])
                    del self._buffer[: start + length]
                    return message
            data = await self.stream.receive_some()
            if not data:
                raise DecodeError("the stream ended inside a message")
            self._buffer += data

    def release(self) -> HandedOverStream:
        """Hand the stream over to another protocol, with the bytes that came early."""
        return HandedOverStream(self.stream, bytes(self._buffer))


class HandedOverStream(trio.abc.HalfCloseableStream):
    """A stream that another protocol goes on with.

    Args:
        stream: whose first bytes were read already.
        early: those of them that belong to the new protocol.
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream, early: bytes) -> None:
        self.closed = trio.Event()
        """Set when the new protocol let go of it."""
        self._stream = stream
        self._early = early

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._early:
            return await self._stream.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        size = len(self._early) if max_bytes is None else max_bytes
        data, self._early = self._early[:size], self._early[size:]
        return data

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    @override
    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    @override
    async def send_eof(self) -> None:
        await self._stream.send_eof()

    @override
    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self.closed.set()
