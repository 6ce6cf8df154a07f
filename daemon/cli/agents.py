"""`covey agents`: tokens of the agents on this machine."""

from __future__ import annotations

import time

from daemon.cli import out
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
    sub.add_argument(
        "--save", action="store_true", help="keep the token in a file, where `covey mcp` finds it"
    )
    sub = add_verb(verbs, "revoke", "end an agent's token")
    sub.add_argument("name")
    parser.epilog = (
        "examples:\n  covey agents list\n  covey agents add my-script --scope 'read:*' --save\n"
        "  covey agents revoke my-script"
    )


def run_agents(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verb = args.verb or "list"
    params: dict[str, Json] = {}
    if verb == "add":
        params = {"name": args.name, "scopes": args.scope, "client": args.client, "save": args.save}
    elif verb == "revoke":
        params = {"name": args.name}
    result = connect(args).call(f"agents.{verb}", params)
    if args.json:
        out.say_json(result)
    elif verb == "add":
        out.say(out.text(out.mapping(result).get("token")))
        if args.save:
            out.note("kept for `covey mcp` too, so that no configuration has to hold it")
        else:
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
        out.note("none yet: `covey connect CLIENT` registers one")
