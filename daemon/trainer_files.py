"""A trainer's own folder for the files it hands in, gone with it, however it ends.

A process that is killed removes nothing: the next trainer on this machine does, once it sees that
nobody holds the folder any more. Who lives holds a lock on its folder, which the kernel lets go of.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Final

PREFIX: Final = "covey-trainer-"
MADE_S: Final = 60.0
"""A folder that is this young may be one that is being made, and not yet locked."""


class OwnFolder:
    """A new folder that this process alone uses.

    Attributes:
        path: where it is.

    Raises:
        OSError: none can be made.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._end = weakref.finalize(self, _remove, self.path, lock, os.getpid())
        self._remove_dead()

    def close(self) -> None:
        """Remove it."""
        self._end()

    def _remove_dead(self) -> None:
        """Folders of trainers that were killed."""
        ours = self.path.stat()
        for other in self.path.parent.glob(f"{PREFIX}*"):
            try:
                theirs = other.lstat()
                if theirs.st_uid == ours.st_uid and theirs.st_mtime < ours.st_mtime - MADE_S:
                    _remove_unless_held(other)
            except OSError:
                continue  # removed by its owner meanwhile, or not ours to look at


def _remove(folder: Path, lock: int, maker: int) -> None:
    """A copy of the process that made it, such as one that loads data, ends before that does."""
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _remove_unless_held(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
