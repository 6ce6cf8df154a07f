"""From answered rows to the result: lists, tables, counts, sums.

Reads the rows in their order and nothing else, so the result is the same whichever engine and peers
did the work, and can be computed again after a row was reopened. Whole numbers are added exactly,
floats by `math.fsum`. What a handler reduces is paired up here and combined elsewhere (`staging`).
Source: docs/specs/jobs.md s.2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from federated.errors import PlanError
from federated.jobs.canon import encode_normal
from federated.jobs.columns import PAIRS
from federated.jobs.limits import INT_MAX, REDUCE_BYTES_MAX
from federated.jobs.types import ByHandler, Collect, Count, GroupBy, Sum, Table, TopK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from federated.jobs.types import Reduce, Row


class Reduced(NamedTuple):
    """What became of the answers.

    Attributes:
        rows: in order.
        capped: groups of which not all rows were kept, by their key.
    """

    rows: list[Row]
    capped: dict[str, int]


def reduce_rows(reduce: Reduce, answers: Sequence[Row | None]) -> Reduced:
    """Reduce answered rows; None stands for a row without an answer.

    Raises:
        PlanError: `too_large`, or `bad_value` for answers that are no pairs.
    """
    present = [row for row in answers if row is not None]
    match reduce:
        case Collect() | Table() | ByHandler():
            return Reduced(list(present), {})
        case Count():
            numbers = _numbers(present)
            return Reduced([{"key": k, "count": len(numbers[k])} for k in _sorted(numbers)], {})
        case Sum():
            sums = _sums(present)
            return Reduced([{"key": k, "sum": sums[k]} for k in _sorted(sums)], {})
        case TopK():
            sums = _sums(present)
            order = sorted(_sorted(sums), key=lambda key: -sums[key])
            return Reduced([{"key": k, "sum": sums[k]} for k in order[: max(0, reduce.n)]], {})
        case GroupBy():
            return _grouped(reduce, present)


class Level(NamedTuple):
    """One level of the tree that combines answers pairwise.

    Attributes:
        slots: half as many as below, rounded up; None where a pair is to be combined, and where
            nothing was answered below.
        pairs: what to combine: {"a": row, "b": row}.
        places: the slot of each pair.
    """

    slots: list[Row | None]
    pairs: list[Row]
    places: list[int]


def pair_up(values: Sequence[Row | None]) -> Level:
    """The level above `values`: neighbours in pairs, what has no neighbour as it is.

    The tree's shape depends on the places of the rows alone, never on when or where answers came:
    an operation that is associative but for rounding gives the same on every engine.
    """
    level = Level([], [], [])
    for i in range(0, len(values), 2):
        a, b = values[i], values[i + 1] if i + 1 < len(values) else None
        if a is not None and b is not None:
            level.places.append(len(level.slots))
            level.pairs.append({"a": a, "b": b})
            level.slots.append(None)
        else:
            level.slots.append(a if a is not None else b)
    return level


def _sorted(found: Iterable[str]) -> list[str]:
    return sorted(found)


def pairs_of(row: Row) -> list[tuple[str, int | float]]:
    """The pairs of an answer.

    Raises:
        PlanError: `bad_value`, if it has none.
    """
    pairs = row.get(PAIRS)
    if not isinstance(pairs, list):
        raise PlanError("bad_value", "this reduction needs answers with pairs", path=PAIRS)
    found = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise PlanError("bad_value", "a pair is [text, number]", path=PAIRS)
        number = pair[1]
        if type(number) is not int and type(number) is not float:
            raise PlanError("bad_value", "a pair is [text, number]", path=PAIRS)
        found.append((pair[0], number))
    return found


def _numbers(rows: Iterable[Row]) -> dict[str, list[int | float]]:
    found: dict[str, list[int | float]] = {}
    size = 0
    for row in rows:
        for key, number in pairs_of(row):
            size += len(key) + 16
            if size > REDUCE_BYTES_MAX:
                raise PlanError("too_large", f"more than {REDUCE_BYTES_MAX} bytes to reduce")
            found.setdefault(key, []).append(number)
    return found


def _total(numbers: Sequence[int | float]) -> int | float:
    """A sum that hangs on the values alone, not on whether somebody wrote 2 or 2.0."""
    whole = [int(number) for number in numbers if _is_whole(number)]
    if len(whole) == len(numbers):
        return sum(whole)
    try:
        return math.fsum(numbers)
    except OverflowError:
        raise PlanError("bad_value", "the sum is beyond what a number can say") from None


def _is_whole(number: float) -> bool:
    """Whether the canonical form writes it as a whole number."""
    return type(number) is int or (number.is_integer() and abs(number) <= INT_MAX)


def _sums(rows: Iterable[Row]) -> dict[str, int | float]:
    return {key: _total(numbers) for key, numbers in _numbers(rows).items()}


def _grouped(reduce: GroupBy, rows: Sequence[Row]) -> Reduced:
    groups: dict[str, list[Row]] = {}
    dropped: dict[str, int] = {}
    for row in rows:
        cell = row.get(reduce.by)
        key = cell if isinstance(cell, str) else encode_normal(cell).decode()
        members = groups.setdefault(key, [])
        if len(members) < reduce.cap:
            members.append(row)
        else:
            dropped[key] = dropped.get(key, 0) + 1
    found: list[Row] = [
        {"key": key, "rows": groups[key], "dropped": dropped.get(key, 0)} for key in sorted(groups)
    ]
    return Reduced(found, dropped)
