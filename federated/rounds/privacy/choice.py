"""Whether members of a round see each other's updates, and what is possible when they do not.

Decided from the roster before any data leaves, by everybody alike: the owners are those the group
publishes, the rest is the policy that all members share.

Source: docs/specs/masks.md s.6.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from federated.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

MASKED_OWNERS_MIN: Final = 4
"""With three, two of them that compare notes have the third's update."""
MASKED_RULES: Final = ("mean", "norm_bounded", "sum")
"""What a sum alone gives; `sum` is what statistics use. The others look at single updates."""
REASON: Final = "privacy"

Mode: TypeAlias = Literal["plain", "masked"]
Wish: TypeAlias = Literal["auto", "plain", "masked"]


@dataclass(frozen=True, slots=True)
class Choice:
    """How a round treats its members' updates."""

    mode: Mode
    rule: str
    """`auto` is resolved if masked."""


def choose(
    wish: Wish, owners: Sequence[bytes], *, rule: str, clip: float | None, allow_plain: bool = False
) -> Choice:
    """What a policy comes to with these members.

    Args:
        wish: of the policy.
        owners: the owner of each member of the roster.
        rule: of the policy.
        clip: C, of the policy or of the last round; None if there is none yet.
        allow_plain: whether members of several owners may see each other's updates.

    Raises:
        PlanError: `privacy`: it cannot be done; the message says what to change.
    """
    alone = len(set(owners)) == 1
    obstacle = _obstacle(owners)
    if wish == "plain" or (wish == "auto" and (alone or obstacle)):
        if alone or allow_plain:
            return Choice("plain", rule)
        why = obstacle or "the policy says plain"
        raise PlanError(
            REASON,
            f"members of several owners would see each other's updates ({why}):"
            " set allow_plain if that is what they want",
        )
    if obstacle:
        raise PlanError(REASON, f"masks would not hide anybody's update: {obstacle}")
    return Choice("masked", _masked_rule(rule, clip))


def check_epsilon(epsilon: float | None, mode: str) -> None:
    """Refuse a privacy budget that nobody accounts for.

    Args:
        epsilon: what was asked for; None for none.
        mode: `ldp`: each member randomises its own report; any other is noise on the sum.

    Raises:
        PlanError: `privacy`.
    """
    if epsilon is None or mode == "ldp":
        return
    raise PlanError(
        REASON,
        f"epsilon with mode {mode!r} is noise on the sum, and its promise adds up over questions:"
        " there is no ledger yet that keeps the account, so none is made. Use mode 'ldp', or no"
        " epsilon",
    )


def _obstacle(owners: Sequence[bytes]) -> str:
    """Why masks are impossible with these members; empty if they are not."""
    devices = Counter(owners)
    if len(devices) < MASKED_OWNERS_MIN:
        return f"{len(devices)} owners, at least {MASKED_OWNERS_MIN} are needed"
    if 3 * max(devices.values()) >= len(owners):
        return "one owner has a third of the devices, as many as give a secret away"
    return ""


def _masked_rule(rule: str, clip: float | None) -> str:
    chosen = "norm_bounded" if rule == "auto" else rule
    if chosen not in MASKED_RULES:
        raise PlanError(
            REASON,
            f"rule {rule!r} compares single updates, and under masks there is only their sum:"
            f" use one of {', '.join(MASKED_RULES[:2])}, or plain rounds",
        )
    if clip is None and chosen != "sum":
        raise PlanError(
            REASON,
            "masked updates are clipped to a norm that must be known before anybody sees one:"
            " set clip",
        )
    return chosen
