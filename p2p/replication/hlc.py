"""Hybrid logical clock: wall time where it can be trusted, order where it cannot.

An HLC is milliseconds (48 bits) << 16 | counter, and fits a signed 64-bit column until 6429.
Records order by it, so it must grow along every chain and past everything the author had seen; and
nobody may push it far ahead, so a foreign value more than ten minutes ahead of our wall clock is
never observed. Source: docs/specs/record.md s.5.
"""

from __future__ import annotations

from typing import Final

COUNTER_BITS: Final = 16
HLC_MAX: Final = 0x7FFF_FFFF_FFFF_FFFF

SKEW_MS_MAX: Final = 600_000
"""Ten minutes: more than clocks set by hand differ, little enough that no peer moves ours far."""


def pack(ms: int, counter: int = 0) -> int:
    """The HLC of a millisecond and a counter."""
    return (ms << COUNTER_BITS) | counter


def ms_of(hlc: int) -> int:
    """Unix milliseconds of an HLC."""
    return hlc >> COUNTER_BITS


def too_far_ahead(hlc: int, wall_ms: int, skew_ms_max: int = SKEW_MS_MAX) -> bool:
    """Whether a foreign record must wait in quarantine, its time unobserved."""
    return ms_of(hlc) > wall_ms + skew_ms_max


class Clock:
    """One device's clock.

    Invariant: every `tick` is greater than all before it and than everything observed.

    Args:
        last: the highest HLC this device ever issued or admitted, as its store knows.
    """

    def __init__(self, last: int = 0) -> None:
        self._last = last

    @property
    def last(self) -> int:
        """The highest HLC issued or observed."""
        return self._last

    def tick(self, wall_ms: int) -> int:
        """The HLC of a new record: wall time if that has moved on, else one more than the last.

        A full counter carries into the milliseconds by itself, being the low bits of one number.
        """
        self._last = max(pack(max(wall_ms, 0)), self._last + 1)
        assert self._last <= HLC_MAX, "the clock left its range; incarnation rules forbid this"
        return self._last

    def observe(self, hlc: int) -> None:
        """Take note of an admitted record's time; the caller has checked `too_far_ahead`."""
        self._last = max(self._last, hlc)


def next_incarnation(last: int, wall_ms: int) -> int:
    """The number of a new log: above the last, and above any this device may have forgotten.

    Wall seconds do the latter: a device restored from an old image does not know which numbers it
    used since, but they were seconds in its past.

    Args:
        last: highest incarnation known to have been used in the group, 0 for none.
        wall_ms: own wall clock.
    """
    return max(last + 1, wall_ms // 1000)


def clock_was_wrong(last_hlc: int, wall_ms: int) -> bool:
    """Whether our own last record lies so far ahead that a new incarnation must begin.

    Otherwise a clock that was wrong once would date this device's records for ever.
    """
    return too_far_ahead(last_hlc, wall_ms)
