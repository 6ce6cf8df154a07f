"""From a signed record to rows that recall can find: the projection of entry bodies.

Runs inside the writer's transaction, for own records and for peers' alike, so that a record and its
full text appear together or not at all. A body that this version cannot read is kept, marked
`unprojected`, and never blocks replication. Source: docs/specs/memory.md, *Projection*.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final, cast

import msgspec

from memory.bodies import (
    EndorseBody,
    ForgetBody,
    LinkBody,
    NoteBody,
    ProfileBody,
    VerdictBody,
    decode_body_untrusted,
    peek_tag,
)
from memory.errors import DecodeError
from memory.flags import IMPERATIVE
from memory.provenance import thread_id
from memory.records.scanning import Found, flags_of, scan_foreign
from memory.relations.claims import guess, key_part, value_key
from memory.relations.conflicts import recluster, replaced_by_claim, settle_relations
from memory.relations.dedupe import essence
from memory.scopes import token
from memory.storage.sql import integers, number
from memory.text.cleaning import clean, clean_line, split, tokens
from memory.text.fts import add_to_index
from memory.tiers import NONE
from memory.trust.evidence import (
    first_standing,
    keep_confirmation,
    keep_endorsement,
    keep_verdict,
    observe,
    target_here,
)
from memory.trust.muting import mute_late
from memory.trust.rules import author_trust, effective, start_s
from memory.trust.status import (
    derived_from,
    is_forgotten,
    parents_trust,
    refold_trust,
    replaced_by,
    restatus,
    wanted_tier,
)

if TYPE_CHECKING:
    import apsw

    from memory.seams import Verified
    from memory.storage.txn import Txn
    from memory.trust.rules import EvidenceKind

_hashed: Final = msgspec.msgpack.Encoder()


class Entry(msgspec.Struct, frozen=True):
    """A stored entry record on its way to its rows.

    Attributes:
        n: its row; also the memory's id.
        id: record id.
        grp: row of its group.
        device: author's device key.
        owner: author's owner key.
        relation: own, own_device, invited or other.
        hlc: its time.
        state: state of the record.
        fresh: sealed here just now, so that nothing can refer to it yet.
    """

    n: int
    id: bytes
    grp: int
    device: bytes
    owner: bytes
    relation: str
    hlc: int
    state: str
    fresh: bool


def entry_of(record: Verified, n: int, grp: int, *, fresh: bool) -> Entry:
    """The entry of a record just stored."""
    return Entry(
        n,
        record.id,
        grp,
        record.author,
        record.owner,
        record.relation,
        record.hlc,
        record.state,
        fresh,
    )


def content_hash(scope: str, kind: str, claim: tuple[str, str, str] | None, text: str) -> bytes:
    """BLAKE2b-256 by which an author's own duplicates are known."""
    data = _hashed.encode((scope, kind, claim, text))
    return hashlib.blake2b(data, digest_size=32).digest()


def project(txn: Txn, entry: Entry, plain: bytes) -> None:
    """Write the rows of one entry body. Never raises for what the body says."""
    try:
        body = decode_body_untrusted(plain)
    except DecodeError:
        _keep(txn.connection, entry, plain, "unprojected")
        return
    if not entry.fresh:  # what is written here now comes after every rollback
        mute_late(
            txn,
            entry.n,
            device=entry.device,
            agent=clean_line(body.agent),
            grp=entry.grp,
            hlc=entry.hlc,
        )
    if entry.relation == "own":  # scanned before it was signed
        found = Found(flags=flags_of(txn.scanner, body))
    else:
        body, found = scan_foreign(txn.scanner, body)
    match body:
        case NoteBody():
            _project_note(txn, entry, body)
            note_found(txn, entry, found)
        case LinkBody():
            _project_link(txn, entry, body)
        case ForgetBody():
            _project_forget(txn, entry, body)
        case ProfileBody():
            _project_profile(txn.connection, entry, body)
        case VerdictBody():
            keep_verdict(txn, entry.n, entry.hlc, _voter(txn, entry, body.agent), body)
            _settle_verdict(txn, entry, body.target)
        case EndorseBody():
            keep_endorsement(txn, entry.n, entry.hlc, _voter(txn, entry, body.agent), body)


def note_found(txn: Txn, entry: Entry, found: Found) -> None:
    """Mark a note that speaks to models; what others let slip in counts against them."""
    if found.flags:
        txn.connection.execute(
            "UPDATE memory SET flags = flags | ? WHERE id = ?", (found.flags, entry.n)
        )
    if entry.relation in ("own", "own_device") or entry.state != "live":
        return
    seen: list[EvidenceKind] = []
    if found.flags & IMPERATIVE:
        seen.append("injection")
    if found.redactions:
        seen.append("secret")
    for kind in seen:
        author = number(txn.connection, "SELECT author FROM memory WHERE id = ?", (entry.n,))
        observe(txn, author=author, kind=kind, memory=entry.n, at_ms=txn.now_ms)


def _keep(connection: apsw.Connection, entry: Entry, plain: bytes, why: str) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO kept(n, tag, why, plain) VALUES (?, ?, ?, ?)",
        (entry.n, peek_tag(plain), why, plain),
    )


def _voter(txn: Txn, entry: Entry, agent: str) -> int:
    """Row of the author of a statement."""
    name = clean_line(agent)
    return author_row(txn.connection, entry.grp, entry.device, name, entry.owner, entry.relation)[0]


def author_row(
    connection: apsw.Connection, grp: int, device: bytes, agent: str, owner: bytes, relation: str
) -> tuple[int, float, str]:
    """(row, T, state) of an author, made on first sight with its start value."""
    found = connection.execute(
        "SELECT id, trust, state FROM author WHERE grp = ? AND device = ? AND agent = ?",
        (grp, device, agent),
    ).fetchone()
    if found is not None:
        return int(found[0]), float(found[1]), str(found[2])
    s = start_s(relation)
    trust = author_trust(relation, agent, s, 0.0)
    connection.execute(
        "INSERT INTO author(grp, device, agent, owner, class, s, f, trust)"
        " VALUES (?, ?, ?, ?, ?, ?, 0, ?)",
        (grp, device, agent, owner, relation, s, trust),
    )
    row = connection.last_insert_rowid()
    known = first_standing(connection, row)
    return (row, trust, "") if known is None else (row, *known)


def scope_row(connection: apsw.Connection, grp: int, name: str) -> int:
    """Row of a scope, made on first use."""
    row = connection.execute(
        "SELECT id FROM scope WHERE grp = ? AND name = ?", (grp, name)
    ).fetchone()
    if row is not None:
        return int(row[0])
    connection.execute("INSERT INTO scope(grp, name) VALUES (?, ?)", (grp, name))
    return connection.last_insert_rowid()


# ---- notes


def _project_note(txn: Txn, entry: Entry, body: NoteBody) -> None:
    connection = txn.connection
    agent = clean_line(body.agent)
    author, trust, author_state = txn.once(
        ("author", entry.grp, entry.device, agent, entry.owner, entry.relation),
        lambda: author_row(connection, entry.grp, entry.device, agent, entry.owner, entry.relation),
    )
    scope = txn.once(
        ("scope", entry.grp, body.scope), lambda: scope_row(connection, entry.grp, body.scope)
    )
    parents = list(dict.fromkeys(body.derived_from))
    believed, _ = effective(trust, body.role, parents_trust(connection, parents))
    status = "active"
    awaited = not entry.fresh and is_awaited(connection, entry)
    if awaited:
        if is_forgotten(connection, entry.id, entry.owner):
            status = "forgotten"
        if connection.execute("SELECT 1 FROM muted WHERE n = ?", (entry.n,)).fetchone():
            status = "hidden"
    tier = wanted_tier(believed, NONE, status, entry.state, author_state)
    text = clean(body.text)
    chunks = split(text)
    digest = content_hash(body.scope, body.kind, body.claim, text)
    said = said_by(body, text)
    _insert_memory(
        txn,
        entry,
        body,
        author=author,
        scope=scope,
        status=status,
        tier=tier,
        trust=(trust, believed),
        digest=digest,
        said=said,
        size=(tokens(text), len(chunks), len(text), int(text.rstrip().endswith("?"))),
    )
    _insert_chunks(txn, entry.n, scope, tier, clean_line(_heading(body)), chunks)
    txn.touched.add(entry.n)
    for parent in parents:
        connection.execute("INSERT INTO parent VALUES (?, ?)", (entry.n, parent))
    if body.idem is not None and entry.relation == "own":
        # The oldest wins: a record of ours that comes back from a peer is no second answer. But one
        # that counts nowhere is none: what it says was signed anew.
        connection.execute(
            "INSERT INTO idem VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET content_hash = excluded.content_hash, memory = excluded.memory"
            " WHERE (SELECT state FROM record WHERE n = idem.memory) = 'void'",
            (author, scope, body.idem, digest, entry.n),
        )
    txn.events.append(("stored", entry.id, scope))
    relate(txn, entry, body, said[0], text, awaited=awaited)
    if awaited or (body.claim is not None and not entry.fresh):
        _settle_neighbours(txn, entry)
        target_here(txn, entry.id, entry.n, author)


def said_by(body: NoteBody, text: str) -> tuple[int | None, int | None]:
    """(essence, key of the claim's value) of a note."""
    value = body.claim[2] if body.claim is not None else None
    if body.kind == "event":  # what happened twice is two events, however equal the words
        return None, None if value is None else value_key(value)
    if value is None:
        return essence(text, _heading(body)), None
    return essence(text, _heading(body), value), value_key(value)


def relate(
    txn: Txn, entry: Entry, body: NoteBody, said: int | None, text: str, *, awaited: bool
) -> None:
    """What others the memory is related to: its cluster, its statements, what they replace.

    Args:
        txn: the unit.
        entry: the memory.
        body: what it says.
        said: its essence.
        text: its text, cleaned.
        awaited: whether anything about it was here before it.
    """
    connection = txn.connection
    if said is not None:
        same = "SELECT scope FROM memory WHERE essence = ? AND id <> ? LIMIT 1"
        if connection.execute(same, (said, entry.n)).fetchone() is not None:
            scope = number(connection, "SELECT scope FROM memory WHERE id = ?", (entry.n,))
            recluster(connection, scope, said)
            txn.related.add(entry.id)
    if body.claim is None:
        for statement in guess(text):
            connection.execute(
                "INSERT OR IGNORE INTO guess VALUES (?, ?, ?)", (entry.n, *statement)
            )
            txn.related.add(entry.id)
    if body.claim is not None or awaited:
        restatus(txn, entry.id)
        settle_relations(txn, entry.n)
    if entry.fresh and body.claim is not None:
        txn.related.add(entry.id)
        for older in replaced_by_claim(connection, entry.n):
            restatus(txn, older)


_AWAITED: Final = """
SELECT EXISTS (SELECT 1 FROM link WHERE dst = ?1) OR EXISTS (SELECT 1 FROM link WHERE src = ?1)
  OR EXISTS (SELECT 1 FROM evidence WHERE target = ?1)
  OR EXISTS (SELECT 1 FROM forgetting WHERE target = ?1)
  OR EXISTS (SELECT 1 FROM parent WHERE parent_id = ?1) OR EXISTS (SELECT 1 FROM muted WHERE n = ?2)
"""


def is_awaited(connection: apsw.Connection, entry: Entry) -> bool:
    """Whether anything about a memory was here before it; asked once for all that would follow."""
    return bool(connection.execute(_AWAITED, (entry.id, entry.n)).get)


def _heading(body: NoteBody) -> str:
    return body.title or body.speaker or ""


def _insert_memory(
    txn: Txn,
    entry: Entry,
    body: NoteBody,
    *,
    author: int,
    scope: int,
    status: str,
    tier: int,
    trust: tuple[float, float],
    digest: bytes,
    said: tuple[int | None, int | None],
    size: tuple[int, int, int, int],
) -> None:
    claim = None if body.claim is None else claim_row(txn.connection, scope, body.claim)
    speaker = clean_line(body.speaker) if body.speaker else None
    expires_ms = None if body.ttl_s is None else (entry.hlc >> 16) + body.ttl_s * 1000
    txn.connection.execute(
        "INSERT INTO memory(id, author, scope, kind, role, speaker, title, thread, pos, hlc, at_ms,"
        " valid_from, valid_to, claim, claim_value, tags, source, status, tier, origin_trust,"
        " eff_trust, content_hash, essence, value_key, expires_ms, tokens, chunks, chars, asks)"
        " VALUES"
        " (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.n,
            author,
            scope,
            body.kind,
            body.role,
            speaker,
            clean_line(body.title) if body.title else "",
            thread_id(entry.owner, body.thread) if body.thread else None,
            body.pos,
            entry.hlc,
            body.at_ms,
            body.valid_from,
            body.valid_to,
            claim,
            None if body.claim is None else clean(body.claim[2]),
            json.dumps([clean_line(tag) for tag in body.tags]) if body.tags else None,
            _source_json(body),
            status,
            tier,
            trust[0],
            trust[1],
            digest,
            *said,
            expires_ms,
            *size,
        ),
    )


def _source_json(body: NoteBody) -> str | None:
    if body.source is None:
        return None
    uri, tool, sha256 = body.source
    return json.dumps(
        {
            "uri": clean_line(uri or ""),
            "tool": clean_line(tool or ""),
            "sha256": sha256.hex() if sha256 else "",
        }
    )


def claim_row(connection: apsw.Connection, scope: int, claim: tuple[str, str, str]) -> int:
    """Row of a claim's key, made on first use."""
    key = (scope, key_part(clean_line(claim[0])), key_part(clean_line(claim[1])))
    connection.execute(
        "INSERT OR IGNORE INTO claim(scope, subject, attribute) VALUES (?, ?, ?)", key
    )
    return number(
        connection, "SELECT id FROM claim WHERE scope = ? AND subject = ? AND attribute = ?", key
    )


def _insert_chunks(
    txn: Txn, memory: int, scope: int, tier: int, title: str, chunks: list[str]
) -> None:
    connection = txn.connection
    scope_token = token(scope)
    rows = []
    for i, text in enumerate(chunks):
        connection.execute(
            "INSERT INTO chunk(memory, i, scope_tok, title, text) VALUES (?, ?, ?, ?, ?)",
            (memory, i, scope_token, title, text),
        )
        rows.append((connection.last_insert_rowid(), scope_token, title, text))
    add_to_index(connection, tier, rows)
    txn.indexed[scope, tier] = txn.indexed.get((scope, tier), 0) + len(rows)


def _settle_neighbours(txn: Txn, entry: Entry) -> None:
    """Those that were waiting for this memory: what it replaces, what was derived from it."""
    for dst in replaced_by(txn.connection, entry.id):
        restatus(txn, dst)
    refold_trust(txn, derived_from(txn.connection, entry.n))


# ---- the other bodies


def _project_link(txn: Txn, entry: Entry, body: LinkBody) -> None:
    author, _, _ = author_row(
        txn.connection, entry.grp, entry.device, clean_line(body.agent), entry.owner, entry.relation
    )
    txn.connection.execute(
        "INSERT OR REPLACE INTO link(n, src, dst, type, author, hlc, note)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            entry.n,
            body.src,
            body.dst,
            body.type,
            author,
            entry.hlc,
            clean_line(body.note or ""),
        ),
    )
    if body.type == "supersedes":
        restatus(txn, body.dst)
    if body.type in ("supersedes", "contradicts"):
        settle_link(txn, body.dst)
    elif body.type == "confirms":
        keep_confirmation(txn, entry.n, entry.hlc, author, body)


def _settle_verdict(txn: Txn, entry: Entry, target: bytes) -> None:
    """A verdict of the person may decide a dispute: evidence for one side, against the other."""
    connection = txn.connection
    sides = (
        "SELECT m.id, m.author, o.id, o.author FROM record r JOIN memory m ON m.id = r.n"
        " JOIN dispute d ON m.id IN (d.a, d.b) JOIN memory o ON o.id IN (d.a, d.b) AND o.id <> m.id"
        " WHERE r.id = ?"
    )
    disputed = cast(
        "list[tuple[int, int, int, int]]", connection.execute(sides, (target,)).fetchall()
    )
    restatus(txn, target)
    if not disputed:
        return
    loser, author, _, _ = disputed[0]
    if connection.execute("SELECT status FROM memory WHERE id = ?", (loser,)).get != "refuted":
        return
    at_ms = entry.hlc >> 16
    observe(txn, author=author, kind="conflict_lost", memory=loser, at_ms=at_ms)
    for _, _, winner, winners_author in disputed:
        if winners_author != author:
            observe(txn, author=winners_author, kind="conflict_won", memory=winner, at_ms=at_ms)


def settle_link(txn: Txn, dst: bytes) -> None:
    """Fold what a signed link about a memory may have changed beside its status."""
    for memory in integers(
        txn.connection,
        "SELECT m.id FROM record r JOIN memory m ON m.id = r.n WHERE r.id = ?",
        (dst,),
    ):
        settle_relations(txn, memory)


def _project_forget(txn: Txn, entry: Entry, body: ForgetBody) -> None:
    author, _, _ = author_row(
        txn.connection, entry.grp, entry.device, clean_line(body.agent), entry.owner, entry.relation
    )
    reason = clean_line(body.reason or "")
    for target in dict.fromkeys(body.targets):
        txn.connection.execute(
            "INSERT OR REPLACE INTO forgetting VALUES (?, ?, ?, ?, ?)",
            (target, entry.n, author, entry.hlc, reason),
        )
        restatus(txn, target)


def _project_profile(connection: apsw.Connection, entry: Entry, body: ProfileBody) -> None:
    """A device's own name: shown until the person here gives it another."""
    name = clean_line(body.name)
    if not name or entry.state != "live":
        return
    connection.execute(
        "INSERT INTO device(key, name, published, verified_ms, hlc) VALUES (?, ?, 1, NULL, ?)"
        " ON CONFLICT (key) DO UPDATE SET name = excluded.name, hlc = excluded.hlc, published = 1"
        " WHERE (device.published = 1 AND device.hlc < excluded.hlc) OR device.name = ''",
        (entry.device, name, entry.hlc),
    )


def project_kept(txn: Txn) -> int:
    """Project bodies that an older version kept for later; how many."""
    rows = cast(
        "list[tuple[int, bytes, int, bytes, bytes, str, int, str, bytes]]",
        txn.connection.execute(
            "SELECT k.n, r.id, r.grp, l.author, a.owner, a.class, r.hlc, r.state, k.plain"
            " FROM kept k JOIN record r ON r.n = k.n JOIN log l ON l.n = r.log"
            " JOIN author a ON a.grp = r.grp AND a.device = l.author WHERE k.why = 'later'"
            " GROUP BY k.n LIMIT ?",
            (KEPT_MAX,),
        ).fetchall(),
    )
    for n, record_id, grp, device, owner, relation, hlc, state, plain in rows:
        txn.connection.execute("DELETE FROM kept WHERE n = ?", (n,))
        project(
            txn,
            Entry(n, record_id, grp, device, owner, relation, hlc, state, fresh=False),
            plain,
        )
    return len(rows)


KEPT_MAX: Final = 5_000
"""Kept bodies projected at one start. Guess: none was ever written by a release."""
