"""Whether two texts say the same, nearly the same, or something else. Pure.

Three questions, each stricter than the one before. `likeness`: are they about the same thing: the
share of the smaller text's words, and of its identifiers, that the other has too. `is_update`: is
one perhaps a newer state of the other: nearly all words in common, whatever differs. `essence`: do
they say the same: every word that carries meaning, in order, equal. Only the last lets an answer
show one for both. A share of common words cannot decide that: a text that holds all of a true one
and a lie besides, or one that turns a single word around, has nearly all of its words.

Source: docs/specs/memory.md, *Duplicates*; docs/decisions/0010-same-means-equal.md.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from memory.text.parse import STOP_WORDS

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

UPDATE_CONTAINMENT: Final = 0.8
"""Share of common words from which one text may be an update of another (memory.md s.4)."""

UPDATE_WORDS_MIN: Final = 6
"""Content words below which a share of common words says nothing."""

LINEAGE_CONTAINMENT: Final = 0.5
"""Share of common words from which a text comes from one that its writer has just read."""

ESSENCE_WORDS_MIN: Final = 3
"""Shorter texts say too little for two of them to be the same statement. Guess."""

_WORD: Final = re.compile(r"\w+")
_TOKEN: Final = re.compile(r"\S+")
_EDGES: Final = "\"'`.,;:!?()[]{}<>*"
# Inside a token: paths, URLs, dotted names. A hyphen does not count: half the compounds of prose.
_JOINED: Final = re.compile(r"\w[./:\\]+\w|^[./~]+\w")
_NOT_ALNUM: Final = re.compile(r"[\W_]+")

# What only frames a statement at a word's edges. Not a leading `!`, `-` or `.`, nor `?`: they say
# something.
_OPENING: Final = "\"'`([{"
_CLOSING: Final = "\"'`)]}.,;:!"

# What a sentence can lose and still say the same: articles, forms of be, have and do, pronouns.
# Prepositions of direction, modal verbs and negations stay: "from a to b" is not "to a from b",
# "may" is not "must".
_FILLER_WORDS: Final = (
    "a an the is are was were be been being am has have had having do does did i you we "
    "my your our this that these those there here on at in of and"
)
_FILLER: Final = frozenset(_FILLER_WORDS.split())


class Sketch(NamedTuple):
    """What comparing a text needs of it.

    Attributes:
        words: its words without stop words.
        identifiers: tokens with a digit, paths, URLs and dotted names, without punctuation.
    """

    words: frozenset[str]
    identifiers: frozenset[str]


def content_words(text: str) -> frozenset[str]:
    """The words of a text in lower case, without stop words."""
    return frozenset(_WORD.findall(text.lower())) - STOP_WORDS


def sketch(text: str) -> Sketch:
    """The sketch of a text."""
    return Sketch(content_words(text), frozenset(_identifiers(text.lower())))


def _identifiers(lowered: str) -> list[str]:
    found = []
    for token in _TOKEN.findall(lowered):
        bare = token.strip(_EDGES)
        if any(map(str.isdigit, bare)) or _JOINED.search(bare):
            plain = _NOT_ALNUM.sub("", bare)
            if plain:
                found.append(plain)
    return found


def containment(a: AbstractSet[str], b: AbstractSet[str]) -> float:
    """Share of the smaller set that the other has too, 0 to 1; 0 if one is empty."""
    if not a or not b:
        return 0.0
    return len(a & b) / min(len(a), len(b))


def likeness(a: Sketch, b: Sketch) -> float:
    """How far two texts are about the same thing, 0 to 1.

    The mean of the containments of words and of identifiers; of words alone if a side has no
    identifiers. On product and bibliography records it finds more than Jaccard or a cosine.
    """
    words = containment(a.words, b.words)
    if not a.identifiers or not b.identifiers:
        return words
    return (words + containment(a.identifiers, b.identifiers)) / 2


def is_update(a: Sketch, b: Sketch) -> bool:
    """Whether one may be a newer state of the other: nearly all words in common."""
    return (
        min(len(a.words), len(b.words)) >= UPDATE_WORDS_MIN
        and containment(a.words, b.words) >= UPDATE_CONTAINMENT
    )


def essence(*parts: str) -> int | None:
    """64 bits by which texts that say the same are known; None for too few words.

    Equal if the words are, in their order, but for case, punctuation around words and words that
    carry no meaning. Every other difference keeps two texts apart.

    Args:
        parts: the text, and what else belongs to the statement; their borders count.

    Returns:
        The first 8 bytes of BLAKE2b, as a signed number.
    """
    lists = [_meaning(part) for part in parts]
    if len(lists[0]) < ESSENCE_WORDS_MIN:
        return None
    data = "\n".join(" ".join(words) for words in lists).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


def _meaning(text: str) -> list[str]:
    found = []
    for token in text.split():
        word = token
        if not (token.isalpha() and token.islower()):  # most words of prose need no more
            word = token.lstrip(_OPENING).rstrip(_CLOSING)
            if _is_word(word):
                word = word.lower()
        if word and word not in _FILLER:
            found.append(word)
    return found


def _is_word(token: str) -> bool:
    """Whether case carries no meaning: not in names such as `aB3` or `maxSize`."""
    return token.isalpha() and (token.islower() or token.istitle() or token.isupper())
