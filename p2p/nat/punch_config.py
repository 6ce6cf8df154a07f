"""How relayed connections become direct ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PunchConfig:
    """Hole punching."""

    enabled: bool = True
    """Whether relayed connections are turned into direct ones."""
    rounds_max: int = 3
    """Rounds with a peer within `window_s`; 97.6 % of successes come in the first
    (arXiv 2510.27500)."""
    window_s: float = 600.0
    """Time in which rounds are counted together."""
    round_s: float = 5.0
    """One round of dialling."""
    dial_s: float = 5.0
    """The plain dial before the first round."""
    talk_s: float = 15.0
    """Time for the other side's messages of a round."""
    retry_s: float = 3600.0
    """A pair that failed tries again after this, or when its network changes."""
