"""Reading rows of signed records: logs, control records, cells, the ids of a set.

Functions of a connection, for `memory.records.replica`; `memory.records.table` writes the rows.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

from memory.records import cells
from memory.storage.sql import number

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    import apsw

    from memory.seams import Envelope, LogKey

LOG_PAGE: Final = 64
"""Records of a log read at once: of the usual size they fill a sync frame."""


class StoredEnvelope(NamedTuple):
    """A record's detachable part."""

    salt: bytes
    epoch: bytes | None
    wrap: bytes | None
    ct: bytes


class Stored(NamedTuple):
    """A record as the store has it."""

    id: bytes
    header: bytes
    signature: bytes
    envelope: Envelope | None
    state: str
    n: int


class CellRow(NamedTuple):
    """A record of a state cell."""

    stored: Stored
    superseded: bool


class LogState(NamedTuple):
    """Where a log stands here."""

    key: LogKey
    contiguous: int
    max_seq: int
    head_id: bytes
    head_hlc: int
    fork_seq: int | None


_STORED: Final = (
    "SELECT r.id, r.header, r.sig, r.state, r.n, b.epoch, k.salt, k.wrap, b.ct, c.salt, c.payload"
    " FROM record r LEFT JOIN body b ON b.n = r.n LEFT JOIN body_key k ON k.n = r.n"
    " LEFT JOIN control c ON c.n = r.n"
)
_BY_ID: Final = _STORED + " WHERE r.id = ?"
_BY_ROW: Final = _STORED + " WHERE r.n = ?"
_BY_PLACE: Final = _STORED + " WHERE r.log = ? AND r.seq BETWEEN ? AND ? ORDER BY r.seq LIMIT ?"
_CONTROL: Final = (
    _STORED + " WHERE r.grp = (SELECT n FROM grp WHERE id = ?) AND r.kind < 32 AND r.n > ?"
    " ORDER BY r.n"
)
_SEALED: Final = (
    _STORED + " WHERE b.epoch = ? AND b.opened = 0 AND r.state = 'sealed'"
    " AND r.grp = (SELECT n FROM grp WHERE id = ?) ORDER BY r.n LIMIT ?"
)
_INDEX: Final = (
    "SELECT r.hlc, r.id FROM record r JOIN log l ON l.n = r.log"
    " WHERE r.grp = (SELECT n FROM grp WHERE id = ?1) AND l.lane = ?2"
    " AND (l.frozen IS NULL OR r.seq < l.frozen) AND (?2 = 0 OR r.state <> 'void'"
    # Hidden until an admin's erasure is carried out: by our clock, so it must not change the set.
    " OR EXISTS (SELECT 1 FROM hold h WHERE h.id = r.id AND h.reason = 'hidden'))"
    " ORDER BY r.hlc, r.id"
)
_LOGS: Final = (
    "SELECT g.id, l.author, l.incarnation, l.lane, l.contiguous, l.max_seq, l.head_id, l.head_hlc,"
    " l.frozen FROM log l JOIN grp g ON g.n = l.grp WHERE g.id = ?"
    " ORDER BY l.author, l.incarnation, l.lane"
)
_LOG: Final = (
    "SELECT l.n FROM log l JOIN grp g ON g.n = l.grp"
    " WHERE g.id = ? AND l.author = ? AND l.incarnation = ? AND l.lane = ?"
)

_Row = tuple[
    bytes,
    bytes,
    bytes,
    str,
    int,
    bytes | None,
    bytes | None,
    bytes | None,
    bytes | None,
    bytes | None,
    bytes | None,
]


def _stored(row: _Row) -> Stored:
    record_id, header, signature, state, n, epoch, salt, wrap, ct, control_salt, payload = row
    envelope: Envelope | None = None
    if ct is not None and salt is not None:
        envelope = StoredEnvelope(salt, epoch, wrap, ct)
    elif payload is not None and control_salt is not None:
        envelope = StoredEnvelope(control_salt, None, None, payload)
    return Stored(record_id, header, signature, envelope, state, n)


def read_control(connection: apsw.Connection, group: bytes, after: int) -> list[Stored]:
    """Control records in order of arrival."""
    return [_stored(row) for row in connection.execute(_CONTROL, (group, after))]


def read_sealed(
    connection: apsw.Connection, group: bytes, epoch: bytes, limit: int
) -> list[Stored]:
    """Records waiting for an epoch's key."""
    return [_stored(row) for row in connection.execute(_SEALED, (epoch, group, limit))]


def read_ids(connection: apsw.Connection, ids: Sequence[bytes], *, bodies: bool) -> list[Stored]:
    """Those that are here, in the order asked."""
    found = []
    for record_id in ids:
        row = connection.execute(_BY_ID, (record_id,)).fetchone()
        if row is not None:
            stored = _stored(row)
            found.append(stored if bodies else stored._replace(envelope=None))
    return found


def read_cell(
    connection: apsw.Connection,
    group: bytes,
    tag: bytes,
    *,
    whole: bool,
    known: Container[bytes] = (),
) -> list[CellRow]:
    """The records of a state cell; see `cells.members`. Of those that are known only their ids."""
    found = []
    for n, record_id, superseded in cells.members(connection, group, tag, whole=whole):
        if record_id in known:
            found.append(CellRow(Stored(record_id, b"", b"", None, "live", n), superseded))
            continue
        row = connection.execute(_BY_ROW, (n,)).fetchone()
        assert row is not None, "cells name records that are here"
        found.append(CellRow(_stored(cast("_Row", row)), superseded))
    return found


def read_log(
    connection: apsw.Connection, log: LogKey, first: int, last: int, bytes_max: int
) -> list[Stored]:
    """Records of a log, cut at `bytes_max`, at least one."""
    row = connection.execute(_LOG, log).fetchone()
    if row is None:
        return []
    found: list[Stored] = []
    size = 0
    at = first
    # In pages, each read to its end: a cursor left standing would hold its snapshot.
    while at <= last:
        page = cast(
            "list[_Row]",
            connection.execute(_BY_PLACE, (row[0], at, last, LOG_PAGE)).fetchall(),
        )
        for raw in page:
            stored = _stored(raw)
            size += wire_bytes(stored)
            if found and size > bytes_max:
                return found
            found.append(stored)
        if len(page) < LOG_PAGE:
            return found
        at = number(connection, "SELECT seq FROM record WHERE id = ?", (found[-1].id,)) + 1
    return found


def wire_bytes(stored: Stored) -> int:
    """About what a record takes on the wire: header, signature, envelope and their framing."""
    envelope = stored.envelope
    return len(stored.header) + 76 + (0 if envelope is None else len(envelope.ct) + 104)


def read_logs(connection: apsw.Connection, group: bytes) -> list[LogState]:
    """All logs of a group."""
    return [
        LogState((row[0], row[1], row[2], row[3]), *row[4:])
        for row in connection.execute(_LOGS, (group,))
    ]


def read_counts(connection: apsw.Connection, group: bytes) -> dict[bytes, int]:
    """Records that are here, by author."""
    rows = connection.execute(
        "SELECT l.author, count(*) FROM grp g JOIN log l ON l.grp = g.n"
        " JOIN record r ON r.log = l.n WHERE g.id = ? GROUP BY l.author",
        (group,),
    )
    return {cast("bytes", author): cast("int", count) for author, count in rows}


def read_index(connection: apsw.Connection, group: bytes, lane: int) -> bytes:
    """The ids that count in set comparison: 40 bytes an item, sorted by (hlc, id)."""
    return b"".join(
        hlc.to_bytes(8, "big") + record_id
        for hlc, record_id in connection.execute(_INDEX, (group, lane))
    )


def read_known(connection: apsw.Connection, ids: Sequence[bytes]) -> dict[bytes, str]:
    """State of those that are here, erased or held."""
    found: dict[bytes, str] = {}
    for record_id in ids:
        row = connection.execute(
            "SELECT state FROM record WHERE id = ?1"
            " UNION ALL SELECT 'erased' FROM erased WHERE id = ?1"
            " UNION ALL SELECT 'held' FROM hold WHERE id = ?1 LIMIT 1",
            (record_id,),
        ).fetchone()
        if row is not None:
            found[record_id] = row[0]
    return found
