"""Choosing the number of rows a task has: the product's experience memory on made-up handlers.

    python -m benchmarks.job_sims.experience --seeds 30

Four kinds of handler differ in the overhead of a task (o), the seconds a row takes (t), how many
rows they read without tiring (L) and how often they are wrong on a row (e). A task of b rows takes
o + b t lognormal(0, .3) seconds, a row of it is wrong with min(.95, e (1 + 3 max(0, b - L)/L)), and
tasks run on 8 slots, the longest first. Jobs of 20, 40 or 80 rows come of a kind drawn at random.
Who chooses sees a job only when it is over. `learned` is `federated.jobs.experience` as it stands;
beside it are each fixed size, the best size of each kind (oracle), and a discounted UCB that tries
every size once. Settings: tasks.md s.14, S4.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from federated.jobs.experience import CURIOSITY, KEEP, SIZES, Experience, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

JOBS: Final = 400
SLOTS: Final = 8
ROWS: Final = (20, 40, 80)
ROW_BYTES: Final = 200
FIRST: Final = slice(0, 50)
LATER: Final = slice(50, 200)
SEEDS: Final = 30
ORACLE_DRAWS: Final = 150


class Kind(NamedTuple):
    """A handler made up.

    Attributes:
        overhead_s: of a task.
        row_s: of a row.
        limit: rows read without tiring.
        error: share of the rows it has wrong within the limit.
    """

    overhead_s: float
    row_s: float
    limit: int
    error: float


KINDS: Final = (
    Kind(3.0, 0.5, 10, 0.02), Kind(0.2, 2.0, 3, 0.05), Kind(8.0, 0.2, 24, 0.01),
    Kind(0.5, 1.0, 6, 0.03),
)  # fmt: skip


def play(kind: int, rows: int, size: int, rng: random.Random) -> Outcome:
    """A job of a kind with tasks of a size."""
    made = KINDS[kind]
    took: list[float] = []
    right = 0
    wrong = min(0.95, made.error * (1 + 3 * max(0, size - made.limit) / made.limit))
    for first in range(0, rows, size):
        count = min(size, rows - first)
        took.append(made.overhead_s + count * made.row_s * rng.lognormvariate(0, 0.3))
        right += sum(rng.random() >= wrong for _ in range(count))
    lanes = [0.0] * SLOTS
    for seconds in sorted(took, reverse=True):
        lane = lanes.index(min(lanes))
        lanes[lane] += seconds
    return Outcome(
        handler=f"kind{kind}@1", rows=rows, input_bytes=rows * ROW_BYTES, slots=SLOTS, size=size,
        verified=right / rows, gaps=rows - right, cost_s=sum(took), delay_s=max(lanes),
    )  # fmt: skip


class Chooser(Protocol):
    """Who decides on sizes."""

    def choose(self, kind: int, rows: int) -> int:
        """The size for the next job."""
        ...

    def learn(self, kind: int, outcome: Outcome) -> None:
        """It is over."""
        ...


class Fixed:
    """Always the same size, or the same of each kind."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes

    def choose(self, kind: int, rows: int) -> int:  # noqa: ARG002 - see Chooser
        """See `Chooser`."""
        return self._sizes[kind]

    def learn(self, kind: int, outcome: Outcome) -> None:
        """Nothing."""


class Ucb:
    """Discounted UCB: every size once, then by the product's score."""

    def __init__(self) -> None:
        self._n = [dict.fromkeys(SIZES, 0.0) for _ in KINDS]
        self._total = [dict.fromkeys(SIZES, 0.0) for _ in KINDS]

    def choose(self, kind: int, rows: int) -> int:  # noqa: ARG002 - see Chooser
        """See `Chooser`."""
        n, total = self._n[kind], self._total[kind]
        seen = math.log(sum(n.values()) + 1)

        def score(size: int) -> float:
            if not n[size]:
                return math.inf
            return total[size] / n[size] + CURIOSITY * math.sqrt(seen / n[size])

        return max(SIZES, key=score)

    def learn(self, kind: int, outcome: Outcome) -> None:
        """See `Chooser`."""
        for size in SIZES:
            self._n[kind][size] *= KEEP
            self._total[kind][size] *= KEEP
        self._n[kind][outcome.size] += 1
        self._total[kind][outcome.size] += outcome.utility


class Learned:
    """The product."""

    def __init__(self) -> None:
        self._experience = Experience()

    def choose(self, kind: int, rows: int) -> int:
        """See `Chooser`."""
        return self._experience.choose(
            f"kind{kind}@1", rows=rows, input_bytes=rows * ROW_BYTES
        ).size

    def learn(self, kind: int, outcome: Outcome) -> None:  # noqa: ARG002 - see Chooser
        """See `Chooser`."""
        self._experience.learn(outcome)


def best_sizes() -> list[int]:
    """The best size of each kind, from many jobs."""
    rng = random.Random("oracle")
    return [
        max(
            SIZES,
            key=lambda size: statistics.fmean(
                play(kind, rows, size, rng).utility for _ in range(ORACLE_DRAWS) for rows in ROWS
            ),
        )
        for kind in range(len(KINDS))
    ]


def utilities(chooser: Chooser, seed: int, jobs: int = JOBS) -> list[float]:
    """Utility of each job of one run."""
    # Which jobs come is the same for everybody; what becomes of them depends on the choice.
    coming, luck = random.Random(f"jobs {seed}"), random.Random(f"luck {seed}")
    found: list[float] = []
    for _ in range(jobs):
        kind, rows = coming.randrange(len(KINDS)), coming.choice(ROWS)
        outcome = play(kind, rows, chooser.choose(kind, rows), luck)
        chooser.learn(kind, outcome)
        found.append(outcome.utility)
    return found


class Measured(NamedTuple):
    """Mean utility.

    Attributes:
        first: of jobs 1 to 50.
        later: of jobs 51 to 200.
        last: of the last 100.
    """

    first: float
    later: float
    last: float


def measure(make: Callable[[], Chooser], seeds: int) -> Measured:
    """The means over seeds of runs of 400 jobs."""
    runs = [utilities(make(), seed) for seed in range(seeds)]
    first = statistics.fmean(statistics.fmean(run[FIRST]) for run in runs)
    later = statistics.fmean(statistics.fmean(run[LATER]) for run in runs)
    return Measured(first, later, statistics.fmean(statistics.fmean(run[-100:]) for run in runs))


def everybody(seeds: int = SEEDS) -> dict[str, Measured]:
    """All who choose, by name; `best fixed` is the fixed size best over the jobs measured."""
    fixed = {size: measure(lambda size=size: Fixed([size] * len(KINDS)), seeds) for size in SIZES}
    best = max(fixed, key=lambda size: fixed[size].later)
    found = {f"fixed {size}": value for size, value in fixed.items()}
    best_of_kind = best_sizes()
    found["best fixed"] = fixed[best]
    found["oracle"] = measure(lambda: Fixed(best_of_kind), seeds)
    found["ucb"] = measure(Ucb, seeds)
    found["learned"] = measure(Learned, seeds)
    return found


def main() -> None:
    """Print everybody."""
    parser = argparse.ArgumentParser(description="Choosing batch sizes from finished jobs.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"default {SEEDS}")
    found = everybody(parser.parse_args().seeds)
    print(f"{'who':12} first 50  51-200  last 100")
    for name, value in found.items():
        print(f"{name:12} {value.first:8.3f} {value.later:7.3f} {value.last:9.3f}")


if __name__ == "__main__":
    main()
