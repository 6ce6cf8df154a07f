"""Two replicating nodes on real databases: what one wrote is found by the other after a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from p2p.replication.erasing import WINDOW_MS
from tests.helpers.chains import PlainDraft
from tests.helpers.disk_nodes import on_disk
from tests.helpers.memories import note_body
from tests.helpers.mesh import Mesh, Peer
from tests.unit.test_erasing import bytes_of

if TYPE_CHECKING:
    from pathlib import Path

    import apsw

    from memory.records.replica import Replica


async def count(replica: Replica, group: bytes, wanted: int) -> None:
    """Wait until so many data records are there."""
    committed = trio.Event()
    replica.on_commit(lambda *_: committed.set())
    with trio.fail_after(30):
        while len(await replica.index(group, 1)) < wanted:
            await committed.wait()
            committed = trio.Event()


async def test_the_durable_store_carries_join_sync_push_and_restart(tmp_path: Path) -> None:
    mesh = Mesh(9)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    alice, bob = mesh.peer("alice"), mesh.peer("bob")
    async with on_disk(alice, tmp_path / "a") as left, on_disk(bob, tmp_path / "b") as right:
        group = (await alice.replication.create_group("home", home=True)).group
        await left.append(group, [PlainDraft(32, b"%d" % n) for n in range(40)])
        invite = await alice.replication.create_invite(group)
        assert (await bob.replication.join(invite.ticket)).state == "member"
        await count(right, group, 40)
        await right.append(group, [PlainDraft(32, b"pushed")])
        await count(left, group, 41)
        views = bob.replication.groups()
    async with on_disk(alice, tmp_path / "a") as left, on_disk(bob, tmp_path / "b") as right:
        assert bob.replication.groups() == views
        await left.append(group, [PlainDraft(32, b"after")])
        await count(right, group, 42)
        (result,) = await alice.replication.sync_now(group, bob.id)
        assert result.equal
        assert (await left.index(group, 1)).packed == (await right.index(group, 1)).packed
        assert (await left.index(group, 0)).packed == (await right.index(group, 0)).packed
    for peer in (alice, bob):
        assert not peer.named("record.refused")
        assert not peer.named("fork.detected")


async def test_what_an_admin_erases_is_hidden_with_its_text_and_goes_with_every_byte(
    tmp_path: Path,
) -> None:
    mesh = Mesh(9)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    alice, bob = mesh.peer("alice"), mesh.peer("bob")
    text = b"the zirconium valve of pump seven"

    def indexed(connection: apsw.Connection) -> int:
        found = connection.execute("SELECT count(*) FROM main_vocab WHERE term = 'zirconium'").get
        low = connection.execute("SELECT count(*) FROM low_vocab WHERE term = 'zirconium'").get
        return int(str(found)) + int(str(low))

    async def keep_house(peer: Peer) -> None:
        keeper = peer.replication._core.keeper
        held = peer.replication._core.groups.get(group)
        assert held is not None
        async with keeper.turn(held):
            await keeper.do_duties(held)

    async with on_disk(alice, tmp_path / "a") as left, on_disk(bob, tmp_path / "b") as right:
        group = (await alice.replication.create_group("team")).group
        invite = await alice.replication.create_invite(group)
        await bob.replication.join(invite.ticket)
        draft = PlainDraft(32, note_body(text.decode()))
        (ident,) = await right.append(group, [draft])
        await count(left, group, 1)
        before = (await left.index(group, 1)).packed
        assert await left.db.read(indexed) == 1
        heard = trio.Event()
        bob.replication.subscribe(
            lambda event: heard.set() if event.name == "erasure.announced" else None
        )
        assert await alice.replication.membership.erase(group, [ident]) == [ident]
        with trio.fail_after(30):
            await heard.wait()
        for store in (left, right):
            assert await store.db.read(indexed) == 0
            assert (await store.index(group, 1)).packed == before
        assert text in bytes_of(tmp_path / "b")
    # Over a restart of both it stays hidden, and a day later it goes.
    for peer in (alice, bob):
        peer.env.offset_ms += WINDOW_MS
    async with on_disk(alice, tmp_path / "a") as left, on_disk(bob, tmp_path / "b") as right:
        for peer, store in ((alice, left), (bob, right)):
            assert await store.db.read(indexed) == 0
            await keep_house(peer)
            (row,) = await store.fetch([ident], bodies=True)
            assert (row.state, row.envelope) == ("stub", None)
            assert (await store.index(group, 1)).packed == before
            assert await store.db.settle_wal()
    for name in ("a", "b"):
        data = bytes_of(tmp_path / name)
        assert len(data) > 100_000
        assert text not in data
        assert b"zirconium" not in data
