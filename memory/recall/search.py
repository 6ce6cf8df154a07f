"""Recall: from a question to hits, in one short read transaction.

Steps, numbered as in docs/specs/memory.md, *Recall*: 1 parse, 2 lexical and 3 dense candidates from
the main and the low index, 4 union, 5 fuse, 6 structure, 7 weigh by trust, 8 withhold, 9 pair what
is replaced or contradicted with its counterpart, 10 spend the token budget. A handful of statements
whatever the number of candidates: no query per hit.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final

from memory.errors import RefusedError
from memory.flags import IMPERATIVE
from memory.model import Explain, Hit, Hits, Withheld
from memory.provenance import parse_iso
from memory.recall.cache import Answered
from memory.recall.filters import HLC_MAX, Filters, build_filters, hlc_at
from memory.recall.fuse import (
    ECHO,
    SCORE_MAX,
    Candidate,
    cap_distrusted,
    collapse,
    length_discount,
    normalise,
    rank_by_sum,
    weigh,
)
from memory.recall.hits import (
    LOW_TRUST,
    Row,
    ceiling,
    limited_by,
    load_previews,
    load_rows,
    load_texts,
    make_hit,
)
from memory.recall.pairs import Pairing, Place, pair
from memory.recall.pool import Asked, gather, known_names, load_facts
from memory.recall.structure import add_structure
from memory.storage.behaviour import Features, Shown
from memory.text.fts import POSTINGS_LOW_MAX, expression, stem, within_budget
from memory.text.parse import Words, repeats
from memory.tiers import LOW, MAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw
    import numpy as np
    from numpy.typing import NDArray

    from memory.model import Caller, Query
    from memory.recall.fuse import Facts
    from memory.recall.pool import Vectors
    from memory.scopes import ScopeRow
    from memory.text.fts import Frequencies
    from memory.text.parse import Names

QUERY_BYTES_MAX: Final = 4096
LIMIT_MAX: Final = 100

RANKER: Final = "fixed"
"""The fixed weights of fuse.py and structure.py."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recall:
    """A checked query on its way through the steps."""

    who: Caller
    query: Query
    frequencies: Frequencies
    postings_max: int
    """Documents the query's terms may match together in the main index."""
    now_ms: int
    scopes: Sequence[ScopeRow]
    """Those the caller may read and asks for."""
    names: Names | None = None
    """Whom it names, None to look them up."""
    vectors: Vectors | None = None
    vector: NDArray[np.float32] | None = None
    """float32[dim] of the query without those names; None without an embedder."""


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
    for name in ("since", "until", "as_of"):
        written = getattr(query, name)
        if written is not None:
            parse_iso(written, name)


def recall(connection: apsw.Connection, ask: Recall) -> Answered:
    """Answer a query; `ms` is left for the caller to fill in."""
    query = ask.query
    rows = tuple(scope.id for scope in ask.scopes)
    words = Words(query.query)
    asked = _asked(connection, ask, words)
    names = ask.names
    if names is None:
        names = known_names(connection, query.query, rows)
    candidates, beside = gather(connection, asked)
    normalise(candidates, dense=asked.vector is not None)
    add_structure(candidates, beside, names)
    _mark_echoes(connection, query.query, candidates)
    ranked = weigh(candidates)
    if query.explain:
        rank_by_sum(candidates)
    kept, withheld = withhold(ranked, query)
    kept, copies = collapse(kept)
    pairing = Pairing(
        limit=query.limit,
        scopes=frozenset(rows),
        until_hlc=HLC_MAX if query.as_of is None else hlc_at(query.as_of),
        admits=lambda facts: facts.trust >= query.trust_min and not _gives_orders(facts),
        fetch=lambda memories: load_facts(connection, memories, Filters("", ()), ask.now_ms),
    )
    places = pair(connection, kept, pairing)
    answer = Answer(connection, ask, places, copies, withheld)
    hits = Hits(hits=answer.hits(), withheld=withheld, searched=len(candidates), ms=0.0)
    return Answered(hits, answer.shown(words), answer.until_ms())


def _asked(connection: apsw.Connection, ask: Recall, words: Words) -> Asked:
    """What the channels are to look for."""
    query, scopes = ask.query, ask.scopes
    unlimited = ask.who.read.everything and query.scope is None
    expressions = {
        tier: _expression(connection, words, scopes, ask.frequencies, tier, budget, unlimited)
        for tier, budget in ((MAIN, ask.postings_max), (LOW, POSTINGS_LOW_MAX))
    }
    dense = ask.vector is not None and bool(scopes)
    return Asked(
        expressions=expressions,
        vectors=ask.vectors if dense else None,
        vector=ask.vector if dense else None,
        scopes=tuple(scope.id for scope in scopes),
        unlimited=unlimited,
        filters=build_filters(
            connection,
            kinds=query.kinds,
            tags=query.tags,
            author=query.author,
            since=query.since,
            until=query.until,
            as_of=query.as_of,
        ),
        now_ms=ask.now_ms,
    )


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


def _mark_echoes(
    connection: apsw.Connection, question: str, candidates: Sequence[Candidate]
) -> None:
    """Halve others' texts that carry the question to be found by it."""
    foreign = {c.memory: c for c in candidates if not c.facts.own}
    if not foreign:
        return
    for memory, text in load_texts(connection, foreign, titled=True).items():
        if repeats(question, text):
            foreign[memory].echo = ECHO


def _gives_orders(facts: Facts) -> bool:
    """Others' rules and orders, unless the local owner or two ways of trust vouch for them."""
    ordered = facts.kind == "policy" or bool(facts.flags & IMPERATIVE)
    return ordered and not facts.own and not facts.backed


def withhold(ranked: Sequence[Candidate], query: Query) -> tuple[list[Candidate], Withheld]:
    """What may be shown, in order, and the counts of what may not."""
    withheld = Withheld()
    kept: list[Candidate] = []
    distrusted: set[int] = set()
    for candidate in ranked:
        facts = candidate.facts
        if facts.trust < query.trust_min:
            withheld.low_trust += 1
            continue
        ordered = not facts.own and _gives_orders(facts)
        if ordered and not query.quarantined:
            withheld.quarantined += 1
            continue
        kept.append(candidate)
        if ordered or facts.trust < LOW_TRUST:
            distrusted.add(facts.memory)
    if not distrusted:
        return kept, withheld
    kept, capped = cap_distrusted(kept, query.limit, lambda c: c.memory in distrusted)
    withheld.low_trust += capped
    return kept, withheld


class Answer:
    """Places as hits: bodies in rank order until the budget is spent, index lines for the rest."""

    def __init__(
        self,
        connection: apsw.Connection,
        ask: Recall,
        places: Sequence[Place],
        copies: dict[int, int],
        withheld: Withheld,
    ) -> None:
        self._connection = connection
        self._ask = ask
        self._places = places
        self._copies = copies
        self._withheld = withheld
        self._rows = load_rows(connection, [place.candidate.memory for place in places])

    def hits(self) -> list[Hit]:
        """The hits; what the budget leaves out is counted."""
        rows, query = self._rows, self._ask.query
        whole = self._within_budget()
        texts = load_texts(self._connection, whole)
        memories = [place.candidate.memory for place in self._places]
        lines = [m for m in memories if m not in texts and not rows[m].title]
        previews = load_previews(self._connection, lines) if lines else {}
        hits = []
        for place in self._places:
            memory = place.candidate.memory
            row = rows[memory]
            hit = make_hit(
                row._replace(status="active") if place.revived else row,
                now_ms=self._ask.now_ms,
                text=texts.get(memory),
                preview=previews.get(memory, ""),
                score=place.candidate.score / SCORE_MAX,
                superseded_by=place.newer,
                disputed=[rows[other].id for other in place.disputed if other in rows],
            )
            hit.copies = self._copies.get(memory, 0)
            if query.explain:
                hit.explain = self._explain(row, place.candidate)
            hits.append(hit)
        return hits

    def shown(self, words: Words) -> tuple[Shown, ...]:
        """What is shown, for the feedback log."""
        return tuple(
            Shown(
                self._rows[place.candidate.memory].id,
                rank,
                _features(place.candidate, self._rows[place.candidate.memory], len(words.terms)),
            )
            for rank, place in enumerate(self._places, 1)
        )

    def until_ms(self) -> int:
        """When one of the hits expires or ceases to be valid."""
        ends = [place.candidate.facts.expires_ms for place in self._places]
        ends += [row.valid_to for row in self._rows.values()]
        return min((end for end in ends if end and end > self._ask.now_ms), default=HLC_MAX)

    def _within_budget(self) -> list[int]:
        """Memories given whole."""
        query = self._ask.query
        if query.detail != "text":
            return []
        spent = 0
        whole = []
        for place in self._places:
            size = self._rows[place.candidate.memory].tokens
            if spent + size <= query.budget_tokens:
                spent += size
                whole.append(place.candidate.memory)
        self._withheld.over_budget = len(self._places) - len(whole)
        return whole

    def _explain(self, row: Row, candidate: Candidate) -> Explain:
        terms = candidate.terms
        vectors = self._ask.vectors
        return Explain(
            bm25=_round(candidate.bm25 or 0.0),
            bm25_norm=_round(candidate.bm25_norm),
            cosine=None if candidate.cosine is None else _round(candidate.cosine),
            cosine_norm=_round(candidate.cosine_norm),
            length_discount=_round(length_discount(candidate.facts.chunks)),
            base=_round(candidate.base),
            previous=_round(terms.previous),
            following=_round(terms.following),
            thread=_round(terms.thread),
            by_author=_round(terms.author),
            length=_round(terms.length),
            question=_round(terms.question),
            f=_round(candidate.f),
            author_trust=_round(row.author_trust),
            role_ceiling=ceiling(row),
            trust=_round(row.trust),
            limited_by=limited_by(self._connection, row),
            echo=candidate.echo,
            tier="main" if candidate.facts.tier == MAIN else "low",
            rank=candidate.rank,
            score=_round(candidate.score),
            chunks=candidate.facts.chunks,
            embedder=vectors.model if vectors is not None and self._ask.vector is not None else "",
            ranker=RANKER,
        )


def _features(candidate: Candidate, row: Row, words: int) -> Features:
    """What the place was made from."""
    terms = candidate.terms
    return Features(
        bm25=candidate.bm25_norm,
        cosine=candidate.cosine_norm,
        base=candidate.base,
        neighbours=terms.previous + terms.following,
        thread=terms.thread,
        author=terms.author,
        log_length=math.log(row.tokens),
        chunks=candidate.facts.chunks,
        words=words,
    )


def _round(value: float) -> float:
    return round(value, 6)
