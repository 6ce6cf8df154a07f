"""End a hanging test so that the run goes on, and say what it was waiting for.

pytest-timeout raises from a signal handler. Inside trio's own loop that tears the loop apart, and
the tests after it fail or hang too. So the first alarm only cancels the test's main task, as trio
does it; if that does not end it (a loop without a checkpoint, a shield), the second alarm, a few
seconds later, is pytest-timeout's own.
"""

from __future__ import annotations

import signal
import sys
import traceback
from typing import TYPE_CHECKING, Final

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import FrameType

GRACE_S: Final = 5.0
"""What a cancelled test has for its cleanup before it is ended by force."""
_WAITED_FOR: Final = pytest.StashKey[str]()


def task_tree() -> str:
    """The tasks of the current trio run with the line each waits at; empty outside of trio."""
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        return ""
    return "\n".join(_lines(root)) if root is not None else ""


def _lines(root: trio.lowlevel.Task) -> Iterator[str]:
    # A stack of our own: a runaway test may have nested deeper than Python recurses.
    stack = [(root, 0)]
    while stack:
        task, depth = stack.pop()
        yield f"{'  ' * depth}{task.name} {_where(task)}"
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        children.sort(key=lambda child: child.name)
        stack.extend((child, depth + 1) for child in reversed(children))


def _where(task: trio.lowlevel.Task) -> str:
    frames = traceback.StackSummary.extract(task.iter_await_frames(), limit=None)
    ours = [frame for frame in frames if "site-packages" not in frame.filename]
    if not ours:
        return "(running, or in a library)"
    return f"at {ours[-1].filename}:{ours[-1].lineno} in {ours[-1].name}"


def _cancel_main_task() -> None:
    root = trio.lowlevel.current_root_task()
    if root is not None and root.child_nurseries:
        # The innermost nursery of trio's root task holds the main task alone.
        root.child_nurseries[-1].cancel_scope.cancel()


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item) -> Generator[None, object, object]:
    """Put the gentle alarm before pytest-timeout's."""
    result = yield
    by_force = signal.getsignal(signal.SIGALRM)
    if callable(by_force):
        signal.signal(signal.SIGALRM, _gentle_alarm(item, by_force))
    return result


def _gentle_alarm(
    item: pytest.Item, by_force: Callable[[int, FrameType | None], object]
) -> Callable[[int, FrameType | None], object]:
    def alarm(number: int, frame: FrameType | None) -> None:
        try:
            token = trio.lowlevel.current_trio_token()
        except RuntimeError:
            by_force(number, frame)
            return
        waited_for = f"Tasks of trio when the time limit fired:\n{task_tree()}"
        item.stash[_WAITED_FOR] = waited_for
        sys.stderr.write(f"\n{waited_for}\n")
        signal.signal(signal.SIGALRM, by_force)
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)
        # Not from here: the handler may have interrupted trio's own bookkeeping.
        token.run_sync_soon(_cancel_main_task)

    return alarm


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test that the alarm cancelled has failed, whatever it made of the cancellation."""
    try:
        return (yield)
    finally:
        if _WAITED_FOR in item.stash:
            pytest.fail(f"no end within the time limit. {item.stash[_WAITED_FOR]}", pytrace=False)
