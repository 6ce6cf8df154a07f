"""Nothing left behind: tasks, threads and descriptors are counted before and after."""

from __future__ import annotations

import gc
import os
import sys
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

MIB: Final = 1 << 20

FD_FOLDER = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"


def task_count() -> int:
    """Living tasks of the current trio run, the main and system tasks included."""
    return trio.lowlevel.current_statistics().tasks_living


def open_descriptors() -> dict[int, str]:
    """What each open descriptor of this process points to."""
    found: dict[int, str] = {}
    for name in os.listdir(FD_FOLDER):  # noqa: PTH208 - Path.iterdir would hold one more descriptor
        try:
            found[int(name)] = os.readlink(f"{FD_FOLDER}/{name}")  # noqa: PTH115 - as above
        except OSError:
            continue  # the descriptor of this listing itself, or not a link on this system
    return found


def resident_bytes() -> int:
    """Memory of this process that is in use now; 0 where the system does not tell."""
    gc.collect()
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def left_as_found(*, growth_bytes_max: int = 16 * MIB) -> AsyncGenerator[None]:
    """Demand that tasks, descriptors and memory after the block are what they were before.

    What the block leaves to end by itself gets ten seconds.

    Args:
        growth_bytes_max: memory that pools of the interpreter and the allocator may keep.

    Raises:
        AssertionError: says what is left.
    """
    tasks, files, memory = task_count(), len(open_descriptors()), resident_bytes()
    yield
    with trio.move_on_after(10):
        while task_count() > tasks or len(open_descriptors()) > files:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert task_count() <= tasks, f"{task_count() - tasks} tasks are left"
    assert len(open_descriptors()) <= files, f"descriptors: {files} before, {open_descriptors()}"
    grown = resident_bytes() - memory
    assert grown <= growth_bytes_max, f"memory grew by {grown} bytes"


def own_threads() -> set[str]:
    """Names of living threads, without the idle ones that trio keeps for 10 s to reuse them."""
    return {
        thread.name
        for thread in threading.enumerate()
        if thread.is_alive() and not thread.name.startswith("Trio thread")
    }


@dataclass(frozen=True)
class Census:
    """A count of what a process holds."""

    descriptors: dict[int, str]
    threads: set[str]

    @classmethod
    def take(cls) -> Census:
        """Count now, after unreachable objects have been collected."""
        gc.collect()
        return cls(open_descriptors(), own_threads())

    def assert_nothing_new(self, since: Census) -> None:
        """Demand that `self` holds nothing that `since` did not.

        Raises:
            AssertionError: names the new descriptors and threads.
        """
        descriptors = {
            number: target
            for number, target in self.descriptors.items()
            if since.descriptors.get(number) != target and not _is_shared_cache(target)
        }
        threads = self.threads - since.threads
        assert not descriptors, f"descriptors left open: {descriptors}"
        assert not threads, f"threads left running: {sorted(threads)}"


def _is_shared_cache(target: str) -> bool:
    """Whether a library keeps this open once for the whole process, however often it is used."""
    return target == "/dev/urandom" or target == "/dev/random"
