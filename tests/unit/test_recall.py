"""Recall: what is found, in which order, what is withheld, and how an answer is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apsw
import pytest

from memory.errors import RefusedError
from memory.model import NoteIn, Query
from memory.provenance import iso, parse_iso, peer_text
from memory.recall.filters import Filters
from memory.recall.fuse import (
    Candidate,
    best_chunks,
    cap_distrusted,
    collapse,
    length_discount,
    normalise,
    weigh,
)
from memory.recall.pool import Asked, by_meaning
from memory.store import Filter
from memory.text.fts import expression, within_budget
from memory.text.parse import Words
from memory.tiers import LOW, MAIN
from tests.helpers.candidates import make_candidate
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


async def test_words_find_notes_by_text_and_title_and_stem(world: World) -> None:
    node = await world.say("The build needs node 22 and a warm cache.", title="Toolchain")
    await world.say("Lunch is at noon on Fridays.", thread="another")
    assert await ids(world, "which nodes do builds need?") == [node]
    assert await ids(world, "toolchains") == [node]
    assert await ids(world, "elephant") == []


async def test_every_hit_says_who_when_where_and_how_far_to_trust_it(world: World) -> None:
    await world.memory.set_device_name("laptop")
    note = await world.say(
        "The build needs node 22.", title="Build", tags=["ci"], kind="decision", thread="t"
    )
    world.clock.ms += 36 * 3600 * 1000
    (hit,) = (await world.find("node")).hits
    assert hit.id == note
    assert (hit.author.agent, hit.author.device, hit.author.relation) == (
        "claude",
        "laptop",
        "own",
    )
    assert hit.author.device_id == world.sealer.device.hex()
    assert hit.origin == peer_text(world.sealer.device)
    assert (hit.trust, hit.verified, hit.kind, hit.tags) == (0.86, True, "decision", ["ci"])
    assert (hit.scope, hit.created, hit.age_days) == ("main", "2023-11-14T22:13:20Z", 1.5)
    assert hit.thread is not None


async def test_query_text_is_never_query_syntax(world: World) -> None:
    await world.say("nothing to see")
    for text in ('"', '" OR "', "a*", "NEAR(x y)", "title:x", "-x", "^a", "(", "x AND", "{a} : b"):
        await world.find(text)
    await world.say("AND OR NOT NEAR are words", thread="another")
    assert len(await ids(world, "NEAR")) == 1


async def test_a_question_of_stop_words_still_asks_for_them(world: World) -> None:
    note = await world.say("to be or not to be")
    assert await ids(world, "to be or not") == [note]


async def test_phrases_weigh_more_than_scattered_words(world: World) -> None:
    scattered = await world.say("config loads first, memory of py files later, store last; py py")
    exact = await world.say("see memory/store.py for the front door of it all and the rest")
    found = await ids(world, "memory/store.py")
    assert found[0] == exact
    assert scattered in found


async def test_a_long_note_does_not_win_by_length(world: World) -> None:
    filler = " ".join(f"sentence number {n} speaks of zebra crossings." for n in range(60))
    long = await world.say(filler)
    short = await world.say("zebra crossings here")
    assert await ids(world, "zebra crossings") == [short, long]


async def test_filters_narrow_the_answer(world: World) -> None:
    a = await world.say("apple pie", tags=["food", "sweet"], kind="lesson", at="2024-01-01")
    b = await world.say("apple tree", world.agent("cursor"), tags=["garden"], at="2025-01-01")
    assert await ids(world, "apple", tags=["food"]) == [a]
    assert await ids(world, "apple", tags=["food", "garden"]) == []
    assert await ids(world, "apple", kinds=["lesson"]) == [a]
    assert await ids(world, "apple", author="cursor") == [b]
    assert await ids(world, "apple", author="nobody") == []
    assert await ids(world, "apple", since="2024-06-01") == [b]
    assert await ids(world, "apple", until="2024-06-01T00:00:00Z") == [a]
    assert set(await ids(world, "apple", author=world.sealer.device.hex())) == {a, b}


async def test_a_filter_reaches_behind_the_candidate_pool(world: World) -> None:
    await world.memory.remember(
        world.agent(), [NoteIn(text=f"apple apple apple {n}") for n in range(250)]
    )
    await world.memory.remember(
        world.agent(), [NoteIn(text=f"apple apple apple {n}") for n in range(250, 400)]
    )
    rare = await world.say("an apple among many other words of a long text", tags=["rare"])
    assert await ids(world, "apple", tags=["rare"]) == [rare]


@pytest.mark.parametrize(
    "fields",
    [
        {"query": ""},
        {"query": "  "},
        {"query": "x" * 4097},
        {"limit": 0},
        {"limit": 101},
        {"trust_min": 1.5},
        {"budget_tokens": -1},
        {"since": "soon"},
        {"scope": "A B"},
    ],
)
async def test_a_query_outside_its_limits_is_refused(world: World, fields: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        await world.memory.recall(world.agent(), Query(**{"query": "x", **fields}))


async def test_a_hostile_query_is_bounded(world: World) -> None:
    await world.say("word0 word1")
    hits = await world.find(" ".join(f"word{n}" for n in range(500)))
    assert len(hits.hits) == 1
    await world.find("a/" * 2000)
    await world.find('"' * 4000)


async def test_the_limit_holds(world: World) -> None:
    for n in range(30):
        await world.say(f"pear {n}")
    assert len(await ids(world, "pear", limit=5)) == 5
    assert len(await ids(world, "pear")) == 8


# ---- trust


async def test_low_trust_is_withheld_and_counted(world: World) -> None:
    stranger = Peer(world.clock, 7)
    await world.replica.admit(HOME, [stranger.write(HOME, note_body("the moon is cheese"))])
    mine = await world.say("the moon is rock")
    hits = await world.find("moon")
    assert [hit.id for hit in hits.hits] == [mine]
    assert hits.withheld.low_trust == 1
    asked = await world.find("moon", trust_min=0.0)
    assert len(asked.hits) == 2
    assert asked.hits[1].flags == ["low_trust"]


async def test_asked_for_low_trust_stays_a_fifth_and_one_an_owner(world: World) -> None:
    peers = [Peer(world.clock, seed) for seed in range(20, 30)]
    for peer in peers:
        await world.replica.admit(
            HOME,
            [peer.write(HOME, note_body(f"gold is {adjective}")) for adjective in ("up", "down")],
        )
    for n in range(4):
        await world.say(f"gold rule {n}")
    hits = await world.find("gold", trust_min=0.0, limit=10)
    low = [hit for hit in hits.hits if hit.trust < 0.5]
    assert len(low) == 2
    assert len({hit.author.device_id for hit in low}) == 2
    assert hits.withheld.low_trust == 18


@pytest.mark.attack
async def test_a_flood_of_low_trust_text_moves_no_main_hit(world: World) -> None:
    await world.say("The deploy window is Tuesday at nine.")
    await world.say("A deploy takes ten minutes.")
    await world.say("Windows are cleaned on Tuesday.")
    before = [(h.id, h.score) for h in (await world.find("deploy window Tuesday")).hits]
    stranger = Peer(world.clock, 7)
    flood = [
        stranger.write(HOME, note_body(f"deploy window Tuesday deploy window {n}"))
        for n in range(400)
    ]
    await world.replica.admit(HOME, flood)
    after = await world.find("deploy window Tuesday")
    assert [(h.id, h.score) for h in after.hits] == before
    assert after.withheld.low_trust == 20


@pytest.mark.attack
async def test_low_trust_texts_do_not_change_the_words_worth(world: World) -> None:
    """A flood of one word would lower its weight if the tiers shared an index."""
    rare = await world.say("xylophone lessons on Monday")
    for n in range(20):
        await world.say(f"lessons on Monday {n}")
    stranger = Peer(world.clock, 7)
    before = await world.find("xylophone lessons Monday", explain=True)
    await world.replica.admit(
        HOME, [stranger.write(HOME, note_body(f"xylophone {n}")) for n in range(300)]
    )
    after = await world.find("xylophone lessons Monday", explain=True)
    assert after.hits[0].id == rare
    assert [h.explain for h in after.hits] == [h.explain for h in before.hits]


async def test_trust_orders_what_words_leave_equal(world: World) -> None:
    await world.replica.admit(
        HOME, [Peer(world.clock, 7).write(HOME, note_body("red is warm"), "invited")]
    )
    await world.say("red is cold", scope="x")
    hits = (await world.find("red")).hits
    assert [hit.trust for hit in hits] == [0.86, 0.533]


async def test_explain_says_how_a_hit_got_its_rank(world: World) -> None:
    await world.say("blue whale", role="web")
    await world.say("blue sky and a blue sea")
    hits = (await world.find("blue", explain=True)).hits
    first = hits[0].explain
    assert first is not None
    terms = first.previous + first.following + first.thread + first.by_author
    assert first.f == pytest.approx(first.base + terms + first.length + first.question)
    assert first.score == pytest.approx(first.f * first.trust)
    assert hits[0].score == pytest.approx(first.score / 2.5, abs=1e-4)
    assert (first.tier, first.rank, first.echo, first.ranker) == ("main", 1, 1.0, "fixed")
    limits = {hit.explain.limited_by for hit in hits if hit.explain}
    assert limits == {"author", "role"}
    assert (await world.find("blue")).hits[0].explain is None


# ---- pairs


async def test_an_old_version_never_stands_alone_and_never_above_the_new(world: World) -> None:
    old = await world.say("the port of the proxy is 8080 proxy port")
    new = await world.say("it moved to 9090", supersedes=[old])
    hits = (await world.find("proxy port")).hits
    assert [(hit.id, hit.flags) for hit in hits] == [(new, []), (old, ["superseded"])]
    assert hits[1].superseded_by == new


async def test_a_chain_of_versions_is_led_by_the_newest(world: World) -> None:
    chain = [await world.say("version zero of the zebra plan")]
    for n in range(1, 4):
        chain.append(await world.say(f"plan {n}", supersedes=[chain[-1]], thread=f"t{n}"))
    found = await ids(world, "zebra")
    assert found == [chain[-1], chain[0]]


async def test_a_newer_version_outside_the_callers_scopes_is_not_shown(world: World) -> None:
    old = await world.say("the zebra plan", scope="open")
    await world.say("the new plan", scope="closed", supersedes=[old])
    hits = (await world.find("zebra", world.agent(read=["open"]))).hits
    assert [(h.id, h.flags, h.superseded_by) for h in hits] == [(old, ["superseded"], None)]


# ---- budget


async def test_bodies_come_in_rank_order_until_the_budget_is_spent(world: World) -> None:
    for n in range(5):
        await world.say(f"kiwi {n} " + "word " * 100, title=f"t{n}" if n % 2 else "")
    hits = await world.find("kiwi", budget_tokens=300, limit=5)
    whole = [hit.text is not None for hit in hits.hits]
    assert whole == [True, True, False, False, False]
    assert hits.withheld.over_budget == 3
    assert all(hit.title for hit in hits.hits if hit.text is None)
    assert max(len(hit.title) for hit in hits.hits) <= 80


async def test_an_index_has_titles_only(world: World) -> None:
    await world.say("kiwi " * 40)
    hits = await world.find("kiwi", detail="index")
    assert hits.hits[0].text is None
    assert hits.hits[0].title.startswith("kiwi kiwi")
    assert hits.withheld.over_budget == 0


# ---- get, list, history, stats


async def test_get_answers_in_the_order_asked_by_id_or_prefix(world: World) -> None:
    a, b = await world.say("a note"), await world.say("b note")
    got = await world.memory.get(world.agent(), [b[:8], a.upper(), "ff" * 32])
    assert [hit.id for hit in got.hits] == [b, a]
    assert [hit.text for hit in got.hits] == ["b note", "a note"]
    for bad in ([], ["short"], ["zz" * 32], [a] * 21):
        with pytest.raises(RefusedError):
            await world.memory.get(world.agent(), bad)


async def test_an_ambiguous_prefix_is_refused(world: World) -> None:
    a = await world.say("a note")
    await world.db.write(
        lambda c: c.execute(
            "UPDATE record SET id = ? WHERE id = ?",
            (bytes.fromhex(a[:8] + "00" * 28), bytes.fromhex(a)),
        ).fetchall()
    )
    b = await world.say("b note")
    await world.db.write(
        lambda c: c.execute(
            "UPDATE record SET id = ? WHERE id = ?",
            (bytes.fromhex(a[:8] + "11" * 28), bytes.fromhex(b)),
        ).fetchall()
    )
    with pytest.raises(RefusedError, match="several"):
        await world.memory.get(world.agent(), [a[:8]])


async def test_list_pages_newest_first_without_gap_or_double(world: World) -> None:
    made = [await world.say(f"note {n}", scope=["x", "y"][n % 2]) for n in range(23)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await world.memory.list(world.agent(), Filter(), cursor=cursor, limit=5)
        seen += [hit.id for hit in page.hits]
        await world.say(f"written between the pages {len(seen)}")
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == made[::-1]
    only = await world.memory.list(world.agent(), Filter(scope="x"), limit=200)
    assert [hit.id for hit in only.hits] == made[::2][::-1]


@pytest.mark.parametrize("cursor", ["", "!!", "kg", "A" * 100, "gqFhoWI", "kwECAw", "kv8B"])
async def test_a_foreign_cursor_is_refused(world: World, cursor: str) -> None:
    with pytest.raises(RefusedError):
        await world.memory.list(world.agent(), Filter(), cursor=cursor)


async def test_only_the_person_lists_what_was_withdrawn(world: World) -> None:
    note = await world.say("withdrawn words")
    await world.memory.forget(world.agent(), [note])
    page = await world.memory.list(world.person, Filter(status="forgotten"))
    assert [hit.id for hit in page.hits] == [note]
    with pytest.raises(RefusedError):
        await world.memory.list(world.agent(), Filter(status="forgotten"))
    assert (await world.memory.list(world.agent(), Filter(status="superseded"))).hits == []


async def test_history_shows_versions_oldest_first(world: World) -> None:
    old = await world.say("first")
    new = await world.say("second", supersedes=[old])
    for asked in (old, new):
        history = await world.memory.history(world.agent(), asked)
        assert [(v.what, v.text) for v in history.versions] == [
            ("note", "first"),
            ("note", "second"),
            ("supersedes", None),
        ]
    assert (await world.memory.history(world.agent(), old)).status == "superseded"
    with pytest.raises(RefusedError):
        await world.memory.history(world.agent(), "ab" * 32)


async def test_stats_count_what_the_caller_may_read(world: World) -> None:
    await world.say("a", scope="x")
    gone = await world.say("b", scope="x")
    await world.say("c", scope="y")
    await world.memory.forget(world.agent(), [gone])
    stats = await world.memory.stats(world.agent(read=["x"]))
    assert (stats.memories, stats.by_status, stats.by_scope) == (
        2,
        {"active": 1, "forgotten": 1},
        {"x": 2},
    )
    assert stats.chunks == 2
    assert stats.records == 2  # how much others write elsewhere is not told
    assert (await world.memory.stats(world.person)).records == 4
    assert stats.db_bytes + stats.wal_bytes > 0
    assert sum((await world.memory.stats(world.person)).by_origin.values()) == 3


# ---- the pure parts


def test_terms_leave_out_stop_words_unless_none_is_left() -> None:
    assert Words("What is the name of the deploy-key?").terms == ["name", "deploy", "key"]
    assert Words("what is it").terms == ["what", "is", "it"]
    assert Words("!!").terms == []


def test_quoted_text_paths_and_versions_are_phrases() -> None:
    words = Words('say "hello big world" in src/net/tcp.py v1.2.3 E_NOENT a.b')
    assert words.phrases == ["hello big world", "src net tcp py", "v1 2 3", "e noent", "a b"]


def test_the_expression_quotes_everything() -> None:
    words = Words('x "a b" OR')
    made = expression(words, words.terms, [7, 9])
    assert made == 'scope_tok : ("s7x" OR "s9x") AND {title text} : ("x" OR "b" OR "a b")'
    assert expression(words, ["x"], None).startswith("{title text} :")


def test_the_rarest_terms_are_kept_within_the_budget() -> None:
    df = {"rare": 5, "some": 900, "many": 5000, "all": 20000}.__getitem__
    assert within_budget(["all", "many", "some", "rare"], df, 20_000) == ["rare", "some", "many"]
    assert within_budget(["all"], df, 10) == ["all"]


def test_who_has_many_chunks_leaves_its_place_to_those_behind() -> None:
    """Memories whose chunks nobody has counted yet are looked up if they can still enter."""
    connection = apsw.Connection(":memory:")
    connection.execute("CREATE TABLE memory(id INTEGER PRIMARY KEY, chunks, expires_ms)")
    sizes = {1: 20, 2: 1, 3: 1, 4: 3, 5: 1, 6: 1}
    connection.executemany("INSERT INTO memory VALUES (?, ?, NULL)", sizes.items())
    near = {1: 0.9, 2: 0.8, 3: 0.8, 4: 0.75, 5: 0.7, 6: 0.6}
    asked = Asked({}, None, None, (1,), unlimited=True, filters=Filters("", ()), now_ms=0)

    def best(memories_max: int) -> list[int]:
        facts = {m: make_candidate(m, chunks=sizes[m]).facts for m in list(near)[:memories_max]}
        return list(by_meaning(connection, asked, near, facts, memories_max).items())

    assert best(2) == [(3, 0.8), (2, 0.8)]
    assert best(3) == [(3, 0.8), (2, 0.8), (5, 0.7)]
    assert [memory for memory, _ in best(6)] == [3, 2, 5, 4, 1, 6]


def candidate(memory: int, bm25: float, tier: int = MAIN, trust: float = 1.0) -> Candidate:
    return make_candidate(memory, bm25, tier=tier, trust=trust, owner=b"%d" % memory)


def fuse(candidates: list[Candidate]) -> list[Candidate]:
    normalise(candidates, dense=False)
    return weigh(candidates)


def test_low_candidates_set_no_scale() -> None:
    main = [candidate(1, 10.0), candidate(2, 5.0), candidate(3, 1.0)]
    alone = [(c.memory, c.score) for c in fuse(main)]
    mixed = fuse([*main, candidate(4, 1000.0, LOW, 0.3), candidate(5, 0.1, LOW, 0.3)])
    assert [(c.memory, c.score) for c in mixed if c.facts.tier == MAIN] == alone
    assert all(0 <= c.bm25_norm <= 1 for c in mixed)


def test_without_main_candidates_the_low_ones_scale_themselves() -> None:
    ranked = fuse([candidate(1, 3.0, LOW, 0.3), candidate(2, 9.0, LOW, 0.3)])
    assert [(c.memory, c.bm25_norm) for c in ranked] == [(2, 1.0), (1, 0.0)]


def test_equal_scores_are_all_one_and_newer_comes_first() -> None:
    ranked = fuse([candidate(1, 2.0), candidate(2, 2.0)])
    assert [(c.memory, c.bm25_norm) for c in ranked] == [(2, 1.0), (1, 1.0)]


def test_the_best_chunk_counts_discounted() -> None:
    assert best_chunks([(1, 5.0, 10), (1, 9.0, 10), (2, 8.0, 1)], 1) == ({2: 8.0}, {1: 9.0, 2: 8.0})
    assert best_chunks([(1, 5.0, 10), (1, 9.0, 10)], 10) == ({1: 9.0}, {1: 9.0})
    assert length_discount(1) == 1.0
    assert length_discount(10_000) == 0.4


def test_both_channels_count_four_to_six() -> None:
    words, meaning, both = candidate(1, 9.0), candidate(2, 1.0), candidate(3, 5.0)
    words.cosine, meaning.cosine, both.cosine = 0.1, 0.9, 0.5
    normalise([words, meaning, both], dense=True)
    assert [round(c.base, 6) for c in (words, meaning, both)] == [0.4, 0.6, 0.5]


def test_a_memory_without_a_vector_counts_by_its_words() -> None:
    seen, waiting, last = candidate(1, 9.0), candidate(2, 5.0), candidate(3, 1.0)
    seen.cosine, last.cosine = 0.9, 0.1
    normalise([seen, waiting, last], dense=True)
    assert waiting.base == pytest.approx(0.5)
    assert waiting.cosine_norm == waiting.bm25_norm


def test_distrusted_items_are_capped_by_owner_and_share() -> None:
    ranked = [candidate(n, 1.0, LOW, 0.3) for n in range(8)] + [candidate(99, 1.0)]
    kept, left_out = cap_distrusted(ranked, 10, lambda c: c.trust < 0.5)
    assert [c.memory for c in kept] == [0, 1, 99]
    assert left_out == 6


def test_of_a_cluster_the_most_trusted_stands_at_its_own_place() -> None:
    made = [
        make_candidate(memory, score, trust=trust, tier=tier, cluster=cluster)
        for memory, score, trust, tier, cluster in (
            (1, 9.0, 0.53, MAIN, 7),
            (2, 5.0, 0.86, MAIN, 7),
            (3, 8.0, 0.97, LOW, 7),
            (4, 1.0, 0.86, MAIN, None),
        )
    ]
    kept, copies = collapse(fuse(made))
    assert [c.memory for c in kept] == [2, 4]
    assert copies == {2: 2}


def test_dates_round_trip_and_naive_ones_are_utc() -> None:
    assert iso(parse_iso("2026-11-25T13:45:00+01:00", "at")) == "2026-11-25T12:45:00Z"
    assert parse_iso("1970-01-02", "at") == 86_400_000
    assert iso(parse_iso("0001-01-01", "at")) == "0001-01-01T00:00:00Z"


def test_peer_ids_are_those_of_libp2p() -> None:
    from p2p.identity import peer_text as reference

    for seed in range(5):
        key = bytes([seed]) * 32
        assert peer_text(key) == reference(key)
