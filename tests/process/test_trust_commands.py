"""`covey trust, feedback, quarantine, rollback` against a real daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "h")
    made.up()
    yield made
    made.stop()


def note(home: Home, text: str, agent: str = "") -> str:
    env = {"COVEY_AGENT": agent} if agent else {}
    (row,) = cast("list[dict[str, Json]]", home.json("remember", text, "--scope", "main", env=env))
    return str(row["id"])


def test_a_verdict_moves_trust_and_the_explanation_shows_it(home: Home) -> None:
    ident = note(home, "the port is 8080", "codex")
    said = home.ok("feedback", ident[:10], "wrong", "--note", "it is 8081")
    assert "author .86 -> .68" in said
    shown = home.ok("trust", "explain", "codex")
    assert "you: wrong or harmful" in shown
    assert "-3.00" in shown
    assert ident[:8] in shown
    rows = cast("list[dict[str, Json]]", home.json("trust", "show"))
    assert {row["agent"]: row["trust"] for row in rows}["codex"] == 0.681
    assert "codex@node" in home.ok("trust")
    missing = home.run("trust", "explain", "codec")
    assert missing.returncode == 4
    assert "Did you mean codex" in missing.stderr


def test_a_rollback_counts_asks_hides_and_comes_back_after_a_kill(home: Home) -> None:
    for n in range(3):
        note(home, f"wrong number {n}", "codex")
    note(home, "right number")
    asked = home.run("rollback", "codex@node", "--since", "1h")
    assert "would hide 3 memories" in asked.stdout
    assert "nothing was changed" in asked.stderr
    assert len(home.texts("number")) == 4
    dry = home.run("rollback", "codex@node", "--since", "1h", "--dry-run", "--yes")
    assert "would hide 3 memories" in dry.stdout, dry.stderr
    assert len(home.texts("number")) == 4
    done = home.run("rollback", "codex@node", "--since", "1h", "--yes")
    assert "hid 3 memories" in done.stdout, done.stderr
    token = done.stderr.split("--undo ")[1].split()[0]
    home.kill()
    assert home.texts("number") == ["right number"]
    assert "codex@node" in home.ok("rollback", "--list")
    assert "brought back 3 memories" in home.ok("rollback", "--undo", token)
    assert len(home.texts("number")) == 4
    for words, code in (
        (["rollback", "nobody", "--since", "1h"], 4),
        (["rollback", "codex@node", "--since", "soon"], 2),
        (["rollback", "codex@node"], 2),
        (["rollback", "--undo", "00"], 4),
        (["rollback", "--undo", token, "--dry-run"], 2),
    ):
        failed = home.run(*words)
        assert failed.returncode == code, failed.stderr
        assert failed.stderr.count("\n") >= 2  # what is wrong, and what to do


def test_agents_may_report_but_not_decide(home: Home) -> None:
    ident = note(home, "the port is 8080", "codex")
    agent = {"COVEY_AGENT": "claude"}
    assert "gained" in home.ok("feedback", ident, "useful", env=agent)
    home.ok("trust", "show", env=agent)
    home.ok("trust", "explain", "codex", env=agent)
    for words in (
        ["trust", "distrust", "codex"],
        ["trust", "endorse", "codex"],
        ["quarantine", "list"],
        ["quarantine", "release", ident],
        ["quarantine", "reject", ident],
        ["rollback", "codex@node", "--since", "1h", "--yes"],
    ):
        refused = home.run(*words, env=agent)
        assert refused.returncode == 5, words
        assert "trust" in refused.stderr
    assert "nothing is quarantined" in home.run("quarantine").stderr


@pytest.mark.slow
def test_a_daemon_killed_in_the_middle_of_a_rollback_finishes_it_at_the_next_start(
    home: Home,
) -> None:
    """More than a batch of notes, and SIGKILL after the first batch of the rollback."""
    home.stop()
    with (home.folder / "config.toml").open("a") as config:
        config.write("\n[rpc]\nwrite_burst = 10000\n")  # seven hundred notes at once
    home.up(COVEY_TEST_FAULT="rollback.step:1")
    lines = "\n".join(f"## Note {n}\n\nwrong number {n} of the story\n" for n in range(700))
    (home.work / "notes.md").write_text(lines)
    home.ok("import", "notes.md", "--scope", "main", env={"COVEY_AGENT": "codex"})
    note(home, "right number")
    home.run("rollback", "codex@node", "--since", "1h", "--yes", "--no-autostart")
    wait_until("the daemon is gone", lambda: home.pid is None)
    home.up()

    def done() -> bool:
        rows = cast("list[dict[str, Json]]", home.json("rollback", "--list"))
        return [row["state"] for row in rows] == ["done"] and rows[0]["memories"] == 700

    wait_until("the rollback is finished", done)
    assert home.texts("number") == ["right number"]
