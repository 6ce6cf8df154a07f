"""Erase records: who may have a body gone, and that it stays gone on every replica."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import trio

from p2p.identity import Identity
from p2p.replication.erasures import views
from p2p.replication.ops import ERASE_MAX, Erase, EraseAck, Kind, Role, encode_payload
from tests.helpers.mesh import Mesh, nodes, pair_up, play, wait_until
from tests.unit.test_admission import Bench, bench

if TYPE_CHECKING:
    from tests.helpers.mesh import Peer

HERE = bytes(32)


def erase(*ids: bytes) -> bytes:
    """The payload of an erase record."""
    return encode_payload(Erase(tuple(sorted(ids)), 0))


def body_of(b: Bench, ident: bytes) -> object:
    """The body on Alice's disk, in any form."""
    row = b.alice.disk.rows[ident]
    return row.envelope or row.plain


# --- authority ----------------------------------------------------------------------------------


async def test_an_author_erases_at_once() -> None:
    b = await bench()
    pen = b.pen()
    kept, gone = pen.write(body=b"kept"), pen.write(body=b"gone")
    await b.admit([kept, gone])
    await b.admit([pen.write(Kind.ERASE, erase(gone.id))])
    assert (b.state(kept), b.state(gone)) == ("live", "stub")
    assert body_of(b, gone.id) is None
    assert body_of(b, kept.id) is not None
    (event,) = b.alice.named("erasure.progress")
    assert event.data["records"] == 1


async def test_another_members_erase_record_is_kept_and_has_no_effect() -> None:
    b = await bench()
    carol = Identity.from_seed(b"c" * 32)
    await b.grant(carol.id, Role.WRITE)
    target = b.pen().write(body=b"mine")
    await b.admit([target])
    theirs = b.pen(carol).write(Kind.ERASE, erase(target.id))
    result = await b.admit([theirs])
    assert (result.stored, result.refused) == (1, 0)
    assert b.state(target) == "live"
    assert body_of(b, target.id) is not None


async def test_an_expelled_authors_erase_record_has_no_effect() -> None:
    b = await bench()
    pen = b.pen()
    target = pen.write(body=b"stays")
    await b.admit([target])
    stranger = b.pen(Identity.from_seed(b"s" * 32)).write(Kind.ERASE, erase(target.id))
    await b.admit([stranger])
    assert b.reasons() == ["stranger"]
    assert b.state(target) == "live"


async def test_control_records_and_other_groups_are_out_of_an_erasures_reach() -> None:
    b = await bench()
    pen = b.pen()
    named = pen.write(Kind.ERASE, erase(HERE))
    await b.admit([named])
    await b.admit([pen.write(Kind.ERASE, erase(named.id))])
    assert body_of(b, named.id) is not None
    other = (await b.alice.replication.create_group("other")).group
    elsewhere = await b.alice.write(other, "elsewhere")
    # Alice's own erase record in one group says nothing about what she wrote in another.
    core = b.alice.replication._core
    async with core.keeper.turn(b.group):
        await core.keeper.write(b.group, [(Kind.ERASE, Erase((elsewhere,), 0))])
    assert b.alice.texts(other) == ["elsewhere"]


async def test_an_erasure_that_comes_before_its_target_meets_it_on_arrival() -> None:
    b = await bench()
    pen = b.pen()
    target = pen.write(body=b"late")
    await b.admit([pen.write(Kind.ERASE, erase(target.id))])
    result = await b.admit([target])
    assert result.stored == 1
    assert b.state(target) == "stub"
    assert body_of(b, target.id) is None
    assert target.id in b.alice.disk.erased


async def test_the_same_arrival_order_within_one_frame() -> None:
    b = await bench()
    pen = b.pen()
    target = pen.write(body=b"together")
    await b.admit([target, pen.write(Kind.ERASE, erase(target.id))])
    assert b.state(target) == "stub"
    assert body_of(b, target.id) is None


async def test_an_offered_body_of_an_erased_record_is_a_duplicate() -> None:
    b = await bench()
    pen = b.pen()
    target = pen.write(body=b"again")
    await b.admit([target])
    await b.admit([pen.write(Kind.ERASE, erase(target.id))])
    for peer in (b"p" * 32, b"q" * 32):
        result = await b.admit([target], peer)
        assert (result.duplicate, result.refused) == (1, 0)
        assert body_of(b, target.id) is None


async def test_what_was_erased_here_alone_is_taken_as_a_header() -> None:
    """A restored image may lack a record whose id is erased: the sets must become equal again."""
    b = await bench()
    target = b.pen().write(body=b"again")
    await b.alice.store.settle(b.group_id, erase=[(target.id, HERE, 0)])
    result = await b.admit([target])
    assert (result.stored, b.state(target)) == (1, "stub")
    assert body_of(b, target.id) is None


# --- what was erased here is told to the others ---------------------------------------------------


def test_an_erasure_reaches_every_member_and_stays_over_restarts() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            gone = await alice.write(group, "gone")
            await alice.write(group, "kept")
            await wait_until(lambda: bob.texts(group) == ["gone", "kept"])
            await alice.store.settle(group, erase=[(gone, HERE, 0)])
            others = await alice.replication.publish_erasures(group)
            assert others == [bob.id]
            await wait_until(lambda: bob.texts(group) == ["kept"])
            assert bob.disk.rows[gone].envelope is None
            written = len(await alice.store.control(group))
            await alice.replication.publish_erasures(group)
            assert len(await alice.store.control(group)) == written
            assert alice.roots(group) == bob.roots(group)
        async with bob.running(), alice.running():
            assert bob.disk.rows[gone].state == "stub"
            assert alice.roots(group) == bob.roots(group)

    play(scene)


def test_a_crash_between_erasing_and_telling_is_made_up_for_by_upkeep() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            gone = await alice.write(group, "gone")
            await wait_until(lambda: bob.texts(group) == ["gone"])
            await alice.store.settle(group, erase=[(gone, HERE, 0)])
        async with bob.running(), alice.running():
            await wait_until(lambda: bob.texts(group) == [])

    play(scene)


def test_a_crash_between_an_erase_record_and_its_effect_is_made_up_for_at_the_start() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            gone = await alice.write(group, "gone")
            await wait_until(lambda: bob.texts(group) == ["gone"])
            before = copy.deepcopy(bob.disk.rows[gone])
            await alice.store.settle(group, erase=[(gone, HERE, 0)])
            await alice.replication.publish_erasures(group)
            await wait_until(lambda: bob.texts(group) == [])
        # The state of a store that has the erase record and not yet its effect.
        bob.disk.rows[gone] = before
        bob.disk.erased.clear()
        bob.build()
        await bob.replication.load()
        assert bob.texts(group) == []
        assert bob.disk.rows[gone].envelope is None

    play(scene)


def test_a_member_that_slept_through_it_erases_when_it_comes_back() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob)
            invite = await alice.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            gone = await alice.write(group, "gone")
            await wait_until(lambda: carol.texts(group) == ["gone"] == bob.texts(group))
            carol.node.pause()
            await alice.store.settle(group, erase=[(gone, HERE, 0)])
            await alice.replication.publish_erasures(group)
            await wait_until(lambda: bob.texts(group) == [])
            carol.node.resume()
            await wait_until(lambda: carol.texts(group) == [])
            await wait_until(lambda: alice.roots(group) == carol.roots(group) == bob.roots(group))

    play(scene)


def test_an_old_image_takes_no_body_back_from_a_member_that_kept_it() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            image = copy.deepcopy(alice.disk)
            gone = await alice.write(group, "gone")
            await wait_until(lambda: bob.texts(group) == ["gone"])
        # Alice erased while alone, then lost her disk; what stays of it is the list of ids.
        image.erased.add(gone)
        alice.disk = image
        async with bob.running(), alice.running():
            await wait_until(lambda: gone in alice.disk.rows)
            assert alice.texts(group) == []
            # Her own record again, so she tells the others too.
            await wait_until(lambda: bob.texts(group) == [])
            await wait_until(lambda: alice.roots(group) == bob.roots(group))

    play(scene)


def test_an_erasure_that_a_demotion_cut_off_is_said_again() -> None:
    """The admin had not heard of the erasure: its limit voids the record, not the wish."""

    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob)
            invite = await alice.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            gone = await bob.write(group, "gone")
            await wait_until(lambda: carol.texts(group) == ["gone"] == alice.texts(group))
            bob.node.pause()
            await wait_until(lambda: bob.id not in alice.node.fabric.peers())
            await bob.store.settle(group, erase=[(gone, HERE, 0)])
            await bob.replication.publish_erasures(group)
            await alice.replication.membership.set_role(group, bob.id, Role.READ)
            await wait_until(lambda: alice.roots(group) == carol.roots(group))
            bob.node.resume()
            await wait_until(lambda: alice.roots(group) == bob.roots(group) == carol.roots(group))
            await wait_until(lambda: carol.texts(group) == [] == alice.texts(group))
            assert body_gone(alice, gone)
            assert body_gone(carol, gone)

    play(scene)


def test_an_erasure_cut_off_by_a_removal_is_said_again_when_its_author_returns() -> None:
    """Who carried it out before the removal came has no body any more; the others keep theirs."""

    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob)
            invite = await alice.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            gone = await bob.write(group, "gone")
            await wait_until(lambda: carol.texts(group) == ["gone"] == alice.texts(group))
            alice.node.pause()
            for peer in (bob, carol):
                await wait_until(lambda peer=peer: alice.id not in peer.node.fabric.peers())
            await bob.store.settle(group, erase=[(gone, HERE, 0)])
            await bob.replication.publish_erasures(group)
            await wait_until(lambda: body_gone(carol, gone))
            await alice.replication.membership.remove(group, bob.id)
            alice.node.resume()
            await wait_until(lambda: alice.roots(group) == carol.roots(group))
            await trio.sleep(60)
            assert alice.texts(group) == ["gone"]
            assert carol.texts(group) == []
            back = await alice.replication.create_invite(group)
            assert (await bob.replication.join(back.ticket)).state == "member"
            await wait_until(lambda: body_gone(alice, gone))
            await wait_until(lambda: alice.roots(group) == carol.roots(group) == bob.roots(group))

    play(scene)


def body_gone(peer: Peer, ident: bytes) -> bool:
    """Whether nothing of a body is on a disk."""
    row = peer.disk.rows[ident]
    return row.envelope is None and row.plain is None


def test_more_than_one_record_of_ids_when_there_are_many() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            ids = [await alice.write(group, f"{n}") for n in range(ERASE_MAX + 3)]
            await wait_until(lambda: len(bob.texts(group)) == len(ids))
            await alice.store.settle(group, erase=[(ident, HERE, 0) for ident in ids])
            await alice.replication.publish_erasures(group)
            await wait_until(lambda: bob.texts(group) == [])
            named = [row for row in await bob.store.control(group) if row.record.kind == Kind.ERASE]
            assert len(named) == 2

    play(scene)


# --- who confirmed it -----------------------------------------------------------------------------


def test_members_confirm_and_who_is_silent_or_gone_is_named() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol", "dave") as (alice, bob, carol, dave):
            group = await pair_up(alice, bob)
            for peer in (carol, dave):
                invite = await alice.replication.create_invite(group)
                await peer.replication.join(invite.ticket)
            gone = await alice.write(group, "gone")
            for peer in (bob, carol, dave):
                await wait_until(lambda peer=peer: peer.texts(group) == ["gone"])  # type: ignore[misc]
            for peer in (carol, dave):
                peer.node.pause()
                await wait_until(
                    lambda peer=peer: peer.id not in alice.node.fabric.peers()  # type: ignore[misc]
                )
            await alice.replication.membership.remove(group, dave.id)
            await alice.store.settle(group, erase=[(gone, HERE, 0)])
            await alice.replication.publish_erasures(group)

            def confirmed(peer: Peer) -> list[tuple[bytes, int]]:
                (view,) = peer.replication.erasures(group)
                return [(word.member, word.bodies) for word in view.confirmed]

            await wait_until(lambda: confirmed(alice) == [(bob.id, 1)])
            (view,) = alice.replication.erasures(group)
            assert (view.author, view.records) == (alice.id, 1)
            assert (view.outstanding, view.out_of_reach) == ((carol.id,), (dave.id,))
            carol.node.resume()
            both = sorted([(bob.id, 1), (carol.id, 1)])
            await wait_until(lambda: confirmed(alice) == both)
            await wait_until(lambda: confirmed(bob) == both)
            written = len(await carol.store.control(group))
            await trio.sleep(200)
            assert len(await carol.store.control(group)) == written, "said once"

    play(scene)


async def test_a_word_of_nobody_confirms_nothing() -> None:
    b = await bench()
    pen = b.pen()
    gone = pen.write(body=b"gone")
    await b.admit([gone])
    named = pen.write(Kind.ERASE, erase(gone.id))
    await b.admit([named])
    stranger = b.pen(Identity.from_seed(b"s" * 32))
    word = encode_payload(EraseAck(((named.id, 1, 0),)))
    await b.admit([stranger.write(Kind.ERASE_ACK, word)])
    (view,) = views(b.group)
    assert view.confirmed == ()


def test_an_erasure_without_effect_is_confirmed_by_nobody() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            theirs = await bob.write(group, "bob's")
            await wait_until(lambda: alice.texts(group) == ["bob's"])
            held = alice.replication._core.groups.get(group)
            assert held is not None
            async with alice.replication._core.keeper.turn(held):
                payload = Erase((theirs,), 0)
                await alice.replication._core.keeper.write(held, [(Kind.ERASE, payload)])
            await wait_until(lambda: len(bob.replication.erasures(group)) == 1)
            await trio.sleep(200)
            (view,) = alice.replication.erasures(group)
            assert (view.confirmed, view.outstanding) == ((), (bob.id,))

    play(scene)
