"""`covey connect`, `disconnect` and hooks against a real daemon, with programs on PATH for agents.

The programs are scripts that note how they were called and edit the client's file as the real ones
do; `tests/interop/test_real_clients.py` runs the real ones.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json

# Notes its arguments and its environment, then does what `claude mcp add|remove` does to its file.
PROGRAM = f"""\
#!{sys.executable}
import json, os, sys
here = os.path.dirname(os.path.abspath(sys.argv[0]))
with open(os.path.join(here, "calls"), "a") as file:
    file.write(json.dumps([sys.argv, dict(os.environ)]) + "\\n")
if os.path.exists(os.path.join(here, "fails")):
    print("you are not signed in", file=sys.stderr)
    sys.exit(3)
path = os.path.join(os.environ["HOME"], ".claude.json")
settings = json.load(open(path)) if os.path.exists(path) else {{}}
servers = settings.setdefault("mcpServers", {{}})
words = sys.argv[1:]
if os.path.exists(os.path.join(here, "idle")):
    sys.exit(0)
if words[:2] == ["mcp", "add"]:
    at = words.index("--")
    pairs = [words[i + 1] for i in range(at) if words[i] == "-e"]
    servers["covey"] = {{
        "type": "stdio", "command": words[at + 1], "args": words[at + 2:],
        "env": dict(pair.split("=", 1) for pair in pairs),
    }}
    if os.path.exists(os.path.join(here, "chatty")):
        settings["firstRun"] = True
elif words[:2] == ["mcp", "remove"]:
    del servers["covey"]
json.dump(settings, open(path, "w"), indent=2)
"""


@pytest.fixture(scope="module")
def daemon_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("connect") / "h", "desk")
    made.up()
    yield made
    made.stop()


class User:
    """A person's home folder beside the daemon's, with what is on their PATH."""

    def __init__(self, daemon: Home, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.work = folder / "project"
        self.work.mkdir()
        self.env = {"HOME": str(folder), "PATH": str(self.bin)}

    def install(self, name: str) -> None:
        program = self.bin / name
        program.write_text(PROGRAM)
        program.chmod(0o755)

    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        path = self.bin / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [cast("tuple[list[str], dict[str, str]]", tuple(json.loads(x))) for x in lines]

    def covey(self, *words: str, code: int = 0, stdin: str = "") -> str:
        done = self.daemon.run(*words, env=self.env, stdin=stdin)
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def json(self, *words: str) -> dict[str, Json]:
        done = self.daemon.run(*words, "--json", env=self.env)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return cast("dict[str, Json]", json.loads(done.stdout))

    def path(self, name: str, text: str | None = None) -> Path:
        path = self.folder / name
        if text is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return path

    def token(self, agent: str) -> str:
        path = self.daemon.folder / "state" / "agents" / f"{agent}.token"
        return path.read_text().strip() if path.exists() else ""

    def states(self, agent: str) -> list[bool]:
        """Of each token this agent ever had, whether it works."""
        listed = self.daemon.json("agents")
        assert isinstance(listed, list)
        rows = [cast("dict[str, Json]", row) for row in listed]
        return [row["revoked_ms"] is None for row in rows if row["name"] == agent]


@pytest.fixture
def user(daemon_home: Home, tmp_path: Path) -> Iterator[User]:
    made = User(daemon_home, tmp_path)
    yield made
    for name in ("claude-code", "codex", "cursor", "vscode", "gemini"):
        daemon_home.run("disconnect", name, "--yes", env=made.env)


CURSOR = '{\n  // mine\n  "mcpServers": {\n    "x": {"command": "y"},\n  },\n}\n'


def test_connect_and_disconnect_leave_the_file_as_it_was_and_no_token(user: User) -> None:
    path = user.path(".cursor/mcp.json", CURSOR)
    path.chmod(0o640)
    told = user.covey("connect", "cursor", "--yes")
    assert "+    " in told
    assert "connected" in told
    text = path.read_text()
    assert "// mine" in text
    assert '"covey": {' in text
    token = user.token("cursor")
    assert token.startswith("cvy_")
    assert token not in text, "the relay reads its file"
    assert path.stat().st_mode & 0o777 == 0o640
    assert user.states("cursor")[0]
    assert "nothing was changed" in user.covey("connect", "cursor")
    assert path.read_text() == text
    assert user.token("cursor") == token
    assert "disconnected" in user.covey("disconnect", "cursor", "--yes")
    assert path.read_text() == CURSOR
    assert path.stat().st_mode & 0o777 == 0o640
    assert user.token("cursor") == ""
    assert not any(user.states("cursor"))
    refused = user.daemon.run("status", env={"COVEY_AGENT": "cursor", "COVEY_GRANT": token})
    assert refused.returncode == 5
    assert "not connected" in user.covey("disconnect", "cursor", "--yes")
    assert token not in user.daemon.log_text()


def test_nobody_is_asked_so_nothing_is_done(user: User) -> None:
    path = user.path(".cursor/mcp.json", CURSOR)
    told = user.covey("connect", "cursor", code=5)
    assert "covey connect cursor --yes" in told
    assert path.read_text() == CURSOR
    assert user.token("cursor") == ""
    plan = user.json("connect", "cursor", "--dry-run")
    assert plan["done"] == "planned"
    (step,) = cast("list[dict[str, Json]]", plan["steps"])
    assert '+    "covey": {' in str(step["diff"])
    assert path.read_text() == CURSOR
    assert user.token("cursor") == ""


def test_a_file_that_cannot_be_read_is_left_alone_and_the_entry_is_printed(user: User) -> None:
    path = user.path(".cursor/mcp.json", "{'single': 1}")
    told = user.covey("connect", "cursor", "--yes", code=5)
    assert "line 1" in told
    assert '"mcpServers": {' in told
    assert path.read_text() == "{'single': 1}"
    assert user.token("cursor") == ""


def test_the_clients_own_command_is_used_without_a_shell_and_without_the_token(user: User) -> None:
    user.install("claude")
    before = '{"mcpServers": {"x": {"command": "y"}}, "n": 1}'
    path = user.path(".claude.json", before)
    user.covey("connect", "claude-code", "--yes")
    ((argv, environ),) = user.calls()
    assert argv[0] == str(user.bin / "claude")
    assert argv[1:6] == ["mcp", "add", "--scope", "user", "covey"]
    at = argv.index("--")
    assert argv[at + 1].startswith("/")
    assert argv[at + 2 :] == ["mcp"]
    token = user.token("claude-code")
    assert token
    assert token not in json.dumps([argv, environ])
    assert token not in path.read_text()
    # Only our entry was added, so the way back is the file as it was, in its own form.
    user.covey("disconnect", "claude-code", "--yes")
    assert path.read_text() == before
    assert not any(user.states("claude-code"))


def test_a_client_that_writes_more_than_our_entry_takes_it_out_itself(user: User) -> None:
    user.install("claude")
    (user.bin / "chatty").touch()
    user.covey("connect", "claude-code", "--yes")
    user.covey("disconnect", "claude-code", "--yes")
    assert [call[0][2] for call in user.calls()] == ["add", "remove"]
    assert json.loads(user.path(".claude.json").read_text()) == {"mcpServers": {}, "firstRun": True}


@pytest.mark.parametrize(("mark", "reason"), [("fails", "signed in"), ("idle", "left no entry")])
def test_when_the_clients_command_does_not_do_it_the_file_is_edited(
    mark: str, reason: str, user: User
) -> None:
    user.install("claude")
    (user.bin / mark).touch()
    told = user.covey("connect", "claude-code", "--yes")
    assert reason in told
    settings = json.loads(user.path(".claude.json").read_text())
    assert settings["mcpServers"]["covey"]["args"] == ["mcp"]
    told = user.covey("disconnect", "claude-code", "--yes")
    assert not user.path(".claude.json").exists()


def test_a_moved_covey_updates_the_entry(user: User) -> None:
    path = user.path(".codex/config.toml", 'model = "x"\n')
    user.covey("connect", "codex", "--yes")
    good = path.read_text()
    command = next(line for line in good.splitlines() if line.startswith("command"))
    path.write_text(good.replace(command, 'command = "/gone/covey"'))
    told = user.daemon.run("doctor", "clients", env=user.env)
    assert told.returncode == 1
    assert "/gone/covey" in told.stdout
    user.covey("connect", "codex", "--yes")
    assert path.read_text() == good
    user.covey("disconnect", "codex", "--yes")
    assert path.read_text() == 'model = "x"\n'


def test_a_project_file_has_no_token_and_its_relay_has(user: User) -> None:
    user.daemon.work.mkdir(exist_ok=True)
    user.covey("connect", "claude-code", "--project", "--yes")
    path = user.daemon.work / ".mcp.json"
    entry = json.loads(path.read_text())["mcpServers"]["covey"]
    assert "COVEY_GRANT" not in entry["env"]
    user.covey("disconnect", "claude-code", "--project", "--yes")
    assert not path.exists()
    assert user.states("claude-code")[0], "other places of this agent may need it"
    user.covey("connect", "claude-code", "--project", "--yes")
    user.covey("disconnect", "claude-code", "--yes")
    assert not path.exists(), "the record knows where it stood"
    assert not any(user.states("claude-code"))


@pytest.mark.slow  # four handshakes
def test_the_doctor_shakes_hands_through_the_entry(user: User) -> None:
    user.covey("connect", "cursor", "--yes")
    user.covey("connect", "codex", "--hooks", "--yes")
    assert "agent cursor is served" in user.covey("doctor", "clients")
    listed = user.daemon.run("connect", "--json", env=user.env).stdout
    rows = {row["client"]: row for row in json.loads(listed)}
    assert rows["cursor"]["state"] == "yes"
    assert rows["codex"]["hooks"] == "yes"
    user.daemon.ok("agents", "revoke", "cursor")
    told = user.covey("doctor", "clients", code=1)
    assert "clients.cursor" in told
    assert "covey connect cursor" in told
    user.covey("connect", "cursor", "--yes")
    assert "agent cursor is served" in user.covey("doctor", "clients")
    hooks = user.path(".codex/hooks.json")
    hooks.write_text(hooks.read_text().replace("/covey hook", "/gone/covey hook"))
    assert "a hook in" in user.covey("doctor", "clients", code=1)


def test_wrong_uses_say_what_to_do(user: User) -> None:
    assert "--print" in user.covey("connect", "zed", code=2)
    assert "--hooks" in user.covey("connect", "cursor", "--hooks", code=2)
    assert "Known:" in user.covey("connect", "nonsense", code=2)
    assert "name" in user.covey("connect", "cursor", "--name", "../x", code=2)
    told = user.daemon.run("connect", "cursor", "--yes", env={**user.env, "CLAUDECODE": "1"})
    assert told.returncode == 5, "an agent makes no tokens"
    assert not user.path(".cursor").exists()


def test_a_dry_run_of_print_makes_no_token(user: User) -> None:
    told = user.covey("connect", "zed", "--print", "--dry-run", "--name", "zed-dry")
    assert '"COVEY_GRANT": "TOKEN"' in told
    assert user.states("zed-dry") == []


def test_a_path_that_the_environment_leaves_open_is_not_taken_from_the_working_folder(
    user: User,
) -> None:
    user.env["CODEX_HOME"] = "relative"
    user.covey("connect", "codex", "--yes")
    written = user.daemon.work / "relative" / "config.toml"
    assert written.exists()
    listed = user.json("disconnect", "codex", "--dry-run")
    assert str(written) in json.dumps(listed), "it is found from elsewhere, too"
    user.covey("disconnect", "codex", "--yes")
    assert not written.exists()


def test_a_projects_link_does_not_choose_what_is_written(user: User) -> None:
    outside = user.folder / "outside.json"
    link = user.daemon.work / ".mcp.json"
    link.symlink_to(outside)
    told = user.covey("connect", "claude-code", "--project", "--yes", code=5)
    assert f"leads out of {user.daemon.work}, to {outside}" in told
    assert not outside.exists()
    link.unlink()


def test_what_is_behind_a_persons_link_is_shown(user: User) -> None:
    real = user.path("dotfiles/cursor.json", CURSOR)
    user.path(".cursor").mkdir()
    user.path(".cursor/mcp.json").symlink_to(real)
    assert f"(a link to {real})" in user.covey("connect", "cursor", "--dry-run")


def test_variables_that_a_projects_entry_sets_besides_are_told(user: User) -> None:
    """A committed entry of ours may lead the relay, and its token, to somebody else's socket."""
    user.covey("connect", "claude-code", "--project", "--yes")
    path = user.daemon.work / ".mcp.json"
    written = json.loads(path.read_text())
    written["mcpServers"]["covey"]["env"]["COVEY_SOCKET"] = "/run/theirs"
    path.write_text(json.dumps(written))
    for words in (["--dry-run"], ["--yes"]):
        told = user.covey("connect", "claude-code", "--project", *words)
        assert "also sets COVEY_SOCKET, which is not from Covey" in told
    user.covey("disconnect", "claude-code", "--project", "--yes")
    path.unlink(missing_ok=True)


def test_the_same_scopes_twice_keep_the_token(user: User) -> None:
    wanted = ("--scope", "read:work", "--scope", "write:work")
    user.covey("connect", "cursor", "--yes", *wanted)
    token = user.token("cursor")
    assert "nothing was changed" in user.covey("connect", "cursor", "--yes", *wanted)
    assert user.token("cursor") == token
    user.covey("connect", "cursor", "--yes", "--scope", "read:work")
    assert user.token("cursor") != token


def test_the_doctor_leaves_the_agent_of_another_node_alone(user: User, tmp_path: Path) -> None:
    user.covey("connect", "cursor", "--yes")
    other = {**user.env, "COVEY_HOME": str(tmp_path / "other")}
    done = user.daemon.run("doctor", "clients", env=other)
    assert f"it is an agent of the node in {user.daemon.folder / 'state'}" in done.stdout


def hook(user: User, event: str, **said: Json) -> str:
    stdin = json.dumps({"session_id": "ab-01", "cwd": str(user.daemon.work), **said})
    settings = json.loads(user.path(".claude/settings.json").read_text())
    line = settings["hooks"][event][0]["hooks"][0]["command"]
    assert line.endswith(f" hook claude-code {event}")
    # The test runs this checkout, whatever is installed; a loaded machine may take its time.
    done = user.daemon.run(
        *line[line.index("hook ") :].split(),
        stdin=stdin,
        env={**user.env, "COVEY_HOOKS__TIMEOUT_MS": "1500"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    if not done.stdout:
        return ""
    return str(json.loads(done.stdout)["hookSpecificOutput"]["additionalContext"])


def test_hooks_recall_unasked(user: User) -> None:
    user.covey("connect", "claude-code", "--hooks", "--yes")
    home = user.daemon
    home.ok("remember", "The zeppelin build needs node 22", "--scope", "private/hooks")
    home.ok("remember", "Zeppelins are named after rivers", "--kind", "decision")
    home.ok("remember", "A plain note about zeppelins in general")
    text = hook(user, "UserPromptSubmit", prompt="Which node does the zeppelin build need?")
    assert "The zeppelin build needs node 22" in text
    assert "trust 1.00 you: person@desk" in text
    text = hook(user, "SessionStart", source="startup")
    assert "named after rivers" in text
    assert "plain note" not in text
    assert hook(user, "UserPromptSubmit", prompt="qqqqq") == ""
    user.covey("disconnect", "claude-code", "--yes")
    assert not user.path(".claude").exists()


def test_a_hook_starts_no_daemon_and_survives_its_end(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    user = User(home, tmp_path / "h")
    home.up()
    user.covey("connect", "claude-code", "--hooks", "--yes")
    home.ok("remember", "zeppelins float")
    assert "float" in hook(user, "UserPromptSubmit", prompt="zeppelins")
    home.stop()
    wait_until("the daemon is gone", lambda: home.pid is None)
    assert hook(user, "UserPromptSubmit", prompt="zeppelins") == ""
    assert home.pid is None


@pytest.mark.attack
@pytest.mark.slow  # two daemons meet
def test_a_members_note_is_recalled_when_asked_for_and_never_unasked(tmp_path: Path) -> None:
    laptop, desk = Home(tmp_path / "a", "laptop"), Home(tmp_path / "b", "desk")
    try:
        # The trust a member has does not reach the default of .7: here only the relation holds.
        laptop.up(COVEY_HOOKS__TRUST_MIN="0")
        desk.up()
        user = User(laptop, tmp_path / "a")
        user.covey("connect", "claude-code", "--hooks", "--yes")
        laptop.ok("groups", "create", "team")
        ticket = cast("dict[str, Json]", laptop.json("invite", "--group", "team"))["ticket"]
        desk.ok("join", str(ticket))
        desk.ok("remember", "zeppelins need plutonium", "--scope", "team/work")
        laptop.ok("remember", "zeppelins need helium", "--scope", "team/work")
        wait_until(
            "the note arrives",
            lambda: "zeppelins need plutonium" in laptop.texts("zeppelins plutonium", "--all"),
        )
        text = hook(user, "UserPromptSubmit", prompt="what do zeppelins need, plutonium?")
        assert "helium" in text
        assert "plutonium" not in text
        assert hook(user, "SessionStart") == ""
    finally:
        laptop.stop()
        desk.stop()


def test_the_token_of_an_agent_can_be_kept_for_its_relay(user: User) -> None:
    token = user.daemon.ok("agents", "add", "kept", "--save").strip()
    assert user.token("kept") == token
    path = user.daemon.folder / "state" / "agents" / "kept.token"
    assert path.stat().st_mode & 0o777 == 0o600
    user.daemon.ok("agents", "revoke", "kept")
    assert not path.exists()
