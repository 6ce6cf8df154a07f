"""Answers larger than an item: they come in blobs, and nothing of them stays behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from federated.jobs.bulk import PRUNE_AFTER_MS, Bulk
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.limits import OUTPUT_BYTES_MAX, RESULT_BYTES_MAX
from federated.jobs.types import JobSpec, Open
from tests.helpers.jobs_kit import GROUP, play_office

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.jobs.handlers.base import Batch
    from federated.jobs.types import RowOut
    from tests.helpers.jobs_kit import Desk, Office

ROWS: list[dict[str, object]] = [{"n": n} for n in range(16)]


class Big:
    """A row of so many bytes for each, and how it says it."""

    def __init__(self, size: int, text: str = "x", *, only: int | None = None) -> None:
        self.info = HandlerInfo(id="big@1", kind="named", deterministic=True)
        self.size = size
        self.text = text
        self.only = only

    def row(self, n: object) -> dict[str, object]:
        size = self.size if self.only in {None, n} else 10
        return {"n": n, "text": (self.text * size)[:size]}

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        return [(row.k, self.row(row.row["n"]), "") for row in batch.rows]


def spec_of(chunk: int, **more: object) -> JobSpec:
    fields = {"batch": Open(groups=[], chunk=chunk), "max_retries": 1, **more}
    return JobSpec(handler="big@1", rows=ROWS, **fields)  # type: ignore[arg-type]


async def nothing_is_left(*desks: Desk) -> None:
    await trio.sleep(5)
    for desk in desks:
        assert await desk.blobs.listed() == []
        assert not any(one.unacked for one in desk.jobs.worker._desks.values())


def test_a_large_answer_comes_in_a_blob_and_leaves_none(tmp_path: Path) -> None:
    big = Big(60_000)
    assert 8 * big.size > RESULT_BYTES_MAX

    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2, handlers=[big])
        ident = await boss.jobs.submit(spec_of(8), agent="", group=None)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == [big.row(n) for n in range(16)]
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert job.executions == 2, "each task once"
        await nothing_is_left(boss, worker)

    play_office(scenario, tmp_path, seed=1)


def test_also_of_strangers_whose_votes_count(tmp_path: Path) -> None:
    big = Big(60_000)

    async def scenario(office: Office) -> None:
        boss = await office.desk(1, owner=b"1" * 32)
        others = [
            await office.desk(number, handlers=[big], owner=bytes([number]) * 32)
            for number in (2, 3)
        ]
        spec = spec_of(8, verify="quorum:2", group="g")
        ident = await boss.jobs.submit(spec, agent="", group=GROUP)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == [big.row(n) for n in range(16)]
        await nothing_is_left(boss, *others)

    play_office(scenario, tmp_path, seed=2)


def test_what_is_too_large_for_an_answer_is_refused_by_its_worker(tmp_path: Path) -> None:
    big = Big(65_000)
    assert 16 * big.size < OUTPUT_BYTES_MAX < 17 * big.size

    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2, handlers=[Big(65_500, '"')])
        ident = await boss.jobs.submit(spec_of(16), agent="", group=None)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == ["output"] * 16, "quotation marks take two bytes each"
        await nothing_is_left(boss, worker)

    play_office(scenario, tmp_path, seed=3)


def test_what_quotes_the_memory_never_stands_in_a_blob(tmp_path: Path) -> None:
    """An erasure looks for ids in what a worker holds; it would not find one in a blob."""

    class Quoting(Big):
        def row(self, n: object) -> dict[str, object]:
            return {**super().row(n), "id": "ab" * 32}

    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2, handlers=[Quoting(60_000)])
        ident = await boss.jobs.submit(spec_of(8), agent="", group=None)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == ["output"] * 16
        await nothing_is_left(boss, worker)

    play_office(scenario, tmp_path, seed=4)


def test_a_blob_that_cannot_be_had_is_a_lost_answer(tmp_path: Path) -> None:
    big = Big(60_000)

    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2, handlers=[big])
        readers = [False]
        worker.blobs.set_readers(lambda _group, _peer: readers[0])
        ident = await boss.jobs.submit(spec_of(8, max_retries=20), agent="", group=None)
        await trio.sleep(20)
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert not job.final
        readers[0] = True
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == [big.row(n) for n in range(16)]
        await nothing_is_left(boss, worker)

    play_office(scenario, tmp_path, seed=5)


def test_what_a_killed_worker_left_goes_a_day_later(tmp_path: Path) -> None:
    big = Big(60_000)

    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2, handlers=[big])
        worker.blobs.set_readers(lambda _group, _peer: False)
        ident = await boss.jobs.submit(spec_of(16, max_retries=20), agent="", group=None)
        # A blob is no event.
        while not await worker.blobs.listed():  # noqa: ASYNC110
            await trio.sleep(0.001)
        again = await office.restart(worker, handlers=[big])
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == [big.row(n) for n in range(16)]
        await trio.sleep(5)
        bulk, now_ms = Bulk(again.blobs), again.db.wall_ms()
        assert len(await again.blobs.listed()) == 1, "it was killed before it could let go"
        await bulk.prune(now_ms)
        assert await again.blobs.listed(), "somebody may still come for it"
        await bulk.prune(now_ms + PRUNE_AFTER_MS)
        await nothing_is_left(boss, again)

    play_office(scenario, tmp_path, seed=6)
