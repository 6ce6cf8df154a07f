"""The cancellation harness finds a torn update and passes a whole one."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel

from tests.helpers.cancel import Cut, cancel_at_every_step


class Pair:
    """Two numbers that must stay equal."""

    def __init__(self) -> None:
        self.left = 0
        self.right = 0

    async def update_torn(self) -> None:
        self.left += 1
        await trio.sleep(0.1)
        self.right += 1

    async def update_whole(self) -> None:
        await trio.sleep(0.1)
        self.left += 1
        self.right += 1
        await trio.sleep(0.1)


def test_a_torn_update_is_found_and_the_step_is_named() -> None:
    async def scenario(cut: Cut) -> None:
        pair = Pair()
        await cut.attempt(pair.update_torn)
        assert pair.left == pair.right

    with pytest.raises(AssertionError) as caught:
        cancel_at_every_step(scenario)
    assert any("cancelled at step" in note for note in caught.value.__notes__)


def test_a_whole_update_survives_a_cut_at_each_of_its_steps() -> None:
    outcomes: list[bool] = []

    async def scenario(cut: Cut) -> None:
        pair = Pair()
        finished = await cut.attempt(pair.update_whole)
        outcomes.append(finished)
        assert pair.left == pair.right
        assert not finished or pair.left == 1

    cuts = cancel_at_every_step(scenario)
    assert cuts >= 2
    assert outcomes == [False] * cuts + [True]


def test_steps_of_other_tasks_are_cut_points_too() -> None:
    async def alone(cut: Cut) -> None:
        await cut.attempt(Pair().update_whole)

    async def with_company(cut: Cut) -> None:
        async def tick() -> None:
            while True:  # noqa: ASYNC110 - a neighbour that takes steps of its own
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            await cut.attempt(Pair().update_whole)
            nursery.cancel_scope.cancel()

    assert cancel_at_every_step(with_company) > cancel_at_every_step(alone)


def test_an_operation_that_never_ends_is_reported() -> None:
    async def scenario(cut: Cut) -> None:
        async def spin() -> None:
            while True:  # noqa: ASYNC110 - never ending is the point
                await trio.sleep(1)

        await cut.attempt(spin)

    with pytest.raises(AssertionError, match="still did not complete"):
        cancel_at_every_step(scenario, steps_max=20)


def test_a_scenario_that_forgets_its_attempt_is_reported() -> None:
    async def scenario(_cut: Cut) -> None:
        await trio.lowlevel.checkpoint()

    with pytest.raises(AssertionError, match="exactly once"):
        cancel_at_every_step(scenario)


def test_an_operation_without_a_step_is_reported() -> None:
    async def scenario(cut: Cut) -> None:
        async def nothing() -> None:
            pass

        await cut.attempt(nothing)

    with pytest.raises(AssertionError, match="no step"):
        cancel_at_every_step(scenario)
