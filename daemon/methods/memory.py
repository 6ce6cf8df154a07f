"""`memory.*`: remember, recall and the rest of the memory's verbs."""

from __future__ import annotations

from typing import Literal

import msgspec

from daemon.agents import MAIN_SCOPE
from daemon.errors import RpcError
from daemon.rpc.registry import Call, Empty, Tool, method
from memory.erasure.choosing import EraseWhat
from memory.model import (
    NOTES_MAX,
    Claim,
    Forgotten,
    History,
    Hits,
    Kind,
    NoteIn,
    Page,
    Query,
    Remembered,
    Role,
    Source,
    Stats,
)
from memory.store import Filter

GET_IDS_MAX = 20
"""Of one `memory.get` (memory.md s.13): what a model can read at once."""

LIST_LIMIT_MAX = 200
"""Of one `memory.list` page."""


class RememberOne(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A note to remember, as an agent writes it.

    Attributes:
        text: what to remember, in full sentences; at most 64 KiB with all other fields.
        title: a few words to find it by.
        tags: words to filter by.
        scope: where it belongs; default the project you work on.
        kind: what it is.
        speaker: who said it, when it is quoted.
        thread: name of the conversation or document it is part of.
        source: where it was taken from.
        claim: subject, attribute, value: a later value replaces it.
        supersedes: ids of older notes of yours that this one replaces.
        derived_from: ids of memories this was concluded from.
        idempotency_key: the same key and text are stored once.
    """

    text: str
    title: str = ""
    tags: list[str] = []
    scope: str | None = None
    kind: Kind = "note"
    speaker: str | None = None
    thread: str | None = None
    source: Source | None = None
    claim: Claim | None = None
    supersedes: list[str] = []
    derived_from: list[str] = []
    idempotency_key: str | None = None


class RememberParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Up to 256 notes in one durable step, or one note by its own fields.

    Attributes:
        notes: the notes; then no other field is given.
    """

    notes: list[NoteIn] | None = None
    text: str | None = None
    title: str = ""
    tags: list[str] = []
    scope: str | None = None
    kind: Kind = "note"
    role: Role | None = None
    speaker: str | None = None
    thread: str | None = None
    pos: int | None = None
    at: str | None = None
    valid_from: str | None = None
    valid_to: str | None = None
    claim: Claim | None = None
    supersedes: list[str] = []
    derived_from: list[str] = []
    source: Source | None = None
    ttl_s: int | None = None
    idempotency_key: str | None = None


class RecallTool(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A question to the memory, as an agent asks it.

    Attributes:
        query: words to look for.
        limit: how many hits, at most 100.
        scope: one scope or several; default all you may read.
        tags: only notes with all of them.
        since: ISO 8601 date.
        author: agent or device name; only notes of that author.
        trust_min: leave out what is trusted less, 0 to 1.
        quarantined: also what is quarantined or barely trusted.
        detail: text, or index for titles only.
    """

    query: str
    limit: int = 8
    scope: str | list[str] | None = None
    tags: list[str] = []
    since: str | None = None
    author: str | None = None
    trust_min: float = 0.5
    quarantined: bool = False
    detail: str = "text"


class IdsParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Memories by id.

    Attributes:
        ids: full ids, or prefixes of at least 8 digits that are unique; at most 20.
    """

    ids: list[str]


class IdParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One memory by its id or a unique prefix of at least 8 digits."""

    id: str


class ListParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What to list, newest first.

    Attributes:
        scope: one scope or several; default all the caller may read.
        status: active, superseded, refuted, quarantined, forgotten or hidden; default active.
        trusted: leave out what recall would withhold.
        cursor: of the page before.
        limit: at most 200.
    """

    scope: str | list[str] | None = None
    tags: list[str] = []
    kinds: list[str] = []
    author: str | None = None
    since: str | None = None
    until: str | None = None
    status: str | None = None
    trusted: bool = False
    cursor: str | None = None
    limit: int = 50


class ForgetParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Memories to forget.

    Attributes:
        ids: full ids or unique prefixes.
        reason: why, for the history.
        erase: for ever, with every byte; needs the token's scope `erase`.
        undo: bring back what was forgotten.
    """

    ids: list[str]
    reason: str = ""
    erase: bool = False
    undo: bool = False


class ForgetTool(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One memory to forget.

    Attributes:
        id: its id.
        reason: why, for the history.
        erase: destroy it for ever instead; only if the user says so.
    """

    id: str
    reason: str = ""
    erase: bool = False


def _remember_one(arguments: msgspec.Struct) -> RememberParams:
    assert isinstance(arguments, RememberOne)
    return RememberParams(notes=[NoteIn(**msgspec.structs.asdict(arguments))])


def _recall_query(arguments: msgspec.Struct) -> Query:
    assert isinstance(arguments, RecallTool)
    return msgspec.convert(msgspec.structs.asdict(arguments), Query)


def _forget_one(arguments: msgspec.Struct) -> ForgetParams:
    assert isinstance(arguments, ForgetTool)
    return ForgetParams(ids=[arguments.id], reason=arguments.reason, erase=arguments.erase)


@method(
    "memory.remember",
    scope="write",
    mutates=True,
    tool=Tool(
        name="memory_remember",
        summary=(
            "Store a lasting memory: a decision, fact, preference or lesson that later sessions,"
            " other agents and the user's other machines should know. Do not store secrets."
        ),
        arguments=RememberOne,
        adapt=_remember_one,
    ),
)
async def remember(call: Call, p: RememberParams) -> list[Remembered]:
    """Store notes; what comes back as stored is on disk and can be recalled."""
    notes = _notes(p)
    default = call.context.project or MAIN_SCOPE
    placed = [
        note if note.scope else msgspec.structs.replace(note, scope=default) for note in notes
    ]
    for scope in {note.scope or default for note in placed}:
        call.services.roles.check_write(scope)
    return await call.services.memory.remember(call.context.caller(), placed, call.receipt)


def _notes(p: RememberParams) -> list[NoteIn]:
    if p.notes is None:
        if p.text is None:
            raise RpcError("invalid_params", "give text, or notes")
        fields = msgspec.structs.asdict(p)
        del fields["notes"]
        return [NoteIn(**fields)]
    if p.text is not None:
        raise RpcError("invalid_params", "give either text or notes, not both")
    if not 1 <= len(p.notes) <= NOTES_MAX:
        raise RpcError(
            "too_large", f"one call stores 1 to {NOTES_MAX} notes", data={"limit": NOTES_MAX}
        )
    return p.notes


@method(
    "memory.recall",
    scope="read",
    tool=Tool(
        name="memory_recall",
        read_only=True,
        idempotent=True,
        summary=(
            "Search the shared memory of the user's agents and machines. Ask before you start a"
            " task, and whenever earlier decisions, preferences or lessons may matter. Each hit"
            " shows author, origin and trust."
        ),
        arguments=RecallTool,
        adapt=_recall_query,
    ),
)
async def recall(call: Call, p: Query) -> Hits:
    """Find memories by words; each hit shows author, device, date and trust."""
    hits = await call.services.memory.recall(call.context.caller(), p)
    call.services.forgetting.note_used([bytes.fromhex(hit.id) for hit in hits.hits])
    return hits


@method(
    "memory.get",
    scope="read",
    tool=Tool(
        name="memory_get",
        read_only=True,
        idempotent=True,
        summary="Read memories in full by the ids that memory_recall showed.",
    ),
)
async def get(call: Call, p: IdsParams) -> Hits:
    """Read memories in full by id."""
    if not 1 <= len(p.ids) <= GET_IDS_MAX:
        raise RpcError(
            "too_large", f"one call reads 1 to {GET_IDS_MAX} ids", data={"limit": GET_IDS_MAX}
        )
    hits = await call.services.memory.get(call.context.caller(), p.ids)
    if not hits.hits:
        raise RpcError("not_found", "no memory of that id is here")
    call.services.forgetting.note_used([bytes.fromhex(hit.id) for hit in hits.hits])
    return hits


@method("memory.list", scope="read")
async def list_memories(call: Call, p: ListParams) -> Page:
    """List memories, newest first, page by page."""
    if not 1 <= p.limit <= LIST_LIMIT_MAX:
        raise RpcError(
            "too_large", f"limit is 1 to {LIST_LIMIT_MAX}", data={"limit": LIST_LIMIT_MAX}
        )
    what = Filter(
        scope=p.scope,
        tags=p.tags,
        kinds=p.kinds,
        author=p.author,
        since=p.since,
        until=p.until,
        status=p.status,
        trusted=p.trusted,
    )
    memory = call.services.memory
    return await memory.list(call.context.caller(), what, cursor=p.cursor, limit=p.limit)


@method(
    "memory.history",
    scope="read",
    tool=Tool(
        name="memory_history",
        read_only=True,
        idempotent=True,
        summary="Show everything signed about one memory: versions, links, who forgot it and why.",
    ),
)
async def history(call: Call, p: IdParams) -> History:
    """Show everything signed about one memory, oldest first."""
    return await call.services.memory.history(call.context.caller(), p.id)


@method(
    "memory.forget",
    scope="write",
    mutates=True,
    tool=Tool(
        name="memory_forget",
        destructive=True,
        idempotent=True,
        summary="Take a memory of yours out of recall, for good reason only. Its record is kept.",
        arguments=ForgetTool,
        adapt=_forget_one,
    ),
)
async def forget(call: Call, p: ForgetParams) -> list[Forgotten]:
    """Take memories out of recall; the signed records are kept. Or erase, or bring back."""
    if not 1 <= len(p.ids) <= NOTES_MAX:
        raise RpcError(
            "too_large", f"one call forgets 1 to {NOTES_MAX} ids", data={"limit": NOTES_MAX}
        )
    who = call.context.caller()
    if p.undo:
        return await call.services.forgetting.restore(who, p.ids, call.receipt)
    if p.erase:
        return await _erase(call, p.ids)
    return await call.services.memory.forget(who, p.ids, p.reason, call.receipt)


async def _erase(call: Call, ids: list[str]) -> list[Forgotten]:
    """Erase by the tool of forgetting; repeating it does nothing more, so it keeps no receipt."""
    if not call.principal.allows("erase"):
        raise RpcError("forbidden", "this agent may not erase: its token lacks the scope erase")
    who = call.context.caller()
    report = await call.services.eraser.erase(who, EraseWhat(ids=tuple(ids)))
    words: dict[str, Literal["not_found", "not_yours"]] = {
        "not_found": "not_found",
        "not_yours": "not_yours",
    }
    return [Forgotten(id=item.id, status=words.get(item.status, "erased")) for item in report.items]


@method("memory.stats", scope="read")
async def stats(call: Call, p: Empty) -> Stats:
    """Count memories by status, scope and origin; sizes of the files."""
    del p
    return await call.services.memory.stats(call.context.caller())
