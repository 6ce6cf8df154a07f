"""Models that members train together: equal states, late and lost members, restarts, newcomers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import trio

from daemon.methods.fed_models import JoinParams
from federated.errors import RoundError, UsageError
from federated.rounds.numeric.tensors import schema_of
from federated.rounds.protocol.policy import Policy
from federated.rounds.statefile import load_state, write_state
from tests.helpers.rounds_office import Team, play_team

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.rounds.federation import Federation
    from tests.helpers.rounds_office import Chair

# A clip that shortens nobody, so that means are means.
POLICY = Policy(rule="mean", codec="f32", first_deadline_s=20.0, clip=1e9)
SIZE = 300


def first_state(folder: Path) -> str:
    """A model of two tensors, in a file."""
    state = {"w": np.zeros((SIZE, 2), np.float32), "b": np.ones(SIZE, np.float32)}
    path = folder / "first.safetensors"
    write_state(path, schema_of(state), state)
    return str(path)


async def join_all(
    chairs: Sequence[Chair], folder: Path, policy: Policy = POLICY
) -> list[Federation]:
    """Everybody founds the model `m` with the others."""
    path = first_state(folder)
    found: dict[int, Federation] = {}

    async def join(index: int) -> None:
        found[index] = await (await chairs[index].rounds.models()).join(
            None, "m", policy, path, expected=len(chairs), wait_s=60
        )

    async with trio.open_nursery() as nursery:
        for index in range(len(chairs)):
            nursery.start_soon(join, index)
    return [found[index] for index in range(len(chairs))]


def update_of(value: float) -> np.ndarray:
    return np.full(3 * SIZE, value, np.float32)


async def train(federations: Sequence[Federation], values: Sequence[float], base: int) -> None:
    """Everybody submits, then waits for the round."""
    for federation, value in zip(federations, values, strict=True):
        await federation.submit(base, update_of(value), 1.0, {"loss": value})
    for federation in federations:
        await federation.wait(base)


def state_of(federation: Federation) -> dict[str, np.ndarray]:
    path = federation.store.state_path(federation.standing.round)
    return {name: np.asarray(array) for name, array in load_state(path).items()}


def test_three_rounds_leave_equal_states_that_are_the_mean(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        for number in range(3):
            await train(federations, [1.0, 2.0, 6.0], number)
        for federation in federations:
            state = state_of(federation)
            assert np.allclose(state["w"], 9.0)
            assert np.allclose(state["b"], 10.0)
        assert len({federation.standing.root for federation in federations}) == 1
        assert len({federation.standing.state_sha for federation in federations}) == 1
        last = await chairs[0].rounds.history.last(name="m")
        assert [report.number for report in last] == [3, 2, 1]
        assert last[0].metrics == {"loss": 1.0}
        carried = [chair.rounds.carried for chair in chairs]
        assert all(one.bytes_in > 0 for one in carried)
        assert sum(one.bytes_out for one in carried) >= sum(one.bytes_in for one in carried)

    play_team(scenario, tmp_path, seed=1)


def test_the_round_ends_without_who_is_late_and_takes_its_update_in_the_next(
    tmp_path: Path,
) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        await train(federations[:2], [1.0, 3.0], 0)
        with trio.fail_after(60):
            await federations[2].wait(0)
        assert np.allclose(state_of(federations[2])["w"], 2.0)
        late = await federations[2].submit(0, update_of(8.0), 2.0, {})
        assert late == 1
        await train(federations[:2], [2.0, 2.0], 1)
        with trio.fail_after(60):
            await federations[2].wait(1)
        # Weight 2 counts half: (2 + 2 + 8) / 3.
        assert np.allclose(state_of(federations[0])["w"], 6.0)

    play_team(scenario, tmp_path, seed=2)


@pytest.mark.parametrize("delay", [0.02, 0.2, 0.5, 3.0])
def test_a_member_that_is_killed_and_restarted_catches_up(tmp_path: Path, delay: float) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0, 1.0, 1.0], 0)
        for federation in federations:
            await federation.submit(1, update_of(1.0), 1.0, {})
        await trio.sleep(delay)
        fresh = await team.restart(3)
        for federation in federations[:2]:
            with trio.fail_after(200):
                await federation.wait(1)
        for number in (2, 3, 4):
            await train(federations[:2], [1.0, 1.0], number)
        federation = (await fresh.rounds.models()).all()[0]
        with trio.fail_after(300):
            await federation.wait(4)
        assert np.array_equal(state_of(federation)["w"], state_of(federations[0])["w"])
        assert federation.standing.root == federations[0].standing.root
        # And it takes part again.
        await train([*federations[:2], federation], [1.0, 1.0, 4.0], 5)
        with trio.fail_after(300):
            await federation.wait(5)
        assert state_of(federation)["w"][0, 0] == state_of(federations[1])["w"][0, 0]

    play_team(scenario, tmp_path, seed=3)


def test_a_newcomer_gets_the_state_and_takes_part(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0, 1.0, 1.0], 0)
        fourth = await team.seat(4)
        newcomer = await (await fourth.rounds.models()).join(
            None, "m", POLICY, first_state(tmp_path), expected=0, wait_s=10
        )
        assert newcomer.standing.round == 1
        for number in range(1, 5):
            everybody = [*federations, newcomer]
            for federation in everybody:
                await federation.submit(number, update_of(1.0), 1.0, {})
            for federation in everybody:
                with trio.fail_after(300):
                    await federation.wait(number)
        assert len(federations[0].standing.circle) == 4
        assert np.array_equal(state_of(newcomer)["w"], state_of(federations[0])["w"])

    play_team(scenario, tmp_path, seed=4)


def test_whatever_else_lies_in_its_folder_a_model_can_be_left_and_joined_anew(
    tmp_path: Path,
) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        federations = await join_all(chairs, tmp_path)
        folder = federations[0].store.state_path(0).parent
        (folder / "mine").mkdir()
        (folder / "mine" / "notes").write_text("x")
        for chair in chairs:
            models = await chair.rounds.models()
            await models.leave(None, "m")
            assert not models.all()
        assert sorted(path.name for path in folder.iterdir()) == ["mine"]
        await join_all(chairs, tmp_path)

    play_team(scenario, tmp_path, seed=10)


def test_what_cannot_be_merged_is_refused_at_once(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2)]
        federations = await join_all(chairs, tmp_path)
        one = federations[0]
        broken = update_of(1.0)
        broken[7] = np.nan
        for update, weight in ((broken, 1.0), (update_of(1.0)[:-1], 1.0), (update_of(1.0), 0.0)):
            with pytest.raises(UsageError):
                await one.submit(0, update, weight, {})
        with pytest.raises(UsageError):
            await one.submit(5, update_of(1.0), 1.0, {})
        for number in range(3):
            await train(federations, [1.0, 1.0], number)
        with pytest.raises(RoundError) as caught:
            await one.submit(0, update_of(1.0), 1.0, {})
        assert caught.value.reason == "stale"

    play_team(scenario, tmp_path, seed=5)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(codec="mfix64"),
        Policy(codec="f64"),
        Policy(rule="sum"),
        Policy(rule="sum", codec="f64"),
    ],
    ids=["masked codec", "codec of sums", "rule of sums", "both"],
)
def test_what_only_sums_are_made_by_is_refused_before_anybody_is_asked(
    tmp_path: Path, policy: Policy
) -> None:
    async def scenario(team: Team) -> None:
        one, _ = [await team.seat(number) for number in (1, 2)]
        models = await one.rounds.models()
        began = trio.current_time()
        with pytest.raises(UsageError, match="of sums, not of models"):
            await models.join(None, "m", policy, first_state(tmp_path), expected=2, wait_s=30)
        assert trio.current_time() == began
        assert models.all() == []

    play_team(scenario, tmp_path, seed=1)


def test_nor_can_the_rpc_say_it() -> None:
    for wrong in ({"codec": "mfix64"}, {"codec": "f64"}, {"rule": "sum"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"name": "m", "path": "/m", **wrong}, JoinParams)


def test_a_liar_does_not_carry_the_model_away(tmp_path: Path) -> None:
    policy = Policy(rule="centred_clipping", codec="int8", first_deadline_s=20.0)

    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number, owner=bytes([number]) * 32) for number in range(1, 6)]
        open_policy = Policy(**{**_fields(policy), "allow_plain": True})
        federations = await join_all(chairs, tmp_path, open_policy)
        for number in range(4):
            await train(federations, [1.0, 1.1, 0.9, 1.0, -1000.0], number)
        reached = float(state_of(federations[0])["w"].mean())
        assert 1.0 < reached < 5.0
        last = (await chairs[0].rounds.history.last(name="m"))[0]
        assert [member.status for member in last.members].count("rejected") == 1

    play_team(scenario, tmp_path, seed=6)


def _fields(policy: Policy) -> dict[str, object]:
    return {name: getattr(policy, name) for name in policy.__struct_fields__}


def test_with_root_data_a_majority_of_liars_moves_nothing(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3, 4)]
        root = bytes(chairs[0].member.id)
        policy = Policy(codec="f32", first_deadline_s=20.0, root_data=root)
        federations = await join_all(chairs, tmp_path, policy)
        await train(federations, [1.0, 1.2, -9.0, -9.0], 0)
        for federation in federations:
            # At the root's length, where it points: 1, whatever the liars say.
            assert np.allclose(state_of(federation)["w"], 1.0, atol=1e-3)

    play_team(scenario, tmp_path, seed=31)


def test_whose_machines_are_missing_is_said_while_a_quorum_is_gone(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3, 4)]
        federations = await join_all(chairs, tmp_path)
        await train(federations, [1.0] * 4, 0)
        for chair in chairs[2:]:
            chair.scope.cancel()
        for federation in federations[:2]:
            await federation.submit(1, update_of(1.0), 1.0, {})
        await trio.sleep(400)
        gone = tuple(sorted(bytes(chair.member.id) for chair in chairs[2:]))
        for federation in federations[:2]:
            assert federation.attendance.missing == gone
            assert "3 of 4 are needed" in federation.attendance.lack
        await team.restart(3)
        with trio.fail_after(900):
            for federation in federations[:2]:
                await federation.wait(1)
                assert not federation.attendance.lack

    play_team(scenario, tmp_path, seed=4, within_s=3000)
