"""How many jobs there may be at once: refused at the submission, never half done at a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from daemon.error_map import to_rpc_error
from federated.errors import JobError
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.limits import JOBS_AGENT_MAX, JOBS_LIVE_MAX
from federated.jobs.types import JobSpec, PerRow
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.jobs.handlers.base import Batch, TaskCtx
    from federated.jobs.types import RowOut
    from tests.helpers.jobs_kit import Office


class Slow:
    """Echoes after a while."""

    info = HandlerInfo(id="slow@1", kind="named", deterministic=True)

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        del ctx
        await trio.sleep(2)
        return [(row.k, row.row, "") for row in batch.rows]

    async def aclose(self) -> None:
        """Nothing to end."""


WAITING = JobSpec(handler="nobody@1", rows=[{"n": 1}])


def test_one_job_more_than_there_may_be_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        first = await boss.jobs.submit(WAITING, agent="helper", group=None, idem="one")
        for _ in range(JOBS_AGENT_MAX - 1):
            await boss.jobs.submit(WAITING, agent="helper", group=None)
        with pytest.raises(JobError, match="this agent has 16 jobs") as refused:
            await boss.jobs.submit(WAITING, agent="helper", group=None)
        assert refused.value.reason == "too_many"
        told = to_rpc_error(refused.value)
        assert told.kind.name == "rate_limited"
        assert "covey job cancel" in (told.remedy or "")
        assert await boss.jobs.submit(WAITING, agent="helper", group=None, idem="one") == first
        others = [
            await boss.jobs.submit(WAITING, agent="", group=None)
            for _ in range(JOBS_LIVE_MAX - JOBS_AGENT_MAX)
        ]
        with pytest.raises(JobError, match="64 jobs are under way"):
            await boss.jobs.submit(WAITING, agent="", group=None)
        await boss.jobs.cancel(others[0])
        await boss.jobs.finished(others[0])
        await boss.jobs.submit(WAITING, agent="", group=None)

    play_office(scenario, tmp_path, seed=1)


def test_jobs_that_come_at_once_take_no_more_places_than_there_are(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        refused = []

        async def submit() -> None:
            try:
                await boss.jobs.submit(WAITING, agent="helper", group=None)
            except JobError as error:
                refused.append(error.reason)

        async with trio.open_nursery() as nursery:
            for _ in range(JOBS_AGENT_MAX + 5):
                nursery.start_soon(submit)
        assert refused == ["too_many"] * 5
        assert len(boss.jobs.core.board.live_jobs()) == JOBS_AGENT_MAX
        await trio.sleep(1)  # the journal is not to close under what they still order

    play_office(scenario, tmp_path, seed=2)


def test_a_worker_forgets_specs_for_others_and_no_session_ends(tmp_path: Path) -> None:
    """Live jobs of 6 MiB of params at a worker that keeps 4 MiB of specs."""

    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2, handlers=[Slow()], slots=2)
        idents = [
            await boss.jobs.submit(
                JobSpec(
                    handler="slow@1", rows=[{"n": n} for n in range(4)], batch=PerRow(),
                    params={"x": "y" * 200_000, "job": number},
                ),
                agent="", group=None,
            )
            for number in range(30)
        ]  # fmt: skip
        for ident in idents:
            await boss.jobs.finished(ident)
            assert await boss.table(ident) == [{"n": n} for n in range(4)]
        assert not worker.jobs.worker.counters.get("sessions_broken")

    play_office(scenario, tmp_path, seed=3)
