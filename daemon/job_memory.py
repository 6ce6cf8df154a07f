"""A peer's question to this machine's memory: what `memory.search` reads, within what it may.

A device of ours may ask for what the home group holds, which it has anyway; a member of another
group for that group's scopes. `private/` scopes and other groups are for nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memory.model import Caller, Query, ScopeSet
from memory.scopes import readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from federated.jobs.handlers.memory import Question
    from federated.jobs.types import Row
    from federated.seams import GroupId, TrustClass
    from memory.storage.db import Db
    from memory.store import Memory
    from p2p.identity import PeerId
    from p2p.replication.service import Replication

PRIVATE: Final = "private"
NOTHING: Final = ScopeSet()
EVERYTHING: Final = ScopeSet(everything=True)


class JobMemory:
    """A `federated.jobs.handlers.memory.Search`.

    Args:
        memory: what is searched.
        db: its scopes.
        replication: the groups.
        device: this node.
    """

    def __init__(self, memory: Memory, db: Db, replication: Replication, device: PeerId) -> None:
        self._memory = memory
        self._db = db
        self._replication = replication
        self._device = bytes(device)

    async def __call__(self, question: Question) -> Sequence[Row]:
        """The best memories that who asks may read in the group, best first."""
        scopes = await self._scopes(question.trust, question.group)
        if not scopes.names:
            return []
        who = Caller(
            device=self._device,
            agent=f"peer-{bytes(question.caller).hex()[:8]}",
            is_owner=False,
            read=scopes,
            write=NOTHING,
        )
        hits = await self._memory.recall(who, Query(query=question.query, limit=question.limit))
        return [
            {
                "id": hit.id,
                "text": hit.text or hit.title,
                "author": hit.author.agent,
                "origin": hit.origin,
                "created": hit.created,
                "scope": hit.scope,
                "trust": round(hit.trust, 3),
            }
            for hit in hits.hits
        ]

    async def _scopes(self, trust: TrustClass, group: GroupId | None) -> ScopeSet:
        wanted: set[str] = set()
        if group is None:
            if trust != "own":
                return NOTHING
            prefix = ""
        else:
            name = next((v for v in self._replication.groups() if v.group == group), None)
            if name is None:
                return NOTHING
            prefix = "" if name.home else f"{name.name}/"

        def read(connection: apsw.Connection) -> list[str]:
            return [row.written for row in readable(connection, EVERYTHING, None)]

        for written in await self._db.read(read):
            head, slash, _ = written.partition("/")
            if (prefix and written.startswith(prefix)) or (not prefix and not slash):
                wanted.add(written)
            assert head != PRIVATE or written not in wanted, "private scopes are for nobody"
        return ScopeSet(names=frozenset(wanted))
