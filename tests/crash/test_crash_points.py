"""A crash at every write of the store: acknowledged means there, and nothing is half there.

The control with `synchronous=NORMAL` shows that the harness sees a loss when there is one.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import apsw
import pytest

from memory.errors import StoreError
from memory.model import NoteIn
from memory.storage.connect import PRAGMAS
from memory.storage.schema import load_migrations, migrate
from tests.helpers.crashvfs import Recorder, check_database, images
from tests.helpers.memories import HOME, Clock, Peer, World, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.helpers.crashvfs import Image, ImageKind

SEED = 7
FEW, ALL = 11, 1
"""Strides: `make test` tries every eleventh operation, the slow layer each."""


async def work(world: World, recorder: Recorder) -> None:
    """Something of everything that writes, each step acknowledged."""

    def ack(*units: tuple[str, str]) -> None:
        for unit in units:
            recorder.ack(unit)

    ids = []
    for n in range(6):
        ids.append(await world.say(f"word{n} alpha beta", idempotency_key=f"k{n}"))
        ack(("note", ids[-1]))
    batch = await world.memory.remember(
        world.agent(), [NoteIn(text=f"batch{n} " + "gamma delta. " * 60) for n in range(5)]
    )
    ack(*(("note", item.id) for item in batch))
    peer = Peer(world.clock, 9)
    records = [peer.write(HOME, note_body(f"peer{n} epsilon"), "invited") for n in range(4)]
    await world.replica.admit(HOME, records)
    ack(*(("note", record.id.hex()) for record in records))
    newer = await world.say("zeta eta", supersedes=[ids[0]])
    ack(("note", newer), ("superseded", ids[0]))
    await world.memory.forget(world.agent(), [ids[1]])
    ack(("forgotten", ids[1]))
    assert await world.db.checkpoint()
    await world.replica.settle(HOME, void=[records[0].id])
    ack(("void", records[0].id.hex()))
    device = peer.sealer.device
    await world.replica.settle(HOME, owners=[(device, device, "other")])
    ack(("low", records[1].id.hex()))
    for n in range(6, 9):
        ack(("note", await world.say(f"word{n} theta", scope="team/x")))


async def record_work(folder: Path, *, synchronous: str = "FULL") -> Recorder:
    """Run the work over a recorded disk that already holds an empty memory."""
    async with open_world(folder):
        pass
    recorder = Recorder(folder)
    async with open_world(folder, vfs=recorder.vfs_name) as world:
        writer = world.db._require_writer()
        await writer.run(
            lambda: writer.connection.execute(f"PRAGMA synchronous={synchronous}").fetchall()
        )
        await work(world, recorder)
    recorder.close()
    return recorder


def opened(image: Image, folder: Path) -> apsw.Connection:
    """The image as the next start finds it."""
    image.lay_out(folder)
    return apsw.Connection(str(folder / "covey.db"))


def missing(db: apsw.Connection, acked: Iterable[object]) -> list[object]:
    """Acknowledged units of which a trace is missing."""
    lost = []
    for unit in acked:
        assert isinstance(unit, tuple)
        kind, record_id = unit
        row = db.execute(
            "SELECT r.state, m.status, m.tier FROM record r JOIN memory m ON m.id = r.n"
            " WHERE r.id = ?",
            (bytes.fromhex(record_id),),
        ).fetchone()
        if row is None:
            lost.append(unit)
            continue
        state, status, tier = row
        kept = {
            "note": True,
            "superseded": status == "superseded",
            "forgotten": status == "forgotten" and tier == 2,
            "void": state == "void" and tier == 2,
            "low": tier == 1,
        }
        if not kept[kind]:
            lost.append(unit)
    return lost


def check_agreement(db: apsw.Connection) -> None:
    """No part of a unit without the rest: record, log, memory, chunks, counters."""
    for name, sql in {
        "a record without its body": "SELECT 1 FROM record r LEFT JOIN body b ON b.n = r.n"
        " LEFT JOIN body_key k ON k.n = r.n WHERE b.n IS NULL OR k.n IS NULL",
        "a log that miscounts": "SELECT 1 FROM log l WHERE l.max_seq <>"
        " (SELECT count(*) FROM record r WHERE r.log = l.n)",
        "a record without its meaning": "SELECT 1 FROM record r WHERE NOT EXISTS"
        " (SELECT 1 FROM memory m WHERE m.id = r.n) AND NOT EXISTS"
        " (SELECT 1 FROM link l WHERE l.n = r.n) AND NOT EXISTS"
        " (SELECT 1 FROM forgetting f WHERE f.n = r.n)",
        "a memory without its text": "SELECT 1 FROM memory m WHERE m.chunks <>"
        " (SELECT count(*) FROM chunk c WHERE c.memory = m.id)",
        "a scope that miscounts": "SELECT 1 FROM scope s WHERE s.main_chunks <>"
        " (SELECT count(*) FROM chunk c JOIN memory m ON m.id = c.memory"
        " WHERE m.scope = s.id AND m.tier = 0)",
        "a key without its note": "SELECT 1 FROM idem i LEFT JOIN memory m ON m.id = i.memory"
        " WHERE m.id IS NULL",
        "a batch torn apart": "SELECT 1 FROM (SELECT count(*) AS n FROM chunk"
        " WHERE text LIKE 'batch%') WHERE n NOT IN (0, 5)",
    }.items():
        assert db.execute(sql).fetchall() == [], name


def examine(
    recorder: Recorder, folder: Path, *, stride: int, kinds: tuple[ImageKind, ...] | None = None
) -> tuple[int, int]:
    """(images looked at, images that lost something acknowledged); raises on damage."""
    seen = lost = 0
    options = {} if kinds is None else {"kinds": kinds}
    for image in images(recorder, seed=SEED, stride=stride, **options):
        db = opened(image, folder)
        try:
            check_database(db)
            check_agreement(db)
            lost += bool(missing(db, image.acked))
        except AssertionError as exc:
            raise AssertionError(f"{image}: {exc}") from exc
        finally:
            db.close()
        seen += 1
    return seen, lost


async def test_acknowledged_writes_survive_a_crash_at_sampled_points(tmp_path: Path) -> None:
    recorder = await record_work(_folder(tmp_path, "live"))
    seen, lost = examine(recorder, tmp_path / "image", stride=FEW)
    assert seen > 50
    assert lost == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_acknowledged_writes_survive_a_crash_at_every_point(tmp_path: Path) -> None:
    recorder = await record_work(_folder(tmp_path, "live"))
    seen, lost = examine(recorder, tmp_path / "image", stride=ALL)
    assert seen > 400
    assert lost == 0


async def test_without_full_sync_the_same_crashes_lose_what_was_acknowledged(
    tmp_path: Path,
) -> None:
    recorder = await record_work(_folder(tmp_path, "live"), synchronous="NORMAL")
    seen, lost = examine(recorder, tmp_path / "image", stride=FEW, kinds=("unsynced",))
    assert lost > seen / 4


async def test_a_full_disk_at_any_write_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """The disk fills at one moment after another; the next start finds all that was told."""
    folder = _folder(tmp_path, "live")
    async with open_world(folder):
        pass
    full = 0
    for free_bytes in range(0, 400_000, 40_000):
        with Recorder(folder) as recorder:
            async with open_world(folder, vfs=recorder.vfs_name) as world:
                recorder.free_bytes = free_bytes
                told, reason = await _say_until_refused(world, f"disk {free_bytes}")
                recorder.free_bytes = None
            assert reason in {"", "full"}
            full += bool(reason)
        async with open_world(folder, inline=True) as world:
            for note in told:
                assert (await world.memory.get(world.agent(), [note])).hits
            await world.check_index()
    assert full > 3


async def _say_until_refused(world: World, text: str) -> tuple[list[str], str]:
    told: list[str] = []
    for n in range(20):
        try:
            told.append(await world.say(f"{text} note {n}"))
        except StoreError as exc:
            return told, exc.reason
    return told, ""


def test_a_crash_in_the_first_migration_leaves_nothing_or_all(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "live")
    with Recorder(folder) as recorder:
        connection = apsw.Connection(str(folder / "covey.db"), vfs=recorder.vfs_name)
        configure(connection)
        migrate(connection, folder / "covey.db", Clock(), "memory.storage.migrations")
        recorder.ack("done")
        connection.close()
    versions = set()
    for image in images(recorder, seed=SEED, stride=7):
        db = opened(image, tmp_path / "image")
        check_database(db)
        version = db.execute("PRAGMA user_version").get
        tables = db.execute("SELECT count(*) FROM sqlite_schema").get
        assert (version == 0) == (tables == 0), str(image)
        assert version or "done" not in image.acked
        versions.add(version)
        migrate(db, tmp_path / "image" / "covey.db", Clock(), "memory.storage.migrations")
        check_database(db)
        db.close()
    assert versions == set(range(len(load_migrations("memory.storage.migrations")) + 1))


def test_a_crash_in_a_later_migration_leaves_the_old_schema_or_the_new(
    tmp_path: Path, steps: Path
) -> None:
    folder = _folder(tmp_path, "live")
    path = folder / "covey.db"
    connection = apsw.Connection(str(path))
    configure(connection)
    migrate(connection, path, Clock(), "steps_for_crash")
    for n in range(200):
        connection.execute("INSERT INTO a VALUES (?)", (f"row {n} " + "x" * 200,))
    connection.close()
    (steps / "0002_move.sql").write_text(
        "CREATE TABLE b(y TEXT); INSERT INTO b SELECT x FROM a; DROP TABLE a;"
    )
    with Recorder(folder) as recorder:
        connection = apsw.Connection(str(path), vfs=recorder.vfs_name)
        configure(connection)
        migrate(connection, path, Clock(), "steps_for_crash")
        recorder.ack("done")
        connection.close()
    versions = set()
    for image in images(recorder, seed=SEED, stride=7):
        db = opened(image, tmp_path / "image")
        check_database(db)
        version = db.execute("PRAGMA user_version").get
        table = {1: "a", 2: "b"}[version]
        assert db.execute(f"SELECT count(*) FROM {table}").get == 200, str(image)
        assert version == 2 or "done" not in image.acked
        versions.add(version)
        db.close()
    assert versions == {1, 2}
    backup = apsw.Connection(str(next((folder / "backups").iterdir())))
    assert backup.execute("SELECT count(*) FROM a").get == 200
    backup.close()


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "lib" / "steps_for_crash"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "0001_first.sql").write_text(
        "CREATE TABLE migration(number INTEGER PRIMARY KEY, name TEXT, sha256 BLOB, at_ms INTEGER);"
        "CREATE TABLE a(x TEXT);"
    )
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    sys.modules.pop("steps_for_crash", None)


def configure(connection: apsw.Connection) -> None:
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder
