"""MemNet: a network of hosts in one process, as slow and as broken as a test wants.

It serves two purposes. `MemTransport` carries raw bytes under the real wire (Noise and Yamux run
unchanged); `MemFabric` (`p2p.net.memory_fabric`) skips crypto and multiplexing for simulations of
the parts above. Both share hosts, links and partitions, run under trio's clock and draw from one
generator, so the same seed under a deterministic scheduler gives the same run.

    net = MemNet(env)
    transport = net.host("10.0.0.1")                     # for WireFabric
    fabric = net.fabric(peer_id, "10.0.0.2")             # without crypto
    net.link("10.0.0.1", "10.0.0.2", latency_s=0.05)
    net.partition("10.0.0.1", "10.0.0.2"); ...; net.heal()
"""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING, Final

import trio
from typing_extensions import override

from p2p.errors import Unreachable, UsageError
from p2p.net.memory_link import Link, LinkConfig, PipeStream, pipe_streams

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.net.memory_fabric import MemFabric
    from p2p.net.seam import Accept, Addr, Path

CONNECT_S_MAX: Final = 20.0
"""A dial into silence gives up after this; kernels take longer, callers are faster."""

PORT_FIRST: Final = 15_001
"""First port that a listener on port 0 gets; each host counts on from here."""

PORT_EPHEMERAL_FIRST: Final = 49_152
"""First port a dialler is seen from. Source: RFC 6335 s.6."""

ANY_IPS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never bound


def mem_addr(ip: str, port: int) -> Addr:
    """The multiaddr of a port on a simulated host."""
    return f"/ip{ipaddress.ip_address(ip).version}/{ip}/tcp/{port}"


def split_mem_addr(addr: Addr) -> tuple[str, int] | None:
    """Host and port of `/ip4/.../tcp/N` or `/ip6/.../tcp/N`, None for any other form."""
    parts = addr.split("/")
    if len(parts) != 5 or parts[0] or parts[1] not in {"ip4", "ip6"} or parts[3] != "tcp":
        return None
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return None
    if f"ip{ip.version}" != parts[1] or not (parts[4].isascii() and parts[4].isdecimal()):
        return None
    port = int(parts[4])
    return (str(ip), port) if port <= 65_535 else None


class MemNet:
    """Hosts, links between them, and what goes wrong.

    Args:
        env: its generator draws the jitter; its clock must be trio's.
        latency_s: one-way delay of links that were not configured.
        jitter_s: upper bound of their extra delay.
        bytes_per_s: their rate.
    """

    def __init__(
        self,
        env: Env,
        *,
        latency_s: float = 0.001,
        jitter_s: float = 0.0,
        bytes_per_s: float = math.inf,
    ) -> None:
        self.env = env
        self.hosts: dict[str, MemTransport] = {}
        self.fabrics: dict[Addr, MemFabric] = {}
        self._default = LinkConfig(latency_s=latency_s, jitter_s=jitter_s, bytes_per_s=bytes_per_s)
        self._links: dict[tuple[str, str], Link] = {}

    def host(self, ip: str) -> MemTransport:
        """The host with this IP address, made when first asked for."""
        ip = str(ipaddress.ip_address(ip))
        if ip not in self.hosts:
            self.hosts[ip] = MemTransport(self, ip)
        return self.hosts[ip]

    def fabric(self, peer: PeerId, ip: str, *, env: Env | None = None) -> MemFabric:
        """A fabric without crypto for `peer`, at the next free port of host `ip`."""
        from p2p.net.memory_fabric import MemFabric

        host = self.host(ip)
        fabric = MemFabric(self, host, peer, env or self.env)
        self.fabrics[fabric.addr] = fabric
        return fabric

    def direction(self, source: str, target: str) -> Link:
        """The link from `source` to `target`."""
        link = self._links.get((source, target))
        if link is None:
            link = self._links[source, target] = Link(self._default, self.env.rng)
        return link

    def link(
        self,
        a: str,
        b: str,
        *,
        latency_s: float | None = None,
        jitter_s: float | None = None,
        bytes_per_s: float | None = None,
        symmetric: bool = True,
    ) -> None:
        """Change how packets travel from `a` to `b`, and back if symmetric; None keeps a value."""
        for link in self._directions(a, b, symmetric=symmetric):
            old = link.config
            link.config = LinkConfig(
                latency_s=old.latency_s if latency_s is None else latency_s,
                jitter_s=old.jitter_s if jitter_s is None else jitter_s,
                bytes_per_s=old.bytes_per_s if bytes_per_s is None else bytes_per_s,
            )

    def partition(self, a: str, b: str, *, symmetric: bool = True) -> None:
        """Hold everything from `a` to `b`, and back if symmetric, until `heal`."""
        for link in self._directions(a, b, symmetric=symmetric):
            link.block()
        self._tell_fabrics()

    def isolate(self, ip: str) -> None:
        """Partition a host from every other host there is now."""
        for other in list(self.hosts):
            if other != ip:
                self.partition(ip, other)

    def split(self, side_a: Iterable[str], side_b: Iterable[str]) -> None:
        """Partition each host of one side from each of the other."""
        others = list(side_b)
        for a in side_a:
            for b in others:
                self.partition(a, b)

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """End partitions: between `a` and `b`, of `a` with anyone, or all."""
        for (source, target), link in self._links.items():
            if (a is None or a in {source, target}) and (b is None or b in {source, target}):
                link.unblock()
        self._tell_fabrics()

    def clog(self, a: str, b: str, *, duration_s: float, symmetric: bool = True) -> None:
        """Hold everything for `duration_s`; then it arrives, late but whole."""
        for link in self._directions(a, b, symmetric=symmetric):
            link.block(trio.current_time() + duration_s)

    def kill(self, ip: str, *, silent: bool = False) -> None:
        """End every connection of a host and stop its listeners, as if its processes died.

        Args:
            ip: the host.
            silent: nobody is told, as when the power fails: the others see only silence.
        """
        self.host(ip).kill(silent=silent)

    def blocked(self, a: str, b: str) -> bool:
        """Whether a partition holds either direction between two hosts."""
        return self.direction(a, b).blocked or self.direction(b, a).blocked

    def _directions(self, a: str, b: str, *, symmetric: bool) -> list[Link]:
        a, b = str(ipaddress.ip_address(a)), str(ipaddress.ip_address(b))
        links = [self.direction(a, b)]
        if symmetric:
            links.append(self.direction(b, a))
        return links

    def _tell_fabrics(self) -> None:
        for fabric in list(self.fabrics.values()):
            fabric.links_changed()


class Listener:
    """A bound port and the tasks of its accepted connections."""

    def __init__(self, accept: Accept, nursery: trio.Nursery) -> None:
        self.accept = accept
        self.nursery = nursery


class MemTransport:
    """The sockets of one simulated host. Satisfies `p2p.net.seam.Transport`."""

    def __init__(self, net: MemNet, ip: str) -> None:
        self.net = net
        self.ip = ip
        self.path: Path = "direct"
        self._listeners: dict[int, Listener] = {}
        self._streams: dict[PipeStream, None] = {}
        self._port_next = PORT_FIRST
        self._ephemeral_next = PORT_EPHEMERAL_FIRST
        self.silent = False
        """Whether it lost power: packets to it are lost."""

    @override
    def __repr__(self) -> str:
        return f"MemTransport({self.ip!r})"

    def take_port(self) -> int:
        """A port of this host that nobody uses."""
        self._port_next += 1
        return self._port_next - 1

    def dials(self, addr: Addr) -> bool:
        """Whether `addr` names a TCP port by IP address, of our own IP version."""
        target = split_mem_addr(addr)
        return target is not None and (":" in target[0]) == (":" in self.ip)

    async def dial(
        self,
        addr: Addr,
        *,
        peer: PeerId | None = None,  # noqa: ARG002 - the handshake above finds out
        reuse_port: bool = False,
    ) -> trio.abc.Stream:
        """Connect after one round trip.

        Raises:
            Unreachable: nobody listens there, no such host, or silence for `CONNECT_S_MAX`.
        """
        target = split_mem_addr(addr)
        if target is None or not self.dials(addr):
            raise Unreachable(f"not an address of this network: {addr}")
        ip, port = target
        out, back = self.net.direction(self.ip, ip), self.net.direction(ip, self.ip)
        with trio.move_on_after(CONNECT_S_MAX):
            await trio.lowlevel.checkpoint()
            await out.wait_due(out.stamp(0))
            host = self.net.hosts.get(ip)
            if host is None or host.silent:
                await trio.sleep_forever()
            assert host is not None
            ours = host.connected(self, port, reuse_port=reuse_port)
            answered = False
            try:
                await back.wait_due(back.stamp(0))
                answered = True
            finally:
                if ours is not None and not answered:
                    ours.reset()  # cancelled: the other side must not keep half a connection
            if ours is None:
                raise Unreachable(f"connection refused: {addr}")
            return ours
        raise Unreachable(f"no answer from {addr} in {CONNECT_S_MAX:.0f} s")

    async def listen(
        self, addr: Addr, accept: Accept, *, task_status: trio.TaskStatus[Addr]
    ) -> None:
        """Accept until cancelled; port 0 takes the next free one.

        Raises:
            UsageError: not an address of this host, or the port is taken.
        """
        ip, port = split_mem_addr(addr) or ("", 0)
        if ip not in ANY_IPS and ip != self.ip:
            raise UsageError(f"cannot listen on {addr}: this host is {self.ip}")
        if port in self._listeners:
            raise UsageError(f"cannot listen on {addr}: the port is in use")
        port = port or self.take_port()
        async with trio.open_nursery() as nursery:
            self.silent = False
            listener = self._listeners[port] = Listener(accept, nursery)
            try:
                task_status.started(mem_addr(self.ip, port))
                await trio.sleep_forever()
            finally:
                if self._listeners.get(port) is listener:
                    del self._listeners[port]

    def kill(self, *, silent: bool) -> None:
        """See `MemNet.kill`."""
        self._listeners.clear()
        self.silent = silent
        streams, self._streams = self._streams, {}
        for stream in streams:
            if silent:
                stream.vanish("the host lost power")
            else:
                stream.fail("the host was killed")

    def connected(self, dialler: MemTransport, port: int, *, reuse_port: bool) -> PipeStream | None:
        """A SYN arrived: accept it and return the dialler's end, or None when nobody listens."""
        listener = self._listeners.get(port)
        if listener is None:
            return None
        theirs, ours = pipe_streams(
            self.net.direction(dialler.ip, self.ip), self.net.direction(self.ip, dialler.ip)
        )
        self.track(ours)
        dialler.track(theirs)
        remote = mem_addr(dialler.ip, dialler.source_port(reuse_port=reuse_port))
        listener.nursery.start_soon(listener.accept, ours, remote)
        return theirs

    def source_port(self, *, reuse_port: bool) -> int:
        """The port a dial from here is seen from."""
        if reuse_port and self._listeners:
            return min(self._listeners)
        port = self._ephemeral_next
        self._ephemeral_next = port + 1 if port < 65_535 else PORT_EPHEMERAL_FIRST
        return port

    def track(self, stream: PipeStream) -> None:
        """Keep a stream in mind until it closes, so that `kill` finds it."""
        self._streams[stream] = None
        stream.on_closed = self._forget

    def _forget(self, stream: PipeStream) -> None:
        self._streams.pop(stream, None)
