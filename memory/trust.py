"""How far a memory is to be believed: start values, ceilings, effective trust, tiers. Pure.

Trust is never replicated as a number: each node computes its own. T is the author's trust, from
evidence S for and F against; E is what one memory may claim of it. This version knows the start
values only; evidence comes later and moves S and F. Source: docs/specs/memory.md, *Trust*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

PERSON_TRUST: Final = 1.0
"""The person at this machine's terminal: constant, nobody's evidence moves it."""

TRUST_MAX: Final = 0.97
"""No author but the person is ever believed without a rest of doubt."""

START_S: Final = {"own": 16.0, "own_device": 16.0, "invited": 2.0, "other": 0.0}
"""Evidence an author starts with, by relation: T is .86, .86, .53, .30. From simulation."""

CEILING: Final = {"owner": 1.0, "agent": 0.97, "tool": 0.7, "web": 0.5}
"""What a role lends at most: an own agent that stores a web page does not lend it its name."""

UNKNOWN_PARENT_TRUST: Final = 0.3
"""A parent we do not hold is worth a stranger."""

MAIN, LOW, NONE = 0, 1, 2
"""Tiers: the main index, the low index, no index."""

MAIN_ENTER: Final = 0.5
MAIN_LEAVE: Final = 0.45
"""A memory leaves the main index below this, so that one near .5 is not re-indexed every day."""
LOW_ENTER: Final = 0.2


def author_trust(relation: str, agent: str, s: float, f: float) -> float:
    """T of an author from evidence for (s) and against (f)."""
    if relation == "own" and not agent:
        return PERSON_TRUST
    return min(TRUST_MAX, (1.2 + s) / (4.0 + s + f))


def start_s(relation: str) -> float:
    """Evidence an author of this relation starts with; an unknown relation is a stranger's."""
    return START_S.get(relation, 0.0)


def effective(trust: float, role: str, parents: Sequence[float | None]) -> tuple[float, str]:
    """E of a memory and what limits it: `author`, `role` or `parent`.

    Args:
        trust: T of its author.
        role: owner, agent, tool or web.
        parents: E of each memory it was derived from, None for one that is not here.
    """
    best, reason = trust, "author"
    ceiling = CEILING.get(role, CEILING["web"])
    if ceiling < best:
        best, reason = ceiling, "role"
    for parent in parents:
        value = UNKNOWN_PARENT_TRUST if parent is None else parent
        if value < best:
            best, reason = value, "parent"
    return best, reason


def tier_of(trust: float, now: int = NONE) -> int:
    """The index a memory of effective trust E belongs to.

    Args:
        trust: E.
        now: the tier it is in; leaving the main tier takes a lower E than entering it.
    """
    if trust >= (MAIN_LEAVE if now == MAIN else MAIN_ENTER):
        return MAIN
    return LOW if trust >= LOW_ENTER else NONE
