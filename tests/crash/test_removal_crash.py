"""A crash at every write of a member that is told of a removal.

The one who writes a removal is looked at in `test_group_crash.py`. Here the recorded disk is that
of a member which has stored what the removed one wrote and then hears of the removal: whatever it
had on disk when the power went, after its next start nothing that the removal cuts off counts once
the removal itself is there.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import apsw
import pytest

from p2p.replication import liveness
from p2p.replication.ops import Kind
from tests.crash.test_group_crash import SEED, arrived, on_disk, rows
from tests.helpers.chains import PlainDraft
from tests.helpers.crashvfs import Recorder, check_database, images
from tests.helpers.det import run_seeded
from tests.helpers.memories import empty_database
from tests.helpers.mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from p2p.replication.groups import Group
    from tests.helpers.mesh import Peer

WRITTEN = 6
KEPT = b"by alice"


def record_removal(folder: Path) -> tuple[Recorder, bytes, bytes]:
    """Carol's disk while Alice takes Bob out with all he wrote: (recorder, group, Bob)."""
    folder.mkdir()
    (folder / "covey.db").write_bytes(empty_database())
    recorder = Recorder(folder)
    group = bob_id = b""

    async def scene() -> None:
        nonlocal group, bob_id
        mesh = Mesh(9)
        carol, alice, bob = (mesh.peer(name) for name in ("carol", "alice", "bob"))
        bob_id = bob.id
        async with (
            alice.running(),
            bob.running(),
            on_disk(carol, folder, recorder.vfs_name) as store,
        ):
            group = (await alice.replication.create_group("team")).group
            for peer in (bob, carol):
                await peer.replication.join((await alice.replication.create_invite(group)).ticket)
            written = [await bob.write(group, f"bad {n}") for n in range(WRITTEN)]
            written += await alice.store.append(group, [PlainDraft(32, KEPT)])
            await arrived(store, group, written)
            recorder.ack("all here")
            await alice.replication.membership.remove(group, bob.id, 0)
            limits = [
                r.id for r in alice.disk.rows.values() if r.record.kind in (Kind.LIMIT, Kind.EPOCH)
            ]
            await arrived(store, group, limits)
            async with carol.replication._core.keeper.turn(_group(carol, group)):
                recorder.ack("followed up")

    run_seeded(scene, seed=1)
    recorder.close()
    return recorder, group, bob_id


def _group(peer: Peer, group: bytes) -> Group:
    found = peer.replication._core.groups.get(group)
    assert found is not None
    return found


_LIVE = (
    "SELECT count(*) FROM record r JOIN log l ON l.n = r.log"
    " WHERE r.kind >= 32 AND r.state = 'live' AND l.author = ?"
)


def live_of(folder: Path, author: bytes) -> int:
    """Data records of an author that count."""
    db = apsw.Connection(str(folder / "covey.db"))
    try:
        check_database(db)
        found = db.execute(_LIVE, (author,)).get
        assert isinstance(found, int)
        return found
    finally:
        db.close()


async def start(folder: Path, group: bytes) -> None:
    """One start of the device, with nobody else there."""
    mesh = Mesh(9)
    carol = mesh.peer("carol")
    async with on_disk(carol, folder):
        if group in {view.group for view in carol.replication.groups()}:
            assert not _group(carol, group).unjudged


def examine(tmp_path: Path, stride: int) -> tuple[int, int, int]:
    """(images started, of these with the removal, of these where it was not carried out yet)."""
    recorder, group, bob = record_removal(tmp_path / "live")
    seen = told = cut = 0
    folder = tmp_path / "image"
    for image in images(recorder, seed=SEED, stride=stride):
        if "all here" not in image.acked:
            continue
        image.lay_out(folder)
        before = live_of(folder, bob)
        removed = bool(rows(folder, "SELECT id FROM record WHERE kind = ?", Kind.LIMIT))
        run_seeded(start, folder, group, seed=1)
        after = live_of(folder, bob)
        assert after == (0 if removed else WRITTEN), f"{image}: {before} live, then {after}"
        if "followed up" in image.acked:
            assert removed
            assert before == 0
        seen, told, cut = seen + 1, told + removed, cut + (removed and before > 0)
    return seen, told, cut


@contextmanager
def small_parts() -> Iterator[None]:
    """A record a transaction, so that a crash falls between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(liveness, "RESCAN_BYTES", 1)
        yield


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_member_told_of_a_removal_may_crash_at_any_write(tmp_path: Path) -> None:
    with small_parts():
        seen, told, cut = examine(tmp_path, 1)
    assert seen > 100
    assert 0 < told < seen
    assert cut > WRITTEN, "no crash fell between the removal and its effect"
