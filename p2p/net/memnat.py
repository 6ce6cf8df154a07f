"""NAT models of the simulated network: what a home router or a firewall does to packets.

Theory of operation: a NAT is two decisions. *Mapping*: does a new destination get the same external
port as the last one? *Filtering*: which outsiders may answer through a port that is mapped? Each
depends on nothing of the remote endpoint, on its address, or on its address and port, which gives
nine kinds; the names of folklore (full cone ... symmetric) are points in that table. A firewall is
filtering without mapping: addresses stay what they are.

Nothing here knows links, hosts or a clock: `Nat.outbound` and `Nat.inbound` are called once for
each packet, with the time, and say what it looks like on the other side. `None` means that the
packet ends here. Routing between NATs is `p2p.net.memory_route`'s.

A mapping and each of its permissions live until their time has passed without a packet in either
direction. That is more generous than a router that counts outbound packets alone (RFC 4787 REQ-6
leaves it open), so a test of time-outs must be silent both ways.

Source: RFC 4787 (UDP; the terms), RFC 5382 (TCP), RFC 7857 s.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import random

TCP_IDLE_S: Final = 7_440.0
"""An established TCP connection lives this long in silence. Source: RFC 5382 REQ-5."""

TCP_OPENING_S: Final = 240.0
"""One that was only begun. Source: RFC 5382 REQ-5, transitory connections."""

UDP_IDLE_S: Final = 300.0
"""A UDP mapping in silence. Source: RFC 4787 REQ-5, the recommended value."""

PORT_DRAWN_FIRST: Final = 1_024
"""Ports that are drawn start here. Source: RFC 4787 REQ-3, never a well-known one for another."""

PORT_LAST: Final = 65_535

DRAWS_MAX: Final = 64
"""Ports tried for a new mapping before its packet is dropped: the table is as good as full."""

CONTACTS_MAX: Final = 4_096
"""Outsiders remembered by a mapping; the oldest is forgotten first. Guess, above any router."""

FLOWS_KEPT_MAX: Final = 16_384
"""Pairs of endpoints kept before the dead ones are swept. Guess: sweeping is rare."""


class Endpoint(NamedTuple):
    """One end of a packet."""

    ip: str
    port: int


Protocol: TypeAlias = Literal["tcp", "udp"]
RemoteKey: TypeAlias = tuple[str, int]
"""The part of a remote endpoint that a decision depends on; the rest is left empty."""


class Dependence(Enum):
    """What a NAT looks at in the remote endpoint. Source: RFC 4787 s.4.1, s.5."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS = "address-dependent"
    ADDRESS_AND_PORT = "address- and port-dependent"

    def key(self, remote: Endpoint) -> RemoteKey:
        """What of `remote` makes a difference."""
        if self is Dependence.ENDPOINT_INDEPENDENT:
            return "", 0
        return (remote.ip, 0) if self is Dependence.ADDRESS else (remote.ip, remote.port)


@dataclass(frozen=True, kw_only=True)
class NatConfig:
    """How a NAT or a firewall behaves."""

    mapping: Dependence = Dependence.ENDPOINT_INDEPENDENT
    """Whether another destination gets another external port."""
    filtering: Dependence = Dependence.ADDRESS_AND_PORT
    """Which outsiders may send to a mapped port."""
    translates: bool = True
    """False: a firewall. Addresses stay, `mapping` and `port_preserving` mean nothing."""
    port_preserving: bool = True
    """Whether the external port is the internal one if that is free."""
    hairpin: bool = True
    """Whether hosts inside reach each other by the external address (RFC 4787 REQ-9)."""
    refuses: bool = False
    """Whether a filtered SYN is answered by a reset; most drop it in silence (RFC 5382 REQ-4)."""
    tcp_idle_s: float = TCP_IDLE_S
    """Silence after which an established connection is forgotten."""
    tcp_opening_s: float = TCP_OPENING_S
    """The same before it was established."""
    udp_idle_s: float = UDP_IDLE_S
    """The same for UDP."""

    def __post_init__(self) -> None:
        if min(self.tcp_idle_s, self.tcp_opening_s, self.udp_idle_s) <= 0:
            raise ValueError("the times of a NAT must be positive")

    def lifetime_s(self, protocol: Protocol, *, established: bool) -> float:
        """How long one packet keeps a mapping and its permission alive."""
        if protocol == "udp":
            return self.udp_idle_s
        return self.tcp_idle_s if established else self.tcp_opening_s


OPEN: Final = NatConfig(translates=False, filtering=Dependence.ENDPOINT_INDEPENDENT)
"""No NAT and no firewall."""
FULL_CONE: Final = NatConfig(filtering=Dependence.ENDPOINT_INDEPENDENT)
"""Once a port is mapped, anybody may send to it."""
RESTRICTED: Final = NatConfig(filtering=Dependence.ADDRESS)
"""Addresses that were sent to may answer, from any port."""
PORT_RESTRICTED: Final = NatConfig()
"""Exactly the endpoints that were sent to may answer: the usual home router, and Linux."""
SYMMETRIC: Final = NatConfig(mapping=Dependence.ADDRESS_AND_PORT, port_preserving=False)
"""Another port for each destination, and only that destination may answer: mobile carriers."""
FIREWALL: Final = NatConfig(translates=False)
"""Stateful, without translation: the usual IPv6 router."""


@dataclass
class _Mapping:
    """An internal endpoint, the port it is seen at, and who may send to it."""

    internal: Endpoint
    port: int
    static: bool = False
    """Made by `forward`: for ever, and for everybody."""
    expires_s: float = 0.0
    contacts: dict[RemoteKey, float] = field(default_factory=dict)
    """Part of a remote endpoint that matters -> when its permission ends."""

    def alive(self, now: float) -> bool:
        return self.static or now < self.expires_s

    def admits(self, key: RemoteKey, now: float) -> bool:
        return self.static or now < self.contacts.get(key, now)

    def used(self, key: RemoteKey, until_s: float) -> None:
        if self.static:
            return
        self.expires_s = max(self.expires_s, until_s)
        until_s = max(until_s, self.contacts.pop(key, until_s))
        self.contacts[key] = until_s  # the newest last, so that the oldest is forgotten first
        if len(self.contacts) > CONTACTS_MAX:
            del self.contacts[next(iter(self.contacts))]


class Nat:
    """The tables of one NAT or firewall.

    *Invariant*: an external endpoint belongs to one living mapping.

    Args:
        config: how it behaves.
        ip: its external address; a firewall has none.
        rng: draws ports that are not preserved.
    """

    def __init__(self, config: NatConfig, ip: str | None, rng: random.Random) -> None:
        if config.translates == (ip is None):
            raise ValueError("a NAT needs an external address, a firewall must not have one")
        self.config = config
        self.ip = ip
        self._rng = rng
        self._sessions: dict[tuple[Protocol, Endpoint, RemoteKey], _Mapping] = {}
        self._flows: dict[tuple[Protocol, Endpoint, Endpoint], _Mapping] = {}
        self._external: dict[tuple[Protocol, Endpoint], _Mapping] = {}
        self._forwarded: dict[tuple[Protocol, Endpoint], _Mapping] = {}

    def forget(self) -> None:
        """Lose every mapping, as a router that restarts does; forwarded ports stay."""
        self._sessions.clear()
        self._flows.clear()
        self._external = {at: mapping for at, mapping in self._external.items() if mapping.static}

    def renumber(self, ip: str) -> None:
        """Get another external address, as after a new call to the provider; all mappings end."""
        if self.ip is None:
            raise ValueError("a firewall has no address")
        self.forget()
        old, self.ip = self.ip, ip
        for protocol, at in list(self._external):
            assert at.ip == old
            self._external[protocol, Endpoint(ip, at.port)] = self._external.pop((protocol, at))

    def forward(self, port: int, internal: Endpoint, protocol: Protocol = "tcp") -> None:
        """Map `port` to `internal` for everybody, as NAT-PMP or UPnP does.

        Raises:
            ValueError: the port is forwarded to somebody else, or this is a firewall.
        """
        if self.ip is None:
            raise ValueError("a firewall forwards no ports")
        at = protocol, Endpoint(self.ip, port)
        held = self._external.get(at)
        if held is not None and held.static and held.internal != internal:
            raise ValueError(f"port {port} is forwarded to {held.internal}")
        self._external[at] = self._forwarded[protocol, internal] = _Mapping(internal, port, True)

    def unforward(self, port: int, protocol: Protocol = "tcp") -> None:
        """End what `forward` began."""
        mapping = self._external.get((protocol, Endpoint(self.ip or "", port)))
        if mapping is not None and mapping.static:
            del self._external[protocol, Endpoint(self.ip or "", port)]
            del self._forwarded[protocol, mapping.internal]

    def outbound(
        self,
        protocol: Protocol,
        source: Endpoint,
        target: Endpoint,
        now: float,
        *,
        established: bool = False,
    ) -> Endpoint | None:
        """A packet from inside: where it seems to come from, None if no port is free."""
        mapping = self._mapping(protocol, source, target, now)
        if mapping is None:
            return None
        until_s = now + self.config.lifetime_s(protocol, established=established)
        mapping.used(self.config.filtering.key(target), until_s)
        return Endpoint(self.ip or source.ip, mapping.port)

    def inbound(
        self,
        protocol: Protocol,
        source: Endpoint,
        target: Endpoint,
        now: float,
        *,
        established: bool = False,
    ) -> Endpoint | None:
        """A packet from outside: where inside it goes, None if it is filtered."""
        config = self.config
        if not config.translates and config.filtering is Dependence.ENDPOINT_INDEPENDENT:
            return target
        mapping = self._external.get((protocol, target))
        key = config.filtering.key(source)
        if mapping is None or not mapping.alive(now) or not mapping.admits(key, now):
            return None
        mapping.used(key, now + config.lifetime_s(protocol, established=established))
        # The answer leaves from the port that this came to, even where mapping depends on more.
        flow = protocol, mapping.internal, source
        held = self._flows.get(flow)
        if held is None or not held.alive(now):
            self._flows[flow] = mapping
        return mapping.internal

    def holder(self, protocol: Protocol, target: Endpoint) -> Endpoint | None:
        """Who is mapped at `target`, whether or not anybody may send there now."""
        if not self.config.translates:
            return target
        mapping = self._external.get((protocol, target))
        return None if mapping is None else mapping.internal

    @property
    def _depends(self) -> Dependence:
        return self.config.mapping if self.config.translates else Dependence.ENDPOINT_INDEPENDENT

    def _mapping(
        self, protocol: Protocol, source: Endpoint, target: Endpoint, now: float
    ) -> _Mapping | None:
        forwarded = self._forwarded.get((protocol, source))
        if forwarded is not None:
            return forwarded
        # A pair of endpoints keeps the port that it began with, whoever began.
        flow = protocol, source, target
        mapping = self._flows.get(flow)
        if mapping is not None and mapping.alive(now):
            return mapping
        self._forget_dead(now)
        session = protocol, source, self._depends.key(target)
        mapping = self._sessions.get(session)
        if mapping is None or not mapping.alive(now):
            port = self._free_port(protocol, source, now)
            if port is None:
                return None
            mapping = self._sessions[session] = _Mapping(source, port)
            self._external[protocol, Endpoint(self.ip or source.ip, port)] = mapping
        self._flows[flow] = mapping
        return mapping

    def _free_port(self, protocol: Protocol, source: Endpoint, now: float) -> int | None:
        if not self.config.translates:
            return source.port
        if self.config.port_preserving and self._is_free(protocol, source.port, now):
            return source.port
        for _ in range(DRAWS_MAX):
            port = self._rng.randint(PORT_DRAWN_FIRST, PORT_LAST)
            if self._is_free(protocol, port, now):
                return port
        return None

    def _is_free(self, protocol: Protocol, port: int, now: float) -> bool:
        held = self._external.get((protocol, Endpoint(self.ip or "", port)))
        return held is None or not held.alive(now)

    def _forget_dead(self, now: float) -> None:
        if len(self._flows) >= FLOWS_KEPT_MAX:
            self._flows = {at: one for at, one in self._flows.items() if one.alive(now)}
            self._sessions = {at: one for at, one in self._sessions.items() if one.alive(now)}
            self._external = {at: one for at, one in self._external.items() if one.alive(now)}
