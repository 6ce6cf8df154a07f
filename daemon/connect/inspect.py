"""How the agents on this machine are connected: for `covey connect` alone, and for the doctor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from daemon.connect import files, place
from daemon.connect.clients import AUTOMATIC, CLIENTS, hooks_file, user_file
from daemon.connect.tokens import stored, works
from daemon.health import Check
from daemon.paths import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.connect.clients import Client
    from daemon.json_types import Json
    from daemon.paths import Paths

HANDSHAKE_S: Final = 15.0
"""For a whole handshake through the relay; the first one after a start loads the MCP library."""

_INITIALIZE: Final[Mapping[str, Json]] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "covey doctor", "version": "1"},
    },
}


class Found(NamedTuple):
    """A client on this machine.

    Attributes:
        client: its name.
        state: `yes`, `no`, `by hand` (only --print), or why its file cannot be read.
        hooks: `yes`, `no`, or `-` where there are none.
        file: its user file.
    """

    client: str
    state: str
    hooks: str
    file: str


def survey(environ: Mapping[str, str]) -> list[Found]:
    """The clients that are here, the connected ones first."""
    rows: list[Found] = []
    for client in CLIENTS.values():
        path = user_file(client, sys.platform, environ)
        if not _is_here(client, path, environ):
            continue
        rows.append(Found(client.name, _state(client, path), _hooks(client, environ), path))
    return sorted(rows, key=lambda row: row.state != "yes")


def _is_here(client: Client, path: str, environ: Mapping[str, str]) -> bool:
    program = client.command.split()[0] if client.command else client.name
    if shutil.which(program, path=environ.get("PATH")) or os.path.exists(path):
        return True
    folder = os.path.dirname(path)
    # The home folder is there for everybody, a folder of the client's own is not.
    return os.path.isdir(folder) and folder != environ.get("HOME", "").rstrip("/")


def _state(client: Client, path: str) -> str:
    if client.form == "yaml":
        return "by hand"
    try:
        found = place.find(client, files.read(path).text)
    except (files.FileError, place.PlaceError) as error:
        return "yes" if found_anyway(path) else f"unreadable: {error}"
    if found is not None:
        return "yes"
    return "no" if client.name in AUTOMATIC else "by hand"


def found_anyway(path: str) -> bool:
    """Whether a file that cannot be read as it should names us all the same."""
    try:
        return b"covey" in (files.read(path).data or b"")
    except files.FileError:
        return False


def _hooks(client: Client, environ: Mapping[str, str]) -> str:
    path = hooks_file(client, environ)
    if not path:
        return "-"
    try:
        return "yes" if place.hooks_found(client, files.read(path).text) else "no"
    except (files.FileError, place.PlaceError):
        return "unreadable"


def check_clients(paths: Paths, candidates: list[str], environ: Mapping[str, str]) -> list[Check]:
    """Look at each connected client: its entry, its token, and a handshake through its relay.

    Args:
        paths: of the node.
        candidates: sockets of the running daemon; empty when none runs.
        environ: where the clients' files are.
    """
    found: list[Check] = []
    for name in AUTOMATIC:
        client = CLIENTS[name]
        path = user_file(client, sys.platform, environ)
        try:
            server = place.find(client, files.read(path).text)
        except (files.FileError, place.PlaceError) as error:
            if found_anyway(path):
                found.append(_bad(name, f"{path}: {error}", "Correct that file."))
            continue
        if server is not None:
            found.append(_check_entry(client, server, paths, candidates, environ))
            found += _check_hooks(client, environ)
    return found


def _check_entry(
    client: Client,
    server: Mapping[str, Json],
    paths: Paths,
    candidates: list[str],
    environ: Mapping[str, str],
) -> Check:
    name = client.name
    again = f"covey connect {name}"
    command, given = server.get("command"), server.get("env")
    env = {k: str(v) for k, v in given.items()} if isinstance(given, dict) else {}
    if not isinstance(command, str) or not os.access(command, os.X_OK):
        return _bad(name, f"its entry names {command!r}, which is not there", again)
    bare = {"HOME": environ["HOME"]} if "HOME" in environ else {}
    there = resolve({**bare, **env})
    if os.path.realpath(there.state) != os.path.realpath(paths.state):
        # Its token is there; the remedy for this node would take the agent away from the other.
        message = f"it is an agent of the node in {there.state}"
        return Check(name=f"clients.{name}", status="ok", message=message)
    agent = env.get("COVEY_AGENT", "mcp")
    token = env.get(place.GRANT) or stored(paths, agent)
    if not token:
        return _bad(name, f"there is no token of agent {agent}", again)
    if not candidates:
        return Check(name=f"clients.{name}", status="ok", message="its entry and token are there")
    if not works(candidates, agent, token):
        return _bad(name, f"the token of agent {agent} does not work", again)
    problem = handshake([command, "mcp", "--no-autostart"], env, environ)
    if problem:
        return _bad(name, f"its relay does not work: {problem}", "covey logs")
    return Check(name=f"clients.{name}", status="ok", message=f"agent {agent} is served")


def _check_hooks(client: Client, environ: Mapping[str, str]) -> list[Check]:
    path = hooks_file(client, environ)
    if not path:
        return []
    try:
        lines = place.hooks_found(client, files.read(path).text)
    except (files.FileError, place.PlaceError):
        return []
    lost = [line for line in lines.values() if not os.access(place.program_of(line), os.X_OK)]
    if not lost:
        return []
    message = f"a hook in {path} runs {place.program_of(lost[0])}, which is not there"
    return [_bad(f"{client.name}.hooks", message, f"covey connect {client.name} --hooks")]


def _bad(name: str, message: str, remedy: str) -> Check:
    return Check(name=f"clients.{name}", status="failed", message=message, remedy=remedy)


def handshake(words: list[str], env: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """Start a relay as an agent would, and shake hands.

    Args:
        words: its command.
        env: the entry's environment.
        environ: ours, of which it gets HOME and PATH alone, as careful agents give.

    Returns:
        What went wrong; empty if nothing did.
    """
    bare = {name: environ[name] for name in ("HOME", "PATH") if name in environ}
    line = json.dumps(_INITIALIZE).encode() + b"\n"
    try:
        done = subprocess.run(  # noqa: S603 - the command that the agent runs too
            words, env={**bare, **env}, input=line, capture_output=True, timeout=HANDSHAKE_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "it does not answer"
    except OSError as error:
        return f"it cannot be started: {error.strerror}"
    try:
        answer = json.loads(done.stdout.partition(b"\n")[0])
        if "result" in answer:
            return ""
        return str(answer["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "it gave no answer"
