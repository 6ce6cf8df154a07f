"""How many nodes serve the DHT, from how dense they are around a place.

If N nodes are spread evenly over [0, 1), the i-th nearest to any point is at distance i/(N+1) on
average. Least squares over the k nearest, each weighted by its rank, gives
`N + 1 = sum(i^2) / sum(i * d_i)`. One look-up tells little; the median of the last 64 holds.
Source: docs/specs/dht.md s.6; arXiv 2505.01139 uses the same estimate for its region.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Final

from p2p.dht.keys import PLACE_BITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.dht.keys import Place

SAMPLES_MAX: Final = 64
NODES_MIN: Final = 3
"""Fewer nodes than this around a place say nothing."""


class SizeEstimate:
    """A running estimate."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES_MAX)

    def add(self, target: Place, nearest: Sequence[Place]) -> None:
        """A look-up for `target` ended with these places, nearest first."""
        if len(nearest) < NODES_MIN:
            return
        weighted = sum(
            rank * ((place ^ target) / 2**PLACE_BITS) for rank, place in enumerate(nearest, 1)
        )
        if weighted > 0:
            squares = sum(rank * rank for rank in range(1, len(nearest) + 1))
            self._samples.append(squares / weighted - 1)

    @property
    def nodes(self) -> int | None:
        """Nodes of the network, or None before the first look-up."""
        return max(1, round(median(self._samples))) if self._samples else None
