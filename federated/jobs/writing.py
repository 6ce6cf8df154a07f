"""The journal's writer: what the machine orders is kept in turn, then what waited for it happens.

Everything that waits goes into one transaction; only after its commit do acknowledgements leave,
events get told and callers hear that what they asked for is done. When the disk is full nothing of
that happens: orders stay in their order, the writer tries again each second, and whoever waits is
told `journal_full`. So nothing is acknowledged that a kill could take, and nothing that was ordered
is lost while the process lives. Source: docs/specs/jobs.md s.8.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from federated.errors import JobError, is_full
from federated.jobs.orders import Orders

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from federated.jobs.journal import Journal
    from federated.jobs.keeping import Kept

T = TypeVar("T")

log = logging.getLogger("covey.jobs")

RETRY_S: Final = 1.0
"""How often a full disk is tried again: about when a person looks whether it helped."""
FULL: Final = "journal_full"


def full_error(done: str = "") -> JobError:
    """What a caller hears when the disk is full.

    Args:
        done: what has happened all the same.
    """
    return JobError(
        FULL,
        f"{done}the disk of jobs.db is full: free space on it, then repeat; jobs go on by"
        " themselves, and nothing that was acknowledged is lost",
    )


class Writer:
    """Keeps orders.

    Args:
        journal: open while `run` runs.
        kept: what may happen once a batch is on the disk.
        filled: told when the disk is full, and when it is not any more.
    """

    def __init__(
        self, journal: Journal, *, kept: Callable[[Sequence[Orders], Kept], Awaitable[None]],
        filled: Callable[[bool], None],
    ) -> None:  # fmt: skip
        self._journal = journal
        self._kept = kept
        self._filled = filled
        self._orders: list[Orders] = []
        self._work = trio.Event()
        self._waiting: dict[int, trio.Event] = {}
        self._others = 0
        """Writes of others that met a full disk and will be tried again."""
        self.full = False

    def order(self, orders: Orders) -> None:
        """Have orders kept after those before."""
        self._orders.append(orders)
        self._work.set()

    def check(self) -> None:
        """Whether what is asked for could be kept now.

        Raises:
            JobError: `journal_full`.
        """
        if self.full:
            raise full_error()

    async def flushed(self, done: str = "") -> None:
        """Wait until all that was ordered so far is on the disk.

        Args:
            done: what to say has happened if it cannot be kept.

        Raises:
            JobError: `journal_full`.
        """
        if not self.full:
            mark, event = Orders(), trio.Event()
            self._waiting[id(mark)] = event
            self.order(mark)
            try:
                await event.wait()
            finally:
                reached = self._waiting.pop(id(mark), None) is None
            if reached:
                return
        raise full_error(done)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse with `journal_full` what a full disk keeps from being written.

        Raises:
            JobError: `journal_full`.
        """
        self.check()
        try:
            yield
        except Exception as error:
            if not is_full(error):
                raise
            self._set_full()
            self._work.set()
            raise full_error() from error

    async def retried(self, write: Callable[[], Awaitable[T]]) -> T:
        """Do what writes to jobs.db, as often as its disk is full.

        Args:
            write: may be done again after it failed.
        """
        while True:
            try:
                return await write()
            except Exception as error:
                if not is_full(error):
                    raise
            self._others += 1
            try:
                self._set_full()
                await trio.sleep(RETRY_S)
            finally:
                self._others -= 1
                self._work.set()

    async def run(self) -> None:
        """Keep orders until cancelled."""
        while True:
            self._work = trio.Event()
            if not self._orders and not self.full:
                await self._work.wait()
            # Sessions that end with us still give orders; by then the journal is closing.
            await trio.lowlevel.checkpoint_if_cancelled()
            batch, self._orders = self._orders, []
            try:
                kept = await self._journal.apply(batch)
            except Exception as error:
                if not is_full(error):
                    raise
                self._orders = batch + self._orders
                self._set_full()
                await trio.sleep(RETRY_S)
                continue
            if not self._others:
                self._set_room()
            await self._kept(batch, kept)
            for orders in batch:
                if (event := self._waiting.pop(id(orders), None)) is not None:
                    event.set()
            if self.full:
                await trio.sleep(RETRY_S)

    def _set_full(self) -> None:
        if not self.full:
            self.full = True
            log.error("journal_full", extra={"f": {"waiting": len(self._orders)}})
            self._filled(True)
        for event in self._waiting.values():
            event.set()

    def _set_room(self) -> None:
        if self.full:
            self.full = False
            log.info("journal_has_room")
            self._filled(False)
