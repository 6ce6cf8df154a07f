"""jobs.db: what of a job must survive a kill, and how it is read back.

Rows of parameters come from the machine's orders by the name of a statement; each replaces or adds
one row, so that writing the same orders twice changes nothing. Reading is by page: a job has up to
100,000 rows. Source: docs/specs/jobs.md s.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgspec

from federated.jobs.board import EVENT_GAP
from federated.jobs.canon import encode_normal
from federated.jobs.keeping import Kept, Waiting, keep
from federated.jobs.loading import load_job, pack_ks, unpack_ks
from federated.jobs.quoting import (
    OF_A_JOB,
    Rows,
    add_quotes,
    forget_late,
    quotes_of_job,
    rows_quoting,
    scan,
)
from federated.jobs.reputation import StatRow
from federated.jobs.schedule import WINDOWS_MAX
from federated.jobs.state import JOB_FINAL, JobPhase, RowState
from federated.jobs.tainting import BAD, handler_of, mark, owners_of
from federated.jobs.types import JobId, JobSpec
from federated.jobs.verify import LEVEL_REPUTATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from federated.jobs.orders import Orders
    from federated.jobs.state import Job, RowCell
    from federated.seams import Db

_SPEC: Final = msgspec.json.Decoder(JobSpec)
_FINAL: Final = tuple(sorted(JOB_FINAL))
_FINAL_SQL: Final = "(" + ",".join("?" * len(_FINAL)) + ")"
DURATIONS_MS: Final = 30 * 86_400_000
"""How long a start believes what tasks took: as long as finished jobs are kept."""
READ_MAX: Final = 1000


class Finished(NamedTuple):
    """A job as the journal has it."""

    id: JobId
    spec: JobSpec
    group: bytes | None
    agent: str
    title: str
    phase: JobPhase
    reason: str
    submitted_ms: int
    deadline_ms: int
    finished_ms: int
    executions: int
    rows: int


class RowRead(NamedTuple):
    """A row as the journal has it; `source` and `value` are canonical JSON."""

    k: int
    key: bytes
    source: bytes
    state: RowState
    level: int
    reason: str
    value: bytes | None
    agreed: bytes
    pin: bytes | None


class EventRead(NamedTuple):
    """An event of a job; `body` is a JSON object."""

    seq: int
    at_ms: int
    kind: str
    body: bytes


_JOB_COLUMNS: Final = (
    "id, spec, group_id, agent, title, phase, reason, submitted_ms, deadline_ms, finished_ms,"
    " executions, rows"
)


class Journal:
    """The database of jobs.

    Args:
        db: open while jobs run.
    """

    def __init__(self, db: Db) -> None:
        self._db = db
        self._waiting = Waiting()

    async def begin(self, wall_s: int) -> tuple[int, int]:
        """A new epoch and the number of the first event of this run, durable before anything."""

        def fresh(connection: apsw.Connection) -> tuple[int, int]:
            have = {
                str(name): int(value)
                for name, value in connection.execute("SELECT name, value FROM meta")
            }
            epoch = max(have.get("epoch", 0) + 1, wall_s)
            row = connection.execute("SELECT max(seq) FROM event").fetchone()
            last = max(int(row[0] or 0) if row else 0, have.get("next_event", 0))
            first = last + EVENT_GAP
            if "quoted" not in have:
                scan(connection)
            old_ms = wall_s * 1000 - DURATIONS_MS
            connection.execute("DELETE FROM duration WHERE at_ms<?", (old_ms,))
            connection.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?,?)",
                [("epoch", epoch), ("next_event", first), ("quoted", 1)],
            )
            return epoch, first

        return await self._db.write(fresh, full=True)

    async def add(
        self, job: Job, *, spec_hash: bytes, idem: str | None, deadline_ms: int,
        parent: JobId | None,
    ) -> set[int]:  # fmt: skip
        """Keep a new job with its rows and tasks; durable when it returns.

        Returns:
            Rows that quote what was erased, `quoting.WHOLE` for all: they are not kept.
        """
        spec = job.spec
        # The rows stand in their own table: a spec of a hundred thousand is not kept twice.
        body = msgspec.json.encode(msgspec.structs.replace(spec, rows=[]))
        head = (
            job.id, body, spec_hash, job.group, job.agent, job.nonce, idem, parent, spec.title,
            job.phase, job.reason, job.submitted_ms, deadline_ms, 0, 0, job.executions_max,
            len(job.rows),
        )  # fmt: skip
        rows = [_new_row(job, row) for row in job.rows]
        tasks = [(job.id, task.index, pack_ks(task.ks), job.stage) for task in job.tasks]

        quoted = quotes_of_job(job)

        def insert(connection: apsw.Connection) -> set[int]:
            connection.execute("INSERT INTO job VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", head)
            connection.executemany("INSERT INTO row VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)
            connection.executemany("INSERT INTO task VALUES (?,?,?,?)", tasks)
            if not quoted:
                return set()
            add_quotes(connection, quoted)
            late = forget_late(connection, {record for record, _, _ in quoted})
            return late.get(job.id, set())

        return await self._db.write(insert, full=True)

    async def apply(self, batch: Sequence[Orders]) -> Kept:
        """Keep what the machine ordered, in one transaction."""
        entries = self._waiting.take(batch)
        try:
            return await self._db.write(
                lambda connection: keep(connection, batch, entries),
                full=any(orders.full for orders in batch),
            )
        except Exception:
            # On a full disk the same batch comes again, without the entries taken out of it.
            self._waiting.give_back(entries)
            raise

    async def keep_reduced(self, job: JobId, values: Sequence[bytes]) -> None:
        """Keep the reduced rows of a job."""

        def write(connection: apsw.Connection) -> None:
            connection.execute("DELETE FROM reduced WHERE job=?", (job,))
            connection.executemany(
                "INSERT INTO reduced VALUES (?,?,?)",
                [(job, n, value) for n, value in enumerate(values)],
            )

        await self._db.write(write, full=False)

    async def keep_stage(self, job: JobId, parent: JobId, level: int) -> None:
        """Say that a job, not yet kept, combines the answers of another."""

        def write(connection: apsw.Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO stage VALUES (?,?,?)", (job, parent, level))

        await self._db.write(write, full=False)

    # ---- reading

    async def find_idem(self, agent: str, idem: str) -> tuple[JobId, bytes] | None:
        """The job an agent submitted under a key, and the hash of its spec."""

        def read(connection: apsw.Connection) -> tuple[JobId, bytes] | None:
            row = connection.execute(
                "SELECT id, spec_hash FROM job WHERE agent=? AND idem=?", (agent, idem)
            ).fetchone()
            return None if row is None else (JobId(row[0]), row[1])

        return await self._db.read(read)

    async def job(self, ident: JobId) -> Finished | None:
        """A job, alive or not."""

        def read(connection: apsw.Connection) -> Finished | None:
            row = connection.execute(
                f"SELECT {_JOB_COLUMNS} FROM job WHERE id=?",  # noqa: S608 - ours
                (ident,),
            ).fetchone()
            return None if row is None else _finished(row)

        return await self._db.read(read)

    async def jobs(self, agent: str | None, limit: int) -> list[Finished]:
        """The newest jobs, of one agent or of all."""

        def read(connection: apsw.Connection) -> list[Finished]:
            rows = connection.execute(
                f"SELECT {_JOB_COLUMNS} FROM job WHERE (?1 IS NULL OR agent=?1)"  # noqa: S608
                " AND id NOT IN (SELECT job FROM stage) ORDER BY submitted_ms DESC, id LIMIT ?2",
                (agent, limit),
            )
            return [_finished(row) for row in rows]

        return await self._db.read(read)

    async def rows(self, job: JobId, offset: int, limit: int) -> list[RowRead]:
        """A page of a job's rows, by index."""

        def read(connection: apsw.Connection) -> list[RowRead]:
            found = connection.execute(
                "SELECT k, key, source, state, level, reason, value, agreed, pin FROM row"
                " WHERE job=? AND k>=? ORDER BY k LIMIT ?",
                (job, offset, limit),
            )
            return [_row_read(row) for row in found]

        return await self._db.read(read)

    async def reduced(self, job: JobId, offset: int, limit: int) -> list[bytes]:
        """A page of a job's reduced rows."""

        def read(connection: apsw.Connection) -> list[bytes]:
            found = connection.execute(
                "SELECT value FROM reduced WHERE job=? AND n>=? ORDER BY n LIMIT ?",
                (job, offset, limit),
            )
            return [bytes(row[0]) for row in found]

        return await self._db.read(read)

    async def counts(self, job: JobId) -> dict[str, int]:
        """Rows of a job by state."""

        def read(connection: apsw.Connection) -> dict[str, int]:
            found = connection.execute(
                "SELECT state, count(*) FROM row WHERE job=? GROUP BY state", (job,)
            )
            have = {int(row[0]): int(row[1]) for row in found}
            return {state.name.lower(): have.get(state, 0) for state in RowState}

        return await self._db.read(read)

    async def marks(self, job: JobId) -> dict[str, int]:
        """Answered rows of a job by what is to be said of them: `cached`."""

        def read(connection: apsw.Connection) -> dict[str, int]:
            found = connection.execute(
                "SELECT reason, count(*) FROM row WHERE job=? AND state=? AND reason<>''"
                " GROUP BY reason",
                (job, int(RowState.OK)),
            )
            return {str(reason): int(count) for reason, count in found}

        return await self._db.read(read)

    async def events(self, job: JobId, since: int, limit: int) -> list[EventRead]:
        """Events of a job after number `since`, in order."""

        def read(connection: apsw.Connection) -> list[EventRead]:
            found = connection.execute(
                "SELECT seq, at_ms, kind, body FROM event WHERE job=? AND seq>?"
                " ORDER BY seq LIMIT ?",
                (job, since, limit),
            )
            return [EventRead(*row) for row in found]

        return await self._db.read(read)

    async def attempts(self, job: JobId, task: int) -> list[dict[str, object]]:
        """The attempts of a task that ended."""

        def read(connection: apsw.Connection) -> list[dict[str, object]]:
            found = connection.execute(
                "SELECT attempt, device, owner, state, at_ms, took_ms, reason FROM attempt"
                " WHERE job=? AND task=? ORDER BY at_ms",
                (job, task),
            )
            names = ("attempt", "device", "owner", "state", "at_ms", "took_ms", "reason")
            return [dict(zip(names, row, strict=True)) for row in found]

        return await self._db.read(read)

    async def task_of(self, job: JobId, k: int) -> int | None:
        """The task a row travels in."""

        def read(connection: apsw.Connection) -> int | None:
            for number, ks in connection.execute(
                "SELECT task, ks FROM task WHERE job=? ORDER BY task", (job,)
            ):
                if k in unpack_ks(bytes(ks)):
                    return int(number)
            return None

        return await self._db.read(read)

    async def stats(self) -> list[StatRow]:
        """What owners and devices have earned."""

        def read(connection: apsw.Connection) -> list[StatRow]:
            found = connection.execute("SELECT owner, device, handler, body FROM peer_stat")
            return [StatRow._make(row) for row in found]

        return await self._db.read(read)

    async def durations(self) -> list[tuple[str, int, bytes]]:
        """(handler, kind, body) of what tasks took in the last 30 days, the newest last."""

        def read(connection: apsw.Connection) -> list[tuple[str, int, bytes]]:
            found = connection.execute(
                "SELECT handler, kind, body FROM duration ORDER BY at_ms DESC LIMIT ?",
                (WINDOWS_MAX,),
            ).fetchall()
            return [(str(name), int(kind), bytes(body)) for name, kind, body in reversed(found)]

        return await self._db.read(read)

    async def alone(self) -> list[tuple[bytes, str, tuple[bytes, int]]]:
        """(owner, handler, row) of what live jobs took from one owner alone, oldest first."""

        def read(connection: apsw.Connection) -> list[tuple[bytes, str, tuple[bytes, int]]]:
            found = connection.execute(
                "SELECT row.agreed, job.spec, row.job, row.k FROM job JOIN row ON row.job=job.id"  # noqa: S608
                f" WHERE job.phase NOT IN {_FINAL_SQL} AND row.state=? AND row.level=?"
                " ORDER BY job.submitted_ms, job.id, row.k",
                (*_FINAL, int(RowState.OK), LEVEL_REPUTATION),
            )
            return [
                (owner, handler_of(bytes(spec)), (bytes(job), int(k)))
                for agreed, spec, job, k in found
                for owner in sorted(owners_of(bytes(agreed)))
            ]

        return await self._db.read(read)

    async def call_bad(self, job: JobId, ks: Sequence[int]) -> None:
        """Answered rows of a finished job are wrong, says its caller; the cache forgets them."""

        def write(connection: apsw.Connection) -> None:
            mark(connection, {job: ks}, BAD)
            connection.executemany(
                "DELETE FROM cache WHERE hash=(SELECT hash FROM row WHERE job=? AND k=?)",
                [(job, k) for k in ks],
            )

        await self._db.write(write, full=True)

    async def quoting(self, records: Sequence[bytes]) -> Rows:
        """The rows that quote any of these records."""
        return await self._db.read(lambda connection: rows_quoting(connection, records))

    async def purge(self, job: JobId) -> None:
        """Remove a finished job with all that belongs to it."""

        def write(connection: apsw.Connection) -> None:
            levels = connection.execute("SELECT job FROM stage WHERE parent=?", (job,)).fetchall()
            for (ident,) in [(job,), *levels]:
                for table in OF_A_JOB:
                    connection.execute(f"DELETE FROM {table} WHERE job=?", (ident,))  # noqa: S608
                connection.execute("DELETE FROM job WHERE id=?", (ident,))

        await self._db.write(write, full=True)

    async def live(self, now: float, wall_ms: int) -> list[Job]:
        """The jobs that were under way, built anew.

        Args:
            now: monotonic seconds.
            wall_ms: Unix milliseconds: a deadline is that of the wall clock, and a clock that was
                set back lengthens none.
        """

        def read(connection: apsw.Connection) -> list[Job]:
            found = connection.execute(
                "SELECT id, spec, group_id, agent, nonce, phase, reason, submitted_ms,"  # noqa: S608
                " deadline_ms, executions, executions_max FROM job"
                f" WHERE phase NOT IN {_FINAL_SQL} ORDER BY submitted_ms, id",
                _FINAL,
            ).fetchall()
            return [load_job(connection, row, now, wall_ms) for row in found]

        return await self._db.read(read)


def _new_row(job: Job, row: RowCell) -> tuple[bytes | str | int | None, ...]:
    # What a pending row has already is what its answer will be merged over.
    value, level, agreed = row.base or (row.value, row.level, row.agreed)
    return (
        job.id, row.k, row.key, row.hash, row.source, row.pin, int(row.state), level, row.reason,
        None if value is None else encode_normal(value), b"".join(agreed),
    )  # fmt: skip


def _row_read(row: tuple[object, ...]) -> RowRead:
    k, key, source, state, *rest = row
    return RowRead._make((k, key, source, RowState(cast("int", state)), *rest))


def _finished(row: tuple[object, ...]) -> Finished:
    ident, spec, group, agent, title, phase, *rest = row
    return Finished._make(
        (
            ident, _SPEC.decode(cast("bytes", spec)), group, agent, title,
            JobPhase(cast("str", phase)), *rest,
        )
    )  # fmt: skip
