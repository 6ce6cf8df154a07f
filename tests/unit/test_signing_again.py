"""What a device wrote before it heard of a demotion or removal is signed anew, whole.

With real memories on disk: the copies say of each other what the originals said, so a note that was
replaced does not come back and an erasure misses nothing.
"""

from __future__ import annotations

import copy
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from memory.bodies import ForgetBody, LinkBody, VerdictBody, decode_body_untrusted, encode_body
from memory.records.erase import HERE
from memory.records.readdress import readdress
from p2p.replication import again
from p2p.replication.ops import ForkProof, Kind, Role
from tests.helpers.chains import PlainDraft
from tests.helpers.memories import note_body
from tests.helpers.mesh import Mesh, nodes, play, roles, wait_until
from tests.unit.test_membership import agree, part, three
from tests.unit.test_replication_on_disk import bytes_of, count, on_disk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import apsw

    from memory.bodies import Body
    from memory.records.replica import Replica
    from p2p.replication.groups import Group
    from tests.helpers.mesh import Peer

A, B, C, D = (bytes([n]) * 32 for n in range(4))


# --- bodies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "there"),
    [
        (LinkBody("bob", A, C, "confirms", "why"), LinkBody("bob", B, D, "confirms", "why")),
        (ForgetBody("bob", [C, A], None), ForgetBody("bob", [D, B], None)),
        (
            VerdictBody("bob", A, "wrong", "owner", C, None),
            VerdictBody("bob", B, "wrong", "owner", D, None),
        ),
        (
            VerdictBody("bob", A, "wrong", "owner", None, None),
            VerdictBody("bob", B, "wrong", "owner", None, None),
        ),
    ],
)
def test_every_id_that_a_body_names_is_put_in_place(body: Body, there: Body) -> None:
    moved = {A: B, C: D}
    assert decode_body_untrusted(readdress(encode_body(body), moved)) == there
    assert readdress(encode_body(there), moved) == encode_body(there)


def test_parents_are_put_in_place_and_texts_left_alone() -> None:
    there = readdress(note_body(A.decode(), derived_from=[A, D]), {A: B})
    assert there == note_body(A.decode(), derived_from=[B, D])
    assert readdress(b"no body", {A: B}) == b"no body"


# --- with memories on disk --------------------------------------------------------------------


@asynccontextmanager
async def two_on_disk(folder: Path) -> AsyncIterator[tuple[Peer, Replica, Peer, Replica, bytes]]:
    """Alice who founded a group and Bob, an admin of it too."""
    mesh = Mesh(9)
    alice, bob = mesh.peer("alice"), mesh.peer("bob")
    for peer in (alice, bob):
        (folder / peer.name).mkdir()
        peer.readdress = readdress
    async with on_disk(alice, folder / "alice") as left, on_disk(bob, folder / "bob") as right:
        group = (await alice.replication.create_group("team")).group
        invite = await alice.replication.create_invite(group, role=Role.ADMIN)
        await bob.replication.join(invite.ticket)
        yield alice, left, bob, right, group


async def say(store: Replica, group: bytes, *bodies: bytes) -> list[bytes]:
    """Write entries in one transaction; their ids."""
    return list(await store.append(group, [PlainDraft(32, body) for body in bodies]))


_NOTES = (
    "SELECT c.text, m.status, r.id FROM memory m JOIN record r ON r.n = m.id"
    " JOIN chunk c ON c.memory = m.id WHERE r.state = 'live' ORDER BY c.text"
)


async def notes(store: Replica) -> dict[str, tuple[str, bytes]]:
    """Text -> (status, id) of the notes that count."""

    def read(connection: apsw.Connection) -> dict[str, tuple[str, bytes]]:
        rows = connection.execute(_NOTES).fetchall()
        found = {str(text): (str(status), bytes(ident)) for text, status, ident in rows}
        assert len(found) == len(rows), "a note is there twice"
        return found

    return await store.db.read(read)


async def test_copies_say_of_each_other_what_the_originals_said(tmp_path: Path) -> None:
    async with two_on_disk(tmp_path) as (alice, left, bob, right, group):
        (known,) = await say(right, group, note_body("known"))
        await count(left, group, 1)
        await part(bob, alice)
        old, new = await say(right, group, note_body("old port 80"), note_body("new port 90"))
        (leaf,) = await say(right, group, note_body("leaf", derived_from=[old]))
        (gone,) = await say(right, group, note_body("gone", idem="a key"))
        links = [
            LinkBody("bob", new, old, "supersedes", None),
            LinkBody("bob", leaf, known, "confirms", None),
            ForgetBody("bob", [gone], None),
        ]
        await say(right, group, *map(encode_body, links))
        before = await notes(right)
        assert before["old port 80"][0] == "superseded"
        await alice.replication.membership.set_role(group, bob.id, Role.WRITE)
        bob.node.resume()
        await count(left, group, 8)
        for store in (left, right):
            found = await notes(store)
            assert found.keys() == before.keys()
            assert {text: status for text, (status, _) in found.items()} == {
                "known": "active",
                "old port 80": "superseded",
                "new port 90": "active",
                "leaf": "active",
                "gone": "forgotten",
            }
            copies = {text: ident for text, (_, ident) in found.items()}
            assert copies["known"] == known
            assert not {old, new, leaf, gone} & set(copies.values())
            parents = "SELECT p.parent_id FROM parent p JOIN record r ON r.n = p.memory"
            live = " WHERE r.state = 'live'"
            assert await column(store, parents + live) == [copies["old port 80"]]
            ends = " FROM link l JOIN record r ON r.n = l.n" + live + " ORDER BY r.hlc"
            assert await column(store, "SELECT l.src" + ends) == [
                copies["new port 90"],
                copies["leaf"],
            ]
            assert await column(store, "SELECT l.dst" + ends) == [copies["old port 80"], known]
        keys = "SELECT r.id FROM idem i JOIN record r ON r.n = i.memory"
        assert await column(right, keys) == [copies["gone"]]


async def column(store: Replica, sql: str) -> list[object]:
    """The first column of what a query finds."""
    return await store.db.read(lambda c: [value for (value,) in c.execute(sql)])


async def test_erasing_a_copy_leaves_no_byte_of_original_or_of_what_was_derived(
    tmp_path: Path,
) -> None:
    async with two_on_disk(tmp_path) as (alice, left, bob, right, group):
        await part(bob, alice)
        (old,) = await say(right, group, note_body("zirconium valve"))
        await say(right, group, note_body("derived quixotic", derived_from=[old]))
        await alice.replication.membership.set_role(group, bob.id, Role.WRITE)
        bob.node.resume()
        await count(left, group, 2)
        (_, copy) = (await notes(right))["zirconium valve"]
        assert copy != old
        await right.settle(group, erase=[(copy, HERE, 0)])
        erased = trio.Event()

        def heard() -> None:
            erased.set()

        left.on_erased(heard)
        await bob.replication.publish_erasures(group)
        with trio.fail_after(60):
            while await notes(left):
                await erased.wait()
                erased = trio.Event()
        assert await notes(right) == {}
        states = dict(await right.known([old, copy]))
        assert states == {old: "void", copy: "stub"}
        for store in (left, right):
            assert await store.db.settle_wal()
    data = {name: bytes_of(tmp_path / name) for name in ("alice", "bob")}
    for found in data.values():
        assert b"zirconium" not in found
        assert b"quixotic" not in found


async def test_nobody_erases_anothers_note_by_calling_it_the_original_of_an_own_one(
    tmp_path: Path,
) -> None:
    async with two_on_disk(tmp_path) as (_, left, _, right, group):
        (theirs,) = await say(left, group, note_body("alice said so"))
        await count(right, group, 1)
        own = PlainDraft(32, note_body("bob said so"), supersedes=(theirs,))
        (ident,) = await right.append(group, [own])
        await count(left, group, 2)
        for store in (left, right):
            await store.settle(group, erase=[(ident, HERE, 0)])
            assert (await notes(store)).keys() == {"alice said so"}


# --- whichever way a device learns what has become of it --------------------------------------


def test_who_was_demoted_while_away_loses_nothing() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol, role=Role.ADMIN)
            await bob.write(group, "known")
            await agree(group, alice, bob, carol)
            await part(bob, alice, carol)
            await bob.write(group, "written while away")
            await alice.replication.membership.set_role(group, bob.id, Role.WRITE)
            await agree(group, alice, carol)
            bob.node.resume()
            both = ["known", "written while away"]
            await wait_until(lambda: carol.texts(group) == both)
            await agree(group, alice, bob, carol)
            assert alice.texts(group) == bob.texts(group) == carol.texts(group) == both

    play(scene)


def test_who_may_only_read_now_says_it_again_when_it_may_write() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            await part(bob, alice, carol)
            await bob.write(group, "written while away")
            await alice.replication.membership.set_role(group, bob.id, Role.READ)
            bob.node.resume()
            await wait_until(lambda: roles(bob, group)[bob.id] == Role.READ)
            await trio.sleep(60)
            await agree(group, alice, bob, carol)
            assert alice.texts(group) == []
            await alice.replication.membership.set_role(group, bob.id, Role.WRITE)
            await wait_until(lambda: carol.texts(group) == ["written while away"])

    play(scene)


def test_a_log_that_the_remover_never_heard_of_is_said_again_as_well() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running():
            async with bob.running():
                group = (await alice.replication.create_group("team")).group
                invite = await alice.replication.create_invite(group, role=Role.ADMIN)
                await bob.replication.join(invite.ticket)
                await bob.write(group, "in the first log")
                await wait_until(lambda: alice.texts(group) == ["in the first log"])
                await part(bob, alice)
                held = bob.replication._core.groups.get(group)
                assert held is not None
                async with bob.replication._core.keeper.turn(held):
                    await bob.replication._core.keeper.renew(held)
                await bob.write(group, "in the second log")
            await alice.replication.membership.set_role(group, bob.id, Role.WRITE)
            async with bob.running():
                both = ["in the first log", "in the second log"]
                await wait_until(lambda: alice.texts(group) == both)
                await agree(group, alice, bob)

    play(scene)


@pytest.mark.parametrize("restart", [False, True])
def test_who_is_let_in_again_by_a_persons_word_says_it_again(*, restart: bool) -> None:
    """The word comes long after the join was answered, to a device that may have been stopped."""

    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob, carol = (mesh.peer(name) for name in ("alice", "bob", "carol"))
        async with alice.running(), carol.running():
            async with bob.running():
                group = await three(alice, bob, carol)
                await part(bob, alice, carol)
                await bob.write(group, "written while away")
                await alice.replication.membership.remove(group, bob.id)
                bob.node.resume()
                invite = await alice.replication.create_invite(group, confirm=True)
                await bob.replication.join(invite.ticket)
                (waiting,) = alice.replication.pending()
                if not restart:
                    await alice.replication.accept(waiting.join_id)
                    await wait_until(lambda: carol.texts(group) == ["written while away"])
            if restart:
                await alice.replication.accept(waiting.join_id)
            async with bob.running():
                await wait_until(lambda: carol.texts(group) == ["written while away"])
                await agree(group, alice, bob, carol)

    play(scene)


def test_who_is_killed_as_it_is_let_in_again_says_it_after_the_start() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running():
            async with bob.running():
                group = (await alice.replication.create_group("team")).group
                invite = await alice.replication.create_invite(group)
                await bob.replication.join(invite.ticket)
                await part(bob, alice)
                await bob.write(group, "written while away")
                await alice.replication.membership.remove(group, bob.id)
                bob.node.resume()
                invite = await alice.replication.create_invite(group)
                plan, killed = bob.replication._core.keeper.again.plan_cut, []

                async def dying(what: Group) -> None:
                    await plan(what) if what.role(bob.id) is None else killed.append(what)
                    if killed:
                        raise OSError("no power")

                bob.replication._core.keeper.again.plan_cut = dying  # type: ignore[method-assign]
                with pytest.raises(OSError, match="power"):
                    await bob.replication.join(invite.ticket)
            assert alice.texts(group) == []
            async with bob.running():
                await wait_until(lambda: alice.texts(group) == ["written while away"])
                await agree(group, alice, bob)
                await trio.sleep(300)
                assert alice.texts(group) == bob.texts(group) == ["written while away"]

    play(scene)


def test_nothing_is_signed_anew_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is planned once more: a lower fork of the same log, another limit, a start."""

    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        monkeypatch.setattr(again, "PART_BYTES", 1)
        async with alice.running(), bob.running():
            group = (await alice.replication.create_group("team")).group
            invite = await alice.replication.create_invite(group, role=Role.ADMIN)
            await bob.replication.join(invite.ticket)
            await part(bob, alice)
            texts = [f"away {n}" for n in range(4)]
            for text in texts:
                await bob.write(group, text)
            (log,) = await bob.replication._core.keeper.again._own_logs(
                bob.replication._core.groups.all()[0]
            )
            await alice.replication.membership.set_role(group, bob.id, Role.WRITE)
            bob.node.resume()
            await wait_until(lambda: alice.texts(group) == texts)
            held = bob.replication._core.groups.all()[0]
            async with bob.replication._core.keeper.turn(held):
                await bob.replication._core.keeper.again.plan(held, log, 2)
            await alice.replication.membership.set_role(group, bob.id, Role.READ)
            await alice.replication.membership.set_role(group, bob.id, Role.WRITE)
        async with alice.running(), bob.running():
            await trio.sleep(300)
            await agree(group, alice, bob)
            assert alice.texts(group) == bob.texts(group) == texts

    play(scene)


def test_a_fork_proven_lower_down_later_has_nothing_signed_twice() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = (await alice.replication.create_group("team")).group
            await bob.replication.join((await alice.replication.create_invite(group)).ticket)
            await alice.write(group, "old")
            await wait_until(lambda: bob.texts(group) == ["old"])
            image = copy.deepcopy(alice.disk)
            for n in range(3):
                await alice.write(group, f"held by bob {n}")
            await wait_until(lambda: len(bob.texts(group)) == 4)
        there = {r.record.seq: r.record for r in bob.disk.rows.values() if r.record.kind == 32}
        alice.disk = image
        texts = [f"written alone {n}" for n in range(3)]
        async with alice.running():
            for text in texts:
                await alice.write(group, text)
            here = {r.record.seq: r.record for r in alice.disk.rows.values() if r.record.kind == 32}
            (held,) = alice.replication._core.groups.all()
            for seq, wanted in ((4, ["old", *texts[:2], texts[2]]), (2, ["old", *texts])):
                a, b = here[seq], there[seq]
                proof = ForkProof(a.header, a.signature, b.header, b.signature)
                async with alice.replication._core.keeper.turn(held):
                    await alice.replication._core.keeper.write(held, [(Kind.FORK_PROOF, proof)])
                assert alice.texts(group) == sorted(wanted)
            await trio.sleep(60)
            assert alice.texts(group) == sorted(["old", *texts])
        async with alice.running(), bob.running():
            await agree(group, alice, bob)
            assert bob.texts(group) == sorted(["old", *texts])

    play(scene)
