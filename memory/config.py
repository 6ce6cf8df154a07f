"""Settings of the memory: the `[memory]` section of the configuration."""

from __future__ import annotations

import msgspec


class MemoryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the `[memory]` section.

    Attributes:
        postings: documents a query's terms may match together in the main index before the most
            frequent terms are left out; higher finds more and takes longer.
    """

    postings: int = 20_000

    def __post_init__(self) -> None:
        if self.postings < 1:
            raise ValueError("[memory] postings must be at least 1")
