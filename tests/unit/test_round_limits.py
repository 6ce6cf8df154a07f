"""How long a phase of transfers may take: a multiple of what the lines carry, whoever lies."""

from __future__ import annotations

import pytest

from federated.rounds.protocol.leader import Leader
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.member import Link
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
