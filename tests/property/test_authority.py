"""The rank rule under histories nobody wrote by hand."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.replication import ops
from p2p.replication.fold import Fold
from p2p.replication.ops import Role
from tests.helpers.membership import Ledger, grant, invite, join, limit
from tests.helpers.schedules import Outcome, Schedule, SymmetricFold

BATCH = 40
NAMES = ("F", "A", "B", "C")


def outcomes(seeds: range, expeller: str, rules: type[Fold] = Fold) -> list[Outcome]:
    schedules = (Schedule(s, expeller, rules) for s in seeds)
    return [outcome for schedule in schedules if (outcome := schedule.run()) is not None]


@pytest.mark.attack
@pytest.mark.parametrize("expeller", ["F", "A"])
@pytest.mark.parametrize("batch", range(4))
def test_no_intruder_comes_back_and_no_honest_device_is_lost(batch, expeller):
    played = outcomes(range(batch * BATCH, (batch + 1) * BATCH), expeller)
    assert len(played) > BATCH // 5  # the rest had a hostile senior: nobody to expel it
    for outcome in played:
        assert outcome == Outcome()


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.timeout(600)
@pytest.mark.parametrize("expeller", ["F", "A"])
def test_no_intruder_comes_back_in_ten_thousand_schedules(expeller):
    """By the founder and by another admin: twenty thousand, and every verdict stays as it was."""
    played = 0
    for seed in itertools.count(10_000):
        outcome = Schedule(seed, expeller).run()
        if outcome is not None:
            assert outcome == Outcome(), f"seed {seed}"
            played += 1
        if played == 10_000:
            break
    assert seed < 40_000


def test_the_symmetric_rule_fails_such_schedules():
    """The control: without ranks an expelled admin takes others with it."""
    played = outcomes(range(60, 130), "F", SymmetricFold)
    assert sum(bool(o.lost) for o in played) >= 3


@pytest.mark.parametrize("seed", range(20))
def test_equal_sets_give_equal_answers_in_any_order_of_arrival(seed):
    schedule = Schedule(1_000 + seed, "F")
    schedule.run()
    numbers = list(range(len(schedule.ledger.entries)))
    want = schedule.authority()
    shuffled = list(numbers)
    random.Random(seed).shuffle(shuffled)
    for order in (shuffled, numbers[::-1]):
        have = schedule.authority(order)
        assert have.heads() == want.heads()
        assert have.standing().members() == want.standing().members()
        assert have.standing().void_ops() == want.standing().void_ops()
        assert have.standing().invites() == want.standing().invites()
        assert have.standing().pending_joins() == want.standing().pending_joins()


@pytest.mark.parametrize("seed", range(5))
def test_folding_after_every_op_ends_where_folding_once_does(seed):
    schedule = Schedule(2_000 + seed, "A")
    schedule.run()
    step = Ledger()
    step.entries = schedule.ledger.entries
    authority = step.authority()
    fresh = type(authority)(step.group, lambda *_: True)
    for entry in step.entries:
        fresh.add(*entry)
        fresh.standing()
    assert fresh.standing().members() == authority.standing().members()
    assert fresh.standing().void_ops() == authority.standing().void_ops()


@given(st.data())
def test_a_stranger_changes_nothing(data):
    """Whatever somebody without any support writes, the members stay as they are."""
    ledger = Ledger()
    for _ in range(data.draw(st.integers(1, 5))):
        member = data.draw(st.sampled_from(NAMES[1:]))
        ledger.write("F", grant(member, data.draw(st.sampled_from(list(Role)))))
    v = ledger.write("F", invite(Role.WRITE))
    before = ledger.standing().members()
    for _ in range(data.draw(st.integers(1, 6))):
        member = data.draw(st.sampled_from(NAMES))
        payload = data.draw(
            st.sampled_from(
                [
                    grant(member, Role.ADMIN),
                    grant("stranger", Role.ADMIN),
                    limit(member),
                    invite(Role.ADMIN, uses=9),
                    join(ledger.id(v)),
                    ops.InviteClose(ledger.id(v)),
                    ops.Admit(ledger.id(len(ledger.entries) - 1)),
                    ops.Policy(ops.Limits(0, 0, 0)),
                ]
            )
        )
        incarnation = data.draw(st.sampled_from([1, 2, 2**32 - 1]))
        ledger.write("stranger", payload, incarnation=incarnation)
    standing = ledger.standing()
    assert standing.members() == before
    assert standing.policy() == ops.Limits()
    assert standing.invites()[ledger.id(v)].open
