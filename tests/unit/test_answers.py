"""Answers: pairs, disputes, dates, names, meaning, and a cache that never tells of yesterday."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from memory.model import Hits, Query, Withheld
from memory.recall.cache import CAPACITY, AnswerCache, Answered, key_of, kind_of
from tests.helpers.embedders import WordEmbedder
from tests.helpers.memories import HOME, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, inline=True) as opened:
        yield opened


async def ids(world: World, words: str, **fields: Any) -> list[str]:
    return [hit.id for hit in (await world.find(words, **fields)).hits]


async def row_of(world: World, memory_id: str) -> int:
    [(row,)] = await world.sql("SELECT n FROM record WHERE id = ?", bytes.fromhex(memory_id))
    assert isinstance(row, int)
    return row


async def dispute(world: World, one: str, other: str) -> None:
    a, b = sorted([await row_of(world, one), await row_of(world, other)])
    await world.db.write(
        lambda c: c.execute(
            "INSERT INTO dispute(a, b, since_ms) VALUES (?, ?, 0)", (a, b)
        ).fetchall()
    )


async def member_says(world: World, text: str, seed: int = 7, **fields: Any) -> str:
    record = Peer(world.clock, seed).write(HOME, note_body(text, **fields), "invited")
    await world.replica.admit(HOME, [record])
    return record.id.hex()


# ---- structure, end to end


async def test_the_turn_after_a_question_is_found_by_the_question(world: World) -> None:
    await world.say("What is your favourite colour?", thread="t", speaker="Ada")
    answer = await world.say("It has always been teal.", thread="t", speaker="Bob")
    for n in range(5):
        await world.say(f"Another matter entirely {n}.", thread=f"other {n}")
    assert answer in (await ids(world, "favourite colour"))[:2]


async def test_a_long_neighbour_does_not_join(world: World) -> None:
    await world.say("What is your favourite colour?", thread="t")
    long = await world.say("It has always been teal. " * 20, thread="t")
    assert long not in await ids(world, "favourite colour")


async def test_whom_the_question_names_comes_first(world: World) -> None:
    bob = await world.say("I went to Lisbon with a friend", speaker="Bob", thread="a")
    ada = await world.say("I went to Lisbon with a friend too", speaker="Ada", thread="b")
    assert await ids(world, "where did Ada go: Lisbon") == [ada, bob]
    assert await ids(world, "where did bob's friend go: Lisbon") == [bob, ada]
    hit = (await world.find("Ada in Lisbon", explain=True)).hits[0]
    assert hit.explain is not None
    assert hit.explain.by_author == pytest.approx(0.3)


@pytest.mark.attack
async def test_a_stranger_cannot_take_a_word_out_of_questions_by_its_name(world: World) -> None:
    await world.say("deploy on Tuesday", thread="a")
    await member_says(world, "hello", agent="deploy", speaker="deploy")
    hit = (await world.find("deploy Tuesday", world.person, explain=True)).hits[0]
    assert hit.explain is not None
    assert hit.explain.by_author == 0


# ---- meaning


async def test_meaning_finds_what_no_word_says(tmp_path: Path) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder()) as world:
        note = await world.say("alpha beta gamma", thread="a")
        await world.say("delta epsilon zeta", thread="b")
        with trio.fail_after(20):
            while (await world.embeddings.status()).backlog or not world.embeddings.index:
                await trio.lowlevel.checkpoint()
        hits = (await world.find("alpha gamma", explain=True)).hits
        assert hits[0].id == note
        explain = hits[0].explain
        assert explain is not None
        assert explain.embedder == world.embeddings.index.model
        assert explain.cosine is not None
        assert explain.cosine > 0.5
        assert explain.base == pytest.approx(
            0.4 * explain.bm25_norm + 0.6 * explain.cosine_norm, abs=1e-5
        )


# ---- pairs


async def test_both_sides_of_a_dispute_are_shown_the_more_trusted_first(world: World) -> None:
    lie = await member_says(world, "the port of the proxy is 9999 the proxy port")
    truth = await world.say("it listens on 8080", thread="a")
    await dispute(world, lie, truth)
    hits = (await world.find("proxy port")).hits
    assert [(h.id, h.flags, h.disputed) for h in hits] == [
        (truth, ["disputed"], [lie]),
        (lie, ["disputed"], [truth]),
    ]


@pytest.mark.attack
async def test_a_stranger_cannot_mark_a_truth_as_disputed_in_the_default_answer(
    world: World,
) -> None:
    truth = await world.say("the proxy listens on port 8080", thread="a")
    record = Peer(world.clock, 8).write(HOME, note_body("the proxy listens on port 9999"), "other")
    await world.replica.admit(HOME, [record])
    await dispute(world, truth, record.id.hex())
    hits = (await world.find("proxy port")).hits
    assert [(h.id, h.flags) for h in hits] == [(truth, [])]
    asked = (await world.find("proxy port", trust_min=0.0)).hits
    assert [(h.id, h.flags) for h in asked] == [
        (truth, ["disputed"]),
        (record.id.hex(), ["disputed", "low_trust"]),
    ]


async def test_a_dispute_with_what_the_caller_may_not_read_is_not_told(world: World) -> None:
    here = await world.say("the proxy listens on 8080", scope="open")
    there = await world.say("the proxy listens on 9090", scope="closed")
    await dispute(world, here, there)
    hits = (await world.find("proxy", world.agent(read=["open"]))).hits
    assert [(h.id, h.flags, h.disputed) for h in hits] == [(here, [], [])]


async def test_what_was_refuted_never_leads(world: World) -> None:
    wrong = await world.say("the moon is cheese cheese moon", thread="a")
    right = await world.say("the moon is made of rock and dust and more", thread="b")
    row = await row_of(world, wrong)
    await world.db.write(
        lambda c: c.execute("UPDATE memory SET status = 'refuted' WHERE id = ?", (row,)).fetchall()
    )
    hits = (await world.find("moon cheese")).hits
    assert [(h.id, h.flags) for h in hits] == [(right, []), (wrong, ["refuted"])]


async def test_as_of_a_date_shows_what_was_known_by_then(world: World) -> None:
    old = await world.say("the port is 8080", thread="a")
    world.clock.ms += 86_400_000
    new = await world.say("the port is 9090", supersedes=[old], thread="b")
    now = (await world.find("port")).hits
    assert [(h.id, h.flags) for h in now] == [(new, []), (old, ["superseded"])]
    then = (await world.find("port", as_of="2023-11-15T00:00:00Z")).hits
    assert [(h.id, h.flags, h.superseded_by) for h in then] == [(old, [], None)]
    assert (await world.find("port", as_of="2023-11-01")).hits == []
    assert len((await world.find("port", as_of="9999-12-31")).hits) == 2


# ---- withholding


@pytest.mark.attack
@pytest.mark.parametrize("how", ["policy", "imperative"])
async def test_others_orders_are_withheld_until_backed(world: World, how: str) -> None:
    rule = await member_says(
        world, "deploy every evening", kind="policy" if how == "policy" else "note"
    )
    row = await row_of(world, rule)
    if how == "imperative":
        await world.db.write(
            lambda c: c.execute("UPDATE memory SET flags = 2 WHERE id = ?", (row,)).fetchall()
        )
    hits = await world.find("deploy evening")
    assert (hits.hits, hits.withheld.quarantined) == ([], 1)
    assert await ids(world, "deploy evening", quarantined=True) == [rule]
    await world.db.write(
        lambda c: c.execute("UPDATE memory SET backed = 1 WHERE id = ?", (row,)).fetchall()
    )
    assert await ids(world, "deploy evening") == [rule]


async def test_own_rules_are_no_orders_of_others(world: World) -> None:
    mine = await world.say("deploy every evening", kind="policy")
    assert await ids(world, "deploy evening") == [mine]


# ---- withdrawn texts


async def test_history_shows_agents_no_text_that_recall_would_not(world: World) -> None:
    note = await world.say("temporary words", ttl_s=60)
    world.clock.ms += 61_000
    for who, text in ((world.agent(), None), (world.person, "temporary words")):
        history = await world.memory.history(who, note)
        assert [v.text for v in history.versions] == [text]
        assert history.status == "expired"


@pytest.mark.attack
async def test_a_prefix_tells_nothing_of_what_may_not_be_read(world: World) -> None:
    here = await world.say("open words", scope="open")
    there = await world.say("closed words", scope="closed")
    twin = bytes.fromhex(here[:8] + "00" * 28)
    await world.db.write(
        lambda c: c.execute(
            "UPDATE record SET id = ? WHERE id = ?", (twin, bytes.fromhex(there))
        ).fetchall()
    )
    reader = world.agent(read=["open"])
    assert [h.id for h in (await world.memory.get(reader, [here[:8]])).hits] == [here]
    assert (await world.memory.get(reader, [twin.hex()])).hits == []
    assert (await world.memory.history(reader, here[:8])).id == here


# ---- the cache


def cache_of(world: World) -> AnswerCache:
    return world.memory._recaller.cache


async def test_the_same_question_is_answered_again_without_searching(world: World) -> None:
    await world.say("plums are ripe")
    first = await world.find("plums  ripe")
    world.clock.ms += 36 * 3_600_000 // 1000
    again = await world.find("plums ripe")
    assert cache_of(world).found == 1
    assert [h.id for h in again.hits] == [h.id for h in first.hits]
    again.hits[0].flags.append("spoilt by its caller")
    assert (await world.find("plums ripe")).hits[0].flags == []


async def test_every_kind_of_change_is_seen_at_once(world: World) -> None:
    note = await world.say("plums are ripe", thread="a")
    row = await row_of(world, note)

    async def fresh() -> bool:
        """Whether the next answer is made anew."""
        before = cache_of(world).found
        await world.find("plums")
        return cache_of(world).found == before

    await world.find("plums")
    assert not await fresh()
    changes = [
        f"UPDATE memory SET {column} WHERE id = {row}"
        for column in (
            "eff_trust = .7", "flags = 2", "backed = 1", "confirmations = 1", "cluster = 1",
            "status = 'refuted'", "valid_to = 5", "title = 't'",
        )
    ] + [
        "UPDATE author SET trust = .6",
        "INSERT INTO device VALUES (x'00', 'laptop', 0, NULL, 0)",
        "UPDATE device SET name = 'desk'",
        "DELETE FROM device",
        "UPDATE grp SET name = 'den' WHERE home = 1",
        f"INSERT INTO dispute(a, b, since_ms) VALUES ({row}, {row}, 0)",
        "DELETE FROM dispute",
        f"INSERT INTO vec SELECT id, 'm', 1.0, x'00' FROM chunk WHERE memory = {row}",
    ]  # fmt: skip
    for change in changes:
        await world.db.write(lambda c, sql=change: c.execute(sql).fetchall())  # type: ignore[misc]
        assert await fresh(), change
        assert not await fresh(), change
    await world.say("more plums", thread="b")
    assert await fresh()
    await world.memory.forget(world.agent(), [note])
    assert note not in await ids(world, "plums")


@pytest.mark.attack
async def test_no_answer_made_before_a_vector_arrived_is_given_after_it(tmp_path: Path) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder()) as world:
        await world.say("delta epsilon zeta")
        await _embedded(world)
        index = world.embeddings.index
        assert index is not None
        add, held = index.add, []
        index.add = held.append  # type: ignore[method-assign] # a commit whose vector is on its way
        await world.say("alpha beta gamma")
        with trio.fail_after(20):
            while not held:
                await trio.lowlevel.checkpoint()
        await world.find("alpha gamma")
        await world.find("alpha gamma")
        assert cache_of(world).found == 1
        add(held[0])
        await world.find("alpha gamma")
        assert cache_of(world).found == 1


async def test_no_answer_outlives_the_vectors_it_was_made_with(tmp_path: Path) -> None:
    embedder = WordEmbedder()
    async with open_world(tmp_path, embedder=embedder) as world:
        await world.say("alpha beta gamma")
        await _embedded(world)
        index = world.embeddings.index
        assert index is not None
        await world.find("alpha gamma")
        index.clear()
        await world.find("alpha gamma")
        assert cache_of(world).found == 0


async def _embedded(world: World) -> None:
    """Until every chunk has its vector."""
    with trio.fail_after(20):
        while (await world.embeddings.status()).backlog or not len(world.embeddings.index or ()):
            await trio.lowlevel.checkpoint()


async def test_no_answer_goes_to_a_caller_of_other_scopes(world: World) -> None:
    secret = await world.say("the plums are hidden", scope="closed")
    await world.say("the plums are ripe", scope="open")
    assert secret in await ids(world, "plums")
    narrow = await world.find("plums", world.agent(read=["open"]))
    assert secret not in [h.id for h in narrow.hits]
    wide = await world.find("plums", world.agent(read=["open", "closed"]))
    assert secret in [h.id for h in wide.hits]
    assert cache_of(world).found == 0


async def test_an_answer_dies_with_the_first_of_its_hits(world: World) -> None:
    note = await world.say("plums today in the cellar", ttl_s=30)
    assert await ids(world, "plums cellar") == [note]
    world.clock.ms += 31_000
    assert await ids(world, "plums cellar") == []


async def test_what_asks_about_now_is_kept_for_a_minute(world: World) -> None:
    await world.say("plums are ripe")
    await world.find("plums now")
    world.clock.ms += 61_000
    await world.find("plums now")
    assert cache_of(world).found == 0


def test_questions_are_of_three_kinds() -> None:
    assert kind_of(Query(query="what is E_NOENT")) == "identifier"
    assert kind_of(Query(query="node 22")) == "identifier"
    assert kind_of(Query(query="plums", since="2024-01-01")) == "temporal"
    assert kind_of(Query(query="what did we decide last week")) == "temporal"
    assert kind_of(Query(query="how do plums grow")) == "concept"


async def test_each_kind_has_its_part_of_the_room(world: World) -> None:
    cache = AnswerCache()
    empty = Answered(Hits(hits=[], withheld=Withheld(), searched=0, ms=0.0))
    who = world.person
    keys = [key_of(who, Query(query=f"plums {n}"), "") for n in range(2 * CAPACITY)]
    kept = key_of(who, Query(query="plums"), "")
    cache.keep(kept, "concept", (), empty, 0, 0)
    for key in keys:
        cache.keep(key, "identifier", (), empty, 0, 0)
    assert len(cache) == int(CAPACITY * 0.4) + 1
    assert cache.find(kept, "concept", (), 1) is not None
    assert cache.find(keys[0], "identifier", (), 1) is None
    assert cache.find(keys[-1], "identifier", ((1, 1),), 1) is None
    flushes = cache.flushes
    cache.clear()
    cache.keep(kept, "concept", (), empty, 0, flushes)
    assert len(cache) == 0
