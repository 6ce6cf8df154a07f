"""`covey fed run|join|submit|wait|leave|status`: models that machines train together."""

from __future__ import annotations

import importlib
import os
import sys
import time

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.memory import connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from daemon.cli.options import Verbs
    from daemon.json_types import Json
    from daemon.trainer import Round, Trainer
    from federated.rounds.numeric.dtypes import Array

    Tensors = Mapping[str, Array]
    Train = Callable[[Tensors], object]

VERBS = frozenset({"run", "join", "submit", "wait", "leave", "status"})
RULES = (
    "auto", "mean", "norm_bounded", "median", "trimmed", "multi_krum", "rfa", "centred_clipping",
    "bucketing_rfa",
)  # fmt: skip


def _add_policy(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--peers", type=int, default=0, metavar="N", help="begin when N are there")
    sub.add_argument(
        "--wait", type=float, default=60.0, metavar="S", help="how long to wait for others (60)"
    )
    sub.add_argument("--rule", choices=RULES, default="auto", help="how updates are merged")
    sub.add_argument("--codec", choices=("f32", "int8", "e3m0"), default="int8")
    sub.add_argument("--clip", type=float, metavar="C", help="longest update that counts whole")
    sub.add_argument(
        "--deadline", type=float, default=600.0, metavar="S",
        help="how long the first round waits for updates (600); later ones learn it",
    )  # fmt: skip
    sub.add_argument(
        "--allow-plain", action="store_true",
        help="let machines of several owners see each other's updates",
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
        "--rounds", type=int, default=20, metavar="N", help="end at the model's round N (20)"
    )
    sub.add_argument(
        "--state", metavar="FILE",
        help="first state, safetensors; without it the module's `initial()` makes one",
    )  # fmt: skip
    sub.add_argument("--group", metavar="NAME", help="whose machines (default: your own)")
    _add_policy(sub)
    sub = add_verb(verbs, "join", "take part in training a model")
    sub.add_argument("name", help="of the model")
    sub.add_argument("file", help="its first state, safetensors, equal on all machines")
    sub.add_argument("--group", metavar="NAME", help="whose machines (default: your own)")
    _add_policy(sub)
    sub = add_verb(verbs, "submit", "hand in a new state")
    sub.add_argument("name")
    sub.add_argument("file", help="the new state, safetensors")
    sub.add_argument("--round", type=int, required=True, help="whose state training began with")
    sub.add_argument("--weight", type=float, default=1.0, help="such as the number of examples")
    sub.add_argument("--metric", action="append", default=[], metavar="NAME=VALUE")
    sub.add_argument("--group", metavar="NAME")
    sub = add_verb(verbs, "wait", "wait for the next round; prints where its state lies")
    sub.add_argument("name")
    sub.add_argument("--after", type=int, default=-1, metavar="ROUND")
    sub.add_argument("--for", dest="wait_s", type=float, default=600.0, metavar="S")
    sub.add_argument("--group", metavar="NAME")
    sub = add_verb(verbs, "leave", "take part no longer; the states here are removed")
    sub.add_argument("name")
    sub.add_argument("--group", metavar="NAME")
    add_verb(verbs, "status", "the models that this machine trains with others")


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
    return params


def _join(args: argparse.Namespace) -> int:
    params = {
        **_named(args), **_policy(args), "path": os.path.abspath(args.file),
        "expected": args.peers, "wait_s": args.wait,
    }  # fmt: skip
    if not args.quiet and not args.json:
        out.note("waiting for the other machines: run the same command there")
    return _show_model(args, connect(args).call("fed.join", params))


def _submit(args: argparse.Namespace) -> int:
    metrics: dict[str, Json] = {}
    for given in args.metric:
        name, _, value = given.partition("=")
        try:
            metrics[name] = float(value)
        except ValueError:
            raise CliError(
                "--metric takes NAME=VALUE, such as loss=0.3", 2, name="invalid_params"
            ) from None
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
    return _show_model(args, connect(args).call("fed.leave", _named(args)))


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
    if not rows:
        out.note("no models yet: `covey fed run MODULE:FUNCTION NAME` begins one")
    return 0


# ---- run


def _run(args: argparse.Namespace) -> int:
    from daemon.trainer import Trainer

    train, initial = _function(args.train)
    state = _first_state(args, initial)
    if not args.quiet and not args.json:
        out.note("waiting for the other machines: run the same command there")
    with Trainer(
        args.name, state, group=args.group, expected=args.peers, wait_s=args.wait,
        socket_path=args.socket, **_policy(args),
    ) as trainer:  # fmt: skip
        _rounds(args, trainer, train)
    return 0


def _function(named: str) -> tuple[Train, Callable[[], Tensors] | None]:
    """The person's own function, from the folder the command runs in."""
    module_name, _, name = named.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise CliError(
            f"{module_name} cannot be imported: {error}", 2, name="invalid_params"
        ) from None
    train = getattr(module, name or "train", None)
    if not callable(train):
        raise CliError(
            f"{module_name} has no function {name or 'train'!r}", 2, name="invalid_params"
        )
    return train, getattr(module, "initial", None)


def _first_state(args: argparse.Namespace, initial: Callable[[], Tensors] | None) -> Tensors | None:
    if args.state is not None:
        from pathlib import Path

        from federated.errors import UsageError
        from federated.rounds.statefile import load_state

        try:
            loaded = load_state(Path(args.state))
        except (OSError, UsageError) as error:
            raise CliError(f"{args.state}: {error}", 2, name="invalid_params") from None
        return loaded
    return None if initial is None else initial()


def _rounds(args: argparse.Namespace, trainer: Trainer, train: Train) -> None:
    began = time.perf_counter()
    shown = None if args.json or args.quiet else _say_waiting
    for rnd in trainer.rounds(args.rounds, waiting=shown):
        new, weight, metrics = _trained(train(rnd.state))
        rnd.submit(new, weight=weight, **metrics)
        _say_round(args, rnd, metrics, time.perf_counter() - began)
    model = trainer.model()
    if args.json:
        out.say_json(model)
    else:
        out.say(out.text(model.get("path")))
        if not args.quiet:
            out.note(f"`covey fed history --name {args.name}` shows every round")


def _trained(made: object) -> tuple[Tensors, float, dict[str, float]]:
    match made:
        case (dict() as new, weight):
            return new, float(str(weight)), {}
        case (dict() as new, weight, dict() as metrics):
            return new, float(str(weight)), {str(k): float(v) for k, v in metrics.items()}
        case dict():
            return made, 1.0, {}
        case _:
            raise CliError(
                "the function must return arrays by name, or (arrays, weight, figures)",
                2,
                name="invalid_params",
            )


def _say_waiting(model: dict[str, Json]) -> None:
    """Which phase the round is in: one line that is written over on a terminal, else silence."""
    if not sys.stderr.isatty():
        return
    machines = model.get("machines")
    count = len(machines) if isinstance(machines, list) else 0
    number = int(out.number(model.get("round"))) + 1
    line = (
        f"round {number:>4}  {count} machines  {out.text(model.get('phase'))}, waits up to"
        f" {out.number(model.get('deadline_s')):.0f} s for updates"
    )
    sys.stderr.write(f"\r\x1b[2K{out.paint(line, out.DIM)}\r")
    sys.stderr.flush()


def _say_round(
    args: argparse.Namespace, rnd: Round, metrics: dict[str, float], seconds: float
) -> None:
    if args.json or args.quiet:
        return
    figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    late = f"  {rnd.late} late" if rnd.late else ""
    out.note(
        f"round {rnd.number:>4}  {len(rnd.machines)} machines  {seconds:6.1f} s  {figures}{late}"
    )
