"""`erased.ids`: what was erased on this device, in a file beside the database.

A database that is restored from an old image knows nothing of the erasures since. This file is not
part of a backup: it stays, and the next start erases again what it names. Append only, 32 bytes an
id, synced before the erasure is acknowledged. A torn end (less than an id) is cut off: whoever
asked was not told that it is done. Source: docs/specs/memory.md, *Erasure*.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = logging.getLogger("covey.memory.erased")

ID_BYTES: Final = 32


class ErasedIds:
    """The file.

    Args:
        path: where it lies; created with the first erasure.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._unwritten: list[bytes] = []

    @property
    def behind(self) -> bool:
        """Whether ids could not be written yet: a restore would bring those back."""
        return bool(self._unwritten)

    def load(self) -> list[bytes]:
        """All ids in the file, in order."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        whole = len(data) - len(data) % ID_BYTES
        return [data[at : at + ID_BYTES] for at in range(0, whole, ID_BYTES)]

    def append(self, ids: Sequence[bytes]) -> None:
        """Write ids and sync them. What fails is tried again with the next; see `behind`."""
        self._unwritten += ids
        if not self._unwritten:
            return
        try:
            fd = self._opened()
            data = b"".join(self._unwritten)
            # At a place of our own choosing: a torn end is overwritten, never continued.
            size = os.fstat(fd).st_size
            os.pwrite(fd, data, size - size % ID_BYTES)
            os.fsync(fd)
        except OSError as exc:
            log.warning("erased_ids_unwritten", extra={"f": {"errno": exc.errno}})
        else:
            self._unwritten.clear()

    def _opened(self) -> int:
        if self._fd is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)  # a new file's name is the folder's content
            finally:
                os.close(folder)
        return self._fd

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
