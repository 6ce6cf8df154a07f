"""What comes for another round than the one under way: kept a while, or answered with a decision.

Both are bounded a sender: who sends much takes nobody else's place, and gets few answers.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from federated.rounds.protocol.wire import decode_untrusted
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from federated.rounds.protocol.wire import Packet
    from federated.rounds.seat import RoundSeat

log = logging.getLogger("covey.rounds")

KEPT_MAX: Final = 256
"""Packets kept for the round after the one that ends here."""
KEPT_OF_ONE_MAX: Final = 16
REMIND_S: Final = 2.0
"""How often a member that works on a decided round is given the decision."""


class Ahead:
    """Packets for a round that has not begun here, in the order in which they came."""

    def __init__(self) -> None:
        self._kept: list[tuple[bytes, Packet]] = []

    def keep(self, sender: bytes, packet: Packet) -> None:
        """Keep a packet, if its sender has not filled its share; what is dropped is said again."""
        of_one = sum(one == sender for one, _ in self._kept)
        if len(self._kept) < KEPT_MAX and of_one < KEPT_OF_ONE_MAX:
            self._kept.append((sender, packet))

    def replay(self, seat: RoundSeat, number: int) -> None:
        """Give a round that begins what came for it; the rest goes."""
        kept, self._kept = self._kept, []
        for sender, packet in kept:
            try:
                if decode_untrusted(packet.body).round == number:
                    seat.receive(sender, packet)
            except DecodeError as error:
                log.info("round_message_refused", extra={"f": {"why": str(error)}})


class Reminders:
    """Who was told lately that a round is decided."""

    def __init__(self) -> None:
        self._told: dict[bytes, float] = {}

    def due(self, now: float, peer: bytes) -> bool:
        """Whether a peer may be told now; it is counted as told."""
        if now < self._told.get(peer, now - REMIND_S) + REMIND_S:
            return False
        self._told[peer] = now
        return True

    def clear(self) -> None:
        """Another round is decided."""
        self._told.clear()
