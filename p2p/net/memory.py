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

Hosts may stand behind NATs and firewalls (`p2p.net.memnat` has the models), which may nest:

    home = net.nat("203.0.113.7", PORT_RESTRICTED)
    laptop = net.host("192.168.1.2", home)               # seen as 203.0.113.7
    office = net.nat(None, FIREWALL)
    desk = net.host("2001:db8:1::5", office)             # keeps its address, lets nobody in

A host behind a NAT is called by its address as long as no two have the same, else by
`ADDRESS@NAT` (`MemTransport.name`). Links are between hosts, whatever NATs lie between them.
"""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING

import trio

from p2p.errors import UsageError
from p2p.net.memnat import PORT_RESTRICTED, Endpoint, Nat
from p2p.net.memory_host import (
    CONNECT_S_MAX,
    Half,
    Kind,
    MemTransport,
    Packet,
    mem_addr,
    split_mem_addr,
)
from p2p.net.memory_link import Link, LinkConfig
from p2p.net.memory_route import Arrival, Filtered, Gateway, Leg, Realm, climb, descend, foresee

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.net.memnat import NatConfig
    from p2p.net.memory_fabric import MemFabric
    from p2p.net.memory_udp import MemUdp
    from p2p.net.seam import Addr

__all__ = ["CONNECT_S_MAX", "Gateway", "MemNet", "MemTransport", "mem_addr", "split_mem_addr"]


class MemNet:
    """Hosts, links between them, and what goes wrong.

    Args:
        env: its generator draws the jitter; its clock must be trio's.
        latency_s: one-way delay of links that were not configured.
        jitter_s: upper bound of their extra delay.
        bytes_per_s: their rate.
        loss: probability that a packet on them is lost.
    """

    def __init__(
        self,
        env: Env,
        *,
        latency_s: float = 0.001,
        jitter_s: float = 0.0,
        bytes_per_s: float = math.inf,
        loss: float = 0.0,
    ) -> None:
        self.env = env
        self.internet = Realm()
        self.hosts: dict[str, MemTransport] = {}
        """By name, in the order in which they were made."""
        self.fabrics: dict[Addr, MemFabric] = {}
        self._default = LinkConfig(
            latency_s=latency_s, jitter_s=jitter_s, bytes_per_s=bytes_per_s, loss=loss
        )
        self._links: dict[tuple[str, str], Link] = {}

    # --- Who is there -------------------------------------------------------------------------

    def host(self, ip: str, nat: Gateway | None = None) -> MemTransport:
        """The host with this IP address, made when first asked for.

        Args:
            ip: its address.
            nat: behind what it stands; None finds it wherever it is, or makes it in the internet.
        """
        if nat is None:
            name = self._name(ip)
            if name in self.hosts:
                return self.hosts[name]
        ip = str(ipaddress.ip_address(ip))
        realm = self.internet if nat is None else nat.inside
        held = realm.places.get(ip)
        if held is None:
            name = ip if nat is None else f"{ip}@{nat.name}"
            held = self.hosts[name] = MemTransport(self, name, ip, realm)
            self._attach(held)
        if isinstance(held, Gateway):
            raise UsageError(f"{ip} is the address of {held.name}, no host")
        return held

    def nat(
        self,
        ip: str | None,
        config: NatConfig = PORT_RESTRICTED,
        *,
        behind: Gateway | None = None,
        name: str | None = None,
    ) -> Gateway:
        """A NAT or firewall; hosts are put behind it by `host`.

        Args:
            ip: its external address; None for a firewall.
            config: how it behaves.
            behind: the NAT that it stands behind itself; None: it is in the internet.
            name: for messages; the default is its address.
        """
        if ip is not None:
            ip = str(ipaddress.ip_address(ip))
        outer = self.internet if behind is None else behind.inside
        if ip in outer.places:
            raise UsageError(f"{ip} is taken")
        return Gateway(name or ip or "firewall", Nat(config, ip, self.env.rng), outer)

    def fabric(self, peer: PeerId, ip: str, *, env: Env | None = None) -> MemFabric:
        """A fabric without crypto for `peer`, at the next free port of host `ip`.

        Raises:
            UsageError: the host is behind a NAT; only the wire, over its transport, gets through.
        """
        from p2p.net.memory_fabric import MemFabric

        host = self.host(ip)
        if host.realm is not self.internet:
            raise UsageError(f"{host.name} is behind a NAT: use the wire over its transport")
        fabric = MemFabric(self, host, peer, env or self.env)
        self.fabrics[fabric.addr] = fabric
        return fabric

    def _name(self, place: str) -> str:
        """The name of the host called `place`: a name, or an address that only one has."""
        if place in self.hosts:
            return place
        ip = str(ipaddress.ip_address(place))
        if ip in self.hosts:
            return ip
        named = [name for name, host in self.hosts.items() if host.ip == ip]
        if len(named) > 1:
            raise UsageError(f"{ip} may be any of {', '.join(named)}: say which")
        return named[0] if named else ip

    def _attach(self, host: MemTransport) -> None:
        gateway = host.realm.gateway
        if gateway is None:
            host.realm.places[host.ip] = host
        else:
            gateway.admit(host.ip, host)

    def _detach(self, host: MemTransport) -> None:
        gateway = host.realm.gateway
        if gateway is None:
            del host.realm.places[host.ip]
        else:
            gateway.dismiss(host.ip)

    # --- How links behave ---------------------------------------------------------------------

    def direction(self, source: str, target: str) -> Link:
        """The link from the host named `source` to the one named `target`."""
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
        loss: float | None = None,
        duplicate: float | None = None,
        symmetric: bool = True,
    ) -> None:
        """Change how packets travel from `a` to `b`, and back if symmetric; None keeps a value."""
        for link in self._directions(a, b, symmetric=symmetric):
            old = link.config
            link.config = LinkConfig(
                latency_s=old.latency_s if latency_s is None else latency_s,
                jitter_s=old.jitter_s if jitter_s is None else jitter_s,
                bytes_per_s=old.bytes_per_s if bytes_per_s is None else bytes_per_s,
                loss=old.loss if loss is None else loss,
                duplicate=old.duplicate if duplicate is None else duplicate,
            )

    def partition(self, a: str, b: str, *, symmetric: bool = True) -> None:
        """Hold everything from `a` to `b`, and back if symmetric, until `heal`."""
        for link in self._directions(a, b, symmetric=symmetric):
            link.block()
        self._tell_fabrics()

    def isolate(self, ip: str) -> None:
        """Partition a host from every other host there is now."""
        name = self._name(ip)
        for other in list(self.hosts):
            if other != name:
                self.partition(name, other)

    def split(self, side_a: Iterable[str], side_b: Iterable[str]) -> None:
        """Partition each host of one side from each of the other."""
        others = list(side_b)
        for a in side_a:
            for b in others:
                self.partition(a, b)

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """End partitions: between `a` and `b`, of `a` with anyone, or all."""
        a = None if a is None else self._name(a)
        b = None if b is None else self._name(b)
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

    def readdress(self, ip: str, new_ip: str, nat: Gateway | None = None) -> MemTransport:
        """A host changes its address, or its network: its connections go silent at both ends.

        Listeners at an unspecified address (`0.0.0.0`, `::`) go along, others are gone. Its links
        begin anew.

        Args:
            ip: the host.
            new_ip: its address from now on.
            nat: behind what it stands from now on; None: in the internet.

        Raises:
            UsageError: somebody has that address already, or a `MemFabric` lives there.
        """
        host = self.host(ip)
        new_ip = str(ipaddress.ip_address(new_ip))
        realm = self.internet if nat is None else nat.inside
        if new_ip in realm.places:
            raise UsageError(f"{new_ip} is taken")
        if any(fabric.ip == host.name for fabric in self.fabrics.values()):
            raise UsageError(f"a MemFabric lives at {host.name}: only transports move")
        self._detach(host)
        del self.hosts[host.name]
        host.move(new_ip, new_ip if nat is None else f"{new_ip}@{nat.name}", realm)
        self.hosts[host.name] = host
        self._attach(host)
        return host

    def renumber(self, gateway: Gateway, ip: str) -> None:
        """A NAT gets another external address and forgets its mappings; hosts notice by silence."""
        ip = str(ipaddress.ip_address(ip))
        if ip in gateway.outer.places:
            raise UsageError(f"{ip} is taken")
        old = gateway.nat.ip
        gateway.nat.renumber(ip)
        assert old is not None, "else renumber would have refused"
        gateway.outer.places[ip] = gateway.outer.places.pop(old)

    def blocked(self, a: str, b: str) -> bool:
        """Whether a partition holds either direction between two hosts."""
        return any(link.blocked for link in self._directions(a, b, symmetric=True))

    def _directions(self, a: str, b: str, *, symmetric: bool) -> list[Link]:
        a, b = self._name(a), self._name(b)
        links = [self.direction(a, b)]
        if symmetric:
            links.append(self.direction(b, a))
        return links

    def _tell_fabrics(self) -> None:
        for fabric in list(self.fabrics.values()):
            fabric.links_changed()

    # --- What hosts send ----------------------------------------------------------------------

    def transmit(self, sender: MemTransport, packet: Packet) -> None:
        """Send a packet of a handshake; it arrives, or nobody hears of it."""
        now = trio.current_time()
        established = packet.kind is Kind.ACK
        leg = climb(sender.realm, "tcp", packet.source, packet.target, now, established=established)
        if sender.silent or leg is None:
            return
        ahead = foresee(leg, "tcp")
        there = leg.target.ip if ahead is None else ahead.name
        link = self.direction(sender.name, there)
        if packet.kind is Kind.ACK:
            stamp = link.stamp(0)  # what follows it would stand in for it
        elif link.loses():
            return
        else:
            stamp = link.stamp_once(0)
        back = self.direction(there, sender.name)
        link.carry(stamp, lambda: self._arrive(packet, leg, back), repeated=True)

    def _arrive(self, packet: Packet, leg: Leg, back: Link) -> None:
        """A packet has come to the NATs before its target."""
        arrival = descend(leg, "tcp", trio.current_time())
        if isinstance(arrival, Arrival):
            if not arrival.host.silent:
                arrival.host.arrived(packet, arrival.source, arrival.target)
        elif isinstance(arrival, Filtered) and arrival.refused and packet.kind is Kind.SYN:
            reset = Packet(Kind.RST, packet.target, packet.source, None)
            home = Leg(leg.realm, leg.target, leg.source)
            back.carry(back.stamp_once(0), lambda: self._arrive(reset, home, back), repeated=True)

    def send_datagram(
        self, sender: MemTransport, source: Endpoint, target: Endpoint, data: bytes
    ) -> None:
        """Send a datagram; it arrives once, twice or never."""
        leg = climb(sender.realm, "udp", source, target, trio.current_time())
        if sender.silent or leg is None:
            return
        ahead = foresee(leg, "udp")
        link = self.direction(sender.name, leg.target.ip if ahead is None else ahead.name)
        for _ in range(link.copies()):
            stamp = link.stamp_once(len(data))
            link.carry(stamp, lambda: self._arrive_datagram(leg, data), repeated=False)

    @staticmethod
    def _arrive_datagram(leg: Leg, data: bytes) -> None:
        arrival = descend(leg, "udp", trio.current_time())
        if isinstance(arrival, Arrival) and not arrival.host.silent:
            socket: MemUdp | None = arrival.host.udp.get(arrival.target.port)
            if socket is not None:
                socket.arrived(data, arrival.source)

    def supervise(self, half: Half) -> None:
        """Let the NATs on the way see what this end sends."""
        other = half.other
        assert other is not None
        assert half.stream is not None
        if half.host.realm is not self.internet or other.host.realm is not self.internet:
            half.stream.outgoing.before_send = lambda: self._pass_nats(half, other)

    @staticmethod
    def _pass_nats(half: Half, other: Half) -> None:
        """Refresh the mappings on the way; cut the connection where they are gone."""
        now = trio.current_time()
        leg = climb(half.host.realm, "tcp", half.local, half.remote, now, established=True)
        arrival = None if leg is None else descend(leg, "tcp", now, established=True)
        wanted = Arrival(other.host, other.remote, other.local)
        if half.stranded or arrival != wanted:
            half.cut()
