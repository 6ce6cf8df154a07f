"""State cells between machines: changed apart, healed, watched, and asked who holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from p2p.errors import UsageError
from p2p.replication.cells import HOLDS, HoldsQuery
from p2p.replication.epoch import key_tag
from p2p.replication.events import GroupError
from p2p.replication.ops import Role
from p2p.replication.state import Change, Drafted, canonical_path, encode_body
from tests.helpers.mesh import wait_until
from tests.unit.test_replication_service import nodes, pair_up, play

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.replication.cells import CellChange
    from p2p.replication.state import CellType, Json, Op
    from tests.helpers.mesh import Peer

ITEMS = ("todo", "items")


async def do(peer: Peer, group: bytes, kind: CellType, op: Op, value: Json = None) -> bytes:
    """One change; the id of its last record."""
    written = await peer.replication.cells.change(group, Change(kind, ITEMS, op, value, "agent"))
    return written.ids[-1]


async def value(peer: Peer, group: bytes, kind: CellType) -> Json:
    """What the peer sees."""
    return (await peer.replication.cells.get(group, kind, ITEMS)).value


async def agree(a: Peer, b: Peer, group: bytes) -> None:
    """Until both hold the same records."""
    await wait_until(lambda: a.roots(group) == b.roots(group))


def test_two_machines_write_apart_and_see_the_same_after() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            await agree(alice, bob, group)
            alice.node.pause()
            bob.node.pause()
            for n, peer in enumerate((alice, bob)):
                await do(peer, group, "set", "add", f"item {n}")
                for by in (5, -2):
                    await do(peer, group, "counter", "incr", by)
                await do(peer, group, "mv", "set", n)
                await do(peer, group, "lww", "set", n)
            assert await value(alice, group, "set") == ["item 0"]
            alice.node.resume()
            bob.node.resume()
            await agree(alice, bob, group)
            for peer in (alice, bob):
                assert await value(peer, group, "set") == ["item 0", "item 1"]
                assert await value(peer, group, "counter") == 6
                assert sorted(await value(peer, group, "mv")) == [0, 1]  # type: ignore[type-var, arg-type]
            last = await value(alice, group, "lww")
            assert last in (0, 1)
            assert await value(bob, group, "lww") == last

    play(scene)


def test_a_conditional_write_meets_what_its_writer_saw_or_is_refused() -> None:
    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            cells = alice.replication.cells
            first = await cells.change(group, Change("lww", ITEMS, "set", 1), expect=[])
            await cells.change(group, Change("lww", ITEMS, "set", 2), expect=first.ids)
            with pytest.raises(GroupError, match="changed since"):
                await cells.change(group, Change("lww", ITEMS, "set", 3), expect=first.ids)
            assert await value(alice, group, "lww") == 2

    play(scene)


def test_names_and_keys_list_what_has_a_value() -> None:
    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            cells = alice.replication.cells
            for name in ("ann", "bob"):
                path = ("presence", name)
                await cells.change(group, Change("map", path, "put", {"at": 1}))
            await cells.change(group, Change("map", ("presence", "bob"), "delete", None))
            await do(alice, group, "counter", "incr", 1)
            assert await cells.keys(group, ("presence",)) == ["ann"]
            names = [(one.type, one.path) for one in await cells.names(group)]
            assert names == [("map", ("presence", "ann")), ("counter", ITEMS)]
            assert [one.path for one in await cells.names(group, ("todo",))] == [ITEMS]

    play(scene)


def test_a_restart_forgets_nothing() -> None:
    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            await do(alice, group, "counter", "incr", 2)
        async with alice.running():
            await do(alice, group, "counter", "incr", 3)
            assert await value(alice, group, "counter") == 5
            assert len(await alice.replication.cells.history(group, "counter", ITEMS)) == 2

    play(scene)


def test_who_holds_a_write() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob)
            invite = await alice.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            await agree(alice, carol, group)
            await agree(alice, bob, group)
            ident = await do(alice, group, "lww", "set", 1)
            await agree(alice, bob, group)
            await agree(alice, carol, group)
            everyone = tuple(sorted((alice.id, bob.id, carol.id)))
            held = await alice.replication.cells.holders(group, ident)
            assert (held.held, held.missing, held.unknown) == (everyone, (), ())
            carol.node.pause()
            await wait_until(lambda: carol.id not in alice.node.fabric.peers())
            later = await do(alice, group, "lww", "set", 2)
            await agree(alice, bob, group)
            held = await alice.replication.cells.holders(group, later)
            assert held.held == tuple(sorted((alice.id, bob.id)))
            assert held.unknown == (carol.id,)

    play(scene)


def test_a_watcher_hears_of_foreign_changes() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            await agree(alice, bob, group)
            heard: list[CellChange] = []
            bob.replication.cells.on_change(heard.append)
            ident = await do(alice, group, "lww", "set", "news")
            with trio.fail_after(30):
                folded = await bob.replication.cells.wait_changed(group, "lww", ITEMS, seen=())
            assert folded.value == "news"
            await wait_until(lambda: bool(heard))
            assert [(one.cell.path, one.ids) for one in heard] == [(ITEMS, (ident,))]

    play(scene)


def test_a_store_that_fails_once_costs_watchers_a_word_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            heard: list[CellChange] = []
            alice.replication.cells.on_change(heard.append)
            asked: list[object] = []
            real = alice.store.state_among

            async def failing(ids: Sequence[bytes]) -> Sequence[bytes]:
                asked.append(ids)
                if len(asked) == 1:
                    raise OSError("disk full")
                return await real(ids)

            monkeypatch.setattr(alice.store, "state_among", failing)
            await do(alice, group, "lww", "set", 1)
            await wait_until(lambda: bool(asked))
            ident = await do(alice, group, "lww", "set", 2)
            await wait_until(lambda: bool(heard))
            assert heard[-1].ids[-1:] == (ident,)

    play(scene)


def test_a_reader_may_not_write() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob, role=Role.READ)
            await agree(alice, bob, group)
            with pytest.raises(GroupError, match="only read"):
                await do(bob, group, "lww", "set", 1)

    play(scene)


@pytest.mark.parametrize("path", [(), ("",), ("x",) * 9, ("x" * 129,)])
def test_a_path_has_limits(path: tuple[str, ...]) -> None:
    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            with pytest.raises(UsageError):
                await alice.replication.cells.get(group, "lww", path)

    play(scene)


def test_a_record_filed_under_a_tag_that_its_body_does_not_name_counts_nowhere() -> None:
    """A member can put any tag into a header: what is inside must say the same."""

    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            await agree(alice, bob, group)
            await do(alice, group, "lww", "set", "true")
            await agree(alice, bob, group)
            (secret, *_) = bob.sealer.epochs(group).values()
            tag = key_tag(secret, "lww", canonical_path(ITEMS))
            wrong = encode_body("m", "lww", ("elsewhere",), "set", "forged")
            junk = [Drafted(wrong, tag, ()), Drafted(b"\xc1junk", tag, ())]
            await bob.store.append(group, junk)
            await agree(alice, bob, group)
            for peer in (alice, bob):
                assert await value(peer, group, "lww") == "true"
                names = [one.path for one in await peer.replication.cells.names(group)]
                assert names == [ITEMS]

    play(scene)


def test_a_stranger_to_the_group_learns_nothing_of_who_holds_what() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            await pair_up(alice, bob)
            secret_group = (await alice.replication.create_group("other")).group
            ident = await do(alice, secret_group, "lww", "set", 1)
            reply = await bob.node.rpc.call(
                alice.identity.id, HOLDS, HoldsQuery(secret_group, [ident])
            )
            assert reply.held == []

    play(scene)
