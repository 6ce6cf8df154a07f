"""What happens once happens once: links cut, processes killed, power cut, at every step.

A row may end without an answer, `outcome_unknown`; its effect may not happen twice. The controls
leave out one sync each, and then it does.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from federated.jobs.state import RowState
from tests.helpers.effect_world import FAULTS, World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SEEDS = range(1)
SLOW_SEEDS = range(12)
CONTROL_SEEDS = range(4)
COORDINATORS = ("cut", "deaf", "kill boss", "power boss")
"""Faults after which the worker is still there to tell what became of it."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A handler that raises is logged each time."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def check(world: World, faults: Sequence[tuple[str, int]]) -> None:
    """No effect twice; one that is said to have happened did; unknown only where it must be."""
    told = {f"{fault} at {at}" for fault, at in faults}
    assert max(world.paid.values(), default=0) <= 1, f"doubled: {told}, {world.paid}"
    for state, reason in world.rows():
        assert (state, reason) in {
            (RowState.OK, ""), (RowState.MISSING, "outcome_unknown"),
        }, told  # fmt: skip
    done = sum(state is RowState.OK for state, _ in world.rows())
    assert done <= len(world.paid), f"said to have happened and did not: {told}"
    if all(fault in COORDINATORS for fault, _ in faults):
        assert done == len(world.rows()), f"the worker knew: {told}"


def single_faults(seeds: Sequence[int], rows: int) -> Counter[tuple[str, str]]:
    """One fault of each kind at each step; how rows ended by kind of fault."""
    ends: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        for fault in FAULTS:
            for at in range(1, World(seed, rows=rows).run().steps + 1):
                world = World(seed, [(fault, at)], rows=rows).run()
                check(world, [(fault, at)])
                ends.update((fault, state.name) for state, _ in world.rows())
    return ends


def test_a_fault_at_any_step_doubles_no_effect() -> None:
    ends = single_faults(SEEDS, rows=1)
    assert sum(ends.values()) > 200
    for fault in ("kill worker", "power worker", "raise"):
        assert ends[fault, "MISSING"], f"{fault} hit no effect that had begun"
        assert ends[fault, "OK"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fault_at_any_step_of_more_orders_and_rows_doubles_no_effect() -> None:
    assert sum(single_faults(SLOW_SEEDS[:4], rows=3).values()) > 4000
    assert sum(single_faults(SLOW_SEEDS, rows=1).values()) > 2000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_three_faults_double_no_effect() -> None:
    rng = random.Random(3)
    unknown = 0
    for seed in range(2500):
        faults = [(rng.choice(FAULTS), rng.randrange(1, 60)) for _ in range(3)]
        world = World(seed, faults, rows=rng.choice((1, 2))).run()
        check(world, faults)
        unknown += sum(state is RowState.MISSING for state, _ in world.rows())
    assert unknown > 50, "the faults hit nothing"


def doubled(fault: str, **control: bool) -> int:
    """In how many runs an effect happened twice."""
    found = 0
    for seed in CONTROL_SEEDS:
        for at in range(1, World(seed, **control).run().steps + 1):
            world = World(seed, [(fault, at)], **control).run()
            found += max(world.paid.values(), default=0) > 1
    return found


@pytest.mark.parametrize(
    ("fault", "control"),
    [
        ("power boss", {"synced_offers": False}),
        ("kill boss", {"early": True}),
        ("power worker", {"synced_workers": False}),
    ],
)
def test_control_without_the_sync_an_effect_is_doubled(
    fault: str, control: dict[str, bool]
) -> None:
    assert doubled(fault, **control) > 0
    assert doubled(fault) == 0


def test_a_handler_that_may_run_twice_always_has_an_answer() -> None:
    again = 0
    for fault in ("kill worker", "power worker", "raise"):
        for at in range(1, World(1, idempotent=True).run().steps + 1):
            world = World(1, [(fault, at)], idempotent=True).run()
            assert world.rows() == [(RowState.OK, "")], f"{fault} at {at}"
            assert len(world.paid) == 1, "the token names the effect each time"
            again += sum(world.paid.values()) > 1
    assert again, "none ran again"
