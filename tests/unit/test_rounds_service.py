"""Rounds between whole nodes over a network in memory: sums meet, survive a loss, are refused."""

from __future__ import annotations

import functools
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

from federated.errors import RoundError, UsageError
from federated.rounds.service import Ask
from federated.rounds.statistics.plain import MeanQuery, answer, contribution, fault
from tests.helpers.rounds_office import Team, play_team

if TYPE_CHECKING:
    from pathlib import Path

    from federated.rounds.service import Total
    from tests.helpers.rounds_office import Chair

QUESTION = sha256(b"how many").digest()


def ask(**fields: object) -> Ask:
    return Ask(**{"group": None, "kind": "mean", "question": QUESTION, **fields})  # type: ignore[arg-type]


async def totals(chairs: list[Chair], vectors: list[list[float]], **fields: object) -> list[Total]:
    """Everybody asks at once; what each was told."""
    found: dict[int, Total] = {}

    async def one(index: int) -> None:
        vector = np.array(vectors[index])
        found[index] = await chairs[index].rounds.total(ask(**fields), vector)

    async with trio.open_nursery() as nursery:
        for index in range(len(chairs)):
            nursery.start_soon(one, index)
    return [found[index] for index in sorted(found)]


def test_three_members_add_up(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        found = await totals(chairs, [[1, 2], [3, 4], [5, 6]], expected=3)
        for total in found:
            assert total.vector.tolist() == [9, 12]
            assert total.peers == 3
            assert [member.status for member in total.report.members] == ["included"] * 3
        assert len({total.report.root for total in found}) == 1
        last = await chairs[1].rounds.history.last()
        assert [report.id for report in last] == [found[1].report.id]

    play_team(scenario, tmp_path, seed=1)


@pytest.mark.parametrize("seed", range(4))
def test_without_a_number_who_comes_within_the_pause_takes_part(tmp_path: Path, seed: int) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3, 4)]
        found = await totals(chairs[:3], [[1], [2], [4]])
        assert [total.vector.tolist() for total in found] == [[7]] * 3

    play_team(scenario, tmp_path, seed=seed)


def test_alone_one_is_told_what_to_do(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        with pytest.raises(RoundError) as caught:
            await chairs[0].rounds.total(ask(wait_s=5), np.array([1.0]))
        assert caught.value.reason == "nobody"
        assert "the same" in str(caught.value)

    play_team(scenario, tmp_path, seed=1)


def test_other_questions_do_not_meet(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        reasons = []

        async def one(index: int) -> None:
            question = sha256(bytes([index])).digest()
            with pytest.raises(RoundError) as caught:
                await chairs[index].rounds.total(ask(question=question, wait_s=5), np.array([1.0]))
            reasons.append(caught.value.reason)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 0)
            nursery.start_soon(one, 1)
        assert reasons == ["nobody", "nobody"]

    play_team(scenario, tmp_path, seed=1)


def test_several_owners_are_refused_before_anything_leaves(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        one = await team.seat(1)
        await team.seat(2, owner=b"x" * 32)
        with pytest.raises(RoundError) as caught:
            await one.rounds.total(ask(), np.array([1.0]))
        assert caught.value.reason == "plain_refused"

    play_team(scenario, tmp_path, seed=1)


@pytest.mark.attack
def test_a_vector_that_no_data_lead_to_is_left_out_or_no_answer(tmp_path: Path) -> None:
    query = MeanQuery()
    honest = contribution(query, np.array([1.0, 2.0]))
    lie = honest.copy()
    lie[0] = -5.0
    rejected = []

    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        for liar in range(3):
            found: dict[int, Total] = {}

            async def one(index: int, liar: int, found: dict[int, Total]) -> None:
                told = ask(
                    expected=3,
                    question=sha256(bytes([liar])).digest(),
                    check=None if index == liar else functools.partial(fault, query),
                )
                vector = lie if index == liar else honest
                found[index] = await chairs[index].rounds.total(told, vector)

            async with trio.open_nursery() as nursery:
                for index in range(3):
                    nursery.start_soon(one, index, liar, found)
            for index in {0, 1, 2} - {liar}:
                total = found[index]
                statuses = sorted(member.status for member in total.report.members)
                if total.peers == 2:
                    assert np.array_equal(total.vector, 2 * honest)
                    assert statuses == ["included", "included", "rejected"]
                    rejected.append(liar)
                else:  # the liar merged
                    assert fault(query, total.vector, total.peers)
                    with pytest.raises(UsageError, match="no data can lead to"):
                        answer(query, total.vector, total.peers)

    play_team(scenario, tmp_path, seed=1)
    assert len(set(rejected)) >= 2


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.5, 0.7, 1.0, 2.5])
def test_one_of_three_dies_and_the_others_have_a_sum(tmp_path: Path, delay: float) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        found: list[Total] = []

        async def one(index: int) -> None:
            found.append(await chairs[index].rounds.total(ask(), np.array([2.0**index])))

        async with trio.open_nursery() as nursery:
            for index in range(2):
                nursery.start_soon(one, index)
            with trio.CancelScope() as third:
                async with trio.open_nursery() as inner:
                    inner.start_soon(chairs[2].rounds.total, ask(), np.array([4.0]))
                    await trio.sleep(2 + delay)
                    chairs[2].scope.cancel()
                    chairs[2].member.scope.cancel()
                    third.cancel()
        sums = {total.vector.tolist()[0] for total in found}
        assert len(found) == 2
        assert len(sums) == 1
        assert sums <= {3.0, 7.0}

    play_team(scenario, tmp_path, seed=1)
