"""Rounds under the product's deadline beside fixed ones: how long, who is left out, what fails.

Twenty peers take `60 exp(.3 z)` s, a base that drifts by `exp(.02 z)` a round, times `exp(.15 z)`
each time; the load changes between 1 and 2.5 every hundred rounds; 5 % are dead and 2 % four times
slower in each round. Quorum 14. A round ends as `federated.rounds.protocol.deadline.closing` says;
a fixed deadline ends it when all have arrived or at the deadline, without a quorum it has failed.
The best fixed deadline is the one with the shortest mean among those that fail in at most 1 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.report import Target
from federated.rounds.protocol.deadline import Closing, History, closing, next_look

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.report import Options, Report

N: Final = 20
QUORUM: Final = math.ceil(2 * N / 3)
ROUNDS: Final = 400
SEEDS: Final = 10
SEEDS_QUICK: Final = 3
FIXED: Final = (150.0, 300.0, 600.0)
FAILING_MAX: Final = 0.01


@dataclass(frozen=True)
class Outcome:
    """What a rule made of all rounds.

    Attributes:
        mean_s: a round, failed ones too.
        included: share of the living, in rounds that did not fail.
        failed: share of the rounds.
    """

    mean_s: float
    included: float
    failed: float


def offsets(seed: int) -> Iterator[list[float]]:
    """Arrivals of the living, ascending, round by round: the same for every rule."""
    rng = np.random.default_rng(seed)
    base = 60 * np.exp(0.3 * rng.standard_normal(N))
    for number in range(ROUNDS):
        base *= np.exp(0.02 * rng.standard_normal(N))
        load = 1.0 if number // 100 % 2 == 0 else 2.5
        took = base * load * np.exp(0.15 * rng.standard_normal(N))
        dead, slow = rng.random(N) < 0.05, rng.random(N) < 0.02
        yield sorted(float(t) for t in np.where(slow, 4 * took, took)[~dead])


def play(arrivals: Sequence[float], deadline_s: float) -> tuple[float, Closing]:
    """When and how a round ends that asks `closing` at each arrival and when a look is due."""
    waiting = list(arrivals)
    arrived, now = 0, 0.0
    while True:
        if (verdict := closing(now, arrived, QUORUM, N, deadline_s)) is not Closing.WAIT:
            return now, verdict
        look = next_look(now, deadline_s)
        if waiting and (look is None or waiting[0] <= look):
            now = waiting.pop(0)
            arrived += 1
        else:
            assert look is not None
            now = look


def adaptive(seeds: int) -> Outcome:
    """The product's rule."""
    spent, failed, included, living = 0.0, 0, 0, 0
    for seed in range(seeds):
        history = History()
        for arrivals in offsets(seed):
            ended, verdict = play(arrivals, history.deadline_s(N))
            here = [offset for offset in arrivals if offset <= ended]
            late = len(arrivals) - len(here)
            history = history.after(here, late=late, closed_s=ended, n=N)
            spent += ended
            if verdict is Closing.CLOSE:
                included, living = included + len(here), living + len(arrivals)
            else:
                failed += 1
    return Outcome(spent / (seeds * ROUNDS), included / living, failed / (seeds * ROUNDS))


def fixed(seeds: int, deadline_s: float) -> Outcome:
    """A deadline that stays."""
    spent, failed, included, living = 0.0, 0, 0, 0
    for seed in range(seeds):
        for arrivals in offsets(seed):
            here = [offset for offset in arrivals if offset <= deadline_s]
            spent += here[-1] if len(here) == N else deadline_s
            if len(here) >= QUORUM:
                included, living = included + len(here), living + len(arrivals)
            else:
                failed += 1
    return Outcome(spent / (seeds * ROUNDS), included / living, failed / (seeds * ROUNDS))


def run(options: Options, report: Report) -> None:
    """Measure."""
    seeds = SEEDS_QUICK if options.quick else SEEDS
    ours = adaptive(seeds)
    others = {deadline: fixed(seeds, deadline) for deadline in FIXED}
    usable = {at: found for at, found in others.items() if found.failed <= FAILING_MAX}
    best = min(usable, key=lambda at: usable[at].mean_s)
    title = f"deadline by arrivals, {seeds * ROUNDS:,} rounds"
    report.value(
        f"{title}: failed",
        ours.failed * seeds * ROUNDS,
        unit="rounds",
        target=Target("=", 0),
        yardstick=f"fixed {best:g} s in this run",
        yardstick_value=usable[best].failed * seeds * ROUNDS,
    )
    report.value(
        f"{title}: mean of a round",
        ours.mean_s,
        unit="s",
        yardstick=f"fixed {best:g} s in this run",
        yardstick_value=usable[best].mean_s,
        target_ratio=Target("<=", 0.9),
    )
    report.value(f"{title}: living members included", ours.included * 100, unit="%")
    for at, found in others.items():
        report.value(
            f"fixed {at:g} s, the same rounds: mean of a round",
            found.mean_s,
            unit="s",
            yardstick=f"{found.included:.1%} of the living included, {found.failed:.1%} fail",
        )
