"""Who forms a circle says how large it is: nobody is led into a smaller one than it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

from federated.errors import RoundError
from federated.rounds.protocol.meeting import Circle, Meeting
from tests.helpers.rounds_office import Team, play_team
from tests.unit.test_rounds_models import POLICY, first_state
from tests.unit.test_rounds_service import ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.helpers.rounds_office import Chair

pytestmark = pytest.mark.attack


def named(*letters: bytes) -> Circle:
    return Circle(tuple((letter * 32, letter * 16) for letter in letters))


@pytest.mark.parametrize(("expected", "least"), [(3, 2), (0, 3)])
def test_a_circle_of_fewer_than_we_wait_for_is_not_accepted(expected: int, least: int) -> None:
    meeting = Meeting(b"b" * 32, b"b" * 16, least=least, expected=expected, now=0)
    assert not meeting.accept(named(b"a", b"b"))
    assert meeting.circle is None
    assert meeting.accept(named(b"a", b"b", b"c"))


async def apart(
    team: Team, call: Callable[[Chair, int], Awaitable[object]]
) -> tuple[RoundError, RoundError]:
    """What the lowest of two is told, which begins with two, and the other, which waits for 3.

    A third machine is there and asks nothing.
    """
    chairs = sorted(
        [await team.seat(1), await team.seat(2)], key=lambda chair: bytes(chair.member.id)
    )
    await team.seat(3)
    told: dict[int, RoundError] = {}

    async def one(expected: int, chair: Chair) -> None:
        with pytest.raises(RoundError) as caught:
            await call(chair, expected)
        told[expected] = caught.value

    async with trio.open_nursery() as nursery:
        for expected, chair in zip((2, 3), chairs, strict=True):
            nursery.start_soon(one, expected, chair)
    return told[2], told[3]


def test_a_sum_of_two_is_not_had_from_who_waits_for_three(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        async def call(chair: Chair, expected: int) -> None:
            await chair.rounds.total(ask(expected=expected, wait_s=10), np.array([1.0]))

        lowest, other = await apart(team, call)
        assert lowest.reason == "below_quorum"
        assert other.reason == "nobody"
        assert "of 3 machines" in str(other)

    play_team(scenario, tmp_path, seed=1)


def test_nor_does_it_found_a_model_with_fewer(tmp_path: Path) -> None:
    path = first_state(tmp_path)

    async def scenario(team: Team) -> None:
        async def call(chair: Chair, expected: int) -> None:
            models = await chair.rounds.models()
            await models.join(None, "m", POLICY, path, expected=expected, wait_s=10)

        lowest, other = await apart(team, call)
        assert lowest.reason == "below_quorum"
        assert other.reason == "nobody"
        for chair in team.chairs.values():
            assert (await chair.rounds.models()).all() == []

    play_team(scenario, tmp_path, seed=2)
