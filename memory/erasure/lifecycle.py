"""Which memories this machine forgets by itself. Pure: rows in, decisions out.

Forgetting takes a memory out of the indexes; its record stays, and a person brings it back. A
memory is forgotten when its time to live is over (`status.expire`), when it is somebody else's and
in 90 days nobody confirmed it and no answer showed it, or when its scope holds more than its cap:
then those go that were used least for their age, others' unbacked ones first. What the person
wrote, and policies and decisions of the own side or backed by it, are never forgotten by a rule.
Nothing here looks at what a text says, and nothing decays in ranking.
Source: docs/specs/memory.md, *Forgetting*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

DAY_MS: Final = 86_400_000

KEPT_KINDS: Final = frozenset({"policy", "decision"})
"""Kinds that are worth most when nobody has asked for them for long."""

OWN: Final = frozenset({"own", "own_device"})
"""Relations of the person's own devices."""


class Standing(NamedTuple):
    """What forgetting looks at.

    Attributes:
        memory: its row.
        kind: note, decision, ...
        role: owner, agent, tool or web, as its author says.
        relation: own, own_device, invited or other.
        confirmed: whether independent others or the person back it.
        uses: answers that showed it.
        used_ms: the last of them, else when it was first looked at here.
        born_ms: when it was written.
    """

    memory: int
    kind: str
    role: str
    relation: str
    confirmed: bool
    uses: int
    used_ms: int
    born_ms: int


def never(one: Standing) -> bool:
    """Whether no rule may forget it.

    What others call a policy, a decision or the owner's word is so once somebody here backs it:
    else whoever names its spam so keeps it for ever, and crowds out everything else.
    """
    if one.relation not in OWN:
        return one.confirmed and one.kind in KEPT_KINDS
    return one.kind in KEPT_KINDS or one.role == "owner"


def unverified(one: Standing, now_ms: int, days: int) -> bool:
    """Whether a foreign memory had its chance: neither confirmed nor used for so long."""
    waited = now_ms - one.used_ms >= days * DAY_MS
    return one.relation not in OWN and not one.confirmed and waited and not never(one)


def crowded_out(standings: Sequence[Standing], over: int, now_ms: int) -> list[int]:
    """The `over` memories of a scope with the fewest uses for their age, as rows.

    Others' that nobody backs go first, however fresh: a peer adds, and crowds nothing out. A memory
    of a day counts as a day old: what was just written is not the first to go. Of equals the oldest
    goes.
    """
    if over <= 0:
        return []
    forgettable = [one for one in standings if not never(one)]
    forgettable.sort(
        key=lambda one: (
            one.relation in OWN or one.confirmed, _use_rate(one, now_ms), one.born_ms, one.memory,
        )
    )  # fmt: skip
    return [one.memory for one in forgettable[:over]]


def _use_rate(one: Standing, now_ms: int) -> float:
    """Uses a day; one that was never used competes by its age: (0 + 1) / (days + 1)."""
    days = max(0, now_ms - one.born_ms) / DAY_MS
    return (one.uses + 1) / (days + 1)
