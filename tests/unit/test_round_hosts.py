"""What becomes of a daemon's pool when it fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing

from federated.errors import RoundError
from federated.rounds.host import Hosts
from tests.helpers.pool_kit import Threads

if TYPE_CHECKING:
    from federated.rounds.federation import Federation
    from federated.rounds.pool.server import Pool


class FailingPool:
    """Serves, and fails in a task of its own."""

    def __init__(self) -> None:
        self.fail = trio.Event()
        self.tell, self.events = trio.open_memory_channel[None](1)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._folder)
            task_status.started()

    async def _folder(self) -> None:
        await self.fail.wait()
        self.tell.close()
        raise MemoryError


async def test_a_pool_that_fails_ends_nothing_else_and_is_told() -> None:
    pool = FailingPool()
    hosts = Hosts(cast("Pool", pool), Threads())
    async with trio.open_nursery() as nursery:
        await nursery.start(hosts.run)
        assert not hosts.problem
        pool.fail.set()
        await trio.testing.wait_all_tasks_blocked()
        federation = cast("Federation", SimpleNamespace(check_running=lambda: None))
        with pytest.raises(RoundError, match="ended by a fault"):
            hosts.open(federation, 2)
        nursery.cancel_scope.cancel()
