"""Numbered migrations: one transaction each, recorded with name and hash, backup first.

Derived tables (full text, vectors, signatures, graph, trust) are rebuilt rather than migrated; all
others move forward only. A database of a newer Covey is refused, never guessed at.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from memory.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from memory.seams import Env

_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


class Migration(NamedTuple):
    """One step of the schema."""

    number: int
    name: str
    sql: str
    sha256: bytes


def load_migrations(package: str) -> list[Migration]:
    """The package's `NNNN_name.sql` files, in order; numbers start at 1 without a gap."""
    found = []
    for entry in resources.files(package).iterdir():
        matched = _NAME.fullmatch(entry.name)
        if matched:
            raw = entry.read_bytes()
            found.append(
                Migration(int(matched[1]), matched[2], raw.decode(), hashlib.sha256(raw).digest())
            )
    found.sort()
    assert [m.number for m in found] == list(range(1, len(found) + 1)), "migrations have a gap"
    return found


def migrate(connection: apsw.Connection, path: Path, env: Env, package: str) -> None:
    """Bring the schema to the newest version.

    Raises:
        StoreError: `too_new` if a newer Covey wrote it; `corrupt` if an applied step differs.
    """
    steps = load_migrations(package)
    have = int(connection.execute("PRAGMA user_version").get or 0)
    if have > len(steps):
        raise StoreError(
            "too_new",
            f"{path} has schema {have}, this Covey knows {len(steps)}: install the newer Covey"
            f" again, or restore a backup from {path.parent / 'backups'}",
        )
    _check_applied(connection, path, steps[:have])
    if 0 < have < len(steps):
        _back_up(connection, path, have, env)
    for step in steps[have:]:
        _apply(connection, step, env)


def _check_applied(connection: apsw.Connection, path: Path, applied: list[Migration]) -> None:
    if not applied:
        return
    rows = connection.execute(
        "SELECT number, name, sha256 FROM migration ORDER BY number"
    ).fetchall()
    if rows != [(m.number, m.name, m.sha256) for m in applied]:
        raise StoreError(
            "corrupt",
            f"{path} was made by another build of Covey: its migrations differ; restore a backup",
        )


def strange_objects(connection: apsw.Connection, package: str) -> list[str]:
    """Names in a database's schema that its migrations did not put there as they are.

    A file from elsewhere may bring triggers, views or tables whose names and texts are SQL of its
    maker's; what our own steps make is known to the letter.
    """
    have = int(connection.execute("PRAGMA user_version").get or 0)
    pattern = apsw.Connection(":memory:")
    try:
        for step in load_migrations(package)[:have]:
            pattern.execute(step.sql).fetchall()
        ours = set(pattern.execute(_OBJECTS))
    finally:
        pattern.close()
    return sorted(str(row[1]) for row in connection.execute(_OBJECTS) if row not in ours)


_OBJECTS: Final = (
    "SELECT type, name, tbl_name, sql FROM sqlite_schema"
    # Statistics, which `PRAGMA optimize` leaves; SQLite lets nobody else use the prefix.
    " WHERE name NOT IN ('sqlite_stat1', 'sqlite_stat4')"
)


def _back_up(connection: apsw.Connection, path: Path, have: int, env: Env) -> None:
    folder = path.parent / "backups"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{path.stem}-schema{have}-{env.wall_ms()}.db"
    connection.execute("VACUUM INTO ?", (str(target),))
    target.chmod(0o600)


def _apply(connection: apsw.Connection, step: Migration, env: Env) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # The steps are our own files; PRAGMA takes no bound parameter.
        connection.execute(step.sql).fetchall()
        connection.execute(
            "INSERT INTO migration(number, name, sha256, at_ms) VALUES (?, ?, ?, ?)",
            (step.number, step.name, step.sha256, env.wall_ms()),
        )
        connection.execute(f"PRAGMA user_version={step.number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
