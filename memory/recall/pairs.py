"""Old beside new, claim beside counterclaim: what may not stand alone in an answer.

A replaced memory follows its newest version, which is fetched if nothing found it. Memories of
different authors that contradict each other stand together, the more trusted first, both marked.
What was refuted never leads. A low-tier memory fetches nobody and lifts nobody: a stranger's text
may be answered for, but it moves no place of the trusted. Source: docs/specs/memory.md, *Recall*.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from memory.recall.filters import HLC_MAX
from memory.recall.fuse import Candidate
from memory.recall.hits import successors
from memory.tiers import MAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import apsw

    from memory.recall.fuse import Facts
    from memory.recall.hits import Successor

CHAIN_MAX: Final = 16
"""Versions followed from an old memory to its newest."""

SIDES_MAX: Final = 3
"""Other sides of one dispute that are shown."""

# A decided contradiction (its target is refuted) or one that is live in `dispute`.
_SIDES: Final = """
SELECT x.me, o.id FROM (
  SELECT d.a AS me, d.b AS other FROM json_each(?1) j CROSS JOIN dispute d ON d.a = j.value
    WHERE d.since_ms <= ?2
  UNION SELECT d.b, d.a FROM json_each(?1) j CROSS JOIN dispute d ON d.b = j.value
    WHERE d.since_ms <= ?2
  UNION SELECT r.n, s.n FROM json_each(?1) j CROSS JOIN memory m ON m.id = j.value
    AND m.status = 'refuted' CROSS JOIN record r ON r.n = m.id
    CROSS JOIN link l ON l.dst = r.id AND l.type = 'contradicts'
    CROSS JOIN record k ON k.n = l.n AND k.state = 'live' CROSS JOIN record s ON s.id = l.src
) x CROSS JOIN memory o ON o.id = x.other AND o.tier < 2 AND o.status <> 'refuted'
WHERE o.id <> x.me ORDER BY o.eff_trust DESC, o.id DESC LIMIT 400
"""


class Place(NamedTuple):
    """A place in the answer.

    Attributes:
        candidate: who stands there.
        newer: id of what replaces it.
        disputed: memories that contradict it and stand beside it.
        revived: shown as if nothing had replaced it yet (`as_of`).
    """

    candidate: Candidate
    newer: bytes | None = None
    disputed: tuple[int, ...] = ()
    revived: bool = False


class Pairing(NamedTuple):
    """What an answer may show.

    Attributes:
        limit: places.
        scopes: scope rows the caller reads.
        until_hlc: later words do not count.
        admits: whether a memory passes the query's withholding.
        fetch: facts of memories that the channels did not find, by row.
    """

    limit: int
    scopes: frozenset[int]
    until_hlc: int
    admits: Callable[[Facts], bool]
    fetch: Callable[[Iterable[int]], Mapping[int, Facts]]


def pair(connection: apsw.Connection, ranked: Sequence[Candidate], pairing: Pairing) -> list[Place]:
    """The answer's places.

    Args:
        connection: in the recall's transaction.
        ranked: what may be shown, best first.
        pairing: what else may.
    """
    # Each place shown takes a candidate of its own or one that a pair has placed before.
    front = ranked[: 2 * pairing.limit]
    direct, newest = _chains(connection, front, pairing)
    contested = [c.memory for c in front if c.facts.tier == MAIN]
    sides = _sides(connection, [*contested, *(s.memory for s in newest.values())], pairing)
    known = {c.memory: c for c in ranked}
    wanted = {s.memory for s in newest.values()}.union(*sides.values()) - known.keys()
    others = {
        memory: facts
        for memory, facts in pairing.fetch(sorted(wanted)).items()
        if facts.scope in pairing.scopes
        and facts.hlc <= pairing.until_hlc
        and pairing.admits(facts)
    }
    return _Blocks(pairing, direct, newest, sides, known, others).places(front)


class _Blocks:
    """Blocks of memories that stand together, in the order of the best of each."""

    def __init__(
        self,
        pairing: Pairing,
        direct: Mapping[int, Successor],
        newest: Mapping[int, Successor],
        sides: Mapping[int, Sequence[int]],
        known: Mapping[int, Candidate],
        others: Mapping[int, Facts],
    ) -> None:
        self._pairing = pairing
        self._direct = direct
        self._newest = newest
        self._sides = sides
        self._known = known
        self._others = others

    def places(self, front: Sequence[Candidate]) -> list[Place]:
        """As many as the answer has."""
        limit = self._pairing.limit
        shown: dict[int, Place] = {}
        last: dict[int, Place] = {}
        for candidate in front:
            if candidate.memory in shown:
                continue
            block = self._block(candidate)
            alone = len(block) == 1 and block[0].candidate.facts.status == "refuted"
            for place in block:
                (last if alone else shown).setdefault(place.candidate.memory, place)
            if len(shown) >= limit:
                break
        return [*shown.values(), *last.values()][:limit]

    def _block(self, candidate: Candidate) -> list[Place]:
        """A candidate with those it may not stand without."""
        if candidate.facts.status != "superseded":
            return self._contest(candidate)
        newer, newest = self._direct.get(candidate.memory), self._newest.get(candidate.memory)
        if newer is None or newest is None:
            # What replaces it is said later than asked for, or where the caller may not look.
            revived = self._pairing.until_hlc < HLC_MAX and newer is None
            return [Place(candidate, revived=revived)]
        if newer.scope not in self._pairing.scopes or newest.scope not in self._pairing.scopes:
            return [Place(candidate)]
        head = self._beside(newest.memory, candidate)
        if head is None:
            return [] if candidate.facts.tier != MAIN else [Place(candidate, newer.id)]
        return [*self._contest(head), Place(candidate, newer.id)]

    def _contest(self, head: Candidate) -> list[Place]:
        """Both sides of a contradiction, the more trusted first and what was refuted last."""
        found = (self._beside(memory, head) for memory in self._sides.get(head.memory, ()))
        group = [head, *(other for other in found if other is not None)]
        group.sort(key=lambda c: (c.facts.status == "refuted", -c.trust))
        live = [c.memory for c in group if c.facts.status != "refuted"]
        return [
            Place(c, disputed=tuple(n for n in live if n != c.memory) if c.memory in live else ())
            for c in group
        ]

    def _beside(self, memory: int, found: Candidate) -> Candidate | None:
        """Another memory as a candidate, if it may be shown where `found` stands."""
        facts = self._others.get(memory)
        other = self._known.get(memory) or (None if facts is None else stand_in(facts, found))
        if other is None or (found.facts.tier != MAIN and other.facts.tier == MAIN):
            return None
        return other


def stand_in(facts: Facts, found: Candidate) -> Candidate:
    """A memory that the question did not find: it stands where its counterpart would."""
    other = Candidate(facts, bm25=found.bm25, cosine=found.cosine)
    other.bm25_norm, other.cosine_norm = found.bm25_norm, found.cosine_norm
    other.base, other.terms, other.f, other.rank = found.base, found.terms, found.f, found.rank
    other.score = max(found.f, 0.0) * facts.trust
    return other


def _chains(
    connection: apsw.Connection, front: Sequence[Candidate], pairing: Pairing
) -> tuple[dict[int, Successor], dict[int, Successor]]:
    """(what replaces each directly, its newest version), of those that are replaced."""
    replaced = [c.memory for c in front if c.facts.status == "superseded"]
    if not replaced:
        return {}, {}
    direct = successors(connection, replaced, pairing.until_hlc)
    newest = dict(direct)
    for _ in range(CHAIN_MAX):
        pending = {s.memory for s in newest.values() if s.status == "superseded"}
        if not pending:
            break
        found = successors(connection, sorted(pending), pairing.until_hlc)
        if not found:
            break
        newest = {memory: found.get(s.memory, s) for memory, s in newest.items()}
    return direct, newest


def _sides(
    connection: apsw.Connection, memories: Sequence[int], pairing: Pairing
) -> dict[int, list[int]]:
    """Those that contradict each memory, most trusted first."""
    if not memories:
        return {}
    until_ms = min(pairing.until_hlc >> 16, HLC_MAX)
    sides: dict[int, list[int]] = {}
    for me, other in connection.execute(_SIDES, (json.dumps(list(memories)), until_ms)):
        found = sides.setdefault(cast("int", me), [])
        if len(found) < SIDES_MAX:
            found.append(cast("int", other))
    return sides
