"""Rows of `vec` and the chunks that lack one: the statements of the background work.

Each runs in a reader's or the writer's thread, in the caller's transaction.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from memory.storage.sql import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.seams import Cell

WINDOW_CHUNKS: Final = 2_000
"""Chunks one read transaction of the sweep looks at: an open reader holds back the checkpoint."""

SWEEP_CHUNKS: Final = 256
"""Chunks it takes from there; sorting them by length wastes little padding."""

LOAD_ROWS: Final = 2_000
"""Vectors read at a time at the start, 10 ms of the loop."""

_SELECT: Final = (
    "SELECT c.id, c.memory, c.title, c.text FROM chunk c JOIN memory m ON m.id = c.memory"
)
_WITHOUT: Final = (
    " AND m.tier < 2 AND NOT EXISTS (SELECT 1 FROM vec v WHERE v.chunk = c.id AND v.model = ?)"
)


class Todo(NamedTuple):
    """A chunk without a vector."""

    chunk: int
    memory: int
    title: str
    text: str

    @property
    def document(self) -> str:
        """What is embedded: the heading and the text, as the full-text index has them."""
        return f"{self.title}\n{self.text}" if self.title else self.text


class VectorRow(NamedTuple):
    """A chunk's vector as `vec` holds it, with where its memory is."""

    chunk: int
    memory: int
    scope: int
    tier: int
    scale: float
    code: bytes


def missing_of(connection: apsw.Connection, model: str, memories: Sequence[int]) -> list[Todo]:
    """Chunks of these memories that lack a vector."""
    rows = connection.execute(
        _SELECT + " WHERE c.memory IN (SELECT value FROM json_each(?))" + _WITHOUT,
        (json.dumps(list(memories)), model),
    )
    return [Todo(*cast("tuple[int, int, str, str]", row)) for row in rows]


def missing_below(connection: apsw.Connection, model: str, below: int) -> tuple[list[Todo], int]:
    """Chunks of the next window that lack a vector, and where the window after it begins."""
    low = number(
        connection,
        "SELECT min(id) FROM (SELECT id FROM chunk WHERE id < ? ORDER BY id DESC LIMIT ?)",
        (below, WINDOW_CHUNKS),
    )
    rows = connection.execute(
        _SELECT + " WHERE c.id >= ? AND c.id < ?" + _WITHOUT + " ORDER BY c.id DESC LIMIT ?",
        (low, below, model, SWEEP_CHUNKS),
    )
    todo = [Todo(*cast("tuple[int, int, str, str]", row)) for row in rows]
    return todo, todo[-1].chunk if len(todo) == SWEEP_CHUNKS else low


_VECTORS: Final = (
    "SELECT v.chunk, c.memory, m.scope, m.tier, v.scale, v.code FROM vec v"
    " JOIN chunk c ON c.id = v.chunk JOIN memory m ON m.id = c.memory WHERE v.model = ?"
)


def stored(connection: apsw.Connection, model: str, after: int) -> list[VectorRow]:
    """The next slice of a model's vectors."""
    rows = connection.execute(
        _VECTORS + " AND v.chunk > ? ORDER BY v.chunk LIMIT ?", (model, after, LOAD_ROWS)
    )
    return _vector_rows(rows)


def stored_of(connection: apsw.Connection, model: str, memories: Sequence[int]) -> list[VectorRow]:
    """A model's vectors of these memories."""
    rows = connection.execute(
        _VECTORS + " AND c.memory IN (SELECT value FROM json_each(?))",
        (model, json.dumps(list(memories))),
    )
    return _vector_rows(rows)


def _vector_rows(rows: apsw.Cursor) -> list[VectorRow]:
    return [VectorRow(*cast("tuple[int, int, int, int, float, bytes]", row)) for row in rows]


def release(connection: apsw.Connection) -> None:
    """Free the reader's page cache: it holds 16 MB of vectors that nobody reads there again."""
    connection.execute("PRAGMA shrink_memory").fetchall()


def put(
    connection: apsw.Connection, model: str, coded: Sequence[tuple[int, int, float, bytes]]
) -> list[VectorRow]:
    """Store vectors of chunks that are still there and indexed; what was stored.

    The memory is compared too: a chunk's number may be used again, a memory's never is.
    """
    kept = []
    for chunk, memory, scale, code in coded:
        row = connection.execute(
            "SELECT m.scope, m.tier FROM chunk c JOIN memory m ON m.id = c.memory"
            " WHERE c.id = ? AND c.memory = ? AND m.tier < 2",
            (chunk, memory),
        ).fetchone()
        if row is None:
            continue
        connection.execute(
            "INSERT OR REPLACE INTO vec(chunk, model, scale, code) VALUES (?, ?, ?, ?)",
            (chunk, model, scale, code),
        )
        kept.append(VectorRow(chunk, memory, int(row[0]), int(row[1]), scale, code))
    if kept:
        connection.execute("INSERT OR IGNORE INTO vec_model(model) VALUES (?)", (model,))
    return kept


def other_models(connection: apsw.Connection, model: str) -> bool:
    """Whether another model has left vectors here."""
    found = connection.execute("SELECT EXISTS (SELECT 1 FROM vec_model WHERE model <> ?)", (model,))
    return bool(found.get)


def totals(connection: apsw.Connection) -> list[tuple[int, int]]:
    """(scope, indexed chunks) of every scope."""
    rows = connection.execute("SELECT id, main_chunks + low_chunks FROM scope").fetchall()
    return cast("list[tuple[int, int]]", rows)


def execute(connection: apsw.Connection, sql: str, bound: Sequence[Cell]) -> None:
    """Run one statement whose rows nobody wants."""
    connection.execute(sql, bound).fetchall()


def forget_models(connection: apsw.Connection, model: str) -> None:
    """Note that no other model has vectors here."""
    connection.execute("DELETE FROM vec_model WHERE model <> ?", (model,))
