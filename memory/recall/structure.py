"""What a memory's place adds to its score: neighbours, thread, author, length. Pure.

An answer often does not hold the question's words: the turn before it does. Inside one thread, so
inside one owner, a memory therefore inherits from those beside it and from the thread's best. That
is worth 8-10 points of recall on LoCoMo without any model; spreading activation, relevance feedback
and recency boosts were tried and were worth nothing.

What a thread gives is only given among main-tier memories of the local owner or trusted from .8 up:
an author who writes into a thread to inherit its weight gets none (with it 99.7 % of the top five,
without it 34 %), and low-tier text never moves a main hit. Source: docs/specs/memory.md, *Recall*.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from memory.recall.fuse import STRUCTURE_TRUST, Terms
from memory.tiers import MAIN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from memory.recall.fuse import Candidate, Facts
    from memory.text.parse import Names

PREVIOUS: Final = 0.3
FOLLOWING: Final = 0.2
THREAD: Final = 0.5
AUTHOR: Final = 0.3
LENGTH: Final = 0.2
QUESTION: Final = -0.1

SHORT_CHARS: Final = 300
"""Below about this a text needs its neighbours to be understood."""

_SOFTNESS: Final = 50.0
_LENGTH_LN_MAX: Final = 6.0

Beside: TypeAlias = "Mapping[int, tuple[int | None, int | None]]"
"""By memory: those before and after it in its thread, among what the caller may read."""


def is_structured(facts: Facts) -> bool:
    """Whether a memory gives to its thread and takes from it."""
    return facts.tier == MAIN and (facts.own == 1 or facts.trust >= STRUCTURE_TRUST)


def add_structure(candidates: Sequence[Candidate], beside: Beside, names: Names) -> None:
    """Set the terms of normalised candidates.

    Args:
        candidates: of both tiers, with their base.
        beside: neighbours, of those candidates that have a thread.
        names: whom the question names.
    """
    inside = {c.facts.memory: c for c in candidates if is_structured(c.facts)}
    best: dict[bytes, float] = {}
    for candidate in inside.values():
        thread = candidate.facts.thread
        if thread is not None and candidate.base > best.get(thread, -1.0):
            best[thread] = candidate.base
    before, after = _adjacent(inside, beside)
    for candidate in candidates:
        facts = candidate.facts
        memory = facts.memory
        length = _length(facts.chars)
        question = QUESTION if facts.asks else 0.0
        if memory not in inside:
            candidate.terms = Terms(0.0, 0.0, 0.0, 0.0, length, question)
            continue
        inherited = THREAD * (candidate.base if facts.thread is None else best[facts.thread])
        author = AUTHOR if _is_meant(facts, names.one) else 0.0
        previous = inside.get(before[memory]) if memory in before else None
        following = inside.get(after[memory]) if memory in after else None
        if previous is None and following is None:
            candidate.terms = Terms(0.0, 0.0, inherited, author, length, question)
            continue
        near = shortness(facts.chars)
        candidate.terms = Terms(
            near * PREVIOUS * previous.base if previous is not None else 0.0,
            near * FOLLOWING * following.base if following is not None else 0.0,
            inherited,
            author,
            length,
            question,
        )


@lru_cache(maxsize=4096)
def _length(chars: int) -> float:
    return LENGTH * min(math.log1p(chars), _LENGTH_LN_MAX) / _LENGTH_LN_MAX


@lru_cache(maxsize=4096)
def shortness(chars: int) -> float:
    """1 for a short text, 0 for a long one, a half at 300 characters."""
    return 1.0 / (1.0 + math.exp(min((chars - SHORT_CHARS) / _SOFTNESS, 60.0)))


def _is_meant(facts: Facts, name: str | None) -> bool:
    """The one named; if nobody or several are, the person."""
    if name is None:
        return facts.role == "owner"
    return name in ((facts.speaker or "").lower(), facts.agent.lower())


def _adjacent(
    inside: Mapping[int, Candidate], beside: Beside
) -> tuple[dict[int, int], dict[int, int]]:
    """(the one before, the one after) by memory.

    Of a neighbour that only joined, `beside` knows one side; the other is the next place of the
    thread if that joined too.
    """
    before: dict[int, int] = {}
    after: dict[int, int] = {}
    places: dict[tuple[bytes, int], int] = {}
    for memory, candidate in inside.items():
        facts = candidate.facts
        if facts.thread is None:
            continue
        places[facts.thread, facts.pos] = memory
        previous, following = beside.get(memory, (None, None))
        if previous is not None:
            before[memory] = previous
            after[previous] = memory
        if following is not None:
            after[memory] = following
            before[following] = memory
    for memory, candidate in inside.items():
        facts = candidate.facts
        if facts.thread is None or memory in beside:
            continue
        for known, other, step in ((before, after, -1), (after, before, 1)):
            near = places.get((facts.thread, facts.pos + step))
            if near is not None and memory not in known and near not in other:
                known[memory] = near
                other[near] = memory
    return before, after
