"""Everything non-deterministic, behind one small object.

Protocol logic never reads a clock, draws a random number or decides to crash by itself: it asks an
`Env`. The daemon builds the real one (`daemon.wiring`); a simulation builds one from a seed, so
that the same seed gives the same run. Source: docs/decisions/0003-determinism.md.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Env(Protocol):
    """The part of the world that differs from run to run."""

    rng: random.Random
    """`random.SystemRandom` in production, seeded in simulation only: keys come from it."""

    def now(self) -> float:
        """Monotonic seconds; the origin is arbitrary."""
        ...

    def wall_ms(self) -> int:
        """Unix time in milliseconds, as far as this machine knows it."""
        ...

    def fault(self, name: str) -> bool:
        """Whether to fail here. False in production; a simulation's seed decides."""
        ...


class Offload(Protocol):
    """Where blocking work goes: threads in the daemon, inline under a simulated clock."""

    async def run(self, fn: Callable[[], T]) -> T:
        """Run `fn` without stalling the loop and return its result."""
        ...


class SystemEnv:
    """The real world: system clocks and the operating system's random numbers."""

    def __init__(self) -> None:
        self.rng: random.Random = random.SystemRandom()

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()  # noqa: TID251 - this is what the ban points to

    def wall_ms(self) -> int:
        """Unix time in milliseconds."""
        return time.time_ns() // 1_000_000

    def fault(self, name: str) -> bool:  # noqa: ARG002 - the seam's signature
        """Never."""
        return False


class SeededEnv:
    """A simulated world: the caller moves the clock, the seed decides the rest.

    Args:
        seed: root of all numbers of the run.
        component: each component draws from a stream of its own, so that a new one shifts nobody's.
        now: monotonic seconds, for example `trio.current_time`.
        wall_ms_start: Unix milliseconds at `now() == 0`.
    """

    def __init__(
        self,
        seed: int,
        component: str,
        now: Callable[[], float],
        *,
        wall_ms_start: int = 1_700_000_000_000,
    ) -> None:
        self.rng = random.Random(f"{seed}/{component}")  # noqa: S311 - simulation only
        self._now = now
        self.wall_ms_start = wall_ms_start

    def now(self) -> float:
        """Virtual monotonic seconds."""
        return self._now()

    def wall_ms(self) -> int:
        """Virtual Unix milliseconds."""
        return self.wall_ms_start + int(self._now() * 1000)

    def fault(self, name: str) -> bool:  # noqa: ARG002 - the seam's signature
        """Never; fault-injecting simulations override it."""
        return False
