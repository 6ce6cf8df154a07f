"""`covey job retry|feedback|answer|quarantine`: what follows from how a job went."""

from __future__ import annotations

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.cli.client import Client
    from daemon.cli.options import Verbs
    from daemon.json_types import Json

VERBS = frozenset({"retry", "feedback", "answer", "quarantine"})


def configure_after(verbs: Verbs) -> None:
    """Add the verbs."""
    sub = add_verb(verbs, "retry", "run it again for the rows without a sound answer")
    sub.add_argument("id", help="the id or its beginning")
    sub.add_argument("--columns", metavar="NAMES", help="also rows that lack one of these")
    sub.add_argument("--rows", metavar="INDICES", help="only these, with commas between")
    sub = add_verb(verbs, "feedback", "say which of its answers are right or wrong")
    sub.add_argument("id", help="the id or its beginning")
    sub.add_argument("--good", metavar="INDICES", help="rows that are right, with commas between")
    sub.add_argument("--bad", metavar="INDICES", help="rows that are wrong: retry asks again")
    sub.add_argument("--rule", metavar="TEXT", help="a note that the handler's next plans show")
    sub = add_verb(verbs, "answer", "what it asks for once its executions are used up")
    sub.add_argument("id", help="the id or its beginning")
    sub.add_argument("--executions", type=int, help="how many more it may use")
    sub.add_argument("--stop", action="store_true", help="end it")
    sub = add_verb(verbs, "quarantine", "whose answers turned out wrong; `lift WHO` ends it")
    sub.add_argument("what", nargs="?", choices=("list", "lift"), default="list")
    sub.add_argument("who", nargs="?", help="with lift: key or its beginning, or a machine's name")


def run_after(client: Client, args: argparse.Namespace) -> int:
    """Carry out one of `VERBS`."""
    match args.verb:
        case "retry":
            return _retry(client, args)
        case "feedback":
            return _feedback(client, args)
        case "answer":
            return _answer(client, args)
        case _:
            return _quarantine(client, args)


def _retry(client: Client, args: argparse.Namespace) -> int:
    params: dict[str, Json] = {"id": args.id}
    if args.columns:
        params["columns"] = [name.strip() for name in args.columns.split(",")]
    if args.rows:
        params["rows"] = _indices(args.rows, "--rows")
    answer = out.mapping(client.call("job.retry_gaps", params))
    if args.json:
        out.say_json(answer)
    else:
        ident = out.text(answer.get("job_id"))
        out.say(ident)
        out.note(f"`covey job watch {ident[:8]}` shows how far it is.")
    return 0


def _feedback(client: Client, args: argparse.Namespace) -> int:
    params: dict[str, Json] = {"id": args.id}
    if args.good:
        params["rows_good"] = _indices(args.good, "--good")
    if args.bad:
        params["rows_bad"] = _indices(args.bad, "--bad")
    if args.rule:
        params["rule"] = args.rule
    if len(params) == 1:
        raise CliError("say --good, --bad or --rule", 2, name="invalid_params")
    answer = out.mapping(client.call("job.feedback", params))
    if args.json:
        out.say_json(answer)
    elif args.bad:
        out.say(f"noted; `covey job retry {args.id}` asks for the wrong ones again")
    else:
        out.say("noted")
    return 0


def _indices(text: str, option: str) -> list[Json]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CliError(f"{option} takes numbers, such as 3,17", 2, name="invalid_params") from None


def _answer(client: Client, args: argparse.Namespace) -> int:
    params: dict[str, Json] = {"id": args.id, "stop": args.stop}
    if args.executions is not None:
        params["executions"] = args.executions
    answer = out.mapping(client.call("job.answer", params))
    if args.json:
        out.say_json(answer)
    else:
        out.say(out.text(answer.get("state")))
    return 0


def _quarantine(client: Client, args: argparse.Namespace) -> int:
    if args.what == "lift":
        if not args.who:
            raise CliError("lift whom?", 2, name="invalid_params")
        answer = client.call("job.lift", {"who": args.who})
        if args.json:
            out.say_json(answer)
        else:
            out.say(f"{out.text(out.mapping(answer).get('owner'))[:16]} is asked again")
        return 0
    answer = client.call("job.quarantines", {})
    if args.json:
        out.say_json(answer)
        return 0
    rows = out.rows(answer)
    out.table(
        ["owner", "machines", "not asked for", "until", "times"],
        [
            [
                out.text(row.get("owner"))[:16],
                ", ".join(out.clean(out.text(name)) for name in _texts(row.get("machines"))),
                out.clean(out.text(row.get("handler"))) or "anything",
                out.text(row.get("until")),
                out.text(row.get("times")),
            ]
            for row in rows
        ],
    )
    if not rows:
        out.note("nobody is quarantined")
    return 0


def _texts(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []
