"""`covey trust, feedback, quarantine, rollback`: whom to believe, and taking it back."""

from __future__ import annotations

import re
import time

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.memory import author_line, connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.json_types import Json

WHO = "agent, agent@device, a device's name, or the beginning or ending of an id"

# What evidence is called where people read it.
KINDS = {
    "owner_useful": "you: useful",
    "owner_wrong": "you: wrong or harmful",
    "agent_useful": "your agent: useful",
    "agent_wrong": "your agent: wrong",
    "agent_harmful": "your agent: harmful",
    "confirmed": "confirmed",
    "refuted": "refuted",
    "conflict_won": "was right in a conflict",
    "conflict_lost": "was wrong in a conflict",
    "quick_erase": "taken back within an hour of use",
    "injection": "orders to a model in its text",
    "secret": "a secret in its text",
    "quota": "filled a group",
    "endorsed": "endorsed",
    "distrusted": "distrusted",
    "stale": "no longer true (nobody's fault)",
}
LIMITS = {
    "evidence": "by its evidence alone",
    "owner": "by its owner, who is trusted less (the evidence below is about the owner)",
    "distrusted": "by your distrust: `covey trust endorse` ends it",
    "banned": "for ever: it was caught with two histories of its log",
}


# ---- trust


def configure_trust(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey trust`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    sub = add_verb(verbs, "show", "how far everybody is trusted (also without a verb)")
    sub.add_argument("subject", nargs="?", help=WHO)
    sub = add_verb(verbs, "explain", "why somebody is trusted as it is, with dates")
    sub.add_argument("subject", help=WHO)
    sub = add_verb(verbs, "endorse", "vouch for an owner")
    sub.add_argument("subject", help=WHO)
    sub.add_argument("--level", type=int, default=80, help="1 to 100 (default 80)")
    sub.add_argument("--until", metavar="DATE", help="when it ends, such as 2027-01-31")
    sub = add_verb(verbs, "distrust", "trust nothing of an owner any more")
    sub.add_argument("subject", help=WHO)
    parser.epilog = (
        "examples:\n  covey trust\n  covey trust show bob-desk\n"
        "  covey trust explain codex@laptop\n"
        "  covey trust endorse bob-desk --until 2027-01-31\n  covey trust distrust …7R3pqx"
    )


def run_trust(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verb = args.verb or "show"
    params: dict[str, Json] = {}
    if getattr(args, "subject", None):
        params["subject"] = args.subject
    if verb == "endorse":
        params["level"] = args.level
        if args.until:
            params["until"] = args.until
    result = connect(args).call(f"trust.{verb}", params)
    if args.json:
        out.say_json(result)
        return 0
    match verb:
        case "show":
            _say_rows(out.rows(result))
        case "explain":
            for number, found in enumerate(out.rows(result)):
                if number:
                    out.say()
                _say_explained(found)
        case _:
            _say_endorsed(out.mapping(result), args.subject)
    return 0


def _say_rows(rows: list[dict[str, Json]]) -> None:
    lines = []
    for row in rows:
        state = out.text(row.get("state")) or _relation(row)
        tier = {"main": "", "low": "shown on request", "none": "not shown"}
        lines.append(
            [
                out.one_line(out.text(row.get("name")), 60),
                out.trust(out.number(row.get("trust"))),
                state,
                str(int(out.number(row.get("memories")))),
                tier.get(out.text(row.get("tier")), ""),
            ]
        )
    out.table(["who", "trust", "is", "notes", ""], lines)
    if not rows:
        out.note("nobody has written here yet")


def _relation(row: dict[str, Json]) -> str:
    words = {
        "own": "this machine",
        "own_device": "your machine",
        "invited": "invited",
        "other": "other member",
    }
    return words.get(out.text(row.get("relation")), "other member")


def _say_explained(found: dict[str, Json]) -> None:
    row = out.mapping(found.get("row"))
    name = out.one_line(out.text(row.get("name")), 60)
    trust = out.trust(out.number(row.get("trust")))
    if out.text(row.get("relation")) == "own" and out.text(row.get("agent")) == "you":
        out.say(f"{out.paint(name, out.BOLD)}  trust {trust}  you: always believed")
        return
    out.say(f"{out.paint(name, out.BOLD)}  trust {trust}  ({_relation(row)})")
    for_it, against = out.number(found.get("s")), out.number(found.get("f"))
    out.say(
        f"  for {for_it:.2f} (starts at {out.number(found.get('start')):g}), against {against:.2f}:"
        f" (1.2 + {for_it:.2f}) / (4 + {for_it:.2f} + {against:.2f}), at most .97"
    )
    limit = out.text(found.get("limited_by"))
    out.say(f"  decided {LIMITS.get(limit, limit)}")
    if found.get("owner_trust") is not None:
        reach = int(out.number(found.get("flow")))
        voices = f", {reach} independent voices" if reach else ""
        out.say(f"  its owner {out.trust(out.number(found.get('owner_trust')))}{voices}")
    _say_evidence(found)


def _say_evidence(found: dict[str, Json]) -> None:
    lines = []
    for piece in out.rows(found.get("evidence")):
        p, n = out.number(piece.get("p")), out.number(piece.get("n"))
        kind = out.text(piece.get("kind"))
        lines.append(
            [
                out.text(piece.get("at"))[:16].replace("T", " "),
                f"+{p:.2f}" if p else f"-{n:.2f}" if n else "0",
                KINDS.get(kind, kind),
                out.one_line(out.text(piece.get("by")), 30),
                out.text(piece.get("memory"))[:8],
                out.one_line(out.text(piece.get("why")), 60),
            ]
        )
    if not lines:
        out.say("  no evidence yet: it has what its relation gives it")
        return
    more = int(out.number(found.get("pieces"))) - len(lines)
    if more > 0:
        out.say(f"  the newest {len(lines)} of {more + len(lines)} pieces:")
    out.table(["when (UTC)", "counts", "what", "by", "note", "held down by"], lines)


def _say_endorsed(done: dict[str, Json], subject: str) -> None:
    level = int(out.number(done.get("level")))
    what = "no longer trusted" if level == 0 else f"endorsed at {level}"
    before, after = out.number(done.get("trust_before")), out.number(done.get("trust_after"))
    out.say(f"{out.clean(subject)} is {what}: trust {out.trust(before)} -> {out.trust(after)}")
    names = done.get("names")
    if isinstance(names, list) and len(names) > 1:
        out.note("this covers " + ", ".join(out.one_line(str(name), 40) for name in names[:8]))


# ---- feedback


def configure_feedback(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey feedback`."""
    parser.add_argument("id", help="id, or a prefix of 8 digits or more")
    parser.add_argument("outcome", choices=["useful", "wrong", "stale", "harmful"])
    parser.add_argument("--note", default="", help="why, for the history")
    parser.add_argument("--evidence", default="", metavar="SHA256", help="of what shows it")
    parser.epilog = (
        "examples:\n  covey feedback 3fa9c2d1 useful\n"
        '  covey feedback 3fa9c2d1 wrong --note "the port is 8081 since June"'
    )


def run_feedback(args: argparse.Namespace) -> int:
    """Say what became of relying on a note."""
    params = {name: getattr(args, name) for name in ("id", "outcome", "note", "evidence")}
    result = out.mapping(connect(args).call("memory.feedback", params))
    if args.json:
        out.say_json(result)
        return 0
    pairs = []
    for what, field in (("note", "trust"), ("author", "author")):
        before, after = (out.number(result.get(f"{field}_{end}")) for end in ("before", "after"))
        pairs.append(f"{what} {out.trust(before)} -> {out.trust(after)}")
    out.say(f"{', '.join(pairs)}: {out.text(result.get('why'))}")
    return 0


# ---- quarantine


def configure_quarantine(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey quarantine`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    sub = add_verb(verbs, "list", "what recall does not show of others (also without a verb)")
    sub.add_argument("--scope", help="only this scope")
    sub.add_argument("-n", "--limit", type=int, default=20, help="how many (default 20)")
    for verb, text in (("release", "let recall show them"), ("reject", "hide them for good")):
        sub = add_verb(verbs, verb, text)
        sub.add_argument("id", nargs="+", help="ids, or prefixes of 8 digits or more")
    parser.epilog = (
        "examples:\n  covey quarantine\n  covey quarantine list --scope api\n"
        "  covey quarantine release 3fa9c2d1\n"
        "  covey quarantine reject 3fa9c2d1 77b01e5f"
    )


REASONS = {
    "banned": "its author is banned",
    "imperative": "speaks to a model",
    "policy": "somebody else's policy",
    "trust": "barely trusted",
    "quarantined": "quarantined",
}


def run_quarantine(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verb = args.verb or "list"
    params: dict[str, Json] = {}
    if verb == "list":
        params["limit"] = getattr(args, "limit", 20)
        if getattr(args, "scope", None):
            params["scope"] = args.scope
    else:
        params["ids"] = args.id
    result = connect(args).call(f"memory.quarantine_{verb}", params)
    if args.json:
        out.say_json(result)
        return 0
    if verb == "list":
        _say_quarantined(out.rows(result))
        return 0
    for row in out.rows(result):
        trust = out.trust(out.number(row.get("trust")))
        out.say(f"{out.text(row.get('status'))}  {out.text(row.get('id'))[:8]}  trust {trust}")
    return 0


def _say_quarantined(rows: list[dict[str, Json]]) -> None:
    for row in rows:
        hit = out.mapping(row.get("hit"))
        why = row.get("why")
        reasons = [REASONS.get(str(w), str(w)) for w in why] if isinstance(why, list) else []
        out.say(
            f"{out.text(hit.get('id'))[:8]}  trust {out.trust(out.number(hit.get('trust')))}  "
            + out.paint(", ".join(reasons), out.YELLOW)
        )
        # Quoted, so that nothing in it can pass for a line of ours.
        for line in out.text(hit.get("text")).splitlines()[:6]:
            out.say("   | " + out.one_line(line, out.width() - 6))
        out.say("   " + out.paint(author_line(hit), out.DIM))
    if not rows:
        out.note("nothing is quarantined")


# ---- rollback


def configure_rollback(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey rollback`."""
    parser.add_argument("author", nargs="?", help="agent@device, or a device's name for all of it")
    parser.add_argument("--since", metavar="WHEN", help="a date such as 2026-11-20, or 3d, 6h, 45m")
    parser.add_argument("--group", help="only in this group")
    parser.add_argument("--dry-run", action="store_true", help="count only")
    parser.add_argument("--undo", metavar="TOKEN", help="bring back what a rollback hid")
    parser.add_argument("--list", action="store_true", help="rollbacks made on this machine")
    parser.epilog = (
        "examples:\n  covey rollback codex@laptop --since 3d --dry-run\n"
        "  covey rollback codex@laptop --since 3d        (counts, then asks)\n"
        "  covey rollback bob-desk --since 2026-11-20 --yes\n"
        "  covey rollback --undo 4f1c0a9be2d37756"
    )


def run_rollback(args: argparse.Namespace) -> int:
    """Hide what an author wrote since a time, or bring it back."""
    client = connect(args)
    if args.undo and args.dry_run:
        raise CliError("--undo has no dry run", 2, remedy="--list shows what each one hid.")
    if args.undo or args.list or not args.author:
        if not args.undo and not args.list:
            raise CliError(
                "whose notes?",
                2,
                remedy="covey rollback AUTHOR --since 3d; --list shows earlier ones",
            )
        params: dict[str, Json] = {"token": args.undo, "undo": True} if args.undo else {}
        result = client.call("group.rollback", params, progress=_progress(args))
        _say_rolled(args, result)
        return 0
    if not args.since:
        raise CliError("since when?", 2, remedy="Add --since 3d, or --since 2026-11-20.")
    params = {"author": args.author, "since": when(args.since)}
    if args.group:
        params["group"] = args.group
    planned = client.call("group.rollback", params)
    plan = next(iter(out.rows(planned)), {})
    if not args.json:
        _say_counts(plan, "would hide")
    if args.dry_run or not out.confirm("Hide them on this machine?", yes=args.yes):
        if args.json:
            out.say_json(planned)
        else:
            out.note("nothing was changed; --yes carries it out, and it can be undone")
        return 0
    token = out.text(plan.get("token"))
    result = client.call(
        "group.rollback", {"token": token, "dry_run": False}, progress=_progress(args)
    )
    _say_rolled(args, result)
    return 0


def _progress(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    if args.quiet or args.json:
        return None

    def say(done: int, total: int | None, message: str) -> None:
        out.note(f"{message}: {done}" + (f" of {total}" if total else ""))

    return say


def _say_rolled(args: argparse.Namespace, result: Json) -> None:
    if args.json:
        out.say_json(result)
        return
    rows = out.rows(result)
    words = {
        "done": "hid",
        "undone": "brought back",
        "hiding": "is hiding",
        "undoing": "brings back",
    }
    for row in rows:
        state = out.text(row.get("state"))
        _say_counts(row, words.get(state, state))
        if state == "done":
            out.note(f"undo: covey rollback --undo {out.text(row.get('token'))}")
    if not rows:
        out.note("no rollback was made on this machine")


def _say_counts(row: dict[str, Json], verb: str) -> None:
    authors = row.get("authors")
    names = ", ".join(map(str, authors)) if isinstance(authors, list) else ""
    parts = [
        f"{int(out.number(row.get(name)))} {name if out.number(row.get(name)) != 1 else one}"
        for name, one in (
            ("memories", "memory"),
            ("links", "link"),
            ("forgets", "forget"),
            ("verdicts", "verdict"),
            ("endorsements", "endorsement"),
        )
        if out.number(row.get(name))
    ]
    since = out.text(row.get("since"))[:16].replace("T", " ")
    shown = ", ".join(parts) or "nothing"
    out.say(f"{out.one_line(names, 80)} since {since} UTC: {verb} {shown}")


def when(text: str) -> str:
    """A date, or a time span back from now, as ISO 8601.

    Raises:
        CliError: neither.
    """
    span = re.fullmatch(r"(\d+)\s*([dhm])", text.strip())
    if span is None:
        if not re.match(r"\d{4}-\d\d-\d\d", text):
            raise CliError(f"{text!r} is no date", 2, remedy="Write 2026-11-20, or 3d, 6h, 45m.")
        return text
    seconds = int(span[1]) * {"d": 86_400, "h": 3600, "m": 60}[span[2]]
    at = time.gmtime(max(0, time.time_ns() // 10**9 - seconds))
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", at)
