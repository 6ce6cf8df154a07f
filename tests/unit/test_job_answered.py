"""What a caller was answered is in the journal: a kill right after it changes nothing."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import apsw
import msgspec

from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.reputation import Standing
from federated.jobs.types import JobSpec, Limits, PerRow
from tests.helpers.jobs_kit import GROUP, play_office

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.jobs.handlers.base import Batch
    from federated.jobs.types import JobId, RowOut
    from tests.helpers.jobs_kit import Desk, Office


WAITING = JobSpec(handler="nobody@1", rows=[{"n": 1}])


class Off:
    """Says a number that is wrong by `lie`."""

    def __init__(self, lie: int) -> None:
        self.info = HandlerInfo(id="off@1", kind="named", deterministic=True)
        self.lie = lie

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        return [(row.k, {"n": int(str(row.row["n"])) + self.lie}, "") for row in batch.rows]


class After:
    """The files of a node as a kill leaves them at this moment."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        target = folder / "killed"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in folder.glob("jobs1.db*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, target)
        del desk
        self.db = apsw.Connection(str(target / "jobs1.db"))

    def job(self, ident: JobId) -> tuple[object, ...]:
        row = self.db.execute(
            "SELECT phase, executions_max FROM job WHERE id=?", (ident,)
        ).fetchone()
        assert row is not None
        return tuple(row)

    def standings(self) -> list[Standing]:
        rows = self.db.execute("SELECT body FROM peer_stat WHERE device=x''")
        return [msgspec.msgpack.decode(bytes(row[0]), type=Standing) for row in rows]


def test_cancel_pause_and_resume_are_kept_when_they_are_answered(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        ident = await boss.jobs.submit(WAITING, agent="", group=None)
        assert After(boss, tmp_path).job(ident)[0] == "queued"
        await boss.jobs.pause(ident)
        assert After(boss, tmp_path).job(ident)[0] == "paused"
        await boss.jobs.go_on(ident)
        assert After(boss, tmp_path).job(ident)[0] == "running"
        await boss.jobs.cancel(ident)
        assert After(boss, tmp_path).job(ident)[0] == "cancelled"

    play_office(scenario, tmp_path, seed=1)


def test_more_executions_are_kept_when_they_are_answered(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        spec = JobSpec(
            handler="echo@1", rows=[{"n": n} for n in range(3)], batch=PerRow(),
            limits=Limits(executions=1),
        )  # fmt: skip
        ident = await boss.jobs.submit(spec, agent="", group=None)
        job = boss.jobs.core.job(ident)
        assert job is not None
        while job.phase != "waiting_input":
            await boss.jobs.news()
        await boss.jobs.go_on(ident, 7)
        assert After(boss, tmp_path).job(ident)[1] == 8
        await boss.jobs.finished(ident)

    play_office(scenario, tmp_path, seed=2)


def test_a_lifted_quarantine_is_kept_when_it_is_answered(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        owner = b"\2" * 32
        boss = await office.desk(1, handlers=[Off(0)], owner=b"\1" * 32)
        await office.desk(2, handlers=[Off(1)], owner=owner)
        await office.desk(3, handlers=[Off(0)], owner=b"\3" * 32)
        spec = JobSpec(
            handler="off@1", rows=[{"n": n} for n in range(30)], batch=PerRow(), group="g"
        )
        ident = await boss.jobs.submit(spec, agent="", group=GROUP)
        await boss.jobs.finished(ident)
        assert [one.until_ms > 0 for one in After(boss, tmp_path).standings()].count(True) == 1
        assert await boss.jobs.lift(owner)
        assert not any(one.until_ms for one in After(boss, tmp_path).standings())

    play_office(scenario, tmp_path, seed=3)
