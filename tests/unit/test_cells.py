"""State cells between machines: changed apart, healed, watched, and asked who holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from p2p.errors import UsageError
from p2p.replication import cells
from p2p.replication.epoch import key_tag
from p2p.replication.events import GroupError
from p2p.replication.holders import HOLDS, HoldsQuery
from p2p.replication.ops import Role
from p2p.replication.state import Change, Drafted, canonical_path, encode_body
from tests.helpers.mesh import nodes, pair_up, play, wait_until

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

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


def test_what_others_wrote_is_told_without_reading_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its body was open when it came; junk is told as a change of no cell."""

    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            await agree(alice, bob, group)
            heard: list[CellChange] = []
            bob.replication.cells.on_change(heard.append)
            asked: list[bytes] = []
            real = bob.store.state_among

            async def noting(ids: Sequence[bytes]) -> Sequence[bytes]:
                asked.extend(ids)
                return await real(ids)

            monkeypatch.setattr(bob.store, "state_among", noting)
            wrong = encode_body("m", "lww", ("elsewhere",), "set", "forged")
            tag = filed(alice, group, "set")
            (junk,) = await alice.store.append(group, [Drafted(wrong, tag, ())])
            await agree(alice, bob, group)
            entry = await alice.write(group, "no value")
            ident = await do(alice, group, "lww", "set", "news")
            await agree(alice, bob, group)
            await wait_until(lambda: bool(heard))
            assert [(one.cell.path, one.ids) for one in heard] == [(ITEMS, (ident,))]
            assert junk in asked
            assert entry not in asked
            assert ident not in asked
            assert not bob.replication.cells._expected

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


def filed(peer: Peer, group: bytes, kind: CellType) -> bytes:
    """The tag of the cell."""
    (secret, *_) = peer.sealer.epochs(group).values()
    return key_tag(secret, kind, canonical_path(ITEMS))


@pytest.mark.parametrize("kind", ["lww", "mv", "set", "counter"])
def test_junk_supersedes_alike_whoever_reads(kind: CellType) -> None:
    """What its header names is superseded, now, in the history, and as of a time."""

    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            op: Op = {"lww": "set", "mv": "set", "set": "add", "counter": "incr"}[kind]  # type: ignore[assignment]
            gone, kept = await do(alice, group, kind, op, 1), b""
            if kind == "set":
                kept = await do(alice, group, kind, op, 2)
            before = alice.sealer.hlc
            tag = filed(alice, group, kind)
            await alice.store.append(group, [Drafted(b"\xc1junk", tag, (gone,))])
            cells = alice.replication.cells
            now = await cells.get(group, kind, ITEMS)
            as_of = await cells.get(group, kind, ITEMS, as_of=alice.sealer.hlc)
            alone = await cells.get(group, kind, ITEMS, without=[b"nobody"])
            assert now == as_of == alone
            assert {one.id for one in now.heads} == ({kept} if kept else set())
            marks = {e.id: e.superseded for e in await cells.history(group, kind, ITEMS)}
            assert marks[gone]
            earlier = await cells.get(group, kind, ITEMS, as_of=before)
            assert gone in {one.id for one in earlier.heads}
            nothing = await cells.get(group, kind, ITEMS, without=[alice.id])
            assert not nothing.exists

    play(scene)


def test_a_cell_whose_first_record_is_junk_is_listed() -> None:
    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            await alice.store.append(group, [Drafted(b"\xc1junk", filed(alice, group, "lww"), ())])
            await do(alice, group, "lww", "set", 1)
        async with alice.running():  # which has read no name yet
            names = await alice.replication.cells.names(group)
            assert [(one.type, one.path) for one in names] == [("lww", ITEMS)]

    play(scene)


def test_a_watcher_hears_of_what_is_voided_revived_and_erased() -> None:
    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            cells = alice.replication.cells
            ident = await do(alice, group, "lww", "set", "first")
            await wait_until(lambda: not cells._turned)
            heard: list[CellChange] = []
            cells.on_change(heard.append)
            for change in ({"void": [ident]}, {"revive": [ident]}, {"erase": [(ident, ident, 0)]}):
                heads = {one.id for one in (await cells.get(group, "lww", ITEMS)).heads}
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cells.wait_changed, group, "lww", ITEMS, heads)
                    await trio.sleep(1)
                    assert nursery.child_tasks
                    await alice.store.settle(group, **change)  # type: ignore[arg-type]
                await wait_until(lambda: bool(heard))
                assert [(one.cell.path, one.ids) for one in heard] == [(ITEMS, (ident,))]
                heard.clear()

    play(scene)


def test_what_is_erased_is_not_kept_open() -> None:
    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            cells = alice.replication.cells
            ident = await do(alice, group, "set", "add", "secret")
            await do(alice, group, "set", "add", "other")
            key = (group, filed(alice, group, "set"))
            assert ident in cells._opened.of(key)
            await alice.store.settle(group, erase=[(ident, ident, 0)])
            assert not cells._opened.of(key)
            assert await value(alice, group, "set") == ["other"]
            assert ident not in cells._opened.of(key)

    play(scene)


def test_a_big_cell_is_not_opened_in_the_writers_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            for n in range(20):
                await do(alice, group, "set", "add", n)
            compose = alice.store.compose
            asked: list[Container[bytes]] = []

            async def noting(*what: Any) -> object:
                asked.append(what[4])
                return await compose(*what)

            monkeypatch.setattr(alice.store, "compose", noting)
            ident = await do(alice, group, "set", "remove", 3)
            (known,) = asked
            assert isinstance(known, dict)
            assert len(known) == 20
            assert ident not in known

    play(scene)


def test_opened_records_are_bounded_by_bytes_and_go_by_cells() -> None:
    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            cells = alice.replication.cells
            one = 800 + 3 * 10_000
            cells._opened._bytes_max = 3 * one + one // 2
            for n in range(6):
                path = ("todo", str(n))
                await cells.change(group, Change("lww", path, "set", "x" * 10_000, "agent"))
                assert cells._opened.size_bytes <= cells._opened._bytes_max
            assert 2 * one < cells._opened.size_bytes
            held = cells._opened._cells
            assert len(held) == 3
            assert set(cells._opened._where) == {i for records in held.values() for i in records}
            for n in range(6):
                got = await cells.get(group, "lww", ("todo", str(n)))
                assert got.value == "x" * 10_000

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


def test_a_cell_takes_so_many_records_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "CELL_RECORDS_MAX", 12)
    monkeypatch.setattr(cells, "CELL_OWN_MIN", 4)

    async def scene() -> None:
        async with nodes("alice") as (alice,):
            group = (await alice.replication.create_group("team")).group
            for n in range(12):
                await do(alice, group, "set", "add", f"item {n}")
            with pytest.raises(GroupError, match="spread it") as refused:
                await do(alice, group, "set", "add", "one more")
            assert refused.value.reason == "cell_too_large"
            await do(alice, group, "set", "remove", "item 3")
            await do(alice, group, "set", "remove", "item 4")

    play(scene)


@pytest.mark.parametrize("junk", [True, False])
def test_who_fills_a_shared_cell_closes_it_for_itself_alone(
    *, junk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "CELL_RECORDS_MAX", 12)
    monkeypatch.setattr(cells, "CELL_OWN_MIN", 4)

    async def scene() -> None:
        async with nodes("alice", "mallory") as (alice, mallory):
            group = await pair_up(alice, mallory)
            tag = filed(mallory, group, "set")
            path = ("elsewhere",) if junk else ITEMS
            bodies = [encode_body("m", "set", path, "add", f"junk {n}") for n in range(40)]
            await mallory.store.append(group, [Drafted(body, tag, ()) for body in bodies])
            await agree(alice, mallory, group)
            with pytest.raises(GroupError, match="spread it"):
                await do(mallory, group, "set", "add", "one more")
            for n in range(4):
                await do(alice, group, "set", "add", f"item {n}")
            with pytest.raises(GroupError, match="spread it"):
                await do(alice, group, "set", "add", "one more")
            found = await value(alice, group, "set")
            assert isinstance(found, list)
            assert {f"item {n}" for n in range(4)} <= set(map(str, found))

    play(scene)
