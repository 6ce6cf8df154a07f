"""Reducing the rows of a job that are all settled: the driver's part.

Source: docs/specs/jobs.md s.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.errors import PlanError
from federated.jobs.canon import canonical
from federated.jobs.reduce import reduce_rows
from federated.jobs.staging import Superseded
from federated.jobs.state import RowState
from federated.jobs.types import ByHandler, Collect

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.jobs.journal import Journal
    from federated.jobs.staging import Stages
    from federated.jobs.state import Job
    from federated.jobs.types import JobId
    from federated.jobs.writing import Writer
    from p2p.env import Offload


class Reducing:
    """Reduces jobs.

    Args:
        offload: where long computations go.
        journal: jobs.db.
        writer: tries again what a full disk keeps from being written.
        stages: combine answers by a handler.
        find: a job in memory.
        reduced: told the job and what was wrong with its answers; empty: nothing.
    """

    def __init__(
        self, offload: Offload, journal: Journal, writer: Writer, stages: Stages, *,
        find: Callable[[JobId], Job | None], reduced: Callable[[JobId, str], None],
    ) -> None:  # fmt: skip
        self._offload = offload
        self._journal = journal
        self._writer = writer
        self._stages = stages
        self._find = find
        self._reduced = reduced

    async def run(self, ident: JobId) -> None:
        """Reduce the rows of a job whose rows are all settled; once there is room for it."""
        await self._writer.retried(lambda: self._reduce_once(ident))

    async def _reduce_once(self, ident: JobId) -> None:
        job = self._find(ident)
        if job is None:
            return
        problem = ""
        if not isinstance(job.spec.reduce, Collect):
            try:
                erasures = job.erasures
                if isinstance(job.spec.reduce, ByHandler):
                    values = await self._stages.reduce(job)
                else:
                    values = await self._offload.run(lambda: reduced_values(job))
                if job.erasures != erasures:
                    return  # what it was made of is gone; another one is under way
                await self._journal.keep_reduced(ident, values)
            except Superseded:
                return
            except PlanError as error:
                problem = error.reason
        self._reduced(ident, problem)


def reduced_values(job: Job) -> list[bytes]:
    """The reduced rows of a job in canonical form.

    Raises:
        PlanError: the answers cannot be reduced as the spec says.
    """
    answers = [row.value if row.state is RowState.OK else None for row in job.rows]
    reduced = reduce_rows(job.spec.reduce, answers)
    return [canonical(value) for value in reduced.rows]
