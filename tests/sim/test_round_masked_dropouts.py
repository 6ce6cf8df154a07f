"""floor(n/3) of the members of a masked round die in any phase: the others have the exact sum."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.helpers.masked_world import MaskedWorld, masked_settings, sum_of
from tests.helpers.rounds_kit import Faults

if TYPE_CHECKING:
    from federated.rounds.protocol.orders import Tell

PHASES = ("joining", "sharing", "committing", "scatter", "merge", "confirm", "applied")
SEEDS = 3
UNTIL_S = 2000


def strike(world: MaskedWorld, phase: str, doomed: list[bytes]) -> None:
    """Kill these when a coordinator first enters `phase`."""

    def kill(_: bytes, told: Tell) -> None:
        if told.kind == f"round.{phase}" and world.on_tell is not None:
            world.on_tell = None
            for peer in doomed:
                world.kill(peer)

    world.on_tell = kill


def play(count: int, phase: str, who: str, seed: int) -> MaskedWorld:
    """One round in which a third dies when its coordinator first enters `phase`.

    Args:
        count: members.
        phase: of the coordinator.
        who: `both` kills the coordinator, too, `others` spares it.
        seed: of everything.
    """
    rng = random.Random(seed)
    settings = masked_settings(count)
    names = [one.me for one in settings]
    world = MaskedWorld(seed, settings)
    leader = settings[0].coordinator(0)
    others = rng.sample([peer for peer in names if peer != leader], count // 3)
    strike(world, phase, others if who == "others" else [leader, *others[1:]])
    world.run(UNTIL_S, done=world.all_decided)
    assert world.on_tell is None, f"{phase} was never reached"
    return world


def check(world: MaskedWorld, where: str) -> list[bytes]:
    """All living members have the sum of one set; who is in it."""
    assert world.all_decided(), where
    living = [peer for peer, node in world.nodes.items() if node.alive]
    decided = [node.decided for node in world.nodes.values() if node.decided is not None]
    assert len({one.root for one in decided}) == 1, where
    included = list(world.merged[decided[0].plan_hash, 0, 0])
    for peer in living:
        assert world.total(peer) == sum_of(included), where
    return included


@pytest.mark.parametrize("who", ["both", "others"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_third_is_lost_and_the_others_have_the_sum(phase: str, who: str) -> None:
    for count in (6, 7, 10):
        for seed in range(SEEDS):
            world = play(count, phase, who, seed)
            where = f"{count} members, {phase}, {who}, seed {seed}"
            included = check(world, where)
            assert len(included) >= count - count // 3, where


def test_four_and_five_members_stand_one_lost() -> None:
    for phase in PHASES[1:]:
        for seed in range(SEEDS):
            check(play(4, phase, "others", seed), f"4 members, {phase}, seed {seed}")
            check(play(5, phase, "both", seed), f"5 members, {phase}, seed {seed}")


def test_the_lost_and_who_helped_are_told() -> None:
    settings = masked_settings(6)
    world = MaskedWorld(2, settings)
    leader = settings[0].coordinator(0)
    victim = next(one.me for one in settings if one.me != leader)
    strike(world, "committing", [victim])
    world.run(UNTIL_S, done=world.all_decided)
    check(world, "committing")
    fates = {one.peer: one for one in world.nodes[leader].machine.member.statuses}
    assert fates[victim].status == "late"
    reason = fates[victim].reason
    helpers = [one.me for one in settings if one.me[:4].hex() in reason]
    assert "masks were taken off" in reason
    assert victim not in helpers
    assert len(helpers) >= 4


@pytest.mark.parametrize("loss", [0.1, 0.25])
def test_lost_and_repeated_messages_change_nothing(loss: float) -> None:
    for seed in range(6):
        faults = Faults(loss=loss, repeat=0.2, fetch_loss=0.1)
        world = MaskedWorld(seed, masked_settings(6), faults)
        world.run(UNTIL_S, done=world.all_decided)
        included = check(world, f"loss {loss}, seed {seed}")
        assert len(included) >= 4


def test_control_one_more_than_a_third_stops_the_round() -> None:
    settings = masked_settings(6)
    world = MaskedWorld(1, settings)
    for one in settings[:3]:
        world.at(0.2, lambda peer=one.me: world.kill(peer))  # type: ignore[misc]
    world.run(500, done=world.all_decided)
    assert not any(node.decided for node in world.nodes.values())
