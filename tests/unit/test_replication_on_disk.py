"""Two replicating nodes on real databases: what one wrote is found by the other after a restart."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from memory.records.replica import Replica
from memory.storage.db import Db
from tests.helpers.chains import PlainDraft
from tests.helpers.memories import Clock
from tests.helpers.mesh import Mesh, Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from p2p.replication.sealing import GroupSealer


@asynccontextmanager
async def on_disk(peer: Peer, folder: Path) -> AsyncIterator[Replica]:
    """Run the node over a database in `folder`."""
    db = Db(folder / "covey.db", Clock(), inline=True)
    made: list[Replica] = []

    def make_store(sealer: GroupSealer) -> Replica:
        made.append(Replica(db, sealer, folder))
        return made[-1]

    peer.build(make_store)
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        await peer.replication.load()
        await nursery.start(peer.node.run)
        await nursery.start(peer.replication.run)
        yield made[-1]
        nursery.cancel_scope.cancel()


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
