"""Taking erased records out of what else lies in the state folder: backups, copies, old states.

A backup holds an erased record's text as ciphertext; without its row in `covey.db.keys` nothing
opens it, so that row goes. Whole databases (the copy before a migration, the state that a restore
put aside) hold text in plain: the first erasure that meets one takes all text out of it and leaves
what a restore makes it from. Copies outside of the state folder are out of reach.
Source: docs/guides/backup.md, *What an erasure does*.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import apsw

from daemon.errors import RpcError
from daemon.manifest import (
    DATABASE,
    KEYS,
    NAME,
    entry_of,
    read_manifest,
    sync_file,
    sync_folder,
    write_manifest,
)
from memory.transfer.portable import holds_any, shred_database, shred_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger("covey.daemon.backup")

MAKING: Final = ".making-"
"""Beginning of the name of a backup that is not whole."""
BACKUPS: Final = "backups"
ASIDE: Final = "before-restore-"
"""Beginning of the name of a state that a restore put aside."""


def shred_backups(state_dir: Path, ids: Sequence[bytes]) -> int:
    """Make erased records unreadable in all copies under the state folder.

    Call it after the erasure is committed: a backup that is being made just now looks at what was
    erased when it is complete.

    Args:
        state_dir: the node's state folder.
        ids: record ids.

    Returns:
        How many copies held any of them. One that is damaged is left alone, and logged.
    """
    if not ids:
        return 0
    changed = 0
    for keys in _keys_files(state_dir):
        changed += _guarded(keys, ids, _shred_backup)
    for database in whole_databases(state_dir):
        changed += _guarded(database, ids, _shred_whole)
    return changed


def _guarded(path: Path, ids: Sequence[bytes], shred: object) -> int:
    assert callable(shred)
    try:
        return int(bool(shred(path, ids)))
    except (apsw.Error, OSError, RpcError) as error:
        log.warning(
            "copy_not_shredded",
            extra={"f": {"name": path.parent.name, "error": type(error).__name__}},
        )
        return 0


def _keys_files(state_dir: Path) -> Iterator[Path]:
    """Every backup's keys, wherever under the state folder; those being made excepted."""
    for folder, folders, names in os.walk(state_dir):
        folders[:] = sorted(name for name in folders if not name.startswith(MAKING))
        if KEYS in names:
            yield Path(folder) / KEYS


def whole_databases(state_dir: Path) -> Iterator[Path]:
    """Copies that hold text: those before a migration, and states put aside."""
    yield from sorted((state_dir / BACKUPS).glob("*.db"))
    yield from sorted(state_dir.glob(f"{ASIDE}*/{DATABASE}"))


def _shred_backup(keys: Path, ids: Sequence[bytes]) -> bool:
    """Put a keys file without the rows in the place of the old one, whole at every moment."""
    if not holds_any(keys, ids):
        return False
    fresh = keys.with_name(f"{KEYS}.new")
    shutil.copyfile(keys, fresh)
    shred_keys(fresh, ids)
    sync_file(fresh)
    if (keys.parent / NAME).exists():
        _announce(keys, fresh)
    _replace(keys, fresh)
    return True


def _announce(keys: Path, fresh: Path) -> None:
    """Let the manifest know the new keys file, if the old one is what it says."""
    manifest = read_manifest(keys.parent)
    entry, before, found = entry_of(fresh), manifest.files[KEYS], entry_of(keys).sha256
    if found not in (before.sha256, before.was):
        return  # altered by somebody: a new hash would make it look good
    # Both hashes stand until the new file does, so a kill in between leaves a good backup.
    entry.was = found
    manifest.files[KEYS] = entry
    write_manifest(keys.parent, manifest)


def _replace(old: Path, fresh: Path) -> None:
    """Rename over a file and wipe what it held."""
    size = old.stat().st_size
    fd = os.open(old, os.O_WRONLY | os.O_CLOEXEC)
    try:
        fresh.replace(old)
        sync_folder(old.parent)
        # The old file has no name any more; its blocks still hold the keys.
        os.pwrite(fd, bytes(size), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def _shred_whole(database: Path, ids: Sequence[bytes]) -> bool:
    return shred_database(database, ids)
