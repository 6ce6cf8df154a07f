"""Rows that nobody is asked for, because an earlier job has their answers.

Before a job is known to anybody. Its tasks stay as they were drawn, less what is settled already.
Source: docs/specs/jobs.md s.11.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from federated.jobs.cache import CACHED
from federated.jobs.state import TASK_TRANSITIONS, RowState, TaskInput, step
from federated.jobs.verify import LEVEL_OWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federated.jobs.cache import Entry
    from federated.jobs.state import Job, RowCell


def take_cached(job: Job, found: Mapping[bytes, Entry]) -> None:
    """Settle the rows whose answers were found.

    Args:
        job: new.
        found: entries that the job may take, by row hash.
    """
    for row in job.rows:
        entry = found.get(row.hash)
        if entry is None or row.state is not RowState.PENDING:
            continue
        row.value = msgspec.json.decode(entry.value)
        row.level = entry.level
        row.agreed = tuple(sorted(frozenset().union(*entry.backing)))
        row.backing = entry.backing if entry.level < LEVEL_OWN else frozenset()
        settle_row(job, row, CACHED)
        job.cached += 1
    settle_tasks(job)


def settle_row(job: Job, row: RowCell, reason: str) -> None:
    """A row has its answer before the job begins."""
    job.counts[row.state] -= 1
    row.state = RowState.OK
    row.reason = reason
    job.counts[RowState.OK] += 1


def settle_tasks(job: Job) -> None:
    """Count what is open in each task; those without any are done."""
    for task in job.tasks:
        task.open = len(job.pending(task))
        if not task.open:
            task.state = step(TASK_TRANSITIONS, task.state, TaskInput.SETTLED)
    job.queue = deque(task for task in job.queue if task.open)
