"""Five real daemons train a model together: one lies, one is killed and comes back."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from federated.rounds.statefile import load_state
from tests.helpers.daemons import connected_peers, joined_homes, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from daemon.json_types import Json
    from tests.helpers.daemons import Home

ROUNDS = 6

# A linear model that each member pulls towards its own corner of one common truth.
MODULE = """
import os
import numpy as np

TRUTH = np.linspace(-1, 1, 400, dtype=np.float32)
ME = int(os.environ["MEMBER"])


def initial():
    return {"w": np.zeros(400, np.float32)}


def train(state):
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


def start(home: Home, member: int, rounds: int, *more: str) -> subprocess.Popen[str]:
    (home.work / "mymodel.py").write_text(textwrap.dedent(MODULE))
    words = ("fed", "run", "mymodel:train", "line", "--rounds", str(rounds), "--json", *more)
    return home.popen(*words, env={"MEMBER": str(member)})


def model(home: Home) -> dict[str, Json]:
    return cast("list[dict[str, Json]]", home.json("fed", "status"))[0]


@pytest.mark.slow
def test_five_train_while_one_lies_and_one_is_killed(five: tuple[Home, ...]) -> None:
    tail = ("--peers", "5", "--deadline", "10", "--codec", "f32")
    running = [start(home, index, ROUNDS, *tail) for index, home in enumerate(five)]
    wait_until(
        "the second round is applied",
        lambda: bool(five[0].json("fed", "status")) and int(str(model(five[0])["round"])) >= 2,
    )
    five[3].kill()
    done = []
    for index in (0, 1, 2, 4):
        printed, problem = running[index].communicate(timeout=170)
        assert running[index].returncode == 0, problem
        done.append(json.loads(printed))
    running[3].kill()
    running[3].communicate()
    assert len({one["root"] for one in done}) == 1
    truth = np.linspace(-1, 1, 400, dtype=np.float32)
    reached = np.asarray(load_state(_path(done[0]))["w"])
    # The liar alone pulls fifty times as far, to the other side.
    assert np.mean((reached - truth) ** 2) < 0.5 * np.mean(truth**2)
    assert np.corrcoef(reached, truth)[0, 1] > 0.9
    last = cast("list[dict[str, Json]]", five[0].json("fed", "history", "--name", "line"))
    fates = [
        (str(member["machine"]), str(member["status"]))
        for one in last
        for member in cast("list[dict[str, Json]]", one["members"])
    ]
    assert ("liar", "rejected") in fates

    page = five[0].work / "line.html"
    shown = five[0].ok("fed", "chart", "line", "--html", str(page))
    figures = cast("dict[str, list[list[float]]]", five[0].json("fed", "chart", "line"))
    assert [x for x, _ in figures["loss"]] == list(range(1, ROUNDS + 1))
    assert figures["loss"][-1][1] < figures["loss"][0][1]
    assert f"loss: {figures['loss'][-1][1]:.4g} at {ROUNDS}" in shown
    assert "<svg" in page.read_text("utf-8")

    five[3].up()
    wait_until("it is back", lambda: connected_peers(five[0]) == 4)
    wait_until("it caught up", lambda: model(five[3])["root"] == model(five[0])["root"])
    assert np.array_equal(np.asarray(load_state(_path(model(five[3])))["w"]), reached)


def _path(answer: dict[str, Json]) -> Path:
    return Path(str(answer["path"]))
