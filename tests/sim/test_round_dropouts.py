"""floor(n/3) of the members die in any phase: the others have one result, in the same round."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.helpers.rounds_kit import World, make_setting, peers

if TYPE_CHECKING:
    from federated.rounds.protocol.orders import Tell

PHASES = ("joining", "planned", "committing", "scatter", "gram", "merge", "confirm")
SEEDS = 6


def play(count: int, phase: str, who: str, seed: int, rule: str) -> World:
    """One round in which a third dies when its coordinator first enters `phase`.

    Args:
        count: members.
        phase: of the coordinator; `planned`: when the first member has the plan.
        who: `leader` kills the coordinator and others, `others` spares it.
        seed: of everything.
        rule: of the round.
    """
    rng = random.Random(seed)
    names = peers(count)
    elements, payload = rng.choice([(1000, 8000), (60_000, 6_000_000)])
    settings = [
        make_setting(peer, names, rule=rule, elements=elements, payload_bytes=payload)
        for peer in names
    ]
    world = World(seed, settings)
    leader = settings[0].coordinator(0)
    others = [peer for peer in names if peer != leader]
    doomed = rng.sample(others, count // 3)
    if who == "leader":
        doomed[0] = leader

    def strike(_: bytes, told: Tell) -> None:
        if told.kind == f"round.{phase}" and world.on_tell is not None:
            world.on_tell = None
            for peer in doomed:
                world.kill(peer)

    world.on_tell = strike
    world.run(2000, done=world.all_decided)
    assert world.on_tell is None, f"{phase} was never reached"
    return world


@pytest.mark.parametrize("rule", ["sum", "centred_clipping"])
@pytest.mark.parametrize("who", ["leader", "others"])
@pytest.mark.parametrize("phase", PHASES)
def test_the_others_finish(phase: str, who: str, rule: str) -> None:
    if phase == "gram" and rule == "sum":
        phase = "merge"  # sums have no products
    for count in (3, 4, 7, 10):
        for seed in range(SEEDS):
            world = play(count, phase, who, seed, rule)
            where = f"{count} members, {phase}, {who}, seed {seed}"
            assert world.all_decided(), where
            living = [node for node in world.nodes.values() if node.alive]
            assert len(living) == count - count // 3
            roots = {node.decided.root for node in living if node.decided is not None}
            assert len(roots) == 1, where


def test_control_one_more_than_a_third_stops_the_round() -> None:
    names = peers(6)
    world = World(1, [make_setting(peer, names) for peer in names])
    for peer in names[:3]:
        world.at(0.2, lambda peer=peer: world.kill(peer))  # type: ignore[misc]
    world.run(500, done=world.all_decided)
    assert not any(node.decided for node in world.nodes.values())
