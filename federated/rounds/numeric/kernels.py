"""Sums of updates: weighted mean, folding, linear combinations. Nothing is allocated but blocks.

An update is a row: a contiguous, aligned, one-dimensional float32 array. Rows are read a block of
128 KiB (numpy) or 256 KiB at a time, so that every element comes from memory once and the sum stays
in the cache. All kernels work element by element: a caller that must be able to stop between calls
them on `slices(n)` of the rows.
Source: federated-experiments E1 (docs/specs/rounds.md).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric import engines
from federated.rounds.numeric.limits import WEIGHT_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from federated.rounds.numeric.engines import F32, F64, Engine, Part

SLICE_ITEMS: Final = 30 * 65_536
"""Elements of a slice: 7.9 MB, under the 8 MB after which a worker looks whether to go on, and
whole blocks of every kernel and codec."""
NUMPY_BLOCK: Final = 32_768
"""128 KiB: the sum and the scratch of a block stay in a second-level cache of 512 KiB (E1)."""
BLAS_BLOCK: Final = 65_536
"""256 KiB: no scratch, and fewer calls (E1)."""


def slices(n: int, items_max: int = SLICE_ITEMS) -> Iterator[Part]:
    """Slices that cover `range(n)` in order, each of at most `items_max` elements.

    Raises:
        UsageError: n < 0 or items_max < 1.
    """
    if n < 0 or items_max < 1:
        raise UsageError(f"{n} elements in slices of {items_max}")
    for start in range(0, n, items_max):
        yield slice(start, min(n, start + items_max))


def row_length(rows: Sequence[F32]) -> int:
    """Elements of each of `rows`, once they are what every kernel here demands.

    Raises:
        UsageError: no row; one that is not one-dimensional, contiguous, aligned float32 in native
            byte order; rows of different lengths.
    """
    if len(rows) == 0:
        raise UsageError("no rows")
    for row in rows:
        _check_row(row, len(rows[0]) if rows[0].ndim else 0)
    return len(rows[0])


def _check_row(row: F32, n: int) -> None:
    flags = row.flags
    if row.ndim != 1 or row.dtype != np.float32 or not (flags.c_contiguous and flags.aligned):
        raise UsageError(f"a row is contiguous float32[n], not {row.dtype}{list(row.shape)}")
    if len(row) != n:
        raise UsageError(f"rows of {n} and of {len(row)} elements")


def output(out: F32 | None, n: int, rows: Sequence[F32] = ()) -> F32:
    """`out` once it is fit to be written to, or a new float32[n].

    Raises:
        UsageError: wrong shape, dtype or layout; read-only; it overlaps one of `rows`.
    """
    if out is None:
        return np.empty(n, np.float32)
    _check_row(out, n)
    if not out.flags.writeable:
        raise UsageError("the output is read-only")
    if any(np.may_share_memory(out, row) for row in rows):
        raise UsageError("the output overlaps a row")
    return out


def weighted_mean(
    rows: Sequence[F32],
    weights: Sequence[float] | F64,
    out: F32 | None = None,
    *,
    strict: bool = False,
    engine: Engine = "auto",
) -> F32:
    """sum(w_i row_i) / sum(w_i).

    Weights need not be normalised: each is divided by their sum (in float64, correctly rounded) and
    then rounded to float32. A row whose weight is 0 is not read.

    Args:
        rows: K >= 1 arrays float32[n].
        weights: float64[K] within 0..2^53, not all 0.
        out: float32[n] to write to; no part of a row.
        strict: numpy's arithmetic in the order of the rows, bit-equal on all IEEE machines.
        engine: whose arithmetic; see `engines`.

    Returns:
        float32[n]: `out`, or a new array.

    Raises:
        UsageError: as `combine`, `normalised`.
    """
    shares = normalised(weights)
    return combine(rows, shares, out, strict=strict, engine=engine)


def normalised(weights: Sequence[float] | F64) -> F64:
    """`weights` over their sum, which is added without rounding: float64[K].

    Raises:
        UsageError: one is negative, above 2^53 or not finite; all are 0, or none is there.
    """
    given = np.asarray(weights, np.float64)
    if given.ndim != 1 or not ((given >= 0) & (given <= WEIGHT_MAX)).all():
        raise UsageError("weights are within 0..2^53")
    total = math.fsum(given)
    if total == 0:
        raise UsageError("weights without a sum")
    return given / total


def combine(
    rows: Sequence[F32],
    coefficients: Sequence[float] | F64,
    out: F32 | None = None,
    *,
    strict: bool = False,
    engine: Engine = "auto",
) -> F32:
    """sum(c_i row_i), with coefficients as they are.

    A row whose coefficient rounds to 0 in float32 is not read: what was rejected for not being
    finite cannot spoil the sum. If all are 0, so is the result.

    Args:
        rows: K >= 1 arrays float32[n].
        coefficients: float64[K], finite; rounded to float32.
        out: float32[n] to write to; no part of a row.
        strict: numpy's arithmetic in the order of the rows, bit-equal on all IEEE machines.
        engine: whose arithmetic; see `engines`.

    Returns:
        float32[n]: `out`, or a new array.

    Raises:
        UsageError: as `row_length`, `output`, `engines.for_sums`; not one finite coefficient a row.
    """
    n = row_length(rows)
    given = np.asarray(coefficients, np.float64)
    if given.shape != (len(rows),) or not np.isfinite(given).all():
        raise UsageError(f"{len(rows)} rows need as many finite coefficients")
    target = output(out, n, rows)
    factors = given.astype(np.float32)
    if not np.isfinite(factors).all():
        raise UsageError("a coefficient is too large for float32")
    used = [(row, factor) for row, factor in zip(rows, factors, strict=True) if factor != 0]
    if not used:
        target.fill(0)
        return target
    match engines.for_sums(engine, n * len(used), strict=strict):
        case "scipy":
            _combine_scipy(used, target)
        case "numba":
            _combine_numba(used, target)
        case _:
            _combine_numpy(used, target)
    return target


def fold(
    total: F32,
    row: F32,
    weight: float,
    *,
    first: bool = False,
    strict: bool = False,
    engine: Engine = "auto",
) -> None:
    """Add weight * row to `total`, in place; the first fold overwrites `total` with weight row.

    Folding rows one after the other is what `combine` does in one go: with `strict` the two agree
    bit for bit.

    Args:
        total: float32[n], written to; no part of `row`.
        row: float32[n].
        weight: finite; rounded to float32.
        first: whether `total` holds nothing yet.
        strict: numpy's arithmetic.
        engine: whose arithmetic; numba counts as numpy here.

    Raises:
        UsageError: as `row_length`, `output`, `engines.for_sums`; a weight that is not finite.
    """
    n = row_length([row])
    output(total, n, [row])
    if not math.isfinite(weight) or not math.isfinite(np.float32(weight)):
        raise UsageError("a weight is finite")
    factor = np.float32(weight)
    if first:
        np.multiply(row, factor, out=total)
    elif factor == 1:
        np.add(total, row, out=total)
    elif engines.for_sums(engine, n, strict=strict) == "scipy":
        for part in slices(n, BLAS_BLOCK):
            _saxpy()(row[part], total[part], a=float(factor))
    else:
        _add_scaled(total, row, factor, np.empty(min(n, NUMPY_BLOCK), np.float32))


def _add_scaled(total: F32, row: F32, factor: np.float32, scratch: F32) -> None:
    for part in slices(len(total), NUMPY_BLOCK):
        block = total[part]
        scaled = scratch[: len(block)]
        np.multiply(row[part], factor, out=scaled)
        np.add(block, scaled, out=block)


def _combine_numpy(used: Sequence[tuple[F32, np.float32]], target: F32) -> None:
    (head, head_factor), *others = used
    scratch = np.empty(min(len(target), NUMPY_BLOCK), np.float32)
    for part in slices(len(target), NUMPY_BLOCK):
        block = target[part]
        scaled = scratch[: len(block)]
        np.multiply(head[part], head_factor, out=block)
        for row, factor in others:
            np.multiply(row[part], factor, out=scaled)
            np.add(block, scaled, out=block)


def _saxpy() -> engines.Saxpy:
    found = engines.saxpy()
    assert found is not None, "for_sums said that it is there"
    return found


def _combine_scipy(used: Sequence[tuple[F32, np.float32]], target: F32) -> None:
    (head, head_factor), *others = used
    saxpy = _saxpy()
    scaled = [(row, float(factor)) for row, factor in others]
    for part in slices(len(target), BLAS_BLOCK):
        block = target[part]
        np.multiply(head[part], head_factor, out=block)
        for row, factor in scaled:
            saxpy(row[part], block, a=factor)


# --- numba: four rows a pass --------------------------------------------------------------------


class _One(Protocol):
    def __call__(self, total: F32, row: F32, factor: np.float32) -> None: ...


class _Four(Protocol):
    def __call__(self, total: F32, a: F32, b: F32, c: F32, d: F32, factors: F32) -> None: ...


class _Compiled(NamedTuple):
    one: _One
    four: _Four


def _one(total: F32, row: F32, factor: np.float32) -> None:
    for i in range(total.shape[0]):
        total[i] += factor * row[i]


def _four(total: F32, a: F32, b: F32, c: F32, d: F32, factors: F32) -> None:
    w, x, y, z = factors
    for i in range(total.shape[0]):
        total[i] += w * a[i] + x * b[i] + y * c[i] + z * d[i]


@functools.cache
def _compiled() -> _Compiled:
    compiled = engines.compiler(fast=True)
    return _Compiled(cast("_One", compiled(_one)), cast("_Four", compiled(_four)))


def _combine_numba(used: Sequence[tuple[F32, np.float32]], target: F32) -> None:
    one, four = _compiled()
    whole = len(used) - len(used) % 4
    fours = [
        (*(row for row, _ in used[i : i + 4]), np.array([f for _, f in used[i : i + 4]]))
        for i in range(0, whole, 4)
    ]
    for part in slices(len(target), BLAS_BLOCK):
        block = target[part]
        block.fill(0)
        for a, b, c, d, factors in fours:
            four(block, a[part], b[part], c[part], d[part], factors)
        for row, factor in used[whole:]:
            one(block, row[part], factor)
