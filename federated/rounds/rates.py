"""What this machine's line carries, measured where bytes of rounds pass anyway.

A plan cuts an update in proportion to `min(up, down)` of who merges it, and a phase of transfers
gets a multiple of what it is predicted to take.
"""

from __future__ import annotations

from collections import deque
from typing import Final

FIRST: Final = 2.5e6
"""Bytes/s before anything was measured: 20 Mbit/s. Source: federated rounds, links."""
SAMPLE_S: Final = 2.0
SAMPLE_BYTES: Final = 262_144
"""Fewer bytes say more of round trips than of the line."""
SAMPLES: Final = 8
FASTEST: Final = 1.25e9
"""10 Gbit/s: what passes within one machine is no line."""


class Meter:
    """One direction: the best of the last samples, as a single slow peer is not our line.

    A sample is the bytes of all transfers under way at a time, over the seconds in which there was
    one: at least `SAMPLE_S` of them, or all until the line fell silent.
    """

    def __init__(self) -> None:
        self._active = 0
        self._since = 0.0
        self._bytes = 0
        self._samples: deque[float] = deque(maxlen=SAMPLES)

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return max(self._samples, default=FIRST)

    def begin(self, now: float) -> None:
        """A transfer begins."""
        if not self._active:
            self._since, self._bytes = now, 0
        self._active += 1

    def add(self, now: float, nbytes: int) -> None:
        """Bytes passed."""
        self._bytes += nbytes
        if now - self._since >= SAMPLE_S:
            self._sample(now)

    def end(self, now: float) -> None:
        """A transfer ends, in whatever way."""
        self._active -= 1
        if not self._active:
            self._sample(now)

    def _sample(self, now: float) -> None:
        seconds = now - self._since
        if self._bytes >= SAMPLE_BYTES:
            self._samples.append(min(FASTEST, self._bytes / seconds) if seconds > 0 else FASTEST)
        elif seconds >= SAMPLE_S:
            self._samples.append(self._bytes / seconds)
        self._since, self._bytes = now, 0
