"""`covey fed run` between two real daemons, used as a stranger would: wrongly, and interrupted."""

from __future__ import annotations

import signal
import subprocess
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from federated.rounds.numeric.tensors import schema_of
from federated.rounds.statefile import write_state
from tests.helpers.daemons import Home, connected_peers, joined_homes, wait_until
from tests.helpers.everywhere import round_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.json_types import Json

# What it does in each round is in its environment: a fault at a round, or a wait for a file.
MODULE = """
import os, time
from pathlib import Path
import numpy as np

calls = 0


def initial():
    return {"w": np.zeros(8, np.float32)}


def train(state):
    global calls
    calls += 1
    fault = os.environ.get("FAULT")
    held = os.environ.get("HELD")
    if held and calls == 1:
        Path(held + ".reached").touch()
        while not os.path.exists(held):
            time.sleep(0.01)
    if fault == "raises":
        return 1 / 0
    if fault == "shape":
        return {"w": np.zeros(9, np.float32)}
    if fault == "double":
        return {"w": np.zeros(8)}
    if fault == "nan":
        return {"w": state["w"] * np.float32("nan")}
    if fault == "lists":
        return {"w": [0.0] * 8}
    if fault == "weight":
        return state, 0
    return {"w": state["w"] + 1}, 2, {"loss": 0.5, "weight": 7, "new": 8, "odd": float("nan")}
"""


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Who starts us with interrupts ignored, as a shell does in its background, hands that down."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, ...]]:
    with joined_homes(tmp_path_factory.mktemp("fr"), "one", "two") as homes:
        for home in homes:
            (home.work / "mymodel.py").write_text(textwrap.dedent(MODULE))
        yield homes


def begin(home: Home, name: str, *more: str, rounds: int = 2, **env: str) -> subprocess.Popen[str]:
    words = ("fed", "run", "mymodel:train", name, "--rounds", str(rounds), "--peers", "2")
    policy = ("--codec", "f32", "--rule", "mean", "--clip", "1e6")
    return home.popen(*words, *policy, *more, env={**env, "TMPDIR": str(home.work)})


def end(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    try:
        printed, told = process.communicate(timeout=50)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(process.communicate()) from None
    assert process.returncode == code, (printed, told)
    return printed, told


def leave(two: tuple[Home, ...], name: str) -> None:
    for home in two:
        home.ok("fed", "leave", name)


def no_folder_left(home: Home) -> bool:
    return not list(home.work.glob("covey-trainer-*"))


def test_figures_may_have_any_name_and_what_is_no_number_is_left_out(
    two: tuple[Home, ...],
) -> None:
    for process in [begin(home, "figures") for home in two]:
        _, told = end(process)
        assert "weight 7" in told
        assert "new 8" in told
    found = cast("dict[str, Json]", two[0].json("fed", "chart", "figures"))
    assert set(found) == {"loss", "weight", "new"}
    _, told = end(begin(two[0], "figures"))
    assert "is at round 2 already" in told
    assert no_folder_left(two[0])
    leave(two, "figures")


def test_what_training_must_not_return_ends_it_and_says_what_to_do(two: tuple[Home, ...]) -> None:
    other = begin(two[1], "faults", rounds=1)
    _, told = end(begin(two[0], "faults", rounds=1, FAULT="raises"), 1)
    assert 'mymodel.py", line' in told
    assert told.count('File "') == 1, told
    assert "mymodel:train failed in round 1: ZeroDivisionError" in told
    assert "the same command goes on" in told
    for fault, said in (
        ("shape", "has the shape (9,), not (8,)"),
        ("double", "is float64"),
        ("nan", "NaN"),
        ("lists", "'w' is no array"),
        ("weight", "a weight of 0.0: give a number above 0"),
    ):
        _, told = end(begin(two[0], "faults", rounds=1, FAULT=fault), 2)
        assert said in told, fault
        assert "Traceback" not in told
    end(begin(two[0], "faults", rounds=1))
    end(other)
    assert no_folder_left(two[0])
    leave(two, "faults")


def test_without_a_first_state_it_is_said_how_to_give_one(two: tuple[Home, ...]) -> None:
    (two[0].work / "bare.py").write_text("def train(state): return state\n")
    done = two[0].run("fed", "run", "bare:train", "bare")
    assert done.returncode == 2
    assert "`def initial():` in bare.py" in done.stderr
    assert "--state FILE" in done.stderr
    assert "Traceback" not in done.stderr


def test_timeout_ends_it_and_a_daemon_is_not_started_unless_allowed(
    two: tuple[Home, ...], tmp_path: Path
) -> None:
    _, told = end(begin(two[0], "alone", "--timeout", "0.5", "--wait", "60"), 75)
    # The daemon's answer and our own clock run side by side: either may be first.
    assert "longer --timeout" in told
    stopped = Home(tmp_path / "stopped")
    (stopped.work / "mymodel.py").write_text(textwrap.dedent(MODULE))
    _, told = end(begin(stopped, "alone", "--no-autostart"), 3)
    assert "not running" in told
    assert stopped.pid is None


@pytest.mark.slow
def test_timeout_counts_while_a_round_is_waited_for(two: tuple[Home, ...], tmp_path: Path) -> None:
    held = str(tmp_path / "go")
    other = begin(two[1], "slow", rounds=1, HELD=held)
    _, told = end(begin(two[0], "slow", "--timeout", "4", rounds=1), 75)
    assert "no round of 'slow' after 0 was applied" in told
    Path(held).touch()
    end(other)
    leave(two, "slow")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_says_that_the_machine_stays_a_member(two: tuple[Home, ...], tmp_path: Path) -> None:
    never = [str(tmp_path / f"never{index}") for index in range(2)]
    with ExitStack() as at_the_end:
        running = [
            begin(home, "cut", rounds=1, HELD=held) for home, held in zip(two, never, strict=True)
        ]
        for process in running:
            at_the_end.callback(process.wait)
            at_the_end.callback(process.kill)
        # Both: who is still starting may lose an interrupt: Python drops one within some imports.
        for held in never:
            wait_until("training", lambda held=held: Path(held + ".reached").exists())
        for process in running:
            process.send_signal(signal.SIGINT)
            _, told = end(process, 130)
            assert "`covey fed leave cut` ends it" in told
            assert "Traceback" not in told
    leave(two, "cut")


def test_an_update_that_is_too_late_is_told_and_training_begins_again(
    two: tuple[Home, ...], tmp_path: Path
) -> None:
    held = str(tmp_path / "go")
    running = [begin(home, "late", rounds=4, HELD=held) for home in two]
    wait_until(
        "both are members", lambda: round_of(two[0], "late") == round_of(two[1], "late") == 0
    )
    wait_until("training", lambda: Path(held + ".reached").exists())
    state = {"w": np.ones(8, np.float32)}
    write_state(tmp_path / "new", schema_of(state), state)
    for number in range(3):
        for home in two:
            home.ok("fed", "submit", "late", str(tmp_path / "new"), "--round", str(number))
        for home in two:
            home.ok("fed", "wait", "late", "--after", str(number))
    Path(held).touch()
    for process in running:
        _, told = end(process)
        assert "round    1" in told
        assert "dropped: an update of round 0 comes 3 rounds late" in told
        assert "round    4" in told
    leave(two, "late")


@pytest.mark.parametrize("kill", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_daemon_that_comes_back_is_given_the_update_again(
    two: tuple[Home, ...], tmp_path: Path, kill: bool
) -> None:
    """The daemon forgets what it was given; with two machines no round ends without it."""
    name, held = f"back{kill}", str(tmp_path / "go")
    waiting = begin(two[0], name, rounds=2)
    other = begin(two[1], name, rounds=2, HELD=held)
    wait_until("training", lambda: Path(held + ".reached").exists())
    wait_until("handed in", lambda: phase_of(two[0], name) not in {"joining", "training"})
    if kill:
        two[0].kill()
    else:
        two[0].ok("down")
    assert waiting.stderr is not None
    while "the daemon is gone" not in (line := waiting.stderr.readline()):
        assert line, "it ended"
    assert two[0].pid is None, "who stopped it means it"
    two[0].up()
    wait_until("they are connected", lambda: connected_peers(two[1]) == 1)
    Path(held).touch()
    end(other)
    printed, told = end(waiting)
    assert "the daemon is back" in told
    assert Path(printed.strip()).name == "round-2.safetensors"
    history = cast("list[dict[str, Json]]", two[0].json("fed", "history", "--name", name))
    fates = [
        str(member["status"])
        for one in history
        for member in cast("list[dict[str, Json]]", one["members"])
    ]
    assert fates == ["included"] * 4
    leave(two, name)


def phase_of(home: Home, name: str) -> str:
    models = cast("list[dict[str, Json]]", home.json("fed", "status"))
    return next((str(one["phase"]) for one in models if one["name"] == name), "")
