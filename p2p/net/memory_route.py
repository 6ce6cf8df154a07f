"""Ways through the NATs of the simulated network: realms, gateways, and a packet's path.

Theory of operation: an address *realm* (RFC 2663 s.2.1) is a set of addresses that reach each other
directly. The internet is one; each NAT or firewall has another one inside, and NATs nest. A packet
*climbs* from its sender's realm through NATs until a realm knows its target, all at the moment it
is sent; it *descends* through the NATs before its receiver at the moment it arrives. The delay lies
between the two, on one link a pair of hosts: homes are small, the way between them is long.

A private address of another home is unknown in every realm on the way, so packets to it vanish (or
reach a stranger in the sender's own home who happens to have it), as in the real internet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from p2p.net.memnat import Endpoint, Nat, Protocol
    from p2p.net.memory_host import MemTransport

CLIMBS_MAX: Final = 16
"""NATs a packet may pass on its way out. Real nesting is two or three; a loop is our bug."""


@dataclass
class Realm:
    """Addresses that reach each other directly.

    Args:
        gateway: the way out; None for the internet.
    """

    gateway: Gateway | None = None
    places: dict[str, Place] = field(default_factory=dict)
    """What has an address here: hosts, NATs, and firewalls for the hosts behind them."""


class Gateway:
    """A NAT or firewall between two realms.

    Args:
        name: for messages and for hosts' names.
        nat: its tables.
        outer: the realm it is in.
    """

    def __init__(self, name: str, nat: Nat, outer: Realm) -> None:
        self.name = name
        self.nat = nat
        self.outer = outer
        self.inside = Realm(gateway=self)
        if nat.ip is not None:
            outer.places[nat.ip] = self

    def admit(self, ip: str, host: MemTransport) -> None:
        """Give a host an address inside; a firewall shows it outside too."""
        self.inside.places[ip] = host
        realm: Realm = self.outer
        gateway: Gateway | None = self
        while gateway is not None and not gateway.nat.config.translates:
            realm.places[ip] = gateway
            gateway = realm.gateway
            if gateway is not None:
                realm = gateway.outer

    def dismiss(self, ip: str) -> None:
        """The host at `ip` is gone."""
        del self.inside.places[ip]
        gateway: Gateway | None = self
        while gateway is not None and not gateway.nat.config.translates:
            del gateway.outer.places[ip]
            gateway = gateway.outer.gateway


Place: TypeAlias = "Gateway | MemTransport"


@dataclass(frozen=True)
class Leg:
    """A packet that left its sender: where it is, and what its header says there."""

    realm: Realm
    source: Endpoint
    target: Endpoint


@dataclass(frozen=True)
class Arrival:
    """A packet that reached a host, with its header as seen there."""

    host: MemTransport
    source: Endpoint
    target: Endpoint


@dataclass(frozen=True)
class Filtered:
    """A packet that ended at a NAT."""

    refused: bool
    """Whether the NAT answers with a reset."""


def climb(
    realm: Realm,
    protocol: Protocol,
    source: Endpoint,
    target: Endpoint,
    now: float,
    *,
    established: bool = False,
) -> Leg | None:
    """Send from `realm` outwards until somebody has the target's address; None if nobody has.

    Mappings are made on the way, even by a packet that gets lost: that is what a punch lives from.
    """
    for _ in range(CLIMBS_MAX):
        gateway = realm.gateway
        if target.ip in realm.places or gateway is None:
            return Leg(realm, source, target) if target.ip in realm.places else None
        nat = gateway.nat
        if target.ip == nat.ip and not nat.config.hairpin:
            return None
        seen = nat.outbound(protocol, source, target, now, established=established)
        if seen is None:
            return None
        source, realm = seen, gateway.outer
    raise AssertionError("more NATs in a row than anybody builds")


def descend(
    leg: Leg, protocol: Protocol, now: float, *, established: bool = False
) -> Arrival | Filtered | None:
    """Deliver through the NATs before the target; None if it has moved away meanwhile."""
    target = leg.target
    place = leg.realm.places.get(target.ip)
    while isinstance(place, Gateway):
        inner = place.nat.inbound(protocol, leg.source, target, now, established=established)
        if inner is None:
            return Filtered(place.nat.config.refuses)
        target = inner
        place = place.inside.places.get(target.ip)
    return None if place is None else Arrival(place, leg.source, target)


def foresee(leg: Leg, protocol: Protocol) -> MemTransport | None:
    """The host that a leg leads to if nothing filters it: whose link it travels on."""
    target: Endpoint | None = leg.target
    place: Place | None = leg.realm.places.get(leg.target.ip)
    while isinstance(place, Gateway) and target is not None:
        target = place.nat.holder(protocol, target)
        place = None if target is None else place.inside.places.get(target.ip)
    return None if isinstance(place, Gateway) else place
