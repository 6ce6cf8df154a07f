"""A full disk under jobs.db: nothing is handed out or acknowledged, and it goes on with room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from daemon.error_map import to_rpc_error
from federated.errors import JobError
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.state import JobPhase
from federated.jobs.types import JobSpec, PerRow, Sum
from tests.helpers.crashvfs import Recorder
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.jobs.handlers.base import Batch, TaskCtx
    from federated.jobs.types import JobId, RowOut
    from tests.helpers.jobs_kit import Desk, Office


class Slow:
    """Echoes after half a second, and counts its rows."""

    def __init__(self) -> None:
        self.info = HandlerInfo(id="slow@1", kind="named", deterministic=True)
        self.rows = 0
        self._more = trio.Event()

    async def asked(self, rows: int) -> None:
        """Wait until so many rows have come."""
        while self.rows < rows:
            await self._more.wait()

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        del ctx
        self.rows += len(batch.rows)
        self._more.set()
        self._more = trio.Event()
        await trio.sleep(0.5)
        return [(row.k, row.row, "") for row in batch.rows]

    async def aclose(self) -> None:
        """Nothing to end."""


def spec_of(rows: int) -> JobSpec:
    return JobSpec(handler="slow@1", rows=[{"n": n} for n in range(rows)], batch=PerRow())


async def until(phase: JobPhase, boss: Desk, ident: JobId) -> None:
    job = boss.jobs.core.job(ident)
    assert job is not None
    while job.phase is not phase:  # noqa: ASYNC110 - on a full disk no event is kept
        await trio.sleep(0.05)


def test_a_full_disk_stops_the_jobs_and_room_lets_them_go_on(tmp_path: Path) -> None:
    with Recorder(tmp_path) as disk:

        async def scenario(office: Office) -> None:
            boss = await office.desk(1, vfs=disk.vfs_name)
            slow = Slow()
            worker = await office.desk(2, handlers=[slow], slots=2)
            told: list[tuple[str, bytes]] = []
            boss.jobs.on_event(lambda _job, _seq, kind, body: told.append((kind, body)))
            ident = await boss.jobs.submit(spec_of(100), agent="", group=None)
            await slow.asked(10)
            disk.free_bytes = 0
            await until(JobPhase.PAUSED, boss, ident)
            job = boss.jobs.core.job(ident)
            assert job is not None
            assert job.reason == "journal_full"
            heard = [msgspec.json.decode(body) for kind, body in told if kind == "journal_full"]
            assert heard == [{"state": "paused", "reason": "journal_full"}]
            # What was out comes back, is not acknowledged, and nothing new goes out.
            await trio.sleep(10)
            asked = slow.rows
            assert asked < 90
            unacked = [desk for desk in worker.jobs.worker._desks.values() if desk.unacked]
            assert unacked, "the worker keeps what nobody has written down"
            await trio.sleep(30)
            assert slow.rows == asked
            with pytest.raises(JobError, match="free space on it, then repeat") as refused:
                await boss.jobs.submit(spec_of(1), agent="", group=None)
            assert refused.value.reason == "journal_full"
            assert to_rpc_error(refused.value).kind.name == "storage_full"
            with pytest.raises(JobError, match=r"disk of jobs\.db is full"):
                await boss.jobs.pause(ident)
            disk.free_bytes = None
            await boss.jobs.finished(ident)
            assert await boss.table(ident) == [{"n": n} for n in range(100)]
            events = await boss.jobs.journal.events(ident, 0, 10_000)
            states = [msgspec.json.decode(one.body) for one in events if one.kind == "state"]
            reasons = [(one["state"], one.get("reason")) for one in states]
            assert ("paused", "journal_full") in reasons
            assert reasons[-1] == ("done", None)
            await boss.jobs.submit(spec_of(1), agent="", group=None)
            await trio.sleep(3)
            assert not any(desk.unacked for desk in worker.jobs.worker._desks.values())

        play_office(scenario, tmp_path, seed=1)


def test_a_cancel_on_a_full_disk_stops_the_work_and_says_that_it_is_not_kept(
    tmp_path: Path,
) -> None:
    with Recorder(tmp_path) as disk:

        async def scenario(office: Office) -> None:
            boss = await office.desk(1, vfs=disk.vfs_name)
            slow = Slow()
            await office.desk(2, handlers=[slow], slots=2)
            ident = await boss.jobs.submit(spec_of(100), agent="", group=None)
            await slow.asked(10)
            disk.free_bytes = 0
            with pytest.raises(JobError, match="the job is stopped, but a restart"):
                await boss.jobs.cancel(ident)
            job = boss.jobs.core.job(ident)
            assert job is not None
            assert job.phase is JobPhase.CANCELLED
            disk.free_bytes = None
            await boss.jobs.finished(ident)
            kept = await boss.jobs.journal.job(ident)
            assert kept is not None
            assert kept.phase is JobPhase.CANCELLED
            await trio.sleep(3)

        play_office(scenario, tmp_path, seed=2)


class Words:
    """Many pairs for row 0, one for row 1 two seconds later."""

    info = HandlerInfo(id="words@1", kind="named", deterministic=True)

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        del ctx
        (row,) = batch.rows
        await trio.sleep(2 * row.k)
        pairs = [[f"word {n}", 1] for n in range(4000 if row.k == 0 else 1)]
        return [(row.k, {"pairs": pairs}, "")]

    async def aclose(self) -> None:
        """Nothing to end."""


def test_a_disk_with_no_room_for_the_reduced_rows_costs_no_job(tmp_path: Path) -> None:
    with Recorder(tmp_path) as disk:

        async def scenario(office: Office) -> None:
            boss = await office.desk(1, vfs=disk.vfs_name)
            await office.desk(2, handlers=[Words()])
            spec = JobSpec(
                handler="words@1", rows=[{"n": 0}, {"n": 1}], batch=PerRow(), reduce=Sum()
            )
            ident = await boss.jobs.submit(spec, agent="", group=None)
            await trio.sleep(1)
            # Room for the last row, not for 4,000 sums.
            disk.free_bytes = 100_000
            await until(JobPhase.REDUCING, boss, ident)
            await trio.sleep(5)
            assert boss.jobs.writer.full
            await until(JobPhase.REDUCING, boss, ident)
            disk.free_bytes = None
            await boss.jobs.finished(ident)
            await until(JobPhase.DONE, boss, ident)
            assert len(await boss.jobs.journal.reduced(ident, 0, 5_000)) == 4_000
            await trio.sleep(3)
            assert not boss.jobs.writer.full

        play_office(scenario, tmp_path, seed=3)


def test_a_kill_on_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with Recorder(tmp_path) as disk:

        async def scenario(office: Office) -> None:
            boss = await office.desk(1, vfs=disk.vfs_name)
            slow = Slow()
            await office.desk(2, handlers=[slow], slots=2)
            ident = await boss.jobs.submit(spec_of(40), agent="", group=None)
            await slow.asked(10)
            disk.free_bytes = 0
            await until(JobPhase.PAUSED, boss, ident)
            await trio.sleep(5)
            ran = slow.rows
            # A kill while the disk is full, and room before the next start.
            restarting = office.restart(boss)
            disk.free_bytes = None
            again = await restarting
            job = again.jobs.core.job(ident)
            assert job is not None
            while not job.final:
                await again.jobs.news()
            assert await again.table(ident) == [{"n": n} for n in range(40)]
            assert slow.rows <= 40 + 4, "what the worker held was taken, not computed again"
            assert ran < 40
            await trio.sleep(3)

        play_office(scenario, tmp_path, seed=4)
