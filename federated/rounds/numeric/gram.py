"""Inner products of updates: all that a rule need know of them, and small.

A reducer adds up the products of its part, the coordinator those of the parts: they are sums over
elements. Products of a block of 64 Ki elements are float32, their sum is float64: 1.3e-5 off
(federated-experiments E2). **On updates only: of nearly equal states the differences cancel.**
Source: docs/specs/rounds.md.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, Protocol, cast

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric import engines
from federated.rounds.numeric.kernels import row_length, slices
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from federated.rounds.numeric.engines import F32, F64, Engine

BLOCK: Final = 65_536
SQUARE_MAX: Final = 1e60
"""Float32 rows have no square as large; below it no rule's arithmetic overflows."""
PRODUCT_TOLERANCE: Final = 1e-3
"""Relative to the norms: a hundred times the error of float32 products (E2)."""
SQUARE_LOST: Final = 1e-28
"""What a square may lack because float32 rounded its elements' to 0: 10^9 of at most 1.2e-38."""
TILE_BLOCK: Final = 16_384
"""64 KiB a row: sixteen rows stay in a cache of 1 MiB while each is read four times."""


def gram(rows: Sequence[F32] | F32, *, engine: Engine = "auto") -> F64:
    """G_ij = <row_i, row_j>.

    Args:
        rows: K >= 1 arrays float32[n], or float32[K, n], which saves numpy a copy of each block;
            in a round row 0 is the reference.
        engine: `auto`, `numpy` or `numba`; they differ in the last bits.

    Returns:
        float64[K, K], symmetric. A row that holds NaN or infinity, or whose squares overflow, has a
        square that is not finite, and spoils no product of two other rows.

    Raises:
        UsageError: as `kernels.row_length`; scipy was asked for.
    """
    lines = list(rows)
    n = row_length(lines)
    if engines.for_loops(engine, n * len(lines)) == "numba":
        return _gram_numba(lines)
    total = np.zeros((len(lines), len(lines)))
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _stacked(rows, n):
            total += block @ block.T
    return total


def _stacked(rows: Sequence[F32] | F32, n: int) -> Iterator[F32]:
    """float32[K, at most BLOCK]: views of rows that are one array, else a copy that is reused."""
    if isinstance(rows, np.ndarray):
        for part in slices(n, BLOCK):
            yield rows[:, part]
        return
    copied = np.empty((len(rows), min(n, BLOCK)), np.float32)
    for part in slices(n, BLOCK):
        block = copied[:, : part.stop - part.start]
        for line, row in zip(block, rows, strict=True):
            line[:] = row[part]
        yield block


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


def verify_products(matrix: F64) -> None:
    """Refuse products that no rows have, before a reducer's word reaches a rule.

    A row that is not finite has a square that is not; whatever is said of it does not matter, for
    the rules leave it out. Of the others |G_ij| <= sqrt(G_ii G_jj), a little beyond it for float32.
    Row 0, the reference, was applied once and is finite.

    Args:
        matrix: float64[K, K] of a part, symmetric, or its diagonal float64[K].

    Raises:
        DecodeError: a negative square, a reference that is not finite, a product that is not finite
            though both squares are, or one that is larger than both rows together allow.
        UsageError: neither a square matrix nor a diagonal.
    """
    if matrix.ndim != 1:
        _check_square(matrix)
    squares = matrix if matrix.ndim == 1 else np.diagonal(matrix)
    if (squares < 0).any() or (len(squares) and not squares[0] < SQUARE_MAX):
        raise DecodeError("a square that is negative, or a reference that is not finite")
    if matrix.ndim == 1:
        return
    finite = np.flatnonzero(np.isfinite(squares))
    among, norms = matrix[np.ix_(finite, finite)], np.sqrt(squares[finite] + SQUARE_LOST)
    # Norms, not squares, are multiplied: it cannot overflow. NaN fails the comparison too.
    if not (np.abs(among) <= np.outer(norms, norms) * (1 + PRODUCT_TOLERANCE)).all():
        raise DecodeError("products that no rows have")


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


# --- numba: four rows by four rows a pass --------------------------------------------------------


class _Tile(Protocol):
    def __call__(
        self, a: F32, b: F32, c: F32, d: F32, e: F32, f: F32, g: F32, h: F32, total: F64
    ) -> None: ...


def _tile(a: F32, b: F32, c: F32, d: F32, e: F32, f: F32, g: F32, h: F32, total: F64) -> None:
    """Add the sixteen products of rows a..d with rows e..h to `total`: eight reads, not 32."""
    zero = np.float32(0)
    ae = af = ag = ah = be = bf = bg = bh = zero
    ce = cf = cg = ch = de = df = dg = dh = zero
    for i in range(a.shape[0]):
        at_e, at_f, at_g, at_h = e[i], f[i], g[i], h[i]
        ae, af, ag, ah = ae + a[i] * at_e, af + a[i] * at_f, ag + a[i] * at_g, ah + a[i] * at_h
        be, bf, bg, bh = be + b[i] * at_e, bf + b[i] * at_f, bg + b[i] * at_g, bh + b[i] * at_h
        ce, cf, cg, ch = ce + c[i] * at_e, cf + c[i] * at_f, cg + c[i] * at_g, ch + c[i] * at_h
        de, df, dg, dh = de + d[i] * at_e, df + d[i] * at_f, dg + d[i] * at_g, dh + d[i] * at_h
    sums = (ae, af, ag, ah, be, bf, bg, bh, ce, cf, cg, ch, de, df, dg, dh)
    for place in range(16):
        total[place // 4, place % 4] += sums[place]


@functools.cache
def _compiled_tile() -> _Tile:
    return cast("_Tile", engines.compiler(fast=True)(_tile))


def _gram_numba(rows: Sequence[F32]) -> F64:
    tile, count = _compiled_tile(), len(rows)
    full = [*rows, *[rows[-1]] * (-count % 4)]  # the last row again and again; cut off below
    total = np.zeros((len(full), len(full)))
    for part in slices(len(rows[0]), TILE_BLOCK):
        blocks = [row[part] for row in full]
        for i in range(0, len(full), 4):
            for j in range(0, i + 1, 4):
                a, b, c, d = blocks[i : i + 4]
                e, f, g, h = blocks[j : j + 4]
                tile(a, b, c, d, e, f, g, h, total[i : i + 4, j : j + 4])
    lower = np.tril(total[:count, :count])
    return lower + np.tril(lower, -1).T


def _check_square(matrix: F64) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise UsageError(f"products are a square, not {matrix.shape}")
