"""Rows of signed records: how they are put and moved between states; `stored` reads them.

Functions of a connection, for `memory.records.replica`; those that write run in the writer's
transaction. The store treats headers as opaque bytes: whoever hands a record over has verified it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from memory.bodies import ENTRY_KIND
from memory.records import cells
from memory.records.ingest import Entry, author_row, entry_of, project
from memory.records.resettling import resettle
from memory.storage.sql import blobs, number
from memory.trust.evidence import fork_found

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.seams import LogKey, Verified
    from memory.storage.txn import Txn

LANE_CONTROL: Final = 0
LANE_DATA: Final = 1
NO_HEAD: Final = bytes(32)


class Position(NamedTuple):
    """Where a draft will stand."""

    log: LogKey
    seq: int
    prev: bytes | None
    hlc_min: int


class Verdict(NamedTuple):
    """What the store did with one record."""

    id: bytes
    outcome: str
    other: bytes | None = None


class LogRow(NamedTuple):
    """A row of `log`."""

    n: int
    contiguous: int
    max_seq: int
    head_id: bytes
    head_hlc: int


def group_row(connection: apsw.Connection, group: bytes) -> int:
    """Row of a group, made on first use."""
    row = connection.execute("SELECT n FROM grp WHERE id = ?", (group,)).fetchone()
    if row is not None:
        return int(row[0])
    connection.execute("INSERT INTO grp(id) VALUES (?)", (group,))
    return connection.last_insert_rowid()


def log_row(connection: apsw.Connection, grp: int, log: LogKey) -> LogRow:
    """Row of a log, made on first use."""
    key = (grp, log[1], log[2], log[3])
    row = connection.execute(
        "SELECT n, contiguous, max_seq, head_id, head_hlc FROM log"
        " WHERE grp = ? AND author = ? AND incarnation = ? AND lane = ?",
        key,
    ).fetchone()
    if row is not None:
        return LogRow(*row)
    connection.execute("INSERT INTO log(grp, author, incarnation, lane) VALUES (?, ?, ?, ?)", key)
    return LogRow(connection.last_insert_rowid(), 0, 0, NO_HEAD, 0)


def log_end(connection: apsw.Connection, row: LogRow) -> tuple[bytes | None, int]:
    """(id, hlc) of a log's highest record here; (None, 0) of an empty one."""
    if row.max_seq == 0:
        return None, 0
    if row.max_seq == row.contiguous:
        return row.head_id, row.head_hlc
    found = connection.execute(
        "SELECT id, hlc FROM record WHERE log = ? AND seq = ?", (row.n, row.max_seq)
    ).fetchone()
    assert found is not None, "a log's highest record is here"
    return found[0], found[1]


def put(
    txn: Txn, grp: int, record: Verified, log: LogRow, *, fresh: bool, erased: bool = False
) -> LogRow:
    """Store a record that is not here, with its body, and project it; the log's new row.

    The caller writes that row by `keep_log`, once for all records of a log that it puts.

    Args:
        txn: the unit.
        grp: row of its group.
        record: the record.
        log: row of its log.
        fresh: sealed here just now.
        erased: whether only the header may be kept.
    """
    connection = txn.connection
    connection.execute(
        "INSERT INTO record(id, grp, log, seq, hlc, kind, key_tag, header, sig, state)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.id,
            grp,
            log.n,
            record.seq,
            record.hlc,
            record.kind,
            record.key_tag,
            record.header,
            record.signature,
            "stub" if erased and record.state != "void" else record.state,
        ),
    )
    n = connection.last_insert_rowid()
    for target in record.supersedes:
        connection.execute("INSERT OR IGNORE INTO supersede VALUES (?, ?)", (target, n))
    moved = _advance(connection, log, record)
    txn.stored.setdefault(record.group, []).append(record.id)
    if record.relation == "own":
        key = (record.group, record.author, record.incarnation, record.lane)
        txn.marks[key] = max(txn.marks.get(key, 0), record.seq)
    if not erased:
        put_body(txn, grp, record, n, fresh=fresh)
    return moved


def _advance(connection: apsw.Connection, log: LogRow, record: Verified) -> LogRow:
    """Move the log's ends; a record that closes a gap carries the contiguous end along."""
    contiguous, head_id, head_hlc = log.contiguous, log.head_id, log.head_hlc
    if record.seq == contiguous + 1:
        contiguous, head_id, head_hlc = record.seq, record.id, record.hlc
        if log.max_seq > contiguous:
            contiguous, head_id, head_hlc = _end_of_run(connection, log.n, contiguous, record)
    return LogRow(log.n, contiguous, max(log.max_seq, record.seq), head_id, head_hlc)


def keep_log(connection: apsw.Connection, moved: LogRow) -> None:
    """Write where a log stands now."""
    connection.execute(
        "UPDATE log SET contiguous = ?, max_seq = ?, head_id = ?, head_hlc = ? WHERE n = ?",
        (*moved[1:], moved.n),
    )


_RUN: Final = """
WITH RECURSIVE run(seq) AS (
  SELECT ?2 UNION ALL SELECT r.seq FROM run JOIN record r ON r.log = ?1 AND r.seq = run.seq + 1)
SELECT r.seq, r.id, r.hlc FROM record r WHERE r.log = ?1 AND r.seq = (SELECT max(seq) FROM run)
"""


def _end_of_run(
    connection: apsw.Connection, log: int, seq: int, record: Verified
) -> tuple[int, bytes, int]:
    """(seq, id, hlc) of the last record that follows `seq` without a gap."""
    row = connection.execute(_RUN, (log, seq)).fetchone()
    assert row is not None, f"record {record.seq} of the log was just stored"
    return row[0], row[1], row[2]


def put_body(txn: Txn, grp: int, record: Verified, n: int, *, fresh: bool) -> None:
    """Store the detachable part of record `n`, if it is known, and project what it says."""
    envelope = record.envelope
    if envelope is None:
        return
    connection = txn.connection
    if record.lane == LANE_CONTROL:
        connection.execute("INSERT INTO control VALUES (?, ?, ?)", (n, envelope.salt, envelope.ct))
        return
    opened = record.plain is not None
    connection.execute(
        "INSERT INTO body VALUES (?, ?, ?, ?)", (n, envelope.epoch, opened, envelope.ct)
    )
    connection.execute("INSERT INTO body_key VALUES (?, ?, ?)", (n, envelope.salt, envelope.wrap))
    if record.plain is None:
        # Remembers owner and relation for the day the key comes.
        author_row(connection, grp, record.author, "", record.owner, record.relation)
    elif record.kind == ENTRY_KIND:
        project(txn, entry_of(record, n, grp, fresh=fresh), record.plain)
    elif record.kind == cells.STATE_KIND and record.state == "live":
        cells.enter(connection, n, supersedes=bool(record.supersedes))


def admit(txn: Txn, grp: int, batch: Sequence[Verified]) -> list[Verdict]:
    """Store verified records, or say of each why there was nothing to store; in order."""
    connection = txn.connection
    erased = bool(connection.execute("SELECT EXISTS (SELECT 1 FROM erased)").get)
    logs: dict[LogKey, LogRow] = {}
    verdicts = []
    for record in batch:
        key = (record.group, record.author, record.incarnation, record.lane)
        log = logs.get(key) or log_row(connection, grp, key)
        verdict = None if record.seq > log.max_seq else _occupied(txn, grp, record, log)
        if verdict is None:
            gone = erased and is_erased(connection, record.id)
            logs[key] = put(txn, grp, record, log, fresh=False, erased=gone)
            verdict = Verdict(record.id, "erased" if gone else "stored")
        verdicts.append(verdict)
    for moved in logs.values():
        keep_log(connection, moved)
    return verdicts


def _occupied(txn: Txn, grp: int, record: Verified, log: LogRow) -> Verdict | None:
    """What a record meets at its place; None if that is free. Above a log's end all places are."""
    connection = txn.connection
    here = connection.execute(
        "SELECT n, state, EXISTS (SELECT 1 FROM body b WHERE b.n = r.n)"
        " OR EXISTS (SELECT 1 FROM control c WHERE c.n = r.n) FROM record r WHERE r.id = ?",
        (record.id,),
    ).fetchone()
    if here is not None:
        return _complete(txn, grp, record, here)
    other = connection.execute(
        "SELECT id FROM record WHERE log = ? AND seq = ?", (log.n, record.seq)
    ).fetchone()
    return None if other is None else Verdict(record.id, "fork", other[0])


def is_erased(connection: apsw.Connection, record_id: bytes) -> bool:
    """Whether this record's body must not come back."""
    return connection.execute("SELECT 1 FROM erased WHERE id = ?", (record_id,)).get is not None


def _complete(txn: Txn, grp: int, record: Verified, here: tuple[int, str, int]) -> Verdict:
    n, state, has_body = here
    if has_body or record.envelope is None or state == "stub":
        return Verdict(record.id, "duplicate")
    if is_erased(txn.connection, record.id):  # void as well: a stub that no longer counts
        return Verdict(record.id, "duplicate")
    txn.connection.execute("UPDATE record SET state = ? WHERE n = ?", (record.state, n))
    put_body(txn, grp, record, n, fresh=False)
    txn.stored.setdefault(record.group, []).append(record.id)
    return Verdict(record.id, "body")


# ---- changes of state


def set_void(txn: Txn, group: bytes, record_id: bytes) -> int:
    """Hide a record that no longer counts; 1 if it counted."""
    row = txn.connection.execute(
        "UPDATE record SET state = 'void' WHERE id = ? AND state IN ('live', 'sealed', 'stub')"
        " RETURNING n, kind",
        (record_id,),
    ).fetchone()
    return _changed(txn, group, record_id, row)


def revive(txn: Txn, group: bytes, record_id: bytes) -> int:
    """Let a void record count again; 1 if it does. Above a fork it never does."""
    row = txn.connection.execute(
        "UPDATE record AS r SET state = CASE WHEN EXISTS"
        " (SELECT 1 FROM erased e WHERE e.id = r.id) AND r.kind >= 32 THEN 'stub' WHEN EXISTS"
        " (SELECT 1 FROM body b WHERE b.n = r.n AND b.opened = 0) THEN 'sealed' ELSE 'live' END"
        " WHERE r.id = ? AND r.state = 'void' AND NOT EXISTS"
        " (SELECT 1 FROM log l WHERE l.n = r.log AND l.frozen <= r.seq) RETURNING n, kind",
        (record_id,),
    ).fetchone()
    return _changed(txn, group, record_id, row)


def _changed(txn: Txn, group: bytes, record_id: bytes, row: tuple[int, int] | None) -> int:
    if row is None:
        return 0
    txn.changed.add(group)
    if row[1] == ENTRY_KIND:
        resettle(txn, row[0], record_id)
    elif row[1] == cells.STATE_KIND:
        cells.renew(txn, row[0])
        txn.turned.setdefault(group, []).append(record_id)
    return 1


def freeze(txn: Txn, grp: int, log: LogKey, seq: int, a: bytes, b: bytes) -> int:
    """Void a forked log from `seq` up, for ever; how many records that hid."""
    connection = txn.connection
    row = log_row(connection, grp, log)
    first, second = sorted((a, b))
    connection.execute(
        "INSERT OR IGNORE INTO fork VALUES (?, ?, ?, ?)", (row.n, seq, first, second)
    )
    connection.execute(
        "UPDATE log SET frozen = ?1 WHERE n = ?2 AND (frozen IS NULL OR frozen > ?1)", (seq, row.n)
    )
    txn.changed.add(log[0])
    fork_found(txn, log[1])
    above = blobs(
        connection, "SELECT id FROM record WHERE log = ? AND seq >= ? ORDER BY seq", (row.n, seq)
    )
    return sum(set_void(txn, log[0], record_id) for record_id in above)


def erased_of_author(connection: apsw.Connection, group: bytes, author: bytes) -> list[bytes]:
    """Ids of an author's records that were erased here, ascending."""
    return blobs(
        connection,
        "SELECT r.id FROM erased e JOIN record r ON r.id = e.id JOIN log l ON l.n = r.log"
        " JOIN grp g ON g.n = l.grp WHERE g.id = ? AND l.author = ? ORDER BY r.id",
        (group, author),
    )


def unseal(txn: Txn, group: bytes, record_id: bytes, plain: bytes) -> None:
    """Take a body whose key has come: project it, and let the record count."""
    row = txn.connection.execute(
        "SELECT r.n, r.grp, r.kind, r.hlc, r.state, l.author, b.opened FROM record r"
        " JOIN log l ON l.n = r.log JOIN body b ON b.n = r.n WHERE r.id = ?",
        (record_id,),
    ).fetchone()
    if row is None or row[6]:
        return
    n, grp, kind, hlc, state, device, _ = row
    if state == "sealed":
        state = "live"
        txn.connection.execute("UPDATE record SET state = 'live' WHERE n = ?", (n,))
    txn.connection.execute("UPDATE body SET opened = 1 WHERE n = ?", (n,))
    txn.changed.add(group)
    if kind == ENTRY_KIND:
        known = txn.connection.execute(
            "SELECT owner, class FROM author WHERE grp = ? AND device = ? AND agent = ''",
            (grp, device),
        ).fetchone()
        assert known is not None, "a sealed record leaves its author's row"
        owner, relation = known
        entry = Entry(n, record_id, grp, device, owner, relation, hlc, state, fresh=False)
        project(txn, entry, plain)
    elif kind == cells.STATE_KIND and state == "live":
        cells.enter(txn.connection, n)
        txn.turned.setdefault(group, []).append(record_id)


def count_of_author(connection: apsw.Connection, grp: int, device: bytes) -> int:
    """How many records a device has written in a group."""
    return number(
        connection,
        "SELECT count(*) FROM record r JOIN log l ON l.n = r.log WHERE l.grp = ? AND l.author = ?",
        (grp, device),
    )
