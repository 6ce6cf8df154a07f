"""Five real daemons train together: one lies, one is killed, restarted and catches up."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from federated.rounds.statefile import load_state
from tests.helpers.daemons import joined_homes, wait_until
from tests.helpers.everywhere import ended, models, round_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from daemon.json_types import Json
    from tests.helpers.daemons import Home

ROUNDS = 8
KILLED_AT, BACK_AT = 3, 5
"""Rounds in which all wait for a file, so that kill and restart have their place in training."""

# A linear model that each member pulls towards its own corner of one common truth.
MODULE = """
import os, time
import numpy as np

TRUTH = np.linspace(-1, 1, 400, dtype=np.float32)
ME = int(os.environ["MEMBER"])
calls = 0


def initial():
    return {"w": np.zeros(400, np.float32)}


def train(state):
    global calls
    calls += 1
    while str(calls) in os.environ["HOLDS"] and not os.path.exists(f"{os.environ['GO']}-{calls}"):
        time.sleep(0.01)
    rng = np.random.default_rng(ME)
    aim = TRUTH + rng.normal(0, 0.05, 400).astype(np.float32)
    if ME == 4:
        aim = -50 * TRUTH
    new = state["w"] + np.float32(0.5) * (aim - state["w"])
    return {"w": new}, 10, {"loss": float(np.mean((state["w"] - TRUTH) ** 2))}
"""


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, ...]]:
    names = ("one", "two", "three", "four", "liar")
    with joined_homes(tmp_path_factory.mktemp("fm"), *names) as homes:
        yield homes


def start(home: Home, member: int, go: Path) -> subprocess.Popen[str]:
    (home.work / "mymodel.py").write_text(textwrap.dedent(MODULE))
    words = ("fed", "run", "mymodel:train", "line", "--rounds", str(ROUNDS), "--json")
    policy = ("--peers", "5", "--deadline", "10", "--codec", "f32")
    env = {"MEMBER": str(member), "HOLDS": f"{KILLED_AT} {BACK_AT}", "GO": str(go)}
    return home.popen(*words, *policy, env=env)


def fates_of(home: Home) -> dict[tuple[int, str], str]:
    """How each machine fared, by round and name."""
    rounds = cast("list[dict[str, Json]]", home.json("fed", "history", "--name", "line"))
    return {
        (int(str(one["number"])), str(member["machine"])): str(member["status"])
        for one in rounds
        for member in cast("list[dict[str, Json]]", one["members"])
    }


@pytest.mark.slow
def test_five_train_while_one_lies_and_one_is_killed_and_restarted(
    five: tuple[Home, ...], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    running = [start(home, index, go) for index, home in enumerate(five)]
    wait_until("they train", lambda: {round_of(home, "line") for home in five} == {KILLED_AT - 1})
    five[3].kill()
    Path(f"{go}-{KILLED_AT}").touch()
    wait_until("the others go on", lambda: round_of(five[0], "line") == BACK_AT - 1)
    five[3].up()
    wait_until("it caught up", lambda: round_of(five[3], "line") == BACK_AT - 1)
    assert models(five[3])["line"]["root"] == models(five[0])["line"]["root"]
    Path(f"{go}-{BACK_AT}").touch()
    done = [json.loads(printed) for printed in ended(running, 170)]
    assert [one["round"] for one in done] == [ROUNDS] * 5
    assert len({one["root"] for one in done}) == 1

    fates = fates_of(five[0])
    liars = [fates.get((number, "liar")) for number in range(2, ROUNDS + 1)]
    assert "included" not in liars, fates
    assert liars.count("rejected") > len(liars) // 2, fates
    # Whether a machine is in time depends on what else it does; whether it is believed does not.
    for honest in ("one", "two", "three"):
        theirs = [fate for (_, machine), fate in fates.items() if machine == honest]
        assert "rejected" not in theirs, fates
        assert theirs.count("included") > len(theirs) // 2, fates
    for number in range(KILLED_AT, BACK_AT):
        assert fates.get((number, "four")) != "included", fates
    back = {fates.get((number, "four")) for number in range(BACK_AT, ROUNDS + 1)}
    assert "included" in back, fates
    truth = np.linspace(-1, 1, 400, dtype=np.float32)
    states = [np.asarray(load_state(Path(str(one["path"])))["w"]) for one in done]
    assert all(np.array_equal(one, states[0]) for one in states)
    # The liar alone pulls fifty times as far, to the other side.
    assert np.mean((states[0] - truth) ** 2) < 0.5 * np.mean(truth**2)
    assert np.corrcoef(states[0], truth)[0, 1] > 0.9
    page = five[0].work / "line.html"
    shown = five[0].ok("fed", "chart", "line", "--html", str(page))
    figures = cast("dict[str, list[list[float]]]", five[0].json("fed", "chart", "line"))
    assert [x for x, _ in figures["loss"]] == list(range(1, ROUNDS + 1))
    assert figures["loss"][-1][1] < figures["loss"][0][1]
    assert f"loss: {figures['loss'][-1][1]:.4g} at {ROUNDS}" in shown
    assert "<svg" in page.read_text("utf-8")
