"""Rows that never leave this node: groups, secrets, epochs, holds, peers, devices."""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from memory.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.seams import LocalRow


class _Table(NamedTuple):
    put: str
    delete: str
    select: str
    select_group: str
    columns: int
    key: int


def _table(name: str, columns: str, key: int, group: str) -> _Table:
    names = columns.split()
    updates = ", ".join(f"{c} = excluded.{c}" for c in names[key:])
    conflict = f"ON CONFLICT ({', '.join(names[:key])}) DO UPDATE SET {updates}"
    marks = ", ".join("?" * len(names))
    select = f"SELECT {', '.join(names)} FROM {name}"
    return _Table(
        put=f"INSERT INTO {name}({', '.join(names)}) VALUES ({marks}) {conflict}",
        delete=f"DELETE FROM {name} WHERE {' AND '.join(f'{c} = ?' for c in names[:key])}",
        select=f"{select} ORDER BY {', '.join(names[:key])}",
        select_group=f"{select} WHERE {group} = ? ORDER BY {', '.join(names[:key])}",
        columns=len(names),
        key=key,
    )


_TABLES: Final = {
    "grp": _table("grp", "id name home state", 1, "id"),
    "secret": _table("secret", "grp purpose public private", 3, "grp"),
    "epoch": _table("epoch", "grp id secret", 2, "grp"),
    "hold": _table("hold", "id grp reason due_ms wire", 1, "grp"),
    "peer": _table("peer", "grp peer at_ms root", 2, "grp"),
    "device": _table("device", "key name published verified_ms", 1, "key"),
}
"""Tables, columns and how many leading columns are the key: p2p/replication/store.py `LocalRow`."""


def put_local(connection: apsw.Connection, rows: Sequence[LocalRow]) -> None:
    """Write rows; a table name ending in `-` deletes by key.

    Raises:
        UsageError: unknown table or wrong number of columns.
    """
    for name, columns in rows:
        table = _TABLES.get(name.removesuffix("-"))
        if table is None:
            raise UsageError(f"there is no local table {name}")
        if name.endswith("-"):
            connection.execute(table.delete, columns[: table.key])
        elif len(columns) == table.columns:
            connection.execute(table.put, columns)
        else:
            raise UsageError(f"{name} has {table.columns} columns, {len(columns)} were given")


def read_local(connection: apsw.Connection, name: str, group: bytes | None) -> list[LocalRow]:
    """All rows of a table, or those of one group, by key.

    Raises:
        UsageError: unknown table.
    """
    table = _TABLES.get(name)
    if table is None:
        raise UsageError(f"there is no local table {name}")
    if group is None:
        rows = connection.execute(table.select)
    else:
        rows = connection.execute(table.select_group, (group,))
    return [(name, tuple(row)) for row in rows]
