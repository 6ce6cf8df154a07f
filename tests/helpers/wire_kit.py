"""Wire fabrics over real TCP for tests: made, connected, and checked at the end."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.identity import Identity
from p2p.net.tcp import TcpStream, TcpTransport
from p2p.net.wire_fabric import WireFabric
from p2p.wire.noise import FRAME_BYTES
from p2p.wire.session import Phase, Session

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from p2p.identity import PeerId
    from p2p.net.seam import Addr, FabricEvent, PeerDown, PeerUp, Stream
    from p2p.wire.noise import Sealer

ECHO: Final = "/test/echo/1"
SINK: Final = "/test/sink/1"
HOLD: Final = "/test/hold/1"
TEST: Final = P2pConfig.test()


def identity(number: int) -> Identity:
    """The same key for the same number, always."""
    return Identity(bytes([number]) * 32)


async def echo(stream: Stream) -> None:
    """Send back what comes."""
    while data := await stream.receive_some():
        await stream.send_all(data)


async def sink(stream: Stream) -> None:
    """Read to the end, then say how much it was."""
    size = 0
    while data := await stream.receive_some():
        size += len(data)
    await stream.send_all(size.to_bytes(8, "big"))


async def hold(stream: Stream) -> None:
    """Never read: whatever is sent stays unread."""
    del stream
    await trio.sleep_forever()


def make(number: int, config: P2pConfig = TEST, **changes: object) -> WireFabric:
    """A fabric that is not running, with the three test protocols."""
    config = replace(config, **changes)  # type: ignore[arg-type]
    fabric = WireFabric(identity(number), config, SystemEnv(), [TcpTransport(config)])
    fabric.handle(ECHO, echo, per_peer_max=2000)
    fabric.handle(SINK, sink, per_peer_max=2000)
    fabric.handle(HOLD, hold, per_peer_max=2000)
    return fabric


@asynccontextmanager
async def running(*fabrics: WireFabric) -> AsyncGenerator[None]:
    """Run fabrics; at the end none may have counted a bug of ours."""
    async with trio.open_nursery() as nursery:
        for fabric in fabrics:
            await nursery.start(fabric.run)
        yield
        nursery.cancel_scope.cancel()
    for fabric in fabrics:
        assert fabric.counters().get("bug", 0) == 0, fabric.counters()


async def exchange(fabric: WireFabric, peer: PeerId, data: bytes = b"hello") -> None:
    """One echo on a stream of its own, ended cleanly."""
    stream = await fabric.open(peer, ECHO)
    async with stream:
        await stream.send_all(data)
        await stream.send_eof()
        got = b""
        while piece := await stream.receive_some():
            got += piece
        assert got == data


async def wait_for(check: Callable[[], bool], *, limit_s: float = 10.0) -> None:
    """Return when `check` holds; the limit only ends a hang."""
    with trio.fail_after(limit_s):
        while not check():  # noqa: ASYNC110 - the state looked at has no event
            await trio.sleep(0.005)


async def next_event(
    events: trio.MemoryReceiveChannel[FabricEvent], kind: type[PeerUp | PeerDown]
) -> PeerUp | PeerDown:
    """The next event of a kind."""
    with trio.fail_after(20):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError("the channel ended")


def tcp_of(addr: Addr) -> tuple[str, int]:
    """Host and port of a TCP multiaddr."""
    _, _, host, _, port = addr.split("/")
    return host, int(port)


def seal(sealer: Sealer, plain: bytes) -> bytes:
    """One Noise message with its length."""
    buffer = bytearray(len(plain) + FRAME_BYTES)
    sealer.seal_into(memoryview(buffer), plain)
    return bytes(buffer)


class RawPeer:
    """A peer that speaks the wire by hand: proven, and free to break every rule after.

    Args:
        number: its identity.
    """

    def __init__(self, number: int) -> None:
        self.identity = identity(number)
        self.session = Session(
            self.identity, initiator=True, static=b"s" * 32, ephemeral=bytes([number]) * 32
        )
        self._stream: TcpStream | trio.SocketStream | None = None

    async def connect(self, addr: Addr, *, source: str | None = None) -> None:
        """Run the handshake until the muxer is agreed; `source`: from which address of ours."""
        self._env = SystemEnv()
        if source is None:
            self._stream = await TcpTransport(TEST).dial(addr)
        else:
            host, port = tcp_of(addr)
            sock = trio.socket.socket()
            await sock.bind((source, 0))
            await sock.connect((host, port))
            self._stream = trio.SocketStream(sock)
        await self.flush()
        while self.session.phase is not Phase.OPEN:
            data = await self._stream.receive_some()
            assert data, "the other side closed during the handshake"
            self.session.receive(bytes(data), self._env.now())
            await self.flush()

    async def connect_badly(self, addr: Addr) -> None:
        """Prove who we are and send a muxer that does not exist, in one write."""
        self._env = SystemEnv()
        self._stream = await TcpTransport(TEST).dial(addr)
        await self.flush()
        while self.session.peer is None:
            self.session.receive(bytes(await self._stream.receive_some()), self._env.now())
        self.session._plain[:] = b"\xff" * 100
        await self.flush()

    async def flush(self) -> None:
        """Send what the machine holds."""
        assert self._stream is not None
        if data := self.session.to_send(1 << 20):
            await self._stream.send_all(data)

    async def send_frames(self, frames: bytes) -> None:
        """Send any bytes as if they were the muxer's."""
        assert self._stream is not None
        sealer = self.session._sealer
        assert sealer is not None
        for start in range(0, len(frames), 60_000):
            await self._stream.send_all(seal(sealer, frames[start : start + 60_000]))

    async def read_until_closed(self) -> bool:
        """Read and drop until the other side closes; whether it did so by a reset."""
        assert self._stream is not None
        try:
            while await self._stream.receive_some():
                pass
        except trio.BrokenResourceError:
            return True
        return False

    async def aclose(self) -> None:
        """Hang up."""
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)
