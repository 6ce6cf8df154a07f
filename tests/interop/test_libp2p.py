"""Covey's wire against the two public libp2p implementations in Python's and Node's worlds.

js-libp2p 3.3 and py-libp2p 0.8.1 each run in a process and an environment of their own
(build/interop). Both roles are tried: we dial them, and they dial us. What py-libp2p does not show
is not asked of it: it reports a reset stream as ended.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.errors import PeerError, TransientError
from p2p.identity import Identity, PeerId, parse_peer_untrusted, peer_text
from p2p.net.seam import PeerDown
from p2p.net.tcp import TcpTransport
from p2p.net.wire_fabric import WireFabric
from tests.helpers.interop import ECHO, echo, exchange, pattern, read_all
from tests.helpers.leaks import task_count
from tests.helpers.need import need
from tests.helpers.oracle import Oracle, install, running_oracle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from p2p.net.seam import Stream

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(60)]

COUNT = "/covey-test/count/1"
RESET = "/covey-test/reset/1"
HOLD = "/covey-test/hold/1"
STREAMS = 256
ECHO_BYTES = 300_000


@dataclass
class Ours:
    """Our side: the same four protocols that the peers serve."""

    fabric: WireFabric
    held: trio.Event = field(default_factory=trio.Event)
    hold_ended: trio.Event = field(default_factory=trio.Event)
    hold_was_reset: bool = False

    @property
    def addr(self) -> str:
        """Where the other side may dial us."""
        return f"{self.fabric.addrs()[0]}/p2p/{peer_text(self.fabric.id)}"

    def serve(self) -> None:
        """Register the handlers."""
        for protocol, handler in (
            (ECHO, echo),
            (COUNT, self.on_count),
            (RESET, self.on_reset),
            (HOLD, self.on_hold),
        ):
            self.fabric.handle(protocol, handler, per_peer_max=1024)

    async def on_count(self, stream: Stream) -> None:
        await stream.send_all(len(await read_all(stream)).to_bytes(8, "big"))

    async def on_reset(self, stream: Stream) -> None:
        await stream.receive_some(1)
        stream.reset()

    async def on_hold(self, stream: Stream) -> None:
        await stream.receive_some(1)
        self.held.set()
        try:
            await read_all(stream)
        except trio.BrokenResourceError:
            self.hold_was_reset = True
        self.hold_ended.set()

    async def exchange(self, peer: PeerId, size: int) -> None:
        """Have the other side echo `size` bytes while we still send, and compare."""
        await exchange(self.fabric, peer, size)


@asynccontextmanager
async def our_side(listen: str) -> AsyncGenerator[Ours]:
    """A fabric over real TCP, the product's own."""
    env = SystemEnv()
    config = P2pConfig.test()
    fabric = WireFabric(
        Identity.generate(env.rng), listening_at(config, listen), env, [TcpTransport(config)]
    )
    ours = Ours(fabric)
    ours.serve()
    async with trio.open_nursery() as nursery:
        await nursery.start(fabric.run)
        yield ours
        nursery.cancel_scope.cancel()


def listening_at(config: P2pConfig, listen: str) -> P2pConfig:
    """The configuration with one listen address."""
    return P2pConfig(**{**vars(config), "listen": (listen,)})


@pytest.fixture(scope="module", params=["js", "py"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which implementation."""
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str) -> Path:
    """Where it is installed."""
    return install(kind)


@pytest.fixture(params=["ip4", "ip6"])
def listen(request: pytest.FixtureRequest) -> str:
    """A loopback address of either family."""
    if request.param == "ip6":
        need("ipv6")
        return "/ip6/::1/tcp/0"
    return "/ip4/127.0.0.1/tcp/0"


@asynccontextmanager
async def pair(kind: str, folder: Path, listen: str) -> AsyncGenerator[tuple[Ours, Oracle, PeerId]]:
    """Both sides up, not yet connected."""
    async with our_side(listen) as ours, running_oracle(kind, folder, listen) as theirs:
        yield ours, theirs, parse_peer_untrusted(theirs.id)


async def test_we_dial_and_every_exchange_works(kind: str, folder: Path, listen: str) -> None:
    async with pair(kind, folder, listen) as (ours, theirs, peer):
        await ours.fabric.connect(
            peer, [address.rpartition("/p2p/")[0] for address in theirs.addrs]
        )
        await ours.exchange(peer, ECHO_BYTES)
        counting = await ours.fabric.open(peer, COUNT)
        async with counting:
            await counting.send_all(pattern(100_000))
            await counting.send_eof()
            # Our half is closed; the answer must still come on the other.
            assert int.from_bytes(await read_all(counting), "big") == 100_000
        info = ours.fabric.peers()[peer]
        assert not info.inbound
        agent = await said_who_it_is(ours, peer)
        assert agent.startswith(f"{kind}-libp2p/")


async def test_they_dial_and_every_exchange_works(kind: str, folder: Path, listen: str) -> None:
    async with pair(kind, folder, listen) as (ours, theirs, peer):
        dialled = await theirs.act("dial", addr=ours.addr)
        assert dialled["peer"] == peer_text(ours.fabric.id)
        identified = await theirs.act("identify", peer=peer_text(ours.fabric.id))
        assert str(identified["agent"]).startswith("covey/")
        assert {ECHO, "/ipfs/ping/1.0.0", "/ipfs/id/1.0.0"} <= set(identified["protocols"])  # type: ignore[arg-type]
        assert "/ip" in str(identified["observed"])
        pinged = await theirs.act("ping", addr=ours.addr, count=5)
        assert len(pinged["times"]) == 5  # type: ignore[arg-type]
        await theirs.act("echo", addr=ours.addr, size=ECHO_BYTES)
        assert (await theirs.act("halfclose", addr=ours.addr, size=100_000))["counted"] == 100_000
        assert ours.fabric.peers()[peer].inbound


async def said_who_it_is(ours: Ours, peer: PeerId) -> str:
    """Wait for what identify tells; it follows the connection on a stream of its own."""
    while not ours.fabric.peers()[peer].agent:  # noqa: ASYNC110 - there is no event for it
        await trio.sleep(0.01)
    return ours.fabric.peers()[peer].agent


async def test_256_streams_at_once_in_both_directions(kind: str, folder: Path) -> None:
    async with pair(kind, folder, "/ip4/127.0.0.1/tcp/0") as (ours, theirs, peer):
        await theirs.act("dial", addr=ours.addr)
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(ours.exchange, peer, 1000)
        answer = await theirs.act("streams", addr=ours.addr, count=STREAMS, size=1000)
        assert answer["count"] == STREAMS
        assert ours.fabric.peers()[peer].streams <= 4


async def test_our_reset_reaches_them_and_leaves_the_connection(kind: str, folder: Path) -> None:
    async with pair(kind, folder, "/ip4/127.0.0.1/tcp/0") as (ours, theirs, peer):
        await theirs.act("dial", addr=ours.addr)
        stream = await ours.fabric.open(peer, HOLD)
        await stream.send_all(pattern(1000))
        await theirs.event("held")
        stream.reset()
        ended = await theirs.event("hold")
        # py-libp2p reads a reset as an end.
        assert kind == "py" or ended["reset"] is True
        got = await theirs.act("get_reset", addr=ours.addr)
        assert kind == "py" or got["reset"] is True
        await ours.exchange(peer, 1000)
        await theirs.act("echo", addr=ours.addr, size=1000)


async def test_their_reset_reaches_us_and_leaves_the_connection(kind: str, folder: Path) -> None:
    async with pair(kind, folder, "/ip4/127.0.0.1/tcp/0") as (ours, theirs, peer):
        await theirs.act("dial", addr=ours.addr)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: theirs.act("send_reset", addr=ours.addr))
            await ours.held.wait()
            await theirs.act("go_on")
            await ours.hold_ended.wait()
        assert ours.hold_was_reset
        stream = await ours.fabric.open(peer, RESET)
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await read_all(stream)
        await ours.exchange(peer, 1000)
        await theirs.act("echo", addr=ours.addr, size=1000)


async def test_an_unknown_protocol_breaks_its_stream_only(kind: str, folder: Path) -> None:
    async with pair(kind, folder, "/ip4/127.0.0.1/tcp/0") as (ours, theirs, peer):
        await theirs.act("dial", addr=ours.addr)
        stream = await ours.fabric.open(peer, "/covey-test/nobody-serves-this/1")
        with pytest.raises(trio.BrokenResourceError):
            await read_all(stream)
        await ours.exchange(peer, 1000)


@pytest.mark.attack
async def test_a_peer_that_is_not_whom_we_dialled_is_refused(kind: str, folder: Path) -> None:
    async with pair(kind, folder, "/ip4/127.0.0.1/tcp/0") as (ours, theirs, peer):
        stranger = Identity.from_seed(bytes(range(32))).id
        with pytest.raises((PeerError, TransientError)):
            await ours.fabric.connect(
                stranger, [address.rpartition("/p2p/")[0] for address in theirs.addrs]
            )
        assert stranger not in ours.fabric.peers()
        assert peer not in ours.fabric.peers()


async def test_twenty_connections_come_and_go_without_a_task_left(kind: str, folder: Path) -> None:
    async with pair(kind, folder, "/ip4/127.0.0.1/tcp/0") as (ours, theirs, peer):
        addrs = [address.rpartition("/p2p/")[0] for address in theirs.addrs]
        await ours.fabric.connect(peer, addrs)
        await ours.exchange(peer, 1000)
        await gone(ours, peer)
        await theirs.act("forgotten", peer=peer_text(ours.fabric.id))
        base = task_count()
        for _ in range(20):
            await ours.fabric.connect(peer, addrs)
            await ours.exchange(peer, 1000)
            await gone(ours, peer)
            # py-libp2p's clean-up of an old connection takes a new one of that peer along.
            await theirs.act("forgotten", peer=peer_text(ours.fabric.id))
        assert task_count() <= base


async def gone(ours: Ours, peer: PeerId) -> None:
    """End the connection and wait until nothing of it lives."""
    events = ours.fabric.events()
    await ours.fabric.disconnect(peer)
    if peer in ours.fabric.peers():
        async for event in events:
            if isinstance(event, PeerDown) and event.peer == peer:
                break
