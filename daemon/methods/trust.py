"""`trust.*`, `memory.feedback`, `memory.quarantine_*` and `group.rollback`: whom to believe."""

from __future__ import annotations

from typing import Literal

import msgspec

from daemon.errors import RpcError
from daemon.rpc.registry import Call, Tool, method
from memory.provenance import parse_iso
from memory.review.views import (
    Endorsed,
    Feedback,
    Quarantined,
    Reviewed,
    RolledBack,
    TrustExplained,
    TrustRow,
)


class ShowParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whom to show.

    Attributes:
        subject: an agent, `agent@device`, a device's name, or the beginning or ending of a device's
            or owner's id; None for everybody.
    """

    subject: str | None = None


class SubjectParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An author or owner: `agent`, `agent@device`, a device's name, or part of an id."""

    subject: str


class EndorseParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whom to vouch for.

    Attributes:
        subject: any agent or device of the owner.
        level: 1 to 100: from 50 on the endorsement passes your trust on; below it limits the owner.
        until: ISO 8601 date when it ends; None for never.
    """

    subject: str
    level: int = 80
    until: str | None = None


class FeedbackParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What became of relying on a memory.

    Attributes:
        id: its id, or a unique prefix of at least 8 digits.
        outcome: stale: it was true once.
        note: why, for the history.
        evidence: SHA-256 in hex of a test run or document that shows it.
    """

    id: str
    outcome: Literal["useful", "wrong", "stale", "harmful"]
    note: str = ""
    evidence: str = ""


class FeedbackTool(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What became of relying on a memory, as an agent says it.

    Attributes:
        id: the memory's id.
        outcome: stale: it was true once.
        note: why, in a sentence.
    """

    id: str
    outcome: Literal["useful", "wrong", "stale", "harmful"]
    note: str = ""


class QuarantineParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What to list.

    Attributes:
        scope: one scope; default all the caller may read.
        limit: at most 200.
    """

    scope: str | None = None
    limit: int = 50


class ReviewParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Memories to decide about: at most 50 ids or unique prefixes of at least 8 digits."""

    ids: list[str]


class RollbackParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What to roll back: an author since a time, or a rollback by its token.

    Attributes:
        author: `agent@device` for one agent, a device's name for all of them.
        agent: the agent, where `author` names a device.
        since: ISO 8601 date of the first record to cover.
        group: local name of one group; None for all.
        scope: `local`: on this machine only.
        dry_run: only count, and return a token.
        token: of a dry run: carry it out (with dry_run false); of one carried out: see undo.
        undo: bring back what the rollback of this token hid.
    """

    author: str | None = None
    agent: str | None = None
    since: str | None = None
    group: str | None = None
    scope: Literal["local"] = "local"
    dry_run: bool = True
    token: str | None = None
    undo: bool = False


def _judges(call: Call) -> None:
    """Whoever decides whom to trust is the person, or has been given that right.

    Raises:
        RpcError: forbidden.
    """
    if not (call.principal.allows("trust") or call.principal.allows("admin")):
        raise RpcError("forbidden", "this needs the token scope trust")


def _feedback(arguments: msgspec.Struct) -> FeedbackParams:
    assert isinstance(arguments, FeedbackTool)
    return FeedbackParams(**msgspec.structs.asdict(arguments))


@method(
    "memory.feedback",
    scope="read",
    mutates=True,
    tool=Tool(
        name="memory_feedback",
        summary=(
            "Report what became of relying on a memory: useful, wrong, stale or harmful. Its"
            " author's trust follows. Say it whenever you found out."
        ),
        arguments=FeedbackTool,
        adapt=_feedback,
    ),
)
async def feedback(call: Call, p: FeedbackParams) -> Feedback:
    """Report what became of relying on a memory; shows trust before and after."""
    desk = call.services.trust
    caller = call.context.caller()
    return await desk.feedback(caller, p.id, p.outcome, p.note, p.evidence, call.receipt)


@method("trust.show", scope="read")
async def show(call: Call, p: ShowParams) -> list[TrustRow]:
    """Show how far authors are trusted, most trusted first."""
    return await call.services.trust.show(p.subject)


@method("trust.explain", scope="read")
async def explain(call: Call, p: SubjectParams) -> list[TrustExplained]:
    """Explain an author's trust: the evidence with its dates, and what limits it."""
    return await call.services.trust.explain(call.context.caller(), p.subject)


@method("trust.endorse", scope="", mutates=True)
async def endorse(call: Call, p: EndorseParams) -> Endorsed:
    """Vouch for an owner, so that it and whom it vouches for are believed sooner."""
    _judges(call)
    until_ms = None if p.until is None else parse_iso(p.until, "until")
    if not 1 <= p.level <= 100:
        raise RpcError("invalid_params", "level is 1 to 100; `trust.distrust` is 0")
    caller = call.context.caller()
    return await call.services.trust.endorse(caller, p.subject, p.level, until_ms, call.receipt)


@method("trust.distrust", scope="", mutates=True)
async def distrust(call: Call, p: SubjectParams) -> Endorsed:
    """Trust nothing of an owner any more, until it is endorsed again."""
    _judges(call)
    return await call.services.trust.distrust(call.context.caller(), p.subject, call.receipt)


@method("memory.quarantine_list", scope="")
async def quarantine_list(call: Call, p: QuarantineParams) -> list[Quarantined]:
    """List what others wrote and recall does not show, newest first, and why."""
    _judges(call)
    return await call.services.trust.quarantine_list(call.context.caller(), p.scope, p.limit)


@method("memory.quarantine_release", scope="", mutates=True)
async def quarantine_release(call: Call, p: ReviewParams) -> list[Reviewed]:
    """Let recall show quarantined memories: the person says they are useful."""
    _judges(call)
    return await call.services.trust.quarantine_release(call.context.caller(), p.ids, call.receipt)


@method("memory.quarantine_reject", scope="", mutates=True)
async def quarantine_reject(call: Call, p: ReviewParams) -> list[Reviewed]:
    """Hide quarantined memories for good: the person says they are harmful."""
    _judges(call)
    return await call.services.trust.quarantine_reject(call.context.caller(), p.ids, call.receipt)


@method("group.rollback", scope="", mutates=True)
async def rollback(call: Call, p: RollbackParams) -> list[RolledBack]:
    """Hide what an author wrote since a time, on this machine; a dry run first, and undo.

    Without author and token it lists the rollbacks made here.
    """
    _judges(call)
    desk = call.services.trust
    if p.token is not None:
        if p.author is not None or p.since is not None:
            raise RpcError("invalid_params", "give a token, or author and since, not both")
        if p.undo:
            return [await desk.rollbacks.undo(p.token, call.progress)]
        if p.dry_run:
            raise RpcError("invalid_params", "a token is carried out with dry_run false, or undo")
        return [await desk.rollbacks.execute(p.token, call.progress)]
    if p.author is None:
        return await desk.rollbacks.listed()
    if p.since is None:
        raise RpcError("invalid_params", "since when? Give an ISO 8601 date as `since`")
    wanted = p.author if p.agent is None else f"{p.agent}@{p.author}"
    since_ms = parse_iso(p.since, "since")
    return [
        await desk.rollbacks.make(
            wanted, since_ms, p.group, dry_run=p.dry_run, progress=call.progress
        )
    ]
