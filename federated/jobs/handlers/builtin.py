"""The handlers that every node offers: `echo@1`, `hash@1`, `wordcount@1`.

Pure functions of a row: the worker runs many tasks of them in one trip to a thread.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Final

from federated.errors import PlanError
from federated.jobs.canon import canonical, digest
from federated.jobs.handlers.base import HandlerInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from federated.jobs.handlers.base import Batch, BatchRow, PureHandler
    from federated.jobs.types import RowOut

# Longer runs of letters are data, not words, and would make keys of any size.
WORD_CHARS_MAX: Final = 256

# Letters and digits, with apostrophes inside. Marks that NFC leaves apart from their letter end a
# word: Python's expressions know no class for them.
_WORD: Final = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def count_words(text: str, into: Counter[str]) -> None:
    """Add the words of `text`: NFC, without case, at most `WORD_CHARS_MAX` characters each."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    into.update(word for word in _WORD.findall(folded) if len(word) <= WORD_CHARS_MAX)


def sorted_pairs(counts: Counter[str]) -> list[list[object]]:
    """`[[word, n], ...]` in the order of the words' code points."""
    return [[word, counts[word]] for word in sorted(counts)]


class Echo:
    """`echo@1`: a row's own cells. Shows that a peer is there, and costs next to nothing."""

    info: Final = HandlerInfo(
        id="echo@1", kind="named", deterministic=True, summary="gives each row back"
    )

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        """Each row as it came."""
        return [(item.k, item.row, "") for item in batch.rows]


class Hash:
    """`hash@1`: `{"hash": hex}`, the blake2b-256 of a row's canonical form."""

    info: Final = HandlerInfo(
        id="hash@1", kind="named", deterministic=True, summary="a row's blake2b-256"
    )

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        """A hash a row; `missing: bad_row` for one without a canonical form."""
        return [self._one(item) for item in batch.rows]

    @staticmethod
    def _one(item: BatchRow) -> RowOut:
        try:
            return item.k, {"hash": digest(canonical(item.row)).hex()}, ""
        except PlanError:
            return item.k, None, "bad_row"


class WordCount:
    """`wordcount@1`: `{"pairs": [[word, n], ...]}` of a row's text, in the order of the words.

    The text is the filled template, or else the cell `text`. Which letters are one after folding
    depends on the Unicode version of the interpreter; the words of living languages are the same
    in all that we run on.
    """

    info: Final = HandlerInfo(
        id="wordcount@1", kind="named", deterministic=True, summary="counts the words of a text"
    )

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        """The words of each row; `missing: no_text` without a text."""
        return [self._one(item) for item in batch.rows]

    @staticmethod
    def _one(item: BatchRow) -> RowOut:
        text = item.text if item.text is not None else item.row.get("text")
        if not isinstance(text, str):
            return item.k, None, "no_text"
        counts: Counter[str] = Counter()
        count_words(text, counts)
        return item.k, {"pairs": sorted_pairs(counts)}, ""


def builtins() -> Iterable[PureHandler]:
    """What every node offers to whoever may hand it work at all."""
    return (Echo(), Hash(), WordCount())
