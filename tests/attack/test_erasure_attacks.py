"""Members that forge or withhold confirmations, re-offer what was erased, or erase too much."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.identity import Identity
from p2p.replication.erase_index import Room
from p2p.replication.erasing import WINDOW_MS
from p2p.replication.ops import ERASE_MAX, Erase, EraseAck, Kind, Role, encode_payload
from tests.attack.test_replication_attacks import Town, play, town
from tests.helpers.hostile import Pen, forged, push_records, refused
from tests.helpers.mesh import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.replication.erase_index import EraseIndex
    from p2p.replication.erasures import ErasureView
    from p2p.replication.record import Record
    from tests.helpers.mesh import Peer

pytestmark = pytest.mark.attack

FAR = 4_000_000_000
"""An incarnation of Mallory's own making."""


def erase(*ids: bytes) -> bytes:
    return encode_payload(Erase(tuple(sorted(ids)), 0))


def ack(*ids: bytes, partial: int = 0) -> bytes:
    return encode_payload(EraseAck(tuple((ident, 1, partial) for ident in sorted(ids))))


async def note(t: Town, text: str) -> bytes:
    """A note of Alice's that all three hold."""
    ident = await t.alice.write(t.group, text)
    for peer in (t.bob, t.mallory):
        await wait_until(lambda peer=peer: text in peer.texts(t.group))  # type: ignore[misc]
    return ident


async def erase_own(t: Town, ident: bytes) -> bytes:
    """Alice erases a note of hers; id of the erase record."""
    before = {view.id for view in t.alice.replication.erasures(t.group)}
    await t.alice.store.settle(t.group, erase=[(ident, bytes(32), 0)])
    await t.alice.replication.publish_erasures(t.group)
    (fresh,) = {view.id for view in t.alice.replication.erasures(t.group)} - before
    return fresh


def view_of(peer: Peer, group: bytes, ident: bytes) -> ErasureView:
    return next(view for view in peer.replication.erasures(group) if view.id == ident)


def confirmed(peer: Peer, group: bytes, ident: bytes) -> set[bytes]:
    return {word.member for word in view_of(peer, group, ident).confirmed}


async def silence(t: Town) -> None:
    """Mallory's daemon writes and answers nothing by itself any more, but stays a member."""
    t.mallory.node.pause()
    await wait_until(lambda: t.mallory.id not in t.alice.node.fabric.peers())
    await wait_until(lambda: t.mallory.id not in t.bob.node.fabric.peers())


# --- words on erasures ----------------------------------------------------------------------------


def test_nobody_confirms_in_anothers_name() -> None:
    async def attack() -> None:
        async with town() as t:
            ident = await note(t, "gone")
            await silence(t)
            word = await erase_own(t, ident)
            await wait_until(lambda: confirmed(t.alice, t.group, word) == {t.bob.id})
            t.mallory.node.resume()
            await wait_until(lambda: t.mallory.id in t.alice.node.fabric.peers())
            # Signed by Mallory over a header that names Bob as its author: of an old erasure more.
            pen = Pen(t.mallory, t.group, identity=t.bob.identity, incarnation=FAR)
            stolen = forged(pen.write(Kind.ERASE_ACK, ack(word)))
            await push_records(t.mallory, t.alice, t.group, [stolen])
            await refused(t.alice, "signature")

    play(attack)


def test_a_word_before_the_deed_counts_for_who_gave_it_and_nobody_else() -> None:
    """A liar can say that it erased: no other member's confirmation comes of it."""

    async def attack() -> None:
        async with town() as t:
            ident = await note(t, "gone")
            await silence(t)
            word = await erase_own(t, ident)
            await wait_until(lambda: confirmed(t.alice, t.group, word) == {t.bob.id})
            assert view_of(t.alice, t.group, word).outstanding == (t.mallory.id,)
            lie = Pen(t.mallory, t.group, incarnation=FAR).write(Kind.ERASE_ACK, ack(word))
            core = t.alice.replication._core
            group = core.groups.get(t.group)
            assert group is not None
            async with core.keeper.turn(group):
                _, admitted = await core.admission.admit(group, [lie.wire()], t.mallory.id)
                await core.keeper.after(group, admitted)
            assert confirmed(t.alice, t.group, word) == {t.bob.id, t.mallory.id}
            # What it says by its word it can be shown by: it is signed, and stays.
            await wait_until(lambda: confirmed(t.bob, t.group, word) == {t.bob.id, t.mallory.id})
            await t.still_works()

    play(attack)


def test_a_word_on_what_is_not_done_or_not_there_confirms_nothing() -> None:
    async def attack() -> None:
        async with town() as t:
            ident = await note(t, "gone")
            await silence(t)
            word = await erase_own(t, ident)
            pen = Pen(t.mallory, t.group, incarnation=FAR)
            words = [
                pen.write(Kind.ERASE_ACK, ack(word, partial=1)),
                pen.write(Kind.ERASE_ACK, ack(bytes(32), ident)),
            ]
            core = t.alice.replication._core
            group = core.groups.get(t.group)
            assert group is not None
            async with core.keeper.turn(group):
                wires = [one.wire() for one in words]
                result, admitted = await core.admission.admit(group, wires, t.mallory.id)
                await core.keeper.after(group, admitted)
            assert result.stored == 2
            await wait_until(lambda: confirmed(t.alice, t.group, word) == {t.bob.id})
            assert view_of(t.alice, t.group, word).outstanding == (t.mallory.id,)
            assert len(t.alice.replication.erasures(t.group)) == 1

    play(attack)


def test_who_withholds_its_word_is_named_for_ever_and_stops_nobody() -> None:
    async def attack() -> None:
        async with town() as t:
            ident = await note(t, "gone")
            await silence(t)
            word = await erase_own(t, ident)
            await wait_until(lambda: confirmed(t.alice, t.group, word) == {t.bob.id})
            for peer in (t.alice, t.bob):
                peer.env.offset_ms += 400 * WINDOW_MS
            await trio.sleep(120)
            for peer in (t.alice, t.bob):
                assert view_of(peer, t.group, word).outstanding == (t.mallory.id,)
                assert peer.disk.rows[ident].envelope is None
            await t.alice.replication.membership.remove(t.group, t.mallory.id)
            view = view_of(t.alice, t.group, word)
            assert (view.outstanding, view.out_of_reach) == ((), (t.mallory.id,))
            await t.still_works()

    play(attack)


def test_an_expelled_members_word_does_not_count() -> None:
    async def attack() -> None:
        async with town() as t:
            ident = await note(t, "gone")
            pen = Pen(t.mallory, t.group, incarnation=FAR)
            heads = pen.heads()
            await silence(t)
            await t.alice.replication.membership.remove(t.group, t.mallory.id)
            word = await erase_own(t, ident)
            late = pen.write(Kind.ERASE_ACK, ack(word), auth=heads)
            core = t.alice.replication._core
            group = core.groups.get(t.group)
            assert group is not None
            async with core.keeper.turn(group):
                _, admitted = await core.admission.admit(group, [late.wire()], None)
                await core.keeper.after(group, admitted)
            await wait_until(lambda: confirmed(t.alice, t.group, word) == {t.bob.id})
            assert view_of(t.alice, t.group, word).out_of_reach == (t.mallory.id,)

    play(attack)


# --- bodies that come back ------------------------------------------------------------------------


def test_an_erased_body_is_taken_from_nobody_and_travels_no_further() -> None:
    async def attack() -> None:
        async with town() as t:
            ident = await note(t, "gone")
            kept = t.mallory.disk.rows[ident]
            wire = replace(kept.record, envelope=kept.envelope).wire()
            assert wire.envelope is not None
            await erase_own(t, ident)
            for peer in (t.alice, t.bob, t.mallory):
                await wait_until(lambda peer=peer: peer.disk.rows[ident].envelope is None)  # type: ignore[misc]
            for target in (t.alice, t.bob):
                for _ in range(3):
                    await push_records(t.mallory, target, t.group, [wire])
            await trio.sleep(60)
            for peer in (t.alice, t.bob):
                assert peer.disk.rows[ident].envelope is None
                assert peer.texts(t.group) == []
                assert peer.disk.rows[ident].state == "stub"
            assert t.alice.roots(t.group) == t.bob.roots(t.group)
            await t.still_works()

    play(attack)


def test_a_newcomer_gets_no_erased_body_from_who_kept_it() -> None:
    async def attack() -> None:
        async with town() as t:
            ident = await note(t, "gone")
            kept = t.mallory.disk.rows[ident]
            body, plain = kept.envelope, kept.plain
            await erase_own(t, ident)
            await wait_until(lambda: t.mallory.disk.rows[ident].envelope is None)
            # Mallory's disk keeps it, and her daemon offers it as if nothing had been.
            t.mallory.disk.erased.discard(ident)
            row = t.mallory.disk.rows[ident]
            row.envelope, row.plain, row.state = body, plain, "live"
            dave = t.mesh.peer("dave")
            async with dave.running():
                invite = await t.alice.replication.create_invite(t.group)
                await dave.replication.join(invite.ticket)
                for honest in (t.alice, t.bob):
                    honest.node.pause()
                await dave.node.fabric.connect(t.mallory.identity.id, [t.mallory.addr])
                await wait_until(lambda: ident in dave.disk.rows)
                await trio.sleep(60)
                assert row.envelope is not None, "Mallory still offers it"
                assert dave.disk.rows[ident].envelope is None
                assert dave.texts(t.group) == []
                for honest in (t.alice, t.bob):
                    honest.node.resume()
                await t.still_works()

    play(attack)


# --- erasing what is not one's own ----------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.READ, Role.WRITE])
def test_a_member_erases_no_record_of_anybody_else(role: Role) -> None:
    async def attack() -> None:
        async with town(role) as t:
            idents = [await t.alice.write(t.group, "alice's"), await t.bob.write(t.group, "bob's")]
            both = ["alice's", "bob's"]
            for peer in (t.alice, t.bob):
                await wait_until(lambda peer=peer: peer.texts(t.group) == both)  # type: ignore[misc]
            word = Pen(t.mallory, t.group, incarnation=FAR).write(Kind.ERASE, erase(*idents))
            for target in (t.alice, t.bob):
                await push_records(t.mallory, target, t.group, [word])
                await wait_until(lambda target=target: word.id in target.disk.rows)  # type: ignore[misc]
            for peer in (t.alice, t.bob):
                peer.env.offset_ms += 2 * WINDOW_MS
            await trio.sleep(60)
            for peer in (t.alice, t.bob):
                assert peer.texts(t.group) == both
                view = view_of(peer, t.group, word.id)
                assert (view.confirmed, view.hidden_until_ms) == ((), 0)

    play(attack)


def test_a_hostile_admins_erasure_is_undone_on_every_machine_by_a_limit_in_time() -> None:
    async def attack() -> None:
        async with town(Role.ADMIN) as t:
            carol = t.mesh.peer("carol")
            async with carol.running():
                invite = await t.alice.replication.create_invite(t.group)
                await carol.replication.join(invite.ticket)
                ident = await carol.write(t.group, "carol's")
                honest = (t.alice, t.bob, carol)
                for peer in (*honest, t.mallory):
                    await wait_until(lambda peer=peer: peer.texts(t.group) == ["carol's"])  # type: ignore[misc]
                before_ms = t.alice.env.wall_ms()
                await trio.sleep(5)
                assert await t.mallory.replication.membership.erase(t.group, [ident]) == [ident]
                for peer in honest:
                    await wait_until(lambda peer=peer: peer.texts(t.group) == [])  # type: ignore[misc]
                await t.alice.replication.membership.remove(t.group, t.mallory.id, before_ms)
                for peer in honest:
                    await wait_until(lambda peer=peer: peer.texts(t.group) == ["carol's"])  # type: ignore[misc]
                    peer.env.offset_ms += 2 * WINDOW_MS
                await trio.sleep(60)
                for peer in honest:
                    assert peer.texts(t.group) == ["carol's"]
                assert t.alice.roots(t.group) == t.bob.roots(t.group) == carol.roots(t.group)
                await t.still_works()

    play(attack)


def test_a_hostile_admin_erases_nothing_of_who_ranks_as_high() -> None:
    async def attack() -> None:
        async with town(Role.ADMIN) as t:
            idents = [await t.alice.write(t.group, "alice's"), await t.bob.write(t.group, "bob's")]
            both = ["alice's", "bob's"]
            for peer in (t.alice, t.bob, t.mallory):
                await wait_until(lambda peer=peer: peer.texts(t.group) == both)  # type: ignore[misc]
            assert await t.mallory.replication.membership.erase(t.group, idents) == []
            word = Pen(t.mallory, t.group, incarnation=FAR).write(Kind.ERASE, erase(*idents))
            for target in (t.alice, t.bob):
                await push_records(t.mallory, target, t.group, [word])
                await wait_until(lambda target=target: word.id in target.disk.rows)  # type: ignore[misc]
                target.env.offset_ms += 2 * WINDOW_MS
            await trio.sleep(60)
            for peer in (t.alice, t.bob):
                assert peer.texts(t.group) == both

    play(attack)


def test_a_strangers_erase_record_is_not_even_stored() -> None:
    async def attack() -> None:
        async with town() as t:
            ident = await note(t, "alice's")
            stranger = Identity.from_seed(b"s" * 32)
            pen = Pen(t.mallory, t.group, identity=stranger, incarnation=FAR)
            word = pen.write(Kind.ERASE, erase(ident))
            await push_records(t.mallory, t.alice, t.group, [word])
            await refused(t.alice, "stranger")
            assert word.id not in t.alice.disk.rows
            assert t.alice.texts(t.group) == ["alice's"]

    play(attack)


# --- floods -------------------------------------------------------------------------------------


async def take(peer: Peer, group: bytes, records: Sequence[Record], bringer: bytes) -> None:
    """Records come to a node, and are followed up."""
    core = peer.replication._core
    found = core.groups.get(group)
    assert found is not None
    async with core.keeper.turn(found):
        wires = [record.wire() for record in records]
        _, admitted = await core.admission.admit(found, wires, bringer)
        await core.keeper.after(found, admitted)


def index_of(peer: Peer, group: bytes) -> EraseIndex:
    found = peer.replication._core.groups.get(group)
    assert found is not None
    return found.erase_index


def never(n: int) -> bytes:
    """The id of a record that never was."""
    return hashlib.sha256(n.to_bytes(4, "big")).digest()


def test_a_flood_of_erase_records_fills_its_authors_share_of_memory_and_no_more() -> None:
    async def attack() -> None:
        async with town() as t:
            pen = Pen(t.mallory, t.group, incarnation=FAR)
            own = pen.write(32, b"mallory's own")
            index = index_of(t.alice, t.group)
            index.room = Room(author_max=1_000, group_max=1_500, author_min=100)
            flood = [
                pen.write(Kind.ERASE, erase(*map(never, range(n, n + ERASE_MAX))))
                for n in range(0, 20 * ERASE_MAX, ERASE_MAX)
            ]
            flood.append(pen.write(Kind.ERASE, erase(own.id)))  # beyond the share
            await take(t.alice, t.group, [own, *flood], t.mallory.id)
            assert 500 < len(index.targets) <= 1_000
            assert sum(map(len, index.targets.values())) <= 1_000
            assert len(index.records) <= 4
            # Others' words are heard as before, also of who has little room left.
            ident = await t.bob.write(t.group, "bob's own")
            await wait_until(lambda: ident in t.alice.disk.rows)
            await t.bob.store.settle(t.group, erase=[(ident, bytes(32), 0)])
            await t.bob.replication.publish_erasures(t.group)
            await wait_until(lambda: t.alice.disk.rows[ident].envelope is None)
            # What it really wanted gone goes, only later.
            await wait_until(lambda: t.alice.disk.rows[own.id].envelope is None)
            await t.still_works()

    play(attack)


def test_one_name_in_erase_records_without_end_makes_no_endless_list() -> None:
    async def attack() -> None:
        async with town() as t:
            pen = Pen(t.mallory, t.group, incarnation=FAR)
            index = index_of(t.alice, t.group)
            index.room = Room(author_max=100, group_max=1_500, author_min=50)
            flood = [pen.write(Kind.ERASE, erase(never(1))) for _ in range(64)]
            await take(t.alice, t.group, flood, t.mallory.id)
            assert len(index.targets[never(1)]) == len(index.records) <= 20

    play(attack)


def test_a_flood_of_words_on_erasures_fills_its_authors_share_and_no_more() -> None:
    async def attack() -> None:
        async with town() as t:
            pen = Pen(t.mallory, t.group, incarnation=FAR)
            index = index_of(t.alice, t.group)
            index.room_of_words = Room(author_max=600, group_max=1_500, author_min=100)
            flood = [
                pen.write(Kind.ERASE_ACK, ack(*map(never, range(n, n + ERASE_MAX))))
                for n in range(0, 8 * ERASE_MAX, ERASE_MAX)
            ]
            await take(t.alice, t.group, flood, t.mallory.id)
            assert sum(map(len, index.words.values())) == 600
            ident = await note(t, "gone")
            word = await erase_own(t, ident)
            await wait_until(lambda: t.bob.id in confirmed(t.alice, t.group, word))

    play(attack)


def test_full_room_leaves_everybody_a_little() -> None:
    room = Room(author_max=100, group_max=150, author_min=20)
    assert room.take(b"a", 100)
    assert not room.take(b"a", 1)
    assert room.take(b"b", 50)
    assert not room.take(b"b", 1)
    assert room.take(b"c", 20)
    assert not room.take(b"c", 1)
