"""Streaming DiLoCo between two real daemons: equal common copies, a smaller loss, few bytes."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.helpers.daemons import Home, joined_homes, wait_until
from tests.helpers.everywhere import ended, program, round_of

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


AWAY = """
import sys
from pathlib import Path
import numpy as np
from daemon.outer_trainer import OuterTrainer
from federated.rounds.training.outer_words import OuterConfig

me, target, stop = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
aim = np.linspace(-1, 1, 400)
mine = (aim + np.random.default_rng(me).normal(0, 0.3, 400)).astype(np.float32)
params = {"a.w": np.zeros(200, np.float32), "b.w": np.zeros(200, np.float32)}
config = OuterConfig(inner_steps=6, fragments=2, overlap=2, momentum=0.5)
copies = {}
with OuterTrainer("away", params, config, expected=3, first_deadline_s=5) as outer:
    while not stop.exists():
        for name, part in zip(params, np.split(mine, 2)):
            params[name] -= np.float32(0.1) * (params[name] - part)
        outer.step(params, tokens=1)
        outer.settle(0.05)  # training would take its time
        for fragment, number, _ in outer.roots:
            copies[f"{fragment}.{number}"] = outer.outer.fragment_state(fragment)
        outer.roots.clear()
    flat = {key: np.concatenate([*one.values()][:1]) for key, one in copies.items()}
    loss = np.mean((np.concatenate([*params.values()]) - aim) ** 2)
    np.savez(target, loss=loss, params=np.concatenate([*params.values()]), **flat)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, ...]]:
    with joined_homes(tmp_path_factory.mktemp("fo"), "one", "two") as homes:
        yield homes


@pytest.mark.slow
def test_two_members_have_the_same_common_copy_between_their_own(
    two: tuple[Home, ...], tmp_path: Path
) -> None:
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(PROGRAM))
    running = [
        program(home, path, index, tmp_path / f"{index}.npz") for index, home in enumerate(two)
    ]
    ended(running, 120)
    first, second = (np.load(tmp_path / f"{index}.npz") for index in range(2))
    seen = [dict(line.rsplit(" ", 1) for line in one["roots"]) for one in (first, second)]
    both = seen[0].keys() & seen[1].keys()
    assert len(both) >= 18
    assert all(seen[0][key] == seen[1][key] for key in both)
    assert abs(first["b"].mean() - 0.5) < 0.15
    # Of one data set alone it would be .89, of both in equal parts .94; how many of whose steps
    # are in a copy depends on the machine.
    assert np.corrcoef(first["a"], np.linspace(-1, 1, 300))[0, 1] > 0.85


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_member_that_was_cut_off_for_several_syncs_catches_up(tmp_path: Path) -> None:
    """Its daemon is dead for a while; its training goes on, and so does that of the others."""
    # Momentum .5: what its copy is off by is halved in each later round.
    path, stop = tmp_path / "away.py", tmp_path / "stop"
    path.write_text(AWAY)
    with joined_homes(tmp_path / "homes", "one", "two", "three") as homes:
        running = [
            program(home, path, me, tmp_path / f"{me}.npz", stop) for me, home in enumerate(homes)
        ]
        fragments = ("away.0", "away.1")

        def reached(home: Home) -> int:
            gone = [one.communicate()[1] for one in running if one.poll() is not None]
            assert not gone, gone
            return min(round_of(home, name) for name in fragments)

        wait_until("they train", lambda: reached(homes[2]) >= 3)
        homes[2].kill()
        cut = reached(homes[0])
        wait_until("several syncs have passed", lambda: reached(homes[0]) >= cut + 4, 90)
        homes[2].up()
        back = max(round_of(homes[0], name) for name in fragments)
        wait_until("it is back", lambda: reached(homes[2]) >= back + 40, 120)
        stop.touch()
        ended(running)
    one, two, away = (np.load(tmp_path / f"{me}.npz") for me in range(3))
    for fragment in range(2):
        numbers = [
            {int(key.split(".")[1]) for key in found.files if key.startswith(f"{fragment}.")}
            for found in (one, away)
        ]
        assert len(numbers[0] - numbers[1]) >= 3, "it missed rounds"
        last = f"{fragment}.{max(numbers[0] & numbers[1])}"
        assert int(last[2:]) > back
        assert np.abs(one[last] - away[last]).max() < 0.01
    # Beside the common copy each keeps a share of its own steps, towards an aim of its own.
    assert away["loss"] < 1.5 * max(one["loss"], two["loss"])
    usual = np.abs(one["params"] - two["params"]).mean()
    assert np.abs(one["params"] - away["params"]).mean() < 1.5 * usual
