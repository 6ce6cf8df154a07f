"""`covey groups` and `covey sync`."""

from __future__ import annotations

import time

from daemon.cli import out
from daemon.cli.memory import connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json


def configure_groups(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey groups`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    add_verb(verbs, "list", "list them (also without a verb)")
    sub = add_verb(verbs, "create", "found a group to share with others")
    sub.add_argument("name")
    sub = add_verb(verbs, "members", "who is in it")
    sub.add_argument("group", nargs="?", default="home")


def run_groups(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verb = args.verb or "list"
    params: dict[str, Json] = {}
    if verb == "create":
        params["name"] = args.name
    elif verb == "members":
        params["group"] = args.group
    result = connect(args).call(f"group.{verb}", params)
    if args.json:
        out.say_json(result)
    elif verb == "create":
        made = out.mapping(result)
        name = out.text(made.get("name"))
        out.say(f"founded {name}  {out.text(made.get('group'))[:8]}")
        out.note(f"invite others with `covey invite --group {name}`")
        out.note("its recovery key is in the file that `covey paths` calls recovery: keep a copy")
    elif verb == "members":
        lines = [
            [out.text(m.get(key)) for key in ("name", "role", "relation", "peer_id")]
            for m in out.rows(result)
        ]
        out.table(["name", "role", "relation", "id"], lines)
    else:
        lines = [
            [
                out.text(g.get("name")),
                out.text(g.get("role")) or out.text(g.get("state")),
                str(int(out.number(g.get("members")))),
                out.text(g.get("group"))[:8],
            ]
            for g in out.rows(result)
        ]
        out.table(["name", "role", "members", "id"], lines)
    return 0


def configure_sync(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey sync`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, text in (
        ("status", "how far the machines agree (also without a verb)"),
        ("now", "synchronise at once"),
    ):
        sub = add_verb(verbs, verb, text)
        sub.add_argument("--group", help="only this group")
        sub.add_argument("--peer", help="only with this machine")


def run_sync(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    params: dict[str, Json] = {
        key: value for key in ("group", "peer") if (value := getattr(args, key, None)) is not None
    }
    result = connect(args).call(f"sync.{args.verb or 'status'}", params)
    if args.json:
        out.say_json(result)
        return 0
    found = out.rows(result)
    now_ms = time.time_ns() / 1e6
    lines = [
        [
            out.text(row.get("name")),
            out.text(row.get("group")),
            "equal" if row.get("equal") else f"{int(out.number(row.get('missing')))} missing",
            out.ago(out.number(row.get("last_ms")), now_ms),
            out.size(out.number(row.get("bytes"))),
            out.one_line(out.text(row.get("why")), 60),
        ]
        for row in found
    ]
    out.table(["machine", "group", "state", "last", "carried", "why not"], lines)
    if not found:
        out.note("nothing to synchronise with yet")
    return 0
