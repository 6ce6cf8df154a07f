"""A job's table with odd cells: in each format they stay one cell, and obeyed by nobody."""

from __future__ import annotations

import csv
import io
import json

import pytest

from daemon.cli import out
from daemon.cli.job_tables import FORMULA, show_rows, write_rows

ODD = [
    "two\nlines", "carriage\rreturn", "\rfirst", 'a "quoted" word', "a,b", "a|b", "漢字", "=1+1",
    "@SUM(A1)", "-5", "+1", "\t=1", "\n=1", "\uff1d1+1", "\x1b[31mred\x9b0m", "\u202egnp.exe", "",
    " ", "\\", "`code`", "<b>", "[x](y)", "*a*", "_a_", "e\u0301",
]  # fmt: skip


def test_csv_brings_every_cell_back_and_no_formula() -> None:
    text = write_rows([{"a": cell, "n": -5} for cell in ODD], ["a"], "csv")
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert len(read) == len(ODD) + 1
    for cell, (found, number) in zip(ODD, read[1:], strict=True):
        assert found.removeprefix("'") == cell
        assert not found.startswith(FORMULA)
        assert number == "-5", "a number is no text that could be a formula"


def test_csv_heads_are_cells_too() -> None:
    read = list(csv.reader(io.StringIO(write_rows([{"=a\n,": 1}], [], "csv"), newline="")))
    assert read == [["'=a\n,"], ["1"]]


def test_json_lines_bring_every_cell_back_on_one_line() -> None:
    rows = [{"a": cell, "b": None, "c": [1, {"x": True}]} for cell in ODD]
    text = write_rows(rows, ["a"], "jsonl")
    assert [json.loads(line) for line in text.split("\n")[:-1]] == rows


@pytest.mark.parametrize("cell", ODD)
def test_markdown_keeps_a_cell_in_its_place(cell: str) -> None:
    lines = write_rows([{"a": cell, "b": 1}], ["a", "b"], "md").split("\n")
    assert len(lines) == 4
    row = lines[2]
    assert row.startswith("| ")
    assert row.endswith(" | 1 |")
    bare = row.replace("\\\\", "").replace("\\|", "")
    assert bare.count("|") == 3
    assert "\x1b" not in row
    assert "\u202e" not in row


def test_a_terminal_shows_straight_columns_and_obeys_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_rows([{"a": cell, "b": "end"} for cell in ODD], ["a", "b"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ODD) + 1
    assert {out.columns(line[: -len("end")]) for line in lines[1:]} == {
        out.columns(lines[0][: lines[0].index("b")])
    }
    assert not any(mark in "".join(lines) for mark in ("\x1b", "\x9b", "\r", "\u202e", "\t"))


def test_columns_are_counted_as_a_terminal_counts_them() -> None:
    assert [out.columns(text) for text in ("abc", "漢字", "e\u0301", "", "\uff1d")] == [
        3,
        4,
        1,
        0,
        2,
    ]
