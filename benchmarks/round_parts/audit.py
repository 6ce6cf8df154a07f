"""What an observer can prove about the noise of local reports, beside what they claim.

400,000 reports of each of two values of a record. From how often they tell the first one follows a
lower bound of epsilon, ln(low(p1) / high(p0)) with Clopper-Pearson limits of 95 %: above the claim,
the noise is broken. A seeded bug (the other value drawn among all, the true one too) must be seen.
OLH draws its own hash functions; only those that hash the two values apart count here, else equal
hashes would hide a bug.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, lgamma, log
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.report import Target
from federated.rounds.privacy.local import hashed, krr, olh, perturb_krr, perturb_olh

if TYPE_CHECKING:
    from benchmarks.report import Options, Report
    from federated.rounds.privacy.local import Source

DRAWS: Final = 400_000
VALUES: Final = 16
EPSILONS: Final = (0.5, 1.0, 2.0, 4.0)
SURE: Final = 0.95
_TINY: Final = 1e-300


def seeded(seed: int) -> Source:
    """A source that gives the same each time."""
    rng = np.random.default_rng(seed)
    return rng.bytes


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function (Lentz; Numerical Recipes 6.4)."""
    c, d = 1.0, 1.0 / max(1 - (a + b) * x / (a + 1), _TINY)
    value = d
    for m in range(1, 5_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / (1 + step * d or _TINY)
            c = 1 + step / c or _TINY
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


def beta_below(a: float, b: float, x: float) -> float:
    """Probability that a beta variable of (a, b) is below x."""
    if not 0 < x < 1:
        return float(x >= 1)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(1 - x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _quantile(a: float, b: float, share: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_below(a, b, middle) < share else (low, middle)
    return (low + high) / 2


def clopper_pearson(hits: int, draws: int, sure: float = SURE) -> tuple[float, float]:
    """Limits of a probability that was seen `hits` times in `draws`."""
    tail = (1 - sure) / 2
    low = _quantile(hits, draws - hits + 1, tail) if hits else 0.0
    high = _quantile(hits + 1, draws - hits, 1 - tail) if hits < draws else 1.0
    return low, high


def bound(hits: int, draws: int, other_hits: int, other_draws: int) -> float:
    """What epsilon is at least, given how often an event was seen with each of two values."""
    low, _ = clopper_pearson(hits, draws)
    _, high = clopper_pearson(other_hits, other_draws)
    return log(max(low, _TINY) / high)


def krr_bound(epsilon: float, source: Source, *, draws: int = DRAWS, broken: bool = False) -> float:
    """Of k-RR over 16 values; `broken`: with the bug."""
    oracle = krr(epsilon, VALUES)
    seen = []
    for value in (0, 1):
        if broken:
            # The bug: told as it is with probability p, else any of all values.
            kept = np.frombuffer(source(8 * draws), "<u8") >> np.uint64(11)
            true = kept.astype(np.float64) * 2.0**-53 < oracle.keep
            drawn = np.frombuffer(source(draws), np.uint8) % VALUES
            reports = np.where(true, value, drawn.astype(np.int64))
        else:
            reports = perturb_krr(np.full(draws, value, np.int64), oracle, source)
        seen.append(int((reports == 0).sum()))
    return bound(seen[0], draws, seen[1], draws)


def olh_bound(epsilon: float, source: Source, *, draws: int = DRAWS, broken: bool = False) -> float:
    """Of OLH, among hash functions that part the two values; `broken`: keeps too often."""
    oracle = olh(epsilon)
    if broken:
        oracle = replace(oracle, keep=oracle.keep + (1 - oracle.keep) / oracle.values)
    seen, counted = [], []
    for value in (0, 1):
        reports = perturb_olh(np.full(draws, value, np.uint64), oracle, source)
        first, second = (hashed(np.uint64(one), reports.seeds, oracle.values) for one in (0, 1))
        apart = first != second
        seen.append(int((reports.told == first)[apart].sum()))
        counted.append(int(apart.sum()))
    return bound(seen[0], counted[0], seen[1], counted[1])


def run(options: Options, report: Report) -> None:
    """Measure."""
    draws = DRAWS // 4 if options.quick else DRAWS
    found = {"k-RR of 16": krr_bound, "OLH": olh_bound}
    for name, measure in found.items():
        for place, epsilon in enumerate(EPSILONS):
            report.value(
                f"epsilon {epsilon:g}, {name}: proved of {draws:,} reports",
                measure(epsilon, seeded(place), draws=draws),
                unit="",
                target=Target("<=", epsilon),
            )
    caught = sum(krr_bound(one, seeded(9), draws=DRAWS, broken=True) > one for one in EPSILONS)
    report.value(
        "a bug in k-RR: epsilons at which it is seen",
        caught,
        unit="of 4",
        target=Target("=", len(EPSILONS)),
    )
