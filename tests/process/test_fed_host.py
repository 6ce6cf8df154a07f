"""Three training processes a machine on two machines: one update each, through shared memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from federated.rounds.numeric.tensors import schema_of
from federated.rounds.statefile import load_state, write_state
from tests.helpers.daemons import Home, joined_homes, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.json_types import Json

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


def status(home: Home) -> dict[str, Json]:
    return cast("list[dict[str, Json]]", home.json("fed", "status"))[0]


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
    for process in joining:
        printed, problem = process.communicate(timeout=60)
        assert process.returncode == 0, printed + problem
    program = tmp_path / "train.py"
    program.write_text(textwrap.dedent(PROGRAM))
    trainers = [
        subprocess.Popen(
            [sys.executable, str(program), str(value), str(weight)],
            env=home.environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        for home, values in zip(two, ((1, 2, 6), (4, 4, 4)), strict=True)
        for value, weight in zip(values, (1, 1, 2), strict=True)
    ]
    for trainer in trainers:
        _, problem = trainer.communicate(timeout=90)
        assert trainer.returncode == 0, problem
    wait_until("both are there", lambda: status(two[0])["round"] == status(two[1])["round"] == 3)
    reached = [np.asarray(load_state(Path(str(status(home)["path"])))["w"]) for home in two]
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
    program, go = tmp_path / "slow.py", tmp_path / "go"
    program.write_text(SLOW)

    def begin(released: Path, value: int) -> subprocess.Popen[str]:
        words = [sys.executable, str(program), str(released), str(value)]
        return subprocess.Popen(
            words, env=two[0].environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    slow = begin(go, 10)
    assert slow.stdout is not None
    assert slow.stdout.readline() == "begun\n"
    quick = begin(program, 1)
    wait_until("the first round is applied", lambda: named(two[0], "alone")["round"] == 1)
    go.touch()
    for trainer, said in ((slow, "1 dropped\n2 taken\n"), (quick, "begun\n1 taken\n2 taken\n")):
        printed, problem = trainer.communicate(timeout=60)
        assert (trainer.returncode, printed) == (0, said), problem
    wait_until("both are there", lambda: named(two[0], "alone")["round"] == 2)
    reached = load_state(Path(str(named(two[0], "alone")["path"])))["w"]
    assert set(np.asarray(reached).tolist()) == {1 + 5.5}
    two[0].ok("fed", "leave", "alone")


def named(home: Home, name: str) -> dict[str, Json]:
    models = cast("list[dict[str, Json]]", home.json("fed", "status"))
    return next(one for one in models if one["name"] == name)
