"""The most frequent items of several members, each record reported with noise of its own.

A member's part in `heavy_hitters`, sum by sum. First how many records each has: a question that so
many cannot answer ends there, before a report leaves. Then a level after the other, whose sums hold
everybody's supports; with the last level each member's own best codes; then the final candidates.

What leaves is counts of reports, and a report is private by itself: nothing of it depends on who
merges, on what is asked next, or on what the other members do. The same records reported anew would
cost epsilon anew, so the noise of a set of records is drawn from a secret of its member, by what
the records and the parameters are: asked again, the same question finds the same reports.

That hides what a record is, not whether records changed. With one of them changed all reports are
other ones, and for a record that stayed the epsilons of both draws add up; but that the reports
differ is seen with certainty, by all members, and so is that they do not.

Source: docs/specs/rounds.md s.8; federated rounds, heavy hitters.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256, shake_256
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from federated.errors import RoundError, UsageError
from federated.rounds.statistics import heavy_hitters as hh
from federated.rounds.statistics.answers import TopItem, TopK
from federated.rounds.statistics.items import other_of
from federated.rounds.statistics.limits import ITEMS_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.rounds.privacy.local import Source
    from federated.rounds.statistics.heavy_hitters import F64, U64, Hit, Level, Search
    from federated.rounds.statistics.items import Coding
    from federated.rounds.statistics.rows import Table, Talk

SECRET_BYTES: Final = 32
NOISE_DOMAIN: Final = b"covey/fed/noise/1\0"


@dataclass(frozen=True)
class Known:
    """What a member's records are, once they have codes.

    Attributes:
        codes: uint64[n], ascending.
        others: how many have no code of their own.
    """

    codes: U64
    others: int


def know(coding: Coding, items: Sequence[str]) -> Known:
    """Give items their codes.

    Raises:
        UsageError: none, too many, or most of them have no code.
    """
    if not 1 <= len(items) <= ITEMS_MAX:
        raise UsageError(
            f"{len(items):,} items: give 1 to {ITEMS_MAX:,} a machine, or a sample of them"
        )
    codes = np.sort(coding.encode_all(items))
    others = int((codes == other_of(coding)).sum())
    if 2 * others > len(items):
        raise UsageError(
            f"{others:,} of {len(items):,} items have no code: give words of the letters a to z, or"
            " the list of all that may come as a vocabulary"
        )
    return Known(codes, others)


def search_for(coding: Coding, k: int, epsilon: float) -> Search:
    """What is asked.

    Raises:
        UsageError: k or epsilon is out of range, or there are no k items.
    """
    if k > coding.limit:
        raise UsageError(f"k: the vocabulary has {coding.limit} items")
    levels = hh.levels_for(coding.bits)
    return hh.Search(bits=coding.bits, k=k, epsilon=epsilon, levels=levels, limit=coding.limit)


def keyed(secret: bytes, coding: Coding, search: Search, codes: U64) -> Source:
    """The randomness of these records' reports, the same each time.

    Neither k nor what is asked about enters: reports do not depend on it.

    Args:
        secret: 32 bytes that nobody else has.
        coding: of the codes.
        search: what is asked.
        codes: uint64[n], ascending.
    """
    assert len(secret) == SECRET_BYTES
    fields = [coding.public, search.bits, search.levels, search.epsilon]
    about = sha256(msgspec.msgpack.encode(fields)).digest()
    records = sha256(np.ascontiguousarray(codes, "<u8").tobytes()).digest()
    key = sha256(NOISE_DOMAIN + secret + about + records).digest()
    drawn = 0

    def more(count: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return shake_256(key + drawn.to_bytes(8, "big")).digest(count)

    return more


class PrivateItems:
    """One member's part.

    Args:
        coding: what codes mean.
        search: of `search_for`.
        known: our records.
        secret: 32 bytes that nobody else has.
    """

    def __init__(self, coding: Coding, search: Search, known: Known, secret: bytes) -> None:
        self._coding = coding
        self._search = search
        self._known = known
        source = keyed(secret, coding, search, known.codes)
        self._reports = hh.Reports(search, known.codes, source)
        self._own = np.zeros(0, np.uint64)
        if search.levels > 1:
            self._own = np.sort(hh.own_top(search, self._reports))

    def talk(self, table: Table) -> Talk[TopK]:
        """Find the items with the others.

        Raises:
            RoundError: `too_few`: so many records can say nothing.
            UsageError: a member that does not follow the rules.
        """
        return _Conversation(
            self._coding, self._search, table, self._reports, self._own, self._known.others
        ).talk()


@dataclass
class _Conversation:
    """One question among members that met."""

    coding: Coding
    search: Search
    table: Table
    reports: hh.Reports
    own: U64
    others: int

    def talk(self) -> Talk[TopK]:
        search = self.search
        records = yield from self._count()
        candidates = search.first()
        rows = yield from self._level(0, candidates, records, chosen=False)
        view = _view(search, 0, candidates, rows)
        rho = hh.unlikeness(view)
        for level in range(1, search.levels):
            candidates = hh.shared_next(search, level - 1, view)
            rows = yield from self._level(level, candidates, records, chosen=False)
            view = _view(search, level, candidates, rows)
        if search.levels > 1:
            own = [_codes(row) for row in rows[:, 2 : 2 + search.k]]
            candidates = hh.final_candidates(search, view, own)
            rows = yield from self._level(search.levels - 1, candidates, records, chosen=True)
            view = _view(search, search.levels - 1, candidates, rows)
        return self._answer(hh.ranked(search, view, rho), view)

    def _count(self) -> Talk[F64]:
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

    def _level(self, level: int, candidates: U64, records: F64, *, chosen: bool) -> Talk[F64]:
        """Everybody's `hh.row_of`, own codes behind the first two numbers."""
        search = self.search
        with_own = level == search.levels - 1 > 0 and not chosen
        row = hh.row_of(self.reports, level, candidates)
        head = np.concatenate([row[:2], _told(self.own, search.k)]) if with_own else row[:2]

        def fault(place: int, start: int, head: F64, piece: F64) -> str:
            del start
            count = int(records[place])
            reports = search.reports(level, count)
            if head[0] != count or head[1] != reports:
                return "another number of items than at the beginning"
            if (piece > reports).any():
                return "more support for an item than it has reports"
            if piece.sum() > hh.support_max(search, level, reports, len(piece), chosen=chosen):
                return "more support in all than reports can give"
            return _own_fault(search, head[2:]) if with_own else ""

        about = b"".join(
            [b"final" if chosen else b"level", level.to_bytes(1, "big"), candidates.tobytes()]
        )
        rows, _ = yield from self.table.exchange(about, head, row[2:], fault)
        return rows

    def _answer(self, hits: Sequence[Hit], view: Level) -> TopK:
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
            mechanism=f"each record reported once, with noise of its own ({' and '.join(names)})",
            epsilon=search.epsilon,
            records=int(view.records.sum()),
            others=self.others,
            peers=int((view.records > 0).sum()),
            noise_sd=view.spread,
            stands_out=hh.stands_out(view),
        )  # fmt: skip


def _view(search: Search, level: int, candidates: U64, rows: F64) -> Level:
    supports = rows[:, rows.shape[1] - len(candidates) :]
    return hh.read_rows(search, level, candidates, np.hstack([rows[:, :2], supports]))


def _told(codes: U64, k: int) -> F64:
    """Codes as numbers from 1 on, ascending, filled up with zeros in front."""
    told = np.zeros(k)
    told[k - len(codes) :] = codes.astype(np.float64) + 1
    return told


def _codes(told: F64) -> U64:
    return (told[told > 0] - 1).astype(np.uint64)


def _own_fault(search: Search, told: F64) -> str:
    used = told[told > 0]
    if (np.diff(told) < 0).any() or len(np.unique(used)) != len(used):
        return "items of its own out of order, or one twice"
    if len(used) and used[-1] > (search.limit or 1 << search.bits):
        return "items of its own that nothing stands for"
    return ""
