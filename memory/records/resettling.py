"""What follows for rows that stand, when their record's state or their author's owner changes.

Runs inside the writer's transaction. Source: docs/specs/memory.md, *Projection*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory.records.ingest import author_row, settle_link
from memory.storage.sql import blobs, integers
from memory.trust.evidence import reowned, restate_voter
from memory.trust.status import replaced_by, restatus, retier

if TYPE_CHECKING:
    from memory.storage.txn import Txn


def resettle(txn: Txn, n: int, record_id: bytes) -> None:
    """Show or hide what an entry says after its record's state changed."""
    connection = txn.connection
    restate_voter(txn, n)
    if connection.execute("SELECT 1 FROM memory WHERE id = ?", (n,)).fetchone():
        retier(txn, n)
        restatus(txn, record_id)
        targets = replaced_by(connection, record_id)
    else:
        targets = blobs(
            connection,
            "SELECT dst FROM link WHERE n = ?1 UNION SELECT target FROM forgetting WHERE n = ?1"
            " UNION SELECT target FROM evidence WHERE rec = ?1",
            (n,),
        )
    for target in targets:
        restatus(txn, target)
        settle_link(txn, target)


def reown(txn: Txn, grp: int, device: bytes, owner: bytes, relation: str) -> bool:
    """Change a device's owner and relation; re-fold what it wrote. Whether anything changed."""
    connection = txn.connection
    txn.lookups.clear()
    author_row(connection, grp, device, "", owner, relation)
    rows = integers(
        connection,
        "SELECT id FROM author WHERE grp = ? AND device = ? AND (owner <> ? OR class <> ?)",
        (grp, device, owner, relation),
    )
    for author in rows:
        connection.execute(
            "UPDATE author SET owner = ?, class = ? WHERE id = ?", (owner, relation, author)
        )
        reowned(txn, author)
        written = "SELECT r.id FROM memory m JOIN record r ON r.n = m.id WHERE m.author = ?"
        for record_id in blobs(connection, written, (author,)):
            restatus(txn, record_id)
        _restatus_targets(txn, author)
        _restatus_claims(txn, author)
    return bool(rows)


def _restatus_claims(txn: Txn, author: int) -> None:
    """Whether its claims replace others' or contradict them depends on the author's owner."""
    same = (
        "SELECT DISTINCT r.id FROM memory m JOIN memory o ON o.claim = m.claim"
        " JOIN record r ON r.n = o.id WHERE m.author = ? AND m.claim IS NOT NULL"
    )
    for record_id in blobs(txn.connection, same, (author,)):
        restatus(txn, record_id)
        settle_link(txn, record_id)


def _restatus_targets(txn: Txn, author: int) -> None:
    """Whether its links and forget records count depends on the author's owner."""
    targets = blobs(
        txn.connection,
        "SELECT dst FROM link WHERE author = ?1 UNION"
        " SELECT target FROM forgetting WHERE author = ?1 UNION"
        " SELECT target FROM evidence WHERE voter = ?1",
        (author,),
    )
    for target in targets:
        restatus(txn, target)
        settle_link(txn, target)
