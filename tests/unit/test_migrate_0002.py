"""A database made by the first schema and full of data comes through the second as it was."""

from __future__ import annotations

import shutil
import sys
from importlib import resources
from typing import TYPE_CHECKING

import apsw
import pytest

from memory.schema import load_migrations, migrate
from tests.helpers.crashvfs import Recorder, check_database, images
from tests.helpers.memories import HOME, Clock, open_world

if TYPE_CHECKING:
    from pathlib import Path

NOTES = 40
UNTOUCHED = ("grp", "secret", "epoch", "log", "record", "body", "body_key", "control", "erased",
             "device", "agent", "receipt", "scope", "chunk", "link", "forgetting", "parent", "kept",
             "claim", "idem")  # fmt: skip
"""Tables that the second schema keeps: rows equal, column by column."""


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with the first schema alone, byte for byte as it was released."""
    folder = tmp_path / "lib" / "first_schema_for_test"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    with resources.as_file(resources.files("memory.migrations") / "0001_first.sql") as path:
        shutil.copyfile(path, folder / "0001_first.sql")
    monkeypatch.syspath_prepend(str(folder.parent))
    sys.modules.pop(folder.name, None)
    return folder.name


def fill(connection: apsw.Connection) -> None:
    """Rows in every table that the first version wrote, by its own columns."""
    add = connection.execute
    blob = bytes(range(32))
    with connection:
        add("INSERT INTO grp VALUES (1, ?, 'home', 1, 'member')", (HOME,))
        add("INSERT INTO secret VALUES (?, 'x25519', ?, ?)", (HOME, blob, blob))
        add("INSERT INTO epoch VALUES (?, ?, ?)", (HOME, blob[:16], bytes(64)))
        add("INSERT INTO author(id, grp, device, agent, owner, class, s, trust)"
            " VALUES (1, 1, ?, 'claude', ?, 'own', 16, .86),"
            " (2, 1, ?, 'bob', ?, 'invited', 2, .53)",
            (blob, blob, bytes([7]) * 32, bytes([7]) * 32))  # fmt: skip
        add("INSERT INTO scope(id, grp, name, generation, main_chunks) VALUES (1, 1, 'lab', 9, ?)",
            (NOTES,))  # fmt: skip
        add("INSERT INTO claim VALUES (1, 1, 'build', 'node')")
        add("INSERT INTO device VALUES (?, 'laptop', 1, NULL, 5)", (blob,))
        add(
            "INSERT INTO agent VALUES (1, 'claude', 'Claude Code', ?, 'read:*', 1, NULL, 2)",
            (blob,),
        )
        add("INSERT INTO receipt VALUES (?, x'5b5d', 3)", (blob,))
        add("INSERT INTO erased VALUES (?, ?, 4)", (bytes([9]) * 32, blob))
        add("INSERT INTO log(n, grp, author, incarnation, lane, contiguous, max_seq, head_id)"
            " VALUES (1, 1, ?, 5, 1, ?, ?, ?)", (blob, NOTES, NOTES, ident(NOTES)))  # fmt: skip
        for n in range(1, NOTES + 1):
            note(connection, n)
        add("INSERT INTO link VALUES (1, ?, ?, 'supersedes', 1, 77, 'newer')", (ident(2), ident(1)))
        add("INSERT INTO forgetting VALUES (?, 3, 1, 78, 'old')", (ident(4),))
        add("INSERT INTO parent VALUES (5, ?)", (ident(6),))
        add("INSERT INTO kept VALUES (7, 3, 'later', x'93')")
        add("INSERT INTO idem VALUES (1, 1, 'k', ?, 8)", (blob,))


def ident(n: int) -> bytes:
    return n.to_bytes(32, "big")


def note(connection: apsw.Connection, n: int) -> None:
    add = connection.execute
    add("INSERT INTO record(n, id, grp, log, seq, hlc, kind, header, sig, state)"
        " VALUES (?1, ?2, 1, 1, ?1, ?1, 32, x'90', x'00', 'live')", (n, ident(n)))  # fmt: skip
    add("INSERT INTO body VALUES (?, ?, 1, ?)", (n, bytes(16), ident(n)))
    add("INSERT INTO body_key VALUES (?, ?, ?)", (n, bytes(16), bytes(60)))
    add("INSERT INTO memory(id, author, scope, kind, role, title, pos, hlc, at_ms, status, tier,"
        " origin_trust, eff_trust, content_hash, tokens, chunks, tags, claim, claim_value)"
        " VALUES (?1, 1, 1, 'note', 'agent', ?2, 1, ?1, ?1, 'active', 0, .86, .86, ?3, 5, 1,"
        " '[\"a\"]', 1, '22')", (n, f"title{n}", ident(n)))  # fmt: skip
    row = (n, "s1x", f"title{n}", f"the zebrafish number {n} swims in tank{n}")
    add(
        "INSERT INTO chunk(id, memory, i, scope_tok, title, text) VALUES (?1, ?1, 0, ?2, ?3, ?4)",
        row,
    )
    add("INSERT INTO main_fts(rowid, scope_tok, title, text) VALUES (?, ?, ?, ?)", row)


def old_database(folder: Path, package: str) -> Path:
    path = folder / "covey.db"
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA application_id=1129272921").fetchall()
    migrate(connection, path, Clock(), package)
    fill(connection)
    connection.close()
    return path


def rows(connection: apsw.Connection) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {}
    for table in UNTOUCHED:
        found[table] = sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
    return found


def test_everything_comes_through(tmp_path: Path, first: str) -> None:
    path = old_database(tmp_path, first)
    connection = apsw.Connection(str(path))
    names = [row[1] for row in connection.execute("PRAGMA table_info(memory)").fetchall()]
    notes = f"SELECT {', '.join(names)} FROM memory ORDER BY id"
    authors = "SELECT id, grp, device, agent, owner, class, s, f, trust FROM author ORDER BY id"
    before = (rows(connection), connection.execute(notes).fetchall(),
              connection.execute(authors).fetchall())  # fmt: skip
    migrate(connection, path, Clock(), "memory.migrations")
    after = (rows(connection), connection.execute(notes).fetchall(),
             connection.execute(authors).fetchall())  # fmt: skip
    assert after == before
    assert connection.execute("PRAGMA user_version").get == len(
        load_migrations("memory.migrations")
    )
    check_database(connection)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    (kept,) = (tmp_path / "backups").iterdir()
    old = apsw.Connection(str(kept))
    assert old.execute("PRAGMA user_version").get == 1
    assert rows(old) == before[0]
    old.close()


async def test_an_old_memory_is_found_after_the_migration(tmp_path: Path, first: str) -> None:
    old_database(tmp_path, first)
    async with open_world(tmp_path) as world:
        hits = (await world.find("zebrafish tank7")).hits
        assert hits[0].text == "the zebrafish number 7 swims in tank7"
        await world.say("written by the new version")
        assert (await world.find("new version")).hits
        await world.check_index()


def test_a_crash_at_any_write_leaves_the_old_schema_or_the_new(tmp_path: Path, first: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    path = old_database(work, first)
    with Recorder(work) as recorder:
        connection = apsw.Connection(str(path), vfs=recorder.vfs_name)
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("PRAGMA synchronous=FULL").fetchall()
        before = rows(connection)
        migrate(connection, path, Clock(), "memory.migrations")
        connection.close()
    seen = set()
    for at, image in enumerate(images(recorder, seed=7, stride=23)):
        folder = tmp_path / f"image{at}"
        image.lay_out(folder)
        found = apsw.Connection(str(folder / "covey.db"))
        seen.add(found.execute("PRAGMA user_version").get)
        assert rows(found) == before, str(image)
        migrate(found, folder / "covey.db", Clock(), "memory.migrations")
        assert rows(found) == before, str(image)
        check_database(found)
        found.close()
        shutil.rmtree(folder)
    assert seen == {1, len(load_migrations("memory.migrations"))}
