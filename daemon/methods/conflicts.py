"""`memory.conflicts` and `memory.resolve`: memories that contradict each other."""

from __future__ import annotations

import msgspec

from daemon.rpc.registry import Call, method
from memory.model import Conflicts, Resolved


class ConflictsParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which contradictions to list, newest first.

    Attributes:
        scope: one scope or several; default all the caller may read.
        limit: at most 100.
    """

    scope: str | list[str] | None = None
    limit: int = 20


class ResolveParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The side that holds.

    Attributes:
        id: its id or a unique prefix of at least 8 digits.
    """

    id: str


@method("memory.conflicts", scope="read")
async def conflicts(call: Call, p: ConflictsParams) -> Conflicts:
    """List memories that contradict each other, both sides with author, date and trust."""
    return await call.services.conflicts.conflicts(call.context.caller(), p.scope, p.limit)


@method("memory.resolve", scope="write", mutates=True)
async def resolve(call: Call, p: ResolveParams) -> Resolved:
    """Say which side of a conflict holds; what contradicts it is refuted. The person only."""
    return await call.services.conflicts.resolve(call.context.caller(), p.id, call.receipt)
