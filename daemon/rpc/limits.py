"""Rate limits of the local socket."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from daemon.errors import RpcError

if TYPE_CHECKING:
    from collections.abc import Callable


class Bucket:
    """A token bucket: `burst` at once, `per_s` on average.

    Args:
        per_s: tokens that come back each second.
        burst: tokens it holds.
        now: monotonic seconds.
    """

    def __init__(self, per_s: float, burst: float, now: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._now = now
        self._level = float(burst)
        self._at = now()

    def take(self, amount: float = 1.0) -> int:
        """Take `amount` tokens.

        Returns:
            0 when they were there; else milliseconds until they will be, and nothing is taken. More
            than the bucket holds is taken when it is full, so that a large batch passes at all.
        """
        now = self._now()
        self._level = min(self._burst, self._level + (now - self._at) * self._per_s)
        self._at = now
        wanted = min(amount, self._burst)
        if self._level >= wanted:
            self._level -= amount
            return 0
        return max(1, math.ceil((wanted - self._level) / self._per_s * 1000))


class RateLimits:
    """Buckets by agent and direction; the person has none.

    Args:
        read_per_s: reads a second, burst of five seconds' worth.
        write_per_s: writes a second.
        write_burst: writes at once.
        now: monotonic seconds.
    """

    def __init__(
        self, read_per_s: float, write_per_s: float, write_burst: int, now: Callable[[], float]
    ) -> None:
        self._read = (read_per_s, read_per_s * 5)
        self._write = (write_per_s, float(write_burst))
        self._now = now
        self._buckets: dict[tuple[str, bool], Bucket] = {}

    def check(self, agent: str, *, write: bool, amount: int = 1) -> None:
        """Count `amount` operations of `agent`.

        Raises:
            RpcError: rate_limited, with `retry_ms`.
        """
        key = (agent, write)
        bucket = self._buckets.get(key)
        if bucket is None:
            per_s, burst = self._write if write else self._read
            bucket = self._buckets[key] = Bucket(per_s, burst, self._now)
        if wait_ms := bucket.take(amount):
            what = "writes" if write else "reads"
            raise RpcError(
                "rate_limited", f"too many {what} of one agent", data={"retry_ms": wait_ms}
            )
