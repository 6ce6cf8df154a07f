"""The journal of jobs in memory, for coordinators whose peers are played.

    kept = KeptFleet(seed=1)
    job = kept.submit(rows=3)
    again = kept.read(job)

Nothing waits: a coroutine of the journal runs to its end at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import apsw

import federated.migrations
from benchmarks.job_sims.fleet import Fleet
from federated.jobs.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from federated.jobs.orders import Orders
    from federated.jobs.state import Job

T = TypeVar("T")


class PlainDb:
    """A journal in memory, without a thread."""

    def __init__(self) -> None:
        self.connection = apsw.Connection(":memory:")
        for path in sorted(Path(federated.migrations.__file__).parent.glob("*.sql")):
            self.connection.execute(path.read_text())

    async def read(self, fn: Callable[[apsw.Connection], T]) -> T:
        return fn(self.connection)

    async def write(self, fn: Callable[[apsw.Connection], T], *, full: bool = True) -> T:
        del full
        found: list[T] = []
        with self.connection:
            found.append(fn(self.connection))
        return found[0]


def at_once(coroutine: Coroutine[object, None, T]) -> T:
    """What a coroutine that never waits returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    raise AssertionError("it waits")


class KeptFleet(Fleet):
    """A coordinator whose orders are kept as they come.

    Args:
        seed: of its random numbers.
    """

    def __init__(self, *, seed: int) -> None:
        super().__init__(seed=seed)
        self.journal = Journal(PlainDb())
        self.on_orders = self._keep
        self.on_submit = self._add

    def _keep(self, orders: Orders) -> None:
        at_once(self.journal.apply([orders]))

    def _add(self, job: Job) -> None:
        deadline_ms = self.wall_ms + int(job.spec.deadline_s * 1000)
        at_once(
            self.journal.add(
                job, spec_hash=bytes(32), idem=None, deadline_ms=deadline_ms, parent=None
            )
        )

    def read(self, job: Job) -> Job:
        """A job as a restart would find it."""
        found = at_once(self.journal.live(self.now, self.wall_ms))
        return next(one for one in found if one.id == job.id)
