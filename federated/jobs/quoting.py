"""Which rows of jobs quote which records of the memory, so that erasing one takes them along.

A row quotes a record if its input or its answer names the record's id, 64 hex digits, as a cell of
its own: so `memory.search@1` answers, and so do rows that a caller makes of what it recalled. What
is computed from a row that quotes is its answer, so it goes with the row, and so does what was kept
of it for later jobs. Whoever passes a memory's text on without its id has cut the thread; nothing
can follow it then.

Erased ids stay in a table of their own: an answer that was under way comes too late.
Source: docs/specs/jobs.md, Erasure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from federated.jobs.state import RowState
from federated.jobs.types import JobSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import apsw

    from federated.jobs.orders import Params
    from federated.jobs.state import Job

RECORD: Final = re.compile(rb'"([0-9a-f]{64})"')
"""A record id in JSON."""

WHOLE: Final = -1
"""Instead of a row's index: the params or template of the job quote, and with them all rows."""
ERASED: Final = "erased"
"""Reason of a row whose input or answer quoted what was erased."""
NOTHING: Final = b"{}"
"""Instead of its input."""

OF_A_JOB: Final = (
    "row", "task", "attempt", "answer", "reduced", "event", "stage", "planned", "quote",
)  # fmt: skip
"""Tables whose rows belong to a job, by `job`."""

Rows: TypeAlias = "dict[bytes, set[int]]"
"""Rows by job; `WHOLE` for all."""

_ADD: Final = "INSERT OR IGNORE INTO quote VALUES (?,?,?)"
_ADD_CACHED: Final = "INSERT OR IGNORE INTO cache_quote VALUES (?,?)"


def quotes(*texts: bytes | None) -> set[bytes]:
    """The record ids that JSON texts name."""
    found = (one for text in texts if text for one in RECORD.findall(text))
    return {bytes.fromhex(one.decode()) for one in found}


def quotes_of_job(job: Job) -> list[tuple[bytes, bytes, int]]:
    """Rows of table `quote` for a new job."""
    spec = job.spec
    told = msgspec.json.encode([spec.params, spec.template, spec.title])
    found = [(record, bytes(job.id), WHOLE) for record in quotes(told)]
    for row in job.rows:
        value = row.base.value if row.base is not None else row.value
        texts = (row.source, None if value is None else msgspec.json.encode(value))
        found += [(record, bytes(job.id), row.k) for record in quotes(*texts)]
    return found


def keep_quotes(
    connection: apsw.Connection, rows: Sequence[Params], answers: Sequence[Params]
) -> set[bytes]:
    """Note what accepted rows and single answers quote; the records.

    Args:
        connection: in a transaction.
        rows: parameters of `row_state`.
        answers: parameters of `answer`.
    """
    found: list[tuple[bytes, object, object]] = []
    for _, _, _, value, _, job, k in rows:
        if isinstance(value, bytes):
            found += [(record, job, k) for record in quotes(value)]
    for job, k, _, _, _, _, body in answers:
        if isinstance(body, bytes):
            found += [(record, job, k) for record in quotes(body)]
    connection.executemany(_ADD, found)
    return {record for record, _, _ in found}


def add_quotes(connection: apsw.Connection, found: Sequence[tuple[bytes, bytes, int]]) -> None:
    """Note what a new job quotes."""
    connection.executemany(_ADD, found)


def keep_cache_quotes(connection: apsw.Connection, found: Sequence[Params]) -> None:
    """Note what entries of the cache quote: (record, row hash)."""
    connection.executemany(_ADD_CACHED, found)


# ---- erasing


def rows_quoting(connection: apsw.Connection, records: Iterable[bytes]) -> Rows:
    """The rows that quote any of the records."""
    found: Rows = {}
    for record in records:
        for job, k in connection.execute("SELECT job, k FROM quote WHERE record=?", (record,)):
            found.setdefault(bytes(job), set()).add(int(k))
    return found


def forget(connection: apsw.Connection, records: Sequence[bytes], at_ms: int) -> Rows:
    """Overwrite all that quotes the records; their ids are remembered, so that nothing comes back.

    Args:
        connection: in a transaction.
        records: their ids.
        at_ms: Unix milliseconds.

    Returns:
        The rows that were overwritten.
    """
    connection.executemany(
        "INSERT OR IGNORE INTO forgotten VALUES (?,?)", [(record, at_ms) for record in records]
    )
    for record in records:
        connection.execute(
            "DELETE FROM cache WHERE hash IN (SELECT hash FROM cache_quote WHERE record=?)",
            (record,),
        )
        connection.execute("DELETE FROM cache_quote WHERE record=?", (record,))
        _forget_of_peers(connection, record.hex().encode())
    found = rows_quoting(connection, records)
    _overwrite(connection, found)
    connection.executemany("DELETE FROM quote WHERE record=?", [(record,) for record in records])
    return found


def forget_late(connection: apsw.Connection, records: Iterable[bytes]) -> Rows:
    """Overwrite what quotes those of the records that were forgotten before."""
    late = [
        record
        for record in sorted(records)
        if connection.execute("SELECT 1 FROM forgotten WHERE record=?", (record,)).fetchone()
    ]
    return forget(connection, late, 0) if late else {}


def _forget_of_peers(connection: apsw.Connection, text: bytes) -> None:
    """The worker's side: what waits for a coordinator, and what effects answered."""
    connection.execute("DELETE FROM held WHERE instr(result, ?)", (text,))
    connection.execute(
        "UPDATE effect SET result=CAST('[0,null,\"erased\"]' AS BLOB) WHERE instr(result, ?)",
        (text,),
    )


def _overwrite(connection: apsw.Connection, found: Mapping[bytes, set[int]]) -> None:
    for job, ks in sorted(found.items()):
        if WHOLE in ks:
            _overwrite_spec(connection, job)
            ks.update(
                int(k) for (k,) in connection.execute("SELECT k FROM row WHERE job=?", (job,))
            )
        # Key and hash say something of the input, too.
        connection.executemany(
            "UPDATE row SET state=?, level=0, reason=?, value=NULL, agreed=zeroblob(0), source=?,"
            " key=CAST('erased ' || k AS BLOB), hash=zeroblob(32) WHERE job=? AND k=?",
            [(int(RowState.MISSING), ERASED, NOTHING, job, k) for k in sorted(ks)],
        )
        connection.executemany(
            "DELETE FROM answer WHERE job=? AND k=?", [(job, k) for k in sorted(ks)]
        )
        connection.execute("DELETE FROM reduced WHERE job=?", (job,))
        # What combined its answers holds them, too.
        levels = connection.execute("SELECT job FROM stage WHERE parent=?", (job,)).fetchall()
        for (level,) in levels:
            for table in OF_A_JOB:
                connection.execute(f"DELETE FROM {table} WHERE job=?", (level,))  # noqa: S608
            connection.execute("DELETE FROM job WHERE id=?", (level,))


def _overwrite_spec(connection: apsw.Connection, job: bytes) -> None:
    row = connection.execute("SELECT spec FROM job WHERE id=?", (job,)).fetchone()
    if row is not None:
        spec = bare_spec(msgspec.json.decode(bytes(row[0]), type=JobSpec))
        connection.execute(
            "UPDATE job SET spec=?, title='' WHERE id=?", (msgspec.json.encode(spec), job)
        )


def bare_spec(spec: JobSpec) -> JobSpec:
    """A spec without what its caller wrote into it for the handler."""
    return msgspec.structs.replace(spec, params={}, template=None, title="")


def scan(connection: apsw.Connection) -> None:
    """Find what the jobs quote that were kept before quotes were noted; once."""
    rows = connection.execute("SELECT job, k, source, value FROM row")
    found = [
        (record, bytes(job), int(k))
        for job, k, source, value in rows
        for record in quotes(bytes(source), None if value is None else bytes(value))
    ]
    answers = connection.execute("SELECT job, k, body FROM answer")
    found += [
        (record, bytes(job), int(k)) for job, k, body in answers for record in quotes(bytes(body))
    ]
    add_quotes(connection, found)
    entries = connection.execute("SELECT hash, value FROM cache")
    cached = [(one, bytes(hashed)) for hashed, value in entries for one in quotes(bytes(value))]
    keep_cache_quotes(connection, cached)
