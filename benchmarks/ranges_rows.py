"""Range-based reconciliation: round trips, bytes, and CPU beside negentropy's sum of ids."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from benchmarks.report import Target, alternate
from p2p.replication.ranges import RangeSet
from tests.helpers.ranges_kit import AdditiveSet, random_items, reconcile

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.report import Options, Report

DIFFERING = 100
SAMPLE_S = 0.1


def run(options: Options, report: Report) -> None:
    """Measure."""
    items = random_items(random.Random(1), 100_000)
    scattered = set(random.Random(2).sample(range(len(items)), DIFFERING))
    recent = set(range(len(items) - DIFFERING, len(items)))
    _rows(report, "100k records, 100 differ, over 90 days", items, scattered, 2, 65_000)
    _rows(report, "100k records, the newest 100 differ", items, recent, 2, 4_000)
    _rows(report, "100k records, equal", items, set(), 1, 400)
    _cpu(options, report, items, scattered)
    if not options.quick:
        million = random_items(random.Random(3), 1_000_000)
        spread = set(random.Random(4).sample(range(len(million)), DIFFERING))
        _rows(report, "1M records, 100 differ, over 90 days", million, spread, 3, None)


def _apart(items: list[bytes], differing: set[int]) -> tuple[bytes, bytes]:
    """Packed sets of two sides: each lacks every second of the differing items."""
    ours = [one for at, one in enumerate(items) if at not in differing or at % 2]
    theirs = [one for at, one in enumerate(items) if at not in differing or not at % 2]
    return b"".join(ours), b"".join(theirs)


def _rows(
    report: Report,
    name: str,
    items: list[bytes],
    differing: set[int],
    rounds: int,
    size: int | None,
) -> None:
    ours, theirs = _apart(items, differing)
    done = reconcile(RangeSet(ours), RangeSet(theirs))
    if len(done.have) + len(done.need) != len(differing):
        raise RuntimeError(f"{name}: found {len(done.have) + len(done.need)} differences")
    report.value(
        f"{name}: round trips", done.rounds, unit="round trips", target=Target("<=", rounds)
    )
    target = None if size is None else Target("<=", size)
    report.value(f"{name}: bytes both ways", done.bytes, unit="bytes", target=target)


def _cpu(options: Options, report: Report, items: list[bytes], differing: set[int]) -> None:
    ours, theirs = _apart(items, differing)

    def sample(kind: type[RangeSet]) -> Callable[[], float]:
        sides = kind(ours), kind(theirs)

        def measure() -> float:
            runs, start = 0, time.process_time()
            while time.process_time() - start < SAMPLE_S:
                reconcile(*sides)
                runs += 1
            return (time.process_time() - start) / runs * 1e3

        return measure

    report.paired(
        "100k records, 100 differ: CPU of both sides",
        alternate(sample(RangeSet), sample(AdditiveSet), options.rounds),
        unit="ms",
        yardstick="the same with sums of ids (negentropy V1's fingerprint)",
        target=Target("<=", 1.5),
    )
