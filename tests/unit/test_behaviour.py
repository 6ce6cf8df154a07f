"""The feedback log: what it keeps, what it never keeps, and that nobody waits for it."""

from __future__ import annotations

import hashlib
import math
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import apsw
import pytest
import trio
import trio.testing

from memory.errors import StoreError
from memory.storage import behaviour
from memory.storage.behaviour import (
    FEATURES_ID,
    OUTCOMES,
    RECENT_S,
    Behaviour,
    Features,
    Shown,
    encode_features,
    erase_in_copy,
    query_tag,
)
from tests.helpers.memories import Clock, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

A, B, C = (hashlib.sha256(name).digest() for name in (b"a", b"b", b"c"))


@asynccontextmanager
async def running(folder: Path, clock: Clock | None = None) -> AsyncIterator[Behaviour]:
    log = Behaviour(folder / "behaviour.db", clock or Clock())
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        yield log
        nursery.cancel_scope.cancel()


def shown(log: Behaviour, *records: bytes, agent: str = "claude", query: str = "node") -> None:
    items = [Shown(record, rank) for rank, record in enumerate(records, 1)]
    log.note_shown(agent=agent, session="s1", scope="main", query=query, shown=items)


def rows(folder: Path, sql: str) -> list[tuple[object, ...]]:
    connection = apsw.Connection(str(folder / "behaviour.db"))
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def content_of(folder: Path) -> bytes:
    """Every byte of every file."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_an_answer_is_kept_with_places_and_features_and_without_words(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as log:
        log.note_shown(
            agent="claude",
            session="s1",
            scope="main",
            query="zanzibar marmalade",
            shown=[Shown(A, 1, Features(bm25=0.5)), Shown(B, 2)],
        )
        await log.flush()
    assert rows(tmp_path, "SELECT record, rank, outcome FROM shown ORDER BY rank") == [
        (A, 1, None),
        (B, 2, None),
    ]
    [(kept,)] = rows(tmp_path, "SELECT features FROM shown WHERE rank = 1")
    assert kept == encode_features(Features(bm25=0.5))
    assert bytes(kept).startswith(FEATURES_ID)  # type: ignore[call-overload]
    content = content_of(tmp_path)
    assert b"zanzibar" not in content
    assert b"marmalade" not in content


def test_equal_questions_have_equal_marks_under_one_key_only() -> None:
    assert query_tag(b"k" * 32, "Which  node?") == query_tag(b"k" * 32, "which node?")
    assert query_tag(b"k" * 32, "which node?") != query_tag(b"l" * 32, "which node?")
    assert query_tag(b"k" * 32, "which node?") != query_tag(b"k" * 32, "which other?")


def test_features_say_nothing_of_trust_or_of_who_wrote() -> None:
    assert not {"trust", "author_trust", "author_id", "importance"} & set(Features._fields)


async def test_notes_return_at_once_and_are_written_a_second_later(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    log = Behaviour(tmp_path / "behaviour.db", Clock(), inline=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        shown(log, A)  # not awaited: nothing it does can wait
        assert rows(tmp_path, "SELECT count(*) FROM shown") == [(0,)]
        await trio.sleep(1.5)
        assert rows(tmp_path, "SELECT count(*) FROM shown") == [(1,)]
        nursery.cancel_scope.cancel()


async def test_what_waits_is_written_on_the_way_out(tmp_path: Path) -> None:
    async with running(tmp_path) as log:
        shown(log, A)
    assert rows(tmp_path, "SELECT count(*) FROM shown") == [(1,)]


async def test_a_session_knows_what_it_saw_in_the_last_half_hour(tmp_path: Path) -> None:
    clock = Clock()
    log = Behaviour(tmp_path / "behaviour.db", clock)
    shown(log, A)
    clock.ms += int(RECENT_S * 1000) - 1000
    shown(log, B, C)
    log.note_read(agent="claude", session="s2", records=[A])
    assert log.recent("s1") == [B, C, A]
    clock.ms += 2000
    assert log.recent("s1") == [B, C]
    assert log.recent("s2") == [A]
    assert log.recent("") == []
    assert log.recent("unknown") == []


async def test_sessions_in_ram_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviour, "SESSIONS_MAX", 3)
    monkeypatch.setattr(behaviour, "SESSION_IDS_MAX", 5)
    monkeypatch.setattr(behaviour, "WAITING_MAX", 4)
    log = Behaviour(tmp_path / "behaviour.db", Clock())
    for n in range(10):
        ids = [hashlib.sha256(bytes([n, i])).digest() for i in range(9)]
        log.note_read(agent="a", session=f"s{n}", records=ids)
    assert [len(log.recent(f"s{n}")) for n in range(10)] == [0] * 7 + [5] * 3
    assert log.dropped == 6


async def test_who_was_shown_what_is_known_before_and_after_it_is_written(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock) as log:
        shown(log, A, agent="eve")
        assert await log.shown_to("eve", [A, B], clock.ms) == {A}
        await log.flush()
        assert await log.shown_to("eve", [A, B], clock.ms) == {A}
        assert await log.shown_to("eve", [A], clock.ms + 1) == set()
        assert await log.shown_to("bob", [A], clock.ms) == set()


async def test_repeated_questions_do_not_push_out_what_somebody_was_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behaviour, "SHOWN_MAX", 10)
    monkeypatch.setattr(behaviour, "PRUNE_EVERY", 1)
    monkeypatch.setattr(behaviour, "WAITING_MAX", 10_000)
    clock = Clock()
    async with running(tmp_path, clock) as log:
        monkeypatch.setattr(behaviour, "PRUNE_EVERY", 2)
        shown(log, A, agent="eve")
        for _ in range(500):
            shown(log, B, agent="eve")
        await log.flush()
        assert await log.shown_to("eve", [A], 0) == {A}
    [(kept,)] = rows(tmp_path, "SELECT count(*) FROM shown")
    assert kept <= 10  # type: ignore[operator]


async def test_the_log_is_bounded_in_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with running(tmp_path, clock) as log:
        shown(log, A)
        await log.flush()
        clock.ms += behaviour.KEPT_MS + 1
        monkeypatch.setattr(behaviour, "PRUNE_EVERY", 2)
        log._flushes = 2
        shown(log, B)
        await log.flush()
    assert rows(tmp_path, "SELECT record FROM shown") == [(B,)]
    assert rows(tmp_path, "SELECT record FROM seen") == [(B,)]


async def test_outcomes_go_to_the_newest_answer_and_only_grow_stronger(tmp_path: Path) -> None:
    async with running(tmp_path) as log:
        shown(log, A, query="first")
        shown(log, A, query="second")
        log.note_read(agent="claude", session="s1", records=[A, B])
        await log.flush()
        found = "SELECT outcome FROM shown s JOIN impression i ON i.id = s.impression"
        asked = f"{found} WHERE i.query_tag IS NOT NULL ORDER BY i.id"
        assert rows(tmp_path, asked) == [(None,), ("opened",)]
        await log.outcome(A, "claude", "useful")
        await log.outcome(A, "claude", "opened")
        await log.outcome(B, "claude", "useful")  # it was in no answer to a question
        await log.outcome(A, "eve", "wrong")  # eve never saw it
        await log.flush()
    assert rows(tmp_path, asked) == [(None,), ("useful",)]
    assert OUTCOMES[0] == "opened"


async def test_erasing_memories_leaves_no_trace_of_their_ids(tmp_path: Path) -> None:
    rng = random.Random(5)
    gone = [rng.randbytes(32) for _ in range(300)]
    async with running(tmp_path) as log:
        for record in gone:
            shown(log, record, A)
        await log.flush()
        shown(log, *gone[:3])  # not written yet
        await log.erase(gone)
        content = content_of(tmp_path)
        assert not [record for record in gone if record in content]
        assert A in content
        assert log.recent("s1") == [A]
        await log.flush()
    content = content_of(tmp_path)
    assert not [record for record in gone if record in content]
    assert rows(tmp_path, "SELECT count(*) FROM impression") == [(300,)]


async def test_an_erasure_that_meets_a_flush_misses_nothing(tmp_path: Path) -> None:
    rng = random.Random(6)
    gone = [rng.randbytes(32) for _ in range(50)]
    async with running(tmp_path) as log:
        for record in gone:
            shown(log, record)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.flush)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(log.erase, gone)
    content = content_of(tmp_path)
    assert not [record for record in gone if record in content]


async def test_a_copy_of_the_log_forgets_what_was_erased_since(tmp_path: Path) -> None:
    async with running(tmp_path) as log:
        shown(log, A, B)
        await log.flush()
    path = tmp_path / "behaviour.db"
    erase_in_copy(path, [A])
    content = content_of(tmp_path)
    assert A not in content
    assert B in content
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TRIGGER t AFTER DELETE ON shown BEGIN DELETE FROM seen; END")
    connection.close()
    with pytest.raises(StoreError, match="somebody altered it"):
        erase_in_copy(path, [B])
    assert B in content_of(tmp_path)


async def test_forgetting_the_log_empties_the_file_and_changes_its_key(tmp_path: Path) -> None:
    async with running(tmp_path) as log:
        for n in range(200):
            shown(log, hashlib.sha256(bytes([n])).digest(), agent="somebody-named")
        await log.flush()
        key = log._key
        await log.forget()
        assert log.recent("s1") == []
        content = content_of(tmp_path)
        assert b"somebody-named" not in content
        assert key not in content
        assert hashlib.sha256(b"\x07").digest() not in content
        shown(log, B)
        await log.flush()
    assert rows(tmp_path, "SELECT count(*) FROM shown") == [(1,)]


async def test_the_key_outlives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as log:
        shown(log, A)
    async with running(tmp_path) as log:
        shown(log, A)
    tags = rows(tmp_path, "SELECT DISTINCT query_tag FROM impression")
    assert len(tags) == 1


@pytest.mark.parametrize(
    "content", [b"not a database" * 400, b"SQLite format 3\0" + b"\xff" * 9000]
)
async def test_a_damaged_file_is_started_anew(tmp_path: Path, content: bytes) -> None:
    await trio.Path(tmp_path / "behaviour.db").write_bytes(content)
    async with running(tmp_path) as log:
        shown(log, A)
    assert rows(tmp_path, "SELECT count(*) FROM shown") == [(1,)]


async def test_without_a_usable_file_lineage_still_works(tmp_path: Path) -> None:
    await trio.Path(tmp_path / "behaviour.db").mkdir()
    async with running(tmp_path) as log:
        shown(log, A)
        assert log.recent("s1") == [A]
        assert await log.shown_to("claude", [A], 0) == {A}
        await log.flush()
        assert log.dropped == 1
        await log.erase([A])
        await log.forget()


async def test_recall_get_list_and_history_are_noted(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        await nursery.start(world.behaviour.run)
        first = bytes.fromhex(await world.say("the build needs node 22"))
        second = bytes.fromhex(await world.say("the tests need postgres", thread="t2"))
        await world.find("node build")
        assert world.behaviour.recent("s1") == [first]
        await world.memory.get(world.agent(), [second.hex()])
        assert set(world.behaviour.recent("s1")) == {first, second}
        assert await world.behaviour.shown_to("claude", [first, second], 0) == {first, second}
        await world.memory.get(world.agent(), [first.hex()])
        await world.behaviour.flush()
        [(outcome, features)] = rows(
            tmp_path, "SELECT outcome, features FROM shown WHERE features IS NOT NULL"
        )
        assert outcome == "opened"
        assert features == encode_features(
            Features(bm25=1.0, base=1.0, thread=0.5, log_length=math.log(7), chunks=1, words=2)
        )
        nursery.cancel_scope.cancel()
