"""Taking a machine out of a group and letting it back in: between real daemons."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    laptop, desk = Home(tmp_path / "a", "laptop"), Home(tmp_path / "b", "desk")
    laptop.up()
    desk.up()
    yield laptop, desk
    laptop.stop()
    desk.stop()


def ticket_of(home: Home, *words: str) -> str:
    return str(cast("dict[str, Json]", home.json("invite", *words))["ticket"])


def members(home: Home) -> dict[str, str]:
    rows = cast("list[dict[str, Json]]", home.json("group", "members", "team"))
    return {str(row["name"]): str(row["role"]) for row in rows}


def test_a_machine_is_taken_out_with_a_word_said_first_and_comes_back(
    pair: tuple[Home, Home],
) -> None:
    laptop, desk = pair
    laptop.ok("group", "create", "team")
    desk.ok("join", ticket_of(laptop, "--group", "team"), "--yes")
    desk.ok("remember", "the desk wrote this early", "--scope", "team/main")
    wait_until("the note arrives", lambda: laptop.texts("desk wrote early") != [])
    wait_until("the name arrives", lambda: members(laptop) == {"laptop": "admin", "desk": "write"})

    silent = laptop.run("group", "remove", "team", "desk")
    assert silent.returncode == 2
    assert "reads nothing that is written from now on" in silent.stdout
    assert members(laptop)["desk"] == "write"
    assert desk.run("group", "remove", "team", "laptop", "--yes").returncode == 5

    desk.ok("peers", "pause")
    laptop.ok("group", "remove", "team", "desk", "--yes")
    assert members(laptop) == {"laptop": "admin"}
    laptop.ok("remember", "plums are for others", "--scope", "team/main")
    desk.ok("remember", "the desk did not know yet", "--scope", "team/main")
    desk.ok("peers", "resume")
    wait_until("the desk hears of it", lambda: "left" in desk.ok("group"))
    desk.run("sync", "now")
    assert desk.texts("plums") == []
    assert laptop.texts("desk wrote early") == ["the desk wrote this early"]
    refused = desk.run("remember", "too late", "--scope", "team/main")
    assert refused.returncode == 5
    assert "this device is out of team" in refused.stderr

    desk.ok("join", ticket_of(laptop, "--group", "team"), "--yes")
    wait_until("all is there again", lambda: desk.texts("plums") != [])
    wait_until("what was cut comes too", lambda: laptop.texts("desk did not know") != [])
    assert members(desk) == {"laptop": "admin", "desk": "write"}


def test_a_revoked_invite_lets_nobody_in(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    laptop.ok("group", "create", "team")
    ticket = ticket_of(laptop, "--group", "team")
    (row,) = cast("list[dict[str, Json]]", laptop.json("invite", "list", "--of", "team"))
    assert row["state"] == "open"
    laptop.ok("invite", "revoke", str(row["invite"])[:8])
    refused = desk.run("join", ticket, "--yes")
    assert refused.returncode != 0
    assert "closed" in refused.stderr
    (row,) = cast("list[dict[str, Json]]", laptop.json("invite", "list", "--of", "team"))
    assert row["state"] == "closed"


def test_an_invite_can_be_read_by_a_camera(pair: tuple[Home, Home]) -> None:
    laptop, _ = pair
    shown = laptop.ok("invite", "--qr", "--no-wait")
    assert sum(line.count("█") for line in shown.splitlines()) > 200


@pytest.mark.slow
def test_an_erasure_is_confirmed_by_the_other_machine(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    desk.ok("join", ticket_of(laptop), "--yes")
    note = cast("list[dict[str, Json]]", laptop.json("remember", "the plums are in the cellar"))
    wait_until("the note arrives", lambda: desk.texts("plums") != [])
    laptop.ok("erase", str(note[0]["id"]), "--yes")

    def confirmed() -> list[str]:
        (row,) = cast("list[dict[str, Json]]", laptop.json("erase", "--status"))
        return cast("list[str]", row["confirmed"])

    wait_until("the desk's word arrives", lambda: len(confirmed()) == 1)
    assert desk.texts("plums") == []
    assert "confirmed by 1 of 1" in laptop.ok("erase", "--status")
