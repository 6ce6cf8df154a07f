"""A pytest plugin: layers in a useful order, their times beside their budgets, a wall budget.

The folder below `tests/` is a test's layer. The closing lines say what each layer took beside what
it should take on a quiet machine with two cores (over it is a remark, never a failure), which tests
are too slow to be unmarked, and, with `--budget-s`, which tests the budget left no time for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

BUDGET_S: Final = {
    "tidy": 60,
    "unit": 75,
    "property": 55,
    "attack": 45,
    "stateful": 45,
    "sim": 100,
    "crash": 25,
    "process": 55,
    "netns": 30,
    "fuzz": 10,
    "examples": 25,
    "interop": 25,
}
"""Seconds of each layer in `make test`; cheap and telling layers come first."""

SLOW_BUDGET_S: Final = {
    "tidy": 40,
    "property": 150,
    "stateful": 150,
    "sim": 400,
    "crash": 60,
    "process": 240,
    "netns": 180,
    "fuzz": 180,
    "interop": 150,
}
"""The same for `make test-slow`."""

SLOW_TEST_S: Final = 5.0
"""A test over this belongs in `make test-slow`."""


def layer_of(item_path: Path) -> str:
    """The folder below `tests/` that holds a test file."""
    parts = item_path.parts
    for index, part in enumerate(parts[:-2]):
        if part == "tests":
            return parts[index + 1]
    return item_path.parent.name


class Layers:
    """The plugin's state for one run.

    Args:
        budget_s: wall seconds after which no further test starts; None for no limit.
        slow: whether this is the slow run.
    """

    def __init__(self, budget_s: float | None, *, slow: bool) -> None:
        self._budget_s = budget_s
        self._budgets = SLOW_BUDGET_S if slow else BUDGET_S
        self._slow = slow
        self._started_s = time.perf_counter()
        self._spent_s: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._test_s: dict[str, float] = defaultdict(float)
        self._marked_slow: set[str] = set()
        self._unreached: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Order the layers; within one, the order of files stays."""
        order = {name: index for index, name in enumerate(BUDGET_S)}
        items.sort(key=lambda item: order.get(layer_of(item.path), len(order)))
        self._marked_slow = {
            item.nodeid
            for item in items
            if item.get_closest_marker("slow") or item.get_closest_marker("interop")
        }

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Skip over what the budget leaves no time for; it is listed at the end."""
        if self._budget_s is None or time.perf_counter() - self._started_s < self._budget_s:
            return None
        self._unreached.append(item.nodeid)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a phase's time to its layer."""
        layer = layer_of(Path(report.nodeid.split("::", 1)[0]))
        self._spent_s[layer] += report.duration
        self._test_s[report.nodeid] += report.duration
        if report.when == "call":
            self._counts[layer] += 1

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        """Print the table, the slow tests and the unreached ones."""
        write = terminalreporter.write_line
        terminalreporter.section("layers")
        for layer in [*BUDGET_S, *sorted(set(self._spent_s) - set(BUDGET_S))]:
            if layer in self._spent_s:
                budget_s = self._budgets.get(layer)
                spent_s = self._spent_s[layer]
                remark = "  over" if budget_s is not None and spent_s > budget_s else ""
                beside = f"{budget_s:5} s" if budget_s is not None else "      -"
                write(
                    f"{layer:10} {self._counts[layer]:5} tests {spent_s:7.1f} s of {beside}{remark}"
                )
        write(f"{'wall':10} {'':11} {time.perf_counter() - self._started_s:7.1f} s")
        unmarked = sorted(
            (nodeid for nodeid, s in self._test_s.items() if s > SLOW_TEST_S),
            key=lambda nodeid: -self._test_s[nodeid],
        )
        for nodeid in unmarked:
            if nodeid not in self._marked_slow:
                spent_s = self._test_s[nodeid]
                write(f"over {SLOW_TEST_S:.0f} s without `slow`: {spent_s:.1f} s {nodeid}")
        if self._unreached:
            terminalreporter.section(f"not reached: {len(self._unreached)} tests")
            write(f"The budget of {self._budget_s:.0f} s was spent. Run them with --budget-s 0:")
            for nodeid in self._unreached:
                write(f"  {nodeid}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare `--budget-s`."""
    parser.addoption(
        "--budget-s",
        type=float,
        default=0.0,
        help="start no further test after this many seconds and list the rest (0: no limit)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the state for this run."""
    budget_s = float(config.getoption("--budget-s"))
    slow = "slow" in str(config.getoption("-m")) and "not slow" not in str(config.getoption("-m"))
    config.pluginmanager.register(Layers(budget_s or None, slow=slow), "covey-layers")
