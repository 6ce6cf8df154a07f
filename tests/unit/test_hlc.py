"""The hybrid clock and the choice of incarnations."""

from __future__ import annotations

from p2p.replication.hlc import (
    SKEW_MS_MAX,
    Clock,
    clock_was_wrong,
    ms_of,
    next_incarnation,
    pack,
    too_far_ahead,
)

T = 1_700_000_000_000


def test_a_tick_is_wall_time_when_that_moves_on():
    clock = Clock()
    assert clock.tick(T) == pack(T)
    assert clock.tick(T + 5) == pack(T + 5)


def test_ticks_within_a_millisecond_count_up():
    clock = Clock()
    assert [clock.tick(T) for _ in range(3)] == [pack(T, n) for n in range(3)]


def test_a_full_counter_carries_into_the_milliseconds():
    clock = Clock(pack(T, 0xFFFF))
    assert clock.tick(T) == pack(T + 1)


def test_a_wall_clock_stepping_back_does_not_take_the_clock_back():
    clock = Clock()
    first = clock.tick(T)
    assert clock.tick(T - 3_600_000) == first + 1


def test_a_tick_is_later_than_what_was_observed():
    clock = Clock()
    clock.observe(pack(T + 1_000, 3))
    assert clock.tick(T) == pack(T + 1_000, 4)
    clock.observe(pack(T))  # the past changes nothing
    assert clock.last == pack(T + 1_000, 4)


def test_ten_minutes_ahead_is_the_last_that_is_observed():
    assert not too_far_ahead(pack(T + SKEW_MS_MAX, 0xFFFF), T)
    assert too_far_ahead(pack(T + SKEW_MS_MAX + 1), T)
    assert clock_was_wrong(pack(T + SKEW_MS_MAX + 1), T)


def test_the_clock_fits_a_signed_column_for_long():
    assert ms_of(2**63 - 1) // (365 * 86_400_000) + 1970 > 6400


def test_an_incarnation_is_above_the_last_and_above_wall_seconds():
    assert next_incarnation(0, T) == T // 1000
    assert next_incarnation(T // 1000, T) == T // 1000 + 1
    assert next_incarnation(7, 0) == 8
