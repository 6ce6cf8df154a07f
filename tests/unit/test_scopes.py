"""Scopes: their spelling, who may touch them, and that nothing leaks from one to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from memory.errors import RefusedError
from memory.model import ScopeSet
from memory.scopes import allows, parse_scope, write_scope
from memory.store import Filter
from memory.transfer.export import export_page
from tests.helpers.memories import HOME, TEAM, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, inline=True) as opened:
        yield opened


@pytest.mark.parametrize(
    ("written", "parsed"),
    [
        ("main", ("", "main")),
        ("a.b_c-9", ("", "a.b_c-9")),
        ("team/build", ("team", "build")),
        ("x" * 64, ("", "x" * 64)),
    ],
)
def test_a_scope_is_a_name_or_a_group_and_a_name(written: str, parsed: tuple[str, str]) -> None:
    assert parse_scope(written) == parsed


@pytest.mark.parametrize(
    "written",
    ["", "A", "a b", "a/b/c", "/a", "a/", "x" * 65, "g" * 33 + "/a", "a\n", "\u00e4", "a*", "*"],
)
def test_other_spellings_are_refused(written: str) -> None:
    with pytest.raises(RefusedError):
        parse_scope(written)


def test_a_set_allows_its_names_its_groups_or_everything() -> None:
    some = ScopeSet(names=frozenset({"main", "team/build", "lab/*"}))
    assert allows(some, "main")
    assert allows(some, "team/build")
    assert allows(some, "lab/anything")
    assert not allows(some, "team/other")
    assert not allows(some, "build")
    assert not allows(some, "lab")
    assert not allows(ScopeSet(), "main")
    assert allows(ScopeSet(everything=True), "x/y")
    assert write_scope("home", "main", home=True) == "main"
    assert write_scope("team", "main", home=False) == "team/main"


@pytest.mark.attack
async def test_no_way_of_reading_leaves_the_callers_scopes(world: World) -> None:
    open_note = await world.say("the shared plan", scope="open")
    secret = await world.say("the secret plan", scope="closed", tags=["plan"])
    elsewhere = await world.say("the team plan", scope="team/open")
    reader = world.agent("spy", read=["open"])
    memory = world.memory
    assert [h.id for h in (await world.find("plan", reader)).hits] == [open_note]
    assert (await world.find("secret", reader)).searched == 0
    assert [h.id for h in (await memory.get(reader, [open_note, secret, elsewhere])).hits] == [
        open_note
    ]
    assert [h.id for h in (await memory.list(reader, Filter())).hits] == [open_note]
    assert (await memory.list(reader, Filter(tags=["plan"]))).hits == []
    assert (await memory.stats(reader)).by_scope == {"open": 1}
    for asked in ("closed", ["open", "closed"], "team/open"):
        with pytest.raises(RefusedError) as caught:
            await world.find("plan", reader, scope=asked)
        assert caught.value.reason == "forbidden"
        with pytest.raises(RefusedError):
            await memory.list(reader, Filter(scope=asked))
    with pytest.raises(RefusedError):
        await memory.history(reader, secret)
    (done,) = await memory.forget(reader, [secret])
    assert done.status == "not_found"


@pytest.mark.attack
async def test_a_scope_token_in_the_text_or_the_query_opens_nothing(world: World) -> None:
    await world.say("alpha", scope="one")
    await world.say("beta secret", scope="two")
    rows = await world.sql("SELECT id FROM scope WHERE name = 'two'")
    token = f"s{rows[0][0]}x"
    reader = world.agent(read=["one"])
    await world.say(f"bait {token}", scope="one")
    for query in (token, f'scope_tok : "{token}" secret', f'x" OR scope_tok : "{token}'):
        hits = (await world.find(query, reader)).hits
        assert all(hit.scope == "one" for hit in hits)


@pytest.mark.attack
async def test_history_does_not_show_versions_outside_the_scopes(world: World) -> None:
    old = await world.say("old and open", scope="open")
    await world.say("new and closed", scope="closed", supersedes=[old])
    reader = world.agent(read=["open"])
    history = await world.memory.history(reader, old)
    assert [v.text for v in history.versions if v.what == "note"] == ["old and open"]


@pytest.mark.attack
async def test_links_and_parents_name_nothing_outside_the_scopes(world: World) -> None:
    old = await world.say("old and open", scope="open")
    secret = await world.say("new and closed", scope="closed", supersedes=[old])
    child = await world.say("concluded", scope="open", derived_from=[secret], supersedes=[secret])
    reader = world.agent(read=["open"])
    for note in (old, child):
        history = await world.memory.history(reader, note)
        assert {v.what for v in history.versions} == {"note"}
        assert secret not in {v.id for v in history.versions}
    everything = await world.memory.history(world.person, old)
    assert [v.what for v in everything.versions].count("supersedes") == 2

    for who, links, parents in ((reader, 0, 0), (world.person, 1, 1)):
        found = await world.db.read(
            lambda c, who=who: export_page(
                c, who, "open", cursor=0, limit=10, now_ms=world.clock.wall_ms()
            )
        )
        (one,) = [m for m in found.memories if m.id == child]
        assert (len(one.links), len(one.derived_from)) == (links, parents)


@pytest.mark.attack
async def test_an_explanation_of_trust_names_nothing_outside_the_scopes(world: World) -> None:
    secret = await world.say("closed words", world.agent("codex"), scope="closed")
    await world.desk.feedback(world.person, secret, "wrong")
    for who, named in ((world.agent(read=["open"]), None), (world.person, secret)):
        (row,) = await world.desk.explain(who, "codex")
        assert [piece.memory for piece in row.evidence] == [named]


async def test_writing_needs_the_scope_too(world: World) -> None:
    writer = world.agent(write=["open", "team/*"])
    await world.say("fine", writer, scope="open")
    await world.say("fine", writer, scope="team/anything")
    old = await world.say("other", scope="closed")
    for fields in ({"scope": "closed"}, {}, {"scope": "open", "supersedes": [old]}):
        with pytest.raises(RefusedError) as caught:
            await world.memory.remember(
                writer, [__import__("memory.model", fromlist=["x"]).NoteIn(text="no", **fields)]
            )
        assert caught.value.reason == "forbidden"


async def test_the_home_group_by_its_name_is_the_same_scope(world: World) -> None:
    note = await world.say("hello", scope="home/main")
    assert (await world.memory.get(world.agent(), [note])).hits[0].scope == "main"
    reader = world.agent(read=["main"])
    assert [h.id for h in (await world.find("hello", reader, scope="home/main")).hits] == [note]
    writer = world.agent(write=["main"])
    await world.say("again", writer, scope="home/main")


async def test_the_same_name_in_two_groups_is_two_scopes(world: World) -> None:
    peer = Peer(world.clock, 7)
    await world.replica.admit(HOME, [peer.write(HOME, note_body("at home"), "own_device")])
    await world.replica.admit(TEAM, [peer.write(TEAM, note_body("at work"), "own_device")])
    assert [h.text for h in (await world.find("at home work", scope="main")).hits] == ["at home"]
    hits = (await world.find("home work", scope=["team/main"])).hits
    assert [h.text for h in hits] == ["at work"]


async def test_asking_for_a_scope_without_memories_finds_nothing(world: World) -> None:
    await world.say("hello")
    assert (await world.find("hello", scope="empty")).hits == []


async def test_a_successor_out_of_sight_is_not_named(tmp_path: Path) -> None:
    async with open_world(tmp_path, inline=True) as world:
        old = await world.say("the port is 80", world.person, scope="open")
        new = await world.say("the port is 81", world.person, scope="closed", supersedes=[old])
        (seen,) = (await world.memory.get(world.person, [old])).hits
        assert seen.superseded_by == new
        (hidden,) = (await world.memory.get(world.agent(read=["open"]), [old])).hits
        assert hidden.superseded_by is None
