"""Evidence: what each kind counts, what bounds it, and what it does to memories."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from memory.bodies import EndorseBody, LinkBody, VerdictBody, encode_body
from memory.errors import RefusedError
from memory.review.desk import TrustDesk
from memory.tiers import LOW, MAIN, NONE
from memory.trust.evidence import observe
from memory.trust.rules import Evidence, fold, start_s, tier_of
from tests.helpers.memories import HOME, TEAM, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    import apsw

    from memory.trust.rules import EvidenceKind
    from tests.helpers.plain_sealer import PlainRecord

DAY_MS = 86_400_000
NOW = 1_700_000_000_000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, inline=True) as opened:
        yield opened


def piece(kind: str, n: int = 0, **fields: object) -> Evidence:
    """Evidence number n, an hour after the one before."""
    at_ms = NOW + n * 3_600_000
    plain = Evidence(at_ms << 16, n.to_bytes(8, "big"), kind, at_ms)
    return plain._replace(**fields)  # type: ignore[arg-type]


def trust(pieces: Sequence[Evidence], start: float = 0.0, **flows: float) -> float:
    folded, _ = fold(start, pieces, NOW, **flows)
    return folded.trust()


# ---- what a kind weighs


@pytest.mark.parametrize(
    ("kind", "s", "f"),
    [
        ("owner_useful", 5.0, 0.0),
        ("owner_wrong", 2 * 0.7, 3.0),
        ("agent_useful", 3.5, 0.0),
        ("agent_wrong", 2 * 0.7, 1.0),
        ("agent_harmful", 2 * 0.7, 1.5),
        ("conflict_won", 2.5, 0.0),
        ("conflict_lost", 2 * 0.7, 1.2),
        ("quick_erase", 2 * 0.85, 0.5),
        ("injection", 2 * 0.85, 0.5),
        ("secret", 2 * 0.85, 0.5),
        ("quota", 2 * 0.85, 0.5),
        ("stale", 2.0, 0.0),
        ("fork", 2.0, 0.0),
        ("endorsed", 2.0, 0.0),  # a foreign voice without any flow
        ("no such kind", 2.0, 0.0),
    ],
)
def test_each_kind_weighs_what_the_table_says(kind: str, s: float, f: float) -> None:
    folded, _ = fold(2.0, [piece(kind)], NOW)
    assert (folded.s, folded.f) == (pytest.approx(s), pytest.approx(f))


def test_the_persons_own_endorsement_needs_no_flow() -> None:
    folded, _ = fold(0.0, [piece("endorsed", weight=None)], NOW)
    assert folded.s == 3.0


def test_praise_of_one_memory_is_worth_less_each_time() -> None:
    praise = [piece("agent_useful", n, memory=7, voter=f"a{n}") for n in range(4)]
    folded, weighed = fold(0.0, praise, NOW)
    assert [w.p for w in weighed] == pytest.approx([1.5, 0.75, 0.5, 0.375])
    assert folded.s == pytest.approx(3.125, abs=0.01)  # an hour between them


def test_an_agents_verdict_on_a_memory_counts_once_a_day() -> None:
    same_day = [
        piece("agent_wrong", n, memory=7, voter="a", at_ms=NOW // DAY_MS * DAY_MS + n)
        for n in range(5)
    ]
    next_day = piece("agent_wrong", 30, memory=7, voter="a")
    _folded, weighed = fold(16.0, [*same_day, next_day], NOW)
    assert [w.n for w in weighed] == [1, 0, 0, 0, 0, 1]
    assert weighed[1].why == "said that already today"


def test_faults_seen_here_count_three_times_a_day_each() -> None:
    day = NOW // DAY_MS * DAY_MS
    faults = [piece("secret", n, at_ms=day + n) for n in range(6)]
    faults += [piece("injection", n, at_ms=day + n) for n in range(6)]
    _folded, weighed = fold(16.0, faults, NOW)
    assert sum(w.n for w in weighed) == pytest.approx(3.0)


def test_the_newest_word_of_the_person_on_a_memory_stands_alone() -> None:
    said = [piece("owner_useful", n, memory=7, weight=None) for n in range(9)]
    said.append(piece("owner_wrong", 9, memory=7, weight=None))
    folded, weighed = fold(2.0, said, NOW)
    assert (len(weighed), folded.f) == (1, 3.0)


def test_one_foreign_owner_moves_an_author_by_its_share_in_half_a_year() -> None:
    voices = [
        piece("confirmed", n, group=n, owner=b"o", weight=0.9, at_ms=NOW + n) for n in range(5)
    ]
    _folded, weighed = fold(0.0, voices, NOW, flow=9)
    assert [round(w.p, 3) for w in weighed] == [0.9, 0.6, 0, 0, 0]
    later = piece("confirmed", 9, group=9, owner=b"o", weight=0.9, at_ms=NOW + 181 * DAY_MS)
    assert fold(0.0, [*voices, later], NOW, flow=9)[1][-1].p == 0.9


def test_a_foreign_owner_confirms_a_cluster_once() -> None:
    voices = [piece("confirmed", n, group=1, owner=b"o", weight=0.6) for n in range(3)]
    assert [w.p for w in fold(0.0, voices, NOW, flow=9)[1]] == [0.6, 0, 0]


def test_voices_below_half_move_nobody() -> None:
    voices = [piece("confirmed", n, group=n, owner=bytes([n]), weight=0.49) for n in range(50)]
    assert trust(voices, flow=50) == pytest.approx(0.3)


@pytest.mark.attack
@pytest.mark.parametrize(("flow", "most"), [(0, 0.30), (1, 0.50), (2, 0.60), (3, 0.671)])
def test_a_hundred_voices_reach_as_far_as_the_flow_behind_them(flow: int, most: float) -> None:
    voices = [
        piece("confirmed", n, group=n, owner=n.to_bytes(2, "big"), weight=0.97) for n in range(100)
    ]
    assert trust(voices, flow=flow) <= most


def test_five_honest_confirmers_make_a_stranger_trusted() -> None:
    voices = [
        piece("confirmed", 2 * n + k, group=2 * n + k, owner=bytes([n]), weight=0.75)
        for n in range(5)
        for k in range(2)
    ]
    assert trust(voices, flow=5) == pytest.approx(0.757, abs=0.005)


def test_bad_mouthing_is_bounded_like_praise() -> None:
    voices = [
        piece("refuted", n, group=n, owner=n.to_bytes(2, "big"), weight=0.97) for n in range(100)
    ]
    folded, _ = fold(16.0, voices, NOW, flow_against=1)
    assert folded.f <= 1.5
    assert trust(voices, 16.0, flow_against=1) > 0.5


def test_time_forgets_merits_to_the_start_and_faults_more_slowly() -> None:
    folded, _ = fold(2.0, [piece("owner_useful"), piece("agent_wrong", 1)], NOW)
    s, f = folded.s, folded.f
    base = 2 * 0.7
    folded, _ = fold(2.0, [piece("owner_useful"), piece("agent_wrong", 1)], NOW + 180 * DAY_MS)
    assert folded.s == pytest.approx(base + (s - base) / 2, rel=0.01)
    assert folded.f == pytest.approx(f * 2**-0.5, rel=0.01)


def test_a_fallen_author_does_not_get_its_start_back_by_waiting() -> None:
    bad = [piece("agent_harmful", n, memory=n) for n in range(12)]
    fallen, _ = fold(16.0, bad, NOW)
    rested, _ = fold(16.0, bad, NOW + 5 * 360 * DAY_MS)
    assert fallen.trust() < 0.2
    assert rested.trust() < 0.5


@pytest.mark.parametrize("start", ["own", "invited", "other"])
def test_from_the_top_an_author_falls_below_half_in_a_dozen_faults(start: str) -> None:
    good = [piece("owner_useful", n, memory=n, weight=None) for n in range(40)]
    for count in range(1, 40):
        bad = [piece("agent_wrong", 100 + n, memory=100 + n, voter="a") for n in range(count)]
        if trust([*good, *bad], start_s(start)) < 0.5:
            break
    assert 3 <= count <= 13


# ---- in the daemon


async def author_of(world: World, agent: str) -> tuple[float, str]:
    ((found, state),) = await world.sql(
        "SELECT DISTINCT trust, state FROM author WHERE agent = ?", agent
    )
    return float(str(found)), str(state)


async def observed(world: World, agent: str, *kinds: EvidenceKind) -> None:
    ((row,),) = await world.sql("SELECT min(id) FROM author WHERE agent = ?", agent)
    for kind in kinds:
        world.clock.ms += DAY_MS
        at_ms = world.clock.ms
        await world.replica.transact(
            lambda txn, kind=kind, at_ms=at_ms: observe(
                txn, author=int(str(row)), kind=kind, at_ms=at_ms
            )
        )


async def foreign(
    world: World, seed: int, text: str = "green tea", relation: str = "invited", **fields: object
) -> tuple[Peer, PlainRecord]:
    peer = Peer(world.clock, seed)
    record = peer.write(HOME, note_body(text, **{"agent": f"bob{seed}", **fields}), relation)
    await world.replica.admit(HOME, [record])
    return peer, record


async def test_what_the_daemon_observes_moves_the_author_and_its_notes(world: World) -> None:
    await world.say("the port is 8080")
    before, _ = await author_of(world, "claude")
    await observed(world, "claude", "conflict_lost", "quick_erase", "conflict_lost")
    after, _ = await author_of(world, "claude")
    assert after < before
    assert (await world.find("port")).hits[0].trust == pytest.approx(after, abs=0.001)


async def test_reading_writing_and_age_move_nothing(world: World) -> None:
    for n in range(20):
        await world.say(f"fact {n}")
        await world.find(f"fact {n}")
    before, _ = await author_of(world, "claude")
    world.clock.ms += 400 * DAY_MS
    await observed(world, "claude", "stale")
    assert (await author_of(world, "claude"))[0] == before == pytest.approx(0.86)


async def test_an_agents_verdict_on_anothers_note_moves_its_author(world: World) -> None:
    note = await world.say("the port is 8080", world.agent("codex"))
    done = await world.desk.feedback(world.agent(), note, "useful", "it was")
    assert done.author_after > done.author_before
    assert done.why == "the author gained trust"
    for _n in range(12):
        world.clock.ms += DAY_MS
        done = await world.desk.feedback(world.agent(), note, "harmful")
    assert done.trust_after < 0.45
    ((tier,),) = await world.sql("SELECT tier FROM memory")
    assert tier != MAIN
    await world.check_index()


@pytest.mark.attack
async def test_an_agent_that_praises_its_own_notes_gains_nothing(world: World) -> None:
    note = await world.say("I am right", world.agent("codex"))
    done = await world.desk.feedback(world.agent("codex"), note, "useful")
    assert done.author_after == done.author_before
    assert done.why == "noted, counts nothing: its own words"


@pytest.mark.attack
async def test_two_agents_of_a_foreign_owner_praise_each_other_in_vain(world: World) -> None:
    peer, record = await foreign(world, 7)
    for agent in ("carol", "dave"):
        peer_says = VerdictBody(agent, record.id, "useful", "outcome", None, None)
        await world.replica.admit(HOME, [peer.write(HOME, peer_says, "invited")])
    found, _ = await author_of(world, "bob7")
    assert found == pytest.approx(0.533, abs=0.001)
    other = Peer(world.clock, 9, owner=record.owner)
    said = VerdictBody("erin", record.id, "useful", "outcome", None, None)
    await world.replica.admit(HOME, [other.write(HOME, said, "invited")])
    assert (await author_of(world, "bob7"))[0] == found


@pytest.mark.attack
async def test_new_names_of_an_owner_begin_where_the_owner_is(world: World) -> None:
    peer, record = await foreign(world, 7, relation="other")
    for n in range(4):
        world.clock.ms += DAY_MS
        await world.desk.feedback(world.agent(f"a{n}"), record.id.hex(), "harmful")
    fallen, _ = await author_of(world, "bob7")
    assert fallen < 0.2
    fresh = peer.write(HOME, note_body("trust me now", agent="newname"), "other")
    await world.replica.admit(HOME, [fresh])
    assert (await author_of(world, "newname"))[0] == pytest.approx(fallen, abs=0.01)
    device = Peer(world.clock, 8, owner=record.owner)
    await world.replica.admit(HOME, [device.write(HOME, note_body("and me", agent="box"), "other")])
    assert (await author_of(world, "box"))[0] == pytest.approx(fallen, abs=0.01)


async def test_a_subject_is_one_in_all_groups(world: World) -> None:
    peer, record = await foreign(world, 7)
    await world.replica.admit(
        TEAM, [peer.write(TEAM, note_body("tea at work", agent="bob7"), "invited")]
    )
    await world.desk.feedback(world.person, record.id.hex(), "harmful")
    found = await world.sql("SELECT DISTINCT trust FROM author WHERE agent = 'bob7'")
    assert len(found) == 1
    assert float(str(found[0][0])) < 0.5


async def test_verdicts_wait_for_their_target(world: World) -> None:
    peer, judge = Peer(world.clock, 7), Peer(world.clock, 8)
    note = peer.write(HOME, note_body("late"), "invited")
    said = judge.write(
        HOME, VerdictBody("judge", note.id, "harmful", "outcome", None, None), "invited"
    )
    await world.replica.admit(HOME, [said])
    await world.replica.admit(HOME, [note])
    late, _ = await author_of(world, "bob")
    assert late < 0.53


async def test_a_voice_counts_by_how_far_its_speaker_is_trusted(world: World) -> None:
    _, record = await foreign(world, 7, relation="other")
    for seed in (8, 9):
        judge = Peer(world.clock, seed)
        said = VerdictBody("judge", record.id, "useful", "evidence", b"e" * 32, None)
        await world.replica.admit(HOME, [judge.write(HOME, said, "invited")])
    confirmed, _ = await author_of(world, "bob7")
    assert confirmed == pytest.approx((1.2 + 2 * 0.533) / (4 + 2 * 0.533), abs=0.01)
    hit = (await world.memory.get(world.person, [record.id.hex()])).hits[0]
    assert hit.trust == pytest.approx(0.5, abs=0.001)  # two independent owners vouch for it
    assert hit.confirmations == 2
    (found,) = (await world.find("tea", explain=True)).hits
    assert found.explain is not None
    assert found.explain.limited_by == "vouched"
    ((backed, confirmations),) = await world.sql(
        "SELECT backed, confirmations FROM memory WHERE backed = 1"
    )
    assert (backed, confirmations) == (1, 2)
    # A judge whose word is no longer worth anything takes it along.
    await world.desk.distrust(world.person, "judge@" + await _device_id(world, 8))
    await world.desk.settle()
    assert (await author_of(world, "bob7"))[0] < confirmed
    assert await world.sql("SELECT backed FROM memory WHERE backed = 1") == []


async def _device_id(world: World, seed: int) -> str:
    return Peer(world.clock, seed).sealer.device.hex()


@pytest.mark.parametrize(("read", "gains"), [(False, True), (True, False)])
async def test_own_agents_confirm_only_what_they_had_not_read(
    world: World, read: bool, gains: bool
) -> None:
    _, record = await foreign(world, 7, relation="other")
    mine = await world.say("green tea it is")
    if read:
        assert (await world.memory.get(world.agent(), [record.id.hex()])).hits
    await world.replica.transact(
        lambda txn: (
            world.replica.append_in(txn, HOME, [_link("claude", bytes.fromhex(mine), record.id)])
            and None
        )
    )
    assert (await author_of(world, "bob7"))[0] == pytest.approx(0.3)
    await world.desk.settle()
    assert await world.sql("SELECT seen FROM evidence") == [("yes" if read else "no",)]
    assert ((await author_of(world, "bob7"))[0] > 0.31) == gains


async def test_without_a_log_an_own_agent_counts_as_having_read_it(world: World) -> None:
    _, record = await foreign(world, 7, relation="other")
    mine = await world.say("green tea it is")
    await world.replica.transact(
        lambda txn: world.replica.append_in(
            txn, HOME, [_link("claude", bytes.fromhex(mine), record.id)]
        )
    )
    blind = TrustDesk(world.db, world.replica, world.clock, world.sealer.device)
    await blind.settle()
    assert await world.sql("SELECT seen FROM evidence") == [("yes",)]


async def test_a_note_taken_back_after_anothers_use_is_held_against_its_author(
    world: World,
) -> None:
    unseen = await world.say("the port is 8080", world.agent("codex"))
    await world.memory.forget(world.agent("codex"), [unseen])
    await world.desk.settle()
    assert (await author_of(world, "codex"))[0] == pytest.approx(0.86)
    seen = await world.say("the host is green", world.agent("codex"))
    assert (await world.find("host green", world.agent("claude"))).hits
    await world.memory.forget(world.agent("codex"), [seen])
    await world.desk.settle()
    fallen, _ = await author_of(world, "codex")
    assert fallen < 0.86
    replaced = await world.say("the disk is red", world.agent("codex"))
    assert (await world.find("disk red", world.agent("claude"))).hits
    await world.say("the disk is blue", world.agent("codex"), supersedes=[replaced])
    await world.memory.forget(world.agent("codex"), [replaced])
    await world.desk.settle()
    assert (await author_of(world, "codex"))[0] == fallen


def _link(agent: str, src: bytes, dst: bytes):  # type: ignore[no-untyped-def]
    from memory.records.writing import entry_draft

    return entry_draft(LinkBody(agent, src, dst, "confirms", None))


@pytest.mark.attack
async def test_a_confirmation_derived_from_its_target_repeats_it(world: World) -> None:
    _, record = await foreign(world, 7, relation="other")
    parrot = Peer(world.clock, 8)
    copy = parrot.write(HOME, note_body("tea, green", derived_from=[record.id]), "invited")
    own = parrot.write(HOME, note_body("I measured it: green"), "invited")
    await world.replica.admit(HOME, [copy, own])
    link = parrot.write(HOME, LinkBody("bob", copy.id, record.id, "confirms", None), "invited")
    await world.replica.admit(HOME, [link])
    assert (await author_of(world, "bob7"))[0] == pytest.approx(0.3)
    link = parrot.write(HOME, LinkBody("bob", own.id, record.id, "confirms", None), "invited")
    await world.replica.admit(HOME, [link])
    assert (await author_of(world, "bob7"))[0] > 0.3


@pytest.mark.attack
@pytest.mark.parametrize(("traitors", "most"), [(1, 0.49), (2, 0.60), (3, 0.671)])
async def test_sybils_behind_members_move_a_stranger_by_the_members_shares(
    world: World, traitors: int, most: float
) -> None:
    """Invited members endorse forty made-up owners, and all of them praise one stranger."""
    _, record = await foreign(world, 7, relation="other")
    members = [Peer(world.clock, 100 + n) for n in range(traitors)]
    praise = VerdictBody("x", record.id, "useful", "evidence", b"e" * 32, None)
    said = [member.write(HOME, praise, "invited") for member in members]
    for seed in range(200, 240):
        sybil = Peer(world.clock, seed)
        note = sybil.write(HOME, note_body(f"hello {seed}", agent="s"), "other")
        endorsement = EndorseBody("x", sybil.sealer.device, 100, None)
        said += [note, *(member.write(HOME, endorsement, "invited") for member in members)]
        said.append(sybil.write(HOME, praise, "other"))
    for at in range(0, len(said), 50):
        await world.replica.admit(HOME, said[at : at + 50])
    await world.desk.settle()
    found, _ = await author_of(world, "bob7")
    assert 0.3 < found <= most
    sybils = await world.sql("SELECT max(trust) FROM author WHERE agent = 's'")
    assert float(str(sybils[0][0])) <= most
    ((backed,),) = await world.sql("SELECT max(backed) FROM memory")
    assert backed == int(traitors > 1)  # two compromised members are two voices


async def test_a_forked_log_bans_its_device_and_no_other(world: World) -> None:
    peer, record = await foreign(world, 7)
    other, kept = await foreign(world, 8, "black tea")
    del other
    log = peer.sealer.log(HOME, 1)
    await world.replica.settle(HOME, fork=[(log, 5, record.id, b"z" * 32)])
    assert await author_of(world, "bob7") == (0.0, "banned")
    assert [hit.id for hit in (await world.find("tea")).hits] == [kept.id.hex()]
    fresh = peer.write(HOME, note_body("again", agent="another"), "invited")
    await world.replica.admit(HOME, [fresh])
    assert await author_of(world, "another") == (0.0, "banned")


async def test_the_events_of_a_fall_are_told_once(world: World) -> None:
    told: list[tuple[str, str]] = []
    world.desk.subscribe(lambda event: told.append((event.name, event.agent)))
    _, record = await foreign(world, 7)
    for agent in ("a", "b", "c"):
        await world.desk.feedback(world.agent(agent), record.id.hex(), "harmful")
    assert told == [("changed", "bob7"), ("alarm", "bob7")]


async def test_endorsing_and_distrusting_an_owner(world: World) -> None:
    peer, record = await foreign(world, 7, relation="other")
    name = peer.sealer.device.hex()[:12]
    done = await world.desk.endorse(world.person, name)
    assert (done.trust_before, done.trust_after) == (0.3, 0.6)
    assert (await world.find("tea")).hits[0].id == record.id.hex()
    done = await world.desk.distrust(world.person, name)
    assert done.trust_after == 0.0
    ((tier,),) = await world.sql("SELECT tier FROM memory")
    assert tier == NONE
    assert (await world.desk.endorse(world.person, name)).trust_after == 0.6
    assert (await world.find("tea")).hits


async def test_an_endorsement_ends_with_its_time(world: World) -> None:
    peer, _ = await foreign(world, 7, relation="other")
    name = peer.sealer.device.hex()[:12]
    await world.desk.endorse(world.person, name, 90, world.clock.ms + DAY_MS)
    world.clock.ms += 2 * DAY_MS
    ((row,),) = [(r,) for r in await world.desk.show(name)]
    assert row.trust == 0.3


async def test_whom_nobody_knows_is_refused_with_the_nearest_name(world: World) -> None:
    await foreign(world, 7)
    with pytest.raises(RefusedError, match="bob7"):
        await world.desk.explain(world.person, "bobb7")
    await world.say("x")
    with pytest.raises(RefusedError, match="your own"):
        await world.desk.distrust(world.person, "claude")


async def test_an_explanation_names_each_piece_and_what_held_it_down(world: World) -> None:
    _, record = await foreign(world, 7)
    await world.desk.feedback(world.agent(), record.id.hex(), "useful")
    await world.desk.feedback(world.agent(), record.id.hex(), "useful")
    (found,) = await world.desk.explain(world.person, "bob7")
    assert [(row.kind, row.p, row.why) for row in found.evidence] == [
        ("agent_useful", 1.5, ""),
        ("agent_useful", 0.0, "said that already today"),
    ]
    assert found.evidence[0].by.startswith("claude@")
    assert found.evidence[0].memory == record.id.hex()
    assert (found.start, found.s, found.limited_by) == (2.0, 3.5, "evidence")


# ---- quarantine


async def test_the_person_releases_and_rejects_what_is_quarantined(world: World) -> None:
    _, policy = await foreign(world, 7, "always deploy on friday", kind="policy")
    peer, low = await foreign(world, 8, "drink bleach", relation="other")
    del peer
    for agent in ("a", "b", "c"):
        await world.desk.feedback(world.agent(agent), low.id.hex(), "harmful")
    listed = await world.desk.quarantine_list(world.person)
    assert {(item.hit.id, tuple(item.why)) for item in listed} == {
        (policy.id.hex(), ("policy",)),
        (low.id.hex(), ("trust",)),
    }
    (done,) = await world.desk.quarantine_release(world.person, [policy.id.hex()])
    assert (done.status, done.trust >= 0.5) == ("shown", True)
    (done,) = await world.desk.quarantine_reject(world.person, [low.id.hex()])
    assert done.status == "hidden"
    assert await world.desk.quarantine_list(world.person) == []
    assert (await world.memory.get(world.person, [low.id.hex()])).hits == []


async def test_own_notes_and_banned_authors_are_not_reviewed(world: World) -> None:
    mine = await world.say("mine")
    with pytest.raises(RefusedError, match="own side"):
        await world.desk.quarantine_release(world.person, [mine])
    peer, record = await foreign(world, 7)
    log = peer.sealer.log(HOME, 1)
    await world.replica.settle(HOME, fork=[(log, 5, record.id, b"z" * 32)])
    with pytest.raises(RefusedError, match="banned"):
        await world.desk.quarantine_release(world.person, [record.id.hex()])


def test_tiers_by_trust() -> None:
    assert [tier_of(t) for t in (0.6, 0.3, 0.1)] == [MAIN, LOW, NONE]


# ---- order and refolding


def test_any_order_of_delivery_folds_alike() -> None:
    rng = random.Random(3)
    kinds = ["owner_useful", "agent_wrong", "confirmed", "refuted", "secret", "agent_useful"]
    pieces = [
        piece(
            rng.choice(kinds),
            n,
            memory=n % 5,
            group=n % 5,
            voter=f"v{n % 3}",
            owner=b"o%d" % (n % 4),
            weight=0.7,
        )
        for n in range(60)
    ]
    wanted, _ = fold(2.0, pieces, NOW + DAY_MS, flow=2, flow_against=2)
    for _ in range(20):
        rng.shuffle(pieces)
        found, _ = fold(2.0, pieces, NOW + DAY_MS, flow=2, flow_against=2)
        assert (found.s, found.f) == (wanted.s, wanted.f)


async def test_whoever_fills_a_group_beyond_its_share_has_it_held_against(world: World) -> None:
    greedy, modest = Peer(world.clock, 7), Peer(world.clock, 8)
    many = [greedy.write(HOME, note_body(f"n{n}", agent="greedy"), "invited") for n in range(9)]
    one = modest.write(HOME, note_body("one", agent="modest"), "invited")
    await world.replica.admit(HOME, [*many, one])
    for _ in range(9):
        await world.desk.quota_reached(HOME, greedy.sealer.device)
        await world.desk.quota_reached(HOME, modest.sealer.device)
    assert await world.sql("SELECT count(*) FROM evidence") == [(3,)]
    assert (await author_of(world, "greedy"))[0] < 0.45
    assert (await author_of(world, "modest"))[0] == pytest.approx(0.533, abs=0.001)


async def test_a_log_that_begins_far_out_hides_nobody_who_fills_a_group(world: World) -> None:
    greedy, modest = Peer(world.clock, 7), Peer(world.clock, 8)
    many = [greedy.write(HOME, note_body(f"n{n}", agent="greedy"), "invited") for n in range(9)]
    one = modest.write(HOME, note_body("one", agent="modest"), "invited")
    await world.replica.admit(HOME, [*many, one])
    far = "UPDATE log SET max_seq = 1 << 62 WHERE author <> ?"
    await world.db.write(lambda c: c.execute(far, (greedy.sealer.device,)).fetchall())
    await world.desk.quota_reached(HOME, greedy.sealer.device)
    assert await world.sql("SELECT count(*) FROM evidence") == [(1,)]


async def test_where_we_may_only_read_a_verdict_goes_to_our_own_devices(world: World) -> None:
    peer = Peer(world.clock, 7)
    note = peer.write(TEAM, note_body("tea at work"), "invited")
    await world.replica.admit(TEAM, [note])
    reader = TrustDesk(
        world.db,
        world.replica,
        world.clock,
        world.sealer.device,
        may_write=lambda scope: "/" not in scope,
    )
    await reader.feedback(world.agent(), note.id.hex(), "useful")
    ((group,),) = await world.sql(
        "SELECT g.name FROM evidence e JOIN record r ON r.n = e.rec JOIN grp g ON g.n = r.grp"
    )
    assert group == "home"
    assert (await author_of(world, "bob"))[0] > 0.54


async def test_a_database_of_the_first_version_keeps_its_early_verdicts(world: World) -> None:
    """Bodies that an older version kept for later are projected at the next start."""
    _, record = await foreign(world, 7)
    judge = Peer(world.clock, 8)
    body = VerdictBody("judge", record.id, "harmful", "outcome", None, None)
    said = judge.write(HOME, body, "invited")
    await world.replica.admit(HOME, [judge.write(HOME, note_body("hi"), "invited"), said])

    def as_kept(connection: apsw.Connection) -> None:
        connection.execute("DELETE FROM evidence")
        connection.execute(
            "INSERT INTO kept SELECT n, 3, 'later', ? FROM record WHERE id = ?",
            (encode_body(body), said.id),
        )

    await world.db.write(as_kept)
    await world.desk.catch_up()
    assert await world.sql("SELECT count(*) FROM kept") == [(0,)]
    assert (await author_of(world, "bob7"))[0] < 0.53
