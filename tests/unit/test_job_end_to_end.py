"""A job from submit to its table, over nodes that are real but for the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from federated.errors import PlanError
from federated.jobs.types import Column, JobSpec, PerRow, TopK
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.jobs_kit import Office


def test_rows_come_back_in_order_from_several_peers(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        await office.desk(3)
        rows: list[dict[str, object]] = [{"n": n} for n in range(500)]
        spec = JobSpec(handler="echo@1", rows=rows, batch=PerRow())
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == rows
        found = await boss.jobs.journal.job(ident)
        assert found is not None
        assert found.phase == "done"
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert len(job.peers) == 2, "both peers worked"

    play_office(scenario, tmp_path, seed=1)


def test_words_are_counted_and_reduced(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        spec = JobSpec(
            handler="wordcount@1",
            rows=[{"text": "the cat and the dog"}, {"text": "The END"}],
            reduce=TopK(n=2),
        )
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.finished(ident)
        reduced = await boss.jobs.journal.reduced(ident, 0, 10)
        assert reduced == [b'{"key":"the","sum":3}', b'{"key":"and","sum":1}']

    play_office(scenario, tmp_path, seed=2)


def test_engine_local_needs_nobody(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        spec = JobSpec(
            handler="echo@1",
            rows=[{"n": 1}, {"n": "x"}],
            columns=[Column(name="n", type="int")],
            engine="local",
            max_retries=1,
        )
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == [{"n": 1}, "bad_type"]

    play_office(scenario, tmp_path, seed=3)


def test_a_killed_coordinator_goes_on_where_it_was(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        rows: list[dict[str, object]] = [{"n": n} for n in range(2000)]
        spec = JobSpec(handler="echo@1", rows=rows, batch=PerRow())
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.news()
        again = await office.restart(boss)
        job = again.jobs.core.job(ident)
        assert job is not None
        assert not job.final, "it was killed midway"
        while not job.final:
            await again.jobs.news()
        assert await again.table(ident) == rows

    play_office(scenario, tmp_path, seed=4)


def test_a_job_nobody_can_do_says_so(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        spec = JobSpec(handler="echo@1", rows=[{"n": 1}])
        with pytest.raises(PlanError, match="no other machine is there") as alone:
            await boss.jobs.submit(spec, agent="", group=None)
        assert alone.value.reason == "no_eligible_peer"
        spec = JobSpec(handler="nothing@1", rows=[{"n": 1}], engine="local")
        with pytest.raises(PlanError, match="no nothing@1, but echo@1") as unknown:
            await boss.jobs.submit(spec, agent="", group=None)
        assert unknown.value.reason == "unknown_handler"
        await office.desk(2)
        spec = JobSpec(handler="nothing@1", rows=[{"n": 1}], deadline_s=60)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await trio.sleep(10)
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert (job.phase, job.reason) == ("queued", "no_eligible_peer")
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == ["deadline"]

    play_office(scenario, tmp_path, seed=5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("engine", "dask://127.0.0.1:1"), ("priority", 10)],
)
def test_what_is_not_done_yet_is_refused_not_ignored(
    tmp_path: Path, field: str, value: object
) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        spec = msgspec.structs.replace(JobSpec(handler="echo@1", rows=[{}]), **{field: value})
        with pytest.raises(PlanError, match=field):
            await boss.jobs.submit(spec, agent="", group=None)

    play_office(scenario, tmp_path, seed=6)


def test_a_dying_peer_loses_no_row(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        dying = await office.desk(2)
        await office.desk(3)
        rows: list[dict[str, object]] = [{"n": n} for n in range(3000)]
        ident = await boss.jobs.submit(
            JobSpec(handler="echo@1", rows=rows, batch=PerRow()), agent="", group=None
        )
        await boss.jobs.news()
        job = boss.jobs.core.job(ident)
        assert job is not None
        # A row is an answer of a peer, not an event of the journal.
        while not job.peers.get(dying.id):  # noqa: ASYNC110
            await trio.sleep(0.005)
        assert not job.final
        dying.scope.cancel()
        dying.member.scope.cancel()
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == rows

    play_office(scenario, tmp_path, seed=7)


def test_a_row_for_a_machine_that_stays_away_says_so(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        near, away = await office.desk(2), await office.desk(3)
        away.scope.cancel()
        away.member.scope.cancel()
        names = {"near": near.id, "away": away.id}
        rows: list[dict[str, object]] = [{"@peer": name, "n": 1} for name in ("near", "away")]
        spec = JobSpec(handler="echo@1", rows=rows, batch=PerRow(), deadline_s=30)
        ident = await boss.jobs.submit(spec, agent="", group=None, find_peer=names.get)
        await boss.jobs.finished(ident)
        told = await boss.table(ident)
        assert isinstance(told[0], dict)
        assert told[0]["n"] == 1
        assert told[1] == "peer_gone"

    play_office(scenario, tmp_path, seed=11)
