"""Taking a record's content out of every table, inside the writer's transaction.

What stays of an erased record is its header, a stub: chains and set comparison need it, and it says
nothing about the body. Bodies, keys, text, full-text rows and everything derived go in one
transaction; with SQLite's `secure_delete` and FTS5's `secure-delete` their bytes are overwritten,
and a truncating checkpoint takes them out of the write-ahead log. Source: docs/specs/memory.md,
*Erasure*.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memory.bodies import ENTRY_KIND
from memory.flags import PARENT_ERASED
from memory.records import cells
from memory.relations.dedupe import content_words
from memory.storage.sql import blobs, integers
from memory.text.fts import move_to_tier
from memory.tiers import NONE
from memory.trust.evidence import observe, restate_voter
from memory.trust.status import derived_from, refold_trust, replaced_by, restatus

if TYPE_CHECKING:
    import apsw

    from memory.storage.txn import Txn

HERE: Final = bytes(32)
"""In place of an erase record's id: erased by the person at this machine, or by a cascade."""

QUICK_MS: Final = 3_600_000
"""An erasure this soon after a use is evidence against its author (memory.md s.7)."""

KIND_DATA_START: Final = 32
"""Kinds below carry authority and keys: their payloads decide who counts, and are never erased."""

OF_CHUNKS: Final = ("vec",)
"""Tables of a `chunk` column."""

OF_MEMORY: Final = (
    ("chunk", "memory"),
    ("sig", "memory"),
    ("mention", "memory"),
    ("parent", "memory"),
    ("idem", "memory"),
    ("faded", "memory"),
    ("dispute", "a"),
    ("dispute", "b"),
    ("guess", "memory"),
)
"""Tables and columns that name a memory by its row; a test compares them with the schema."""

OF_RECORD: Final = (
    ("link", "n"),
    ("forgetting", "n"),
    ("kept", "n"),
    ("evidence", "rec"),
    ("endorse", "rec"),
    ("muted", "n"),
)
"""What entry records other than notes became."""

BY_ID: Final = (("link", "src"), ("link", "dst"), ("forgetting", "target"))
"""Tables that name a memory by its record id."""


def erase_record(
    txn: Txn, record_id: bytes, by: bytes, hlc: int, *, copies_only: bool = False
) -> list[bytes] | None:
    """Erase one record's content, for ever: its body is never taken again.

    Args:
        txn: the unit.
        record_id: which; it may not be here yet, and is refused then when it comes.
        by: id of the erase record, `HERE` for one that was told to this machine alone.
        hlc: its time, 0 likewise.
        copies_only: of what was derived from it, only repetitions of its text go along.

    Returns:
        Ids of own records that were derived from it and have to go with it, and of those that say
        the same under another id; None for a control record, which stays.
    """
    connection = txn.connection
    row = connection.execute(
        "SELECT r.n, r.kind, g.id FROM record r JOIN grp g ON g.n = r.grp WHERE r.id = ?",
        (record_id,),
    ).fetchone()
    if row is not None and row[1] < KIND_DATA_START:
        return None
    connection.execute("INSERT OR IGNORE INTO erased VALUES (?, ?, ?)", (record_id, by, hlc))
    connection.execute("INSERT OR IGNORE INTO erasing VALUES (?)", (record_id,))
    hidden = connection.execute(
        "SELECT 1 FROM hold WHERE id = ? AND reason = 'hidden'", (record_id,)
    ).get
    connection.execute("DELETE FROM hold WHERE id = ?", (record_id,))
    txn.erased.append(record_id)
    if row is None:
        return []
    n, kind, group = row
    if by != HERE:
        _note_quick(txn, n, record_id, hlc >> 16, by)
    derived = own_derived(connection, record_id)
    if copies_only:
        derived = _copies(connection, record_id, derived)
    derived += signed_anew(connection, record_id)
    connection.execute(
        "UPDATE record SET state = 'stub' WHERE n = ? AND (state IN ('live', 'sealed') OR ?)",
        (n, bool(hidden)),  # hidden until an admin's erasure is carried out: void, and in the set
    )
    for table in ("body", "body_key"):
        connection.execute(f"DELETE FROM {table} WHERE n = ?", (n,))
    if kind == ENTRY_KIND:
        _erase_entry(txn, n, record_id)
    elif kind == cells.STATE_KIND:
        cells.renew(txn, n)
        txn.turned.setdefault(group, []).append(record_id)
    txn.changed.add(group)
    return derived


def _note_quick(txn: Txn, n: int, record_id: bytes, at_ms: int, by: bytes) -> None:
    """Evidence against a foreign author that takes back what was used within the hour.

    Not if something stands in its place, and not for what an admin did to it.
    """
    row = txn.connection.execute(
        "SELECT m.author FROM memory m JOIN author a ON a.id = m.author WHERE m.id = ?1"
        " AND a.class NOT IN ('own', 'own_device') AND m.uses > 0"
        " AND m.used_ms BETWEEN ?2 - ?3 AND ?2 + ?3 AND NOT EXISTS"
        " (SELECT 1 FROM link WHERE dst = ?4 AND type = 'supersedes') AND NOT EXISTS"
        " (SELECT 1 FROM record e JOIN log el ON el.n = e.log JOIN record t ON t.n = ?1"
        " JOIN log tl ON tl.n = t.log WHERE e.id = ?5 AND el.author <> tl.author)",
        (n, at_ms, QUICK_MS, record_id, by),
    ).fetchone()
    if row is not None:
        observe(txn, author=row[0], kind="quick_erase", at_ms=at_ms)


def erase_all(txn: Txn, record_id: bytes, by: bytes, hlc: int) -> list[bytes]:
    """As `erase_record`, with what this device derived from it; ids erased, the target first.

    Others' memories derived from it stay, marked, and lose the trust that came from it. So do own
    ones that merely lean on a foreign author's text: that author decides about its words, wherever
    they stand, but must not be able to destroy what was thought about them.
    """
    copies_only = by != HERE and _is_foreign(txn.connection, record_id)
    done: dict[bytes, None] = {}
    pending = [record_id]
    # Ends: nothing is done twice.
    while pending:
        current = pending.pop()
        derived = None
        if current not in done:
            derived = erase_record(txn, current, by, hlc, copies_only=copies_only)
        if derived is not None:
            done[current] = None
            pending += derived
    return list(done)


def _is_foreign(connection: apsw.Connection, record_id: bytes) -> bool:
    """Whether somebody else wrote it; so is what is not here."""
    row = connection.execute(
        "SELECT a.class FROM record r JOIN memory m ON m.id = r.n JOIN author a ON a.id = m.author"
        " WHERE r.id = ?",
        (record_id,),
    ).fetchone()
    return row is None or row[0] not in ("own", "own_device")


def _copies(connection: apsw.Connection, record_id: bytes, derived: list[bytes]) -> list[bytes]:
    """Those that share half of the larger text's content words with the record."""
    words = _words_of(connection, record_id)
    copies = []
    for child in derived:
        theirs = _words_of(connection, child)
        if 2 * len(words & theirs) >= max(len(words), len(theirs), 1):
            copies.append(child)
    return copies


def _words_of(connection: apsw.Connection, record_id: bytes) -> frozenset[str]:
    rows = connection.execute(
        "SELECT c.text FROM record r JOIN chunk c ON c.memory = r.n WHERE r.id = ?", (record_id,)
    )
    return content_words(" ".join(str(text) for (text,) in rows))


def own_derived(connection: apsw.Connection, record_id: bytes) -> list[bytes]:
    """Records of this device that name this one as a parent."""
    return blobs(
        connection,
        "SELECT r.id FROM parent p JOIN memory m ON m.id = p.memory JOIN record r ON r.n = m.id"
        " JOIN author a ON a.id = m.author WHERE p.parent_id = ? AND a.class = 'own'",
        (record_id,),
    )


_ANEW: Final = """
SELECT o.id FROM record r JOIN supersede s ON s.src = r.n JOIN record o ON o.id = s.dst
JOIN log rl ON rl.n = r.log JOIN log ol ON ol.n = o.log
WHERE r.id = ?1 AND r.kind = ?2 AND o.kind = ?2 AND ol.grp = rl.grp AND ol.author = rl.author
UNION
SELECT c.id FROM supersede s JOIN record c ON c.n = s.src JOIN record r ON r.id = s.dst
JOIN log cl ON cl.n = c.log JOIN log rl ON rl.n = r.log
WHERE s.dst = ?1 AND c.kind = ?2 AND r.kind = ?2 AND cl.grp = rl.grp AND cl.author = rl.author
"""


def signed_anew(connection: apsw.Connection, record_id: bytes) -> list[bytes]:
    """Entries of the same author that say the same: its original, and what was signed of it anew.

    A header names its original in `supersedes` (docs/specs/sync.md s.7). Another author's word does
    not count: whoever erases its own must not reach others' by naming them.
    """
    return blobs(connection, _ANEW, (record_id, ENTRY_KIND))


def _erase_entry(txn: Txn, n: int, record_id: bytes) -> None:
    connection = txn.connection
    if connection.execute("SELECT 1 FROM memory WHERE id = ?", (n,)).fetchone() is not None:
        erase_memory(txn, n)
    # A link, a forget record or a verdict that goes takes its effect along. Evidence about the
    # author of an erased memory stays: it holds no text, and erasing lies must not restore trust.
    restate_voter(txn, n)
    targets = blobs(
        connection,
        "SELECT dst FROM link WHERE n = ?1 UNION SELECT target FROM forgetting WHERE n = ?1",
        (n,),
    )
    for table, column in OF_RECORD:
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (n,))
    for target in targets:
        if target != record_id:
            restatus(txn, target)


def erase_memory(txn: Txn, n: int) -> None:
    """Delete all rows of a memory, in any table; the record itself is `erase_record`'s.

    Args:
        txn: the unit.
        n: the memory's row.
    """
    connection = txn.connection
    row = connection.execute(
        "SELECT r.id, m.scope, m.tier, m.claim FROM memory m JOIN record r ON r.n = m.id"
        " WHERE m.id = ?",
        (n,),
    ).fetchone()
    assert row is not None, "the caller saw the memory in this transaction"
    record_id, scope, tier, claim = row
    replaced = replaced_by(connection, record_id)
    children = derived_from(connection, n)
    # 'delete' needs the text exactly as it was indexed, and the memory still in its tier.
    move_to_tier(connection, n, scope, tier, NONE)
    txn.touched.add(n)
    chunks = integers(connection, "SELECT id FROM chunk WHERE memory = ?", (n,))
    for table in OF_CHUNKS:
        for chunk in chunks:
            connection.execute(f"DELETE FROM {table} WHERE chunk = ?", (chunk,))
    entities = integers(connection, "SELECT entity FROM mention WHERE memory = ?", (n,))
    for table, column in OF_MEMORY:
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (n,))
    for table, column in BY_ID:
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (record_id,))
    connection.execute("DELETE FROM memory WHERE id = ?", (n,))
    _drop_orphans(connection, claim, entities)
    txn.events.append(("erased", record_id, scope))
    for child in children:
        connection.execute(
            "UPDATE memory SET flags = flags | ? WHERE id = ?", (PARENT_ERASED, child)
        )
    refold_trust(txn, children)
    for target in replaced:
        restatus(txn, target)


def _drop_orphans(connection: apsw.Connection, claim: int | None, entities: list[int]) -> None:
    """Claim keys and entities are words of the text: they go with the last memory that has them."""
    if claim is not None:
        connection.execute(
            "DELETE FROM claim WHERE id = ?1"
            " AND NOT EXISTS (SELECT 1 FROM memory WHERE claim = ?1)",
            (claim,),
        )
    for entity in entities:
        orphan = "NOT EXISTS (SELECT 1 FROM mention WHERE entity = ?1)"
        connection.execute(f"DELETE FROM edge WHERE (a = ?1 OR b = ?1) AND {orphan}", (entity,))
        connection.execute(f"DELETE FROM community WHERE entity = ?1 AND {orphan}", (entity,))
        connection.execute(f"DELETE FROM entity WHERE id = ?1 AND {orphan}", (entity,))
