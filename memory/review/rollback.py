"""Rollback on this machine: what an author wrote since a time no longer counts here. Reversible.

Its memories are hidden; its links, forget records, verdicts and endorsements are as if they had
never been written. Nothing is told to others, nothing is deleted: `muted` names the records, and
every fold leaves out what stands in it. Theory of operation: a rollback is a row that says whom and
since when; carrying it out, or undoing it, goes through the author's records in order of arrival, a
batch a transaction, and the row keeps the place. After a crash it goes on from there. While the row
stands, what arrives late is muted as it is projected. Source: docs/specs/memory.md, *Rollback*.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from memory.records.resettling import resettle
from memory.storage.sql import integers, number
from memory.trust.muting import ACTIVE, Rule
from memory.trust.status import FOLDED

if TYPE_CHECKING:
    import apsw

    from memory.seams import Cell
    from memory.storage.txn import Txn

BATCH: Final = 500
"""Records muted or brought back in one transaction."""

# Record rows by the tables that say who wrote them, each branch with its own author index.
_BRANCHES: Final = {
    "memories": ("memory", "id", "author"),
    "links": ("link", "n", "author"),
    "forgets": ("forgetting", "n", "author"),
    "verdicts": ("evidence", "rec", "voter"),
    "endorsements": ("endorse", "rec", "voter"),
}


class Counts(NamedTuple):
    """What a rollback concerns: records by what they say."""

    memories: int
    links: int
    forgets: int
    verdicts: int
    endorsements: int


def authors_of(connection: apsw.Connection, rule: Rule) -> list[int]:
    """Author rows that a rule is about."""
    return integers(
        connection,
        "SELECT id FROM author WHERE device = ?1 AND (?2 IS NULL OR agent = ?2)"
        " AND (?3 IS NULL OR grp = ?3)",
        (rule.device, rule.agent, rule.grp),
    )


def count(connection: apsw.Connection, rule: Rule) -> Counts:
    """What carrying out a rule would mute: the dry run."""
    authors = json.dumps(authors_of(connection, rule))
    found = []
    for name, (table, key, author) in _BRANCHES.items():
        # A confirming link is counted as a link, although it gives evidence too.
        only = " AND kind <> 'confirms'" if name == "verdicts" else ""
        found.append(
            number(
                connection,
                f"SELECT count(DISTINCT {key}) FROM {table} WHERE {key} IS NOT NULL AND {author} IN"
                " (SELECT value FROM json_each(?)) AND hlc >= ? AND NOT EXISTS"
                f" (SELECT 1 FROM muted x WHERE x.n = {table}.{key}){only}",
                (authors, rule.since_hlc),
            )
        )
    return Counts(*found)


def _next_records(connection: apsw.Connection, rule: Rule, after: int) -> list[int]:
    branches = [
        f"SELECT n FROM (SELECT {key} AS n FROM {table} WHERE {author} IN"
        " (SELECT value FROM json_each(?1)) AND hlc >= ?2"
        f" AND {key} > ?3 ORDER BY {key} LIMIT ?4)"
        for table, key, author in _BRANCHES.values()
    ]
    bound: tuple[Cell, ...] = (
        json.dumps(authors_of(connection, rule)),
        rule.since_hlc,
        after,
        BATCH,
    )
    sql = " UNION ".join(branches) + " ORDER BY n LIMIT ?4"
    return integers(connection, sql, bound)


def step(txn: Txn, rollback: int) -> bool:
    """Carry out, or undo, the next batch; whether there is more."""
    row = txn.connection.execute(
        "SELECT state, cursor FROM rollback WHERE id = ?", (rollback,)
    ).fetchone()
    if row is None or row[0] not in ("hiding", "undoing"):
        return False
    state, cursor = str(row[0]), int(row[1])
    if state == "hiding":
        rule = rule_of(txn.connection, rollback)
        batch = _next_records(txn.connection, rule, cursor)
        for n in batch:
            mute(txn, rollback, n)
    else:
        batch = integers(
            txn.connection,
            "SELECT n FROM muted WHERE rollback = ? ORDER BY n LIMIT ?",
            (rollback, BATCH),
        )
        for n in batch:
            _unmute(txn, rollback, n)
    ended = len(batch) < BATCH
    after = ("done" if state == "hiding" else "undone") if ended else state
    txn.connection.execute(
        "UPDATE rollback SET cursor = ?, state = ? WHERE id = ?",
        (batch[-1] if batch else cursor, after, rollback),
    )
    return not ended


def rule_of(connection: apsw.Connection, rollback: int) -> Rule:
    """The rule of a rollback."""
    row = connection.execute(
        "SELECT id, device, agent, grp, since_ms FROM rollback WHERE id = ?", (rollback,)
    ).fetchone()
    assert row is not None, "rollbacks are never deleted"
    return Rule(*row)


def unfinished(connection: apsw.Connection) -> list[int]:
    """Rollbacks that a crash, or the end of the process, interrupted."""
    return integers(
        connection, "SELECT id FROM rollback WHERE state IN ('hiding', 'undoing') ORDER BY id"
    )


def mute(txn: Txn, rollback: int, n: int) -> None:
    """Let one record count no longer here."""
    connection = txn.connection
    memory = connection.execute(
        "SELECT m.status, r.id, m.scope FROM record r LEFT JOIN memory m ON m.id = r.n"
        " WHERE r.n = ?",
        (n,),
    ).fetchone()
    if memory is None:
        return
    status, record_id, scope = memory
    connection.execute("INSERT OR IGNORE INTO muted VALUES (?, ?, ?)", (n, rollback, status))
    if not connection.changes():
        return
    if status is not None and status != "hidden":
        connection.execute("UPDATE memory SET status = 'hidden' WHERE id = ?", (n,))
        txn.events.append(("hidden", record_id, scope))
    resettle(txn, n, record_id)


def _unmute(txn: Txn, rollback: int, n: int) -> None:
    connection = txn.connection
    other = _other_rule(connection, rollback, n)
    if other is not None:
        connection.execute("UPDATE muted SET rollback = ? WHERE n = ?", (other, n))
        return
    row = connection.execute(
        "SELECT x.was, r.id, m.scope FROM muted x JOIN record r ON r.n = x.n"
        " LEFT JOIN memory m ON m.id = x.n WHERE x.n = ?",
        (n,),
    ).fetchone()
    assert row is not None, "the row was read in this transaction"
    was, record_id, scope = row
    connection.execute("DELETE FROM muted WHERE n = ?", (n,))
    if was is not None and was != "hidden" and scope is not None:
        status = "active" if was in FOLDED else was
        connection.execute("UPDATE memory SET status = ? WHERE id = ?", (status, n))
        txn.events.append(("restored", record_id, scope))
    resettle(txn, n, record_id)


def _other_rule(connection: apsw.Connection, rollback: int, n: int) -> int | None:
    """Another rollback in force that covers the record."""
    found = connection.execute(
        "SELECT b.id FROM record r JOIN log l ON l.n = r.log JOIN rollback b ON b.device = l.author"
        f" WHERE r.n = ?1 AND b.id <> ?2 AND b.state IN {ACTIVE} AND r.hlc >= b.since_ms << 16"
        " AND (b.grp IS NULL OR b.grp = r.grp) AND (b.agent IS NULL OR b.agent ="
        " (SELECT a.agent FROM author a WHERE a.id = coalesce("
        "  (SELECT author FROM memory WHERE id = ?1), (SELECT author FROM link WHERE n = ?1),"
        "  (SELECT author FROM forgetting WHERE n = ?1),"
        "  (SELECT voter FROM evidence WHERE rec = ?1),"
        "  (SELECT voter FROM endorse WHERE rec = ?1)))) ORDER BY b.id LIMIT 1",
        (n, rollback),
    ).get
    return cast("int | None", found)
