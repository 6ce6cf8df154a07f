"""Complete updates become part of a sum, at once and in a worker.

Updates of one round that wait together are one batch: each is checked whole, then those that passed
are added block by block, so that a block of the sum stays in the cache while all of them are added
to it. Element by element that is the same order of additions as one update after the other.

Check and addition are two passes, as an update that is refused must not be in the sum. One pass,
which could not take it out again, takes .92 of the CPU time (100 MB, numpy, both ways in turns):
the check is arithmetic as much as memory. For an update that begins the sum it is .97.

The work is cut into pieces that an `Offload` runs one by one, so that a pool can stop between them.
Several workers share a batch by ranges of elements: no two ever write to the same.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import trio

from federated.rounds.numeric.kernels import fold, slices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.rounds.numeric.engines import F32, Part
    from federated.rounds.pool.segments import Bytes
    from p2p.env import Offload

CHECK_BLOCK: Final = 65_536
"""256 KiB: of 32 to 1,024 KiB the least time on a 2-core machine."""
FOLD_BLOCK: Final = 262_144
"""1 MiB of the sum stays in a second-level cache of 2 MiB while a batch is added to it."""
PIECE_ITEMS: Final = 32 * 1024 * 1024
"""Elements read in one piece of work: some 30 ms. A hand-over to a worker costs .2 ms of CPU."""


def all_finite(row: F32) -> bool:
    """Whether `row` holds neither NaN nor infinity.

    A block's dot product with itself is finite only if all of the block is: one pass, by BLAS,
    twice as fast as testing each element. Where squares overflow, the elements decide.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for part in slices(len(row), CHECK_BLOCK):
            block = row[part]
            if not math.isfinite(np.dot(block, block)) and not np.isfinite(block).all():
                return False
    return True


def fold_block(total: F32, rows: Sequence[F32], weights: Sequence[float], *, first: bool) -> None:
    """Add `rows` times `weights` to `total`, in their order.

    Args:
        total: float32[n], written to.
        rows: float32[n] each, no part of `total`.
        weights: one a row.
        first: whether `total` holds nothing yet.
    """
    # An overflow shows in the sum, which is checked when the round is closed.
    with np.errstate(over="ignore", invalid="ignore"):
        for part in slices(len(total), FOLD_BLOCK if len(rows) > 1 else len(total)):
            for number, (row, weight) in enumerate(zip(rows, weights, strict=True)):
                fold(total[part], row[part], weight, first=first and number == 0)


async def check(rows: Sequence[F32], offload: Offload, workers: int = 1) -> list[bool]:
    """For each row whether all of it is finite."""
    good = [True] * len(rows)

    def work(part: Part) -> None:
        for number, row in enumerate(rows):
            if good[number] and not all_finite(row[part]):
                good[number] = False

    await _in_pieces(len(rows[0]), len(rows), work, offload, workers)
    return good


async def add(
    total: F32,
    rows: Sequence[F32],
    weights: Sequence[float],
    offload: Offload,
    workers: int = 1,
    *,
    first: bool,
) -> None:
    """Add `rows` times `weights` to `total`; see `fold_block`. If cancelled, `total` is spoilt."""

    def work(part: Part) -> None:
        fold_block(total[part], [row[part] for row in rows], weights, first=first)

    await _in_pieces(len(total), len(rows), work, offload, workers)


async def copy(target: Bytes, source: Bytes, offload: Offload) -> None:
    """Copy `source` to `target`, which is as long."""

    def work(part: Part) -> None:
        target[part] = source[part]

    await _in_pieces(len(target), 1, work, offload, 1)


async def _in_pieces(
    items: int, rows: int, work: Callable[[Part], None], offload: Offload, workers: int
) -> None:
    """`work` on slices of `range(items)`, by `workers` at a time, each on a range of its own."""
    pieces = list(slices(items, max(FOLD_BLOCK, PIECE_ITEMS // rows)))
    share = -(-len(pieces) // max(1, workers))

    async def run(own: Sequence[Part]) -> None:
        for piece in own:
            await offload.run(partial(work, piece))

    if share == len(pieces):
        await run(pieces)
        return
    async with trio.open_nursery() as nursery:
        for start in range(0, len(pieces), share):
            nursery.start_soon(run, pieces[start : start + share])


class Pressure:
    """How many workers a batch gets: more than one only when updates keep waiting.

    Args:
        workers_max: processors that may be used.
    """

    def __init__(self, workers_max: int) -> None:
        self._workers_max = max(1, workers_max)
        self.waiting = 0.0

    def measured(self, waiting: int) -> int:
        """Note how many updates wait now; the workers for the next batch.

        Q <- .7 measured + .3 Q, and ceil(Q / 2) workers if Q > 2 (LIFL, arXiv 2405.10968).
        """
        self.waiting = 0.7 * waiting + 0.3 * self.waiting
        if self.waiting <= 2:
            return 1
        return min(self._workers_max, math.ceil(self.waiting / 2))
