"""A person's numbers: read as they are meant, or refused with the line that is wrong."""

from __future__ import annotations

import io
import sys
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

import numpy as np
import pytest

from daemon.cli import fed_input
from daemon.cli.client import CliError
from daemon.cli.fed_input import above_0, peer_count, read_items, read_numbers

if TYPE_CHECKING:
    from pathlib import Path

TABLE = "ms,n\n1.5,2\n 2 ,3\n-3e2,1\n"


def read(
    folder: Path,
    content: str | bytes,
    column: str | None = None,
    weight: str | None = None,
    *,
    name: str = "data.csv",
) -> tuple[list[float], list[float] | None]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    values, weights = read_numbers(str(path), column, weight)
    return list(values), None if weights is None else list(weights)


@pytest.mark.parametrize(
    ("content", "column", "weight", "wanted", "weights"),
    [
        ("1\n2\n\n3\n", None, None, [1, 2, 3], None),
        ("ms\n1\n2\n", None, None, [1, 2], None),
        ("\n\nms\n1\n", None, None, [1], None),
        (TABLE, "ms", None, [1.5, 2, -300], None),
        (TABLE, "1", None, [1.5, 2, -300], None),
        (TABLE, "n", "ms", None, None),
        (TABLE.replace("-3e2", "3"), "n", "ms", [2, 3, 1], [1.5, 2, 3]),
        ("1,2\n3,4\n", "2", None, [2, 4], None),
        ("1,2\n3,4\n", "2", "1", [2, 4], [1, 3]),
        ("2019,2020\n3,4\n", "2020", None, [4], None),
        ('a,b\n"1",x\n"2","y\nz"\n3,\n', "a", None, [1, 2, 3], None),
        ("\ufeffms\r\n1\r\n2\r\n", "ms", None, [1, 2], None),
        ("ms,n\n1,\n,2\n3,4\n", "ms", "n", [3], [4]),
        ('{"ms": 1, "x": "y"}\n\n{"ms": 2.5}\n{"ms": null}\n', "ms", None, [1, 2.5], None),
        ('{"ms": "7"}\n', "ms", None, [7], None),
        ('{"ms": 1, "n": 2}\n', "ms", "n", [1], [2]),
    ],
)
def test_numbers_are_read_from_tables_lines_and_json(
    tmp_path: Path,
    content: str,
    column: str | None,
    weight: str | None,
    wanted: list[float] | None,
    weights: list[float] | None,
) -> None:
    if wanted is None:
        with pytest.raises(CliError, match="line 4: a weight is above 0, not -300"):
            read(tmp_path, content, column, weight)
    else:
        assert read(tmp_path, content, column, weight) == (wanted, weights)


def test_a_table_of_tabs_and_standard_input_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(tmp_path, "a\tb\n1\t2\n", "b", name="x.tsv") == ([2], None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n2\n"))
    assert list(read_numbers("-", None)[0]) == [1, 2]


def test_empty_cells_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(tmp_path, "ms,x\n1,a\n,b\n  ,c\n2,d\n", "ms") == ([1, 2], None)
    assert "2 empty cells are left out" in capsys.readouterr().err


REFUSED = {
    "text": ("ms\n1\nx\n", "ms", "line 3: 'x' is no number$"),
    "a comma": ('ms,n\n"1,5",2\n', "ms", r"line 2: '1,5' is no number \(write a decimal point"),
    "text after a quoted break": ('a,b\n"x\ny",1\nz,w\n', "b", "line 4: 'w' is no number"),
    "NaN": ("ms\nnan\n", "ms", "line 2: 'nan' is not finite"),
    "infinity": ('{"ms": Infinity}\n', "ms", "line 1: 'inf' is not finite"),
    "a truth": ('{"ms": true}\n', "ms", "line 1: 'True' is no number"),
    "a list": ('{"ms": [1]}\n', "ms", "line 1: .* is no number"),
    "a short row": ("a,b\n1\n", "b", "line 2: only 1 columns"),
    "which column": (TABLE, None, "2 columns: name one with --column"),
    "no such column": (TABLE, "s", "no column 's'; it has: ms, n"),
    "column 0": (TABLE, "0", "no column '0'"),
    "column 3": (TABLE, "3", "no column '3'"),
    "a digit that is none": (TABLE, "²", "no column '²'"),
    "no key": ('{"ms": 1}\n{"s": 1}\n', "ms", "line 2: no key 'ms'"),
    "no key named": ('{"ms": 1}\n', None, "name the key with --column"),
    "no JSON": ('{"ms": 1}\n{"ms"\n', "ms", "line 2: not a JSON object"),
    "deep JSON": ('{"ms": 1}\n{"ms": ' + "[" * 100_000 + "\n", "ms", "line 2: not a JSON object"),
    "no object": ('{"ms": 1}\n[1]\n', "ms", "line 2: no key"),
    "empty": ("", None, "has no values$"),
    "a head alone": ("ms\n", "ms", "no values in that column"),
    "no text": (b"\xff\xfe\x00", None, "is no text"),
    "an endless field": ('a,b\n1,2\n"' + "x" * 200_000 + '",3\n', "b", "line 3: field larger"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_number_is_refused_with_its_line(tmp_path: Path, what: str) -> None:
    content, column, says = REFUSED[what]
    with pytest.raises(CliError, match=says) as caught:
        read(tmp_path, content, column)
    assert caught.value.exit_code == 2


@pytest.mark.attack
def test_a_cell_with_escapes_does_not_reach_the_terminal(tmp_path: Path) -> None:
    for content, column in (("ms\n\x1b[31mx\n", "ms"), ("\x1b]0;t\x07,b\n1,2\n", "zz")):
        with pytest.raises(CliError) as caught:
            read(tmp_path, content, column)
        assert "\x1b" not in caught.value.message


def test_too_many_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fed_input, "VALUES_MAX", 3)
    assert read(tmp_path, "1\n2\n3\n") == ([1, 2, 3], None)
    with pytest.raises(CliError, match="more than 3 values: take a sample"):
        read(tmp_path, "1\n2\n3\n4\n")
    np.save(tmp_path / "a.npy", np.ones(4))
    with pytest.raises(CliError, match="4 values: give 1 to 3"):
        read_numbers(str(tmp_path / "a.npy"), None)


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    for name in ("x.csv", "x.npy"):
        with pytest.raises(CliError, match="cannot be read: No such file") as caught:
            read_numbers(str(tmp_path / name), None)
        assert caught.value.exit_code == 4


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.5, 2]), np.array([[1, 2], [3, 4]], np.int16), np.array([1, 2], ">f4"),
        np.array([True, False]), np.array(3.0), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
)  # fmt: skip
def test_an_array_is_read_row_by_row(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    values, weights = read_numbers(str(tmp_path / "a.npy"), None)
    assert list(values) == [float(one) for one in array.ravel()]
    assert weights is None


@pytest.mark.attack
def test_what_is_no_array_of_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array, says in (
        (np.array([1, "x"], object), "no array of numbers"),  # would be unpickled
        (np.array([1 + 2j]), "one of complex128"),
        (np.array(["1.5"]), "one of <U3"),
        (np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]), "no array of plain numbers"),
        (np.array([1, np.nan]), "value 2: not finite"),
        (np.array([]), "0 values"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(CliError, match=says):
            read_numbers(str(path), None)
    np.save(path, np.ones(100))
    whole = path.read_bytes()
    for data in (b"", b"PK\x03\x04", b"1\n2\n", whole[:-1], whole[:20]):
        path.write_bytes(data)
        with pytest.raises(CliError):
            read_numbers(str(path), None)
    np.savez(tmp_path / "z.npz", a=np.ones(1))
    (tmp_path / "z.npz").replace(path)
    with pytest.raises(CliError, match="no array of numbers"):
        read_numbers(str(path), None)


def test_columns_of_an_array_are_refused_not_ignored(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    for column, weight in (("1", None), (None, "2")):
        with pytest.raises(CliError, match="are for tables"):
            read_numbers(str(tmp_path / "a.npy"), column, weight)


@pytest.mark.parametrize(
    ("content", "column", "wanted"),
    [
        ("red\n\n  dark blue \nred\r\n", None, ["red", "dark blue", "red"]),
        ("\ufeffa,b\nc\n", None, ["a,b", "c"]),
        ('page,n\n"/a,b",1\n/c,2\n,3\n', "page", ["/a,b", "/c"]),
        ("page,n\n/a,1\n", "1", ["/a"]),
        ('{"page": "/a"}\n{"page": null}\n{"page": 7}\n', "page", ["/a", "7"]),
    ],
)
def test_items_are_lines_or_the_cells_of_a_column(
    tmp_path: Path, content: str, column: str | None, wanted: list[str]
) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(content.encode())
    assert read_items(str(path), column) == wanted


def test_items_come_from_standard_input_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    assert read_items("-", None) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "column", "match"),
    [
        (b"\n \n", None, "no items"),
        (b"page\n", "page", "no items in that column"),
        (b"page\n/a\n", "pages", "no column 'pages'"),
        (b"\xff\xfe", None, "no text"),
        (b"a\n" * 4, None, "more than 3 items"),
    ],
)
def test_what_holds_no_items_or_too_many_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, column: str | None, match: str
) -> None:
    monkeypatch.setattr(fed_input, "ITEMS_MAX", 3)
    path = tmp_path / "items.csv"
    path.write_bytes(content)
    with pytest.raises(CliError, match=match):
        read_items(str(path), column)


def test_a_missing_file_of_items_is_said(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="cannot be read") as caught:
        read_items(str(tmp_path / "none"), None)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("text", ["nan", "inf", "0", "-1", "x", ""])
def test_an_option_above_0_is_a_finite_number(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no number above 0"):
        above_0(text)
    assert above_0("0.5") == 0.5


@pytest.mark.parametrize("text", ["1", "65", "-3", "2.5", "x"])
def test_a_round_has_two_to_64_members(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="2 to 64 machines"):
        peer_count(text)
    assert [peer_count("0"), peer_count("2"), peer_count("64")] == [0, 2, 64]
