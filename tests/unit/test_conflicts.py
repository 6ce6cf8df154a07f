"""Clusters, claims, disputes and lineage of a whole memory."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import pytest

from memory.bodies import LinkBody, VerdictBody
from memory.errors import RefusedError
from memory.model import Claim, NoteIn
from memory.records.writing import entry_draft
from memory.relations.dedupe import content_words
from memory.relations.lineage import Recalled, parents
from memory.review.resolving import ConflictDesk
from memory.text.fts import move_to_tier
from tests.helpers.memories import HOME, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from pathlib import Path

    from memory.model import Caller, Remembered
    from memory.storage.txn import Txn

SAME = "The staging database listens on port 5433 of host db-2."
SAME_TOO = "the staging database listens on the port 5433 of the host db-2"


async def remember(world: World, text: str, who: Caller, **fields: object) -> Remembered:
    done = await world.memory.remember(who, [NoteIn(text=text, **fields)])  # type: ignore[arg-type]
    return done[0]


def claim(value: str, subject: str = "staging", attribute: str = "port") -> Claim:
    return Claim(subject, attribute, value)


async def status(world: World, record: str | bytes) -> str:
    key = bytes.fromhex(record) if isinstance(record, str) else record
    rows = await world.sql(
        "SELECT m.status FROM record r JOIN memory m ON m.id = r.n WHERE r.id = ?", key
    )
    return str(rows[0][0])


async def disputes(world: World) -> set[frozenset[bytes]]:
    rows = await world.sql(
        "SELECT a.id, b.id FROM dispute d JOIN record a ON a.n = d.a JOIN record b ON b.n = d.b"
    )
    return {frozenset(pair) for pair in cast("list[tuple[bytes, bytes]]", rows)}


async def clusters(world: World) -> set[frozenset[bytes]]:
    rows = await world.sql(
        "SELECT m.cluster, r.id FROM memory m JOIN record r ON r.n = m.id"
        " WHERE m.cluster IS NOT NULL"
    )
    found: dict[int, set[bytes]] = {}
    for cluster, record in cast("list[tuple[int, bytes]]", rows):
        found.setdefault(cluster, set()).add(record)
    return {frozenset(members) for members in found.values()}


# ---- clusters


async def test_two_agents_that_say_the_same_are_one_cluster(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await remember(world, SAME, world.agent("claude"))
        assert first.cluster is None
        second = await remember(world, SAME_TOO, world.agent("cursor"))
        assert (second.status, second.cluster) == ("stored", first.id)
        assert await clusters(world) == {
            frozenset((bytes.fromhex(first.id), bytes.fromhex(second.id)))
        }


async def test_other_scopes_titles_and_events_are_no_cluster(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await remember(world, SAME, world.agent("claude"))
        await remember(world, SAME, world.agent("cursor"), scope="work")
        await remember(world, SAME, world.agent("cursor"), title="Live")
        await remember(world, SAME, world.agent("codex"), kind="event")
        assert await clusters(world) == set()


async def test_a_cluster_follows_what_its_members_become(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ids = [
            bytes.fromhex((await remember(world, SAME, world.agent(name))).id)
            for name in ("claude", "cursor", "codex")
        ]
        await world.memory.forget(world.person, [ids[0].hex()])
        assert await clusters(world) == {frozenset(ids[1:])}
        await world.replica.settle(HOME, void=[ids[1]])
        assert await clusters(world) == set()
        await world.replica.settle(HOME, revive=[ids[1]])
        assert await clusters(world) == {frozenset(ids[1:])}


async def test_an_erased_memory_leaves_its_cluster_its_disputes_and_guesses(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        text = "The staging port is 5433, host db-2."
        ids = [
            bytes.fromhex((await remember(world, text, world.agent(name))).id)
            for name in ("claude", "cursor", "codex")
        ]
        peer = Peer(world.clock, 9)
        theirs = peer.write(HOME, note_body("not so"), "invited")
        link = peer.write(HOME, LinkBody("bob", theirs.id, ids[0], "contradicts", None), "invited")
        await world.replica.admit(HOME, [theirs, link])
        assert len(await disputes(world)) == 1

        async def erase(record: bytes) -> None:
            def unit(txn: Txn) -> None:
                c = txn.connection
                row = c.execute(
                    "SELECT m.id, m.scope, m.tier FROM record r JOIN memory m ON m.id = r.n"
                    " WHERE r.id = ?",
                    (record,),
                ).fetchone()
                assert row is not None
                move_to_tier(c, row[0], row[1], row[2], 2)
                c.execute("DELETE FROM chunk WHERE memory = ?", (row[0],))
                c.execute("DELETE FROM memory WHERE id = ?", (row[0],))

            await world.replica.transact(unit)

        await erase(ids[0])
        assert await disputes(world) == set()
        assert await clusters(world) == {frozenset(ids[1:])}
        await erase(ids[1])
        assert await clusters(world) == set()
        assert await world.sql("SELECT count(*) FROM guess") == [(1,)]


# ---- claims of one owner


async def test_a_newer_value_of_the_same_owner_replaces_the_older(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        old = await remember(world, "port is 5433", world.agent("claude"), claim=claim("5433"))
        new = await remember(world, "port is 5434", world.agent("cursor"), claim=claim("5434"))
        assert new.conflicts == []
        assert await status(world, old.id) == "superseded"
        assert await status(world, new.id) == "active"
        history = await world.memory.history(world.person, new.id)
        assert [version.what for version in history.versions] == ["note", "note", "supersedes"]
        assert world.events[-1].name == "superseded"


async def test_forgetting_the_newer_value_brings_the_older_back(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ids = [
            (await remember(world, f"port {n}", world.agent(), claim=claim(str(n)))).id
            for n in range(4)
        ]
        await world.memory.forget(world.person, [ids[3]])
        assert [await status(world, one) for one in ids] == [
            "superseded", "superseded", "active", "forgotten",
        ]  # fmt: skip
        await world.memory.forget(world.person, [ids[2], ids[1]])
        assert await status(world, ids[0]) == "active"


async def test_the_same_value_again_replaces_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await remember(world, "it is 5433", world.agent("claude"), claim=claim("5433"))
        two = await remember(world, "5433 it is", world.agent("cursor"), claim=claim(" 5433"))
        assert [await status(world, i) for i in (one.id, two.id)] == ["active", "active"]
        assert await disputes(world) == set()


async def test_an_agent_does_not_replace_what_the_person_said(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine = await remember(world, "port is 5433", world.person, claim=claim("5433"))
        other = await remember(world, "port is 6666", world.agent(), claim=claim("6666"))
        assert await status(world, mine.id) == "active"
        assert other.conflicts == [mine.id]
        linked = await remember(world, "not at all", world.agent(), supersedes=[mine.id])
        assert await status(world, mine.id) == "active"
        assert linked.conflicts == [mine.id]
        newer = await remember(world, "port is 5435", world.person, claim=claim("5435"))
        assert await status(world, mine.id) == await status(world, other.id) == "superseded"
        assert await status(world, newer.id) == "active"


async def test_passed_on_text_does_not_replace_an_agents_word(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        said = await remember(world, "port is 5433", world.agent(), claim=claim("5433"))
        page = await remember(world, "port is 1", world.agent(), claim=claim("1"), role="web")
        assert await status(world, said.id) == await status(world, page.id) == "active"
        assert page.conflicts == [said.id]


# ---- claims of several owners


async def test_another_owners_value_is_a_dispute_and_changes_no_status(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine = await remember(world, "port is 5433", world.agent(), claim=claim("5433"))
        peer = Peer(world.clock, 9)
        world.clock.ms += 60_000
        body = note_body("port is 6666", claim=("Staging", " port", "6666"))
        theirs = peer.write(HOME, body, "invited")
        await world.replica.admit(HOME, [theirs])
        assert await status(world, mine.id) == await status(world, theirs.id) == "active"
        assert await disputes(world) == {frozenset((bytes.fromhex(mine.id), theirs.id))}
        told = [event for event in world.events if event.name == "disputed"]
        assert {i for event in told for i in event.ids} == {mine.id, theirs.id.hex()}
        newer = await remember(world, "port is 5434", world.agent(), claim=claim("5434"))
        assert newer.conflicts == [theirs.id.hex()]
        assert await disputes(world) == {frozenset((bytes.fromhex(newer.id), theirs.id))}
        withdrawn = await remember(world, "port is now 6666", world.agent(), claim=claim("6666"))
        assert withdrawn.conflicts == []
        assert await disputes(world) == set()


async def test_a_signed_contradiction_counts_from_who_wrote_one_side(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine = bytes.fromhex(await world.say("we deploy on mondays", world.agent()))
        also = bytes.fromhex(await world.say("we rest on sundays", world.agent()))
        peer = Peer(world.clock, 9)
        theirs = peer.write(HOME, note_body("you deploy on fridays"), "invited")
        link = peer.write(HOME, LinkBody("bob", theirs.id, mine, "contradicts", None), "invited")
        lie = peer.write(HOME, LinkBody("bob", also, mine, "contradicts", None), "invited")
        await world.replica.admit(HOME, [theirs, link, lie])
        assert await disputes(world) == {frozenset((mine, theirs.id))}
        await world.replica.settle(HOME, void=[link.id])
        assert await disputes(world) == set()
        await world.replica.settle(HOME, revive=[link.id])
        assert await disputes(world) == {frozenset((mine, theirs.id))}
        await world.memory.forget(world.person, [mine.hex()])
        assert await disputes(world) == set()


@pytest.mark.attack
async def test_a_contradiction_reaches_into_no_other_scope(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        secret = bytes.fromhex(await world.say("we deploy on mondays", scope="closed"))
        peer = Peer(world.clock, 9)
        theirs = peer.write(HOME, note_body("you deploy on fridays", scope="open"), "invited")
        link = peer.write(HOME, LinkBody("bob", theirs.id, secret, "contradicts", None), "invited")
        await world.replica.admit(HOME, [theirs, link])
        assert await disputes(world) == set()


@pytest.mark.parametrize(
    ("seen", "said", "derived"),
    [
        ("sardine", "the sardine tin in the cellar is empty since monday", False),
        ("sardine tin", "the sardine tin in the cellar is empty since monday", False),
        ("sardine tin cellar", "the sardine tin in the cellar is empty since monday", True),
        ("sardine", "sardine", True),
    ],
)
def test_a_note_of_a_word_or_two_is_no_source_of_whatever_uses_them(
    seen: str, said: str, derived: bool
) -> None:
    source = Recalled(b"s" * 32, content_words(seen))
    assert parents(said, [source]) == ((source.id,) if derived else ())


async def test_the_order_of_arrival_does_not_matter(tmp_path: Path) -> None:
    seen = set()
    for number, order in enumerate(itertools.permutations(range(5))):
        if number % 7:
            continue  # 18 of 120 orders
        folder = tmp_path / str(number)
        folder.mkdir()
        async with open_world(folder, inline=True) as world:
            alice, bob = Peer(world.clock, 1), Peer(world.clock, 2)
            records = []
            for peer, value in ((alice, "1"), (bob, "2"), (alice, "3"), (bob, "1"), (alice, "3")):
                world.clock.ms += 1000
                body = note_body(f"port is {value} now", claim=("staging", "port", value))
                records.append(peer.write(HOME, body, "invited"))
            for at in order:
                await world.replica.admit(HOME, [records[at]])
            names = {record.id: n for n, record in enumerate(records)}
            statuses = tuple([await status(world, record.id) for record in records])
            pairs = frozenset(frozenset(names[i] for i in pair) for pair in await disputes(world))
            alike = frozenset(frozenset(names[i] for i in c) for c in await clusters(world))
            seen.add((statuses, pairs, alike))
    ((statuses, pairs, alike),) = seen
    assert statuses == ("superseded", "superseded", "active", "active", "active")
    assert pairs == {frozenset((2, 3))}
    assert alike == {frozenset((2, 4))}


# ---- guesses


async def test_a_guessed_statement_is_named_and_changes_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        old = await remember(world, "We agreed that max_retries = 5.", world.agent("claude"))
        new = await remember(world, "After the outage max_retries = 9!", world.agent("cursor"))
        assert new.conflicts == [old.id]
        assert await status(world, old.id) == "active"
        assert await disputes(world) == set()
        elsewhere = await remember(world, "max_retries = 7", world.agent(), scope="work")
        assert elsewhere.conflicts == []


# ---- ids


async def test_what_one_may_not_read_does_not_make_a_prefix_ambiguous(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ours = await world.say("something of the project", scope="work")
        secret = await world.say("something of another project", scope="other")
        await world.db.write(
            lambda c: c.execute(
                "UPDATE record SET id = ? WHERE id = ?",
                (bytes.fromhex(ours[:8] + secret[8:]), bytes.fromhex(secret)),
            )
        )
        agent = world.agent("claude", read=["work"], write=["work"])
        assert [hit.id for hit in (await world.memory.get(agent, [ours[:8]])).hits] == [ours]
        done = await world.memory.remember(
            agent, [NoteIn(text="a conclusion", scope="work", derived_from=[ours[:8]])]
        )
        assert done[0].status == "stored"
        with pytest.raises(RefusedError, match="several ids"):
            await world.memory.get(world.person, [ours[:8]])
        for prefix in (secret[:9] if secret[:8] != ours[:8] else "0" * 8, "f" * 8):
            with pytest.raises(RefusedError, match="that you may read"):
                await world.memory.remember(
                    agent, [NoteIn(text="a guess", scope="work", derived_from=[prefix])]
                )


async def test_a_writer_is_not_told_of_memories_it_may_not_read(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await remember(world, SAME, world.agent("claude"), claim=claim("5433"))
        blind = world.agent("cursor", read=["work"], write=["main"])
        told = await remember(world, SAME, blind, scope="main", role="tool", claim=claim("1"))
        assert (told.cluster, told.conflicts) == (None, [])


# ---- lineage


async def test_what_was_just_recalled_and_is_written_down_again_is_a_parent(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        peer = Peer(world.clock, 9)
        text = "deployments of the billing service need a signed approval of the security team"
        theirs = peer.write(HOME, note_body(text), "other")
        await world.replica.admit(HOME, [theirs])
        await world.find("billing approval", trust_min=0.0)
        done = await remember(world, f"Remember: {text}.", world.agent())
        rows = await world.sql(
            "SELECT p.parent_id, m.eff_trust FROM record r JOIN memory m ON m.id = r.n"
            " JOIN parent p ON p.memory = m.id WHERE r.id = ?",
            bytes.fromhex(done.id),
        )
        assert rows == [(theirs.id, pytest.approx(0.3))]


async def test_unrelated_or_old_or_own_texts_are_no_parents(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        peer = Peer(world.clock, 9)
        theirs = peer.write(HOME, note_body("the red fox jumps over lazy dogs"), "other")
        await world.replica.admit(HOME, [theirs])
        await world.say("the blue fox sleeps under lazy cats")
        await world.find("fox", trust_min=0.0)
        await remember(world, "cows eat green grass in summer", world.agent())
        await remember(world, "the blue fox sleeps under lazy cats today", world.agent())
        world.clock.ms += 31 * 60_000
        await remember(world, "the red fox jumps over lazy dogs", world.agent())
        assert await world.sql("SELECT 1 FROM parent p JOIN memory m ON m.id = p.memory") == []


async def test_given_parents_cannot_push_out_what_was_read(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        peer = Peer(world.clock, 9)
        theirs = peer.write(HOME, note_body("the vault code is stored in drawer seven"), "other")
        await world.replica.admit(HOME, [theirs])
        own = [await world.say(f"harmless note number {n}") for n in range(16)]
        await world.find("vault code", trust_min=0.0)
        done = await remember(
            world, "the vault code is stored in drawer seven", world.agent(), derived_from=own
        )
        (row,) = await world.sql(
            "SELECT m.eff_trust, (SELECT count(*) FROM parent p WHERE p.memory = m.id)"
            " FROM record r JOIN memory m ON m.id = r.n WHERE r.id = ?",
            bytes.fromhex(done.id),
        )
        assert row == (pytest.approx(0.3), 16)


# ---- the person decides


async def test_the_person_ends_a_dispute_and_trust_follows(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        desk = ConflictDesk(world.db, world.replica, world.clock)
        mine = await remember(world, "port is 5433", world.agent(), claim=claim("5433"))
        peer = Peer(world.clock, 9)
        world.clock.ms += 60_000
        body = note_body("port is 6666", claim=("staging", "port", "6666"))
        theirs = peer.write(HOME, body, "invited")
        await world.replica.admit(HOME, [theirs])
        found = await desk.conflicts(world.person)
        assert found.total == 1
        (conflict,) = found.conflicts
        assert [side.id for side in conflict.sides] == [mine.id, theirs.id.hex()]
        assert conflict.values == ["5433", "6666"]
        assert (conflict.subject, conflict.attribute) == ("staging", "port")
        assert (await desk.conflicts(world.agent("claude", read=["work"]))).total == 0
        with pytest.raises(RefusedError, match="only the person"):
            await desk.resolve(world.agent(), theirs.id.hex())
        before = await world.sql("SELECT agent, trust FROM author WHERE agent <> '' ORDER BY agent")
        done = await desk.resolve(world.person, mine.id)
        assert (done.holds, done.refuted) == (mine.id, [theirs.id.hex()])
        assert await status(world, theirs.id) == "refuted"
        assert await status(world, mine.id) == "active"
        assert await disputes(world) == set()
        kinds = await world.sql("SELECT kind FROM evidence WHERE rec IS NULL ORDER BY kind")
        assert kinds == [("conflict_lost",), ("conflict_won",)]
        after = await world.sql("SELECT agent, trust FROM author WHERE agent <> '' ORDER BY agent")
        assert after[0][1] < before[0][1]  # type: ignore[operator]
        with pytest.raises(RefusedError, match="nothing contradicts"):
            await desk.resolve(world.person, mine.id)


async def test_nobody_elses_verdict_refutes(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine = bytes.fromhex(await world.say("the port is 5433 on monday", world.person))
        peer = Peer(world.clock, 9)
        for agent, owner in (("claude", True), ("", False), ("bob", False)):
            body = VerdictBody(agent, mine, "harmful", "owner", None, None)
            if owner:
                await world.replica.append(HOME, [entry_draft(body)])
            else:
                await world.replica.admit(HOME, [peer.write(HOME, body, "invited")])
            assert await status(world, mine) == "active"


async def test_a_verdict_may_be_taken_back_and_may_come_first(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        peer = Peer(world.clock, 9)
        theirs = peer.write(HOME, note_body("the port is 5433 on monday"), "invited")

        async def judge(outcome: str) -> None:
            body = VerdictBody("", theirs.id, outcome, "owner", None, None)  # type: ignore[arg-type]
            await world.replica.append(HOME, [entry_draft(body)])

        await judge("wrong")
        await world.replica.admit(HOME, [theirs])
        assert await status(world, theirs.id) == "refuted"
        world.clock.ms += 1000
        await judge("useful")
        assert await status(world, theirs.id) == "active"


async def test_a_foreign_replacement_counts_once_the_person_backs_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine = bytes.fromhex(await world.say("we deploy on mondays", world.agent()))
        persons = bytes.fromhex(await world.say("we rest on sundays", world.person))
        peer = Peer(world.clock, 9)
        world.clock.ms += 1000
        theirs = peer.write(HOME, note_body("you deploy on fridays"), "invited")
        links = [
            peer.write(HOME, LinkBody("bob", theirs.id, dst, "supersedes", None), "invited")
            for dst in (mine, persons)
        ]
        await world.replica.admit(HOME, [theirs, *links])
        assert await status(world, mine) == "active"
        assert await disputes(world) == {
            frozenset((mine, theirs.id)), frozenset((persons, theirs.id)),
        }  # fmt: skip
        body = VerdictBody("", theirs.id, "useful", "owner", None, None)
        await world.replica.append(HOME, [entry_draft(body)])
        assert await status(world, mine) == "superseded"
        assert await status(world, persons) == "active"
