"""`covey conflicts`: memories that contradict each other, and which of them holds."""

from __future__ import annotations

from daemon.cli import out
from daemon.cli.memory import author_line, connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json


def configure_conflicts(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey conflicts`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    sub = add_verb(verbs, "list", "both sides of each, newest first (also without a verb)")
    sub.add_argument("--scope", action="append", metavar="NAME", help="only this scope; repeat")
    sub.add_argument("-n", "--limit", type=int, default=20, help="how many (default 20)")
    sub = add_verb(verbs, "resolve", "this side holds; what contradicts it is refuted")
    sub.add_argument("id", help="the side that holds: its id, or the first 8 digits")
    parser.epilog = (
        "examples:\n  covey conflicts\n  covey conflicts list --scope api\n"
        "  covey conflicts resolve 3fa9c2d1"
    )


def run_conflicts(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    if args.verb == "resolve":
        result = connect(args).call("memory.resolve", {"id": args.id})
    else:
        params: dict[str, Json] = {"limit": getattr(args, "limit", 20)}
        if getattr(args, "scope", None):
            params["scope"] = args.scope
        result = connect(args).call("memory.conflicts", params)
    if args.json:
        out.say_json(result)
    elif args.verb == "resolve":
        _say_resolved(out.mapping(result))
    else:
        _say_conflicts(out.mapping(result))
    return 0


def _say_resolved(result: dict[str, Json]) -> None:
    refuted = result.get("refuted")
    out.say(f"{out.text(result.get('holds'))[:8]} holds")
    for loser in refuted if isinstance(refuted, list) else []:
        out.say(f"{out.text(loser)[:8]} is refuted; its author is trusted less")


def _say_conflicts(result: dict[str, Json]) -> None:
    conflicts = out.rows(result.get("conflicts"))
    for conflict in conflicts:
        subject = out.one_line(out.text(conflict.get("subject")), 60)
        attribute = out.one_line(out.text(conflict.get("attribute")), 60)
        what = f"{subject}: {attribute}" if subject else "said to contradict each other"
        since = out.text(conflict.get("since"))[:10]
        out.say(f"{out.paint(what, out.BOLD)}  since {since}")
        for side in out.rows(conflict.get("sides")):
            line = out.one_line(out.text(side.get("text")), out.width() - 16)
            out.say(f"  trust {out.trust(out.number(side.get('trust')))}  {line}")
            out.say("      " + out.paint(author_line(side), out.DIM))
    total = int(out.number(result.get("total")))
    if not conflicts:
        out.note("no memories contradict each other")
    else:
        out.note(f"{len(conflicts)} of {total}; covey conflicts resolve ID says which side holds")
