"""`covey fed run`: a person's own function, called once a round.

What goes wrong in it is told as theirs: the lines of their file, and no line of ours.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.fed_meeting import note_wait
from federated.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import TypeAlias

    from daemon.json_types import Json
    from daemon.trainer import Round, Trainer

    Tensors: TypeAlias = Mapping[str, object]
    Train = Callable[[Tensors], object]
    Initial = Callable[[], object]

FORM = "give MODULE:FUNCTION, such as mymodel:train for `def train(state)` in mymodel.py"


def run_training(args: argparse.Namespace, policy: dict[str, Json]) -> int:
    """Train until the model's round is reached.

    Args:
        args: of `covey fed run`.
        policy: for `fed.join`.

    Raises:
        CliError: what the person can do something about.
    """
    from daemon.trainer import Trainer

    train, initial = find_functions(args.train)
    try:
        state = first_state(args, initial)
        note_wait(args)
        with Trainer(
            args.name, state, group=args.group, expected=args.peers, wait_s=args.wait,
            socket_path=args.socket, autostart=not args.no_autostart, timeout_s=args.timeout,
            tell=_tell, **policy,
        ) as trainer:  # fmt: skip
            _train(args, trainer, train)
    except UsageError as error:
        raise CliError(str(error), 2, name="invalid_params", remedy=_remedy(args, error)) from None
    return 0


def _remedy(args: argparse.Namespace, error: UsageError) -> str:
    if "first state" not in str(error):
        return ""
    module = args.train.partition(":")[0]
    return f"Write `def initial():` in {module}.py, which returns it, or give --state FILE."


# ---- the person's functions


def find_functions(named: str) -> tuple[Train, Initial | None]:
    """`MODULE:FUNCTION`, and the module's `initial` if it has one.

    Raises:
        CliError: no such module or function, or the module fails when it is loaded.
    """
    module_name, colon, name = named.partition(":")
    name = name if colon else "train"
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise CliError(f"{named!r} names no function: {FORM}", 2, name="invalid_params")
    module = _load(module_name)
    train = getattr(module, name, None)
    if not callable(train):
        what = "no function" if train is None else f"{type(train).__name__}, no function,"
        raise CliError(
            f"{module_name} has {what} {name!r}: {FORM}", 2, name="invalid_params",
            remedy=_shadowed(module, module_name),
        )  # fmt: skip
    initial = getattr(module, "initial", None)
    if initial is not None and not callable(initial):
        raise CliError(
            f"{module_name}.initial is a {type(initial).__name__}: write `def initial():`, which"
            " returns the first state's arrays by name", 2, name="invalid_params",
        )  # fmt: skip
    return train, initial


def _load(name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    with _theirs(f"{name} cannot be loaded"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                remedy = f"The module is looked for in the current folder, {os.getcwd()}."
            else:
                remedy = f"{name} needs it: install it beside Covey."
            raise CliError(
                f"{name} cannot be imported: {error}", 2, name="invalid_params", remedy=remedy
            ) from None


def _shadowed(module: ModuleType, name: str) -> str:
    """What to do if the person's file has the name of a module that is loaded already."""
    own = os.path.join(os.getcwd(), *name.split("."))
    loaded = os.path.abspath(getattr(module, "__file__", None) or "")
    if os.path.exists(f"{own}.py") and loaded != f"{own}.py":
        return (
            f"{name} is another module ({loaded or 'built in'}): give your {name}.py another name."
        )
    return ""


def first_state(args: argparse.Namespace, initial: Initial | None) -> Tensors | None:
    """The state of `--state`, else what `initial()` makes; None: there is neither.

    Raises:
        CliError: it cannot be read, or is none.
    """
    if args.state is not None:
        from pathlib import Path

        from federated.rounds.statefile import load_state

        try:
            return load_state(Path(args.state))
        except OSError as error:
            raise CliError(f"{args.state}: {error.strerror}", 2, name="invalid_params") from None
    if initial is None:
        return None
    with _theirs("initial() failed"), _prints(args):
        state = initial()
    if not isinstance(state, Mapping):
        raise CliError(
            f"initial() returned {type(state).__name__}: return arrays by name, such as"
            ' {"w": np.zeros(10, np.float32)}', 2, name="invalid_params",
        )  # fmt: skip
    return state


@contextmanager
def _theirs(what: str) -> Iterator[None]:
    """Code of the person's: its own lines are shown if it fails.

    Raises:
        CliError: it failed.
    """
    try:
        yield
    except CliError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the person's own code may raise
        frames = traceback.extract_tb(error.__traceback__)
        ours = (os.path.abspath(__file__), os.path.abspath(importlib.__file__))
        shown = [one for one in frames if one.filename not in ours and one.filename[:1] != "<"]
        sys.stderr.write("".join(traceback.format_list(shown)))
        sys.stderr.write("".join(traceback.format_exception_only(error)))
        raise CliError(f"{what}: {type(error).__name__}", 1, name="training_failed") from None


def _prints(args: argparse.Namespace) -> AbstractContextManager[object]:
    """With --json, what the person's code prints goes beside the answer, not into it."""
    return redirect_stdout(sys.stderr) if args.json else nullcontext()


# ---- rounds


def _train(args: argparse.Namespace, trainer: Trainer, train: Train) -> None:
    try:
        _rounds(args, trainer, train)
    except (CliError, UsageError, KeyboardInterrupt) as error:
        _clear()
        if not isinstance(error, CliError) or error.name != "not_found":
            _note(
                args,
                f"this machine stays a member of {args.name!r}: the same command goes on,"
                f" `covey fed leave {args.name}` ends it",
            )
        raise
    model = trainer.model()
    if args.json:
        out.say_json(model)
        return
    out.say(out.text(model.get("path")))
    _note(args, f"`covey fed history --name {args.name}` shows every round")


def _rounds(args: argparse.Namespace, trainer: Trainer, train: Train) -> None:
    began = time.perf_counter()
    number = 0
    shown = None if args.json or args.quiet else Waiting().say
    for rnd in trainer.rounds(args.rounds, waiting=shown):
        number = rnd.number
        with _theirs(f"{args.train} failed in round {number}"), _prints(args):
            made = train(rnd.state)
        new, weight, figures = trained(made)
        rnd.submit(new, weight=weight, figures=figures)
        _say_round(args, rnd, figures, time.perf_counter() - began)
    if not number:
        reached = out.text(trainer.model().get("round"))
        _note(args, f"{args.name} is at round {reached} already: --rounds says where to end")


def trained(made: object) -> tuple[Tensors, float, dict[str, float]]:
    """Arrays, weight and figures of what a training function returned.

    Raises:
        CliError: it is something else.
    """
    match made:
        case Mapping() as new:
            return new, 1.0, {}
        case (Mapping() as new, weight):
            return new, _number("the weight", weight), {}
        case (Mapping() as new, weight, Mapping() as figures):
            told = {str(name): _number(f"figure {name!r}", one) for name, one in figures.items()}
            return new, _number("the weight", weight), told
        case _:
            raise CliError(
                f"the function returned {_shape_of(made)}: return arrays by name, or"
                " (arrays, weight), or (arrays, weight, {figure: value})",
                2,
                name="invalid_params",
            )


def _shape_of(made: object) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(one).__name__ for one in made)})"
    return type(made).__name__


def _number(what: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type] # a number of any framework, or none
    except (TypeError, ValueError):
        raise CliError(
            f"{what} is {type(value).__name__}, no number", 2, name="invalid_params"
        ) from None


# ---- telling


def _note(args: argparse.Namespace, text: str) -> None:
    if not args.quiet and not args.json:
        out.note(text)


def _tell(text: str) -> None:
    _clear()
    out.note(text)


class Waiting:
    """Which phase the round is in: one line that is written over on a terminal.

    Elsewhere, in a file or a pipe, each new reason why nothing goes on is told once.
    """

    def __init__(self) -> None:
        self._told = ""

    def say(self, model: dict[str, Json]) -> None:
        """Tell it, if it is to be told."""
        if sys.stderr.isatty():
            line = out.one_line(waiting_line(model), out.width(2))
            sys.stderr.write(f"\r\x1b[2K{out.paint(line, out.DIM)}\r")
            sys.stderr.flush()
            return
        trouble = out.text(model.get("reason"))
        if trouble and trouble != self._told:
            out.note(waiting_line(model))
        self._told = trouble


def waiting_line(model: dict[str, Json]) -> str:
    """How far the round under way is, then why nothing goes on, else what the line carried."""
    machines = model.get("machines")
    count = len(machines) if isinstance(machines, list) else 0
    number = int(out.number(model.get("round"))) + 1
    line = (
        f"round {number:>4}  {count} machines  {out.text(model.get('phase'))}, waits up to"
        f" {out.number(model.get('deadline_s')):.0f} s for updates"
    )
    trouble = out.text(model.get("reason"))
    if trouble:
        return f"{line}; {trouble}"
    came, left = (out.size(out.number(model.get(key))) for key in ("bytes_in", "bytes_out"))
    return f"{line}; {came} in, {left} out"


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K")


def _say_round(
    args: argparse.Namespace, rnd: Round, figures: dict[str, float], seconds: float
) -> None:
    shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    late = f"  {rnd.late} late" if rnd.late else ""
    if rnd.dropped:
        late = f"  dropped: {rnd.dropped}"
    _note(
        args,
        f"round {rnd.number:>4}  {len(rnd.machines)} machines  {seconds:6.1f} s  {shown}{late}",
    )
