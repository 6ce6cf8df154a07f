"""The daemon as a process: how it starts, ends, dies and comes back."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import stat
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import CONFIG, COVEY, Home, alive, wait_gone, wait_until
from tests.helpers.small_disk import fill, small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.json_types import Json


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "h")
    yield made
    made.stop()


def check_sound(home: Home) -> None:
    """The file as any SQLite sees it; the full-text index needs FTS5 only."""
    connection = sqlite3.connect(home.folder / "state" / "covey.db")
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        connection.close()


def stored_ids(result: Json) -> list[str]:
    assert isinstance(result, list)
    return [str(cast("dict[str, Json]", row)["id"]) for row in result]


def test_a_first_start_makes_everything_private_and_says_what_next(home: Home) -> None:
    text = home.ok("up")
    assert "covey invite" in text
    assert "covey remember" in text
    state = home.folder / "state"
    for name in ("key", "covey.db", "recovery", "lock", "running", "logs/covey.log"):
        mode = stat.S_IMODE((state / name).stat().st_mode)
        assert mode & 0o077 == 0, f"{name} has mode {mode:o}"
    for folder in (state, home.folder / "run", state / "logs"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    lines = [json.loads(line) for line in (state / "recovery").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["home", "private"]
    assert all(len(bytes.fromhex(line["seed"])) == 32 for line in lines)


def test_up_twice_is_one_daemon(home: Home) -> None:
    first = home.up()
    assert home.up() == first


def test_many_ups_at_once_leave_one_daemon(home: Home) -> None:
    starters = [
        subprocess.Popen(
            [*COVEY, "up", "--json"],
            env=home.environ,
            cwd=home.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    answers = [starter.communicate(timeout=60) for starter in starters]
    assert [starter.returncode for starter in starters] == [0] * 5, answers
    results = [json.loads(out) for out, _ in answers]
    assert len({result["status"]["pid"] for result in results}) == 1
    assert sum(result["started"] for result in results) == 1


def test_a_second_daemon_in_the_foreground_ends_with_6(home: Home) -> None:
    pid = home.up()
    second = home.run("up", "--foreground")
    assert second.returncode == 6
    assert str(pid) in second.stderr
    # Another runtime folder does not get around the lock of the state folder.
    other = home.run("up", "--foreground", env=split(home, "other-run"))
    assert other.returncode == 6
    assert home.pid == pid


def split(home: Home, runtime: str) -> dict[str, str]:
    """An environment that reaches the same state by another runtime folder."""
    base = home.folder / "xdg"
    base.mkdir(exist_ok=True)
    for name, target in (("state", home.folder / "state"),):
        (base / name).mkdir(exist_ok=True)
        link = base / name / "covey"
        if not link.exists():
            link.symlink_to(target)
    (base / runtime).mkdir(exist_ok=True)
    return {
        "COVEY_HOME": "",
        "XDG_STATE_HOME": str(base / "state"),
        "XDG_CONFIG_HOME": str(base / "config"),
        "XDG_RUNTIME_DIR": str(base / runtime),
    }


def test_kill_9_and_restart_keeps_what_was_acknowledged(home: Home) -> None:
    home.up()
    ids = stored_ids(home.json("remember", "acknowledged before the kill"))
    home.kill()
    assert (home.folder / "state" / "running").exists()
    assert home.run("status").returncode == 3
    home.up()
    found = home.json("get", ids[0])
    assert isinstance(found, dict)
    check_sound(home)
    started = [line for line in home.log() if line["event"] == "starting"]
    assert [line["unclean"] for line in started] == [False, True]
    wait_until(
        "the check after the crash",
        lambda: any(line["event"] == "checked_after_crash" for line in home.log()),
    )


@pytest.mark.parametrize("point", ["memory.remembering", "memory.remembered"])
def test_a_kill_at_a_commit_loses_nothing_acknowledged_and_doubles_nothing(
    home: Home, point: str
) -> None:
    home.up()
    home.ok("remember", "first")
    home.ok("down")
    home.up(COVEY_TEST_FAULT=f"{point}:3")
    acknowledged: list[str] = []
    for number in range(5):
        # The command line starts the daemon again and repeats the request under the same id.
        done = home.run("remember", f"note number {number}", "--json")
        assert done.returncode == 0, done.stderr
        acknowledged += stored_ids(json.loads(done.stdout))
    assert len(set(acknowledged)) == 5
    assert [line["unclean"] for line in home.log() if line["event"] == "starting"] == [
        False,
        False,
        True,
    ]
    stats = home.json("rpc", "memory.stats")
    assert isinstance(stats, dict)
    assert stats["memories"] == 6
    check_sound(home)


def test_sigterm_lets_running_requests_finish(home: Home) -> None:
    pid = home.up()
    done: list[subprocess.CompletedProcess[str]] = []
    stop = threading.Event()

    def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            text = f"load {number} of {writer}"
            done.append(home.run("remember", text, "--no-autostart", "--json"))
            number += 1
            if done[-1].returncode:
                return

    writers = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for writer in writers:
        writer.start()
    wait_until("some load", lambda: len(done) >= 6)
    os.kill(pid, signal.SIGTERM)
    wait_gone(pid)
    stop.set()
    for writer in writers:
        writer.join()
    acknowledged = [stored_ids(json.loads(one.stdout))[0] for one in done if one.returncode == 0]
    assert {one.returncode for one in done} <= {0, 3, 75}
    assert not (home.folder / "state" / "running").exists()
    assert not (home.folder / "run" / "daemon.sock").exists()
    home.up()
    for start in range(0, len(acknowledged), 20):
        found = home.json("get", *acknowledged[start : start + 20])
        assert isinstance(found, dict)
        hits = found["hits"]
        assert isinstance(hits, list)
        assert len(hits) == len(acknowledged[start : start + 20])
    assert home.log()[-1]["event"]


def test_a_stale_socket_is_no_obstacle(home: Home) -> None:
    run = home.folder / "run"
    run.mkdir(mode=0o700)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(run / "daemon.sock"))
    dead.close()
    assert home.run("status").returncode == 3
    home.up()
    assert home.run("status").returncode == 0


def test_commands_start_an_absent_daemon_unless_told_not_to(home: Home) -> None:
    refused = home.run("recall", "x", "--no-autostart", "--json")
    assert refused.returncode == 3
    assert json.loads(refused.stdout)["error"]["name"] == "not_running"
    home.ok("remember", "started by a command")
    assert home.pid is not None


def test_down_waits_until_the_daemon_is_gone_and_is_idempotent(home: Home) -> None:
    pid = home.up()
    home.ok("down")
    assert not alive(pid)
    assert "not running" in home.ok("down")


def test_restart_takes_new_settings_and_starts_what_was_not_running(home: Home) -> None:
    assert "is running" in home.ok("restart")
    first = home.pid
    home.ok("restart", "--set", "node.name=renamed")
    assert home.pid not in {first, None}
    status = home.json("status")
    assert isinstance(status, dict)
    assert status["name"] == "renamed"


def test_a_newer_schema_is_refused_with_78(home: Home) -> None:
    home.up()
    home.ok("down")
    connection = sqlite3.connect(home.folder / "state" / "covey.db")
    connection.execute("PRAGMA user_version = 9999")
    connection.commit()
    connection.close()
    refused = home.run("up", "--json")
    assert refused.returncode == 78
    message = json.loads(refused.stdout)["error"]["message"]
    assert "newer" in message or "9999" in message


def test_a_damaged_database_is_named_and_left_alone(home: Home) -> None:
    home.up()
    home.ok("down")
    path = home.folder / "state" / "covey.db"
    path.write_bytes(b"this is no database" * 1000)
    before = path.read_bytes()
    refused = home.run("up")
    assert refused.returncode in {70, 78}
    assert "covey.db" in refused.stderr or "database" in refused.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[rpc]\nin_flite_max = 3\n", ["config.toml:2", "in_flite_max", "did you mean"]),
        ("[rcp]\nx = 1\n", ["config.toml", "rcp", "did you mean rpc"]),
        ("[node]\nname = 3\n", ["config.toml:2", "name"]),
        ("[node\n", ["config.toml"]),
        ('[p2p]\nlisten = ["/ip4/127.0.0.1/tcp/"]\n', ["listen", "/ip4/127.0.0.1/tcp/"]),
    ],
)
def test_a_wrong_configuration_ends_with_78_and_names_the_place(
    home: Home, text: str, words: list[str]
) -> None:
    (home.folder / "config.toml").write_text(text)
    refused = home.run("up")
    assert refused.returncode == 78
    for word in words:
        assert word in refused.stderr
    assert home.pid is None


def test_a_key_that_others_can_read_is_refused_with_77(home: Home) -> None:
    home.up()
    home.ok("down")
    (home.folder / "state" / "key").chmod(0o644)
    refused = home.run("up")
    assert refused.returncode == 77
    assert "chmod" in refused.stderr or "600" in refused.stderr


def test_optimised_python_is_refused(home: Home) -> None:
    done = subprocess.run(
        [COVEY[0], "-O", *COVEY[1:], "up", "--foreground"],
        env=home.environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 78
    assert "-O" in done.stderr


def test_a_long_home_still_gets_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20) / ("name" * 20) / "h"
    home = Home(folder)
    try:
        home.up()
        home.ok("remember", "far down the tree")
        paths = home.json("paths")
        assert isinstance(paths, dict)
        path = Path(str(paths["socket"]))
        assert len(os.fsencode(path)) <= 100
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        home.stop()
        if path.parent.exists():
            for leftover in path.parent.iterdir():
                leftover.unlink()
            path.parent.rmdir()


def test_an_empty_environment_is_enough(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    try:
        home.up()
        bare = {"COVEY_HOME": str(home.folder), "PYTHONPATH": home.environ["PYTHONPATH"]}
        done = subprocess.run(
            [*COVEY, "remember", "from cron", "--json"],
            env=bare,
            cwd=home.work,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    finally:
        home.stop()


def test_a_client_finds_the_daemon_through_the_lock_when_the_runtime_folder_differs(
    home: Home,
) -> None:
    home.up()
    done = home.run("status", "--json", env=split(home, "elsewhere"))
    assert done.returncode == 0
    assert json.loads(done.stdout)["pid"] == home.pid


def test_a_full_disk_refuses_writes_loses_nothing_and_recovers(tmp_path: Path) -> None:
    with small_disk(tmp_path, "6m") as mount:
        home = Home(mount / "h")
        try:
            home.up()
            first = stored_ids(home.json("remember", "before the disk was full"))
            filler = fill(mount, but_bytes=64 * 1024)
            refused = None
            random_text = random.Random(1)
            for _ in range(60):
                words = " ".join(f"{random_text.getrandbits(64):x}" for _ in range(1500))
                done = home.run("remember", words, "--json")
                if done.returncode:
                    refused = json.loads(done.stdout)["error"]
                    break
            assert refused is not None
            assert refused["name"] == "storage_full"
            assert refused["remedy"]
            assert home.json("get", first[0])
            filler.unlink()
            home.ok("remember", "after there was room again")
            assert home.texts("room again") == ["after there was room again"]
            home.ok("down")
            check_sound(home)
        finally:
            home.stop()


def test_nothing_secret_is_written_to_the_log(home: Home) -> None:
    home.up(COVEY_LOG__LEVEL="debug")
    marker = "marker-of-a-secret-body"
    home.ok("remember", f"{marker} in a body", "--title", f"{marker} title")
    home.run("recall", f"{marker}")
    home.run("recall", marker, "--scope", "no/such")
    token = home.ok("agents", "add", "helper").strip()
    assert token.startswith("cvy_")
    made = home.json("invite")
    assert isinstance(made, dict)
    home.run("join", str(made["ticket"]), "--yes")
    home.run("rpc", "memory.recall", json.dumps({"query": marker, "nope": marker}))
    home.ok("down")
    for path in (home.folder / "state" / "logs").iterdir():
        text = path.read_text()
        assert marker not in text
        assert token not in text
        assert str(made["ticket"]) not in text
        assert "COVEY1" not in text
    assert CONFIG


def test_hup_reads_the_settings_again_and_usr1_names_the_tasks(home: Home) -> None:
    pid = home.up()
    path = home.folder / "config.toml"
    good = path.read_text()
    path.write_text(good + '[log]\nlevel = "debug"\n[rpc]\nin_flight_max = 9\n')
    os.kill(pid, signal.SIGHUP)
    wait_until("it is read", lambda: '"reloaded"' in home.log_text())
    (line,) = [line for line in home.log() if line["event"] == "reloaded"]
    assert line["restart_for"] == ["rpc.in_flight_max", "log.level"]
    home.ok("rpc", "rpc.ping")
    wait_until("debug lines", lambda: '"method":"rpc.ping"' in home.log_text())
    path.write_text("[log]\nlevle = 1\n")
    os.kill(pid, signal.SIGHUP)
    wait_until("it is refused", lambda: "reload_failed" in home.log_text())
    os.kill(pid, signal.SIGUSR1)
    wait_until("the tasks are named", lambda: '"task_tree"' in home.log_text())
    home.ok("remember", "served throughout")
    assert home.pid == pid


def test_two_sigterms_do_not_wait_for_requests(home: Home) -> None:
    pid = home.up()
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.connect(str(home.folder / "run" / "daemon.sock"))
        lines = stuck.makefile("rwb")
        for number, (name, params) in enumerate(
            [("rpc.hello", {}), ("peers.ping", {"peer": "nobody"}), ("rpc.ping", {})]
        ):
            request = {"jsonrpc": "2.0", "id": number, "method": name, "params": params}
            lines.write(json.dumps(request).encode() + b"\n")
            lines.flush()
            assert lines.readline()
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid)
        lines.close()
    assert not (home.folder / "state" / "running").exists()
    check_sound(home)


def test_a_taken_port_leaves_the_memory_working_and_says_so(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        home.ok("up", "--set", f"p2p.listen=/ip4/127.0.0.1/tcp/{port}")
        home.ok("remember", "the mesh is down and the memory works")
        wait_until("it is noticed", lambda: '"mesh_down"' in home.log_text())
        status = home.json("status")
        assert isinstance(status, dict)
        assert status["health"] == "degraded"
        assert "another process" in json.dumps(status["problems"])
        invite = home.run("invite", "--no-wait", "--timeout", "1")
        assert invite.returncode in {6, 75}


@pytest.mark.attack
def test_garbage_at_the_socket_and_the_port_does_not_stop_the_daemon(home: Home) -> None:
    pid = home.up()
    status = home.json("status")
    assert isinstance(status, dict)
    listen = status["listen"]
    assert isinstance(listen, list)
    port = int(str(listen[0]).rsplit("/", 1)[1])
    dice = random.Random(7)
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as local:
            local.connect(str(home.folder / "run" / "daemon.sock"))
            local.sendall(dice.randbytes(3000) + b"\n")
        with socket.create_connection(("127.0.0.1", port), timeout=5) as remote:
            remote.sendall(dice.randbytes(3000))
    home.ok("remember", "still here")
    assert home.pid == pid
    assert home.texts("still here") == ["still here"]
    levels = {str(line["level"]) for line in home.log()}
    assert "critical" not in levels
    assert "error" not in levels
