"""TAP (arXiv 2412.14832) among members, over the same reports as our own search, sum by sum.

Three shared levels, whose number of prefixes that go on follows the noise; from there each member
goes on alone, and says at the end its own k best codes with what supports them. What is shown of a
code is the sum over the members that said it. A reconstruction; `tap.tap` is the same in one
process.
Source: docs/specs/rounds.md s.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from typing_extensions import override

from federated.rounds.statistics import heavy_hitters as hh
from federated.rounds.statistics.heavy_hitters import Hit, Level
from federated.rounds.statistics.private_search import ReportSearch, codes, told
from federated.rounds.statistics.tap import SHARED_LEVELS, adapted, alone

if TYPE_CHECKING:
    from federated.rounds.statistics.answers import TopK
    from federated.rounds.statistics.heavy_hitters import F64, U64
    from federated.rounds.statistics.rows import Bools, Talk

HOW: Final = (
    ", searched by TAP: counts are of the machines that found the item by themselves, and too high"
    " for rare items"
)


@dataclass
class TapSearch(ReportSearch):
    """The baseline, to be asked for by its name."""

    @override
    def talk(self) -> Talk[TopK]:
        """Find the items."""
        search = self.search
        records = yield from self.count()
        candidates = search.first()
        shared = min(SHARED_LEVELS, search.levels - 1)
        for level in range(shared):
            view = yield from self.shared_level(level, candidates, records)
            kept = adapted(view.total, candidates, search.k, view.spread)
            candidates = search.children(kept, level + 1)
        own = np.sort(alone(search, self.reports, shared, candidates))
        rows = yield from self._tell(own, shared, candidates, records)
        view, said = self._added(rows)
        least = hh.significance(self._looked_at(len(records), candidates)) * view.sds
        return self.answer(_best(search.k, view, said, least), view, float(least.max()), HOW)

    def _tell(self, own: U64, shared: int, candidates: U64, records: F64) -> Talk[F64]:
        """Everybody's records, reports, own codes and what supports those: float64[m, 2 + 2k]."""
        search = self.search
        k, last = search.k, search.levels - 1
        support = np.zeros(k)
        support[k - len(own) :] = self.reports.support(last, own)
        row = np.array([float(self.reports.records), float(self.reports.reports(last))])

        def fault(place: int, start: int, head: F64, piece: F64) -> str:
            del start
            wrong = self.counts_fault(int(records[place]), last, head)
            wrong = wrong or self.own_fault(head[2:])
            wrong = wrong or self.support_fault(int(head[1]), last, piece, chosen=True)
            if wrong:
                return wrong
            if piece[head[2:] == 0].any():
                return "support for no item"
            bits = search.prefix_bits(last) - search.prefix_bits(shared)
            if not np.isin(codes(head[2:]) >> np.uint64(bits), candidates).all():
                return "items of its own that no shared prefix leads to"
            return ""

        head = np.concatenate([row, told(own, k)])
        about = b"tap" + candidates.tobytes()
        rows, _ = yield from self.table.exchange(about, head, support, fault, stride=k)
        return rows

    def _added(self, rows: F64) -> tuple[Level, Bools]:
        """What is known of each code that anybody said, and who said it: bool[m, c]."""
        search, k = self.search, self.search.k
        last = search.levels - 1
        found = np.unique(codes(rows[:, 2 : 2 + k].ravel()))
        estimates = np.zeros((len(rows), len(found)))
        said = np.zeros((len(rows), len(found)), bool)
        sds = np.zeros(len(rows))
        for place, row in enumerate(rows):
            own = codes(row[2 : 2 + k])
            supports = row[2 + 2 * k - len(own) :]
            view = hh.read_rows(search, last, own, np.concatenate([row[:2], supports])[None, :])
            where = np.searchsorted(found, own)
            estimates[place, where] = view.estimates[0]
            said[place, where] = True
            sds[place] = view.sds[0]
        oracle = search.oracle(last)
        return Level(found, estimates, sds, rows[:, 0], rows[:, 1], oracle), said

    def _looked_at(self, members: int, candidates: U64) -> int:
        """How many codes were looked at by all of them at most: the best of as many are shown."""
        search = self.search
        last = search.levels - 1
        if last == min(SHARED_LEVELS, last):
            return members * len(candidates)
        step = search.prefix_bits(last) - search.prefix_bits(last - 1)
        return members * ((2 * search.k) << step)


def _best(k: int, view: Level, said: Bools, least: F64) -> list[Hit]:
    """The k best by their sums.

    Each estimate of a sum was lifted by its noise, or it would not have been said: what all of them
    come to says nothing of noise. So an item is sure where one member's estimate is above `least`.
    """
    total = view.total
    hits = []
    for place in np.lexsort((view.candidates, -total))[:k]:
        by = said[:, place]
        part = Level(
            view.candidates, view.estimates[by], view.sds[by], view.records[by], view.reports[by],
            view.oracle,
        )  # fmt: skip
        sure = bool((view.estimates[by, place] > least[by]).any())
        code, count = int(view.candidates[place]), float(total[place])
        hits.append(Hit(code, count, part.error(place), sure))
    return hits
