"""What a hanging test was waiting for: trio's task tree, printed when the time limit fires."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator


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
