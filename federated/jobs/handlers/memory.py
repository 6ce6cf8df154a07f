"""`memory.search@1`: a question put to this node's memory, within what the asker may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from federated.jobs.handlers.base import HandlerInfo, TaskLimits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.jobs.handlers.base import Batch, BatchRow, TaskCtx
    from federated.jobs.types import Row, RowOut
    from federated.seams import GroupId, TrustClass
    from p2p.identity import PeerId

RESULTS_DEFAULT: Final = 5
RESULTS_MAX: Final = 20
QUERY_CHARS_MAX: Final = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a peer asks this node's memory.

    Attributes:
        caller: the proven id of who asks.
        owner: whose device it is.
        trust: what it is to us in the group.
        group: within which; None: between own devices.
        query: words, as a person would type them.
        limit: most memories, 1 to `RESULTS_MAX`.
    """

    caller: PeerId
    owner: bytes
    trust: TrustClass
    group: GroupId | None
    query: str
    limit: int


class Search(Protocol):
    """What the daemon injects: the memory, bound to what a peer may read of it."""

    async def __call__(self, question: Question) -> Sequence[Row]:
        """The best memories that who asks may read in the group, best first."""
        ...


class MemorySearch:
    """`memory.search@1`.

    Row: {query, limit?}, or a template that makes the query. Answer: {"memories": [...]}, each as
    the daemon shows it. Not deterministic: the memory changes between two looks.

    Args:
        search: the memory.
    """

    info: Final = HandlerInfo(
        id="memory.search@1",
        kind="memory",
        deterministic=False,
        local=True,
        limits=TaskLimits(wall_s=30.0),
        summary="searches this node's memory, within what the asker may read",
    )

    def __init__(self, search: Search) -> None:
        self._search = search

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        """Search for each row in turn; a row without a question is missing."""
        return [await self._one(item, ctx) for item in batch.rows]

    async def aclose(self) -> None:
        """Nothing is kept between tasks."""

    async def _one(self, item: BatchRow, ctx: TaskCtx) -> RowOut:
        query = item.text if item.text is not None else item.row.get("query")
        limit = item.row.get("limit", RESULTS_DEFAULT)
        if not isinstance(query, str) or not query.strip() or len(query) > QUERY_CHARS_MAX:
            return item.k, None, "bad_query"
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            return item.k, None, "bad_limit"
        question = Question(
            caller=ctx.caller, owner=ctx.owner, trust=ctx.trust, group=ctx.group, query=query,
            limit=min(limit, RESULTS_MAX),
        )  # fmt: skip
        found = await self._search(question)
        return item.k, {"memories": list(found[:RESULTS_MAX])}, ""
