"""`covey fed chart`: a model's figures over its rounds; and charts of answers as files."""

from __future__ import annotations

import os
import sys

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.memory import connect
from daemon.cli.options import add_verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from daemon.charts.model import Bars, Lines
    from daemon.cli.options import Verbs
    from daemon.json_types import Json

ROUNDS_MAX = 200
"""What one call for the history returns."""


def add_files(sub: argparse.ArgumentParser) -> None:
    """Where else a chart goes than to the terminal."""
    sub.add_argument("--html", metavar="FILE", help="write the chart as a page of its own, too")
    sub.add_argument("--png", metavar="FILE", help="as a picture (needs `covey[chart]`)")


def configure_chart(verbs: Verbs) -> None:
    """Arguments of `covey fed chart`."""
    sub = add_verb(verbs, "chart", "a model's loss and other figures over its rounds")
    sub.add_argument("name", help="the model")
    sub.add_argument("--group", metavar="NAME", help="whose model (default: of any group)")
    sub.add_argument("--metric", action="append", metavar="NAME", help="this figure alone")
    add_files(sub)


def run_chart(args: argparse.Namespace) -> int:
    """Show a model's figures."""
    from daemon.charts.model import lines_of

    params: dict[str, Json] = {"name": args.name, "limit": ROUNDS_MAX}
    if args.group is not None:
        params["group"] = args.group
    rows = out.rows(connect(args).call("fed.history", params))
    figures = figures_of(rows)
    wanted = args.metric or sorted(figures)
    if not figures:
        raise CliError(
            f"no round of {args.name!r} here has figures: a trainer returns them beside its update,"
            " such as `(new, weight, {'loss': 0.3})`",
            4,
            name="not_found",
        )
    missing = [name for name in wanted if name not in figures]
    if missing:
        shown = ", ".join(map(out.clean, sorted(figures)))
        raise CliError(f"no figure {missing[0]!r}; there are: {shown}", 4, name="not_found")
    if args.json:
        found: dict[str, Json] = {
            name: [[x, y] for x, y in sorted(figures[name])] for name in wanted
        }
        out.say_json(found)
    show(lines_of(args.name, "round", [(name, figures[name]) for name in wanted]), args)
    return 0


def figures_of(rows: list[dict[str, Json]]) -> dict[str, list[tuple[float, float]]]:
    """(round, value) by the figure's name, of rounds that were applied."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("kind") == "model" and row.get("outcome") == "applied":
            for name, value in out.mapping(row.get("metrics")).items():
                if isinstance(value, int | float):
                    found.setdefault(name, []).append((out.number(row.get("number")), value))
    return found


def show(chart: Lines | Bars, args: argparse.Namespace) -> None:
    """Draw on the terminal, unless it gets JSON, and into the files that were asked for."""
    if not args.json:
        _draw(chart)
    if args.html:
        _write_page(chart, args.html)
    if args.png:
        _write_picture(chart, args.png)


def _draw(chart: Lines | Bars) -> None:
    from daemon.charts.model import Bars
    from daemon.charts.terminal import can_show_dots, draw_bars, draw_lines

    dots, width = can_show_dots(sys.stdout), out.width()
    rows = (
        draw_bars(chart, width, dots=dots)
        if isinstance(chart, Bars)
        else draw_lines(chart, width, dots=dots)
    )
    for row in rows:
        out.say(row)


def _write_page(chart: Lines | Bars, path: str) -> None:
    from daemon.charts.page import page

    _write(path, page(chart).encode("utf-8"))


def _write_picture(chart: Lines | Bars, path: str) -> None:
    from daemon.charts.picture import PictureMissing, picture

    try:
        _write(path, picture(chart))
    except PictureMissing as error:
        instead = os.path.splitext(path)[0] + ".html"
        out.note(f"no {path}: {error}")
        _write_page(chart, instead)


def _write(path: str, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}", 1) from None
    out.note(f"wrote {path}")
