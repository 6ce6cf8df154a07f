"""Memory that processes share: made once, its pages touched, and used again and again.

On Linux a segment is a memory file without a name, sealed so that nobody can change its size; it
ends with the last process that has it, however that one dies. Elsewhere it is a `SharedMemory`
whose name is removed as soon as it is made. Either way a process gets it as a descriptor
(SCM_RIGHTS), so nobody attaches by name.

*The resource tracker*. Before Python 3.13 a process that attaches to a `SharedMemory` by name
registers it with a tracker, which unlinks it when that process ends, under everybody's hands. Here
only its maker ever opens it, and unregisters it: by `track=False`, or before 3.13 by `unlink`.

Functions here block: making a segment touches its pages (25,000 faults for 100 MB).
Source: memfd_create(2), fcntl(2) File Sealing; docs/specs/pool.md.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]

SegmentKind: TypeAlias = Literal["memfd", "shm"]

PAGE_BYTES: Final = mmap.PAGESIZE

# Linux, <linux/fcntl.h>. Python names the last one from 3.13 on; the kernel has it since 5.1.
F_SEAL_SEAL: Final = 0x1
F_SEAL_SHRINK: Final = 0x2
F_SEAL_GROW: Final = 0x4
F_SEAL_FUTURE_WRITE: Final = 0x10
F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034

NAME: Final = "covey-pool"
"""Seen in /proc/PID/fd as /memfd:covey-pool."""


class Segment:
    """A segment of this process's making.

    Args:
        size: bytes, whole pages.
        shown: seal it so that whoever gets the descriptor can only read it.
        kind: how it is made; by default what the system has.

    Raises:
        OSError: no memory (ENOMEM, ENOSPC), no descriptor (EMFILE).
    """

    def __init__(self, size: int, *, shown: bool = False, kind: SegmentKind | None = None) -> None:
        kind = kind or ("memfd" if sys.platform == "linux" else "shm")
        self.size = size
        self.fd = _memory_file(size) if kind == "memfd" else _shared_memory(size)
        try:
            self.bytes: Bytes = np.frombuffer(mmap.mmap(self.fd, size), np.uint8)
            self.bytes[::PAGE_BYTES] = 0
            if kind == "memfd":
                _seal(self.fd, shown=shown)
        except BaseException:
            os.close(self.fd)
            raise

    def f32(self, items: int, offset: int = 0) -> NDArray[np.float32]:
        """float32[items] of the segment, `offset` bytes from its start."""
        return self.bytes[offset : offset + 4 * items].view(np.float32)

    def close(self) -> None:
        """Let go of the descriptor; the memory follows with the last array that views it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.bytes = np.empty(0, np.uint8)


def _memory_file(size: int) -> int:
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # Allocated here, a lack of memory is an error; at the first write it would be a signal.
        os.posix_fallocate(fd, 0, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _shared_memory(size: int) -> int:
    """A descriptor of POSIX shared memory that has no name any more."""
    from multiprocessing.shared_memory import SharedMemory

    if sys.version_info >= (3, 13):
        memory = SharedMemory(create=True, size=size, track=False)
    else:
        memory = SharedMemory(create=True, size=size)
    try:
        return os.dup(memory._fd)  # type: ignore[attr-defined]  # noqa: SLF001 - no public way to it
    finally:
        # Before 3.13 this also unregisters it from the tracker.
        memory.unlink()
        memory.close()


def _seal(fd: int, *, shown: bool) -> None:
    seals = F_SEAL_SHRINK | F_SEAL_GROW
    if shown:
        try:
            fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a kernel before 5.1: read-only by the client's word
                raise
    fcntl.fcntl(fd, F_ADD_SEALS, seals | F_SEAL_SEAL)


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes() -> int:
    """Memory that this machine could give without swapping; all of it where nobody says."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - no pathlib needed
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return memory_bytes()
