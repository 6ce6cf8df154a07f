"""How long a phase of transfers may take: a multiple of what the lines carry, whoever lies."""

from __future__ import annotations

import msgspec
import pytest

from federated.rounds.protocol.leader import Leader
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.member import Link, Update
from tests.helpers.rounds_kit import POLICY, World, make_setting, peers

NAMES = peers(4)
PAYLOAD = 100_000_000


def limit_with(rates: list[float]) -> float:
    """The coordinator's limit once the members said what their lines carry, bytes a second."""
    settings = [
        make_setting(peer, NAMES, elements=PAYLOAD // 8, payload_bytes=PAYLOAD) for peer in NAMES
    ]
    boss = settings[0].coordinator(0)
    world = World(1, settings)
    order = [boss, *(peer for peer in NAMES if peer != boss)]
    for peer, rate in zip(order, rates, strict=True):
        node = world.nodes[peer]
        node.machine = Machine(node.setting, Link(up=rate, down=rate))

    def planned() -> bool:
        leader = world.nodes[boss].machine.leader
        return leader is not None and leader.phase == "committing"

    world.run(60, done=planned)
    leader = world.nodes[boss].machine.leader
    assert isinstance(leader, Leader)
    assert leader.phase == "committing"
    return leader._limit_s


def test_a_large_update_over_slow_lines_gets_the_time_it_needs() -> None:
    # Of 100 MB three quarters go out and three parts of a quarter come in, at 1 MB/s.
    assert limit_with([1e6] * 4) == pytest.approx(3 * 75.0, rel=0.01)


def test_fast_lines_get_the_policys_time() -> None:
    assert limit_with([1e9] * 4) == POLICY.transfer_s


@pytest.mark.parametrize("claim", [0.0, 1.0, 1e-300, 1e300])
def test_one_members_claim_stretches_no_phase_beyond_what_the_others_need(claim: float) -> None:
    honest = limit_with([1e6] * 4)
    # A claim of a fast line gets it a larger part, which a standby takes over.
    assert limit_with([1e6] * 3 + [claim]) <= 1.35 * honest


# ---- grace


def test_after_the_grace_half_of_the_updates_will_do() -> None:
    policy = msgspec.structs.replace(POLICY, grace_s=4.0)
    world = World(
        5, [make_setting(peer, NAMES, policy=policy) for peer in NAMES], submits=set(NAMES[:2])
    )
    world.run(12, done=world.all_decided)
    assert world.all_decided()
    assert 4 < world.now < 12 < policy.first_deadline_s
    fates = {one.status for one in world.nodes[NAMES[0]].machine.member.statuses}
    assert fates == {"included", "late"}


def test_fewer_than_half_are_waited_for_as_long_as_ever() -> None:
    policy = msgspec.structs.replace(POLICY, grace_s=4.0)
    world = World(
        6, [make_setting(peer, NAMES, policy=policy) for peer in NAMES], submits={NAMES[0]}
    )
    world.run(50)
    assert not any(node.decided for node in world.nodes.values())
    second = world.nodes[NAMES[1]]
    second.machine.submit(world.now, Update(1.0))
    world._carry(second)
    world.run(world.now + 10, done=world.all_decided)
    assert world.all_decided()


def test_without_a_grace_half_are_too_few() -> None:
    world = World(7, [make_setting(peer, NAMES) for peer in NAMES], submits=set(NAMES[:2]))
    world.run(40)
    assert not any(node.decided for node in world.nodes.values())
