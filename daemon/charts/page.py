"""A chart as one page of HTML: drawn as SVG, with a table of the same figures.

One file that asks for nothing: no script, no address, and a policy that forbids both should a
foreign name ever get through. It follows the reader's light or dark setting; lines differ by dashes
as well as by colour; a screen reader hears a title, a summary and the table.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from daemon.charts.model import Bars, number, numbers, scale_of, ticks

if TYPE_CHECKING:
    from daemon.charts.model import Line, Lines

WIDTH: Final = 720
HEIGHT: Final = 220
LEFT: Final = 70
RIGHT: Final = 16
TOP: Final = 14
BOTTOM: Final = 34
BAR: Final = 20
DOTS_MAX: Final = 200
"""Points of a line up to which each is drawn as a dot with its value."""
TABLE_ROWS_MAX: Final = 2_000

STYLE: Final = """\
:root { color-scheme: light dark; --ink: #1f2328; --dim: #59636e; --rule: #d1d9e0; --paper: #fff;
  --line: #0b62c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9198a1; --rule: #3d444d;
  --paper: #0d1117; --line: #6cb2ff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 760px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 1.5rem 0 .3rem; }
svg { width: 100%; height: auto; } text { fill: var(--dim); font: 12px system-ui, sans-serif; }
.rule { stroke: var(--rule); } .bar { fill: var(--line); } .dot { fill: var(--line); }
.curve { fill: none; stroke: var(--line); stroke-width: 2; stroke-linejoin: round; }
table { border-collapse: collapse; } th, td { padding: .15rem .8rem .15rem 0; text-align: right;
  border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--dim); }
"""


def page(chart: Lines | Bars) -> str:
    """The whole file."""
    if isinstance(chart, Bars):
        body = _bars(chart) + _bars_table(chart)
    else:
        body = "".join(_panel(line, chart.x_name, at) for at, line in enumerate(chart.lines))
        body += _lines_table(chart)
    title = escape(chart.title or "Chart")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
    )


def _panel(line: Line, x_name: str, at: int) -> str:
    """A line with its axes."""
    ys = scale_of(y for _, y in line.points)
    first, last = line.points[0][0], line.points[-1][0]
    span = (last - first) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / span if len(line.points) > 1 else 0.5
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            TOP + (1 - ys.share(y)) * (HEIGHT - TOP - BOTTOM),
        )

    marks = []
    values = ticks(ys)
    for value, name in zip(values, numbers(values), strict=True):
        y = place(first, value)[1]
        marks.append(
            f'<line class="rule" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name}</text>\n'
        )
    places = [place(x, y) for x, y in line.points]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    curve = f'<polyline class="curve" points="{points}"/>\n'
    dots = "".join(
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3">'
        f"<title>{escape(x_name)} {number(point[0])}: {number(point[1])}</title></circle>\n"
        for (x, y), point in zip(places, line.points, strict=True)
        if len(places) <= DOTS_MAX
    )
    base = HEIGHT - BOTTOM + 18
    ends = (
        f'<text x="{LEFT}" y="{base}">{number(first)}</text>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{base}" text-anchor="middle">'
        f"{escape(x_name)}</text>"
        f'<text x="{WIDTH - RIGHT}" y="{base}" text-anchor="end">{number(last)}</text>\n'
    )
    inside = "".join(marks) + curve + dots + ends
    drawn = _svg(f"line{at}", HEIGHT, line.name, _summary(line, x_name), inside)
    return f"<h2>{escape(line.name)}</h2>\n{drawn}"


def _summary(line: Line, x_name: str) -> str:
    values = [y for _, y in line.points]
    (first_x, first_y), (last_x, last_y) = line.points[0], line.points[-1]
    text = (
        f"From {number(first_y)} at {x_name} {number(first_x)} to {number(last_y)} at {x_name} "
        f"{number(last_x)}; lowest {number(min(values))}, highest {number(max(values))}."
    )
    return text + (f" {line.left_out} points are left out." if line.left_out else "")


def _svg(ident: str, height: int, title: str, summary: str, inside: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="{ident}-title {ident}-desc">\n'
        f'<title id="{ident}-title">{escape(title)}</title>\n'
        f'<desc id="{ident}-desc">{escape(summary)}</desc>\n{inside}</svg>\n'
    )


def _lines_table(chart: Lines) -> str:
    xs = sorted({x for line in chart.lines for x, _ in line.points})
    columns = [dict(line.points) for line in chart.lines]
    head = "".join(f'<th scope="col">{escape(line.name)}</th>' for line in chart.lines)
    rows = "".join(
        f'<tr><th scope="row">{number(x)}</th>'
        + "".join(f"<td>{number(column[x]) if x in column else ''}</td>" for column in columns)
        + "</tr>\n"
        for x in xs[-TABLE_ROWS_MAX:]
    )
    more = len(xs) - TABLE_ROWS_MAX
    caption = "The same figures" + (f", without the first {more:,}" if more > 0 else "")
    return (
        f'<table>\n<caption>{caption}</caption>\n<thead><tr><th scope="col">'
        f"{escape(chart.x_name)}</th>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"
    )


def _bars(chart: Bars) -> str:
    most = max((count for _, count in chart.bars), default=0.0) or 1.0
    left, room = 220, WIDTH - 220 - 90
    rows = []
    for at, (label, count) in enumerate(chart.bars):
        y = TOP + at * BAR
        long = count / most * room
        rows.append(
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>'
            f'<rect class="bar" x="{left}" y="{y + 3}" width="{long:.1f}" height="{BAR - 6}"/>'
            f'<text x="{left + long + 6:.1f}" y="{y + 14}">{number(count)}</text>\n'
        )
    total = sum(count for _, count in chart.bars)
    label = max(chart.bars, key=lambda bar: bar[1], default=("", 0.0))[0]
    summary = f"{number(total)} values in {len(chart.bars)} bars; most in {label}."
    return _svg(
        "bars", 2 * TOP + BAR * len(chart.bars), chart.title or "Counts", summary, "".join(rows)
    )


def _bars_table(chart: Bars) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{number(count)}</td></tr>\n'
        for label, count in chart.bars
    )
    return (
        '<table>\n<caption>The same figures</caption>\n<thead><tr><th scope="col">from … to</th>'
        f'<th scope="col">count</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n'
    )
