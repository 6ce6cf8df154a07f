"""Who may connect: limits by address and in all, rates, bans. Pure: `now` is an argument.

An inbound connection takes a *pending* place by its address, before a byte of it is read. When it
has proved who it is, it gives that place back and takes a *proven* one. Loopback is exempt from the
limits by address unless the configuration says otherwise; the totals count for everyone.

A hostile peer may hold connections in silence (pending places, given back at the deadline), come
from many ports of one address or one /24 (limits by prefix), knock without end (a bucket of tokens
an address), fail handshakes (a ban that doubles). What this remembers of strangers is bounded.
Source: docs/specs/wire.md s.7.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2p.wire.multiaddr import IpAddress, prefix_of, scope_of

if TYPE_CHECKING:
    from collections.abc import Hashable

    from p2p.config import P2pConfig
    from p2p.identity import PeerId

_REMEMBERED_MAX: Final = 4096
"""Addresses with a bucket or a record of offences; the longest untouched are forgotten."""
_FAILURE_WINDOW_S: Final = 60.0


@dataclass(frozen=True)
class Origin:
    """Where a connection comes from, as the limits see it."""

    host: str
    """IPv4 address or IPv6 /64."""
    prefix: str
    """IPv4 /24 or IPv6 /48."""
    factor: int
    """Private prefixes get this many times the limits."""


class _Offences:
    """Offences of one address or peer, and the ban that followed."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.ban_s = 0.0
        self.until_s = 0.0


class Gate:
    """Counts connections and offences.

    Args:
        config: see the fields under "who may connect" and "bans".
    """

    def __init__(self, config: P2pConfig) -> None:
        self._config = config
        self._pending: Counter[str] = Counter()
        self._pending_total = 0
        self._proven: Counter[str] = Counter()
        self._total = 0
        self._strangers = 0
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._offences: OrderedDict[Hashable, _Offences] = OrderedDict()

    def origin(self, ip: IpAddress | None) -> Origin | None:
        """What the limits by address count `ip` as; None: they do not apply."""
        if ip is None:
            return None
        scope = scope_of(ip)
        if scope == "loopback" and not self._config.limit_loopback:
            return None
        host = ipaddress.ip_network((ip, 32 if ip.version == 4 else 64), strict=False)
        factor = self._config.private_prefix_factor if scope in ("private", "loopback") else 1
        return Origin(str(host), prefix_of(ip), factor)

    def begin(self, origin: Origin | None, now: float) -> str | None:
        """Take a pending place; a word of why not, or None if it was taken."""
        config = self._config
        if self._pending_total >= config.pending_max:
            return "pending"
        if origin is not None:
            if self.banned(origin.host, now):
                return "banned"
            if not self._take_token(origin.host, now):
                return "rate"
            if _over(self._pending, origin.host, config.pending_per_ip_max, 1):
                return "pending_ip"
            if _over(self._pending, origin.prefix, config.pending_per_prefix_max, origin.factor):
                return "pending_prefix"
            self._pending[origin.host] += 1
            self._pending[origin.prefix] += 1
        self._pending_total += 1
        return None

    @property
    def full(self) -> bool:
        """Whether every proven place is taken."""
        return self._total >= self._config.connections_max

    def end_pending(self, origin: Origin | None) -> None:
        """Give a pending place back."""
        self._pending_total -= 1
        if origin is not None:
            _lower(self._pending, origin.host)
            _lower(self._pending, origin.prefix)

    def enter(
        self,
        origin: Origin | None,
        peer: PeerId,
        now: float,
        *,
        member: bool,
        displacing: bool = False,
    ) -> str | None:
        """Take a proven place; a word of why not, or None.

        Args:
            origin: where it comes from; None: the limits by address do not count.
            peer: who it is.
            now: monotonic seconds.
            member: whether it may use the places kept for members.
            displacing: the caller ends another connection for this one, so that the totals hold
                again when that one has left.
        """
        config = self._config
        if self.banned(peer, now):
            return "banned"
        strangers_max = config.connections_max - config.connections_for_members
        if not displacing and (self.full or (not member and self._strangers >= strangers_max)):
            return "full"
        if origin is not None:
            if _over(self._proven, origin.host, config.inbound_per_ip_max, 1):
                return "inbound_ip"
            if _over(self._proven, origin.prefix, config.inbound_per_prefix_max, origin.factor):
                return "inbound_prefix"
            self._proven[origin.host] += 1
            self._proven[origin.prefix] += 1
        self._total += 1
        self._strangers += not member
        return None

    def leave(self, origin: Origin | None, *, member: bool) -> None:
        """Give a proven place back; `member` as it was given to `enter`."""
        self._total -= 1
        self._strangers -= not member
        if origin is not None:
            _lower(self._proven, origin.host)
            _lower(self._proven, origin.prefix)

    def failed_handshake(self, origin: Origin | None, now: float) -> None:
        """An address failed to prove anything."""
        limit = self._config.failed_handshakes_max
        if origin is not None and limit is not None:
            self._offend(origin.host, now, _FAILURE_WINDOW_S, limit)

    def violation(self, peer: PeerId, now: float) -> bool:
        """A proven peer broke a rule; whether it is refused from now on."""
        return self._offend(peer, now, self._config.violation_window_s, self._config.violations_max)

    def banned(self, who: Hashable, now: float) -> bool:
        """Whether an address (`Origin.host`) or a peer is refused now."""
        offences = self._offences.get(who)
        return offences is not None and now < offences.until_s

    def _offend(self, who: Hashable, now: float, window_s: float, limit: int) -> bool:
        offences = self._offences.pop(who, None) or _Offences()
        self._offences[who] = offences
        if len(self._offences) > _REMEMBERED_MAX:
            self._offences.popitem(last=False)
        offences.times_s = [when for when in offences.times_s if now - when < window_s]
        offences.times_s.append(now)
        if len(offences.times_s) < limit:
            return False
        config = self._config
        # Whoever behaved for as long as the longest ban starts from the shortest again.
        if now - offences.until_s > config.ban_max_s:
            offences.ban_s = 0.0
        offences.ban_s = min(config.ban_max_s, max(config.ban_min_s, offences.ban_s * 2))
        offences.until_s = now + offences.ban_s
        offences.times_s.clear()
        return True

    def _take_token(self, host: str, now: float) -> bool:
        rate = self._config.accepts_per_s
        if rate is None:
            return True
        burst = float(self._config.accepts_burst)
        tokens, since = self._buckets.pop(host, (burst, now))
        tokens = min(burst, tokens + (now - since) * rate)
        allowed = tokens >= 1
        self._buckets[host] = (tokens - allowed, now)
        if len(self._buckets) > _REMEMBERED_MAX:
            self._buckets.popitem(last=False)
        return allowed


def _over(counts: Counter[str], key: str, limit: int | None, factor: int) -> bool:
    return limit is not None and counts[key] >= limit * factor


def _lower(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]
