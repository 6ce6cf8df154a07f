"""Databases of a node as files: copying, checking and asking them beside the open store.

Blocking. Source: docs/guides/backup.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import apsw

from daemon.errors import RpcError
from daemon.manifest import Head
from memory.storage.sql import blobs, number

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def check_copy(path: Path) -> None:
    """SQLite's own check of a file.

    Raises:
        RpcError: `storage_corrupt`.
    """
    _ask_copy(path, lambda _connection: None)


def read_copy(path: Path, device: bytes) -> tuple[list[Head], int]:
    """Check a copy; heads of a device's logs, and the schema.

    Raises:
        RpcError: `storage_corrupt`.
    """

    def ask(connection: apsw.Connection) -> tuple[list[Head], int]:
        rows = cast("list[_HeadRow]", connection.execute(_HEADS, (device,)).fetchall())
        heads = [
            Head(group=group.hex(), incarnation=incarnation, lane=lane, seq=seq, id=head.hex())
            for group, incarnation, lane, seq, head in rows
        ]
        return heads, number(connection, "PRAGMA user_version")

    return _ask_copy(path, ask)


def _ask_copy(path: Path, ask: Callable[[apsw.Connection], T]) -> T:
    # The copy has no other user, and its folder may be read-only.
    name = f"{path.absolute().as_uri()}?immutable=1"
    try:
        connection = apsw.Connection(name, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        try:
            found = str(connection.execute("PRAGMA integrity_check(1)").get)
            if found != "ok":
                raise apsw.CorruptError(found)
            return ask(connection)
        finally:
            connection.close()
    except apsw.Error as error:
        raise RpcError(
            "storage_corrupt",
            f"{path.name} of the backup is damaged ({type(error).__name__})",
            remedy="Take another backup: `covey backup list` shows them.",
        ) from error


_HeadRow = tuple[bytes, int, int, int, bytes]
_HEADS: Final = (
    "SELECT g.id, l.incarnation, l.lane, l.max_seq, l.head_id FROM log l JOIN grp g ON g.n = l.grp"
    " WHERE l.author = ? ORDER BY g.id, l.incarnation, l.lane"
)


def vacuum_into(source: Path, target: Path) -> None:
    """Write a database without its free pages into a new file."""
    connection = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_timeout(5000)
        connection.execute("VACUUM INTO ?", (str(target),)).fetchall()
    finally:
        connection.close()


def erased_ids(database: Path) -> list[bytes]:
    """Ids of all that was erased here, by the live database."""
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_timeout(5000)
        return blobs(connection, "SELECT id FROM erased")
    finally:
        connection.close()


def size_of(path: str) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0
