"""Rows that stand elsewhere: in an earlier job, in a blob of JSON lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from federated.errors import PlanError
from federated.jobs import rowsource
from federated.jobs.limits import ROWS_MAX
from federated.jobs.rowsource import LINE_BYTES_MAX, rows_of_lines
from federated.jobs.types import JobSpec, PerRow, RowsRef, TopK
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.jobs.types import JobId
    from tests.helpers.jobs_kit import Desk, Office


def test_results_of_a_job_are_the_rows_of_the_next(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        texts = [{"text": "the cat and the dog"}, {"no": "text"}, {"text": "The END"}]
        first = await _run(boss, JobSpec(handler="echo@1", rows=texts))
        words = await _run(
            boss,
            JobSpec(
                handler="wordcount@1", rows=RowsRef(job=first.hex()), max_retries=0,
                reduce=TopK(n=2),
            ),
        )  # fmt: skip
        assert await boss.table(words) == [
            {"pairs": [["and", 1], ["cat", 1], ["dog", 1], ["the", 2]]},
            "no_text",
            {"pairs": [["end", 1], ["the", 1]]},
        ]
        top = await _run(boss, JobSpec(handler="echo@1", rows=RowsRef(job=words.hex())))
        assert await boss.table(top) == [{"key": "the", "sum": 3}, {"key": "and", "sum": 1}]

    play_office(scenario, tmp_path, seed=31)


async def _run(boss: Desk, spec: JobSpec, *, agent: str = "") -> JobId:
    ident = await boss.jobs.submit(spec, agent=agent, group=None)
    await boss.jobs.finished(ident)
    return ident


def test_rows_of_a_blob_come_from_whoever_has_it(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        other = await office.desk(2)
        rows: Sequence[dict[str, object]] = [{"n": n, "text": "x" * 500} for n in range(3000)]
        lines = [msgspec.json.encode(row) + b"\n" for row in rows]
        blob = await other.blobs.put(lines, None)
        ident = await _run(boss, JobSpec(handler="echo@1", rows=RowsRef(blob=blob.hex())))
        assert await boss.table(ident) == rows
        again = await office.restart(boss)
        assert await again.table(ident) == rows, "kept in the journal, not in the blob"

    play_office(scenario, tmp_path, seed=32)


def test_idempotency_holds_for_rows_elsewhere(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        first = await _run(boss, JobSpec(handler="echo@1", rows=[{"n": 1}]))
        spec = JobSpec(handler="echo@1", rows=RowsRef(job=first.hex()))
        ident = await boss.jobs.submit(spec, agent="", group=None, idem="once")
        assert await boss.jobs.submit(spec, agent="", group=None, idem="once") == ident

    play_office(scenario, tmp_path, seed=33)


@pytest.mark.parametrize(
    ("lines", "reason", "match"),
    [
        ([b"{}\n", b"\n", b"[1]\n"], "bad_value", "line 3"),
        ([b"\x80\x81\n"], "bad_value", "line 1"),
        ([b'{"a":"\xff"}\n'], "bad_value", "line 1"),
        ([b'{"a":' * 5000 + b"1" + b"}" * 5000], "bad_value", "line 1"),
        ([b'{"a":1}{"a":2}\n'], "bad_value", "line 1"),
        ([b'{"a":' + b" " * LINE_BYTES_MAX], "too_large", "line 1"),
        ([b"{}\n"] * (ROWS_MAX + 1), "too_large", "100000 rows"),
    ],
)
def test_a_file_that_is_no_table_is_told_by_its_line(
    lines: list[bytes], reason: str, match: str
) -> None:
    with pytest.raises(PlanError, match=match) as refused:
        rows_of_lines(lines)
    assert refused.value.reason == reason


def test_a_last_line_needs_no_end() -> None:
    assert rows_of_lines([b'{"a":1}\r\n', b"  \n", b'{"b":2}']) == [{"a": 1}, {"b": 2}]
    assert rowsource.rows_of_lines([]) == []


def test_rows_go_where_the_blob_they_name_is(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        holder, other = await office.desk(2), await office.desk(3)
        blob = await holder.blobs.put([b"x" * 1000], None)
        rows: list[dict[str, object]] = [{"@blob": bytes(blob).hex(), "n": 1}]
        for _ in range(6):
            spec = JobSpec(handler="echo@1", rows=rows, batch=PerRow(), cache="off")
            ident = await boss.jobs.submit(spec, agent="", group=None)
            await boss.jobs.finished(ident)
            job = boss.jobs.core.job(ident)
            assert job is not None
            assert set(job.peers) == {holder.id}
        nowhere: list[dict[str, object]] = [{"@blob": "ab" * 32, "n": n} for n in range(40)]
        spec = JobSpec(handler="echo@1", rows=nowhere, batch=PerRow(), cache="off")
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.finished(ident)
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert set(job.peers) == {holder.id, other.id}, "a preference, no more"
        bad = JobSpec(handler="echo@1", rows=[{"@blob": "no id"}])
        with pytest.raises(PlanError, match=r"rows\[0\]\.@blob: a blob's id has 64"):
            await boss.jobs.submit(bad, agent="", group=None)

    play_office(scenario, tmp_path, seed=21)


def test_a_restart_knows_which_blobs_rows_name(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        rows: list[dict[str, object]] = [{"@blob": "cd" * 32}]
        spec = JobSpec(handler="nobody@1", rows=rows)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await trio.sleep(1)
        again = await office.restart(boss)
        job = again.jobs.core.job(ident)
        assert job is not None
        assert job.blobs == {0: bytes.fromhex("cd" * 32)}
        await trio.sleep(1)

    play_office(scenario, tmp_path, seed=22)
