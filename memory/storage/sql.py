"""Typed answers of small queries. APSW types a cell as any SQLite value; a caller knows which."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.seams import Cell


def blobs(connection: apsw.Connection, sql: str, bound: Sequence[Cell] = ()) -> list[bytes]:
    """The first column of every row, of a blob column."""
    return [cast("bytes", row[0]) for row in connection.execute(sql, bound)]


def integers(connection: apsw.Connection, sql: str, bound: Sequence[Cell] = ()) -> list[int]:
    """The first column of every row, of an integer column."""
    return [cast("int", row[0]) for row in connection.execute(sql, bound)]


def number(connection: apsw.Connection, sql: str, bound: Sequence[Cell] = ()) -> int:
    """The one number a query answers with; 0 for NULL."""
    return int(cast("int | None", connection.execute(sql, bound).get) or 0)
