"""Packets of other rounds than the one under way: bounded a sender, as are the answers to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.rounds.ahead import KEPT_MAX, KEPT_OF_ONE_MAX, Ahead, Reminders
from federated.rounds.protocol.wire import NO_PLAN, Packet, Tick, unsigned
from p2p.errors import DecodeError
from tests.helpers.rounds_kit import peers

if TYPE_CHECKING:
    from federated.rounds.seat import RoundSeat

NAMES = peers(3)


def packet(number: int, view: int = 0) -> Packet:
    return unsigned(Tick(bytes(32), number, view, NO_PLAN, "joining", 1.0))


class FakeSeat:
    def __init__(self) -> None:
        self.heard: list[tuple[bytes, Packet]] = []

    def receive(self, sender: bytes, packet: Packet) -> None:
        self.heard.append((sender, packet))
        if len(self.heard) == 1:
            raise DecodeError("refused")


def replayed(ahead: Ahead, number: int) -> list[tuple[bytes, Packet]]:
    fake = FakeSeat()
    seat: RoundSeat = fake  # type: ignore[assignment]
    ahead.replay(seat, number)
    return fake.heard


def test_who_sends_much_takes_nobody_elses_place() -> None:
    ahead = Ahead()
    for view in range(2 * KEPT_MAX):
        ahead.keep(NAMES[0], packet(5, view))
    ahead.keep(NAMES[1], packet(5))
    heard = replayed(ahead, 5)
    assert [sender for sender, _ in heard] == [NAMES[0]] * KEPT_OF_ONE_MAX + [NAMES[1]]


def test_a_round_hears_its_own_packets_once_and_one_that_is_refused_stops_no_other() -> None:
    ahead = Ahead()
    for number in (5, 6, 5):
        ahead.keep(NAMES[0], packet(number))
    assert len(replayed(ahead, 5)) == 2
    assert replayed(ahead, 5) == replayed(ahead, 6) == []


def test_a_member_is_told_of_a_decision_now_and_then() -> None:
    reminders = Reminders()
    due = [reminders.due(10 + step / 2, NAMES[0]) for step in range(9)]
    assert due == [True, False, False, False, True, False, False, False, True]
    assert reminders.due(14.0, NAMES[1])
    assert not reminders.due(14.1, NAMES[1])
    reminders.clear()
    assert reminders.due(14.2, NAMES[1])
