"""`covey fed run|join|submit|wait|leave|status`: models that machines train together."""

from __future__ import annotations

import math
import os
import shutil

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.fed_input import above_0
from daemon.cli.fed_meeting import add_meeting, ask_everybody, meeting_of
from daemon.cli.memory import connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.cli.options import Verbs
    from daemon.json_types import Json

VERBS = frozenset({"run", "join", "submit", "wait", "leave", "status"})
RULES = (
    "auto", "mean", "norm_bounded", "median", "trimmed", "multi_krum", "rfa", "centred_clipping",
    "bucketing_rfa",
)  # fmt: skip


def _rounds(text: str) -> int:
    from argparse import ArgumentTypeError

    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is no round: they are counted from 1")


def _add_policy(sub: argparse.ArgumentParser) -> None:
    add_meeting(sub, named=False)
    sub.add_argument("--rule", choices=RULES, default="auto", help="how updates are merged")
    sub.add_argument(
        "--codec", choices=("f32", "int8", "e3m0"), default="int8",
        help="bytes of an update: int8 (default) a quarter of f32, e3m0 an eighth",
    )  # fmt: skip
    sub.add_argument("--clip", type=above_0, metavar="C", help="longest update that counts whole")
    sub.add_argument(
        "--deadline", type=above_0, default=600.0, metavar="S",
        help="how long the first round waits for updates (600); later ones learn it",
    )  # fmt: skip
    sub.add_argument(
        "--allow-plain", action="store_true",
        help="let machines of several owners see each other's updates",
    )  # fmt: skip
    sub.add_argument(
        "--grace", type=above_0, metavar="S", help="after so long half of the updates will do"
    )
    sub.add_argument(
        "--root-data", metavar="MACHINE",
        help="name or id of the machine whose data all trust, `self` on it: updates count by how"
        " far they point where its does",
    )  # fmt: skip


def configure_models(verbs: Verbs) -> None:
    """Add the verbs."""
    sub = add_verb(verbs, "run", "train a model with the other machines, by a function of yours")
    sub.add_argument(
        "train", metavar="MODULE:FUNCTION",
        help="takes the state's arrays, returns the new ones, or (new, weight, {figure: value})",
    )  # fmt: skip
    sub.add_argument("name", help="of the model")
    sub.add_argument(
        "--rounds", type=_rounds, default=20, metavar="N", help="end at the model's round N (20)"
    )
    sub.add_argument(
        "--state", metavar="FILE",
        help="first state, safetensors; without it the module's `initial()` makes one",
    )  # fmt: skip
    _add_policy(sub)
    sub = add_verb(verbs, "join", "take part in training a model")
    sub.add_argument("name", help="of the model")
    sub.add_argument("file", help="its first state, safetensors, equal on all machines")
    _add_policy(sub)
    sub = add_verb(verbs, "submit", "hand in a new state")
    sub.add_argument("name", help="of the model")
    sub.add_argument("file", help="the new state, safetensors")
    sub.add_argument("--round", type=int, required=True, help="whose state training began with")
    sub.add_argument("--weight", type=above_0, default=1.0, help="such as the number of examples")
    sub.add_argument(
        "--metric", action="append", default=[], metavar="NAME=VALUE", help="a figure for the chart"
    )
    sub.add_argument("--group", metavar="NAME", help="whose model (default: your own machines')")
    sub = add_verb(verbs, "wait", "wait for the next round; prints where its state lies")
    sub.add_argument("name", help="of the model")
    sub.add_argument(
        "--after", type=int, default=-1, metavar="ROUND", help="after this one (default: any)"
    )
    sub.add_argument(
        "--for", dest="wait_s", type=above_0, default=600.0, metavar="S",
        help="how long to wait (600)",
    )  # fmt: skip
    sub.add_argument("--group", metavar="NAME", help="whose model (default: your own machines')")
    sub = add_verb(verbs, "leave", "take part no longer; the states here are removed")
    sub.add_argument("name", help="of the model")
    sub.add_argument("--group", metavar="NAME", help="whose model (default: your own machines')")
    sub.add_argument("--keep", metavar="FILE", help="where to keep a copy of the last state")
    add_verb(verbs, "status", "the models that this machine trains with others")


EXAMPLES = """\
  covey fed run mymodel:train digits --rounds 20 --peers 3
  covey fed join digits first.safetensors --peers 3
  covey fed submit digits new.safetensors --round 0 --weight 120 --metric loss=0.31
  covey fed wait digits --after 0
  covey fed leave digits --keep last.safetensors
  covey fed status
"""


def run_models(args: argparse.Namespace) -> int:
    """Carry out one of `VERBS`."""
    return {
        "run": _run, "join": _join, "submit": _submit, "wait": _wait, "leave": _leave,
        "status": _status,
    }[args.verb](args)  # fmt: skip


def _named(args: argparse.Namespace) -> dict[str, Json]:
    params: dict[str, Json] = {"name": args.name}
    if args.group is not None:
        params["group"] = args.group
    return params


def _policy(args: argparse.Namespace) -> dict[str, Json]:
    params: dict[str, Json] = {
        "rule": args.rule,
        "codec": args.codec,
        "first_deadline_s": args.deadline,
        "allow_plain": args.allow_plain,
    }
    if args.clip is not None:
        params["clip"] = args.clip
    if args.grace is not None:
        params["grace_s"] = args.grace
    if args.root_data is not None:
        params["root_data"] = args.root_data
    return params


def _join(args: argparse.Namespace) -> int:
    params = {**meeting_of(args), **_policy(args), "path": os.path.abspath(args.file)}
    return _show_model(args, ask_everybody(args, "fed.join", params))


def _submit(args: argparse.Namespace) -> int:
    metrics: dict[str, Json] = dict(map(_metric, args.metric))
    params = {
        **_named(args), "round": args.round, "path": os.path.abspath(args.file),
        "weight": args.weight, "metrics": metrics,
    }  # fmt: skip
    answer = out.mapping(connect(args).call("fed.submit", params))
    if args.json:
        out.say_json(answer)
    else:
        late = int(out.number(answer.get("late")))
        out.say("taken" if not late else f"taken, {late} rounds late: it counts less")
    return 0


def _metric(given: str) -> tuple[str, float]:
    name, _, value = given.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise CliError("--metric takes NAME=VALUE, such as loss=0.3", 2, name="invalid_params")
    return name, number


def _wait(args: argparse.Namespace) -> int:
    params = {**_named(args), "after_round": args.after, "timeout_s": args.wait_s}
    answer = out.mapping(connect(args).call("fed.wait", params))
    if not answer.get("applied"):
        model = out.mapping(answer.get("model"))
        raise CliError(
            f"no round after {args.after} within {args.wait_s:.0f} s: the one under way is"
            f" {out.text(model.get('phase'))}",
            75,
            name="deadline",
            remedy="`covey fed status` shows who takes part.",
        )
    if args.json:
        out.say_json(answer)
    else:
        out.say(out.text(out.mapping(answer.get("model")).get("path")))
    return 0


def _leave(args: argparse.Namespace) -> int:
    client = connect(args)
    if args.keep is not None:
        keep_state(client.call("fed.wait", {**_named(args), "timeout_s": 1}), args.keep)
    code = _show_model(args, client.call("fed.leave", _named(args)))
    if args.keep is not None and not args.quiet and not args.json:
        out.note(f"its last state is in {args.keep}: `covey fed join` can begin with it")
    return code


def keep_state(waited: Json, path: str) -> None:
    """Copy the state that `fed.wait` named to a new file.

    Raises:
        CliError: there is such a file, or one of them cannot be read or written; nothing was left.
    """
    model = out.mapping(out.mapping(waited).get("model"))
    try:
        with open(out.text(model.get("path")), "rb") as state, open(path, "xb") as copy:
            shutil.copyfileobj(state, copy)
    except OSError as error:
        raise CliError(
            f"{error.filename or path}: {error.strerror}", 2, name="invalid_params",
            remedy="Nothing was left: repeat it with a FILE that is not there yet.",
        ) from None  # fmt: skip


def _show_model(args: argparse.Namespace, answer: Json) -> int:
    if args.json:
        out.say_json(answer)
        return 0
    model = out.mapping(answer)
    machines = model.get("machines")
    names = [out.text(one) for one in machines] if isinstance(machines, list) else []
    out.say(
        f"{out.text(model.get('name'))}: round {out.text(model.get('round'))}, {', '.join(names)}"
    )
    return 0


def _status(args: argparse.Namespace) -> int:
    answer = connect(args).call("fed.status", {})
    if args.json:
        out.say_json(answer)
        return 0
    rows = out.rows(answer)
    out.table(
        ["model", "group", "rounds", "now", "machines", "numbers", "last trouble"],
        [
            [
                out.text(row.get("name")),
                out.text(row.get("group")) or "own",
                out.text(row.get("round")),
                out.text(row.get("phase")),
                str(len(row["machines"]) if isinstance(row["machines"], list) else 0),
                f"{int(out.number(row.get('numbers'))):,}",
                out.text(row.get("reason")),
            ]
            for row in rows
        ],
    )
    for row in rows:
        banned = row.get("banned")
        if isinstance(banned, list) and banned:
            out.say(
                f"{out.text(row.get('name'))}: {', '.join(map(out.text, banned))} signed two"
                " contradicting messages and takes no part any more"
            )
    if not rows:
        out.note("no models yet: `covey fed run MODULE:FUNCTION NAME` begins one")
    return 0


def _run(args: argparse.Namespace) -> int:
    from daemon.cli.fed_run import run_training

    return run_training(args, _policy(args))
