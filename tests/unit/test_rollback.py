"""Rollback: what an author wrote since a time no longer counts here, until it is undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from memory.bodies import EndorseBody, ForgetBody, LinkBody, VerdictBody
from memory.errors import RefusedError
from memory.review import rollback as undoing
from memory.review.desk import TrustDesk
from tests.helpers.memories import HOME, TEAM, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, inline=True) as opened:
        yield opened


async def found(world: World, words: str = "fact") -> set[str]:
    return {hit.text or "" for hit in (await world.find(words, limit=100)).hits}


async def state(world: World) -> list[tuple[object, ...]]:
    """Everything a rollback may change: statuses, trust, tiers."""
    memories = await world.sql(
        "SELECT id, status, round(eff_trust, 6), tier, backed, confirmations FROM memory ORDER BY 1"
    )
    authors = await world.sql("SELECT id, round(trust, 6), state FROM author ORDER BY 1")
    return [*memories, *authors]


async def test_a_dry_run_counts_and_changes_nothing(world: World) -> None:
    peer = Peer(world.clock, 7)
    await world.replica.admit(
        HOME, [peer.write(HOME, note_body(f"fact {n}"), "invited") for n in range(3)]
    )
    before = await state(world)
    plan = await world.desk.rollbacks.make("bob", 0)
    assert (plan.state, plan.memories, plan.verdicts) == ("planned", 3, 0)
    assert plan.authors[0].startswith("bob@")
    assert await state(world) == before
    assert await world.desk.rollbacks.listed() == []


async def test_only_what_came_since_the_time_is_hidden_and_undo_brings_all_back(
    world: World,
) -> None:
    peer = Peer(world.clock, 7)
    await world.replica.admit(HOME, [peer.write(HOME, note_body("fact old"), "invited")])
    world.clock.ms += 60_000
    since = world.clock.ms
    mine = await world.say("fact mine", world.person)
    bad = peer.write(HOME, note_body("fact bad"), "invited")
    mean = peer.write(
        HOME, VerdictBody("bob", bytes.fromhex(mine), "harmful", "outcome", None, None), "invited"
    )
    await world.replica.admit(HOME, [bad, mean])
    before = await state(world)
    plan = await world.desk.rollbacks.make("bob", since)
    done = await world.desk.rollbacks.execute(plan.token)
    assert (done.state, done.memories, done.verdicts) == ("done", 1, 1)
    assert await found(world) == {"fact old", "fact mine"}
    assert (await world.memory.get(world.person, [bad.id.hex()])).hits == []
    undone = await world.desk.rollbacks.undo(plan.token)
    assert (undone.state, undone.memories) == ("undone", 1)
    assert await state(world) == before
    assert await found(world) == {"fact old", "fact mine", "fact bad"}
    await world.check_index()


@pytest.mark.attack
async def test_verdicts_endorsements_and_links_of_a_rolled_back_author_no_longer_count(
    world: World,
) -> None:
    liar, honest = Peer(world.clock, 7), Peer(world.clock, 8)
    good = honest.write(HOME, note_body("fact of honest", agent="honest"), "invited")
    crony = Peer(world.clock, 9)
    note = crony.write(HOME, note_body("fact of crony", agent="crony"), "other")
    await world.replica.admit(HOME, [good, note])
    clean = await state(world)
    said = [
        VerdictBody("bob", good.id, "harmful", "outcome", None, None),
        VerdictBody("bob", note.id, "useful", "evidence", b"e" * 32, None),
        EndorseBody("bob", crony.sealer.device, 100, None),
    ]
    await world.replica.admit(HOME, [liar.write(HOME, body, "invited") for body in said])
    assert await state(world) != clean
    plan = await world.desk.rollbacks.make("bob", 0)
    assert (plan.verdicts, plan.endorsements) == (2, 1)
    await world.desk.rollbacks.execute(plan.token)
    assert (await state(world))[: len(clean) - 1] == clean[: len(clean) - 1]
    trusts = await world.sql("SELECT agent, round(trust, 3) FROM author WHERE agent <> 'bob'")
    assert dict(trusts) == {"honest": 0.533, "crony": 0.3}  # type: ignore[arg-type]


async def test_what_a_rolled_back_agent_replaced_and_forgot_comes_back(world: World) -> None:
    kept = await world.say("fact one", world.agent("honest"))
    other = await world.say("fact two", world.person)
    world.clock.ms += 1000
    since = world.clock.ms
    device = Peer(world.clock, 7, owner=await _own_owner(world))
    new = device.write(HOME, note_body("fact one, revised", agent="rogue"), "own_device")
    records = [
        new,
        device.write(
            HOME,
            LinkBody("rogue", new.id, bytes.fromhex(kept), "supersedes", None),
            "own_device",
        ),
        device.write(HOME, ForgetBody("rogue", [bytes.fromhex(other)], None), "own_device"),
    ]
    await world.replica.admit(HOME, records)
    assert "fact two" not in await found(world)
    plan = await world.desk.rollbacks.make("rogue", since)
    assert (plan.memories, plan.links, plan.forgets) == (1, 1, 1)
    await world.desk.rollbacks.execute(plan.token)
    assert await found(world) == {"fact one", "fact two"}
    rows = await world.sql("SELECT status FROM memory ORDER BY id")
    assert rows == [("active",), ("active",), ("hidden",)]
    await world.desk.rollbacks.undo(plan.token)
    rows = await world.sql("SELECT status FROM memory ORDER BY id")
    assert rows == [("superseded",), ("forgotten",), ("active",)]
    await world.check_index()


async def _own_owner(world: World) -> bytes:
    ((owner,),) = await world.sql("SELECT owner FROM author LIMIT 1")
    assert isinstance(owner, bytes)
    return owner


async def test_what_arrives_late_is_hidden_too(world: World) -> None:
    peer = Peer(world.clock, 7)
    early = peer.write(HOME, note_body("fact early"), "invited")
    world.clock.ms += 60_000
    since = world.clock.ms
    late = [peer.write(HOME, note_body(f"fact late {n}"), "invited") for n in range(2)]
    await world.replica.admit(HOME, late[:1])
    plan = await world.desk.rollbacks.make("bob", since, dry_run=False)
    await world.replica.admit(HOME, [early, late[1]])
    assert await found(world) == {"fact early"}
    undone = await world.desk.rollbacks.undo(plan.token)
    assert undone.memories == 2
    assert len(await found(world)) == 3


async def test_one_agent_of_a_device_or_one_group_alone(world: World) -> None:
    peer = Peer(world.clock, 7)
    await world.replica.admit(
        HOME,
        [peer.write(HOME, note_body(f"fact {a}", agent=a), "invited") for a in ("ann", "ben")],
    )
    await world.replica.admit(
        TEAM, [peer.write(TEAM, note_body("fact team", agent="ann"), "invited")]
    )
    device = peer.sealer.device.hex()
    first = await world.desk.rollbacks.make(f"ann@{device}", 0, "team", dry_run=False)
    assert await found(world) == {"fact ann", "fact ben"}
    second = await world.desk.rollbacks.make(f"ann@{device}", 0, dry_run=False)
    assert await found(world) == {"fact ben"}
    whole = await world.desk.rollbacks.make(device, 0, dry_run=False)
    assert (whole.memories, await found(world)) == (1, set())
    # Undone in another order: what another rollback still covers stays hidden.
    await world.desk.rollbacks.undo(second.token)
    assert await found(world) == set()
    await world.desk.rollbacks.undo(whole.token)
    assert await found(world) == {"fact ann", "fact ben"}
    await world.desk.rollbacks.undo(first.token)
    assert await found(world) == {"fact ann", "fact ben", "fact team"}


async def test_own_notes_after_a_rollback_of_an_own_agent_are_shown(world: World) -> None:
    await world.say("fact wrong")
    await world.desk.rollbacks.make("claude", 0, dry_run=False)
    world.clock.ms += 1000
    await world.say("fact right")
    assert await found(world) == {"fact right"}


async def test_a_rollback_goes_on_after_a_crash_in_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undoing, "BATCH", 2)
    async with open_world(tmp_path, inline=True) as world:
        peer = Peer(world.clock, 7)
        records = [peer.write(HOME, note_body(f"fact {n}"), "invited") for n in range(7)]
        await world.replica.admit(HOME, records)
        before = await state(world)
        plan = await world.desk.rollbacks.make("bob", 0)

        def fault(name: str) -> bool:
            if name == "rollback.step":
                raise KeyboardInterrupt  # as good as the end of the process
            return False

        monkeypatch.setattr(world.clock, "fault", fault)
        with pytest.raises(KeyboardInterrupt):
            await world.desk.rollbacks.execute(plan.token)
        assert await world.sql("SELECT count(*) FROM muted") == [(2,)]
    async with open_world(tmp_path, inline=True) as world:
        again = TrustDesk(world.db, world.replica, world.clock, world.sealer.device)
        await again.catch_up()
        assert await found(world) == set()
        assert [r.state for r in await again.rollbacks.listed()] == ["done"]
        await again.rollbacks.undo(plan.token)
        assert await state(world) == before
        await world.check_index()


async def test_errors_name_what_to_do(world: World) -> None:
    await world.say("fact", world.person)
    with pytest.raises(RefusedError, match="covey forget"):
        await world.desk.rollbacks.make("you", 0)
    with pytest.raises(RefusedError, match="nobody here"):
        await world.desk.rollbacks.make("zeno", 0)
    with pytest.raises(RefusedError, match="no rollback has this token"):
        await world.desk.rollbacks.undo("00")
    await world.say("fact", world.agent())
    with pytest.raises(RefusedError, match="no group"):
        await world.desk.rollbacks.make("claude", 0, "nowhere")
    plan = await world.desk.rollbacks.make("claude", 0)
    with pytest.raises(RefusedError, match="nothing is hidden"):
        await world.desk.rollbacks.undo(plan.token)
    world.clock.ms += 2 * 3_600_000
    with pytest.raises(RefusedError, match="over an hour old"):
        await world.desk.rollbacks.execute(plan.token)
