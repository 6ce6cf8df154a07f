"""When this machine keeps its power and its time to itself: on a low battery, or while it is used.

Whoever sits at a machine comes before work for others. What a probe last saw decides; it looks now
and then, in a thread, since it reads files. Work of this node for itself is not asked about.
Source: docs/specs/jobs.md s.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S: Final = 10.0
"""How often the probe looks. Guess: a plug pulled is a battery that lasts longer than that."""
REST_MS: Final = 30_000
"""What a coordinator is told: try again when it may be otherwise."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a probe saw.

    Attributes:
        on_ac: whether the machine runs on mains; True also if nobody can say.
        percent: charge of its batteries; None: it has none, or does not tell.
        idle_s: seconds since somebody typed at it; None: nobody can say.
    """

    on_ac: bool = True
    percent: int | None = None
    idle_s: float | None = None


class Probe(Protocol):
    """Looks at the machine; may block."""

    def look(self) -> Reading:
        """What there is to see now; never raises."""
        ...


class Manners:
    """Whether work for others is taken now.

    Args:
        floor_percent: on battery below this charge, none is.
        user_idle_s: while somebody typed here within so many seconds, none is; 0: regardless.
        probe: looks at the machine; None: nothing is known, and all is taken.
    """

    def __init__(
        self, *, floor_percent: int = 0, user_idle_s: float = 0.0, probe: Probe | None = None
    ) -> None:
        self._floor_percent = floor_percent
        self._user_idle_s = user_idle_s
        self._probe = probe
        self.seen = Reading()

    @property
    def look(self) -> Callable[[], Reading] | None:
        """What to call in a thread each `LOOK_S`, its answer to `saw`; None: there is no need."""
        if self._probe is None or not (self._floor_percent or self._user_idle_s):
            return None
        return self._probe.look

    def saw(self, reading: Reading) -> None:
        """Remember what the probe said."""
        self.seen = reading

    def refusal(self) -> Literal["", "battery", "in_use"]:
        """Why no work for others is taken now; empty: it is."""
        seen = self.seen
        if not seen.on_ac and seen.percent is not None and seen.percent < self._floor_percent:
            return "battery"
        if seen.idle_s is not None and seen.idle_s < self._user_idle_s:
            return "in_use"
        return ""
