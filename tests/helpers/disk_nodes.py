"""Replicating nodes of a mesh whose records are in a real database."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from memory.records.replica import Replica
from memory.storage.db import Db
from tests.helpers.memories import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from p2p.replication.sealing import GroupSealer
    from tests.helpers.mesh import Peer


@asynccontextmanager
async def on_disk(peer: Peer, folder: Path, vfs: str | None = None) -> AsyncIterator[Replica]:
    """Run the node over a database in a folder."""
    db = Db(folder / "covey.db", Clock(), inline=True, vfs=vfs)
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
