"""How long a phase of transfers may take: a multiple of what the lines carry, whoever lies."""

from __future__ import annotations

import msgspec
import pytest

from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.member import Link, Update
from federated.rounds.protocol.wire import (
    Apply,
    Propose,
    Results,
    Tick,
    ViewState,
    decode_untrusted,
    unsigned,
)
from tests.helpers.rounds_kit import POLICY, World, by, make_setting, peers

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
    return world.until_phase(boss, "committing", 60)._limit_s


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


# ---- views that finish


@pytest.mark.parametrize("entered_before", [False, True])
def test_a_view_that_finishes_a_vote_lasts_as_long_as_its_transfers(entered_before: bool) -> None:
    """Whether its coordinator's word brought us into it or our own patience."""
    settings = [
        make_setting(peer, NAMES, elements=PAYLOAD // 8, payload_bytes=PAYLOAD) for peer in NAMES
    ]
    world = World(1, settings)
    world.run(1000, done=world.all_decided)
    decided = world.nodes[NAMES[0]].decided
    assert decided is not None
    order, boss = settings[0].order, settings[0].coordinator(1)
    setting = world.nodes[order[3]].setting
    head = (setting.federation, setting.number, 1)
    states = tuple(by(peer, ViewState(*head, bytes(32), 0, decided.root)) for peer in order[:3])
    assert isinstance(decided.proof, Apply)
    before = decode_untrusted(decided.proof.results.body)
    assert isinstance(before, Results)
    results = by(boss, Results(*head, decided.plan_hash, before.headers))
    propose = Propose(
        *head, bytes(32), setting.base_root, setting.policy.digest(), setting.schema,
        setting.circle, states, decided.proof.made, results,
    )  # fmt: skip
    machine = Machine(setting)
    machine.start(0.0)
    if entered_before:
        machine._enter(0.0, 1)
    machine.receive(0.0, boss, unsigned(propose))
    tick = unsigned(Tick(*head, bytes(32), "confirm", 1.0))
    now = 0.0
    while machine.member.view == 1:
        machine.receive(now, boss, tick)
        machine.on_time(now)
        now += 1.0
    transfer_s = 3 * PAYLOAD / 2.5e6
    assert now > 3 * transfer_s


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
