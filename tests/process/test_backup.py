"""Backups and restores of real daemons: under load, killed, erased, altered, with the key."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sqlite3
import threading
from typing import TYPE_CHECKING, cast

import apsw
import pytest

from tests.helpers.daemons import Home, wait_gone, wait_until
from tests.helpers.small_disk import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json

TABLES = ("memory", "chunk", "link", "claim", "forgetting", "parent", "kept", "author", "scope")
"""What a restore must bring back as it was."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "h")
    yield made
    made.stop()


def backup(home: Home, *words: str, **env: str) -> Path:
    made = home.json("backup", "create", *words, env=env)
    assert isinstance(made, dict)
    return home.folder / "state" / "backups" / str(made["name"])


def dump(home: Home) -> dict[str, list[tuple[object, ...]]]:
    """Rows of a stopped node's memory."""
    connection = apsw.Connection(str(home.folder / "state" / "covey.db"))
    found = {}
    for table in TABLES:
        rows = connection.execute(f"SELECT * FROM {table}").fetchall()
        # Counters of changes and the order of pieces' numbers are not content.
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})").fetchall()]
        kept = [
            i
            for i, name in enumerate(names)
            if (table, name)
            not in {("scope", "generation"), ("chunk", "id"), ("memory", "claim"), ("claim", "id")}
        ]
        found[table] = sorted((tuple(row[i] for i in kept) for row in rows), key=repr)
    connection.close()
    return found


def fill(home: Home) -> str:
    """A few notes of every sort; the id of one that is to be erased or forgotten."""
    home.ok("remember", "the zebrafish swims in tank seven", "--scope", "lab", "--tag", "fish")
    old = home.json("remember", "staging runs on port 8080", "--title", "ports")
    home.ok("remember", "staging runs on port 9090", "--supersedes", _id(old))
    gone = home.json("remember", "the cellar door sticks in winter")
    home.ok("forget", _id(gone))
    home.ok(
        "rpc",
        "memory.remember",
        json.dumps(
            {
                "text": "the build needs node 22",
                "kind": "claim",
                "claim": {"subject": "build", "attribute": "node", "value": "22"},
                "thread": "setup",
                "speaker": "bob",
                "source": {"uri": "file:x", "tool": "t"},
            }
        ),
    )
    last = home.json("remember", "quokkas smile at the harbour", "--scope", "private/zoo")
    return _id(last)


def _id(result: Json) -> str:
    if isinstance(result, list):
        result = result[0]
    assert isinstance(result, dict)
    return str(result["id"])


def plain_bytes(folder: Path, words: bytes) -> list[str]:
    """Files below a folder that hold these bytes."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.is_socket() and words in path.read_bytes()
    ]


def test_a_restored_node_is_what_was_backed_up(home: Home) -> None:
    home.up()
    fill(home)
    made = backup(home)
    home.ok("remember", "written after the backup")
    home.stop()
    after = dump(home)
    done = home.json("restore", made.name)
    assert isinstance(done, dict)
    restored = dump(home)
    texts = {str(row) for row in after["chunk"]} - {str(row) for row in restored["chunk"]}
    assert len(texts) == 1
    assert "written after the backup" in texts.pop()
    home.up()
    assert home.texts("zebrafish") == ["the zebrafish swims in tank seven"]
    assert home.texts("written after the backup") == []
    assert "port 9090" in home.texts("staging port")[0]
    assert home.texts("cellar door") == []
    home.ok("doctor", "store")
    aside = home.folder / "state" / str(done["aside"]).rsplit("/", 1)[1]
    assert (aside / "covey.db").is_file()
    assert aside.stat().st_mode & 0o777 == 0o700


def test_rows_of_the_memory_come_back_as_they_were(home: Home) -> None:
    home.up()
    fill(home)
    made = backup(home)
    home.stop()
    before = dump(home)
    home.ok("restore", made.name)
    assert dump(home) == before


def test_a_backup_holds_no_plain_text_and_is_ours_alone(home: Home) -> None:
    home.up()
    fill(home)
    made = backup(home)
    assert plain_bytes(made, b"zebrafish") == []
    assert plain_bytes(home.folder / "state", b"zebrafish") != []
    for path in [made, *made.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    stock = sqlite3.connect(made / "covey.db")
    assert stock.execute("SELECT count(*) FROM body_key").fetchone() == (0,)
    assert stock.execute("SELECT count(*) FROM body").fetchone()[0] > 5
    stock.close()


@pytest.mark.slow
def test_writes_go_on_while_a_backup_is_made(home: Home) -> None:
    home.up()
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not stop.is_set():
            home.ok("remember", f"load number {len(written)}", "--scope", "load")
            written.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until("some notes", lambda: len(written) > 3)
        made = [backup(home) for _ in range(3)]
    finally:
        stop.set()
        writer.join()
    assert len({path.name for path in made}) == 3
    for path in made:
        home.ok("backup", "verify", path.name)
    assert made[-1].name in home.ok("backup", "verify", "latest")
    home.stop()
    home.ok("restore", made[-1].name)
    home.up()
    assert len(home.texts("load number", "--limit", "100")) >= 4


@pytest.mark.parametrize("point", ["backup.copied", "backup.filled", "backup.renamed"])
def test_a_kill_in_a_backup_leaves_a_whole_one_or_none(home: Home, point: str) -> None:
    pid = home.up(COVEY_TEST_FAULT=f"{point}:1")
    home.ok("remember", "kept through the kill")
    home.run("backup", "--no-autostart")
    wait_gone(pid)
    home.up()
    found = home.json("backup", "list")
    assert isinstance(found, list)
    assert len(found) == (1 if point == "backup.renamed" else 0)
    backups = home.folder / "state" / "backups"
    wait_until(
        "the rest is gone", lambda: not [p for p in backups.iterdir() if p.name.startswith(".")]
    )
    assert home.texts("kept through") == ["kept through the kill"]
    home.ok("backup", "verify", backup(home).name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "count", "then"),
    [
        ("restore.projecting", 1, "up"),
        ("restore.projected", 1, "restore"),
        ("restore.staged", 1, "up"),
        ("restore.journal", 1, "up"),
        ("restore.journal", 1, "restore"),
        ("restore.aside", 1, "up"),
        ("restore.swapped", 1, "restore"),
        ("restore.aside", 2, "up"),
        ("restore.swapped", 2, "up"),
    ],
)
def test_a_kill_in_a_restore_leaves_one_of_the_two_states(
    home: Home, point: str, count: int, then: str
) -> None:
    home.up()
    home.ok("remember", "in the backup")
    made = backup(home)
    home.ok("remember", "after the backup")
    home.stop()
    killed = home.run("restore", made.name, env={"COVEY_TEST_FAULT": f"{point}:{count}"})
    assert killed.returncode == -9
    state = home.folder / "state"
    swapping = (state / "restore.json").exists()
    assert swapping == (point not in ("restore.projecting", "restore.projected", "restore.staged"))
    if then == "restore":
        home.ok("restore", made.name)
        swapping = True
    home.up()
    assert "in the backup" in home.texts("backup")
    assert ("after the backup" in home.texts("backup")) != swapping
    assert not (state / "restore.json").exists()
    assert not list(state.glob(".restoring-*"))
    home.ok("remember", "life goes on")
    home.ok("doctor", "store")


@pytest.mark.slow
def test_erased_text_stays_gone_in_backup_and_restore(home: Home) -> None:
    home.up()
    fill(home)
    target = home.json("remember", "the xylophone is hidden in locker ninety")
    record = bytes.fromhex(_id(target))
    home.texts("xylophone")
    home.stop()  # the feedback log is on disk
    home.up()
    made = backup(home)
    assert record in (made / "behaviour.db").read_bytes()
    home.stop()
    state = home.folder / "state"
    keep = home.folder / "elsewhere"
    shutil.copytree(made, keep)
    # What an erasure leaves behind: the file beside the database, and no key in the backups.
    with (state / "erased.ids").open("ab") as file:
        file.write(record)
    from daemon.backup import shred_backups

    assert shred_backups(state, [record]) == 1
    assert shred_backups(state, [record]) == 0
    home.ok("restore", made.name)
    assert record not in (state / "behaviour.db").read_bytes()
    restored = plain_bytes(state, b"xylophone")
    assert [name for name in restored if not name.startswith("before-restore-")] == []
    # The state that was put aside held it in plain; the next erasure takes it out there too.
    assert restored
    assert shred_backups(state, [record]) == 1
    assert plain_bytes(state, b"xylophone") == []
    home.up()
    assert home.texts("xylophone") == []
    assert home.texts("zebrafish") != []
    # A copy elsewhere still has its key; the erasure that this machine knows of stands.
    home.stop()
    home.ok("restore", str(keep))
    shutil.rmtree(keep)
    assert plain_bytes(state, b"xylophone") == []
    home.up()
    assert home.texts("xylophone") == []


def test_a_whole_database_comes_back_without_what_was_erased_since(home: Home) -> None:
    home.up()
    fill(home)
    record = bytes.fromhex(_id(home.json("remember", "the xylophone is hidden in locker ninety")))
    home.stop()
    state = home.folder / "state"
    keep = home.folder / "elsewhere.db"
    for end in ("", "-wal"):
        if (state / f"covey.db{end}").exists():
            shutil.copyfile(state / f"covey.db{end}", f"{keep}{end}")
    assert b"xylophone" in keep.read_bytes()
    with (state / "erased.ids").open("ab") as file:
        file.write(record)
    home.ok("restore", str(keep))
    left = [n for n in plain_bytes(state, b"xylophone") if not n.startswith("before-restore-")]
    assert left == []
    home.up()
    assert home.texts("xylophone") == []
    assert home.texts("zebrafish") != []


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE record SET sig = zeroblob(64) WHERE kind = 32", "did not sign"),
        ("UPDATE record SET hlc = hlc + 1 WHERE kind = 32", "differ from their header"),
        ("UPDATE body SET ct = zeroblob(length(ct))", "are not the ones"),
        ("UPDATE log SET author = zeroblob(32)", "differ from their header"),
    ],
)
def test_a_copy_with_records_that_nobody_signed_is_not_restored(
    home: Home, sql: str, said: str
) -> None:
    home.up()
    fill(home)
    made = backup(home)
    home.stop()
    before = dump(home)
    connection = apsw.Connection(str(made / "covey.db"))
    connection.execute(sql)
    connection.close()
    _restate(made, "covey.db")
    done = home.run("restore", made.name)
    assert done.returncode != 0, done.stderr
    assert "cannot be used" in done.stderr
    assert said in done.stderr
    assert dump(home) == before
    assert not list((home.folder / "state").glob(".restoring-*"))


@pytest.mark.slow
def test_the_key_travels_under_its_passphrase_only(home: Home, tmp_path: Path) -> None:
    home.up()
    fill(home)
    word = "correct horse battery"
    made = backup(home, "--with-key", COVEY_PASSPHRASE=word)
    key = (home.folder / "state" / "key").read_bytes()
    assert plain_bytes(made, key[4:36]) == []
    status = cast("dict[str, Json]", home.json("status"))
    home.stop()
    fresh = Home(tmp_path / "new", "node")
    without = fresh.run("restore", str(made))
    assert without.returncode == 77
    assert "--with-key" in without.stderr
    wrong = fresh.run("restore", str(made), "--with-key", env={"COVEY_PASSPHRASE": "incorrect 1"})
    assert wrong.returncode == 77
    assert not (fresh.folder / "state" / "key").exists()
    assert not (fresh.folder / "state" / "covey.db").exists()
    fresh.ok("restore", str(made), "--with-key", env={"COVEY_PASSPHRASE": word})
    try:
        fresh.up()
        again = cast("dict[str, Json]", fresh.json("status"))
        assert again["peer_id"] == status["peer_id"]
        assert fresh.texts("zebrafish") == ["the zebrafish swims in tank seven"]
        fresh.ok("remember", "written on the new machine")
        # No file there knew how far the old logs had gone since: they are not continued.
        own = bytes.fromhex(str(again["node_id"]))
        assert incarnations(fresh, own, 1) == 2
    finally:
        fresh.stop()


def stay_at_a_port(home: Home) -> None:
    """Listen where others look for it after both were down."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    path = home.folder / "config.toml"
    path.write_text(path.read_text().replace("/tcp/0", f"/tcp/{port}"))


def incarnations(home: Home, device: bytes, lane: int) -> int:
    """How many logs a device has begun in its home, with records in them."""
    connection = apsw.Connection(
        str(home.folder / "state" / "covey.db"), flags=apsw.SQLITE_OPEN_READONLY
    )
    found = connection.execute(
        "SELECT count(*) FROM log l JOIN grp g ON g.n = l.grp AND g.home = 1"
        " WHERE l.author = ? AND l.lane = ? AND l.max_seq > 0",
        (device, lane),
    ).get
    connection.close()
    assert isinstance(found, int)
    return found


@pytest.mark.slow
def test_a_restored_machine_forks_nothing_and_gets_its_later_notes_back(
    home: Home, tmp_path: Path
) -> None:
    desk = Home(tmp_path / "desk", "desk")
    stay_at_a_port(desk)
    try:
        home.up()
        desk.up()
        ticket = cast("dict[str, Json]", home.json("invite", "--no-wait"))["ticket"]
        desk.ok("join", str(ticket), "--yes")
        home.ok("remember", "before the backup")
        made = backup(home)
        home.ok("remember", "seen by the desk after the backup")
        wait_until("the desk has it", lambda: "seen by the desk" in str(desk.texts("seen desk")))
        own = bytes.fromhex(str(cast("dict[str, Json]", home.json("status"))["node_id"]))
        desk.stop()
        home.stop()
        # The image of a disk, and with it the file that would have told: the worst case.
        (home.folder / "state" / "high.mark").unlink()
        home.ok("restore", made.name)
        home.up()
        assert home.texts("seen desk") == []
        home.ok("remember", "written while nobody could say what was lost")
        assert incarnations(home, own, 1) == 2
        desk.up()
        wait_until(
            "the desk has the new one", lambda: "nobody could say" in str(desk.texts("nobody lost"))
        )
        wait_until(
            "the later one is back", lambda: "seen by the desk" in str(home.texts("seen desk"))
        )
        for node in (home, desk):
            connection = apsw.Connection(
                str(node.folder / "state" / "covey.db"), flags=apsw.SQLITE_OPEN_READONLY
            )
            assert connection.execute("SELECT count(*) FROM fork").get == 0
            assert connection.execute("SELECT count(*) FROM log WHERE frozen IS NOT NULL").get == 0
            connection.close()
            assert node.run("verify").returncode == 0
            assert "fork" not in {line.get("event") for line in node.log()}
    finally:
        desk.stop()


@pytest.mark.slow
def test_a_full_disk_ends_a_backup_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path, "1m") as disk:
        home = Home(tmp_path / "h")
        with (home.folder / "config.toml").open("a") as file:
            file.write(f'[backup]\ndir = "{disk}/copies"\n')
        try:
            home.up()
            home.ok("remember", "kept though no backup could be made")
            done = home.run("backup", "--json")
            error = json.loads(done.stdout)["error"]
            assert done.returncode == 75
            assert error["name"] == "storage_full"
            assert "[backup] dir" in error["message"]
            assert list((disk / "copies").iterdir()) == []
            assert home.texts("kept though") == ["kept though no backup could be made"]
        finally:
            home.stop()


@pytest.mark.slow
def test_a_copy_outside_is_said_to_be_out_of_reach(home: Home, tmp_path: Path) -> None:
    with (home.folder / "config.toml").open("a") as file:
        file.write(f'[backup]\ndir = "{tmp_path}/outside"\n')
    home.up()
    ident = _id(home.json("remember", "something secret"))
    home.ok("remember", "something else")
    done = home.run("backup")
    assert "an erasure does not reach it" in done.stderr
    (made,) = cast("list[dict[str, Json]]", home.json("backup", "list"))
    assert made["outside"] is True
    assert (made["erased_since"], made["erased_in"]) == (0, [])
    home.ok("erase", ident, "--yes")
    (made,) = cast("list[dict[str, Json]]", home.json("backup", "list"))
    assert made["erased_since"] == 1
    (group,) = cast("list[dict[str, Json]]", made["erased_in"])
    assert (group["group"], group["records"], group["readable"]) == ("home", 1, 1)
    words = "older than an erasure: 1 of home, 1 still readable in it: delete it"
    assert words in home.ok("backup", "list")
    verified = home.run("backup", "verify", "latest")
    assert verified.returncode == 0
    assert words in verified.stderr
    # The next backup is younger than the erasure.
    home.ok("backup")
    newest, _ = cast("list[dict[str, Json]]", home.json("backup", "list"))
    assert newest["erased_in"] == []


def test_a_short_passphrase_is_refused(home: Home) -> None:
    home.up()
    done = home.run("backup", "create", "--with-key", env={"COVEY_PASSPHRASE": "short"})
    assert done.returncode == 2
    assert "8 characters" in done.stderr


def test_a_backup_of_another_device_is_refused(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    try:
        other.up()
        made = backup(other)
    finally:
        other.stop()
    home.up()
    home.stop()
    done = home.run("restore", str(made))
    assert done.returncode == 6
    assert "another device" in done.stderr


def _alter_manifest(made: Path) -> None:
    path = made / "manifest.json"
    path.write_text(path.read_text().replace('"bytes"', '"bites"', 1))


def _lie_about_a_hash(made: Path) -> None:
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["covey.db"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))


def _cut_the_copy(made: Path) -> None:
    os.truncate(made / "covey.db", (made / "covey.db").stat().st_size // 2)


def _lead_elsewhere(made: Path) -> None:
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../key"] = manifest["files"]["covey.db"]
    path.write_text(json.dumps(manifest))


def _link_elsewhere(made: Path) -> None:
    (made / "covey.db.keys").rename(made.parent / "moved")
    (made / "covey.db.keys").symlink_to(made.parent / "moved")


def _take_the_keys(made: Path) -> None:
    (made / "covey.db.keys").unlink()


@pytest.mark.parametrize(
    "harm",
    [
        _alter_manifest,
        _lie_about_a_hash,
        _cut_the_copy,
        _lead_elsewhere,
        _link_elsewhere,
        _take_the_keys,
    ],
)
def test_what_was_altered_is_not_restored(home: Home, harm: object) -> None:
    home.up()
    home.ok("remember", "still here")
    made = backup(home)
    home.stop()
    before = dump(home)
    assert callable(harm)
    harm(made)
    done = home.run("restore", made.name)
    assert done.returncode == 1, done.stderr
    assert "cannot be used" in done.stderr
    assert "covey backup list" in done.stderr
    assert dump(home) == before
    assert not list((home.folder / "state").glob(".restoring-*"))


def _restate(made: Path, name: str) -> None:
    """Let the manifest say of a file what it is now, as whoever made it would."""
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    data = (made / name).read_bytes()
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


STRANGE = {
    # Each runs SQL of the backup's maker in a restore that trusts names or schema of a copy.
    "a table's name": (
        "CREATE TABLE stash_x(y);"
        " CREATE TABLE \"stash_x; COMMIT; ATTACH '{out}' AS o; CREATE TABLE o.t(x)\"(y)"
    ),
    "a column's name": (
        "CREATE TABLE stash_domain(\"agent) SELECT 1; COMMIT; ATTACH '{out}' AS o; --\" TEXT)"
    ),
    "a trigger": ("CREATE TRIGGER t AFTER INSERT ON memory BEGIN UPDATE author SET trust = 1; END"),
    "a view": "CREATE VIEW stash_memory2 AS SELECT 1",
    "another table of ours": "DROP TABLE ack; CREATE TABLE ack(x DEFAULT (abs(1)))",
}


@pytest.mark.parametrize("sql", STRANGE.values(), ids=STRANGE.keys())
def test_a_copy_brings_no_sql_of_its_own(home: Home, tmp_path: Path, sql: str) -> None:
    home.up()
    home.ok("remember", "still here")
    made = backup(home)
    home.stop()
    before = dump(home)
    out = tmp_path / "written"
    connection = apsw.Connection(str(made / "covey.db"))
    connection.execute("PRAGMA journal_mode=DELETE").fetchall()
    connection.execute(sql.format(out=out))
    connection.close()
    _restate(made, "covey.db")
    done = home.run("restore", made.name)
    assert not out.exists()
    assert done.returncode == 1, done.stderr
    assert "somebody altered it" in done.stderr
    assert dump(home) == before
    assert not list((home.folder / "state").glob(".restoring-*"))


def test_a_restore_beside_a_running_daemon_is_refused(home: Home) -> None:
    home.up()
    made = backup(home)
    done = home.run("restore", made.name)
    assert done.returncode == 6
    assert "covey down" in done.stderr


def test_old_ones_go_and_what_is_asked_for_stays(home: Home) -> None:
    home.up()
    names = [backup(home).name for _ in range(3)]
    gone = cast("dict[str, Json]", home.json("backup", "prune", "--keep", "2"))
    assert gone["removed"] == [names[0]]
    listed = home.json("backup", "list")
    assert isinstance(listed, list)
    assert [cast("dict[str, Json]", row)["name"] for row in listed] == [names[2], names[1]]
    assert home.run("backup", "verify", "../backups").returncode == 4
    assert home.run("backup", "verify", names[0]).returncode == 4
