"""What the machine orders, written into jobs.db: statements by name, in one transaction.

Each replaces or adds one row, so that writing the same orders twice changes nothing.
Source: docs/specs/jobs.md s.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from federated.jobs.cache import DROP, PUT, drop_caught
from federated.jobs.tainting import taint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import apsw

    from federated.jobs.orders import Orders, Params, Statement

SQL: Final[Mapping[Statement, str]] = {
    "job_state": (
        "UPDATE job SET phase=?, reason=?, finished_ms=?, executions=?, executions_max=? WHERE id=?"
    ),
    "row_state": (
        "UPDATE row SET state=?, level=?, reason=?, value=?, agreed=? WHERE job=? AND k=?"
    ),
    "task_state": "UPDATE task SET stage=? WHERE job=? AND task=?",
    "attempt": "INSERT OR REPLACE INTO attempt VALUES (?,?,?,?,?,?,?,?,?)",
    "answer": "INSERT INTO answer VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
    "event": "INSERT OR REPLACE INTO event VALUES (?,?,?,?,?)",
    "peer_stat": "INSERT OR REPLACE INTO peer_stat VALUES (?,?,?,?)",
    "cache": PUT,
}


class Kept(NamedTuple):
    """What came of writing.

    Attributes:
        cached: bytes of the entries of the cache that were put.
        events: events that came of it, as table `event` has them.
    """

    cached: int
    events: Sequence[tuple[int, bytes, int, str, bytes]]


def keep(connection: apsw.Connection, batch: Sequence[Orders]) -> Kept:
    """Write what was ordered; the caller has begun a transaction."""
    merged: dict[Statement, list[Params]] = {}
    for orders in batch:
        for statement, rows in orders.writes.items():
            merged.setdefault(statement, []).extend(rows)
    cached = _keep_cache(connection, merged.pop("cache", []))
    for statement, rows in merged.items():
        connection.executemany(SQL[statement], rows)
    events: list[tuple[int, bytes, int, str, bytes]] = []
    for orders in batch:
        for caught in orders.caught:
            drop_caught(connection, caught.owners, caught.bad)
            events += taint(connection, caught)
    connection.executemany(SQL["event"], events)
    return Kept(cached, events)


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
