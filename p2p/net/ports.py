"""The two seams of a connection: the transport below it, the fabric above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Container

    from p2p.net.driver import Connection
    from p2p.net.seam import Handler


@runtime_checkable
class NowaitStream(Protocol):
    """A byte stream that can be driven without a task switch per call."""

    def receive_nowait(self, buffer: bytearray) -> int | None:
        """Read into `buffer`: bytes read, 0 at the end, None if nothing is there."""
        ...

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the socket takes now; how many bytes."""
        ...

    async def wait_readable(self) -> None:
        """Return when `receive_nowait` may have something."""

    async def wait_writable(self) -> None:
        """Return when `send_nowait` may take something."""


@runtime_checkable
class PortedStream(Protocol):
    """A raw stream that knows from which port of this host it runs."""

    @property
    def local_port(self) -> int | None:
        """The port; None once it is closed."""
        ...


@runtime_checkable
class LocatedStream(Protocol):
    """A raw stream that knows the addresses it runs between."""

    @property
    def local_ip(self) -> str | None:
        """The address of this host; None once it is closed."""
        ...

    @property
    def remote_ip(self) -> str | None:
        """The address of the other one; None once it is closed."""
        ...


class ConnectionOwner(Protocol):
    """What a connection asks of and tells the fabric."""

    @property
    def served(self) -> Container[str]:
        """Protocols that are served."""
        ...

    def admit_stream(self, connection: Connection, protocol: str) -> Handler | None:
        """The handler for a new inbound stream; None: over the limit, reset it."""
        ...

    def release_stream(self, connection: Connection, protocol: str) -> None:
        """A stream that `admit_stream` let in has ended."""

    def opened(self, connection: Connection) -> None:
        """Streams flow both ways from now on."""

    def doubted(self, connection: Connection) -> None:
        """A ping is overdue."""

    def followed(self, connection: Connection) -> None:
        """The other side opened a stream here."""

    def leaving(self, connection: Connection) -> None:
        """The other side takes no more streams; the live ones go on."""

    def violated(self, connection: Connection, why: str) -> None:
        """The peer broke a rule."""

    def failed(self, where: str, error: Exception) -> None:
        """Our code raised: a bug here."""
