"""A real disk that is small, so that it can be filled."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.helpers.need import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size in memory, mounted at `folder/disk` until the block ends.

    Skips the test where nothing can be mounted.

    Args:
        folder: where the mount point is made.
        size: as `mount` takes it, such as `6m`.
    """
    need("root")
    mount = folder / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        need("mount")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(disk: Path, *, but_bytes: int) -> Path:
    """Take all room of a disk but so many bytes; the file to delete for making room again."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - but_bytes))
    return filler
