"""`covey sync verify` and `sync repair` between two real daemons, one of which lost records."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json

# Nothing but the commands compares: the machines' own sessions would repair first.
QUIET = "\n[p2p.replication]\nsync_interval_s = 3600.0\n"
KEYS = ("one", "two", "three")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    homes = Home(tmp_path / "a", "laptop"), Home(tmp_path / "b", "desk")
    for home in homes:
        config = home.folder / "config.toml"
        config.write_text(config.read_text() + QUIET)
        home.up()
    made = cast("dict[str, Json]", homes[0].json("invite", "--no-wait"))
    homes[1].ok("join", str(made["ticket"]), "--yes")
    yield homes
    for home in homes:
        home.stop()


def rows(home: Home, *words: str, code: int = 0) -> list[dict[str, Json]]:
    done = home.run("sync", *words, "--group", "home", "--json")
    assert done.returncode == code, f"{words}: {done.stdout}\n{done.stderr}"

    return cast("list[dict[str, Json]]", json.loads(done.stdout))


def value(home: Home, key: str) -> Json:
    return cast("dict[str, Json]", home.json("state", "get", f"main/{key}"))["value"]


def lose_states(home: Home, count: int) -> None:
    """State values vanish from the database of a running daemon, as if pages had been lost."""
    path = home.folder / "state" / "covey.db"
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as db, db:
        lost = db.execute("SELECT n FROM record WHERE kind = 33 ORDER BY n LIMIT ?", (count,))
        for (n,) in lost.fetchall():
            for table, column in (
                ("cell", "n"),
                ("body", "n"),
                ("body_key", "n"),
                ("supersede", "src"),
                ("record", "n"),
            ):
                db.execute(f"DELETE FROM {table} WHERE {column} = ?", (n,))


def test_a_loss_in_the_middle_is_shown_by_verify_and_healed_by_repair(
    pair: tuple[Home, Home],
) -> None:
    laptop, desk = pair
    for key in KEYS:
        laptop.ok("state", "set", f"main/{key}", key)
    wait_until("the values arrive", lambda: value(desk, KEYS[-1]) == KEYS[-1])
    wait_until(
        "both hold the same",
        lambda: desk.run("sync", "verify", "--group", "home").returncode == 0,
    )
    (equal,) = rows(desk, "verify")
    assert equal["verdict"] == "equal"
    assert (equal["only_here"], equal["only_there"]) == (0, 0)
    assert equal["name"] == "laptop"
    digest = cast("dict[str, Json]", rows(laptop, "verify")[0])["digest"]
    assert equal["digest"] == digest
    assert "holds exactly our records" in desk.ok("sync", "verify", "--group", "home")

    lose_states(desk, 3)
    # What is written next makes the daemon read its set again.
    desk.ok("state", "set", "main/four", "four")
    wait_until("the fourth arrives", lambda: value(laptop, "four") == "four")
    (differs,) = rows(desk, "verify", code=1)
    assert differs["verdict"] == "differs"
    assert (differs["only_here"], differs["only_there"]) == (0, 3)
    (seen,) = rows(laptop, "verify", code=1)
    assert (seen["only_here"], seen["only_there"]) == (3, 0)
    named = cast("list[dict[str, Json]]", seen["here"])
    assert [(one["author"], one["kind"]) for one in named] == [("laptop", 33)] * 3
    said = laptop.run("sync", "verify", "--group", "home")
    assert said.returncode == 1
    assert said.stdout.count("only here: ") == 3

    (repaired,) = rows(desk, "repair")
    assert (repaired["equal"], repaired["received"]) == (True, 3)
    assert [value(desk, key) for key in KEYS] == list(KEYS)
    (again,) = rows(laptop, "verify")
    # A machine may write records of its own meanwhile: what is asked is that none is lost.
    assert again["verdict"] == "equal"
    assert cast("int", again["records"]) > cast("int", equal["records"])


def test_a_machine_that_is_gone_is_no_verdict(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    wait_until("they meet", lambda: desk.run("sync", "verify").returncode == 0)
    laptop.stop()
    done = desk.run("sync", "verify", "--peer", "laptop")
    assert done.returncode == 1
    assert "unknown" in done.stdout
