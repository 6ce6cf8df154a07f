"""Coordinate-wise order statistics of updates: median and trimmed mean by a sorting network.

Batcher's odd-even merge sort compares the same pairs whatever the values, so each comparison is one
`np.minimum` and one `np.maximum` over a block of 16 Ki elements; comparisons that no wanted place
depends on are left out. 12 to 20 times less work than sorting each coordinate.
Source: K. Batcher, *Sorting networks and their applications*, 1968; federated-experiments E2
(docs/specs/rounds.md).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric.kernels import output, row_length, slices

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from federated.rounds.numeric.engines import F32, F64, Part

VOTERS_MAX: Final = 64
"""Beyond it a network grows out of the cache: bucket first."""
BLOCK: Final = 16_384
"""64 KiB a row: 16 rows and the scratch stay in a cache of 2 MiB (E2)."""


class Comparison(NamedTuple):
    """Places `low` < `high` of a network, and which of the two results somebody needs."""

    low: int
    high: int
    wants_low: bool
    wants_high: bool


@functools.cache
def network(count: int) -> tuple[tuple[int, int], ...]:
    """Pairs (i, j), i < j, whose comparison in this order sorts `count` >= 0 values ascending."""
    pairs = []
    p = 1
    while p < count:
        k = p
        while k >= 1:
            for j in range(k % p, count - k, 2 * k):
                pairs += [
                    (i + j, i + j + k)
                    for i in range(min(k, count - j - k))
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p)
                ]
            k //= 2
        p *= 2
    return tuple(pairs)


@functools.cache
def pruned(count: int, first: int, last: int) -> tuple[Comparison, ...]:
    """The comparisons of `network(count)` that places `first..last` depend on."""
    wanted = set(range(first, last + 1))
    kept = []
    for low, high in reversed(network(count)):
        if low in wanted or high in wanted:
            kept.append(Comparison(low, high, low in wanted, high in wanted))
            wanted |= {low, high}
    return tuple(reversed(kept))


def median(
    rows: Sequence[F32],
    out: F32 | None = None,
    *,
    scales: Sequence[float] | F64 | None = None,
    owners: Sequence[Hashable] | None = None,
) -> F32:
    """The median of each coordinate; of an even number of voters the mean of the middle two.

    Args:
        rows: K >= 1 arrays float32[n] of finite values.
        out: float32[n] to write to; no part of a row.
        scales: float64[K] from `rules.coefficients`: each row times its own, 0 = left out.
        owners: one a row: rows of one owner are averaged and vote once. None: each is its own.

    Returns:
        float32[n]; 0 if no row is left.

    Raises:
        UsageError: as `kernels.row_length`, `kernels.output`; other than one scale or owner a row;
            more than 64 voters: bucket first.
    """
    return _order_statistic(rows, None, out, scales, owners)


def trimmed_mean(
    rows: Sequence[F32],
    cut: int,
    out: F32 | None = None,
    *,
    scales: Sequence[float] | F64 | None = None,
    owners: Sequence[Hashable] | None = None,
) -> F32:
    """The mean of each coordinate without its `cut` smallest and `cut` largest values.

    Args:
        rows: K >= 1 arrays float32[n] of finite values.
        cut: >= 0; if fewer than one voter would remain (some were left out), it is the median.
        out: float32[n] to write to; no part of a row.
        scales: as for `median`.
        owners: as for `median`.

    Returns:
        float32[n]; 0 if no row is left.

    Raises:
        UsageError: as `median`; a negative cut.
    """
    if cut < 0:
        raise UsageError("a cut is not negative")
    return _order_statistic(rows, cut, out, scales, owners)


class _Term(NamedTuple):
    """A row and what it is multiplied by before it is compared."""

    row: F32
    factor: np.float32


def _order_statistic(
    rows: Sequence[F32],
    cut: int | None,
    out: F32 | None,
    scales: Sequence[float] | F64 | None,
    owners: Sequence[Hashable] | None,
) -> F32:
    n = row_length(rows)
    target = output(out, n, rows)
    voters = _voters(rows, scales, owners)
    count = len(voters)
    if count == 0:
        target.fill(0)
        return target
    if count > VOTERS_MAX:
        raise UsageError(f"{count} voters, at most {VOTERS_MAX}: bucket first")
    middle = (count - 1) // 2
    first = middle if cut is None else min(cut, middle)
    _run_network(voters, first, count - 1 - first, target)
    return target


def _voters(
    rows: Sequence[F32],
    scales: Sequence[float] | F64 | None,
    owners: Sequence[Hashable] | None,
) -> list[list[_Term]]:
    """The rows that count, one list an owner, in the order in which owners first appear."""
    factors = np.ones(len(rows)) if scales is None else np.asarray(scales, np.float64)
    names = range(len(rows)) if owners is None else owners
    if factors.shape != (len(rows),) or len(names) != len(rows):
        raise UsageError(f"{len(rows)} rows need as many scales and owners")
    if not np.isfinite(factors).all():
        raise UsageError("scales are finite")
    groups: dict[Hashable, list[int]] = {}
    for i, name in enumerate(names):
        if factors[i] != 0:
            groups.setdefault(name, []).append(i)
    return [
        [_Term(rows[i], np.float32(factors[i] / len(group))) for i in group]
        for group in groups.values()
    ]


def _run_network(voters: Sequence[Sequence[_Term]], first: int, last: int, target: F32) -> None:
    comparisons = pruned(len(voters), first, last)
    size = min(len(target), BLOCK)
    buffers = [np.empty(size, np.float32) for _ in voters]
    spare = np.empty(size, np.float32)
    share = np.float32(1 / (last - first + 1))
    for part in slices(len(target), BLOCK):
        block = target[part]
        places = [buffer[: len(block)] for buffer in buffers]
        free = spare[: len(block)]
        for voter, place in zip(voters, places, strict=True):
            _load(voter, part, place, free)
        for low, high, wants_low, wants_high in comparisons:
            if wants_low and wants_high:
                np.minimum(places[low], places[high], out=free)
                np.maximum(places[low], places[high], out=places[high])
                places[low], free = free, places[low]
            elif wants_low:
                np.minimum(places[low], places[high], out=places[low])
            else:
                np.maximum(places[low], places[high], out=places[high])
        _mean(places[first : last + 1], share, block)


def _load(voter: Sequence[_Term], part: Part, place: F32, free: F32) -> None:
    (head, factor), *others = voter
    if factor == 1:
        place[:] = head[part]
    else:
        np.multiply(head[part], factor, out=place)
    for row, other in others:
        np.multiply(row[part], other, out=free)
        np.add(place, free, out=place)


def _mean(places: Sequence[F32], share: np.float32, block: F32) -> None:
    block[:] = places[0]
    for place in places[1:]:
        np.add(block, place, out=block)
    if share != 1:
        np.multiply(block, share, out=block)
