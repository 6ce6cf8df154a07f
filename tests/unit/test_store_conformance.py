"""Both stores, one contract."""

from __future__ import annotations

import pytest

from p2p.replication.memstore import MemStore
from tests.helpers.chains import PlainSealer
from tests.helpers.store_conformance import ME, StoreConformance, StoreWorld


class TestMemStore(StoreConformance):
    """The store of the simulations."""

    @pytest.fixture
    def world(self) -> StoreWorld:
        """A new store; reopening makes another over the same disk."""
        sealer = PlainSealer(ME)
        store = MemStore(sealer)

        async def reopen() -> MemStore:
            return MemStore(sealer, store.disk)

        return StoreWorld(store, sealer, reopen)
