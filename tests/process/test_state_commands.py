"""Two machines share values: `covey state`, between real daemons."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.json_types import Json

EXAMPLE = Path(__file__).parents[2] / "examples" / "shared_state.py"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Home]]:
    folder = tmp_path_factory.mktemp("st")
    laptop, desk = Home(folder / "a", "laptop"), Home(folder / "b", "desk")
    laptop.up()
    desk.up()
    ticket = cast("dict[str, Json]", laptop.json("invite"))["ticket"]
    desk.ok("join", str(ticket), "--yes")
    yield laptop, desk
    laptop.stop()
    desk.stop()


def value(home: Home, path: str, *more: str) -> Json:
    """The value of a cell there."""
    return cast("dict[str, Json]", home.json("state", "get", path, *more))["value"]


def agree(a: Home, b: Home) -> None:
    """Until both hold the same records of the home group."""
    wait_until(
        "both hold the same",
        lambda: a.json("rpc", "sync.digest", "{}") == b.json("rpc", "sync.digest", "{}"),
    )


def test_what_two_machines_wrote_apart_is_all_there_after(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    for home in pair:
        home.ok("peers", "pause")
    for home in pair:
        name = home.folder.name
        home.ok("state", "add", "main/list", f"of {name}")
        home.ok("state", "incr", "main/count", "5")
        home.ok("state", "incr", "main/count", "-2")
        home.ok("state", "set", "main/choice", name, "--type", "mv")
    for home in pair:
        home.ok("peers", "resume")
    agree(laptop, desk)
    for home in pair:
        assert value(home, "main/list") == ["of a", "of b"]
        assert value(home, "main/count") == 6
        assert sorted(cast("list[str]", value(home, "main/choice"))) == ["a", "b"]
    assert value(desk, "main/count", "--without", "laptop") == 3


def test_a_write_says_on_which_machines_it_is(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    done = cast("dict[str, Json]", laptop.json("state", "set", "main/g", "1", "--machines", "2"))
    held = cast("dict[str, Json]", done["holders"])
    assert sorted(cast("list[str]", held["held"])) == ["desk", "laptop"]
    assert value(desk, "main/g") == 1
    few = laptop.run("rpc", "state.holders", f'{{"id": "{"0" * 64}", "machines": 0}}')
    assert '"held": []' in few.stdout


def test_a_conditional_write_that_lost_the_race_is_refused(pair: tuple[Home, Home]) -> None:
    laptop, _ = pair
    first = cast("dict[str, Json]", laptop.json("state", "set", "main/lock", "me"))
    head = str(cast("list[Json]", first["ids"])[-1])
    laptop.ok("state", "set", "main/lock", "another", "--expect", head)
    late = laptop.run("state", "set", "main/lock", "late", "--expect", head)
    assert late.returncode == 6
    assert value(laptop, "main/lock") == "another"


def test_the_example_on_both_machines(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    environ: dict[str, str] = {}
    for home, task in ((laptop, "paint"), (desk, "sweep")):
        environ = {**home.environ, "PATH": f"{Path(sys.executable).parent}:{home.environ['PATH']}"}
        subprocess.run(
            [sys.executable, str(EXAMPLE), task], env=environ, check=True, capture_output=True
        )
        agree(laptop, desk)
    shown = subprocess.run(
        [sys.executable, str(EXAMPLE), "rest"],
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "to do: paint, rest, sweep" in shown
    assert "runs: 3" in shown
    assert "present: desk, laptop" in shown


def test_an_agent_touches_values_of_its_scopes_only(pair: tuple[Home, Home]) -> None:
    laptop, _ = pair
    laptop.ok("state", "set", "closed/plan", "secret")
    scopes = ("--scope", "read:open", "--scope", "write:open")
    token = laptop.ok("agents", "add", "narrow", *scopes).strip()
    narrow = {"COVEY_GRANT": token}
    assert laptop.run("state", "set", "open/plan", "1", env=narrow).returncode == 0
    for words in (("get", "closed/plan"), ("set", "closed/plan", "2"), ("history", "closed/plan")):
        refused = laptop.run("state", *words, env=narrow)
        assert refused.returncode == 5, refused.stderr
        assert "secret" not in refused.stdout + refused.stderr
    for path, code in (("closed/plan", 5), ("open/plan", 0)):
        (head,) = cast("list[dict[str, Json]]", laptop.json("state", "history", path))
        asked = laptop.run("rpc", "state.holders", f'{{"id": "{head["id"]}"}}', env=narrow)
        assert asked.returncode == code, asked.stderr
    unknown = laptop.run("rpc", "state.holders", f'{{"id": "{"0" * 64}"}}', env=narrow)
    assert unknown.returncode != 0
    listed = laptop.run("state", "list", env=narrow).stdout
    assert "open/plan" in listed
    assert "closed" not in listed
