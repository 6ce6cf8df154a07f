"""The command line: usage, errors, output; and how little a hot command imports."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import re
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from daemon.cli import out
from daemon.cli.client import (
    Client,
    CliError,
    NotRunning,
    acting_agent,
    socket_candidates,
    try_connect,
)
from daemon.cli.importing import find_files
from daemon.cli.main import COMMANDS, base_parser, find, main, usage
from daemon.cli.memory import run_remember
from daemon.cli.pairing import duration
from daemon.errors import BY_CODE
from daemon.paths import SOCKET_PATH_BYTES_MAX, PathsError, make_private, resolve
from tests.helpers.daemons import COVEY, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GUIDE = Path("docs/guides/commands.md")
# These two take no options of the command line: agents run them.
RAW = {"mcp", "hook"}
ALL = [name for group in COMMANDS.values() for name in group]

# daemon.md s.3: each costs 10 to 240 ms, and hooks run `covey recall` on every prompt.
HEAVY = {
    "trio", "msgspec", "dataclasses", "inspect", "pathlib", "logging", "subprocess", "tomllib",
    "rich", "apsw", "cryptography", "typing", "asyncio", "importlib.metadata", "tempfile",
}  # fmt: skip
HOT = {
    "recall": ["recall", "x"],
    "remember": ["remember", "x"],
    "get": ["get", "00000000"],
    "list": ["list"],
    "forget": ["forget", "00000000"],
    "status": ["status"],
}


def test_no_command_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ALL:
        assert f"  {name}" in text
    assert text.count(usage()) == 2


def test_an_unknown_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recal", "x"]) == 2
    assert "covey recall" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in ALL if name not in RAW])
def test_every_command_has_help_and_the_shared_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--json", "--quiet", "--yes", "--timeout", "--socket", "--no-autostart"):
        assert option in text
    module = importlib.import_module(f"daemon.cli.{find(name)}")
    assert callable(getattr(module, f"run_{name}"))


@pytest.mark.parametrize("name", [name for name in ALL if name not in RAW])
def test_verbs_take_the_shared_options_too(name: str) -> None:
    parser = base_parser(name, "text")
    importlib.import_module(f"daemon.cli.{find(name)}").__dict__[f"configure_{name}"](parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                assert "--json" in verb.format_help()


@pytest.mark.parametrize("name", [name for name in ALL if name not in RAW])
def test_the_help_of_every_command_and_verb_has_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = base_parser(name, "text")
    importlib.import_module(f"daemon.cli.{find(name)}").__dict__[f"configure_{name}"](parser)
    assert main([name, "--help"]) == 0
    assert f"  covey {name}" in capsys.readouterr().out
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices:
                assert main([name, verb, "--help"]) == 0
                assert f"\n  covey {name} {verb}" in capsys.readouterr().out, verb


@pytest.mark.parametrize("name", [name for name in ALL if name not in RAW])
def test_every_example_is_one_that_the_command_takes(name: str) -> None:
    parser = base_parser(name, "text")
    importlib.import_module(f"daemon.cli.{find(name)}").__dict__[f"configure_{name}"](parser)
    for line in (parser.epilog or "").splitlines():
        command = re.split(r" \| | [<>] |  +", line.strip())[0]
        if line.startswith("  covey "):
            parser.parse_args(shlex.split(command)[2:])


def test_the_guide_names_every_command_verb_and_exit_code() -> None:
    text = GUIDE.read_text()
    for name in ALL:
        assert f"`covey {name}" in text
        if name in RAW:
            continue
        parser = base_parser(name, "text")
        importlib.import_module(f"daemon.cli.{find(name)}").__dict__[f"configure_{name}"](parser)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for verb in action.choices:
                    assert re.search(rf"`(covey )?({name} )?{verb}( [A-Z]+)*`", text), (name, verb)
    codes = {kind.exit_code for kind in BY_CODE.values()} | {0, 3, 77, 78}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == codes


@pytest.mark.parametrize("words", [["recall"], ["recall", "x", "--limit", "y"], ["up", "--nope"]])
def test_wrong_arguments_end_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "usage:" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("covey 0.")


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[[list[dict[str, object]]], str]]:
    """A daemon of canned answers: tests what the client does, not what a daemon does."""
    listener = socket.socket(socket.AF_UNIX)
    path = str(tmp_path / "s")
    listener.bind(path)
    listener.listen()
    threads: list[threading.Thread] = []

    def serve(answers: list[dict[str, object]]) -> None:
        left = list(answers)
        while left:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as lines:
                for line in lines:
                    request = json.loads(line)
                    if request["method"] == "rpc.hello":
                        answer: dict[str, object] = {"result": {"server": "covey"}}
                    else:
                        answer = left.pop(0)
                    if answer.get("close"):
                        break
                    for extra in answer.pop("before", []):  # type: ignore[attr-defined]
                        lines.write(json.dumps(extra).encode() + b"\n")
                    reply = {"jsonrpc": "2.0", "id": request["id"], **answer, "got": request}
                    lines.write(json.dumps(reply).encode() + b"\n")
                    lines.flush()
                    if not left:
                        break

    def start(answers: list[dict[str, object]]) -> str:
        thread = threading.Thread(target=serve, args=(answers,))
        thread.start()
        threads.append(thread)
        return path

    yield start
    for thread in threads:
        thread.join()
    listener.close()


def test_results_and_errors_are_told_apart(
    fake: Callable[[list[dict[str, object]]], str],
) -> None:
    error = {
        "code": 1003,
        "message": "gone",
        "data": {"name": "not_found", "remedy": "look", "x": 1},
    }
    path = fake([{"result": [1]}, {"error": error}])
    client = Client([path])
    assert client.call("a.b") == [1]
    with pytest.raises(CliError) as refused:
        client.call("a.c")
    assert (refused.value.exit_code, refused.value.name) == (4, "not_found")
    assert refused.value.as_json() == {
        "code": 1003,
        "name": "not_found",
        "message": "gone",
        "remedy": "look",
        "data": {"x": 1},
    }
    client.close()


def test_a_request_is_sent_again_as_a_replay_when_the_connection_breaks(
    fake: Callable[[list[dict[str, object]]], str],
) -> None:
    client = Client([fake([{"close": True}, {"result": "done"}])])
    assert client.call("memory.remember", {"text": "x"}) == "done"
    client.close()


def test_progress_and_foreign_answers_are_not_taken_for_the_result(
    fake: Callable[[list[dict[str, object]]], str],
) -> None:
    before = [
        {"method": "event", "params": {}},
        {"id": 99, "result": "another's"},
        {"method": "rpc.progress", "params": {"id": 1, "done": 1, "total": 2, "message": "m"}},
    ]
    seen: list[tuple[int, int | None, str]] = []
    client = Client([fake([{"before": before, "result": "mine"}])])
    result = client.call("a.b", progress=lambda *step: seen.append(step))
    client.close()
    assert (result, seen) == ("mine", [(1, 2, "m")])


def test_no_daemon_is_said_with_3(tmp_path: Path) -> None:
    client = Client([str(tmp_path / "absent")])
    with pytest.raises(NotRunning) as refused:
        client.call("rpc.ping")
    assert refused.value.exit_code == 3
    assert "covey up" in refused.value.remedy


def test_an_absent_daemon_is_started_once(tmp_path: Path) -> None:
    started: list[int] = []

    def start() -> None:
        started.append(1)
        raise CliError("it does not come up", 70)

    with pytest.raises(CliError, match="does not come up"):
        Client([str(tmp_path / "absent")], start=start).call("rpc.ping")
    assert started == [1]


def test_sockets_are_tried_in_their_order(tmp_path: Path) -> None:
    paths = resolve({"COVEY_HOME": str(tmp_path)})
    make_private(paths.state)
    assert socket_candidates(paths, {}) == [paths.socket]
    (tmp_path / "state" / "lock").write_text('{"pid": 1, "socket": "/elsewhere/s"}')
    assert socket_candidates(paths, {}) == [paths.socket, "/elsewhere/s"]
    (tmp_path / "state" / "lock").write_text("garbage")
    assert socket_candidates(paths, {}) == [paths.socket]
    assert socket_candidates(paths, {"COVEY_SOCKET": "/env"}) == ["/env"]
    assert socket_candidates(paths, {"COVEY_SOCKET": "/env"}, "/given") == ["/given"]
    assert try_connect([str(tmp_path / "no"), str(tmp_path / "state" / "lock" / "x")]) is None


def test_a_command_in_an_agents_hands_says_so() -> None:
    assert acting_agent({}) == ""
    assert acting_agent({"CLAUDECODE": "1"}) == "claude-code"
    assert acting_agent({"CLAUDECODE": "1", "COVEY_AGENT": "mine"}) == "mine"


@pytest.mark.parametrize(("name", "words"), HOT.items())
def test_hot_commands_import_nothing_heavy(name: str, words: list[str], tmp_path: Path) -> None:
    # Up to the moment of the connection: a refused one ends the command before it prints.
    script = (
        "import sys; sys.argv[1:] = []\n"
        "from daemon.cli.main import main\n"
        f"code = main({[*words, '--no-autostart']!r})\n"
        "import daemon.cli.out\n"
        "print(code, *sorted(sys.modules))\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}",
        ],
        env={"COVEY_HOME": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    # `status` says on standard output that nothing runs; the modules are the last line.
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "3", done.stderr
    assert HEAVY & set(modules) == set(), name


def test_the_relay_is_reached_before_anything_else_is_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COVEY[1:], "mcp", "--bad-option"],
        env={"COVEY_HOME": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"trio", "msgspec", "mcp", "pydantic", "subprocess", "argparse"}
    assert imported & heavy == set()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("7d", 604_800)],
)
def test_durations_of_an_invitation(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5", "5 weeks", "1.5h"])
def test_durations_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(text)


@pytest.mark.attack
def test_foreign_text_cannot_drive_the_terminal() -> None:
    evil = "a\x1b[31mb\x9b2Jc\u202ed\u200be\r\nf\x07\U000e0041\u061c\u2060\ud800"
    shown = out.clean(evil)
    assert shown == "a[31mb2Jcde\nf"
    assert out.one_line(evil, 6) == "a[31m…"


def test_numbers_read_well() -> None:
    assert [out.trust(value) for value in (0.0, 0.3, 0.86, 0.999)] == [".00", ".30", ".86", "1.0"]
    assert out.size(512) == "512 B"
    assert out.size(3 * 2**20) == "3.0 MiB"
    assert out.ago(0) == "never"
    assert out.ago(1, 1 + 5 * 60_000) == "5 min ago"
    assert out.ago(1, 1 + 1000) == "just now"
    assert out.span(100_000) == "28 h"


def test_files_to_import_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", ".hidden.md", "c.png", "sub/d.jsonl", ".git/e.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    names = [path.rsplit("/", 1)[1] for path in find_files([str(tmp_path)])]
    assert names == ["a.txt", "b.md", "d.jsonl"]
    with pytest.raises(CliError) as refused:
        find_files([str(tmp_path / "absent")])
    assert refused.value.exit_code == 4


def test_paths_follow_the_environment(tmp_path: Path) -> None:
    home = {"HOME": "/home/x"}
    assert resolve(home).config_file == "/home/x/.config/covey/config.toml"
    assert resolve(home).state == "/home/x/.local/state/covey"
    xdg = {
        **home,
        "XDG_CONFIG_HOME": "/c",
        "XDG_STATE_HOME": "relative/is/ignored",
        "XDG_RUNTIME_DIR": "/r",
    }
    found = resolve(xdg)
    assert (found.config_file, found.socket) == ("/c/covey/config.toml", "/r/covey/daemon.sock")
    assert found.state == "/home/x/.local/state/covey"
    one = resolve({"COVEY_HOME": str(tmp_path)})
    assert (one.state, one.runtime) == (f"{tmp_path}/state", f"{tmp_path}/run")
    assert resolve({}).state.startswith("/")


def test_a_socket_path_that_is_too_long_moves() -> None:
    deep = "/" + "d" * 150
    first, second = resolve({"COVEY_HOME": deep}), resolve({"COVEY_HOME": deep + "x"})
    assert len(first.socket.encode()) <= SOCKET_PATH_BYTES_MAX
    assert first.socket != second.socket
    assert resolve({"COVEY_HOME": deep}).socket == first.socket


@pytest.mark.attack
def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir(mode=0o777)
    wide.chmod(0o777)
    make_private(str(wide))
    assert wide.stat().st_mode & 0o077 == 0
    file = tmp_path / "file"
    file.write_text("")
    for path in (str(file), str(file / "below"), "/proc/1"):
        if path == "/proc/1":
            continue
        with pytest.raises(PathsError):
            make_private(path)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_what_is_no_utf8_is_called_so(monkeypatch: pytest.MonkeyPatch, errors: str) -> None:
    piped = io.TextIOWrapper(io.BytesIO(b"bad \xff bytes"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", piped)
    with pytest.raises(CliError, match="no UTF-8 text"):
        run_remember(argparse.Namespace(text=["-"]))


def test_up_starts_anew_what_ended_before_it_could_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from daemon.cli import lifecycle
    from daemon.cli.client import NotRunning

    starts: list[bool] = []
    answers: list[object] = [NotRunning("gone"), {"name": "laptop"}]

    class Dying:
        def call(self, _: str) -> object:
            answer = answers.pop(0)
            if isinstance(answer, NotRunning):
                raise answer
            return answer

    def start(*_: object) -> bool:
        starts.append(True)
        return len(starts) > 1

    monkeypatch.setattr(lifecycle, "_start", start)
    monkeypatch.setattr(lifecycle, "_client", lambda _: Dying())
    started, status = lifecycle._up(None, None)  # type: ignore[arg-type]
    assert (started, status, len(starts)) == (True, {"name": "laptop"}, 2)
    answers[:] = [NotRunning("gone")] * lifecycle.UP_TRIES
    with pytest.raises(NotRunning):
        lifecycle._up(None, None)  # type: ignore[arg-type]
