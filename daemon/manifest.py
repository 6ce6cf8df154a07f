"""`manifest.json`: what a backup consists of, so that half of one is never taken for whole.

The names of its files are fixed: a manifest that names another one is refused, wherever it points.
Source: docs/guides/backup.md.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from daemon.errors import RpcError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 1
NAME: Final = "manifest.json"
DATABASE: Final = "covey.db"
KEYS: Final = "covey.db.keys"
BEHAVIOUR: Final = "behaviour.db"
BOOK: Final = "peers.msgpack"
CONFIG: Final = "config.toml"
SEALED_KEY: Final = "key.sealed"
FILES: Final = frozenset({DATABASE, KEYS, BEHAVIOUR, BOOK, CONFIG, SEALED_KEY})
"""All that a backup may consist of, beside its manifest."""

MANIFEST_BYTES_MAX: Final = 16 * 2**20
"""Some fifty thousand logs."""
_BLOCK: Final = 2**20

Hash = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class FileEntry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file of the backup.

    Attributes:
        bytes: its size.
        sha256: of its content.
        was: the hash before keys of erased records were taken out; good too, until they are.
    """

    bytes: Natural
    sha256: Hash
    was: Hash | None = None


class Head(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How far a log of this device had come."""

    group: Hash
    incarnation: Natural
    lane: Natural
    seq: Natural
    id: Hash


class Manifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a backup says of itself.

    Attributes:
        format: of this file.
        covey: version that made it.
        sqlite: version of SQLite.
        schema: migrations applied to the copy.
        created_ms: Unix milliseconds.
        node: device key, hex.
        records, bodies, memories: rows at that time.
        with_key: whether the device key is in it, sealed.
        files: by name.
        heads: of this device's own logs.
    """

    format: int
    covey: str
    sqlite: str
    schema: int
    created_ms: Natural
    node: Hash
    records: Natural
    bodies: Natural
    memories: Natural
    with_key: bool
    files: dict[str, FileEntry]
    heads: list[Head]


_decoder: Final = msgspec.json.Decoder(Manifest)


def decode_manifest_untrusted(data: bytes) -> Manifest:
    """Read a manifest that somebody may have altered.

    Raises:
        RpcError: `storage_corrupt`: not one, of a newer format, or it names foreign files.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise _broken("its manifest is too large")
    try:
        manifest = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _broken("its manifest cannot be read") from None
    if manifest.format != FORMAT:
        raise _broken(f"it is of format {manifest.format}, this Covey reads {FORMAT}")
    if not manifest.files.keys() <= FILES:
        raise _broken("its manifest names files that no backup has")
    if not {DATABASE, KEYS} <= manifest.files.keys():
        raise _broken("its manifest names no database")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup folder.

    Raises:
        RpcError: `not_found` or `storage_corrupt`.
    """
    try:
        with (folder / NAME).open("rb") as file:
            return decode_manifest_untrusted(file.read(MANIFEST_BYTES_MAX + 1))
    except FileNotFoundError:
        raise RpcError(
            "not_found",
            f"there is no backup at {folder}",
            remedy="`covey backup list` shows those there are.",
        ) from None
    except OSError as error:
        raise _broken(f"its manifest cannot be read: {error.strerror}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write or replace the manifest, durably."""
    fresh = folder / f"{NAME}.new"
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data + b"\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / NAME)
    sync_folder(folder)


def entry_of(path: Path) -> FileEntry:
    """Size and hash of a file as it lies there."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return FileEntry(bytes=size, sha256=digest.hexdigest())


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the files with what the manifest says.

    Raises:
        RpcError: `storage_corrupt`, naming the file.
    """
    for name, entry in sorted(manifest.files.items()):
        path = folder / name
        try:
            regular = stat.S_ISREG(os.lstat(path).st_mode)
            found = entry_of(path) if regular else None
        except FileNotFoundError:
            raise _broken(f"{name} is missing") from None
        except OSError as error:
            raise _broken(f"{name} cannot be read: {error.strerror}") from None
        if found is None:
            raise _broken(f"{name} is no ordinary file")
        if found.sha256 not in (entry.sha256, entry.was):
            raise _broken(f"{name} is not what was backed up: it was cut off or altered")


def _broken(what: str) -> RpcError:
    return RpcError(
        "storage_corrupt",
        f"the backup cannot be used: {what}",
        remedy="Take another one: `covey backup list` shows them.",
    )


def sync_folder(folder: Path) -> None:
    """Put names of a folder on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Put a file's content on disk, for our eyes only."""
    path.chmod(0o600)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
