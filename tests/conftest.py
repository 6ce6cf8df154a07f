"""What holds for every test: repeatable scheduling, repeatable examples, no leaks."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import hypothesis
import hypothesis.configuration
import pytest

from tests.helpers.det import seeded_scheduler
from tests.helpers.leaks import Census

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def pytest_collection_finish() -> None:
    """Keep what was collected out of every collection of garbage.

    Trio's tests and hypothesis collect often, and 9,000 tests with their modules are half a
    million objects to walk through each time: a third of the time of unit and property tests.
    """
    gc.collect()
    gc.freeze()


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
