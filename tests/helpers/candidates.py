"""Candidates of a recall, made by hand."""

from __future__ import annotations

from memory.recall.fuse import Candidate, Facts
from memory.tiers import MAIN

PLAIN = Facts(
    memory=1, tier=MAIN, scope=1, kind="note", role="agent", speaker=None, agent="claude",
    owner=b"o", own=1, thread=None, pos=1, hlc=1, chars=0, asks=0, chunks=1, status="active",
    trust=1.0, flags=0, backed=0, cluster=None, expires_ms=None,
)  # fmt: skip


def make_candidate(
    memory: int, bm25: float | None = None, *, cosine: float | None = None, **facts: object
) -> Candidate:
    """A candidate with these raw scores and facts."""
    made = Facts._make({**PLAIN._asdict(), "memory": memory, **facts}.values())
    return Candidate(made, bm25=bm25, cosine=cosine)
