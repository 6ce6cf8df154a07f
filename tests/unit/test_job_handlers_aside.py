"""What runs beside a task ends with it, and errors come out as they are."""

from __future__ import annotations

import pytest
import trio

from federated.jobs.handlers.aside import with_aside
from federated.jobs.handlers.threads import offload_stoppable
from tests.helpers.job_handlers import Threads


class Oops(Exception):
    """Some failure."""


async def test_the_result_comes_and_the_asides_end() -> None:
    ended: list[str] = []

    async def aside() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("aside")

    async def quick() -> None:
        ended.append("quick")

    async def main() -> int:
        await trio.testing.wait_all_tasks_blocked()
        return 3

    assert await with_aside(main, aside, quick) == 3
    assert sorted(ended) == ["aside", "quick"]


async def test_an_error_comes_out_bare() -> None:
    async def fails() -> None:
        raise Oops

    with pytest.raises(Oops):
        await with_aside(fails, trio.sleep_forever)

    def fails_there(_stopped: object) -> None:
        raise Oops

    with pytest.raises(Oops):
        await offload_stoppable(Threads(), fails_there)


async def test_a_result_of_none_is_a_result() -> None:
    async def nothing() -> None:
        await trio.lowlevel.checkpoint()

    assert await with_aside(nothing, trio.sleep_forever) is None  # type: ignore[func-returns-value]


async def test_what_a_thread_waits_for_is_ended_only_when_it_was_cancelled() -> None:
    stops: list[str] = []
    assert await offload_stoppable(Threads(), lambda _s: 1, on_stop=lambda: stops.append("x")) == 1
    assert stops == []
    token = trio.lowlevel.current_trio_token()
    begun = trio.Event()

    def wait(stopped: object) -> None:
        token.run_sync_soon(begun.set)
        while not stops:
            assert callable(stopped)

    async def run() -> None:
        await offload_stoppable(Threads(), wait, on_stop=lambda: stops.append("x"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await begun.wait()
        nursery.cancel_scope.cancel()
    assert stops == ["x"]
