"""The relay's accounts: every limit, by class, by network, by end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2p.identity import PeerId
from p2p.nat.relay_book import DAY_S, Circuit, RelayBook, TokenBucket
from p2p.nat.relay_config import RelayConfig, member_quota
from p2p.nat.relay_messages import Status

SMALL = replace(
    member_quota(),
    reservations_max=3,
    reservations_per_prefix_max=2,
    circuits_max=3,
    circuits_per_target_max=2,
    circuits_per_source_max=2,
    bytes_per_s=1000.0,
    bytes_per_day=10_000,
)
CONFIG = RelayConfig(member=SMALL, stranger=SMALL, strangers=True, reservation_s=600)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def book(config: RelayConfig = CONFIG) -> RelayBook:
    return RelayBook(config, 0.0)


def reserve(book: RelayBook, number: int, prefix: str = "", *, member: bool = True) -> Status:
    return book.reserve(peer(number), prefix or f"net {number}", member=member, now=1.0)


def test_places_are_limited_in_all_and_renewed_for_free() -> None:
    b = book()
    assert [reserve(b, n) for n in range(4)] == [
        Status.OK,
        Status.OK,
        Status.OK,
        Status.RESOURCE_LIMIT_EXCEEDED,
    ]
    assert reserve(b, 0) is Status.OK


def test_one_network_cannot_take_every_place() -> None:
    b = book()
    answers = [reserve(b, n, "one /24") for n in range(3)]
    assert answers == [Status.OK, Status.OK, Status.RESOURCE_LIMIT_EXCEEDED]
    assert reserve(b, 9, "another") is Status.OK


def test_strangers_fill_their_own_places_only() -> None:
    b = book()
    for number in range(3):
        assert reserve(b, number, member=False) is Status.OK
    assert reserve(b, 8, member=False) is Status.RESOURCE_LIMIT_EXCEEDED
    assert reserve(b, 9) is Status.OK


def test_strangers_are_refused_unless_told() -> None:
    b = book(replace(CONFIG, strangers=False))
    assert reserve(b, 1, member=False) is Status.PERMISSION_DENIED


def test_a_place_ends_by_time_or_when_its_holder_goes() -> None:
    b = book()
    reserve(b, 1)
    assert b.holder(peer(1), 600.0) is not None
    assert b.holder(peer(1), 601.0) is None
    assert b.open(peer(2), peer(1), 601.0) is Status.NO_RESERVATION
    reserve(b, 3)
    b.release(peer(3))
    assert b.open(peer(2), peer(3), 2.0) is Status.NO_RESERVATION


@pytest.mark.parametrize(
    "pairs",
    [
        [(1, 10), (2, 10), (3, 10)],  # one target
        [(1, 10), (1, 11), (1, 12)],  # one source
        [(1, 10), (2, 11), (3, 12), (4, 11)],  # in all
    ],
)
def test_circuits_are_limited_by_target_by_source_and_in_all(pairs: list[tuple[int, int]]) -> None:
    b = book()
    for number in (10, 11, 12):
        assert reserve(b, number) is Status.OK
    *good, last = pairs
    for source, target in good:
        assert isinstance(b.open(peer(source), peer(target), 2.0), Circuit)
    assert b.open(peer(last[0]), peer(last[1]), 2.0) is Status.RESOURCE_LIMIT_EXCEEDED


def test_a_circuit_that_ended_makes_room() -> None:
    b = book()
    reserve(b, 10)
    first = b.open(peer(1), peer(10), 2.0)
    second = b.open(peer(1), peer(10), 2.0)
    assert isinstance(first, Circuit)
    assert first == second, "two of the same ends are counted, not merged"
    assert b.circuits() == 2
    b.close(first)
    assert b.circuits() == 1
    assert isinstance(b.open(peer(1), peer(10), 2.0), Circuit)


def test_a_class_has_a_rate_and_a_day() -> None:
    b = book()
    assert b.carry(1000, 0.0, member=True) == 0.0
    assert b.carry(500, 0.0, member=True) == pytest.approx(0.5)
    assert b.carry(1000, 0.0, member=False) == 0.0, "the other class has its own"
    assert b.carry(8500, 100.0, member=True) is not None
    assert b.carry(1, 200.0, member=True) is None
    reserve(b, 10)
    assert b.open(peer(1), peer(10), 300.0) is Status.RESOURCE_LIMIT_EXCEEDED
    assert b.carry(1, DAY_S, member=True) is not None


def test_a_bucket_without_a_rate_never_waits() -> None:
    assert TokenBucket(None, 0.0).take(1 << 40, 0.0) == 0.0


def test_a_bucket_holds_one_second_of_burst() -> None:
    bucket = TokenBucket(100.0, 0.0)
    assert bucket.take(100, 1000.0) == 0.0
    assert bucket.take(100, 1000.0) == pytest.approx(1.0)
