"""Erasing through real commands and a real daemon: what a person sees, and what kill -9 leaves."""

from __future__ import annotations

import json
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
    yield made
    made.stop()


def remember(home: Home, text: str) -> str:
    rows = cast("list[dict[str, Json]]", home.json("remember", text))
    return str(rows[0]["id"])


def holds(home: Home, word: str) -> bool:
    """Whether any file of the state folder has the word."""
    files = [path for path in (home.folder / "state").rglob("*") if path.is_file()]
    return any(word.encode() in path.read_bytes() for path in files)


def test_a_person_erases_sees_what_went_and_that_nothing_is_left(home: Home) -> None:
    home.up()
    ident = remember(home, "the quetzalcoatl recipe")
    remember(home, "a note that stays")
    shown = home.ok("erase", ident, "--dry-run")
    assert "quetzalcoatl" in shown
    # Without --yes and without a terminal nothing happens.
    refused = home.run("erase", ident)
    assert refused.returncode == 1
    assert home.texts("quetzalcoatl")
    done = home.ok("erase", ident, "--yes")
    assert "erased" in done
    assert "0 bytes left in any file of this node" in done
    assert home.texts("quetzalcoatl") == []
    assert home.texts("stays") == ["a note that stays"]
    assert not holds(home, "quetzalcoatl")
    assert "quetzalcoatl" not in home.log_text()
    again = home.run("erase", ident, "--yes")
    assert again.returncode == 4
    assert "erased before" in again.stdout


def test_forgetting_is_undone_and_can_be_made_erasing(home: Home) -> None:
    home.up()
    ident = remember(home, "the xoloitzcuintle note")
    home.ok("forget", ident)
    assert home.texts("xoloitzcuintle") == []
    home.ok("forget", "--undo", ident)
    assert home.texts("xoloitzcuintle") == ["the xoloitzcuintle note"]
    home.ok("forget", "--erase", ident, "--yes")
    assert not holds(home, "xoloitzcuintle")


def test_by_author_and_subject_and_what_makes_no_sense(home: Home) -> None:
    home.up()
    remember(home, "Jane Doe lives in Oslo")
    remember(home, "Jane lives elsewhere")
    report = cast("dict[str, Json]", home.json("erase", "--subject", "jane doe", "--yes"))
    assert (report["state"], report["memories"], report["residue_bytes"]) == ("done", 1, 0)
    assert home.texts("Jane") == ["Jane lives elsewhere"]
    assert home.run("erase").returncode == 2
    assert home.run("erase", "12345678", "--author", "x").returncode == 2
    assert home.run("erase", "12345678", "--yes").returncode == 4


def test_upkeep_by_hand_and_what_comes_later(home: Home) -> None:
    home.up()
    remember(home, "a note about lemons")
    assert home.json("maintain", "reindex") == {"task": "reindex", "count": 1}
    assert home.texts("lemons") == ["a note about lemons"]
    home.ok("maintain", "forget_behaviour")
    home.ok("maintain", "forget_unused")
    later = home.run("maintain", "consolidate")
    assert later.returncode != 0
    assert "later version" in later.stderr


@pytest.mark.slow
@pytest.mark.parametrize("point", ["erase.committed", "erase.told", "erase.cleaned"])
def test_a_kill_at_any_step_of_an_erasure_ends_erased(home: Home, point: str) -> None:
    home.up()
    ident = remember(home, "the mxyzptlk formula")
    remember(home, "a note that stays")
    home.ok("down")
    home.up(COVEY_TEST_FAULT=f"{point}:1")
    # The command starts the daemon again where it died, and asks once more.
    done = home.run("erase", ident, "--yes", "--json")
    assert done.returncode in {0, 4}, done.stderr
    starts = [line["unclean"] for line in home.log() if line["event"] == "starting"]
    assert True in starts, "the daemon was killed"
    assert json.loads(done.stdout)["items"][0]["status"] == "erased_before"
    wait_until("the erasure is finished", lambda: not holds(home, "mxyzptlk"))
    assert home.texts("mxyzptlk") == []
    assert home.texts("stays") == ["a note that stays"]
