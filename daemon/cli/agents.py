"""`covey agents` and `covey connect`: tokens, and what to put into an agent's configuration."""

from __future__ import annotations

import os
import sys
import time

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.memory import connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json


def configure_agents(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey agents`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    add_verb(verbs, "list", "list them (also without a verb)")
    sub = add_verb(verbs, "add", "register one and print its token")
    sub.add_argument("name", help="such as claude-code")
    sub.add_argument("--scope", action="append", default=[], help="such as read:*; repeat for more")
    sub.add_argument("--client", default="", help="its software, for people")
    sub = add_verb(verbs, "revoke", "end an agent's token")
    sub.add_argument("name")


def run_agents(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verb = args.verb or "list"
    params: dict[str, Json] = {}
    if verb == "add":
        params = {"name": args.name, "scopes": args.scope, "client": args.client}
    elif verb == "revoke":
        params = {"name": args.name}
    result = connect(args).call(f"agents.{verb}", params)
    if args.json:
        out.say_json(result)
    elif verb == "add":
        out.say(out.text(out.mapping(result).get("token")))
        out.note("shown once: give it to the agent as COVEY_GRANT")
    elif verb == "revoke":
        out.say(f"{args.name} can no longer connect")
    else:
        _say_agents(out.rows(result))
    return 0


def _say_agents(agents: list[dict[str, Json]]) -> None:
    now_ms = time.time_ns() / 1e6
    lines: list[list[str]] = []
    for agent in agents:
        scopes = agent.get("scopes")
        shown = " ".join(map(str, scopes)) if isinstance(scopes, list) else ""
        state = "revoked" if agent.get("revoked_ms") else "active"
        seen = out.ago(out.number(agent.get("last_seen_ms")), now_ms)
        lines.append([out.text(agent.get("name")), state, seen, out.clean(shown)])
    out.table(["name", "state", "seen", "may"], lines)
    if not agents:
        out.note("none yet: `covey connect CLIENT --print` registers one")


def configure_connect(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey connect`."""
    parser.add_argument("client", help="claude-code, codex, cursor, vscode, gemini, zed, ...")
    parser.add_argument(
        "--print", action="store_true", dest="show", help="print the entry, change no file"
    )
    parser.add_argument("--name", help="agent name, default the client's")
    parser.epilog = "examples:\n  covey connect claude-code --print\n  covey connect codex --print"


def run_connect(args: argparse.Namespace) -> int:
    """Register an agent and print the entry for its configuration."""
    from daemon.connect.clients import CLIENTS, user_file
    from daemon.connect.render import instructions

    if args.client not in CLIENTS:
        known = ", ".join(sorted(CLIENTS))
        raise CliError(f"unknown client {args.client!r}", 2, remedy=f"Known: {known}.")
    if not args.show:
        raise CliError(
            "this version only prints the entry",
            2,
            remedy=f"Run `covey connect {args.client} --print` and paste what it says.",
        )
    name = args.name or args.client
    client = connect(args)
    made = out.mapping(
        client.call("agents.add", {"name": name, "client": args.client, "save": True})
    )
    token = out.text(made.get("token"))
    known_client = CLIENTS[args.client]
    text = instructions(
        known_client,
        file=user_file(known_client, sys.platform, os.environ),
        command=covey_command(),
        env={"COVEY_AGENT": name, "COVEY_GRANT": token},
    )
    if args.json:
        out.say_json({"client": args.client, "agent": name, "token": token, "entry": text})
    else:
        out.say(text)
    return 0


def covey_command() -> str:
    """The absolute path of this installation's `covey`.

    Raises:
        CliError: it has none (run as `python -m daemon` from a checkout).
    """
    import shutil

    beside = os.path.join(os.path.dirname(sys.executable), "covey")
    found = beside if os.access(beside, os.X_OK) else shutil.which("covey")
    if found is None:
        raise CliError(
            "this installation has no covey command that an agent could start",
            1,
            remedy="Install it: uv tool install covey, or pip install -e . in a checkout.",
        )
    return os.path.abspath(found)
