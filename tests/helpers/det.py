"""Runs that repeat: the same seed gives the same order of tasks and the same virtual time.

trio shuffles each batch of runnable tasks with a generator of its own, so that nobody relies on
an order. That is right in production and useless in a simulation. Two private names of trio cure
it, and this module is the only place that knows them: `_ALLOW_DETERMINISTIC_SCHEDULING` sorts a
batch by the tasks' age before it is shuffled, and `_r` is the generator that shuffles.
`tests/unit/test_det.py` breaks first if trio renames them.

Two traps: under an autojumping clock a real socket or thread loses against time (virtual hours pass
while the kernel works), and a deadlock spins instead of hanging.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import trio
import trio.testing
from trio._core import _run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

T = TypeVar("T")
Args = TypeVarTuple("Args")


@contextlib.contextmanager
def seeded_scheduler(seed: int | str) -> Iterator[None]:
    """Make trio's choice of task order a function of `seed`; both names are restored afterwards.

    Args:
        seed: an int, or a text such as a test's id.
    """
    flag_before = _run._ALLOW_DETERMINISTIC_SCHEDULING
    numbers_before = _run._r.getstate()
    # trio marks the flag Final and says in a comment that test plugins set it.
    vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    # A text seed is hashed by SHA-512, not by hash(): equal under every PYTHONHASHSEED.
    _run._r.seed(seed)
    try:
        yield
    finally:
        vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = flag_before
        _run._r.setstate(numbers_before)


def run_seeded(
    main: Callable[[*Args], Awaitable[T]],
    *args: *Args,
    seed: int,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> T:
    """Run `main(*args)` under a virtual clock that jumps when all tasks wait.

    Args:
        main: the async function to run.
        args: its arguments.
        seed: decides the order of tasks that are ready together.
        instruments: trio instruments, such as `tests.helpers.cancel` uses.

    Returns:
        What `main` returned. The same seed gives the same run, whatever PYTHONHASHSEED is.
    """
    with seeded_scheduler(seed):
        return trio.run(
            main,
            *args,
            clock=trio.testing.MockClock(autojump_threshold=0),
            instruments=list(instruments),
        )
