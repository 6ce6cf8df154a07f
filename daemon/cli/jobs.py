"""`covey job`: hand work to the other machines, get a table back."""

from __future__ import annotations

import json
import os
import sys
import time

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.job_after import VERBS as AFTER
from daemon.cli.job_after import configure_after, run_after
from daemon.cli.job_plans import drop_note, show_plan
from daemon.cli.job_rows import rows_of
from daemon.cli.job_tables import FORMATS, show_rows, write_rows
from daemon.cli.job_words import WHY, cached_of, counted, event_line, tenths_of, unknown_words
from daemon.cli.memory import connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.cli.client import Client
    from daemon.json_types import Json

PAGE = 1000
WATCH_S = 20.0
EXAMPLES = (
    "A job is a JSON file, or options and rows:\n\n"
    "examples:\n"
    "  covey job run --handler wordcount@1 --rows texts.jsonl --reduce topk:20\n"
    "  covey job plan job.json\n"
    "  covey job submit job.json\n"
    "  covey job watch 3f2a\n"
    "  covey job result 3f2a --format csv > table.csv\n"
    "  covey job explain 3f2a 17\n"
    "  covey job status 3f2a\n"
    "  covey job pause 3f2a\n"
    "  covey job resume 3f2a --executions 100\n"
    "  covey job cancel 3f2a\n"
    "  covey job retry 3f2a --columns price\n"
    "  covey job feedback 3f2a --bad 3,17 --rule 'prices are without tax'\n"
    "  covey job answer 3f2a --executions 50\n"
    "  covey job quarantine lift old-laptop\n"
    "  covey job purge 3f2a\n"
    "  covey job list --limit 5\n"
    "  covey job handlers --group team\n"
    "  covey job drop-note 2"
)


def configure_job(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey job`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, text in (
        ("submit", "start a job; prints its id"),
        ("run", "start a job, watch it, print its result"),
        ("plan", "what would become of a job; runs nothing"),
    ):
        sub = add_verb(verbs, verb, text)
        _spec_options(sub)
        if verb != "plan":
            sub.add_argument("--key", metavar="KEY", help="the same key starts the job only once")
            sub.add_argument(
                "--plan", metavar="ID", help="run what `covey job plan` showed, or nothing"
            )
        if verb == "run":
            sub.add_argument("--format", choices=FORMATS, default="table", help="default table")
    sub = add_verb(verbs, "list", "jobs, the newest first (also without a verb)")
    sub.add_argument("--limit", type=int, default=20, help="default 20")
    for verb, text in (
        ("status", "how far a job is"),
        ("watch", "show how far it is until it is over"),
        ("cancel", "end it; its tasks stop wherever they are"),
        ("pause", "hand out no more of its tasks"),
        ("purge", "remove a finished job"),
    ):
        add_verb(verbs, verb, text).add_argument("id", help="the id or its beginning")
    sub = add_verb(verbs, "resume", "go on with it")
    sub.add_argument("id", help="the id or its beginning")
    sub.add_argument("--executions", type=int, help="how many more attempts it may use")
    sub = add_verb(verbs, "result", "its table")
    sub.add_argument("id", help="the id or its beginning")
    sub.add_argument("--format", choices=FORMATS, default="table", help="default table")
    sub.add_argument(
        "--raw", action="store_true", help="the answered rows, not what they reduce to"
    )
    sub.add_argument("--gaps", action="store_true", help="the rows without an answer, and why")
    sub = add_verb(verbs, "explain", "how a row came to its state")
    sub.add_argument("id", help="the id or its beginning")
    sub.add_argument("row", type=int, help="its index")
    add_verb(verbs, "drop-note", "a note that plans show should go").add_argument(
        "note", type=int, help="its number"
    )
    sub = add_verb(verbs, "handlers", "what this machine can compute")
    sub.add_argument("--group", default="own", help="for members of this group")
    configure_after(verbs)
    parser.epilog = EXAMPLES


def _spec_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", nargs="?", help="the job as JSON; - is standard input")
    sub.add_argument("--handler", metavar="NAME@VERSION", help="what computes the rows")
    rows = sub.add_mutually_exclusive_group()
    rows.add_argument(
        "--rows", metavar="FILE", help="JSON Lines, or .csv with a header; - standard input"
    )
    rows.add_argument("--rows-of", metavar="JOB", help="the result rows of a job that is over")
    sub.add_argument(
        "--reduce",
        metavar="KIND",
        help="collect, table, count, sum, topk:N, group:COLUMN, handler:NAME@1",
    )
    sub.add_argument("--batch", type=int, metavar="N", help="rows of a task, 1 to 32")
    sub.add_argument("--columns", metavar="NAMES", help="name or name:type, with commas between")
    sub.add_argument("--template", metavar="TEXT", help="text with {{column}}")
    sub.add_argument("--engine", help="peers (default), local, or an address of `[jobs] engines`")
    sub.add_argument(
        "--effect", choices=("none", "once"),
        help="once: it acts on the world; a lost row is missing, outcome_unknown, not run again",
    )  # fmt: skip
    sub.add_argument("--verify", help="auto, none, spot:P, adaptive or quorum:M")
    sub.add_argument("--group", help="who may see the rows; default your own machines")
    sub.add_argument("--title", help="for people")
    sub.add_argument("--deadline", type=float, metavar="SECONDS", help="default an hour")


def run_job(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    verb = args.verb or "list"
    client = connect(args)
    if verb in AFTER:
        return run_after(client, args)
    match verb:
        case "submit":
            return _submit(client, args)
        case "run":
            return _run(client, args)
        case "plan":
            return show_plan(
                args, out.mapping(client.call("job.plan", {"spec": _spec(client, args)}))
            )
        case "drop-note":
            return drop_note(args, out.mapping(client.call("job.drop_note", {"note": args.note})))
        case "watch":
            return _watch(client, args.id, json_lines=args.json, quiet=args.quiet)
        case "result":
            return _result(client, args)
        case "list":
            limit = getattr(args, "limit", 20)
            return _list(args, client.call("job.list", {"limit": limit}))
        case "handlers":
            return _handlers(args, client.call("job.handlers", {"group": args.group}))
        case "explain":
            answer = client.call("job.explain", {"id": args.id, "row": args.row})
            return _explain(args, out.mapping(answer))
        case _:
            params: dict[str, Json] = {"id": args.id}
            if verb == "resume" and args.executions:
                params["executions"] = args.executions
            return _show(args, verb, out.mapping(client.call(f"job.{verb}", params)))


# ---- starting


def _read(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}", 2, name="invalid_params") from None


def _spec(client: Client, args: argparse.Namespace) -> dict[str, Json]:
    spec: dict[str, Json] = {}
    try:
        if args.file:
            loaded = json.loads(_read(args.file))
            if not isinstance(loaded, dict):
                raise CliError(f"{args.file}: a job is a JSON object", 2, name="invalid_params")
            spec = loaded
        if args.rows:
            spec["rows"] = rows_of(client, args.rows)
        elif args.rows_of:
            spec["rows"] = {"job": args.rows_of}
    except ValueError as error:
        raise CliError(f"{args.file}: not JSON: {error}", 2, name="invalid_params") from None
    for name in ("handler", "template", "engine", "verify", "group", "title", "effect"):
        if getattr(args, name):
            spec[name] = getattr(args, name)
    if args.deadline:
        spec["deadline_s"] = args.deadline
    if args.reduce:
        spec["reduce"] = _reduce(args.reduce)
    if args.batch is not None:
        one = args.batch == 1
        spec["batch"] = (
            {"kind": "per_row"} if one else {"kind": "open", "groups": [], "chunk": args.batch}
        )
    if args.columns:
        spec["columns"] = [_column(text) for text in args.columns.split(",")]
    if "handler" not in spec or "rows" not in spec:
        raise CliError(
            "name a handler and rows", 2, name="invalid_params",
            remedy="`covey job run --help` shows examples; `covey job handlers` what there is.",
        )  # fmt: skip
    return spec


REDUCTIONS = ("collect", "table", "count", "sum", "topk", "group", "handler")
TYPES = ("str", "int", "float", "bool", "date", "url", "enum", "list[str]")


def _reduce(text: str) -> dict[str, Json]:
    kind, _, rest = text.partition(":")
    if kind not in REDUCTIONS or (kind == "topk" and rest and not rest.isdecimal()):
        raise CliError(
            f"--reduce {text}: it is collect, table, count, sum, topk:N, group:COLUMN or"
            " handler:NAME@1", 2, name="invalid_params",
        )  # fmt: skip
    if kind == "topk":
        return {"kind": kind, "n": int(rest or 20)}
    if kind == "handler":
        return {"kind": kind, "handler": rest}
    if kind == "group":
        return {"kind": kind, "by": rest}
    return {"kind": kind}


def _column(text: str) -> dict[str, Json]:
    name, _, kind = text.strip().partition(":")
    if kind and kind not in TYPES:
        raise CliError(
            f"--columns {text}: a type is one of {', '.join(TYPES)}", 2, name="invalid_params"
        )
    return {"name": name, "type": kind or "str"}


def _submit(client: Client, args: argparse.Namespace) -> int:
    answer = _start(client, args)
    if args.json:
        out.say_json(answer)
    else:
        out.say(out.text(answer.get("job_id")))
        short = out.text(answer.get("job_id"))[:8]
        if not args.quiet:
            out.note(f"`covey job watch {short}` shows how far it is.")
    return 0


def _start(client: Client, args: argparse.Namespace) -> dict[str, Json]:
    if args.plan and (args.file or args.handler or args.rows or args.rows_of):
        raise CliError(
            "a plan has its job: give --plan or a job, not both", 2, name="invalid_params"
        )
    params: dict[str, Json] = {"plan_id": args.plan} if args.plan else {"spec": _spec(client, args)}
    if args.key:
        params["idempotency_key"] = args.key
    return out.mapping(client.call("job.submit", params))


def _run(client: Client, args: argparse.Namespace) -> int:
    ident = out.text(_start(client, args).get("job_id"))
    code = _watch(client, ident, json_lines=False, quiet=args.quiet)
    args.id, args.raw, args.gaps = ident, False, False
    return _result(client, args) or code


# ---- watching


def _watch(client: Client, ident: str, *, json_lines: bool, quiet: bool) -> int:
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not json_lines
    since: Json = 0
    shown = ""
    tenths = -1
    while True:
        answer = out.mapping(
            client.call("job.watch", {"id": ident, "since_seq": since, "wait_s": WATCH_S})
        )
        since = answer.get("last_seq") or since
        for event in out.rows(answer.get("events")):
            if json_lines:
                out.say(json.dumps(event, ensure_ascii=False))
                continue
            if quiet:
                continue
            line = event_line(event)
            if event.get("name") == "progress":
                done = tenths_of(out.mapping(event.get("data")))
                if live:
                    sys.stderr.write("\r\x1b[K" + line[: out.width(2) - 1])
                    sys.stderr.flush()
                elif done > tenths:
                    # Where lines cannot be drawn over, eleven tell enough of the longest job.
                    out.note(line)
                tenths = max(tenths, done)
            elif line and line != shown:
                out.note(("\r\x1b[K" if live else "") + line)
            shown = line
        if answer.get("final"):
            break
    state = out.text(out.mapping(client.call("job.status", {"id": ident})).get("state"))
    return 0 if state == "done" else 1


# ---- results


def _result(client: Client, args: argparse.Namespace) -> int:
    pages: list[dict[str, Json]] = []
    offset: Json = 0
    while offset is not None:
        params: dict[str, Json] = {
            "id": args.id, "offset": offset, "limit": PAGE, "raw": bool(args.raw or args.gaps),
        }  # fmt: skip
        page = out.mapping(client.call("job.result", params))
        pages.append(page)
        offset = page.get("next")
    if args.json:
        out.say_json({**pages[0], "rows": [r for p in pages for r in out.rows(p.get("rows"))],
                      "reduced": [r for p in pages for r in out.rows(p.get("reduced"))],
                      "next": None})  # fmt: skip
        return 0
    rows, declared = _rows(pages, gaps=args.gaps)
    if args.format == "table":
        show_rows(rows, declared)
    else:
        text = write_rows(rows, declared, args.format)
        # A file gets the cells as they are; a terminal gets nothing that it would obey.
        sys.stdout.write(out.clean(text) if sys.stdout.isatty() else text)
    gaps = int(out.number(pages[0].get("gaps")))
    if gaps and not args.gaps and not args.quiet:
        have = counted(gaps, "row has", "rows have")
        out.note(f"{have} no answer: `covey job result {args.id[:8]} --gaps`")
    unknown = sum(
        row.get("reason") == "outcome_unknown" for p in pages for row in out.rows(p.get("rows"))
    )
    if unknown:
        out.note(unknown_words(unknown))
    if tainted := int(out.number(pages[0].get("tainted"))):
        out.note(f"{tainted} answers are in doubt: `covey job retry {args.id[:8]}` asks again")
    return 0


def _rows(pages: list[dict[str, Json]], *, gaps: bool) -> tuple[list[dict[str, Json]], list[str]]:
    found: list[dict[str, Json]] = []
    columns = pages[0].get("columns")
    declared = [out.text(name) for name in columns] if isinstance(columns, list) else []
    for page in pages:
        found += out.rows(page.get("reduced"))
        for row in out.rows(page.get("rows")):
            if gaps:
                if row.get("state") != "ok":
                    found.append(
                        {"k": row.get("k"), "state": row.get("state"), "reason": row.get("reason"),
                         "source": row.get("source")}
                    )  # fmt: skip
            elif row.get("state") == "ok":
                found.append(out.mapping(row.get("row")))
    return found, ["k", "state", "reason", "source"] if gaps else declared


def _list(args: argparse.Namespace, answer: Json) -> int:
    if args.json:
        out.say_json(answer)
        return 0
    rows = out.rows(answer)
    lines = [
        [
            out.text(row.get("id"))[:8],
            out.text(row.get("state")),
            _share(row),
            out.text(row.get("handler")),
            out.ago(out.number(row.get("submitted_ms")), time.time_ns() / 1e6),
            out.one_line(out.text(row.get("title")), 30),
        ]
        for row in rows
    ]
    out.table(["id", "state", "rows", "handler", "submitted", "title"], lines)
    if not rows:
        out.note("no job yet: `covey job run --help` shows how to start one")
    return 0


def _share(row: dict[str, Json]) -> str:
    ok = int(out.number(out.mapping(row.get("by_state")).get("ok")))
    return f"{ok}/{int(out.number(row.get('rows')))}"


def _handlers(args: argparse.Namespace, answer: Json) -> int:
    if args.json:
        out.say_json(answer)
        return 0
    out.table(
        ["handler", "kind", "what it does"],
        [
            [out.text(row.get("id")), out.text(row.get("kind")), out.text(row.get("summary"))]
            for row in out.rows(answer)
        ],
    )
    return 0


def _explain(args: argparse.Namespace, answer: dict[str, Json]) -> int:
    if args.json:
        out.say_json(answer)
        return 0
    row = out.mapping(answer.get("row"))
    level = int(out.number(row.get("level")))
    words = ("unchecked", "by reputation", "agreed by owners", "computed by an own device")
    out.say(f"row {out.text(row.get('k'))}: {out.text(row.get('state'))}, {words[min(level, 3)]}")
    if row.get("reason"):
        out.say(f"reason: {out.text(row.get('reason'))}")
    out.table(
        ["machine", "state", "took", "why"],
        [
            [
                out.text(one.get("machine")),
                out.text(one.get("state")),
                f"{int(out.number(one.get('took_ms')))} ms",
                out.text(one.get("reason")),
            ]
            for one in out.rows(answer.get("attempts"))
        ],
    )
    return 0


def _show(args: argparse.Namespace, verb: str, answer: dict[str, Json]) -> int:
    if args.json:
        out.say_json(answer)
        return 0
    if verb == "cancel":
        out.say(
            f"stopped {out.text(answer.get('stopped'))} running tasks and"
            f" {out.text(answer.get('never_started'))} that had not started"
        )
        if answer.get("unreachable"):
            out.note(f"{out.text(answer.get('unreachable'))} machines could not be told: their"
                     " tasks end with their leases")  # fmt: skip
        return 0
    if verb == "purge":
        out.say("removed")
        return 0
    states = out.mapping(answer.get("by_state"))
    reason = out.text(answer.get("reason"))
    reason = WHY.get(reason, reason)
    out.say(f"{out.text(answer.get('state'))}{f': {reason}' if reason else ''}")
    out.say(", ".join(f"{int(out.number(n))} {name}" for name, n in states.items() if n) + " rows")
    if answer.get("tainted"):
        out.say(f"{int(out.number(answer.get('tainted')))} answers are in doubt: `covey job retry`")
    if answer.get("cached"):
        out.say(cached_of({**states, "cached": answer.get("cached")}))
    for name, count in out.mapping(answer.get("peers")).items():
        out.say(f"  {out.clean(name)}: {int(out.number(count))} rows")
    return 0
