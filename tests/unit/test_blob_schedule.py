"""Every input of a fetch's schedule, in every state of a request and a source."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from p2p.blobs.config import BlobConfig
from p2p.blobs.manifest import CHUNK_BYTES_MIN, HASH_BYTES, Manifest
from p2p.blobs.schedule import END_GAME_CHUNKS, FAILURES_MAX, LIMIT_S_MAX, Schedule
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.blobs.schedule import Request

A, B, C = (PeerId(bytes([number]) * 32) for number in (1, 2, 3))
CONFIG: Final = BlobConfig()
MIB_S: Final = CHUNK_BYTES_MIN / 0.25


def manifest_of(chunks: int) -> Manifest:
    return Manifest(chunks * CHUNK_BYTES_MIN, bytes(HASH_BYTES * chunks))


def make(chunks: int, *, have: int = 0, config: BlobConfig = CONFIG) -> Schedule:
    return Schedule(manifest_of(chunks), have, config, 0.0)


def up(
    schedule: Schedule,
    peer: PeerId,
    *,
    has: int | None = None,
    start: int = 0,
    trip_s: float | None = 0.1,
    relay: bool = False,
) -> bool:
    chunks = schedule._manifest.chunks
    whole = (1 << chunks) - 1
    return schedule.source_up(
        peer, has=whole if has is None else has, start=start, round_trip_s=trip_s, relay=relay
    )


def indices(requests: list[Request]) -> list[int]:
    return [request.index for request in requests]


def deliver(schedule: Schedule, request: Request, now: float) -> None:
    assert schedule.arrived(request, now)
    schedule.stored(request.index, now)


# --- the good way ---------------------------------------------------------------------------------


def test_an_empty_blob_and_one_that_is_here_are_done_at_once() -> None:
    assert make(0).done
    assert make(3, have=0b111).done
    assert make(3, have=0b111).next_timer() is None
    assert not make(3, have=0b110).done


def test_a_source_begins_at_its_place_and_goes_on_in_order_around() -> None:
    schedule = make(40)
    up(schedule, A, start=38)
    got = []
    now = 0.0
    for _ in range(4):
        requests = schedule.to_send(now)
        got += indices(requests)
        now += 0.5
        for request in requests:
            deliver(schedule, request, now)
    assert got[:6] == [38, 39, 0, 1, 2, 3]


def test_two_sources_are_never_asked_for_the_same_before_the_end_game() -> None:
    schedule = make(100)
    up(schedule, A, start=10)
    up(schedule, B, start=10)
    assert sorted(indices(schedule.to_send(0.0))) == [10, 11, 12, 13]


def test_what_is_here_and_what_a_source_lacks_is_not_asked() -> None:
    schedule = make(100, have=0b1111)
    up(schedule, A, has=(1 << 4) | (1 << 9) | 0b11)
    assert indices(schedule.to_send(0.0)) == [4, 9]
    schedule.source_has(A, 1 << 50)
    (first, _) = list(_flights(schedule, A))
    deliver(schedule, first, 0.1)
    assert indices(schedule.to_send(0.1)) == [50]
    schedule.source_has(B, 1)  # nobody we know: no effect
    assert schedule.sources == (A,)


def _flights(schedule: Schedule, peer: PeerId) -> list[Request]:
    return [flight.request for flight in schedule._sources[peer].flights.values()]


def test_the_window_grows_with_what_is_delivered_and_has_an_end() -> None:
    schedule = make(2000)
    up(schedule, A)
    now, windows = 0.0, []
    requests = schedule.to_send(now)
    for _ in range(12):
        now += 0.1  # a long fat path: everything asked together comes a round trip later
        for request in requests:
            deliver(schedule, request, now)
        windows.append(schedule.window(A))
        requests = schedule.to_send(now)
    assert windows[0] > 2
    assert windows == sorted(windows)
    assert windows[-1] == CONFIG.window_max


def test_a_slow_path_keeps_the_least_window() -> None:
    schedule = make(100)
    up(schedule, A)
    now = 0.0
    for _ in range(10):
        requests = schedule.to_send(now)
        for request in requests:
            now += 1.0
            deliver(schedule, request, now)
        assert schedule.window(A) <= 4
        assert schedule.in_flight(A) == 0


def test_all_sources_together_stay_below_the_bytes_in_flight() -> None:
    config = replace(CONFIG, in_flight_bytes_max=3 * CHUNK_BYTES_MIN)
    schedule = make(100, config=config)
    for peer in (A, B, C):
        up(schedule, peer)
    first = schedule.to_send(0.0)
    assert len(first) == 3
    # Being checked counts: it is still in memory.
    assert schedule.arrived(first[0], 0.1)
    assert schedule.to_send(0.1) == []
    schedule.stored(first[0].index, 0.1)
    assert len(schedule.to_send(0.1)) == 1


def test_there_are_at_most_so_many_sources_and_each_is_one_once() -> None:
    schedule = make(100, config=replace(CONFIG, sources_max=2))
    assert up(schedule, A)
    assert not up(schedule, A)
    assert up(schedule, B)
    assert not up(schedule, C)
    schedule.source_down(A)
    assert up(schedule, C)
    assert schedule.sources == (B, C)


# --- answers --------------------------------------------------------------------------------------


def test_an_answer_that_nobody_waits_for_is_thrown_away() -> None:
    schedule = make(20)
    up(schedule, A)
    request, *_ = schedule.to_send(0.0)
    deliver(schedule, request, 0.1)
    assert not schedule.arrived(request, 0.2)
    schedule.source_down(A)
    assert not schedule.arrived(request, 0.3)


@pytest.mark.parametrize(
    "late",
    [
        lambda s, r: s.refused(r),
        lambda s, r: s.busy(r, 1.0, 9.0),
        lambda s, r: s.source_down(r.peer),
    ],
    ids=["refused", "busy", "source_down"],
)
def test_news_of_a_request_that_is_over_changes_nothing(
    late: Callable[[Schedule, Request], None],
) -> None:
    schedule = make(20)
    up(schedule, A)
    request, other = schedule.to_send(0.0)
    deliver(schedule, request, 0.1)
    before = (schedule.have, schedule._taken & 1)
    late(schedule, request)
    assert (schedule.have, schedule._taken & 1) == before
    assert other.index == 1


def test_a_wrong_chunk_drops_its_source_for_good_and_is_asked_of_others() -> None:
    schedule = make(20)
    up(schedule, A)
    request, second = schedule.to_send(0.0)
    up(schedule, B)
    assert schedule.arrived(request, 0.1)
    schedule.wrong(request)
    assert schedule.to_cancel() == [second]
    assert schedule.is_banned(A)
    assert not schedule.has_room(A)
    assert not up(schedule, A)
    assert indices(schedule.to_send(0.2)) == [0, 1]
    assert schedule.have == 0


def test_broken_protocol_drops_a_source_in_the_middle_of_a_request() -> None:
    schedule = make(20)
    up(schedule, A)
    request, second = schedule.to_send(0.0)
    schedule.wrong(request)
    assert schedule.to_cancel() == [request, second]
    assert schedule.sources == ()


def test_refusing_takes_the_claim_away_and_three_in_a_row_drop() -> None:
    schedule = make(40)
    up(schedule, A)
    up(schedule, B, has=0)
    seen = []
    for turn in range(FAILURES_MAX):
        request = next(r for r in [*schedule.to_send(float(turn)), *_flights(schedule, A)])
        seen.append(request.index)
        schedule.refused(request)
    assert len(set(seen)) == FAILURES_MAX
    assert schedule.sources == (B,)
    # It may come back only when nobody else is left.
    assert not schedule.has_room(A)
    schedule.source_down(B)
    assert up(schedule, A)


def test_the_last_source_is_kept_whatever_it_refuses() -> None:
    schedule = make(40)
    up(schedule, A)
    for _ in range(10):
        for request in schedule.to_send(0.0):
            schedule.refused(request)
    assert schedule.sources == (A,)


def test_a_busy_source_is_asked_less_and_later_each_time() -> None:
    schedule = make(100)
    up(schedule, A)
    now, waits = 0.0, []
    for _ in range(8):
        requests = schedule.to_send(now)
        assert requests
        for request in requests:
            schedule.busy(request, 0.2, now)
        assert schedule.window(A) == 1
        assert schedule.to_send(now) == []
        timer = schedule.next_timer()
        assert timer is not None
        waits.append(timer - now)
        now = timer
        schedule.on_timer(now)
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(0.2)
    assert waits[-1] == pytest.approx(8.0)


def test_a_source_that_goes_frees_what_it_was_asked_for() -> None:
    schedule = make(20)
    up(schedule, A)
    requests = schedule.to_send(0.0)
    schedule.source_down(A)
    assert schedule.to_cancel() == requests
    assert schedule.to_cancel() == []
    assert schedule.window(A) == schedule.in_flight(A) == 0
    up(schedule, B)
    assert indices(schedule.to_send(0.0)) == [0, 1]
    schedule.source_down(C)  # unknown: nothing


# --- time -----------------------------------------------------------------------------------------


def test_a_late_chunk_is_free_for_others_and_its_source_is_asked_for_one() -> None:
    schedule = make(40)
    up(schedule, A)
    requests = schedule.to_send(0.0)
    schedule.on_timer(CONFIG.chunk_s_min - 0.01)
    assert schedule.to_cancel() == []
    schedule.on_timer(CONFIG.chunk_s_min)
    assert schedule.to_cancel() == requests
    assert schedule.window(A) == 1
    up(schedule, B)
    again = schedule.to_send(CONFIG.chunk_s_min)
    assert [r.peer for r in again].count(A) == 1


def test_silence_three_times_drops_a_source_if_there_is_another() -> None:
    schedule = make(4000)
    up(schedule, A)
    up(schedule, B)
    now = 0.0
    while A in schedule.sources:
        for request in schedule.to_send(now):
            if request.peer == B:
                deliver(schedule, request, now + 0.1)
        now += 0.5
        schedule.on_timer(now)
        assert now < 20
    # 2 s, then 4, then 8.
    assert now == pytest.approx(14.0, abs=1.0)
    assert schedule.sources == (B,)


def test_the_last_source_gets_twice_the_time_after_each_silence() -> None:
    schedule = make(40, config=replace(CONFIG, stall_s=1000))
    up(schedule, A)
    limits = []
    now = 0.0
    for _ in range(8):
        assert schedule.to_send(now)
        limit = max(f.limit_s for f in schedule._sources[A].flights.values())
        limits.append(limit)
        now += limit
        schedule.on_timer(now)
    assert limits[:4] == [2.0, 4.0, 8.0, 16.0]
    assert limits[-1] == LIMIT_S_MAX
    (request,) = schedule.to_send(now)
    deliver(schedule, request, now + 30)
    assert schedule._sources[A].patience == 1.0


def test_a_measured_slow_line_gets_four_times_what_a_chunk_takes() -> None:
    schedule = make(40)
    up(schedule, A)
    first, second = schedule.to_send(0.0)
    schedule.on_timer(1.9)
    deliver(schedule, first, 1.9)
    (third,) = [r for r in schedule.to_send(1.9) if r != second]
    flight = schedule._sources[A].flights[third.number]
    assert flight.limit_s == pytest.approx(4 * flight.expected_s)
    assert flight.expected_s > 1.9


def test_nothing_for_so_long_is_a_stall_and_a_chunk_ends_it() -> None:
    schedule = make(20)
    assert not schedule.stalled(CONFIG.stall_s - 0.1)
    assert schedule.stalled(CONFIG.stall_s)
    up(schedule, A)
    request, *_ = schedule.to_send(29.0)
    deliver(schedule, request, 29.5)
    assert not schedule.stalled(CONFIG.stall_s)
    assert schedule.stalled(29.5 + CONFIG.stall_s)


def test_the_next_timer_is_later_after_the_timer_ran() -> None:
    schedule = make(6)
    up(schedule, A)
    up(schedule, B, has=0)
    now = 0.0
    schedule.to_send(now)
    for _ in range(60):
        timer = schedule.next_timer()
        assert timer is not None
        assert timer > now or schedule.stalled(now)
        if schedule.stalled(now):
            break
        now = timer
        schedule.on_timer(now)
        schedule.to_send(now)
    assert schedule.stalled(now)


# --- the end game ---------------------------------------------------------------------------------


def finish_but(schedule: Schedule, chunks: int, left: int) -> None:
    """Have everything but the first `left` chunks."""
    for index in range(left, chunks):
        schedule.stored(index, 0.0)


def test_the_last_chunks_are_asked_of_a_second_source_that_is_faster() -> None:
    schedule = make(40)
    up(schedule, A)
    up(schedule, B)
    slow, fast = schedule._sources[A], schedule._sources[B]
    slow.bytes_per_s, fast.bytes_per_s = MIB_S / 10, MIB_S * 10
    finish_but(schedule, 40, 2)
    requests = schedule.to_send(0.0)
    by = {peer: [r.index for r in requests if r.peer == peer] for peer in (A, B)}
    # One of each in turn, and then the fast one also brings what the slow one was asked for.
    assert by == {A: [0], B: [1, 0]}
    doubled = next(r for r in requests if r.peer == B and r.index == 0)
    deliver(schedule, doubled, 0.1)
    assert [r.peer for r in schedule.to_cancel()] == [A]
    assert schedule.in_flight(A) == 0


def test_a_slower_source_is_no_second_until_the_first_is_late() -> None:
    schedule = make(40)
    up(schedule, A)
    finish_but(schedule, 40, 1)
    (first,) = schedule.to_send(0.0)
    up(schedule, B)
    assert schedule.to_send(0.1) == []
    timer = schedule.next_timer()
    assert timer == pytest.approx(0.5)
    schedule.on_timer(0.5)
    (second,) = schedule.to_send(0.5)
    assert (second.peer, second.index) == (B, first.index)
    up(schedule, C)
    schedule.on_timer(1.9)
    assert schedule.to_send(1.9) == [], "two are enough"


def test_there_is_no_end_game_before_the_end_nor_over_a_relay() -> None:
    for left, relay, seconds in (
        (END_GAME_CHUNKS + 1, False, 0),
        (END_GAME_CHUNKS, True, 0),
        (END_GAME_CHUNKS, False, 2),
    ):
        schedule = make(40)
        up(schedule, A)
        schedule._sources[A].window = 16
        finish_but(schedule, 40, left)
        assert len(schedule.to_send(0.0)) == left
        up(schedule, B, relay=relay)
        schedule.on_timer(1.0)
        assert len(schedule.to_send(1.0)) == seconds


def test_the_second_answer_of_the_end_game_finds_nobody() -> None:
    schedule = make(40)
    up(schedule, A)
    finish_but(schedule, 40, 1)
    (first,) = schedule.to_send(0.0)
    up(schedule, B)
    schedule.on_timer(1.0)
    (second,) = schedule.to_send(1.0)
    assert schedule.arrived(first, 1.1)
    assert schedule.to_cancel() == [second]
    assert not schedule.arrived(second, 1.1)
    schedule.stored(first.index, 1.2)
    assert schedule.done


def test_a_wrong_first_answer_of_the_end_game_is_asked_of_the_other_again() -> None:
    schedule = make(40)
    up(schedule, A)
    finish_but(schedule, 40, 1)
    (first,) = schedule.to_send(0.0)
    up(schedule, B)
    schedule.on_timer(1.0)
    (second,) = schedule.to_send(1.0)
    assert schedule.arrived(first, 1.1)
    schedule.wrong(first)
    schedule.to_cancel()
    assert not schedule.done
    (third,) = schedule.to_send(1.2)
    assert (third.peer, third.index) == (second.peer, first.index)
