"""Erased memories leave the jobs: rows, answers, reductions, the cache, what comes too late."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import msgspec
import pytest
import trio

from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.quoting import quotes
from federated.jobs.types import ByHandler, JobSpec, PerRow, TopK
from memory.erasure.choosing import EraseWhat
from memory.erasure.erasing import Eraser, Outlets
from memory.records.erase import HERE, erase_all
from tests.helpers.job_handlers import Threads
from tests.helpers.jobs_kit import play_office
from tests.helpers.memories import open_world

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import apsw

    from federated.jobs.handlers.base import Batch, TaskCtx
    from federated.jobs.types import JobId, RowOut
    from tests.helpers.jobs_kit import Desk, Office

SECRET: Final = "the cellar key hangs behind the clock"
RECORD: Final = b"\x0a" * 32
OTHER: Final = b"\x0b" * 32


class Search:
    """`memory.search@1` without a memory."""

    info: Final = HandlerInfo(id="memory.search@1", kind="memory", deterministic=False, local=True)

    def __init__(self) -> None:
        self.hold = trio.Event()
        self.begun = trio.Event()
        self.hold.set()

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        del ctx
        self.begun.set()
        await self.hold.wait()
        return [
            (item.k, {"memories": [{"id": _named(item.row["query"]).hex(), "text": SECRET}]}, "")
            for item in batch.rows
        ]

    async def aclose(self) -> None:
        pass


def _named(query: object) -> bytes:
    return RECORD if query == "key" else OTHER


def files_holding(folder: Path, *texts: str) -> list[str]:
    """Files of the databases that hold any of the texts."""
    return sorted(
        path.name
        for path in folder.glob("jobs*")
        if any(text.encode() in path.read_bytes() for text in texts)
    )


async def _done(desk: Desk, spec: JobSpec) -> JobId:
    ident = await desk.jobs.submit(spec, agent="", group=None)
    await desk.jobs.finished(ident)
    return ident


async def _erase(desk: Desk) -> int:
    count = await desk.jobs.erase([RECORD])
    assert await desk.db.settle_wal()
    return count


SEARCH: Final = JobSpec(
    handler="memory.search@1", rows=[{"query": "key"}, {"query": "door"}], batch=PerRow()
)


def test_what_a_search_brought_goes_and_the_rest_stays(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2, handlers=[Search()])
        found = await _done(boss, SEARCH)
        rows: list[dict[str, object]] = [
            {"id": RECORD.hex(), "text": "cellar key, cellar clock"},
            {"id": OTHER.hex(), "text": "front door"},
        ]
        counted = await _done(
            boss, JobSpec(handler="wordcount@1", rows=rows, reduce=TopK(n=9), batch=PerRow())
        )
        assert files_holding(tmp_path, "cellar")
        assert b'{"key":"cellar","sum":2}' in await boss.jobs.journal.reduced(counted, 0, 9)
        assert await _erase(boss) == 2
        assert await boss.table(found) == [
            "erased", {"memories": [{"id": OTHER.hex(), "text": SECRET}]},
        ]  # fmt: skip
        assert [json.loads(row)["key"] for row in await boss.jobs.journal.reduced(counted, 0, 9)] \
            == ["door", "front"]  # fmt: skip
        assert files_holding(tmp_path, "cellar key, cellar clock", RECORD.hex(), '"cellar"') == []
        assert await boss.jobs.erase([OTHER]) == 2
        assert await boss.db.settle_wal()
        assert files_holding(tmp_path, "cellar", "front door", OTHER.hex()) == []

    play_office(scenario, tmp_path, seed=1)


def test_the_cache_forgets_and_nothing_derived_is_served_again(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        rows: list[dict[str, object]] = [{"from": [RECORD.hex()], "text": "cellar"}, {"text": "b"}]
        spec = JobSpec(handler="wordcount@1", rows=rows)
        await _done(boss, spec)
        count = await boss.db.read(lambda c: c.execute("SELECT count(*) FROM cache").fetchone())
        assert count[0] == 2
        await _erase(boss)
        count = await boss.db.read(lambda c: c.execute("SELECT count(*) FROM cache").fetchone())
        assert count[0] == 1
        assert files_holding(tmp_path, "cellar") == []
        again = await _done(boss, spec)
        assert (await boss.table(again))[0] == "erased", "what is erased is not taken in again"
        assert await boss.db.settle_wal()
        assert files_holding(tmp_path, "cellar") == []

    play_office(scenario, tmp_path, seed=2)


def test_an_answer_under_way_comes_too_late(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        search = Search()
        search.hold = trio.Event()
        boss = await office.desk(1)
        await office.desk(2, handlers=[search])
        ident = await boss.jobs.submit(SEARCH, agent="", group=None)
        await search.begun.wait()
        assert await _erase(boss) == 0, "nobody knows yet what it will quote"
        search.hold.set()
        await boss.jobs.finished(ident)
        await boss.jobs.journal.apply([])
        rows = await boss.jobs.journal.rows(ident, 0, 2)
        assert [(row.state.name, row.reason) for row in rows] == [("MISSING", "erased"), ("OK", "")]
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert (job.rows[0].value, job.counts) == (None, [0, 1, 1, 0])

    play_office(scenario, tmp_path, seed=3)


def test_a_job_under_way_loses_the_row_and_goes_on(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        rows: list[dict[str, object]] = [
            {"id": RECORD.hex(), "text": SECRET}, {"text": "another"},
        ]  # fmt: skip
        spec = JobSpec(handler="nobody@1", rows=rows, batch=PerRow(), deadline_s=60)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        assert await _erase(boss) == 1
        assert files_holding(tmp_path, SECRET) == []
        boss = await office.restart(boss)
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert [row.reason for row in job.rows] == ["erased", ""]
        assert job.counts == [1, 0, 1, 0]
        while not job.final:
            await boss.jobs.news()
        assert await boss.table(ident) == ["erased", "deadline"]

    play_office(scenario, tmp_path, seed=4)


def test_a_delta_job_does_not_ask_for_what_was_erased(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        rows: list[dict[str, object]] = [
            {"id": RECORD.hex(), "name": "a", "text": SECRET},
            {"id": "x", "name": "b", "text": "b"},
        ]  # fmt: skip
        spec = JobSpec(
            handler="wordcount@1", rows=rows, key_columns=["name"], template="{{text}}", cache="off"
        )
        first = await _done(boss, spec)
        await _erase(boss)
        delta = msgspec.structs.replace(spec, rows=[], gaps_of=first.hex())
        again = await _done(boss, delta)
        assert (await boss.table(again))[0] == "erased"
        job = boss.jobs.core.job(again)
        assert job is not None
        assert (job.executions, job.phase) == (0, "done")

    play_office(scenario, tmp_path, seed=5)


def test_params_that_quote_take_the_whole_job_along(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        spec = JobSpec(
            handler="echo@1", rows=[{"n": 1}], params={"context": SECRET, "of": RECORD.hex()},
            title=f"about {SECRET}",
        )  # fmt: skip
        ident = await _done(boss, spec)
        await _erase(boss)
        assert await boss.table(ident) == ["erased"]
        kept = await boss.jobs.journal.job(ident)
        assert kept is not None
        assert (kept.spec.params, kept.title) == ({}, "")
        assert files_holding(tmp_path, SECRET) == []

    play_office(scenario, tmp_path, seed=6)


class Joined:
    """`joined@1`: combines two answers into one text."""

    info: Final = HandlerInfo(id="joined@1", kind="named", deterministic=True)

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        return [
            (
                item.k,
                {"text": " ".join(str(part.get("text")) for part in self._parts(item.row))},
                "",
            )
            for item in batch.rows
        ]

    @staticmethod
    def _parts(row: dict[str, object]) -> list[dict[str, object]]:
        parts = (row["a"], row["b"])
        assert all(isinstance(part, dict) for part in parts)
        return list(parts)  # type: ignore[arg-type]


def test_what_a_handler_combined_goes_with_its_levels(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, handlers=[Joined()])
        await office.desk(2, handlers=[Joined()])
        rows: list[dict[str, object]] = [
            {"of": RECORD.hex(), "text": SECRET}, {"text": "b"}, {"text": "c"},
        ]  # fmt: skip
        spec = JobSpec(handler="echo@1", rows=rows, reduce=ByHandler(handler="joined@1"))
        ident = await _done(boss, spec)
        assert SECRET.encode() in (await boss.jobs.journal.reduced(ident, 0, 9))[0]
        await _erase(boss)
        assert await boss.jobs.journal.reduced(ident, 0, 9) == []
        assert files_holding(tmp_path, SECRET) == []

    play_office(scenario, tmp_path, seed=7)


def test_what_a_worker_keeps_for_others_goes(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        worker = await office.desk(1)
        entry = b'[0,{"id":"%s","text":"%s"}]' % (RECORD.hex().encode(), SECRET.encode())

        def put(connection: apsw.Connection) -> None:
            job = (b"c" * 32, b"j" * 16)
            for task, body in ((0, entry), (1, b"other")):
                connection.execute(
                    "INSERT INTO held VALUES (?,?,?,0,1,?,?)", (*job, task, body, 2**50)
                )
            connection.execute(
                "INSERT INTO effect VALUES (?,?,?,0,0,'done',?,?)",
                (job[0], b"t" * 32, job[1], entry, 2**50),
            )

        await worker.db.write(put)
        await _erase(worker)
        assert files_holding(tmp_path, SECRET, RECORD.hex()) == []
        left = await worker.db.read(
            lambda c: c.execute("SELECT (SELECT count(*) FROM held), result FROM effect").fetchall()
        )
        assert left == [(1, b'[0,null,"erased"]')]

    play_office(scenario, tmp_path, seed=8)


async def test_an_erasure_is_clean_once_the_jobs_are_also_of_what_was_never_here(
    tmp_path: Path,
) -> None:
    asked: list[tuple[bytes, ...]] = []
    clean, heard = trio.Event(), trio.Event()

    async def quoted(records: Sequence[bytes]) -> bool:
        await trio.lowlevel.checkpoint()
        asked.append(tuple(records))
        if RECORD in records:
            heard.set()
        return clean.is_set()

    async def tell(_group: bytes) -> Sequence[bytes]:
        await trio.lowlevel.checkpoint()
        return []

    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        eraser = Eraser(
            world.db, world.replica, world.clock, world.sealer.device, tmp_path, Threads(),
            Outlets(tell, quoted=quoted),
        )  # fmt: skip
        await nursery.start(eraser.run)
        ident = await world.say("the zirconium valve leaks")
        report = await eraser.erase(world.person, EraseWhat(ids=(ident,)))
        assert report.state == "partial"
        assert asked[-1] == (bytes.fromhex(ident),)
        clean.set()
        assert await eraser.clean_up() == (True, 0)
        # An erase record that comes before what it names, or at a machine that never gets it.
        await world.replica.transact(lambda txn: erase_all(txn, RECORD, HERE, 0))
        await heard.wait()
        assert asked[-1] == (RECORD,)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (b'{"id":"%s"}' % (b"0a" * 32), 1),
        (b'["%s","%s","%s"]' % (b"0a" * 32, b"0b" * 32, b"0a" * 32), 2),
        (b'{"id":"%s"}' % (b"0A" * 32), 0),
        (b'{"id":"%s"}' % (b"0a" * 31), 0),
        (b'{"id":"%s"}' % (b"0a" * 33), 0),
        (b'{"text":"see %s"}' % (b"0a" * 32), 0),
        (None, 0),
    ],
)
def test_what_counts_as_a_quote(text: bytes | None, count: int) -> None:
    assert len(quotes(text)) == count
