"""`covey fed run` before it talks to anybody: the person's function, first state and answers."""

from __future__ import annotations

import itertools
import sys
import textwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from daemon.cli import fed_run
from daemon.cli.client import CliError
from daemon.cli.main import main

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from daemon.json_types import Json

NAMES = itertools.count()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path.copy())
    return tmp_path


def module(work: Path, text: str) -> str:
    """A module that no test before has loaded."""
    name = f"mymodel{next(NAMES)}"
    (work / f"{name}.py").write_text(textwrap.dedent(text))
    return name


def refused(named: str) -> CliError:
    with pytest.raises(CliError) as caught:
        fed_run.find_functions(named)
    return caught.value


def options(**given: object) -> argparse.Namespace:
    found = {"json": False, "quiet": False, "state": None, **given}
    return cast("argparse.Namespace", SimpleNamespace(**found))


def test_a_function_is_found_and_train_is_its_name_by_default(work: Path) -> None:
    name = module(work, "def train(state): return 1\ndef other(state): return 2\n")
    train, initial = fed_run.find_functions(name)
    assert (train({}), initial) == (1, None)
    assert fed_run.find_functions(f"{name}:other")[0]({}) == 2


@pytest.mark.parametrize(
    "named",
    ["", ":train", "x:", "mymodel.py:train x", "./mymodel:train", "a..b:f", ".m:f", "m:f:g"],
)
@pytest.mark.usefixtures("work")
def test_what_names_no_function_is_told_the_form(named: str) -> None:
    error = refused(named)
    assert error.exit_code == 2
    assert "MODULE:FUNCTION" in error.message


def test_what_is_no_function_is_named(work: Path) -> None:
    name = module(work, "train = 5\n")
    assert "int, no function, 'train'" in refused(f"{name}:train").message
    assert "no function 'fit'" in refused(f"{name}:fit").message
    name = module(work, "initial = {}\ndef train(state): ...\n")
    assert "initial is a dict: write `def initial():`" in refused(name).message


def test_a_missing_module_is_told_where_it_is_looked_for(work: Path) -> None:
    error = refused("nosuchmodule:train")
    assert (error.exit_code, str(work) in error.remedy) == (2, True)
    name = module(work, "import nosuchthing\n")
    error = refused(name)
    assert "nosuchthing" in error.message
    assert "install it" in error.remedy


def test_a_file_with_the_name_of_a_loaded_module_is_told_so(work: Path) -> None:
    (work / "daemon.py").write_text("def train(state): ...\n")
    assert "another name" in refused("daemon:train").remedy


def test_a_module_that_fails_shows_its_own_lines_alone(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = module(work, "import math\n\nx = 1 / 0\n")
    assert refused(name).message == f"{name} cannot be loaded: ZeroDivisionError"
    shown = capsys.readouterr().err
    assert f'{name}.py", line 3' in shown
    assert shown.count('File "') == 1
    name = module(work, "def train(state:\n")
    assert refused(name).message.endswith("SyntaxError")


@pytest.mark.usefixtures("work")
def test_a_first_state_is_the_files_or_the_modules_or_none() -> None:
    assert fed_run.first_state(options(), None) is None
    state = {"w": np.zeros(2, np.float32)}
    assert fed_run.first_state(options(), lambda: state) is state
    with pytest.raises(CliError, match="initial\\(\\) returned list: return arrays by name"):
        fed_run.first_state(options(), lambda: [1])
    with pytest.raises(CliError, match="No such file"):
        fed_run.first_state(options(state="gone"), None)


def test_what_a_function_prints_is_beside_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    def initial() -> object:
        print("here")
        return {}

    fed_run.first_state(options(json=True), initial)
    assert capsys.readouterr().out == ""
    fed_run.first_state(options(), initial)
    assert capsys.readouterr().out == "here\n"


@pytest.mark.parametrize(
    ("made", "weight", "figures"),
    [
        ({}, 1.0, {}),
        (({}, 3), 3.0, {}),
        (({}, np.float32(2), {"loss": np.float64(0.5), "weight": 1, "new": 2}), 2.0,
         {"loss": 0.5, "weight": 1.0, "new": 2.0}),
    ],
)  # fmt: skip
def test_a_function_returns_arrays_weight_and_figures(
    made: object, weight: float, figures: dict[str, float]
) -> None:
    assert fed_run.trained(made) == ({}, weight, figures)


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (None, "NoneType"),
        ([1], "list"),
        ((1, {}), "(int, dict)"),
        (({}, 1, 2), "(dict, int, int)"),
        (({}, "many"), "weight is str"),
        (({}, 1, {"loss": None}), "figure 'loss' is NoneType"),
    ],
)
def test_what_a_function_must_not_return_is_named(made: object, named: str) -> None:
    with pytest.raises(CliError) as caught:
        fed_run.trained(made)
    assert caught.value.exit_code == 2
    assert named in caught.value.message


@pytest.mark.parametrize(
    "words",
    [
        ["run", "m:f", "x", "--clip", "nan"],
        ["run", "m:f", "x", "--peers", "1"],
        ["run", "m:f", "x", "--peers", "65"],
        ["join", "x", "file", "--peers", "two"],
        ["run", "m:f", "x", "--rounds", "0"],
        ["run", "m:f", "x", "--rounds", "-3"],
        ["run", "m:f", "x", "--wait", "inf"],
        ["run", "m:f", "x", "--deadline", "0"],
        ["submit", "x", "file", "--round", "1", "--weight", "-1"],
        ["submit", "x", "file", "--round", "1", "--metric", "loss=nan"],
        ["submit", "x", "file", "--round", "1", "--metric", "=3"],
        ["wait", "x", "--for", "soon"],
    ],
)
def test_numbers_that_cannot_be_are_refused_at_once(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fed", *words]) == 2
    shown = capsys.readouterr().err
    told = ("is no number above 0", "NAME=VALUE", "2 to 64 machines", "counted from 1")
    assert any(one in shown for one in told)


def test_the_waiting_line_says_what_was_carried_or_what_is_wrong() -> None:
    model: dict[str, Json] = {
        "round": 2, "machines": ["a", "b"], "phase": "merge", "deadline_s": 12.4, "reason": "",
        "bytes_in": 3 * 2**20, "bytes_out": 2048,
    }  # fmt: skip
    line = fed_run.waiting_line(model)
    assert "2 machines  merge, waits up to 12 s" in line
    assert line.endswith("; 3.0 MiB in, 2.0 KiB out")
    assert fed_run.waiting_line({**model, "reason": "b is missing"}).endswith("; b is missing")


def test_in_a_pipe_each_reason_why_nothing_goes_on_is_told_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    waiting = fed_run.Waiting()
    model: dict[str, Json] = {
        "round": 3, "machines": ["a", "b"], "phase": "committing", "deadline_s": 5, "bytes_in": 0,
        "bytes_out": 0, "reason": "",
    }  # fmt: skip
    few, off = "too few updates", "desktop is off"
    for reason in ("", few, few, "", few, off):
        waiting.say({**model, "reason": reason})
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert all("round    4" in line for line in told)
    assert [line.rpartition("; ")[2] for line in told] == [few, few, off]
