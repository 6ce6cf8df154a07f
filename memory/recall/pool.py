"""The candidates of a recall: what its channels find, and what stands beside them.

One statement for the words, one for what is known of all, one for the neighbours, and one for the
words' scores that are still missing: no query per candidate. Vectors are searched in memory.
Everything happens in the caller's read transaction, within the caller's scopes. Source:
docs/specs/memory.md, *Recall*.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias, cast

from memory.recall.fuse import STRUCTURE_TRUST, Candidate, Facts, best_chunks, dense_discount
from memory.recall.structure import SHORT_CHARS, is_structured
from memory.text.fts import CHUNK_POOL, MEMORY_POOL
from memory.text.parse import Names, names_of, possible_names
from memory.tiers import LOW, MAIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import apsw
    import numpy as np
    from numpy.typing import NDArray

    from memory.recall.filters import Filters
    from memory.recall.fuse import ChunkScore

_TABLES: Final = {MAIN: "main_fts", LOW: "low_fts"}
_UNEXPIRED: Final = " AND (m.expires_ms IS NULL OR m.expires_ms > ?)"

# The scope's token weighs nothing, a title twice a text (a weight multiplies tf, so divides k1).
# `ORDER BY bm25()` instead of `rank`: .75 ms against .98 for 300 of 521 chunks.
_MATCHES: Final = {
    tier: f"SELECT rowid AS id, bm25({table}, 0.0, 4.0, 2.0) AS b FROM {table}"
    f" WHERE {table} MATCH ?"
    for tier, table in _TABLES.items()
}
# What has expired counts as 0 chunks: that the pool was full must show.
_LEXICAL: Final = {
    tier: f"SELECT c.memory, -t.b, (1{_UNEXPIRED}) * m.chunks"
    f" FROM ({matches} ORDER BY b LIMIT ?) t"
    " CROSS JOIN chunk c ON c.id = t.id CROSS JOIN memory m ON m.id = c.memory"
    for tier, matches in _MATCHES.items()
}
# With filters the best chunks must be looked for among those that pass, so the pool is cut last.
_FILTERED: Final = {
    tier: f"SELECT c.memory, -t.b, m.chunks FROM ({matches}) t"
    f" CROSS JOIN chunk c ON c.id = t.id CROSS JOIN memory m ON m.id = c.memory WHERE 1{_UNEXPIRED}"
    for tier, matches in _MATCHES.items()
}
_FILTER_TAIL: Final = " ORDER BY t.b LIMIT ?"

# Without the + every row id would run the query anew: 35 ms against .4.
_SCORES: Final = {
    tier: f"SELECT c.memory, -bm25({table}, 0.0, 4.0, 2.0) FROM {table} CROSS JOIN chunk c"
    f" ON c.id = {table}.rowid WHERE {table} MATCH ? AND +{table}.rowid IN"
    " (SELECT k.id FROM json_each(?) j CROSS JOIN chunk k ON k.memory = j.value)"
    for tier, table in _TABLES.items()
}

# Whose memories these are, of those whose authors nobody here has proved yet.
_UNPROVEN: Final = (
    "SELECT m.id, a.owner FROM json_each(?) j CROSS JOIN memory m ON m.id = j.value"
    " CROSS JOIN author a ON a.id = m.author"
    f" WHERE m.eff_trust < {STRUCTURE_TRUST} AND a.class NOT IN ('own', 'own_device')"
)
_ANY_UNPROVEN: Final = (
    "SELECT EXISTS (SELECT 1 FROM author WHERE class NOT IN ('own', 'own_device'))"
)
_NOT_OF: Final = (
    f" AND NOT (m.eff_trust < {STRUCTURE_TRUST} AND m.author IN"
    " (SELECT a.id FROM author a CROSS JOIN json_each(?) o ON a.owner = unhex(o.value)))"
)

OWNER_POOL: Final = 20
"""Memories of one foreign owner below .8 in a pool. Without it a member at .53 who writes 200 texts
a question fills the whole pool: 93 % of the top five, 73 of 79 points of the right answers lost."""

FLOODED_CHUNKS: Final = 5_000
"""Vectors looked at where such an owner fills the pool, to find the others' behind its own."""

_CHUNKS: Final = (
    "SELECT m.id, m.chunks FROM json_each(?) j CROSS JOIN memory m ON m.id = j.value"
    f" WHERE 1{_UNEXPIRED}"
)

_FACTS: Final = (
    "SELECT m.id, m.tier, m.scope, m.kind, m.role, m.speaker, a.agent, a.owner,"
    " a.class IN ('own', 'own_device'), m.thread, m.pos, m.hlc, m.chars, m.asks, m.chunks,"
    " m.status, m.eff_trust, m.flags, m.backed, m.cluster, m.expires_ms FROM json_each(?) j"
    " CROSS JOIN memory m ON m.id = j.value CROSS JOIN author a ON a.id = m.author"
    f" WHERE m.tier < 2{_UNEXPIRED}"
)

LEADING: Final = 40
"""Memories of each channel whose neighbours are asked for and may join: those of the rest reach no
answer of a usual length, and every candidate costs 10 us."""

_PASSED_MAX: Final = 32
"""Memories of a thread looked at on each side for a neighbour: what is hidden, low or of another
scope is passed over, but a thread full of it must not cost a recall."""

# A thread is one owner's, so either all of it is trusted for its owner (?2 = 0) or each by its E.
_BESIDE: Final = (
    "SELECT m.id, (SELECT p.id FROM (SELECT q.id, q.tier, q.eff_trust, q.scope FROM memory q"
    " WHERE q.thread = m.thread AND (q.pos, q.hlc) < (m.pos, m.hlc)"
    f" ORDER BY q.pos DESC, q.hlc DESC LIMIT {_PASSED_MAX}) p WHERE p.tier = 0"
    " AND p.eff_trust >= ?2{scoped} LIMIT 1),"
    " (SELECT p.id FROM (SELECT q.id, q.tier, q.eff_trust, q.scope FROM memory q"
    " WHERE q.thread = m.thread AND (q.pos, q.hlc) > (m.pos, m.hlc)"
    f" ORDER BY q.pos, q.hlc LIMIT {_PASSED_MAX}) p WHERE p.tier = 0"
    " AND p.eff_trust >= ?2{scoped} LIMIT 1)"
    " FROM json_each(?1) j CROSS JOIN memory m ON m.id = j.value"
)
_SCOPED: Final = " AND p.scope IN (SELECT value FROM json_each(?3))"

# Names count where somebody trusted uses them: a stranger who calls itself `deploy` would take the
# word out of every question. The constant is that of the partial index.
_NAMES: Final = (
    "SELECT j.value FROM json_each(?1) j WHERE EXISTS (SELECT 1 FROM json_each(?2) s"
    " CROSS JOIN memory m ON m.scope = s.value AND m.speaker = j.value COLLATE NOCASE"
    " AND m.speaker IS NOT NULL AND m.eff_trust >= 0.7 AND m.tier = 0)"
    " OR EXISTS (SELECT 1 FROM author a CROSS JOIN json_each(?2) s"
    " CROSS JOIN memory m ON m.author = a.id AND m.scope = s.value"
    " WHERE a.agent = j.value COLLATE NOCASE AND a.trust >= 0.7)"
)

Beside: TypeAlias = "dict[int, tuple[int | None, int | None]]"


class Found(Protocol):
    """A chunk found by its vector."""

    @property
    def memory(self) -> int:
        """Row of its memory."""
        ...

    @property
    def cosine(self) -> float:
        """With the question's vector."""
        ...


class Vectors(Protocol):
    """The part of `memory.embedding.vectors.VectorIndex` that recall uses."""

    model: str

    def search(
        self,
        connection: apsw.Connection,
        vector: NDArray[np.float32],
        *,
        scopes: Sequence[int] | None,
        tier: int,
        chunks: int,
    ) -> Sequence[Found]:
        """The best chunks of a tier, descending; scopes None for all."""
        ...

    def nearest(
        self,
        connection: apsw.Connection,
        vector: NDArray[np.float32],
        *,
        scopes: Sequence[int] | None,
        tier: int,
        chunks: int,
    ) -> tuple[dict[int, float], int]:
        """(cosines of those chunks' memories, descending; how many chunks those are)."""
        ...

    def cosines(
        self, connection: apsw.Connection, vector: NDArray[np.float32], memories: Sequence[int]
    ) -> Mapping[int, tuple[float, int]]:
        """(best chunk's cosine, chunks with a vector), of the memories that have any."""
        ...


class Words(NamedTuple):
    """What the lexical channel found in one index.

    Attributes:
        best: BM25 of the best memories, in their order.
        known: BM25 of all whose chunks were looked at.
        whole: whether nothing else matches.
    """

    best: dict[int, float]
    known: dict[int, float]
    whole: bool


class Asked(NamedTuple):
    """What the channels look for.

    Attributes:
        expressions: full-text expression of each tier, empty where nothing can match.
        vectors: the index, None without a vector of the question.
        vector: float32[dim], None with it.
        scopes: scope rows that may be shown.
        unlimited: whether those are all there are.
        filters: the query's.
        now_ms: what has expired by then is gone.
    """

    expressions: Mapping[int, str]
    vectors: Vectors | None
    vector: NDArray[np.float32] | None
    scopes: tuple[int, ...]
    unlimited: bool
    filters: Filters
    now_ms: int


def known_names(connection: apsw.Connection, text: str, scopes: Sequence[int]) -> Names:
    """Authors and speakers of these scopes whom a query names."""
    runs = possible_names(text)
    if not runs or not scopes:
        return Names()
    found = connection.execute(_NAMES, (json.dumps(runs), json.dumps(list(scopes))))
    return names_of([cast("str", row[0]) for row in found])


def gather(connection: apsw.Connection, asked: Asked) -> tuple[list[Candidate], Beside]:
    """The candidates of all channels with all their scores, and who stands beside whom."""
    words = {tier: _lexical(connection, asked, tier) for tier in (MAIN, LOW)}
    near = {tier: _nearest(connection, asked, tier) for tier in (MAIN, LOW)}
    bm25 = words[MAIN].best | words[LOW].best
    # Where no memory has many chunks the first by cosine are the best, and these are all it takes.
    first = (m for tier in (MAIN, LOW) for m in islice(near[tier], MEMORY_POOL[tier]))
    read = load_facts(connection, dict.fromkeys((*bm25, *first)), asked.filters, asked.now_ms)
    cosine: dict[int, float] = {}
    for tier in (MAIN, LOW):
        cosine |= by_meaning(connection, asked, near[tier], read, MEMORY_POOL[tier])
    found = dict.fromkeys((*bm25, *cosine))
    late = [memory for memory in cosine if memory not in read]
    read |= load_facts(connection, late, asked.filters, asked.now_ms)
    facts = {memory: read[memory] for memory in found if memory in read}
    leading = dict.fromkeys((*islice(bm25, LEADING), *islice(cosine, LEADING)))
    inside = [facts[m] for m in leading if m in facts and is_structured(facts[m])]
    beside = _beside(connection, inside, asked)
    joining = dict.fromkeys(m for pair in beside.values() for m in pair if m and m not in facts)
    beside_them = load_facts(connection, joining, asked.filters, asked.now_ms)
    facts |= {
        memory: fact
        for memory, fact in beside_them.items()
        if fact.chars < SHORT_CHARS and is_structured(fact)
    }
    _fill_words(connection, asked, facts, words, bm25)
    _fill_vectors(connection, asked, facts, cosine)
    candidates = [
        Candidate(fact, bm25=bm25.get(memory), cosine=cosine.get(memory))
        for memory, fact in facts.items()
    ]
    return candidates, beside


def _lexical(connection: apsw.Connection, asked: Asked, tier: int) -> Words:
    """BM25 of the best chunks of one index."""
    matched = asked.expressions[tier]
    if not matched:
        return Words({}, {}, whole=True)
    pool = CHUNK_POOL[tier]
    if asked.filters.sql:
        found = _filtered(connection, asked, tier, asked.filters.sql, asked.filters.bound)
    else:
        rows = connection.execute(_LEXICAL[tier], (asked.now_ms, matched, pool)).fetchall()
        found = cast("list[ChunkScore]", rows)
    full = len(found) == pool
    found = [row for row in found if row[2]]
    if full and tier == MAIN:
        kept, crowding = spare_places(connection, [row[0] for row in found])
        if crowding:
            found = [row for row in found if row[0] in kept]
            owners = json.dumps([owner.hex() for owner in crowding])
            sql, bound = asked.filters.sql + _NOT_OF, (*asked.filters.bound, owners)
            known = {row[0] for row in found}
            more = _filtered(connection, asked, tier, sql, bound)
            found += [row for row in more if row[0] not in known]
    return Words(*best_chunks(found, MEMORY_POOL[tier]), whole=not full)


def _filtered(
    connection: apsw.Connection, asked: Asked, tier: int, sql: str, bound: Sequence[object]
) -> list[ChunkScore]:
    """The best chunks of one index among the memories that pass some conditions."""
    rows = connection.execute(
        _FILTERED[tier] + sql + _FILTER_TAIL,
        (asked.expressions[tier], asked.now_ms, *cast("Sequence[str]", bound), CHUNK_POOL[tier]),
    )
    return cast("list[ChunkScore]", rows.fetchall())


def spare_places(
    connection: apsw.Connection, memories: Sequence[int]
) -> tuple[set[int], list[bytes]]:
    """Which of these may have a place, and the owners who had more than their share.

    Args:
        connection: a reader.
        memories: rows in order of their score, best first; one may stand there several times.
    """
    ranked = list(dict.fromkeys(memories))
    if not connection.execute(_ANY_UNPROVEN).get:
        return set(ranked), []
    rows = connection.execute(_UNPROVEN, (json.dumps(ranked),))
    owners = {cast("int", memory): cast("bytes", owner) for memory, owner in rows}
    taken: dict[bytes, int] = {}
    kept = set(ranked)
    for memory in ranked:
        owner = owners.get(memory)
        if owner is None:
            continue
        taken[owner] = taken.get(owner, 0) + 1
        if taken[owner] > OWNER_POOL:
            kept.discard(memory)
    return kept, [owner for owner, count in taken.items() if count > OWNER_POOL]


def _nearest(connection: apsw.Connection, asked: Asked, tier: int) -> dict[int, float]:
    """The best cosine of each memory among the nearest chunks, descending."""
    vectors, vector = asked.vectors, asked.vector
    if vectors is None or vector is None:
        return {}
    scopes = None if asked.unlimited else asked.scopes
    pool = CHUNK_POOL[tier]
    best, chunks = vectors.nearest(connection, vector, scopes=scopes, tier=tier, chunks=pool)
    if chunks == pool and tier == MAIN and spare_places(connection, list(best))[1]:
        found = vectors.search(connection, vector, scopes=scopes, tier=tier, chunks=FLOODED_CHUNKS)
        kept, _ = spare_places(connection, [item.memory for item in found])
        best = {}
        for item in [item for item in found if item.memory in kept][:pool]:
            best.setdefault(item.memory, item.cosine)
    return best


def by_meaning(
    connection: apsw.Connection,
    asked: Asked,
    near: Mapping[int, float],
    facts: Mapping[int, Facts],
    memories_max: int,
) -> dict[int, float]:
    """Cosines of the best memories of a tier: by cosine discounted for length, newer first.

    Args:
        connection: in the recall's transaction.
        asked: the question.
        near: the nearest memories, descending.
        facts: of the first `memories_max` of them at least, if they pass the filters.
        memories_max: how many at most.
    """
    chunks = {memory: facts[memory].chunks for memory in near if memory in facts}
    ranked = _by_cosine(near, chunks)
    # A discount is never negative: who has a lower cosine than the last place cannot enter.
    worst = ranked[memories_max - 1][0] if len(ranked) >= memories_max else 0.0
    rest = [
        memory
        for memory in islice(near, memories_max, None)
        if memory not in facts and (len(ranked) < memories_max or -near[memory] <= worst)
    ]
    if rest:
        sql = _CHUNKS + asked.filters.sql
        rows = connection.execute(sql, (json.dumps(rest), asked.now_ms, *asked.filters.bound))
        chunks.update(cast("Iterable[tuple[int, int]]", rows))
        ranked = _by_cosine(near, chunks)
    return {-memory: near[-memory] for _, memory in ranked[:memories_max]}


def _by_cosine(near: Mapping[int, float], chunks: Mapping[int, int]) -> list[tuple[float, int]]:
    """(discount less cosine, -memory) in order."""
    return sorted((dense_discount(n) - near[memory], -memory) for memory, n in chunks.items())


def load_facts(
    connection: apsw.Connection, memories: Iterable[int], filters: Filters, now_ms: int
) -> dict[int, Facts]:
    """What ranking knows of memories, of those that are indexed, unexpired and pass the filters."""
    wanted = json.dumps(list(memories))
    if wanted == "[]":
        return {}
    rows = connection.execute(_FACTS + filters.sql, (wanted, now_ms, *filters.bound))
    return {facts.memory: facts for facts in map(Facts._make, rows)}


def _beside(connection: apsw.Connection, inside: Sequence[Facts], asked: Asked) -> Beside:
    """Neighbours in their threads of those that take from them."""
    sql = _BESIDE.format(scoped="" if asked.unlimited else _SCOPED)
    scoped = () if asked.unlimited else (json.dumps(asked.scopes),)
    beside: Beside = {}
    for own, trust in ((1, 0.0), (0, STRUCTURE_TRUST)):
        ids = [f.memory for f in inside if f.own == own and f.thread is not None]
        if ids:
            rows = connection.execute(sql, (json.dumps(ids), trust, *scoped))
            beside |= {
                memory: (previous, following)
                for memory, previous, following in cast(
                    "Iterable[tuple[int, int | None, int | None]]", rows
                )
            }
    return beside


def _fill_words(
    connection: apsw.Connection,
    asked: Asked,
    facts: Mapping[int, Facts],
    words: Mapping[int, Words],
    bm25: dict[int, float],
) -> None:
    """BM25 of those that another channel found; none is 0."""
    for tier in (MAIN, LOW):
        matched, known = asked.expressions[tier], words[tier].known
        missing = [f.memory for f in facts.values() if f.tier == tier and f.memory not in bm25]
        bm25.update((memory, known[memory]) for memory in missing if memory in known)
        missing = [memory for memory in missing if memory not in known]
        if words[tier].whole or not missing:
            continue
        rows = connection.execute(_SCORES[tier], (matched, json.dumps(missing)))
        for memory, score in cast("Iterable[tuple[int, float]]", rows):
            bm25[memory] = max(score, bm25.get(memory, 0.0))


def _fill_vectors(
    connection: apsw.Connection, asked: Asked, facts: Mapping[int, Facts], cosine: dict[int, float]
) -> None:
    """Cosines of those that another channel found and that have a vector."""
    missing = [memory for memory in facts if memory not in cosine]
    if asked.vectors is None or asked.vector is None or not missing:
        return
    found = asked.vectors.cosines(connection, asked.vector, missing)
    cosine.update({memory: best for memory, (best, _) in found.items()})
