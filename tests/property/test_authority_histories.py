"""Every history of a few operations by three devices, delivered in every order.

What is left out, and why nothing is lost by it:

* *Names.* A and B, who begin outside, may change places: of a history and its twin one is judged.
  The founder is like nobody else and keeps its place.
* *Strangers.* An author whom no genesis, grant or join in its view names is refused before the fold
  (docs/specs/authority.md), so no history has its operations; test_authority.py shows that the
  fold does not heed them either.
* *Orders.* An operation that arrives before one it cites waits for it, as in `Authority.missing`,
  so each order of arrival has the effect of one that respects citations: those are all tried.

What is not tried here: forked logs (the schedules of test_authority.py have them), odd incarnations
and keeps (a device goes on under the incarnation that the limits it cites ask for; a limit keeps
nothing, or all that its author has seen), and every order of the record ids, which decide ties (two
orders, up to four operations). Views are not restricted: an operation cites any closed part of the
history that holds the author's own log, which is what a hostile device may claim to have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from p2p.replication.fold import Fold
from p2p.replication.ops import Role
from tests.helpers.histories import NAMES, Histories
from tests.helpers.membership import fold_with, key
from tests.helpers.schedules import SymmetricFold, role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.histories import History

BOTH = (Role.ADMIN, Role.WRITE)


@dataclass(frozen=True)
class Verdict:
    """What a set of operations amounts to."""

    roles: tuple[Role | None, ...]
    void: frozenset[bytes]
    rest: tuple[object, ...]
    """Heads, supports, invites and pending joins."""

    def role(self, name: str) -> Role | None:
        return self.roles[NAMES.index(name)]


@dataclass
class Seen:
    """What a walk found to check, and what it found wrong."""

    histories: int = 0
    orders: int = 0
    removals: int = 0
    """Pairs of a history and a removal in it, after which only devices outside wrote."""
    backdated: int = 0
    """Of those, the ones where they did write."""
    intruders: list[str] = field(default_factory=list)
    """Devices that those outside made members, or members of a higher role."""
    lost: list[str] = field(default_factory=list)
    """Members that those outside removed or demoted."""
    changed: list[str] = field(default_factory=list)
    """Verdicts on what the removal had seen that are other ones in the end."""
    past: dict[History, Verdict] = field(default_factory=dict)


class Walk:
    """Judges every history of up to some operations more than its start.

    Args:
        histories: makes them.
        rules: the fold to judge by.
    """

    def __init__(self, histories: Histories, rules: type[Fold] = Fold) -> None:
        self.histories = histories
        self.rules = rules
        self.seen = Seen()

    def run(self, size: int, start: History | None = None) -> Seen:
        level = {self.histories.start if start is None else start}
        for _ in range(size):
            level = {
                self.histories.first_of_twins(history | {i})
                for history in level
                for i in self.histories.extensions(history)
            }
            for history in level:
                self.check_removals(history, self.judge(history))
            self.seen.histories += len(level)
        return self.seen

    def judge(self, history: History) -> Verdict:
        """The verdict on a history, which every order of delivery must give."""
        ways = orders(self.histories, history)
        want = self.verdict(next(ways))
        self.seen.orders += 1
        for order in ways:
            assert self.verdict(order) == want, story(self.histories, order)
            self.seen.orders += 1
        return want

    def check_removals(self, history: History, have: Verdict) -> None:
        """Who is out stays out and changes nothing by what it writes, whatever it cites."""
        made = self.histories.made
        for i in history:
            if made[i].verb != "limit" or made[i].about == made[i].author:
                continue
            known = made[i].within | {i}
            then = self._past(known)
            if made[i].record_id in then.void or then.role(str(made[i].about)) is not None:
                continue
            late = history - known
            if any(then.role(made[j].author) is not None for j in late):
                continue
            self.seen.removals += 1
            self.seen.backdated += bool(late)
            told = story(self.histories, history, i)
            for before, after in zip(then.roles, have.roles, strict=True):
                if rank(after) > rank(before):
                    self.seen.intruders.append(told)
                if rank(after) < rank(before):
                    self.seen.lost.append(told)
            if have.void & {made[j].record_id for j in known} != then.void:
                self.seen.changed.append(told)

    def verdict(self, order: list[int]) -> Verdict:
        authority = self.histories.authority(order)
        if self.rules is not Fold:
            fold = fold_with(authority, self.rules)
            void = frozenset(
                op.id for op, stands in zip(fold.ops, fold.stands, strict=True) if not stands
            )
            best = (role(fold, name) for name in NAMES)
            return Verdict(tuple(None if r < 0 else Role(r) for r in best), void, ())
        standing = authority.standing()
        return Verdict(
            tuple(standing.role(key(name)) for name in NAMES),
            frozenset(standing.void_ops()),
            (
                authority.heads(),
                standing.members(),
                standing.invites(),
                standing.pending_joins(),
            ),
        )

    def _past(self, history: History) -> Verdict:
        found = self.seen.past.get(history)
        if found is None:
            found = self.seen.past[history] = self.verdict(self.histories.in_order(history))
        return found


def rank(held: Role | None) -> int:
    return -1 if held is None else held


def orders(histories: Histories, history: History) -> Iterator[list[int]]:
    """Every order in which each operation comes after what it cites."""
    stack: list[tuple[list[int], list[int]]] = [([], histories.in_order(history))]
    while stack:
        done, left = stack.pop()
        if not left:
            yield done
        stack += [
            ([*done, i], [j for j in left if j != i])
            for i in left
            if histories.made[i].within.isdisjoint(left)
        ]


def story(histories: Histories, history: History | list[int], removal: int | None = None) -> str:
    """A history told, for whoever has to find the reason."""
    lines = []
    for i in history if isinstance(history, list) else histories.in_order(history):
        it = histories.made[i]
        mark = "*" if i == removal else " "
        seen = histories.maximal(it.within)
        lines.append(f"{mark}{i}: {it.author} {it.verb} {it.about} {it.variant} sees {seen}")
    return "\n" + "\n".join(lines)


def two_admins(histories: Histories) -> History:
    """The founder has made admins of A and then of B."""
    history = histories.start
    for name in ("A", "B"):
        history |= {
            i
            for i in histories.extensions(history)
            if (it := histories.made[i]).verb == "grant"
            and (it.author, it.about, it.variant) == ("F", name, Role.ADMIN)
            and it.within == history
        }
    assert len(history) == 3
    return history


def check(seen: Seen, *, at_least: int) -> None:
    """Nothing wrong, and that much to check."""
    assert seen.intruders == []
    assert seen.lost == []
    assert seen.changed == []
    assert seen.histories >= at_least
    assert seen.orders > seen.histories
    assert seen.backdated > seen.histories / 50


def test_up_to_three_operations_of_every_kind() -> None:
    seen = Walk(Histories(roles=BOTH, invites=True, odd=True)).run(3)
    check(seen, at_least=1_800)


@pytest.mark.parametrize("salt", ["", "other ties"])
def test_up_to_four_grants_and_limits(salt: str) -> None:
    check(Walk(Histories(salt)).run(4), at_least=2_000)


def test_up_to_two_more_operations_among_three_admins() -> None:
    histories = Histories(invites=True)
    check(Walk(histories).run(2, two_admins(histories)), at_least=100)


def test_the_symmetric_rule_fails_some_of_these_histories() -> None:
    """The control: where any admin removes any, who was expelled takes others with it."""
    histories = Histories()
    seen = Walk(histories, SymmetricFold).run(2, two_admins(histories))
    assert seen.lost


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.timeout(600)
def test_up_to_five_operations() -> None:
    """Grants of the admin role, limits that keep nothing or all, leaving, invites: 134,870."""
    check(Walk(Histories(invites=True)).run(5), at_least=130_000)


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.timeout(600)
def test_up_to_three_more_operations_among_three_admins() -> None:
    histories = Histories()
    check(Walk(histories).run(3, two_admins(histories)), at_least=1_000)
