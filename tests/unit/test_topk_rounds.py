"""Frequent items between whole nodes over a network in memory: one lies, dies, is slow."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest
import trio

from daemon.fed_items import ItemsQuestion, converse
from daemon.methods.fed_topk import TopKParams
from federated.errors import RoundError
from federated.rounds.statistics.rows import Sum
from tests.helpers.memories import InlineOffload
from tests.helpers.rounds_office import Team, play_team

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federated.rounds.service import Among, Total
    from federated.rounds.statistics.answers import TopK
    from federated.rounds.statistics.rows import Heard, Talk
    from p2p.env import Offload
    from tests.helpers.rounds_office import Chair

    Answers = dict[int, tuple[TopK, list[Total]]]

T = TypeVar("T")
WORDS = ("apple", "bread", "cheese", "dates", "eggs", "flour")
SHARES = np.array([0.40, 0.25, 0.15, 0.10, 0.06, 0.04])
MANY = tuple(f"spare {number}" for number in range(2_500))
"""Enough for two levels: the records, both levels and the final candidates are four sums."""


def items_of(number: int) -> list[str]:
    found: list[str] = np.random.default_rng(number).choice(WORDS, 3_000, p=SHARES).tolist()
    return found


def params(number: int, **fields: object) -> TopKParams:
    return TopKParams(
        **{"items": items_of(number), "k": 2, "vocabulary": [*WORDS, *MANY], **fields}  # type: ignore[arg-type]
    )


async def ask(
    chair: Chair, p: TopKParams, number: int, talk: Callable[[Talk[TopK]], Talk[TopK]],
    offload: Offload,
) -> tuple[TopK, list[Total]]:  # fmt: skip
    question = ItemsQuestion(p, None, bytes([number]) * 32)
    among: Among = await chair.rounds.gather(question.ask)
    names = [str(place) for place in range(len(among.peers))]
    return await converse(among, talk(question.begin(names, among.place)), offload)


def as_it_is(talk: Talk[TopK]) -> Talk[TopK]:
    return talk


async def everybody(
    team: Team, count: int, *, odd: Callable[[Talk[TopK]], Talk[TopK]] = as_it_is,
    offload: Offload | None = None, **fields: object,
) -> Answers:  # fmt: skip
    """All ask at once; member 1 does it in its own way."""
    answers: Answers = {}

    async def one(number: int) -> None:
        talk, runs = (odd, offload) if number == 1 else (as_it_is, None)
        p = params(number, expected=count, **fields)
        answers[number] = await ask(team.chairs[number], p, number, talk, runs or InlineOffload())

    async with trio.open_nursery() as nursery:
        for number in range(1, count + 1):
            nursery.start_soon(one, number)
    return answers


def check(found: TopK, members: list[int]) -> None:
    counts = Counter(word for number in members for word in items_of(number))
    assert [one.item for one in found.items] == ["apple", "bread"]
    assert found.records == counts.total()
    for one in found.items:
        assert abs(one.count - counts[one.item]) <= 6 * one.sd


def left_out(sums: list[Total]) -> list[tuple[str, str]]:
    return [
        (one.peer, one.reason)
        for total in sums
        for one in total.report.members
        if one.status != "included"
    ]


def test_all_of_them_find_the_same(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        for number in (1, 2, 3):
            await team.seat(number)
        answers = await everybody(team, 3)
        assert len(answers[1][1]) == 4
        for found, sums in answers.values():
            assert found == answers[1][0]
            assert not left_out(sums)
            check(found, [1, 2, 3])

    play_team(scenario, tmp_path, seed=1)


@pytest.mark.attack
@pytest.mark.parametrize("seed", range(3))
def test_a_member_that_lies_is_left_out_and_named(tmp_path: Path, seed: int) -> None:
    def lying(talk: Talk[TopK]) -> Talk[TopK]:
        step = next(talk)
        heard: Heard = yield step
        while True:
            try:
                step = talk.send(heard)
            except StopIteration as ended:
                return ended.value  # type: ignore[no-any-return]
            vector = step.vector.copy()
            at = np.flatnonzero(vector)[3:]
            vector[at] += 1_000
            heard = yield Sum(vector, step.check)

    async def scenario(team: Team) -> None:
        for number in (1, 2, 3, 4):
            await team.seat(number)
        liar = bytes(team.chairs[1].member.id).hex()
        answers = await everybody(team, 4, odd=lying)
        for number in (2, 3, 4):
            found, sums = answers[number]
            check(found, [2, 3, 4])
            assert {peer for peer, _ in left_out(sums)} == {liar}
            assert all("support" in reason for _, reason in left_out(sums))

    play_team(scenario, tmp_path, seed=seed)


class DyingOffload:
    """A machine that is gone when it should compute what follows on the second sum."""

    def __init__(self, chair: Chair) -> None:
        self._chair = chair
        self._runs = 0

    async def run(self, fn: Callable[[], T]) -> T:
        self._runs += 1
        if self._runs == 3:
            self._chair.scope.cancel()
            self._chair.member.scope.cancel()
            await trio.sleep_forever()
        return fn()


@pytest.mark.parametrize("mode", ["ldp", "plain"])
@pytest.mark.parametrize("seed", range(3))
def test_one_that_dies_on_the_way_counts_no_more(tmp_path: Path, seed: int, mode: str) -> None:
    async def scenario(team: Team) -> None:
        for number in (1, 2, 3, 4):
            await team.seat(number)
        answers: Answers = {}

        async def one(number: int) -> None:
            offload = DyingOffload(team.chairs[1]) if number == 1 else InlineOffload()
            answers[number] = await ask(
                team.chairs[number],
                params(number, expected=4, mode=mode),
                number,
                as_it_is,
                offload,
            )
            if len(answers) == 3:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for number in (1, 2, 3, 4):
                nursery.start_soon(one, number)
        assert sorted(answers) == [2, 3, 4]
        for found, _ in answers.values():
            check(found, [2, 3, 4])
            assert found == answers[2][0]

    play_team(scenario, tmp_path, seed=seed)


class SlowOffload:
    """A machine that computes ten seconds at each step."""

    async def run(self, fn: Callable[[], T]) -> T:
        await trio.sleep(10)
        return fn()


def test_one_that_computes_for_long_hears_the_same(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        for number in (1, 2, 3, 4):
            await team.seat(number)
        answers = await everybody(team, 4, offload=SlowOffload())
        for found, _ in answers.values():
            assert found.items == answers[2][0].items
            assert [one.item for one in found.items] == ["apple", "bread"]

    play_team(scenario, tmp_path, seed=1)


def test_several_owners_may_find_items_privately_and_plainly_with_leave_alone(
    tmp_path: Path,
) -> None:
    async def scenario(team: Team) -> None:
        for number in (1, 2, 3):
            await team.seat(number, owner=bytes([number]) * 32)
        answers = await everybody(team, 3)
        check(answers[2][0], [1, 2, 3])
        answers = await everybody(team, 3, mode="plain", allow_plain=True)
        counts = Counter(word for number in (1, 2, 3) for word in items_of(number))
        assert [(one.item, one.count) for one in answers[3][0].items] == counts.most_common(2)
        question = ItemsQuestion(params(1, mode="plain"), None, bytes(32))
        with pytest.raises(RoundError) as caught:
            await team.chairs[1].rounds.gather(question.ask)
        assert caught.value.reason == "plain_refused"

    play_team(scenario, tmp_path, seed=1)
