"""Answers that are too large for an item of a session travel as blobs.

The worker puts such an answer into a blob that the job's group may read, and its result names the
blob; the coordinator fetches it, takes what it held, and acknowledges after the commit, upon which
the worker lets the blob go. An answer that quotes the memory never leaves so: an erasure must find
it. Source: docs/specs/jobs.md s.4.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from federated.errors import HandlerError
from federated.jobs.held import HELD_MS
from federated.jobs.limits import OUTPUT_BYTES_MAX, RESULT_BYTES_MAX
from federated.jobs.quoting import quotes
from federated.jobs.worker_task import failed
from p2p.blobs.manifest import ID_BYTES, BlobId
from p2p.errors import LimitError, P2pError

if TYPE_CHECKING:
    from federated.jobs.items import Ref, TaskResult
    from federated.seams import GroupId
    from p2p.blobs.fetch import Progress
    from p2p.blobs.service import Blobs

FETCH_S: Final = 30.0
"""Longest that an answer is fetched; as long its attempt is not called lost. Guess: a mebibyte over
a slow line."""
FETCHES_MAX: Final = 4
TAG: Final = "answer-"
PRUNE_AFTER_MS: Final = HELD_MS + 3_600_000


class Bulk:
    """Large answers, on both sides.

    Args:
        blobs: of this node; None: it keeps none, and answers are as large as an item holds.
    """

    def __init__(self, blobs: Blobs | None) -> None:
        self._blobs = blobs
        self._fetching = trio.CapacityLimiter(FETCHES_MAX)

    @property
    def out_bytes_max(self) -> int:
        """Of a task's answer here."""
        return RESULT_BYTES_MAX if self._blobs is None else OUTPUT_BYTES_MAX

    # ---- the worker

    async def carried(self, result: TaskResult, ref: Ref, group: GroupId | None) -> TaskResult:
        """A result as it travels: itself, with a blob for its rows, or failed.

        Args:
            result: of a task that ended here.
            ref: its attempt, which holds the blob until it is released.
            group: who may read it.
        """
        if len(result.rows) <= RESULT_BYTES_MAX:
            return result
        reason = "output"
        if self._blobs is not None and not quotes(result.rows):
            try:
                blob = await self._blobs.put([result.rows], group, tag=_tag(ref))
                return msgspec.structs.replace(result, rows=bytes(blob), in_blob=True)
            except P2pError:
                reason = "busy"  # no room here; elsewhere there may be
        return failed(result.task, result.attempt, HandlerError(reason), result.usage)

    async def release(self, ref: Ref, rows: bytes) -> None:
        """A result that was carried is wanted no more."""
        if self._blobs is None or len(rows) != ID_BYTES:
            return
        await self._let_go(self._blobs, BlobId(rows), _tag(ref))

    async def prune(self, wall_ms: int) -> None:
        """Let go of what nobody came for in time."""
        if self._blobs is None:
            return
        for info in await self._blobs.listed():
            for tag, _ in info.pins:
                if tag.startswith(TAG) and info.used_ms < wall_ms - PRUNE_AFTER_MS:
                    await self._let_go(self._blobs, info.id, tag)

    async def _let_go(self, blobs: Blobs, blob: BlobId, tag: str) -> None:
        try:
            await blobs.unpin(blob, tag)
            info = await blobs.stat(blob)
            if info is not None and not info.pins:
                await blobs.drop(blob)
        except P2pError:
            return  # it is being read still; without a pin it goes when room is needed

    # ---- the coordinator

    async def fetched(self, rows: bytes, group: GroupId | None) -> bytes | None:
        """The answer that a result names.

        Args:
            rows: of the result.
            group: whose members may have it.

        Returns:
            Its bytes; empty if it is larger than an answer may be; None if it cannot be had.
        """
        blobs = self._blobs
        if blobs is None or len(rows) != ID_BYTES:
            return None
        blob = BlobId(rows)
        async with self._fetching:
            with trio.move_on_after(FETCH_S):
                return await self._read(blobs, blob, group)
        return None

    async def _read(self, blobs: Blobs, blob: BlobId, group: GroupId | None) -> bytes | None:
        before = await blobs.stat(blob)
        try:
            too_large = await _brought(blobs, blob, group)
            data = b"" if too_large else await blobs.read(blob, 0, OUTPUT_BYTES_MAX + 1)
        except LimitError:
            data = b""
        except P2pError:
            return None
        if before is None:
            # Ours for this moment only; what somebody else keeps here stays.
            with suppress(P2pError):
                await blobs.drop(blob)
        return b"" if len(data) > OUTPUT_BYTES_MAX else data


async def _brought(blobs: Blobs, blob: BlobId, group: GroupId | None) -> bool:
    """Have a blob here; whether it turned out to be too large instead."""
    with trio.CancelScope() as scope:

        def look(progress: Progress) -> None:
            if (progress.bytes_total or 0) > OUTPUT_BYTES_MAX:
                scope.cancel()

        await blobs.fetch(blob, group, on_progress=look)
    return scope.cancelled_caught


def _tag(ref: Ref) -> str:
    job, task, attempt = ref
    return f"{TAG}{job.hex()}-{task}-{attempt}"
