"""`covey fed topk` between three real daemons: near the plain counts, as near as the noise lets."""

from __future__ import annotations

import functools
import json
from collections import Counter
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np
import pytest

from daemon.cli.client import CliError
from daemon.fed_client import Statistics
from tests.helpers.daemons import Home, connected_peers, joined_homes, wait_until
from tests.helpers.everywhere import ended, everywhere

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json

WORDS = ["apple", "bread", "cheese", "dates", "eggs", "flour", "garlic", "honey"]
SHARES = np.array([0.40, 0.25, 0.10, 0.08, 0.07, 0.05, 0.03, 0.02])
RECORDS = 3_000
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, ...]]:
    with joined_homes(tmp_path_factory.mktemp("tk"), *NAMES) as homes:
        # Names travel as notes do, after the machines are connected.
        for home in homes:
            wait_until("it knows the names", functools.partial(knows_names, home))
        yield homes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Counter[str]]:
    """A file a machine, and the plain counts of all of them."""
    folder, rng, paths, counts = (
        tmp_path_factory.mktemp("items"),
        np.random.default_rng(5),
        [],
        Counter[str](),
    )
    for index in range(3):
        words = rng.choice(WORDS, RECORDS, p=SHARES).tolist()
        path = folder / f"{index}.txt"
        path.write_text("\n".join(words) + "\n")
        paths.append(path)
        counts.update(words)
    (folder / "vocabulary.txt").write_text("\n".join([*WORDS, "kiwi", "leek"]))
    return paths, counts


def knows_names(home: Home) -> bool:
    peers = cast("list[dict[str, Json]]", home.json("rpc", "peers.list", "{}"))
    return {home.name, *(str(peer["name"]) for peer in peers)} == set(NAMES)


def top_of(answer: dict[str, Json]) -> dict[str, Json]:
    return cast("dict[str, Json]", answer["top_k"])


def socket_of(home: Home) -> str:
    return cast("dict[str, str]", home.json("paths"))["socket"]


def near(found: dict[str, Json], counts: Counter[str]) -> None:
    """Every count is within six standard deviations of the plain one."""
    for one in cast("list[dict[str, Json]]", found["items"]):
        distance = abs(cast("float", one["count"]) - counts[str(one["item"])])
        assert distance < 6 * cast("float", one["sd"]), one


def names_of(found: dict[str, Json]) -> list[str]:
    return [str(one["item"]) for one in cast("list[dict[str, Json]]", found["items"])]


def test_with_a_vocabulary_the_counts_are_as_near_as_the_noise_lets(
    three: tuple[Home, ...], files: tuple[list[Path], Counter[str]]
) -> None:
    paths, counts = files
    vocabulary = str(paths[0].parent / "vocabulary.txt")
    tail = ["-k", "4", "--epsilon", "2", "--vocabulary", vocabulary, "--peers", "3"]
    commands = [["fed", "topk", str(path), *tail] for path in paths]
    found = everywhere(three, *commands, limit_s=170)
    tops = [top_of(answer) for answer in found]
    assert tops[0] == tops[1] == tops[2]
    assert names_of(tops[0])[:2] == WORDS[:2]
    near(tops[0], counts)
    assert tops[0]["records"] == 3 * RECORDS
    # Asked again, the same records have the same noise: nothing is averaged away.
    again = everywhere(three, *[[*command, "--name", "again"] for command in commands])
    assert top_of(again[1]) == tops[0]
    assert len({str(answer["round"]["root"]) for answer in again}) == 1  # type: ignore[index, call-overload]
    tap = everywhere(three, *[[*command, "--search", "tap"] for command in commands])
    assert top_of(tap[0]) == top_of(tap[1]) == top_of(tap[2])
    assert names_of(top_of(tap[0]))[:2] == WORDS[:2]
    assert "searched by TAP" in str(top_of(tap[0])["mechanism"])


def test_words_are_found_without_a_vocabulary_and_shown(
    three: tuple[Home, ...], files: tuple[list[Path], Counter[str]]
) -> None:
    paths, _ = files
    tail = ["-k", "2", "--epsilon", "6", "--peers", "3"]
    running = [
        home.popen("fed", "topk", str(path), *tail) for home, path in zip(three, paths, strict=True)
    ]
    printed = ended(running, 120)
    assert len(set(printed)) == 1
    lines = printed[0].splitlines()
    assert [line.split()[0] for line in lines[1:3]] == WORDS[:2]
    assert lines[3] == f"{3 * RECORDS:,} items of 3 machines: one, three, two"
    assert lines[4].startswith("epsilon 6: each record reported once, with noise of its own")


def test_plain_counts_are_exact(
    three: tuple[Home, ...], files: tuple[list[Path], Counter[str]]
) -> None:
    paths, counts = files
    tail = ["-k", "5", "--mode", "plain", "--peers", "3"]
    found = everywhere(three, *[["fed", "topk", str(path), *tail] for path in paths])
    wanted = [(item, float(count)) for item, count in counts.most_common(5)]
    for answer in found:
        items = cast("list[dict[str, Json]]", top_of(answer)["items"])
        assert [(one["item"], one["count"]) for one in items] == wanted
        assert top_of(answer)["epsilon"] == 0


def test_a_program_asks_the_same_and_meets_the_command(
    three: tuple[Home, ...], files: tuple[list[Path], Counter[str]], tmp_path: Path
) -> None:
    paths, _ = files
    command = ["fed", "topk", str(paths[0]), "-k", "2", "--mode", "plain", "--peers", "2"]
    running = three[0].popen(*command, "--json")
    with Statistics.open(socket_of(three[1])) as everybody:
        found = everybody.top_k(paths[1].read_text().split(), k=2, mode="plain", expected=2)
        info = everybody.round
        assert info is not None
        assert info.kind == "top_k"
        with pytest.raises(CliError) as caught:
            everybody.top_k(["apple"], mode="central")
        assert caught.value.name == "refused"
    printed, _ = running.communicate(timeout=60)
    assert json.loads(printed)["top_k"]["items"] == list(msgspec.to_builtins(found.items))
    both = Counter((paths[0].read_text() + paths[1].read_text()).split())
    assert [(one.item, one.count) for one in found.items] == both.most_common(2)
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("1\n2\n")
    running = three[0].popen("fed", "mean", str(numbers), "--peers", "2", "--json")
    with Statistics.open(socket_of(three[1])) as everybody:
        assert everybody.mean(np.array([3, 6]), expected=2).value == 3
    assert running.communicate(timeout=60)[0]


def test_what_cannot_be_kept_or_answered_is_refused(
    three: tuple[Home, ...], tmp_path: Path
) -> None:
    path = tmp_path / "few.txt"
    path.write_text("apple\npear\n")
    refused = three[0].run("fed", "topk", str(path), "--mode", "central")
    assert refused.returncode == 5
    assert "ledger" in refused.stderr
    refused = three[0].run("fed", "topk", str(path), "--mode", "plain", "--epsilon", "1")
    assert refused.returncode == 2
    refused = three[0].run("fed", "topk", str(path), "--epsilon", "20")
    assert refused.returncode == 2
    assert "epsilon" in refused.stderr
    # A list of two items has no twenty to show: without -k it is asked for both.
    for more in ([], ["--vocabulary", str(path)]):
        command = ["fed", "topk", str(path), "--peers", "2", *more]
        running = [home.popen(*command) for home in three[:2]]
        problems = [process.communicate(timeout=60)[1] for process in running]
        assert [process.returncode for process in running] == [6, 6]
        assert all("say nothing at epsilon 4" in problem for problem in problems)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_one_of_three_is_killed_on_the_way_and_the_others_agree(
    three: tuple[Home, ...], files: tuple[list[Path], Counter[str]]
) -> None:
    paths, _ = files
    three[2].stop()
    three[2].up(COVEY_TEST_FAULT="round.prepare:3")
    wait_until("it is back", lambda: connected_peers(three[0]) == 2)
    commands = [["fed", "topk", str(path), "-k", "2", "--peers", "3"] for path in paths]
    victim = three[2].popen(*commands[2], "--no-autostart")
    found = everywhere(three[:2], *commands[:2])
    victim.communicate(timeout=60)
    assert three[2].pid is None
    assert top_of(found[0]) == top_of(found[1])
    assert names_of(top_of(found[0])) == WORDS[:2]
    assert top_of(found[0])["records"] in {2 * RECORDS, 3 * RECORDS}
    both = Counter((paths[0].read_text() + paths[1].read_text()).split())
    if top_of(found[0])["records"] == 2 * RECORDS:
        near(top_of(found[0]), both)
    left_out = cast("list[dict[str, Json]]", found[0]["left_out"])
    assert {one["machine"] for one in left_out} == {"three"}
    three[2].up()
