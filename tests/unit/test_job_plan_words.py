"""What `covey job plan` prints: every word of a plan, and nothing a terminal would obey."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from daemon.cli.job_plans import WHY_NOT, show_plan
from federated.jobs import planning

if TYPE_CHECKING:
    import pytest

    from daemon.json_types import Json


def printed(capsys: pytest.CaptureFixture[str], **plan: Json) -> str:
    plain: dict[str, Json] = {
        "plan_id": "ab" * 16, "rows": 12, "tasks": 3, "rows_a_task": 4, "executions_min": 3,
        "executions_max": 3, "seconds": None, "learned_jobs": 0, "cached_rows": None, "batch": None,
        "peers": [], "good": None, "bad": None, "hints": [], "notes": [],
    }  # fmt: skip
    assert show_plan(argparse.Namespace(json=False), {**plain, **plan}) == 0
    return capsys.readouterr().out


def test_what_is_unknown_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys)
    assert "unknown: no job of this handler has finished here yet" in text
    assert "not looked" in text
    assert "12 in 3 tasks of up to 4\n" in text


def test_what_is_known_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    example: dict[str, Json] = {
        "job_id": "12345678" * 4, "rows": 40, "size": 8, "right": 0.5, "gaps": 20,
        "why": "timeout", "seconds": 3.25, "at_ms": 1,
    }  # fmt: skip
    text = printed(
        capsys, seconds=12.34, learned_jobs=3, cached_rows=5, executions_max=7, bad=example,
        batch={"size": 4, "why": "best in 9 jobs like this"}, hints=["declare columns"],
    )  # fmt: skip
    for told in (
        "about 12.3 s, from 3 finished jobs", "5 rows", "3 to 7, as the answers agree",
        "(best in 9 jobs like this)", "hint: declare columns",
        "went badly: 12345678, 40 rows, up to 8 a task, 50% right, 3.2 s, gaps mostly: timeout",
    ):  # fmt: skip
        assert told in text


def test_every_reason_has_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = {
        planning.NOT_CONNECTED, planning.NO_SESSION, planning.NOT_TRUSTED, planning.NO_HANDLER,
        planning.QUARANTINED, planning.DRAINING, planning.NOT_PINNED, planning.RUNS_HERE,
        planning.ELSEWHERE,
    }  # fmt: skip
    assert set(WHY_NOT) == words
    peers: list[Json] = [{"machine": why, "sees": False, "why": why} for why in sorted(words)]
    text = printed(capsys, peers=[*peers, {"machine": "desk", "sees": True, "slots": 2}])
    for why in words:
        assert WHY_NOT[why] in text
    assert "2 at once" in text


def test_foreign_words_are_shown_and_obeyed_by_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "\x1b]0;owned\x07\u202e\x9b2J"
    text = printed(
        capsys,
        peers=[{"machine": f"desk{bad}", "sees": False, "why": f"odd{bad}"}],
        notes=[{"id": 1, "by": f"agent{bad}", "score": 2, "text": f"line\nplan ffff{bad}"}],
        hints=[f"hint{bad}"],
        bad={"job_id": f"12{bad}", "rows": 1, "size": 1, "right": 0, "why": f"why{bad}"},
    )
    assert not set("\x1b\x07\u202e\x9b") & set(text)
    assert text.count("\nplan ") == 0, "a note cannot begin a line of ours"
    assert "note 1 by agent" in text
