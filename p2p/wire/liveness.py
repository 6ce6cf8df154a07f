"""When to ping, when to doubt, when to give up.

A connection is silent since its last byte. After some silence we ping; a ping without an answer
makes the connection *suspect* (others are dialled beside it, because TCP's retransmissions back off
and a fresh SYN does not); more silence makes it dead. All times are shorter while a caller waits.
Source: docs/specs/wire.md s.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Verdict(Enum):
    """What to do about a connection."""

    FINE = auto()
    PING = auto()
    SUSPECT = auto()
    DEAD = auto()


@dataclass(frozen=True, kw_only=True)
class LivenessTimes:
    """The part of the configuration this needs, in seconds; see `p2p.config`."""

    ping_idle_s: float
    dead_idle_s: float
    ping_busy_s: float
    dead_busy_s: float
    suspect_s: float


class Liveness:
    """Silence of one connection.

    Args:
        times: see `LivenessTimes`.
        now: when the connection was made.
    """

    def __init__(self, times: LivenessTimes, now: float) -> None:
        self.seen_s = now
        """When a byte last arrived. The driver writes it for every read."""
        self._times = times

    def check(self, now: float, *, busy: bool, ping_sent_s: float | None) -> Verdict:
        """Judge the silence so far.

        Args:
            now: monotonic seconds.
            busy: whether a caller waits for this peer.
            ping_sent_s: when the ping under way was sent, if one is.
        """
        silent_s = now - self.seen_s
        times = self._times
        if silent_s >= (times.dead_busy_s if busy else times.dead_idle_s):
            return Verdict.DEAD
        if ping_sent_s is not None:
            doubted = now - ping_sent_s >= times.suspect_s and silent_s >= times.suspect_s
            return Verdict.SUSPECT if doubted else Verdict.FINE
        ping_s = times.ping_busy_s if busy else times.ping_idle_s
        return Verdict.PING if silent_s >= ping_s else Verdict.FINE

    def next_timer(self, now: float, *, busy: bool, ping_sent_s: float | None) -> float:
        """When `check` may say something new, later than `now`.

        A caller may begin to wait at any moment without telling; so this is never later than the
        busy times ask for.
        """
        times = self._times
        candidates = [
            self.seen_s + (times.dead_busy_s if busy else times.dead_idle_s),
            self.seen_s + (times.ping_busy_s if busy else times.ping_idle_s),
            now + times.ping_busy_s,
        ]
        if ping_sent_s is not None:
            candidates.append(ping_sent_s + times.suspect_s)
        return min(when for when in candidates if when > now)
