"""Charts: right figures in the right place, on any terminal, and nothing foreign gets to act."""

from __future__ import annotations

import argparse
import io
import math
import re
import struct
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.charts import picture as picture_module
from daemon.charts.model import (
    BARS_MAX,
    NAME_CHARS_MAX,
    POINTS_MAX,
    SERIES_MAX,
    Bars,
    histogram_bars,
    line_of,
    lines_of,
    number,
    numbers,
    scale_of,
    ticks,
)
from daemon.charts.page import page
from daemon.charts.picture import PictureMissing, picture
from daemon.charts.terminal import WIDTH_MIN, can_show_dots, draw_bars, draw_lines
from daemon.cli import out
from daemon.cli.fed_chart import figures_of, show
from tests.helpers.need import need

if TYPE_CHECKING:
    from pathlib import Path

FINITE = st.floats(-1e300, 1e300)
ANY = st.floats()
HOSTILE = "\x1b[31m<script>alert(1)</script>\"'><img src=x onerror=y>\u202eevil\x07\u2028]]>&lt;"
LOSS = lines_of("speech", "round", [("loss", [(i, 2.0 / i) for i in range(1, 21)])])


def hostile_chart() -> object:
    return lines_of(HOSTILE, HOSTILE, [(HOSTILE, [(1, 2.0), (2, 3.0)])])


# --- scales and names -----------------------------------------------------------------------------


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_a_scale_holds_all_values_and_its_ticks_ascend(values: list[float]) -> None:
    scale = scale_of(values)
    assert math.isfinite(scale.low)
    assert scale.low < scale.high
    assert all(-1e-9 <= scale.share(value) <= 1 + 1e-9 for value in values)
    found = ticks(scale)
    assert 2 <= len(found) <= 12
    assert found == sorted(found)


def test_ticks_are_round_numbers() -> None:
    assert [number(tick) for tick in ticks(scale_of([-0.23, 0.41]))] == [
        "-0.4", "-0.2", "0", "0.2", "0.4", "0.6",
    ]  # fmt: skip
    assert ticks(scale_of([0.0, 100.0])) == [0, 20, 40, 60, 80, 100]
    assert scale_of([5.0, 5.0]).share(5.0) == pytest.approx(0.5)


def test_numbers_that_differ_are_written_differently() -> None:
    assert numbers([1.0, 1234.5, 0.00001]) == ["1", "1234", "1e-05"]
    times = [1.764e12, 1.764e12 + 1000, 1.764e12 + 2000]
    assert numbers(times) == ["1.764e+12", "1.764000001e+12", "1.764000002e+12"]


def test_a_line_keeps_finite_points_in_order_and_says_what_is_left_out() -> None:
    line = line_of("loss", [(2, 1.0), (1, 3.0), (3, math.nan), (4, math.inf), (2, 2.0)])
    assert line.points == ((1, 3.0), (2, 2.0))
    assert line.left_out == 3
    many = line_of("loss", [(i, 0.0) for i in range(POINTS_MAX + 5)])
    assert (len(many.points), many.left_out) == (POINTS_MAX, 5)
    empty = lines_of("t", "x", [("a", []), ("b", [(1, math.nan)])])
    assert empty.lines == ()
    crowd = lines_of("t", "x", [(str(i), [(1, 1.0)]) for i in range(20)])
    assert len(crowd.lines) == SERIES_MAX


def test_a_histogram_with_many_bins_shares_bars_and_loses_no_count() -> None:
    bars = histogram_bars("t", list(range(1001)), [1.0] * 1000, below=3, above=4)
    assert len(bars.bars) <= BARS_MAX + 2
    assert sum(count for _, count in bars.bars) == 1007
    assert bars.bars[0] == ("below 0", 3)
    assert bars.bars[1] == ("0 … 17", 17)
    assert bars.bars[-1] == ("above 1,000", 4)
    assert histogram_bars("t", [], [], below=1, above=1).bars == ()
    broken = histogram_bars("t", [0, 1, 2], [math.nan, -3], below=math.nan, above=0)
    assert [count for _, count in broken.bars] == [0, 0]


# --- terminal -------------------------------------------------------------------------------------


def test_a_falling_line_falls() -> None:
    rows = draw_lines(LOSS, 60, dots=False)
    assert rows[1] == "loss: 0.1 at 20, lowest 0.1, highest 2"
    picture_rows = [row.partition("|")[2] or row.partition("+")[2] for row in rows[2:10]]
    assert picture_rows[0].startswith("*")
    assert picture_rows[0].count("*") == 1
    assert picture_rows[-1].endswith("*****")
    assert rows[-1].split() == ["1", "round", "20"]
    columns = ["".join(column) for column in zip(*(r.ljust(57) for r in picture_rows), strict=True)]
    heights = [column.index("*") for column in columns if "*" in column]
    assert heights == sorted(heights), "no step of it goes up"
    assert len(heights) > 50, "and it has no gap"


def test_braille_shows_the_same_curve() -> None:
    rows = draw_lines(LOSS, 60, dots=True)
    cells = [cell for row in rows[2:10] for cell in row if "\u2800" < cell <= "\u28ff"]
    assert len(cells) > 50
    flat = lines_of("", "x", [("y", [(0, 0.0), (1, 0.0)])])
    drawn = draw_lines(flat, 40, dots=True)
    assert sum(any("\u2800" < cell <= "\u28ff" for cell in row) for row in drawn) == 1


@given(
    st.lists(st.tuples(ANY, ANY), max_size=6),
    st.text(max_size=80),
    st.integers(1, 200),
    st.booleans(),
)
def test_any_chart_fits_any_terminal(
    points: list[tuple[float, float]], name: str, width: int, dots: bool
) -> None:
    charts = [
        draw_lines(lines_of(name, name, [(name, points)]), width, dots=dots),
        draw_bars(Bars(line_of(name, []).name, ((line_of(name, []).name, 3.0),)), width, dots=dots),
    ]
    for rows in charts:
        assert rows
        for row in rows:
            assert out.columns(row) <= max(width, WIDTH_MIN)
            assert "\n" not in row
            assert "\x1b" not in row
            if not dots:
                assert row.isascii()


def test_bars_are_as_long_as_their_counts() -> None:
    bars = Bars("t", (("a", 100.0), ("b", 50.0), ("c", 1.0), ("d", 0.0)))
    title, *rows = draw_bars(bars, 80, dots=False)
    assert title == "t"
    assert [row.count("#") for row in rows] == [50, 25, 1, 0]
    shown = draw_bars(bars, 80, dots=True)[1:]
    assert [row.count("█") for row in shown] == [50, 25, 0, 0]
    assert shown[2].endswith("▌"), "half of a cell of fifty"
    tiny = draw_bars(Bars("", (("a", 1e9), ("b", 1.0))), 80, dots=True)
    assert tiny[1].endswith("▏"), "what is there is seen"


def test_dots_are_for_terminals_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(encoding: str) -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(), encoding=encoding)

    monkeypatch.setenv("TERM", "xterm-256color")
    assert can_show_dots(stream("UTF-8"))
    assert not can_show_dots(stream("latin-1"))
    assert not can_show_dots(stream("ascii"))
    monkeypatch.setenv("TERM", "linux")
    assert not can_show_dots(stream("utf-8"))


# --- HTML -----------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said += data


def svgs(text: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_a_page_draws_the_points_where_they_belong() -> None:
    (svg,) = svgs(page(LOSS))
    curve = next(one for one in svg.iter("polyline"))
    places = [tuple(map(float, p.split(","))) for p in curve.attrib["points"].split()]
    assert len(places) == 20
    xs, ys = zip(*places, strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys), "a falling loss goes down, where y grows"
    assert (xs[0], xs[-1]) == (70, 704)
    assert ys[0] == 14, "2 is the top of the scale"
    titles = [one.text for one in svg.iter("title")]
    assert titles[0] == "loss"
    assert "round 4: 0.5" in titles


def test_a_page_speaks_to_those_who_do_not_see_it() -> None:
    for chart in (LOSS, histogram_bars("ms", [0, 1, 2], [3, 4], below=0, above=1)):
        text = page(chart)
        (svg,) = svgs(text)
        assert svg.attrib["role"] == "img"
        named = svg.attrib["aria-labelledby"].split()
        assert [one.attrib["id"] for one in svg if one.tag in {"title", "desc"}] == named
        assert next(svg.iter("desc")).text
        found = Elements(text)
        assert {"table", "caption", "thead"} <= {tag for tag, _ in found.tags}
        assert {"row", "col"} == {attrs["scope"] for tag, attrs in found.tags if tag == "th"}
        assert "prefers-color-scheme: dark" in text
        assert found.tags[0] == ("html", {"lang": "en"})
    assert "lowest 0.1, highest 2." in page(LOSS)


def test_a_page_asks_for_nothing() -> None:
    for chart in (LOSS, hostile_chart()):
        text = page(chart)  # type: ignore[arg-type]
        found = Elements(text)
        used = {tag for tag, _ in found.tags}
        assert not used & {"script", "img", "link", "iframe", "a", "image", "use", "foreignobject"}
        attributes = {name for _, attrs in found.tags for name in attrs}
        assert not attributes & {"src", "href", "style", "xlink:href"}
        assert not any(name.startswith("on") for name in attributes)
        assert "default-src 'none'" in text
        assert "url(" not in text
        assert "//" not in text


@pytest.mark.attack
def test_a_name_of_markup_stays_a_name() -> None:
    bars = Bars("<b>", (("<i>&", 1.0), ("</svg><script>", 2.0)))
    plain = Elements(page(LOSS))
    for chart in (hostile_chart(), bars):
        text = page(chart)  # type: ignore[arg-type]
        found = Elements(text)
        assert {tag for tag, _ in found.tags} <= {tag for tag, _ in plain.tags} | {"rect"}
        assert all(svg is not None for svg in svgs(text)), "and the drawing stays well-formed"
    said = Elements(page(hostile_chart())).said  # type: ignore[arg-type]
    assert "<script>alert(1)</script>" in said
    for forbidden in "\x1b\x07\u202e\u2028":
        assert forbidden not in page(hostile_chart())  # type: ignore[arg-type]


@pytest.mark.attack
@pytest.mark.parametrize("dots", [True, False])
def test_a_name_of_escapes_moves_no_cursor(dots: bool) -> None:
    rows = draw_lines(hostile_chart(), 80, dots=dots)  # type: ignore[arg-type]
    rows += draw_bars(histogram_bars(HOSTILE, [0, 1], [1], below=0, above=0), 80, dots=dots)
    for row in rows:
        assert row == out.clean(row)
    assert len(lines_of("n" * 500, "x", []).title) <= NAME_CHARS_MAX


@given(st.text(max_size=60))
def test_any_name_makes_a_well_formed_page(name: str) -> None:
    text = page(lines_of(name, name, [(name, [(1, 1.0)])]))
    text.encode("utf-8")
    assert len(svgs(text)) == 1


# --- PNG ------------------------------------------------------------------------------------------


def pixels(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and bytes of an RGB picture, read without the library that wrote it."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, found = 8, {}
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        (crc,) = struct.unpack(">I", data[at + 8 + size : at + 12 + size])
        assert crc == zlib.crc32(kind + body)
        found[kind] = found.get(kind, b"") + body
        at += 12 + size
    width, height, depth, colour = struct.unpack(">IIBB", found[b"IHDR"][:10])
    assert (depth, colour) == (8, 2)
    return width, height, zlib.decompress(found[b"IDAT"])


def test_a_picture_is_a_png_with_something_on_it() -> None:
    need("pillow")
    shown = (LOSS, histogram_bars("ms", [0, 1, 2], [3, 4], below=0, above=0), hostile_chart())
    for chart in shown:
        data = picture(chart)  # type: ignore[arg-type]
        width, height, raw = pixels(data)
        assert (width, len(raw)) == (960, height * (3 * width + 1))
        assert len(set(raw)) > 50, "ink, and smooth edges"
    more = lines_of("t", "x", [("a", [(1, 1.0)]), ("b", [(1, 1.0), (2, 3.0)])])
    assert pixels(picture(more))[1] > pixels(picture(LOSS))[1]


def files(**paths: Path) -> argparse.Namespace:
    return argparse.Namespace(
        json=False,
        html=str(paths["html"]) if "html" in paths else None,
        png=str(paths["png"]) if "png" in paths else None,
    )


def test_without_pillow_a_page_is_written_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(picture_module, "importlib", argparse.Namespace(import_module=absent))
    with pytest.raises(PictureMissing, match=r"pip install covey\[chart\]"):
        picture(LOSS)
    show(LOSS, files(png=tmp_path / "loss.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["loss.html"]
    problem = capsys.readouterr().err
    assert "a PNG needs Pillow" in problem
    assert "loss.html" in problem


def test_a_chart_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(LOSS, files(html=tmp_path / "a.html"))
    assert (tmp_path / "a.html").read_text("utf-8") == page(LOSS)
    assert "loss: 0.1 at 20" in capsys.readouterr().out
    with pytest.raises(Exception, match="cannot be written"):
        show(LOSS, files(html=tmp_path / "none" / "a.html"))


def test_figures_are_those_of_rounds_that_came_to_something() -> None:
    rows: list[dict[str, object]] = [
        {"kind": "model", "outcome": "applied", "number": 2, "metrics": {"loss": 0.5, "acc": 1}},
        {"kind": "model", "outcome": "failed", "number": 3, "metrics": {"loss": 9.0}},
        {"kind": "mean", "outcome": "applied", "number": 1, "metrics": {"loss": 9.0}},
        {"kind": "model", "outcome": "applied", "number": 1, "metrics": {"loss": 0.9}},
        {"kind": "model", "outcome": "applied", "number": 4, "metrics": {"loss": "x"}},
        {"kind": "model", "outcome": "applied", "number": 5, "metrics": None},
    ]
    assert figures_of(rows) == {"loss": [(2.0, 0.5), (1.0, 0.9)], "acc": [(2.0, 1)]}  # type: ignore[arg-type]
