"""Datagrams of the simulated network: they get lost, arrive twice, or overtake each other."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import UsageError
from p2p.net.memnat import Endpoint

if TYPE_CHECKING:
    from p2p.net.memory_host import MemTransport

INBOX_MAX: Final = 256
"""Datagrams that wait to be read; more are lost, as with a full socket buffer. Guess."""


class MemUdp:
    """A bound UDP socket of a simulated host.

    Args:
        host: whose it is.
        port: 0 takes the next free one.

    Raises:
        UsageError: the port is taken.
    """

    def __init__(self, host: MemTransport, port: int = 0) -> None:
        self.host = host
        self.port = port or host.take_port()
        if self.port in host.udp:
            raise UsageError(f"UDP port {port} of {host!r} is in use")
        host.udp[self.port] = self
        self._send, self._receive = trio.open_memory_channel[tuple[bytes, Endpoint]](INBOX_MAX)

    async def send_to(self, data: bytes, target: Endpoint) -> None:
        """Send; nobody learns whether it arrives."""
        await trio.lowlevel.checkpoint()
        source = Endpoint(self.host.ip, self.port)
        self.host.net.send_datagram(self.host, source, target, data)

    async def receive_from(self) -> tuple[bytes, Endpoint]:
        """The next datagram, and whom it came from as seen here."""
        return await self._receive.receive()

    def close(self) -> None:
        """Free the port."""
        if self.host.udp.get(self.port) is self:
            del self.host.udp[self.port]
        self._receive.close()

    def arrived(self, data: bytes, source: Endpoint) -> None:
        """A datagram is here."""
        with contextlib.suppress(trio.WouldBlock):  # the inbox is full: it is lost
            self._send.send_nowait((data, source))
