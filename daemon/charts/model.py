"""What a chart shows, and its scales.

Names come from other machines: they lose here what a terminal would obey or a reader cannot see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from daemon.sanitise import sanitise_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

POINTS_MAX: Final = 10_000
"""Of a line: more than any chart has dots, and what a table of them may hold."""
SERIES_MAX: Final = 8
SIZE_MAX: Final = 1e300
"""Beyond it a value is no figure: differences of two must still be numbers."""
NAME_CHARS_MAX: Final = 60
BARS_MAX: Final = 60
"""Of a histogram: with more bins neighbours share a bar."""


@dataclass(frozen=True, slots=True)
class Line:
    """A figure over rounds.

    Attributes:
        name: such as loss.
        points: (x, y) ascending by x, never a NaN or an infinity.
        left_out: points that were, or were too many.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Lines:
    """Figures over the same x, each with a scale of its own: losses and shares do not share one."""

    title: str
    x_name: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """Counts side by side.

    Attributes:
        title: what is counted.
        bars: (label, count), each count at least 0.
    """

    title: str
    bars: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to a share of an axis."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def clean_name(text: str) -> str:
    """A foreign name on one line, harmless and not long."""
    return sanitise_line(text, chars_max=NAME_CHARS_MAX)


def line_of(name: str, points: Iterable[tuple[float, float]]) -> Line:
    """A line of whatever figures there are, without those that are no numbers.

    Args:
        name: foreign text.
        points: in any order; of several with one x the last counts.
    """
    given = list(points)
    kept = {x: y for x, y in given if abs(x) <= SIZE_MAX and abs(y) <= SIZE_MAX}
    ordered = sorted(kept.items())[-POINTS_MAX:]
    return Line(clean_name(name), tuple(ordered), len(given) - len(ordered))


def lines_of(
    title: str, x_name: str, series: Iterable[tuple[str, Iterable[tuple[float, float]]]]
) -> Lines:
    """Lines that have a point at all, `SERIES_MAX` at most."""
    made = (line_of(name, points) for name, points in series)
    found = tuple(line for line in made if line.points)[:SERIES_MAX]
    return Lines(clean_name(title), clean_name(x_name), found)


def histogram_bars(
    title: str, edges: Sequence[float], counts: Sequence[float], *, below: float, above: float
) -> Bars:
    """Bars of a histogram, with those for what lies outside if anything does.

    Args:
        title: foreign text.
        edges: n + 1 numbers, ascending.
        counts: n.
        below: values under the first edge.
        above: values over the last.
    """
    together = -(-len(counts) // BARS_MAX) or 1
    starts = range(0, len(counts), together)
    names = numbers([*(edges[at] for at in starts), *edges[-1:]])
    bars = [
        (f"{low} … {high}", sum(_count(count) for count in counts[at : at + together]))
        for at, low, high in zip(starts, names, names[1:], strict=False)
    ]
    if below > 0 and names:
        bars.insert(0, (f"below {names[0]}", _count(below)))
    if above > 0 and names:
        bars.append((f"above {names[-1]}", _count(above)))
    return Bars(clean_name(title), tuple(bars))


def _count(count: float) -> float:
    return count if math.isfinite(count) and count > 0 else 0.0


def number(value: float) -> str:
    """A number as a person writes it, at most about ten characters."""
    if value == 0:
        return "0"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.4g}"


def numbers(values: Sequence[float]) -> list[str]:
    """Each as a person writes it, with as many digits as tell them apart."""
    different = len(set(values))
    found = [number(value) for value in values]
    for digits in range(5, 18):
        if len(set(found)) == different:
            break
        found = [f"{value:.{digits}g}" for value in values]
    return found


def scale_of(values: Iterable[float]) -> Scale:
    """A scale that holds all values, ending on ticks; wide enough to divide by.

    Args:
        values: finite, at least one.
    """
    found = list(values)
    low, high = min(found), max(found)
    if high - low <= 1e-12 * max(abs(low), abs(high)) or high - low < 1e-280:
        room = max(abs(low) * 0.1, 1e-270) if low else 1.0
        low, high = low - room, high + room
    step = _step(low, high)
    return Scale(math.floor(low / step) * step, math.ceil(high / step) * step)


def _step(low: float, high: float) -> float:
    """1, 2 or 5 times a power of ten: three to seven steps."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * one for one in (1.0, 2.0, 5.0, 10.0, 20.0) if power * one >= rough)


def ticks(scale: Scale) -> list[float]:
    """Values to name at an axis, both ends among them."""
    step = _step(scale.low, scale.high)
    first, last = round(scale.low / step), round(scale.high / step)
    # Multiples, not sums: a tick at 0 is 0.
    found = [at * step for at in range(first + 1, last)]
    return [scale.low, *found, scale.high]
