"""The most frequent items of several members, exactly, between those who may see each other's data.

Sum by sum, as three-phase top-k does it (TPUT: Cao and Wang, PODC 2004): every member's own k best;
then all items that a member has at least T times, T the k-th best sum so far over the number of
members, as whatever is missed everywhere cannot be among the k; then everybody's counts of what may
still be; and the texts of what was found, by one member that has each. Until then items go by 52
bits of their hash. Every member sees every member's rows.

What is found is exact for those that are in all sums. Who was missed in one counts no more, also if
that is ourselves: what it alone has often was not asked for. T was too high for the others then, so
all look once more without it.

Source: docs/specs/rounds.md s.8.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np

from federated.errors import UsageError
from federated.rounds.statistics.answers import TopItem, TopK
from federated.rounds.statistics.items import ITEM_CHARS_MAX, SHOWN
from federated.rounds.statistics.limits import ITEMS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from federated.rounds.statistics.items import Vocabulary
    from federated.rounds.statistics.rows import F64, Bools, Table, Talk

CODE_BITS: Final = 52
"""Of an item's hash: as many as float64 adds up exactly, and none of them zero."""
TABLE_MAX: Final = 1_000_000
"""Numbers of all members in one step: nine sums."""
PACKED_BYTES: Final = 6
TEXT_BYTES_MAX: Final = 4 * ITEM_CHARS_MAX
TEXT_NUMBERS: Final = 1 + -(-TEXT_BYTES_MAX // PACKED_BYTES)


def code_of(item: str) -> int:
    """What an item goes by: 1 to 2^52."""
    digest = sha256(item.encode("utf-8", "replace")).digest()
    return 1 + (int.from_bytes(digest[:8], "big") >> (64 - CODE_BITS))


class PlainItems:
    """One member's part.

    Args:
        items: our records.
        k: how many items are wanted.
        vocabulary: others than these are not counted; None: all are.

    Raises:
        UsageError: no items, too many, or one that is too long.
    """

    def __init__(self, items: Sequence[str], k: int, vocabulary: Vocabulary | None = None) -> None:
        if not 1 <= len(items) <= ITEMS_MAX:
            raise UsageError(f"{len(items):,} items: give 1 to {ITEMS_MAX:,} a machine")
        counts = Counter(items)
        for item in counts:
            if not 1 <= len(item) <= ITEM_CHARS_MAX:
                raise UsageError(f"item {item[:SHOWN]!r}: 1 to {ITEM_CHARS_MAX} characters")
        if vocabulary is not None:
            known = set(vocabulary.items)
            counts = Counter({item: count for item, count in counts.items() if item in known})
        self._k = k
        self._records = len(items)
        self._others = len(items) - counts.total()
        self._texts = {code_of(item): item for item in counts}
        self._counts = {code_of(item): count for item, count in counts.items()}

    def talk(self, table: Table) -> Talk[TopK]:
        """Find the items with the others.

        Raises:
            UsageError: so many items that none stands out, or a member that breaks the rules.
        """
        return _Conversation(
            self._k, self._records, self._others, self._texts, self._counts, table
        ).talk()


@dataclass
class _Conversation:
    """One question among members that met."""

    k: int
    records: int
    others: int
    texts: Mapping[int, str]
    counts: Mapping[int, int]
    table: Table

    def talk(self) -> Talk[TopK]:
        records, best = yield from self._first()
        wanted, counts, here = yield from self._count(best, records)
        while _missed(records, here):
            records = np.where(here, records, 0.0)
            wanted, counts, here = yield from self._count(best, records)
        order = sorted(range(len(wanted)), key=lambda at: (-counts[:, at].sum(), wanted[at]))
        chosen = [at for at in order[: self.k] if counts[:, at].sum() > 0]
        holders = [int(np.flatnonzero(counts[:, at])[0]) for at in chosen]
        texts = yield from self._say([wanted[at] for at in chosen], holders)
        return self._answer(texts, [float(counts[:, at].sum()) for at in chosen], records)

    def _count(
        self, best: Sequence[Mapping[int, int]], records: F64
    ) -> Talk[tuple[list[int], F64, Bools]]:
        """Everybody's counts of all items that may be among the k best.

        Args:
            best: everybody's own k best.
            records: of each member; 0: it counts no more, and neither does what it has.

        Returns:
            The items, float64[m, items], and bool[m]: who was there. The first sum that misses one
            who counts is the last.
        """
        left = [one if count else {} for one, count in zip(best, records, strict=True)]
        least = max(1, -(-self._kth(left) // max(1, int(np.count_nonzero(records)))))
        known, here = yield from self._from(least, records)
        if _missed(records, here):
            return [], np.zeros((len(records), 0)), here
        wanted = self._possible(known, least)
        counts, here = yield from self._of(wanted, records)
        return wanted, counts, here

    def _answer(self, texts: Iterable[str], counts: Iterable[float], records: F64) -> TopK:
        return TopK(
            items=tuple(
                TopItem(item=text, count=count, sd=0.0, sure=True)
                for text, count in zip(texts, counts, strict=True)
            ),
            mode="plain",
            mechanism="every machine saw every machine's counts",
            epsilon=0.0,
            records=int(records.sum()),
            others=self.others,
            peers=int((records > 0).sum()),
            noise_sd=0.0,
        )  # fmt: skip

    def _kth(self, known: Sequence[Mapping[int, int]]) -> int:
        """The k-th best sum so far; 0 if there are fewer."""
        sums = sorted(_sums(known).values(), reverse=True)
        return sums[self.k - 1] if len(sums) >= self.k else 0

    def _possible(self, known: Sequence[Mapping[int, int]], least: int) -> list[int]:
        """Items that may be among the k best, ascending."""
        sums, kth = _sums(known), self._kth(known)
        having = Counter(code for one in known for code in one)
        members = len(known)
        return sorted(
            code
            for code, total in sums.items()
            if total + (members - having[code]) * (least - 1) >= kth
        )

    # ---- sums

    def _first(self) -> Talk[tuple[F64, list[dict[int, int]]]]:
        """Records, 0 of who is not there, and everybody's own k best."""
        best = sorted(self.counts.items(), key=lambda one: (-one[1], one[0]))[: self.k]

        def fault(place: int, start: int, head: F64, piece: F64) -> str:
            del place, start
            if not 1 <= head[0] <= ITEMS_MAX:
                return f"more than {ITEMS_MAX:,} items, or none"
            return _pairs_fault(piece, head[0], 1)

        head = np.array([float(self.records)])
        rows, _ = yield from self.table.exchange(b"first", head, _pairs(best, self.k), fault, 2)
        return rows[:, 0], _tallies(rows[:, 1:])

    def _ours(self, records: F64) -> Mapping[int, int]:
        """What we bring: nothing once we were missed."""
        return self.counts if records[self.table.place] else {}

    def _from(self, least: int, records: F64) -> Talk[tuple[list[dict[int, int]], Bools]]:
        """Everybody's items that it has at least so many times, and who was there."""
        mine = [(code, count) for code, count in self._ours(records).items() if count >= least]

        def many(place: int, start: int, head: F64, piece: F64) -> str:
            del start, piece
            return "" if head[0] * least <= records[place] else "more items than it can have"

        sizes, here = yield from self.table.exchange(
            b"sizes", np.array([float(len(mine))]), np.zeros(0), many
        )
        if _missed(records, here):  # perhaps ourselves: then there is no room for what we have
            return [], here
        width = int(sizes.max())
        self._refuse_wide(2 * width)

        def fault(place: int, start: int, head: F64, piece: F64) -> str:
            del start, head
            return _pairs_fault(piece, records[place], least)

        about = b"from" + least.to_bytes(8, "big")
        rows, here = yield from self.table.exchange(
            about, np.zeros(0), _pairs(mine, width), fault, 2
        )
        return _tallies(rows), here

    def _of(self, wanted: Sequence[int], records: F64) -> Talk[tuple[F64, Bools]]:
        """Everybody's counts of the wanted, float64[m, len(wanted)], and who was there."""
        self._refuse_wide(len(wanted))

        def fault(place: int, start: int, head: F64, piece: F64) -> str:
            del start, head
            return "more of its items than it has" if piece.sum() > records[place] else ""

        ours = self._ours(records)
        counts = np.array([float(ours.get(code, 0)) for code in wanted])
        about = b"of" + np.array(wanted, "<u8").tobytes()
        return (yield from self.table.exchange(about, np.zeros(0), counts, fault))

    def _say(self, codes: Sequence[int], holders: Sequence[int]) -> Talk[list[str]]:
        """The texts, each by the member that is to say it; `?` where that one is gone."""
        said = np.zeros((len(codes), TEXT_NUMBERS))
        for at, (code, holder) in enumerate(zip(codes, holders, strict=True)):
            if holder == self.table.place:  # counts of ours are as we sent them: it is among them
                said[at] = _packed(self.texts[code])

        def fault(place: int, start: int, head: F64, piece: F64) -> str:
            del head
            for at, numbers in enumerate(piece.reshape(-1, TEXT_NUMBERS), start // TEXT_NUMBERS):
                if holders[at] != place and numbers.any():
                    return "a text that another one was to say"
                if holders[at] == place and code_of(_unpacked(numbers)) != codes[at]:
                    return "a text that is not the item's"
            return ""

        about = b"say" + np.array(codes, "<u8").tobytes()
        rows, _ = yield from self.table.exchange(
            about, np.zeros(0), said.ravel(), fault, TEXT_NUMBERS
        )
        whole = rows.reshape(len(rows), len(codes), TEXT_NUMBERS)
        return [_unpacked(whole[holder, at]) or "?" for at, holder in enumerate(holders)]

    def _refuse_wide(self, width: int) -> None:
        if width * len(self.table.names) > TABLE_MAX:
            raise UsageError(
                f"hardly an item comes more often than the next: {self.k} of them cannot be told"
                " from all the others; ask for fewer"
            )


def _missed(records: F64, here: Bools) -> bool:
    """Whether one who counts is not there."""
    return bool((records[~here] > 0).any())


def _pairs(counts: Sequence[tuple[int, int]], length: int) -> F64:
    """Codes, each with its count, ascending; then zeros: float64[2 length]."""
    row = np.zeros((length, 2))
    if counts:
        row[: len(counts)] = sorted(counts)
    return row.ravel()


def _pairs_fault(piece: F64, records: float, least: int) -> str:
    codes, counts = piece[::2], piece[1::2]
    used = int((codes > 0).sum())
    if codes[used:].any() or (np.diff(codes[:used]) <= 0).any() or (codes > 1 << CODE_BITS).any():
        return "items out of order, or one twice"
    if counts[used:].any() or (counts[:used] < least).any() or counts.sum() > records:
        return "counts that its items cannot have"
    return ""


def _tallies(rows: F64) -> list[dict[int, int]]:
    """Counts by code, a member each."""
    return [
        {int(code): int(count) for code, count in row.reshape(-1, 2) if code > 0} for row in rows
    ]


def _sums(known: Sequence[Mapping[int, int]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for one in known:
        total.update(one)
    return total


def _packed(text: str) -> F64:
    """A text as numbers below 2^48, the number of its bytes first: float64[TEXT_NUMBERS]."""
    data = text.encode("utf-8", "replace")
    padded = data.ljust(PACKED_BYTES * (TEXT_NUMBERS - 1), b"\0")
    numbers = [
        float(int.from_bytes(padded[at : at + PACKED_BYTES], "big"))
        for at in range(0, len(padded), PACKED_BYTES)
    ]
    return np.array([float(len(data)), *numbers])


def _unpacked(numbers: F64) -> str:
    """The text of numbers; empty where they are none."""
    if not numbers.any() or (numbers >= 1 << 8 * PACKED_BYTES).any():
        return ""
    data = b"".join(int(number).to_bytes(PACKED_BYTES, "big") for number in numbers[1:])
    return data[: int(numbers[0])].decode("utf-8", "replace")
