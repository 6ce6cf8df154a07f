"""Rows that nobody is asked for, because an earlier job has their answers.

Before a job is known to anybody. Its tasks stay as they were drawn, less what is settled already.
Source: docs/specs/jobs.md s.11.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from federated.jobs.cache import CACHED
from federated.jobs.plan import PIN
from federated.jobs.quoting import ERASED, NOTHING, WHOLE
from federated.jobs.state import KEPT, TASK_TRANSITIONS, Base, RowState, TaskInput, TaskState, step
from federated.jobs.tainting import SUSPECT
from federated.jobs.template import parse_template
from federated.jobs.verify import LEVEL_OWN
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federated.jobs.cache import Entry
    from federated.jobs.journal import RowRead
    from federated.jobs.state import Job, RowCell
    from federated.jobs.types import JobId, JobSpec, Row

OUTCOME_UNKNOWN: Final = "outcome_unknown"
"""An effect that may have happened: asked for again only by name."""


def take_cached(job: Job, found: Mapping[bytes, Entry]) -> None:
    """Settle the rows whose answers were found.

    Args:
        job: new.
        found: entries that the job may take, by row hash.
    """
    for row in job.rows:
        entry = found.get(row.hash)
        if entry is None or row.state is not RowState.PENDING or row.base is not None:
            continue
        row.value = msgspec.json.decode(entry.value)
        row.level = entry.level
        row.agreed = tuple(sorted(frozenset().union(*entry.backing)))
        row.backing = entry.backing if entry.level < LEVEL_OWN else frozenset()
        settle_row(job, row, CACHED)
        job.cached += 1
    settle_tasks(job)


def settle_row(job: Job, row: RowCell, reason: str, state: RowState = RowState.OK) -> None:
    """What becomes of a row is known before the job begins."""
    job.counts[row.state] -= 1
    row.state = state
    row.reason = reason
    job.counts[state] += 1


def settle_tasks(job: Job) -> None:
    """Count what is open in each task; those without any are done."""
    for task in job.tasks:
        task.open = len(job.pending(task))
        if not task.open and task.state is TaskState.QUEUED:
            task.state = step(TASK_TRANSITIONS, task.state, TaskInput.SETTLED)
    job.queue = deque(task for task in job.queue if task.open)


class Parent(NamedTuple):
    """The finished job whose gaps another fills.

    Attributes:
        id: its id.
        rows: as the journal has them, by index.
        sources: its input rows.
        pins: devices that they name.
    """

    id: JobId
    rows: Sequence[RowRead]
    sources: list[Row]
    pins: Mapping[str, PeerId]

    @classmethod
    def of(cls, ident: JobId, spec: JobSpec, rows: Sequence[RowRead]) -> Parent:
        """A job by its rows, which are all there, from 0 on.

        An erased row has nothing left, but a place and cells that keys and template ask for.
        """
        names = {*spec.key_columns}
        if spec.template is not None:
            names |= parse_template(spec.template, None).names
        sources: list[Row] = [
            dict.fromkeys(sorted(names), f"{ERASED} {row.k}")
            if row.reason == ERASED
            else msgspec.json.decode(row.source)
            for row in rows
        ]
        pins = {
            str(source[PIN]): PeerId(row.pin)
            for row, source in zip(rows, sources, strict=True)
            if row.pin is not None and PIN in source
        }
        return cls(ident, rows, sources, pins)

    def find_peer(self, name: str) -> PeerId | None:
        """The device that a row named so, then."""
        return self.pins.get(name)


def drop_erased(job: Job, ks: set[int]) -> None:
    """Rows of a new job quote what was erased.

    Args:
        job: new, in the journal.
        ks: which; `quoting.WHOLE` for all.
    """
    for row in job.rows:
        if row.k in ks or WHOLE in ks:
            row.source, row.base, row.partial, row.value = NOTHING, None, None, None
            settle_row(job, row, ERASED, RowState.MISSING)
    settle_tasks(job)


def bytes_of_hex(text: str) -> bytes:
    """What hex digits say; nothing for other text."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def take_parent(job: Job, parent: Sequence[RowRead]) -> None:
    """Settle all rows of a delta job but the gaps.

    Args:
        job: new, of the parent's rows in their order.
        parent: the finished job's rows.
    """
    columns, only = job.spec.gap_columns, frozenset(job.spec.gap_rows)
    for row, before in zip(job.rows, parent, strict=True):
        value = None if before.value is None else msgspec.json.decode(before.value)
        # What acted on the world acts again only by name, whoever vouched for its answer.
        acted = job.spec.effect == "once" and row.k not in only
        sound = acted or before.reason not in SUSPECT
        if before.state is RowState.OK and value is not None and sound:
            keys = (before.agreed[i : i + 32] for i in range(0, len(before.agreed), 32))
            base = Base(value, before.level, tuple(keys))
            lacks = not acted and any(value.get(name) is None for name in columns)
            if lacks and (not only or row.k in only):
                row.base = base
                row.partial = value
            else:
                base.give(row)
                settle_row(job, row, KEPT)
        elif before.reason == ERASED or (
            row.k not in only and (only or before.reason == OUTCOME_UNKNOWN)
        ):
            state = RowState.MISSING if before.state is RowState.OK else before.state
            settle_row(job, row, before.reason or state.name.lower(), state)
    settle_tasks(job)
