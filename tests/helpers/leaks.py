"""Nothing left behind: tasks, threads and descriptors are counted before and after."""

from __future__ import annotations

import gc
import os
import sys
import threading
from dataclasses import dataclass

import trio

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
