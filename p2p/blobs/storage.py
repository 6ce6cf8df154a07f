"""Blobs on disk: what is written in which order, so that no crash leaves a wrong blob.

Everything here blocks: callers run it through an `Offload`. A blob with the id `abcd...` lies in
the folder `ab`, under its whole id:

    abcd...         the bytes, whole and right when they were put here
    abcd....m       its manifest
    abcd....pins    who may read it, who holds it
    abcd....part    bytes of an unfinished fetch, with holes
    abcd....map     which chunks of .part were on disk when this was written
    tmp/            what is being put

Order. A blob appears by renaming its synced bytes, after the files beside it are there and synced;
so a name without an ending is always a whole blob. A `.map` is written after its chunks are synced,
and replaced as a whole. What a crash leaves otherwise is a file in `tmp/` or a file beside no
bytes: `scan` takes both away. Nothing found on disk is believed before it is hashed: see
`p2p.blobs.store`. Source: docs/specs/blobs.md s.6.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2p.blobs.manifest import (
    CHUNK_BYTES_MIN,
    CHUNKS_MAX,
    ID_BYTES,
    MANIFEST_BYTES_MAX,
    BlobId,
    Manifest,
    chunk_bytes_for,
)
from p2p.errors import DiskFull, TransientError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from p2p.env import Env

PINS_BYTES_MAX: Final = 1 << 20
"""Longest pins file that is read: some 10,000 pins."""

MAP_BYTES_MAX: Final = CHUNKS_MAX // 8
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A blob that `scan` found."""

    id: BlobId
    whole: bool
    bytes_used: int
    """Of the disk: a part has holes."""
    used_ms: int
    """When it was last used, Unix time."""
    pins: bytes
    """The pins file, empty if there is none."""


@contextmanager
def _disk(what: str) -> Iterator[None]:
    """Turn what a disk says into our errors.

    Raises:
        DiskFull: no room.
        TransientError: any other failure of the disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(
                f"the disk is full: {what} stopped; free some space, then repeat"
            ) from None
        reason = error.strerror or type(error).__name__
        raise TransientError(f"{what} failed: {reason}") from None


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(
    descriptor: int, data: bytes | bytearray | memoryview, offset: int, env: Env
) -> None:
    if env.fault("blobs.disk_full"):
        raise OSError(errno.ENOSPC, "simulated")
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


class Incoming:
    """Bytes that are being put: hashed and written as they come.

    Args:
        path: of the temporary file, which must not exist.
        env: fault points.
    """

    def __init__(self, path: Path, env: Env) -> None:
        self.path = path
        self.size = 0
        self._env = env
        with _disk("storing a blob"):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o600)
        self._hashes = bytearray()
        self._chunk = hashlib.sha256()
        self._chunk_left = CHUNK_BYTES_MIN

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            DiskFull: no room.
        """
        with _disk("storing a blob"):
            _write_all(self._descriptor, data, self.size, self._env)
        self._env.fault("blobs.put.wrote")
        self.size += len(data)
        view = memoryview(data)
        while view:
            piece, view = view[: self._chunk_left], view[self._chunk_left :]
            self._chunk.update(piece)
            self._chunk_left -= len(piece)
            if not self._chunk_left:
                self._end_chunk()

    def finish(self) -> Manifest:
        """Make the bytes durable and name them; call `BlobFiles.place` next."""
        if self._chunk_left < CHUNK_BYTES_MIN:
            self._end_chunk()
        with _disk("storing a blob"):
            # Only now is the size known, and with it the chunk size: large ones are read again.
            if chunk_bytes_for(self.size) != CHUNK_BYTES_MIN:
                self._hashes = self._hash_again(chunk_bytes_for(self.size))
            os.fsync(self._descriptor)
        self._env.fault("blobs.put.synced")
        self._close()
        return Manifest(self.size, bytes(self._hashes))

    def abort(self) -> None:
        """Throw the bytes away. Idempotent; nothing happens after `place`."""
        self._close()
        with suppress(OSError):
            self.path.unlink()

    def _end_chunk(self) -> None:
        self._hashes += self._chunk.digest()
        self._chunk = hashlib.sha256()
        self._chunk_left = CHUNK_BYTES_MIN

    def _hash_again(self, chunk_bytes: int) -> bytearray:
        hashes = bytearray()
        for offset in range(0, self.size, chunk_bytes):
            hashes += hashlib.sha256(os.pread(self._descriptor, chunk_bytes, offset)).digest()
        return hashes

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Part:
    """An unfinished blob that is open for writing.

    Args:
        files: where it lies.
        blob: which.
        manifest: its manifest, on disk already.
    """

    def __init__(self, files: BlobFiles, blob: BlobId, manifest: Manifest) -> None:
        self._files = files
        self._blob = blob
        self._manifest = manifest
        self._path = files.path_of(blob, ".part")
        with _disk("storing a blob"):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
            os.ftruncate(self._descriptor, manifest.size)

    def read_map(self) -> int:
        """Chunks that an earlier run had on disk: a claim, to be hashed."""
        try:
            data = self._files.path_of(self._blob, ".map").read_bytes()[: MAP_BYTES_MAX + 1]
        except OSError:
            return 0
        return int.from_bytes(data, "little") & self._manifest.whole

    def write(self, index: int, data: bytes | bytearray) -> None:
        """Write a chunk that was found right.

        Raises:
            DiskFull: no room.
        """
        with _disk("storing a blob"):
            _write_all(self._descriptor, data, self._manifest.span(index).offset, self._files.env)
        self._files.env.fault("blobs.part.wrote")

    def read(self, index: int) -> bytes:
        """The bytes at a chunk's place, right or not."""
        offset, size = self._manifest.span(index)
        with _disk("reading a blob"):
            return os.pread(self._descriptor, size, offset)

    def sync(self, have: int) -> None:
        """Make progress durable: the chunks, then the map that tells of them."""
        env = self._files.env
        with _disk("storing a blob"):
            os.fdatasync(self._descriptor)
            env.fault("blobs.part.synced")
            data = have.to_bytes(-(-self._manifest.chunks // 8), "little")
            self._files.write_beside(self._blob, ".map", data)
        env.fault("blobs.part.mapped")

    def finish(self) -> None:
        """Every chunk was right: make it the blob."""
        env = self._files.env
        with _disk("storing a blob"):
            os.fdatasync(self._descriptor)
            env.fault("blobs.part.synced")
            self._path.rename(self._files.path_of(self._blob))
            env.fault("blobs.part.renamed")
            _sync_folder(self._path.parent)
            self._files.path_of(self._blob, ".map").unlink(missing_ok=True)
        env.fault("blobs.part.finished")

    def close(self) -> None:
        """Close the file. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class BlobFiles:
    """The folder of blobs.

    Args:
        folder: made if it is not there.
        env: fault points, and names of temporary files.
    """

    def __init__(self, folder: Path, env: Env) -> None:
        self.folder = folder
        self.env = env
        self._temporary = folder / "tmp"

    def path_of(self, blob: BlobId, ending: str = "") -> Path:
        """Where a file of a blob lies. The id is 32 bytes, so no path leads elsewhere."""
        if len(blob) != ID_BYTES:
            raise UsageError(f"a blob's id has {ID_BYTES} bytes, not {len(blob)}")
        text = blob.hex()
        return self.folder / text[:2] / (text + ending)

    def scan(self) -> list[Found]:
        """Everything that is here, after taking away what crashes left."""
        with _disk("opening the blobs"):
            self._temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self._temporary.iterdir():
                left.unlink()
            found = []
            for folder in sorted(self.folder.iterdir()):
                if folder.is_dir() and len(folder.name) == 2 and set(folder.name) <= _HEX:
                    found += self._scan_folder(folder)
            return found

    def _scan_folder(self, folder: Path) -> list[Found]:
        names = {path.name for path in folder.iterdir()}
        found = []
        for blob in sorted({name.partition(".")[0] for name in names}):
            if len(blob) != 2 * ID_BYTES or not set(blob) <= _HEX or blob[:2] != folder.name:
                continue  # somebody else's file: not ours to touch
            ident = BlobId(bytes.fromhex(blob))
            whole = blob in names
            if not (whole or f"{blob}.part" in names) or f"{blob}.m" not in names:
                self.remove(ident)
                continue
            if whole and f"{blob}.part" in names:
                self.path_of(ident, ".part").unlink(missing_ok=True)
            stat = self.path_of(ident, "" if whole else ".part").stat()
            found.append(
                Found(
                    id=ident,
                    whole=whole,
                    bytes_used=stat.st_size if whole else stat.st_blocks * 512,
                    used_ms=self.path_of(ident, ".m").stat().st_mtime_ns // 1_000_000,
                    pins=self._read(ident, ".pins", PINS_BYTES_MAX),
                )
            )
        return found

    def incoming(self) -> Incoming:
        """A new blob to write.

        Raises:
            DiskFull: no room.
        """
        return Incoming(self._temporary / self.env.rng.randbytes(16).hex(), self.env)

    def place(self, incoming: Incoming, blob: BlobId, manifest: Manifest, pins: bytes) -> None:
        """Give finished bytes their name; durable when this returns."""
        with _disk("storing a blob"):
            self.write_beside(blob, ".m", manifest.encode())
            self.env.fault("blobs.put.manifest")
            self.write_beside(blob, ".pins", pins)
            self.env.fault("blobs.put.pins")
            target = self.path_of(blob)
            incoming.path.rename(target)
            self.env.fault("blobs.put.renamed")
            _sync_folder(target.parent)
            # Whoever was fetching it has no use for what came so far.
            for ending in (".part", ".map"):
                self.path_of(blob, ending).unlink(missing_ok=True)

    def begin(self, blob: BlobId, manifest: Manifest, pins: bytes) -> Part:
        """An unfinished blob, new or of an earlier run."""
        with _disk("storing a blob"):
            self.write_beside(blob, ".m", manifest.encode())
            self.env.fault("blobs.part.manifest")
            self.write_beside(blob, ".pins", pins)
        self.env.fault("blobs.part.pins")
        return Part(self, blob, manifest)

    def demote(self, blob: BlobId) -> None:
        """Bytes that are not right any more are a part again; a fetch mends it."""
        with _disk("mending a blob"):
            self.path_of(blob, ".map").unlink(missing_ok=True)
            self.path_of(blob).rename(self.path_of(blob, ".part"))
            _sync_folder(self.path_of(blob).parent)

    def read_manifest(self, blob: BlobId) -> bytes:
        """The manifest file, empty if it is gone; believe it only after hashing."""
        return self._read(blob, ".m", MANIFEST_BYTES_MAX)

    def read(self, blob: BlobId, offset: int, size: int, *, whole: bool) -> bytes:
        """Bytes of a blob; fewer when it is gone or was cut."""
        try:
            descriptor = os.open(
                self.path_of(blob, "" if whole else ".part"), os.O_RDONLY | os.O_CLOEXEC
            )
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise TransientError(f"reading a blob failed: {error.strerror}") from None
        try:
            with _disk("reading a blob"):
                return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def write_pins(self, blob: BlobId, pins: bytes) -> None:
        """Replace the pins file; durable when this returns."""
        with _disk("pinning a blob"):
            self.write_beside(blob, ".pins", pins)
        self.env.fault("blobs.pinned")

    def touch(self, blob: BlobId, used_ms: int) -> None:
        """Remember that a blob was used; losing it costs nothing."""
        with suppress(OSError):
            os.utime(self.path_of(blob, ".m"), ns=(used_ms * 1_000_000, used_ms * 1_000_000))

    def remove(self, blob: BlobId) -> None:
        """Take a blob away, the bytes first: what is left after a crash is swept by `scan`."""
        with _disk("removing a blob"):
            for ending in ("", ".part", ".map", ".pins", ".m"):
                self.path_of(blob, ending).unlink(missing_ok=True)
                self.env.fault("blobs.removed")

    def bytes_used(self, blob: BlobId) -> int:
        """Bytes that an unfinished blob takes on the disk."""
        try:
            return self.path_of(blob, ".part").stat().st_blocks * 512
        except OSError:
            return 0

    def write_beside(self, blob: BlobId, ending: str, data: bytes) -> None:
        """Replace one file beside a blob, as a whole and durably."""
        target = self.path_of(blob, ending)
        if not target.parent.is_dir():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_folder(self.folder)
        temporary = self._temporary / self.env.rng.randbytes(16).hex()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        try:
            try:
                _write_all(descriptor, data, 0, self.env)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(target)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(target.parent)

    def _read(self, blob: BlobId, ending: str, bytes_max: int) -> bytes:
        try:
            with self.path_of(blob, ending).open("rb") as file:
                return file.read(bytes_max + 1)
        except OSError:
            return b""
