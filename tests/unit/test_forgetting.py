"""Forgetting by rule, and bringing back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from memory.bodies import ForgetBody
from memory.config import MemoryConfig
from memory.erasure.forgetting import Forgetting
from memory.erasure.lifecycle import DAY_MS, Standing, crowded_out, never, unverified
from memory.text.maintenance import reindex
from tests.helpers.memories import HOME, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOW = 1_700_000_000_000


def standing(**changes: object) -> Standing:
    """A foreign note that nobody confirmed, a hundred days old."""
    plain = Standing(1, "note", "agent", "other", False, 0, NOW - 100 * DAY_MS, NOW - 100 * DAY_MS)
    return plain._replace(**changes)  # type: ignore[arg-type]


# ---- the rules


def test_a_foreign_note_is_forgotten_after_its_days_and_not_before() -> None:
    assert unverified(standing(), NOW, 90)
    assert not unverified(standing(used_ms=NOW - 90 * DAY_MS + 1), NOW, 90)
    assert not unverified(standing(confirmed=True), NOW, 90)
    assert not unverified(standing(relation="own"), NOW, 90)
    assert not unverified(standing(relation="own_device"), NOW, 90)


@pytest.mark.parametrize("kind", ["policy", "decision"])
def test_policies_decisions_and_the_persons_words_are_never_forgotten(kind: str) -> None:
    assert never(standing(kind=kind, relation="own"))
    assert never(standing(kind=kind, confirmed=True))
    assert never(standing(role="owner", relation="own_device"))
    # Anybody can sign a note with the role owner, or call it a decision: of a stranger it means
    # nothing.
    assert not never(standing(role="owner", relation="invited"))
    assert not never(standing(kind=kind))
    assert unverified(standing(kind=kind), NOW, 90)


@pytest.mark.attack
def test_a_peers_flood_crowds_out_no_own_note() -> None:
    own = [
        standing(memory=n, relation="own", born_ms=NOW - 400 * DAY_MS, used_ms=0) for n in range(50)
    ]
    flood = [
        standing(memory=100 + n, born_ms=NOW, uses=5, kind=("note", "decision")[n % 2])
        for n in range(200)
    ]
    gone = crowded_out([*own, *flood], 200, NOW)
    assert set(gone) == {one.memory for one in flood}


standings = st.builds(
    Standing,
    st.integers(1, 50),
    st.sampled_from(["note", "policy"]),
    st.sampled_from(["owner", "agent"]),
    st.sampled_from(["own", "other"]),
    st.booleans(),
    st.integers(0, 9),
    st.just(NOW),
    st.integers(NOW - 400 * DAY_MS, NOW),
)


@given(st.lists(standings, max_size=30), st.integers(0, 40))
def test_over_the_cap_the_least_used_for_their_age_go(rows: list[Standing], over: int) -> None:
    rows = [row._replace(memory=n) for n, row in enumerate(rows)]
    gone = crowded_out(rows, over, NOW)
    assert len(gone) == min(over, sum(not never(row) for row in rows))
    rate = {row.memory: (row.uses + 1) / ((NOW - row.born_ms) / DAY_MS + 1) for row in rows}
    rank = {row.memory: (row.relation == "own" or row.confirmed, rate[row.memory]) for row in rows}
    stay = [row.memory for row in rows if row.memory not in gone and not never(row)]
    assert not any(never(rows[memory]) for memory in gone)
    assert all(rank[went] <= rank[left] for went in gone for left in stay)


# ---- the memory


class Desk:
    """A memory with its forgetting."""

    def __init__(self, world: World, **config: int) -> None:
        self.world = world
        self.told: list[bytes] = []
        self.forgetting = Forgetting(
            world.db, world.replica, world.clock, MemoryConfig(**config), self._tell
        )

    async def _tell(self, group: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(group)

    async def found(self, words: str) -> list[str]:
        return [hit.id for hit in (await self.world.find(words, trust_min=0.0)).hits]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, inline=True) as opened:
        yield opened


async def foreign(world: World, text: str, **fields: object) -> str:
    record = Peer(world.clock, 40 + len(text)).write(HOME, note_body(text, **fields), "invited")
    await world.replica.admit(HOME, [record])
    return record.id.hex()


async def test_unused_foreign_notes_go_after_90_days_here_whatever_their_date(
    world: World,
) -> None:
    desk = Desk(world)
    old = await foreign(world, "an old foreign apple", at_ms=0)
    kept = await foreign(world, "a foreign apple decision", kind="decision")
    await world.desk.feedback(world.person, kept, "useful")
    mine = await world.say("my own apple")
    assert await desk.forgetting.apply_rules() == 0
    world.clock.ms += 89 * DAY_MS
    assert await desk.forgetting.apply_rules() == 0
    world.clock.ms += 2 * DAY_MS
    assert await desk.forgetting.apply_rules() == 1
    assert set(await desk.found("apple")) == {kept, mine}
    assert await world.sql("SELECT status FROM memory m JOIN faded f ON f.memory = m.id") == [
        ("hidden",)
    ]
    assert await world.sql("SELECT why FROM faded") == [("unverified",)]
    assert await desk.forgetting.apply_rules() == 0
    # The record stays, and it comes back; its 90 days begin anew.
    (done,) = await desk.forgetting.restore(world.person, [old])
    assert done.status == "restored"
    assert old in await desk.found("apple")
    assert await desk.forgetting.apply_rules() == 0
    assert await world.sql("SELECT 1 FROM faded") == []
    assert desk.told == []
    await world.check_index()


async def test_what_answers_showed_is_kept(world: World) -> None:
    desk = Desk(world)
    used = await foreign(world, "a used pear")
    await foreign(world, "an unused pear tree")
    await desk.forgetting.apply_rules()
    world.clock.ms += 60 * DAY_MS
    desk.forgetting.note_used([bytes.fromhex(used)] * 3)
    await desk.forgetting.write_uses()
    await desk.forgetting.write_uses()
    world.clock.ms += 40 * DAY_MS
    assert await desk.forgetting.apply_rules() == 1
    assert await desk.found("pear") == [used]
    assert await world.sql("SELECT max(uses) FROM memory") == [(3,)]


async def test_over_a_scopes_cap_the_least_used_go(world: World) -> None:
    desk = Desk(world, scope_memories_max=4)
    ids = []
    for n in range(6):
        ids.append(await world.say(f"plum number{n}"))
        world.clock.ms += DAY_MS
    decision = await world.say("plum decision", kind="decision")
    await world.say("elsewhere plum", scope="work")
    desk.forgetting.note_used([bytes.fromhex(ids[0])] * 9)
    await desk.forgetting.write_uses()
    assert await desk.forgetting.apply_rules() == 3
    left = set(await desk.found("plum number decision"))
    assert ids[0] in left
    assert decision in left
    assert set(ids[1:4]).isdisjoint(left)
    assert await desk.forgetting.apply_rules() == 0


async def test_a_forgotten_note_comes_back_on_all_replicas(world: World) -> None:
    desk = Desk(world)
    ident = await world.say("a fig to keep")
    await world.memory.forget(world.agent(), [ident], "mistake")
    assert await desk.found("fig") == []
    (done,) = await desk.forgetting.restore(world.agent(), [ident])
    assert done.status == "restored"
    assert await desk.found("fig") == [ident]
    # The forget record itself is erased: its author's own, so every replica follows.
    assert desk.told == [HOME]
    assert len(await world.replica.erased(HOME, world.sealer.device)) == 1
    assert await world.sql("SELECT 1 FROM forgetting") == []
    again = await desk.forgetting.restore(world.agent(), [ident])
    assert again[0].status == "restored"


async def test_the_other_targets_of_a_forget_record_stay_forgotten(world: World) -> None:
    desk = Desk(world)
    one, two = await world.say("fig one"), await world.say("fig two")
    targets = sorted(bytes.fromhex(ident) for ident in (one, two))
    from memory.records.writing import entry_draft

    await world.replica.append(HOME, [entry_draft(ForgetBody("claude", targets, None))])
    assert await desk.found("fig") == []
    await desk.forgetting.restore(world.person, [one])
    assert await desk.found("fig") == [one]


async def test_who_may_bring_back(world: World) -> None:
    desk = Desk(world)
    theirs = await world.say("fig of cursor", world.agent("cursor"))
    await world.memory.forget(world.agent("cursor"), [theirs])
    results = await desk.forgetting.restore(world.agent("claude"), [theirs, "ab" * 32])
    assert [result.status for result in results] == ["not_yours", "not_found"]
    assert await desk.found("fig") == []
    peers = await foreign(world, "fig of a peer")
    await world.memory.forget(world.person, [peers])
    assert await desk.found("fig") == []
    (done,) = await desk.forgetting.restore(world.person, [peers])
    assert done.status == "restored"
    assert await desk.found("fig") == [peers]


@pytest.mark.attack
async def test_an_agent_does_not_undo_what_the_person_took_out(world: World) -> None:
    desk = Desk(world)
    rolled, forgotten, faded = [await world.say(f"fig number{n}") for n in range(3)]
    await world.memory.forget(world.person, [forgotten])
    await desk.forgetting._forget("crowded", [await row_of(world, faded)], world.clock.wall_ms())
    await world.desk.rollbacks.make("claude", 0, dry_run=False)
    done = await desk.forgetting.restore(world.agent(), [rolled, forgotten, faded])
    assert [one.status for one in done] == ["not_yours"] * 3
    assert await desk.found("fig") == []
    (plan,) = await world.desk.rollbacks.listed()
    await world.desk.rollbacks.undo(plan.token)
    assert [o.status for o in await desk.forgetting.restore(world.agent(), [forgotten, faded])] == [
        "not_yours",
        "restored",
    ]
    (back,) = await desk.forgetting.restore(world.person, [forgotten])
    assert back.status == "restored"
    assert len(await desk.found("fig")) == 3


async def row_of(world: World, ident: str) -> int:
    ((row,),) = await world.sql("SELECT n FROM record WHERE id = ?", bytes.fromhex(ident))
    assert isinstance(row, int)
    return row


async def test_a_crash_loses_a_statistic_and_nothing_else(world: World) -> None:
    desk = Desk(world)
    ident = await world.say("a note")
    desk.forgetting.note_used([bytes.fromhex(ident), b"u" * 32])
    del desk
    assert await world.sql("SELECT uses FROM memory") == [(0,)]


# ---- upkeep by hand


async def test_reindexing_gives_the_same_answers(world: World) -> None:
    for n in range(30):
        await world.say(f"cherry number{n} in the basket")
    low = Peer(world.clock, 9).write(HOME, note_body("cherry of a stranger"), "other")
    await world.replica.admit(HOME, [low])
    before = [hit.id for hit in (await world.find("cherry basket")).hits]
    await world.db.write(lambda c: c.execute("UPDATE scope SET main_chunks = 7").fetchall())
    assert await reindex(world.db) == 31
    assert [hit.id for hit in (await world.find("cherry basket")).hits] == before
    await world.check_index()
