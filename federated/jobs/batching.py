"""Which rows travel together. Every row is in exactly one batch. Source: docs/specs/jobs.md s.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.errors import PlanError
from federated.jobs.canon import encode_normal
from federated.jobs.limits import BATCH_BYTES_MAX, BATCH_ROWS_MAX
from federated.jobs.types import Auto, ByAttr, Open, PerRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from federated.jobs.types import Batching, Row


def batches(
    batch: Batching, rows: Sequence[Row], sizes: Sequence[int], *, auto: Callable[[], int]
) -> list[list[int]]:
    """Row indices of each task, at most 32 rows and 192 KiB of them.

    Args:
        batch: how.
        rows: the rows.
        sizes: bytes of each in canonical form.
        auto: asked for the rows of a task where the spec leaves it open; `experience` knows.

    Raises:
        PlanError: `bad_spec`, for a column or index there is not, or a size out of range.
    """
    everything = range(len(rows))
    match batch:
        case PerRow():
            return [[k] for k in everything]
        case Auto():
            return _cut(everything, sizes, auto())
        case ByAttr():
            _check_size(batch.max, "batch.max")
            groups = _by_column(rows, batch.column, "batch.column")
            return [part for ks in groups.values() for part in _cut(ks, sizes, batch.max)]
        case Open():
            return _drawn(batch, rows, sizes)


def _check_size(size: int, path: str) -> None:
    if not 1 <= size <= BATCH_ROWS_MAX:
        raise PlanError("bad_spec", f"1 to {BATCH_ROWS_MAX} rows", path=path)


def _by_column(rows: Sequence[Row], column: str, path: str) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for k, row in enumerate(rows):
        found.setdefault(encode_normal(row.get(column)), []).append(k)
    if rows and not any(column in row for row in rows):
        raise PlanError("bad_spec", f"no row has the column {column!r}", path=path)
    return found


def _drawn(batch: Open, rows: Sequence[Row], sizes: Sequence[int]) -> list[list[int]]:
    _check_size(batch.chunk, "batch.chunk")
    taken: set[int] = set()
    found: list[list[int]] = []
    by_value = None if batch.column is None else _by_column(rows, batch.column, "batch.column")
    for i, group in enumerate(batch.groups):
        path = f"batch.groups[{i}]"
        ks: list[int] = []
        for item in group:
            if by_value is not None:
                ks += by_value.get(encode_normal(item), [])
            elif type(item) is int and 0 <= item < len(rows):
                ks.append(item)
            else:
                raise PlanError("bad_spec", f"{item!r} is no index of a row", path=path)
        if len(set(ks)) != len(ks) or taken.intersection(ks):
            raise PlanError("bad_spec", "a row is named twice", path=path)
        taken.update(ks)
        found += _cut(ks, sizes, BATCH_ROWS_MAX)
    rest = [k for k in range(len(rows)) if k not in taken]
    return found + _cut(rest, sizes, batch.chunk)


def _cut(ks: Iterable[int], sizes: Sequence[int], most: int) -> list[list[int]]:
    """Runs of at most `most` rows that fit one item with room to spare."""
    found: list[list[int]] = []
    part: list[int] = []
    size = 0
    for k in ks:
        if part and (len(part) >= most or size + sizes[k] > BATCH_BYTES_MAX * 3 // 4):
            found.append(part)
            part, size = [], 0
        part.append(k)
        size += sizes[k]
    if part:
        found.append(part)
    return found
