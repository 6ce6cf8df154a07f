"""Hostile members and coordinators of rounds: what they say is refused or left out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from federated.rounds.numeric import gram
from federated.rounds.protocol import verdicts
from federated.rounds.protocol.checks import check_apply, check_plan, check_results, choose
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.orders import Decided, PartArrived, Send
from federated.rounds.protocol.policy import Policy
from federated.rounds.protocol.wire import (
    NUMBER_OF,
    Apply,
    Commit,
    Confirm,
    Join,
    Plan,
    Propose,
    Result,
    Results,
    Signed,
    ViewState,
    decode_untrusted,
    encode,
    open_signed,
    packet_of,
    unsigned,
)
from p2p.errors import DecodeError
from tests.helpers.rounds_kit import POLICY, World, by, make_setting, peers

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.rounds.protocol.checks import Setting

NAMES = peers(4)


def decided_world(seed: int = 1) -> World:
    """A round that everybody has finished."""
    world = World(seed, [make_setting(peer, NAMES) for peer in NAMES])
    world.run(100, done=world.all_decided)
    assert world.all_decided()
    return world


def proof_of(world: World) -> tuple[Setting, Apply]:
    node = world.nodes[NAMES[0]]
    assert node.decided is not None
    assert isinstance(node.decided.proof, Apply)
    return node.setting, node.decided.proof


# ---- decisions


@pytest.mark.parametrize(
    "change",
    [
        lambda apply: msgspec.structs.replace(apply, confirms=apply.confirms[:1]),
        lambda apply: msgspec.structs.replace(apply, confirms=(apply.confirms[0],) * 4),
        lambda apply: msgspec.structs.replace(apply, view=apply.view + 1),
        lambda apply: msgspec.structs.replace(apply, federation=bytes(32)),
        lambda apply: msgspec.structs.replace(apply, round=apply.round + 1),
        lambda apply: msgspec.structs.replace(apply, made=apply.results),
        lambda apply: msgspec.structs.replace(apply, results=apply.made),
    ],
    ids=[
        "few confirms",
        "one confirm often",
        "another view",
        "another federation",
        "another round",
        "no plan",
        "no results",
    ],
)
def test_a_forged_decision_decides_nothing(change: Callable[[Apply], Apply]) -> None:
    setting, apply = proof_of(decided_world())
    check_apply(setting, apply)
    with pytest.raises(DecodeError):
        check_apply(setting, change(apply))


def test_votes_of_strangers_and_in_others_names_do_not_count() -> None:
    setting, apply = proof_of(decided_world())
    confirm = open_signed(apply.confirms[0], setting.signer)
    stranger = bytes([9]) * 32
    outsiders = tuple(by(bytes([9 + index]) * 32, confirm) for index in range(4))
    with pytest.raises(DecodeError, match="quorum"):
        check_apply(setting, msgspec.structs.replace(apply, confirms=outsiders))
    forged = tuple(msgspec.structs.replace(by(stranger, confirm), signer=peer) for peer in NAMES)
    with pytest.raises(DecodeError, match="did not sign"):
        check_apply(setting, msgspec.structs.replace(apply, confirms=forged))


# ---- coordinators


def test_only_the_views_coordinator_plans() -> None:
    setting, apply = proof_of(decided_world())
    plan = open_signed(apply.made, setting.signer)
    for peer in NAMES:
        if peer != setting.coordinator(0):
            with pytest.raises(DecodeError, match="coordinate"):
                check_plan(setting, by(peer, plan))


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: msgspec.structs.replace(plan, joins=plan.joins[:2]),
        lambda plan: msgspec.structs.replace(plan, joins=plan.joins + plan.joins[:1]),
        lambda plan: msgspec.structs.replace(plan, circle=plan.circle[:3]),
        lambda plan: msgspec.structs.replace(plan, base_root=b"x" * 32),
        lambda plan: msgspec.structs.replace(plan, rule="mean"),
        lambda plan: msgspec.structs.replace(plan, elements=plan.elements - 1),
        lambda plan: msgspec.structs.replace(
            plan, parts=(msgspec.structs.replace(plan.parts[0], start=1), *plan.parts[1:])
        ),
        lambda plan: msgspec.structs.replace(
            plan, parts=(msgspec.structs.replace(plan.parts[0], reducer=b"r" * 32),)
        ),
        lambda plan: msgspec.structs.replace(plan, deadline_s=math.inf),
    ],
    ids=[
        "few joins",
        "one join twice",
        "another circle",
        "another base",
        "another rule",
        "fewer elements",
        "a gap",
        "a foreign reducer",
        "an endless deadline",
    ],
)
def test_a_plan_that_breaks_the_rules_is_refused(change: Callable[[Plan], Plan]) -> None:
    setting, apply = proof_of(decided_world())
    plan = open_signed(apply.made, setting.signer)
    assert isinstance(plan, Plan)
    with pytest.raises(DecodeError):
        check_plan(setting, by(setting.coordinator(0), change(plan)))


def test_a_coordinator_with_two_plans_is_found_out_and_decides_no_two_results() -> None:
    world = World(3, [make_setting(peer, NAMES) for peer in NAMES])
    setting = world.nodes[NAMES[0]].setting
    liar = setting.coordinator(0)
    honest_send = world._send
    victims = [peer for peer in NAMES if peer != liar][:2]

    def two_faced(sender: bytes, order: Send) -> None:
        honest_send(sender, order)
        message = decode_untrusted(order.packet.body)
        if sender == liar and isinstance(message, Plan) and order.to in victims:
            other = msgspec.structs.replace(message, clip=1.0)
            honest_send(sender, Send(order.to, packet_of(by(liar, other))))

    world._send = two_faced  # type: ignore[method-assign]
    world.run(1000, done=world.all_decided)
    assert any(
        tell.kind == "evidence" and tell.peer == liar
        for peer, node in world.nodes.items()
        if peer != liar
        for tell in node.told
    )
    assert len({node.decided.root for node in world.nodes.values() if node.decided}) == 1


def test_evidence_must_show_two_signatures_that_contradict_each_other() -> None:
    world = decided_world()
    setting, apply = proof_of(world)
    from federated.rounds.protocol.wire import Evidence

    head = (setting.federation, setting.number, 0, bytes(32))
    fresh = Machine(make_setting(NAMES[1], NAMES))
    fresh.start(0.0)
    for first, second in (
        (apply.made, apply.made),
        (apply.made, apply.results),
        (apply.confirms[0], apply.confirms[1]),
    ):
        with pytest.raises(DecodeError):
            fresh.receive(1.0, NAMES[0], unsigned(Evidence(*head, first, second)))


def test_a_new_view_without_a_quorums_states_or_around_a_vote_is_refused() -> None:
    setting = make_setting(NAMES[0], NAMES)
    view = next(
        view for view in range(1, 20) if setting.coordinator(view) not in {NAMES[0], NAMES[1]}
    )
    boss = setting.coordinator(view)
    machine = Machine(setting)
    machine.start(0.0)

    def state(peer: bytes, vote_view: int, root: bytes) -> Signed:
        head = (setting.federation, setting.number, view, bytes(32))
        return by(peer, ViewState(*head, vote_view, root))

    def propose(*states: Signed) -> Propose:
        return Propose(
            setting.federation, setting.number, view, bytes(32), setting.base_root,
            setting.policy.digest(), setting.schema, tuple(NAMES), states, None, None,
        )  # fmt: skip

    none = [state(peer, -1, bytes(32)) for peer in NAMES]
    for states in ((), none[:2], (none[0],) * 4):
        with pytest.raises(DecodeError, match="quorum"):
            machine.receive(1.0, boss, unsigned(propose(*states)))
    # A vote that is among the states must be finished, not passed over.
    voted = state(NAMES[1], 0, b"v" * 32)
    with pytest.raises(DecodeError, match="finish"):
        machine.receive(1.0, boss, unsigned(propose(none[0], voted, none[2])))
    machine.take()
    machine.receive(1.0, boss, unsigned(propose(*none)))
    assert machine.member.view == view


def test_with_two_votes_that_both_may_have_won_nobody_goes_on() -> None:
    setting = make_setting(NAMES[0], NAMES)

    def state(root: bytes) -> ViewState:
        return ViewState(setting.federation, 1, 3, bytes(32), 0, root)

    first, second = b"a" * 32, b"b" * 32
    tie = {NAMES[0]: state(first), NAMES[1]: state(first), NAMES[2]: state(second)}
    chosen = choose(setting, tie)
    assert chosen is not None
    assert chosen.root == first  # of four, three must agree: only the first can have them
    six = make_setting(NAMES[0], peers(6))
    even = {peer: state(first if index % 2 else second) for index, peer in enumerate(peers(6)[:4])}
    assert choose(six, even) is None


# ---- members


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, 2.0**54])
def test_a_weight_that_cannot_be_is_refused(weight: float) -> None:
    commit = Commit(bytes(32), 1, 0, bytes(32), (bytes(32),), 1.0, weight, {})
    with pytest.raises(DecodeError):
        decode_untrusted(encode(commit))


@pytest.mark.parametrize("norm", [-1.0, math.nan, math.inf])
def test_a_norm_that_cannot_be_is_refused(norm: float) -> None:
    with pytest.raises(DecodeError):
        decode_untrusted(encode(Commit(bytes(32), 1, 0, bytes(32), (bytes(32),), norm, 1.0, {})))


def test_messages_of_another_round_and_unsigned_ones_change_nothing() -> None:
    setting = make_setting(NAMES[0], NAMES)
    machine = Machine(setting)
    machine.start(0.0)
    machine.take()
    old = Join(setting.federation, setting.number + 1, 0, bytes(32), bytes(32), True, 1.0, 1.0)
    with pytest.raises(DecodeError, match="another round"):
        machine.receive(0.0, NAMES[1], packet_of(by(NAMES[1], old)))
    join = msgspec.structs.replace(old, round=setting.number)
    with pytest.raises(DecodeError, match="did not sign"):
        machine.receive(0.0, NAMES[1], packet_of(by(NAMES[2], join)))
    assert machine.take() == []


def test_an_unfit_update_leaves_its_sender_out_with_the_reason() -> None:
    world = World(5, [make_setting(peer, NAMES) for peer in NAMES])
    broken = NAMES[1]
    later = world._later

    def find(node: object, event: object) -> None:
        if isinstance(event, PartArrived) and event.sender == broken:
            event = PartArrived(event.plan_hash, event.part, event.sender, "a value is not finite")
        later(node, event)  # type: ignore[arg-type]

    world._later = find  # type: ignore[method-assign]
    world.run(200, done=world.all_decided)
    assert world.all_decided()
    for node in world.nodes.values():
        fates = {one.peer: one for one in node.machine.member.statuses}
        assert fates[broken].status == "rejected"
        assert "not finite" in fates[broken].reason
    orders = set(world.merged.values())
    assert all(broken not in order for order in orders)


def test_one_reducer_cannot_leave_out_more_than_a_quorum_can_spare() -> None:
    """A reducer that calls everybody unfit stops its own view, and no later one."""
    world = World(6, [make_setting(peer, NAMES) for peer in NAMES])
    liar = world.nodes[NAMES[0]].setting.coordinator(0)
    later = world._later

    def defame(node: object, event: object) -> None:
        if isinstance(event, PartArrived) and node is world.nodes[liar] and event.sender != liar:
            event = PartArrived(event.plan_hash, event.part, event.sender, "no")
        later(node, event)  # type: ignore[arg-type]

    world._later = defame  # type: ignore[method-assign]
    world.run(2000, done=world.all_decided)
    assert world.all_decided()
    assert all(isinstance(node.decided, Decided) for node in world.nodes.values())


def test_a_false_norm_and_a_huge_update_are_named() -> None:
    policy = Policy(rule="mean", codec="f32", clip=10.0)
    setting = make_setting(NAMES[0], NAMES, policy=policy, rule="mean")
    rng = np.random.default_rng(1)
    rows = [np.zeros(50, np.float32), *rng.normal(size=(4, 50)).astype(np.float32)]
    rows[3] *= 100
    norms = [float(np.linalg.norm(row)) for row in rows[1:]]
    norms[1] *= 1.5
    commits = {
        peer: Commit(bytes(32), 1, 0, bytes(32), (bytes(32),), norm, 1.0, {})
        for peer, norm in zip(NAMES, norms, strict=True)
    }
    verdict = verdicts.judge(setting, NAMES, commits, [gram.diagonal(rows)], bytes(32))
    assert set(verdict.rejected) == {NAMES[1], NAMES[2]}
    assert "committed" in verdict.rejected[NAMES[1]]
    assert "three times" in verdict.rejected[NAMES[2]]
    assert verdict.coefficients[2] == verdict.coefficients[3] == 0.0


def test_a_claimed_weight_is_capped() -> None:
    policy = Policy(rule="mean", codec="f32", clip=1e9)
    setting = make_setting(NAMES[0], NAMES, policy=policy, rule="mean")
    rows = [np.zeros(5, np.float32), *np.ones((4, 5), np.float32)]
    weights = [1.0, 1.0, 1.0, 2.0**50]
    commits = {
        peer: Commit(bytes(32), 1, 0, bytes(32), (bytes(32),), math.sqrt(5), weight, {})
        for peer, weight in zip(NAMES, weights, strict=True)
    }
    found = verdicts.judge(setting, NAMES, commits, [gram.diagonal(rows)], bytes(32)).coefficients
    assert found[4] == pytest.approx(3 * found[1])


@pytest.mark.parametrize("size", [0, 7, 8 * 4, 8 * 6])
def test_products_of_another_shape_are_refused(size: int) -> None:
    with pytest.raises(DecodeError):
        verdicts.read_gram(bytes(size), 5, diagonal=True)


def test_results_must_be_of_this_plan_and_from_its_members() -> None:
    setting, apply = proof_of(decided_world())
    made = check_plan(setting, apply.made)
    results = open_signed(apply.results, setting.signer)
    assert isinstance(results, Results)
    header = open_signed(results.headers[0], setting.signer)
    assert isinstance(header, Result)
    boss = setting.coordinator(0)
    changes = [
        msgspec.structs.replace(results, headers=(by(bytes([7]) * 32, header),)),
        msgspec.structs.replace(
            results,
            headers=(by(boss, msgspec.structs.replace(header, plan=b"p" * 32)),),
        ),
        msgspec.structs.replace(
            results, headers=(by(boss, msgspec.structs.replace(header, part=3)),)
        ),
        msgspec.structs.replace(results, headers=results.headers * 2),
    ]
    for changed in changes:
        with pytest.raises(DecodeError):
            check_results(setting, by(boss, changed), made)
    with pytest.raises(DecodeError):
        check_results(setting, by(NAMES[0] if boss != NAMES[0] else NAMES[1], results), made)


def test_a_vote_twice_in_a_view_is_no_second_vote() -> None:
    world = decided_world()
    setting, apply = proof_of(world)
    confirm = open_signed(apply.confirms[0], setting.signer)
    assert isinstance(confirm, Confirm)
    other = by(apply.confirms[0].signer, msgspec.structs.replace(confirm, root=b"z" * 32))
    mixed = msgspec.structs.replace(apply, confirms=(*apply.confirms, other))
    with pytest.raises(DecodeError, match="something else"):
        check_apply(setting, mixed)
    assert NUMBER_OF[Confirm] == other.kind
    assert POLICY.quorum == (2, 3)
