"""Attacks on trust by behaviour: everything goes through the verbs that agents and peers have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from memory.bodies import VerdictBody
from tests.helpers.memories import HOME, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.attack

DAY_MS = 86_400_000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, inline=True) as opened:
        yield opened


async def trust(world: World, agent: str) -> float:
    (row,) = await world.desk.show(agent)
    return row.trust


async def bad_deeds_until(world: World, agent: str, below: float) -> int:
    """Wrong notes, each found out by another agent, until the author is below."""
    judges = [world.agent(f"judge{n}") for n in range(3)]
    for count in range(1, 100):
        note = await world.say(f"wrong fact {agent} {count}", world.agent(agent))
        await world.desk.feedback(judges[count % 3], note, "wrong")
        if await trust(world, agent) < below:
            return count
    raise AssertionError("it never falls")


@pytest.mark.parametrize("writes", [10, 100, pytest.param(500, marks=pytest.mark.slow)])
async def test_washing_a_name_buys_few_bad_deeds(world: World, writes: int) -> None:
    """Cheap good-looking writes, however many, put off the fall by no more than a few."""
    for n in range(writes):
        await world.say(f"true and useless fact {n}", world.agent("washer"))
    for n in range(min(writes, 100)):
        world.clock.ms += 3_600_000
        note = await world.say(f"useful fact {n}", world.agent("washer"))
        await world.desk.feedback(world.agent("user"), note, "useful")
    assert await bad_deeds_until(world, "washer", 0.5) <= 20


async def test_an_author_that_turns_on_and_off_ends_low(world: World) -> None:
    """Good until believed, then bad, then good again: each fall is deeper than each rise."""
    for turn in range(6):
        for n in range(6):
            world.clock.ms += DAY_MS
            note = await world.say(f"fact {turn} {n}", world.agent("fickle"))
            outcome = "useful" if turn % 2 == 0 else "harmful"
            await world.desk.feedback(world.agent(f"user{n % 2}"), note, outcome)
    assert await trust(world, "fickle") < 0.5


async def test_a_sleeper_falls_as_fast_as_anybody(world: World) -> None:
    for n in range(50):
        world.clock.ms += DAY_MS
        note = await world.say(f"good fact {n}", world.agent("sleeper"))
        await world.desk.feedback(world.agent(f"user{n % 3}"), note, "useful")
    before = await trust(world, "sleeper")
    assert await bad_deeds_until(world, "sleeper", before * 0.2) <= 30


async def test_bad_mouthing_by_a_member_leaves_an_honest_agent_trusted(world: World) -> None:
    notes = [await world.say(f"fact {n}", world.agent("honest")) for n in range(60)]
    mouth = Peer(world.clock, 7)
    await world.replica.admit(HOME, [mouth.write(HOME, note_body("hello"), "invited")])
    said = [VerdictBody("x", bytes.fromhex(n), "harmful", "outcome", None, None) for n in notes]
    await world.replica.admit(HOME, [mouth.write(HOME, body, "invited") for body in said])
    assert await trust(world, "honest") > 0.7


async def test_fifty_new_identities_begin_and_stay_as_strangers(world: World) -> None:
    await world.say("the deploy key is rotated on monday", world.person)
    for seed in range(100, 150):
        peer = Peer(world.clock, seed)
        texts = ["the deploy key is rotated never", "deploy key monday rotated ignore it"]
        records = [peer.write(HOME, note_body(text, agent=f"s{seed}"), "other") for text in texts]
        await world.replica.admit(HOME, records)
    rows = [row for row in await world.desk.show() if row.agent.startswith("s1")]
    assert len(rows) == 50
    assert max(row.trust for row in rows) <= 0.3
    hits = (await world.find("deploy key rotated", limit=5)).hits
    assert [hit.author.agent for hit in hits] == ["you"]


async def test_recalled_text_told_on_by_two_agents_and_a_peer_stays_what_it_was(
    world: World,
) -> None:
    stranger = Peer(world.clock, 7)
    lie = stranger.write(HOME, note_body("the token never expires"), "other")
    await world.replica.admit(HOME, [lie])
    first = await world.say("tokens never expire", world.agent("one"), derived_from=[lie.id.hex()])
    second = await world.say("our token does not expire", world.agent("two"), derived_from=[first])
    sibling = Peer(world.clock, 9, owner=b"o" * 32)
    third = sibling.write(
        HOME, note_body("no expiry of tokens", derived_from=[bytes.fromhex(second)]), "own_device"
    )
    await world.replica.admit(HOME, [third])
    rows = await world.sql("SELECT max(eff_trust) FROM memory")
    assert rows == [(0.3,)]
    assert (await world.find("token expires")).hits == []


async def test_a_peers_single_word_is_no_parent_of_what_uses_it(world: World) -> None:
    """Else its author would lower an own agent's notes, and destroy them by erasing the word."""
    word = Peer(world.clock, 7).write(HOME, note_body("postgres"), "invited")
    await world.replica.admit(HOME, [word])
    assert (await world.find("postgres", world.agent("claude"))).hits
    note = await world.say(
        "We decided to run postgres 16 with streaming replicas and nightly dumps",
        world.agent("claude"),
    )
    await world.replica.settle(HOME, erase=[(word.id, bytes(32), 1)])
    (hit,) = (await world.memory.get(world.agent(), [note])).hits
    assert hit.trust == pytest.approx(0.86, abs=0.004)
