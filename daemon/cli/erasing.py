"""`covey erase` and `covey maintain`: what goes for ever, and upkeep by hand."""

from __future__ import annotations

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.memory import EXAMPLES, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json

LISTED_MAX = 20
"""Notes shown before the question; the rest is counted."""

WORDS = {
    "erased": "erased",
    "erased_here": "erased here",
    "erased_group": "erased by all",
    "derived": "concluded from it",
    "erased_before": "erased before",
    "not_found": "not found",
    "not_yours": "not yours",
}


def configure_erase(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey erase`."""
    parser.add_argument("id", nargs="*", help="ids, or prefixes of 8 digits or more")
    parser.add_argument("--author", metavar="NAME", help="everything by this agent or device")
    parser.add_argument("--subject", metavar="WORDS", help="every note about it or that says it")
    parser.add_argument(
        "--for-group",
        action="store_true",
        help="as an admin: also by every other member, a day after it hears of it",
    )
    parser.add_argument("--dry-run", action="store_true", help="list only")
    parser.add_argument(
        "--status", action="store_true", help="which machines confirmed what was erased before"
    )
    parser.epilog = (
        EXAMPLES
        + "  covey erase 1f2e3d4c\n"
        + '  covey erase --subject "Jane Doe" --dry-run\n'
        + "  covey erase --author scraper@desk --yes\n"
        + "  covey erase --status\n\n"
        "What this machine wrote is erased on all replicas that hear of it; what others wrote, here"
        " alone.\nWith --for-group an admin has what members below it wrote hidden everywhere at"
        " once and erased\na day later."
    )


def run_erase(args: argparse.Namespace) -> int:
    """Destroy notes for ever."""
    if args.status:
        return _status(args)
    given = [bool(args.id), bool(args.author), bool(args.subject)]
    if sum(given) != 1:
        raise CliError("give ids, or --author, or --subject", 2, remedy="See: covey erase --help")
    params: dict[str, Json] = {}
    if args.id:
        params["ids"] = args.id
    elif args.author:
        params["author"] = args.author
    else:
        params["subject"] = args.subject
    if args.for_group:
        params["for_group"] = True
    return erase(args, params, dry_run=args.dry_run)


def _status(args: argparse.Namespace) -> int:
    result = connect(args).call("sync.erasure", {})
    if args.json:
        out.say_json(result)
        return 0
    rows = out.rows(result)
    for row in rows:
        sure, silent, gone = (
            [out.text(name) for name in found] if isinstance(found := row.get(key), list) else []
            for key in ("confirmed", "outstanding", "out_of_reach")
        )
        count = int(out.number(row.get("records")))
        head = f"{out.text(row.get('at'))}  {out.text(row.get('group'))}  {_notes(count)}"
        total = len(sure) + len(silent) + len(gone)
        if not total:
            continue  # of a group that is on this machine alone
        out.say(f"{head}, by {out.text(row.get('by'))}: confirmed by {len(sure)} of {total}")
        if row.get("hidden_until"):
            out.say(f"  hidden here, gone at {out.text(row.get('hidden_until'))}")
        for words, names in (
            ("confirmed by", sure),
            ("no word yet from", silent),
            ("out of reach, left the group before", gone),
        ):
            if names:
                out.say(f"  {words}: {', '.join(names)}")
    if not rows:
        out.note("no other machine was told of an erasure")
    return 0


def erase(args: argparse.Namespace, params: dict[str, Json], *, dry_run: bool = False) -> int:
    """List, ask, erase, report; the exit code."""
    client = connect(args)
    found = out.mapping(client.call("memory.erase", {**params, "dry_run": True}))
    count = int(out.number(found.get("memories")))
    if dry_run or not count:
        if args.json:
            out.say_json(found)
        else:
            _say_items(found)
            out.note(f"{count} would be erased" if count else "nothing to erase")
        return 0 if count or dry_run else 4
    if not args.json:
        _say_items(found)
    question = f"Destroy {_notes(count)} for ever? This cannot be undone."
    if not out.confirm(question, yes=args.yes):
        out.note("nothing was erased")
        return 1
    report = out.mapping(client.call("memory.erase", params))
    if args.json:
        out.say_json(report)
    else:
        _say_report(report)
    return 0 if out.text(report.get("state")) == "done" else 75


def _notes(count: int) -> str:
    return "1 note" if count == 1 else f"{count} notes"


def _say_items(report: dict[str, Json]) -> None:
    items = out.rows(report.get("items"))
    for item in items[:LISTED_MAX]:
        status = out.text(item.get("status"))
        word = WORDS.get(status, status)
        title = out.one_line(out.text(item.get("title")), out.width() - 32)
        out.say(f"{out.text(item.get('id'))[:8]}  {word:<18} {title}".rstrip())
    if len(items) > LISTED_MAX:
        out.say(f"and {len(items) - LISTED_MAX} more")


def _say_report(report: dict[str, Json]) -> None:
    count = int(out.number(report.get("memories")))
    parts = [
        f"{int(out.number(report.get(name)))} {words}"
        for name, words in (
            ("derived", "concluded from others"),
            ("chunks", "pieces of text"),
            ("vectors", "vectors"),
            ("links", "links"),
            ("backups", "backups without their keys now"),
        )
        if report.get(name)
    ]
    out.say(f"{out.paint('erased', out.GREEN)}  {_notes(count)}: {', '.join(parts)}")
    flagged = int(out.number(report.get("flagged")))
    if flagged:
        out.say(f"  {flagged} of others were concluded from them: kept, marked, trusted less")
    _say_search(report)
    held = report.get("may_hold")
    if isinstance(held, list) and held:
        names = ", ".join(out.text(key)[:8] for key in held[:8])
        out.say(f"  may still hold a copy: {names}{' ...' if len(held) > 8 else ''}")
    notes = report.get("notes")
    for line in notes if isinstance(notes, list) else []:
        out.note(f"  {out.clean(out.text(line))}")


def _say_search(report: dict[str, Json]) -> None:
    left = report.get("residue_bytes")
    where = (
        f"{int(out.number(report.get('scanned_files')))} files,"
        f" {out.size(out.number(report.get('scanned_bytes')))}"
    )
    if left is None:
        out.say(out.paint("  not verified", out.YELLOW))
    elif not left:
        out.say(f"  0 bytes left in any file of this node ({where})")
    else:
        out.say(out.paint(f"  {int(out.number(left))} bytes left ({where})", out.RED))
    for found in out.rows(report.get("residue"))[:LISTED_MAX]:
        file, offset = out.clean(out.text(found.get("file"))), int(out.number(found.get("offset")))
        out.say(f"    {file} at {offset}: a {out.text(found.get('what'))}")
    excluded = len(out.rows(report.get("excluded")))
    if excluded:
        out.note(f"  {excluded} places hold words of it that living notes use too")


def configure_maintain(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey maintain`."""
    parser.add_argument(
        "task",
        help="reindex: build the full-text index anew; reembed: make all vectors anew;"
        " forget_behaviour: empty the feedback log; forget_unused: apply the rules of forgetting",
    )
    parser.epilog = EXAMPLES + "  covey maintain reindex\n  covey maintain forget_behaviour"


def run_maintain(args: argparse.Namespace) -> int:
    """Do a task of upkeep."""
    result = out.mapping(connect(args).call("memory.maintain", {"task": args.task}))
    if args.json:
        out.say_json(result)
    else:
        count = int(out.number(result.get("count")))
        out.say(f"{out.clean(out.text(result.get('task')))}: done, {count}")
    return 0
