"""Remembering and forgetting: from checked notes (`noting`) to drafts, and what becomes of them.

`remember_one` and `forget_one` run inside the writer's transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

import msgspec

from memory.bodies import (
    ENTRY_KIND,
    PARENTS_MAX,
    ForgetBody,
    LinkBody,
    NoteBody,
    encode_body,
)
from memory.errors import RefusedError
from memory.model import Forgotten, Remembered
from memory.provenance import thread_id
from memory.records.noting import SUPERSEDES_MAX, check_id
from memory.relations.claims import key_part, value_key
from memory.relations.conflicts import disputed_with, guessed_against
from memory.scopes import allows, check_write, find_group, write_scope
from memory.storage.sql import blobs, number
from memory.text.cleaning import clean_line
from memory.trust.status import hide

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.bodies import Body
    from memory.model import Caller
    from memory.records.noting import Prepared
    from memory.records.replica import Replica
    from memory.storage.txn import Txn

SAME_PREFIX_MAX: Final = 64
"""Ids of one prefix that are looked at: two are rare, unless somebody made them."""


_TargetRow = tuple[int, bytes, str, str, str, str, int, str, str, int, bytes]


class Draft(NamedTuple):
    """An entry record before it has a place in a chain."""

    kind: int
    body: bytes
    key_tag: bytes | None = None
    supersedes: Sequence[bytes] = ()


def entry_draft(body: Body) -> Draft:
    """The draft of an entry body."""
    return Draft(ENTRY_KIND, encode_body(body))


class Target(NamedTuple):
    """A memory that a caller names by id."""

    memory: int
    id: bytes
    status: str
    state: str
    agent: str
    relation: str
    scope_row: int
    scope: str
    grp: bytes


# ---- inside the transaction


def find_record(connection: apsw.Connection, written: str) -> bytes | None:
    """The record id that a hex id or unique prefix stands for; None if there is none.

    Looks at everything: for what only the person asks. Whoever may not read all asks `find_target`.

    Raises:
        RefusedError: `invalid`: not hex, or several ids begin so.
    """
    lowered = check_id(written)
    low, high = bytes.fromhex(lowered.ljust(64, "0")), bytes.fromhex(lowered.ljust(64, "f"))
    found = blobs(
        connection,
        "SELECT r.id FROM record r JOIN memory m ON m.id = r.n WHERE r.id BETWEEN ? AND ? LIMIT 2",
        (low, high),
    )
    if len(found) > 1:
        raise RefusedError("invalid", f"several ids begin with {lowered}: give more digits")
    return found[0] if found else None


def find_target(connection: apsw.Connection, who: Caller, written: str) -> Target | None:
    """The memory that a hex id or unique prefix stands for, among those the caller may read.

    What it may not read does not make a prefix ambiguous: it is told nothing of it.

    Raises:
        RefusedError: `invalid`: not hex, or several ids begin so.
    """
    lowered = check_id(written)
    low, high = bytes.fromhex(lowered.ljust(64, "0")), bytes.fromhex(lowered.ljust(64, "f"))
    rows = connection.execute(
        "SELECT m.id, r.id, m.status, r.state, a.agent, a.class, s.id, s.name, g.name, g.home, g.id"
        " FROM record r JOIN memory m ON m.id = r.n JOIN author a ON a.id = m.author"
        " JOIN scope s ON s.id = m.scope JOIN grp g ON g.n = s.grp"
        " WHERE r.id BETWEEN ? AND ? ORDER BY r.id LIMIT ?",
        (low, high, SAME_PREFIX_MAX),
    )
    found = []
    for memory, record_id, status, state, agent, relation, scope_id, name, group, home, grp in cast(
        "list[_TargetRow]", rows.fetchall()
    ):
        scope = write_scope(group, name, home=bool(home))
        if allows(who.read, scope):
            found.append(
                Target(memory, record_id, status, state, agent, relation, scope_id, scope, grp)
            )
    if len(found) > 1:
        raise RefusedError("invalid", f"several ids begin with {lowered}: give more digits")
    return found[0] if found else None


def remember_one(replica: Replica, txn: Txn, who: Caller, note: Prepared) -> Remembered:
    """Store one prepared note, or find that it is already here.

    Raises:
        RefusedError: `forbidden`, `unknown_scope`, `not_found` or `conflict`.
    """
    connection = txn.connection
    grp, group, group_name, home = txn.once(
        ("group", note.group_name), lambda: find_group(connection, note.group_name)
    )
    check_write(who.write, write_scope(group_name, note.body.scope, home=home))
    replaced = [_replaced(connection, who, written) for written in note.supersedes]
    author = txn.once(("own", grp, who.agent), lambda: _known_author(connection, grp, who))
    known = _known(connection, author, note)
    if known is not None:
        memory, record_id = known
        _remember_key(connection, author, note, memory)
        drafts = [] if not replaced else _links(who, record_id, replaced)
        replica.append_in(txn, group, drafts)
        return _remembered(connection, who, record_id, "duplicate", note, replaced)
    given = [_parent(connection, who, written) for written in note.derived_from]
    body = msgspec.structs.replace(
        note.body,
        pos=note.body.pos or _next_pos(connection, author, note.body.thread),
        # The closest of what was just read first: given parents cannot push them out.
        derived_from=list(dict.fromkeys([*note.recalled, *given]))[:PARENTS_MAX],
    )
    outdated = _same_claim(connection, grp, who, body)
    stored = replica.append_in(txn, group, [entry_draft(body)], grp=grp)[0]
    named = {target.id for target in replaced}
    outdated = [old for old in _now_superseded(connection, outdated) if old not in named]
    if replaced or outdated:
        links = [*_links(who, stored.id, replaced), *_claim_links(who, stored.id, outdated)]
        replica.append_in(txn, group, links)
    if stored.id not in txn.related and not replaced:
        return Remembered(id=stored.id.hex(), status="stored", redactions=list(note.redactions))
    return _remembered(connection, who, stored.id, "stored", note, replaced)


def _remembered(
    connection: apsw.Connection,
    who: Caller,
    record_id: bytes,
    status: Literal["stored", "duplicate"],
    note: Prepared,
    replaced: Sequence[Target],
) -> Remembered:
    """What the caller is told: what says the same, and what says otherwise and still stands."""
    row = connection.execute(
        "SELECT m.id, h.id, s.name, g.name, g.home, m.claim IS NOT NULL, m.status = 'active'"
        " FROM record r JOIN memory m ON m.id = r.n LEFT JOIN record h ON h.n = m.cluster"
        " JOIN scope s ON s.id = m.scope JOIN grp g ON g.n = s.grp WHERE r.id = ?",
        (record_id,),
    ).fetchone()
    assert row is not None, "it was stored in this transaction or before"
    memory, cluster, name, group_name, home, claims, active = row
    against = _unreplaced(connection, replaced)
    if not allows(who.read, write_scope(str(group_name), str(name), home=bool(home))):
        return Remembered(
            id=record_id.hex(),
            status=status,
            redactions=list(note.redactions),
            conflicts=against,
        )
    if active:
        against += [other.hex() for other in disputed_with(connection, int(memory))]
        if not claims:
            against += [other.hex() for other in guessed_against(connection, int(memory))]
    return Remembered(
        id=record_id.hex(),
        status=status,
        redactions=list(note.redactions),
        cluster=None if cluster is None else bytes(cluster).hex(),
        conflicts=list(dict.fromkeys(against)),
    )


def _same_claim(connection: apsw.Connection, grp: int, who: Caller, body: NoteBody) -> list[bytes]:
    """Record ids of the owner's memories that make this claim with another value and stand."""
    if body.claim is None:
        return []
    subject, attribute, value = body.claim
    return blobs(
        connection,
        "SELECT r.id FROM scope s JOIN claim c ON c.scope = s.id"
        " JOIN memory m ON m.claim = c.id JOIN author a ON a.id = m.author"
        " JOIN record r ON r.n = m.id WHERE s.grp = ? AND s.name = ? AND c.subject = ?"
        " AND c.attribute = ? AND m.value_key <> ? AND m.status = 'active' AND a.owner ="
        " (SELECT owner FROM author WHERE grp = s.grp AND device = ? LIMIT 1)"
        " ORDER BY m.hlc DESC LIMIT ?",
        (
            grp,
            body.scope,
            key_part(subject),
            key_part(attribute),
            value_key(value),
            who.device,
            SUPERSEDES_MAX,
        ),
    )


def _now_superseded(connection: apsw.Connection, ids: Sequence[bytes]) -> list[bytes]:
    return [
        record_id
        for record_id in ids
        if connection.execute(
            "SELECT m.status FROM record r JOIN memory m ON m.id = r.n WHERE r.id = ?", (record_id,)
        ).get
        == "superseded"
    ]


def _claim_links(who: Caller, src: bytes, outdated: Sequence[bytes]) -> list[Draft]:
    """The replacing that a claim implies, said and signed: for the history, and for exports."""
    agent = clean_line(who.agent)
    return [entry_draft(LinkBody(agent, src, old, "supersedes", None)) for old in outdated]


def _known_author(connection: apsw.Connection, grp: int, who: Caller) -> tuple[int, bytes] | None:
    """(row, owner) of the caller as an author; None before its first note."""
    row = connection.execute(
        "SELECT id, owner FROM author WHERE grp = ? AND device = ? AND agent = ?",
        (grp, who.device, clean_line(who.agent)),
    ).fetchone()
    return None if row is None else (int(row[0]), bytes(row[1]))


def _known(
    connection: apsw.Connection, author: tuple[int, bytes] | None, note: Prepared
) -> tuple[int, bytes] | None:
    """(memory, id) of the same note stored before, by its key or by its content."""
    if author is None:
        return None
    if note.body.idem is not None:
        row = connection.execute(
            "SELECT i.content_hash, i.memory, r.id FROM idem i JOIN record r ON r.n = i.memory"
            " JOIN scope s ON s.id = i.scope WHERE i.author = ? AND s.name = ? AND i.key = ?",
            (author[0], note.body.scope, note.body.idem),
        ).fetchone()
        if row is not None:
            if row[0] != note.content_hash:
                raise RefusedError(
                    "conflict",
                    "this idempotency_key was used for another note: use a new key for new text",
                )
            return int(row[1]), bytes(row[2])
    row = connection.execute(
        # The + keeps the planner off the author's index, which grows with each of its notes.
        "SELECT m.id, r.id FROM memory m JOIN record r ON r.n = m.id WHERE m.content_hash = ?"
        " AND +m.author = ? AND m.status = 'active' AND r.state = 'live'"
        " AND m.expires_ms IS NULL LIMIT 1",
        (note.content_hash, author[0]),
    ).fetchone()
    return None if row is None else (int(row[0]), bytes(row[1]))


def _remember_key(
    connection: apsw.Connection, author: tuple[int, bytes] | None, note: Prepared, memory: int
) -> None:
    """A duplicate by content answers to its new key too."""
    if author is not None and note.body.idem is not None:
        connection.execute(
            "INSERT OR IGNORE INTO idem SELECT ?, scope, ?, content_hash, id FROM memory"
            " WHERE id = ?",
            (author[0], note.body.idem, memory),
        )


def _next_pos(
    connection: apsw.Connection, author: tuple[int, bytes] | None, thread: str | None
) -> int:
    if thread is None or author is None:
        return 1
    key = thread_id(author[1], thread)
    last = "SELECT pos FROM memory WHERE thread = ? ORDER BY pos DESC LIMIT 1"
    return 1 + number(connection, last, (key,))


def _parent(connection: apsw.Connection, who: Caller, written: str) -> bytes:
    """Id of a parent; a full id may be unknown here, and then counts as a stranger's."""
    found = find_target(connection, who, written)
    if found is not None:
        return found.id
    lowered = check_id(written)
    if len(lowered) < 64:
        raise RefusedError("not_found", f"derived_from: no memory {lowered} that you may read")
    return bytes.fromhex(lowered)


def _replaced(connection: apsw.Connection, who: Caller, written: str) -> Target:
    target = find_target(connection, who, written)
    if target is None:
        raise RefusedError("not_found", f"supersedes: no memory {written[:12]} that you may read")
    check_write(who.write, target.scope)
    return target


def _links(who: Caller, src: bytes, replaced: Sequence[Target]) -> list[Draft]:
    agent = clean_line(who.agent)
    return [
        entry_draft(LinkBody(agent, src, target.id, "supersedes", None))
        for target in replaced
        if target.id != src
    ]


def _unreplaced(connection: apsw.Connection, replaced: Sequence[Target]) -> list[str]:
    """Those that stay as they are because somebody else's word is needed."""
    return [
        target.id.hex()
        for target in replaced
        if connection.execute("SELECT status FROM memory WHERE id = ?", (target.memory,)).get
        == "active"
    ]


def forget_one(
    replica: Replica, txn: Txn, who: Caller, written: str, reason: str | None
) -> Forgotten:
    """Forget one memory: by a signed record if it is ours, else hidden on this machine only."""
    target = find_target(txn.connection, who, written)
    if target is None:
        return Forgotten(id=check_id(written), status="not_found")
    ours = target.relation in ("own", "own_device")
    mine = ours and target.agent == clean_line(who.agent)
    if not (who.is_owner or mine) or not allows(who.write, target.scope):
        return Forgotten(id=target.id.hex(), status="not_yours")
    if ours and target.status not in ("forgotten", "hidden"):
        body = ForgetBody(clean_line(who.agent), [target.id], reason)
        replica.append_in(txn, target.grp, [entry_draft(body)])
    status = txn.connection.execute("SELECT status FROM memory WHERE id = ?", (target.memory,)).get
    if status not in ("forgotten", "hidden"):
        hide(txn, target.memory, target.id, target.scope_row)
    return Forgotten(id=target.id.hex(), status="forgotten")
