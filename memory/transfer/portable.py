"""A copy of covey.db without its plain text: what a backup holds, and how it becomes whole again.

The copy is a database of the same schema. Signed records are in it as they are, bodies sealed; what
can be read off them (notes, pieces, links, full text, vectors) is left out and comes back by
projecting the bodies again. What opens a body, its wrap and salt, goes into a file beside it,
`covey.db.keys`: the group secrets are in the copy, so whoever deletes a record's row there has
shredded the record's text, without rewriting the copy. Judgements made on this machine (trust,
evidence, what was hidden or quarantined) cannot be read off the records: they are copied, and put
back over what the projection makes of them.

No table is copied by default: `FATES` names each one's fate, and a test fails for one it forgets.
Blocking; runs in a thread. Source: docs/specs/memory.md, *Backup*.
"""

# SQL is put together from this file's own constants and the schema's own names; values are bound.
# ruff: noqa: S608

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

import apsw

from memory.errors import StoreError
from memory.storage.connect import APPLICATION_ID, PRAGMAS
from memory.storage.schema import migrate, strange_objects
from memory.storage.sql import blobs, integers, number
from memory.text.fts import move_to_tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from memory.seams import Env

Fate: TypeAlias = Literal["copied", "judged", "keys", "derived", "dropped"]

FATES: Final[Mapping[str, Fate]] = {
    "migration": "dropped",  # the copy has its own
    "grp": "copied",
    "secret": "copied",
    "epoch": "copied",
    "log": "copied",
    "record": "copied",
    "body": "copied",
    "body_key": "keys",
    "control": "copied",
    "supersede": "copied",
    "cell": "copied",
    "fork": "copied",
    "erased": "copied",
    "erasing": "dropped",  # work that is left in this folder, not in another
    "hold": "keys",  # whole records, keys included
    "ack": "copied",
    "peer": "copied",
    "device": "copied",
    "agent": "copied",
    "receipt": "dropped",  # answers of calls, good for a day; they may hold text
    "author": "judged",
    "domain": "judged",
    "scope": "copied",
    "memory": "derived",
    "chunk": "derived",
    "idem": "derived",
    "claim": "derived",
    "link": "derived",
    "forgetting": "derived",
    "parent": "derived",
    "kept": "derived",
    "dispute": "derived",
    "guess": "derived",
    "vec": "derived",
    "vec_model": "derived",
    "sig": "derived",
    "evidence": "judged",
    "endorse": "judged",
    "refold": "judged",
    "retrust_author": "judged",
    "retrust": "judged",
    "rollback": "judged",
    "muted": "judged",
    "faded": "judged",
    "unread": "derived",
    "entity": "derived",
    "mention": "derived",
    "edge": "derived",
    "community": "derived",
    "term": "derived",
    "derived": "dropped",  # versions of the derived tables: the copy has its own
}
"""What becomes of each table. `judged` is copied, and put back after the projection; `derived` is
made anew from the bodies."""

JUDGED_COLUMNS: Final = (
    "status", "tier", "origin_trust", "eff_trust", "expires_ms", "backed", "confirmations",
    "vouched", "denied", "cluster", "flags", "uses", "used_ms",
)  # fmt: skip
"""Of a memory: what was decided here, without a word of its text."""

STASH: Final = "stash_"
"""Prefix of the tables in which a copy keeps judgements until it is whole again."""

SLICE_ROWS: Final = 2_000
"""Rows copied between two reports: some 20 ms."""

Report: TypeAlias = "Callable[[int, int], None]"
"""Told (done, total) rows; may raise to end the work."""


def nothing(done: int, total: int) -> None:
    """A report that nobody reads."""
    del done, total


def write_copy(
    source: Path, target: Path, keys: Path, env: Env, report: Report = nothing
) -> dict[str, int]:
    """Copy `source` as of one moment; its writer is not held up.

    Args:
        source: the live database.
        target: a new file: the copy without text.
        keys: a new file: wraps and salts by record id, and held records.
        env: for the date of the copy's migrations.
        report: told how far it is.

    Returns:
        Counts of rows by table, of those that say something: record, body, memory.

    Raises:
        apsw.Error: reading or writing failed; the new files are to be thrown away.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(str(target), flags=flags)
    try:
        _configure(connection)
        migrate(connection, target, env, "memory.storage.migrations")
        connection.execute("PRAGMA foreign_keys=OFF").fetchall()
        _attach(connection, source, "live", writable=False)
        _attach(connection, keys, "keys", writable=True)
        connection.execute(_KEYS_SCHEMA)
        with connection:
            counts = _fill(connection, report)
        connection.execute("DETACH live")
        connection.execute("DETACH keys")
    finally:
        connection.close()
    return counts


_KEYS_SCHEMA: Final = """
CREATE TABLE keys.body_key(id BLOB PRIMARY KEY, salt BLOB NOT NULL, wrap BLOB NOT NULL) STRICT;
CREATE TABLE keys.hold(
  id BLOB PRIMARY KEY, grp BLOB NOT NULL, reason TEXT NOT NULL, due_ms INTEGER NOT NULL,
  wire BLOB NOT NULL
) STRICT;
"""


def _configure(connection: apsw.Connection) -> None:
    for pragma in PRAGMAS:
        # One file without a write-ahead log beside it: it is synced as a whole when it is complete.
        if not pragma.startswith(("journal_mode", "synchronous")):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}").fetchall()
    connection.execute("PRAGMA synchronous=OFF").fetchall()
    connection.execute("PRAGMA journal_mode=MEMORY").fetchall()


def _attach(connection: apsw.Connection, path: Path, name: str, *, writable: bool) -> None:
    mode = "rwc" if writable else "ro"
    connection.execute(f"ATTACH ? AS {name}", (f"{path.absolute().as_uri()}?mode={mode}",))
    if writable:
        connection.execute(f"PRAGMA {name}.secure_delete=ON").fetchall()


def _fill(connection: apsw.Connection, report: Report) -> dict[str, int]:
    have = set(tables(connection, "live"))
    total = number(connection, "SELECT count(*) FROM live.record")
    done = 0
    for name in sorted(have & FATES.keys()):
        if FATES[name] not in ("copied", "judged"):
            continue
        connection.execute(f"DELETE FROM main.{name}")
        if name in ("record", "body"):
            last = number(connection, f"SELECT max(n) FROM live.{name}")
            for first in range(0, last + 1, SLICE_ROWS):
                _copy(connection, name, "WHERE n BETWEEN ? AND ?", (first, first + SLICE_ROWS - 1))
                if name == "record":
                    done = min(total, done + SLICE_ROWS)
                report(done, total)
        else:
            _copy(connection, name)
    # Their index is empty; the projection counts again what it puts there.
    connection.execute("UPDATE main.scope SET main_chunks = 0, low_chunks = 0")
    connection.execute(
        "INSERT INTO keys.body_key SELECT r.id, k.salt, k.wrap FROM live.body_key k"
        " JOIN live.record r ON r.n = k.n"
    )
    connection.execute("INSERT INTO keys.hold SELECT id, grp, reason, due_ms, wire FROM live.hold")
    _stash_memories(connection, "live")
    report(total, total)
    return {
        "records": total,
        "bodies": number(connection, "SELECT count(*) FROM live.body"),
        "memories": number(connection, "SELECT count(*) FROM live.memory"),
    }


def _copy(
    connection: apsw.Connection, table: str, where: str = "", bound: tuple[int, ...] = ()
) -> None:
    names = columns(connection, "live", table)
    # A body of the copy has not been projected: nothing of what it says is in there.
    taken = ["0" if (table, name) == ("body", "opened") else name for name in names]
    connection.execute(
        f"INSERT INTO main.{table}({', '.join(names)}) SELECT {', '.join(taken)}"
        f" FROM live.{table} {where}",
        bound,
    )


def _stash_memories(connection: apsw.Connection, schema: str) -> None:
    names = ", ".join(judged_columns(connection, schema))
    connection.execute(
        f"CREATE TABLE main.{STASH}memory AS SELECT id, {names} FROM {schema}.memory"
    )


def tables(connection: apsw.Connection, schema: str = "main") -> list[str]:
    """Ordinary tables of a schema: no virtual ones, nor what these keep their rows in."""
    rows = connection.execute(
        "SELECT name FROM pragma_table_list WHERE schema = ? AND type = 'table'"
        " AND name NOT LIKE 'sqlite_%' ORDER BY name",
        (schema,),
    )
    return [str(row[0]) for row in rows]


def columns(connection: apsw.Connection, schema: str, table: str) -> list[str]:
    """Names of a table's columns."""
    rows = connection.execute("SELECT name FROM pragma_table_info(?, ?)", (table, schema))
    return [str(row[0]) for row in rows]


def judged_columns(connection: apsw.Connection, schema: str) -> list[str]:
    """The columns of a memory that are judgement, as far as this schema has them."""
    have = set(columns(connection, schema, "memory"))
    return [name for name in JUDGED_COLUMNS if name in have]


# ---- shredding


def refuse_strange_schema(connection: apsw.Connection, path: Path) -> None:
    """Let no SQL in that a copy brings with it, before anything is written to it or named by it.

    Args:
        connection: to the copy.
        path: for the error.

    Raises:
        StoreError: `corrupt`: it has an object that no Covey makes.
    """
    connection.execute("PRAGMA trusted_schema=OFF").fetchall()
    allowed = {f"{STASH}{name}" for name, fate in FATES.items() if fate == "judged"}
    allowed.add(f"{STASH}memory")
    for name in strange_objects(connection, "memory.storage.migrations"):
        if name not in allowed or not _is_plain_table(connection, name):
            shown = name[:64].encode("ascii", "replace").decode()
            raise StoreError(
                "corrupt",
                f"{path} holds {shown!r}, which no Covey puts there: somebody altered it; take"
                " another copy",
            )


def _is_plain_table(connection: apsw.Connection, name: str) -> bool:
    """Whether a stash is a table as `CREATE TABLE ... AS` writes it, its columns ours by name."""
    found = connection.execute(
        "SELECT type, sql FROM sqlite_schema WHERE name = ?", (name,)
    ).fetchall()
    of = name.removeprefix(STASH)
    known = set(columns(connection, "main", of))
    return (
        [row[0] for row in found] == ["table"]
        and _STASH_SQL.fullmatch(str(found[0][1])) is not None
        and set(columns(connection, "main", name)) <= known
    )


_STASH_SQL: Final = re.compile(r'CREATE TABLE \w+\([\w\s,"]*\)')


def shred_keys(keys: Path, ids: Iterable[bytes]) -> int:
    """How many of the records have a key in the file; deletes them, leaving no byte of them.

    Raises:
        apsw.Error: the file is no keys file, or cannot be written.
    """
    connection = apsw.Connection(str(keys), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.execute("PRAGMA secure_delete=ON").fetchall()
        connection.execute("PRAGMA temp_store=MEMORY").fetchall()  # VACUUM writes no file in /tmp
        connection.execute("PRAGMA journal_mode=MEMORY").fetchall()
        gone = 0
        with connection:
            for record_id in ids:
                for table in ("body_key", "hold"):
                    connection.execute(f"DELETE FROM {table} WHERE id = ?", (record_id,))
                    gone += connection.changes()
        if gone:
            connection.execute("VACUUM")
    finally:
        connection.close()
    return gone


def holds_any(keys: Path, ids: Iterable[bytes]) -> bool:
    """Whether the file has a key of one of these records."""
    connection = apsw.Connection(str(keys), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return any(
            connection.execute(
                "SELECT 1 FROM body_key WHERE id = ?1 UNION ALL SELECT 1 FROM hold WHERE id = ?1",
                (record_id,),
            ).fetchone()
            for record_id in ids
        )
    finally:
        connection.close()


# ---- becoming whole again


def take_keys_back(connection: apsw.Connection, keys: Path) -> None:
    """Put the wraps and held records of a keys file into the copy that is open."""
    _attach(connection, keys, "keys", writable=False)
    try:
        with connection:
            connection.execute(
                "INSERT OR REPLACE INTO body_key(n, salt, wrap)"
                " SELECT r.n, k.salt, k.wrap FROM keys.body_key k JOIN record r ON r.id = k.id"
                " JOIN body b ON b.n = r.n"
            )
            connection.execute(
                "INSERT OR REPLACE INTO hold(id, grp, reason, due_ms, wire)"
                " SELECT id, grp, reason, due_ms, wire FROM keys.hold"
            )
    finally:
        connection.execute("DETACH keys")


def stash_judgements(connection: apsw.Connection) -> None:
    """Keep what the projection would judge anew from what it knows, which is less."""
    with connection:
        for name in tables(connection):
            if FATES.get(name) == "judged":
                connection.execute(f"DROP TABLE IF EXISTS {STASH}{name}")
                connection.execute(f"CREATE TABLE {STASH}{name} AS SELECT * FROM {name}")


def give_authors_their_device(connection: apsw.Connection) -> None:
    """A row without agent for each device: it says to whom a body belongs that is opened now."""
    with connection:
        connection.execute(
            "INSERT OR IGNORE INTO author(grp, device, agent, owner, class, s, f, at_ms, trust,"
            " state) SELECT grp, device, '', owner, class, 0, 0, at_ms, min(trust), ''"
            " FROM author GROUP BY grp, device"
        )


def unprojected(connection: apsw.Connection, after: int, limit: int) -> list[int]:
    """Rows of sealed bodies that have a key and were not projected yet, from `after` on."""
    return integers(
        connection,
        "SELECT b.n FROM body b JOIN body_key k ON k.n = b.n JOIN record r ON r.n = b.n"
        " WHERE b.opened = 0 AND b.n > ? AND r.state <> 'stub' ORDER BY b.n LIMIT ?",
        (after, limit),
    )


def put_judgements_back(connection: apsw.Connection) -> None:
    """Let what was decided on this machine stand over what the projection made of it."""
    connection.execute("PRAGMA foreign_keys=OFF").fetchall()
    with connection:
        here = set(tables(connection))
        for name in sorted(here):
            stash = f"{STASH}{name}"
            if FATES.get(name) != "judged" or stash not in here:
                continue
            names = ", ".join(columns(connection, "main", name))
            if name == "author":
                # Others refer to its rows; those made for the projection alone go.
                connection.execute(
                    f"DELETE FROM author WHERE agent = '' AND id NOT IN (SELECT id FROM {stash})"
                )
            else:
                connection.execute(f"DELETE FROM {name}")
            connection.execute(
                f"INSERT OR REPLACE INTO {name}({names}) SELECT {names} FROM {stash}"
            )
        if f"{STASH}memory" in here:
            _judge_memories(connection)
        for name in here:
            if name.startswith(STASH):
                connection.execute(f"DROP TABLE {name}")
    connection.execute("PRAGMA foreign_keys=ON").fetchall()


def _judge_memories(connection: apsw.Connection) -> None:
    names = [name for name in judged_columns(connection, "main") if name != "tier"]
    have = set(columns(connection, "main", f"{STASH}memory"))
    names = [name for name in names if name in have]
    moved = cast(
        "list[tuple[int, int, int, int]]",
        connection.execute(
            f"SELECT m.id, m.scope, m.tier, s.tier FROM memory m JOIN {STASH}memory s"
            " ON s.id = m.id WHERE m.tier <> s.tier"
        ).fetchall(),
    )
    for memory, scope, old, new in moved:
        move_to_tier(connection, memory, scope, old, new)
    settings = ", ".join(f"{name} = s.{name}" for name in names)
    connection.execute(f"UPDATE memory AS m SET {settings} FROM {STASH}memory s WHERE s.id = m.id")


def erase_again(connection: apsw.Connection, ids: Iterable[bytes]) -> int:
    """Take out bodies and keys of records that were erased after the copy was made; how many."""
    gone = 0
    with connection:
        for record_id in ids:
            row = connection.execute("SELECT n FROM record WHERE id = ?", (record_id,)).fetchone()
            connection.execute("DELETE FROM hold WHERE id = ?", (record_id,))
            if row is None:
                continue
            for table in ("body_key", "body"):
                connection.execute(f"DELETE FROM {table} WHERE n = ?", row)
                gone += connection.changes() if table == "body" else 0
            connection.execute("UPDATE record SET state = 'stub' WHERE n = ?", row)
    return gone


def keyless(connection: apsw.Connection) -> list[bytes]:
    """Ids of records whose body has lost its key: erased while the copy lay there."""
    return blobs(
        connection,
        "SELECT r.id FROM body b JOIN record r ON r.n = b.n"
        " WHERE NOT EXISTS (SELECT 1 FROM body_key k WHERE k.n = b.n)",
    )


# ---- whole copies


def shred_database(path: Path, ids: Iterable[bytes]) -> bool:
    """Take erased records out of a whole database that nobody uses; whether it had any of them.

    All text goes with them, not theirs alone: what was derived, in whichever version's tables, is
    not looked for piece by piece. A restore makes it again from the bodies that still have a key.

    Raises:
        apsw.Error: it is damaged or no database of ours.
    """
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.execute("PRAGMA secure_delete=ON").fetchall()
        connection.execute("PRAGMA temp_store=MEMORY").fetchall()  # VACUUM writes no file in /tmp
        connection.execute("PRAGMA foreign_keys=OFF").fetchall()
        have = set(tables(connection))
        if "body_key" not in have:
            return False
        with connection:
            hit = _drop_keys(connection, ids)
            if hit:
                take_text_out(connection)
        if hit:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute("PRAGMA journal_mode=DELETE").fetchall()
            connection.execute("VACUUM")
    finally:
        connection.close()
    return hit


def _drop_keys(connection: apsw.Connection, ids: Iterable[bytes]) -> bool:
    hit = False
    for record_id in ids:
        connection.execute("DELETE FROM hold WHERE id = ?", (record_id,))
        hit = hit or connection.changes() > 0
        connection.execute(
            "DELETE FROM body_key WHERE n = (SELECT n FROM record WHERE id = ?)", (record_id,)
        )
        hit = hit or connection.changes() > 0
    return hit


def take_text_out(connection: apsw.Connection) -> None:
    """Make of a whole database what `write_copy` would have made, but for the keys in it."""
    have = tables(connection)
    if f"{STASH}memory" not in have:
        _stash_memories(connection, "main")
    virtual = connection.execute(
        "SELECT name FROM sqlite_schema WHERE sql LIKE '%USING fts5(%'"
    ).fetchall()
    for (index,) in virtual:
        connection.execute(f"INSERT INTO {index}({index}) VALUES ('delete-all')")
    for name in have:
        # An older version's tables, that this one does not have, held nothing but what was derived.
        own = name in ("migration", "derived") or name.startswith(STASH)
        if FATES.get(name, "derived") in ("derived", "dropped") and not own:
            connection.execute(f"DELETE FROM {name}")
    connection.execute("UPDATE body SET opened = 0")
    connection.execute("UPDATE scope SET main_chunks = 0, low_chunks = 0")
