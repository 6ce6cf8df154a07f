"""Local differential privacy: each record is reported once, with its own noise, before it leaves.

Two frequency oracles. k-RR tells the value with probability p and each other one with q, and needs
a fixed list of values. OLH draws a hash function for each record, tells its hash with probability p
and each other one of G with less; any candidate can be scored against such reports later, so they
never depend on what was asked. Either way a report's probability differs by at most e^epsilon
between any two values of a record: that holds against everybody, whatever the other members do.

    oracle = olh(epsilon)
    reports = perturb_olh(prefixes, oracle, source)         # at the member that holds the records
    counts = support_olh(reports, oracle, candidates)
    estimates, sd = estimate(counts, len(reports), oracle)

A value that is reported twice with fresh noise costs epsilon twice: keep reports, never redraw.
Randomness comes from `Source`: in production the operating system's, in tests a seeded one.
Uniform numbers have 53 bits: a probability is off by at most 2^-53, epsilon by less than 1e-9.

Source: Wang et al. 2017 (USENIX Security, "Locally Differentially Private Protocols for Frequency
Estimation"); splitmix64: Steele, Lea, Flood 2014.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, sqrt
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from federated.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64: TypeAlias = NDArray[np.float64]
    U64: TypeAlias = NDArray[np.uint64]
    I64: TypeAlias = NDArray[np.int64]

Source: TypeAlias = Callable[[int], bytes]
"""Gives as many random bytes as it is asked for."""

EPSILON_MIN: Final = 0.01
EPSILON_MAX: Final = 8.0
"""Above it e^epsilon = 2,981: a report tells the value nearly always, and "private" misleads."""
BLOCK: Final = 1 << 15
"""Hashes computed at once: 256 KiB. With 1 MiB every scratch array is fresh memory from the system,
which takes four times as long (2,560 candidates, 40,000 reports: 2.4 s against 0.6)."""


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """How a record is reported.

    Attributes:
        epsilon: what a report costs at most.
        values: k-RR: number of values, the last "none of them"; OLH: G, number of hashes.
        hashed: OLH.
        keep: probability that the true value (or its hash) is told.
        q: probability that a report supports a value that the record does not have.
    """

    epsilon: float
    values: int
    hashed: bool
    keep: float
    q: float


@dataclass(frozen=True, kw_only=True)
class HashedReports:
    """Reports of OLH.

    Attributes:
        seeds: uint64[n]: which hash function each record drew.
        told: uint64[n]: the hash that it told.
    """

    seeds: U64
    told: U64

    def __len__(self) -> int:
        """How many records reported."""
        return len(self.told)


def check_epsilon(epsilon: float) -> float:
    """Epsilon as given.

    Raises:
        UsageError: below 0.01, above 8, or no number.
    """
    if not EPSILON_MIN <= epsilon <= EPSILON_MAX:
        raise UsageError(f"epsilon: give a number from {EPSILON_MIN} to {EPSILON_MAX:g}")
    return float(epsilon)


def krr(epsilon: float, values: int) -> Oracle:
    """k-ary randomised response over `values` values, "none of them" counted."""
    if values < 2:
        raise UsageError("k-RR needs two values at least")
    grown = exp(check_epsilon(epsilon))
    below = grown + values - 1
    return Oracle(epsilon=epsilon, values=values, hashed=False, keep=grown / below, q=1 / below)


def olh(epsilon: float) -> Oracle:
    """Optimal local hashing, with G = round(e^epsilon) + 1 hashes."""
    grown = exp(check_epsilon(epsilon))
    hashes = round(grown) + 1
    return Oracle(
        epsilon=epsilon, values=hashes, hashed=True, keep=grown / (grown + hashes - 1), q=1 / hashes
    )


def choose(epsilon: float, values: int) -> Oracle:
    """The oracle with less noise: k-RR for fewer than 3 e^epsilon + 2 values, else OLH.

    Args:
        epsilon: of a report.
        values: how many there are, "none of them" counted.
    """
    small = values < 3 * exp(check_epsilon(epsilon)) + 2
    return krr(epsilon, values) if small else olh(epsilon)


def uniform(source: Source, count: int) -> F64:
    """float64[count] in [0, 1), multiples of 2^-53."""
    return (words(source, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def words(source: Source, count: int) -> U64:
    """uint64[count] of random bits."""
    data = source(8 * count)
    assert len(data) == 8 * count, "a source that gives too little"
    return np.frombuffer(data, "<u8").astype(np.uint64)


def shuffled(source: Source, count: int) -> I64:
    """A random order of the numbers below `count`."""
    return np.argsort(words(source, count), kind="stable")


def split_mix(x: U64) -> U64:
    """splitmix64 of each element."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def hashed(values: U64 | np.uint64, seeds: U64 | np.uint64, hashes: int) -> U64:
    """H_s(x) below `hashes`; the arguments are broadcast. Privacy does not rest on it."""
    mixed: U64 = np.asarray(values ^ seeds, np.uint64)
    return (split_mix(mixed) >> np.uint64(32)) * np.uint64(hashes) >> np.uint64(32)


def _told(true: I64, oracle: Oracle, source: Source) -> I64:
    """Each value with probability `keep`, else one of the others, each as likely as the next."""
    kept = uniform(source, len(true)) < oracle.keep
    # Drawn among the others, not among all: else the true value would be told too often.
    other = np.floor(uniform(source, len(true)) * (oracle.values - 1)).astype(np.int64)
    other += other >= true
    return np.where(kept, true, other)


def perturb_krr(values: I64, oracle: Oracle, source: Source) -> I64:
    """One report a record.

    Args:
        values: int64[n], each below `oracle.values`.
        oracle: of `krr`.
        source: of randomness.

    Returns:
        int64[n].
    """
    assert not oracle.hashed
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < oracle.values:
        raise UsageError(f"a value that is none of {oracle.values}")
    return _told(values, oracle, source)


def perturb_olh(values: U64, oracle: Oracle, source: Source) -> HashedReports:
    """One report a record.

    Args:
        values: uint64[n]: anything.
        oracle: of `olh`.
        source: of randomness.
    """
    assert oracle.hashed
    seeds = words(source, len(values))
    true = hashed(values.astype(np.uint64), seeds, oracle.values).astype(np.int64)
    return HashedReports(seeds=seeds, told=_told(true, oracle, source).astype(np.uint64))


def support_krr(reports: I64, oracle: Oracle, candidates: U64) -> F64:
    """How many reports tell each candidate: float64[len(candidates)]."""
    counts = np.bincount(reports, minlength=oracle.values)
    return counts[candidates.astype(np.int64)].astype(np.float64)


def support_olh(reports: HashedReports, oracle: Oracle, candidates: U64) -> F64:
    """How many reports tell the hash of each candidate: float64[len(candidates)]."""
    counts = np.zeros(len(candidates))
    # Few hash functions at once, for all candidates: what is read again stays in the cache.
    rows = max(1, BLOCK // max(1, len(candidates)))
    for start in range(0, len(reports), rows):
        seeds = reports.seeds[start : start + rows, None]
        told = reports.told[start : start + rows, None]
        counts += (hashed(candidates[None, :], seeds, oracle.values) == told).sum(axis=0)
    return counts


def estimate(counts: F64, reports: int, oracle: Oracle) -> tuple[F64, float]:
    """How many records have each candidate, without bias, and the sd of that for a rare one.

    Args:
        counts: float64[c], how many reports support each.
        reports: how many there are.
        oracle: that made them.
    """
    return (counts - reports * oracle.q) / (oracle.keep - oracle.q), noise_sd(reports, oracle)


def noise_sd(reports: int, oracle: Oracle) -> float:
    """Standard deviation of an estimate of a value that hardly anybody has; in records."""
    return sqrt(reports * oracle.q * (1 - oracle.q)) / (oracle.keep - oracle.q)
