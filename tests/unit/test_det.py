"""The same seed gives the same run; breaks first if trio renames what det.py uses."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import trio
from trio._core import _run

from tests.helpers.det import run_seeded, seeded_scheduler

ROOT = Path(__file__).resolve().parents[2]


async def trace_of_many_tasks() -> str:
    """A digest of the order and virtual time in which 40 tasks with equal deadlines take turns."""
    trace = hashlib.sha256()
    inbox_send, inbox = trio.open_memory_channel[int](4)

    async def talker(number: int) -> None:
        for turn in range(5):
            # Equal deadlines: which of them goes first is the scheduler's choice alone.
            await trio.sleep(0.25)
            with trio.move_on_after(0.1):
                await inbox_send.send(number * 10 + turn)

    async def listener() -> None:
        async for message in inbox:
            trace.update(f"{message}@{trio.current_time():.3f};".encode())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener)
        async with trio.open_nursery() as talkers:
            for number in range(40):
                talkers.start_soon(talker, number)
        nursery.cancel_scope.cancel()
    return trace.hexdigest()


async def order_of_three() -> tuple[int, ...]:
    order: list[int] = []

    async def note(number: int) -> None:
        await trio.sleep(1)
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(note, number)
    return tuple(order)


def test_the_same_seed_gives_the_same_trace() -> None:
    first = run_seeded(trace_of_many_tasks, seed=7)
    assert [run_seeded(trace_of_many_tasks, seed=7) for _ in range(5)] == [first] * 5


def test_other_seeds_give_other_traces() -> None:
    traces = {run_seeded(trace_of_many_tasks, seed=seed) for seed in range(8)}
    assert len(traces) == 8


def test_two_hundred_seeds_reach_every_order_of_three_tasks() -> None:
    orders = {run_seeded(order_of_three, seed=seed) for seed in range(200)}
    assert len(orders) == 6


def test_control_without_the_flag_the_order_depends_on_memory_addresses() -> None:
    # The plain scheduler keeps a batch in the order of a set of objects, which follows addresses.
    # It can repeat by luck, so the control asks for a difference in 40 runs, not in two.
    traces = set()
    clutter: list[object] = []
    flag = _run._ALLOW_DETERMINISTIC_SCHEDULING
    vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = False
    try:
        for run in range(40):
            clutter.extend(bytearray(random.Random(run).randrange(64, 4096)) for _ in range(50))
            _run._r.seed(7)
            clock = trio.testing.MockClock(autojump_threshold=0)
            traces.add(trio.run(trace_of_many_tasks, clock=clock))
    finally:
        vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = flag
    assert len(traces) > 1


def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from tests.helpers.det import run_seeded\n"
        "import runpy\n"
        "module = runpy.run_path('tests/unit/test_det.py')\n"
        "print(run_seeded(module['trace_of_many_tasks'], seed=7))\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            text=True,
            timeout=50,
        ).stdout.strip()
        for hash_seed in ("0", "1", "424242")
    ]
    assert outputs == [run_seeded(trace_of_many_tasks, seed=7)] * 3


def test_the_scheduler_is_restored_after_a_run_even_if_it_fails() -> None:
    flag, numbers = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()

    async def fail() -> None:
        await trio.sleep(1)
        raise LookupError

    try:
        run_seeded(fail, seed=1)
    except LookupError:
        pass
    else:
        raise AssertionError
    assert flag == _run._ALLOW_DETERMINISTIC_SCHEDULING
    assert _run._r.getstate() == numbers


def test_virtual_time_costs_no_real_time() -> None:
    async def sleep_a_year() -> float:
        start = trio.current_time()
        await trio.sleep(365 * 86_400)
        return trio.current_time() - start

    assert run_seeded(sleep_a_year, seed=0) == 365 * 86_400


def test_every_test_runs_under_a_seeded_scheduler() -> None:
    # conftest's autouse fixture seeds from the test's id, as a nested use does.
    name = "tests/unit/test_det.py::test_every_test_runs_under_a_seeded_scheduler"
    drawn = _run._r.random()
    with seeded_scheduler(os.environ.get("COVEY_TEST_SCHEDULE", "") + name):
        assert _run._r.random() == drawn
    assert _run._ALLOW_DETERMINISTIC_SCHEDULING
