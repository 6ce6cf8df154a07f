"""TCP, IPv4 and IPv6, driven without a task switch per call.

`TcpStream` is an ordinary trio stream and besides offers `receive_nowait` and `send_nowait`
(`p2p.net.driver.NowaitStream`). `NODELAY`, because our frames are whole messages;
`TCP_NOTSENT_LOWAT` keeps the queue in our scheduler, where a small message may still overtake.
Source: docs/specs/wire.md s.6.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
from typing import TYPE_CHECKING, Final

import trio
from typing_extensions import override

from p2p.errors import Busy, DecodeError, Unreachable, UsageError
from p2p.wire.multiaddr import TcpAddr, tcp_addr_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.config import P2pConfig
    from p2p.identity import PeerId
    from p2p.net.seam import Accept, Addr, Path

log = logging.getLogger("covey.p2p.tcp")

BACKLOG: Final = 256
"""Connections the kernel may complete before we accept them; more are refused by it."""
NOTSENT_BYTES: Final = 131_072
"""Bytes the kernel takes ahead of what is in flight. Source: mesh measurements, 128 KiB."""
EXHAUSTED_PAUSE_S: Final = 0.1
"""Wait before accepting again when descriptors ran out."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# A connection that died in the accept queue; the next one may be fine.
_ACCEPT_AGAIN: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH}
)
# What a stream reports when the other side is gone.
_WOULD_BLOCK: Final = (BlockingIOError, InterruptedError)


class TcpStream(trio.abc.HalfCloseableStream):
    """A connected TCP socket.

    Args:
        sock: non-blocking and connected; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)

    @property
    def local_port(self) -> int | None:
        """The port of this host it runs from; None once it is closed."""
        try:
            return int(self._sock.getsockname()[1])
        except OSError:
            return None

    @property
    def local_ip(self) -> str | None:
        """The address of this host it runs from; None once it is closed."""
        try:
            return _plain_ip(str(self._sock.getsockname()[0]))
        except OSError:
            return None

    @property
    def remote_ip(self) -> str | None:
        """The address it leads to; None once it is closed."""
        try:
            return _plain_ip(str(self._sock.getpeername()[0]))
        except OSError:
            return None

    def receive_nowait(self, buffer: bytearray) -> int | None:
        """Read into `buffer`: bytes read, 0 at the end, None if nothing is there.

        Raises:
            trio.BrokenResourceError: the connection was reset.
            trio.ClosedResourceError: we closed it.
        """
        try:
            return self._sock.recv_into(buffer)
        except _WOULD_BLOCK:
            return None
        except OSError as error:
            raise self._translate(error) from error

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the socket takes now; how many bytes, perhaps 0.

        Raises:
            trio.BrokenResourceError: the connection was reset.
            trio.ClosedResourceError: we closed it.
        """
        try:
            return self._sock.send(data)
        except _WOULD_BLOCK:
            return 0
        except OSError as error:
            raise self._translate(error) from error

    async def wait_readable(self) -> None:
        """Return when `receive_nowait` may have something."""
        self._check_ours()
        await trio.lowlevel.wait_readable(self._sock)

    async def wait_writable(self) -> None:
        """Return when `send_nowait` may take something."""
        self._check_ours()
        await trio.lowlevel.wait_writable(self._sock)

    def _check_ours(self) -> None:
        if self._sock.fileno() < 0:
            raise trio.ClosedResourceError("we closed the connection")

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            sent = self.send_nowait(view)
            view = view[sent:]
            if view:
                await self.wait_writable()

    @override
    async def wait_send_all_might_not_block(self) -> None:
        await self.wait_writable()

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        await trio.lowlevel.checkpoint()
        buffer = bytearray(max_bytes or 65_536)
        while (size := self.receive_nowait(buffer)) is None:
            await self.wait_readable()
        del buffer[size:]
        return buffer

    @override
    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._translate(error) from error

    @override
    async def aclose(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        await trio.lowlevel.checkpoint()

    def _translate(self, error: OSError) -> Exception:
        if self._sock.fileno() < 0:
            return trio.ClosedResourceError("we closed the connection")
        return trio.BrokenResourceError(_reason(error))


class TcpTransport:
    """Dials and listens.

    Args:
        config: of the mesh; TCP itself has nothing to tune yet.
    """

    def __init__(self, config: P2pConfig) -> None:
        self.config = config
        self.path: Path = "direct"
        self._ports: dict[int, int] = {}  # address family -> port we listen at
        self.on_exhausted: Callable[[], None] | None = None
        """Called when descriptors run out, to give one back."""
        self.on_dial: Callable[[str], None] | None = None
        """Called with each IP address that is dialled; of a name, with those it stands for."""

    def dials(self, addr: Addr) -> bool:
        """Whether `addr` is plain TCP."""
        try:
            return tcp_addr_untrusted(addr) is not None
        except DecodeError:
            return False

    async def dial(
        self,
        addr: Addr,
        *,
        peer: PeerId | None = None,  # noqa: ARG002 - the handshake above finds out
        reuse_port: bool = False,
    ) -> TcpStream:
        """Connect.

        Args:
            addr: `/ip4|ip6|dns*/.../tcp/...`; names are resolved.
            peer: not needed here.
            reuse_port: leave from the port we listen at, so that others see our mapped port; an
                ephemeral one if that pair of addresses is taken.

        Raises:
            Unreachable: refused, unroutable, no such name.
            UsageError: `addr` is not plain TCP.
        """
        tcp = _need_tcp(addr)
        error: Unreachable | None = None
        for family, address in await _resolve(tcp):
            ports = [self._ports[family]] if reuse_port and family in self._ports else []
            if self.on_dial is not None:
                self.on_dial(_plain_ip(str(address[0])))
            for local_port in [*ports, None]:
                try:
                    return TcpStream(await _connect(family, address, local_port))
                except OSError as failure:
                    error = Unreachable(f"{addr}: {_reason(failure)}")
                    if failure.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                        break
        raise error or Unreachable(f"{addr}: the name has no address")

    async def listen(
        self, addr: Addr, accept: Accept, *, task_status: trio.TaskStatus[Addr]
    ) -> None:
        """Accept until cancelled; started with the bound address.

        Raises:
            Busy: another process listens there.
            Unreachable: this machine has no such address, or forbids it.
            UsageError: `addr` is not plain TCP at an IP address.
        """
        tcp = _need_tcp(addr)
        if tcp.ip is None:
            raise UsageError(f"cannot listen at {addr}: a name; give an IP address")
        sock = _bind(tcp)
        with sock:
            port: int = sock.getsockname()[1]
            self._ports[sock.family] = port
            try:
                async with trio.open_nursery() as nursery:
                    task_status.started(TcpAddr(tcp.kind, tcp.host, port).text)
                    await self._accept_forever(sock, accept, nursery)
            finally:
                self._ports.pop(sock.family, None)
                trio.lowlevel.notify_closing(sock)

    async def _accept_forever(
        self, sock: socket.socket, accept: Accept, nursery: trio.Nursery
    ) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                child, remote = sock.accept()
            except _WOULD_BLOCK:
                continue
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    log.warning(
                        "accept_exhausted",
                        extra={"f": {"error": _reason(error)}, "remote": True},
                    )
                    if self.on_exhausted is not None:
                        self.on_exhausted()
                    await trio.sleep(EXHAUSTED_PAUSE_S)
                elif error.errno not in _ACCEPT_AGAIN:
                    raise
                continue
            child.setblocking(False)
            try:
                stream = TcpStream(child)
            except OSError:  # it was reset while it waited
                child.close()
                continue
            nursery.start_soon(accept, stream, _remote_addr(str(remote[0]), int(remote[1])))


def source_addresses() -> list[str]:
    """Addresses this machine sends from, one a family, best first: where peers may reach us.

    A UDP socket is connected to a documentation address; that asks the routing table and sends
    nothing.
    """
    found: list[str] = []
    for family, target in (
        (socket.AF_INET, "192.0.2.1"),
        (socket.AF_INET6, "2001:db8::1"),
    ):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((target, 9))
                found.append(str(sock.getsockname()[0]))
        except OSError:
            continue  # no route in this family
    return found


def _need_tcp(addr: Addr) -> TcpAddr:
    try:
        tcp = tcp_addr_untrusted(addr)
    except DecodeError as error:
        raise UsageError(f"{addr}: {error}") from None
    if tcp is None:
        raise UsageError(f"{addr} is not a TCP address")
    return tcp


def _reason(error: OSError) -> str:
    return error.strerror or os.strerror(error.errno or 0)


def _plain_ip(host: str) -> str:
    """An address without the interface that IPv6 addresses of a link name."""
    return host.partition("%")[0]


def _remote_addr(host: str, port: int) -> Addr:
    ip = ipaddress.ip_address(_plain_ip(host))
    return f"/ip{ip.version}/{ip}/tcp/{port}"


_FAMILIES: Final = {
    "ip4": socket.AF_INET,
    "dns4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
}


async def _resolve(tcp: TcpAddr) -> list[tuple[int, tuple[str, int]]]:
    """Families and socket addresses to try, in order."""
    if tcp.ip is not None:
        await trio.lowlevel.checkpoint()
        return [(_FAMILIES[tcp.kind], (tcp.host, tcp.port))]
    try:
        found = await trio.socket.getaddrinfo(
            tcp.host, tcp.port, family=_FAMILIES[tcp.kind], type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise Unreachable(f"{tcp.text}: {_reason(error)}") from None
    return [(int(entry[0]), (str(entry[4][0]), tcp.port)) for entry in found]


async def _connect(family: int, address: tuple[str, int], local_port: int | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if local_port is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("", local_port))
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and sock.getsockname() == sock.getpeername():
            # Dialling a dead port of our own machine can meet itself (TCP simultaneous open).
            code = errno.ECONNREFUSED
        _raise_for(code)
    except BaseException:
        trio.lowlevel.notify_closing(sock)
        sock.close()
        raise
    return sock


def _raise_for(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


def _bind(tcp: TcpAddr) -> socket.socket:
    try:
        # First without SO_REUSEPORT: with it, a second daemon would share the port in silence.
        with _bound(tcp, reuse_port=False) as probe:
            port: int = probe.getsockname()[1]
        sock = _bound(TcpAddr(tcp.kind, tcp.host, port), reuse_port=True)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Busy(
                f"cannot listen at {tcp.text}: another process does; stop it, or choose another "
                "port in [p2p] listen"
            ) from error
        raise Unreachable(f"cannot listen at {tcp.text}: {_reason(error)}") from error
    sock.listen(BACKLOG)
    return sock


def _bound(tcp: TcpAddr, *, reuse_port: bool) -> socket.socket:
    family = _FAMILIES[tcp.kind]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # "::" must leave IPv4 to its own listener, so that each address says its family.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((tcp.host, tcp.port))
    except BaseException:
        sock.close()
        raise
    return sock
