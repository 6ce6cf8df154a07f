"""What the cells of an answer are: typing them at the gate, and telling whether two say the same.

An answer comes from a peer, or from a model that was asked for a table. Fields nobody asked for are
dropped; a cell of the wrong type makes its row missing if the column is required, and is null
otherwise. Two answers are compared column by column: text without regard to spaces, floats and
dates within a tolerance, links in one spelling, lists as sets. Source: docs/specs/jobs.md s.8.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import TYPE_CHECKING, Final
from unicodedata import is_normalized, normalize
from urllib.parse import urlsplit, urlunsplit

from federated.errors import PlanError
from federated.jobs.canon import encode_normal, normal

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from federated.jobs.types import Column, Row

NAME_CHARACTERS_MAX: Final = 128
ENUM_CHARACTERS_MAX: Final = 4096
PAIRS: Final = "pairs"
"""The one column of an answer that is to be counted or summed: [[key, number], ...]."""
FLOAT_TOL: Final = 1e-6
"""Relative difference of two floats that still are one answer (tasks.md s.8)."""
URL_SCHEMES: Final = {"http", "https"}
_PORTS: Final = {"http": 80, "https": 443}
_SPACE: Final = re.compile(r"\s+")
_BAD: Final = object()
_LONG: Final = object()
NUMBERS: Final = frozenset({"int", "float"})


def check_columns(columns: Sequence[Column]) -> None:
    """Refuse columns that contradict themselves.

    Raises:
        PlanError: `bad_spec`, naming the column.
    """
    names = set()
    for i, column in enumerate(columns):
        path = f"columns[{i}]"
        if not 0 < len(column.name) <= NAME_CHARACTERS_MAX or not column.name.isprintable():
            raise PlanError("bad_spec", "a name has 1 to 128 printable characters", path=path)
        if not is_normalized("NFC", column.name):
            raise PlanError("bad_spec", "a name is text in NFC, as answers are", path=path)
        if column.name in names:
            raise PlanError("bad_spec", f"two columns are called {column.name!r}", path=path)
        names.add(column.name)
        _check_enum(column, path)
        _check_range(column, path)
        if column.tol is not None and (column.tol < 0 or not math.isfinite(column.tol)):
            raise PlanError("bad_spec", "tol is 0 or more", path=path)
        if column.tol is not None and column.type not in {"float", "date"}:
            raise PlanError("bad_spec", "only float and date have a tolerance", path=path)
        if column.max_len < 1:
            raise PlanError("bad_spec", "max_len is 1 or more", path=path)


def _check_enum(column: Column, path: str) -> None:
    """Words that no answer could be, or that are one, are a mistake of the spec."""
    if (column.type == "enum") != bool(column.enum):
        raise PlanError("bad_spec", "type enum and a list of words go together", path=path)
    if len(set(column.enum)) != len(column.enum):
        raise PlanError("bad_spec", "a word of enum is named twice", path=path)
    if any(len(word) > ENUM_CHARACTERS_MAX for word in column.enum):
        raise PlanError(
            "too_large", f"a word has at most {ENUM_CHARACTERS_MAX} characters", path=path
        )
    if not all(is_normalized("NFC", word) for word in column.enum):
        raise PlanError("bad_spec", "words of enum are text in NFC, as answers are", path=path)


def _check_range(column: Column, path: str) -> None:
    """A range that nothing is in, NaN included, would make every row missing."""
    ends = [end for end in (column.min, column.max) if end is not None]
    if ends and column.type not in NUMBERS:
        raise PlanError("bad_spec", "only numbers have a range", path=path)
    if not all(math.isfinite(end) for end in ends):
        raise PlanError("bad_spec", "min and max are finite numbers", path=path)
    if len(ends) == 2 and ends[0] > ends[1]:
        raise PlanError("bad_spec", "min is above max", path=path)


class Gate:
    """What types the answers of one job.

    Args:
        columns: checked ones; none lets every row pass.
        pairs: whether answers are pairs to be counted or summed, whatever the columns: one that is
            not would spoil the reduction of all.
    """

    __slots__ = ("_columns", "_pairs")

    def __init__(self, columns: Sequence[Column], *, pairs: bool = False) -> None:
        self._columns = [(column, _READERS[column.type]) for column in columns]
        self._pairs = pairs

    def row(self, row: object) -> tuple[Row | None, str]:
        """An answer as its columns say it, or None and why it cannot be."""
        if type(row) is not dict:
            return None, "bad_type"
        if self._pairs and not _are_pairs(row.get(PAIRS)):
            return None, "bad_type"
        if not self._columns or self._pairs:
            try:
                found = normal(row)
            except PlanError:
                return None, "bad_value"
            assert isinstance(found, dict)
            return found, ""
        typed: Row = {}
        for column, read in self._columns:
            cell = row.get(column.name)
            value = _BAD if cell is None else read(column, cell)
            if value is _BAD or value is _LONG:
                if column.required:
                    return None, _why(cell, value)
                value = None
            typed[column.name] = value
        return typed, ""


def _why(cell: object, value: object) -> str:
    if cell is None:
        return "not_returned"
    return "too_large" if value is _LONG else "bad_type"


def _are_pairs(found: object) -> bool:
    return type(found) is list and all(
        type(pair) is list
        and len(pair) == 2
        and type(pair[0]) is str
        and type(pair[1]) in {int, float}
        for pair in found
    )


def _read_str(column: Column, cell: object) -> object:
    if type(cell) is not str:
        return _BAD
    if len(cell) > column.max_len:
        return _LONG
    try:
        return normal(cell)
    except PlanError:
        return _BAD


def _in_range(column: Column, value: float) -> object:
    low = column.min is None or value >= column.min
    high = column.max is None or value <= column.max
    return value if low and high else _BAD


def _read_int(column: Column, cell: object) -> object:
    if type(cell) is float and cell.is_integer():
        cell = int(cell)
    if type(cell) is not int or abs(cell) > 2**53:
        return _BAD
    return _in_range(column, cell)


def _read_float(column: Column, cell: object) -> object:
    if type(cell) is not float and type(cell) is not int:
        return _BAD
    try:
        value = normal(cell)
    except PlanError:
        return _BAD
    assert isinstance(value, int | float)
    return _in_range(column, value)


def _read_bool(_column: Column, cell: object) -> object:
    return cell if type(cell) is bool else _BAD


def _read_date(_column: Column, cell: object) -> object:
    if type(cell) is not str or len(cell) > 40:
        return _BAD
    try:
        return dt.date.fromisoformat(cell[:10]).isoformat() if _date_like(cell) else _BAD
    except ValueError:
        return _BAD


def _date_like(text: str) -> bool:
    return len(text) == 10 or (len(text) > 10 and text[10] in "T ")


def _read_url(column: Column, cell: object) -> object:
    if type(cell) is not str:
        return _BAD
    if len(cell) > column.max_len:
        return _LONG
    return normal_url(normalize("NFC", cell)) or _BAD


def normal_url(text: str) -> str:
    """One spelling of a link; empty if it is none."""
    try:
        parts = urlsplit(text.strip())
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        return ""
    if scheme not in URL_SCHEMES or not host or "@" in parts.netloc:
        return ""
    if any(c.isspace() or not c.isprintable() for c in text.strip()):
        return ""
    host = f"[{host}]" if ":" in host else host
    netloc = host if port in {None, _PORTS[scheme]} else f"{host}:{port}"
    return urlunsplit((scheme, netloc, parts.path.rstrip("/"), parts.query, ""))


def _read_enum(column: Column, cell: object) -> object:
    return word if type(cell) is str and (word := _word(cell)) in column.enum else _BAD


def _word(text: str) -> str:
    return text if text.isascii() else normalize("NFC", text)


def _read_list(column: Column, cell: object) -> object:
    if type(cell) is not list:
        return _BAD
    if len(cell) > column.max_len:
        return _LONG
    if not all(type(item) is str for item in cell):
        return _BAD
    try:
        return normal(cell)
    except PlanError:
        return _BAD


_READERS: Final[dict[str, Callable[[Column, object], object]]] = {
    "str": _read_str,
    "int": _read_int,
    "float": _read_float,
    "bool": _read_bool,
    "date": _read_date,
    "url": _read_url,
    "enum": _read_enum,
    "list[str]": _read_list,
}


def equal_cells(column: Column | None, a: object, b: object) -> bool:
    """Whether two typed cells are one answer; a column of None compares canonical forms."""
    if a is None or b is None:
        return a is b
    if column is not None and column.type == "float":
        assert isinstance(a, int | float)
        assert isinstance(b, int | float)
        tol = FLOAT_TOL if column.tol is None else column.tol
        return abs(a - b) <= tol * max(abs(a), abs(b))
    if column is not None and column.type == "date" and column.tol:
        days = dt.date.fromisoformat(str(a)) - dt.date.fromisoformat(str(b))
        return abs(days.days) <= column.tol
    return vote_key(column, a) == vote_key(column, b)


def vote_key(column: Column | None, cell: object) -> Hashable:
    """What equal cells have in common, where equality needs no tolerance."""
    if type(cell) is str:
        return _SPACE.sub(" ", cell).strip()
    if column is not None and column.type == "list[str]" and type(cell) is list:
        return frozenset(_SPACE.sub(" ", str(item)).strip() for item in cell)
    return encode_normal(cell)
