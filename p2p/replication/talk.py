"""Whole messages over a stream, for the join door and push."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2p.replication.messages import FrameReader, encode_frame

if TYPE_CHECKING:
    from p2p.net.seam import Stream
    from p2p.replication.messages import Message

RECEIVE_BYTES: Final = 65_536


class FramedTalk:
    """Messages to and from one proven peer; satisfies `join.Talk`."""

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
