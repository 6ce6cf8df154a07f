"""Migrations: ordered, recorded, backed up, refused when newer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import apsw
import pytest

from memory.errors import StoreError
from memory.storage.schema import load_migrations, migrate
from tests.helpers.memories import Clock

if TYPE_CHECKING:
    from pathlib import Path

FIRST = (
    "CREATE TABLE migration(number INTEGER PRIMARY KEY, name TEXT, sha256 BLOB, at_ms INTEGER)"
    " STRICT; CREATE TABLE a(x) ;"
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package of migrations that a test may grow."""
    folder = tmp_path / "lib" / "steps_for_test"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "0001_first.sql").write_text(FIRST)
    monkeypatch.syspath_prepend(str(folder.parent))
    sys.modules.pop("steps_for_test", None)
    return folder


def open_at(tmp_path: Path) -> tuple[apsw.Connection, Path]:
    path = tmp_path / "state" / "covey.db"
    path.parent.mkdir(exist_ok=True)
    return apsw.Connection(str(path)), path


def test_our_own_migrations_are_numbered_and_hashed() -> None:
    steps = load_migrations("memory.storage.migrations")
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(len(step.sha256) == 32 for step in steps)


@pytest.mark.usefixtures("package")
def test_each_step_is_recorded_and_runs_once(tmp_path: Path) -> None:
    connection, path = open_at(tmp_path)
    migrate(connection, path, Clock(), "steps_for_test")
    migrate(connection, path, Clock(), "steps_for_test")
    assert connection.execute("PRAGMA user_version").get == 1
    rows = connection.execute("SELECT number, name, sha256 FROM migration").fetchall()
    assert rows == [(1, "first", load_migrations("steps_for_test")[0].sha256)]
    assert not (path.parent / "backups").exists()


def test_a_later_step_backs_up_first(tmp_path: Path, package: Path) -> None:
    connection, path = open_at(tmp_path)
    migrate(connection, path, Clock(), "steps_for_test")
    connection.execute("INSERT INTO a VALUES ('kept')")
    (package / "0002_second.sql").write_text("CREATE TABLE b(y); DELETE FROM a;")
    migrate(connection, path, Clock(), "steps_for_test")
    assert connection.execute("SELECT count(*) FROM a").get == 0
    (backup,) = (path.parent / "backups").iterdir()
    assert backup.stat().st_mode & 0o777 == 0o600
    old = apsw.Connection(str(backup))
    assert old.execute("SELECT x FROM a").get == "kept"
    assert old.execute("PRAGMA user_version").get == 1
    old.close()


def test_a_step_that_fails_leaves_the_old_schema_whole(tmp_path: Path, package: Path) -> None:
    connection, path = open_at(tmp_path)
    migrate(connection, path, Clock(), "steps_for_test")
    connection.execute("INSERT INTO a VALUES ('kept')")
    (package / "0002_second.sql").write_text("CREATE TABLE b(y); DELETE FROM a; SELECT nonsense;")
    with pytest.raises(apsw.SQLError):
        migrate(connection, path, Clock(), "steps_for_test")
    assert not connection.in_transaction
    assert connection.execute("PRAGMA user_version").get == 1
    assert connection.execute("SELECT x FROM a").get == "kept"
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'b'").get == 0


@pytest.mark.usefixtures("package")
def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    connection, path = open_at(tmp_path)
    migrate(connection, path, Clock(), "steps_for_test")
    connection.execute("PRAGMA user_version=7")
    with pytest.raises(StoreError, match="schema 7, this Covey knows 1") as caught:
        migrate(connection, path, Clock(), "steps_for_test")
    assert caught.value.reason == "too_new"
    assert "backups" in str(caught.value)


def test_an_applied_step_that_changed_is_refused(tmp_path: Path, package: Path) -> None:
    connection, path = open_at(tmp_path)
    migrate(connection, path, Clock(), "steps_for_test")
    (package / "0001_first.sql").write_text(FIRST + "CREATE TABLE sneaked_in(z);")
    with pytest.raises(StoreError, match="migrations differ"):
        migrate(connection, path, Clock(), "steps_for_test")


def test_numbers_may_not_have_a_gap(package: Path) -> None:
    (package / "0003_third.sql").write_text("SELECT 1")
    with pytest.raises(AssertionError, match="gap"):
        load_migrations("steps_for_test")


def test_every_table_is_strict_and_every_index_deletes_securely(tmp_path: Path) -> None:
    connection, path = open_at(tmp_path)
    migrate(connection, path, Clock(), "memory.storage.migrations")
    rows = connection.execute(
        "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table'"
        " AND name NOT LIKE 'sqlite_%'"
    )
    loose = [name for name, strict in rows if not strict]
    assert loose == []
    for table in ("main_fts", "low_fts", "cjk_fts"):
        found = connection.execute(
            f"SELECT v FROM {table}_config WHERE k = 'secure-delete'"
        ).fetchall()
        assert found == [(1,)], table
