"""How often something is done for others within a minute: for one of them, and in all. Pure."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from p2p.identity import PeerId

MINUTE_S: Final = 60.0


class MinuteBudget:
    """Counts within the last minute.

    Args:
        per_peer_max: for one peer.
        all_max: for all of them; this bounds the memory too.
    """

    def __init__(self, *, per_peer_max: int, all_max: int) -> None:
        self._per_peer_max = per_peer_max
        self._all_max = all_max
        self._spent: deque[tuple[float, PeerId]] = deque()

    def spend(self, peer: PeerId, now: float) -> bool:
        """Whether it may be done once more for `peer`; counted if so."""
        while self._spent and now - self._spent[0][0] >= MINUTE_S:
            self._spent.popleft()
        mine = sum(1 for _, who in self._spent if who == peer)
        if len(self._spent) >= self._all_max or mine >= self._per_peer_max:
            return False
        self._spent.append((now, peer))
        return True
