"""The rank rule: which operations on a group's membership stand.

Theory of operation
-------------------
Membership is not voted on and not ordered by anybody's clock: every replica computes it from the
*set* of A ops it holds (genesis, grants, limits, invites, closes, joins, admits, policies), and
equal sets give equal answers whatever order they came in.

The obvious rule, where any admin removes any admin, fails to somebody who is removed and does not
like it: it writes operations that claim to be concurrent with its removal (citing old heads costs
nothing) and in them removes whom it wants or lets a stranger in. Under the rank rule a removal by
a senior is final: each support of a member has a *level* (distance from the founder), an op acts
at one more than its author's best support, ops are decided level by level, and nothing decided at
a deeper level can undo a higher one.

For op x, A(x) is what its author had seen: the ops reachable through `auth`, and the author's
earlier ops in that log. A *support* of a member is a standing grant, or a standing (invite, join,
admit) triple. A limit or a close *reaches* supports of its own level and deeper, and all below
admin.

1. Ops of authors that are admins in A(x) are decided level by level (0 ... 16; deeper is void),
   inside a level by (|A(x)|, id); then the others' likewise (phase 1, phase 2).
2. x is void if a standing limit of lower level names its author and does not keep x; one's own
   limit counts at any level, and so does anybody's where the author is no admin. A fork voids too.
   Own limits and forks spare what is *settled*: kept by another's limit that counts here, so that
   an expelled admin cannot void the people it invited and the group kept.
3. x is void if no support of its author stands in A(x). A limit is void unless its member ranks
   below its author there, or is its author.
4. Otherwise x stands. A standing limit cancels the member's supports it reaches, except those that
   were given in its knowledge.

Joins stand by themselves (they are judged with their admit), one's own limit always stands.

What a hostile member may try, and what stops it: backdating (cites old heads: still at its own
level, rule 2), new incarnations (`next_incarnation`, and the limit must be in A(x)), forking a log
to void others (settled), displacing an invited member by grinding join ids (admins' admits count
first, and a close fixes who came before it), inviting through a deep writer (the triple takes the
deeper level).

Ancestor sets are Python integers, one bit an op. Source: docs/specs/authority.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2p.replication.ops import Limit, Role
from p2p.replication.supports import (
    LEVEL_VOID,
    PHASE_ADMINS,
    PHASE_OTHERS,
    Op,
    Supports,
    positions,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["LEVEL_VOID", "Fold", "Op", "positions"]

LEVEL_MAX: Final = 16


class Fold(Supports):
    """The verdict on every op of one set.

    Args:
        ops: the set; the genesis is `ops[0]`, the rest in any order.
        ancestors: A(x) of each, as bits of positions in `ops`.
        forks: (author, incarnation) -> seq from which the control log is void by a fork.
        joins_valid: positions of joins whose invite-key signature holds.
    """

    def __init__(
        self,
        ops: Sequence[Op],
        ancestors: Sequence[int],
        forks: Mapping[tuple[bytes, int], int],
        joins_valid: Iterable[int],
    ) -> None:
        super().__init__(ops, ancestors, joins_valid)
        self._forks = forks
        self._decide_all()

    # Rule 1: the order of decisions.

    def _decide_all(self) -> None:
        waiting: dict[bytes, list[int]] = {}
        for i, stood in enumerate(self.stands):
            if stood is None:
                waiting.setdefault(self.ops[i].head.author, []).append(i)
        order = {
            i: (self.ancestors[i].bit_count(), self.ops[i].id)
            for undecided in waiting.values()
            for i in undecided
        }
        places: dict[bytes, tuple[int, dict[tuple[int, int], list[int]]]] = {}
        for phase in (PHASE_ADMINS, PHASE_OTHERS):
            for level in range(LEVEL_MAX + 1):
                todo: list[int] = []
                for author, undecided in waiting.items():
                    todo += self._take(author, undecided, (phase, level), places)
                for i in sorted(todo, key=order.__getitem__):
                    self._decide(i, phase, level)
        for i, stood in enumerate(self.stands):
            if stood is None:
                self.stands[i] = False

    def _take(
        self,
        author: bytes,
        undecided: list[int],
        place: tuple[int, int],
        places: dict[bytes, tuple[int, dict[tuple[int, int], list[int]]]],
    ) -> list[int]:
        """Those of an author's undecided ops that act at `place` as things stand now.

        Where an op acts depends on its author's supports and limits alone, so it is computed again
        only when those have changed.
        """
        version = self.holding(author).version
        seen, by_place = places.get(author, (-1, {}))
        if seen != version:
            by_place = {}
            for i in undecided:
                if self.stands[i] is None and (acts := self._acts(i)) is not None:
                    by_place.setdefault(acts, []).append(i)
            places[author] = (version, by_place)
        return [i for i in by_place.get(place, ()) if self.stands[i] is None]

    def _acts(self, i: int) -> tuple[int, int] | None:
        """(phase, level) at which op i is decided; None without a support."""
        author = self.ops[i].head.author
        if author == self.recovery_key:
            return PHASE_ADMINS, 0
        need = self.need(i)
        admin = other = LEVEL_VOID
        for role, level in self.uncancelled(author, self.ancestors[i]):
            if role == Role.ADMIN:
                admin = min(admin, level)
            elif role >= need:
                other = min(other, level)
        if admin != LEVEL_VOID:
            return PHASE_ADMINS, 1 + admin
        return None if other == LEVEL_VOID else (PHASE_OTHERS, 1 + other)

    # Rules 2 to 4.

    def _decide(self, i: int, phase: int, level: int) -> None:
        decide = self._settle if self._verdict(i, phase, level) else self._reject
        decide(i, phase=phase, level=level)

    def _verdict(self, i: int, phase: int, level: int) -> bool:
        head, payload = self.ops[i].head, self.ops[i].payload
        if self._forked(i) and not self._spared(i, phase, level):
            return False
        if self._limited(i, phase, level):
            return False
        if head.author != self.recovery_key:
            need = self.need(i)
            here = self.uncancelled(head.author, self.ancestors[i])
            if not any(role >= need for role, _ in here):
                return False
        if isinstance(payload, Limit) and payload.member != head.author:
            return self.rank(payload.member, self.ancestors[i]) > level
        return True

    def _forked(self, i: int) -> bool:
        head = self.ops[i].head
        seq = self._forks.get((head.author, head.incarnation))
        return seq is not None and head.seq >= seq

    def _limited(self, i: int, phase: int, level: int) -> bool:
        """Rule 2: whether a standing limit on the author voids op i."""
        head = self.ops[i].head
        for lim in self.holding(head.author).limits:
            own = self.ops[lim].head.author == head.author
            if not (own or phase == PHASE_OTHERS or self.level[lim] < level):
                continue
            if self.beyond(lim, head, 0, self.ancestors[i]) and not (
                own and self._spared(i, phase, level)
            ):
                return True
        return False

    def _spared(self, i: int, phase: int, level: int) -> bool:
        """Whether another's limit, one that counts for op i, has seen it and keeps it."""
        head = self.ops[i].head
        return any(
            self.ops[lim].head.author != head.author
            and (phase == PHASE_OTHERS or self.level[lim] < level)
            and self.ancestors[lim] >> i & 1
            and head.seq <= self._keeps[lim].get((head.incarnation, 0), 0)
            for lim in self.holding(head.author).limits
        )
