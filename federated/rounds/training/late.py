"""Updates that missed their round: they count for half in the next, a quarter in the one after.

A member whose update came too late, or whose round failed for it, submits it in the next round if
it has no fresh one. An update of a masked round in which shares were revealed is spent and never
kept: two sums that differ by one member would show that member's update.

Source: docs/specs/rounds.md, *Late updates*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from federated.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STALE_ROUNDS: Final = 2


@dataclass(frozen=True)
class Update:
    """What a member submits.

    Attributes:
        round: the round for which it was made.
        weight: above 0.
        delta: float32[n].
    """

    round: int
    weight: float
    delta: NDArray[np.float32]


def late_weight(weight: float, rounds_late: int, stale_rounds: int = STALE_ROUNDS) -> float | None:
    """A late update's weight: halved each round; None once it is too old to help.

    Raises:
        UsageError: it is of a later round.
    """
    if rounds_late < 0:
        raise UsageError("an update of a later round")
    return weight / 2**rounds_late if rounds_late <= stale_rounds else None


class Shelf:
    """The one update that waits for a round that takes it."""

    def __init__(self, stale_rounds: int = STALE_ROUNDS) -> None:
        self._stale_rounds = stale_rounds
        self._kept: Update | None = None

    def keep(self, update: Update) -> None:
        """Keep what a round did not include; an older one makes room."""
        if self._kept is None or update.round >= self._kept.round:
            self._kept = update

    def take(self, round_number: int) -> Update | None:
        """What to submit in a round without a fresh update, its weight as low as it is late.

        It stays here until `included` or a newer one comes: this round may fail, too.
        """
        kept = self._kept
        if kept is None or kept.round > round_number:
            return None
        weight = late_weight(kept.weight, round_number - kept.round, self._stale_rounds)
        if weight is None:
            self._kept = None
            return None
        return Update(kept.round, weight, kept.delta)

    def included(self) -> None:
        """A round took it, or a fresh one: it never counts twice."""
        self._kept = None
