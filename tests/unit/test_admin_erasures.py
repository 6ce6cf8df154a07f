"""An admin has others' records erased: hidden at once, gone after a day, undone by a limit."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.identity import Identity
from p2p.replication.erasing import CONFIRMED_AT_A_TIME, WINDOW_MS
from p2p.replication.erasures import views
from p2p.replication.events import GroupError
from p2p.replication.ops import Kind, Limit, Role, encode_payload
from tests.helpers.mesh import Mesh, nodes, pair_up, play, wait_until
from tests.unit.test_admission import Bench, bench
from tests.unit.test_erasures import body_of, erase

if TYPE_CHECKING:
    from p2p.replication.record import Record
    from tests.helpers.mesh import Peer

HOUR_MS = 3_600_000
"""These worlds' clock is the real one and what the test adds: much more than a test takes."""


def pass_day(*peers: Peer, ms: int = WINDOW_MS) -> None:
    """The wall clocks of all go on; they keep house soon after."""
    for peer in peers:
        peer.env.offset_ms += ms


async def with_admin(role: Role = Role.WRITE) -> tuple[Bench, Identity]:
    """A founder's node, a member (Bob) and an admin of the second rank (Carol)."""
    b = await bench(role)
    carol = Identity.from_seed(b"c" * 32)
    await b.grant(carol.id, Role.ADMIN)
    return b, carol


async def pass_time(b: Bench, ms: int) -> None:
    """Let time pass at Alice's and have her keep house."""
    b.alice.env.offset_ms += ms
    core = b.alice.replication._core
    async with core.keeper.turn(b.group):
        await core.keeper.do_duties(b.group)


async def ordered(b: Bench, carol: Identity) -> tuple[Record, Record]:
    """A record of Bob's, and Carol's word that it has to go."""
    target = b.pen().write(body=b"bob's")
    await b.admit([target])
    word = b.pen(carol).write(Kind.ERASE, erase(target.id))
    await b.admit([word])
    return target, word


def in_set(b: Bench, record: Record) -> bool:
    return record.id in b.alice.store.index_now(b.group_id, 1).packed


# --- the day ------------------------------------------------------------------------------------


async def test_it_is_hidden_at_once_and_goes_after_a_day() -> None:
    b, carol = await with_admin()
    target, _ = await ordered(b, carol)
    assert b.alice.texts(b.group_id) == []
    assert body_of(b, target.id) is not None
    assert in_set(b, target)
    (view,) = views(b.group)
    left_ms = view.hidden_until_ms - b.alice.env.wall_ms()
    assert WINDOW_MS - HOUR_MS < left_ms <= WINDOW_MS
    await pass_time(b, WINDOW_MS - HOUR_MS)
    assert body_of(b, target.id) is not None
    await pass_time(b, HOUR_MS)
    assert body_of(b, target.id) is None
    assert b.state(target) == "stub"
    assert in_set(b, target)
    assert views(b.group)[0].hidden_until_ms == 0
    # For good: also if the admin is taken out afterwards, and for what is offered again.
    await b.alice.replication.membership.remove(b.group_id, carol.id, 0)
    result = await b.admit([target])
    assert (result.duplicate, b.state(target)) == (1, "stub")


async def test_the_day_is_by_our_clock_whatever_the_records_own_time_says() -> None:
    b, carol = await with_admin()
    target = b.pen().write(body=b"bob's")
    await b.admit([target])
    pen = b.pen(carol)
    early = pen.authority().hlc_max + 1  # as early as its own citations allow
    b.alice.env.offset_ms += 30 * WINDOW_MS
    await b.admit([pen.write(Kind.ERASE, erase(target.id), hlc=early)])
    await pass_time(b, 0)
    assert body_of(b, target.id) is not None
    await pass_time(b, WINDOW_MS)
    assert body_of(b, target.id) is None


async def test_the_day_goes_on_over_a_restart() -> None:
    b, carol = await with_admin()
    target, _ = await ordered(b, carol)
    await pass_time(b, WINDOW_MS // 2)
    b.alice.build()
    await b.alice.replication.load()
    assert b.alice.texts(b.group_id) == []
    await pass_time(b, WINDOW_MS // 2 - HOUR_MS)
    assert body_of(b, target.id) is not None
    await pass_time(b, HOUR_MS)
    assert body_of(b, target.id) is None


async def test_a_crash_between_the_word_and_the_hiding_is_made_up_for() -> None:
    b, carol = await with_admin()
    target, word = await ordered(b, carol)
    # The state of a store that has the erase record and nothing of its effect.
    b.alice.disk.rows[target.id].state = "live"
    for ident in (target.id, word.id):
        b.alice.disk.local.pop(("hold", (ident,)))
    b.alice.build()
    await b.alice.replication.load()
    assert b.alice.texts(b.group_id) == []
    await pass_time(b, WINDOW_MS)
    assert body_of(b, target.id) is None


async def test_what_comes_after_the_day_is_never_taken() -> None:
    b, carol = await with_admin()
    pen = b.pen()
    target = pen.write(body=b"late")
    await b.admit([b.pen(carol).write(Kind.ERASE, erase(target.id))])
    await pass_time(b, WINDOW_MS)
    result = await b.admit([target])
    assert (result.stored, b.state(target)) == (1, "stub")
    assert body_of(b, target.id) is None


async def test_after_the_day_the_word_outlives_its_admin() -> None:
    b, carol = await with_admin()
    target = b.pen().write(body=b"late")
    await b.admit([b.pen(carol).write(Kind.ERASE, erase(target.id))])
    await pass_time(b, WINDOW_MS)
    await b.alice.replication.membership.remove(b.group_id, carol.id, 0)
    for restarted in (False, True):
        if restarted:
            b.alice.build()
            await b.alice.replication.load()
        await pass_time(b, 0)
        assert list(b.group.windows.values()) == [0]
    await b.admit([target])
    assert (b.state(target), body_of(b, target.id)) == ("stub", None)


async def test_what_comes_within_the_day_is_hidden_and_goes_with_it() -> None:
    b, carol = await with_admin()
    target = b.pen().write(body=b"late")
    await b.admit([b.pen(carol).write(Kind.ERASE, erase(target.id))])
    await b.admit([target])
    assert b.alice.texts(b.group_id) == []
    assert in_set(b, target)
    await pass_time(b, WINDOW_MS)
    assert body_of(b, target.id) is None


async def test_the_author_need_not_wait_for_the_admin() -> None:
    b, carol = await with_admin()
    pen = b.pen()
    target = pen.write(body=b"bob's")
    await b.admit([target])
    await b.admit([b.pen(carol).write(Kind.ERASE, erase(target.id))])
    await b.admit([pen.write(Kind.ERASE, erase(target.id))])
    assert (body_of(b, target.id), b.state(target)) == (None, "stub")
    assert in_set(b, target)


# --- the objection ------------------------------------------------------------------------------


async def test_a_limit_in_time_undoes_it() -> None:
    b, carol = await with_admin()
    before_ms = b.alice.env.wall_ms()
    b.alice.env.offset_ms += 1000
    target, _ = await ordered(b, carol)
    await b.alice.replication.membership.remove(b.group_id, carol.id, before_ms)
    assert b.alice.texts(b.group_id) == ["bob's"]
    assert b.alice.named("erasure.undone")[0].data["records"] == 1
    await pass_time(b, 2 * WINDOW_MS)
    assert b.alice.texts(b.group_id) == ["bob's"]
    assert (b.state(target), in_set(b, target)) == ("live", True)
    assert views(b.group) == []


async def test_a_limit_that_keeps_the_word_does_not() -> None:
    b, carol = await with_admin()
    target, _ = await ordered(b, carol)
    await b.alice.replication.membership.remove(b.group_id, carol.id)
    assert b.alice.texts(b.group_id) == []
    await pass_time(b, WINDOW_MS)
    assert body_of(b, target.id) is None


async def test_an_author_that_is_taken_out_takes_it_out_of_the_set() -> None:
    b, carol = await with_admin()
    target, _ = await ordered(b, carol)
    await b.alice.replication.membership.remove(b.group_id, b.bob.id, 0)
    assert not in_set(b, target)
    assert b.group.hidden == set()
    await pass_time(b, WINDOW_MS)
    assert not in_set(b, target)
    assert b.alice.texts(b.group_id) == []
    assert body_of(b, target.id) is None


async def test_what_counts_again_is_hidden_again() -> None:
    b, carol = await with_admin()
    target, _ = await ordered(b, carol)
    dave = Identity.from_seed(b"d" * 32)
    await b.grant(dave.id, Role.ADMIN)
    # An equal of Carol's takes Bob out; then Alice takes that back with all else Dave did.
    before = b.pen(dave).heads()
    limit = encode_payload(Limit(b.bob.id, (), 10**9, 0))
    await b.admit([b.pen(dave).write(Kind.LIMIT, limit, auth=before)])
    assert not in_set(b, target)
    await b.alice.replication.membership.remove(b.group_id, dave.id, 0)
    assert in_set(b, target)
    assert b.alice.texts(b.group_id) == []
    await pass_time(b, WINDOW_MS)
    assert (b.state(target), body_of(b, target.id)) == ("stub", None)


async def test_other_limits_show_nothing_that_stays_announced() -> None:
    b, carol = await with_admin()
    dave = Identity.from_seed(b"d" * 32)
    await b.grant(dave.id, Role.WRITE)
    await ordered(b, carol)
    await b.alice.replication.membership.remove(b.group_id, dave.id, 0)  # judges all anew
    assert b.alice.texts(b.group_id) == []


# --- who may ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.RELAY, Role.READ, Role.WRITE])
async def test_who_is_no_admin_erases_nothing_of_others(role: Role) -> None:
    b = await bench()
    carol = Identity.from_seed(b"c" * 32)
    await b.grant(carol.id, role)
    target, _ = await ordered(b, carol)
    assert b.alice.texts(b.group_id) == ["bob's"]
    assert b.group.windows == {}
    await pass_time(b, WINDOW_MS)
    assert (b.state(target), body_of(b, target.id) is None) == ("live", False)


async def test_an_admin_erases_nothing_of_its_equals_and_seniors() -> None:
    b, carol = await with_admin(Role.ADMIN)
    target, _ = await ordered(b, carol)  # Bob is an admin of Carol's rank
    senior = await b.alice.write(b.group_id, "alice's")
    await b.admit([b.pen(carol, 88).write(Kind.ERASE, erase(senior))])
    await pass_time(b, WINDOW_MS)
    assert b.alice.texts(b.group_id) == ["alice's", "bob's"]
    assert b.state(target) == "live"


async def test_who_became_an_admin_later_has_not_erased_before() -> None:
    b = await bench()
    carol = Identity.from_seed(b"c" * 32)
    await b.grant(carol.id, Role.WRITE)
    await ordered(b, carol)
    await b.grant(carol.id, Role.ADMIN)
    await pass_time(b, WINDOW_MS)
    assert b.alice.texts(b.group_id) == ["bob's"]


async def test_an_expelled_admin_that_cites_old_heads_erases_nothing() -> None:
    b, carol = await with_admin()
    target = b.pen().write(body=b"bob's")
    await b.admit([target])
    pen = b.pen(carol)
    old = pen.heads()
    await b.alice.replication.membership.remove(b.group_id, carol.id)
    word = pen.write(Kind.ERASE, erase(target.id), auth=old)
    await b.admit([word])
    await pass_time(b, WINDOW_MS)
    assert b.alice.texts(b.group_id) == ["bob's"]


async def test_a_demoted_admin_erases_nothing_more() -> None:
    b, carol = await with_admin()
    target = b.pen().write(body=b"bob's")
    await b.admit([target])
    await b.alice.replication.membership.set_role(b.group_id, carol.id, Role.WRITE)
    old = b.pen(carol, 10**10)
    await b.admit([old.write(Kind.ERASE, erase(target.id))])
    await pass_time(b, WINDOW_MS)
    assert b.alice.texts(b.group_id) == ["bob's"]


async def test_an_admins_fork_does_not_erase() -> None:
    """A log that forks is void from there, so what was announced in it is undone."""
    b, carol = await with_admin()
    target = b.pen().write(body=b"bob's")
    await b.admit([target])
    pen = b.pen(carol)
    await b.admit([pen.write(Kind.ERASE, erase(target.id), seq=1, advance=False)])
    assert b.alice.texts(b.group_id) == []
    other = b.pen(incarnation=78).write(body=b"another")
    await b.admit([other])
    await b.admit([pen.write(Kind.ERASE, erase(other.id), seq=1)])
    core = b.alice.replication._core
    async with core.keeper.turn(b.group):
        assert await core.keeper.prove(b.group, all_of_it=True) == 1
    assert b.alice.texts(b.group_id) == ["another", "bob's"]
    await pass_time(b, WINDOW_MS)
    assert b.alice.texts(b.group_id) == ["another", "bob's"]


async def test_many_words_without_effect_do_not_keep_us_from_confirming() -> None:
    b = await bench()
    pen = b.pen()
    mine = await b.alice.write(b.group_id, "alice's")
    gone = pen.write(body=b"bob's")
    await b.admit([gone])
    idle = [pen.write(Kind.ERASE, erase(mine)) for _ in range(CONFIRMED_AT_A_TIME + 3)]
    for at in range(0, len(idle), 64):
        await b.admit(idle[at : at + 64])
    word = pen.write(Kind.ERASE, erase(gone.id))
    await b.admit([word])
    for _ in range(3):
        await pass_time(b, 0)
    told = {ident for ident, words in b.group.confirmations.items() if b.alice.id in words}
    assert told == {word.id}
    assert b.alice.texts(b.group_id) == ["alice's"]


# --- the way a person asks for it -----------------------------------------------------------------


async def test_an_admin_is_told_what_it_may_have_erased() -> None:
    b, carol = await with_admin()
    desk = b.alice.replication.membership
    own = await b.alice.write(b.group_id, "alice's")
    bobs, carols = b.pen().write(body=b"bob's"), b.pen(carol).write(body=b"carol's")
    await b.admit([bobs, carols])
    ids = [own, bobs.id, carols.id, bytes(32)]
    assert await desk.erasable(b.group_id, ids) == [bobs.id, carols.id]
    assert await desk.erase(b.group_id, ids) == sorted([bobs.id, carols.id])
    assert b.alice.texts(b.group_id) == ["alice's"]
    with pytest.raises(GroupError) as caught:
        await desk.erase(bytes(32), ids)
    assert caught.value.reason == "unknown_group"


def test_every_member_hides_erases_after_a_day_and_confirms() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob)
            invite = await alice.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            gone = await bob.write(group, "gone")
            await bob.write(group, "kept")
            everybody = (alice, bob, carol)
            for peer in everybody:
                await wait_until(lambda peer=peer: peer.texts(group) == ["gone", "kept"])  # type: ignore[misc]
            with pytest.raises(GroupError):
                await carol.replication.membership.erase(group, [gone])
            assert await alice.replication.membership.erase(group, [gone]) == [gone]
            for peer in everybody:
                await wait_until(lambda peer=peer: peer.texts(group) == ["kept"])  # type: ignore[misc]
            assert alice.roots(group) == bob.roots(group) == carol.roots(group)
            pass_day(*everybody, ms=WINDOW_MS // 2)
            await trio.sleep(120)
            assert all(peer.disk.rows[gone].envelope is not None for peer in everybody)
            (view,) = alice.replication.erasures(group)
            assert (view.confirmed, view.outstanding) == ((), tuple(sorted([bob.id, carol.id])))

            def confirmed(peer: Peer) -> list[bytes]:
                (view,) = peer.replication.erasures(group)
                return [word.member for word in view.confirmed]

            pass_day(*everybody, ms=WINDOW_MS // 2)
            both = sorted([bob.id, carol.id])
            for peer in everybody:
                await wait_until(lambda peer=peer: peer.disk.rows[gone].envelope is None)  # type: ignore[misc]
                await wait_until(lambda peer=peer: confirmed(peer) == both)  # type: ignore[misc]
            assert alice.roots(group) == bob.roots(group) == carol.roots(group)

    play(scene)


def test_a_machine_that_slept_for_a_year_hides_erases_and_confirms() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob, carol = mesh.peer("alice"), mesh.peer("bob"), mesh.peer("carol")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            async with carol.running():
                invite = await alice.replication.create_invite(group)
                await carol.replication.join(invite.ticket)
                gone = await bob.write(group, "gone")
                await wait_until(lambda: carol.texts(group) == ["gone"] == alice.texts(group))
            await alice.replication.membership.erase(group, [gone])
            await wait_until(lambda: bob.texts(group) == [])
            pass_day(alice, bob, carol)
            for peer in (alice, bob):
                await wait_until(lambda peer=peer: peer.disk.rows[gone].envelope is None)  # type: ignore[misc]
        pass_day(alice, bob, carol, ms=365 * WINDOW_MS)
        assert carol.disk.rows[gone].envelope is not None
        async with alice.running(), bob.running(), carol.running():
            await wait_until(lambda: carol.texts(group) == [])
            await wait_until(lambda: alice.roots(group) == carol.roots(group) == bob.roots(group))
            pass_day(alice, bob, carol)
            await wait_until(lambda: carol.disk.rows[gone].envelope is None)
            for peer in (alice, bob):
                assert peer.disk.rows[gone].envelope is None, "she did not bring it back"

            def outstanding() -> list[bytes]:
                (view,) = alice.replication.erasures(group)
                return list(view.outstanding)

            await wait_until(lambda: outstanding() == [])

    play(scene)


# --- any order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("undone", [False, True])
def test_the_order_of_arrival_changes_nothing(*, undone: bool) -> None:
    """Two targets, an admin's word on both, an author's on one, and a limit: every order."""

    async def scene() -> None:
        b, carol = await with_admin()
        image = copy.deepcopy(b.alice.disk)
        mine, hers = b.pen(), b.pen(carol)
        limit = b.pen(b.alice.identity, 10**9)
        kept, both = mine.write(body=b"kept"), mine.write(body=b"both")
        records = [
            kept,
            both,
            hers.write(Kind.ERASE, erase(kept.id, both.id)),
            mine.write(Kind.ERASE, erase(both.id)),
        ]
        if undone:
            body = encode_payload(Limit(carol.id, (), 10**9, 0))
            records.append(limit.write(Kind.LIMIT, body))
        seen = 0
        for order in itertools.permutations(records):
            world = Bench(
                dataclasses.replace(b.alice, disk=copy.deepcopy(image)), b.group_id, b.bob
            )
            world.alice.build()
            await world.alice.replication.load()
            for record in order:
                result = await world.admit([record])
                assert (result.stored, result.refused) == (1, 0)
            shown = ["kept"] if undone else []
            assert world.alice.texts(b.group_id) == shown
            assert (world.state(both), body_of(world, both.id)) == ("stub", None)
            assert (body_of(world, kept.id) is None, in_set(world, kept)) == (False, True)
            core = world.alice.replication._core
            world.alice.env.offset_ms += WINDOW_MS
            async with core.keeper.turn(world.group):
                await core.keeper.do_duties(world.group)
            assert world.alice.texts(b.group_id) == shown
            assert world.state(kept) == ("live" if undone else "stub")
            assert in_set(world, kept)
            assert in_set(world, both)
            world.alice.env.offset_ms -= WINDOW_MS
            seen += 1
        assert seen == (120 if undone else 24)

    play(scene)
