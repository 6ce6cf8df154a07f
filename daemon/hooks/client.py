"""`covey hook CLIENT EVENT`: an agent's hook asks the daemon what is worth knowing now.

It runs before every prompt, so it is quick, small and never in the way: standard library only, no
daemon is started, a limit for all of it, and whatever goes wrong it prints nothing and exits 0 (2
would block the person's prompt). All judgement - what is shown, how it is quoted - is the daemon's
(`daemon.hooks.context`). Source: docs/specs/mcp.md s.8.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from daemon.cli.client import socket_candidates, try_connect
from daemon.mcp.greeting import AGENT_CHARS, AGENT_CHARS_MAX, SESSION_CHARS, SESSION_CHARS_MAX
from daemon.paths import resolve
from daemon.project import project_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.json_types import Json
    from daemon.paths import Paths

EVENTS = ("SessionStart", "UserPromptSubmit")
"""What Claude Code and Codex call them."""

STDIN_BYTES_MAX = 4 * 1024 * 1024
"""More is no prompt that somebody typed; then nothing is said."""

PROMPT_BYTES_MAX = 4096
"""Of a query (memory.md 5); a longer prompt is asked by its beginning."""

ANSWER_BYTES_MAX = 256 * 1024
"""Of one line of the daemon: 4,000 characters of text take 24 KB at most, escaped."""

TIMEOUT_MS = 150
TIMEOUT_MS_MAX = 1500
"""Default and bound of `[hooks] timeout_ms`: the agents end a hook after 2 s."""

ALL_S = 1.8
"""For everything, also for a standard input that never ends: less than the agents' 2 s."""

VARIABLE = "COVEY_HOOKS__TIMEOUT_MS"


def main(argv: list[str]) -> int:
    """Answer one hook on standard output.

    Args:
        argv: arguments after `hook`: CLIENT EVENT [--agent NAME].

    Returns:
        Always 0.
    """
    try:
        # The input may never end, and a name service that hangs cannot be given a limit.
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, ALL_S)
        text, event = _answer(argv)
        if text:
            output = {"hookEventName": event, "additionalContext": text}
            sys.stdout.write(json.dumps({"hookSpecificOutput": output}) + "\n")
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt):  # noqa: BLE001 - whatever it is, it must not block a prompt
        _silence()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def _silence() -> None:
    """Nothing at exit may fail any more, such as the flush of half an answer into a closed pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError:
        pass


def _answer(argv: list[str]) -> tuple[str, str]:
    """The context and its event; an empty context for everything that cannot be answered."""
    client, event, agent = _arguments(argv)
    told = sys.stdin.buffer.read(STDIN_BYTES_MAX + 1)
    if event not in EVENTS or len(told) > STDIN_BYTES_MAX:
        return "", event
    said = json.loads(told)
    prompt = said.get("prompt", "")
    if event == "UserPromptSubmit" and not _worth_asking(prompt):
        return "", event
    where = resolve()
    params = _hello(client, agent, said, where)
    return ask(where, os.environ, params, event, prompt if isinstance(prompt, str) else ""), event


def _arguments(argv: list[str]) -> tuple[str, str, str]:
    client, event = argv[0], argv[1]
    agent = argv[3] if argv[2:3] == ["--agent"] else client
    if not (0 < len(agent) <= AGENT_CHARS_MAX and AGENT_CHARS.issuperset(agent)):
        raise ValueError
    if agent[0] in "._-":
        raise ValueError  # it becomes part of a path
    return client, event, agent


def _worth_asking(prompt: object) -> bool:
    # A command of the agent's own (`/clear`) is no question.
    return isinstance(prompt, str) and bool(prompt.strip()) and not prompt.startswith("/")


def _hello(client: str, agent: str, said: Mapping[str, Json], where: Paths) -> dict[str, Json]:
    params: dict[str, Json] = {"client": f"covey hook {client}"[:64], "api": [1, 0], "agent": agent}
    try:
        with open(where.agent_token(agent), encoding="ascii") as file:
            params["token"] = file.read(256).strip()
    except (OSError, ValueError):
        pass
    session = said.get("session_id")
    if isinstance(session, str) and 0 < len(session) <= SESSION_CHARS_MAX:
        session = session.lower()
        if SESSION_CHARS.issuperset(session):
            params["session"] = session.replace("-", "")
    folder = said.get("cwd")
    project = project_of(folder) if isinstance(folder, str) and os.path.isabs(folder) else ""
    if project:
        params["project"] = project
    return params


def timeout_s(where: Paths, environ: Mapping[str, str]) -> float:
    """`[hooks] timeout_ms` in seconds; the decoder of TOML is loaded only if the file has it."""
    given = environ.get(VARIABLE, "")
    value = int(given.removesuffix("ms")) if given else _from_file(where.config_file)
    number = value if isinstance(value, int) else TIMEOUT_MS
    return min(max(number, 10), TIMEOUT_MS_MAX) / 1000


def _from_file(path: str) -> object:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return TIMEOUT_MS
    if "timeout_ms" not in text or "hooks" not in text:
        return TIMEOUT_MS
    import tomllib

    value = tomllib.loads(text).get("hooks", {}).get("timeout_ms", TIMEOUT_MS)
    if isinstance(value, str):
        number = value.strip()
        return int(number[:-2]) if number.endswith("ms") else int(float(number[:-1]) * 1000)
    return value


def ask(
    where: Paths, environ: Mapping[str, str], hello: Mapping[str, Json], event: str, prompt: str
) -> str:
    """Ask the daemon that runs, within the limit of the settings.

    Returns:
        The context; empty if there is no daemon, or none in time.

    Raises:
        CliError, OSError, ValueError: it cannot be asked; the caller says nothing then.
    """
    # The clocks of `Env` are for the daemon: this process lives for one question.
    until = time.monotonic() + timeout_s(where, environ)  # noqa: TID251
    sock = try_connect(socket_candidates(where, environ))
    if sock is None:
        return ""
    query = prompt.encode("utf-8", "replace")[:PROMPT_BYTES_MAX].decode("utf-8", "ignore")
    params = {"event": event, "prompt": query}
    lines = [
        {"jsonrpc": "2.0", "id": 0, "method": "rpc.hello", "params": hello},
        {"jsonrpc": "2.0", "id": 1, "method": "hooks.context", "params": params},
    ]
    try:
        sock.settimeout(max(until - time.monotonic(), 0.001))  # noqa: TID251
        sock.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        buffer = b""
        while buffer.count(b"\n") < len(lines):
            # A timeout for each read would let a slow trickle go on for ever.
            sock.settimeout(max(until - time.monotonic(), 0.001))  # noqa: TID251
            data = sock.recv(65536)
            if not data or len(buffer) > ANSWER_BYTES_MAX:
                return ""
            buffer += data
    finally:
        sock.close()
    answer = json.loads(buffer.split(b"\n")[1])
    text = answer["result"]["text"] if answer.get("id") == 1 else ""
    return text if isinstance(text, str) else ""
