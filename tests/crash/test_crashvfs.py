"""The crash harness itself: FULL loses nothing, NORMAL must be seen to lose."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import apsw
import pytest

from tests.helpers.crashvfs import Image, ImageKind, Recorder, Sync, Write, check_database, images
from tests.helpers.sometimes import Sometimes

if TYPE_CHECKING:
    from pathlib import Path

UNITS = 40
SCHEMA = """
create table record(id integer primary key, body text) strict;
create virtual table words using fts5(body);
create table counter(n integer) strict;
insert into counter values (0);
"""


def write_units(recorder: Recorder, *, synchronous: str) -> None:
    """40 units of three tables each, a checkpoint in the middle and a second reader connection."""
    path = str(recorder.folder / "m.db")
    with closing(apsw.Connection(path, vfs=recorder.vfs_name)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute(f"pragma synchronous={synchronous}")
        with db:
            db.execute(SCHEMA)
        db.execute("pragma wal_checkpoint(truncate)")
        recorder.ack(-1)
        reader = apsw.Connection(path, vfs=recorder.vfs_name)
        for unit in range(UNITS):
            body = f"word{unit} " * 20
            with db:
                db.execute("insert into record values (?, ?)", (unit, body))
                db.execute("insert into words(rowid, body) values (?, ?)", (unit, body))
                db.execute("update counter set n = ?", (unit + 1,))
            recorder.ack(unit)
            assert reader.execute("select n from counter").get == unit + 1
            if unit == UNITS // 2:
                db.execute("pragma wal_checkpoint(truncate)")
        reader.close()


def outcome(image: Image, folder: Path) -> str:
    """Open one image: `ok`, `lost` (acknowledged, missing), `torn` (a unit in part), `corrupt`."""
    image.lay_out(folder)
    with_schema = -1 in image.acked
    try:
        db = apsw.Connection(str(folder / "m.db"))
        try:
            if not with_schema:
                return "ok" if db.execute("pragma integrity_check").get == "ok" else "corrupt"
            check_database(db)
            counted = int(db.execute("select n from counter").get)
            stored = int(db.execute("select count(*) from record").get)
            found = int(db.execute("select count(*) from words where words match 'word*'").get)
        finally:
            db.close()
    except (apsw.Error, AssertionError):
        return "corrupt"
    if not counted == stored == found:
        return "torn"
    return "ok" if counted >= len(image.acked) - 1 else "lost"


def outcomes(
    tmp_path: Path, synchronous: str, kinds: tuple[ImageKind, ...], *, stride: int = 1
) -> Counter[str]:
    home = tmp_path / "home"
    home.mkdir()
    with Recorder(home) as recorder:
        write_units(recorder, synchronous=synchronous)
    found: Counter[str] = Counter()
    for image in images(recorder, seed=7, kinds=kinds, stride=stride):
        found[outcome(image, tmp_path / "crash")] += 1
    return found


def test_full_is_atomic_and_durable_at_every_write(tmp_path: Path) -> None:
    found = outcomes(tmp_path, "full", ("whole", "torn", "unsynced"), stride=3)
    assert found["ok"] > 300
    assert found.total() == found["ok"], found


def test_control_normal_loses_what_it_acknowledged(tmp_path: Path) -> None:
    # Without this the harness could be blind: NORMAL syncs the log at checkpoints only.
    found = outcomes(tmp_path, "normal", ("unsynced",), stride=3)
    assert found["lost"] > found.total() / 2, found
    assert found["corrupt"] == found["torn"] == 0, found


def test_control_synchronous_off_is_seen_to_corrupt_or_lose(tmp_path: Path) -> None:
    found = outcomes(tmp_path, "off", ("unsynced",), stride=5)
    assert found["lost"] + found["corrupt"] + found["torn"] > found.total() / 2, found


def test_images_of_every_kind_occur_and_acknowledgements_never_shrink(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with Recorder(home) as recorder:
        write_units(recorder, synchronous="full")
    sometimes = Sometimes("whole", "torn", "unsynced")
    acked = 0
    for image in images(recorder, seed=1, stride=5):
        sometimes(image.kind)
        assert len(image.acked) >= acked
        acked = len(image.acked)
    sometimes.check()
    last = list(images(recorder, seed=1, kinds=["whole"], start=len(recorder.ops)))
    assert [image.acked for image in last] == [tuple(range(-1, UNITS))]
    assert last[0].files["m.db"] == (home / "m.db").read_bytes()


def test_an_unsynced_image_keeps_all_that_a_sync_covers(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with Recorder(home) as recorder:
        recorder.ops.extend(
            [Write("f", 0, b"aaaa"), Sync("f"), Write("f", 0, b"b"), Write("f", 2, b"c")]
        )
    seen = {
        image.files["f"]
        for seed in range(40)
        for image in images(recorder, seed=seed, kinds=["unsynced"], start=4)
    }
    assert seen == {b"aaaa", b"baaa", b"aaca", b"baca"}


def test_a_torn_image_holds_half_of_the_next_write(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with Recorder(home) as recorder:
        recorder.ops.extend([Write("f", 0, b"0123"), Write("f", 2, b"abcd")])
    torn = [image.files["f"] for image in images(recorder, seed=0, kinds=["torn"])]
    assert torn == [b"01", b"01ab"]


def test_files_that_were_there_before_belong_to_every_image(tmp_path: Path) -> None:
    (tmp_path / "m.db").write_bytes(b"old")
    with Recorder(tmp_path) as recorder:
        recorder.ops.append(Write("m.db", 3, b"er"))
    whole = [image.files["m.db"] for image in images(recorder, seed=0, kinds=["whole"])]
    assert whole == [b"old", b"older"]


def test_a_full_disk_is_reported_as_full_and_loses_nothing(tmp_path: Path) -> None:
    with (
        Recorder(tmp_path) as recorder,
        closing(apsw.Connection(str(tmp_path / "m.db"), vfs=recorder.vfs_name)) as db,
    ):
        db.execute("pragma journal_mode=wal")
        db.execute("create table t(x)")
        db.execute("insert into t values ('kept')")
        recorder.free_bytes = 100
        with pytest.raises(apsw.FullError):
            db.execute("insert into t values (zeroblob(50000))")
        recorder.free_bytes = None
        assert [row[0] for row in db.execute("select x from t")] == ["kept"]
        check_database(db)


def test_the_check_sees_a_full_text_index_that_differs_from_its_content() -> None:
    db = apsw.Connection(":memory:")
    db.execute(
        "create table t(id integer primary key, body text);"
        "create virtual table f using fts5(body, content=t, content_rowid=id);"
        "insert into t values (1, 'kept');"
        "insert into f(rowid, body) values (1, 'other')"
    )
    with pytest.raises(apsw.Error):
        check_database(db)
    db.close()
