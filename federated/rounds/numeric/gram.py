"""Inner products of updates: all that a rule need know of them, and small.

A reducer adds up the products of its part, the coordinator those of the parts: they are sums over
elements. Products of a block of 64 Ki elements are float32, their sum is float64: 1.3e-5 off
(federated-experiments E2). **On updates only: of nearly equal states the differences cancel.**
Source: docs/specs/rounds.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric.kernels import row_length, slices

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from federated.rounds.numeric.engines import F32, F64

BLOCK: Final = 65_536


def gram(rows: Sequence[F32]) -> F64:
    """G_ij = <row_i, row_j>.

    Args:
        rows: K >= 1 arrays float32[n]; in a round row 0 is the reference.

    Returns:
        float64[K, K], symmetric. A row that holds NaN or infinity, or whose squares overflow,
        makes its own line and column not finite and no other.

    Raises:
        UsageError: as `kernels.row_length`.
    """
    n = row_length(rows)
    total = np.zeros((len(rows), len(rows)))
    stacked = np.empty((len(rows), min(n, BLOCK)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in slices(n, BLOCK):
            block = stacked[:, : part.stop - part.start]
            for line, row in zip(block, rows, strict=True):
                line[:] = row[part]
            total += block @ block.T
    return total


def diagonal(rows: Sequence[F32]) -> F64:
    """G_ii alone: the squared norms, which is all that mean, median and trimmed need.

    Args:
        rows: K >= 1 arrays float32[n].

    Returns:
        float64[K]; not finite where the row is not, or where its squares overflow.

    Raises:
        UsageError: as `kernels.row_length`.
    """
    n = row_length(rows)
    total = np.zeros(len(rows))
    with np.errstate(over="ignore", invalid="ignore"):
        for part in slices(n, BLOCK):
            for i, row in enumerate(rows):
                total[i] += np.dot(row[part], row[part])
    return total


def lower_triangle(matrix: F64) -> F64:
    """What a reducer sends: rows of the lower triangle one after the other, float64[K (K+1) / 2].

    Raises:
        UsageError: not a square.
    """
    _check_square(matrix)
    lower: F64 = matrix[np.tril_indices(len(matrix))]
    return lower


def from_lower_triangle(values: F64, count: int) -> F64:
    """The symmetric float64[count, count] of `lower_triangle`.

    Raises:
        UsageError: not count (count + 1) / 2 values.
    """
    if values.shape != (count * (count + 1) // 2,):
        raise UsageError(f"{len(values)} values are no triangle of {count}")
    matrix = np.empty((count, count))
    rows, columns = np.tril_indices(count)
    matrix[rows, columns] = values
    matrix[columns, rows] = values
    return matrix


def owner_matrix(owners: Sequence[Hashable]) -> F64:
    """B of the means of each owner's rows: float64[M, K], owners in the order they first appear.

    The products of the means are B G B', and coefficients `a` of the means are `a B` of the rows.
    """
    places: dict[Hashable, int] = {}
    for owner in owners:
        places.setdefault(owner, len(places))
    matrix = np.zeros((len(places), len(owners)))
    for column, owner in enumerate(owners):
        matrix[places[owner], column] = 1
    return _averaging(matrix)


def bucket_matrix(order: Sequence[int], size: int) -> F64:
    """B of the means of `size` rows each, taken in `order`: float64[ceil(K / size), K].

    Args:
        order: a permutation of range(K).
        size: >= 1; the last bucket may hold fewer.

    Raises:
        UsageError: no permutation, or an empty bucket.
    """
    if sorted(order) != list(range(len(order))) or size < 1:
        raise UsageError("buckets need a permutation and a size")
    matrix = np.zeros((-(-len(order) // size), len(order)))
    for place, column in enumerate(order):
        matrix[place // size, column] = 1
    return _averaging(matrix)


def merged(matrix: F64, groups: F64) -> F64:
    """B G B': the products of rows that are means of rows.

    Args:
        matrix: float64[K, K].
        groups: float64[M, K].

    Raises:
        UsageError: shapes that do not fit.
    """
    _check_square(matrix)
    if groups.ndim != 2 or groups.shape[1] != len(matrix):
        raise UsageError(f"groups {groups.shape} of {len(matrix)} rows")
    return groups @ matrix @ groups.T


def _averaging(members: F64) -> F64:
    """Each row of zeros and ones over its sum."""
    means: F64 = members / np.maximum(members.sum(axis=1, keepdims=True), 1)
    return means


def _check_square(matrix: F64) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise UsageError(f"products are a square, not {matrix.shape}")
