"""Live jobs, built anew from the journal. Source: docs/specs/jobs.md s.8."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from federated.jobs.cache import CACHED
from federated.jobs.effects import restore
from federated.jobs.plan import blob_of
from federated.jobs.state import (
    AttemptState,
    Base,
    Job,
    JobPhase,
    RowCell,
    RowState,
    TaskCell,
    TaskState,
)
from federated.jobs.types import JobId, JobSpec
from federated.jobs.verify import Answer
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import apsw

ANSWER_DROPPED: Final = 2
"""In column `overlapped`: the answer counts no more, for its owner lost a vote or was quarantined
since. Its owner is not asked for the row again; the answer itself is not kept."""
AUDIT: Final = -1
"""In column `stage` of a task: it computes an accepted row again."""
AUDITED: Final = -2
"""Likewise: it has, or never will."""
_SPEC: Final = msgspec.json.Decoder(JobSpec)


class _Kept(NamedTuple):
    """A row of table job, as far as a live one is built of it."""

    id: bytes
    spec: bytes
    group: bytes | None
    agent: str
    nonce: bytes
    phase: str
    reason: str
    submitted_ms: int
    deadline_ms: int
    executions: int
    executions_max: int | None


def load_job(connection: apsw.Connection, head: Sequence[object], now: float, wall_ms: int) -> Job:
    """A job of a row of table `job`, with its rows, votes and tasks.

    Args:
        connection: in a transaction.
        head: columns in the order of `_Kept`.
        now: monotonic seconds.
        wall_ms: Unix milliseconds.
    """
    kept = _Kept._make(head)
    spec = _SPEC.decode(kept.spec)
    left_s = min(spec.deadline_s, (kept.deadline_ms - wall_ms) / 1000)
    job = Job(
        JobId(kept.id), spec, group=kept.group, agent=kept.agent, nonce=kept.nonce,
        submitted_ms=kept.submitted_ms, deadline=now + left_s,
    )  # fmt: skip
    job.phase, job.reason = JobPhase(kept.phase), kept.reason
    job.executions, job.executions_max = kept.executions, kept.executions_max
    job.executions = max(job.executions, _attempts_that_ended(connection, job))
    _load_rows(connection, job)
    _load_tasks(connection, job, now)
    _load_answers(connection, job)
    if spec.effect == "once":
        _load_offered(connection, job, now)
    return job


def _attempts_that_ended(connection: apsw.Connection, job: Job) -> int:
    """How many executions table `attempt` tells of."""
    (count,) = connection.execute(
        "SELECT count(*) FROM attempt WHERE job=? AND state<>?", (job.id, AttemptState.REFUSED)
    ).fetchone() or (0,)
    return int(count)


def _load_offered(connection: apsw.Connection, job: Job, now: float) -> None:
    """Attempts of effects without an end: from the offer on nobody knows but their workers."""
    found = connection.execute(
        "SELECT task, attempt, device, owner FROM attempt WHERE job=? AND state=?",
        (job.id, AttemptState.OFFERED),
    )
    restore(job, [(task, number, PeerId(dev), owner) for task, number, dev, owner in found], now)


def _load_answers(connection: apsw.Connection, job: Job) -> None:
    """Votes of rows that are still open, or to be audited: they need not be asked for again."""
    audited = {k for task in job.queue if task.audit for k in task.ks}
    for k, device, owner, attempt, overlapped, body in connection.execute(
        "SELECT k, device, owner, attempt, overlapped, body FROM answer WHERE job=?", (job.id,)
    ):
        row = job.rows[k]
        if row.state is not RowState.PENDING and k not in audited:
            continue
        row.barred.add(owner)
        if overlapped == ANSWER_DROPPED:
            row.doubted = True
            continue
        value = msgspec.json.decode(body, type=dict[str, object])
        row.answers.append(Answer(owner, device, attempt, value, overlapped=bool(overlapped)))


def _load_rows(connection: apsw.Connection, job: Job) -> None:
    for k, key, hashed, source, pin, state, level, reason, value, agreed in connection.execute(
        "SELECT k, key, hash, source, pin, state, level, reason, value, agreed FROM row"
        " WHERE job=? ORDER BY k",
        (job.id,),
    ):
        row = RowCell(k, key, hashed, source)
        row.pin = None if pin is None else PeerId(pin)
        row.state, row.reason = RowState(state), reason
        data = bytes(agreed)
        owners = tuple(data[i : i + 32] for i in range(0, len(data), 32))
        if value is not None:
            found = Base(msgspec.json.decode(value), level, owners)
            if row.state is RowState.OK:
                found.give(row)
            else:
                row.base, row.partial = found, found.value
        job.rows.append(row)
        if (blob := blob_of(bytes(source))) is not None:
            job.blobs[k] = blob
        job.counts[row.state] += 1
        job.cached += row.reason == CACHED


def _load_tasks(connection: apsw.Connection, job: Job, now: float) -> None:
    for number, ks, stage in connection.execute(
        "SELECT task, ks, stage FROM task WHERE job=? ORDER BY task", (job.id,)
    ):
        indices = tuple(unpack_ks(bytes(ks)))
        size = sum(len(job.rows[k].source) for k in indices)
        task = TaskCell(int(number), indices, size, now)
        task.audit = stage in {AUDIT, AUDITED}
        job.stage = max(job.stage, stage)
        if not task.audit:
            task.open = sum(1 for k in indices if job.rows[k].state is RowState.PENDING)
        else:
            task.open = 0
            job.audits += stage == AUDIT
        job.tasks.append(task)
        if task.open or stage == AUDIT:
            job.queue.append(task)
        else:
            task.state = TaskState.DONE


def pack_ks(ks: Sequence[int]) -> bytes:
    """Row indices as the journal keeps them."""
    return struct.pack(f">{len(ks)}I", *ks)


def unpack_ks(data: bytes) -> Iterator[int]:
    """The inverse of `pack_ks`."""
    return (k for (k,) in struct.iter_unpack(">I", data))
