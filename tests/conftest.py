"""What holds for every test: repeatable scheduling and examples, no leaks, readable hangs."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import hypothesis
import hypothesis.configuration
import pytest

from tests.helpers.det import seeded_scheduler
from tests.helpers.hang import task_tree
from tests.helpers.leaks import Census

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import FrameType

EXAMPLES = 100
PROFILE_VARIABLE = "COVEY_TEST_PROFILE"

# `gate` is what `make test` runs: the same examples every time. `wide` is the same, ten times as
# many; `explore` draws freshly, and each of its finds becomes an @example or a vector.
hypothesis.settings.register_profile(
    "gate",
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
)
hypothesis.settings.register_profile(
    "wide", hypothesis.settings.get_profile("gate"), max_examples=10 * EXAMPLES
)
hypothesis.settings.register_profile(
    "explore", max_examples=10 * EXAMPLES, database=None, deadline=None, print_blob=True
)
hypothesis.configuration.set_hypothesis_home_dir("build/hypothesis")
hypothesis.settings.load_profile(os.environ.get(PROFILE_VARIABLE, "gate"))


@pytest.fixture(autouse=True)
def _repeatable_scheduling(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed trio's scheduler with the test's own id: a test's order of tasks is its own."""
    with seeded_scheduler(os.environ.get("COVEY_TEST_SCHEDULE", "") + request.node.nodeid):
        yield


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if it leaves a descriptor or a thread. Request it before other fixtures."""
    before = Census.take()
    yield
    Census.take().assert_nothing_new(since=before)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer() -> Generator[None, object, object]:
    """Print trio's task tree before pytest-timeout ends a hanging test."""
    result = yield
    handler = signal.getsignal(signal.SIGALRM)
    if callable(handler):

        def show_and_end(number: int, frame: FrameType | None) -> None:
            sys.stderr.write(f"\nThe time limit fired. Tasks of trio:\n{task_tree()}\n")
            assert callable(handler)
            handler(number, frame)

        signal.signal(signal.SIGALRM, show_and_end)
    return result
