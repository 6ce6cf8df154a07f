"""One member that wants a round to come to nothing: it does not.

Each takes a part in merging, or leads, and says what is allowed where it stands. Beyond what it is
bound to by its place it is silent.
"""

from __future__ import annotations

import dataclasses
import struct
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec
import pytest

from federated.rounds.numeric.payload import encoded_bytes
from federated.rounds.protocol import topology
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.orders import (
    FetchResult,
    Merge,
    Merged,
    ResultFailed,
    Send,
)
from federated.rounds.protocol.wire import (
    Abort,
    Apply,
    Close,
    Commits,
    Gram,
    Have,
    Move,
    Moved,
    Plan,
    Propose,
    Result,
    Results,
    Tick,
    ViewState,
    Weights,
    decode_untrusted,
    packet_of,
    unsigned,
)
from p2p.errors import DecodeError
from tests.helpers.rounds_kit import World, by, make_setting, peers

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.rounds.protocol.orders import Order
    from federated.rounds.protocol.wire import Message
    from tests.helpers.rounds_kit import Node

    Says = Callable[[Send, Message], list[Send]]

LEADS = (Plan, Close, Weights, Results, Apply, Abort, Move, Propose, Tick, Commits)
LARGE, SMALL = 4_000_000, 8_000
WITHIN_S = 900.0
"""Some views: patience with a silent coordinator is ten seconds, then twenty."""


def world_of(count: int, payload: int, seed: int = 4) -> tuple[World, list[bytes]]:
    """A world and its coordinators in order."""
    names = peers(count)
    settings = [
        make_setting(peer, names, elements=payload // 8, payload_bytes=payload) for peer in names
    ]
    return World(seed, settings), settings[0].order


def corrupt(world: World, liars: set[bytes], says: Says, *, leads: bool = False) -> None:
    """Have what liars send changed; they lead no view, unless told so."""
    honest = world._send

    def send(sender: bytes, order: Send) -> None:
        message = decode_untrusted(order.packet.body)
        if sender not in liars:
            honest(sender, order)
        elif leads or not isinstance(message, LEADS):
            for changed in says(order, message):
                honest(sender, changed)

    world._send = send  # type: ignore[method-assign]


def ends_in_one_result(world: World, liars: set[bytes]) -> None:
    """All others decide, and the same."""
    honest = [node for peer, node in world.nodes.items() if peer not in liars]
    world.run(WITHIN_S, done=lambda: all(node.decided for node in honest))
    assert all(node.decided for node in honest), [node.ended[-3:] for node in honest]
    assert len({node.decided.root for node in honest if node.decided}) == 1


@pytest.mark.parametrize("count", [4, 7])
def test_a_coordinator_that_only_says_that_it_is_there(count: int) -> None:
    world, order = world_of(count, SMALL)
    liar = order[0]
    setting = world.nodes[liar].setting
    corrupt(
        world, {liar}, lambda order, said: [order] if isinstance(said, Propose) else [], leads=True
    )
    alive = Tick(setting.federation, setting.number, 0, bytes(32), "joining", 1.0)

    def tick() -> None:
        for peer in set(order) - {liar}:
            world._deliver(liar, Send(peer, unsigned(alive)))
        world.at(3.0, tick)

    world.at(1.0, tick)
    ends_in_one_result(world, {liar})


@pytest.mark.parametrize("count", [4, 7])
def test_a_reducer_that_calls_all_others_updates_unfit(count: int) -> None:
    world, order = world_of(count, LARGE)

    def defame(send: Send, said: Message) -> list[Send]:
        if not isinstance(said, Have):
            return [send]
        unfit = tuple((peer, "no") for peer in order if peer != order[2])
        return [Send(send.to, unsigned(msgspec.structs.replace(said, unfit=unfit)))]

    corrupt(world, {order[2]}, defame)
    ends_in_one_result(world, {order[2]})
    statuses = world.nodes[order[0]].machine.member.statuses
    assert {one.status for one in statuses if one.peer != order[2]} == {"included"}


@pytest.mark.parametrize("count", [4, 7])
def test_a_reducer_that_signs_for_a_part_of_another_size(count: int) -> None:
    world, order = world_of(count, LARGE)

    def resize(send: Send, said: Message) -> list[Send]:
        if not isinstance(said, Result):
            return [send]
        other = msgspec.structs.replace(said, nbytes=7)
        return [Send(send.to, packet_of(by(order[2], other)))]

    corrupt(world, {order[2]}, resize)
    ends_in_one_result(world, {order[2]})


@pytest.mark.parametrize("count", [7, 10])
def test_a_reducer_and_its_standby_that_merge_nothing(count: int) -> None:
    world, order = world_of(count, LARGE)
    setting = world.nodes[order[0]].setting
    links = [topology.PeerLink(peer, True, 2.5e6, 2.5e6) for peer in setting.circle]
    cut = topology.parts(
        setting.elements, links, LARGE, group=setting.federation, round_number=setting.number
    )
    liars = {cut[0].reducer, cut[0].standby}
    assert len(liars) == 2
    corrupt(world, liars, lambda send, said: [] if isinstance(said, Result) else [send])
    ends_in_one_result(world, liars)


def bogus_parts(world: World, liar: bytes, failed: str | None) -> None:
    """The liar signs for parts that nobody gets (`failed` empty), can use, or has soon (None)."""
    bogus: set[bytes] = set()
    honest_order, honest_fetch = world._order, world._fetch_result

    def carry(node: Node, order: Order) -> None:
        if node.setting.me == liar and isinstance(order, Merge):
            plan = world._plan_of(node)
            digest = sha256(b"bogus" + order.plan_hash + bytes([order.part])).digest()
            bogus.add(digest)
            node.kept.add(digest)
            size = encoded_bytes(plan.codec, plan.parts[order.part].count)
            world._later(node, Merged(order.plan_hash, order.part, order.counter, size, digest))
            return
        honest_order(node, order)

    def fetch(node: Node, order: FetchResult) -> None:
        if order.sha256 in bogus and node.setting.me != liar:
            if failed is not None:
                world._later(node, ResultFailed(order.part, order.sha256, failed))
            return
        honest_fetch(node, order)

    world._order = carry  # type: ignore[method-assign]
    world._fetch_result = fetch  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "failed", ["", "a value that is not finite", None], ids=["withheld", "unfit", "trickling"]
)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [4, 7])
def test_a_reducer_whose_parts_nobody_can_have_or_use_and_its_vote_for_them(
    count: int, seed: int, failed: str | None
) -> None:
    world, order = world_of(count, LARGE, seed)
    corrupt(world, {order[2]}, lambda send, _: [send])
    bogus_parts(world, order[2], failed)
    ends_in_one_result(world, {order[2]})


@pytest.mark.parametrize("failed", ["", None], ids=["withheld", "trickling"])
def test_a_vote_for_parts_that_nobody_has_is_always_there_first(failed: str | None) -> None:
    world, order = world_of(7, LARGE)
    liar = world.nodes[order[2]]
    bogus_parts(world, order[2], failed)
    honest = world._send

    def send(sender: bytes, order: Send) -> None:
        message = decode_untrusted(order.packet.body)
        if sender != liar.setting.me:
            honest(sender, order)
            if isinstance(message, Moved):
                world.at(0.0, lambda: vote_again(sender, message.view))
        elif not isinstance(message, (*LEADS, Moved)):
            honest(sender, order)

    def vote_again(to: bytes, view: int) -> None:
        vote, me = liar.machine.member.vote, liar.setting.me
        assert vote is not None
        head = (liar.setting.federation, liar.setting.number, view, bytes(32))
        state = by(me, ViewState(*head, vote.view, vote.root))
        world._deliver(me, Send(to, unsigned(Moved(*head, state, vote.plan, vote.results))))

    world._send = send  # type: ignore[method-assign]
    ends_in_one_result(world, {liar.setting.me})


@pytest.mark.parametrize("rule", ["centred_clipping", "mean", "multi_krum"])
@pytest.mark.parametrize(("row", "times"), [(0, 1e30), (2, 1e6), (2, 0.0)])
def test_a_reducers_false_products_reject_nobody_and_repeat_nothing(
    rule: str, row: int, times: float
) -> None:
    """Of others' rows (all of them, for the second two) or of the last update."""
    names = peers(5)
    settings = [
        dataclasses.replace(
            make_setting(peer, names, rule=rule, elements=LARGE // 8, payload_bytes=LARGE),
            reference_square=0.0,
        )
        for peer in names
    ]
    world, order = World(11, settings), settings[0].order
    liar = order[2]

    def inflate(send: Send, said: Message) -> list[Send]:
        if not isinstance(said, Gram):
            return [send]
        values = list(struct.unpack(f"<{len(said.values) // 8}d", said.values))
        rows = [at if said.diagonal else at * (at + 3) // 2 for at in range(6)]
        for at in rows[:1] if row == 0 else rows[1:]:
            values[at] = times if row == 0 else values[at] * times
        packed = struct.pack(f"<{len(values)}d", *values)
        return [Send(send.to, unsigned(msgspec.structs.replace(said, values=packed)))]

    corrupt(world, {liar}, inflate)
    ends_in_one_result(world, {liar})
    for peer in names:
        if peer != liar:
            fates = {one.peer: one.status for one in world.nodes[peer].machine.member.statuses}
            assert {fates[one] for one in names if one != liar} == {"included"}
    decided = world.nodes[order[0]].decided
    assert decided is not None
    assert liar not in {part.reducer for part in decided.parts}


def test_the_view_of_a_vote_is_not_the_voters_word() -> None:
    """A vote of an old view, claimed for a later one, would win over what was decided between."""
    world, order = world_of(4, SMALL)
    world.run(100, done=world.all_decided)
    decided = world.nodes[order[0]].decided
    assert decided is not None
    assert isinstance(decided.proof, Apply)
    setting = world.nodes[order[3]].setting
    machine = Machine(setting)
    machine.start(0.0)
    machine._enter(0.0, 3)
    machine._loop(0.0)

    def says(vote_view: int) -> Moved:
        head = (setting.federation, setting.number, 3, bytes(32))
        state = by(order[1], ViewState(*head, vote_view, decided.root))
        assert isinstance(decided.proof, Apply)
        return Moved(*head, state, decided.proof.made, decided.proof.results)

    with pytest.raises(DecodeError, match="something else"):
        machine.receive(0.0, order[1], unsigned(says(2)))
    machine.receive(0.0, order[1], unsigned(says(0)))


def test_a_vote_whose_parts_cannot_be_had_lets_no_view_of_ours_begin_and_none_be_undone() -> None:
    """Left out, it is not counted either: had a quorum cast it, the rest would be too few."""
    world, order = world_of(4, LARGE)
    setting = world.nodes[order[1]].setting
    machine = Machine(setting)
    machine.start(0.0)
    root = b"r" * 32
    machine.member.doubts.roots[root] = (b"p" * 32,)
    machine._enter(0.0, 1)
    machine._loop(0.0)
    assert machine.leader is not None

    def says(peer: bytes, vote: int, of: bytes) -> Moved:
        head = (setting.federation, setting.number, 1, bytes(32))
        state = by(peer, ViewState(*head, vote, of))
        return Moved(*head, state, None, None)

    # The vote comes without what it was about, which alone would be an error: it is not looked at.
    machine.receive(0.0, order[0], unsigned(says(order[0], 0, root)))
    machine.receive(0.0, order[2], unsigned(says(order[2], -1, bytes(32))))
    assert machine.leader.phase == "states", "two of four states are no quorum"
    machine.receive(0.0, order[3], unsigned(says(order[3], -1, bytes(32))))
    assert machine.leader.phase == "joining"
