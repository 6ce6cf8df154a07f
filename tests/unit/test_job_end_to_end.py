"""A job from submit to its table, over nodes that are real but for the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
