"""What `heavy_hitters` is compared with, over the same reports: FedPEM, the shared trie alone, TAP.

TAP (arXiv 2412.14832) is a reconstruction: shared levels first, then each member alone, with the
number of prefixes that go on adapted to the noise. Its constants are ours. Members that are apart
search so by `tap_search`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from federated.rounds.statistics.heavy_hitters import Search, best, read_rows, row_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.rounds.statistics.heavy_hitters import F64, U64, Scorer

SHARED_LEVELS: Final = 3
CLEAR_SD: Final = 2.0


def fed_pem(search: Search, scorers: Sequence[Scorer]) -> list[int]:
    """Every member alone; local best codes added up."""
    tally: Counter[int] = Counter()
    for scorer in scorers:
        candidates = search.first()
        for level in range(search.levels - 1):
            estimates, _ = _estimate(search, scorer, level, candidates)
            candidates = search.children(best(estimates, candidates, search.k), level + 1)
        _add_last(search, tally, scorer, candidates)
    return _most(tally, search.k)


def shared_trie(search: Search, scorers: Sequence[Scorer]) -> list[int]:
    """All members score the same candidates; the k best sums go on."""

    def top(level: int, candidates: U64) -> U64:
        found = [_estimate(search, scorer, level, candidates)[0] for scorer in scorers]
        return best(np.sum(found, axis=0), candidates, search.k)

    candidates = search.first()
    for level in range(search.levels - 1):
        candidates = search.children(top(level, candidates), level + 1)
    return [int(code) for code in top(search.levels - 1, candidates)]


def tap(search: Search, scorers: Sequence[Scorer]) -> list[int]:
    """Shared for three levels, then each member alone; how many go on follows the noise."""
    candidates = search.first()
    shared = min(SHARED_LEVELS, search.levels - 1)
    for level in range(shared):
        found = [_estimate(search, one, level, candidates) for one in scorers]
        total = np.sum([estimates for estimates, _ in found], axis=0)
        sd = float(np.sqrt(sum(one**2 for _, one in found)))
        kept = adapted(total, candidates, search.k, sd)
        candidates = search.children(kept, level + 1)
    tally: Counter[int] = Counter()
    for scorer in scorers:
        _add_last(search, tally, scorer, alone(search, scorer, shared, candidates))
    return _most(tally, search.k)


def alone(search: Search, scorer: Scorer, level: int, candidates: U64) -> U64:
    """A member's own k best codes, going on from a shared level.

    Args:
        search: what is asked.
        scorer: its reports.
        level: of the candidates.
        candidates: uint64[c].
    """
    for below in range(level, search.levels - 1):
        estimates, sd = _estimate(search, scorer, below, candidates)
        candidates = search.children(adapted(estimates, candidates, search.k, sd), below + 1)
    estimates, _ = _estimate(search, scorer, search.levels - 1, candidates)
    return best(estimates, candidates, search.k)


def _estimate(search: Search, scorer: Scorer, level: int, candidates: U64) -> tuple[F64, float]:
    row = row_of(scorer, level, candidates)[None, :]
    view = read_rows(search, level, candidates, row)
    return view.estimates[0], float(view.sds[0])


def adapted(scores: F64, candidates: U64, k: int, sd: float) -> U64:
    """Which prefixes go on: the k best and all above max(E_k - sd, 2 sd), at most 2k.

    Args:
        scores: float64[c], estimated records.
        candidates: uint64[c].
        k: items wanted.
        sd: standard deviation of a score.
    """
    order = np.lexsort((candidates, -scores))
    kth = float(scores[order[min(k, len(order)) - 1]])
    clear = int((scores > max(kth - sd, CLEAR_SD * sd)).sum())
    return candidates[order[: min(max(clear, k), 2 * k)]]


def _add_last(search: Search, tally: Counter[int], scorer: Scorer, candidates: U64) -> None:
    estimates, _ = _estimate(search, scorer, search.levels - 1, candidates)
    for code in best(estimates, candidates, search.k):
        tally[int(code)] += float(estimates[candidates == code][0])  # type: ignore[assignment]


def _most(tally: Counter[int], k: int) -> list[int]:
    return [code for code, _ in sorted(tally.items(), key=lambda one: (-one[1], one[0]))[:k]]
