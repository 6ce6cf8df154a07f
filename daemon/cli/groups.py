"""`covey group` and `covey sync`."""

from __future__ import annotations

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


KEEP_HELP = "what of its notes goes on counting: all (default), none, or a date: up to then"


def configure_group(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey group`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    add_verb(verbs, "list", "list them (also without a verb)")
    sub = add_verb(verbs, "create", "found a group to share with others")
    sub.add_argument("name")
    sub = add_verb(verbs, "members", "who is in it, and who may take out whom")
    sub.add_argument("group", nargs="?", default="home")
    sub = add_verb(verbs, "role", "give a member another role")
    sub.add_argument("group")
    sub.add_argument("member", help="name, id or part of an id")
    sub.add_argument("role", choices=["relay", "read", "write", "admin"])
    sub = add_verb(verbs, "remove", "take a member out and change the key; says first what it does")
    sub.add_argument("group")
    sub.add_argument("member", help="name, id or part of an id")
    sub.add_argument("--keep", default="all", help=KEEP_HELP)
    sub.add_argument("--dry-run", action="store_true", help="only say what it would do")
    sub = add_verb(verbs, "leave", "take this machine out")
    sub.add_argument("group")
    sub = add_verb(verbs, "rotate", "give all readers a new key")
    sub.add_argument("group")
    parser.epilog = (
        "roles: relay passes sealed records on; read; write; admin invites and removes\n\n"
        "examples:\n"
        "  covey group list\n"
        "  covey group create team\n"
        "  covey group members team\n"
        "  covey group role team bob-desk read\n"
        "  covey group remove team bob-desk --dry-run\n"
        "  covey group remove team bob-desk --keep 2026-11-20\n"
        "  covey group leave team\n"
        "  covey group rotate team"
    )


def run_group(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verb = args.verb or "list"
    if verb == "remove":
        return _remove(args)
    if verb == "leave":
        return _leave(args)
    params: dict[str, Json] = {}
    if verb == "create":
        params["name"] = args.name
    elif verb != "list":
        params["group"] = args.group
    if verb == "role":
        params |= {"member": args.member, "role": args.role}
    method = "group.set_role" if verb == "role" else f"group.{verb}"
    result = connect(args).call(method, params)
    if args.json:
        out.say_json(result)
    else:
        _say_group(verb, args, result)
    return 0


def _say_group(verb: str, args: argparse.Namespace, result: Json) -> None:
    if verb == "create":
        made = out.mapping(result)
        name = out.text(made.get("name"))
        out.say(f"founded {name}  {out.text(made.get('group'))[:8]}")
        out.note(f"invite others with `covey invite --group {name}`")
        out.note("its recovery key is in the file that `covey paths` calls recovery: keep a copy")
    elif verb == "role":
        member = out.mapping(result)
        name, role = out.text(member.get("name")), out.text(member.get("role"))
        out.say(f"{name} has the role {role} in {args.group} now")
    elif verb == "rotate":
        readers = int(out.number(out.mapping(result).get("readers")))
        out.say(f"{args.group} has a new key; {readers} can read what is written from now on")
    elif verb == "members":
        lines = [
            [
                *(out.text(m.get(key)) for key in ("name", "role")),
                "" if m.get("rank") is None else str(int(out.number(m.get("rank")))),
                *(out.text(m.get(key)) for key in ("relation", "peer_id")),
            ]
            for m in out.rows(result)
        ]
        out.table(["name", "role", "rank", "relation", "id"], lines)
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


def _may_go_on(args: argparse.Namespace, question: str) -> bool:
    """Ask, unless --yes said it; refuse where nobody can answer."""
    if args.yes:
        return True
    if not sys.stdin.isatty():
        raise CliError("this needs your word", 2, remedy="Repeat with --yes.")
    return out.confirm(question, yes=False)


def _remove(args: argparse.Namespace) -> int:
    client = connect(args)
    params: dict[str, Json] = {"group": args.group, "member": args.member, "keep": args.keep}
    plan = out.mapping(client.call("group.remove", {**params, "dry_run": True}))
    name = out.text(plan.get("name"))
    records, voided = (int(out.number(plan.get(key))) for key in ("records", "voided"))
    if not args.json:
        readers = int(out.number(plan.get("readers")))
        out.say(f"{name} ({out.text(plan.get('role'))}) will be out of {args.group}, everywhere.")
        out.say("  It keeps what it has read, and reads nothing that is written from now on.")
        what = "all of them go on counting" if not voided else f"{voided} stop counting, everywhere"
        out.say(
            f"  Of its {records} records here {what}; what it writes from now on counts nowhere."
        )
        out.say(f"  A new key goes to the {readers} that stay. A new invite would let it back in.")
    if args.dry_run:
        if args.json:
            out.say_json(plan)
        return 0
    if not _may_go_on(args, f"Take {name} out of {args.group}?"):
        out.say("Nothing was changed.")
        return 0
    done = client.call("group.remove", params)
    if args.json:
        out.say_json(done)
    else:
        out.say(f"{name} is out of {args.group}.")
    return 0


def _leave(args: argparse.Namespace) -> int:
    if not args.json:
        out.say(f"This machine will be out of {args.group}. What it wrote stays there and counts;")
        out.say("what it holds stays here, and nothing new comes. Only a new invite lets it back.")
    if not _may_go_on(args, f"Leave {args.group}?"):
        out.say("Nothing was changed.")
        return 0
    result = connect(args).call("group.leave", {"group": args.group})
    if args.json:
        out.say_json(result)
    else:
        out.say(f"left {args.group}")
    return 0


def configure_sync(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey sync`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, text in (
        ("status", "how far the machines agree (also without a verb)"),
        ("now", "synchronise at once"),
        ("verify", "prove that both hold the same records, or count what differs; fetches nothing"),
        ("repair", "synchronise until both hold the same"),
    ):
        sub = add_verb(verbs, verb, text)
        sub.add_argument("--group", help="only this group")
        sub.add_argument("--peer", help="only with this machine")
    parser.epilog = (
        "examples:\n  covey sync\n  covey sync status --peer desk\n  covey sync now\n"
        "  covey sync verify --group team\n  covey sync repair"
    )


def run_sync(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    params: dict[str, Json] = {
        key: value for key in ("group", "peer") if (value := getattr(args, key, None)) is not None
    }
    verb = args.verb or "status"
    result = connect(args).call(f"sync.{verb}", params)
    if args.json:
        out.say_json(result)
    elif verb == "verify":
        _show_verified(out.rows(result))
    else:
        _show_synced(out.rows(result), carried=verb == "repair")
    return _exit_code(verb, out.rows(result))


def _exit_code(verb: str, rows: list[dict[str, Json]]) -> int:
    """1 where sets are not proven equal, for scripts."""
    if verb == "verify":
        return 0 if rows and all(row.get("verdict") == "equal" for row in rows) else 1
    if verb == "repair":
        return 0 if all(row.get("equal") for row in rows) else 1
    return 0


def _show_synced(found: list[dict[str, Json]], *, carried: bool) -> None:
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
    for row in found if carried else []:
        out.say(
            f"{out.text(row.get('name'))}, {out.text(row.get('group'))}: "
            f"{int(out.number(row.get('received')))} records came, "
            f"{int(out.number(row.get('sent')))} went"
        )


def _show_verified(found: list[dict[str, Json]]) -> None:
    if not found:
        out.note("no machine is connected to compare with")
        return
    lines = [
        [
            out.text(row.get("name")),
            out.text(row.get("group")),
            out.text(row.get("verdict")),
            f"{int(out.number(row.get('records'))):,}",
            f"{int(out.number(row.get('only_here'))):,}",
            f"{int(out.number(row.get('only_there'))):,}",
            out.size(out.number(row.get("bytes"))),
            out.one_line(out.text(row.get("why")), 60),
        ]
        for row in found
    ]
    head = ["machine", "group", "verdict", "records", "only here", "only there", "carried", "why"]
    out.table(head, lines)
    for row in found:
        _explain_verdict(row)


def _explain_verdict(row: dict[str, Json]) -> None:
    name, group = out.text(row.get("name")), out.text(row.get("group"))
    if row.get("verdict") == "equal":
        digest = out.text(row.get("digest"))[:16]
        out.say(f"{name} holds exactly our records of {group}; digest {digest} on both machines")
    elif row.get("verdict") == "differs":
        for record in out.rows(row.get("here")):
            out.say(
                f"only here: {out.text(record.get('id'))[:16]}  {_kind_name(record.get('kind'))}"
                f"  by {out.text(record.get('author'))}  {out.ago(out.number(record.get('at_ms')))}"
            )
        if out.number(row.get("only_there")):
            out.say(f"what only {name} holds, `covey sync verify` shows there")
        out.note("`covey sync repair` makes both hold everything")


def _kind_name(kind: Json) -> str:
    number = int(out.number(kind))
    if number < 32:
        return "group operation"
    return {32: "memory", 33: "state value"}.get(number, f"record of kind {number}")
