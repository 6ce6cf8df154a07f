"""Settings of the memory: the `[memory]` section of the configuration."""

from __future__ import annotations

from typing import Literal

import msgspec


class MemoryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the `[memory]` section.

    Attributes:
        postings: documents a query's terms may match together in the main index before the most
            frequent terms are left out; higher finds more and takes longer.
        cache: give an answer again while nothing that it could show has changed.
        embedder: `auto` uses the model of the extra `embed` where it is installed, `minilm` insists
            on it, `none` searches by words alone.
        vector_ram_bytes: codes of vectors held in memory, 384 bytes each; those beyond it are read
            from the database, 2 ms a recall.
        unverified_days: days after which a foreign memory that nobody confirmed and no answer
            showed is forgotten on this machine; it can be brought back.
        scope_memories_max: memories of one scope that stay findable; over it those are forgotten on
            this machine that were used least for their age.
    """

    postings: int = 20_000
    cache: bool = True
    embedder: Literal["auto", "none", "minilm"] = "auto"
    vector_ram_bytes: int = 96 * 2**20
    unverified_days: int = 90
    scope_memories_max: int = 200_000

    def __post_init__(self) -> None:
        if self.postings < 1:
            raise ValueError("postings must be at least 1")
        if self.vector_ram_bytes < 0:
            raise ValueError("vector_ram_bytes must not be negative")
        if self.unverified_days < 1:
            raise ValueError("unverified_days must be at least 1")
        if self.scope_memories_max < 1:
            raise ValueError("scope_memories_max must be at least 1")
