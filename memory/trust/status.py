"""What links, forget records, authority and trust make of a memory: its status and its tier.

Status is folded from what is signed, in any order of arrival: `forgotten` before `refuted` before
`superseded` before `active`. `hidden` (by the person here) and `quarantined` are set by other rules
and left alone. A memory is indexed if its record is live, its status shows it, and its trust is
enough. Everything here runs in the writer's transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memory.relations.conflicts import replaced_by_claim, settle_relations
from memory.storage.sql import blobs, integers, number
from memory.text.fts import move_to_tier
from memory.tiers import NONE
from memory.trust.rules import effective, tier_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import apsw

    from memory.storage.txn import Txn

SHOWN: Final = frozenset({"active", "superseded", "refuted"})
"""Statuses that recall may show."""

FOLDED: Final = frozenset({"active", "superseded", "refuted", "forgotten"})
"""Statuses that the fold decides between."""

_SUPERSEDED: Final = "SELECT EXISTS (SELECT 1 FROM replacement WHERE dst = ?)"
"""What validly replaces what is a view: storage/migrations/0002_memory.sql."""

# The newest verdict of the person here, else of the person whose agents wrote it. A stranger's or
# an agent's moves trust and no status; those of two independent owners do (`memory.denied`).
_PERSON_SAID: Final = """
SELECT e.kind FROM evidence e JOIN record vr ON vr.n = e.rec AND vr.state = 'live'
JOIN author v ON v.id = e.voter
WHERE e.target = ?1 AND v.agent = '' AND e.kind IN ('useful', 'wrong', 'harmful')
  AND (v.class IN ('own', 'own_device') OR v.owner = ?2)
  AND NOT EXISTS (SELECT 1 FROM muted x WHERE x.n = e.rec)
ORDER BY v.class IN ('own', 'own_device') DESC, e.hlc DESC, vr.id DESC LIMIT 1
"""

_FORGOTTEN: Final = """
SELECT EXISTS (
  SELECT 1 FROM forgetting f
  JOIN record fr ON fr.n = f.n AND fr.state = 'live'
  JOIN author fa ON fa.id = f.author
  WHERE f.target = ?1 AND fa.owner = ?2
    AND NOT EXISTS (SELECT 1 FROM muted x WHERE x.n = f.n))
"""


def restatus(txn: Txn, record_id: bytes) -> None:
    """Fold a memory's status anew, and that of those it replaces if it changed."""
    pending = [record_id]
    # Ends: a status depends on whether its successors are withdrawn, never on their own successors.
    while pending:
        current = pending.pop()
        if _restatus_one(txn, current):
            pending.extend(replaced_by(txn.connection, current))


def _restatus_one(txn: Txn, record_id: bytes) -> bool:
    connection = txn.connection
    row = connection.execute(
        "SELECT m.id, m.status, a.owner, m.scope FROM record r JOIN memory m ON m.id = r.n"
        " JOIN author a ON a.id = m.author WHERE r.id = ?",
        (record_id,),
    ).fetchone()
    if row is None or row[1] not in FOLDED:
        return False
    memory, status, owner, scope = row
    new = folded_status(connection, record_id, memory, owner)
    if new == status:
        return False
    connection.execute("UPDATE memory SET status = ? WHERE id = ?", (new, memory))
    txn.events.append(("restored" if new == "active" else new, record_id, scope))
    if not retier(txn, memory):
        connection.execute("UPDATE scope SET generation = generation + 1 WHERE id = ?", (scope,))
        settle_relations(txn, memory)
    return True


def is_forgotten(connection: apsw.Connection, record_id: bytes, owner: bytes) -> bool:
    """Whether a memory's own owner wants it forgotten."""
    return bool(connection.execute(_FORGOTTEN, (record_id, owner)).get)


def folded_status(connection: apsw.Connection, record_id: bytes, memory: int, owner: bytes) -> str:
    """What the signed records here make of a memory, whose rows are here already."""
    if is_forgotten(connection, record_id, owner):
        return "forgotten"
    if connection.execute(_PERSON_SAID, (record_id, owner)).get in ("wrong", "harmful"):
        return "refuted"
    if connection.execute("SELECT denied FROM memory WHERE id = ?", (memory,)).get:
        return "refuted"
    if connection.execute(_SUPERSEDED, (memory,)).get:
        return "superseded"
    return "active"


def hide(txn: Txn, memory: int, record_id: bytes, scope: int) -> None:
    """Hide a memory on this machine only; what it replaced comes back."""
    txn.connection.execute("UPDATE memory SET status = 'hidden' WHERE id = ?", (memory,))
    txn.events.append(("hidden", record_id, scope))
    retier(txn, memory)
    for dst in replaced_by(txn.connection, record_id):
        restatus(txn, dst)


def expire(txn: Txn, memories: Sequence[int]) -> int:
    """Un-index memories whose time is over; how many."""
    for memory in memories:
        row = txn.connection.execute(
            "SELECT scope, tier FROM memory WHERE id = ?", (memory,)
        ).fetchone()
        assert row is not None, "an expired memory was found a moment ago"
        if row[1] != NONE:
            move_to_tier(txn.connection, memory, row[0], row[1], NONE)
            txn.touched.add(memory)
            settle_relations(txn, memory)
    return len(memories)


def restatus_judged(txn: Txn, memory: int) -> None:
    """Fold a memory and those it is said to replace: who backs or refutes it has changed."""
    for record_id in blobs(txn.connection, "SELECT id FROM record WHERE n = ?", (memory,)):
        restatus(txn, record_id)
        for dst in replaced_by(txn.connection, record_id):
            restatus(txn, dst)


def replaced_by(connection: apsw.Connection, record_id: bytes) -> list[bytes]:
    """Memories that this one is said to replace, or may by its claim."""
    linked = blobs(
        connection, "SELECT dst FROM link WHERE src = ? AND type = 'supersedes'", (record_id,)
    )
    memory = number(connection, "SELECT n FROM record WHERE id = ?", (record_id,))
    return [*linked, *replaced_by_claim(connection, memory)]


def retier(txn: Txn, memory: int) -> bool:
    """Put a memory into the index it belongs to; whether it moved."""
    row = txn.connection.execute(
        "SELECT m.scope, m.tier, m.status, m.eff_trust, r.state, a.state, m.expires_ms"
        " FROM memory m"
        " JOIN record r ON r.n = m.id JOIN author a ON a.id = m.author WHERE m.id = ?",
        (memory,),
    ).fetchone()
    assert row is not None, "only a projected memory has a tier"
    scope, old, status, trust, record_state, author_state, expires_ms = row
    new = wanted_tier(trust, old, status, record_state, author_state)
    if expires_ms is not None and expires_ms <= txn.now_ms:
        new = NONE
    if new == old:
        return False
    move_to_tier(txn.connection, memory, scope, old, new)
    txn.touched.add(memory)
    settle_relations(txn, memory)
    return True


def wanted_tier(trust: float, old: int, status: str, record_state: str, author_state: str) -> int:
    """The index for a memory in these circumstances."""
    if status not in SHOWN or record_state != "live" or author_state == "banned":
        return NONE
    return tier_of(trust, old)


def parents_trust(connection: apsw.Connection, parents: Iterable[bytes]) -> list[float | None]:
    """E of each parent, None for one that is not here."""
    found: list[float | None] = []
    for parent in parents:
        row = connection.execute(
            "SELECT m.eff_trust FROM record r JOIN memory m ON m.id = r.n WHERE r.id = ?", (parent,)
        ).fetchone()
        found.append(None if row is None else row[0])
    return found


def refold_trust(txn: Txn, memories: Sequence[int]) -> None:
    """Compute E anew for these memories and for all derived from them, and re-index."""
    pending = list(memories)
    # Ends: a parent is named by its hash, so derivation has no cycles. No bound on their number:
    # what was left out would keep a trust that its author has lost.
    while pending:
        memory = pending.pop()
        if refold_one(txn, memory):
            pending.extend(derived_from(txn.connection, memory))


def derived_from(connection: apsw.Connection, memory: int) -> list[int]:
    """Memories that name this one as a parent."""
    return integers(
        connection,
        "SELECT p.memory FROM record r JOIN parent p ON p.parent_id = r.id WHERE r.n = ?",
        (memory,),
    )


def refold_one(txn: Txn, memory: int) -> bool:
    """Compute E of one memory anew and re-index it; whether E changed."""
    connection = txn.connection
    row = connection.execute(
        "SELECT m.eff_trust, m.role, a.trust, CASE a.state WHEN 'banned' THEN 0.0"
        " ELSE m.vouched END FROM memory m JOIN author a ON a.id = m.author WHERE m.id = ?",
        (memory,),
    ).fetchone()
    assert row is not None, "only a projected memory has trust"
    old, role, trust, vouched = row
    parents = blobs(connection, "SELECT parent_id FROM parent WHERE memory = ?", (memory,))
    new, _ = effective(trust, role, parents_trust(connection, parents), vouched)
    if new == old:
        # An author may be banned and yet have been worth nothing before.
        return retier(txn, memory)
    connection.execute(
        "UPDATE memory SET eff_trust = ?, origin_trust = ? WHERE id = ?", (new, trust, memory)
    )
    retier(txn, memory)
    return True
