"""`memory.erase` and `memory.maintain`: what goes for ever, and upkeep by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from daemon.errors import RpcError
from daemon.methods.group import find_group
from daemon.methods.peers import device_names, shown_name
from daemon.rpc.registry import Call, method
from memory.erasure.choosing import EraseWhat
from memory.erasure.report import EraseReport
from memory.provenance import iso
from memory.text.maintenance import reindex

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable


class EraseParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What to erase: ids, or all by an author, or all about a subject.

    Attributes:
        ids: full ids or unique prefixes; at most 256.
        author: agent, `agent@device`, or a device's name, peer id or key.
        subject: claim subject, or a phrase that the text holds.
        dry_run: list and count, change nothing.
        for_group: as an admin, have every member erase what others below this machine wrote; they
            hide it at once and erase it a day after they hear of it.
    """

    ids: list[str] = []
    author: str | None = None
    subject: str | None = None
    dry_run: bool = False
    for_group: bool = False


class MaintainParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A task of upkeep.

    Attributes:
        task: `reindex`, `reembed`, `forget_behaviour` or `forget_unused`.
    """

    task: str


class Maintained(msgspec.Struct, kw_only=True):
    """What a task did.

    Attributes:
        task: which.
        count: chunks indexed anew, vectors to make anew, memories forgotten by rule.
    """

    task: str
    count: int


class ErasureParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which erasures: of a group by local name or id; None for all groups."""

    group: str | None = None


class ErasureRow(msgspec.Struct, kw_only=True):
    """An erasure that a group's members were told of.

    Attributes:
        id: of the signed erase record, hex.
        group: local name.
        by: shown name of the machine that erased.
        at: ISO 8601.
        records: how many records it names.
        confirmed: shown names of the machines that say they erased it.
        outstanding: members that have not said so yet.
        out_of_reach: machines that left the group without a word on it; they may hold it for ever.
        hidden_until: of an admin's erasure that hides records here: ISO 8601 of when they go.
    """

    id: str
    group: str
    by: str
    at: str
    records: int
    confirmed: list[str]
    outstanding: list[str]
    out_of_reach: list[str]
    hidden_until: str | None = None


@method("sync.erasure", scope="read")
async def erasures(call: Call, p: ErasureParams) -> list[ErasureRow]:
    """Show per erasure which machines confirmed it, who is outstanding, who is out of reach."""
    services = call.services
    names = await device_names(services)
    only = None if p.group is None else find_group(services, p.group)

    def shown(keys: Iterable[bytes]) -> list[str]:
        return [shown_name(names, key, services) for key in keys]

    return [
        ErasureRow(
            id=one.id.hex(),
            group=view.name,
            by=shown_name(names, one.author, services),
            at=iso(one.at_ms),
            records=one.records,
            confirmed=shown(word.member for word in one.confirmed),
            outstanding=shown(one.outstanding),
            out_of_reach=shown(one.out_of_reach),
            hidden_until=iso(one.hidden_until_ms) if one.hidden_until_ms else None,
        )
        for view in services.replication.groups()
        if only in {None, view.group}
        for one in services.replication.erasures(view.group)
    ]


LATER = frozenset({"consolidate", "rank_train", "rank_reset"})
"""Tasks of the specification that this version does not have."""


@method("memory.erase", scope="erase", mutates=True)
async def erase(call: Call, p: EraseParams) -> EraseReport:
    """Erase memories for ever and search every file of this node for what is left of them."""
    what = EraseWhat(ids=tuple(p.ids), author=p.author, subject=p.subject)
    return await call.services.eraser.erase(
        call.context.caller(),
        what,
        dry_run=p.dry_run,
        for_group=p.for_group,
        receipt=call.receipt,
        progress=call.progress,
    )


@method("memory.maintain", scope="owner", mutates=True)
async def maintain(call: Call, p: MaintainParams) -> Maintained:
    """Do a task of upkeep now: reindex, reembed, forget_behaviour or forget_unused."""
    tasks: dict[str, Callable[[Call], Awaitable[int]]] = {
        "reindex": lambda call: reindex(call.services.db),
        "reembed": lambda call: call.services.embeddings.reembed(),
        "forget_behaviour": _forget_behaviour,
        "forget_unused": lambda call: call.services.forgetting.apply_rules(),
    }
    if p.task in LATER:
        raise RpcError("invalid_params", f"task {p.task} comes with a later version of Covey")
    task = tasks.get(p.task)
    if task is None:
        raise RpcError("invalid_params", f"there is no task {p.task}: {', '.join(sorted(tasks))}")
    return Maintained(task=p.task, count=await task(call))


async def _forget_behaviour(call: Call) -> int:
    await call.services.behaviour.forget()
    return 0
