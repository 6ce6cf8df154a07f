"""`covey verify` finds what was altered; `covey export` writes what stock tools read."""

from __future__ import annotations

import json
import os
import sqlite3
from typing import TYPE_CHECKING, cast

import apsw
import pytest

from tests.helpers.daemons import Home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "h")
    yield made
    made.stop()


def fill(home: Home) -> None:
    home.ok("rpc", "memory.remember", json.dumps({"notes": [
        {"text": "the zebrafish swims in tank seven", "scope": "lab", "tags": ["fish", "tank"],
         "title": "Tank: seven", "at": "2021-03-04T05:06:07.089Z", "speaker": "bob",
         "thread": "animals", "pos": 3, "kind": "event"},
        {"text": "long " * 300 + "\n\nwith “quotes”, a\ttab and 漢字\n", "scope": "lab"},
        {"text": "the build needs node 22", "kind": "claim",
         "claim": {"subject": "build", "attribute": "node", "value": "22"},
         "source": {"uri": "https://example.org/a", "tool": "browser"},
         "valid_from": "2020-01-01", "valid_to": "2030-01-01"},
        {"text": "only for this machine", "scope": "private/own"},
    ]}))  # fmt: skip
    old = cast("list[dict[str, Json]]", home.json("list", "--scope", "main"))
    del old
    gone = home.json("remember", "this one is forgotten", "--scope", "lab")
    home.ok("forget", _id(gone))


def _id(result: Json) -> str:
    if isinstance(result, list):
        result = result[0]
    assert isinstance(result, dict)
    return str(result["id"])


# ---- verify


def test_a_sound_node_is_sound_running_and_stopped(home: Home) -> None:
    home.up()
    fill(home)
    running = cast("dict[str, Json]", home.json("verify"))
    home.stop()
    stopped = cast("dict[str, Json]", home.json("verify"))
    assert running["sound"] is True
    assert running["findings"] == []
    assert int(str(running["records"])) >= 10
    assert int(str(running["memories"])) == 5
    assert stopped == running


HARM = {
    "signature": "UPDATE record SET sig = zeroblob(64) WHERE n = (SELECT max(n) FROM record)",
    "header": "UPDATE record SET header = CAST(substr(header, 1, 40) || x'00' || substr(header, 42)"
    " AS BLOB) WHERE n = (SELECT max(id) FROM memory)",
    "row": "UPDATE record SET hlc = hlc + 1 WHERE n = (SELECT max(n) FROM record)",
    "head": "UPDATE log SET head_id = zeroblob(32) WHERE lane = 1",
    "body": "UPDATE body SET ct = zeroblob(length(ct)) WHERE n = (SELECT max(id) FROM memory)",
    "key": "DELETE FROM body_key WHERE n = (SELECT max(id) FROM memory)",
    "text": "UPDATE chunk SET text = text || '!' WHERE id = 1",
    "chunks": "UPDATE memory SET chunks = chunks + 1 WHERE id = (SELECT min(id) FROM memory)",
    "index": "INSERT INTO main_fts(main_fts, rowid, scope_tok, title, text)"
    " SELECT 'delete', id, scope_tok, title, text FROM chunk WHERE id = 1",
    "counter": "UPDATE scope SET main_chunks = main_chunks + 1",
    "projection": "DELETE FROM forgetting",
    "erased": "INSERT INTO erased SELECT id, x'', 0 FROM record WHERE n ="
    " (SELECT max(id) FROM memory)",
}


@pytest.mark.slow
def test_what_is_altered_is_named_with_its_remedy(home: Home) -> None:
    home.up()
    fill(home)
    home.stop()
    path = home.folder / "state" / "covey.db"
    sound = path.read_bytes()
    for check, sql in HARM.items():
        path.write_bytes(sound)
        connection = apsw.Connection(str(path))
        connection.execute(sql).fetchall()
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0] == 0
        connection.close()
        done = home.run("verify", "--json")
        assert done.returncode == 1, check
        report = json.loads(done.stdout)
        assert check in [finding["check"] for finding in report["findings"]], (check, report)
        assert all(finding["remedy"] for finding in report["findings"])
        assert "zebrafish" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_record_in_another_place_breaks_the_chain(home: Home) -> None:
    home.up()
    fill(home)
    home.stop()
    path = home.folder / "state" / "covey.db"
    connection = apsw.Connection(str(path))
    # Two good records of one log change places: each signature still holds.
    connection.execute(
        "UPDATE record SET seq = -seq WHERE log = (SELECT n FROM log WHERE lane = 1 LIMIT 1)"
        " AND seq IN (2, 3);"
        "UPDATE record SET seq = 5 + seq WHERE seq < 0"
    ).fetchall()
    connection.close()
    done = home.run("verify")
    assert done.returncode == 1
    assert "row" in done.stdout
    assert "covey restore" in done.stdout


def flip_a_page(path: Path, table: str) -> None:
    """Spoil the root page of a table."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).get
    size = connection.execute("PRAGMA page_size").get
    connection.close()
    assert isinstance(root, int)
    assert isinstance(size, int)
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"\xff" * 64, (root - 1) * size)
    os.close(fd)


@pytest.mark.slow
def test_a_damaged_page_is_named_and_a_restore_mends_it(home: Home) -> None:
    home.up()
    fill(home)
    home.ok("backup")
    home.stop()
    path = home.folder / "state" / "covey.db"
    flip_a_page(path, "log")
    doctor = home.run("doctor", "store")
    assert doctor.returncode == 1
    assert "covey restore latest" in doctor.stdout
    verify = home.run("verify")
    assert verify.returncode == 1
    assert "covey restore latest" in verify.stdout
    up = home.run("up")
    assert up.returncode != 0
    assert "covey restore latest" in up.stderr
    restored = home.run("restore", "latest")
    assert restored.returncode == 0, restored.stderr
    home.up()
    assert home.texts("zebrafish") == ["the zebrafish swims in tank seven"]
    assert home.run("verify").returncode == 0


# ---- export


def test_an_export_opens_with_stock_sqlite(home: Home, tmp_path: Path) -> None:
    home.up()
    fill(home)
    path = tmp_path / "out.db"
    home.ok("export", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    kinds = {row[0] for row in database.execute("SELECT type FROM sqlite_master")}
    assert kinds == {"table", "index"}
    assert not database.execute("SELECT 1 FROM sqlite_master WHERE sql LIKE '%VIRTUAL%'").fetchone()
    row = database.execute(
        "SELECT m.title, m.at, m.tags, m.speaker, m.pos, s.name, a.agent, m.kind FROM memory m"
        " JOIN scope s ON s.id = m.scope JOIN author a ON a.id = m.author"
        " WHERE m.text LIKE '%zebrafish%'"
    ).fetchone()
    assert row == ("Tank: seven", "2021-03-04T05:06:07.089Z", '["fish", "tank"]', "bob", 3, "lab",
                   "you", "event")  # fmt: skip
    claim = database.execute(
        "SELECT c.subject, c.attribute, m.claim_value, m.source_uri FROM claim c"
        " JOIN memory m ON m.claim = c.id"
    ).fetchall()
    assert claim == [("build", "node", "22", "https://example.org/a")]
    texts = [row[0] for row in database.execute("SELECT text FROM memory ORDER BY id")]
    assert len(texts) == 4
    assert not [text for text in texts if "forgotten" in text]
    for memory, text in database.execute("SELECT id, text FROM memory").fetchall():
        pieces = database.execute("SELECT text FROM chunk WHERE memory = ? ORDER BY i", (memory,))
        assert "".join(piece[0] for piece in pieces) == text
    database.close()


@pytest.mark.slow
def test_json_lines_come_back_with_equal_texts_and_dates(home: Home, tmp_path: Path) -> None:
    home.up()
    fill(home)
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    home.ok("export", str(first))
    home.stop()
    other = Home(tmp_path / "other", "other")
    try:
        other.up()
        other.ok("import", str(first))
        other.ok("export", str(second))
    finally:
        other.stop()
    lines = [
        sorted((json.loads(line) for line in path.read_text().splitlines()), key=_text)
        for path in (first, second)
    ]
    assert len(lines[0]) == len(lines[1]) == 4
    for before, after in zip(*lines, strict=True):
        for name in ("text", "title", "tags", "scope", "kind", "speaker", "at", "pos",
                     "valid_from", "valid_to", "claim"):  # fmt: skip
            if name != "pos" or before.get("thread"):
                assert before.get(name) == after.get(name), name
        assert before["covey"]["id"] != after["covey"]["id"]
        assert before["source"] == {k: v for k, v in after["source"].items() if v}
        if "example.org" not in before["source"]["uri"]:
            assert before["source"]["uri"] == f"covey:{before['covey']['id']}"
            assert before["source"]["tool"] == "you@node"
        assert after["covey"]["role"] == "tool"


def _text(line: dict[str, str]) -> str:
    return line["text"]


@pytest.mark.slow
def test_an_export_never_replaces_a_file_unasked(home: Home, tmp_path: Path) -> None:
    home.up()
    fill(home)
    path = tmp_path / "notes.md"
    path.write_text("mine")
    done = home.run("export", str(path))
    assert done.returncode == 6
    assert "--force" in done.stderr
    assert path.read_text() == "mine"
    home.ok("export", str(path), "--force", "--scope", "lab")
    text = path.read_text()
    assert "## Tank: seven" in text
    assert "the zebrafish swims in tank seven" in text
    assert "node 22" not in text
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["notes.md"]
    assert home.run("export", str(tmp_path / "nowhere" / "x.md")).returncode == 1
    assert home.run("export", str(tmp_path / "x.odd")).returncode == 2
    assert "zebrafish" in home.ok("export", "-", "--scope", "lab")


@pytest.mark.slow
def test_an_agent_exports_what_it_may_read_and_makes_the_daemon_write_nothing(
    home: Home, tmp_path: Path
) -> None:
    home.up()
    fill(home)
    token = cast("dict[str, Json]", home.json("agents", "add", "scribe", "--scope", "read:lab"))[
        "token"
    ]
    env = {"COVEY_AGENT": "scribe", "COVEY_GRANT": str(token)}
    path = tmp_path / "lab.jsonl"
    home.ok("export", str(path), env=env)
    scopes = {json.loads(line)["scope"] for line in path.read_text().splitlines()}
    assert scopes == {"lab"}
    assert home.run("export", str(tmp_path / "m.jsonl"), "--scope", "main", env=env).returncode == 5
    for words in (["backup"], ["verify"], ["backup", "list"]):
        assert home.run(*words, env=env).returncode == 5


@pytest.mark.slow
def test_a_secret_that_may_stay_here_does_not_leave_in_a_file(home: Home, tmp_path: Path) -> None:
    secret = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
    with (home.folder / "config.toml").open("a") as file:
        file.write('[security]\nsecrets = "allow"\n')
    home.up()
    home.ok("remember", f"the pipeline's token is {secret} for now")
    assert secret in home.texts("pipeline token")[0]
    path = tmp_path / "out.jsonl"
    home.ok("export", str(path))
    text = path.read_text()
    assert "pipeline" in text
    assert secret not in text
    assert "[REDACTED:" in text
