"""Running a coroutine in the current task: whether it waited, and everything else as by `await`."""

from __future__ import annotations

import pytest
import trio

from p2p.rpc_steps import waited


class Log:
    """Notes what happened, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(line)

    def waits(self) -> None:
        self.lines.append("waits")


async def test_work_that_does_not_wait_is_not_announced() -> None:
    log = Log()

    async def work() -> None:
        log.add("work")

    assert not await waited(work(), log.waits)
    assert log.lines == ["work"]


async def test_work_that_waits_is_announced_once_before_anybody_else_runs() -> None:
    log = Log()

    async def other() -> None:
        log.add("other")

    async def work() -> None:
        log.add("begin")
        await trio.sleep(0.001)
        await trio.sleep(0.001)
        log.add("end")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert await waited(work(), log.waits)
    assert log.lines == ["begin", "waits", "other", "end"]


async def test_errors_pass_before_and_after_waiting() -> None:
    async def fail(*, first: bool) -> None:
        if first:
            raise KeyError("first")
        await trio.lowlevel.checkpoint()
        raise KeyError("then")

    log = Log()
    with pytest.raises(KeyError, match="first"):
        await waited(fail(first=True), log.waits)
    assert log.lines == []
    with pytest.raises(KeyError, match="then"):
        await waited(fail(first=False), log.waits)
    assert log.lines == ["waits"]


async def test_cancellation_reaches_the_work_and_its_cleanup_runs() -> None:
    log = Log()

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.lowlevel.checkpoint()
            log.add("cleaned up")

    with trio.move_on_after(0.01) as scope:
        await waited(work(), log.waits)
    assert scope.cancelled_caught
    assert log.lines == ["waits", "cleaned up"]


async def test_scopes_and_nurseries_nest_as_usual() -> None:
    log = Log()

    async def child() -> None:
        await trio.sleep(0.001)
        log.add("child")

    async def work() -> None:
        with trio.move_on_after(0.001) as inner:
            await trio.sleep_forever()
        assert inner.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
        log.add("end")

    with trio.fail_after(10):
        assert await waited(work(), log.waits)
    assert log.lines == ["waits", "child", "end"]
    await trio.lowlevel.checkpoint()


async def test_an_error_of_the_announcement_ends_the_work() -> None:
    log = Log()

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.add("ended")

    def fail() -> None:
        raise KeyError("nobody can take over")

    with pytest.raises(KeyError, match="nobody"):
        await waited(work(), fail)
    assert log.lines == ["ended"]
