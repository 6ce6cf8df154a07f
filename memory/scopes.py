"""Scopes: how they are written, who may touch which, and their place in the full-text query.

A scope is (group, name). It is written `name` in the home group and `group/name` elsewhere;
`private/name` never leaves this machine. No query is built without a `ScopeSet`: the scope's token
is a term of the full-text expression itself, so a forgotten filter cannot leak one. (A token costs
.97 ms for a half-percent scope of 100,000 memories, a filter afterwards 13.3.)
"""

# SQL is put together from our own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from memory.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.model import ScopeSet

DEFAULT_SCOPE: Final = "main"

_WRITTEN: Final = re.compile(r"(?:([a-z0-9._-]{1,32})/)?([a-z0-9._-]{1,64})")


class ScopeRow(NamedTuple):
    """A scope of the database, as the caller would write it."""

    id: int
    written: str
    main_chunks: int
    low_chunks: int
    generation: int = 0


def parse_scope(written: str) -> tuple[str, str]:
    """Split a written scope into group (empty for home) and name.

    Raises:
        RefusedError: `invalid`.
    """
    matched = _WRITTEN.fullmatch(written)
    if matched is None:
        raise RefusedError(
            "invalid",
            "a scope is `name` or `group/name` of a-z 0-9 . _ -, at most 64 and 32 characters",
        )
    return matched[1] or "", matched[2]


def write_scope(group_name: str, name: str, *, home: bool) -> str:
    """How a caller writes the scope."""
    return name if home else f"{group_name}/{name}"


def allows(scopes: ScopeSet, written: str) -> bool:
    """Whether the set holds the scope; `group/*` in a set stands for all of that group."""
    if scopes.everything or written in scopes.names:
        return True
    group, slash, _ = written.partition("/")
    return bool(slash) and f"{group}/*" in scopes.names


def check_write(scopes: ScopeSet, written: str) -> None:
    """Refuse a scope that the caller may not write.

    Raises:
        RefusedError: `forbidden`.
    """
    if not allows(scopes, written):
        raise RefusedError(
            "forbidden",
            f"this agent may not write to scope {written}: `covey agents set_scopes` changes that",
        )


def find_group(connection: apsw.Connection, group_name: str) -> tuple[int, bytes, str, bool]:
    """(row, id, local name, whether it is a home) of a group by its local name; empty is home.

    Raises:
        RefusedError: `unknown_scope`.
    """
    if group_name:
        sql = "SELECT n, id, name, home FROM grp WHERE name = ? ORDER BY n LIMIT 1"
        row = connection.execute(sql, (group_name,)).fetchone()
    else:
        # A home that we asked to join and are not in yet takes no notes.
        row = connection.execute(
            "SELECT n, id, name, home FROM grp WHERE home = 1 AND state = 'member'"
            " ORDER BY n DESC LIMIT 1"
        ).fetchone()
    if row is None:
        raise RefusedError(
            "unknown_scope",
            f"there is no group {group_name or 'home'} here: `covey group` shows them",
        )
    return int(row[0]), bytes(row[1]), str(row[2]), bool(row[3])


def readable(
    connection: apsw.Connection, scopes: ScopeSet, wanted: str | Sequence[str] | None
) -> list[ScopeRow]:
    """The scopes that exist, that the caller may read and that it asks for.

    Raises:
        RefusedError: `forbidden` or `invalid` for one asked for by name; asking for one that has no
            memory yet is no error.
    """
    asked = None if wanted is None else {wanted} if isinstance(wanted, str) else set(wanted)
    if asked is not None:
        asked = {_canonical(connection, written) for written in asked}
        for written in sorted(asked):
            if not allows(scopes, written):
                raise RefusedError("forbidden", f"this agent may not read scope {written}")
    rows = connection.execute(
        "SELECT s.id, g.name, s.name, g.home, s.main_chunks, s.low_chunks, s.generation"
        " FROM scope s JOIN grp g ON g.n = s.grp ORDER BY s.id"
    )
    found = []
    for scope_id, group_name, name, home, main, low, generation in rows:
        written = write_scope(group_name, name, home=bool(home))
        if allows(scopes, written) and (asked is None or written in asked):
            found.append(ScopeRow(scope_id, written, main, low, generation))
    return found


def _canonical(connection: apsw.Connection, written: str) -> str:
    """`home-group/name` becomes `name`, so that there is one spelling to check."""
    group, name = parse_scope(written)
    if not group:
        return written
    sql = "SELECT 1 FROM grp WHERE name = ? AND home = 1"
    return name if connection.execute(sql, (group,)).fetchone() else written


def token(scope_id: int) -> str:
    """The scope's term in the full-text index."""
    return f"s{scope_id}x"


def unreadable_sql(record_id: str, scopes: str) -> str:
    """SQL: whether the record is a memory here, in none of the scopes: its id must not be named.

    Args:
        record_id: SQL of the record's id, our own text.
        scopes: SQL of a JSON array of scope rows, our own text.
    """
    return (
        "EXISTS (SELECT 1 FROM record hr JOIN memory hm ON hm.id = hr.n"
        f" WHERE hr.id = {record_id} AND hm.scope NOT IN (SELECT value FROM json_each({scopes})))"
    )
