"""The same job on every engine gives the same bytes, for every way to reduce."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from federated.errors import PlanError
from federated.jobs.loading import AUDIT, AUDITED
from federated.jobs.reduce import pair_up
from federated.jobs.state import RowState
from federated.jobs.types import (
    ByHandler,
    Column,
    JobSpec,
    PerRow,
)
from tests.helpers.job_engines import (
    COMBINE,
    MEASURE,
    NUMBERS,
    REDUCES,
    InlineEngine,
    both,
    result_bytes,
)
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from pathlib import Path

    import apsw

    from federated.jobs.types import Reduce
    from tests.helpers.jobs_kit import Office

ADDRESS = "dask://127.0.0.1:8786"


@pytest.mark.parametrize("reduce", REDUCES, ids=lambda reduce: type(reduce).__name__)
def test_every_engine_gives_the_same_bytes(tmp_path: Path, reduce: Reduce) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, handlers=both(), engines={ADDRESS: InlineEngine})
        await office.desk(2, handlers=both())
        await office.desk(3, handlers=both())
        found = {}
        for engine in ("local", "peers", ADDRESS):
            spec = JobSpec(
                handler=MEASURE, rows=list(NUMBERS), reduce=reduce, engine=engine, batch=PerRow(),
                max_retries=1, cache="off",
            )  # fmt: skip
            ident = await boss.jobs.submit(spec, agent="", group=None)
            await boss.jobs.finished(ident)
            found[engine] = await result_bytes(boss.jobs, ident)
        assert found["local"] == found["peers"] == found[ADDRESS]
        assert len(found["local"]) > 2, "rows and what they reduce to"
        assert any(b"missing" in line for line in found["local"])

    play_office(scenario, tmp_path, seed=11)


def test_a_tree_depends_on_places_alone() -> None:
    level = pair_up([{"n": 0}, {"n": 1}, None, {"n": 3}, {"n": 4}])
    assert level.pairs == [{"a": {"n": 0}, "b": {"n": 1}}]
    assert level.places == [0]
    assert level.slots == [None, {"n": 3}, {"n": 4}]
    assert pair_up([None, None, None]).slots == [None, None]
    assert pair_up([]).slots == []


def test_levels_are_journalled_and_no_jobs_of_anybody(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, handlers=both())
        await office.desk(2, handlers=both())
        ident = await boss.jobs.submit(_combining(200), agent="", group=None)
        await boss.jobs.finished(ident)
        journal = boss.jobs.journal
        assert [one.id for one in await journal.jobs(None, 100)] == [ident]

        def stages(connection: apsw.Connection) -> list[tuple[object, ...]]:
            return connection.execute(
                "SELECT stage, count(*) FROM task GROUP BY stage ORDER BY stage"
            ).fetchall()

        rows = await boss.db.read(stages)
        stages_of_rows = [stage for stage, _ in rows if stage not in {AUDIT, AUDITED}]
        assert stages_of_rows == list(range(9)), "the map, and 8 levels for 200 rows"
        await journal.purge(ident)
        assert await boss.db.read(stages) == []

    play_office(scenario, tmp_path, seed=12)


def test_a_reduction_goes_on_after_a_kill(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, handlers=both())
        await office.desk(2, handlers=both())
        spec = _combining(500)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        while True:
            await boss.jobs.news()
            levels = [job for job in boss.jobs.core.board.live_jobs() if job.stage]
            if levels and levels[0].counts[RowState.OK]:
                break
        again = await office.restart(boss, handlers=both())
        job = again.jobs.core.job(ident)
        assert job is not None
        assert job.phase == "reducing"
        await again.jobs.finished(ident)
        reduced = await again.jobs.journal.reduced(ident, 0, 10)
        assert len(reduced) == 1
        total = await _sum_on(office, spec)
        assert reduced == total

    play_office(scenario, tmp_path, seed=13)


async def _sum_on(office: Office, spec: JobSpec) -> list[bytes]:
    """What an undisturbed machine finds."""
    alone = await office.desk(9, handlers=both())
    again = JobSpec(handler=spec.handler, rows=spec.rows, reduce=spec.reduce, engine="local")
    ident = await alone.jobs.submit(again, agent="", group=None)
    await alone.jobs.finished(ident)
    return await alone.jobs.journal.reduced(ident, 0, 10)


def test_a_pair_that_does_not_combine_ends_the_job(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, handlers=both())
        spec = JobSpec(
            handler="echo@1", rows=[{"n": 1}, {"n": "x"}], reduce=ByHandler(handler=COMBINE),
            engine="local", max_retries=0,
        )  # fmt: skip
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.finished(ident)
        found = await boss.jobs.journal.job(ident)
        assert found is not None
        assert (found.phase, found.reason) == ("failed", "reduce_failed")
        assert await boss.table(ident) == [{"n": 1}, {"n": "x"}], "the answers are still there"

    play_office(scenario, tmp_path, seed=14)


def test_a_cancel_ends_the_level_under_way(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, handlers=both())
        await office.desk(2, handlers=both())
        ident = await boss.jobs.submit(_combining(300), agent="", group=None)
        while not any(job.stage for job in boss.jobs.core.board.live_jobs()):
            await boss.jobs.news()
        await boss.jobs.cancel(ident)
        await boss.jobs.finished(ident)
        assert boss.jobs.core.board.live_jobs() == []
        found = await boss.jobs.journal.job(ident)
        assert found is not None
        assert found.phase == "cancelled"

    play_office(scenario, tmp_path, seed=15)


def _combining(rows: int) -> JobSpec:
    return JobSpec(
        handler="echo@1", rows=[{"n": n / 7} for n in range(rows)],
        columns=[Column(name="n", type="float")], reduce=ByHandler(handler=COMBINE),
    )  # fmt: skip


def test_an_engine_gets_many_rows_a_call_and_keys_of_its_own(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        engine = InlineEngine(slots=2)
        boss = await office.desk(1, engines={ADDRESS: lambda: engine})
        rows: list[dict[str, object]] = [{"n": n} for n in range(2000)]
        spec = JobSpec(handler="echo@1", rows=rows, batch=PerRow(), engine=ADDRESS)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == rows
        sizes = [len(msgspec.msgpack.decode(call.data)["tasks"]) for call in engine.calls]
        assert sum(sizes) == 2000, "each row once, none by ourselves"
        assert sorted(sizes)[len(sizes) // 2] >= 25
        keys = [call.key for call in engine.calls]
        assert len(set(keys)) == len(keys)

    play_office(scenario, tmp_path, seed=16)


def test_a_call_that_is_lost_is_made_again_under_another_key(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        engine = InlineEngine(lose=1)
        boss = await office.desk(1, engines={ADDRESS: lambda: engine})
        spec = JobSpec(handler="hash@1", rows=[{"n": 1}], engine=ADDRESS)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.finished(ident)
        (row,) = await boss.table(ident)
        assert isinstance(row, dict)
        first, second = engine.calls
        assert first.data == second.data
        assert first.key != second.key

    play_office(scenario, tmp_path, seed=17)


def test_a_cancelled_job_is_withdrawn_from_its_engine(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        engine = InlineEngine()
        engine.hold = True
        boss = await office.desk(1, engines={ADDRESS: lambda: engine})
        spec = JobSpec(handler="echo@1", rows=[{"n": n} for n in range(300)], engine=ADDRESS)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await trio.sleep(2)
        assert engine.calls
        told = await boss.jobs.cancel(ident)
        assert told["unreachable"] == 0
        await boss.jobs.finished(ident)
        await trio.sleep(2)
        assert sorted(engine.cancelled) == [call.ref for call in engine.calls]

    play_office(scenario, tmp_path, seed=18)


def test_an_engine_that_went_is_begun_anew(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        engines = [InlineEngine(), InlineEngine()]
        engines[0].hold = True
        left = list(engines)
        boss = await office.desk(1, engines={ADDRESS: lambda: left.pop(0)})
        rows: list[dict[str, object]] = [{"n": n} for n in range(100)]
        spec = JobSpec(handler="echo@1", rows=rows, engine=ADDRESS)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await trio.sleep(2)
        assert engines[0].calls
        await engines[0].close()
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == rows
        assert engines[1].calls

    play_office(scenario, tmp_path, seed=19)


@pytest.mark.parametrize(
    ("engine", "handler", "reason"),
    [
        ("dask://127.0.0.1:1", "echo@1", "not_permitted"),
        ("dask://192.0.2.1:8786", "echo@1", "not_permitted"),
        ("tls://127.0.0.1:8786", "echo@1", "not_permitted"),
        ("ray://127.0.0.1:10001", "echo@1", "bad_spec"),
        (ADDRESS, "files.list@1", "unknown_handler"),
    ],
)
def test_only_listed_engines_get_only_what_they_can_do(
    tmp_path: Path, engine: str, handler: str, reason: str
) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, engines={ADDRESS: InlineEngine})
        await office.desk(2)
        spec = JobSpec(handler=handler, rows=[{"n": 1}], engine=engine)
        with pytest.raises(PlanError) as refused:
            await boss.jobs.submit(spec, agent="", group=None)
        assert refused.value.reason == reason
        assert boss.jobs.core.board.live_jobs() == []

    play_office(scenario, tmp_path, seed=20)
