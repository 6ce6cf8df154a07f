"""The most frequent items of several members, each record reported with noise of its own.

A member's part: its records, their codes and reports. How the members search them together is in
`private_search` and `tap_search`.

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

from federated.errors import UsageError
from federated.rounds.statistics import heavy_hitters as hh
from federated.rounds.statistics.items import other_of
from federated.rounds.statistics.limits import ITEMS_MAX
from federated.rounds.statistics.private_search import GradedSearch
from federated.rounds.statistics.tap_search import TapSearch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.rounds.privacy.local import Source
    from federated.rounds.statistics.answers import TopK, Way
    from federated.rounds.statistics.heavy_hitters import U64, Search
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
        way: how the reports are searched, the same at all members; it costs no privacy.
    """

    def __init__(
        self, coding: Coding, search: Search, known: Known, secret: bytes, way: Way = "graded"
    ) -> None:
        self._coding = coding
        self._search = search
        self._known = known
        self._way = way
        source = keyed(secret, coding, search, known.codes)
        self._reports = hh.Reports(search, known.codes, source)
        self._own = np.zeros(0, np.uint64)
        if search.levels > 1 and way == "graded":
            self._own = np.sort(hh.own_top(search, self._reports))

    def talk(self, table: Table) -> Talk[TopK]:
        """Find the items with the others.

        Raises:
            RoundError: `too_few`: so many records can say nothing.
            UsageError: a member that does not follow the rules.
        """
        parts = (self._coding, self._search, table, self._reports, self._known.others)
        if self._way == "tap":
            return TapSearch(*parts).talk()
        return GradedSearch(*parts, self._own).talk()
