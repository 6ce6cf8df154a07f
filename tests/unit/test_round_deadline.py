"""Deadlines of rounds: how they follow arrivals, and who can move them."""

from __future__ import annotations

import random
import statistics

import pytest

from federated.errors import UsageError
from federated.rounds.protocol.deadline import (
    DEADLINE_MAX_S,
    DEADLINE_MIN_S,
    FIRST_S,
    Closing,
    History,
    closing,
    closing_early,
    grace_s,
    next_look,
    phase_limit_s,
    silent_after_s,
)


def test_no_history_waits_ten_minutes_or_what_the_policy_says() -> None:
    assert History().deadline_s(20) == FIRST_S == 600
    assert History().deadline_s(20, first_s=30) == 30


def test_the_deadline_by_hand() -> None:
    # Median 30, deviations 20 10 0 10 20: MAD 10.
    assert History((10, 20, 30, 40, 50)).deadline_s(5) == pytest.approx(30 + 3 * 14.826)


def test_only_the_last_three_rounds_count() -> None:
    old = History((1e4,) * 100)
    for _ in range(3):
        old = old.after([50.0] * 4, late=0, closed_s=50.0, n=4)
    assert len(old.offsets) == 12
    assert old.deadline_s(4) == 50.0
    assert History((1e4, *[50.0] * 12)).deadline_s(4) == 50.0


def test_the_deadline_stays_between_five_seconds_and_a_day() -> None:
    assert History((0.01,) * 9).deadline_s(3) == DEADLINE_MIN_S
    assert History((1e300,) * 9).deadline_s(3) == DEADLINE_MAX_S


@pytest.mark.attack
@pytest.mark.parametrize("offset", [float("nan"), float("inf"), -float("inf"), -1.0, 1e300])
def test_a_foolish_offset_leaves_a_deadline(offset: float) -> None:
    history = History().after([offset, 60.0, 61.0], late=1, closed_s=offset, n=4)
    assert DEADLINE_MIN_S <= history.deadline_s(4) <= DEADLINE_MAX_S


def test_more_arrivals_than_members_are_our_own_mistake() -> None:
    with pytest.raises(UsageError):
        History().after([1.0, 2.0], late=1, closed_s=2.0, n=2)
    with pytest.raises(UsageError):
        History((1.0,)).deadline_s(0)


def play(
    spread: float, rounds: int = 400, *, censor: bool = True, liars: int = 0
) -> tuple[float, float]:
    """Rounds of 20 live members around 60 s; the last deadline and the share included by then."""
    draw = random.Random(5)
    history = History()
    included = []
    for _ in range(rounds):
        deadline = history.deadline_s(20)
        offsets = [60 * draw.lognormvariate(0, spread) for _ in range(20 - liars)]
        offsets += [deadline - 0.001] * liars
        arrived = [offset for offset in offsets if offset <= deadline]
        late = len(offsets) - len(arrived) if censor else 0
        history = history.after(arrived, late=late, closed_s=deadline, n=20)
        included.append(len(arrived) / 20)
    return history.deadline_s(20), statistics.fmean(included[-50:])


def test_late_members_in_the_history_keep_the_deadline_from_ratcheting_down() -> None:
    deadline, kept = play(1.0)
    ratcheted, lost = play(1.0, censor=False)  # control
    assert kept > 0.85
    assert lost < kept - 0.05
    assert ratcheted < 0.8 * deadline


@pytest.mark.attack
def test_a_third_that_always_comes_at_the_last_moment_does_not_stretch_rounds_for_ever() -> None:
    honest, _ = play(0.3)
    stretched, kept = play(0.3, liars=6)
    assert stretched < 2 * honest
    assert kept > 0.95
    assert play(1.0, rounds=800, liars=6)[0] < 600  # where it began


@pytest.mark.parametrize(
    ("now", "arrived", "expected"),
    [
        (1, 19, Closing.WAIT),
        (1, 20, Closing.CLOSE),
        (99, 14, Closing.WAIT),
        (100, 14, Closing.CLOSE),
        (100, 13, Closing.WAIT),
        (250, 14, Closing.CLOSE),
        (299.9, 13, Closing.WAIT),
        (300, 13, Closing.BELOW_QUORUM),
        (300, 14, Closing.CLOSE),
        (1e9, 0, Closing.BELOW_QUORUM),
    ],
)
def test_closing(now: float, arrived: int, expected: Closing) -> None:
    assert closing(now, arrived, 14, 20, 100.0) is expected


def test_the_next_look_is_at_the_deadline_then_at_three_of_them() -> None:
    assert next_look(0, 100) == 100
    assert next_look(100, 100) == 300
    assert next_look(300, 100) is None


@pytest.mark.parametrize(
    ("now", "arrived", "expected"),
    [
        (0, 5, Closing.CLOSE),
        (7.9, 4, Closing.WAIT),
        (8, 3, Closing.CLOSE),
        (8, 2, Closing.WAIT),
        (299, 2, Closing.WAIT),
        (300, 2, Closing.BELOW_QUORUM),
    ],
)
def test_closing_of_a_fragment(now: float, arrived: int, expected: Closing) -> None:
    assert closing_early(now, arrived, 5, 100.0, grace=8.0) is expected


def test_grace_is_what_the_overlap_leaves() -> None:
    assert grace_s(3, 10.0, 20.0) == pytest.approx(8.0)
    assert grace_s(3, 10.0, 40.0) == 0.0
    assert grace_s(0, 10.0, 0.0) == 0.0


def test_transfers() -> None:
    assert (silent_after_s(0.1), silent_after_s(2.0)) == (5.0, 16.0)
    assert (phase_limit_s(1.0), phase_limit_s(100.0)) == (15.0, 300.0)
