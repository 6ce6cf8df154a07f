"""Three training processes a machine on two machines: one update each, through shared memory."""

from __future__ import annotations

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
