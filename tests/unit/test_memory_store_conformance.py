"""The durable store keeps the contract of every record store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from memory.records.replica import Replica
from memory.storage.db import Db
from tests.helpers.chains import PlainSealer
from tests.helpers.memories import Clock
from tests.helpers.store_conformance import ME, StoreConformance, StoreWorld

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class TestReplica(StoreConformance):
    """SQLite on disk, inline so that tests stay quick; the threaded mode runs in test_db.py."""

    @pytest.fixture
    async def world(self, tmp_path: Path) -> AsyncIterator[StoreWorld]:
        sealer = PlainSealer(ME)
        async with trio.open_nursery() as nursery:
            opened: list[Db] = []

            async def open_replica() -> Replica:
                db = Db(tmp_path / "covey.db", Clock(), inline=True)
                opened.append(db)
                await nursery.start(db.run)
                return Replica(db, sealer, tmp_path)

            async def reopen() -> Replica:
                await opened[-1].aclose()
                return await open_replica()

            yield StoreWorld(await open_replica(), sealer, reopen)
            await opened[-1].aclose()
