"""Which groups' records a backup still holds that were erased since, and which it still opens.

Told by looking, not by dates: an erasure that was told to this machine alone has no time of its
own, one that came from a peer has the peer's.
Source: docs/guides/backup.md, *What an erasure does*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import apsw
import msgspec

from daemon.manifest import DATABASE, KEYS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class GroupErased(msgspec.Struct, kw_only=True):
    """Erased records of a group that a backup still holds.

    Attributes:
        group: local name.
        id: of the group, hex.
        records: how many, as ciphertext or in plain.
        readable: how many of them can be read from it: it still has their keys.
    """

    group: str
    id: str
    records: int
    readable: int


_SINCE: Final = """
SELECT g.id, coalesce((SELECT l.name FROM live.grp l WHERE l.id = g.id), g.name), count(*),
  sum(EXISTS (SELECT 1 FROM keys.body_key k WHERE k.id = e.id))
FROM live.erased e JOIN record r ON r.id = e.id JOIN body b ON b.n = r.n JOIN grp g ON g.n = r.grp
GROUP BY g.id ORDER BY g.id
"""


def erased_since(database: Path, backup: Path) -> list[GroupErased]:
    """What was erased on this machine and is in a backup, by group.

    Args:
        database: of this machine, in use or not.
        backup: the backup's folder.

    Returns:
        Groups by id; none as well where one of the files cannot be read.
    """
    try:
        connection = apsw.Connection(
            f"{(backup / DATABASE).absolute().as_uri()}?immutable=1",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        )
    except apsw.Error:
        return []
    try:
        connection.set_busy_timeout(5000)
        keys = f"{(backup / KEYS).absolute().as_uri()}?immutable=1"
        connection.execute("ATTACH ? AS keys", (keys,)).fetchall()
        live = f"{database.absolute().as_uri()}?mode=ro"
        connection.execute("ATTACH ? AS live", (live,)).fetchall()
        return _groups(connection.execute(_SINCE))
    except apsw.Error:
        return []  # damaged, which `verify` says, or of a version without these tables
    finally:
        connection.close()


_AGAIN: Final = (
    "SELECT g.id, g.name, 1, 1 FROM record r JOIN body b ON b.n = r.n JOIN grp g ON g.n = r.grp"
    " WHERE r.id = ?"
)


def still_held(connection: apsw.Connection, ids: Iterable[bytes]) -> list[GroupErased]:
    """Those of the records that a copy still has with a body, by group."""
    counts: dict[str, GroupErased] = {}
    for record_id in dict.fromkeys(ids):
        for one in _groups(connection.execute(_AGAIN, (record_id,))):
            known = counts.setdefault(one.id, one)
            if known is not one:
                known.records += 1
                known.readable += 1
    return [counts[ident] for ident in sorted(counts)]


def _groups(rows: Iterable[object]) -> list[GroupErased]:
    return [
        GroupErased(group=name, id=ident.hex(), records=records, readable=readable)
        for ident, name, records, readable in cast("Iterable[tuple[bytes, str, int, int]]", rows)
    ]
