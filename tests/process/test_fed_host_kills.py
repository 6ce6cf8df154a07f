"""Daemons and the trainers beside them, killed again and again: nothing of them is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from federated.rounds.numeric.tensors import schema_of
from federated.rounds.statefile import load_state, write_state
from tests.helpers.daemons import Home, joined_homes, wait_until
from tests.helpers.everywhere import ended, models, program, round_of
from tests.helpers.need import need

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

NAME = "host"
NUMBERS = 50_000
TRAINERS = 2
MARK = "state/high.mark"
KEPT_STATES = 3
SLOW = (pytest.mark.slow, pytest.mark.timeout(600))
JITTER_S = 0.1
"""A kill comes so long after a round at most: in the middle of folding, writing, restarting."""

# Each adds 1, so the state says how many rounds it was made in. The last round is in a file.
PROGRAM = """
import sys
from pathlib import Path
from daemon.host_trainer import HostTrainer

last = Path(sys.argv[1])
with HostTrainer("host", trainers=int(sys.argv[2]), tell=print) as trainer:
    for rnd in trainer.rounds(1 << 40):
        if last.exists() and rnd.number > int(last.read_text()):
            break
        rnd.submit({"w": rnd.state["w"] + 1})
"""


class Place:
    """A machine: its daemon and its trainers."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home = home
        self.tmp = home.folder / "tmp"
        self.tmp.mkdir()
        self.program = folder / "train.py"
        self.program.write_text(PROGRAM)
        self.last = folder / "last"
        self.trainers: list[subprocess.Popen[str]] = []

    def begin(self) -> None:
        """Start a trainer."""
        env = {"TMPDIR": str(self.tmp), "OPENBLAS_NUM_THREADS": "1"}
        self.trainers.append(program(self.home, self.program, self.last, TRAINERS, env=env))

    def kill_trainer(self, which: int) -> None:
        """Kill -9 one, and start another in its place."""
        victim = self.trainers.pop(which)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        self.begin()

    def kill_daemon(self) -> None:
        """Kill -9 it, and start it anew."""
        self.home.kill()
        self.home.up()

    def round(self) -> int:
        """Rounds applied."""
        return round_of(self.home, NAME)

    def state(self) -> Path:
        """Where the state lies."""
        return Path(str(models(self.home)[NAME]["path"]))

    def check(self) -> None:
        """That no trainer has ended."""
        for trainer in self.trainers:
            assert trainer.poll() is None, trainer.communicate()

    def descriptors(self) -> Census:
        """What the daemon has open."""
        segments, sockets, states, files = 0, 0, 0, set()
        for link in Path(f"/proc/{self.home.pid}/fd").iterdir():
            try:
                target = os.readlink(link)  # noqa: PTH115 - an inode's number is no path
            except FileNotFoundError:
                continue
            segments += "memfd:covey-pool" in target
            sockets += target.startswith("socket:")
            states += "/state/models/" in target
            if target.startswith(f"{self.home.folder}/") and "/state/models/" not in target:
                files.add(target)
        return Census(segments, sockets, states, files - {str(self.home.folder / MARK)})

    def files(self) -> set[str]:
        """What is in the machine's folders, without what is there now and then."""
        found = {str(path.relative_to(self.home.folder)) for path in self.home.folder.rglob("*")}
        return {name for name in found if not name.endswith((".db-wal", ".db-shm", MARK))}


class Census(NamedTuple):
    """What a daemon has open.

    Attributes:
        segments: descriptors of shared memory.
        sockets: their number.
        states: descriptors of a model's states.
        files: names of others.
    """

    segments: int
    sockets: int
    states: int
    files: set[str]


def join(places: Sequence[Place], folder: Path) -> None:
    """Make them all members of one model."""
    state = {"w": np.zeros(NUMBERS, np.float32)}
    write_state(folder / "first", schema_of(state), state)
    params = {
        "name": NAME, "path": str(folder / "first"), "expected": len(places), "min_peers": 1,
        "codec": "f32", "rule": "mean", "clip": 1e300, "first_deadline_s": 5.0,
    }  # fmt: skip
    joining = [place.home.popen("rpc", "fed.join", json.dumps(params)) for place in places]
    ended(joining)


def settle(places: Sequence[Place], folder: Path) -> None:
    """Train a few rounds more, let the trainers end by themselves, and look at the result."""
    last = max(place.round() for place in places) + 3
    (folder / "last").write_text(str(last))
    for place in places:
        ended(place.trainers, 90)
        place.trainers.clear()
    (folder / "last").unlink()
    for place in places:
        wait_until("it is there", lambda place=place: place.round() >= last)  # type: ignore[misc]
        assert set(np.asarray(load_state(place.state())["w"]).tolist()) == {float(place.round())}


def kill_again_and_again(places: Sequence[Place], kills: int, seed: int) -> list[int]:
    """Kill a daemon or a trainer, each time a round later; how many of both."""
    rng = random.Random(seed)
    killed = [0, 0]
    for _ in range(kills):
        place = rng.choice(places)
        number = place.round()
        # A coordinator that was killed is waited for longer each time; see rounds.md, views.
        wait_until("a round is applied", lambda: place.round() > number, 150)  # noqa: B023
        time.sleep(rng.uniform(0, JITTER_S))
        daemon = rng.random() < 0.5
        killed[daemon] += 1
        if daemon:
            place.kill_daemon()
        else:
            place.kill_trainer(rng.randrange(TRAINERS))
        for each in places:
            each.check()
    return killed


def train_and_kill(homes: Sequence[Home], folder: Path, kills: int, seed: int) -> None:
    places = [Place(home, folder) for home in homes]
    shared = sorted(Path("/dev/shm").iterdir())
    before = [place.files() | {"run/pool.sock", "state/models"} for place in places]
    join(places, folder)
    censuses = []
    for count in (0, kills):
        for place in places:
            for _ in range(TRAINERS):
                place.begin()
        if count:
            killed = kill_again_and_again(places, count, seed)
            assert all(killed), killed
        settle(places, folder)
        censuses.append([place.descriptors() for place in places])
    for first, last in zip(*censuses, strict=True):
        assert last.segments <= first.segments, (first, last)
        assert last.sockets <= first.sockets, (first, last)
        assert last.states <= KEPT_STATES, last
        assert last.files == first.files, (first, last)
    for place in places:
        place.home.ok("fed", "leave", NAME)
        assert place.descriptors().segments == 0
    assert [place.files() for place in places] == before
    assert sorted(Path("/dev/shm").iterdir()) == shared


@pytest.mark.parametrize(
    ("names", "kills", "seed"),
    [
        pytest.param(["one"], 8, 4, id="eight of one machine"),
        pytest.param(["one"], 100, 5, marks=SLOW, id="a hundred of one machine"),
        pytest.param(["one", "two"], 20, 6, marks=SLOW, id="twenty of two machines"),
    ],
)
def test_kills_leave_nothing_behind(
    tmp_path: Path, names: Sequence[str], kills: int, seed: int
) -> None:
    need("linux")
    with joined_homes(tmp_path, *names) as homes:
        train_and_kill(homes, tmp_path, kills, seed)
