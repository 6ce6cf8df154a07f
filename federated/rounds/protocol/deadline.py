"""When a round stops waiting for commits, and a transfer for its next byte.

`D = median + 3 * 1.4826 * MAD` of the last arrival offsets (seconds from plan to commit). A member
that is alive and late enters the history at the offset at which the round stopped waiting for it:
left out, the history would hold the fast alone and the deadline would ratchet down, round by round,
until it excluded half of the peers. Median and MAD hold as long as fewer than half of the offsets
are chosen by somebody who wants to stretch or to shorten the round.

Before D a round waits for all; from D on for the quorum; at 3 D it gives up. A round of the outer
optimiser waits for half of the members only, and no longer than the overlap with training leaves.

Source: docs/specs/rounds.md, *Deadline*; `python -m benchmarks rounds --only deadlines`.
"""

from __future__ import annotations

import enum
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from federated.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_S: Final = 600.0
"""Before anything is known: ten minutes of training are common, an hour of waiting is not."""

DEADLINE_MIN_S: Final = 5.0
DEADLINE_MAX_S: Final = 24 * 3600.0

SPREADS: Final = 3
"""Normal standard deviations beyond the median: 2 is a sixth faster and loses 3 % more of the
living (E7 of the benchmark)."""

MAD_TO_SD: Final = 1.4826
"""MAD of a normal distribution times this is its standard deviation."""

HISTORY_ROUNDS: Final = 3
"""Rounds' worth of offsets that count: a load that changes is followed within two rounds."""

QUORUM_DEADLINES: Final = 3
"""Deadlines after which a round without a quorum is given up."""

GRACE_SHARE: Final = 0.8
"""Share of the time between predicted reduce and overlap's end that late members may use."""

SILENT_MIN_S: Final = 5.0
SILENT_RTTS: Final = 8
PHASE_MIN_S: Final = 15.0
PHASE_PREDICTIONS: Final = 3


class Closing(enum.Enum):
    """What to do about the commits of a round."""

    WAIT = "wait"
    CLOSE = "close"
    BELOW_QUORUM = "below_quorum"


@dataclass(frozen=True)
class History:
    """Arrival offsets of past rounds in seconds, oldest first."""

    offsets: tuple[float, ...] = ()

    def after(self, arrived: Sequence[float], *, late: int, closed_s: float, n: int) -> History:
        """The history with a round more.

        Args:
            arrived: offsets of the members that were included or would have been.
            late: members alive that had not arrived when the round stopped waiting.
            closed_s: when it did: D, or later if the quorum was waited for.
            n: members of the roster.

        Raises:
            UsageError: more offsets than members.
        """
        if late < 0 or len(arrived) + late > n:
            raise UsageError("a round has as many arrivals as members at most")
        told = [_sane(offset) for offset in [*arrived, *[closed_s] * late]]
        return History((*self.offsets, *told)[-HISTORY_ROUNDS * n :])

    def deadline_s(self, n: int, first_s: float = FIRST_S) -> float:
        """D of the next round of `n` members: seconds from its plan."""
        if n < 1:
            raise UsageError("a round has members")
        recent = [_sane(offset) for offset in self.offsets[-HISTORY_ROUNDS * n :]]
        if not recent:
            return _within(first_s)
        middle = statistics.median(recent)
        spread = statistics.median(abs(offset - middle) for offset in recent)
        return _within(middle + SPREADS * MAD_TO_SD * spread)


def _sane(offset: float) -> float:
    """An offset that can be averaged: another peer's `close` may say anything."""
    return offset if 0.0 <= offset <= DEADLINE_MAX_S else (0.0 if offset < 0 else DEADLINE_MAX_S)


def _within(deadline_s: float) -> float:
    return min(max(_sane(deadline_s), DEADLINE_MIN_S), DEADLINE_MAX_S)


def closing(now_offset: float, arrived: int, quorum: int, n: int, deadline_s: float) -> Closing:
    """What to do `now_offset` seconds after the plan, `arrived` of `n` commits being here.

    Args:
        now_offset: seconds since the plan was sent.
        arrived: valid commits.
        quorum: commits needed.
        n: members of the roster.
        deadline_s: D.
    """
    if arrived >= n:
        return Closing.CLOSE
    if now_offset >= deadline_s and arrived >= quorum:
        return Closing.CLOSE
    return Closing.BELOW_QUORUM if now_offset >= QUORUM_DEADLINES * deadline_s else Closing.WAIT


def next_look(now_offset: float, deadline_s: float) -> float | None:
    """The offset at which `closing` may answer otherwise without a commit; None: never again."""
    looks = (deadline_s, QUORUM_DEADLINES * deadline_s)
    return next((look for look in looks if look > now_offset), None)


# ---- the outer optimiser's rounds


def grace_s(overlap: int, step_s: float, reduce_s: float) -> float:
    """Seconds from the plan that a fragment's round can wait without holding up training.

    Args:
        overlap: inner steps between a sync and its result.
        step_s: seconds an inner step takes.
        reduce_s: predicted seconds of both phases.
    """
    return GRACE_SHARE * max(0.0, overlap * step_s - reduce_s)


def closing_early(
    now_offset: float, arrived: int, n: int, deadline_s: float, grace: float
) -> Closing:
    """`closing` for a fragment of the outer optimiser: half of the members will do after `grace`.

    Whoever is missing has its difference in the next sync. Applying still needs its quorum.
    """
    if arrived >= n or (now_offset >= grace and arrived >= math.ceil(n / 2)):
        return Closing.CLOSE
    return Closing.BELOW_QUORUM if now_offset >= QUORUM_DEADLINES * deadline_s else Closing.WAIT


# ---- transfers


def silent_after_s(rtt_s: float) -> float:
    """Seconds without a byte after which a transfer is dead."""
    return max(SILENT_MIN_S, SILENT_RTTS * rtt_s)


def phase_limit_s(predicted_s: float, least_s: float = PHASE_MIN_S) -> float:
    """Seconds that a phase of transfers gets."""
    return max(least_s, PHASE_PREDICTIONS * predicted_s)
