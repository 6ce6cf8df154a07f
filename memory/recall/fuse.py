"""From channel scores to one order. Pure.

Main candidates set the scale and low ones are clipped into it, so no flood of low-tier text can
move a main hit. The sum is multiplied by trust and *not* normalised again: doing so left an
attacker at trust .5 with 13-26 % of the top five, not doing so 2-8 %. The weights are fixed; they
were chosen looking at LoCoMo and BEAM, where neighbouring settings differ by less than the standard
error. Source: docs/specs/memory.md, *Recall*.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from memory.tiers import MAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

WEIGHT_LEXICAL: Final = 0.4
WEIGHT_DENSE: Final = 0.6

DENSE_DISCOUNT: Final = 0.08
"""Taken from a best chunk's cosine for each unit of ln n: many chunks are many draws."""

SCORE_MAX: Final = 2.5
"""Largest sum there can be (1 + .5 + .5 + .3 + .2): shown scores are divided by it."""

ECHO: Final = 0.5
"""Factor on somebody else's text that repeats the question."""

STRUCTURE_TRUST: Final = 0.8
"""Others' memories below this get nothing from their thread. Withheld below .8, a .9 author who
writes five texts a question reaches 34 % of the top five; given to all, 83 %."""

ChunkScore: TypeAlias = tuple[int, float, int]
"""(memory, BM25 of a chunk, higher is better, chunks of the memory)."""


class Facts(NamedTuple):
    """What ranking knows of a memory.

    Attributes:
        memory: its row.
        tier: the index it is in.
        scope: row of its scope.
        chars: characters of its text.
        asks: 1 if the text ends with a question mark.
        trust: E.
        own: 1 if the author is of the local owner.
    """

    memory: int
    tier: int
    scope: int
    kind: str
    role: str
    speaker: str | None
    agent: str
    owner: bytes
    own: int
    thread: bytes | None
    pos: int
    hlc: int
    chars: int
    asks: int
    chunks: int
    status: str
    trust: float
    flags: int
    backed: int
    cluster: int | None
    expires_ms: int | None


class Terms(NamedTuple):
    """What the place of a memory adds to its own score."""

    previous: float = 0.0
    following: float = 0.0
    thread: float = 0.0
    author: float = 0.0
    length: float = 0.0
    question: float = 0.0


_NO_TERMS: Final = Terms()


class Candidate:
    """A memory that a channel found, or that stands beside one.

    Attributes:
        facts: what is known of it.
        bm25: raw score of its best chunk, None where it was not asked for.
        cosine: that of its best chunk, None while none of its chunks has a vector.
        bm25_norm: discounted by length, 0 to 1 over the main candidates.
        cosine_norm: the same of the cosine.
        base: convex sum of both.
        terms: structure.
        f: base and structure, before trust.
        echo: 1, or `ECHO`.
        score: max(f, 0) * E * echo.
        rank: place by f alone, from 1.
    """

    __slots__ = (
        "base", "bm25", "bm25_norm", "cosine", "cosine_norm", "echo", "f", "facts", "rank",
        "score", "terms",
    )  # fmt: skip

    def __init__(
        self, facts: Facts, *, bm25: float | None = None, cosine: float | None = None
    ) -> None:
        self.facts = facts
        self.bm25 = bm25
        self.cosine = cosine
        self.bm25_norm = self.cosine_norm = self.base = self.f = self.score = 0.0
        self.terms = _NO_TERMS
        self.echo = 1.0
        self.rank = 0

    @property
    def memory(self) -> int:
        """Its row."""
        return self.facts.memory

    @property
    def trust(self) -> float:
        """E."""
        return self.facts.trust


def length_discount(chunks: int) -> float:
    """Factor on the best chunk's BM25: many chunks are many draws. BEAM R@10 42.5 -> 51.8."""
    return max(0.4, 1.0 - 0.2 * math.log(max(chunks, 1)))


@lru_cache(maxsize=256)
def dense_discount(chunks: int) -> float:
    """What is taken from the best chunk's cosine for their number."""
    return DENSE_DISCOUNT * math.log(max(chunks, 1))


_DISCOUNTS: Final = tuple(length_discount(chunks) for chunks in range(64))


def best_chunks(
    found: Iterable[ChunkScore], memories_max: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Raw scores of best chunks: (of the best `memories_max` memories, of all).

    The best stand in their order, by score discounted for length; newer first among equals.
    """
    best: dict[int, float] = {}
    sizes: dict[int, int] = {}
    for memory, score, chunks in found:
        if score > best.get(memory, -math.inf):
            best[memory] = score
            sizes[memory] = chunks
    ranked = sorted(
        (-score * _DISCOUNTS[min(sizes[memory], 63)], -memory) for memory, score in best.items()
    )
    return {-memory: best[-memory] for _, memory in ranked[:memories_max]}, best


def normalise(candidates: Sequence[Candidate], *, dense: bool) -> None:
    """Set the normalised channel scores and their convex sum.

    Args:
        candidates: of both tiers.
        dense: whether the question has a vector; without one the sum is the BM25.
    """
    scores = [(c.bm25 or 0.0) * _DISCOUNTS[min(c.facts.chunks, 63)] for c in candidates]
    scale = _scale(candidates, scores)
    for candidate, value in zip(candidates, scale, strict=True):
        candidate.bm25_norm = candidate.base = value
    if not dense:
        return
    seen = [c for c in candidates if c.cosine is not None]
    scores = [(c.cosine or 0.0) - dense_discount(c.facts.chunks) for c in seen]
    for candidate in candidates:
        candidate.cosine_norm = candidate.bm25_norm
    for candidate, value in zip(seen, _scale(seen, scores), strict=True):
        candidate.cosine_norm = value
    for candidate in candidates:
        candidate.base = WEIGHT_LEXICAL * candidate.bm25_norm + WEIGHT_DENSE * candidate.cosine_norm


def _scale(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[float]:
    """Scores between the least and greatest of the main candidates, low ones clipped into it."""
    main = [s for s, c in zip(scores, candidates, strict=True) if c.facts.tier == MAIN] or scores
    if not main:
        return []
    low, high = min(main), max(main)
    if high <= low:
        return [1.0 if score > 0 else 0.0 for score in scores]
    span = high - low
    scaled = [(score - low) / span for score in scores]
    if len(main) == len(scores):
        return scaled
    return [min(1.0, max(0.0, value)) for value in scaled]


def weigh(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Sum, weigh by trust, sort: best first, newer first among equals.

    Trust multiplies after everything else, so a score never falls when trust rises.
    """
    for candidate in candidates:
        facts = candidate.facts
        candidate.f = f = candidate.base + sum(candidate.terms)
        candidate.score = f * facts.trust * candidate.echo if f > 0 else 0.0
    return sorted(candidates, key=_by_score)


def _by_score(candidate: Candidate) -> tuple[float, int]:
    return -candidate.score, -candidate.facts.memory


def rank_by_sum(candidates: Sequence[Candidate]) -> None:
    """Set the places by f alone, before trust."""
    for rank, candidate in enumerate(sorted(candidates, key=lambda c: (-c.f, -c.memory)), 1):
        candidate.rank = rank


def cap_distrusted(
    ranked: Sequence[Candidate], limit: int, distrusted: Callable[[Candidate], bool]
) -> tuple[list[Candidate], int]:
    """Admit few distrusted items even when asked: one an owner, a fifth of the answer.

    Returns:
        What stays, in order, and how many were left out.
    """
    places = math.ceil(limit / 5)
    owners: set[bytes] = set()
    kept = []
    for candidate in ranked:
        if distrusted(candidate):
            if candidate.facts.owner in owners or len(owners) >= places:
                continue
            owners.add(candidate.facts.owner)
        kept.append(candidate)
    return kept, len(ranked) - len(kept)


def collapse(ranked: Sequence[Candidate]) -> tuple[list[Candidate], dict[int, int]]:
    """Of each cluster of duplicates the one that is trusted most, at its own place.

    Returns:
        What stays, in order, and by memory how many others it stands for.
    """
    best: dict[int, Candidate] = {}
    sizes: dict[int, int] = {}
    for candidate in ranked:
        cluster = candidate.facts.cluster
        if cluster is None:
            continue
        sizes[cluster] = sizes.get(cluster, 0) + 1
        head = best.get(cluster)
        # A low item never stands for a main one, whatever its trust: no flood takes a place away.
        if head is None or _standing(candidate) > _standing(head):
            best[cluster] = candidate
    kept = [c for c in ranked if c.facts.cluster is None or best[c.facts.cluster] is c]
    return kept, {c.memory: sizes[cluster] - 1 for cluster, c in best.items() if sizes[cluster] > 1}


def _standing(candidate: Candidate) -> tuple[int, float]:
    return -candidate.facts.tier, candidate.facts.trust
