"""A job's rows as a table, CSV, JSON Lines or Markdown.

What peers answered is foreign: a terminal obeys nothing of it, a spreadsheet computes none of it.
"""

from __future__ import annotations

import json

from daemon.cli import out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.json_types import Json

FORMATS = ("table", "csv", "jsonl", "md")
CELL_WIDTH = 48
# A spreadsheet takes a cell that begins so for a formula (OWASP, CSV injection); some take the
# full-width signs, too.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def names_of(rows: Sequence[dict[str, Json]], declared: Sequence[str]) -> list[str]:
    """Columns in order: those declared, then others as they come."""
    found = dict.fromkeys(declared)
    for row in rows:
        found.update(dict.fromkeys(row))
    return list(found)


def cell_text(cell: Json) -> str:
    """A cell as text."""
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)


def write_rows(rows: Sequence[dict[str, Json]], declared: Sequence[str], form: str) -> str:
    """The rows in a format of `FORMATS` other than `table`."""
    names = names_of(rows, declared)
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if form == "csv":
        lines = [[_csv_cell(name) for name in names]]
        lines += [[_csv_cell(row.get(name)) for name in names] for row in rows]
        return "".join(",".join(line) + "\n" for line in lines)
    head = "| " + " | ".join(_md_cell(name) for name in names) + " |\n"
    rule = "|" + " --- |" * len(names) + "\n"
    body = "".join(
        "| " + " | ".join(_md_cell(row.get(name)) for name in names) + " |\n" for row in rows
    )
    return head + rule + body


def show_rows(rows: Sequence[dict[str, Json]], declared: Sequence[str]) -> None:
    """Print the rows for a person."""
    names = names_of(rows, declared)
    out.table(
        [out.one_line(name, CELL_WIDTH) for name in names],
        [[out.one_line(cell_text(row.get(name)), CELL_WIDTH) for name in names] for row in rows],
    )


def _csv_cell(cell: Json) -> str:
    text = cell_text(cell)
    if isinstance(cell, str) and text.startswith(FORMULA):
        text = "'" + text
    # RFC 4180. The standard writer leaves a lone carriage return bare, which readers take for the
    # end of a row.
    if any(mark in text for mark in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _md_cell(cell: Json) -> str:
    text = " ".join(out.clean(cell_text(cell)).split())
    for mark in ("\\", "|", "`", "<", "[", "*", "_"):
        text = text.replace(mark, "\\" + mark)
    return text
