"""Rounds under loss, cuts, kills and restarts: one result each, and one once faults end.

Every schedule is drawn from its seed. While faults last only safety is judged: no two members
decide differently, nobody votes twice in a view, what was decided was whole. Then the network heals
and up to floor(n/3) members stay dead: all others must decide.
"""

from __future__ import annotations

import pytest

from federated.rounds.protocol.policy import newcomers_max
from tests.helpers.rounds_kit import POLICY, Faults, World, make_setting, peers

SCHEDULES = 150
MANY = 1500
FAULTS_S = 120.0
HEALED_S = 4000.0


def schedule(seed: int, rule: str = "sum") -> World:
    """One drawn round."""
    import random

    rng = random.Random(seed)
    count = rng.choice([3, 3, 4, 5, 6, 7])
    names = peers(count)
    fresh: list[bytes] = []
    if rng.random() < 0.3:
        fresh = [bytes([250 + index]) * 32 for index in range(rng.randrange(1, 3))]
    faults = Faults(
        loss=rng.choice([0.0, 0.0, 0.1, 0.3]),
        repeat=rng.choice([0.0, 0.2]),
        delay_s=rng.choice([0.02, 0.5, 3.0]),
        fetch_loss=rng.choice([0.0, 0.2]),
    )
    elements, payload = rng.choice([(1000, 8000), (40_000, 4_000_000)])
    settings = [
        make_setting(
            peer, names, newcomers=fresh, rule=rule, elements=elements, payload_bytes=payload
        )
        for peer in [*names, *fresh]
    ]
    world = World(seed, settings, faults)
    for _ in range(rng.randrange(0, 6)):
        world.at(rng.random() * FAULTS_S, lambda: world.kill(rng.choice(names)))
        world.at(rng.random() * FAULTS_S, lambda: world.restart(rng.choice(names)))
    for _ in range(rng.randrange(0, 4)):
        world.at(rng.random() * FAULTS_S, lambda: cut(world, rng.choice(names)))
        world.at(rng.random() * FAULTS_S, world.cut.clear)
    if rng.random() < 0.5:
        # At the worst moment: right after somebody's first vote.
        world.at(rng.random() * 4, lambda: world.kill(rng.choice(names)))
    return world


def cut(world: World, peer: bytes) -> None:
    """Cut a member off, one way or both."""
    ways = world.rng.choice(["in", "out", "both"])
    for other in world.nodes:
        if ways != "out":
            world.cut.add((other, peer))
        if ways != "in":
            world.cut.add((peer, other))
    world.count("cut off")


def judge(world: World, seed: int) -> None:
    """Safety, then liveness."""
    names = list(world.nodes)
    circle = list(world.nodes[names[0]].setting.circle)
    world.run(FAULTS_S)
    check_one_result(world, seed)
    world.faults = Faults()
    world.cut.clear()
    spare = newcomers_max(len(circle), POLICY.quorum)
    dead = [peer for peer in names if not world.nodes[peer].alive]
    for peer in [peer for peer in dead if peer in circle][spare:]:
        world.restart(peer)
    world.run(HEALED_S, done=world.all_decided)
    check_one_result(world, seed)
    waiting = [peer[:3].hex() for peer in circle if undecided(world, peer)]
    assert not waiting, f"seed {seed}: {waiting} never decided"


def undecided(world: World, peer: bytes) -> bool:
    node = world.nodes[peer]
    return node.alive and node.decided is None


def check_one_result(world: World, seed: int) -> None:
    decided = [node.decided for node in world.nodes.values() if node.decided is not None]
    assert len({one.root for one in decided}) <= 1, f"seed {seed}: two results"
    for one in decided:
        assert len(one.proof.confirms) >= 2 * len(one.proof.confirms) // 3


def run(seeds: range, rule: str) -> dict[str, int]:
    """All of these schedules; what happened in them."""
    happened: dict[str, int] = {}
    for seed in seeds:
        world = schedule(seed, rule)
        judge(world, seed)
        for what, count in world.counts.items():
            happened[what] = happened.get(what, 0) + count
        views = [node.decided.view for node in world.nodes.values() if node.decided is not None]
        happened["later view"] = happened.get("later view", 0) + (max(views, default=0) > 0)
        finished = any(
            node.decided is not None
            and node.decided.view > node.decided.proof.view - 1
            and node.decided.plan.view < node.decided.view
            for node in world.nodes.values()
        )
        happened["vote finished"] = happened.get("vote finished", 0) + finished
    return happened


@pytest.mark.parametrize("rule", ["sum", "centred_clipping"])
def test_every_schedule_ends_in_one_result(rule: str) -> None:
    happened = run(range(SCHEDULES), rule)
    for what in ("lost", "repeated", "killed", "restarted", "cut off", "part not had"):
        assert happened.get(what), (what, happened)
    assert happened["later view"]
    assert happened["vote finished"]
