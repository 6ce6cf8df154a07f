"""The memory's front door: remember, recall, get, list, history, forget, stats.

Signatures first; the parts behind them follow.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from memory.db import Db
    from memory.model import (
        Caller,
        Forgotten,
        History,
        Hits,
        NoteIn,
        Page,
        Query,
        Remembered,
        Stats,
    )
    from memory.seams import Env, Receipt


class MemoryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the `[memory]` section."""

    trust_min: float = 0.5
    postings: int = 20_000


class MemoryEvent(msgspec.Struct, frozen=True):
    """`memory.<name>` about ids (hex) of one scope; never text."""

    name: str
    ids: tuple[str, ...]
    scope: str


class Filter(msgspec.Struct, kw_only=True, frozen=True):
    """What `list` shows."""

    scope: str | list[str] | None = None
    tags: list[str] = []
    kinds: list[str] = []
    author: str | None = None
    since: str | None = None
    until: str | None = None
    status: str | None = None


class Memory(Protocol):
    """Interface; replaced by the class itself."""

    def __init__(
        self, db: Db, replica: object, env: Env, device: bytes, config: MemoryConfig | None = None
    ) -> None: ...
    async def remember(
        self,
        who: Caller,
        notes: Sequence[NoteIn],
        receipt: Receipt[Sequence[Remembered]] | None = None,
    ) -> list[Remembered]: ...
    async def recall(self, who: Caller, query: Query) -> Hits: ...
    async def get(self, who: Caller, ids: Sequence[str]) -> Hits: ...
    async def list(
        self, who: Caller, what: Filter, *, cursor: str | None = None, limit: int = 50
    ) -> Page: ...
    async def history(self, who: Caller, memory_id: str) -> History: ...
    async def forget(
        self,
        who: Caller,
        ids: Sequence[str],
        reason: str = "",
        receipt: Receipt[Sequence[Forgotten]] | None = None,
    ) -> builtins.list[Forgotten]: ...
    async def stats(self, who: Caller) -> Stats: ...
    async def set_device_name(self, name: str) -> None: ...
    async def receipt(self, key: bytes) -> bytes | None: ...
    def subscribe(self, fn: Callable[[MemoryEvent], None]) -> None: ...
