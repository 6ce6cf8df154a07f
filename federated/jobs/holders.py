"""Who has the blobs that rows name: such rows go to machines that need not fetch them first.

Each member that is connected is asked once, when the job begins; a member's word only orders those
who may have the row anyway. Source: docs/specs/jobs.md s.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from p2p.blobs.manifest import BlobId
from p2p.blobs.messages import HAVE, HAVE_IDS_MAX, HaveQuery
from p2p.errors import P2pError

if TYPE_CHECKING:
    from federated.jobs.state import Job
    from federated.seams import Mesh
    from p2p.blobs.service import Blobs
    from p2p.identity import PeerId

ASK_S: Final = 2.0
"""Longest that a job's beginning waits for what its members have: as long as a plan does."""
BLOBS_MAX: Final = 16 * HAVE_IDS_MAX
"""Blobs of a job that are asked for; rows with others go to anybody. Guess: 16 calls a member."""


class Holders:
    """Asks members which blobs they have.

    Args:
        mesh: peers and calls.
        blobs: of this node; None: it keeps none.
    """

    def __init__(self, mesh: Mesh, blobs: Blobs | None) -> None:
        self._mesh = mesh
        self._blobs = blobs

    async def ask(self, job: Job) -> None:
        """Note in a job who has the blobs that its rows name, as far as that is heard in time."""
        wanted = sorted(set(job.blobs.values()))[:BLOBS_MAX]
        if not wanted:
            return
        with trio.move_on_after(ASK_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ours, job, wanted)
                for peer in self._mesh.members(job.group):
                    if self._mesh.fabric.info(peer) is not None:
                        nursery.start_soon(self._theirs, job, peer, wanted)

    async def _ours(self, job: Job, wanted: list[bytes]) -> None:
        if self._blobs is None:
            return
        for blob in wanted:
            info = await self._blobs.stat(BlobId(blob))
            if info is not None and info.whole:
                job.holders.setdefault(blob, set()).add(self._mesh.id)

    async def _theirs(self, job: Job, peer: PeerId, wanted: list[bytes]) -> None:
        try:
            for first in range(0, len(wanted), HAVE_IDS_MAX):
                ids = wanted[first : first + HAVE_IDS_MAX]
                reply = await self._mesh.rpc.call(peer, HAVE, HaveQuery(ids), timeout_s=ASK_S)
                for blob, held in zip(ids, reply.held, strict=False):
                    if held is not None and not held.bitmap:
                        job.holders.setdefault(blob, set()).add(peer)
        except P2pError:
            return  # it is no holder then
