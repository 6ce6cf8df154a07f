"""A query taken apart: words, phrases, names. Pure.

Names of those who wrote or spoke are worth much to the lexical side (a chunk's title is its
speaker) and nothing to the dense one, where they drag every turn of that person near: MiniLM finds
45.4 % of LoCoMo's evidence with the names in the query and 58.9 % without. So they leave the text
that is embedded and become a boost of the author. Source: docs/specs/memory.md, *Recall*.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

TERMS_MAX: Final = 64
"""Words of a query that are looked at; a query is at most 4 KiB, so this cuts pasted text only."""

NAME_WORDS_MAX: Final = 3
"""Longest name recognised, in words: `claude-code` has two."""

NAME_TERMS_MAX: Final = 32
"""Words of a query that may begin a name: three runs each, so under a hundred look-ups a scope."""

# The evaluation's list, so that figures compare: docs/specs/memory.md, *Full text*.
_STOP: Final = (
    "a an the of to in on at for and or but is are was were be been being am do does did doing "
    "have has had having i you he she it we they me him her us them my your his its our their "
    "this that these those what which who whom whose when where why how with from by as about into "
    "than then so if not no can could will would shall should may might must there "
    "here s t d ll re ve m"
)
STOP_WORDS: Final = frozenset(_STOP.split())

WORD: Final = re.compile(r"\w+")
# Quoted text, and what has no space inside but several words: paths, dotted names, versions, error
# codes. Worth more as a whole than word by word.
_PHRASE: Final = re.compile(r'"([^"\n]{2,200})"|([^\s"]{3,200})')
_SPACES: Final = re.compile(r"\s+")
# What joins the words of one name: `Ada Lovelace`, `claude-code`, `J. Doe`.
_JOINT: Final = re.compile(r"[ ._\-]{1,2}")
_POSSESSIVE: Final = r"(?:['\u2019]s\b)?"


class Words:
    """A query, taken apart.

    Attributes:
        terms: words to look for, lower case, stop words left out unless none is left.
        phrases: sequences of words that count as a whole.
    """

    __slots__ = ("phrases", "terms")

    def __init__(self, text: str) -> None:
        words = list(dict.fromkeys(self.all(text)))
        kept = [word for word in words if word not in STOP_WORDS]
        self.terms = (kept or words)[:TERMS_MAX]
        self.phrases: list[str] = []
        for quoted, name in _PHRASE.findall(text):
            parts = WORD.findall((quoted or name).lower().replace("_", " "))
            if len(parts) > 1 and len(self.phrases) < TERMS_MAX:
                self.phrases.append(" ".join(parts))

    @staticmethod
    def all(text: str) -> list[str]:
        """Every word of a text, in lower case."""
        return WORD.findall(text.lower())


class Names(NamedTuple):
    """Who a query names.

    Attributes:
        all: names recognised, as known here, in lower case.
        one: the only one, None if none or several are named.
    """

    all: tuple[str, ...] = ()
    one: str | None = None


def names_of(known: Collection[str]) -> Names:
    """The names of a query, from those of its runs that are known."""
    found = tuple(sorted({name.lower() for name in known}))
    return Names(found, found[0] if len(found) == 1 else None)


def possible_names(text: str) -> list[str]:
    """Runs of one to three words of a query that may be somebody's name, as written.

    A stop word alone is a name only when written like one inside a sentence: `did Will call`.
    """
    words = list(WORD.finditer(text))[:NAME_TERMS_MAX]
    runs: dict[str, None] = {}
    for at, first in enumerate(words):
        if first[0].lower() not in STOP_WORDS or (at and first[0][0].isupper()):
            runs[first[0]] = None
        end = first.end()
        for last in words[at + 1 : at + NAME_WORDS_MAX]:
            if not _JOINT.fullmatch(text, end, last.start()):
                break
            end = last.end()
            runs[text[first.start() : end]] = None
    return list(runs)


def dense_text(text: str, names: Sequence[str]) -> str:
    """What is embedded of a query: all of it but the names, with their `'s`."""
    left = text
    for name in sorted(names, key=len, reverse=True):
        pattern = rf"\b{re.escape(name)}\b{_POSSESSIVE}"
        left = re.sub(pattern, " ", left, flags=re.IGNORECASE)
    left = _SPACES.sub(" ", left).strip()
    return left if WORD.search(left) else text.strip()


def repeats(question: str, text: str, *, run_min: int = 5, share: float = 0.8) -> bool:
    """Whether a text repeats a question: at least five and four fifths of its words in a row.

    Of poison that carries the question to be found by it this catches 96-100 %, of true answers
    0-.7 %.
    """
    asked = Words.all(question)
    need = max(run_min, -(-len(asked) * int(share * 100) // 100))
    if len(asked) < need:
        return False
    words = f" {' '.join(Words.all(text))} "
    # Every run of that length holds the middle: one search settles nearly every text.
    middle = asked[len(asked) - need : need]
    if middle and f" {' '.join(middle)} " not in words:
        return False
    return any(
        f" {' '.join(asked[at : at + need])} " in words for at in range(len(asked) - need + 1)
    )
