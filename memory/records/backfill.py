"""What a newer version derives from texts, for memories that an older one wrote.

A migration is one transaction and knows only SQL, so it names the memories (`unread`) and the rest
is done afterwards, a batch a transaction: a memory leaves the list in the transaction that read it,
so a crash at any moment loses no work and does none twice. The rows are folded by the functions
that fold a memory which arrives late, in any order. Source: docs/specs/memory.md, *Upgrades*.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

from memory.bodies import NoteBody
from memory.records.ingest import Entry, claim_row, is_awaited, note_found, relate, said_by
from memory.records.scanning import Found, flags_of
from memory.storage.sql import integers
from memory.trust.status import replaced_by, restatus

if TYPE_CHECKING:
    import apsw

    from memory.model import Kind, Role
    from memory.storage.txn import Txn

BATCH: Final = 200
"""Memories of one transaction: tens of milliseconds in which other writers wait."""

_ROW: Final = """
SELECT r.id, r.grp, a.device, a.owner, a.class, m.hlc, r.state, a.agent, s.name, s.id, m.kind,
  m.role, m.speaker, m.title, m.tags, m.claim, c.subject, c.attribute, m.claim_value,
  (SELECT group_concat(text, '') FROM
    (SELECT text FROM chunk WHERE memory = m.id ORDER BY i))
FROM memory m JOIN record r ON r.n = m.id JOIN author a ON a.id = m.author
JOIN scope s ON s.id = m.scope LEFT JOIN claim c ON c.id = m.claim WHERE m.id = ?
"""

_Row = tuple[
    bytes, int, bytes, bytes, str, int, str, str, str, int, "Kind", "Role", str | None, str,
    str | None, int | None, str | None, str | None, str | None, str | None,
]  # fmt: skip


def backfill(txn: Txn) -> bool:
    """Fill in a batch of old memories, newest first; whether there may be more."""
    connection = txn.connection
    batch = integers(connection, "SELECT memory FROM unread ORDER BY memory DESC LIMIT ?", (BATCH,))
    for memory in batch:
        _fill(txn, memory)
        connection.execute("DELETE FROM unread WHERE memory = ?", (memory,))
    return len(batch) == BATCH


def _fill(txn: Txn, memory: int) -> None:
    connection = txn.connection
    row = connection.execute(_ROW, (memory,)).fetchone()
    assert row is not None, "an erased memory is not on the list"
    entry, body, scope, claim = _read(cast("_Row", row), memory)
    if body.claim is not None and claim is not None:
        _rekey(connection, memory, claim, claim_row(connection, scope, body.claim))
    essence, value = said_by(body, body.text)
    connection.execute(
        "UPDATE memory SET essence = ?, value_key = ? WHERE id = ?", (essence, value, memory)
    )
    note_found(txn, entry, Found(flags=flags_of(txn.scanner, body)))
    awaited = not entry.fresh and is_awaited(connection, entry)
    relate(txn, entry, body, essence, body.text, awaited=awaited)
    for older in replaced_by(connection, entry.id):
        restatus(txn, older)


def _read(row: _Row, memory: int) -> tuple[Entry, NoteBody, int, int | None]:
    """(entry, what of its body matters here, scope row, claim row) of a memory."""
    (record_id, grp, device, owner, relation, hlc, state, agent, scope, scope_id, kind, role,
     speaker, title, tags, claim, subject, attribute, value, text) = row  # fmt: skip
    entry = Entry(memory, record_id, grp, device, owner, relation, hlc, state, fresh=False)
    stated = None
    if subject is not None and attribute is not None:
        stated = subject, attribute, value or ""
    body = NoteBody(
        agent=agent,
        scope=scope,
        kind=kind,
        role=role,
        speaker=speaker,
        text=text or "",
        title=title or None,
        thread=None,
        pos=1,
        at_ms=hlc >> 16,
        valid_from=None,
        valid_to=None,
        tags=json.loads(tags) if tags else [],
        claim=stated,
        source=None,
        derived_from=[],
        ttl_s=None,
        idem=None,
    )
    return entry, body, scope_id, claim


def _rekey(connection: apsw.Connection, memory: int, old: int, new: int) -> None:
    """Put a claim under its key as it is written today: case and spacing do not count."""
    if old == new:
        return
    connection.execute("UPDATE memory SET claim = ? WHERE id = ?", (new, memory))
    connection.execute(
        "DELETE FROM claim WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM memory WHERE claim = ?1)",
        (old,),
    )
