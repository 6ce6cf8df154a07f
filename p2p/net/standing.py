"""Who matters more when connections run out: whose place a newcomer takes, if anybody's.

Pinned peers before members of our groups, these before our relays, these before nodes of our DHT
table, and strangers last. Among equal ones whoever has no live stream goes first, then whoever has
been silent longest. A newcomer never takes the place of an equal: strangers that keep knocking
would else push each other, and honest ones, out. Source: docs/specs/wire.md s.7.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from p2p.identity import PeerId
    from p2p.net.driver import Connection


class Standing(IntEnum):
    """What a peer is to us, the least first."""

    STRANGER = 0
    DHT = 1
    """A node of our table of the DHT, or whoever we dialled without another reason."""
    RELAY = 2
    """A relay at which we have a place."""
    MEMBER = 3
    """Shares a group with us."""
    PINNED = 4


class Standings:
    """Asks the parts that know; each question may be replaced."""

    def __init__(self) -> None:
        self.is_pinned: Callable[[PeerId], bool] = lambda _: False
        self.is_member: Callable[[PeerId], bool] = lambda _: False
        self.is_relay: Callable[[PeerId], bool] = lambda _: False
        self.in_dht: Callable[[PeerId], bool] = lambda _: False

    def of(self, peer: PeerId, *, dialled: bool = False) -> Standing:
        """What `peer` is to us; `dialled`: we have just dialled it."""
        if self.is_pinned(peer):
            return Standing.PINNED
        if self.is_member(peer):
            return Standing.MEMBER
        if self.is_relay(peer):
            return Standing.RELAY
        return Standing.DHT if dialled or self.in_dht(peer) else Standing.STRANGER

    def least(self, connections: Iterable[Connection], *, below: Standing) -> Connection | None:
        """The live connection to give up first, of peers that stand lower than `below`."""
        found = [(self.of(c.peer), c) for c in connections if c.alive]
        lower = [(standing, c) for standing, c in found if standing < below]
        if not lower:
            return None
        return min(lower, key=lambda each: (each[0], each[1].mux.streams > 0, each[1].seen_s))[1]
