"""The key of a removal is written under from the moment on that the removal is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from p2p.replication.ops import Kind
from p2p.replication.record import decode_header_untrusted
from tests.helpers.chains import PlainDraft
from tests.helpers.mesh import Mesh, pair_up, play
from tests.unit.test_replication_on_disk import on_disk

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_that_cites_a_removal_is_sealed_for_who_was_removed(tmp_path: Path) -> None:
    """Two agents write all the while: a record that knows of the limit has the new key."""

    async def scene() -> None:
        mesh = Mesh(9)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with bob.running(), on_disk(alice, tmp_path) as store:
            group = await pair_up(alice, bob)
            removed = trio.Event()

            async def write() -> None:
                while not removed.is_set():
                    await store.append(group, [PlainDraft(32, b"busy")])
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                nursery.start_soon(write)
                await alice.replication.membership.remove(group, bob.id)
                removed.set()
            assert len(await store.local("epoch", group)) == 2
            (limit,) = [
                row.id
                for row in await store.control(group)
                if decode_header_untrusted(row.header).kind == Kind.LIMIT
            ]
            known = bob.sealer.epochs(group)
            packed = (await store.index(group, 1)).packed
            ids = [packed[at + 8 : at + 40] for at in range(0, len(packed), 40)]
            told = 0
            for row in await store.fetch(ids, bodies=True):
                if limit in decode_header_untrusted(row.header).auth:
                    assert row.envelope is not None
                    assert row.envelope.epoch not in known
                    told += 1
            assert told > 2

    play(scene)
