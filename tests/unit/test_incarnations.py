"""Which logs a start goes on with: never one that had come further than the database knows."""

from __future__ import annotations

from memory.records.stored import LogState
from p2p.replication.groups import choose_incarnations
from p2p.replication.hlc import pack

ME, OTHER, GROUP = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
WALL_MS = 1_700_000_000_000
NOW_S = WALL_MS // 1000


def log(
    incarnation: int, lane: int, seq: int, author: bytes = ME, fork: int | None = None
) -> LogState:
    key = (GROUP, author, incarnation, lane)
    return LogState(key, seq, seq, bytes(32), pack(WALL_MS - 5000, 0), fork)


def mark(incarnation: int, lane: int, seq: int, author: bytes = ME) -> object:
    return ((GROUP, author, incarnation, lane), seq)


def chosen(logs: list[LogState], *marks: object) -> tuple[int, int]:
    return choose_incarnations(ME, logs, WALL_MS, dict(marks))  # type: ignore[call-overload]


BOTH = [log(7, 0, 4), log(7, 1, 9)]


def test_what_the_mark_confirms_goes_on() -> None:
    assert chosen(BOTH) == (7, 7)
    assert chosen(BOTH, mark(7, 0, 4), mark(7, 1, 9)) == (7, 7)
    # A mark that is behind is one that was not written in time.
    assert chosen(BOTH, mark(7, 0, 1), mark(7, 1, 2)) == (7, 7)


def test_a_lane_that_was_further_begins_anew() -> None:
    assert chosen(BOTH, mark(7, 1, 10)) == (7, NOW_S)
    assert chosen(BOTH, mark(7, 0, 5), mark(7, 1, 9)) == (NOW_S, 7)


def test_a_newer_log_that_the_database_lacks_counts_and_its_number_is_not_used_again() -> None:
    later = NOW_S + 50
    assert chosen(BOTH, mark(later, 1, 1)) == (7, later + 1)


def test_an_older_log_that_was_further_is_past() -> None:
    logs = [*BOTH, log(8, 1, 2)]
    assert chosen(logs, mark(7, 1, 10), mark(8, 1, 2)) == (7, 8)


def test_marks_of_others_say_nothing() -> None:
    assert chosen(BOTH, mark(7, 1, 99, OTHER), mark(9, 0, 1, OTHER)) == (7, 7)
