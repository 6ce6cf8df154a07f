"""`covey fed` between three real daemons: everybody gets the answer that plain numpy gives."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from tests.helpers.daemons import Home, connected_peers, joined_homes, wait_until
from tests.helpers.everywhere import everywhere, members, the

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, ...]]:
    with joined_homes(tmp_path_factory.mktemp("fd"), "one", "two", "three") as homes:
        yield homes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("data")
    paths, arrays = [], []
    for index in range(3):
        rng = random.Random(index)
        values = [rng.gauss(100 * index, 25) for _ in range(500 + index)]
        path = folder / f"{index}.csv"
        path.write_text(
            "ms,weight\n" + "".join(f"{v!r},{1 + i % 3}\n" for i, v in enumerate(values))
        )
        paths.append(path)
        arrays.append(np.array(values))
    return paths, arrays


def test_the_mean_is_that_of_all_the_data(
    three: tuple[Home, ...], files: tuple[list[Path], list[np.ndarray]]
) -> None:
    paths, arrays = files
    tail = ["--column", "ms", "--peers", "3", "--name", "latency"]
    found = everywhere(three, *[["fed", "mean", str(path), *tail] for path in paths])
    everything = np.concatenate(arrays)
    for answer in found:
        mean = the(answer, "mean")
        assert mean["value"] == pytest.approx(everything.mean(), rel=1e-12)
        assert mean["var"] == pytest.approx(everything.var(), rel=1e-9)
        assert mean["values"] == len(everything)
        assert [one["status"] for one in members(answer)] == ["included"] * 3
    assert len({str(the(answer, "round")["root"]) for answer in found}) == 1
    ident = str(the(found[0], "round")["id"])
    shown = three[1].ok("fed", "explain", ident[:8])
    assert "mean latency: applied" in shown
    assert shown.count("included") == 3
    assert ident[:8] in three[2].ok("fed", "history")


def test_weights_histogram_and_quantiles(
    three: tuple[Home, ...], files: tuple[list[Path], list[np.ndarray]]
) -> None:
    paths, arrays = files
    everything = np.concatenate(arrays)
    weights = np.concatenate([1 + np.arange(len(one)) % 3 for one in arrays])
    column = ["--column", "ms", "--peers", "3"]
    found = everywhere(
        three,
        *[["fed", "mean", str(path), *column, "--weight-column", "weight"] for path in paths],
    )
    assert the(found[0], "mean")["value"] == pytest.approx(
        np.average(everything, weights=weights), rel=1e-12
    )
    edges = "-100,0,100,200,400"
    found = everywhere(
        three,
        *[
            ["fed", "histogram", str(path), *column, f"--edges={edges}", "--html", f"{path}.html"]
            for path in paths
        ],
    )
    counts, _ = np.histogram(everything, [float(edge) for edge in edges.split(",")])
    assert the(found[1], "histogram")["counts"] == counts.tolist()
    drawn = Path(f"{paths[1]}.html").read_text("utf-8")
    assert all(f"<td>{count:,}</td>" in drawn for count in counts.tolist())
    found = everywhere(
        three,
        *[
            ["fed", "quantiles", str(path), *column, "--q", "0.1,0.5,0.9", "--bounds=-200,400"]
            for path in paths
        ],
    )
    values = cast("list[float]", the(found[2], "quantiles")["values"])
    assert values == pytest.approx(np.quantile(everything, [0.1, 0.5, 0.9]).tolist(), abs=1.0)


def test_what_cannot_be_asked_is_said_before_anything_leaves(
    three: tuple[Home, ...], tmp_path: Path
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("ms\n1\nx\n")
    refused = three[0].run("fed", "mean", str(path), "--column", "ms")
    assert refused.returncode == 2
    assert "line 3: 'x' is no number" in refused.stderr
    path.write_text("ms\n1\n2\n")
    refused = three[0].run("fed", "mean", str(path), "--column", "ms", "--epsilon", "1")
    assert refused.returncode == 5
    assert "ledger" in refused.stderr
    refused = three[0].run("fed", "histogram", str(path), "--column", "ms", "--edges", "3,1")
    assert refused.returncode == 2
    assert "edges" in refused.stderr
    refused = three[0].run("fed", "mean", str(path), "--column", "ms", "--peers", "9")
    assert refused.returncode == 6
    assert "9 are needed" in refused.stderr
    refused = three[0].run("fed", "mean", str(path), "--column", "ms", "--wait", "1.5")
    assert refused.returncode == 75
    assert "same command" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["prepare", "fetchresult", "persist"])
def test_one_of_three_is_killed_and_the_others_agree(
    three: tuple[Home, ...], files: tuple[list[Path], list[np.ndarray]], moment: str
) -> None:
    paths, arrays = files
    three[2].stop()
    three[2].up(COVEY_TEST_FAULT=f"round.{moment}:1")
    wait_until("it is back", lambda: connected_peers(three[0]) == 2)
    tail = ["--column", "ms", "--peers", "3", "--name", moment]
    commands = [["fed", "mean", str(path), *tail] for path in paths]
    victim = three[2].popen(*commands[2], "--no-autostart")
    found = everywhere(three[:2], *commands[:2])
    victim.communicate(timeout=60)
    assert three[2].pid is None
    values = {the(answer, "mean")["values"] for answer in found}
    assert len(values) == 1
    both, everything = len(arrays[0]) + len(arrays[1]), sum(len(one) for one in arrays)
    assert values <= {both, everything}
    fates = {str(one["machine"]): one["status"] for one in members(found[0])}
    assert fates["one"] == fates["two"] == "included"
    three[2].up()
