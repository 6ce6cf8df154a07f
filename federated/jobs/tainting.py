"""Rows of finished jobs that are in doubt: whoever vouched for them was caught since.

The row keeps its answer, which may well be right, under the reason `tainted`; a delta job asks for
it again. Live jobs open such rows instead (`judging`). Source: docs/specs/jobs.md s.11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from federated.jobs.orders import TAINTED_EVENTS
from federated.jobs.state import JOB_FINAL, RowState
from federated.jobs.verify import LEVEL_OWN, OWNER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import apsw

    from federated.jobs.orders import Caught

TAINTED: Final = "tainted"
"""Reason of a row of a finished job: all who vouch for it were quarantined since."""
BAD: Final = "bad"
"""Reason of a row of a finished job: its caller said so."""
SUSPECT: Final = frozenset({TAINTED, BAD})

ROWS_TOLD: Final = 16
"""Rows that an event names."""

_FINAL: Final = tuple(sorted(JOB_FINAL))
_VOUCHED: Final = (
    "SELECT row.job, row.k, row.agreed, job.spec FROM row JOIN job ON job.id=row.job"  # noqa: S608
    f" WHERE job.phase IN ({','.join('?' * len(_FINAL))}) AND row.state=? AND row.level<?"
    " AND row.reason NOT IN (?,?) AND instr(row.agreed, ?) ORDER BY row.job, row.k"
)


class _Named(msgspec.Struct):
    handler: str


_HANDLER: Final = msgspec.json.Decoder(_Named)


def handler_of(spec: bytes) -> str:
    """The handler of a spec as table `job` has it."""
    return _HANDLER.decode(spec).handler


def owners_of(data: bytes) -> frozenset[bytes]:
    """Owner keys as table `row` has them."""
    return frozenset(data[i : i + OWNER_BYTES] for i in range(0, len(data), OWNER_BYTES))


def taint(connection: apsw.Connection, caught: Caught) -> list[tuple[int, bytes, int, str, bytes]]:
    """Mark what quarantined owners alone vouch for in finished jobs.

    Args:
        connection: in a transaction.
        caught: who was caught, and who is quarantined by now.

    Returns:
        Events to keep, one a job.
    """
    rows: dict[bytes, set[int]] = {}
    for owner in sorted(caught.owners):
        where = (*_FINAL, int(RowState.OK), LEVEL_OWN, *sorted(SUSPECT), owner)
        for job, k, agreed, spec in connection.execute(_VOUCHED, where):
            if owners_of(bytes(agreed)) <= caught.bad(handler_of(bytes(spec))):
                rows.setdefault(bytes(job), set()).add(int(k))
    mark(connection, rows, TAINTED)
    return [
        (caught.first_event + i, job, caught.at_ms, TAINTED, _body(rows[job]))
        for i, job in enumerate(sorted(rows)[:TAINTED_EVENTS])
    ]


def mark(connection: apsw.Connection, rows: Mapping[bytes, Iterable[int]], reason: str) -> None:
    """Give answered rows a reason of `SUSPECT`."""
    connection.executemany(
        "UPDATE row SET reason=? WHERE job=? AND k=? AND state=?",
        [(reason, job, k, int(RowState.OK)) for job, ks in rows.items() for k in sorted(ks)],
    )


def _body(ks: set[int]) -> bytes:
    return msgspec.json.encode({"rows": len(ks), "ks": sorted(ks)[:ROWS_TOLD]})
