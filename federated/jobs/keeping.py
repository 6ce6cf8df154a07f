"""What the machine orders, written into jobs.db: statements by name, in one transaction.

Each replaces or adds one row, so that writing the same orders twice changes nothing.
Source: docs/specs/jobs.md s.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from federated.jobs.cache import DROP, PUT, drop_caught
from federated.jobs.quoting import Rows, forget, forget_late, keep_cache_quotes, keep_quotes
from federated.jobs.tainting import taint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import apsw

    from federated.jobs.orders import Orders, Params, Statement

SQL: Final[Mapping[str, str]] = {
    "job_state": (
        "UPDATE job SET phase=?, reason=?, finished_ms=?, executions=?, executions_max=? WHERE id=?"
    ),
    "row_state": (
        "UPDATE row SET state=?, level=?, reason=?, value=?, agreed=? WHERE job=? AND k=?"
    ),
    "task": "INSERT OR REPLACE INTO task VALUES (?,?,?,?)",
    "attempt": "INSERT OR REPLACE INTO attempt VALUES (?,?,?,?,?,?,?,?,?)",
    "answer": "INSERT INTO answer VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
    "answer_dropped": "INSERT OR REPLACE INTO answer VALUES (?,?,?,?,?,?,?)",
    "event": "INSERT OR REPLACE INTO event VALUES (?,?,?,?,?)",
    "peer_stat": "INSERT OR REPLACE INTO peer_stat VALUES (?,?,?,?)",
    "cache": PUT,
    "duration": "INSERT OR REPLACE INTO duration VALUES (?,?,?,?)",
}


CACHE_BATCH: Final = 4096
"""Entries of the cache that are written together at the latest. See `Waiting`."""


class Kept(NamedTuple):
    """What came of writing.

    Attributes:
        cached: bytes of the entries of the cache that were put.
        events: events that came of it, as table `event` has them.
        gone: rows that were overwritten, since they quote what was erased.
    """

    cached: int
    events: Sequence[tuple[int, bytes, int, str, bytes]]
    gone: Rows


class Waiting:
    """Entries of the cache that are not written yet.

    Each goes to a page of its own, so a hundred at a time cost five times what thousands do
    (42 to 64 us an entry against 8 to 13, measured on a loaded machine). A crash loses them, and
    they are computed again.
    """

    def __init__(self) -> None:
        self._rows: list[Params] = []

    def take(self, batch: Sequence[Orders]) -> list[Params]:
        """Add what a batch has; what is due, in order.

        Due is all at the end of a job, whose rows the next may ask for; with a quarantine or an
        erasure, which must find what is there; and with what quotes a memory.
        """
        for orders in batch:
            self._rows += orders.writes.pop("cache", [])
        if len(self._rows) < CACHE_BATCH and not any(
            orders.ended or orders.caught or orders.forgets or "cache_quote" in orders.writes
            for orders in batch
        ):
            return []
        due, self._rows = self._rows, []
        return due

    def give_back(self, rows: list[Params]) -> None:
        """Entries that could not be written wait again."""
        self._rows = rows + self._rows


def keep(
    connection: apsw.Connection, batch: Sequence[Orders], entries: Sequence[Params] = ()
) -> Kept:
    """Write what was ordered; the caller has begun a transaction.

    Args:
        connection: of the journal.
        batch: orders, the oldest first.
        entries: of the cache, of `Waiting.take`.
    """
    merged: dict[Statement, list[Params]] = {}
    for orders in batch:
        for statement, rows in orders.writes.items():
            merged.setdefault(statement, []).extend(rows)
    cached = _keep_cache(connection, entries)
    dropped = merged.pop("answer_dropped", [])
    cache_quotes = merged.pop("cache_quote", [])
    keep_cache_quotes(connection, cache_quotes)
    for statement, rows in merged.items():
        connection.executemany(SQL[statement], rows)
    # After all answers of the batch, whichever order came first: one that is dropped stays so.
    connection.executemany(SQL["answer_dropped"], dropped)
    events: list[tuple[int, bytes, int, str, bytes]] = []
    for orders in batch:
        for caught in orders.caught:
            drop_caught(connection, caught.owners, caught.bad)
            events += taint(connection, caught)
    connection.executemany(SQL["event"], events)
    quoted = keep_quotes(connection, merged.get("row_state", []), merged.get("answer", []))
    quoted.update(record for record, _ in cache_quotes if isinstance(record, bytes))
    gone = forget_late(connection, quoted)
    for orders in batch:
        for one in orders.forgets:
            for job, ks in forget(connection, one.records, one.at_ms).items():
                gone.setdefault(job, set()).update(ks)
    return Kept(cached, events, gone)


def _keep_cache(connection: apsw.Connection, rows: Sequence[Params]) -> int:
    """Entries put and dropped, in their order: a row may be accepted, doubted, accepted again."""
    size = 0
    for params in rows:
        if len(params) == 1:
            connection.execute(DROP, params)
        else:
            connection.execute(PUT, params)
            last = params[-1]
            assert isinstance(last, int)
            size += last
    return size
