"""What memories are to each other: equal, or in contradiction. Rows, in the writer's transaction.

Both are folded from the rows that stand (found by recall, not replaced), never received: nobody can
claim that a text of his is the same as somebody else's, and so hide it. `settle_relations` is
called whenever a memory begins or ceases to stand, in any order of arrival.
Source: docs/specs/memory.md, *Duplicates*, *Claims and conflicts*.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from memory.relations.claims import Side, disputes, rank
from memory.storage.sql import blobs, integers
from memory.tiers import NONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.storage.txn import Txn

SIDES_MAX: Final = 256
"""Memories of one key that are looked at, the most trusted first."""

PARTNERS_MAX: Final = 64
"""Signed contradictions of one memory that are looked at, the oldest first."""

CLAIM_ROWS_MAX: Final = 1_000
"""Memories of one key that a change of one of them may concern; older ones stay replaced."""

GUESSED_MAX: Final = 4
"""Memories named as perhaps in conflict with a new one, because of guessed statements."""

# What others can find and nobody has replaced.
_STANDS: Final = "m.status = 'active' AND m.tier < 2"


class _Row:
    """A memory as its relations need it."""

    __slots__ = ("claim", "cluster", "essence", "id", "memory", "scope", "stands")

    def __init__(self, row: tuple[int, bytes, int, int | None, int | None, int | None, int]):
        self.memory, self.id, self.scope, self.claim, self.essence, self.cluster, stands = row
        self.stands = bool(stands)


def settle_relations(txn: Txn, memory: int) -> None:
    """Fold cluster and disputes of a memory and of those they touch."""
    row = txn.connection.execute(
        "SELECT m.id, r.id, m.scope, m.claim, m.essence, m.cluster, m.status = 'active' AND"
        " m.tier < ? FROM memory m JOIN record r ON r.n = m.id WHERE m.id = ?",
        (NONE, memory),
    ).fetchone()
    assert row is not None, "only a projected memory has relations"
    found = _Row(row)
    if not found.stands and found.cluster is not None:
        txn.connection.execute("UPDATE memory SET cluster = NULL WHERE id = ?", (memory,))
    if found.essence is not None:
        recluster(txn.connection, found.scope, found.essence)
    redispute(txn, memory, found.id, found.claim)


# ---- clusters


def recluster(connection: apsw.Connection, scope: int, essence: int) -> None:
    """Name the cluster of memories of one scope that say the same; one alone has no cluster."""
    rows = connection.execute(
        "SELECT m.id, m.cluster FROM memory m WHERE m.essence = ? AND m.scope = ? AND "
        + _STANDS
        + " ORDER BY m.id",
        (essence, scope),
    ).fetchall()
    name = rows[0][0] if len(rows) > 1 else None
    for memory, cluster in rows:
        if cluster != name:
            connection.execute("UPDATE memory SET cluster = ? WHERE id = ?", (name, memory))


# ---- disputes


def redispute(txn: Txn, memory: int, record_id: bytes, claim: int | None) -> None:
    """Fold the disputes of a memory, and all of its claim's key."""
    connection = txn.connection
    wanted: dict[tuple[int, int], int | None] = dict.fromkeys(
        _linked_pairs(connection, memory, record_id)
    )
    known = _pairs(
        connection,
        "SELECT a, b FROM dispute WHERE a = ?1 UNION SELECT a, b FROM dispute WHERE b = ?1",
        memory,
    )
    if claim is not None:
        wanted |= dict.fromkeys(disputes(_sides(connection, claim)), claim)
        known += _pairs(connection, "SELECT a, b FROM dispute WHERE claim = ?", claim)
    for pair in sorted(set(known) - wanted.keys()):
        _withdraw(txn, pair)
    for pair in sorted(wanted.keys() - set(known)):
        _declare(txn, pair, wanted[pair])


def _pairs(connection: apsw.Connection, sql: str, bound: int) -> list[tuple[int, int]]:
    return cast("list[tuple[int, int]]", connection.execute(sql, (bound,)).fetchall())


def _sides(connection: apsw.Connection, claim: int) -> list[Side]:
    """Those that make the claim and stand, the most trusted first."""
    rows = connection.execute(
        "SELECT m.id, a.owner, m.value_key, a.agent, m.role FROM memory m"
        " JOIN author a ON a.id = m.author JOIN record r ON r.n = m.id"
        " WHERE m.claim = ? AND m.value_key IS NOT NULL AND "
        + _STANDS
        + " ORDER BY m.eff_trust DESC, m.hlc, r.id LIMIT ?",
        (claim, SIDES_MAX),
    )
    return [Side(m, owner, value, rank(agent, role)) for m, owner, value, agent, role in rows]


# A contradiction is said by whoever wrote one side, or by the person here; a replacement that was
# not granted contradicts too. Within one scope: whoever reads one side may read the other.
_LINKED: Final = """
SELECT {other}.id FROM link l JOIN record lr ON lr.n = l.n AND lr.state = 'live'
JOIN author la ON la.id = l.author
JOIN record sr ON sr.id = l.src JOIN memory s ON s.id = sr.n JOIN author sa ON sa.id = s.author
JOIN record dr ON dr.id = l.dst JOIN memory d ON d.id = dr.n
WHERE l.{end} = ? AND l.type IN ('contradicts', 'supersedes') AND s.id <> d.id
  AND NOT EXISTS (SELECT 1 FROM muted x WHERE x.n = l.n)
  AND s.scope = d.scope AND s.status = 'active' AND s.tier < 2 AND d.status = 'active'
  AND d.tier < 2 AND (la.owner = sa.owner OR (la.class = 'own' AND la.agent = ''))
ORDER BY l.n LIMIT ?
"""
_LINKED_FROM: Final = _LINKED.format(other="d", end="src")
_LINKED_TO: Final = _LINKED.format(other="s", end="dst")


def _linked_pairs(
    connection: apsw.Connection, memory: int, record_id: bytes
) -> list[tuple[int, int]]:
    others = [
        other
        for sql in (_LINKED_FROM, _LINKED_TO)
        for other in integers(connection, sql, (record_id, PARTNERS_MAX))
    ]
    return [(min(memory, other), max(memory, other)) for other in others]


def _withdraw(txn: Txn, pair: tuple[int, int]) -> None:
    """End a dispute that this fold no longer sees, unless a signed link keeps it up."""
    connection = txn.connection
    row = connection.execute("SELECT id FROM record WHERE n = ?", (pair[0],)).fetchone()
    assert row is not None, "a memory has its record"
    if pair in _linked_pairs(connection, pair[0], row[0]):
        connection.execute("UPDATE dispute SET claim = NULL WHERE a = ? AND b = ?", pair)
        return
    connection.execute("DELETE FROM dispute WHERE a = ? AND b = ?", pair)
    _touch(txn, pair, "")


def _declare(txn: Txn, pair: tuple[int, int], claim: int | None) -> None:
    txn.connection.execute(
        "INSERT INTO dispute(a, b, since_ms, claim)"
        " SELECT ?1, ?2, max(hlc) >> 16, ?3 FROM memory WHERE id IN (?1, ?2)",
        (*pair, claim),
    )
    _touch(txn, pair, "disputed")


def _touch(txn: Txn, pair: Sequence[int], event: str) -> None:
    """Both sides look different in an answer from now on."""
    for memory in pair:
        row = txn.connection.execute(
            "SELECT r.id, m.scope FROM memory m JOIN record r ON r.n = m.id WHERE m.id = ?",
            (memory,),
        ).fetchone()
        assert row is not None, "a side of a dispute is a memory"
        txn.connection.execute(
            "UPDATE scope SET generation = generation + 1 WHERE id = ?", (row[1],)
        )
        if event:
            txn.events.append((event, row[0], row[1]))


# ---- what a writer is told


def disputed_with(connection: apsw.Connection, memory: int) -> list[bytes]:
    """Record ids of those that a memory is in dispute with."""
    return blobs(
        connection,
        "SELECT r.id FROM dispute d JOIN record r ON r.n = d.b WHERE d.a = ?1"
        " UNION SELECT r.id FROM dispute d JOIN record r ON r.n = d.a WHERE d.b = ?1",
        (memory,),
    )


def guessed_against(connection: apsw.Connection, memory: int) -> list[bytes]:
    """Record ids of those of its scope that seem to make its statement with another value."""
    return blobs(
        connection,
        "SELECT DISTINCT r.id FROM guess mine JOIN guess g ON g.key = mine.key"
        " AND g.value <> mine.value JOIN memory m ON m.id = g.memory JOIN record r ON r.n = m.id"
        " WHERE mine.memory = ?1 AND m.scope = (SELECT scope FROM memory WHERE id = ?1) AND "
        + _STANDS
        + " ORDER BY m.eff_trust DESC, m.id DESC LIMIT ?2",
        (memory, GUESSED_MAX),
    )


# ---- claims of one owner

# In the first part those that a memory which begins to stand may replace; in the second those that
# may come back when it ceases. Both bounded: a flood of one key costs its writer, not everybody.
_SAME_CLAIM: Final = """
SELECT r.id, o.value_key, a.agent, o.role,
  r.state = 'live' AND o.status NOT IN ('forgotten', 'hidden', 'quarantined')
FROM (SELECT id FROM (SELECT id FROM memory WHERE claim = ?1 AND status = 'active' LIMIT ?3)
      UNION SELECT id FROM (SELECT id FROM memory WHERE claim = ?1 AND hlc <= ?2
                            ORDER BY hlc DESC LIMIT ?3)) t
JOIN memory o ON o.id = t.id JOIN record r ON r.n = o.id JOIN author a ON a.id = o.author
WHERE o.id <> ?4 AND o.hlc <= ?2 AND a.owner = ?5 ORDER BY o.hlc DESC, r.id DESC
"""


def replaced_by_claim(connection: apsw.Connection, memory: int) -> list[bytes]:
    """Record ids whose status may depend on this memory, because it makes the same claim.

    Older ones of the same owner, the newest first, each as long as fewer than two that weigh as
    much and differ stand between: one of two such replaces it whatever becomes of this one.
    """
    row = connection.execute(
        "SELECT m.claim, m.hlc, a.owner FROM memory m JOIN author a ON a.id = m.author"
        " WHERE m.id = ? AND m.claim IS NOT NULL",
        (memory,),
    ).fetchone()
    if row is None:
        return []
    rows = connection.execute(_SAME_CLAIM, (row[0], row[1], CLAIM_ROWS_MAX, memory, row[2]))
    found: list[bytes] = []
    between: tuple[set[int], ...] = (set(), set(), set())
    for record_id, value, agent, role, stands in rows:
        weight = rank(cast("str", agent), cast("str", role))
        if len(between[weight]) < 2:
            found.append(cast("bytes", record_id))
        if stands:
            for values in between[: weight + 1]:
                values.add(cast("int", value))
    return found
