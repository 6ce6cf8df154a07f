"""A crash at every write of a group's life: members, cells, an erasure, a removal.

A node with real keys over a recorded disk; the others keep theirs in memory. Each image of the disk
is looked at as it is, and then started: what was acknowledged is there, nothing is half there, and
the node goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import apsw
import pytest
import trio

from p2p.replication.epoch import key_tag
from p2p.replication.ops import Kind, Role
from p2p.replication.state import Change, Drafted, canonical_path, encode_body
from tests.helpers.chains import PlainDraft
from tests.helpers.crashvfs import Recorder, check_database, images
from tests.helpers.det import run_seeded
from tests.helpers.disk_nodes import on_disk
from tests.helpers.memories import empty_database
from tests.helpers.mesh import Mesh, Peer

if TYPE_CHECKING:
    from pathlib import Path

    from memory.records.replica import Replica
    from p2p.replication.state import Json, Op
    from tests.helpers.crashvfs import Image

SEED = 7
HERE = bytes(32)
ITEMS = ("todo", "items")
ADDS = 10
"""Adds of one element that know nothing of each other: more than a record can name, so that taking
the element out needs two."""


@dataclass
class Told:
    """What the work did, by name."""

    group: bytes = b""
    members: dict[str, bytes] = field(default_factory=dict)
    records: dict[str, list[bytes]] = field(default_factory=dict)
    """Ids of what was written in one step: all of them or none."""


async def work(alice: Peer, bob: Peer, carol: Peer, store: Replica, recorder: Recorder) -> Told:
    """Something of everything a group does, each step acknowledged."""
    told = Told()
    told.group = group = (await alice.replication.create_group("team")).group
    recorder.ack(("group", ""))
    for name, peer in (("bob", bob), ("carol", carol)):
        invite = await alice.replication.create_invite(group)
        await peer.replication.join(invite.ticket)
        told.members[name] = peer.id
        recorder.ack(("member", name))

    def note(name: str, *ids: bytes) -> None:
        told.records[name] = list(ids)
        recorder.ack(("kept", name))

    async def change(name: str, op: Op, value: Json) -> None:
        made = await alice.replication.cells.change(group, Change("set", ITEMS, op, value, "agent"))
        note(name, *made.ids)

    drafts = [PlainDraft(32, b"batch %d" % n) for n in range(4)]
    note("batch", *await store.append(group, drafts))
    note("gone", *await store.append(group, [PlainDraft(32, b"to be erased")]))
    theirs = [await bob.write(group, f"by bob {n}") for n in range(3)]
    await arrived(store, group, theirs)
    for n, ident in enumerate(theirs):
        note(f"bob {n}", ident)
    (secret, *_) = alice.sealer.epochs(group).values()
    tag = key_tag(secret, "set", canonical_path(ITEMS))
    adds = [Drafted(encode_body("agent", "set", ITEMS, "add", "one thing"), tag, ())] * ADDS
    note("added", *await store.append(group, adds))
    await change("taken out", "remove", "one thing")
    assert len(told.records["taken out"]) > 1
    counted = await alice.replication.cells.change(
        group, Change("counter", ITEMS, "incr", 5, "agent")
    )
    note("counted", *counted.ids)
    await store.settle(group, erase=[(told.records["gone"][0], HERE, 0)])
    recorder.ack(("erased", "gone"))
    await alice.replication.publish_erasures(group)
    recorder.ack(("published", "gone"))
    await alice.replication.membership.remove(group, bob.id)
    recorder.ack(("removed", "bob"))
    note("after", *await store.append(group, [PlainDraft(32, b"under the new key")]))
    return told


async def arrived(store: Replica, group: bytes, ids: list[bytes]) -> None:
    """Until records of another node are here."""
    committed = trio.Event()
    store.on_commit(lambda *_: committed.set())
    with trio.fail_after(60):
        while len(await store.known(ids)) < len(ids):
            await committed.wait()
            committed = trio.Event()
    assert await store.index(group, 1)


def record_work(folder: Path, *, synchronous: str = "FULL") -> tuple[Recorder, Told]:
    """The work over a recorded disk that already holds an empty memory."""
    folder.mkdir()
    (folder / "covey.db").write_bytes(empty_database())
    recorder = Recorder(folder)
    told = Told()

    async def scene() -> None:
        nonlocal told
        mesh = Mesh(9)
        alice, bob, carol = (mesh.peer(name) for name in ("alice", "bob", "carol"))
        async with (
            bob.running(),
            carol.running(),
            on_disk(alice, folder, recorder.vfs_name) as store,
        ):
            writer = store.db._require_writer()
            await writer.run(
                lambda: writer.connection.execute(f"PRAGMA synchronous={synchronous}").fetchall()
            )
            told = await work(alice, bob, carol, store, recorder)

    run_seeded(scene, seed=1)
    recorder.close()
    return recorder, told


def names(image: Image, kind: str) -> set[str]:
    """What of a kind was acknowledged before the image."""
    return {unit[1] for unit in image.acked if isinstance(unit, tuple) and unit[0] == kind}


def lost(db: apsw.Connection, image: Image, told: Told) -> list[str]:
    """What was acknowledged and is not there."""
    return sorted(
        name
        for name in names(image, "kept")
        for ident in told.records[name]
        if db.execute("SELECT 1 FROM record WHERE id = ?", (ident,)).get is None
    )


def check_rows(db: apsw.Connection, image: Image, told: Told) -> None:
    """Nothing torn, nothing acknowledged lost."""
    check_database(db)
    for name, sql in {
        "a data record without its body": "SELECT 1 FROM record r LEFT JOIN body b ON b.n = r.n"
        " LEFT JOIN body_key k ON k.n = r.n WHERE r.kind >= 32 AND"
        " (r.state <> 'stub') <> (b.n IS NOT NULL AND k.n IS NOT NULL)",
        "a control record without its payload": "SELECT 1 FROM record r LEFT JOIN control c"
        " ON c.n = r.n WHERE r.kind < 32 AND c.n IS NULL",
        "a log that miscounts": "SELECT 1 FROM log l WHERE l.max_seq <>"
        " (SELECT count(*) FROM record r WHERE r.log = l.n)",
        "a stub nobody erased": "SELECT 1 FROM record r WHERE (r.state = 'stub') <>"
        " EXISTS (SELECT 1 FROM erased e WHERE e.id = r.id)",
    }.items():
        assert db.execute(sql).fetchall() == [], name
    for name, ids in told.records.items():
        here = [db.execute("SELECT 1 FROM record WHERE id = ?", (i,)).get is not None for i in ids]
        assert all(here) or not any(here), f"{name} is half there"
    assert not lost(db, image, told)
    for name in names(image, "erased"):
        row = db.execute("SELECT state FROM record WHERE id = ?", (told.records[name][0],)).get
        assert row == "stub"
    kinds = [
        kind
        for (kind,) in db.execute(
            "SELECT r.kind FROM record r JOIN log l ON l.n = r.log WHERE l.author ="
            " (SELECT author FROM log ORDER BY n LIMIT 1) AND r.kind < 32"
        )
    ]
    epochs, limits = kinds.count(Kind.EPOCH), kinds.count(Kind.LIMIT)
    assert kinds.count(Kind.GENESIS) == min(epochs, 1), "a group without its first key"
    assert epochs - min(epochs, 1) == limits, "a removal without its new key, or a key without it"


async def check_start(folder: Path, image: Image, told: Told) -> None:
    """The node starts over the image, knows what it told, and goes on writing."""
    alice = Mesh(9).peer("alice")
    async with on_disk(alice, folder) as store:
        groups = {view.group for view in alice.replication.groups()}
        assert told.group in groups or not names(image, "group")
        if told.group not in groups:
            return
        roles = {m.member: m.role for m in alice.replication.members(told.group)}
        assert roles[alice.id] == Role.ADMIN
        limits = rows(folder, "SELECT id FROM record WHERE kind = ?", Kind.LIMIT)
        for name in names(image, "member"):
            out = name in names(image, "removed")
            assert told.members[name] not in roles or not out
            # What came after the acknowledgement may be there without it.
            assert told.members[name] in roles or out or limits
        # A key is stored a moment after its epoch, which holds it sealed to this node as well.
        epochs = rows(
            folder, "SELECT substr(id, 1, 16) FROM record WHERE kind = ? ORDER BY n", Kind.EPOCH
        )
        assert set(alice.sealer.epochs(told.group)) == set(epochs)
        assert alice.sealer.current_epoch(told.group) == epochs[-1]
        (ident,) = await store.append(told.group, [PlainDraft(32, b"goes on")])
        assert dict(await store.known([ident])) == {ident: "live"}
        if "taken out" in names(image, "kept"):
            assert not (await alice.replication.cells.get(told.group, "set", ITEMS)).value
        if "counted" in names(image, "kept"):
            cell = await alice.replication.cells.get(told.group, "counter", ITEMS)
            assert cell.value == 5
        assert not alice.named("fork.detected")


def rows(folder: Path, sql: str, kind: Kind) -> list[object]:
    """The first column of what a query finds of a kind."""
    db = apsw.Connection(str(folder / "covey.db"))
    try:
        return [value for (value,) in db.execute(sql, (int(kind),))]
    finally:
        db.close()


def examine(tmp_path: Path, stride: int, starts: int) -> tuple[int, int]:
    """(images looked at, images started); each `starts`-th image is started as well."""
    recorder, told = record_work(tmp_path / "live")
    seen = started = 0
    for image in images(recorder, seed=SEED, stride=stride):
        folder = tmp_path / "image"
        image.lay_out(folder)
        db = apsw.Connection(str(folder / "covey.db"))
        try:
            check_rows(db, image, told)
        except AssertionError as exc:
            raise AssertionError(f"{image}: {exc}") from exc
        finally:
            db.close()
        if seen % starts == 0:
            run_seeded(check_start, folder, image, told, seed=1)
            started += 1
        seen += 1
    return seen, started


def test_a_group_survives_a_crash_at_sampled_writes(tmp_path: Path) -> None:
    seen, started = examine(tmp_path, 23, 3)
    assert seen > 50
    assert started > 15


def test_without_full_sync_the_same_crashes_lose_what_was_told(tmp_path: Path) -> None:
    """The control."""
    recorder, told = record_work(tmp_path / "live", synchronous="NORMAL")
    seen = losses = 0
    for image in images(recorder, seed=SEED, stride=23, kinds=("unsynced",)):
        image.lay_out(tmp_path / "image")
        db = apsw.Connection(str(tmp_path / "image" / "covey.db"))
        losses += bool(lost(db, image, told))
        db.close()
        seen += 1
    assert losses > seen / 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_group_survives_a_crash_at_every_write(tmp_path: Path) -> None:
    seen, started = examine(tmp_path, 1, 8)
    assert seen > 1_000
    assert started > 100
