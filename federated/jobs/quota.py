"""How much of this machine a peer may have: work an hour, bytes a second. Pure.

Our own devices have no quota. A friend's and a stranger's work is counted in seconds of a slot,
over the last hour, for the owner and for the device alike: whoever changes the owner of a device
begins no new hour, nor does an owner who brings another device. What runs when the hour is spent
may end; no more is taken. What comes in too fast is not refused but read later, so that the sender
has to wait and nothing piles up here. Source: docs/specs/jobs.md s.6 and s.11.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from federated.seams import TrustClass

HOUR_S: Final = 3600.0
PARTS: Final = 60
"""An hour is kept as so many parts; a part is forgotten whole, an hour after it began."""
PEERS_MAX: Final = 10_000
"""Owners and devices remembered; beyond, those who worked least are forgotten. Guess."""
BYTES_PER_S: Final = 8 * 2**20
"""What is read of one peer that is not ours (guess: more than a home's line brings)."""
ITEM_BYTES_MIN: Final = 4096
"""An item counts as at least so many: small ones cost time, not room. So 2,048 a second."""
BURST_S: Final = 2.0


class WorkQuota:
    """Seconds of work that others had of this machine in the last hour.

    Args:
        friend_s_per_h: what a friend's owner may have.
        stranger_s_per_h: what the owner of another member of a group may have.
    """

    def __init__(
        self, *, friend_s_per_h: float = HOUR_S, stranger_s_per_h: float = HOUR_S / 6
    ) -> None:
        self._most = {"friend": friend_s_per_h, "stranger": stranger_s_per_h}
        self._used: dict[bytes, _Hour] = {}

    def spent(self, owner: bytes, device: bytes, trust: TrustClass, now: float) -> bool:
        """Whether a peer has had what it may have.

        Args:
            owner: whose device it is.
            device: which device.
            trust: what it is to us.
            now: monotonic seconds.
        """
        most = self._most.get(trust)
        if most is None:
            return False
        used = max(self._hour(key).seconds(now) for key in (owner, device))
        return used >= most

    def charge(
        self, owner: bytes, device: bytes, trust: TrustClass, seconds: float, now: float
    ) -> None:
        """Count work that was done for a peer."""
        if trust not in self._most or seconds <= 0:
            return
        for key in {owner, device}:
            self._hour(key).add(seconds, now)
        if len(self._used) > PEERS_MAX:
            self._forget(now)

    def _hour(self, key: bytes) -> _Hour:
        found = self._used.get(key)
        if found is None:
            found = self._used[key] = _Hour()
        return found

    def _forget(self, now: float) -> None:
        kept = sorted(self._used, key=lambda key: self._used[key].seconds(now))
        for key in kept[: len(kept) // 2]:
            del self._used[key]


class _Hour:
    """Seconds used in each part of the last hour."""

    __slots__ = ("_parts", "_total")

    def __init__(self) -> None:
        self._parts: deque[list[float]] = deque()
        self._total = 0.0

    def add(self, seconds: float, now: float) -> None:
        part = now // (HOUR_S / PARTS)
        if not self._parts or self._parts[-1][0] != part:
            self._parts.append([part, 0.0])
        self._parts[-1][1] += seconds
        self._total += seconds

    def seconds(self, now: float) -> float:
        oldest = now // (HOUR_S / PARTS) - PARTS
        while self._parts and self._parts[0][0] <= oldest:
            self._total -= self._parts.popleft()[1]
        return self._total if self._parts else 0.0


class Pace:
    """How fast one peer is read.

    Args:
        now: monotonic seconds.
    """

    __slots__ = ("_ahead", "_at")

    def __init__(self, now: float) -> None:
        self._at = now
        self._ahead = 0.0

    def wait_s(self, size: int, trust: TrustClass, now: float) -> float:
        """Seconds to wait before the next item is read, after one of `size` bytes."""
        if trust == "own":
            return 0.0
        self._ahead = max(0.0, self._ahead - (now - self._at))
        self._at = now
        self._ahead += max(size, ITEM_BYTES_MIN) / BYTES_PER_S
        return max(0.0, self._ahead - BURST_S)
