"""Effects on peers while daemons are killed; what they do stands in a ledger outside."""

from __future__ import annotations

import pytest

from benchmarks.job_kills import measured


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_coordinator_killed_again_and_again_has_every_effect_once() -> None:
    course = measured(1200, 4, effect=True)
    assert course.kills == 4
    assert course.ok == 1200, "the workers lived: nothing is lost and nothing unknown"
    assert course.doubled == 0
    assert course.lines == 1200


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_worker_leaves_unknown_what_it_had_begun_and_doubles_nothing() -> None:
    course = measured(800, 3, effect=True, victim=1)
    assert course.kills == 3
    assert course.doubled == 0
    assert course.ok + course.unknown == 800
    assert course.lines >= course.ok
    assert course.unknown <= 3 * 2 * 2, "two slots, and what was being written down"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_control_pure_tasks_come_again() -> None:
    course = measured(1200, 4, effect=False)
    assert course.ok == 1200
    assert course.lines > 1200, "a kill that nothing notices proves nothing"
