"""What peers' records become: projection in any order, authority, late keys, own positions."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from memory.bodies import (
    EndorseBody,
    ForgetBody,
    LinkBody,
    ProfileBody,
    VerdictBody,
    decode_body_untrusted,
    encode_body,
    is_newer,
)
from memory.errors import DecodeError, UsageError
from memory.storage.marks import HighMark, decode_marks_untrusted, encode_marks
from tests.helpers.memories import HOME, TEAM, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, inline=True) as opened:
        yield opened


async def statuses(world: World) -> dict[str, str]:
    rows = await world.sql(
        "SELECT c.text, m.status FROM memory m JOIN chunk c ON c.memory = m.id AND c.i = 0"
    )
    return dict(rows)


async def test_a_peers_note_is_searchable_when_admitted(world: World) -> None:
    record = Peer(world.clock, 7).write(
        HOME, note_body("the cat\r\nsat\x00", title="on\nthe mat", tags=["pet\x1b"]), "invited"
    )
    (verdict,) = await world.replica.admit(HOME, [record])
    assert verdict.outcome == "stored"
    (hit,) = (await world.find("cat mat")).hits
    assert (hit.text, hit.title, hit.tags) == ("the cat\nsat", "on the mat", ["pet"])
    assert (hit.author.agent, hit.author.relation) == ("bob", "peer")
    assert hit.author.device_id == record.author.hex()


async def test_every_order_of_arrival_ends_in_the_same_state(tmp_path: Path) -> None:
    """Note, its replacement, the link, a forget record of a third: 24 orders, one result."""
    ends = set()
    for n, order in enumerate(itertools.permutations(range(4))):
        folder = tmp_path / str(n)
        folder.mkdir()
        async with open_world(folder, inline=True) as world:
            peer = Peer(world.clock, 7)
            old = peer.write(HOME, note_body("old"), "invited")
            new = peer.write(HOME, note_body("new"), "invited")
            link = peer.write(HOME, LinkBody("bob", new.id, old.id, "supersedes", None), "invited")
            forget = peer.write(HOME, ForgetBody("bob", [new.id], None), "invited")
            records = [old, new, link, forget]
            for at in order:
                await world.replica.admit(HOME, [records[at]])
            ends.add(tuple(sorted((await statuses(world)).items())))
            await world.check_index()
    assert ends == {(("new", "forgotten"), ("old", "active"))}


@pytest.mark.attack
async def test_nobody_replaces_or_forgets_anothers_memory(world: World) -> None:
    victim = Peer(world.clock, 7)
    mallory = Peer(world.clock, 8)
    note = victim.write(HOME, note_body("true"), "invited")
    lie = mallory.write(HOME, note_body("lie"), "invited")
    attacks: list[Any] = [
        mallory.write(HOME, LinkBody("bob", lie.id, note.id, "supersedes", None), "invited"),
        mallory.write(HOME, ForgetBody("bob", [note.id], None), "invited"),
        mallory.write(HOME, LinkBody("", lie.id, note.id, "supersedes", None), "own_device"),
    ]
    own = await world.say("mine")
    attacks.append(mallory.write(HOME, ForgetBody("claude", [bytes.fromhex(own)], None), "invited"))
    await world.replica.admit(HOME, [*attacks, lie, note])
    assert await statuses(world) == {"true": "active", "lie": "active", "mine": "active"}


@pytest.mark.attack
async def test_supersede_rings_hide_nothing(world: World) -> None:
    peer = Peer(world.clock, 7)
    a, b = (peer.write(HOME, note_body(t), "invited") for t in ("a", "b"))
    ring = [
        peer.write(HOME, LinkBody("bob", x.id, y.id, "supersedes", None), "invited")
        for x, y in ((a, b), (b, a), (a, a))
    ]
    await world.replica.admit(HOME, [a, b, *ring])
    assert await statuses(world) == {"a": "superseded", "b": "active"}
    assert [hit.text for hit in (await world.find("a")).hits] == ["b", "a"]


async def test_two_devices_of_one_owner_speak_for_each_other(world: World) -> None:
    owner = b"o" * 32
    one, two = Peer(world.clock, 7, owner=owner), Peer(world.clock, 8, owner=owner)
    old = one.write(HOME, note_body("old"), "invited")
    world.clock.ms += 1000
    new = two.write(HOME, note_body("new"), "invited")
    link = two.write(HOME, LinkBody("bob", new.id, old.id, "supersedes", None), "invited")
    await world.replica.admit(HOME, [old, new, link])
    assert await statuses(world) == {"old": "superseded", "new": "active"}
    # The second device turns out to be somebody else's: its word no longer counts.
    await world.replica.settle(HOME, owners=[(two.sealer.device, b"x" * 32, "other")])
    assert await statuses(world) == {"old": "active", "new": "active"}
    await world.check_index()


async def test_void_records_are_hidden_and_come_back_whole(world: World) -> None:
    peer = Peer(world.clock, 7)
    old, new = (peer.write(HOME, note_body(f"{t} news"), "invited") for t in ("old", "new"))
    link = peer.write(HOME, LinkBody("bob", new.id, old.id, "supersedes", None), "invited")
    await world.replica.admit(HOME, [old, new, link])
    assert len((await world.find("news")).hits) == 2
    assert await world.replica.settle(HOME, void=[new.id]) == 1
    assert [(h.text, h.flags) for h in (await world.find("news")).hits] == [("old news", [])]
    assert (await world.memory.history(world.agent(), new.id.hex())).status == "void"
    assert await world.replica.settle(HOME, void=[link.id, old.id]) == 2
    assert (await world.find("news")).hits == []
    await world.check_index()
    assert await world.replica.settle(HOME, revive=[old.id, new.id, link.id]) == 3
    assert [h.flags for h in (await world.find("news")).hits] == [[], ["superseded"]]
    await world.check_index()


async def test_a_voided_link_gives_back_what_it_replaced(world: World) -> None:
    peer = Peer(world.clock, 7)
    old, new = (peer.write(HOME, note_body(t), "invited") for t in ("old", "new"))
    link = peer.write(HOME, LinkBody("bob", new.id, old.id, "supersedes", None), "invited")
    forget = peer.write(HOME, ForgetBody("bob", [new.id], None), "invited")
    await world.replica.admit(HOME, [old, new, link, forget])
    await world.replica.settle(HOME, void=[forget.id])
    assert await statuses(world) == {"old": "superseded", "new": "active"}
    await world.replica.settle(HOME, void=[link.id])
    assert await statuses(world) == {"old": "active", "new": "active"}


async def test_a_fork_hides_all_above_it_for_ever(world: World) -> None:
    peer = Peer(world.clock, 7)
    notes = [peer.write(HOME, note_body(f"fact {n}"), "invited") for n in range(4)]
    await world.replica.admit(HOME, notes)
    log = peer.sealer.log(HOME, 1)
    assert await world.replica.settle(HOME, fork=[(log, 3, notes[2].id, b"z" * 32)]) == 2
    assert await _states(world) == ["live", "live", "void", "void"]
    # Who has two histories is banned: what is left of it is kept, and shown to nobody.
    assert (await world.find("fact", trust_min=0.0)).hits == []
    await world.replica.settle(HOME, revive=[notes[2].id])
    assert await _states(world) == ["live", "live", "void", "void"]
    await world.check_index()


async def _states(world: World) -> list[object]:
    return [row[0] for row in await world.sql("SELECT state FROM record ORDER BY n")]


async def test_sealed_bodies_are_projected_when_the_key_comes(world: World) -> None:
    peer = Peer(world.clock, 7)
    note = peer.write(HOME, note_body("late light"), "invited")
    await world.replica.admit(HOME, [note.as_seen("invited", plain=None, state="sealed")])
    assert (await world.find("late")).hits == []
    (waiting,) = await world.replica.sealed(HOME, peer.sealer.epoch, 10)
    assert waiting.id == note.id
    assert note.plain is not None
    await world.replica.unsealed(HOME, [(note.id, note.plain)])
    (hit,) = (await world.find("late")).hits
    assert (hit.trust, hit.author.relation) == (0.533, "peer")
    assert list(await world.replica.sealed(HOME, peer.sealer.epoch, 10)) == []
    await world.replica.unsealed(HOME, [(note.id, note.plain)])
    assert len(await world.sql("SELECT 1 FROM memory")) == 1


async def test_an_owner_change_while_sealed_is_remembered(world: World) -> None:
    peer = Peer(world.clock, 7)
    note = peer.write(HOME, note_body("late light"))
    await world.replica.admit(HOME, [note.as_seen("other", plain=None, state="sealed")])
    await world.replica.settle(HOME, owners=[(peer.sealer.device, b"o" * 32, "own_device")])
    assert note.plain is not None
    await world.replica.unsealed(HOME, [(note.id, note.plain)])
    assert (await world.find("late")).hits[0].author.relation == "own_device"


async def test_a_change_of_relation_moves_memories_between_the_indexes(world: World) -> None:
    peer = Peer(world.clock, 7)
    await world.replica.admit(HOME, [peer.write(HOME, note_body(f"tea {n}")) for n in range(5)])
    assert (await world.find("tea")).withheld.low_trust == 5
    device = peer.sealer.device
    assert await world.replica.settle(HOME, owners=[(device, device, "invited")]) == 5
    assert len((await world.find("tea")).hits) == 5
    assert await world.replica.settle(HOME, owners=[(device, device, "invited")]) == 0
    await world.replica.settle(HOME, owners=[(device, device, "other")])
    assert (await world.find("tea")).hits == []
    await world.check_index()


async def test_owners_are_judged_group_by_group(world: World) -> None:
    peer = Peer(world.clock, 7)
    await world.replica.admit(HOME, [peer.write(HOME, note_body("tea at home"))])
    await world.replica.admit(TEAM, [peer.write(TEAM, note_body("tea at work"))])
    device = peer.sealer.device
    await world.replica.settle(TEAM, owners=[(device, device, "invited")])
    assert [h.text for h in (await world.find("tea")).hits] == ["tea at work"]


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\x00",
        b"\x93\x01\xa3bob\xc0",
        b"\x91" * 1000,
        encode_body(ForgetBody("a", [b"i" * 32], None))[:-1],
        b"\x94\x07\x01\x02\x03",
        note_body("x").replace(b"\xa4note", b"\xa4xxxx"),
        note_body("x", scope="ok").replace(b"\xa2ok", b"\xa2OK"),
        b"\xdc\x00\x13" + note_body("x")[3:] + b"\x00",
        note_body("x").replace(b"\xa1x", b"\xd9\x01x"),
    ],
)
@pytest.mark.attack
async def test_a_body_that_cannot_be_read_is_kept_and_blocks_nothing(
    world: World, plain: bytes
) -> None:
    peer = Peer(world.clock, 7)
    bad = peer.write(HOME, plain, "invited")
    good = peer.write(HOME, note_body("good news"), "invited")
    verdicts = await world.replica.admit(HOME, [bad, good])
    assert [v.outcome for v in verdicts] == ["stored", "stored"]
    assert [h.text for h in (await world.find("news")).hits] == ["good news"]
    assert await world.sql("SELECT why, plain FROM kept") == [("unprojected", plain)]
    assert dict(await world.replica.known([bad.id])) == {bad.id: "live"}


async def test_verdicts_and_endorsements_become_rows_before_their_targets_come(
    world: World,
) -> None:
    peer = Peer(world.clock, 7)
    bodies = [
        VerdictBody("bob", b"t" * 32, "useful", "outcome", None, None),
        EndorseBody("bob", b"s" * 32, 50, None),
    ]
    await world.replica.admit(HOME, [peer.write(HOME, body, "invited") for body in bodies])
    assert await world.sql("SELECT target, kind, about FROM evidence") == [
        (b"t" * 32, "useful", None)
    ]
    assert await world.sql("SELECT subject, level FROM endorse") == [(b"s" * 32, 50)]
    assert await world.sql("SELECT * FROM kept") == []
    assert is_newer(b"\x92\x07\xa0")
    assert not is_newer(encode_body(bodies[0]))


async def test_a_device_name_is_the_newest_word_of_the_device(world: World) -> None:
    peer = Peer(world.clock, 7)
    first = peer.write(HOME, ProfileBody("", "desk"), "invited")
    second = peer.write(HOME, ProfileBody("", "desk two\n"), "invited")
    await world.replica.admit(HOME, [second, first])
    await world.replica.admit(HOME, [peer.write(HOME, note_body("hi"), "invited")])
    assert (await world.find("hi")).hits[0].author.device == "desk two"
    # The person's own name for it stands above the device's word.
    await world.replica.admit(HOME, [], [("device", (peer.sealer.device, "bob's desk", 0, 5))])
    await world.replica.admit(HOME, [peer.write(HOME, ProfileBody("", "evil"), "invited")])
    assert (await world.find("hi")).hits[0].author.device == "bob's desk"


async def test_a_failed_admission_leaves_nothing(world: World) -> None:
    peer = Peer(world.clock, 7)
    records = [peer.write(HOME, note_body(f"n{n}"), "invited") for n in range(3)]
    with pytest.raises(UsageError):
        await world.replica.admit(HOME, records, [("nonsense", (1,))])
    with pytest.raises(UsageError):
        await world.replica.admit(HOME, records, [("peer", (1,))])
    assert await world.sql("SELECT 1 FROM record") == []
    assert dict(await world.replica.known([r.id for r in records])) == {}


async def test_erased_ids_are_not_taken_back(world: World) -> None:
    record = Peer(world.clock, 7).write(HOME, note_body("gone"), "invited")
    await world.db.write(
        lambda c: c.execute(
            "INSERT INTO erased VALUES (?, ?, 1)", (record.id, b"e" * 32)
        ).fetchall()
    )
    (verdict,) = await world.replica.admit(HOME, [record])
    assert verdict.outcome == "erased"
    assert (await world.find("gone")).hits == []
    assert await world.sql("SELECT 1 FROM body UNION ALL SELECT 1 FROM body_key") == []


async def test_the_index_is_rebuilt_when_its_group_changes(world: World) -> None:
    await world.say("one")
    first = await world.replica.index(HOME, 1)
    assert await world.replica.index(HOME, 1) is first
    await world.say("elsewhere", scope="team/x")
    assert await world.replica.index(HOME, 1) is first
    await world.say("two")
    assert len(await world.replica.index(HOME, 1)) == 2
    assert len(first) == 1


# ---- high.mark


async def test_own_positions_are_marked_before_the_caller_wakes(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for n in range(3):
            await world.say(f"note {n}")
            found = decode_marks_untrusted((tmp_path / "high.mark").read_bytes())
            assert found == {world.sealer.log(HOME, 1): n + 1}
        peer = Peer(world.clock, 7)
        await world.replica.admit(HOME, [peer.write(HOME, note_body("x"), "invited")])
        assert len(await world.replica.local("mark")) == 1
        assert (tmp_path / "high.mark").stat().st_mode & 0o777 == 0o600


async def test_an_older_database_is_behind_the_mark(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.say("one")
    image = (tmp_path / "covey.db").read_bytes()
    async with open_world(tmp_path) as world:
        await world.say("two")
        log = world.sealer.log(HOME, 1)
    (tmp_path / "covey.db").write_bytes(image)
    async with open_world(tmp_path) as world:
        ((_, mark),) = await world.replica.local("mark", HOME)
        assert mark == (*log, 2)
        (state,) = await world.replica.logs(HOME)
        assert state.max_seq == 1


async def test_a_failed_commit_moves_no_mark(tmp_path: Path) -> None:
    async with open_world(tmp_path, inline=True) as world:
        await world.say("one")
        world.clock.faults.add("store.commit")
        with pytest.raises(Exception, match="full"):
            await world.say("two")
        world.clock.faults.clear()
        await world.say("three", scope="team/x")
        marks = {row[1][0]: row[1][4] for row in await world.replica.local("mark")}
        assert marks == {HOME: 1, TEAM: 1}


@pytest.mark.parametrize("damage", [b"", b"x", b"\x00" * 100, b"\x00" * 5000, None])
def test_a_torn_mark_is_no_mark(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "high.mark"
    good = encode_marks({(b"g" * 32, b"a" * 32, 1, 1): 7})
    path.write_bytes(good[:-1] if damage is None else damage)
    mark = HighMark(path)
    mark.load()
    assert mark.positions == {}
    mark.raise_to({(b"g" * 32, b"a" * 32, 1, 1): 7})
    mark.write()
    mark.close()
    assert path.read_bytes() == good


def test_bodies_refuse_the_oversized() -> None:
    with pytest.raises(DecodeError):
        encode_body(decode_body_untrusted(note_body("x" * 70_000)))
    with pytest.raises(DecodeError):
        decode_body_untrusted(b"\x92" + b"\x00" * 70_000)
