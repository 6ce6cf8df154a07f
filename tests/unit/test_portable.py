"""Copies without plain text: every table has a fate, keys can be shredded, judgements stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw
import pytest

from memory.storage.schema import migrate
from memory.transfer.portable import (
    FATES,
    JUDGED_COLUMNS,
    STASH,
    columns,
    holds_any,
    judged_columns,
    shred_database,
    shred_keys,
    tables,
    write_copy,
)
from tests.helpers.memories import Clock, World, open_world

if TYPE_CHECKING:
    from pathlib import Path

TEXT_COLUMNS = ("title", "text", "speaker", "tags", "source", "claim_value", "note", "plain")
"""Columns that hold what somebody wrote, wherever they are."""


def fresh(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    migrate(connection, path, Clock(), "memory.storage.migrations")
    return connection


def test_every_table_has_a_fate(tmp_path: Path) -> None:
    """Say in memory/transfer/portable.py what a backup does with a new table."""
    connection = fresh(tmp_path / "covey.db")
    assert set(tables(connection)) == set(FATES)
    assert set(judged_columns(connection, "main")) >= set(JUDGED_COLUMNS[:5])
    connection.close()


def test_no_table_that_is_copied_holds_text(tmp_path: Path) -> None:
    connection = fresh(tmp_path / "covey.db")
    loud = [
        f"{table}.{name}"
        for table, fate in FATES.items()
        if fate in ("copied", "judged")
        for name in columns(connection, "main", table)
        if name in TEXT_COLUMNS
    ]
    assert loud == []
    assert not set(JUDGED_COLUMNS) & {*TEXT_COLUMNS, "content_hash"}
    connection.close()


async def filled(here: World) -> list[bytes]:
    """Ids of three notes."""
    texts = ("the zebrafish swims", "the quokka smiles", "the xylophone rings")
    return [bytes.fromhex(await here.say(text)) for text in texts]


async def test_a_copy_has_the_records_and_no_text(tmp_path: Path) -> None:
    async with open_world(tmp_path) as here:
        ids = await filled(here)
        counts = write_copy(here.db.path, tmp_path / "c.db", tmp_path / "k", Clock())
    assert counts["memories"] == 3
    copy = apsw.Connection(str(tmp_path / "c.db"))
    assert copy.execute("SELECT count(*) FROM body WHERE opened = 0").get == counts["bodies"]
    for table in ("memory", "chunk", "body_key", "receipt", "idem"):
        assert copy.execute(f"SELECT count(*) FROM {table}").get == 0, table
    assert copy.execute(f"SELECT count(*) FROM {STASH}memory").get == 3
    copy.close()
    assert holds_any(tmp_path / "k", ids)
    for word in (b"zebrafish", b"quokka", b"xylophone"):
        assert word in here.db.path.read_bytes()
        assert word not in (tmp_path / "c.db").read_bytes()
        assert word not in (tmp_path / "k").read_bytes()


async def test_shredding_takes_one_key_and_leaves_no_byte_of_it(tmp_path: Path) -> None:
    keys = tmp_path / "k"
    async with open_world(tmp_path) as here:
        ids = await filled(here)
        write_copy(here.db.path, tmp_path / "c.db", keys, Clock())
    (wrap,) = [
        row[0]
        for row in apsw.Connection(str(keys)).execute(
            "SELECT id FROM body_key WHERE id = ?", (ids[2],)
        )
    ]
    assert wrap in keys.read_bytes()
    assert shred_keys(keys, [ids[2], bytes(32)]) == 1
    assert wrap not in keys.read_bytes()
    assert shred_keys(keys, ids[2:]) == 0
    assert not holds_any(keys, ids[2:])
    assert holds_any(keys, ids[:1])


async def test_a_whole_copy_loses_its_text_at_the_first_erasure(tmp_path: Path) -> None:
    whole = tmp_path / "whole.db"
    async with open_world(tmp_path) as here:
        ids = await filled(here)
        connection = apsw.Connection(str(here.db.path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.execute("VACUUM INTO ?", (str(whole),)).fetchall()
        connection.close()
    before = whole.read_bytes()
    assert not shred_database(whole, [bytes(32)])
    assert whole.read_bytes() == before
    assert shred_database(whole, ids[:1])
    copy = apsw.Connection(str(whole))
    assert copy.execute("SELECT count(*) FROM chunk").get == 0
    assert copy.execute("SELECT count(*) FROM memory").get == 0
    left = copy.execute(
        "SELECT count(*) FROM body_key k JOIN record r ON r.n = k.n WHERE r.id = ?", (ids[0],)
    ).get
    assert left == 0
    assert copy.execute("PRAGMA integrity_check").get == "ok"
    copy.close()


async def test_a_report_can_end_the_copy(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise apsw.InterruptError(f"{done} of {total}")

    async with open_world(tmp_path) as here:
        await filled(here)
        with pytest.raises(apsw.InterruptError):
            write_copy(here.db.path, tmp_path / "c.db", tmp_path / "k", Clock(), stop)
        assert (await here.find("zebrafish")).hits
