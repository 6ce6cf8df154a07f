"""Rows of memories as the `Hit`s that callers see."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgspec

from memory.flags import IMPERATIVE, PARENT_ERASED
from memory.model import Hit, Kind, Source
from memory.provenance import MS_PER_DAY, author_of, iso, peer_text
from memory.recall.filters import HLC_MAX
from memory.scopes import write_scope
from memory.trust.rules import CEILING, effective
from memory.trust.status import parents_trust

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import apsw

LOW_TRUST: Final = 0.5
"""Below this a hit carries the flag `low_trust`."""

PREVIEW_CHARS: Final = 80
"""Title of a hit without text and without title: the beginning of its text."""

_ROWS: Final = """
SELECT m.id, r.id, m.kind, m.role, m.title, m.thread, m.hlc, m.at_ms, m.valid_to, m.tags, m.source,
  m.status, m.flags, m.eff_trust, m.tokens, m.chunks, a.agent, a.device, a.class, a.trust, d.name,
  s.name, g.name, g.home, m.confirmations, m.vouched
FROM json_each(?) j JOIN memory m ON m.id = j.value JOIN record r ON r.n = m.id
JOIN author a ON a.id = m.author JOIN scope s ON s.id = m.scope JOIN grp g ON g.n = s.grp
LEFT JOIN device d ON d.key = a.device
"""

# The newest memory that validly replaces this one. One of them at a time: a join would have SQLite
# write the whole view down first.
_SUCCESSOR: Final = """
SELECT sm.id, r.id, sm.status, sm.scope FROM replacement p JOIN memory sm ON sm.id = p.src
JOIN record r ON r.n = sm.id WHERE p.dst = ? AND p.since_hlc <= ?
ORDER BY p.hlc DESC, sm.id DESC LIMIT 1
"""


class Row(NamedTuple):
    """Everything about a memory but its text."""

    memory: int
    id: bytes
    kind: str
    role: str
    title: str
    thread: bytes | None
    hlc: int
    at_ms: int
    valid_to: int | None
    tags: str | None
    source: str | None
    status: str
    flags: int
    trust: float
    tokens: int
    chunks: int
    agent: str
    device: bytes
    relation: str
    author_trust: float
    device_name: str | None
    scope_name: str
    group_name: str
    home: int
    confirmations: int
    vouched: float

    @property
    def scope(self) -> str:
        """As a caller would write it."""
        return write_scope(self.group_name, self.scope_name, home=bool(self.home))


class Successor(NamedTuple):
    """What replaces a memory."""

    memory: int
    id: bytes
    status: str
    scope: int


def load_rows(connection: apsw.Connection, memories: Sequence[int]) -> dict[int, Row]:
    """Rows by memory."""
    found = connection.execute(_ROWS, (json.dumps(memories),))
    return {cast("int", row[0]): Row(*row) for row in found}


def load_texts(
    connection: apsw.Connection, memories: Iterable[int], *, titled: bool = False
) -> dict[int, str]:
    """Texts by memory: their chunks, joined.

    Args:
        connection: a reader.
        memories: rows.
        titled: put what was indexed as title in front.
    """
    parts: dict[int, list[str]] = {}
    found = connection.execute(
        "SELECT c.memory, CASE WHEN ?1 AND c.i = 0 THEN c.title || char(10) || c.text ELSE c.text"
        " END FROM json_each(?2) j JOIN chunk c ON c.memory = j.value ORDER BY c.memory, c.i",
        (int(titled), json.dumps(list(memories))),
    )
    for memory, text in found:
        parts.setdefault(cast("int", memory), []).append(cast("str", text))
    return {memory: "".join(texts) for memory, texts in parts.items()}


def load_previews(connection: apsw.Connection, memories: Iterable[int]) -> dict[int, str]:
    """The first characters of each text, on one line."""
    found = connection.execute(
        "SELECT c.memory, substr(c.text, 1, ?) FROM json_each(?) j"
        " JOIN chunk c ON c.memory = j.value AND c.i = 0",
        (PREVIEW_CHARS, json.dumps(list(memories))),
    )
    return {cast("int", m): " ".join(cast("str", text).split()) for m, text in found}


def successors(
    connection: apsw.Connection, memories: Iterable[int], until_hlc: int = HLC_MAX
) -> dict[int, Successor]:
    """The newest memory that validly replaces each of these, said by `until_hlc`."""
    found = {}
    for memory in memories:
        row = connection.execute(_SUCCESSOR, (memory, until_hlc)).fetchone()
        if row is not None:
            found[memory] = Successor(*row)
    return found


def limited_by(connection: apsw.Connection, row: Row) -> str:
    """What holds a memory's trust down (author, role, parent), or who vouched for it."""
    parents = [
        cast("bytes", found[0])
        for found in connection.execute(
            "SELECT parent_id FROM parent WHERE memory = ?", (row.memory,)
        )
    ]
    return effective(row.author_trust, row.role, parents_trust(connection, parents), row.vouched)[1]


def ceiling(row: Row) -> float:
    """The role's ceiling."""
    return CEILING[row.role]


def make_hit(
    row: Row,
    *,
    now_ms: int,
    text: str | None,
    preview: str = "",
    score: float = 0.0,
    superseded_by: bytes | None = None,
    disputed: Sequence[bytes] = (),
) -> Hit:
    """A hit as the caller sees it."""
    return Hit(
        id=row.id.hex(),
        text=text,
        title=row.title or preview,
        trust=round(row.trust, 3),
        author=author_of(row.device, row.agent, row.device_name, row.relation, row.role),
        origin=peer_text(row.device),
        verified=True,
        created=iso(row.at_ms),
        age_days=round(max(0, now_ms - row.at_ms) / MS_PER_DAY, 2),
        score=round(score, 4),
        scope=row.scope,
        kind=cast("Kind", row.kind),
        tags=[] if row.tags is None else msgspec.json.decode(row.tags, type=list[str]),
        flags=_flags(row, now_ms, disputed=bool(disputed)),
        source=None if row.source is None else msgspec.json.decode(row.source, type=Source),
        thread=None if row.thread is None else row.thread.hex(),
        superseded_by=None if superseded_by is None else superseded_by.hex(),
        disputed=[other.hex() for other in disputed],
        confirmations=row.confirmations,
    )


def _flags(row: Row, now_ms: int, *, disputed: bool) -> list[str]:
    conditions: Mapping[str, bool] = {
        "disputed": disputed,
        "superseded": row.status == "superseded",
        "refuted": row.status == "refuted",
        "stale": row.valid_to is not None and row.valid_to < now_ms,
        "low_trust": row.trust < LOW_TRUST,
        "imperative": bool(row.flags & IMPERATIVE),
        "parent_erased": bool(row.flags & PARENT_ERASED),
    }
    return [name for name, holds in conditions.items() if holds]
