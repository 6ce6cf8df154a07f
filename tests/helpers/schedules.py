"""Random membership histories with hostile devices, and what must hold whatever they do.

A schedule has two parts. First honest and hostile devices grant, invite, join, admit and (the
hostile ones) limit, close, leave, backdate and use odd incarnations, each with its own view of the
group. Then one honest admin, seeing everything, removes the hostile devices it outranks and closes
every invite; after which the hostile ones go on writing what they like, citing what they like, and
fork their logs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from typing_extensions import override

from p2p.replication import ops
from p2p.replication.fold import LEVEL_VOID, Fold
from p2p.replication.ops import Role
from tests.helpers.membership import Ledger, fold_with, fork, grant, invite, join, key, limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2p.replication.authority import Authority

HONEST = ("F", "A", "B", "C")
HOSTILE = ("X", "Y", "S", "T")
ACTIVE_HOSTILE = ("X", "Y")


@dataclass
class Outcome:
    """What the late part changed."""

    intruders: list[str] = field(default_factory=list)
    """Removed devices that are members again."""
    lost: list[str] = field(default_factory=list)
    """Honest devices with less than before."""
    gained: list[str] = field(default_factory=list)
    """Honest devices with more than before."""
    stayed: list[str] = field(default_factory=list)
    """Devices the removal did not remove."""
    changed: list[int] = field(default_factory=list)
    """Ops from before the late part on which the verdict is another one after it."""


class Schedule:
    """One history drawn from a seed.

    Args:
        seed: of everything.
        expeller: which honest admin removes the hostile devices.
        rules: the fold to judge by.
    """

    def __init__(self, seed: int, expeller: str, rules: type[Fold] = Fold) -> None:
        self.rng = random.Random(f"membership {seed} {expeller}")
        self.ledger = Ledger()
        self.expeller = expeller
        self.rules = rules
        self.view = {name: {0} for name in HONEST + HOSTILE}
        self.forks: list[tuple[str, int, int]] = []
        self._fed: Authority | None = None

    def run(self, *, rounds: int = 25, late: int = 14) -> Outcome | None:
        """Play it; None if the expeller could not remove everybody hostile."""
        self._found()
        for _ in range(rounds):
            self._act(self.rng.choice(HONEST + ACTIVE_HOSTILE))
            if self.rng.random() < 0.5:
                self._gossip()
        before = self.fold()
        targets = self._targets(before)
        if targets is None:
            return None
        self._expel(targets)
        calm = self.fold()
        told = len(self.ledger.entries)
        gone = [m for m in targets if role(calm, m) < 0]
        for name in HOSTILE:
            self.view[name] |= set(range(len(self.ledger.entries)))
        for _ in range(late):
            self._act(self.rng.choice(HOSTILE))
        self.forks = [
            (m, self.rng.choice([1, 2, 6]), self.rng.randint(1, 3))
            for m in targets
            if self.rng.random() < 0.6
        ]
        after = self.fold()
        return Outcome(
            intruders=[m for m in gone if role(after, m) >= 0],
            lost=[m for m in HONEST if role(after, m) < role(calm, m)],
            gained=[m for m in HONEST if role(after, m) > role(calm, m)],
            stayed=[m for m in targets if m not in gone],
            changed=[i for i in range(told) if after.stands[i] != calm.stands[i]],
        )

    def authority(self, order: Iterable[int] | None = None) -> Authority:
        """All ops so far, received in an order, and the forks."""
        authority = self.ledger.authority(None if order is None else list(order))
        for name, incarnation, seq in self.forks:
            fork(authority, name, incarnation, seq)
        return authority

    def fold(self) -> Fold:
        """The verdict on all ops so far, received in the order they were written in."""
        if self._fed is None:
            self._fed = self.ledger.authority([])
        for entry in self.ledger.entries[len(self._fed) :]:
            self._fed.add(*entry)
        for name, incarnation, seq in self.forks:
            fork(self._fed, name, incarnation, seq)
        return fold_with(self._fed, self.rules)

    # The first part.

    def _found(self) -> None:
        self._write("F", grant("A", Role.ADMIN))
        self._write("F", grant("B", Role.ADMIN))
        self._write("F", grant("X", self.rng.choice([Role.WRITE, Role.ADMIN])))
        for view in self.view.values():
            view |= {0, 1, 2, 3}

    def _gossip(self) -> None:
        to, source = self.rng.choice(HONEST), self.rng.choice(HONEST + ACTIVE_HOSTILE)
        self.view[to] |= self.ledger.closure(self.view[source])
        if source in HOSTILE:
            for name in HOSTILE:
                self.view[name] |= self.ledger.closure(self.view[to])

    def _write(
        self, author: str, payload: ops.Payload, cite: Iterable[int] = (), incarnation: int = 1
    ) -> None:
        seen = self.ledger.closure({*cite, 0}) if cite else self.ledger.closure(self.view[author])
        i = self.ledger.write(author, payload, self.ledger.heads(seen), incarnation=incarnation)
        for name in (author,) if author in HONEST else HOSTILE:
            self.view[name] |= self.ledger.closure([i])

    def _act(self, name: str) -> None:
        honest = name in HONEST
        seen = set(self.ledger.closure(self.view[name]))
        if not honest and self.rng.random() < 0.7:
            seen = self._backdated(seen)
        weights = [4, 3, 4, 3] if honest else [4, 3, 4, 3, 4, 1, 0.3]
        actions = ["grant", "invite", "admit", "join", "limit", "close", "leave"]
        (action,) = self.rng.choices(actions[: len(weights)], weights)
        incarnation = 1 if honest else self.rng.choice([1, 1, 1, 2, 6])
        made = self._make(name, action, seen, honest=honest)
        if made is not None:
            payload, cite = made
            self._write(name, payload, seen | cite, incarnation)

    def _backdated(self, seen: set[int]) -> set[int]:
        """A part of what a hostile device has seen: what was there early, or an odd selection."""
        if self.rng.random() < 0.6:
            cut = self.rng.randint(1, len(self.ledger.entries))
            return {0, *(i for i in seen if i < cut)}
        return set(self.ledger.closure([0, *(i for i in sorted(seen) if self.rng.random() < 0.6)]))

    def _make(
        self, name: str, action: str, seen: set[int], *, honest: bool
    ) -> tuple[ops.Payload, set[int]] | None:
        rng = self.rng
        match action:
            case "grant":
                others = HONEST + (ACTIVE_HOSTILE if honest else HOSTILE)
                member = rng.choice([m for m in others if m not in (name, "F")])
                return grant(member, rng.choice([Role.WRITE, Role.ADMIN, Role.ADMIN])), set()
            case "invite":
                return (
                    invite(
                        rng.choice([Role.WRITE, Role.ADMIN]),
                        uses=rng.choice([1, 1, 2]),
                        manual=rng.random() < 0.33,
                    ),
                    set(),
                )
            case "join":
                v = self._pick(seen, ops.Invite)
                return None if v is None else (join(self.ledger.id(v)), {v})
            case "admit":
                j = self._pick(seen if honest else self.view[name], ops.Join)
                if j is None or (honest and self._used(j, seen)):
                    return None
                return ops.Admit(self.ledger.id(j)), {j}
            case "limit":
                member = rng.choice([m for m in HONEST + HOSTILE if m != name])
                keep = rng.choice([[], [(1, 0, 1)], [(1, 0, 2)]])
                return limit(member, keep, rng.choice([2, 7])), set()
            case "close":
                v = self._pick(seen, ops.Invite)
                return None if v is None else (ops.InviteClose(self.ledger.id(v)), set())
            case _:
                return limit(name, [], 7), set()

    def _pick(self, seen: Iterable[int], kind: type) -> int | None:
        found = [i for i in sorted(seen) if isinstance(self.ledger.payload(i), kind)]
        return self.rng.choice(found) if found else None

    def _used(self, j: int, seen: set[int]) -> bool:
        """Whether an honest member already saw the join's invite used up."""
        joined = self.ledger.payload(j)
        assert isinstance(joined, ops.Join)
        joins = {
            self.ledger.id(i)
            for i in seen
            if isinstance(p := self.ledger.payload(i), ops.Join) and p.invite_id == joined.invite_id
        }
        admits = sum(
            isinstance(p := self.ledger.payload(i), ops.Admit) and p.join_id in joins for i in seen
        )
        (uses,) = (
            p.uses
            for i in range(len(self.ledger.entries))
            if self.ledger.id(i) == joined.invite_id
            and isinstance(p := self.ledger.payload(i), ops.Invite)
        )
        return admits >= uses

    # The removal.

    def _targets(self, fold: Fold) -> list[str] | None:
        rank = fold.rank(key(self.expeller))
        if rank == LEVEL_VOID:
            return None
        targets = [m for m in HOSTILE if fold.rank(key(m)) > rank]
        senior = [m for m in HOSTILE if m not in targets and role(fold, m) >= 0]
        return None if senior else targets

    def _expel(self, targets: list[str]) -> None:
        everything = set(range(len(self.ledger.entries)))
        self.view[self.expeller] |= everything
        for name in targets:
            heads = [head for _, head, _ in self.ledger.entries if head.author == key(name)]
            kept: dict[int, int] = {}
            if self.rng.random() < 0.5:
                for head in heads:
                    kept[head.incarnation] = max(kept.get(head.incarnation, 0), head.seq)
            after = 1 + max((head.incarnation for head in heads), default=0)
            self._write(self.expeller, limit(name, [(i, 0, s) for i, s in kept.items()], after))
        for i in sorted(everything):
            if isinstance(self.ledger.payload(i), ops.Invite):
                self._write(self.expeller, ops.InviteClose(self.ledger.id(i)))


def role(fold: Fold, name: str) -> int:
    """A device's role under a verdict, -1 for none."""
    return max((role for role, _ in fold.uncancelled(key(name))), default=-1)


class SymmetricFold(Fold):
    """The rule that fails: any admin removes any admin, concurrent ops both stand. A control."""

    @override
    def rank(self, member: bytes, within: int | None = None) -> int:
        """Nobody is senior where a limit is judged."""
        return super().rank(member) if within is None else LEVEL_VOID

    @override
    def reaches(self, lim: int, role: int, level: int) -> bool:
        """Everybody is reached."""
        return True

    @override
    def _reaching(self, limits: int, role: int, level: int) -> int:
        return limits

    @override
    def _limited(self, i: int, phase: int, level: int) -> bool:
        """Who did not know of its removal acts on: as it claims by what it cites."""
        return False
