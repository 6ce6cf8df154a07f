"""Erased memories leave the jobs: the driver's part.

What quotes a record is found in the journal, dropped from the machine's memory, and overwritten on
the disk behind all that was ordered before; what comes of it later is overwritten as it comes.
Source: docs/specs/jobs.md, Erasure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from federated.errors import PlanError
from federated.jobs.canon import canonical
from federated.jobs.limits import ROWS_MAX
from federated.jobs.orders import Forget, Orders
from federated.jobs.reduce import reduce_rows
from federated.jobs.state import JOB_FINAL, JobPhase, RowState
from federated.jobs.types import ByHandler, Collect, JobId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federated.jobs.coordinator import Coordinator
    from federated.jobs.journal import Journal, RowRead
    from federated.jobs.keeping import Kept
    from federated.jobs.types import Reduce
    from p2p.env import Env, Offload


class Erasing:
    """Takes erased records out of the jobs.

    Args:
        env: the wall clock.
        offload: where long computations go.
        journal: jobs.db.
        core: the machine.
        order: has orders carried out behind those before.
        reduce_again: reduces a job under way anew: its answers changed.
    """

    def __init__(
        self, env: Env, offload: Offload, journal: Journal, *, core: Callable[[], Coordinator],
        order: Callable[[Orders], None], reduce_again: Callable[[JobId], None],
    ) -> None:  # fmt: skip
        self._env = env
        self._offload = offload
        self._journal = journal
        self._core = core
        self._order = order
        self._reduce_again = reduce_again
        self._waiting: dict[int, trio.Event] = {}

    async def erase(self, records: Sequence[bytes]) -> int:
        """Overwrite what quotes any of these records; durable when it returns.

        Args:
            records: ids in the memory.

        Returns:
            How many rows of jobs that were.
        """
        found = await self._journal.quoting(records)
        self._drop(found)
        orders, done = Orders(), trio.Event()
        orders.full = True
        orders.forgets.append(Forget(tuple(records), self._env.wall_ms()))
        self._waiting[id(orders)] = done
        self._order(orders)
        await done.wait()
        for job in sorted(found):
            await self._reduce_finished(JobId(job))
        return sum(len(ks) for ks in found.values())

    def kept(self, batch: Sequence[Orders], kept: Kept) -> None:
        """Orders are on the disk; some of it came too late and is gone again."""
        if kept.gone:
            self._drop(kept.gone)
        for orders in batch:
            if orders.forgets and (done := self._waiting.pop(id(orders), None)) is not None:
                done.set()

    def _drop(self, found: Mapping[bytes, set[int]]) -> None:
        core = self._core()
        for job in core.erased(found, wall_ms=self._env.wall_ms()):
            if job.phase is JobPhase.REDUCING:
                self._reduce_again(job.id)
        self._order(core.take_orders())

    async def _reduce_finished(self, ident: JobId) -> None:
        """A finished job's rows are reduced anew, without those that are gone.

        Not by a handler: that would be work for peers. Such a job has no reduced row any more.
        """
        job = await self._journal.job(ident)
        if job is None or job.phase not in JOB_FINAL or isinstance(job.spec.reduce, Collect):
            return
        reduce = job.spec.reduce
        if isinstance(reduce, ByHandler) or job.phase is not JobPhase.DONE:
            return
        rows = await self._journal.rows(ident, 0, ROWS_MAX)
        values = await self._offload.run(lambda: _reduced(reduce, rows))
        await self._journal.keep_reduced(ident, values)


def _reduced(reduce: Reduce, rows: Sequence[RowRead]) -> list[bytes]:
    answers = [
        msgspec.json.decode(row.value, type=dict[str, object])
        if row.state is RowState.OK and row.value is not None
        else None
        for row in rows
    ]
    try:
        return [canonical(row) for row in reduce_rows(reduce, answers).rows]
    except PlanError:
        return []
