"""The helpers that decide whether a green run means something: need, sometimes, leaks, hang."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from _pytest.outcomes import Failed, Skipped

from tests.helpers import need as need_module
from tests.helpers.hang import task_tree
from tests.helpers.leaks import Census, task_count
from tests.helpers.need import REQUIRE_VARIABLE, REQUIREMENTS, Requirement, need, unmet
from tests.helpers.sometimes import Sometimes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> str:
    """A requirement that no machine meets."""
    requirement = Requirement(lambda: "no flux capacitor", "buy one")
    monkeypatch.setattr(need_module, "REQUIREMENTS", {**REQUIREMENTS, "flux": requirement})
    need_module.missing.cache_clear()
    return "flux"


def test_a_missing_tool_skips_and_says_how_to_get_it(
    absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REQUIRE_VARIABLE, raising=False)
    with pytest.raises(Skipped, match="no flux capacitor: buy one"):
        need(absent)


def test_a_missing_tool_fails_where_everything_is_required(
    absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REQUIRE_VARIABLE, "all")
    with pytest.raises(Failed, match="forbids to skip"):
        need(absent)


def test_evaluation_data_may_be_missing_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REQUIRE_VARIABLE, "all")
    with pytest.raises(Skipped):
        unmet("no evaluation data", "set COVEY_DATA to its folder", optional_in_ci=True)


def test_an_unknown_requirement_is_an_error_not_a_skip() -> None:
    with pytest.raises(KeyError):
        need("no-such-requirement")


def test_every_requirement_has_a_remedy() -> None:
    for name, requirement in REQUIREMENTS.items():
        assert len(requirement.remedy) > 10, name


def test_a_batch_in_which_a_fault_never_happened_fails() -> None:
    sometimes = Sometimes("partition_healed", "crash_restarted")
    sometimes("partition_healed")
    with pytest.raises(AssertionError, match="crash_restarted"):
        sometimes.check()
    sometimes("crash_restarted", 3)
    sometimes.check()


def test_an_undeclared_event_is_an_error() -> None:
    with pytest.raises(KeyError, match="undeclared"):
        Sometimes("one")("two")


def test_a_descriptor_left_open_is_named(tmp_path: Path) -> None:
    before = Census.take()
    descriptor = os.open(tmp_path / "forgotten", os.O_CREAT | os.O_WRONLY)
    try:
        with pytest.raises(AssertionError, match="forgotten"):
            Census.take().assert_nothing_new(since=before)
    finally:
        os.close(descriptor)
    Census.take().assert_nothing_new(since=before)


def test_a_thread_left_running_is_named() -> None:
    before = Census.take()
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, name="left-behind", daemon=True)
    thread.start()
    try:
        with pytest.raises(AssertionError, match="left-behind"):
            Census.take().assert_nothing_new(since=before)
    finally:
        go_on.set()
        thread.join()
    Census.take().assert_nothing_new(since=before)


async def test_a_task_left_running_is_counted() -> None:
    before = task_count()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        assert task_count() == before + 1
        nursery.cancel_scope.cancel()
    assert task_count() == before


async def test_the_task_tree_names_who_waits_where() -> None:
    async def waits_for_ever() -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits_for_ever)
        await trio.testing.wait_all_tasks_blocked()
        tree = task_tree()
        nursery.cancel_scope.cancel()
    line = next(line for line in tree.splitlines() if "waits_for_ever" in line)
    assert "test_test_helpers.py" in line


def test_outside_of_trio_the_task_tree_is_empty() -> None:
    assert task_tree() == ""
