"""Our server and our hooks in the text of a client's file: found, put in, taken out.

Pure: text in, text out. Whatever cannot be edited without guessing is a `PlaceError`, and its file
stays as it is. Every edit is read again and compared with what was meant before it is returned.
Source: daemon.md 7.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Final, NamedTuple, ParamSpec, TypeVar, cast

from daemon.connect import jsonc, toml
from daemon.connect.render import SERVER, entry, snippet
from daemon.hooks.client import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from daemon.connect.clients import Client
    from daemon.json_types import Json

_P = ParamSpec("_P")
_T = TypeVar("_T")

GRANT: Final = "COVEY_GRANT"
HOOK_TIMEOUT_S: Final = 2
"""After which the agent goes on without us (daemon.md 7); we give up ourselves before."""


class PlaceError(Exception):
    """The text cannot be edited; says why."""


class Goal(NamedTuple):
    """What an entry is to say.

    Attributes:
        command: absolute path of `covey`.
        env: environment of the relay.
    """

    command: str
    env: dict[str, str]


def root_of(client: Client) -> str:
    """Key under which a client keeps its servers."""
    return "mcp_servers" if client.style == "codex" else client.style


def _path(client: Client) -> list[str]:
    return [root_of(client), SERVER]


def find(client: Client, text: str) -> dict[str, Json] | None:
    """Our entry in a client's file, None if it has none.

    Raises:
        PlaceError: the text is none of the client's form.
    """
    return _guarded(_find, client, text)


def _find(client: Client, text: str) -> dict[str, Json] | None:
    value: Json
    if client.form == "toml":
        value = toml.get(text, _path(client))
    else:
        if not jsonc.is_blank(text):
            _check_shape(client, jsonc.decode(text))
        value = jsonc.get(text, _path(client))
    if value is None or isinstance(value, dict):
        return value
    raise PlaceError(f"{root_of(client)}.{SERVER} is no table of settings")


def decode(client: Client, text: str) -> Json:
    """All of a client's settings; an empty text is an empty object.

    Raises:
        PlaceError: the text is none of the client's form.
    """
    if client.form == "toml":
        return dict(_guarded(toml.decode, text))
    return {} if jsonc.is_blank(text) else _guarded(jsonc.decode, text)


def _check_shape(client: Client, document: Json) -> None:
    """Refuse what another program's form would be: an entry there would be read by nobody."""
    if not isinstance(document, dict):
        raise PlaceError("the file is no object")
    if root_of(client) in document:
        return
    others = {"servers", "mcpServers", "context_servers"} & document.keys()
    if others:
        raise PlaceError(f"its servers stand under {min(others)!r}, not {root_of(client)!r}")
    if document and all(
        isinstance(value, dict) and {"command", "url"} & value.keys() for value in document.values()
    ):
        raise PlaceError(f"its servers stand at the top, not under {root_of(client)!r}")


def is_current(found: Mapping[str, Json] | None, goal: Goal) -> bool:
    """Whether an entry says what it should; settings that the person added do not matter."""
    if found is None or found.get("command") != goal.command or found.get("args") != ["mcp"]:
        return False
    return found.get("env", {}) == _env(found, goal)


def _env(found: Mapping[str, Json] | None, goal: Goal) -> dict[str, Json]:
    """Our variables over the person's own; a token goes: the relay reads its file."""
    before = (found or {}).get("env")
    kept = dict(before) if isinstance(before, dict) else {}
    kept.pop(GRANT, None)
    return {**kept, **goal.env}


def foreign_env(client: Client, text: str, goal: Goal) -> list[str]:
    """Names of the variables in our entry that are not ours, sorted.

    They stay, for a person may have added them. In a project's file they may be anybody's, and one
    of them can lead the relay to another daemon or load code into it.

    Raises:
        PlaceError: as `find`.
    """
    return sorted(_env(find(client, text), goal).keys() - goal.env.keys())


def depth_of(client: Client, text: str) -> int:
    """How many steps of the way to our entry are in the text already.

    Raises:
        PlaceError: as `find`.
    """
    if client.form == "toml":
        return 0
    return _guarded(jsonc.depth_of, text, _path(client))


def put(client: Client, text: str, goal: Goal) -> str:
    """The text with our entry as it should be.

    Raises:
        PlaceError: it cannot be put there.
    """
    found = find(client, text)
    if is_current(found, goal):
        return text
    server = server_of(client, goal)
    if found is not None:
        # An older entry of ours: the person may have added to it.
        changes: dict[str, Json] = {
            "command": goal.command,
            "args": ["mcp"],
            "env": _env(found, goal),
        }
        server = {**found, **changes}
        edited = _guarded(_update, client, text, changes)
    elif client.form == "toml":
        edited = _guarded(toml.append_block, text, block_of(client, goal), _path(client), server)
    else:
        edited = _guarded(jsonc.put, text, _path(client), server)
    if find(client, edited) != server:
        raise PlaceError("the entry would not be read back as it was written")
    return edited


def server_of(client: Client, goal: Goal) -> dict[str, Json]:
    """The entry as a value."""
    servers = entry(client, command=goal.command, env=goal.env)[root_of(client)]
    assert isinstance(servers, dict)
    return cast("dict[str, Json]", servers[SERVER])


def block_of(client: Client, goal: Goal) -> str:
    """The entry as it is appended to a TOML file."""
    return snippet(client, command=goal.command, env=goal.env)


def _update(client: Client, text: str, changes: Mapping[str, Json]) -> str:
    if client.form == "toml":
        # `update` merges tables: a token that must go would stay.
        old = toml.get(text, [*_path(client), "env"])
        if isinstance(old, dict) and GRANT in old:
            text = toml.remove(text, [*_path(client), "env", GRANT], "\0")
        return toml.update(text, _path(client), changes)
    for key, value in changes.items():
        text = jsonc.put(text, [*_path(client), key], value)
    return text


def take(client: Client, text: str, goal: Goal, *, keep: int) -> str:
    """The text without our entry.

    Args:
        client: whose file.
        text: its text.
        goal: what was written, to recognise it.
        keep: steps of the way that stay even when empty (see `depth_of`).

    Raises:
        PlaceError: it cannot be taken out without changing something else.
    """
    if client.form == "toml":
        return _guarded(toml.remove, text, _path(client), block_of(client, goal))
    edited = _guarded(jsonc.remove, text, _path(client), keep=keep)
    if find(client, edited) is not None:
        raise PlaceError("the entry cannot be taken out")
    return edited


def _guarded(make: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    try:
        return make(*args, **kwargs)
    except jsonc.JsoncError as error:
        raise PlaceError(f"it cannot be read: {error}") from None
    except toml.TomlError as error:
        raise PlaceError(f"it cannot be read: {error}") from None
    except jsonc.ShapeError as error:
        raise PlaceError(str(error)) from None


# Hooks.


def hook_command(client: Client, event: str, goal: Goal) -> str:
    """The line that an agent's shell runs at an event."""
    agent = goal.env["COVEY_AGENT"]
    words = [goal.command, "hook", client.name, event]
    if agent != client.name:
        words += ["--agent", agent]
    extra = [f"{name}={value}" for name, value in goal.env.items() if name != "COVEY_AGENT"]
    return shlex.join(["env", *extra, *words] if extra else words)


def put_hooks(client: Client, text: str, goal: Goal) -> str:
    """The text with a hook of ours at each event.

    Raises:
        PlaceError: it cannot be put there.
    """
    for event in EVENTS:
        path, group = ["hooks", event], _hook_group(client, event, goal)
        at = _hook_at(client, text, event)
        if at is None:
            text = _guarded(jsonc.append, text, path, group)
        elif _groups(text, event)[at] != group:
            text = _guarded(jsonc.put_item, text, path, at, group)
        if group not in _groups(text, event):
            raise PlaceError("the hook would not be read back as it was written")
    return text


def take_hooks(client: Client, text: str, *, keep: Mapping[str, int]) -> str:
    """The text without our hooks.

    Args:
        client: whose file.
        text: its text.
        keep: by event, how many steps of the way were there before us.

    Raises:
        PlaceError: one cannot be taken out.
    """
    for event in reversed(EVENTS):
        at = _hook_at(client, text, event)
        if at is None:
            continue
        path = ["hooks", event]
        kept = keep.get(event, len(path))
        text = _guarded(jsonc.remove_item, text, path, at, keep=kept)
    return text


def hook_depths(text: str) -> dict[str, int]:
    """How many steps of the way to each event's hooks are in the text already.

    Raises:
        PlaceError: the text is no JSON.
    """
    return {event: _guarded(jsonc.depth_of, text, ["hooks", event]) for event in EVENTS}


def hooks_found(client: Client, text: str) -> dict[str, str]:
    """Our hooks' lines by event.

    Raises:
        PlaceError: the text is no JSON, or ours stands among others in one group.
    """
    found: dict[str, str] = {}
    for event in EVENTS:
        at = _hook_at(client, text, event)
        if at is not None:
            found[event] = _lines_of(_groups(text, event)[at])[0]
    return found


def _hook_group(client: Client, event: str, goal: Goal) -> dict[str, Json]:
    line = hook_command(client, event, goal)
    return {"hooks": [{"type": "command", "command": line, "timeout": HOOK_TIMEOUT_S}]}


def _groups(text: str, event: str) -> list[Json]:
    groups = _guarded(jsonc.get, text, ["hooks", event])
    if groups is None:
        return []
    if not isinstance(groups, list):
        raise PlaceError(f"hooks.{event} is no list")
    return groups


def _hook_at(client: Client, text: str, event: str) -> int | None:
    for index, group in enumerate(_groups(text, event)):
        lines = _lines_of(group)
        if any(_is_ours(line, client, event) for line in lines):
            if len(lines) > 1:
                raise PlaceError(f"in hooks.{event} Covey's hook shares a group with others")
            return index
    return None


def _lines_of(group: Json) -> list[str]:
    hooks = group.get("hooks") if isinstance(group, dict) else None
    if not isinstance(hooks, list):
        return []
    found = [hook.get("command") for hook in hooks if isinstance(hook, dict)]
    return [line if isinstance(line, str) else "" for line in found]


def program_of(line: str) -> str:
    """Path of the `covey` that a hook's line runs; empty if it runs another program."""
    try:
        words = shlex.split(line)
    except ValueError:
        return ""
    if "hook" not in words:
        return ""
    program = words[max(words.index("hook") - 1, 0)]
    return program if os.path.basename(program) == "covey" else ""


def _is_ours(line: str, client: Client, event: str) -> bool:
    return bool(program_of(line)) and f" hook {client.name} {event}" in line
