"""The database: group commit, isolation of units, shutdown, errors that say what to do."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import trio
import trio.testing

from memory.errors import StoreError, UsageError
from memory.storage.db import BATCH_UNITS_MAX, QUEUE_UNITS_MAX, Db
from tests.helpers.memories import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PUT = "INSERT INTO derived VALUES (?, ?)"
ALL = "SELECT name, version FROM derived WHERE version >= 100 ORDER BY version"


@asynccontextmanager
async def open_db(folder: Path, **options: Any) -> AsyncIterator[Db]:
    db = Db(folder / "covey.db", options.pop("env", Clock()), **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        yield db
        await db.aclose()


@pytest.fixture(params=[False, True], ids=["threads", "inline"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Db]:
    async with open_db(tmp_path, inline=request.param) as opened:
        yield opened


async def put(db: Db, number: int) -> None:
    await db.write(lambda c: c.execute(PUT, (f"n{number}", number)).fetchall())


async def numbers(db: Db) -> list[int]:
    return await db.read(lambda c: [row[1] for row in c.execute(ALL)])


async def test_a_write_is_seen_by_the_next_read(db: Db) -> None:
    for number in range(100, 110):
        await put(db, number)
        assert (await numbers(db))[-1] == number


async def test_concurrent_writes_share_a_commit(db: Db) -> None:
    commits = []
    db.after_commit = commits.append
    async with trio.open_nursery() as nursery:
        for number in range(100, 300):
            nursery.start_soon(put, db, number)
    assert await numbers(db) == list(range(100, 300))
    assert len(commits) < 100
    assert sum(len(results) for results in commits) == 200


async def test_a_failing_unit_undoes_itself_alone(db: Db) -> None:
    errors = []

    def bad(connection: apsw.Connection) -> None:
        connection.execute(PUT, ("half", 500))
        raise ValueError("no")

    async def try_bad() -> None:
        try:
            await db.write(bad)
        except ValueError as exc:
            errors.append(exc)

    async with trio.open_nursery() as nursery:
        for number in range(100, 120):
            nursery.start_soon(put, db, number)
            if number % 5 == 0:
                nursery.start_soon(try_bad)
    assert len(errors) == 4
    assert await numbers(db) == list(range(100, 120))


async def test_an_sql_error_of_a_unit_is_named_and_undone(db: Db) -> None:
    await put(db, 100)

    def twice(connection: apsw.Connection) -> None:
        connection.execute(PUT, ("other", 101))
        connection.execute(PUT, ("n100", 102))

    with pytest.raises(StoreError):
        await db.write(twice)
    assert await numbers(db) == [100]


async def test_committed_is_called_in_order_before_the_caller_wakes(db: Db) -> None:
    told: list[int] = []

    async def one(number: int) -> None:
        def unit(connection: apsw.Connection) -> int:
            connection.execute(PUT, (f"n{number}", number))
            return number

        await db.write(unit, told.append)
        assert number in told

    async with trio.open_nursery() as nursery:
        for number in range(100, 150):
            nursery.start_soon(one, number)
    order = await db.read(
        lambda c: [row[0] for row in c.execute("SELECT version FROM derived WHERE version >= 100")]
    )
    assert sorted(told) == sorted(order)


async def test_a_cancelled_caller_leaves_all_or_nothing_and_the_writer_lives(db: Db) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await put(db, 100)
    assert scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        for number in range(200, 260):
            nursery.start_soon(put, db, number)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await put(db, 300)
    found = await numbers(db)
    assert found[-1] == 300
    assert len(found) == len(set(found))


async def test_a_cancelled_read_frees_its_connection(tmp_path: Path) -> None:
    slow = (
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r WHERE x < 100000000)"
        " SELECT count(*) FROM r"
    )
    async with open_db(tmp_path) as db:
        for _ in range(4):
            with trio.move_on_after(0.02) as scope:
                await db.read(lambda c: c.execute(slow).fetchall())
            assert scope.cancelled_caught
        with trio.fail_after(20):
            assert await numbers(db) == []


async def test_a_full_disk_is_named_and_nothing_is_half_there(db: Db) -> None:
    env = db._env
    assert isinstance(env, Clock)
    await put(db, 100)
    env.faults.add("store.commit")
    with pytest.raises(StoreError, match="free space") as caught:
        await put(db, 101)
    assert caught.value.reason == "full"
    env.faults.clear()
    await put(db, 102)
    assert await numbers(db) == [100, 102]


async def test_a_really_full_database_is_named_and_serves_on(tmp_path: Path) -> None:
    async with open_db(tmp_path, inline=True) as db:
        await put(db, 100)
        pages = await db.read(lambda c: c.execute("PRAGMA page_count").get)
        writer = db._require_writer().connection
        writer.execute(f"PRAGMA max_page_count={pages}").fetchall()
        blob = "x" * 200_000
        with pytest.raises(StoreError) as caught:
            await db.write(lambda c: c.execute(PUT, (blob, 101)).fetchall())
        assert caught.value.reason == "full"
        writer.execute("PRAGMA max_page_count=1000000").fetchall()
        await put(db, 102)
        assert await numbers(db) == [100, 102]


async def test_a_full_transaction_fails_all_its_units_and_tells_each(tmp_path: Path) -> None:
    """SQLite undoes the whole transaction on a full disk: nobody may be told it is done."""
    async with open_db(tmp_path, inline=True) as db:
        writer = db._require_writer().connection
        pages = writer.execute("PRAGMA page_count").get
        writer.execute(f"PRAGMA max_page_count={pages + 4}").fetchall()
        outcomes: list[str] = []

        async def fill(number: int) -> None:
            try:
                await db.write(
                    lambda c: c.execute(PUT, (f"{number}" + "x" * 4000, number)).fetchall()
                )
                outcomes.append("done")
            except StoreError as exc:
                outcomes.append(exc.reason)

        async with trio.open_nursery() as nursery:
            for number in range(100, 130):
                nursery.start_soon(fill, number)
        assert outcomes.count("done") == len(await numbers(db))
        assert "full" in outcomes


async def test_closing_checkpoints_and_refuses_later_calls(tmp_path: Path) -> None:
    async with open_db(tmp_path) as db:
        for number in range(100, 150):
            await put(db, number)
    assert not (tmp_path / "covey.db-wal").exists()
    for call in (numbers(db), put(db, 200)):
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.reason == "closed"
    with pytest.raises(UsageError):
        await db.run()


async def test_whoever_waits_at_shutdown_is_told(tmp_path: Path) -> None:
    outcomes: list[str] = []
    async with open_db(tmp_path, inline=True) as db:

        async def try_put(number: int) -> None:
            try:
                await put(db, number)
                outcomes.append("done")
            except StoreError as exc:
                outcomes.append(exc.reason)

        async with trio.open_nursery() as nursery:
            for number in range(100, 100 + QUEUE_UNITS_MAX + BATCH_UNITS_MAX + 50):
                nursery.start_soon(try_put, number)
            await trio.lowlevel.checkpoint()
            await db.aclose()
    assert len(outcomes) == QUEUE_UNITS_MAX + BATCH_UNITS_MAX + 50
    assert set(outcomes) <= {"done", "closed"}
    async with open_db(tmp_path, inline=True) as again:
        assert len(await numbers(again)) == outcomes.count("done")


async def test_a_broken_invariant_in_a_unit_ends_the_writer(tmp_path: Path) -> None:
    def broken(_: apsw.Connection) -> None:
        raise AssertionError("bug")

    with pytest.raises(ExceptionGroup) as caught:
        async with open_db(tmp_path, inline=True) as db:
            await db.write(broken)
    assert caught.group_contains(AssertionError, match="bug", depth=None)


async def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    garbage = b"this is no database, it is a letter to a friend" * 100
    (tmp_path / "covey.db").write_bytes(garbage)
    with pytest.raises(ExceptionGroup) as caught:
        async with open_db(tmp_path):
            pass
    assert caught.group_contains(StoreError, match="newest backup", depth=None)
    assert (tmp_path / "covey.db").read_bytes() == garbage


async def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = apsw.Connection(str(tmp_path / "covey.db"))
    other.execute("CREATE TABLE theirs(x); INSERT INTO theirs VALUES (1)")
    other.close()
    before = (tmp_path / "covey.db").read_bytes()
    with pytest.raises(ExceptionGroup) as caught:
        async with open_db(tmp_path):
            pass
    assert caught.group_contains(StoreError, match="not a Covey database", depth=None)
    assert (tmp_path / "covey.db").read_bytes() == before


async def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    async with open_db(tmp_path, inline=True) as db:
        for number in range(100, 400):
            await put(db, number)
    path = tmp_path / "covey.db"
    data = bytearray(path.read_bytes())
    for at in range(4096, len(data), 4096):
        data[at : at + 200] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(ExceptionGroup) as caught:
        async with open_db(tmp_path, inline=True) as db:
            await numbers(db)
    assert caught.group_contains(StoreError, match="newest backup", depth=None)


async def test_the_pragmas_hold_on_every_connection(tmp_path: Path) -> None:
    expected = {
        "journal_mode": "wal",
        "synchronous": 2,
        "secure_delete": 1,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "cell_size_check": 1,
        "temp_store": 2,
        "mmap_size": 0,
    }
    async with open_db(tmp_path) as db:
        for name, value in expected.items():
            found = await db.read(lambda c, name=name: c.execute(f"PRAGMA {name}").get)
            assert found == value, name
            found = await db.write(lambda c, name=name: c.execute(f"PRAGMA {name}").get)
            assert found == value, name
        assert await db.read(lambda c: c.execute("PRAGMA query_only").get) == 1
        assert await db.read(lambda c: c.execute("PRAGMA application_id").get) == 0x434F5659


async def test_a_reader_cannot_write(db: Db) -> None:
    with pytest.raises(StoreError):
        await db.read(lambda c: c.execute(PUT, ("x", 100)).fetchall())
    assert await numbers(db) == []


async def test_checkpoint_empties_the_log(db: Db) -> None:
    await put(db, 100)
    assert db.sizes()[1] > 0
    assert await db.checkpoint()
    assert db.sizes()[1] == 0
    assert await db.quick_check() == "ok"


@pytest.mark.usefixtures("autojump_clock")
async def test_inline_databases_live_under_a_virtual_clock(tmp_path: Path) -> None:
    """A threaded database would let virtual time run while a query works."""
    async with open_db(tmp_path, inline=True) as db:
        with trio.fail_after(1):
            for number in range(100, 200):
                await put(db, number)
            assert len(await numbers(db)) == 100


SLOW = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000)"
    " SELECT count(*) FROM n, (SELECT count(*) FROM derived)"
)


async def test_a_read_that_holds_the_log_back_too_long_is_ended(tmp_path: Path) -> None:
    async with open_db(tmp_path) as db, trio.open_nursery() as nursery:
        await put(db, 100)
        ended: list[str] = []

        async def read() -> None:
            with pytest.raises(StoreError) as caught:
                await db.read(lambda c: c.execute(SLOW).fetchall())
            ended.append(caught.value.reason)

        nursery.start_soon(read)
        await trio.sleep(0.1)
        await put(db, 101)
        assert await db.settle_wal(grace_s=0.2)
        assert db.sizes()[1] == 0
        assert ended == ["busy"]
        assert await numbers(db) == [100, 101]


async def test_a_read_that_ends_in_time_is_waited_for(tmp_path: Path) -> None:
    async with open_db(tmp_path) as db, trio.open_nursery() as nursery:
        await put(db, 100)
        answers: list[object] = []

        async def read() -> None:
            short = SLOW.replace("1000000000", "3000000")
            answers.append(await db.read(lambda c: c.execute(short).get))

        nursery.start_soon(read)
        await trio.sleep(0.02)
        await put(db, 101)
        assert await db.settle_wal(grace_s=20)
        assert db.sizes()[1] == 0
    assert answers == [3000000]


async def test_another_connections_snapshot_leaves_the_log_and_says_so(db: Db) -> None:
    await put(db, 100)
    other = apsw.Connection(str(db.path))
    other.execute("BEGIN").fetchall()
    other.execute("SELECT count(*) FROM derived").fetchall()
    await put(db, 101)
    assert not await db.settle_wal(grace_s=0.1)
    assert db.sizes()[1] > 0
    await put(db, 102)  # the writer serves on
    other.execute("COMMIT").fetchall()
    other.close()
    assert await db.settle_wal(grace_s=1)
    assert db.sizes()[1] == 0
    assert await numbers(db) == [100, 101, 102]
