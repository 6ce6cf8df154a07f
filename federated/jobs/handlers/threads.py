"""Work in a thread that can be told to stop.

A thread cannot be cancelled, and trio waits for one that it started; so a cancelled task tells its
thread, and the thread looks.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

import trio

from federated.jobs.handlers.aside import with_aside

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.env import Offload

T = TypeVar("T")


async def offload_stoppable(
    offload: Offload,
    fn: Callable[[Callable[[], bool]], T],
    *,
    on_stop: Callable[[], None] | None = None,
) -> T:
    """Run `fn` off the loop; it gets a function that says whether to give up.

    Args:
        offload: where it runs.
        fn: looks often enough at what it is given; what it returns after a stop is dropped.
        on_stop: called once in the loop when the caller was cancelled, to end what `fn` waits for.
    """
    stop = threading.Event()
    done = False

    async def work() -> T:
        nonlocal done
        try:
            return await offload.run(lambda: fn(stop.is_set))
        finally:
            done = True

    async def tell() -> None:
        try:
            await trio.sleep_forever()
        finally:
            stop.set()
            if on_stop is not None and not done:
                on_stop()

    return await with_aside(work, tell)
