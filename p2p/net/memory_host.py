"""Hosts of the simulated network: their listeners, and TCP's opening handshake.

Theory of operation: a connection opens by packets, because NATs and punching live from them. Each
host keeps a `Half` for every pair of endpoints it takes part in, as a kernel does: SYN_SENT when it
dials, SYN_RECEIVED when a SYN came, ESTABLISHED once its own SYN was acknowledged. From there on
bytes flow through pipes (`p2p.net.memory_link`), and packets play no part any more.

What follows from the table of halves, as in the kernel:

- A SYN for a half in SYN_SENT is a *simultaneous open* (RFC 9293 s.3.5): both sides dialled, one
  connection results, and neither listener hears of it.
- A SYN for no half is taken by the port's listener, even if this host is about to dial the same
  endpoint. Its own dial then finds the pair of endpoints in use and leaves from another port, which
  the other side's NAT may well drop: who punches must not count on being the dialler.
- A dial from the listen port is seen at the port that the NAT has mapped for the listener.

A lost SYN or SYN-ACK is repeated after 1, 2, 4, ... seconds by the dialler (RFC 6298 s.2).
TIME_WAIT, and the challenge by which a kernel answers the SYN of a peer that came back, are left
out.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

import trio
from typing_extensions import override

from p2p.errors import Unreachable, UsageError
from p2p.net.memnat import Endpoint
from p2p.net.memory_link import PipeStream, pipe_streams

if TYPE_CHECKING:
    from p2p.identity import PeerId
    from p2p.net.memory import MemNet
    from p2p.net.memory_route import Realm
    from p2p.net.memory_udp import MemUdp
    from p2p.net.seam import Accept, Addr, Path

CONNECT_S_MAX: Final = 20.0
"""A dial into silence gives up after this; kernels take longer, callers are faster."""

SYN_RTO_S: Final = 1.0
"""First repetition of a SYN; each further one waits twice as long. Source: RFC 6298 s.2.1."""

PORT_FIRST: Final = 15_001
"""First port that a listener on port 0 gets; each host counts on from here."""

PORT_EPHEMERAL_FIRST: Final = 49_152
"""First port a dialler is seen from. Source: RFC 6335 s.6."""

PORT_LAST: Final = 65_535

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
    return (str(ip), port) if port <= PORT_LAST else None


class Kind(Enum):
    """Packets of the handshake. Source: RFC 9293 s.3.5."""

    SYN = "syn"
    SYN_ACK = "syn-ack"
    ACK = "ack"
    RST = "rst"


class State(Enum):
    """States of a half that matter here. Source: RFC 9293 s.3.3.2."""

    SYN_SENT = "syn-sent"
    SYN_RECEIVED = "syn-received"
    ESTABLISHED = "established"
    CLOSED = "closed"


@dataclass(frozen=True)
class Packet:
    """One packet of a handshake, as its sender wrote it."""

    kind: Kind
    source: Endpoint
    target: Endpoint
    half: Half | None
    """Who sent it; None for a reset that speaks for nobody."""


class Half:
    """One host's end of a connection.

    Args:
        host: whose it is.
        local: our endpoint.
        remote: the other end as it looks from here.
        listener: who accepts it; None when this host dialled.
    """

    def __init__(
        self, host: MemTransport, local: Endpoint, remote: Endpoint, listener: Listener | None
    ) -> None:
        self.host = host
        self.local = local
        self.remote = remote
        self.listener = listener
        self.state = State.SYN_SENT if listener is None else State.SYN_RECEIVED
        self.other: Half | None = None
        self.stream: PipeStream | None = None
        self.settled = trio.Event()
        """Set when a dial succeeded or was refused."""
        self.why = ""
        self.stranded = False
        """Whether our address left us: nothing we send leaves, nothing reaches us."""

    @property
    def key(self) -> tuple[int, Endpoint]:
        """What packets are sorted by."""
        return self.local.port, self.remote

    def cut(self) -> None:
        """From now on nothing arrives in either direction, and nobody is told."""
        for half in (self, self.other):
            if half is not None and half.stream is not None:
                half.stream.outgoing.cut()


class Listener:
    """A bound port and the tasks of its accepted connections."""

    def __init__(self, accept: Accept, nursery: trio.Nursery, ip: str) -> None:
        self.accept = accept
        self.nursery = nursery
        self.ip = ip
        """The address it is bound to, or an unspecified one: the latter survives a move."""


class MemTransport:
    """The sockets of one simulated host. Satisfies `p2p.net.seam.Transport`.

    Args:
        net: the network it is in.
        name: unique in the network; links are named by it.
        ip: its address.
        realm: where that address is valid.
    """

    def __init__(self, net: MemNet, name: str, ip: str, realm: Realm) -> None:
        self.net = net
        self.name = name
        self.ip = ip
        self.realm = realm
        self.path: Path = "direct"
        self.udp: dict[int, MemUdp] = {}
        self._listeners: dict[int, Listener] = {}
        self._halves: dict[tuple[int, Endpoint], Half] = {}
        self._port_next = PORT_FIRST
        self._ephemeral_next = PORT_EPHEMERAL_FIRST
        self.silent = False
        """Whether it lost power: packets to it are lost."""

    @override
    def __repr__(self) -> str:
        return f"MemTransport({self.name!r})"

    def take_port(self) -> int:
        """A port of this host that nobody uses."""
        self._port_next += 1
        return self._port_next - 1

    def source_addresses(self) -> list[str]:
        """Addresses of its interfaces, as `p2p.net.tcp.source_addresses` finds real ones."""
        return [self.ip]

    @property
    def connections(self) -> int:
        """Connections it takes part in, those that are only begun included."""
        return len(self._halves)

    # --- Transport ----------------------------------------------------------------------------

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
        """Connect after one round trip, or by simultaneous open.

        Args:
            addr: where.
            peer: not needed here.
            reuse_port: leave from the port we listen at; from another one if that pair of
                endpoints is in use.

        Raises:
            Unreachable: nobody listens there, or silence for `CONNECT_S_MAX`.
        """
        target = split_mem_addr(addr)
        if target is None or not self.dials(addr):
            raise Unreachable(f"not an address of this network: {addr}")
        half = self._new_half(Endpoint(*target), reuse_port=reuse_port)
        taken = False
        try:
            await trio.lowlevel.checkpoint()
            with trio.move_on_after(CONNECT_S_MAX):
                await self._knock(half)
            taken = half.state is State.ESTABLISHED
        finally:
            if not taken:
                self._abandon(half)
        if half.stream is None or not taken:
            why = half.why or f"no answer in {CONNECT_S_MAX:.0f} s"
            raise Unreachable(f"{addr}: {why}")
        return half.stream

    async def _knock(self, half: Half) -> None:
        """Send SYNs until the half is settled."""
        wait_s = SYN_RTO_S
        while not half.settled.is_set():
            if half.state is State.SYN_SENT:
                self._send(Kind.SYN, half)
            else:  # a simultaneous open whose SYN-ACK may have been lost
                self._send(Kind.SYN_ACK, half)
            with trio.move_on_after(wait_s):
                await half.settled.wait()
            wait_s *= 2

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
            listener = self._listeners[port] = Listener(accept, nursery, ip)
            try:
                task_status.started(mem_addr(self.ip, port))
                await trio.sleep_forever()
            finally:
                if self._listeners.get(port) is listener:
                    del self._listeners[port]

    # --- What happens to a host ---------------------------------------------------------------

    def kill(self, *, silent: bool) -> None:
        """See `MemNet.kill`."""
        why = "the host lost power" if silent else "the host was killed"
        self._listeners.clear()
        halves = list(self._halves.values())
        self._halves.clear()
        for half in halves:
            if half.stream is not None and silent:
                half.stream.vanish(why)
            elif half.stream is not None:
                half.stream.fail(why)
            self._settle(half, State.CLOSED, why)
        self.silent = silent

    def move(self, ip: str, name: str, realm: Realm) -> None:
        """See `MemNet.readdress`: every connection goes silent at both ends."""
        for half in self._halves.values():
            half.stranded = True
            half.cut()
        self._halves.clear()
        self._listeners = {
            port: listener for port, listener in self._listeners.items() if listener.ip in ANY_IPS
        }
        self.ip, self.name, self.realm = ip, name, realm

    # --- Packets ------------------------------------------------------------------------------

    def arrived(self, packet: Packet, source: Endpoint, target: Endpoint) -> None:
        """A packet reached this host; its endpoints as they look from here."""
        half = self._halves.get((target.port, source))
        if packet.kind is Kind.SYN:
            self._on_syn(packet, half, source, target)
        elif packet.kind is Kind.RST:
            if half is not None and packet.half in {None, half.other}:
                self._on_reset(half)
        elif half is None or packet.half is None:
            self._refuse(source, target)
        elif packet.kind is Kind.SYN_ACK:
            self._on_syn_ack(half, packet.half)
        elif half.state is State.SYN_RECEIVED and half.other is packet.half:
            self._establish(half)

    def _on_syn(
        self, packet: Packet, half: Half | None, source: Endpoint, target: Endpoint
    ) -> None:
        sender = packet.half
        assert sender is not None, "a SYN comes from somebody"
        if half is not None and self._is_stale(half, sender):
            if half.stream is not None:
                half.stream.fail("the other side begins anew")
            self._forget(half)
            self._settle(half, State.CLOSED, "the other side begins anew")
            half = None
        if half is not None:
            # Of a live half only this one repeats its SYN: a simultaneous open, or a lost answer.
            if half.state is State.SYN_SENT:
                half.state, half.other = State.SYN_RECEIVED, sender
            self._send(Kind.ACK if half.state is State.ESTABLISHED else Kind.SYN_ACK, half)
            return
        listener = self._listeners.get(target.port)
        if listener is None or listener.ip not in {*ANY_IPS, target.ip}:
            self._refuse(source, target)
            return
        half = Half(self, target, source, listener)
        half.other = sender
        self._halves[half.key] = half
        self._send(Kind.SYN_ACK, half)

    @staticmethod
    def _is_stale(half: Half, sender: Half) -> bool:
        """Whether a SYN of `sender` shows that `half` is the ghost of an earlier connection."""
        if half.state is State.SYN_SENT:
            return False
        return half.other is not sender

    def _on_syn_ack(self, half: Half, sender: Half) -> None:
        # Either side must answer the SYN of the other, as the sequence numbers prove.
        if half.other not in {None, sender} or sender.other is not half:
            self._refuse(half.remote, half.local)
            return
        half.other = sender
        if half.state is not State.ESTABLISHED:
            self._establish(half)
        self._send(Kind.ACK, half)

    def _on_reset(self, half: Half) -> None:
        if half.stream is not None and half.state is State.ESTABLISHED:
            half.stream.fail("the other side reset the connection")
        self._forget(half)
        self._settle(half, State.CLOSED, "connection refused")

    def _establish(self, half: Half) -> None:
        _join(half)
        assert half.stream is not None
        half.stream.on_closed = lambda _: self._forget(half)
        self._settle(half, State.ESTABLISHED, "")
        listener = half.listener
        if listener is not None:
            remote = mem_addr(*half.remote)
            listener.nursery.start_soon(listener.accept, half.stream, remote)

    def _settle(self, half: Half, state: State, why: str) -> None:
        half.state, half.why = state, why
        half.settled.set()

    def _abandon(self, half: Half) -> None:
        """A dial was cancelled or failed: the other side must not keep half a connection."""
        if half.state is not State.CLOSED and half.other is not None:
            self._send(Kind.RST, half)
        if half.stream is not None:
            half.stream.fail("the dial was given up")
        self._forget(half)
        half.state = State.CLOSED

    def _forget(self, half: Half) -> None:
        if self._halves.get(half.key) is half:
            del self._halves[half.key]

    def _refuse(self, source: Endpoint, target: Endpoint) -> None:
        self.net.transmit(self, Packet(Kind.RST, target, source, None))

    def _send(self, kind: Kind, half: Half) -> None:
        if not half.stranded:
            self.net.transmit(self, Packet(kind, half.local, half.remote, half))

    # --- Ports --------------------------------------------------------------------------------

    def _new_half(self, remote: Endpoint, *, reuse_port: bool) -> Half:
        """A half in SYN_SENT at a pair of endpoints that nobody uses."""
        ports = [min(self._listeners)] if reuse_port and self._listeners else []
        local = next((port for port in ports if (port, remote) not in self._halves), None)
        while local is None:
            port = self._ephemeral_next
            self._ephemeral_next = port + 1 if port < PORT_LAST else PORT_EPHEMERAL_FIRST
            local = None if (port, remote) in self._halves else port
        half = Half(self, Endpoint(self.ip, local), remote, None)
        self._halves[half.key] = half
        return half


def _join(half: Half) -> None:
    """Give two halves that found each other the two ends of one stream."""
    other = half.other
    if half.stream is None and other is not None:
        net = half.host.net
        half.stream, other.stream = pipe_streams(
            net.direction(half.host.name, other.host.name),
            net.direction(other.host.name, half.host.name),
        )
        for end in (half, other):
            assert end.stream is not None
            end.stream.local_port = end.local.port
            net.supervise(end)
