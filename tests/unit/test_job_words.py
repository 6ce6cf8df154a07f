"""Events of a job in words: what a person reads, and that a peer's name cannot forge a line."""

from __future__ import annotations

import pytest

from daemon.cli.job_words import counted, event_line


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("state", {"state": "running"}, "running"),
        (
            "state",
            {"state": "done", "ok": 2, "missing": 1, "pending": 0, "cached": 2},
            "done: 2 ok, 1 missing; 2 of 3 rows from the cache",
        ),
        ("state", {"state": "expired", "reason": "deadline"}, "expired: its time was over"),
        ("state", {"state": "failed", "reason": "bad_value"}, "failed: bad_value"),
        (
            "progress",
            {"rows": 4, "done": 2, "at_peers": 1},
            "[###############...............] 2/4 rows, 1 task at peers",
        ),
        ("gap", {"k": 7, "reason": "no_text"}, "row 7 has no answer: no_text"),
        (
            "conflict",
            {"k": 7, "column": "value", "claims": [{"machine": "owl"}, {"machine": "wren"}]},
            "row 7, column value: owl, wren do not all say the same",
        ),
        (
            "quarantine",
            {"owner": "ab", "machines": ["owl"], "reopened": 1},
            "owl answered wrongly and is asked no more; 1 row is open again",
        ),
        ("peer_lost", {"peer": "ab", "machine": "owl"}, "the connection to owl is lost"),
        ("reopened", {"k": 3}, "row 3 is open again"),
        ("tainted", {"rows": 3}, "tainted rows=3"),
    ],
)
def test_each_event_is_a_sentence(name: str, data: dict[str, object], line: str) -> None:
    assert event_line({"name": name, "data": data}) == line  # type: ignore[dict-item]


def test_who_watches_a_job_that_nobody_can_do_is_told_what_to_look_at() -> None:
    line = event_line({"name": "state", "data": {"state": "queued", "reason": "no_eligible_peer"}})
    assert "covey job handlers" in line
    assert "covey peers" in line


@pytest.mark.attack
def test_a_name_or_reason_of_a_peer_stays_one_line_and_moves_no_cursor() -> None:
    bad = "owl\r\n\x1b[2Jdone: 9 ok" + "x" * 200
    for name, data in (
        ("gap", {"k": 1, "reason": bad}),
        ("peer_lost", {"machine": bad}),
        ("quarantine", {"machines": [bad], "reopened": 0}),
        ("conflict", {"k": 1, "column": bad, "claims": [{"machine": bad}]}),
    ):
        line = event_line({"name": name, "data": data})  # type: ignore[dict-item]
        assert line.isprintable(), name
        assert len(line) < 200


def test_counted() -> None:
    assert counted(1, "row", "rows") == "1 row"
    assert counted(0, "row", "rows") == "0 rows"
