"""The DHT as the directory of blobs: who has one, beyond the peers we are connected to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.dht.service import Dht
    from p2p.identity import PeerId
    from p2p.net.seam import Addr

PROVIDERS_MAX: Final = 8
"""Sources of a fetch. Source: docs/specs/blobs.md."""


@dataclass(frozen=True)
class Named:
    """Somebody who says that he has a blob."""

    peer: PeerId
    addrs: Sequence[Addr]


class DhtDirectory:
    """Satisfies `p2p.blobs.fetch.Providers`."""

    def __init__(self, dht: Dht) -> None:
        self._dht = dht

    async def providers(self, key: bytes) -> Sequence[Named]:
        """Who provides `key`; a hint."""
        found = await self._dht.providers(key, PROVIDERS_MAX)
        return [Named(peer, addrs) for peer, addrs in found]

    async def provide(self, key: bytes) -> int:
        """Say that we have `key`; how many keep that in mind."""
        return await self._dht.provide(key)
