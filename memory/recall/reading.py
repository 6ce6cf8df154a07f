"""Reading without ranking: by id, by page, by history, by count."""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, cast

import msgspec

from memory.errors import RefusedError
from memory.flags import IMPERATIVE
from memory.model import History, Hit, Hits, Page, Stats, Version, Withheld
from memory.provenance import author_of, hlc_ms, iso
from memory.recall.filters import build_filters
from memory.recall.hits import (
    LOW_TRUST,
    Row,
    load_rows,
    load_texts,
    make_hit,
    successors,
)
from memory.records.noting import check_id
from memory.records.writing import Target
from memory.scopes import allows, readable, unreadable_sql, write_scope
from memory.storage.sql import blobs, integers, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import apsw

    from memory.model import Caller
    from memory.seams import Cell

GET_IDS_MAX: Final = 20
LIST_LIMIT_MAX: Final = 200
PREFIX_IDS_MAX: Final = 64
"""Records looked at for one prefix: two that share eight digits take billions of tries to make."""

VERSIONS_MAX: Final = 100
"""Memories of one history; a longer chain is cut at its oldest end."""

_Place = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_cursor: Final = msgspec.msgpack.Decoder(tuple[_Place, _Place])

_LIVE: Final = "r.state = 'live' AND (m.expires_ms IS NULL OR m.expires_ms > ?)"
_SHOWN: Final = " AND m.status NOT IN ('forgotten', 'hidden', 'quarantined')"
_VISIBLE: Final = _LIVE + _SHOWN
_LIST: Final = (
    "SELECT m.id, m.hlc FROM memory m JOIN record r ON r.n = m.id WHERE "
    + _LIVE
    + " AND m.scope IN (SELECT value FROM json_each(?)) AND (m.hlc, m.id) < (?, ?)"
)
_TRUSTED: Final = (
    f" AND m.eff_trust >= {LOW_TRUST} AND (m.backed = 1 OR (m.flags & {IMPERATIVE} = 0"
    " AND m.kind <> 'policy') OR EXISTS (SELECT 1 FROM author a WHERE a.id = m.author"
    " AND a.class IN ('own', 'own_device')))"
)
WITHDRAWN: Final = frozenset({"forgotten", "hidden", "quarantined"})
"""Statuses whose texts only the person may still list."""
_LIST_TAIL: Final = " ORDER BY m.hlc DESC, m.id DESC LIMIT ?"


class Filter(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What `list` shows; every field narrows it.

    Attributes:
        scope: one scope, several, or None for all the caller may read.
        tags: all of them.
        kinds: any of them.
        author: agent, `agent@device`, or a device's name, peer id or key.
        since: ISO 8601; dated at or after.
        until: ISO 8601; dated at or before.
        status: by default what recall may show: `active`, `superseded` or `refuted`. The person
            at the terminal may also list `forgotten`, `hidden` or `quarantined`.
        trusted: leave out what recall would withhold: low trust, and others' orders and policies
            that nobody backs.
    """

    scope: str | list[str] | None = None
    tags: list[str] = []
    kinds: list[str] = []
    author: str | None = None
    since: str | None = None
    until: str | None = None
    status: str | None = None
    trusted: bool = False


class _Signed(NamedTuple):
    """A link or forget record about a memory."""

    id: bytes
    hlc: int
    agent: str
    device: bytes
    relation: str
    device_name: str | None
    what: str
    note: str


def get(connection: apsw.Connection, who: Caller, ids: Sequence[str], now_ms: int) -> Hits:
    """Those that are here and that the caller may read, in the order asked, whole.

    Raises:
        RefusedError: `invalid` ids or too many.
    """
    if not 1 <= len(ids) <= GET_IDS_MAX:
        raise RefusedError("invalid", f"ids: 1 to {GET_IDS_MAX} at a time")
    memories = []
    for written in ids:
        target = find_target(connection, who, written)
        if (
            target is not None
            and target.state == "live"
            and _is_visible(connection, target.memory, now_ms)
        ):
            memories.append(target.memory)
    hits = _whole(connection, who, list(dict.fromkeys(memories)), now_ms)
    return Hits(hits=hits, withheld=Withheld(), searched=len(ids), ms=0.0)


def find_target(connection: apsw.Connection, who: Caller, written: str) -> Target | None:
    """The memory of an id or prefix, among those of scopes that the caller may read.

    What it may not read neither makes a prefix ambiguous nor answers to one: either would tell that
    it exists.

    Raises:
        RefusedError: `invalid`: not hex, or several ids begin so.
    """
    lowered = check_id(written)
    rows = connection.execute(
        "SELECT m.id, r.id, m.status, r.state, a.agent, a.class, s.id, s.name, g.name, g.home, g.id"
        " FROM record r JOIN memory m ON m.id = r.n JOIN author a ON a.id = m.author"
        " JOIN scope s ON s.id = m.scope JOIN grp g ON g.n = s.grp"
        " WHERE r.id BETWEEN ? AND ? ORDER BY r.id LIMIT ?",
        (
            bytes.fromhex(lowered.ljust(64, "0")),
            bytes.fromhex(lowered.ljust(64, "f")),
            PREFIX_IDS_MAX,
        ),
    )
    found = []
    for row in rows:
        scope = write_scope(row[8], row[7], home=bool(row[9]))
        if allows(who.read, scope):
            found.append(Target._make([*row[:7], scope, row[10]]))
    if len(found) > 1:
        raise RefusedError("invalid", f"several ids begin with {lowered}: give more digits")
    return found[0] if found else None


def _is_visible(connection: apsw.Connection, memory: int, now_ms: int) -> bool:
    sql = "SELECT 1 FROM memory m JOIN record r ON r.n = m.id WHERE " + _VISIBLE + " AND m.id = ?"
    return connection.execute(sql, (now_ms, memory)).fetchone() is not None


def _whole(
    connection: apsw.Connection, who: Caller, memories: Sequence[int], now_ms: int
) -> list[Hit]:
    rows = load_rows(connection, memories)
    texts = load_texts(connection, memories)
    return [
        make_hit(
            rows[memory],
            now_ms=now_ms,
            text=texts.get(memory, ""),
            superseded_by=_superseded_by(connection, who, rows[memory]),
        )
        for memory in memories
    ]


def _superseded_by(connection: apsw.Connection, who: Caller, row: Row) -> bytes | None:
    if row.status != "superseded":
        return None
    newer = successors(connection, [row.memory]).get(row.memory)
    if newer is None or find_target(connection, who, newer.id.hex()) is None:
        return None  # it may stand in a scope of which the caller must not know
    return newer.id


def list_page(
    connection: apsw.Connection,
    who: Caller,
    what: Filter,
    *,
    cursor: str | None,
    limit: int,
    now_ms: int,
) -> Page:
    """One page, newest first.

    Raises:
        RefusedError: `invalid` or `forbidden`.
    """
    if not 1 <= limit <= LIST_LIMIT_MAX:
        raise RefusedError("invalid", f"limit must be 1 to {LIST_LIMIT_MAX}")
    scopes = readable(connection, who.read, what.scope)
    filters = build_filters(
        connection,
        kinds=what.kinds,
        tags=what.tags,
        author=what.author,
        since=what.since,
        until=what.until,
    )
    sql, bound = filters.sql + _SHOWN, filters.bound
    if what.status is not None:
        if what.status in WITHDRAWN and not who.is_owner:
            raise RefusedError("forbidden", f"only the person may list {what.status} memories")
        sql, bound = filters.sql + " AND m.status = ?", (*bound, what.status)
    if what.trusted:
        sql += _TRUSTED
    start = (2**63 - 1, 2**63 - 1) if cursor is None else decode_cursor_untrusted(cursor)
    ids = json.dumps([scope.id for scope in scopes])
    values: tuple[Cell, ...] = (now_ms, ids, *start, *bound, limit + 1)
    found = cast(
        "list[tuple[int, int]]",
        connection.execute(_LIST + sql + _LIST_TAIL, values).fetchall(),
    )
    page = found[:limit]
    hits = _whole(connection, who, [memory for memory, _ in page], now_ms)
    more = encode_cursor(page[-1][1], page[-1][0]) if len(found) > limit else None
    return Page(hits=hits, cursor=more)


def encode_cursor(hlc: int, memory: int) -> str:
    """Where the next page begins, as opaque text."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((hlc, memory))).decode().rstrip("=")


def decode_cursor_untrusted(cursor: str) -> tuple[int, int]:
    """Read a cursor back.

    Raises:
        RefusedError: `invalid`.
    """
    try:
        raw = base64.urlsafe_b64decode(cursor[:64] + "=" * (-len(cursor) % 4))
        return _cursor.decode(raw)
    except (ValueError, msgspec.DecodeError, RecursionError) as exc:
        raise RefusedError("invalid", "cursor is not one that `memory.list` returned") from exc


# ---- history


def history(connection: apsw.Connection, who: Caller, written: str, now_ms: int) -> History:
    """Everything signed about one memory and its versions, oldest first.

    Raises:
        RefusedError: `not_found` or `invalid`.
    """
    target = find_target(connection, who, written)
    if target is None:
        raise RefusedError("not_found", f"no memory {written[:12]} that you may read")
    members = _versions(connection, target.id)
    rows = {
        memory: row
        for memory, row in load_rows(connection, members).items()
        if allows(who.read, row.scope)
    }
    texts = load_texts(connection, _with_text(connection, who, rows, now_ms))
    steps = [(row.hlc, _note_version(row, texts.get(memory))) for memory, row in rows.items()]
    scopes = json.dumps([scope.id for scope in readable(connection, who.read, None)])
    for row in rows.values():
        steps += [
            (signed.hlc, _signed_version(signed)) for signed in _signed(connection, row.id, scopes)
        ]
    unique = {version.id: (hlc, version) for hlc, version in steps}
    ordered = sorted(unique.values(), key=lambda step: (step[0], step[1].id))
    status = "void" if target.state == "void" else rows[target.memory].status
    expired = not _is_visible(connection, target.memory, now_ms) and status == "active"
    return History(
        id=target.id.hex(),
        status="expired" if expired else status,
        versions=[version for _, version in ordered],
    )


def _with_text(
    connection: apsw.Connection, who: Caller, rows: Mapping[int, Row], now_ms: int
) -> list[int]:
    """Those of a history whose text is shown: to agents only what recall may show, too."""
    kept = [memory for memory, row in rows.items() if row.status not in ("forgotten", "hidden")]
    if who.is_owner:
        return kept
    sql = "SELECT m.id FROM memory m JOIN record r ON r.n = m.id WHERE " + _VISIBLE
    return integers(
        connection,
        sql + " AND m.id IN (SELECT value FROM json_each(?))",
        (now_ms, json.dumps(kept)),
    )


def _versions(connection: apsw.Connection, record_id: bytes) -> list[int]:
    """Memories joined to this one by supersede links, either way."""
    seen = {record_id}
    pending = [record_id]
    while pending and len(seen) < VERSIONS_MAX:
        current = pending.pop()
        near = blobs(
            connection,
            "SELECT src FROM link WHERE dst = ?1 AND type = 'supersedes'"
            " UNION SELECT dst FROM link WHERE src = ?1 AND type = 'supersedes'",
            (current,),
        )
        pending += [other for other in near if other not in seen]
        seen.update(near)
    found = []
    for other in sorted(seen):
        row = connection.execute(
            "SELECT m.id FROM record r JOIN memory m ON m.id = r.n WHERE r.id = ?", (other,)
        ).fetchone()
        if row is not None:
            found.append(cast("int", row[0]))
    return found


def _signed(connection: apsw.Connection, record_id: bytes, scopes: str) -> list[_Signed]:
    """What is signed about a memory, but for links with what the caller must not know of."""
    rows = connection.execute(
        "SELECT r.id, l.hlc, a.agent, a.device, a.class, d.name, l.type, l.note FROM link l"
        " JOIN record r ON r.n = l.n JOIN author a ON a.id = l.author"
        " LEFT JOIN device d ON d.key = a.device WHERE (l.src = ?1 OR l.dst = ?1) AND NOT "
        + unreadable_sql("iif(l.src = ?1, l.dst, l.src)", "?2")
        + " UNION ALL SELECT r.id, f.hlc, a.agent, a.device, a.class, d.name, 'forget', f.reason"
        " FROM forgetting f JOIN record r ON r.n = f.n JOIN author a ON a.id = f.author"
        " LEFT JOIN device d ON d.key = a.device WHERE f.target = ?1",
        (record_id, scopes),
    )
    return [_Signed(*row) for row in rows]


def _note_version(row: Row, text: str | None) -> Version:
    return Version(
        id=row.id.hex(),
        what="note",
        author=author_of(row.device, row.agent, row.device_name, row.relation, row.role),
        created=iso(hlc_ms(row.hlc)),
        text=text,
        note=row.status,
    )


def _signed_version(signed: _Signed) -> Version:
    return Version(
        id=signed.id.hex(),
        what=signed.what,
        author=author_of(signed.device, signed.agent, signed.device_name, signed.relation, "agent"),
        created=iso(hlc_ms(signed.hlc)),
        note=signed.note or None,
    )


# ---- counts


def stats(connection: apsw.Connection, who: Caller, sizes: tuple[int, int]) -> Stats:
    """Counts over what the caller may read; sizes of the files."""
    scopes = {scope.id: scope.written for scope in readable(connection, who.read, None)}
    by_status: dict[str, int] = {}
    by_scope: dict[str, int] = {}
    by_origin: dict[str, int] = {}
    rows = connection.execute(
        "SELECT m.scope, CASE WHEN r.state = 'void' THEN 'void' ELSE m.status END, a.class,"
        " a.agent, a.device, d.name, m.role, count(*) FROM memory m JOIN record r ON r.n = m.id"
        " JOIN author a ON a.id = m.author LEFT JOIN device d ON d.key = a.device"
        " WHERE m.scope IN (SELECT value FROM json_each(?)) GROUP BY 1, 2, 3, 4, 5, 6, 7",
        (json.dumps(list(scopes)),),
    )
    for scope, status, cls, agent, device, name, role, count in cast(
        "list[tuple[int, str, str, str, bytes, str | None, str, int]]", rows.fetchall()
    ):
        author = author_of(device, agent, name, cls, role)
        for counts, key in (
            (by_status, status),
            (by_scope, scopes[scope]),
            (by_origin, f"{author.agent}@{author.device}"),
        ):
            counts[key] = counts.get(key, 0) + count
    ids = (json.dumps(list(scopes)),)
    chunks = "SELECT count(*) FROM chunk c JOIN memory m ON m.id = c.memory WHERE m.scope IN"
    return Stats(
        memories=sum(by_status.values()),
        by_status=by_status,
        by_scope=by_scope,
        by_origin=by_origin,
        records=_records(connection, who, ids),
        chunks=number(connection, chunks + " (SELECT value FROM json_each(?))", ids),
        db_bytes=sizes[0],
        wal_bytes=sizes[1],
        imperative=number(
            connection,
            f"SELECT count(*) FROM memory m WHERE m.flags & {IMPERATIVE} <> 0"
            " AND m.scope IN (SELECT value FROM json_each(?))",
            ids,
        ),
    )


def _records(connection: apsw.Connection, who: Caller, scopes: tuple[Cell, ...]) -> int:
    """Signed records of what the caller may read; all of them for who may read all."""
    if who.read.everything:
        return number(connection, "SELECT count(*) FROM record")
    return number(
        connection,
        "SELECT count(*) FROM memory m WHERE m.scope IN (SELECT value FROM json_each(?))",
        scopes,
    )
