"""Streaming DiLoCo between two real daemons: equal common copies, a smaller loss, few bytes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.helpers.daemons import Home, joined_homes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = """
import sys
import numpy as np
from daemon.outer_trainer import OuterTrainer
from federated.rounds.training.outer_words import OuterConfig

me, target = int(sys.argv[1]), sys.argv[2]
aim = {"a": np.linspace(-1, 1, 300), "b": np.full(200, 0.5), "c": np.linspace(0, 2, 100)}
rng = np.random.default_rng(me)
mine = {
    name: (value + rng.normal(0, 0.3, len(value))).astype(np.float32)
    for name, value in aim.items()
}
params = {name: np.zeros(len(value), np.float32) for name, value in aim.items()}
config = OuterConfig(inner_steps=6, fragments=3, overlap=2)
with OuterTrainer("outer", params, config, expected=2, first_deadline_s=10) as outer:
    while outer.synced < 24:
        for name in params:
            params[name] -= np.float32(0.1) * (params[name] - mine[name])
        outer.step(params, tokens=1)
        outer.settle(0.05)  # training would take its time
    roots = np.array([f"{f} {n} {root.hex()}" for f, n, root in outer.roots])
    np.savez(target, roots=roots, **outer.outer.common())
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, ...]]:
    with joined_homes(tmp_path_factory.mktemp("fo"), "one", "two") as homes:
        yield homes


@pytest.mark.slow
def test_two_members_have_the_same_common_copy_between_their_own(
    two: tuple[Home, ...], tmp_path: Path
) -> None:
    program = tmp_path / "train.py"
    program.write_text(textwrap.dedent(PROGRAM))
    running = [
        subprocess.Popen(
            [sys.executable, str(program), str(index), str(tmp_path / f"{index}.npz")],
            env=home.environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, home in enumerate(two)
    ]
    for process in running:
        _, problem = process.communicate(timeout=120)
        assert process.returncode == 0, problem
    first, second = (np.load(tmp_path / f"{index}.npz") for index in range(2))
    seen = [dict(line.rsplit(" ", 1) for line in one["roots"]) for one in (first, second)]
    both = seen[0].keys() & seen[1].keys()
    assert len(both) >= 18
    assert all(seen[0][key] == seen[1][key] for key in both)
    assert abs(first["b"].mean() - 0.5) < 0.15
    assert np.corrcoef(first["a"], np.linspace(-1, 1, 300))[0, 1] > 0.9
