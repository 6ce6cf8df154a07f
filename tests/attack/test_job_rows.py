"""Rows by reference: nobody reads another's job, and no blob takes this machine down."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from federated.errors import PlanError
from federated.jobs.limits import ROW_BYTES_MAX, ROWS_BLOB_BYTES_MAX
from federated.jobs.types import JobSpec, PerRow, RowsRef
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers.jobs_kit import Desk, Office

MIB = 2**20


def test_another_agents_job_is_none(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        spec = JobSpec(handler="echo@1", rows=[{"secret": 1}])
        mine = await boss.jobs.submit(spec, agent="mallory", group=None)
        theirs = await boss.jobs.submit(spec, agent="alice", group=None)
        persons = await boss.jobs.submit(spec, agent="", group=None)
        for ident in (mine, theirs, persons):
            await boss.jobs.finished(ident)
        for ident in (theirs, persons, b"\0" * 16):
            reason = await _refused(boss, RowsRef(job=bytes(ident).hex()), agent="mallory")
            assert reason == "bad_spec"
        again = JobSpec(handler="echo@1", rows=RowsRef(job=mine.hex()))
        ident = await boss.jobs.submit(again, agent="mallory", group=None)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == [{"secret": 1}]

    play_office(scenario, tmp_path, seed=41)


async def _refused(boss: Desk, rows: RowsRef, *, agent: str = "") -> str:
    before = len(await boss.jobs.journal.jobs(None, 100))
    with pytest.raises(PlanError) as refused:
        await boss.jobs.submit(JobSpec(handler="echo@1", rows=rows), agent=agent, group=None)
    assert len(await boss.jobs.journal.jobs(None, 100)) == before
    return refused.value.reason


def test_a_job_that_runs_still_is_no_table(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        rows: list[dict[str, object]] = [{"n": n} for n in range(500)]
        spec = JobSpec(handler="echo@1", rows=rows, batch=PerRow())
        ident = await boss.jobs.submit(spec, agent="", group=None)
        assert await _refused(boss, RowsRef(job=ident.hex())) == "bad_spec"

    play_office(scenario, tmp_path, seed=42)


@pytest.mark.parametrize(
    "rows",
    [RowsRef(), RowsRef(job="00" * 16, blob="00" * 32), RowsRef(job="zz"), RowsRef(job=""),
     RowsRef(blob="../../key"), RowsRef(blob="00" * 31), RowsRef(blob="")],
)  # fmt: skip
def test_a_reference_that_is_none(tmp_path: Path, rows: RowsRef) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        assert await _refused(boss, rows) == "bad_spec"

    play_office(scenario, tmp_path, seed=43)


def _big(size: int) -> Iterator[bytes]:
    line = msgspec.json.encode({"text": "x" * 10_000}) + b"\n"
    for _ in range(size // len(line) + 1):
        yield line


def _one(cell: str) -> list[bytes]:
    return [msgspec.json.encode({"text": cell}) + b"\n"]


def test_what_is_too_large_or_no_table_is_refused_with_its_reason(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        other = await office.desk(2)
        cases = [
            (other, _big(ROWS_BLOB_BYTES_MAX), "too_large"),
            (boss, _big(ROWS_BLOB_BYTES_MAX), "too_large"),
            (other, _one("x" * ROW_BYTES_MAX), "too_large"),
            (other, [b"\x00\x01\x02" * 1000], "bad_value"),
            (boss, [b'{"n":1}\n', b"["], "bad_value"),
            (boss, [b'{"n":1e999}\n'], "bad_value"),
            (boss, [b'{"n":9007199254740993}\n'], "bad_value"),
        ]
        for desk, content, reason in cases:
            blob = await desk.blobs.put(content, None)
            assert await _refused(boss, RowsRef(blob=blob.hex())) == reason
        assert boss.blobs.report().bytes_used < 2 * ROWS_BLOB_BYTES_MAX, (
            "one was fetched no further"
        )
        ident = await boss.jobs.submit(
            JobSpec(handler="echo@1", rows=[{"n": 1}]), agent="", group=None
        )
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == [{"n": 1}]

    play_office(scenario, tmp_path, seed=44)


def test_a_blob_that_nobody_has_is_told(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        assert await _refused(boss, RowsRef(blob="ab" * 32)) == "bad_spec"

    play_office(scenario, tmp_path, seed=45)
