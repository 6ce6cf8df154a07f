"""Filters of a query or a listing, as conditions on rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from memory.provenance import PERSON, parse_iso, peer_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.seams import Cell


HLC_MAX: Final = 2**63 - 1
"""Largest hybrid time a row can hold."""


class Filters(NamedTuple):
    """Conditions on `memory m`, as SQL of constants and bound values."""

    sql: str
    bound: tuple[Cell, ...]


def build_filters(
    connection: apsw.Connection,
    *,
    kinds: Sequence[str] = (),
    tags: Sequence[str] = (),
    author: str | None = None,
    since: str | None = None,
    until: str | None = None,
    as_of: str | None = None,
) -> Filters:
    """Conditions of a query or a listing.

    Raises:
        RefusedError: `invalid` date.
    """
    parts: list[str] = []
    bound: list[Cell] = []
    if kinds:
        parts.append("m.kind IN (SELECT value FROM json_each(?))")
        bound.append(json.dumps(list(kinds)))
    for tag in tags:
        parts.append("EXISTS (SELECT 1 FROM json_each(m.tags) WHERE value = ?)")
        bound.append(tag)
    if author is not None:
        parts.append("m.author IN (SELECT value FROM json_each(?))")
        bound.append(json.dumps(find_authors(connection, author)))
    if since is not None:
        parts.append("m.at_ms >= ?")
        bound.append(parse_iso(since, "since"))
    if until is not None:
        parts.append("m.at_ms <= ?")
        bound.append(parse_iso(until, "until"))
    if as_of is not None:
        parts.append("m.hlc <= ?")
        bound.append(hlc_at(as_of))
    return Filters("".join(f" AND {part}" for part in parts), tuple(bound))


def hlc_at(as_of: str) -> int:
    """The last hybrid time that counts as an ISO 8601 date, at most what a row can hold.

    Raises:
        RefusedError: `invalid` date.
    """
    return min((parse_iso(as_of, "as_of") << 16) | 0xFFFF, HLC_MAX)


def find_authors(connection: apsw.Connection, written: str) -> list[int]:
    """Author rows that a person means by `agent`, `agent@device`, a device's name, id or key."""
    wanted = written.strip().lower()
    rows = connection.execute(
        "SELECT a.id, a.agent, a.device, d.name FROM author a LEFT JOIN device d"
        " ON d.key = a.device"
    )
    found = []
    for author, agent, device, name in rows:
        key = cast("bytes", device)
        devices = {peer_text(key).lower(), key.hex()} | ({str(name).lower()} if name else set())
        agent_name = (str(agent) or PERSON).lower()
        names = devices | {agent_name} | {f"{agent_name}@{device}" for device in devices}
        if wanted in names:
            found.append(cast("int", author))
    return found
