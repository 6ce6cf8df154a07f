"""What a line carries, from the bytes that pass."""

from __future__ import annotations

import pytest

from federated.rounds.rates import FASTEST, FIRST, SAMPLE_BYTES, SAMPLES, Meter


def transfer(meter: Meter, at: float, nbytes: int, seconds: float, pieces: int = 10) -> float:
    meter.begin(at)
    for _ in range(pieces):
        at += seconds / pieces
        meter.add(at, nbytes // pieces)
    meter.end(at)
    return at


def test_before_anything_passed_a_common_line_is_assumed() -> None:
    assert Meter().rate == FIRST


def test_a_few_bytes_say_nothing_of_the_line() -> None:
    meter = Meter()
    transfer(meter, 0.0, SAMPLE_BYTES // 2, 0.1)
    assert meter.rate == FIRST


def test_a_slow_line_is_known_for_slow() -> None:
    meter = Meter()
    transfer(meter, 5.0, 200_000, 4.0)
    assert meter.rate == pytest.approx(50_000)


def test_transfers_at_the_same_time_share_the_line() -> None:
    meter = Meter()
    meter.begin(0.0)
    meter.begin(0.0)
    for tick in range(1, 11):
        meter.add(tick / 10, 100_000)
        meter.add(tick / 10, 100_000)
    meter.end(1.0)
    meter.end(1.0)
    assert meter.rate == pytest.approx(2e6)


def test_pauses_between_transfers_do_not_count() -> None:
    meter = Meter()
    at = transfer(meter, 0.0, 1_000_000, 0.5)
    transfer(meter, at + 1000, 1_000_000, 0.5)
    assert meter.rate == pytest.approx(2e6)


def test_the_best_of_late_counts_and_is_forgotten_in_time() -> None:
    meter = Meter()
    at = transfer(meter, 0.0, 10_000_000, 1.0)
    for _ in range(SAMPLES - 1):
        at = transfer(meter, at, 1_000_000, 1.0)
    assert meter.rate == pytest.approx(1e7)
    transfer(meter, at, 1_000_000, 1.0)
    assert meter.rate == pytest.approx(1e6)


def test_bytes_within_no_time_are_no_endless_rate() -> None:
    meter = Meter()
    transfer(meter, 1.0, 10_000_000, 0.0)
    assert meter.rate == FASTEST
