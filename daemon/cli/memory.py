"""`covey remember, recall, get, list, history, forget`: the memory from the terminal."""

from __future__ import annotations

import sys

from daemon.cli import out
from daemon.cli.client import CliError, open_client
from daemon.cli.explain import lines as explain_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.cli.client import Client
    from daemon.json_types import Json

EXAMPLES = "examples:\n"


def connect(args: argparse.Namespace) -> Client:
    """A client with the options of the command line."""
    return open_client(
        socket_path=args.socket, autostart=not args.no_autostart, timeout_s=args.timeout
    )


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scope", action="append", metavar="NAME", help="only this scope; repeat")
    parser.add_argument("--tag", action="append", metavar="TAG", help="only with this tag; repeat")
    parser.add_argument("--author", metavar="NAME", help="only by this agent or device")
    parser.add_argument(
        "--since", metavar="DATE", help="only dated at or after, such as 2026-11-01"
    )
    parser.add_argument("--until", metavar="DATE", help="only dated at or before")


def _filter_params(args: argparse.Namespace) -> dict[str, Json]:
    params: dict[str, Json] = {}
    if args.scope:
        params["scope"] = args.scope
    if args.tag:
        params["tags"] = args.tag
    for name in ("author", "since", "until"):
        if getattr(args, name):
            params[name] = getattr(args, name)
    return params


def configure_remember(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey remember`."""
    parser.add_argument("text", nargs="*", help="the note; - or nothing reads standard input")
    parser.add_argument("--title", default="", help="a few words to find it by")
    parser.add_argument("--tag", action="append", metavar="TAG", help="repeat for more")
    parser.add_argument("--scope", help="where it belongs: name, group/name or private/name")
    parser.add_argument(
        "--kind",
        choices=["note", "decision", "preference", "policy", "lesson", "event", "claim"],
        default="note",
    )
    parser.add_argument(
        "--claim",
        nargs=3,
        metavar=("SUBJECT", "ATTRIBUTE", "VALUE"),
        help="what it states, so that a later value replaces it and another's stands beside it",
    )
    parser.add_argument("--key", metavar="KEY", help="store once, however often this is repeated")
    parser.add_argument("--supersedes", action="append", metavar="ID", help="replaces this note")
    parser.epilog = (
        EXAMPLES
        + '  covey remember "The build needs node 22" --tag build\n'
        + "  git log -1 --format=%B | covey remember - --kind decision --scope api\n"
        + '  covey remember "Releases are cut on Thursdays" --claim release day Thursday'
    )


def _standard_input() -> str:
    try:
        words = sys.stdin.read()
        words.encode()  # where the locale lets other bytes through, they are half characters
    except UnicodeError:
        raise CliError(
            "standard input is no UTF-8 text",
            2,
            remedy="Convert it (iconv -t utf-8); of a binary file, remember where it is.",
        ) from None
    return words


def run_remember(args: argparse.Namespace) -> int:
    """Store a note."""
    words = " ".join(args.text)
    if words in {"", "-"}:
        if sys.stdin.isatty() and not args.text:
            raise CliError("nothing to remember", 2, remedy='Try: covey remember "..."')
        words = _standard_input()
    if not words.strip():
        raise CliError(
            "nothing to remember: the text is empty", 2, remedy='Try: covey remember "..."'
        )
    params: dict[str, Json] = {"text": words.strip(), "kind": args.kind}
    optional: dict[str, Json] = {
        "title": args.title,
        "tags": args.tag,
        "scope": args.scope,
        "idempotency_key": args.key,
        "supersedes": args.supersedes,
    }
    if args.claim:
        subject, attribute, value = args.claim
        optional["claim"] = {"subject": subject, "attribute": attribute, "value": value}
    params.update({name: value for name, value in optional.items() if value})
    result = connect(args).call("memory.remember", params)
    if args.json:
        out.say_json(result)
        return 0
    for row in out.rows(result):
        word = {"stored": "remembered", "duplicate": "already known"}.get(
            out.text(row.get("status")), out.text(row.get("status"))
        )
        out.say(f"{out.paint(word, out.GREEN)}  {out.text(row.get('id'))[:8]}")
        conflicts = row.get("conflicts")
        for conflict in conflicts if isinstance(conflicts, list) else []:
            out.note(f"  in conflict with {out.text(conflict)[:8]}")
    return 0


def configure_recall(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey recall`."""
    parser.add_argument("query", nargs="+", help="words to look for")
    parser.add_argument("-n", "--limit", type=int, default=8, help="how many hits (default 8)")
    _filters(parser)
    parser.add_argument("--trust-min", type=float, default=0.5, metavar="T", help="0 to 1")
    parser.add_argument("--all", action="store_true", help="also what is barely trusted")
    parser.add_argument("--as-of", metavar="DATE", help="as it was known here on that date")
    parser.add_argument("--titles", action="store_true", help="titles only")
    parser.add_argument("--explain", action="store_true", help="show how the rank came about")
    parser.epilog = (
        EXAMPLES + "  covey recall node version\n  covey recall deploy --since 2026-11-01 --explain"
    )


def run_recall(args: argparse.Namespace) -> int:
    """Find notes by words."""
    params: dict[str, Json] = {"query": " ".join(args.query), "limit": args.limit}
    params.update(_filter_params(args))
    if args.trust_min != 0.5:
        params["trust_min"] = args.trust_min
    if args.all:
        params["quarantined"] = True
        params["trust_min"] = 0.0
    if args.as_of:
        params["as_of"] = args.as_of
    if args.titles:
        params["detail"] = "index"
    if args.explain:
        params["explain"] = True
    result = connect(args).call("memory.recall", params)
    if args.json:
        out.say_json(result)
        return 0
    _say_hits(out.mapping(result), explain=args.explain, quiet=args.quiet)
    return 0


def author_line(hit: dict[str, Json]) -> str:
    """Who wrote a hit, where, when: `you on laptop · 2026-11-20 · main`."""
    author = out.mapping(hit.get("author"))
    who = out.one_line(out.text(author.get("agent")), 40) or "you"
    device = out.one_line(out.text(author.get("device")), 40)
    relation = out.text(author.get("relation"))
    mark = {"peer": out.paint("PEER ", out.YELLOW), "own_device": ""}.get(relation, "")
    source = {"tool": " (from a tool)", "web": " (from the web)"}.get(relation, "")
    date = out.text(hit.get("created"))[:10]
    scope = out.text(hit.get("scope"))
    return f"{mark}{who} on {device}{source} · {date} · {scope} · {out.text(hit.get('id'))[:8]}"


def _say_hits(result: dict[str, Json], *, explain: bool, quiet: bool) -> None:
    hits = out.rows(result.get("hits"))
    room = out.width() - 4
    for number, hit in enumerate(hits, 1):
        title = out.one_line(out.text(hit.get("title")), room - 12)
        body = hit.get("text")
        head = (
            f"{out.paint(str(number), out.BOLD)}  trust {out.trust(out.number(hit.get('trust')))}"
        )
        out.say(f"{head}  {out.paint(title, out.BOLD)}".rstrip())
        if body is not None:
            for line in out.clean(str(body)).splitlines()[:40]:
                out.say(f"   {line}")
        flags = hit.get("flags")
        marks = [str(flag) for flag in flags] if isinstance(flags, list) else []
        if hit.get("superseded_by"):
            marks.append(f"replaced by {out.text(hit['superseded_by'])[:8]}")
        against = hit.get("disputed")
        if isinstance(against, list) and against:
            marks.append("against " + " ".join(out.text(other)[:8] for other in against))
        if hit.get("copies"):
            marks.append(f"{int(out.number(hit['copies']))} more like it")
        shown = f" · {', '.join(marks)}" if marks else ""
        out.say("   " + out.paint(author_line(hit), out.DIM) + out.paint(shown, out.YELLOW))
        if explain:
            for line in explain_lines(hit):
                out.say("   " + out.paint(line, out.CYAN))
    if quiet:
        return
    withheld = out.mapping(result.get("withheld"))
    kept = [f"{int(out.number(count))} {name}" for name, count in withheld.items() if count]
    what = (
        "nothing found" if not hits else f"{len(hits)} of {int(out.number(result.get('searched')))}"
    )
    tail = f"; withheld: {', '.join(kept).replace('_', ' ')} (--all shows more)" if kept else ""
    out.note(out.paint(f"{what} in {out.number(result.get('ms')):.1f} ms{tail}", out.DIM))


def configure_get(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey get`."""
    parser.add_argument("id", nargs="+", help="ids, or prefixes of 8 digits or more")
    parser.epilog = EXAMPLES + "  covey get 1f2e3d4c\n  covey get 1f2e3d4c 77b01e5f --json"


def run_get(args: argparse.Namespace) -> int:
    """Read notes in full."""
    result = connect(args).call("memory.get", {"ids": args.id})
    if args.json:
        out.say_json(result)
        return 0
    for hit in out.rows(out.mapping(result).get("hits")):
        title = out.text(hit.get("title"))
        if title:
            out.say(out.paint(out.one_line(title, 200), out.BOLD))
        out.say(out.text(hit.get("text")))
        trust = out.trust(out.number(hit.get("trust")))
        out.say(out.paint(f"trust {trust} · {author_line(hit)}", out.DIM))
        out.say(out.paint(f"id {out.text(hit.get('id'))}", out.DIM))
        out.say()
    return 0


def configure_list(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey list`."""
    _filters(parser)
    parser.add_argument("-n", "--limit", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--cursor", help="continue where the page before ended")
    parser.add_argument(
        "--status",
        choices=["active", "superseded", "refuted", "quarantined", "forgotten", "hidden"],
    )
    parser.epilog = EXAMPLES + "  covey list --scope api\n  covey list --status superseded -n 5"


def run_list(args: argparse.Namespace) -> int:
    """List notes, newest first."""
    params = _filter_params(args)
    params["limit"] = args.limit
    for name in ("cursor", "status"):
        if getattr(args, name):
            params[name] = getattr(args, name)
    result = out.mapping(connect(args).call("memory.list", params))
    if args.json:
        out.say_json(result)
        return 0
    hits = out.rows(result.get("hits"))
    room = out.width() - 32
    for hit in hits:
        words = out.text(hit.get("title")) or out.text(hit.get("text"))
        date, trust = out.text(hit.get("created"))[:10], out.trust(out.number(hit.get("trust")))
        out.say(f"{out.text(hit.get('id'))[:8]}  {date}  {trust:>4}  {out.one_line(words, room)}")
    if not hits:
        out.note("nothing here yet: `covey remember ...` stores the first note")
    elif result.get("cursor"):
        out.note(f"more: covey list --cursor {out.text(result.get('cursor'))}")
    return 0


def configure_history(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey history`."""
    parser.add_argument("id", help="id, or a prefix of 8 digits or more")
    parser.epilog = EXAMPLES + "  covey history 1f2e3d4c"


def run_history(args: argparse.Namespace) -> int:
    """Show all that was signed about a note."""
    result = out.mapping(connect(args).call("memory.history", {"id": args.id}))
    if args.json:
        out.say_json(result)
        return 0
    out.say(f"{out.text(result.get('id'))}  {out.paint(out.text(result.get('status')), out.BOLD)}")
    for version in out.rows(result.get("versions")):
        author = out.mapping(version.get("author"))
        who = f"{out.text(author.get('agent')) or 'you'} on {out.text(author.get('device'))}"
        what = f"{out.text(version.get('created'))[:19]}  {out.text(version.get('what')):<8} {who}"
        out.say(what)
        for field in ("text", "note"):
            if version.get(field):
                out.say("   " + out.one_line(out.text(version.get(field)), out.width() - 4))
    return 0


def configure_forget(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey forget`."""
    parser.add_argument("id", nargs="+", help="ids, or prefixes of 8 digits or more")
    parser.add_argument("--reason", default="", help="why, for the history")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--erase", action="store_true", help="destroy for ever: as covey erase ID")
    way.add_argument("--undo", action="store_true", help="bring back what was forgotten")
    parser.epilog = EXAMPLES + "  covey forget 1f2e3d4c\n  covey forget --undo 1f2e3d4c"


def run_forget(args: argparse.Namespace) -> int:
    """Take notes out of recall, or bring them back."""
    if args.erase:
        from daemon.cli.erasing import erase

        return erase(args, {"ids": args.id})
    params: dict[str, Json] = {"ids": args.id, "reason": args.reason}
    if args.undo:
        params["undo"] = True
    result = connect(args).call("memory.forget", params)
    if args.json:
        out.say_json(result)
    bad = 0
    for row in out.rows(result):
        status = out.text(row.get("status"))
        bad += status != ("restored" if args.undo else "forgotten")
        if not args.json:
            out.say(f"{status.replace('_', ' ')}  {out.text(row.get('id'))[:8]}")
    return 4 if bad else 0
