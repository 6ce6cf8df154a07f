"""How members search their reports together for the most frequent items, sum by sum.

First how many records each has: a question that so many cannot answer ends there, before a report
leaves. Then a level after the other, whose sums hold everybody's supports. `GradedSearch` is ours:
with the last level each member's own best codes, then the final candidates, see `heavy_hitters`.
Source: docs/specs/rounds.md s.8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from federated.errors import RoundError, UsageError
from federated.rounds.statistics import heavy_hitters as hh
from federated.rounds.statistics.answers import TopItem, TopK
from federated.rounds.statistics.limits import ITEMS_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.rounds.statistics.heavy_hitters import F64, U64, Hit, Level, Search
    from federated.rounds.statistics.items import Coding
    from federated.rounds.statistics.rows import Table, Talk


@dataclass
class ReportSearch(ABC):
    """One question among members that met.

    Attributes:
        coding: what codes mean.
        search: what is asked.
        table: who fills which row.
        reports: of our records.
        others: how many of our records have no code of their own.
    """

    coding: Coding
    search: Search
    table: Table
    reports: hh.Reports
    others: int

    @abstractmethod
    def talk(self) -> Talk[TopK]:
        """Find the items.

        Raises:
            RoundError: `too_few`.
            UsageError: a member that does not follow the rules.
        """

    def count(self) -> Talk[F64]:
        """Records of each member: float64[m]."""
        mine = np.array([float(self.reports.records)])

        def fault(place: int, start: int, head: F64, piece: F64) -> str:
            del place, start, piece
            return "" if 1 <= head[0] <= ITEMS_MAX else f"more than {ITEMS_MAX:,} items, or none"

        rows, _ = yield from self.table.exchange(b"records", mine, np.zeros(0), fault)
        try:
            hh.smallest_share(self.search, int(rows[:, 0].sum()))
        except UsageError as error:
            raise RoundError("too_few", f"{error}; no report has left") from None
        return rows[:, 0]

    def shared_level(self, level: int, candidates: U64, records: F64) -> Talk[Level]:
        """What all say of the same candidates."""
        row = hh.row_of(self.reports, level, candidates)

        def fault(place: int, start: int, head: F64, piece: F64) -> str:
            del start
            wrong = self.counts_fault(int(records[place]), level, head)
            return wrong or self.support_fault(int(head[1]), level, piece, chosen=False)

        about = b"".join([b"level", level.to_bytes(1, "big"), candidates.tobytes()])
        rows, _ = yield from self.table.exchange(about, row[:2], row[2:], fault)
        return hh.read_rows(self.search, level, candidates, rows)

    def counts_fault(self, count: int, level: int, head: F64) -> str:
        """What is wrong with a row's first two numbers."""
        if head[0] != count or head[1] != self.search.reports(level, count):
            return "another number of items than at the beginning"
        return ""

    def support_fault(self, reports: int, level: int, supports: F64, *, chosen: bool) -> str:
        """What is wrong with a row's supports.

        Args:
            reports: of the level.
            level: from 0.
            supports: float64[c].
            chosen: whether the candidates were chosen by these very reports.
        """
        if (supports > reports).any():
            return "more support for an item than it has reports"
        most = hh.support_max(self.search, level, reports, len(supports), chosen=chosen)
        if supports.sum() > most:
            return "more support in all than reports can give"
        return ""

    def own_fault(self, told: F64) -> str:
        """What is wrong with the codes of `told` that a member says are its own."""
        used, search = told[told > 0], self.search
        if (np.diff(told) < 0).any() or len(np.unique(used)) != len(used):
            return "items of its own out of order, or one twice"
        if len(used) and used[-1] > (search.limit or 1 << search.bits):
            return "items of its own that nothing stands for"
        return ""

    def answer(self, hits: Sequence[Hit], view: Level, stands_out: float, how: str = "") -> TopK:
        """The items as they are told.

        Args:
            hits: the best first.
            view: of the last level.
            stands_out: the count above which an item is no noise; searched by TAP: at one member.
            how: they were searched, for people.
        """
        search = self.search
        oracles = [search.oracle(level) for level in range(search.levels)]
        names = dict.fromkeys("OLH" if one.hashed else "k-RR" for one in oracles)
        return TopK(
            items=tuple(
                TopItem(
                    item=self.coding.decode(hit.code), count=hit.count, sd=hit.sd, sure=hit.sure
                )
                for hit in hits
            ),
            mode="ldp",
            mechanism=f"each record reported once, with noise of its own ({' and '.join(names)})"
            + how,
            epsilon=search.epsilon,
            records=int(view.records.sum()),
            others=self.others,
            peers=int((view.records > 0).sum()),
            noise_sd=view.spread,
            stands_out=stands_out,
        )  # fmt: skip


@dataclass
class GradedSearch(ReportSearch):
    """Shared candidates and own ones, ranked by how unlike the members are.

    Attributes:
        own: uint64[at most k], our own best codes, ascending; empty where there is one level.
    """

    own: U64

    @override
    def talk(self) -> Talk[TopK]:
        """Find the items."""
        search = self.search
        last = search.levels - 1
        records = yield from self.count()
        view = yield from self.shared_level(0, search.first(), records)
        rho = hh.unlikeness(view)
        for level in range(1, last):
            candidates = hh.shared_next(search, level - 1, view)
            view = yield from self.shared_level(level, candidates, records)
        if last:
            candidates = hh.shared_next(search, last - 1, view)
            rows = yield from self._last(b"level", candidates, records, told(self.own, search.k))
            view = self._view(candidates, rows)
            own = [codes(row) for row in rows[:, 2 : 2 + search.k]]
            candidates = hh.final_candidates(search, view, own)
            view = self._view(
                candidates, (yield from self._last(b"final", candidates, records, np.zeros(0)))
            )
        return self.answer(hh.ranked(search, view, rho), view, hh.stands_out(view))

    def _last(self, kind: bytes, candidates: U64, records: F64, own: F64) -> Talk[F64]:
        """Everybody's `hh.row_of` of the last level, own codes behind the first two numbers."""
        level = self.search.levels - 1
        row = hh.row_of(self.reports, level, candidates)

        def fault(place: int, start: int, head: F64, piece: F64) -> str:
            del start
            wrong = self.counts_fault(int(records[place]), level, head)
            wrong = wrong or self.support_fault(int(head[1]), level, piece, chosen=kind == b"final")
            return wrong or self.own_fault(head[2:])

        about = b"".join([kind, level.to_bytes(1, "big"), candidates.tobytes()])
        head = np.concatenate([row[:2], own])
        rows, _ = yield from self.table.exchange(about, head, row[2:], fault)
        return rows

    def _view(self, candidates: U64, rows: F64) -> Level:
        supports = rows[:, rows.shape[1] - len(candidates) :]
        both = np.hstack([rows[:, :2], supports])
        return hh.read_rows(self.search, self.search.levels - 1, candidates, both)


def told(found: U64, k: int) -> F64:
    """Codes as numbers from 1 on, in their order, filled up to k with zeros in front."""
    numbers = np.zeros(k)
    numbers[k - len(found) :] = found.astype(np.float64) + 1
    return numbers


def codes(numbers: F64) -> U64:
    """Codes of `told`."""
    return (numbers[numbers > 0] - 1).astype(np.uint64)
