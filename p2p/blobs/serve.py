"""Blobs for peers: who may read what, a piece at a time, from chunks found right.

What a caller may not read is answered as if it were not here, so that asking tells nothing. Pieces
are read one at a time and only as fast as the caller takes them; a request for 64 MiB therefore
holds one piece. Source: docs/specs/blobs.md s.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from p2p.blobs.manifest import BlobId, chunk_count, encode_bitmap
from p2p.blobs.messages import (
    GET,
    HAVE,
    ITEM_BYTES_MAX,
    MANIFEST,
    GetQuery,
    GetReply,
    HaveQuery,
    HaveReply,
    Held,
    ManifestQuery,
    ManifestReply,
    Piece,
)
from p2p.blobs.pins import Public
from p2p.errors import DecodeError, RemoteError, TimedOut
from p2p.rpc_types import Code

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.blobs.config import BlobConfig
    from p2p.blobs.manifest import Manifest
    from p2p.blobs.pins import Entry, Group
    from p2p.blobs.store import Store
    from p2p.identity import PeerId
    from p2p.rpc import Rpc
    from p2p.rpc_types import Caller, CallStream

NOT_HERE: Final = "no such blob here"


class BlobServer:
    """The handlers of `blob.*`.

    Args:
        rpc: where they are served.
        store: the blobs.
        config: limits.
        reads: whether a group's blobs are for a peer; asked for each request, never remembered.
    """

    def __init__(
        self,
        rpc: Rpc,
        store: Store,
        config: BlobConfig,
        reads: Callable[[Group, PeerId], bool],
    ) -> None:
        self._rpc = rpc
        self._store = store
        self._config = config
        self._reads = reads
        self._disk = trio.CapacityLimiter(config.serve_reads_max)
        self.bytes_out = 0
        rpc.serve(HAVE, self._have, allow=self._may_ask)
        rpc.serve(MANIFEST, self._manifest, allow=self._may_ask)
        rpc.serve(GET, self._get, allow=self._may_ask)

    def _may_ask(self, peer: PeerId) -> bool:
        """Members, and strangers as long as something here is for everybody."""
        return self._rpc.is_member(peer) or any(
            isinstance(group, Public)
            for entry in self._store.entries.values()
            for group in entry.pins.groups
        )

    def _find(self, raw: bytes, peer: PeerId) -> Entry | None:
        """A blob of ours that `peer` may read."""
        entry = self._store.entries.get(BlobId(raw))
        if entry is None or not any(self._reads(group, peer) for group in entry.pins.groups):
            return None
        return entry

    async def _have(self, caller: Caller, query: HaveQuery, stream: CallStream) -> HaveReply:  # noqa: ARG002 - a handler's shape
        await self._store.load()
        return HaveReply([self._held(raw, caller.peer) for raw in query.ids])

    def _held(self, raw: bytes, peer: PeerId) -> Held | None:
        entry = self._find(raw, peer)
        if entry is None:
            return None
        if entry.whole:
            return Held(entry.size, b"")
        # Of a part, only what was found right in this run, and a fetch goes on.
        if not entry.fetching or not entry.right:
            return None
        return Held(entry.size, encode_bitmap(entry.right, chunk_count(entry.size)))

    async def _manifest(
        self, caller: Caller, query: ManifestQuery, stream: CallStream
    ) -> ManifestReply:
        await self._store.load()
        _, manifest = await self._open(query.id, caller.peer)
        data = manifest.encode()
        for offset in range(0, len(data), ITEM_BYTES_MAX):
            await self._send(stream, data[offset : offset + ITEM_BYTES_MAX])
        return ManifestReply(len(data))

    async def _get(self, caller: Caller, query: GetQuery, stream: CallStream) -> GetReply:
        await self._store.load()
        if len(set(query.indices)) < len(query.indices):
            raise DecodeError("a chunk is asked for twice in one request")
        entry, manifest = await self._open(query.id, caller.peer)
        if max(query.indices) >= manifest.chunks:
            raise DecodeError(f"the blob has {manifest.chunks} chunks")
        await self._store.touch(entry)
        for index in query.indices:
            await self._send_chunk(stream, entry, manifest, index)
        return GetReply(len(query.indices))

    async def _open(self, raw: bytes, peer: PeerId) -> tuple[Entry, Manifest]:
        entry = self._find(raw, peer)
        manifest = None if entry is None else await self._store.manifest(entry)
        if entry is None or manifest is None:
            raise RemoteError(Code.APPLICATION, NOT_HERE)
        return entry, manifest

    async def _send_chunk(
        self, stream: CallStream, entry: Entry, manifest: Manifest, index: int
    ) -> None:
        async with self._disk:
            if not await self._store.check(entry, manifest, index):
                raise RemoteError(Code.APPLICATION, NOT_HERE)
        start, size = manifest.span(index)
        for offset in range(0, size, ITEM_BYTES_MAX):
            wanted = min(ITEM_BYTES_MAX, size - offset)
            async with self._disk:
                data = await self._store.piece(entry, start + offset, wanted)
            if len(data) != wanted:
                raise RemoteError(Code.APPLICATION, NOT_HERE)
            await self._send(stream, Piece(index, offset, data))
            self.bytes_out += wanted

    async def _send(self, stream: CallStream, item: object) -> None:
        with trio.move_on_after(self._config.serve_stall_s) as limit:
            await stream.send(item)
        if limit.cancelled_caught:
            raise TimedOut("you take nothing of what you asked for")
