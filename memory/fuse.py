"""From channel scores to one order. Pure.

With no embedder the fused score is the normalised BM25. Main candidates set the scale and low ones
are clipped into it, so no flood of low-tier text can move a main hit. The sum is multiplied by
trust and *not* normalised again: doing so left an attacker at trust .5 with 13-26 % of the top
five, not doing so 2-8 %. Source: docs/specs/memory.md, *Recall*.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeAlias

from memory.trust import MAIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


ChunkRow: TypeAlias = tuple[int, float, int, float, str, bytes]
"""(memory, BM25 of a chunk, chunks of the memory, E, status, owner key)."""


class Candidate:
    """A memory that a channel found.

    Attributes:
        memory: its row.
        tier: index it was found in.
        bm25: raw score of its best chunk, higher is better.
        chunks: number of its chunks.
        trust: E.
        status: active, superseded, refuted.
        owner: its author's owner key.
        norm: BM25 after length discount and normalisation, 0 to 1.
        score: rank value.
    """

    __slots__ = ("bm25", "chunks", "memory", "norm", "owner", "score", "status", "tier", "trust")

    def __init__(self, tier: int, row: ChunkRow) -> None:
        self.tier = tier
        self.memory, self.bm25, self.chunks, self.trust, self.status, self.owner = row
        self.norm = 0.0
        self.score = 0.0


def length_discount(chunks: int) -> float:
    """Factor on the best chunk's score: many chunks are many draws. BEAM R@10 42.5 -> 51.8."""
    return max(0.4, 1.0 - 0.2 * math.log(max(chunks, 1)))


_DISCOUNTS: Final = tuple(length_discount(chunks) for chunks in range(64))


def best_chunks(found: Iterable[ChunkRow], tier: int, memories_max: int) -> list[Candidate]:
    """One candidate a memory, its best chunk; the best `memories_max` of them."""
    best: dict[int, ChunkRow] = {}
    for row in found:
        seen = best.get(row[0])
        if seen is None or row[1] > seen[1]:
            best[row[0]] = row
    ranked = sorted((-row[1] * _DISCOUNTS[min(row[2], 63)], -row[0]) for row in best.values())[
        :memories_max
    ]
    return [Candidate(tier, best[-memory]) for _, memory in ranked]


def fuse(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Normalise, weigh by trust, sort: best first, newer first among equals."""
    raw = [c.bm25 * length_discount(c.chunks) for c in candidates]
    main = [value for value, c in zip(raw, candidates, strict=True) if c.tier == MAIN]
    scale = main or raw
    low, high = (min(scale), max(scale)) if scale else (0.0, 0.0)
    for value, candidate in zip(raw, candidates, strict=True):
        candidate.norm = _min_max(value, low, high)
        candidate.score = max(candidate.norm, 0.0) * candidate.trust
    return sorted(candidates, key=lambda c: (-c.score, -c.memory))


def _min_max(value: float, low: float, high: float) -> float:
    if high <= low:
        return 1.0 if value > 0 else 0.0
    return min(1.0, max(0.0, (value - low) / (high - low)))


def cap_distrusted(
    ranked: Sequence[Candidate], limit: int, below: float = 0.5
) -> tuple[list[Candidate], int]:
    """Admit few items below trust .5 even when asked: one an owner, a fifth of the answer.

    Returns:
        What stays, in order, and how many were left out.
    """
    places = math.ceil(limit / 5)
    owners: set[bytes] = set()
    kept = []
    for candidate in ranked:
        if candidate.trust < below:
            if candidate.owner in owners or len(owners) >= places:
                continue
            owners.add(candidate.owner)
        kept.append(candidate)
    return kept, len(ranked) - len(kept)
