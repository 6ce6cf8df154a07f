"""`covey fed`: ask everybody's data without collecting it, and see what came of it."""

from __future__ import annotations

import math

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.fed_chart import add_files, configure_chart, run_chart, show
from daemon.cli.fed_input import read_numbers
from daemon.cli.fed_meeting import add_data, add_meeting, ask_everybody, meeting_of
from daemon.cli.fed_models import EXAMPLES, VERBS, configure_models, run_models
from daemon.cli.fed_topk import configure_topk, run_topk
from daemon.cli.memory import connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.cli.options import Verbs
    from daemon.json_types import Json

EPILOG = f"""\
Run the same command on several machines at the same time: each brings its own file, only sums of it
leave the machine, and everybody gets the same answer.

examples:
  covey fed mean latency.csv --column ms
  covey fed histogram latency.csv --column ms --edges 0,10,20,50,100
  covey fed quantiles latency.csv --column ms --q 0.5,0.95 --bounds 0,1000 --peers 3
  covey fed topk words.txt -k 10 --epsilon 4 --peers 3
{EXAMPLES}\
  covey fed chart digits --html digits.html
  covey fed history
  covey fed explain 3f9a2c"""


def _add_question(verbs: Verbs, name: str, text: str) -> argparse.ArgumentParser:
    sub = add_verb(verbs, name, text)
    add_data(sub, "CSV, JSON Lines, .npy, or a number a line")
    add_meeting(sub)
    sub.add_argument(
        "--privacy", choices=["auto", "plain", "masked"], default="auto",
        help="masked: nobody sees another machine's sums (auto: from four owners on)",
    )  # fmt: skip
    sub.add_argument(
        "--allow-plain", action="store_true",
        help="let machines of several owners see each other's sums",
    )  # fmt: skip
    sub.add_argument("--epsilon", type=float, metavar="E", help="noise for privacy (refused yet)")
    return sub


def configure_fed(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey fed`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    sub = _add_question(verbs, "mean", "mean and spread of a column over all machines")
    sub.add_argument("--weight-column", metavar="NAME", help="column of weights above 0")
    sub = _add_question(verbs, "histogram", "how many values lie between given edges")
    sub.add_argument("--edges", required=True, metavar="A,B,C", help="ascending numbers")
    add_files(sub)
    sub = _add_question(verbs, "quantiles", "values below which given shares of all lie")
    sub.add_argument("--q", default="0.5,0.95", metavar="A,B", help="shares (0.5,0.95)")
    sub.add_argument("--bounds", required=True, metavar="LOW,HIGH", help="where to look")
    configure_topk(verbs)
    sub = add_verb(verbs, "history", "rounds that this machine took part in, newest first")
    sub.add_argument("--group", metavar="NAME", help="of this group")
    sub.add_argument("--name", help="of this model or question")
    sub.add_argument("--limit", type=int, default=20, metavar="N", help="how many (20)")
    sub = add_verb(verbs, "explain", "who was included in a round, late, lost or rejected, and why")
    sub.add_argument("id", help="the id, or its first 6 digits or more")
    configure_chart(verbs)
    configure_models(verbs)
    parser.epilog = EPILOG


def run_fed(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    if args.verb in VERBS:
        return run_models(args)
    match args.verb:
        case "topk":
            return run_topk(args)
        case "chart":
            return run_chart(args)
        case "history":
            return _history(args)
        case "explain":
            return _explain(args)
        case _:
            return _question(args)


def _numbers(text: str, option: str) -> list[Json]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise CliError(f"{option} takes numbers with commas between", 2, name="invalid_params")
    return [*numbers]


def _question(args: argparse.Namespace) -> int:
    values, weights = read_numbers(args.file, args.column, getattr(args, "weight_column", None))
    params: dict[str, Json] = {
        **meeting_of(args),
        "kind": args.verb,
        "values": list(values),
        "privacy": args.privacy,
        "allow_plain": args.allow_plain,
    }
    if weights is not None:
        params["weights"] = list(weights)
    if args.epsilon is not None:
        params["epsilon"] = args.epsilon
    if args.verb == "histogram":
        params["edges"] = _numbers(args.edges, "--edges")
    if args.verb == "quantiles":
        params["q"] = _numbers(args.q, "--q")
        params["bounds"] = _numbers(args.bounds, "--bounds")
    answer = out.mapping(ask_everybody(args, "fed.stat", params))
    if args.json:
        out.say_json(answer)
        if args.verb == "histogram":
            _show_histogram(out.mapping(answer.get("histogram")), args)
        return 0
    _show_answer(answer, args)
    if not args.quiet:
        ident = out.text(out.mapping(answer.get("round")).get("id"))
        out.note(f"`covey fed explain {ident[:8]}` shows how it came about")
    return 0


def _show_answer(answer: dict[str, Json], args: argparse.Namespace) -> None:
    mean = out.mapping(answer.get("mean"))
    histogram = out.mapping(answer.get("histogram"))
    quantiles = out.mapping(answer.get("quantiles"))
    if mean:
        spread = max(0.0, out.number(mean.get("var"))) ** 0.5
        out.say(f"mean     {out.number(mean.get('value')):.6g}")
        out.say(f"spread   {spread:.6g}  (standard deviation of the values)")
        out.say(f"values   {int(out.number(mean.get('values'))):,}")
    elif histogram:
        _show_histogram(histogram, args)
    elif quantiles:
        shares, values = _list(quantiles.get("q")), _list(quantiles.get("values"))
        for share, value in zip(shares, values, strict=True):
            out.say(f"{100 * share:6.2f} %  {value:.6g}")
        count, outside = quantiles.get("count"), quantiles.get("outside")
        out.say(f"values    {int(out.number(count)):,}")
        if outside:
            out.note(f"{int(out.number(outside)):,} values lie outside the bounds and do not count")
    info = out.mapping(answer.get("round"))
    _show_members(info)


def _list(value: Json) -> list[float]:
    return [out.number(item) for item in value] if isinstance(value, list) else []


def _show_histogram(histogram: dict[str, Json], args: argparse.Namespace) -> None:
    from daemon.charts.model import histogram_bars

    bars = histogram_bars(
        args.name,
        _list(histogram.get("edges")),
        _list(histogram.get("counts")),
        below=out.number(histogram.get("below")),
        above=out.number(histogram.get("above")),
    )
    show(bars, args)


def _show_members(info: dict[str, Json]) -> None:
    members = out.rows(info.get("members"))
    included = [out.text(one.get("machine")) for one in members if one.get("status") == "included"]
    out.say(f"machines {len(included)}: {', '.join(sorted(included))}")
    for one in members:
        if one.get("status") != "included":
            out.note(
                f"{out.text(one.get('machine'))}: {out.text(one.get('status'))},"
                f" {out.text(one.get('reason'))}"
            )


def _history(args: argparse.Namespace) -> int:
    params: dict[str, Json] = {"limit": args.limit}
    if args.group is not None:
        params["group"] = args.group
    if args.name is not None:
        params["name"] = args.name
    answer = connect(args).call("fed.history", params)
    if args.json:
        out.say_json(answer)
        return 0
    rows = out.rows(answer)
    out.table(
        ["round", "when", "what", "outcome", "machines", "seconds"],
        [
            [
                out.text(row.get("id"))[:8],
                out.ago(out.number(row.get("began_ms"))),
                " ".join(filter(None, (out.text(row.get("kind")), out.text(row.get("name"))))),
                out.text(row.get("outcome")),
                str(
                    len([m for m in out.rows(row.get("members")) if m.get("status") == "included"])
                ),
                f"{out.number(row.get('seconds')):.2f}",
            ]
            for row in rows
        ],
    )
    if not rows and args.name is not None:
        out.note(f"no round of {args.name!r} here: without --name all are listed")
    elif not rows:
        out.note("no rounds yet: `covey fed mean FILE` on two machines makes one")
    return 0


def _explain(args: argparse.Namespace) -> int:
    info = out.mapping(connect(args).call("fed.explain", {"id": args.id}))
    if args.json:
        out.say_json(info)
        return 0
    what = " ".join(filter(None, (out.text(info.get("kind")), out.text(info.get("name")))))
    out.say(f"{what}: {out.text(info.get('outcome'))} in {out.number(info.get('seconds')):.2f} s")
    if info.get("reason"):
        out.say(out.text(info.get("reason")))
    for attempt in _texts(info.get("attempts")):
        out.say(f"an attempt before: {attempt}")
    out.table(
        ["machine", "status", "after", "norm", "weight", "why"],
        [
            [
                out.text(one.get("machine")),
                out.text(one.get("status")),
                ""
                if out.number(one.get("arrival_s")) < 0
                else f"{out.number(one.get('arrival_s')):.2f} s",
                f"{out.number(one.get('norm')):.3g}",
                f"{out.number(one.get('weight')):g}",
                out.text(one.get("reason")),
            ]
            for one in out.rows(info.get("members"))
        ],
    )
    for part in out.rows(info.get("parts")):
        out.say(
            f"part {out.text(part.get('part'))}: {int(out.number(part.get('count'))):,} numbers,"
            f" {out.size(out.number(part.get('nbytes')))}, merged by"
            f" {out.text(part.get('reducer'))} (standby {out.text(part.get('standby'))})"
        )
    if info.get("privacy") == "masked":
        out.say(
            f"masked: only the sum was seen; {int(out.number(info.get('threshold')))} machines had"
            " to agree to it"
        )
    elif info.get("privacy") == "plain":
        out.say("plain: who merged a part saw each machine's data for it")
    out.say(f"result {out.text(info.get('root'))[:16]}, view {out.text(info.get('view'))}")
    return 0


def _texts(value: Json) -> list[str]:
    return [out.text(item) for item in value] if isinstance(value, list) else []
