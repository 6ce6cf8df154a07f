"""What a caller may read, page by page in the order of arrival, for whoever writes it to a file.

A page is one short read; the next begins behind its last row, so a long export holds no snapshot
and notes that come meanwhile are in it. Nothing is written here: the file is the client's. Source:
docs/specs/memory.md, *Export*.
"""

# SQL is put together from this file's own constants; every value is bound.

# SQL is put together from our own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgspec

from memory.errors import RefusedError
from memory.model import Claim, Source
from memory.provenance import author_of, hlc_ms, peer_text
from memory.scopes import readable, unreadable_sql
from memory.storage.sql import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.model import Caller

PAGE_MAX: Final = 500
PAGE_BYTES_MAX: Final = 1 << 20
"""Text of a page; one note more may follow, of at most 64 KiB. Below the limit of a line."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC).replace(tzinfo=None)


class ExportedLink(msgspec.Struct, kw_only=True):
    """A signed statement of a memory's author or another about it and a second one.

    Attributes:
        type: supersedes, contradicts, confirms or same_as.
        dst: record id of the other memory, hex.
        note: why.
    """

    type: str
    dst: str
    note: str = ""


class Exported(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One memory, whole.

    Attributes:
        id: record id, hex.
        chunks: its text in pieces; joined they are the text.
        scope: as the caller writes it.
        at: ISO 8601 UTC with milliseconds, the date of what it tells.
        created: the date of the record, the same way.
        thread: name of its thread on this machine, hex.
        agent, device, device_name, relation: who wrote it.
        trust: how far it was trusted here when it was exported.
        links: what it says of other memories.
        derived_from: record ids of what it was concluded from.
    """

    id: str
    chunks: list[str]
    scope: str
    kind: str
    role: str
    status: str
    trust: float
    at: str
    created: str
    agent: str
    device: str
    device_name: str
    relation: str
    title: str = ""
    tags: list[str] = []
    speaker: str | None = None
    thread: str | None = None
    pos: int = 0
    valid_from: str | None = None
    valid_to: str | None = None
    expires: str | None = None
    claim: Claim | None = None
    source: Source | None = None
    links: list[ExportedLink] = []
    derived_from: list[str] = []


class ExportPage(msgspec.Struct, kw_only=True):
    """A page of an export.

    Attributes:
        memories: in the order in which their records came.
        cursor: hand it in for the next page; None when this is the last.
        total: how many there are in all, as of now.
    """

    memories: list[Exported]
    cursor: int | None
    total: int


class _Row(NamedTuple):
    memory: int
    id: bytes
    hlc: int
    scope: int
    kind: str
    role: str
    status: str
    trust: float
    at_ms: int
    title: str
    tags: str | None
    speaker: str | None
    thread: bytes | None
    pos: int
    valid_from: int | None
    valid_to: int | None
    expires_ms: int | None
    source: str | None
    subject: str | None
    attribute: str | None
    value: str | None
    agent: str
    device: bytes
    relation: str
    device_name: str | None


_Cells = tuple[
    int, bytes, int, int, str, str, str, float, int, str, str | None, str | None, bytes | None,
    int, int | None, int | None, int | None, str | None, str | None, str | None, str | None,
    str, bytes, str, str | None,
]  # fmt: skip
_FROM: Final = (
    " FROM memory m JOIN record r ON r.n = m.id AND r.state = 'live'"
    " JOIN author a ON a.id = m.author LEFT JOIN claim c ON c.id = m.claim"
    " LEFT JOIN device d ON d.key = a.device"
    " WHERE m.id > ?1 AND m.scope IN (SELECT value FROM json_each(?2))"
    " AND m.status IN ('active', 'superseded', 'refuted')"
    " AND (m.expires_ms IS NULL OR m.expires_ms > ?3)"
)
_PAGE: Final = (
    "SELECT m.id, r.id, m.hlc, m.scope, m.kind, m.role, m.status, m.eff_trust, m.at_ms, m.title,"
    " m.tags, m.speaker, m.thread, m.pos, m.valid_from, m.valid_to, m.expires_ms, m.source,"
    " c.subject, c.attribute, m.claim_value, a.agent, a.device, a.class, d.name"
    + _FROM
    + " ORDER BY m.id LIMIT ?4"
)
_COUNT: Final = "SELECT count(*)" + _FROM


def iso_ms(at_ms: int) -> str:
    """Unix milliseconds as ISO 8601 UTC, nothing lost."""
    return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat(timespec="milliseconds") + "Z"


def export_page(
    connection: apsw.Connection,
    who: Caller,
    scope: str | Sequence[str] | None,
    *,
    cursor: int,
    limit: int,
    now_ms: int,
) -> ExportPage:
    """The memories behind `cursor` that the caller may read and recall may show.

    Raises:
        RefusedError: `forbidden` or `invalid`.
    """
    if not 1 <= limit <= PAGE_MAX:
        raise RefusedError("invalid", f"limit: 1 to {PAGE_MAX} memories a page")
    if not 0 <= cursor < 2**63:
        raise RefusedError("invalid", "cursor: the one of the page before, or none")
    scopes = {row.id: row.written for row in readable(connection, who.read, scope)}
    every = json.dumps([row.id for row in readable(connection, who.read, None)])
    bound = (cursor, json.dumps(sorted(scopes)), now_ms)
    found = cast("list[_Cells]", connection.execute(_PAGE, (*bound, limit)).fetchall())
    rows = [_Row(*row) for row in found]
    memories: list[Exported] = []
    size = 0
    for row in rows:
        memories.append(_exported(connection, row, scopes[row.scope], every))
        size += sum(len(chunk.encode("utf-8", "replace")) for chunk in memories[-1].chunks)
        if size > PAGE_BYTES_MAX:
            break
    is_last = len(memories) == len(rows) < limit
    return ExportPage(
        memories=memories,
        cursor=None if is_last or not rows else rows[len(memories) - 1].memory,
        total=number(connection, _COUNT, (0, *bound[1:])),
    )


def _exported(connection: apsw.Connection, row: _Row, scope: str, every: str) -> Exported:
    """A memory in full; `every` are the scopes whose memories it may name."""
    author = author_of(row.device, row.agent, row.device_name, row.relation, row.role)
    claim = None
    if row.subject is not None and row.attribute is not None:
        claim = Claim(subject=row.subject, attribute=row.attribute, value=row.value or "")
    return Exported(
        id=row.id.hex(),
        chunks=_texts(connection, "SELECT text FROM chunk WHERE memory = ? ORDER BY i", row.memory),
        scope=scope,
        kind=row.kind,
        role=row.role,
        status=row.status,
        trust=round(row.trust, 3),
        at=iso_ms(row.at_ms),
        created=iso_ms(hlc_ms(row.hlc)),
        agent=author.agent,
        device=peer_text(row.device),
        device_name=author.device,
        relation=author.relation,
        title=row.title,
        tags=[] if row.tags is None else msgspec.json.decode(row.tags, type=list[str]),
        speaker=row.speaker,
        thread=None if row.thread is None else row.thread.hex(),
        pos=row.pos,
        valid_from=None if row.valid_from is None else iso_ms(row.valid_from),
        valid_to=None if row.valid_to is None else iso_ms(row.valid_to),
        expires=None if row.expires_ms is None else iso_ms(row.expires_ms),
        claim=claim,
        source=None if row.source is None else msgspec.json.decode(row.source, type=Source),
        links=_links(connection, row.id, every),
        derived_from=[
            cast("bytes", found[0]).hex()
            for found in connection.execute(
                "SELECT parent_id FROM parent WHERE memory = ? AND NOT "
                + unreadable_sql("parent_id", "?")
                + " ORDER BY parent_id",
                (row.memory, every),
            )
        ],
    )


def _texts(connection: apsw.Connection, sql: str, memory: int) -> list[str]:
    return [cast("str", row[0]) for row in connection.execute(sql, (memory,))]


def _links(connection: apsw.Connection, record_id: bytes, every: str) -> list[ExportedLink]:
    found = connection.execute(
        "SELECT l.type, l.dst, l.note FROM link l JOIN record r ON r.n = l.n AND r.state = 'live'"
        " WHERE l.src = ? AND NOT " + unreadable_sql("l.dst", "?") + " ORDER BY l.n",
        (record_id, every),
    )
    return [
        ExportedLink(type=cast("str", kind), dst=cast("bytes", dst).hex(), note=cast("str", note))
        for kind, dst, note in found
    ]
