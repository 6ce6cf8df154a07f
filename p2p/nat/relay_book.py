"""The relay's accounts: who holds a place, which circuits are open, how much was carried. Pure.

Theory of operation
-------------------
A *holder* reserved a place and is reached through us; a *source* asks for a circuit to it. The
holder's class (member of a group of ours, or stranger) decides what both may use: a joiner whom
nobody knows yet must reach its inviter, who is a member. Holders are counted by class and by the
prefix of the address they came from, so that one network cannot take every place. Circuits are
counted by class, by target and by source. A holder that went away gives its place back.

What a hostile peer may try: reserve from many identities (prefix and class limits), open circuits
and leave them silent (their life is limited, their number is bounded), push bytes (each circuit and
each class has a bucket; the day has a budget), aim circuits at somebody who never reserved
(refused: nobody is reached through us against their will). Source: docs/specs/relay.md s.4.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2p.nat.relay_messages import Status

if TYPE_CHECKING:
    from p2p.identity import PeerId
    from p2p.nat.relay_config import RelayConfig, RelayQuota

DAY_S: Final = 86_400.0


class TokenBucket:
    """A rate, with one second's worth of burst.

    Args:
        per_s: tokens a second; None: no limit.
    """

    def __init__(self, per_s: float | None, now: float) -> None:
        self._per_s = per_s
        self._tokens = per_s or 0.0
        self._since_s = now

    def take(self, count: int, now: float) -> float:
        """Take `count` tokens, into debt if need be; seconds to wait until the debt is paid."""
        if self._per_s is None:
            return 0.0
        refilled = self._tokens + (now - self._since_s) * self._per_s
        self._tokens = min(self._per_s, refilled) - count
        self._since_s = now
        return max(0.0, -self._tokens / self._per_s)


@dataclass(frozen=True)
class Holder:
    """A place at this relay."""

    member: bool
    prefix: str
    until_s: float


@dataclass(frozen=True)
class Circuit:
    """A circuit between two peers, by the class of its target."""

    source: PeerId
    target: PeerId
    member: bool


class RelayBook:
    """Accounts of one relay.

    Args:
        config: what each class may use.
        now: monotonic seconds.
    """

    def __init__(self, config: RelayConfig, now: float) -> None:
        self._config = config
        self._holders: dict[PeerId, Holder] = {}
        self._circuits: Counter[Circuit] = Counter()
        self._rates = {
            member: TokenBucket(self.quota(member=member).bytes_per_s, now)
            for member in (True, False)
        }
        self._day_start_s = now
        self._day_bytes: Counter[bool] = Counter()

    def quota(self, *, member: bool) -> RelayQuota:
        """What a class may use."""
        return self._config.member if member else self._config.stranger

    # --- places ---

    def reserve(self, peer: PeerId, prefix: str, *, member: bool, now: float) -> Status:
        """Give `peer` a place, or renew it."""
        if not member and not self._config.strangers:
            return Status.PERMISSION_DENIED
        self._expire(now)
        quota = self.quota(member=member)
        others = [h for p, h in self._holders.items() if p != peer and h.member == member]
        if len(others) >= quota.reservations_max:
            return Status.RESOURCE_LIMIT_EXCEEDED
        if sum(h.prefix == prefix for h in others) >= quota.reservations_per_prefix_max:
            return Status.RESOURCE_LIMIT_EXCEEDED
        self._holders[peer] = Holder(member, prefix, now + self._config.reservation_s)
        return Status.OK

    def release(self, peer: PeerId) -> None:
        """`peer` went away."""
        self._holders.pop(peer, None)

    def holder(self, peer: PeerId, now: float) -> Holder | None:
        """The place of `peer`, if it lasts."""
        holder = self._holders.get(peer)
        return holder if holder is not None and now < holder.until_s else None

    def holders(self) -> int:
        """Places taken."""
        return len(self._holders)

    def _expire(self, now: float) -> None:
        for peer in [p for p, holder in self._holders.items() if now >= holder.until_s]:
            del self._holders[peer]

    # --- circuits ---

    def open(self, source: PeerId, target: PeerId, now: float) -> Circuit | Status:
        """Begin a circuit, or say why not. Give what was begun back with `close`."""
        holder = self.holder(target, now)
        if holder is None:
            return Status.NO_RESERVATION
        quota = self.quota(member=holder.member)
        same = [c for c in self._circuits.elements() if c.member == holder.member]
        over = (
            len(same) >= quota.circuits_max
            or sum(c.target == target for c in same) >= quota.circuits_per_target_max
            or sum(c.source == source for c in same) >= quota.circuits_per_source_max
            or self._over_day(now, member=holder.member)
        )
        if over:
            return Status.RESOURCE_LIMIT_EXCEEDED
        circuit = Circuit(source, target, holder.member)
        self._circuits[circuit] += 1
        return circuit

    def close(self, circuit: Circuit) -> None:
        """A circuit ended."""
        self._circuits[circuit] -= 1
        if not self._circuits[circuit]:
            del self._circuits[circuit]

    def circuits(self) -> int:
        """Circuits open now."""
        return self._circuits.total()

    # --- bytes ---

    def carry(self, count: int, now: float, *, member: bool) -> float | None:
        """Count bytes of a class: seconds to wait, or None when the day's budget is used up."""
        if self._over_day(now, member=member):
            return None
        self._day_bytes[member] += count
        return self._rates[member].take(count, now)

    def _over_day(self, now: float, *, member: bool) -> bool:
        if now - self._day_start_s >= DAY_S:
            self._day_start_s = now
            self._day_bytes.clear()
        budget = self.quota(member=member).bytes_per_day
        return budget is not None and self._day_bytes[member] >= budget
