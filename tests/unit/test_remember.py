"""Remembering and forgetting: durable, idempotent, clean, and only what one may."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
import trio

from memory.errors import RefusedError, StoreError
from memory.model import Caller, Claim, Forgotten, NoteIn, Remembered, Source
from memory.store import Filter
from memory.tiers import NONE
from tests.helpers.memories import HOME, PRIVATE, TEAM, Peer, World, note_body, open_world
from tests.helpers.plain_sealer import PlainEnvelope, PlainRecord, open_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

ID_X = "ab" * 32


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, inline=True) as opened:
        yield opened


class Receipt:
    def __init__(self, key: bytes) -> None:
        self.key = key

    def encode(self, result: Sequence[Remembered | Forgotten]) -> bytes:
        return ",".join(f"{item.id}:{item.status}" for item in result).encode()


async def test_what_was_acknowledged_is_found_at_once_and_after_a_restart(tmp_path: Path) -> None:
    async with open_world(tmp_path) as first:
        note = await first.say("The deploy key lives in the vault.", title="Deploy")
        assert (await first.find("deploy key")).hits[0].id == note
    async with open_world(tmp_path) as second:
        (hit,) = (await second.find("deploy key")).hits
        assert (hit.id, hit.title, hit.text) == (
            note,
            "Deploy",
            "The deploy key lives in the vault.",
        )
        await second.check_index()


async def test_a_note_is_a_signed_encrypted_record(world: World) -> None:
    note = await world.say("a plain secret of the house")
    row = await world.sql("SELECT header, sig FROM record WHERE id = ?", bytes.fromhex(note))
    (stored,) = await world.replica.fetch([bytes.fromhex(note)], bodies=True)
    assert (stored.header, stored.signature) == row[0]
    record = PlainRecord(
        stored.id, HOME, world.sealer.device, 1, 1, 1, None, 1, 32, None, (), stored.header,
        stored.signature, None, None, "live", world.sealer.device, "own",
    )  # fmt: skip
    record.check()
    envelope = stored.envelope
    assert envelope is not None
    assert b"plain secret" not in envelope.ct
    plain = open_body(
        PlainEnvelope(envelope.salt, envelope.epoch, envelope.wrap, envelope.ct),
        world.sealer.epoch_key,
    )
    assert b"a plain secret of the house" in plain


async def test_the_same_key_and_text_store_once(world: World) -> None:
    first = await world.say("one", idempotency_key="k")
    (again,) = await world.memory.remember(world.agent(), [NoteIn(text="one", idempotency_key="k")])
    assert (again.id, again.status) == (first, "duplicate")
    assert len(await world.sql("SELECT 1 FROM record")) == 1


async def test_the_same_key_with_another_text_is_a_conflict_and_stores_nothing(
    world: World,
) -> None:
    await world.say("one", idempotency_key="k")
    with pytest.raises(RefusedError) as caught:
        await world.memory.remember(
            world.agent(), [NoteIn(text="fine"), NoteIn(text="two", idempotency_key="k")]
        )
    assert caught.value.reason == "conflict"
    assert "two" not in str(caught.value)
    assert len(await world.sql("SELECT 1 FROM record")) == 1


async def test_keys_belong_to_their_author_and_scope(world: World) -> None:
    first = await world.say("one", idempotency_key="k")
    second = await world.say("two", world.agent("cursor"), idempotency_key="k")
    third = await world.say("two", idempotency_key="k", scope="other")
    fourth = await world.say("two", idempotency_key="k", scope="team/main")
    assert len({first, second, third, fourth}) == 4


async def test_a_key_survives_a_restart(tmp_path: Path) -> None:
    async with open_world(tmp_path, inline=True) as first:
        note = await first.say("one", idempotency_key="k")
    async with open_world(tmp_path, inline=True) as second:
        (again,) = await second.memory.remember(
            second.agent(), [NoteIn(text="one", idempotency_key="k")]
        )
        assert (again.id, again.status) == (note, "duplicate")


async def test_an_authors_own_duplicate_is_one_memory(world: World) -> None:
    first = await world.say("the same")
    assert await world.say("the same") == first
    assert await world.say("the same", world.agent("cursor")) != first
    assert await world.say("the same", scope="other") != first
    assert await world.say("the same", kind="lesson") != first


async def test_a_duplicate_answers_to_its_new_key_too(world: World) -> None:
    first = await world.say("the same")
    assert await world.say("the same", idempotency_key="later") == first
    with pytest.raises(RefusedError):
        await world.say("other", idempotency_key="later")


async def test_a_forgotten_text_can_be_remembered_anew(world: World) -> None:
    first = await world.say("again and again")
    await world.memory.forget(world.agent(), [first])
    second = await world.say("again and again")
    assert second != first
    assert [hit.id for hit in (await world.find("again")).hits] == [second]


async def test_text_is_cleaned_before_it_is_signed(world: World) -> None:
    note = await world.say(
        "cafe\u0301\r\nline\x00two\x1b[31m\ttab\x85",
        title="two\nlines\x07",
        tags=["a\nb", "a b", "", "c"],
    )
    hit = (await world.memory.get(world.agent(), [note])).hits[0]
    assert hit.text == "caf\u00e9\nlinetwo[31m\ttab"
    assert hit.title == "two lines"
    assert hit.tags == ["a b", "c"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": ""}, "invalid"),
        ({"text": " \n\x00\t"}, "invalid"),
        ({"text": "x" * 65_536}, "too_large"),
        ({"text": "\U0001f600" * 17_000}, "too_large"),
        ({"title": "t" * 513}, "invalid"),
        ({"tags": ["t" * 65]}, "invalid"),
        ({"tags": [str(n) for n in range(33)]}, "invalid"),
        ({"scope": "No Such"}, "invalid"),
        ({"scope": "a/b/c"}, "invalid"),
        ({"scope": "nogroup/x"}, "unknown_scope"),
        ({"role": "owner"}, "forbidden"),
        ({"speaker": "s" * 129}, "invalid"),
        ({"thread": "t" * 129}, "invalid"),
        ({"pos": -1}, "invalid"),
        ({"at": "yesterday"}, "invalid"),
        ({"valid_to": "2026-13-01"}, "invalid"),
        ({"claim": Claim(subject="", attribute="a", value="v")}, "invalid"),
        ({"claim": Claim(subject="s", attribute="a", value="v" * 4097)}, "invalid"),
        ({"supersedes": ["xyz"]}, "invalid"),
        ({"supersedes": [ID_X]}, "not_found"),
        ({"supersedes": [ID_X] * 17}, "invalid"),
        ({"derived_from": ["ab" * 5]}, "not_found"),
        ({"derived_from": [ID_X] * 17}, "invalid"),
        ({"source": Source(sha256="short")}, "invalid"),
        ({"source": Source(uri="u" * 2049)}, "invalid"),
        ({"ttl_s": 0}, "invalid"),
        ({"ttl_s": 2**40}, "invalid"),
        ({"idempotency_key": "k" * 129}, "invalid"),
    ],
)
async def test_what_cannot_be_stored_is_refused_by_reason(
    world: World, fields: dict[str, Any], reason: str
) -> None:
    note = NoteIn(**{"text": "t", **fields})
    with pytest.raises(RefusedError) as caught:
        await world.memory.remember(world.agent(), [note])
    assert caught.value.reason == reason
    assert await world.sql("SELECT 1 FROM record") == []


async def test_the_number_of_notes_is_bounded(world: World) -> None:
    for notes in ([], [NoteIn(text=str(n)) for n in range(257)]):
        with pytest.raises(RefusedError):
            await world.memory.remember(world.agent(), notes)
    done = await world.memory.remember(world.agent(), [NoteIn(text=str(n)) for n in range(256)])
    assert len({item.id for item in done}) == 256


async def test_a_call_stores_all_its_notes_or_none(world: World) -> None:
    with pytest.raises(RefusedError):
        await world.memory.remember(
            world.agent(), [NoteIn(text="good"), NoteIn(text="bad", supersedes=[ID_X])]
        )
    assert await world.sql("SELECT 1 FROM memory") == []
    await world.check_index()


async def test_groups_follow_the_scope(world: World) -> None:
    for scope, group in (("main", HOME), ("private/diary", PRIVATE), ("team/build", TEAM)):
        note = await world.say(f"in {scope}", scope=scope)
        (row,) = await world.sql(
            "SELECT g.id FROM record r JOIN grp g ON g.n = r.grp WHERE r.id = ?",
            bytes.fromhex(note),
        )
        assert row[0] == group
        assert (await world.memory.get(world.agent(), [note])).hits[0].scope == scope


async def test_positions_in_a_thread_count_up(world: World) -> None:
    for text in ("a", "b", "c"):
        await world.say(text, thread="talk")
    await world.say("d", thread="other")
    await world.say("e", thread="talk", pos=10)
    await world.say("f", thread="talk")
    rows = await world.sql("SELECT pos FROM memory ORDER BY id")
    assert [row[0] for row in rows] == [1, 2, 3, 1, 10, 11]


async def test_the_receipt_is_kept_with_its_effect(world: World) -> None:
    done = await world.memory.remember(world.agent(), [NoteIn(text="one")], Receipt(b"r1"))
    assert await world.memory.receipt(b"r1") == f"{done[0].id}:stored".encode()
    gone = await world.memory.forget(world.agent(), [done[0].id], receipt=Receipt(b"r2"))
    assert gone[0].status == "forgotten"
    assert await world.memory.receipt(b"r2") == f"{done[0].id}:forgotten".encode()
    assert await world.memory.receipt(b"r3") is None


async def test_no_receipt_without_effect(world: World) -> None:
    world.clock.faults.add("store.commit")
    with pytest.raises(StoreError):
        await world.memory.remember(world.agent(), [NoteIn(text="one")], Receipt(b"r1"))
    world.clock.faults.clear()
    assert await world.memory.receipt(b"r1") is None
    assert (await world.find("one")).hits == []


async def test_old_receipts_go(world: World) -> None:
    await world.memory.remember(world.agent(), [NoteIn(text="0")], Receipt(b"old"))
    world.clock.ms += 25 * 3600 * 1000
    for n in range(1, 300):
        await world.memory.remember(world.agent(), [NoteIn(text=str(n))], Receipt(b"r%d" % n))
    assert await world.memory.receipt(b"old") is None
    assert await world.memory.receipt(b"r299") is not None


async def test_events_carry_ids_and_scope_only_and_come_after_the_commit(world: World) -> None:
    note = await world.say("quiet words", scope="team/build")
    (event,) = world.events
    assert (event.name, event.ids, event.scope) == ("stored", (note,), "team/build")
    assert "quiet" not in repr(event)


async def test_a_cancelled_remember_is_all_or_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for n in range(30):
            with trio.move_on_after(0.0005 * (n % 5)):
                await world.say(f"note {n}", idempotency_key=f"k{n}")
        for n in range(30):
            await world.say(f"note {n}", idempotency_key=f"k{n}")
        rows = await world.sql("SELECT count(*), count(DISTINCT content_hash) FROM memory")
        assert rows == [(30, 30)]
        await world.check_index()


# ---- superseding


async def test_what_its_author_replaces_is_superseded_and_linked(world: World) -> None:
    old = await world.say("The port is 8080.")
    new = await world.say("The port is 9090.", supersedes=[old])
    (row,) = (await world.memory.get(world.agent(), [old])).hits
    assert (row.flags, row.superseded_by) == (["superseded"], new)
    assert [e.name for e in world.events] == ["stored", "stored", "superseded"]


async def test_an_agents_word_does_not_replace_a_strangers(world: World) -> None:
    stranger = Peer(world.clock, 7)
    record = stranger.write(HOME, note_body("The port is 1."), "invited")
    await world.replica.admit(HOME, [record])
    (done,) = await world.memory.remember(
        world.agent(), [NoteIn(text="The port is 2.", supersedes=[record.id.hex()])]
    )
    assert done.conflicts == [record.id.hex()]
    assert (await world.memory.get(world.agent(), [record.id.hex()])).hits[0].flags == []


async def test_the_persons_word_replaces_anybodys(world: World) -> None:
    stranger = Peer(world.clock, 7)
    record = stranger.write(HOME, note_body("The port is 1."), "invited")
    await world.replica.admit(HOME, [record])
    (done,) = await world.memory.remember(
        world.person, [NoteIn(text="The port is 2.", supersedes=[record.id.hex()])]
    )
    assert done.conflicts == []
    hit = (await world.memory.get(world.person, [record.id.hex()])).hits[0]
    assert hit.superseded_by == done.id


# ---- forgetting


async def test_an_own_note_is_forgotten_by_a_signed_record(world: World) -> None:
    note = await world.say("forget me please")
    (done,) = await world.memory.forget(world.agent(), [note], "no longer true")
    assert done.status == "forgotten"
    assert (await world.find("forget")).hits == []
    assert (await world.memory.get(world.agent(), [note])).hits == []
    assert (await world.memory.list(world.agent(), Filter())).hits == []
    history = await world.memory.history(world.agent(), note)
    assert history.status == "forgotten"
    assert [(v.what, v.text, v.note) for v in history.versions] == [
        ("note", None, "forgotten"),
        ("forget", None, "no longer true"),
    ]
    assert len(await world.sql("SELECT 1 FROM record")) == 2
    await world.check_index()


async def test_forgetting_the_newest_brings_the_older_back(world: World) -> None:
    old = await world.say("The port is 8080.")
    new = await world.say("The port is 9090.", supersedes=[old])
    await world.memory.forget(world.agent(), [new])
    (hit,) = (await world.find("port")).hits
    assert (hit.id, hit.flags) == (old, [])


async def test_an_agent_forgets_only_what_it_wrote(world: World) -> None:
    mine = await world.say("mine")
    others = await world.say("others", world.agent("cursor"))
    stranger = Peer(world.clock, 7).write(HOME, note_body("strange"), "invited")
    await world.replica.admit(HOME, [stranger])
    ids = [mine, others, stranger.id.hex(), "cd" * 32]
    done = await world.memory.forget(world.agent(), ids)
    assert [item.status for item in done] == ["forgotten", "not_yours", "not_yours", "not_found"]


async def test_the_person_hides_a_strangers_memory_here_only(world: World) -> None:
    stranger = Peer(world.clock, 7).write(HOME, note_body("strange news"), "invited")
    await world.replica.admit(HOME, [stranger])
    before = len(await world.sql("SELECT 1 FROM record"))
    (done,) = await world.memory.forget(world.person, [stranger.id.hex()])
    assert done.status == "forgotten"
    assert (await world.find("strange")).hits == []
    assert len(await world.sql("SELECT 1 FROM record")) == before
    assert (await world.memory.history(world.person, stranger.id.hex())).status == "hidden"
    # Authority that comes and goes does not bring back what the person has hidden.
    await world.replica.settle(HOME, void=[stranger.id])
    await world.replica.settle(HOME, revive=[stranger.id])
    assert (await world.find("strange")).hits == []
    await world.check_index()


async def test_forgetting_twice_is_the_same_as_once(world: World) -> None:
    note = await world.say("gone")
    await world.memory.forget(world.agent(), [note])
    count = len(await world.sql("SELECT 1 FROM record"))
    (done,) = await world.memory.forget(world.agent(), [note])
    assert done.status == "forgotten"
    assert len(await world.sql("SELECT 1 FROM record")) == count


async def test_what_has_expired_comes_into_no_index_again(world: World) -> None:
    note = await world.say("the tea is hot", world.agent("codex"), ttl_s=60)
    world.clock.ms += 61_000
    assert await world.memory.expire() == 1
    for outcome in ("wrong", "useful", "wrong", "useful"):
        world.clock.ms += 86_400_000
        await world.desk.feedback(world.agent(), note, outcome)
    await world.desk.feedback(world.person, note, "useful")
    assert await world.sql("SELECT tier FROM memory") == [(NONE,)]
    await world.check_index()


async def test_a_date_in_the_future_has_no_negative_age(world: World) -> None:
    await world.say("the tea is served", at="2099-01-01T00:00:00Z")
    (hit,) = (await world.find("tea")).hits
    assert hit.age_days == 0


async def test_a_note_expires(world: World) -> None:
    await world.say("short lived", ttl_s=60)
    assert len((await world.find("short")).hits) == 1
    world.clock.ms += 61_000
    assert (await world.find("short")).hits == []
    assert (await world.memory.list(world.agent(), Filter())).hits == []
    assert await world.memory.expire() == 1
    assert await world.memory.expire() == 0
    await world.check_index()


async def test_a_device_name_is_published_once_and_shown(world: World) -> None:
    await world.say("hello")
    await world.memory.set_device_name("laptop")
    count = len(await world.sql("SELECT 1 FROM record"))
    await world.memory.set_device_name("laptop")
    assert len(await world.sql("SELECT 1 FROM record")) == count
    assert (await world.find("hello")).hits[0].author.device == "laptop"
    with pytest.raises(RefusedError):
        await world.memory.set_device_name(" \n")


async def test_an_unknown_group_takes_no_notes(world: World) -> None:
    world.sealer.groups.discard(TEAM)
    with pytest.raises(RefusedError) as caught:
        await world.say("text", scope="team/x")
    assert caught.value.reason == "unknown_scope"


@pytest.mark.attack
async def test_an_agent_with_a_forged_device_cannot_be_another_author(world: World) -> None:
    """The signed author is the sealer's device, whatever a caller says it is."""
    forged = Caller(
        device=hashlib.sha256(b"victim").digest(),
        agent="claude",
        is_owner=False,
        read=world.agent().read,
        write=world.agent().write,
    )
    note = await world.say("forged", forged)
    hit = (await world.memory.get(world.agent(), [note])).hits[0]
    assert hit.author.device_id == world.sealer.device.hex()
