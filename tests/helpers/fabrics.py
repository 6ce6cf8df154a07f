"""Fabrics of every kind behind one small face, for tests that must hold on all of them.

`play(kind, scenario)` runs a scenario with a `Kit` that makes fabrics of that kind. Simulated kinds
run under a virtual clock with a seeded scheduler; kinds over real sockets run in real time, where a
`Throttle` between dialler and listener stands for a network that can go silent.
"""

from __future__ import annotations

import ipaddress
import math
import os
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from p2p.config import P2pConfig
from p2p.env import Env, SeededEnv, SystemEnv
from p2p.identity import Identity, peer_text
from p2p.net.memory import MemNet
from p2p.net.seam import PeerUp
from p2p.node import Node
from p2p.rpc_frames import CallFrame, FrameBuffer
from p2p.rpc_server import PROTOCOL
from tests.helpers.det import run_seeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from p2p.identity import PeerId
    from p2p.net.memory_fabric import MemFabric
    from p2p.net.seam import Addr, FabricEvent, PeerDown, PeerIdentified, Stream
    from p2p.node import ManagedFabric
    from p2p.rpc import Rpc
    from p2p.rpc_frames import Frame

MEM: Final = "mem"
WIRE_MEM: Final = "wire-mem"
WIRE_TCP4: Final = "wire-tcp4"
WIRE_TCP6: Final = "wire-tcp6"
KINDS: Final = (MEM, WIRE_MEM, WIRE_TCP4, WIRE_TCP6)
VIRTUAL: Final = (MEM, WIRE_MEM)

BROKEN: Final[dict[str, type[MemFabric]]] = {}
"""Kinds that break a rule on purpose: controls of the tests that must notice."""

# Real time is precious: the same rules, many times as fast.
QUICK: Final = replace(
    P2pConfig.test(), ping_idle_s=0.3, dead_idle_s=1.0, ping_busy_s=0.2, dead_busy_s=0.6
)

ECHO: Final = "/test/echo/1"
SINK: Final = "/test/sink/1"


def identity(number: int) -> Identity:
    """The same key for the same number, always."""
    return Identity.from_seed(number.to_bytes(4, "big") * 8)


@dataclass(frozen=True)
class Member:
    """A running fabric and what surrounds it."""

    number: int
    identity: Identity
    fabric: ManagedFabric
    scope: trio.CancelScope
    """Cancel it to stop the fabric."""

    @property
    def id(self) -> PeerId:
        """Its peer id."""
        return self.identity.id


@dataclass(frozen=True)
class NodeMember(Member):
    """A running node."""

    node: Node

    @property
    def rpc(self) -> Rpc:
        """Its RPC."""
        return self.node.rpc


class Kit:
    """Makes fabrics of one kind and breaks the network between them.

    Args:
        kind: one of `KINDS`.
        nursery: where fabrics run.
    """

    def __init__(self, kind: str, nursery: trio.Nursery) -> None:
        self.kind = kind
        self.virtual = kind in VIRTUAL or kind in BROKEN
        self.nursery = nursery
        self.net = MemNet(self._env("net"), latency_s=0.01)
        self.throttles: dict[frozenset[int], Throttle] = {}

    async def start(self, number: int, *, config: P2pConfig | None = None) -> Member:
        """A running fabric; `number` decides its identity and address."""
        who = identity(number)
        fabric = self._build(number, who, config)
        scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await fabric.run(task_status=task_status)

        await self.nursery.start(run)
        return Member(number, who, fabric, scope)

    async def pair(self, *, config: P2pConfig | None = None) -> tuple[Member, Member]:
        """Two connected fabrics; the first dialled."""
        first = await self.start(1, config=config)
        second = await self.start(2, config=config)
        await self.connect(first, second)
        return first, second

    async def node(self, number: int, *, config: P2pConfig | None = None) -> NodeMember:
        """A running node over a fabric of this kind; everybody is a member of its groups."""
        who = identity(number)
        node = Node.over(self._build(number, who, config), who, config)
        node.set_members(lambda peer: True)  # noqa: ARG005 - everybody
        scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await node.run(task_status=task_status)

        await self.nursery.start(run)
        return NodeMember(number, who, node.fabric, scope, node)

    async def nodes(self, *, config: P2pConfig | None = None) -> tuple[NodeMember, NodeMember]:
        """Two running nodes; the first knows where the second is."""
        first = await self.node(1, config=config)
        second = await self.node(2, config=config)
        first.node.learn(second.id, await self.addrs(first, second))
        return first, second

    async def connect(self, first: Member, second: Member) -> None:
        """Have `first` dial `second`, over a network that `silence` can stop."""
        events = second.fabric.events()
        await first.fabric.connect(second.id, await self.addrs(first, second))
        if first.id not in second.fabric.peers():
            await next_event(events, PeerUp, first.id, within_s=20)

    async def addrs(self, first: Member, second: Member) -> list[Addr]:
        """Addresses at which `first` reaches `second`."""
        addrs = second.fabric.addrs()
        if self.virtual:
            return addrs
        throttle = await self.nursery.start(Throttle.run, addrs[0])
        self.throttles[frozenset({first.number, second.number})] = throttle
        return [throttle.addr]

    def silence(self, first: Member, second: Member) -> None:
        """Deliver nothing between two fabrics; nobody is told."""
        if self.virtual:
            self.net.partition(self._ip(first.number), self._ip(second.number))
        else:
            self.throttles[frozenset({first.number, second.number})].stop()

    def speak(self, first: Member, second: Member) -> None:
        """End `silence`."""
        if self.virtual:
            self.net.heal(self._ip(first.number), self._ip(second.number))
        else:
            self.throttles[frozenset({first.number, second.number})].go()

    def _ip(self, number: int) -> str:
        return f"10.0.{number // 256}.{number % 256}"

    def _env(self, component: str) -> Env:
        if self.virtual:
            return SeededEnv(7, component, trio.current_time)
        return SystemEnv()

    def _build(self, number: int, who: Identity, config: P2pConfig | None) -> ManagedFabric:
        env = self._env(f"node {number}")
        ip = self._ip(number)
        if self.kind == MEM:
            return self.net.fabric(who.id, ip, env=env)
        if self.kind in BROKEN:
            fabric = BROKEN[self.kind](self.net, self.net.host(ip), who.id, env)
            self.net.fabrics[fabric.addr] = fabric
            return fabric
        from p2p.net.tcp import TcpTransport
        from p2p.net.wire_fabric import WireFabric

        config = config or (P2pConfig.test() if self.virtual else QUICK)
        if self.kind == WIRE_MEM:
            config = replace(config, listen=(f"/ip4/{ip}/tcp/0",))
            return WireFabric(who, config, env, [self.net.host(ip)], None)
        listen = "/ip4/127.0.0.1/tcp/0" if self.kind == WIRE_TCP4 else "/ip6/::1/tcp/0"
        config = replace(config, listen=(listen,))
        return WireFabric(who, config, env, [TcpTransport(config)], None)


class Throttle:
    """A TCP forwarder on loopback that can stop forwarding without closing anything."""

    def __init__(self, target: Addr) -> None:
        _, _, self._host, _, port = target.split("/")
        self._port = int(port)
        self.addr: Addr = ""
        self._going = trio.Event()
        self._going.set()

    @classmethod
    async def run(cls, target: Addr, *, task_status: trio.TaskStatus[Throttle]) -> None:
        """Forward to `target` until cancelled."""
        throttle = cls(target)
        listeners = await trio.open_tcp_listeners(0, host=throttle._host)
        port = listeners[0].socket.getsockname()[1]
        version = ipaddress.ip_address(throttle._host).version
        throttle.addr = f"/ip{version}/{throttle._host}/tcp/{port}"
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, throttle._serve, listeners)
            task_status.started(throttle)

    def stop(self) -> None:
        """Forward nothing from now on."""
        if self._going.is_set():
            self._going = trio.Event()

    def go(self) -> None:
        """Forward again, what was held first."""
        self._going.set()

    async def _serve(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream(self._host, self._port)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, client, server, nursery)
            nursery.start_soon(self._pump, server, client, nursery)

    async def _pump(
        self, source: trio.SocketStream, target: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        try:
            while data := await source.receive_some(65_536):
                await self._going.wait()
                await target.send_all(data)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            nursery.cancel_scope.cancel()


class RawPeer:
    """A peer that writes RPC frames by hand, on a stream of its own.

    Args:
        stream: of the RPC protocol, from either side.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._frames = FrameBuffer()
        self._ready: list[Frame] = []

    @classmethod
    async def to(cls, us: Member, them: Member) -> RawPeer:
        """A new stream from one fabric to another."""
        return cls(await us.fabric.open(them.id, PROTOCOL))

    async def send(self, *frames: bytes | bytearray) -> None:
        """Send frames, or what only looks like some."""
        await self.stream.send_all(b"".join(frames))

    async def receive(self) -> Frame:
        """The next frame.

        Raises:
            EOFError: the stream ended.
        """
        while not self._ready:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError
            self._ready += self._frames.feed(data)
        return self._ready.pop(0)

    async def receive_call(self) -> CallFrame:
        """The next frame, which must be a CALL."""
        frame = await self.receive()
        assert isinstance(frame, CallFrame)
        return frame


def play(kind: str, scenario: Callable[[Kit], Awaitable[None]], *, seed: int | None = None) -> None:
    """Run a scenario to its end on fabrics of one kind.

    Args:
        kind: one of `KINDS`.
        scenario: what to do and check.
        seed: order of tasks in virtual time; None: the usual one, or what a hunt for flaky tests
            asks for by `COVEY_TEST_SCHEDULE`.
    """
    if seed is None:
        seed = zlib.crc32(os.environ.get("COVEY_TEST_SCHEDULE", "").encode())

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scenario(Kit(kind, nursery))
            nursery.cancel_scope.cancel()

    if kind in VIRTUAL or kind in BROKEN:
        run_seeded(main, seed=seed)
    else:
        trio.run(main)


async def echo(stream: Stream) -> None:
    """A handler: everything back, end of file too."""
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.send_eof()


async def read_exactly(stream: Stream, size: int) -> bytes:
    """The next `size` bytes."""
    data = b""
    while len(data) < size:
        more = await stream.receive_some()
        assert more, f"end of file after {len(data)} of {size} bytes"
        data += more
    return data


async def read_to_end(stream: Stream) -> bytes:
    """Everything up to the end of file."""
    data = b""
    while more := await stream.receive_some():
        data += more
    return data


async def ask(stream: Stream, data: bytes) -> bytes:
    """Send to an echo handler and return its answer."""
    await stream.send_all(data)
    return await read_exactly(stream, len(data))


async def next_event(
    events: trio.MemoryReceiveChannel[FabricEvent],
    kind: type[PeerUp | PeerDown | PeerIdentified],
    peer: PeerId,
    *,
    within_s: float = math.inf,
) -> FabricEvent:
    """The next event of a kind about a peer; others are skipped."""
    with trio.fail_after(within_s):
        while True:
            event = await events.receive()
            if isinstance(event, kind) and event.peer == peer:
                return event


POOLED: Final = ("/covey/rpc/1", "/covey/main/kad/1")
"""Protocols whose idle streams are kept for the next request."""


async def nothing_left(nodes: Sequence[Node], *, after_s: float = 60.0) -> None:
    """Demand that an attack left nothing open at these nodes, and that each serves the others.

    Args:
        nodes: on the real wire, with `ECHO`.
        after_s: what ends by itself has this long.

    Raises:
        AssertionError: says at which node what is left.
    """
    from p2p.nat.relay_messages import HOP, STOP
    from p2p.net.wire_fabric import WireFabric

    await trio.sleep(after_s)
    for node in nodes:
        fabric = node.fabric
        assert isinstance(fabric, WireFabric)
        report = node.report()
        assert report.counters.get("bug", 0) == 0, report.counters
        live = Counter[str]()
        for (_, name), number in fabric._live.items():
            live[name] += number
        assert report.traversal is not None
        circuits = report.traversal.relay.circuits
        assert live.pop(HOP, 0) == circuits, "a hop stream that carries no circuit"
        relayed = [c for c in fabric._manager.table if c.path == "relay" and c.inbound]
        assert live.pop(STOP, 0) == len(relayed), "a stop stream that carries no connection"
        left = set(live) - {*POOLED, ECHO}
        assert not left, f"{peer_text(node.id)} still serves {left}"
        assert fabric._manager.gate._pending_total == 0
        for other in nodes:
            if other.id in fabric.peers():
                async with await fabric.open(other.id, ECHO) as stream:
                    assert await ask(stream, b"served") == b"served"
