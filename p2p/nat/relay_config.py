"""What a relay gives away, and what a client of relays wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2p.errors import UsageError

if TYPE_CHECKING:
    from p2p.nat.relay_messages import Limit

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, kw_only=True)
class RelayQuota:
    """What one class of peers may use of a relay, all of them together where not said otherwise."""

    reservations_max: int
    """Peers that hold a place here."""
    reservations_per_prefix_max: int
    """The same from one IPv4 /24 or IPv6 /48."""
    circuit_s_max: float
    """Longest life of a circuit, seconds."""
    circuit_bytes_max: int | None
    """Most bytes of a circuit, each way; None: no limit."""
    circuit_bytes_per_s: float | None
    """Rate of a circuit, each way; None: no limit."""
    circuits_max: int
    """Circuits at once."""
    circuits_per_target_max: int
    """The same to one peer that holds a place."""
    circuits_per_source_max: int
    """The same from one peer that connects."""
    bytes_per_s: float | None
    """Rate of all circuits together; None: no limit."""
    bytes_per_day: int | None
    """Bytes of all circuits together in 24 hours; None: no limit."""


def member_quota() -> RelayQuota:
    """For peers that share a group with us: enough for sync and large files."""
    return RelayQuota(
        reservations_max=128,
        reservations_per_prefix_max=16,
        circuit_s_max=7200.0,
        circuit_bytes_max=GIB,
        circuit_bytes_per_s=float(MIB),
        circuits_max=64,
        circuits_per_target_max=16,
        circuits_per_source_max=4,
        bytes_per_s=8.0 * MIB,
        bytes_per_day=20 * GIB,
    )


def stranger_quota() -> RelayQuota:
    """For others, if they are served at all: what go-libp2p and js-libp2p give, enough to punch."""
    return RelayQuota(
        reservations_max=32,
        reservations_per_prefix_max=4,
        circuit_s_max=120.0,
        circuit_bytes_max=128 * KIB,
        circuit_bytes_per_s=32.0 * KIB,
        circuits_max=16,
        circuits_per_target_max=4,
        circuits_per_source_max=2,
        bytes_per_s=256.0 * KIB,
        bytes_per_day=None,
    )


@dataclass(frozen=True, kw_only=True)
class RelayConfig:
    """Relays, from both ends."""

    serve: bool = True
    """Whether we relay for our groups once we are known to be reachable."""
    strangers: bool = False
    """Whether we relay for peers of no group of ours too."""
    reservation_s: float = 3600.0
    """How long a place with us lasts; its holder renews it at half."""
    wanted: int = 2
    """Places we keep at relays while we are not reachable; more survive more relays' ends."""
    talk_s: float = 15.0
    """Time for the other side to answer one message (circuit-v2.md leaves it open; js: 30)."""
    stops_per_min: int = 10
    """Circuits to us that one relay may offer in a minute."""
    retry_min_s: float = 1.0
    """How long a relay that refused us is left alone at first: it may not know yet that we joined
    its group. Doubles up to `retry_s`."""
    retry_s: float = 60.0
    """Longest such wait."""
    member: RelayQuota = field(default_factory=member_quota)
    """For peers of our groups."""
    stranger: RelayQuota = field(default_factory=stranger_quota)
    """For the others, if `strangers`."""

    def __post_init__(self) -> None:
        if self.reservation_s < 60 or self.wanted < 0 or self.talk_s <= 0:
            raise UsageError("relay: reservation_s is at least 60, wanted and talk_s not negative")


def limit_of(quota: RelayQuota) -> Limit | None:
    """What the wire says of a quota; None: nothing is limited."""
    from p2p.nat.relay_messages import Limit

    return Limit(int(quota.circuit_s_max), quota.circuit_bytes_max or 0)
