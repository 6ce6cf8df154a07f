"""A chart as a PNG picture, drawn by Pillow, which comes with the extra `covey[chart]`.

Light only, for it is pasted into other people's pages. Everything is drawn four times as large as
it is shown and made small again: so lines are smooth.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from typing import TYPE_CHECKING, Final, Protocol, cast

from daemon.charts.model import Bars, number, numbers, scale_of, ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.charts.model import Line, Lines

WIDTH: Final = 960
PANEL: Final = 280
LEFT: Final = 110
RIGHT: Final = 30
TOP: Final = 40
BOTTOM: Final = 40
TITLE: Final = 44
BAR: Final = 26
LABELS: Final = 300
SMOOTH: Final = 4

INK: Final = (31, 35, 40)
DIM: Final = (89, 99, 110)
RULE: Final = (209, 217, 224)
BLUE: Final = (11, 98, 196)
PAPER: Final = (255, 255, 255)

Colour = tuple[int, int, int]


class PictureMissing(Exception):
    """Pillow is not installed; the message says what to do."""


class _Pen(Protocol):
    """`PIL.ImageDraw.ImageDraw`."""

    def line(
        self, xy: Sequence[tuple[float, float]], *, fill: Colour, width: int, joint: str | None
    ) -> None: ...

    def rectangle(self, xy: Sequence[float], *, fill: Colour) -> None: ...

    def text(
        self, xy: tuple[float, float], text: str, *, fill: Colour, font: object, anchor: str
    ) -> None: ...


class _Picture(Protocol):
    """`PIL.Image.Image`."""

    def resize(self, size: tuple[int, int], resample: int) -> _Picture: ...

    def save(self, fp: io.BytesIO, format: str) -> None: ...  # noqa: A002 - Pillow's name


class _Images(Protocol):
    """`PIL.Image`."""

    def new(self, mode: str, size: tuple[int, int], color: Colour) -> _Picture: ...


class _Draws(Protocol):
    """`PIL.ImageDraw`."""

    def Draw(self, im: _Picture) -> _Pen: ...  # noqa: N802 - Pillow's name


class _Fonts(Protocol):
    """`PIL.ImageFont`."""

    def load_default(self, size: float) -> object: ...


def can_draw() -> bool:
    """Whether Pillow is installed. Does not import it."""
    return importlib.util.find_spec("PIL") is not None


def picture(chart: Lines | Bars) -> bytes:
    """The PNG file.

    Raises:
        PictureMissing: Pillow is not installed.
    """
    height = TITLE + (
        len(chart.bars) * BAR + TOP if isinstance(chart, Bars) else len(chart.lines) * PANEL
    )
    canvas = _Canvas(WIDTH, max(height, TITLE + BAR))
    canvas.text(LEFT / 4, TITLE / 2, chart.title, colour=INK, size=18)
    if isinstance(chart, Bars):
        _draw_bars(canvas, chart)
    else:
        for at, line in enumerate(chart.lines):
            _draw_panel(canvas, line, chart.x_name, TITLE + at * PANEL)
    return canvas.png()


class _Canvas:
    """A sheet of paper, in the units of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        try:
            images = cast("_Images", importlib.import_module("PIL.Image"))
            draws = cast("_Draws", importlib.import_module("PIL.ImageDraw"))
            self._fonts = cast("_Fonts", importlib.import_module("PIL.ImageFont"))
        except ImportError:
            raise PictureMissing(
                "a PNG needs Pillow: `pip install covey[chart]`, or ask for HTML"
            ) from None
        self._size = (width, height)
        self._picture = images.new("RGB", (width * SMOOTH, height * SMOOTH), PAPER)
        self._pen = draws.Draw(self._picture)

    def line(
        self, points: Sequence[tuple[float, float]], *, colour: Colour, width: float = 1
    ) -> None:
        scaled = [(x * SMOOTH, y * SMOOTH) for x, y in points]
        self._pen.line(scaled, fill=colour, width=max(1, round(width * SMOOTH)), joint="curve")

    def box(self, x: float, y: float, width: float, height: float, *, colour: Colour) -> None:
        corners = [x * SMOOTH, y * SMOOTH, (x + width) * SMOOTH, (y + height) * SMOOTH]
        self._pen.rectangle(corners, fill=colour)

    def text(
        self, x: float, y: float, text: str, *, colour: Colour = DIM, size: int = 13,
        anchor: str = "lm",
    ) -> None:  # fmt: skip
        font = self._fonts.load_default(size * SMOOTH)
        # The font that Pillow carries has Latin letters alone; others become question marks.
        shown = text.replace("…", "...").encode("latin-1", "replace").decode("latin-1")
        self._pen.text((x * SMOOTH, y * SMOOTH), shown, fill=colour, font=font, anchor=anchor)

    def png(self) -> bytes:
        lanczos = 1
        file = io.BytesIO()
        self._picture.resize(self._size, lanczos).save(file, "PNG")
        return file.getvalue()


def _draw_panel(canvas: _Canvas, line: Line, x_name: str, top: float) -> None:
    ys = scale_of(y for _, y in line.points)
    first, last = line.points[0][0], line.points[-1][0]
    span = (last - first) or 1.0
    right, low, high = WIDTH - RIGHT, top + PANEL - BOTTOM, top + TOP

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / span if len(line.points) > 1 else 0.5
        return LEFT + across * (right - LEFT), low - ys.share(y) * (low - high)

    canvas.text(LEFT, top + TOP / 2, line.name, colour=INK, size=15)
    values = ticks(ys)
    for value, name in zip(values, numbers(values), strict=True):
        y = place(first, value)[1]
        canvas.line([(LEFT, y), (right, y)], colour=RULE)
        canvas.text(LEFT - 8, y, name, anchor="rm")
    places = [place(x, y) for x, y in line.points]
    if len(places) > 1:
        canvas.line(places, colour=BLUE, width=2)
    for x, y in places if len(places) <= WIDTH // 16 else ():
        canvas.box(x - 2.5, y - 2.5, 5, 5, colour=BLUE)
    canvas.text(LEFT, low + 16, number(first))
    canvas.text((LEFT + right) / 2, low + 16, x_name, anchor="mm")
    if len(places) > 1:
        canvas.text(right, low + 16, number(last), anchor="rm")


def _draw_bars(canvas: _Canvas, chart: Bars) -> None:
    most = max((count for _, count in chart.bars), default=0.0) or 1.0
    room = WIDTH - LABELS - 130
    for at, (label, count) in enumerate(chart.bars):
        y = TITLE + at * BAR + BAR / 2
        long = count / most * room
        canvas.text(LABELS - 10, y, label, anchor="rm")
        if count > 0:
            canvas.box(LABELS, y - BAR / 2 + 4, max(1.0, long), BAR - 8, colour=BLUE)
        canvas.text(LABELS + long + 8, y, number(count))
