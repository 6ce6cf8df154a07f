"""Three training processes a machine on two machines: one update each, through shared memory."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federated.rounds.numeric.tensors import schema_of
from federated.rounds.statefile import load_state, write_state
from tests.helpers.daemons import Home, joined_homes, wait_until
from tests.helpers.everywhere import ended, models, program, round_of

if TYPE_CHECKING:
    from collections.abc import Iterator


PROGRAM = """
import sys
from daemon.host_trainer import HostTrainer

value, weight = float(sys.argv[1]), float(sys.argv[2])
with HostTrainer("host", trainers=3) as trainer:
    for rnd in trainer.rounds(3):
        rnd.submit({"w": rnd.state["w"] + value}, weight=weight)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, ...]]:
    with joined_homes(tmp_path_factory.mktemp("fh"), "one", "two") as homes:
        yield homes


def test_trainers_of_a_machine_are_one_member(two: tuple[Home, ...], tmp_path: Path) -> None:
    state = {"w": np.zeros(1000, np.float32)}
    write_state(tmp_path / "first", schema_of(state), state)
    joining = [
        home.popen(
            "fed", "join", "host", str(tmp_path / "first"), "--peers", "2", "--codec", "f32",
            "--rule", "mean", "--clip", "1e6",
        )
        for home in two
    ]  # fmt: skip
    ended(joining)
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(PROGRAM))
    trainers = [
        program(home, path, value, weight)
        for home, values in zip(two, ((1, 2, 6), (4, 4, 4)), strict=True)
        for value, weight in zip(values, (1, 1, 2), strict=True)
    ]
    ended(trainers, 90)
    wait_until("both are there", lambda: round_of(two[0], "host") == round_of(two[1], "host") == 3)
    reached = [np.asarray(load_state(Path(str(models(home)["host"]["path"])))["w"]) for home in two]
    # Machine one: (1 + 2 + 2 * 6) / 4 = 3.75, machine two: 4; weights 4 and 4; three rounds.
    assert np.allclose(reached[0], 3 * 3.875)
    assert np.array_equal(reached[0], reached[1])


SLOW = """
import os, sys, time
from daemon.host_trainer import HostTrainer

with HostTrainer("alone", trainers=2) as trainer:
    for rnd in trainer.rounds(2):
        if rnd.number == 1:
            print("begun", flush=True)
            while not os.path.exists(sys.argv[1]):
                time.sleep(0.01)
        rnd.submit({"w": rnd.state["w"] + float(sys.argv[2])})
        print(rnd.number, "dropped" if rnd.dropped else "taken", flush=True)
"""


@pytest.mark.slow
def test_a_round_ends_at_its_deadline_without_a_trainer_that_is_slow(
    two: tuple[Home, ...], tmp_path: Path
) -> None:
    """The other's update is handed in, and the slow one is told and goes on."""
    state = {"w": np.zeros(1000, np.float32)}
    write_state(tmp_path / "first", schema_of(state), state)
    params = {
        "name": "alone", "path": str(tmp_path / "first"), "expected": 1, "min_peers": 1,
        "codec": "f32", "rule": "mean", "clip": 1e300, "first_deadline_s": 5.0,
    }  # fmt: skip
    two[0].ok("rpc", "fed.join", json.dumps(params))
    path, go = tmp_path / "slow.py", tmp_path / "go"
    path.write_text(SLOW)
    slow = program(two[0], path, go, 10)
    assert slow.stdout is not None
    assert slow.stdout.readline() == "begun\n"
    quick = program(two[0], path, path, 1)
    wait_until("the first round is applied", lambda: round_of(two[0], "alone") == 1)
    go.touch()
    for trainer, said in ((slow, "1 dropped\n2 taken\n"), (quick, "begun\n1 taken\n2 taken\n")):
        printed, problem = trainer.communicate(timeout=60)
        assert (trainer.returncode, printed) == (0, said), problem
    wait_until("both are there", lambda: round_of(two[0], "alone") == 2)
    reached = load_state(Path(str(models(two[0])["alone"]["path"])))["w"]
    assert set(np.asarray(reached).tolist()) == {1 + 5.5}
    two[0].ok("fed", "leave", "alone")
