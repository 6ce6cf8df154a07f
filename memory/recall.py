"""Recall: from a question to hits, in one short read transaction.

Steps, numbered as in docs/specs/memory.md, *Recall*: 1 parse, 2 lexical candidates from the main
and the low index, 5 normalise, 7 weigh by trust, 8 withhold, 9 pair what is replaced with what
replaces it, 10 spend the token budget. One statement a channel, three for the hits: no query per
hit.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from memory.behaviour import Features, Shown
from memory.errors import RefusedError
from memory.fts import (
    CHUNK_POOL,
    MEMORY_POOL,
    POSTINGS_LOW_MAX,
    Words,
    expression,
    stem,
    within_budget,
)
from memory.fuse import Candidate, best_chunks, cap_distrusted, fuse, length_discount
from memory.hits import (
    Row,
    Successor,
    ceiling,
    limited_by,
    load_previews,
    load_rows,
    load_texts,
    make_hit,
    successor,
)
from memory.model import Explain, Hit, Hits, Withheld
from memory.provenance import PERSON, parse_iso, peer_text
from memory.scopes import readable
from memory.trust import LOW, MAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.fts import Frequencies
    from memory.fuse import ChunkRow
    from memory.model import Caller, Query
    from memory.scopes import ScopeRow
    from memory.seams import Cell

QUERY_BYTES_MAX: Final = 4096
LIMIT_MAX: Final = 100

CHAIN_MAX: Final = 16
"""Versions followed from an old memory to its newest."""

# The scope's token weighs nothing, a title twice a text (a weight multiplies tf, so divides k1).
# `ORDER BY bm25()` instead of `rank`: .75 ms against .98 for 300 of 521 chunks.
_COLUMNS: Final = "c.memory, -t.b, m.chunks, m.eff_trust, m.status, a.owner"
_JOINS: Final = (
    " JOIN chunk c ON c.id = t.id JOIN memory m ON m.id = c.memory JOIN author a ON a.id = m.author"
    " WHERE (m.expires_ms IS NULL OR m.expires_ms > ?)"
)
_PLAIN: Final = {
    MAIN: "SELECT "
    + _COLUMNS
    + " FROM (SELECT rowid AS id, bm25(main_fts, 0.0, 4.0, 2.0) AS b FROM main_fts"
    " WHERE main_fts MATCH ? ORDER BY b LIMIT ?) t" + _JOINS,
    LOW: "SELECT "
    + _COLUMNS
    + " FROM (SELECT rowid AS id, bm25(low_fts, 0.0, 4.0, 2.0) AS b FROM low_fts"
    " WHERE low_fts MATCH ? ORDER BY b LIMIT ?) t" + _JOINS,
}
# With filters the best chunks must be looked for among those that pass, so the pool is cut last.
_FILTERED: Final = {
    MAIN: "SELECT "
    + _COLUMNS
    + " FROM (SELECT rowid AS id, bm25(main_fts, 0.0, 4.0, 2.0) AS b FROM main_fts"
    " WHERE main_fts MATCH ?) t" + _JOINS,
    LOW: "SELECT "
    + _COLUMNS
    + " FROM (SELECT rowid AS id, bm25(low_fts, 0.0, 4.0, 2.0) AS b FROM low_fts"
    " WHERE low_fts MATCH ?) t" + _JOINS,
}
_FILTER_TAIL: Final = " ORDER BY t.b LIMIT ?"


class Filters(NamedTuple):
    """Conditions on `memory m`, as SQL of constants and bound values."""

    sql: str
    bound: tuple[Cell, ...]


class _Shown(NamedTuple):
    """A place in the answer."""

    memory: int
    candidate: Candidate
    newer: Successor | None


def check_query(query: Query) -> None:
    """Refuse a query outside its limits.

    Raises:
        RefusedError: `invalid` or `too_large`.
    """
    if not query.query.strip():
        raise RefusedError("invalid", "query is empty: say what to look for")
    if len(query.query.encode(errors="replace")) > QUERY_BYTES_MAX:
        raise RefusedError("too_large", f"query is longer than {QUERY_BYTES_MAX} bytes")
    if not 1 <= query.limit <= LIMIT_MAX:
        raise RefusedError("invalid", f"limit must be 1 to {LIMIT_MAX}")
    if not 0 <= query.trust_min <= 1:
        raise RefusedError("invalid", "trust_min must be 0 to 1")
    if query.budget_tokens < 0:
        raise RefusedError("invalid", "budget_tokens must not be negative")


def build_filters(
    connection: apsw.Connection,
    *,
    kinds: Sequence[str] = (),
    tags: Sequence[str] = (),
    author: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Filters:
    """Conditions of a query or a listing.

    Raises:
        RefusedError: `invalid` date.
    """
    parts: list[str] = []
    bound: list[Cell] = []
    if kinds:
        parts.append("m.kind IN (SELECT value FROM json_each(?))")
        bound.append(json.dumps(list(kinds)))
    for tag in tags:
        parts.append("EXISTS (SELECT 1 FROM json_each(m.tags) WHERE value = ?)")
        bound.append(tag)
    if author is not None:
        parts.append("m.author IN (SELECT value FROM json_each(?))")
        bound.append(json.dumps(find_authors(connection, author)))
    if since is not None:
        parts.append("m.at_ms >= ?")
        bound.append(parse_iso(since, "since"))
    if until is not None:
        parts.append("m.at_ms <= ?")
        bound.append(parse_iso(until, "until"))
    return Filters("".join(f" AND {part}" for part in parts), tuple(bound))


def find_authors(connection: apsw.Connection, written: str) -> list[int]:
    """Author rows that a person means by `agent`, `agent@device`, a device's name, id or key."""
    wanted = written.strip().lower()
    rows = connection.execute(
        "SELECT a.id, a.agent, a.device, d.name FROM author a LEFT JOIN device d"
        " ON d.key = a.device"
    )
    found = []
    for author, agent, device, name in rows:
        key = cast("bytes", device)
        devices = {peer_text(key).lower(), key.hex()} | ({str(name).lower()} if name else set())
        agent_name = (str(agent) or PERSON).lower()
        names = devices | {agent_name} | {f"{agent_name}@{device}" for device in devices}
        if wanted in names:
            found.append(cast("int", author))
    return found


def recall(
    connection: apsw.Connection,
    who: Caller,
    query: Query,
    frequencies: Frequencies,
    *,
    postings_max: int,
    now_ms: int,
    noted: list[Shown] | None = None,
) -> Hits:
    """Answer a checked query; `ms` is left for the caller to fill in.

    Args:
        connection: in a read transaction.
        who: the caller.
        query: checked by `check_query`.
        frequencies: document frequencies known from before.
        postings_max: see `MemoryConfig.postings`.
        now_ms: the time.
        noted: filled with what is shown and what its order was made from, for the feedback log.
    """
    scopes = readable(connection, who.read, query.scope)
    filters = build_filters(
        connection,
        kinds=query.kinds,
        tags=query.tags,
        author=query.author,
        since=query.since,
        until=query.until,
    )
    words = Words(query.query)
    unlimited = who.read.everything and query.scope is None
    candidates: list[Candidate] = []
    for tier, budget in ((MAIN, postings_max), (LOW, POSTINGS_LOW_MAX)):
        matched = _expression(connection, words, scopes, frequencies, tier, budget, unlimited)
        if matched:
            candidates += _channel(connection, tier, matched, filters, now_ms)
    ranked = fuse(candidates)
    trusted = [c for c in ranked if c.trust >= query.trust_min]
    kept, capped = cap_distrusted(trusted, query.limit)
    withheld = Withheld(low_trust=len(ranked) - len(trusted) + capped)
    shown = _pair(connection, kept, query, {scope.id for scope in scopes})
    hits = _hits(connection, shown, query, withheld, now_ms)
    if noted is not None:
        noted += _noted(hits, shown, words)
    return Hits(hits=hits, withheld=withheld, searched=len(candidates), ms=0.0)


def _expression(
    connection: apsw.Connection,
    words: Words,
    scopes: Sequence[ScopeRow],
    frequencies: Frequencies,
    tier: int,
    budget: int,
    unlimited: bool,
) -> str:
    """The channel's full-text expression; empty if nothing can match."""
    chunks = sum(s.main_chunks if tier == MAIN else s.low_chunks for s in scopes)
    if not chunks or not words.terms:
        return ""
    terms: Sequence[str] = words.terms
    if chunks > budget:
        terms = within_budget(
            terms,
            lambda term: frequencies.count(connection, tier, stem(connection, term), chunks),
            budget,
        )
    ids = None if unlimited else [s.id for s in scopes]
    return expression(words, terms, ids)


def _channel(
    connection: apsw.Connection, tier: int, matched: str, filters: Filters, now_ms: int
) -> list[Candidate]:
    """Candidates of one index."""
    pool = CHUNK_POOL[tier]
    if filters.sql:
        sql = _FILTERED[tier] + filters.sql + _FILTER_TAIL
        rows = connection.execute(sql, (matched, now_ms, *filters.bound, pool))
    else:
        rows = connection.execute(_PLAIN[tier], (matched, pool, now_ms))
    return best_chunks(cast("list[ChunkRow]", rows.fetchall()), tier, MEMORY_POOL[tier])


def _pair(
    connection: apsw.Connection, ranked: Sequence[Candidate], query: Query, scopes: set[int]
) -> list[_Shown]:
    """The answer's places: a replaced memory never stands alone, its newest version leads it."""
    shown: list[_Shown] = []
    placed: set[int] = set()
    by_memory = {candidate.memory: candidate for candidate in ranked}
    for candidate in ranked:
        if len(shown) >= query.limit:
            break
        if candidate.memory in placed:
            continue
        newer, head = _head(connection, candidate, query, scopes, by_memory)
        if head is not None and head.memory not in placed:
            placed.add(head.memory)
            shown.append(_Shown(head.memory, head, None))
        placed.add(candidate.memory)
        shown.append(_Shown(candidate.memory, candidate, newer))
    return shown[: query.limit]


def _head(
    connection: apsw.Connection,
    candidate: Candidate,
    query: Query,
    scopes: set[int],
    by_memory: dict[int, Candidate],
) -> tuple[Successor | None, Candidate | None]:
    """(what replaces the candidate directly, its newest version as a candidate) if to be shown."""
    if candidate.status != "superseded":
        return None, None
    newer = at = successor(connection, candidate.memory)
    for _ in range(CHAIN_MAX):
        if at is None or at.status != "superseded":
            break
        at = successor(connection, at.memory) or at
    if newer is None or at is None or newer.scope not in scopes or at.scope not in scopes:
        return None, None
    head = by_memory.get(at.memory) or _load_candidate(connection, at, candidate)
    return newer, head if head.trust >= query.trust_min else None


def _load_candidate(connection: apsw.Connection, newest: Successor, found: Candidate) -> Candidate:
    """A newest version that the words did not find: it stands where the old one would."""
    row = load_rows(connection, [newest.memory])[newest.memory]
    head = Candidate(
        found.tier,
        (newest.memory, found.bm25, row.chunks, row.trust, row.status, found.owner),
    )
    head.norm, head.score = found.norm, found.norm * row.trust
    return head


def _hits(
    connection: apsw.Connection,
    shown: Sequence[_Shown],
    query: Query,
    withheld: Withheld,
    now_ms: int,
) -> list[Hit]:
    """Bodies in rank order until the budget is spent, index lines for the rest."""
    rows = load_rows(connection, [item.memory for item in shown])
    spent = 0
    whole: list[int] = []
    for item in shown:
        size = rows[item.memory].tokens
        if query.detail == "text" and spent + size <= query.budget_tokens:
            spent += size
            whole.append(item.memory)
    if query.detail == "text":
        withheld.over_budget = len(shown) - len(whole)
    texts = load_texts(connection, whole)
    lines = [i.memory for i in shown if i.memory not in texts and not rows[i.memory].title]
    previews = load_previews(connection, lines) if lines else {}
    hits = []
    for item in shown:
        row = rows[item.memory]
        hit = make_hit(
            row,
            now_ms=now_ms,
            text=texts.get(item.memory),
            preview=previews.get(item.memory, ""),
            score=item.candidate.score,
            superseded_by=None if item.newer is None else item.newer.id,
        )
        if query.explain:
            hit.explain = _explain(connection, row, item.candidate)
        hits.append(hit)
    return hits


def _noted(hits: Sequence[Hit], shown: Sequence[_Shown], words: Words) -> list[Shown]:
    """What is shown, for the feedback log."""
    return [
        Shown(
            bytes.fromhex(hit.id),
            rank,
            Features(
                bm25=item.candidate.norm,
                base=item.candidate.norm,
                chunks=item.candidate.chunks,
                words=len(words.terms),
            ),
        )
        for rank, (hit, item) in enumerate(zip(hits, shown, strict=True), 1)
    ]


def _explain(connection: apsw.Connection, row: Row, candidate: Candidate) -> Explain:
    return Explain(
        bm25=round(candidate.bm25, 6),
        bm25_norm=round(candidate.norm, 6),
        length_discount=round(length_discount(candidate.chunks), 6),
        author_trust=round(row.author_trust, 6),
        role_ceiling=ceiling(row),
        trust=round(row.trust, 6),
        limited_by=limited_by(connection, row),
        score=round(candidate.score, 6),
        chunks=candidate.chunks,
    )
