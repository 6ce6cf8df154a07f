"""Our blobs, without stalling the loop: the files of `storage` behind an `Offload`, and who is who.

A chunk is given to anybody only after it was found right in this run of the process: by hashing it
when it was received or put, or when it is first read. A blob whose bytes went bad is a part again,
and the next fetch mends it. Source: docs/specs/blobs.md s.6.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from p2p.blobs import collect
from p2p.blobs.manifest import Manifest, chunk_is, open_manifest
from p2p.blobs.pins import Entry, Pins, decode_pins
from p2p.errors import Busy, DecodeError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from p2p.blobs.config import BlobConfig
    from p2p.blobs.manifest import BlobId
    from p2p.blobs.pins import Group
    from p2p.blobs.storage import BlobFiles, Found, Incoming, Part
    from p2p.env import Env, Offload

log = logging.getLogger("covey.p2p.blobs")

MANIFESTS_KEPT_MAX: Final = 16
"""Manifests in memory, a mebibyte each at most."""

TOUCH_EVERY_MS: Final = 60_000
"""A blob's last use is written down at most so often: it decides only who is collected first."""


class Store:
    """All blobs of this node.

    Args:
        files: where they lie.
        env: clocks.
        offload: where blocking work goes.
        config: limits.
    """

    def __init__(self, files: BlobFiles, env: Env, offload: Offload, config: BlobConfig) -> None:
        self.entries: dict[BlobId, Entry] = {}
        self.bytes_in = 0
        self.collected = 0
        self.damaged = 0
        self._files = files
        self._env = env
        self._offload = offload
        self._config = config
        self._manifests: OrderedDict[BlobId, Manifest] = OrderedDict()
        self._loading = trio.Lock()
        self._loaded = False

    async def load(self) -> None:
        """Look at what is on disk, once; everything else waits for it.

        Raises:
            TransientError: the folder cannot be read.
        """
        async with self._loading:
            if self._loaded:
                return
            for entry in await self._offload.run(self._scan):
                self.entries[entry.id] = entry
            self._loaded = True
        await self.collect()

    def _scan(self) -> list[Entry]:
        entries = []
        for found in self._files.scan():
            size = found.bytes_used if found.whole else self._size_of_part(found)
            if size is None:
                self._files.remove(found.id)
                continue
            entries.append(
                Entry(
                    id=found.id,
                    size=size,
                    whole=found.whole,
                    bytes_used=found.bytes_used,
                    used_ms=found.used_ms,
                    pins=decode_pins(found.pins),
                )
            )
        return entries

    def _size_of_part(self, found: Found) -> int | None:
        try:
            return open_manifest(found.id, self._files.read_manifest(found.id)).size
        except DecodeError:
            return None

    # --- Reading ------------------------------------------------------------------------------

    def path(self, entry: Entry) -> Path:
        """Where a whole blob lies."""
        return self._files.path_of(entry.id)

    async def manifest(self, entry: Entry) -> Manifest | None:
        """The manifest of a blob of ours, proved; None if its file is damaged."""
        known = self._manifests.get(entry.id)
        if known is not None:
            self._manifests.move_to_end(entry.id)
            return known
        data = await self._offload.run(lambda: self._files.read_manifest(entry.id))
        try:
            manifest = open_manifest(entry.id, data)
        except DecodeError:
            return None
        self._keep_manifest(entry.id, manifest)
        return manifest

    def _keep_manifest(self, blob: BlobId, manifest: Manifest) -> None:
        self._manifests[blob] = manifest
        while len(self._manifests) > MANIFESTS_KEPT_MAX:
            self._manifests.popitem(last=False)

    async def check(self, entry: Entry, manifest: Manifest, index: int) -> bool:
        """Whether a chunk of ours is right; hashed once in a run of the process."""
        if entry.right >> index & 1:
            return True
        if not entry.whole:
            return False
        offset, size = manifest.span(index)
        right = await self._offload.run(
            lambda: chunk_is(manifest, index, self._files.read(entry.id, offset, size, whole=True))
        )
        if right:
            entry.right |= 1 << index
        elif entry.id in self.entries and entry.whole:
            await self._demote(entry)
        return right

    async def check_whole(self, entry: Entry) -> bool:
        """Whether every byte of a whole blob is right; if not, it is a part from now on."""
        if not entry.whole:
            return False
        manifest = await self.manifest(entry)
        if manifest is None or manifest.size != entry.size:
            await self._demote(entry)
            return False
        if entry.right != manifest.whole:
            for index in range(manifest.chunks):
                if not await self.check(entry, manifest, index):
                    return False
        return True

    async def piece(self, entry: Entry, offset: int, size: int) -> bytes:
        """Bytes of a blob, from chunks that were checked; short when it is gone meanwhile."""

        def read() -> bytes:
            data = self._files.read(entry.id, offset, size, whole=entry.whole)
            # It may have become whole between the question and the file.
            return data or self._files.read(entry.id, offset, size, whole=not entry.whole)

        return await self._offload.run(read)

    async def touch(self, entry: Entry) -> None:
        """The blob was used now."""
        now_ms = self._env.wall_ms()
        written_ms, entry.used_ms = entry.used_ms, now_ms
        if abs(now_ms - written_ms) >= TOUCH_EVERY_MS:
            await self._offload.run(lambda: self._files.touch(entry.id, now_ms))

    async def _demote(self, entry: Entry) -> None:
        async with entry.lock:
            if not entry.whole or entry.id not in self.entries:
                return
            log.error("blob_damaged", extra={"f": {"blob": entry.id.hex()}})
            self.damaged += 1
            await self._offload.run(lambda: self._files.demote(entry.id))
            entry.whole = False
            entry.right = 0
            self._manifests.pop(entry.id, None)

    # --- Writing ------------------------------------------------------------------------------

    async def incoming(self) -> Incoming:
        """A new blob to write; `write` it through `run`, then `place` or abort it.

        Raises:
            DiskFull: no room.
        """
        return await self._offload.run(self._files.incoming)

    async def write(self, incoming: Incoming, data: bytes) -> None:
        """Append to a new blob.

        Raises:
            DiskFull: no room.
        """
        await self._offload.run(lambda: incoming.write(data))

    async def place(self, incoming: Incoming, group: Group, tag: str | None) -> Entry:
        """Give a new blob its name. Durable when this returns.

        Raises:
            DiskFull: no room.
        """
        manifest = await self._offload.run(incoming.finish)
        blob = manifest.id
        entry = self.entries.get(blob)
        if entry is None:
            entry = Entry(
                id=blob,
                size=manifest.size,
                whole=False,
                bytes_used=0,
                used_ms=self._env.wall_ms(),
                pins=Pins(),
            )
        async with entry.lock:
            pins = _admit(entry.pins, group, tag)
            if entry.whole and self.entries.get(blob) is entry and entry.right == manifest.whole:
                await self._offload.run(lambda: self._files.write_pins(blob, pins.encode()))
                await self._offload.run(incoming.abort)
            else:
                await self._offload.run(
                    lambda: self._files.place(incoming, blob, manifest, pins.encode())
                )
            entry.pins = pins
            entry.whole = True
            entry.bytes_used = manifest.size
            entry.right = manifest.whole
            entry.used_ms = self._env.wall_ms()
            self.entries[blob] = entry
            self._keep_manifest(blob, manifest)
        await self.collect(keep=blob)
        return entry

    async def abort(self, incoming: Incoming) -> None:
        """Throw a new blob away; does nothing after `place`."""
        await self._offload.run(incoming.abort)

    async def begin(self, blob: BlobId, manifest: Manifest, group: Group) -> tuple[Entry, Part]:
        """An unfinished blob, with the chunks that an earlier run left and that are right.

        Raises:
            DiskFull: no room.
        """
        entry = self.entries.get(blob)
        if entry is None:
            entry = Entry(
                id=blob,
                size=manifest.size,
                whole=False,
                bytes_used=0,
                used_ms=self._env.wall_ms(),
                pins=Pins(),
            )
        entry.fetching = True
        part: Part | None = None
        try:
            async with entry.lock:
                # Here, because whoever had the lock may have dropped it.
                self.entries[blob] = entry
                pins = entry.pins.with_reader(group)
                part = await self._offload.run(
                    lambda: self._files.begin(blob, manifest, pins.encode())
                )
                entry.pins = pins
            self._keep_manifest(blob, manifest)
            await self._resume(entry, part, manifest)
        except BaseException:
            entry.fetching = False
            if part is not None:
                part.close()
            raise
        return entry, part

    async def _resume(self, entry: Entry, part: Part, manifest: Manifest) -> None:
        """Hash what is said to be here, and all that may be when the map was lost with damage."""
        claimed = await self._offload.run(part.read_map)
        if not claimed and entry.bytes_used >= manifest.chunk_bytes:
            claimed = manifest.whole
        for index in range(manifest.chunks):
            if claimed >> index & 1 and not entry.right >> index & 1:
                check = partial(_is_right, part, manifest, index)
                entry.right |= int(await self._offload.run(check)) << index

    async def accept(
        self, entry: Entry, part: Part, manifest: Manifest, index: int, data: bytes | bytearray
    ) -> bool:
        """Check and write one received chunk.

        Returns:
            False when the bytes are not that chunk; nothing was written.

        Raises:
            DiskFull: no room.
        """

        def check_and_write() -> bool:
            if not chunk_is(manifest, index, data):
                return False
            part.write(index, data)
            return True

        right = await self._offload.run(check_and_write)
        if right:
            self.bytes_in += len(data)
            entry.right |= 1 << index
        return right

    async def sync(self, entry: Entry, part: Part) -> None:
        """Make progress durable."""
        have = entry.right
        await self._offload.run(lambda: part.sync(have))
        entry.bytes_used = await self._offload.run(lambda: self._files.bytes_used(entry.id))

    async def finish(self, entry: Entry, part: Part) -> None:
        """Every chunk was right: it is a whole blob from now on."""
        async with entry.lock:
            await self._offload.run(part.finish)
            entry.whole = True
            entry.bytes_used = entry.size
            entry.used_ms = self._env.wall_ms()

    # --- Pins and room ------------------------------------------------------------------------

    async def change_pins(self, entry: Entry, change: Callable[[Pins], Pins]) -> None:
        """Change who reads and holds a blob. Durable when this returns."""
        async with entry.lock:
            if self.entries.get(entry.id) is not entry:
                raise Unreachable("the blob is not here any more")
            pins = change(entry.pins)
            if pins != entry.pins:
                await self._offload.run(lambda: self._files.write_pins(entry.id, pins.encode()))
                entry.pins = pins

    async def drop(self, entry: Entry) -> None:
        """Take a blob away, pins and all.

        Raises:
            Busy: it is being fetched.
        """
        async with entry.lock:
            if entry.fetching:
                raise Busy("the blob is being fetched: cancel that first")
            if self.entries.get(entry.id) is entry:
                del self.entries[entry.id]
                self._manifests.pop(entry.id, None)
                await self._offload.run(lambda: self._files.remove(entry.id))

    async def collect(self, *, coming_bytes: int = 0, keep: BlobId | None = None) -> None:
        """Make room: drop the longest unused blobs that nobody holds, if there are too many."""
        chosen = collect.choose(
            self.entries.values(),
            bytes_max=self._config.unpinned_bytes_max,
            to_ratio=self._config.collect_to_ratio,
            coming_bytes=coming_bytes,
            keep=keep,
        )
        for blob in chosen:
            entry = self.entries.get(blob)
            if entry is not None and not entry.pinned and not entry.fetching:
                await self.drop(entry)
                self.collected += 1


def _is_right(part: Part, manifest: Manifest, index: int) -> bool:
    return chunk_is(manifest, index, part.read(index))


def _admit(pins: Pins, group: Group, tag: str | None) -> Pins:
    """What putting does: with a tag it is held, without one only read."""
    return pins.with_reader(group) if tag is None else pins.with_pin(group, tag)
