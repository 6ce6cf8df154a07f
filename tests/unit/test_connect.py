"""`covey connect CLIENT --print`: one golden file for each client, and that each is what it says.

`COVEY_TEST_GOLDEN=write` writes the golden files anew; read the difference before you keep it.
"""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from pathlib import Path
from typing import cast

import pytest

from daemon.connect.clients import CLIENTS, user_file
from daemon.connect.render import entry, instructions, own_argv, own_command, snippet

GOLDEN = Path(__file__).parent / "golden" / "connect"
COMMAND = "/opt/covey/bin/covey"
LINUX = {"HOME": "/home/ann"}


def env_of(name: str) -> dict[str, str]:
    return {"COVEY_AGENT": name, "COVEY_GRANT": "cvy_example"}


def all_text(name: str) -> str:
    client = CLIENTS[name]
    return instructions(
        client, file=user_file(client, "linux", LINUX), command=COMMAND, env=env_of(name)
    )


@pytest.mark.parametrize("name", list(CLIENTS))
def test_what_is_printed_is_the_golden_file(name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("COVEY_TEST_GOLDEN") == "write":
        path.write_text(all_text(name))
    assert all_text(name) == path.read_text()


def test_there_is_no_golden_file_of_an_unknown_client() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CLIENTS)


def server_of(name: str) -> dict[str, object]:
    document = entry(CLIENTS[name], command=COMMAND, env=env_of(name))
    (servers,) = document.values()
    assert isinstance(servers, dict)
    assert list(servers) == ["covey"]
    return cast("dict[str, object]", servers["covey"])


@pytest.mark.parametrize("name", list(CLIENTS))
def test_entry_starts_the_relay_with_agent_and_grant(name: str) -> None:
    server = server_of(name)
    command = server.get("command", server.get("cmd"))
    words = command if isinstance(command, list) else [command, *cast("list[str]", server["args"])]
    assert words == [COMMAND, "mcp"]
    assert env_of(name) in server.values()


@pytest.mark.parametrize("name", [n for n, c in CLIENTS.items() if c.form == "json"])
def test_json_snippet_parses_to_the_entry(name: str) -> None:
    text = snippet(CLIENTS[name], command=COMMAND, env=env_of(name))
    assert json.loads(text) == entry(CLIENTS[name], command=COMMAND, env=env_of(name))


@pytest.mark.parametrize("name", [n for n, c in CLIENTS.items() if c.form == "toml"])
@pytest.mark.parametrize("command", [COMMAND, '/home/a "b"/ünï\\covey', "C:\\Users\\x\\covey.exe"])
def test_toml_snippet_parses_to_the_entry(name: str, command: str) -> None:
    text = snippet(CLIENTS[name], command=command, env=env_of(name))
    assert tomllib.loads(text) == entry(CLIENTS[name], command=command, env=env_of(name))


def test_toml_without_environment_has_no_empty_table() -> None:
    text = snippet(CLIENTS["codex"], command=COMMAND, env={})
    assert tomllib.loads(text)["mcp_servers"]["covey"] == {"command": COMMAND, "args": ["mcp"]}


def test_yaml_snippet_quotes_every_string() -> None:
    text = snippet(CLIENTS["goose"], command='/a: "b" #c', env={"COVEY_AGENT": "yes"})
    assert '    cmd: "/a: \\"b\\" #c"' in text.splitlines()
    assert '      COVEY_AGENT: "yes"' in text.splitlines()


@pytest.mark.attack
def test_own_command_is_safe_to_paste() -> None:
    evil = "/opt/x; rm -rf ~/covey"
    for client in CLIENTS.values():
        line = own_command(client, command=evil, env={"COVEY_AGENT": "a b$(id)"})
        if not line:
            continue
        words = shlex.split(line)
        assert evil in words or json.loads(words[-1])["command"] == evil
        assert any("a b$(id)" in word for word in words)


@pytest.mark.attack
@pytest.mark.parametrize("name", [n for n, c in CLIENTS.items() if c.command])
def test_own_words_are_what_a_shell_would_make_of_the_line(name: str) -> None:
    client, env = CLIENTS[name], {"COVEY_AGENT": "x", "COVEY_HOME": "/a b;$(id)"}
    command = "/opt/a b/covey"
    words = own_argv(client.command, client, command=command, env=env)
    assert words == shlex.split(own_command(client, command=command, env=env))


def test_own_command_without_environment_has_no_gap() -> None:
    line = own_command(CLIENTS["claude-code"], command=COMMAND, env={})
    assert line == f"claude mcp add --scope user covey -- {COMMAND} mcp"


@pytest.mark.parametrize(
    ("name", "platform", "environ", "path"),
    [
        ("claude-code", "linux", LINUX, "/home/ann/.claude.json"),
        ("claude-code", "darwin", LINUX, "/home/ann/.claude.json"),
        ("codex", "linux", {**LINUX, "CODEX_HOME": "/c"}, "/c/config.toml"),
        ("vscode", "linux", {**LINUX, "XDG_CONFIG_HOME": "/x"}, "/x/Code/User/mcp.json"),
        (
            "vscode",
            "darwin",
            LINUX,
            "/home/ann/Library/Application Support/Code/User/mcp.json",
        ),
        ("vscode", "win32", {"APPDATA": "C:\\A"}, "C:\\A\\Code\\User\\mcp.json"),
        ("copilot-cli", "linux", LINUX, "/home/ann/.copilot/mcp-config.json"),
        ("copilot-cli", "linux", {**LINUX, "XDG_CONFIG_HOME": "/x"}, "/x/mcp-config.json"),
        ("zed", "darwin", LINUX, "/home/ann/Library/Application Support/Zed/settings.json"),
        ("cursor", "linux", {}, "~/.cursor/mcp.json"),
    ],
)
def test_user_file_follows_the_environment(
    name: str, platform: str, environ: dict[str, str], path: str
) -> None:
    assert user_file(CLIENTS[name], platform, environ) == path
