"""A person's numbers or items: a CSV column, a key of JSON Lines, one a line; numbers also as .npy.

Read in the command line's process: the daemon reads no files for others.
"""

from __future__ import annotations

import json
import math
import sys
from array import array

from daemon.cli import out
from daemon.cli.client import CliError
from federated.rounds.statistics.limits import ITEMS_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

VALUES_MAX = 500_000
"""What one call takes."""
PEERS_MIN, PEERS_MAX = 2, 64
"""Members of a round."""


def read_numbers(
    path: str, column: str | None, weight_column: str | None = None
) -> tuple[array[float], array[float] | None]:
    """Values, and weights if a column of them is named.

    Args:
        path: the file; `-` for standard input.
        column: CSV column by name or number from 1, or key of JSON Lines; None: a number a line, or
            the only column.
        weight_column: likewise.

    Raises:
        CliError: the file cannot be read, or line so-and-so holds no number.
    """
    if path.endswith(".npy"):
        if column is not None or weight_column is not None:
            raise _bad(f"{path} is an array: --column and --weight-column are for tables")
        return _npy(path), None
    try:
        if path == "-":
            return _collect(sys.stdin, path, column, weight_column)
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _collect(file, path, column, weight_column)
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}", 4, name="not_found") from None
    except UnicodeDecodeError:
        raise _bad(f"{path} is no text: give CSV, JSON Lines, a number a line, or .npy") from None


def read_items(path: str, column: str | None) -> list[str]:
    """Items as text: a line each, or a column's cells; blank ones are left out.

    Args:
        path: the file; `-` for standard input.
        column: CSV column by name or number from 1, or key of JSON Lines; None: whole lines.

    Raises:
        CliError: the file cannot be read, or holds no items, or too many.
    """
    try:
        if path == "-":
            return _items(sys.stdin, path, column)
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _items(file, path, column)
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}", 4, name="not_found") from None
    except UnicodeDecodeError:
        raise _bad(f"{path} is no text: give an item a line, CSV or JSON Lines") from None


def _items(file: TextIO, path: str, column: str | None) -> list[str]:
    if column is None:
        texts: Iterable[str] = file
    else:
        texts = (cell for _, cell, _ in _cells(file, path, column, None))
    found = []
    for text in texts:
        if item := text.strip():
            found.append(item)
        if len(found) > ITEMS_MAX:
            raise _bad(
                f"{path} has more than {ITEMS_MAX:,} items: take a sample of them (shares stay the"
                " same, noise grows)"
            )
    if not found:
        raise _bad(f"{path} has no items" + ("" if column is None else " in that column"))
    return found


def above_0(text: str) -> float:
    """An option's value; JSON has neither NaN nor infinity.

    Raises:
        ArgumentTypeError: it is no finite number above 0.
    """
    from argparse import ArgumentTypeError

    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def peer_count(text: str) -> int:
    """How many machines to wait for.

    Raises:
        ArgumentTypeError: a round has 2 to 64 members, and this is another number but 0.
    """
    from argparse import ArgumentTypeError

    if text.isdecimal() and (int(text) == 0 or PEERS_MIN <= int(text) <= PEERS_MAX):
        return int(text)
    raise ArgumentTypeError(
        f"{text!r}: {PEERS_MIN} to {PEERS_MAX} machines, this one included, or 0 for who comes"
    )


def _bad(message: str) -> CliError:
    return CliError(message, 2, name="invalid_params")


def _collect(
    file: TextIO, path: str, column: str | None, weight_column: str | None
) -> tuple[array[float], array[float] | None]:
    values, weights, empty = array("d"), array("d"), 0
    cells = _cells(file, path, column, weight_column)
    for line, value, weight in cells:
        if value.strip() == "" or (weight is not None and weight.strip() == ""):
            empty += 1
            continue
        values.append(_number(value, path, line))
        if weight is not None:
            weights.append(_number(weight, path, line))
            if weights[-1] <= 0:
                raise _bad(f"{path}, line {line}: a weight is above 0, not {weights[-1]:g}")
        if len(values) > VALUES_MAX:
            raise _bad(
                f"{path} has more than {VALUES_MAX:,} values: take a sample, or several calls with"
                " another --name each"
            )
    if not values:
        raise _bad(f"{path} has no values" + ("" if column is None else " in that column"))
    if empty:
        out.note(f"{empty:,} empty cells are left out")
    return values, weights if weight_column is not None else None


def _number(text: str, path: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        shown = text.strip()[:40]
        comma = (
            " (write a decimal point, not a comma)" if _is_number(shown.replace(",", ".")) else ""
        )
        raise _bad(f"{path}, line {line}: {shown!r} is no number{comma}") from None
    if not math.isfinite(value):
        raise _bad(f"{path}, line {line}: {text.strip()[:40]!r} is not finite")
    return value


def _cells(
    file: TextIO, path: str, column: str | None, weight_column: str | None
) -> Iterator[tuple[int, str, str | None]]:
    """(line, value, weight) as text."""
    lines = enumerate(file, 1)
    first = next(((number, text) for number, text in lines if text.strip()), None)
    if first is None:
        return iter(())
    rest = _after(first, lines)
    if first[1].lstrip().startswith("{"):
        return _from_json(rest, path, column, weight_column)
    return _from_csv(rest, path, column, weight_column)


def _after(first: tuple[int, str], lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from lines


def _from_json(
    lines: Iterator[tuple[int, str]], path: str, column: str | None, weight_column: str | None
) -> Iterator[tuple[int, str, str | None]]:
    if column is None:
        raise _bad(f"{path} holds JSON Lines: name the key with --column")
    for number, text in lines:
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            raise _bad(f"{path}, line {number}: not a JSON object") from None
        if not isinstance(row, dict) or column not in row:
            raise _bad(f"{path}, line {number}: no key {column!r}")
        if weight_column is not None and weight_column not in row:
            raise _bad(f"{path}, line {number}: no key {weight_column!r}")
        weight = None if weight_column is None else _text(row[weight_column])
        yield number, _text(row[column]), weight


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _from_csv(
    lines: Iterator[tuple[int, str]], path: str, column: str | None, weight_column: str | None
) -> Iterator[tuple[int, str, str | None]]:
    import csv

    # Only those who read a CSV file wait for this.
    counted = _Counted(lines)
    reader = csv.reader(counted, delimiter="\t" if path.endswith(".tsv") else ",")
    rows = _rows(reader, path, counted)
    head = next(rows)
    place, named = _place(head, column, path)
    weight_place, weight_named = (
        (None, False) if weight_column is None else _place(head, weight_column, path)
    )
    if not (named or weight_named or (column is None and not _is_number(head[place]))):
        yield counted.line, *_pair(head, place, weight_place, path, counted.line)
    for row in rows:
        if row:
            yield counted.line, *_pair(row, place, weight_place, path, counted.line)


def _rows(reader: Iterable[list[str]], path: str, counted: _Counted) -> Iterator[list[str]]:
    import csv

    try:
        yield from reader
    except csv.Error as error:
        raise _bad(f"{path}, line {counted.line}: {error}") from None


class _Counted:
    """Lines, and the number of the last one."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self.line = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> str:
        self.line, text = next(self._lines)
        return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _place(head: list[str], column: str | None, path: str) -> tuple[int, bool]:
    """Where a column is, and whether the first line names it."""
    names = [name.strip() for name in head]
    if column is None:
        if len(names) > 1:
            raise _bad(f"{path} has {len(names)} columns: name one with --column")
        return 0, False
    numbers_alone = all(_is_number(name) or not name for name in names)
    # In a table without a head a cell of the first line may be "2" as well.
    if column in names and not numbers_alone:
        return names.index(column), True
    if column.isdecimal() and 1 <= int(column) <= len(names):
        return int(column) - 1, not numbers_alone
    if column in names:  # a head of years
        return names.index(column), True
    shown = ", ".join(out.clean(name) for name in names[:10])
    raise _bad(f"{path} has no column {column!r}; it has: {shown}")


def _pair(
    row: list[str], place: int, weight_place: int | None, path: str, line: int
) -> tuple[str, str | None]:
    wanted = max(place, weight_place or 0)
    if len(row) <= wanted:
        raise _bad(f"{path}, line {line}: only {len(row)} columns")
    return row[place], None if weight_place is None else row[weight_place]


def _npy(path: str) -> array[float]:
    import numpy as np

    try:
        # Mapped, so that an array of many gigabytes is refused before it is read.
        loaded = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}", 4, name="not_found") from None
    except (ValueError, TypeError, EOFError) as error:
        raise _bad(f"{path} is no array of numbers: {error}") from None
    if loaded.dtype.kind not in "biuf":
        raise _bad(f"{path} is no array of plain numbers, but one of {loaded.dtype}")
    if not 0 < loaded.size <= VALUES_MAX:
        raise _bad(f"{path} has {loaded.size:,} values: give 1 to {VALUES_MAX:,} a call")
    flat = np.asarray(loaded, np.float64).ravel()
    bad = np.flatnonzero(~np.isfinite(flat))
    if len(bad):
        raise _bad(f"{path}, value {int(bad[0]) + 1}: not finite")
    return array("d", flat.tolist())
