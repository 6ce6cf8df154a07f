"""Five real daemons of five owners: nobody sees another's sums, a killed one stops no round."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from tests.helpers.daemons import Home, connected_peers, wait_until
from tests.helpers.everywhere import Answer, everywhere, members, the

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from daemon.json_types import Json

NAMES = ("one", "two", "three", "four", "five")
GROUP = ["--group", "team"]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, ...]]:
    folder = tmp_path_factory.mktemp("fm")
    homes = tuple(Home(folder / name, name) for name in NAMES)
    try:
        for home in homes:
            home.up()
        homes[0].ok("group", "create", "team")
        for home in homes[1:]:
            ticket = cast("dict[str, Json]", homes[0].json("invite", *GROUP))["ticket"]
            home.ok("join", str(ticket), "--yes")
        settled(homes)
        yield homes
    finally:
        for home in homes:
            home.stop()


def settled(homes: tuple[Home, ...]) -> None:
    """Everybody knows and reaches everybody."""
    for home in homes:
        wait_until("all are members", lambda home=home: members_known(home) == len(NAMES))  # type: ignore[misc]
        wait_until(
            "all are connected",
            lambda home=home: connected_peers(home) == len(NAMES) - 1,  # type: ignore[misc]
        )


def members_known(home: Home) -> int:
    return len(cast("list[Json]", home.json("group", "members", "team")))


def data_of(homes: tuple[Home, ...]) -> list[np.ndarray]:
    """Numbers of each machine, in its `data.csv`."""
    found = []
    for index, home in enumerate(homes):
        values = np.random.default_rng(index).normal(100 * index, 25, 200 + index)
        (home.folder / "data.csv").write_text(
            "ms\n" + "".join(f"{one!r}\n" for one in values.tolist())
        )
        found.append(values)
    return found


def command(home: Home, *more: str) -> list[str]:
    path = str(home.folder / "data.csv")
    return ["fed", "mean", path, "--column", "ms", "--peers", "5", *GROUP, *more]


def asked(homes: Sequence[Home], *more: str) -> list[Answer]:
    """The command's answer on all of these at once."""
    commands = [command(home, *more, "--no-autostart") for home in homes]
    return everywhere(homes, *commands, limit_s=90)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_owners_have_their_mean_and_see_nothing_else(five: tuple[Home, ...]) -> None:
    data = data_of(five)
    found = asked(five, "--name", "all", "--privacy", "masked")
    everything = np.concatenate(data)
    for answer in found:
        assert the(answer, "mean")["values"] == len(everything)
        assert the(answer, "mean")["value"] == pytest.approx(everything.mean(), rel=1e-12)
        assert the(answer, "mean")["var"] == pytest.approx(everything.var(), rel=1e-9)
        assert (the(answer, "round")["privacy"], the(answer, "round")["threshold"]) == ("masked", 4)
    shown = five[2].ok("fed", "explain", str(the(found[2], "round")["id"])[:8])
    assert "masked: only the sum was seen; 4 machines had to agree" in shown

    # Plain is not what comes of it by itself.
    refused = five[0].run(*command(five[0], "--privacy", "plain"))
    assert refused.returncode == 5
    assert "nothing was sent" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", ["cover", "fetchresult"])
def test_one_is_killed_and_the_others_have_the_exact_sum(
    five: tuple[Home, ...], moment: str
) -> None:
    """At `cover` its words never leave, so its masks are recovered; at `fetchresult` it is in."""
    data = data_of(five)
    five[4].stop()
    five[4].up(COVEY_TEST_FAULT=f"round.{moment}:1")
    settled(five)
    victim = five[4].popen(*command(five[4], "--name", moment), "--no-autostart")
    found = asked(five[:4], "--name", moment)
    victim.communicate(timeout=60)
    assert five[4].pid is None
    for answer in found:
        fates = {
            str(one["machine"]): (str(one["status"]), str(one["reason"])) for one in members(answer)
        }
        status, reason = fates["five"]
        inside = data if status == "included" else data[:4]
        assert the(answer, "mean")["values"] == sum(len(one) for one in inside)
        assert the(answer, "mean")["value"] == pytest.approx(
            np.concatenate(inside).mean(), rel=1e-12
        )
        assert the(answer, "round")["privacy"] == "masked"
        assert all(fates[name][0] == "included" for name in NAMES[:4])
        if moment == "cover" and the(answer, "round")["view"] == 0:
            assert status == "late"
            assert "its masks were taken off" in reason
    five[4].up()
    settled(five)
