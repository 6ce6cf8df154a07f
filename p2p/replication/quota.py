"""What one peer may cost us: refusals, rates, bans, promises it did not keep.

Pure bookkeeping with the clock as an argument. A peer's slate is forgotten when nothing on it can
matter any more, so that a stream of strangers leaves no memory. Source: docs/specs/sync.md s.7.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

    from p2p.replication.config import ReplicationConfig
    from p2p.replication.groups import Group
    from p2p.replication.store import LogKey

GAP_RETRY_S: Final = 3600.0
"""A gap that a peer failed to fill is not asked of it again for so long."""

WITHHELD_MAX: Final = 3
"""So often a peer may list what it does not deliver before it is asked last."""

WITHHELD_S: Final = 86_400.0
"""For how long it is asked last then."""

COMPARED_PER_MIN: Final = 32
"""Range messages of a peer a minute that we answer, each at most two passes of hashing over a set
(5 ms for 100,000 records). Source: docs/specs/sync.md s.6."""

COMPARED_BURST: Final = 96
"""So many at once: an honest comparison of a lane takes 2 to 4."""

PEERS_MAX: Final = 4096
"""Slates kept; the one not touched for longest goes first."""

REFUSAL_MEMORY_S: Final = 3600.0
"""Refused records count together within this time."""


@dataclass
class Slate:
    """One peer's account."""

    tokens: float
    refilled_s: float
    refused: list[float] = field(default_factory=list)
    banned_until_s: float = 0.0
    join_refused: list[float] = field(default_factory=list)
    withheld: int = 0
    asked_last_until_s: float = 0.0
    gaps: dict[LogKey, float] = field(default_factory=dict)
    refused_total: int = 0
    compared: float = float(COMPARED_BURST)
    compared_s: float = 0.0


class Quota:
    """The slates of all peers.

    Args:
        config: the limits.
    """

    def __init__(self, config: ReplicationConfig) -> None:
        self._config = config
        self._slates: OrderedDict[bytes, Slate] = OrderedDict()
        self.refused_in_all = 0
        """Records refused since the start, of peers that are forgotten too."""

    def _slate(self, peer: bytes, now: float) -> Slate:
        slate = self._slates.get(peer)
        if slate is None:
            slate = self._slates[peer] = Slate(float(self._config.records_burst), now)
            if len(self._slates) > PEERS_MAX:
                self._slates.popitem(last=False)
        self._slates.move_to_end(peer)
        return slate

    # --- refused records ----------------------------------------------------------------------

    def refuse(self, peer: bytes, now: float) -> bool:
        """Note a refused record; whether the peer must be closed now."""
        slate = self._slate(peer, now)
        slate.refused = [at for at in slate.refused if at > now - REFUSAL_MEMORY_S]
        slate.refused.append(now)
        slate.refused_total += 1
        self.refused_in_all += 1
        if len(slate.refused) < self._config.refusals_max:
            return False
        slate.refused.clear()
        slate.banned_until_s = now + self._config.ban_s
        return True

    def banned(self, peer: bytes, now: float) -> bool:
        """Whether we do not speak to the peer for now."""
        slate = self._slates.get(peer)
        return slate is not None and now < slate.banned_until_s

    def refused_total(self, peer: bytes) -> int:
        """Records of this peer refused since the start."""
        slate = self._slates.get(peer)
        return 0 if slate is None else slate.refused_total

    # --- rate ---------------------------------------------------------------------------------

    def spend(self, peer: bytes, records: int, now: float) -> bool:
        """Count records the peer brought; False: it is over its rate, stop asking."""
        slate = self._slate(peer, now)
        self._refill(slate, now)
        slate.tokens -= records
        return slate.tokens > 0

    def may_ask(self, peer: bytes, now: float) -> bool:
        """Whether the peer has room to bring records."""
        slate = self._slates.get(peer)
        if slate is None:
            return True
        self._refill(slate, now)
        return slate.tokens > 0

    def _refill(self, slate: Slate, now: float) -> None:
        gained = (now - slate.refilled_s) * self._config.records_per_min / 60
        slate.tokens = min(float(self._config.records_burst), slate.tokens + gained)
        slate.refilled_s = now

    # --- comparing ----------------------------------------------------------------------------

    def compared(self, peer: bytes, messages: int, now: float) -> None:
        """Count the range messages of a session."""
        slate = self._slate(peer, now)
        self._refill_compared(slate, now)
        slate.compared -= messages

    def may_compare(self, peer: bytes, now: float) -> bool:
        """Whether a session that the peer opens is served."""
        slate = self._slates.get(peer)
        if slate is None:
            return True
        self._refill_compared(slate, now)
        return slate.compared > 0

    @staticmethod
    def _refill_compared(slate: Slate, now: float) -> None:
        gained = max(0.0, now - slate.compared_s) * COMPARED_PER_MIN / 60
        slate.compared = min(float(COMPARED_BURST), slate.compared + gained)
        slate.compared_s = now

    # --- the join door ------------------------------------------------------------------------

    def refuse_join(self, peer: bytes, now: float) -> None:
        """Note a refused ask."""
        self._slate(peer, now).join_refused.append(now)

    def join_silent(self, peer: bytes, now: float) -> bool:
        """Whether the peer asked in vain too often: no answer any more for now."""
        slate = self._slates.get(peer)
        if slate is None:
            return False
        slate.join_refused = [at for at in slate.join_refused if at > now - 3600]
        return len(slate.join_refused) >= self._config.join_refusals_per_h

    # --- promises -----------------------------------------------------------------------------

    def withheld(self, peer: bytes, now: float) -> bool:
        """Note a session that listed more than it brought; True when the peer is now asked last."""
        slate = self._slate(peer, now)
        slate.withheld += 1
        if slate.withheld < WITHHELD_MAX:
            return False
        slate.withheld = 0
        slate.asked_last_until_s = now + WITHHELD_S
        return True

    def asked_last(self, peer: bytes, now: float) -> bool:
        """Whether others are asked before this peer."""
        slate = self._slates.get(peer)
        return slate is not None and now < slate.asked_last_until_s

    def gap_failed(self, peer: bytes, log: LogKey, now: float) -> None:
        """The peer did not fill this log's gap."""
        self._slate(peer, now).gaps[log] = now + GAP_RETRY_S

    def skip_gaps(self, peer: bytes, now: float) -> frozenset[LogKey]:
        """Logs whose gap is not asked of this peer for now."""
        slate = self._slates.get(peer)
        if slate is None:
            return frozenset()
        slate.gaps = {log: until for log, until in slate.gaps.items() if until > now}
        return frozenset(slate.gaps)


def over_headers(
    group: Group, author: bytes, config: ReplicationConfig, own: Collection[bytes]
) -> bool:
    """Whether a record of the author is more than the group's room here allows.

    Three bounds: the group's, the author's, and in the last part of the group's an equal share: a
    member that begins new logs without end takes its part and not the others'.

    Args:
        group: with what is here of it.
        author: who signed the record.
        config: the limits.
        own: devices of the person, which are bounded by the group's limit only.
    """
    if group.headers >= config.group_headers_max:
        return True
    if author in own:
        return False
    here = group.headers_of.get(author, 0)
    if here >= config.author_headers_max:
        return True
    free = config.group_headers_max - group.headers
    if free > config.group_headers_max * config.group_headroom_ratio:
        return False
    members = len(group.standing.members()) if group.founded else 1
    return here * max(1, members) >= config.group_headers_max
