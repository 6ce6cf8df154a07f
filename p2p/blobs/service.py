"""Blobs for the parts above: the public face of `p2p.blobs`.

    blob = await node.blobs.put(chunks, group, tag="report")     # durable when it returns
    path = await node.blobs.fetch(blob, group)                    # on another node of the group
    await node.blobs.pin(blob, group, "my-job")                   # else it may be collected

Source: docs/specs/blobs.md.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from p2p.blobs.config import BlobConfig
from p2p.blobs.fetch import Fetch, Parties, Progress, Providers
from p2p.blobs.manifest import BLOB_BYTES_MAX, provider_key
from p2p.blobs.pins import PUBLIC, Public
from p2p.blobs.serve import BlobServer
from p2p.blobs.storage import BlobFiles
from p2p.blobs.store import Store
from p2p.errors import P2pError, TransientError, Unreachable, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
    from pathlib import Path

    from p2p.blobs.manifest import BlobId
    from p2p.blobs.pins import Entry, Group
    from p2p.blobs.storage import Incoming
    from p2p.env import Env, Offload
    from p2p.identity import PeerId
    from p2p.net.seam import Fabric
    from p2p.rpc import Rpc

log = logging.getLogger("covey.p2p.blobs")

LOAD_AGAIN_S: Final = 60.0
"""Wait before an unreadable folder is looked at again. Guess: somebody mounts it meanwhile."""

PROVIDE_EVERY_S: Final = 8 * 3600.0
"""How often we say again that we have public blobs. Source: docs/specs/blobs.md s.5."""


@dataclass(frozen=True, kw_only=True)
class BlobInfo:
    """One blob of ours."""

    id: BlobId
    size: int
    whole: bool
    bytes_here: int
    """Of a part: what takes room on the disk."""
    used_ms: int
    """Unix time of its last use."""
    groups: tuple[Group, ...]
    """Who may read it."""
    pins: tuple[tuple[str, Group], ...]
    """Who holds it: tag and group."""


@dataclass(frozen=True, kw_only=True)
class BlobReport:
    """What is here and under way, a snapshot."""

    blobs: int
    parts: int
    bytes_used: int
    bytes_pinned: int
    fetches: int
    bytes_in: int
    bytes_out: int
    collected: int
    """Blobs dropped to make room, since the start."""
    damaged: int
    """Blobs whose bytes had gone bad, since the start."""


class Upload:
    """A blob that is being put in pieces.

    Args:
        store: where it goes.
        incoming: its file.
    """

    def __init__(self, store: Store, incoming: Incoming) -> None:
        self._store = store
        self._incoming = incoming

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._incoming.size

    async def write(self, data: bytes) -> None:
        """Append.

        Raises:
            DiskFull: no room.
            UsageError: over 128 GiB.
        """
        if self._incoming.size + len(data) > BLOB_BYTES_MAX:
            raise UsageError(f"a blob has at most {BLOB_BYTES_MAX} bytes: cut it")
        await self._store.write(self._incoming, data)

    async def finish(self, group: Group, tag: str | None) -> BlobId:
        """Make it a blob; durable when this returns."""
        return (await self._store.place(self._incoming, group, tag)).id

    async def abort(self) -> None:
        """Throw it away; nothing after `finish`."""
        await self._store.abort(self._incoming)


class Blobs:
    """Content-addressed blobs of a node.

    Args:
        rpc: of the node.
        fabric: of the node.
        folder: where they are kept; nobody else writes there.
        env: clocks and random numbers.
        offload: where blocking work goes.
        config: limits.
    """

    def __init__(
        self,
        rpc: Rpc,
        fabric: Fabric,
        folder: Path,
        env: Env,
        offload: Offload,
        config: BlobConfig | None = None,
    ) -> None:
        self._config = config or BlobConfig()
        self._env = env
        self._fabric = fabric
        self._store = Store(BlobFiles(folder, env), env, offload, self._config)
        self._readers: Callable[[bytes | None, PeerId], bool] | None = None
        self._providers: Providers | None = None
        self._server = BlobServer(rpc, self._store, self._config, self._reads)
        self._parties = Parties(
            rpc=rpc,
            fabric=fabric,
            store=self._store,
            env=env,
            config=self._config,
            reads=self._reads,
            providers=lambda: self._providers,
        )
        self._turns: dict[BlobId, _Turn] = {}
        self._fetching = trio.CapacityLimiter(self._config.fetches_max)

    def set_readers(self, fn: Callable[[bytes | None, PeerId], bool]) -> None:
        """Tell who is who. Before that nobody is in any group, and no device is ours.

        Args:
            fn: whether a peer may read what a group may (None: our own devices).
        """
        self._readers = fn

    def set_providers(self, providers: Providers) -> None:
        """Look for public blobs beyond connected peers, and say which we have."""
        self._providers = providers

    def _reads(self, group: Group, peer: PeerId) -> bool:
        if isinstance(group, Public):
            return True
        return self._readers is not None and self._readers(group, peer)

    async def run(self) -> None:
        """Say which public blobs are here, now and then, until cancelled."""
        while True:
            try:
                await self._store.load()
            except TransientError as error:
                # The mesh works without a disk; who asks for a blob is told why there is none.
                log.warning("blobs_unreadable", extra={"f": {"why": str(error)}})
                await trio.sleep(LOAD_AGAIN_S)
                continue
            for entry in list(self._store.entries.values()):
                if entry.whole and PUBLIC in entry.pins.groups:
                    await self._provide(entry)
            await trio.sleep(PROVIDE_EVERY_S)

    # --- Putting ------------------------------------------------------------------------------

    async def put(
        self,
        chunks: AsyncIterable[bytes] | Iterable[bytes],
        group: Group,
        *,
        tag: str | None = None,
    ) -> BlobId:
        """Store bytes; when this returns they are on disk.

        Args:
            chunks: the bytes, in pieces of any size.
            group: who may read them.
            tag: pin it under this name; None: it may be collected when room is needed.

        Raises:
            DiskFull: no room; nothing is left behind.
            UsageError: over 128 GiB, or a bad tag.
        """
        upload = await self.upload()
        try:
            if hasattr(chunks, "__aiter__"):
                async for data in chunks:
                    await upload.write(data)
            else:
                for data in chunks:
                    await upload.write(data)
            return await self.finish(upload, group, tag=tag)
        finally:
            with trio.CancelScope(shield=True):
                await upload.abort()

    async def upload(self) -> Upload:
        """A blob to be written piece by piece; `finish` it or `abort` it.

        Raises:
            DiskFull: no room.
        """
        await self._store.load()
        return Upload(self._store, await self._store.incoming())

    async def finish(self, upload: Upload, group: Group, *, tag: str | None = None) -> BlobId:
        """Make an upload a blob; see `put`."""
        blob = await upload.finish(group, tag)
        if isinstance(group, Public):
            await self._provide(self._store.entries[blob])
        return blob

    # --- Fetching -----------------------------------------------------------------------------

    async def fetch(
        self,
        blob: BlobId,
        group: Group,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Path:
        """Have a blob here, from whoever of `group` has it.

        Args:
            blob: which.
            group: whom to ask; they may read it here afterwards too.
            on_progress: called on the loop whenever something came; must not block.

        Returns:
            Its file, whole and right. Pin it, or it may be collected when room is needed.

        Raises:
            Unreachable: nobody reachable has it or may give it to us; what came is kept, and the
                next fetch goes on there.
            DiskFull: no room; what came is kept.
            LimitError: it is larger than the configuration takes.
        """
        await self._store.load()
        async with self._turn(blob, on_progress) as turn:
            entry = self._store.entries.get(blob)
            if entry is None or not await self._store.check_whole(entry):
                async with self._fetching:
                    entry = await self._fetch(blob, group, turn)
            else:
                await self._store.change_pins(entry, lambda pins: pins.with_reader(group))
            turn.tell(Progress(entry.size, entry.size, 0))
        await self._store.touch(entry)
        return self._store.path(entry)

    async def _fetch(self, blob: BlobId, group: Group, turn: _Turn) -> Entry:
        entry = await Fetch(self._parties, blob, group, turn.tell).run()
        await self._store.collect(keep=blob)
        if isinstance(group, Public):
            await self._provide(entry)
        return entry

    @asynccontextmanager
    async def _turn(
        self, blob: BlobId, on_progress: Callable[[Progress], None] | None
    ) -> AsyncIterator[_Turn]:
        """One fetch of a blob at a time; who waits for another's is told its progress."""
        turn = self._turns.setdefault(blob, _Turn())
        turn.waiting += 1
        if on_progress is not None:
            turn.listeners.append(on_progress)
        try:
            await turn.lock.acquire()
            try:
                yield turn
            finally:
                turn.lock.release()
        finally:
            turn.waiting -= 1
            if on_progress is not None:
                turn.listeners.remove(on_progress)
            if not turn.waiting:
                del self._turns[blob]

    async def _provide(self, entry: Entry) -> None:
        """Say in the DHT that a public blob is here; a failure is made up for later."""
        if self._providers is None:
            return
        try:
            await self._providers.provide(provider_key(entry.id))
        except P2pError:
            return

    # --- What is here -------------------------------------------------------------------------

    async def path(self, blob: BlobId) -> Path | None:
        """The file of a blob that is here, whole and right; None if it is not."""
        await self._store.load()
        entry = self._store.entries.get(blob)
        if entry is None or not await self._store.check_whole(entry):
            return None
        await self._store.touch(entry)
        return self._store.path(entry)

    async def read(self, blob: BlobId, offset: int, size: int) -> bytes:
        """Bytes of a blob that `path` or `fetch` found here; short at its end.

        Raises:
            Unreachable: it is not here.
        """
        entry = await self._entry(blob)
        return await self._store.piece(entry, offset, size)

    async def stat(self, blob: BlobId) -> BlobInfo | None:
        """What is known of a blob that is here, whole or in part; None if it is not."""
        await self._store.load()
        entry = self._store.entries.get(blob)
        return None if entry is None else _info(entry)

    async def listed(self) -> list[BlobInfo]:
        """Everything that is here, the last used first."""
        await self._store.load()
        entries = sorted(self._store.entries.values(), key=lambda one: (-one.used_ms, one.id))
        return [_info(entry) for entry in entries]

    async def pin(self, blob: BlobId, group: Group, tag: str) -> None:
        """Hold a blob, and let a group read it. Durable when this returns.

        Args:
            blob: one that is here, whole or in part.
            group: who may read it.
            tag: who holds it, 1 to 64 characters; holding twice under one tag is holding once.

        Raises:
            Unreachable: it is not here.
            UsageError: a bad tag, or too many pins.
        """
        entry = await self._entry(blob)
        await self._store.change_pins(entry, lambda pins: pins.with_pin(group, tag))
        if isinstance(group, Public) and entry.whole:
            await self._provide(entry)

    async def unpin(self, blob: BlobId, tag: str) -> bool:
        """Hold it no longer; whether it was held under that tag."""
        await self._store.load()
        entry = self._store.entries.get(blob)
        if entry is None or all(own != tag for own, _ in entry.pins.pins):
            return False
        await self._store.change_pins(entry, lambda pins: pins.without_pin(tag))
        await self._store.collect()
        return True

    async def drop(self, blob: BlobId) -> bool:
        """Take a blob away at once, pins and all; whether it was here.

        Raises:
            Busy: it is being fetched.
        """
        await self._store.load()
        entry = self._store.entries.get(blob)
        if entry is None:
            return False
        await self._store.drop(entry)
        return True

    def report(self) -> BlobReport:
        """What is here and under way."""
        entries = self._store.entries.values()
        return BlobReport(
            blobs=sum(entry.whole for entry in entries),
            parts=sum(not entry.whole for entry in entries),
            bytes_used=sum(entry.bytes_used for entry in entries),
            bytes_pinned=sum(entry.bytes_used for entry in entries if entry.pinned),
            fetches=sum(entry.fetching for entry in entries),
            bytes_in=self._store.bytes_in,
            bytes_out=self._server.bytes_out,
            collected=self._store.collected,
            damaged=self._store.damaged,
        )

    def counters(self) -> dict[str, int]:
        """Counts since the start."""
        report = self.report()
        return {
            "blob_bytes_in": report.bytes_in,
            "blob_bytes_out": report.bytes_out,
            "blobs_collected": report.collected,
            "blobs_damaged": report.damaged,
        }

    async def _entry(self, blob: BlobId) -> Entry:
        await self._store.load()
        entry = self._store.entries.get(blob)
        if entry is None:
            raise Unreachable("the blob is not here: fetch it first")
        return entry


class _Turn:
    """Who wants one blob now."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.waiting = 0
        self.listeners: list[Callable[[Progress], None]] = []

    def tell(self, progress: Progress) -> None:
        """Tell everybody who waits."""
        for listener in self.listeners:
            listener(progress)


def _info(entry: Entry) -> BlobInfo:
    return BlobInfo(
        id=entry.id,
        size=entry.size,
        whole=entry.whole,
        bytes_here=entry.bytes_used,
        used_ms=entry.used_ms,
        groups=entry.pins.groups,
        pins=entry.pins.pins,
    )
