"""Floods that would make folding trust dear: names, owners, verdicts without end.

What is bounded is counted, not timed: rows of a query plan that scan a table, pieces that are
weighed, authors that are read.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from memory.bodies import VerdictBody, encode_body
from memory.trust import standing as trust_standing
from memory.trust.evidence import observe
from memory.trust.rules import FAULTS_A_DAY
from memory.trust.standing import SAID_MAX, SEEN_MAX, Standings
from tests.helpers.memories import HOME, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import apsw

    from memory.trust.standing import Standing

pytestmark = pytest.mark.attack

DAY_MS = 86_400_000
NAMES = 600


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, inline=True) as opened:
        yield opened


async def row_of(world: World, agent: str) -> int:
    ((row,),) = await world.sql("SELECT min(id) FROM author WHERE agent = ?", agent)
    assert isinstance(row, int)
    return row


async def standing(world: World, agent: str) -> Standing:
    row = await row_of(world, agent)
    return await world.db.read(lambda c: Standings(c, world.clock.wall_ms()).author(row))


async def add_verdicts(world: World, about: str, voter: str, kind: str, count: int) -> None:
    """Verdict rows as a voter's signed records leave them, one an hour, without the records."""
    target, said = await row_of(world, about), await row_of(world, voter)
    first = world.clock.wall_ms()
    world.clock.ms += count * 3_600_000

    def unit(connection: apsw.Connection) -> None:
        connection.executemany(
            "INSERT INTO evidence(about, kind, voter, hlc, at_ms) VALUES (?, ?, ?, ?, ?)",
            [
                (target, kind, said, first + n * 3_600_000 << 16, first + n * 3_600_000)
                for n in range(count)
            ],
        )

    await world.db.write(unit)


async def test_judging_one_reads_none_of_thousands_of_other_names(world: World) -> None:
    peer = Peer(world.clock, 7)
    names = [peer.write(HOME, note_body("tea", agent=f"n{n}"), "other") for n in range(NAMES)]
    await world.replica.admit(HOME, names)
    await world.say("the port is 8080")
    mine, theirs = await row_of(world, "claude"), await row_of(world, "n3")

    def read(connection: apsw.Connection) -> int:
        standings = Standings(connection, world.clock.wall_ms())
        standings.author(mine)
        standings.author(theirs)
        return len(standings._authors)

    assert await world.db.read(read) <= 4


async def test_no_query_of_a_fold_scans_authors_or_evidence(world: World) -> None:
    peer = Peer(world.clock, 7)
    note = peer.write(HOME, note_body("tea", agent="bob"), "invited")
    await world.replica.admit(HOME, [note])
    row = await row_of(world, "bob")
    ((memory,),) = await world.sql("SELECT id FROM memory")
    assert isinstance(memory, int)

    def read(connection: apsw.Connection) -> list[tuple[str, str]]:
        asked: dict[str, apsw.Bindings | None] = {}

        def trace(_cursor: apsw.Cursor, sql: str, bound: apsw.Bindings | None) -> bool:
            asked.setdefault(sql, bound)
            return True

        connection.exec_trace = trace
        try:
            standings = Standings(connection, world.clock.wall_ms())
            standings.author(row)
            standings.voices(memory, row)
            standings.flow_to({peer.sealer.device})
        finally:
            connection.exec_trace = None
        return [
            (sql, str(step))
            for sql, bound in asked.items()
            for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {sql}", bound)
        ]

    plans = await world.db.read(read)
    assert len({sql for sql, _ in plans}) >= 5
    # An index of its own for the few rows of the own side may be walked.
    scans = [
        step
        for _, step in plans
        if step.startswith("SCAN ")
        and step.split()[1] in ("author", "a", "v", "evidence", "e", "x")
        and "author_ours" not in step
    ]
    assert scans == []


async def test_one_voters_flood_is_weighed_in_part_and_silences_nobody(world: World) -> None:
    await world.say("the port is 8080", world.agent("codex"))
    await world.say("mine", world.agent("claude"))
    await world.say("mine too", world.agent("gemini"))
    await add_verdicts(world, "codex", "gemini", "harmful", 20)
    low = await standing(world, "codex")
    await add_verdicts(world, "codex", "claude", "stale", SAID_MAX + 300)
    found = await standing(world, "codex")
    assert len(found.weighed) == SAID_MAX + 20
    assert found.trust == pytest.approx(low.trust, abs=0.05)


async def test_what_is_left_out_of_a_flood_are_the_oldest_words(world: World) -> None:
    await world.say("the port is 8080", world.agent("codex"))
    await world.say("mine", world.agent("claude"))
    await add_verdicts(world, "codex", "claude", "useful", SAID_MAX)
    await add_verdicts(world, "codex", "claude", "harmful", 5)
    found = await standing(world, "codex")
    kinds = [weighed.piece.kind for weighed in found.weighed]
    assert kinds.count("agent_harmful") == 5
    assert len(kinds) == SAID_MAX


async def test_records_that_do_not_count_take_no_place_of_those_that_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words that a rollback hides leave the older ones standing."""
    monkeypatch.setattr(trust_standing, "SAID_MAX", 3)
    note = await world.say("the port is 8080", world.agent("codex"))
    peer = Peer(world.clock, 7)
    await world.replica.admit(HOME, [peer.write(HOME, note_body("tea", agent="bob"), "invited")])
    body = VerdictBody("bob", bytes.fromhex(note), "wrong", "outcome", None, None)
    kept = peer.write(HOME, encode_body(body), "invited")
    await world.replica.admit(HOME, [kept])
    later = [peer.write(HOME, encode_body(body), "invited") for _ in range(5)]
    await world.replica.admit(HOME, later)
    rows = ", ".join(f"x'{record.id.hex()}'" for record in later)
    plan = await world.desk.rollbacks.make("bob", world.clock.wall_ms() + DAY_MS, dry_run=False)

    def mute(connection: apsw.Connection) -> None:
        connection.execute(
            "INSERT INTO muted SELECT n, (SELECT id FROM rollback WHERE token = ?), NULL"
            f" FROM record WHERE id IN ({rows})",
            (plan.token,),
        )

    await world.db.write(mute)
    found = await standing(world, "codex")
    ids = {weighed.piece.id for weighed in found.weighed}
    assert ids == {kept.id}


async def test_faults_that_count_nothing_more_today_are_not_kept(world: World) -> None:
    await world.say("the port is 8080")
    row = await row_of(world, "claude")
    for at_ms in (world.clock.wall_ms(), world.clock.wall_ms() + DAY_MS):
        for _ in range(40):
            await world.replica.transact(
                partial(observe, author=row, kind="injection", at_ms=at_ms)
            )
    assert await world.sql("SELECT count(*) FROM evidence") == [(2 * FAULTS_A_DAY,)]
    assert SEEN_MAX > 100 * FAULTS_A_DAY
