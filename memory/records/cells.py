"""Which records a state cell's value is made of: the table `cell`, kept as records come and go.

The store reads no state body. It knows what headers say: the cell's tag, and which records a record
supersedes. Of a cell it keeps the live records that no other live one of the same cell supersedes,
and of each log the newest, superseded or not: what `p2p.replication.state.fold` needs, and no more,
however long the history. Functions of a connection, inside the writer's unit.
Source: docs/specs/state.md s.4.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

from memory.storage.sql import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.storage.txn import Txn

STATE_KIND: Final = 33
"""Record kind that has cells."""


class _Place(NamedTuple):
    """Where a state record stands."""

    grp: int
    tag: bytes
    log: int
    seq: int
    id: bytes


_GONE: Final = (
    # A fixed order: without statistics the planner might scan the cell for each row.
    "EXISTS (SELECT 1 FROM supersede s CROSS JOIN record o ON o.n = s.src WHERE s.dst = r.id"
    f" AND o.kind = {STATE_KIND} AND o.state = 'live' AND o.grp = r.grp AND o.key_tag = r.key_tag"
    " AND EXISTS (SELECT 1 FROM body ob WHERE ob.n = o.n))"
)
_COUNTS: Final = (
    f"r.kind = {STATE_KIND} AND r.state = 'live' AND EXISTS (SELECT 1 FROM body b WHERE b.n = r.n)"
)

_REBUILD: Final = (
    "INSERT INTO cell SELECT grp, key_tag, log, seq, n, gone FROM ("
    f"SELECT r.grp, r.key_tag, r.log, r.seq, r.n, {_GONE} AS gone,"
    " max(r.seq) OVER (PARTITION BY r.log) AS newest FROM record r"
    f" WHERE r.grp = ? AND r.key_tag = ? AND {_COUNTS}) WHERE NOT gone OR seq = newest"
)


_NEWEST_BELOW: Final = (
    f"INSERT OR REPLACE INTO cell SELECT r.grp, r.key_tag, r.log, r.seq, r.n, {_GONE} FROM record r"
    f" WHERE r.log = ? AND r.seq < ? AND +r.grp = ? AND +r.key_tag = ? AND {_COUNTS}"
    " ORDER BY r.seq DESC LIMIT 1"
)
"""The signs keep the planner on the log's own order: it ends at the first that fits."""

_GIVE_BACK: Final = (
    "INSERT OR REPLACE INTO cell SELECT r.grp, r.key_tag, r.log, r.seq, r.n, 0"
    " FROM supersede s CROSS JOIN record r ON r.id = s.dst WHERE s.src = ?"
    f" AND +r.grp = ? AND +r.key_tag = ? AND {_COUNTS} AND NOT {_GONE}"
)

_TRIM: Final = (
    "DELETE FROM cell WHERE grp = ? AND key_tag = ? AND superseded AND (log, seq) NOT IN"
    " (SELECT log, max(seq) FROM cell WHERE grp = ? AND key_tag = ? GROUP BY log)"
)
"""Superseded and not the newest of its log: left by records that turned at once."""

TURNED_MAX: Final = 1_000
"""Records of a cell that are put in or taken out one by one in a unit: about 50 ms."""


def _place(connection: apsw.Connection, n: int) -> _Place | None:
    row = connection.execute(
        "SELECT grp, key_tag, log, seq, id FROM record WHERE n = ? AND kind = ?"
        " AND key_tag IS NOT NULL",
        (n, STATE_KIND),
    ).fetchone()
    return None if row is None else _Place(*row)


def enter(connection: apsw.Connection, n: int, *, supersedes: bool = True) -> None:
    """Record `n` has begun to count with its body; a record of another kind changes nothing.

    Args:
        connection: the writer's.
        n: the record's row.
        supersedes: whether it may name others.
    """
    here = _place(connection, n)
    if here is None:
        return
    if supersedes:
        _supersede(connection, here, n)
    gone = connection.execute(
        f"SELECT {_GONE} FROM record r WHERE r.n = ?",
        (n,),
    ).get
    newest = connection.execute(
        # Not itself: what left in the same unit may have given it back.
        "SELECT seq, superseded FROM cell WHERE grp = ? AND key_tag = ? AND log = ? AND seq <> ?"
        " ORDER BY seq DESC LIMIT 1",
        here[:4],
    ).fetchone()
    is_newest = newest is None or newest[0] < here.seq
    if newest is not None and is_newest and newest[1]:
        connection.execute(
            "DELETE FROM cell WHERE grp = ? AND key_tag = ? AND log = ? AND seq = ?",
            (*here[:3], newest[0]),
        )
    if is_newest or not gone:
        connection.execute(
            "INSERT OR REPLACE INTO cell VALUES (?, ?, ?, ?, ?, ?)", (*here[:4], n, gone)
        )


def _supersede(connection: apsw.Connection, here: _Place, n: int) -> None:
    """What record `n` names is superseded now; of each log the newest stays all the same."""
    for log, seq in connection.execute(
        "SELECT c.log, c.seq FROM supersede s CROSS JOIN record o ON o.id = s.dst CROSS JOIN cell c"
        " ON c.grp = o.grp AND c.key_tag = o.key_tag AND c.log = o.log AND c.seq = o.seq"
        " WHERE s.src = ? AND o.grp = ? AND o.key_tag = ?",
        (n, here.grp, here.tag),
    ).fetchall():
        place = (here.grp, here.tag, log, seq)
        later = connection.execute(
            "SELECT 1 FROM cell WHERE grp = ? AND key_tag = ? AND log = ? AND seq > ? LIMIT 1",
            place,
        ).get
        where = " WHERE grp = ? AND key_tag = ? AND log = ? AND seq = ?"
        act = "DELETE FROM cell" if later else "UPDATE cell SET superseded = 1"
        connection.execute(act + where, place)


def renew(txn: Txn, n: int) -> None:
    """Record `n` counts again or no more, so what it supersedes may have changed.

    At the end of the unit, by `rebuild`: a whole log may turn at once.
    """
    here = _place(txn.connection, n)
    if here is not None:
        txn.cells.setdefault((here.grp, here.tag), {})[n] = None


def rebuild(txn: Txn) -> None:
    """Bring the cells in line in which a unit has turned records.

    A few are taken out or put in one by one: of a large cell that turns part by part, made anew
    with each part, the time would grow with its square while all other writers wait.
    """
    for bound, turned in sorted(txn.cells.items()):
        if len(turned) > TURNED_MAX:
            txn.connection.execute("DELETE FROM cell WHERE grp = ? AND key_tag = ?", bound)
            txn.connection.execute(_REBUILD, bound)
            continue
        for n in turned:
            counts = f"SELECT 1 FROM record r WHERE r.n = ? AND {_COUNTS}"
            if txn.connection.execute(counts, (n,)).get is None:
                _leave(txn.connection, n)
            else:
                enter(txn.connection, n)
        txn.connection.execute(_TRIM, bound * 2)
    txn.cells.clear()


def _leave(connection: apsw.Connection, n: int) -> None:
    """Record `n` counts no more. Others of its unit may not be taken out yet: in any order."""
    here = _place(connection, n)
    assert here is not None, "it had a place a moment ago"
    place = here[:4]
    connection.execute(
        "DELETE FROM cell WHERE grp = ? AND key_tag = ? AND log = ? AND seq = ?", place
    )
    later = connection.execute(
        "SELECT 1 FROM cell WHERE grp = ? AND key_tag = ? AND log = ? AND seq > ? LIMIT 1", place
    ).get
    if later is None:
        connection.execute(_NEWEST_BELOW, (here.log, here.seq, here.grp, here.tag))
    connection.execute(_GIVE_BACK, (n, here.grp, here.tag))


# ---- reading


def members(
    connection: apsw.Connection, group: bytes, tag: bytes, *, whole: bool
) -> list[tuple[int, bytes, bool]]:
    """(row, id, superseded) of the records of a cell.

    Args:
        connection: of a reader or the writer.
        group: its group.
        tag: the cell's.
        whole: every record that counts, with the flag unset; else what the value is made of.
    """
    if whole:
        rows = connection.execute(
            "SELECT r.n, r.id, 0 FROM record r JOIN grp g ON g.n = r.grp"
            f" WHERE g.id = ? AND r.key_tag = ? AND {_COUNTS} ORDER BY r.n",
            (group, tag),
        )
    else:
        rows = connection.execute(
            "SELECT c.n, r.id, c.superseded FROM cell c JOIN grp g ON g.n = c.grp"
            " JOIN record r ON r.n = c.n WHERE g.id = ? AND c.key_tag = ? ORDER BY c.n",
            (group, tag),
        )
    found = cast("list[tuple[int, bytes, int]]", rows.fetchall())
    return [(n, record_id, bool(gone)) for n, record_id, gone in found]


def size(connection: apsw.Connection, group: bytes, tag: bytes) -> int:
    """How many records the value of a cell is made of."""
    return number(
        connection,
        "SELECT count(*) FROM cell c JOIN grp g ON g.n = c.grp WHERE g.id = ? AND c.key_tag = ?",
        (group, tag),
    )


def tags(connection: apsw.Connection, group: bytes) -> list[tuple[bytes, bytes]]:
    """(tag, id of one record of it) of all cells of a group."""
    rows = connection.execute(
        "SELECT c.key_tag, r.id, min(c.n) FROM cell c JOIN grp g ON g.n = c.grp"
        " JOIN record r ON r.n = c.n WHERE g.id = ? GROUP BY c.key_tag ORDER BY c.key_tag",
        (group,),
    )
    found = cast("list[tuple[bytes, bytes, int]]", rows.fetchall())
    return [(tag, record_id) for tag, record_id, _ in found]


def state_among(connection: apsw.Connection, ids: Sequence[bytes]) -> list[bytes]:
    """Those of the ids that are state records, in the order given."""
    return [
        record_id
        for record_id in ids
        if connection.execute(
            "SELECT 1 FROM record WHERE id = ? AND kind = ?", (record_id, STATE_KIND)
        ).get
    ]
