"""A join or a sync cut at any step leaves nothing torn: the next one makes it whole."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from typing_extensions import override

from p2p.replication.config import ReplicationConfig
from p2p.replication.memstore import MemStore
from p2p.replication.ops import Role
from p2p.replication.record import decode_header_untrusted
from tests.helpers.cancel import Cut, cancel_at_every_step
from tests.helpers.mesh import Mesh, Peer, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from p2p.replication.memstore import MemVerdict
    from p2p.replication.sealing import GroupSealer
    from p2p.replication.store import LocalRow, Verified

CONFIG = replace(ReplicationConfig.test(), push=False, sync_interval_s=20.0)


class SteppingStore(MemStore):
    """A store that can be cancelled before its commit and after it."""

    @override
    async def admit(
        self, group: bytes, batch: Sequence[Verified], local: Sequence[LocalRow] = ()
    ) -> Sequence[MemVerdict]:
        await trio.lowlevel.checkpoint()
        verdicts = await super().admit(group, batch, local)
        await trio.lowlevel.checkpoint()
        return verdicts


@asynccontextmanager
async def running(peer: Peer) -> AsyncIterator[Peer]:
    """Run a node over the stepping store."""
    peer.build(lambda sealer: SteppingStore(sealer, peer.disk))
    await peer.replication.load()
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.node.run)
        await nursery.start(peer.replication.run)
        yield peer
        nursery.cancel_scope.cancel()


def check_memory_is_disk(peer: Peer, group: bytes) -> None:
    """The authority holds exactly the operations that are on disk."""
    found = peer.replication._core.groups.get(group)
    assert found is not None
    if found.stale:
        return  # The next turn reads it anew.
    on_disk = {
        row.id
        for row in peer.disk.rows.values()
        if row.record.group == group and decode_header_untrusted(row.header).kind < 12
    }
    assert len(found.authority) == len(on_disk)
    assert all(ident in found.authority for ident in on_disk)


async def cut_join(cut: Cut) -> None:
    """Bob's join is cut; asking again brings him in with everything."""
    mesh = Mesh(5, CONFIG)
    alice, bob = mesh.peer("alice"), mesh.peer("bob")
    async with running(alice), running(bob):
        group = (await alice.replication.create_group("team")).group
        await alice.write(group, "text")
        ticket = (await alice.replication.create_invite(group)).ticket
        await cut.attempt(lambda: bob.replication.join(ticket))
        if bob.replication._core.groups.get(group) is not None:
            check_memory_is_disk(bob, group)
        if group not in {v.group for v in bob.replication.groups() if v.state == "member"}:
            await bob.replication.join(ticket)
        await wait_until(lambda: bob.texts(group) == ["text"])
        await wait_until(lambda: alice.roots(group) == bob.roots(group))
        for peer in (alice, bob):
            check_memory_is_disk(peer, group)
            assert not peer.named("record.refused")
            assert not peer.named("fork.detected")


def test_a_join_cut_at_any_step_is_made_whole_by_asking_again() -> None:
    assert cancel_at_every_step(cut_join) > 20


class CuttingStore(MemStore):
    """A store whose caller is cancelled between its commit and its answer."""

    cut: trio.CancelScope | None = None

    @override
    async def admit(
        self, group: bytes, batch: Sequence[Verified], local: Sequence[LocalRow] = ()
    ) -> Sequence[MemVerdict]:
        verdicts = await super().admit(group, batch, local)
        if self.cut is not None:
            self.cut.cancel()
        await trio.lowlevel.checkpoint()
        return verdicts


async def test_a_founding_cut_behind_its_commit_leaves_no_group_that_nobody_knows() -> None:
    mesh = Mesh(5, CONFIG)
    alice = mesh.peer("alice")
    store: list[CuttingStore] = []

    def build(sealer: GroupSealer) -> CuttingStore:
        store.append(CuttingStore(sealer, alice.disk))
        return store[0]

    alice.build(build)
    await alice.replication.load()
    async with trio.open_nursery() as nursery:
        await nursery.start(alice.node.run)
        await nursery.start(alice.replication.run)
        with trio.CancelScope() as scope:
            store[0].cut = scope
            await alice.replication.create_group("team")
        store[0].cut = None
        on_disk = {row[1][0] for (name, _), row in alice.disk.local.items() if name == "grp"}
        assert len(on_disk) == 1
        (view,) = alice.replication.groups()
        assert {view.group} == on_disk
        await alice.write(view.group, "text")
        check_memory_is_disk(alice, view.group)
        nursery.cancel_scope.cancel()


async def cut_sync(cut: Cut) -> None:
    """A session that brings members and texts is cut; the next one brings the rest."""
    mesh = Mesh(5, CONFIG)
    alice, bob, carol = (mesh.peer(name) for name in ("alice", "bob", "carol"))
    async with running(alice), running(bob), running(carol):
        group = (await alice.replication.create_group("team")).group
        invite = await alice.replication.create_invite(group, role=Role.ADMIN)
        await bob.replication.join(invite.ticket)
        await wait_until(lambda: alice.roots(group) == bob.roots(group))
        bob.node.pause()
        invite = await alice.replication.create_invite(group)
        await carol.replication.join(invite.ticket)
        for n in range(3):
            await carol.write(group, f"{n}")
        await alice.replication.sync_now(group, carol.id)
        bob.node.resume()
        await bob.node.fabric.connect(alice.identity.id, [alice.addr])
        await cut.attempt(lambda: bob.replication.sync_now(group, alice.id))
        check_memory_is_disk(bob, group)
        await wait_until(lambda: len(bob.texts(group)) == 3, step_s=1)
        await wait_until(lambda: alice.roots(group) == bob.roots(group), step_s=1)
        check_memory_is_disk(bob, group)
        assert carol.id in {m.member for m in bob.replication.members(group)}
        assert not bob.named("record.refused")


@pytest.mark.slow
def test_a_sync_cut_at_any_step_is_made_whole_by_the_next() -> None:
    assert cancel_at_every_step(cut_sync) > 10
