"""Coordinate-wise order statistics of updates: median and trimmed mean by a sorting network.

Batcher's odd-even merge sort compares the same pairs whatever the values, so each comparison is one
`np.minimum` and one `np.maximum` over a block of 16 Ki elements; comparisons that the sum of the
wanted places does not depend on are left out. 12 to 20 times less work than sorting each
coordinate, with numba a third less again. Every engine and IEEE 754 machine gives
the same bits: comparing rounds nothing, sums follow the order of the places, and a zero is always
+0.
Source: K. Batcher, *Sorting networks and their applications*, 1968; federated-experiments E2
(docs/specs/rounds.md).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias, cast

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric import engines
from federated.rounds.numeric.kernels import output, row_length, slices

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from federated.rounds.numeric.engines import F32, F64, Engine, Part

    Starts: TypeAlias = NDArray[np.int64]

VOTERS_MAX: Final = 64
"""Beyond it a network grows out of the cache: bucket first."""
BLOCK: Final = 16_384
"""64 KiB a row: 16 rows and the scratch stay in a cache of 2 MiB (E2)."""
COLUMNS: Final = 256
"""1 KiB a row: 32 rows stay in a first-level cache of 32 KiB while compiled code compares them."""
ROW: Final = BLOCK + 16
"""Rows a power of two apart would share a few lines of that cache."""


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
    """The comparisons of `network(count)` that the sum of places `first..last` depends on.

    A comparison is left out if nobody needs its results, or if all that it does is to put two
    summands in order.
    """
    summed = range(first, last + 1)
    wanted, compared_later = set(summed), set[int]()
    kept = []
    for low, high in reversed(network(count)):
        both = {low, high}
        if not both & wanted or (both <= set(summed) and not both & compared_later):
            continue
        kept.append(Comparison(low, high, low in wanted, high in wanted))
        wanted |= both
        compared_later |= both
    return tuple(reversed(kept))


def median(
    rows: Sequence[F32],
    out: F32 | None = None,
    *,
    scales: Sequence[float] | F64 | None = None,
    owners: Sequence[Hashable] | None = None,
    engine: Engine = "auto",
) -> F32:
    """The median of each coordinate; of an even number of voters the mean of the middle two.

    Args:
        rows: K >= 1 arrays float32[n] of finite values.
        out: float32[n] to write to; no part of a row.
        scales: float64[K] from `rules.coefficients`: each row times its own, 0 = left out.
        owners: one a row: rows of one owner are averaged and vote once. None: each is its own.
        engine: `auto`, `numpy` or `numba`; the result is the same.

    Returns:
        float32[n]; 0 if no row is left.

    Raises:
        UsageError: as `kernels.row_length`, `kernels.output`; other than one scale or owner a row;
            more than 64 voters: bucket first.
    """
    return _order_statistic(rows, None, out, _voters(rows, scales, owners), engine)


def trimmed_mean(
    rows: Sequence[F32],
    cut: int,
    out: F32 | None = None,
    *,
    scales: Sequence[float] | F64 | None = None,
    owners: Sequence[Hashable] | None = None,
    engine: Engine = "auto",
) -> F32:
    """The mean of each coordinate without its `cut` smallest and `cut` largest values.

    Args:
        rows: K >= 1 arrays float32[n] of finite values.
        cut: >= 0; if fewer than one voter would remain (some were left out), it is the median.
        out: float32[n] to write to; no part of a row.
        scales: as for `median`.
        owners: as for `median`.
        engine: as for `median`.

    Returns:
        float32[n]; 0 if no row is left.

    Raises:
        UsageError: as `median`; a negative cut.
    """
    if cut < 0:
        raise UsageError("a cut is not negative")
    return _order_statistic(rows, cut, out, _voters(rows, scales, owners), engine)


class _Term(NamedTuple):
    """A row and what it is multiplied by before it is compared."""

    row: F32
    factor: np.float32


def _order_statistic(
    rows: Sequence[F32],
    cut: int | None,
    out: F32 | None,
    voters: Sequence[Sequence[_Term]],
    engine: Engine,
) -> F32:
    n = row_length(rows)
    target = output(out, n, rows)
    count = len(voters)
    if count == 0:
        target.fill(0)
        return target
    if count > VOTERS_MAX:
        raise UsageError(f"{count} voters, at most {VOTERS_MAX}: bucket first")
    middle = (count - 1) // 2
    first = middle if cut is None else min(cut, middle)
    numba = engines.for_loops(engine, n * count) == "numba"
    run = _run_numba if numba else _run_numpy
    run(voters, first, count - 1 - first, target)
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


def _run_numpy(voters: Sequence[Sequence[_Term]], first: int, last: int, target: F32) -> None:
    comparisons = pruned(len(voters), first, last)
    size = min(len(target), BLOCK)
    buffers = [np.empty(size, np.float32) for _ in voters]
    spare = np.empty(size, np.float32)
    for part in slices(len(target), BLOCK):
        block = target[part]
        own = [buffer[: len(block)] for buffer in buffers]
        free = spare[: len(block)]
        places = [
            _loaded(voter, part, place, free) for voter, place in zip(voters, own, strict=True)
        ]
        for low, high, wants_low, wants_high in comparisons:
            # A place is read where it stands, be it a row, and written to memory of our own.
            if wants_low and wants_high:
                np.minimum(places[low], places[high], out=free)
                places[high] = np.maximum(places[low], places[high], out=own[high])
                places[low], own[low], free = free, free, own[low]
            elif wants_low:
                places[low] = np.minimum(places[low], places[high], out=own[low])
            else:
                places[high] = np.maximum(places[low], places[high], out=own[high])
        _mean(places[first : last + 1], block)


def _loaded(voter: Sequence[_Term], part: Part, place: F32, free: F32) -> F32:
    """A voter's block: a view of its only row as it is, else computed into `place`."""
    (head, factor), *others = voter
    if factor == 1 and not others:
        return head[part]
    np.multiply(head[part], factor, out=place)
    for row, other in others:
        np.multiply(row[part], other, out=free)
        np.add(place, free, out=place)
    return place


def _mean(places: Sequence[F32], block: F32) -> None:
    # -0 and +0 are equal to a comparison, and which comes first is the machine's: adding +0 makes
    # every zero the same.
    np.add(places[0], np.float32(0), out=block)
    for place in places[1:]:
        np.add(block, place, out=block)
    np.multiply(block, np.float32(1 / len(places)), out=block)


# --- numba: a block's comparisons within the first-level cache ------------------------------------


class _Network(Protocol):
    def __call__(self, places: F32, starts: Starts, first: int, last: int, out: F32) -> None: ...


def _network(places: F32, starts: Starts, first: int, last: int, out: F32) -> None:
    """Sort what begins at each pair of `starts`; sum up what begins from `first` to `last`.

    Places are `ROW` apart in one array without gaps: of a cut of two dimensions numba would not
    know that its elements are neighbours, and would not use vectors.
    """
    count = 1 + (last - first) // ROW
    for at in range(0, out.shape[0], COLUMNS):
        size = min(COLUMNS, out.shape[0] - at)
        for pair in range(starts.shape[0]):
            low = places[starts[pair, 0] + at : starts[pair, 0] + at + size]
            high = places[starts[pair, 1] + at : starts[pair, 1] + at + size]
            for i in range(size):
                one, other = low[i], high[i]
                low[i] = min(one, other)
                high[i] = max(one, other)
        made, head = out[at : at + size], places[first + at : first + at + size]
        for i in range(size):
            made[i] = head[i] + np.float32(0)
        for start in range(first + ROW, last + 1, ROW):
            summand = places[start + at : start + at + size]
            for i in range(size):
                made[i] += summand[i]
        share = np.float32(1 / count)
        for i in range(size):
            made[i] *= share


@functools.cache
def _compiled_network() -> _Network:
    return cast("_Network", engines.compiler(fast=False)(_network))


def _run_numba(voters: Sequence[Sequence[_Term]], first: int, last: int, target: F32) -> None:
    run = _compiled_network()
    comparisons = pruned(len(voters), first, last)
    starts = np.array([(c.low * ROW, c.high * ROW) for c in comparisons], np.int64).reshape(-1, 2)
    places = np.empty(len(voters) * ROW, np.float32)
    spare = np.empty(min(len(target), BLOCK), np.float32)
    for part in slices(len(target), BLOCK):
        block = target[part]
        for i, voter in enumerate(voters):
            place = places[i * ROW : i * ROW + len(block)]
            found = _loaded(voter, part, place, spare[: len(block)])
            if found is not place:
                place[:] = found
        run(places, starts, first * ROW, last * ROW, block)
