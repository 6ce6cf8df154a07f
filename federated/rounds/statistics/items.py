"""Items as codes of m bits, and back: what heavy hitters are counted by.

Two ways, both public. A vocabulary that everybody has: an item's code is its place in it. Or
letters: 5 bits each, the first six letters, 30 bits in all; longer words fall together with others
of the same beginning, shorter ones end in zeros. Anything else (a URL, a name in another script)
needs a vocabulary: under local privacy nobody may be asked what a hash stands for. An item that has
no code is counted as `other`, a code that is never looked for: it is reported like any other, as
leaving it out would tell that it was there.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from federated.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    U64: TypeAlias = NDArray[np.uint64]

LETTER_BITS: Final = 5
LETTERS: Final = 6
LETTERS_BITS: Final = LETTER_BITS * LETTERS
VOCABULARY_MAX: Final = 1 << 20
ITEM_CHARS_MAX: Final = 200
SHOWN: Final = 40
_BEFORE_A: Final = ord("a") - 1


class Letters:
    """Words of a to z by their first six letters."""

    bits: Final = LETTERS_BITS
    limit: Final = (1 << LETTERS_BITS) - 1
    """Codes from it on stand for no item."""
    public: Final = b"letters/6"
    """What must be equal for two members to mean the same by a code."""

    def encode(self, items: Sequence[str]) -> U64:
        """Codes: uint64[n].

        Raises:
            UsageError: naming the first item that is no word of a to z.
        """
        codes = self.encode_all(items)
        for place in np.flatnonzero(codes == other_of(self)).tolist():
            raise UsageError(
                f"item {place + 1}, {items[place][:SHOWN]!r}: give words of the letters a to z, or"
                " a vocabulary"
            )
        return codes

    def encode_all(self, items: Sequence[str]) -> U64:
        """Codes, `other_of` for what is no word of a to z: uint64[n]."""
        known = {item: _letters(item) for item in set(items)}
        return np.array([known[item] for item in items], np.uint64)

    def decode(self, code: int) -> str:
        """The letters of a code; `?` for a sign that no letter has."""
        found = []
        for place in range(LETTERS):
            sign = code >> (LETTER_BITS * (LETTERS - 1 - place)) & 31
            found.append(chr(_BEFORE_A + sign) if 1 <= sign <= 26 else "?" if sign else " ")
        return "".join(found).rstrip().replace(" ", "?")


def _letters(item: str) -> int:
    if not (item.isascii() and item.isalpha()):
        return (1 << LETTERS_BITS) - 1
    code = 0
    for sign in item.lower()[:LETTERS].ljust(LETTERS, "`"):
        code = code << LETTER_BITS | ord(sign) - _BEFORE_A
    return code


@dataclass(frozen=True)
class Vocabulary:
    """Items of a public list; the same list at every member.

    Attributes:
        items: each once, at least two.
    """

    items: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a list that cannot be one.

        Raises:
            UsageError: too few, too many, too long, or one twice.
        """
        if not 2 <= len(self.items) <= VOCABULARY_MAX:
            raise UsageError(f"vocabulary: give 2 to {VOCABULARY_MAX:,} items")
        seen = set()
        for place, item in enumerate(self.items):
            if not 1 <= len(item) <= ITEM_CHARS_MAX:
                raise UsageError(f"vocabulary, item {place + 1}: 1 to {ITEM_CHARS_MAX} characters")
            if item in seen:
                raise UsageError(f"vocabulary, item {place + 1}: {item[:SHOWN]!r} is there twice")
            seen.add(item)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return len(self.items).bit_length()

    @property
    def limit(self) -> int:
        """Codes from it on stand for no item."""
        return len(self.items)

    @property
    def public(self) -> bytes:
        """What must be equal for two members to mean the same by a code."""
        body = b"".join(
            len(item.encode()).to_bytes(4, "big") + item.encode() for item in self.items
        )
        return b"vocabulary/" + sha256(body).digest()

    def encode(self, items: Sequence[str]) -> U64:
        """Codes: uint64[n].

        Raises:
            UsageError: naming the first item that is not in the vocabulary.
        """
        codes = self.encode_all(items)
        for place in np.flatnonzero(codes == other_of(self)).tolist():
            raise UsageError(f"item {place + 1}, {items[place][:SHOWN]!r}: not in the vocabulary")
        return codes

    def encode_all(self, items: Sequence[str]) -> U64:
        """Codes, `other_of` for what the vocabulary does not have: uint64[n]."""
        places = {item: place for place, item in enumerate(self.items)}
        other = other_of(self)
        return np.array([places.get(item, other) for item in items], np.uint64)

    def decode(self, code: int) -> str:
        """The item of a code; `?` where the vocabulary has none."""
        return self.items[code] if 0 <= code < len(self.items) else "?"


Coding: TypeAlias = Letters | Vocabulary


def other_of(coding: Coding) -> int:
    """The code of all that has none: the highest one, so that it begins like few others."""
    return (1 << coding.bits) - 1
