"""Comparing with other members on request, and what of it is told. Source: docs/specs/sync.md."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from p2p.replication.hlc import ms_of
from p2p.replication.record import LANE_CONTROL, LANE_DATA, decode_header_untrusted
from p2p.replication.service_base import Facet
from p2p.replication.views import PeerSync, RecordView, SyncResult

if TYPE_CHECKING:
    from collections.abc import Sequence

REPAIR_SESSIONS_MAX: Final = 8
"""Sessions of one repair; each brings up to 65,536 records a lane. Source: a guess."""


def _added(before: SyncResult | None, result: SyncResult) -> SyncResult:
    """The later of two results with what both carried."""
    if before is None:
        return result
    return replace(
        result, received=before.received + result.received, sent=before.sent + result.sent
    )


class SyncService(Facet):
    """Sessions that somebody asked for."""

    async def sync_now(
        self, group: bytes | None = None, peer: bytes | None = None
    ) -> list[SyncResult]:
        """Compare with connected members now.

        Args:
            group: one group only; its members are asked.
            peer: one member only; it is dialled if it is not connected.

        Raises:
            GroupError: unknown group.
        """
        results: list[SyncResult] = []
        for one in self._peers_of(group, peer):
            found = await self._driver.sync_with(one)
            results += [r for r in found if group is None or r.group == group]
        return results

    async def repair(
        self, group: bytes | None = None, peer: bytes | None = None
    ) -> list[SyncResult]:
        """Synchronise with connected members until the sets are equal or no session helps.

        Returns:
            A result a group and peer, with the records received and sent of all its sessions.

        Raises:
            GroupError: unknown group.
        """
        results: dict[tuple[bytes, bytes], SyncResult] = {}
        for one in self._peers_of(group, peer):
            for _ in range(REPAIR_SESSIONS_MAX):
                found = await self._driver.sync_with(one)
                asked = [r for r in found if group is None or r.group == group]
                for result in asked:
                    key = result.group, result.peer
                    results[key] = _added(results.get(key), result)
                if not any(r for r in asked if not r.equal and r.received + r.sent):
                    break
        return list(results.values())

    async def verify(
        self, group: bytes | None = None, peer: bytes | None = None
    ) -> list[SyncResult]:
        """Compare sets with connected members to the last record, and fetch nothing.

        Args:
            group: one group only.
            peer: one member only; it is dialled if it is not connected.

        Returns:
            A result a group and peer; `verified` tells whether there is a verdict. None for a peer
            that could not be reached.

        Raises:
            GroupError: unknown group.
        """
        results: list[SyncResult] = []
        for one in self._peers_of(group, peer):
            found = await self._driver.verify_with(one)
            results += [r for r in found if group is None or r.group == group]
        return results

    async def describe(self, ids: Sequence[bytes]) -> list[RecordView]:
        """What the headers of records say, of those that are here."""
        views = []
        for row in await self._core.store.fetch(ids, bodies=False):
            header = decode_header_untrusted(row.header)
            views.append(
                RecordView(
                    id=row.id, author=header.author, kind=header.kind, at_ms=ms_of(header.hlc)
                )
            )
        return views

    def _peers_of(self, group: bytes | None, peer: bytes | None) -> list[bytes]:
        """The members meant: one, or those connected; of one group, or any."""
        asked = None if group is None else self._group(group)
        connected = self._node.fabric.peers()
        peers = [p for p in self._core.groups.peers() if p in connected] if peer is None else [peer]
        return [one for one in peers if asked is None or asked.role(one) is not None]

    async def digest(self, group: bytes) -> tuple[int, bytes]:
        """One hash over what a group holds here: equal on two devices, equal sets.

        Returns:
            How many records count in both lanes, and SHA-256 over their (hlc, id) pairs.

        Raises:
            GroupError: unknown group.
        """
        found = self._group(group)
        hashed, records = hashlib.sha256(), 0
        for lane in (LANE_CONTROL, LANE_DATA):
            index = await self._core.store.index(found.id, lane)
            records += len(index)
            hashed.update(len(index).to_bytes(8, "big") + index.packed)
        return records, hashed.digest()

    def status(self) -> list[PeerSync]:
        """How the last session with each peer ended, per group."""
        return self._driver.status()

    @property
    def records_refused(self) -> int:
        """Records that peers brought and should have refused themselves, since the start."""
        return self._core.quota.refused_in_all
