"""Cancel an operation at every step it takes, one run per step.

A cancelled call may leave no half frame and no half transaction. Guessing the dangerous moment does
not find it, so this module tries them all: the scenario runs again and again, and in run k the
operation is cancelled when trio is about to take the k-th task step since it began. It ends with
the first run that the operation survives uncancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from typing_extensions import override

from tests.helpers.det import run_seeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STEPS_MAX = 5_000
"""More steps than any operation under test takes: at this number it never ends."""


class Cut(trio.abc.Instrument):
    """Cancels one operation at its k-th step. A scenario calls `attempt` once.

    Args:
        at_step: the step, counted from 1 at the call of `attempt`, over all tasks of the run.
    """

    def __init__(self, at_step: int) -> None:
        self._at_step = at_step
        self._steps = 0
        self._armed = False
        self._scope = trio.CancelScope()
        self.attempts = 0
        self.finished = False

    @override
    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count, and cancel when the number is reached."""
        if not self._armed:
            return
        self._steps += 1
        if self._steps == self._at_step:
            self._scope.cancel()

    async def attempt(self, operation: Callable[[], Awaitable[object]]) -> bool:
        """Run `operation` until it ends or is cut.

        Returns:
            True if it completed: then its effect must be there whole. False if it was cut: then the
            effect must be there whole or not at all, and everything else must work as before.
        """
        self.attempts += 1
        assert self.attempts == 1, "a scenario attempts its operation once"
        with self._scope:
            self._armed = True
            await operation()
            self.finished = True
        self._armed = False
        return self.finished


def cancel_at_every_step(
    scenario: Callable[[Cut], Awaitable[None]], *, seed: int = 0, steps_max: int = STEPS_MAX
) -> int:
    """Run `scenario` with a cut at step 1, 2, ... until its operation completes uncut.

    Args:
        scenario: builds a fresh world, awaits `cut.attempt(operation)` once, then checks the
            invariant (a plain `assert`). It runs under `run_seeded`: no real sockets or threads.
        seed: order of tasks, the same in every run.
        steps_max: bound against an operation that never ends.

    Returns:
        In how many runs the operation was cut; at least 1.

    Raises:
        AssertionError: the invariant failed (a note names the step), or the scenario did not call
            `attempt` once.
    """
    for step in range(1, steps_max + 1):
        cut = Cut(step)
        try:
            run_seeded(scenario, cut, seed=seed, instruments=[cut])
        except BaseException as error:
            error.add_note(f"cancelled at step {step} with seed {seed}")
            raise
        assert cut.attempts == 1, "the scenario must call cut.attempt exactly once"
        if cut.finished:
            assert step > 1, "the operation has no step at which it can be cancelled"
            return step - 1
    message = f"the operation still did not complete with a cut at step {steps_max}"
    raise AssertionError(message)
