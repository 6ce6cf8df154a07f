"""Inbound streams of one connection until they have named a protocol. No task waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.errors import PeerError
from p2p.wire.multistream import Listener

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from p2p.wire.yamux import Yamux


class InboundStreams:
    """Negotiates streams that the other side opened.

    Args:
        mux: carries them.
        protocols: what is served.
        limit_s: time to name a protocol.
        start: called with stream id, protocol and first bytes when one is agreed.
        blame: called with the reason when the other side breaks the negotiation.
    """

    def __init__(
        self,
        mux: Yamux,
        protocols: Container[str],
        *,
        limit_s: float,
        start: Callable[[int, str, bytes], None],
        blame: Callable[[str], None],
    ) -> None:
        self._mux = mux
        self._protocols = protocols
        self._limit_s = limit_s
        self._start = start
        self._blame = blame
        self._waiting: dict[int, tuple[Listener, float]] = {}

    def begin(self, stream_id: int, now: float) -> None:
        """The other side opened a stream."""
        self._waiting[stream_id] = Listener(self._protocols), now + self._limit_s

    def receive(self, stream_id: int, data: bytes, now: float) -> None:
        """Bytes of a stream that has no protocol yet."""
        waiting = self._waiting.get(stream_id)
        if waiting is None or not self._mux.alive(stream_id):
            return  # reset, perhaps by a later frame of the same read
        listener, _ = waiting
        try:
            agreed = listener.receive(data)
        except PeerError as error:
            self.reset(stream_id)
            self._blame(str(error))
            return
        rest = listener.rest() if agreed else b""
        self._mux.consumed(stream_id, len(data) - len(rest), now)
        self._mux.send(stream_id, listener.to_send())
        if agreed:
            del self._waiting[stream_id]
            assert listener.protocol is not None
            self._start(stream_id, listener.protocol, rest)

    def end(self, stream_id: int) -> None:
        """The other side ended its direction: it will never name a protocol."""
        if stream_id in self._waiting:
            self.reset(stream_id)

    def reset(self, stream_id: int) -> None:
        """Give a stream up."""
        self._mux.send_reset(stream_id)
        self.forget(stream_id)

    def forget(self, stream_id: int) -> None:
        """The stream is gone."""
        self._waiting.pop(stream_id, None)

    def reset_overdue(self, now: float) -> bool:
        """Reset streams whose time is up; whether there were any."""
        overdue = [i for i, (_, limit_s) in self._waiting.items() if now >= limit_s]
        for stream_id in overdue:
            self.reset(stream_id)
        return bool(overdue)
