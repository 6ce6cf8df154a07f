"""Commands against a real daemon: what a person types, what a program reads."""

from __future__ import annotations

import itertools
import json
import os
import select
import stat
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import COVEY, Home, wait_until
from tests.helpers.need import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("commands") / "h", "desk")
    made.up()
    yield made
    made.stop()


def row(value: Json) -> dict[str, Json]:
    assert isinstance(value, dict)
    return value


def rows(value: Json) -> list[dict[str, Json]]:
    assert isinstance(value, list)
    return cast("list[dict[str, Json]]", value)


def test_a_note_goes_in_by_word_or_by_pipe_and_comes_out(home: Home) -> None:
    assert "remembered" in home.ok("remember", "zebra", "crossings", "are", "striped")
    assert "already known" in home.ok("remember", "-", stdin="zebra crossings are striped\n")
    text = home.ok("recall", "zebra", "--explain")
    assert "zebra crossings are striped" in text
    assert "you on desk" in text
    assert "bm25" in text


def test_a_claim_is_replaced_by_its_later_value(home: Home) -> None:
    claim = ("--claim", "relcut", "weekday")
    home.ok("remember", "relcut happens on Mondays", *claim, "Monday")
    assert "remembered" in home.ok("remember", "relcut happens on Fridays", *claim, "Friday")
    assert home.texts("relcut")[0] == "relcut happens on Fridays"


def test_the_default_scope_is_the_project(home: Home) -> None:
    (made,) = rows(home.json("remember", "scoped by the folder"))
    hit = rows(row(home.json("get", str(made["id"])))["hits"])[0]
    assert hit["scope"] == home.work.name
    home.ok("remember", "scoped by hand", "--scope", "elsewhere")
    assert home.texts("scoped hand", "--scope", "elsewhere") == ["scoped by hand"]
    assert home.texts("scoped hand", "--scope", home.work.name) == ["scoped by the folder"]


def test_short_ids_list_history_and_forget(home: Home) -> None:
    (made,) = rows(home.json("remember", "a note that will be forgotten", "--title", "doomed"))
    short = str(made["id"])[:8]
    assert "doomed" in home.ok("get", short)
    assert short in home.ok("list", "--limit", "100")
    assert "forgotten" in home.ok("forget", short, "--reason", "tests")
    assert home.texts("doomed") == []
    history = home.ok("history", short)
    assert "forgotten" in history
    assert "tests" in history
    again = home.run("forget", "0" * 64)
    assert (again.returncode, again.stdout.split()[:2]) == (4, ["not", "found"])


def test_errors_say_what_to_do_on_the_right_stream(home: Home) -> None:
    missing = home.run("get", "0" * 64)
    assert (missing.returncode, missing.stdout) == (4, "")
    assert missing.stderr.startswith("covey: ")
    assert len(missing.stderr.splitlines()) == 2
    as_json = home.run("get", "0" * 64, "--json")
    error = row(json.loads(as_json.stdout))["error"]
    assert row(error)["name"] == "not_found"
    assert home.run("remember", "", stdin="").returncode == 2
    wrong = home.run("recall", "x", "--since", "yesterday")
    assert wrong.returncode == 2
    assert home.run("rpc", "no.such").returncode == 2
    assert home.run("rpc", "rpc.ping", "[1]").returncode == 2


def test_a_folder_is_imported_once(home: Home, tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("# Guide\n\nintro words\n\n## Brakes\n\nsqueeze gently\n")
    (tmp_path / "plain.txt").write_text("first paragraph\n\nsecond paragraph\n")
    (tmp_path / "more.jsonl").write_text('{"text": "jay line", "tags": ["j"]}\nnot json\n')
    dry = row(home.json("import", str(tmp_path), "--dry-run"))
    assert dry["stored"] == 0
    first = home.run("import", str(tmp_path), "--scope", "manual", "--tag", "imported", "--json")
    counts = row(json.loads(first.stdout))
    assert cast("int", counts["stored"]) >= 3
    assert counts["skipped"] == 1
    assert "more.jsonl" in first.stderr
    again = row(json.loads(home.run("import", str(tmp_path), "--scope", "manual", "--json").stdout))
    assert again["stored"] == 0
    found = home.json("recall", "squeeze gently", "--scope", "manual", "--trust-min", "0.1")
    hit = rows(row(found)["hits"])[0]
    assert "Brakes" in str(hit["title"])
    assert cast("float", hit["trust"]) <= 0.7


def test_status_shows_what_a_person_asks_first(home: Home) -> None:
    text = home.ok("status")
    for word in ("desk", "home", "private", "memories", "listens", "12D3KooW"):
        assert word in text
    status = row(home.json("status"))
    assert status["running"] is True
    assert status["name"] == "desk"
    assert [group["name"] for group in rows(status["groups"])] == ["home", "private"]


def test_an_agent_gets_a_token_an_entry_and_limits(home: Home, tmp_path: Path) -> None:
    del tmp_path
    token = home.ok("agents", "add", "robot").strip()
    as_robot = {"COVEY_GRANT": token}
    (made,) = rows(home.json("remember", "written by robot", env=as_robot))
    hit = rows(row(home.json("get", str(made["id"])))["hits"])[0]
    assert row(hit["author"])["agent"] == "robot"
    assert cast("float", hit["trust"]) == pytest.approx(0.86, abs=0.01)
    for words in (("invite",), ("agents", "add", "other"), ("down",), ("peers", "pause")):
        refused = home.run(*words, env=as_robot)
        assert refused.returncode == 5, words
        assert "scope" in refused.stderr
    foreign = home.run("remember", "into another project", "--scope", "secret", env=as_robot)
    assert foreign.returncode == 5
    home.ok("agents", "revoke", "robot")
    assert home.run("recall", "x", env=as_robot).returncode == 5
    listed = rows(home.json("agents"))
    assert next(one for one in listed if one["name"] == "robot")["revoked_ms"]


def test_a_command_inside_an_agent_acts_as_that_agent(home: Home) -> None:
    inside = {"CLAUDECODE": "1"}
    (made,) = rows(home.json("remember", "typed by an agent", env=inside))
    hit = rows(row(home.json("get", str(made["id"])))["hits"])[0]
    assert row(hit["author"])["agent"] == "claude-code"
    assert home.run("down", env=inside).returncode == 5


def test_connect_prints_the_entry_and_keeps_the_token_private(home: Home) -> None:
    script = home.folder / "bin" / "covey"
    script.parent.mkdir(exist_ok=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    env = {"PATH": f"{script.parent}:{os.environ['PATH']}"}
    text = home.ok("connect", "cursor", "--print", env=env)
    path = home.folder / "state" / "agents" / "cursor.token"
    token = path.read_text().strip()
    assert token in text
    assert '"mcp"' in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert home.run("recall", "x", env={"COVEY_GRANT": token}).returncode == 0
    assert home.run("connect", "nonsense", "--print").returncode == 2
    assert home.run("connect", "zed").returncode == 2
    home.ok("agents", "revoke", "cursor")
    assert not path.exists()


def store_and_look(home: Home, watcher: subprocess.Popen[str], number: int) -> bool:
    """Store a fresh note; whether the watcher has something to read."""
    assert watcher.stdout is not None
    home.ok("remember", f"event number {number}")
    return bool(select.select([watcher.stdout], [], [], 0.2)[0])


def test_events_are_shown_as_they_happen(home: Home) -> None:
    watcher = subprocess.Popen(
        [*COVEY, "events", "memory", "--json"],
        env=home.environ,
        cwd=home.work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watcher.stdout is not None
        count = itertools.count()
        wait_until("an event", lambda: store_and_look(home, watcher, next(count)))
        event = json.loads(watcher.stdout.readline())
        assert event["name"] == "memory.stored"
        assert "text" not in json.dumps(event["data"])
    finally:
        watcher.terminate()
        watcher.communicate(timeout=20)


def test_logs_and_doctor_and_paths_need_no_daemon(tmp_path: Path) -> None:
    cold = Home(tmp_path / "cold")
    assert cold.run("logs").returncode == 4
    paths = row(cold.json("paths"))
    assert paths["state"] == str(cold.folder / "state")
    doctor = cold.run("doctor", "--json")
    assert doctor.returncode == 1
    assert row(json.loads(doctor.stdout))["healthy"] is False
    assert cold.ok("config", "get", "node.name").strip() == '"node"'
    cold.ok("config", "set", "rpc.in_flight_max", "7")
    assert "rpc.in_flight_max = 7" in cold.ok("config", "show", "--changed", "--origin")
    assert cold.run("config", "set", "rpc.nope", "7").returncode == 78
    assert cold.pid is None


def test_logs_are_shown_for_people_and_programs(home: Home) -> None:
    assert "ready" in home.ok("logs", "--lines", "1000")
    lines = home.ok("logs", "--lines", "1000", "--json").splitlines()
    assert {"ready", "starting"} <= {json.loads(line)["event"] for line in lines}
    assert home.ok("logs", "--lines", "1000", "--level", "error") == ""


def test_a_reader_that_has_enough_is_no_error(home: Home) -> None:
    command = " ".join([*COVEY, "rpc", "rpc.discover"])
    done = subprocess.run(
        ["sh", "-c", f"{command} | head -c 10"],
        env=home.environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (len(done.stdout), done.stderr) == (10, "")


@pytest.mark.need_root
@pytest.mark.attack
def test_a_process_of_another_user_is_turned_away_even_if_it_reaches_the_socket(
    tmp_path: Path,
) -> None:
    need("root")
    home = Home(tmp_path / "h")
    try:
        home.up()
        run = home.folder / "run"
        # As if the folder had been opened by mistake: the kernel's word must be enough.
        for path in (
            tmp_path,
            *[p for p in tmp_path.parents if len(p.parts) > 2],
            home.folder,
            run,
        ):
            path.chmod(path.stat().st_mode | 0o755)
        (run / "daemon.sock").chmod(0o666)
        script = f"""
            import os, socket
            os.setuid(65534)
            s = socket.socket(socket.AF_UNIX)
            s.connect({str(run / "daemon.sock")!r})
            try:
                s.sendall(b'{{"jsonrpc":"2.0","id":0,"method":"rpc.hello","params":{{}}}}\\n')
                print(len(s.recv(1000)))
            except OSError:
                print(0)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stdout.strip() == "0"
        assert home.run("status").returncode == 0
        assert "foreign_user" in home.log_text()
    finally:
        home.stop()
