"""Contradictions as a person sees them: both sides, dated, and the word that ends one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

from memory.bodies import VerdictBody
from memory.errors import RefusedError
from memory.model import Conflict, Conflicts, Resolved
from memory.provenance import iso
from memory.recall.hits import load_rows, load_texts, make_hit
from memory.records.writing import entry_draft, find_target
from memory.relations.conflicts import disputed_with
from memory.scopes import readable
from memory.storage.sql import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.model import Caller
    from memory.records.replica import Replica
    from memory.seams import Env, Receipt
    from memory.storage.db import Db
    from memory.storage.txn import Txn

CONFLICTS_MAX: Final = 100
"""Of one answer."""

_READABLE: Final = (
    " FROM dispute d JOIN memory a ON a.id = d.a JOIN memory b ON b.id = d.b"
    " WHERE a.scope IN (SELECT value FROM json_each(?1))"
    " AND b.scope IN (SELECT value FROM json_each(?1))"
)
_LIST: Final = (
    "SELECT d.a, d.b, d.since_ms, c.subject, c.attribute, a.claim_value, b.claim_value"
    + _READABLE.replace(" WHERE", " LEFT JOIN claim c ON c.id = d.claim WHERE")
    + " ORDER BY d.since_ms DESC, d.a, d.b LIMIT ?2"
)

_Row = tuple[int, int, int, str | None, str | None, str | None, str | None]


class ConflictDesk:
    """Lists contradictions, and lets the person end one.

    Args:
        db: the open database.
        replica: the record store over it.
        env: clocks.
    """

    def __init__(self, db: Db, replica: Replica, env: Env) -> None:
        self._db = db
        self._replica = replica
        self._env = env

    async def conflicts(
        self, who: Caller, scope: str | Sequence[str] | None = None, limit: int = 20
    ) -> Conflicts:
        """Contradictions that stand, the newest first.

        Raises:
            RefusedError: `forbidden` or `invalid`.
        """
        if not 1 <= limit <= CONFLICTS_MAX:
            raise RefusedError("invalid", f"limit must be 1 to {CONFLICTS_MAX}")
        now_ms = self._env.wall_ms()
        return await self._db.read(
            lambda connection: read_conflicts(connection, who, scope, limit, now_ms)
        )

    async def resolve(
        self, who: Caller, memory_id: str, receipt: Receipt[Resolved] | None = None
    ) -> Resolved:
        """Say which side holds: it is useful, whatever contradicts it is wrong. Signed verdicts.

        Raises:
            RefusedError: `forbidden` to agents, `not_found`, or `invalid`: nothing contradicts it.
        """
        if not who.is_owner:
            raise RefusedError("forbidden", "only the person decides which side holds")

        def unit(txn: Txn) -> Resolved:
            done = self._resolve(txn, who, memory_id)
            if receipt is not None:
                self._replica.put_receipt(txn, receipt.key, receipt.encode(done))
            return done

        return await self._replica.transact(unit)

    def _resolve(self, txn: Txn, who: Caller, memory_id: str) -> Resolved:
        connection = txn.connection
        target = find_target(connection, who, memory_id)
        if target is None:
            raise RefusedError("not_found", f"no memory {memory_id[:12]} that you may read")
        losers = disputed_with(connection, target.memory)
        if not losers:
            raise RefusedError("invalid", f"nothing contradicts {memory_id[:12]}")
        verdicts = [
            VerdictBody("", target.id, "useful", "owner", None, None),
            *(VerdictBody("", loser, "wrong", "owner", None, None) for loser in losers),
        ]
        self._replica.append_in(txn, target.grp, [entry_draft(body) for body in verdicts])
        return Resolved(holds=target.id.hex(), refuted=[loser.hex() for loser in losers])


def read_conflicts(
    connection: apsw.Connection,
    who: Caller,
    scope: str | Sequence[str] | None,
    limit: int,
    now_ms: int,
) -> Conflicts:
    """Contradictions both sides of which the caller may read."""
    scopes = json.dumps([row.id for row in readable(connection, who.read, scope)])
    found = cast("list[_Row]", connection.execute(_LIST, (scopes, limit)).fetchall())
    memories = list(dict.fromkeys(side for row in found for side in row[:2]))
    rows = load_rows(connection, memories)
    texts = load_texts(connection, memories)
    conflicts = []
    for a, b, since_ms, subject, attribute, a_value, b_value in found:
        sides = sorted(((a, a_value), (b, b_value)), key=lambda side: -rows[side[0]].trust)
        conflicts.append(
            Conflict(
                since=iso(since_ms),
                subject=subject or "",
                attribute=attribute or "",
                sides=[
                    make_hit(rows[memory], now_ms=now_ms, text=texts.get(memory, ""))
                    for memory, _ in sides
                ],
                values=[value or "" for _, value in sides] if subject is not None else [],
            )
        )
    total = number(connection, "SELECT count(*)" + _READABLE, (scopes,))
    return Conflicts(conflicts=conflicts, total=total)
