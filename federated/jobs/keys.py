"""What names a row of a table: its key columns, or its place. Source: docs/specs/jobs.md s.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.errors import PlanError
from federated.jobs.canon import encode_normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.jobs.types import JobSpec, Row


def row_keys(spec: JobSpec, rows: Sequence[Row]) -> tuple[list[bytes], list[int]]:
    """Keys of the rows to keep, and their indices.

    Args:
        spec: its key columns, and what to do with a key that comes twice.
        rows: in canonical values.

    Raises:
        PlanError: `duplicate_key`, naming both rows; `bad_spec` for a row without a key column.
    """
    if not spec.key_columns:
        return [b"%d" % k for k in range(len(rows))], list(range(len(rows)))
    first: dict[bytes, int] = {}
    for k, row in enumerate(rows):
        for name in spec.key_columns:
            if row.get(name) is None:
                raise PlanError("bad_spec", "a key column is empty", path=f"rows[{k}].{name}")
        key = encode_normal([row[name] for name in spec.key_columns])
        if key not in first:
            first[key] = k
        elif spec.on_duplicate == "error":
            raise PlanError(
                "duplicate_key",
                f"the same key as rows[{first[key]}]; `on_duplicate: first` keeps that one",
                path=f"rows[{k}]",
            )
    return list(first), list(first.values())
