"""Charts in a terminal: dots of braille and blocks, or plain ASCII where those cannot be shown.

Each line gets a panel with its own scale, so that nothing hangs on colour.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Final

from daemon.charts.model import number, numbers, scale_of
from daemon.cli.out import columns

if TYPE_CHECKING:
    from typing import TextIO

    from daemon.charts.model import Bars, Line, Lines, Scale

ROWS: Final = 8
"""Of text, a panel."""
WIDTH_MIN: Final = 40
WIDTH_MAX: Final = 120
BAR_WIDTH_MAX: Final = 50
LABEL_WIDTH_MAX: Final = 32

_BRAILLE: Final = 0x2800
# Unicode 16, "Braille Patterns": dots 1 2 3 7 in the left column, 4 5 6 8 in the right one.
_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"


def can_show_dots(stream: TextIO) -> bool:
    """Whether a stream takes braille and blocks: UTF-8, and no console without such letters."""
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    return encoding == "utf8" and os.environ.get("TERM") not in {"linux", "dumb"}


def draw_lines(chart: Lines, width: int, *, dots: bool) -> list[str]:
    """The chart's rows of text, each at most `width` columns wide (and `WIDTH_MIN` at least).

    Args:
        chart: what to show.
        width: of the terminal.
        dots: whether it shows braille.
    """
    width = min(WIDTH_MAX, max(WIDTH_MIN, width))
    rows = [_cut(_plain(chart.title, dots), width)] if chart.title else []
    for line in chart.lines:
        rows += _panel(line, chart.x_name, width, dots=dots)
    return rows or ["nothing to show"]


def _panel(line: Line, x_name: str, width: int, *, dots: bool) -> list[str]:
    values = [y for _, y in line.points]
    scale = scale_of(values)
    names = numbers([scale.high, scale.low])
    margin = max(len(name) for name in names)
    inner = max(8, width - margin - 2)
    picture = _picture(line, scale, inner, dots=dots)
    tick, side, corner, floor = ("┤", "│", "└", "─") if dots else ("+", "|", "+", "-")
    rows = [_cut(_plain(_heading(line), dots), width)]
    for at, text in enumerate(picture):
        name = names[0] if at == 0 else names[1] if at == len(picture) - 1 else ""
        rows.append(f"{name:>{margin}} {tick if name else side}{text}".rstrip())
    rows.append(" " * margin + " " + corner + floor * inner)
    rows.append(" " * (margin + 2) + _ends(line, _plain(x_name, dots), inner))
    return rows


def _ends(line: Line, x_name: str, inner: int) -> str:
    """What stands under an axis: where it begins, what it is, where it ends."""
    first, last = number(line.points[0][0]), number(line.points[-1][0])
    free = inner - len(first) - len(last) - 2
    if len(line.points) == 1 or free < 0:
        return _cut(first, inner)
    middle = _cut(x_name, free) if free else ""
    space = free + 2 - columns(middle)
    return f"{first}{' ' * (space // 2)}{middle}{' ' * (space - space // 2)}{last}"


def _heading(line: Line) -> str:
    last_x, last_y = line.points[-1]
    values = [y for _, y in line.points]
    text = f"{line.name}: {number(last_y)} at {number(last_x)}"
    text += f", lowest {number(min(values))}, highest {number(max(values))}"
    return text + (f" ({line.left_out} left out)" if line.left_out else "")


def _picture(line: Line, scale: Scale, inner: int, *, dots: bool) -> list[str]:
    """The curve alone, `ROWS` texts of `inner` cells."""
    across, down = (2 * inner, 4 * ROWS) if dots else (inner, ROWS)
    first, last = line.points[0][0], line.points[-1][0]
    span = (last - first) or 1.0
    places = [
        (
            round((x - first) / span * (across - 1)),
            round((1 - scale.share(y)) * (down - 1)),
        )
        for x, y in line.points
    ]
    marked = set(places)
    for start, end in itertools.pairwise(places):
        marked.update(_between(start, end))
    if not dots:
        return [
            "".join("*" if (x, y) in marked else " " for x in range(inner)) for y in range(down)
        ]
    cells = [[0] * inner for _ in range(ROWS)]
    for x, y in marked:
        cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
    return ["".join(chr(_BRAILLE + cell) if cell else " " for cell in row) for row in cells]


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Dots of a straight line."""
    (x0, y0), (x1, y1) = start, end
    steps = max(abs(x1 - x0), abs(y1 - y0))
    return [
        (round(x0 + (x1 - x0) * at / steps), round(y0 + (y1 - y0) * at / steps))
        for at in range(1, steps)
    ]


def draw_bars(chart: Bars, width: int, *, dots: bool) -> list[str]:
    """The bars as rows of text, each at most `width` columns wide (and `WIDTH_MIN` at least)."""
    width = max(WIDTH_MIN, width)
    labels = [
        _cut(_plain(label, dots), min(LABEL_WIDTH_MAX, width // 2)) for label, _ in chart.bars
    ]
    counts = [number(count) for _, count in chart.bars]
    left = max((columns(label) for label in labels), default=0)
    middle = max((len(count) for count in counts), default=0)
    room = min(BAR_WIDTH_MAX, width - left - middle - 4)
    most = max((count for _, count in chart.bars), default=0.0) or 1.0
    rows = [_cut(_plain(chart.title, dots), width)] if chart.title else []
    for label, text, (_, count) in zip(labels, counts, chart.bars, strict=True):
        bar = _bar(count / most, room, dots=dots) if room > 0 else ""
        padded = " " * (left - columns(label)) + label
        rows.append(f"{padded}  {text:>{middle}}  {bar}".rstrip())
    return rows or ["nothing to show"]


def _bar(share: float, room: int, *, dots: bool) -> str:
    """A bar; what is above 0 is never drawn as nothing."""
    if not dots:
        return "#" * max(round(share * room), 1 if share > 0 else 0)
    eighths = max(round(share * room * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _plain(text: str, dots: bool) -> str:
    """The text, in ASCII where the terminal shows nothing else."""
    return text if dots else text.replace("…", "...").encode("ascii", "replace").decode("ascii")


def _cut(text: str, width: int) -> str:
    """The text in at most `width` columns."""
    if columns(text) <= width:
        return text
    mark = "~" if text.isascii() else "…"
    kept = text
    while kept and columns(kept) > width - 1:
        kept = kept[:-1]
    return (kept + mark)[: max(0, width)]
