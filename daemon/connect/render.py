"""The text to put into a client's configuration, in its own form."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.connect.clients import Client
    from daemon.json_types import Json

SERVER = "covey"
"""Our name in every client's list of servers."""


def entry(client: Client, *, command: str, env: Mapping[str, str]) -> dict[str, Json]:
    """The whole document that holds nothing but our server.

    Args:
        client: whose form.
        command: absolute path of `covey`.
        env: environment of the relay.
    """
    server: dict[str, Json] = {}
    env_json: dict[str, Json] = dict(env)
    if client.style == "mcp":
        server = {
            "type": "local",
            "command": [command, "mcp"],
            "environment": env_json,
            "enabled": True,
        }
    elif client.style == "extensions":
        server = {
            "name": SERVER,
            "description": "Memory shared by the agents on all your machines",
            "type": "stdio",
            "cmd": command,
            "args": ["mcp"],
            "envs": env_json,
            "enabled": True,
            "timeout": 300,
        }
    else:
        server = {"command": command, "args": ["mcp"], "env": env_json}
        server.update(
            (name, list(value) if isinstance(value, tuple) else value)
            for name, value in client.extra
        )
    root = "mcp_servers" if client.style == "codex" else client.style
    return {root: {SERVER: server}}


def snippet(client: Client, *, command: str, env: Mapping[str, str]) -> str:
    """`entry` in the syntax of the client's file, ending in a newline."""
    document = entry(client, command=command, env=env)
    if client.form == "toml":
        return _toml(document)
    if client.form == "yaml":
        return "\n".join(_yaml(document, 0)) + "\n"
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def own_command(client: Client, *, command: str, env: Mapping[str, str]) -> str:
    """The client's own command that adds us, quoted for a shell; empty when it has none."""
    flags = "".join(
        client.env_flag.format(name=name, value=shlex.quote(value)) + " "
        for name, value in env.items()
    )
    server = {"name": SERVER, "command": command, "args": ["mcp"], "env": dict(env)}
    return client.command.format(
        env=flags, command=shlex.quote(command), json=shlex.quote(json.dumps(server))
    )


def own_argv(template: str, client: Client, *, command: str, env: Mapping[str, str]) -> list[str]:
    """A command of the client's own as words, for no shell.

    Args:
        template: `client.command` or `client.removal`.
        client: whose.
        command: absolute path of `covey`.
        env: environment of the relay.
    """
    server = {"name": SERVER, "command": command, "args": ["mcp"], "env": dict(env)}
    words: list[str] = []
    for word in template.replace("{env}", "{env} ").split():
        if word == "{env}":
            flag, _, form = client.env_flag.partition(" ")
            for name, value in env.items():
                words += [flag, form.format(name=name, value=value)]
        else:
            words.append({"{command}": command, "{json}": json.dumps(server)}.get(word, word))
    return words


def instructions(client: Client, *, file: str, command: str, env: Mapping[str, str]) -> str:
    """What a person does to connect a client, in plain text.

    Args:
        client: which.
        file: path of its file on this machine.
        command: absolute path of `covey`.
        env: environment of the relay.
    """
    parts = [
        f"{client.title} reads its servers from {file}. Merge this into it:",
        snippet(client, command=command, env=env).rstrip(),
    ]
    line = own_command(client, command=command, env=env)
    if line:
        parts += ["Or let it do so itself:", f"  {line}"]
    if client.note:
        parts.append(client.note)
    return "\n\n".join(parts) + "\n"


def _toml(document: dict[str, Json]) -> str:
    """Tables of strings, lists of strings and one sub-table: all that the form needs."""
    blocks: list[str] = []
    for root, servers in document.items():
        assert isinstance(servers, dict)
        for name, server in servers.items():
            assert isinstance(server, dict)
            plain = {key: value for key, value in server.items() if not isinstance(value, dict)}
            tables = {key: value for key, value in server.items() if isinstance(value, dict)}
            blocks.append(_toml_table(f"{root}.{name}", plain))
            blocks += [
                _toml_table(f"{root}.{name}.{key}", value) for key, value in tables.items() if value
            ]
    return "\n".join(blocks)


def _toml_table(header: str, values: Mapping[str, Json]) -> str:
    # A basic string of TOML 1.0 takes JSON's escapes; json.dumps escapes DEL and all above ASCII.
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join([f"[{header}]", *lines]) + "\n"


def _yaml(value: Json, depth: int) -> list[str]:
    """Block mappings with flow scalars: JSON's scalars and lists are YAML 1.2's."""
    lines: list[str] = []
    assert isinstance(value, dict)
    for key, item in value.items():
        indent = "  " * depth
        if isinstance(item, dict) and item:
            lines.append(f"{indent}{key}:")
            lines += _yaml(item, depth + 1)
        else:
            lines.append(f"{indent}{key}: {json.dumps(item, ensure_ascii=False)}")
    return lines
