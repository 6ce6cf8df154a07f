"""The cheapest way for one task to wait for another: no object per wait, one switch per wake."""

from __future__ import annotations

import trio


class Wakeup:
    """One task waits, anybody wakes it. A wake without a waiter is forgotten.

    The waiter therefore checks its condition, waits, and checks again; nothing runs between a check
    and a wait, because only `wait` gives up control.
    """

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    @property
    def waiting(self) -> bool:
        """Whether a task waits."""
        return self._task is not None

    async def wait(self) -> None:
        """Sleep until `wake`."""
        assert self._task is None, "one task may wait at a time"
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """Let the waiter run at the next turn of the loop."""
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)
