"""Answers kept while nothing they could show has changed.

Every change that an answer could show raises the generation of its scope, by the writer or by a
trigger of the schema, in the transaction that makes it. An answer is kept with the generations that
its own read transaction saw, and is given again only to a caller of the same scopes who asks the
same, inside a read transaction that sees the same generations: a write is seen at once. Vectors
are searched in memory, where they arrive after their commit, so their changes there count too.
Answers differ in how long they hold and how often they come again, so each kind has a part of the
room.

No near match: reusing the answer of a similar question at cosine .85 hits 17 % of LoCoMo's
questions and cuts the evidence found from .81 to .67; at .95 it costs nothing and hits 1.3 %.
Source: docs/specs/memory.md, *Answer cache*.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import msgspec

from memory.provenance import MS_PER_DAY
from memory.recall.filters import HLC_MAX
from memory.text.parse import Words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memory.embedding.vectors import VectorIndex
    from memory.model import Caller, Hits, Query, ScopeSet
    from memory.scopes import ScopeRow
    from memory.storage.behaviour import Shown

Kind: TypeAlias = Literal["identifier", "temporal", "concept"]

CAPACITY: Final = 1_024
"""Answers in all."""

SHARES: Final[dict[Kind, float]] = {"identifier": 0.4, "temporal": 0.2, "concept": 0.4}
"""Part of the room that each kind has: arXiv 2510.26835 gives categories quotas of their own."""

LIFETIME_MS: Final[dict[Kind, int]] = {
    "identifier": 3_600_000, "temporal": 60_000, "concept": 3_600_000,
}  # fmt: skip
"""How long an answer holds if nothing changes: what asks about now grows old by itself."""

ANSWER_CHARS_MAX: Final = 65_536
"""Text of one answer: the whole cache stays under 64 MiB."""

Key: TypeAlias = "tuple[bytes, ScopeSet, str]"
"""(the query with its arguments, what the caller may read, embedder)."""

Stamp: TypeAlias = "tuple[tuple[tuple[int, int], ...], tuple[int, ...]]"
"""(scope row, generation) of all scopes an answer came from, and how often the vectors of each had
changed in memory before it was made."""

_NOW: Final = re.compile(
    r"\b(now|today|tonight|yesterday|tomorrow|currently|current|latest|newest|recent|recently|ago"
    r"|this|last|next|since|until|still|yet|when)\b",
    re.IGNORECASE,
)
_IDENTIFIER: Final = re.compile(r"\d")


class Answered(NamedTuple):
    """An answer and what it was made from.

    Attributes:
        hits: as the caller sees them.
        shown: for the feedback log.
        until_ms: when one of them expires or ends to be valid.
    """

    hits: Hits
    shown: tuple[Shown, ...] = ()
    until_ms: int = HLC_MAX


class _Kept(NamedTuple):
    stamp: Stamp
    answered: Answered
    at_ms: int
    end_ms: int


def key_of(who: Caller, query: Query, embedder: str) -> Key:
    """What an answer depends on, besides the generations."""
    asked = msgspec.structs.replace(query, query=" ".join(query.query.split()))
    return msgspec.msgpack.encode(asked), who.read, embedder


def stamp_of(scopes: Sequence[ScopeRow], vectors: VectorIndex | None = None) -> Stamp:
    """What the scopes read have been through; take it before searching them."""
    epochs = () if vectors is None else vectors.epochs([scope.id for scope in scopes])
    return tuple((scope.id, scope.generation) for scope in scopes), epochs


def kind_of(query: Query) -> Kind:
    """Which part of the cache an answer belongs to."""
    if query.since or query.until or query.as_of or _NOW.search(query.query):
        return "temporal"
    words = Words(query.query)
    if words.phrases or any(_IDENTIFIER.search(term) for term in words.terms):
        return "identifier"
    return "concept"


class AnswerCache:
    """Least recently used answers. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[Kind, OrderedDict[Key, _Kept]] = {kind: OrderedDict() for kind in SHARES}
        self.found = 0
        """Answers given again."""
        self._flushes = 0

    def __len__(self) -> int:
        """Answers kept."""
        with self._lock:
            return sum(len(part) for part in self._parts.values())

    @property
    def flushes(self) -> int:
        """How often it was emptied: an answer made before a flush is not kept after it."""
        return self._flushes

    def find(self, key: Key, kind: Kind, stamp: Stamp, now_ms: int) -> Answered | None:
        """The answer kept for this, if it still holds; dated anew."""
        with self._lock:
            part = self._parts[kind]
            kept = part.get(key)
            if kept is None:
                return None
            if kept.stamp != stamp or not kept.at_ms <= now_ms < kept.end_ms:
                del part[key]
                return None
            part.move_to_end(key)
            self.found += 1
        return _copy(kept.answered, now_ms - kept.at_ms)

    def keep(
        self, key: Key, kind: Kind, stamp: Stamp, answered: Answered, now_ms: int, flushes: int
    ) -> None:
        """Keep an answer; the one of its kind longest unused makes room."""
        if sum(len(hit.text or "") for hit in answered.hits.hits) > ANSWER_CHARS_MAX:
            return
        end_ms = min(now_ms + LIFETIME_MS[kind], answered.until_ms)
        kept = _Kept(stamp, _copy(answered, 0), now_ms, end_ms)
        with self._lock:
            if flushes != self._flushes:
                return
            part = self._parts[kind]
            part[key] = kept
            part.move_to_end(key)
            while len(part) > CAPACITY * SHARES[kind]:
                part.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: after an erasure no text may stay in memory."""
        with self._lock:
            self._flushes += 1
            for part in self._parts.values():
                part.clear()


def _copy(answered: Answered, later_ms: int) -> Answered:
    """The answer as one that its caller may change; older by the time it was kept."""
    days = later_ms / MS_PER_DAY
    hits = answered.hits
    copied = [
        msgspec.structs.replace(
            hit, age_days=round(hit.age_days + days, 2), flags=list(hit.flags), tags=list(hit.tags)
        )
        for hit in hits.hits
    ]
    withheld = msgspec.structs.replace(hits.withheld)
    return answered._replace(hits=msgspec.structs.replace(hits, hits=copied, withheld=withheld))
