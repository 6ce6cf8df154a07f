"""The token of an agent: made once, kept where only we can read it, tried before it is used."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from daemon.cli import out
from daemon.cli.client import CliError, socket_candidates, try_connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.cli.client import Client
    from daemon.json_types import Json
    from daemon.paths import Paths

HELLO_S = 5.0
LINE_BYTES_MAX = 64 * 1024


def stored(paths: Paths, agent: str) -> str:
    """The token in the agent's file; empty if there is none."""
    try:
        with open(paths.agent_token(agent), encoding="ascii") as file:
            return file.read(256).strip()
    except (OSError, ValueError):
        return ""


def works(candidates: list[str], agent: str, token: str) -> bool:
    """Whether the daemon takes the token, as it would from a relay."""
    if not token:
        return False
    sock = try_connect(candidates)
    if sock is None:
        return False
    params = {"client": "covey connect", "api": [1, 0], "agent": agent, "token": token}
    hello = {"jsonrpc": "2.0", "id": 0, "method": "rpc.hello", "params": params}
    try:
        sock.settimeout(HELLO_S)
        sock.sendall(json.dumps(hello).encode() + b"\n")
        with sock.makefile("rb") as answers:
            answer = json.loads(answers.readline(LINE_BYTES_MAX))
    except (OSError, ValueError):
        return False
    finally:
        sock.close()
    # A token of another agent is as good as none: what is written would bear that one's name.
    result = answer.get("result") if isinstance(answer, dict) else None
    return isinstance(result, dict) and result.get("agent") == agent


def ensure(
    client: Client,
    paths: Paths,
    *,
    agent: str,
    software: str,
    scopes: Sequence[str],
    socket_path: str | None,
) -> tuple[str, bool]:
    """The agent's token, made if there is none that works.

    Args:
        client: the person's connection.
        paths: of the node.
        agent: its name.
        software: the client's name, for people.
        scopes: what the token may do; empty for the default.
        socket_path: as given on the command line.

    Returns:
        The token, and whether it is new; an older one of that name has ended then.

    Raises:
        CliError: the daemon refuses, or does not run.
    """
    agents = out.rows(client.call("agents.list"))
    mine = [a for a in agents if a.get("name") == agent and not a.get("revoked_ms")]
    active = bool(mine)
    as_wanted = active and (not scopes or mine[0].get("scopes") == list(scopes))
    token = stored(paths, agent)
    candidates = socket_candidates(paths, os.environ, socket_path)
    if as_wanted and works(candidates, agent, token):
        return token, False
    if active:
        client.call("agents.revoke", {"name": agent})
    params: dict[str, Json] = {
        "name": agent,
        "client": software,
        "scopes": list(scopes),
        "save": True,
    }
    made = out.mapping(client.call("agents.add", params))
    return out.text(made.get("token")), True


def revoke(client: Client, agent: str) -> bool:
    """End the agent's token and remove its file; False if it had none.

    Raises:
        CliError: the daemon refuses, or does not run.
    """
    try:
        client.call("agents.revoke", {"name": agent})
    except CliError as error:
        if error.name == "not_found":
            return False
        raise
    return True
