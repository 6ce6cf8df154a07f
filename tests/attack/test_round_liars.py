"""Members of rounds that lie within their rights: nobody else is stopped, misled or worn out."""

from __future__ import annotations

import dataclasses
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import trio

from federated.errors import UsageError
from federated.rounds.numeric.payload import encode as encode_part
from federated.rounds.numeric.tensors import apply, refused, schema_of
from federated.rounds.post import Post, Wanted
from federated.rounds.protocol.checks import VIEW_MAX, check_plan, check_results
from federated.rounds.protocol.machine import VIEWS_A_SECOND, Machine
from federated.rounds.protocol.member import Link, Update
from federated.rounds.protocol.orders import (
    Ended,
    MakeGram,
    Merge,
    Prepare,
    ResultArrived,
    ResultFailed,
    Send,
)
from federated.rounds.protocol.wire import (
    Abort,
    Commit,
    Have,
    Join,
    Moved,
    PartOf,
    Plan,
    Propose,
    Result,
    Results,
    Signed,
    ViewState,
    decode_untrusted,
    packet_of,
    sign,
    unsigned,
)
from federated.rounds.workshop import Workshop
from p2p.errors import DecodeError
from tests.helpers.rounds_kit import World, by, make_setting, peers
from tests.helpers.rounds_office import Team, play_team
from tests.unit.test_rounds_models import join_all, train

if TYPE_CHECKING:
    from pathlib import Path

    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.wire import Packet
    from p2p.rpc_types import Caller, CallStream

NAMES = peers(4)


def head(setting: Setting, view: int = 0, plan: bytes = bytes(32)) -> tuple[bytes, int, int, bytes]:
    return (setting.federation, setting.number, view, plan)


# ---- views


def moved(setting: Setting, sender: bytes, view: int) -> Moved:
    state = ViewState(*head(setting, view), -1, bytes(32))
    return Moved(*head(setting, view), by(sender, state), None, None)


def test_of_two_the_other_cannot_take_us_to_where_no_views_are_left() -> None:
    pair = peers(2)
    setting = make_setting(pair[0], pair)
    machine = Machine(setting)
    machine.start(0.0)
    for view in (VIEW_MAX, 2**32 - 1):
        with pytest.raises(DecodeError, match="no round comes to"):
            machine.receive(0.0, pair[1], unsigned(moved(setting, pair[1], view)))
    machine.receive(0.0, pair[1], unsigned(moved(setting, pair[1], VIEW_MAX - 1)))
    assert machine.member.view == VIEWS_A_SECOND
    machine.receive(2.5, pair[1], unsigned(moved(setting, pair[1], VIEW_MAX - 1)))
    assert machine.member.view == 3 * VIEWS_A_SECOND
    # Kept before limits were: the next view is one that can be said.
    again = Machine(setting, promised=2**32 - 1)
    again.start(0.0)
    assert again.member.view < VIEW_MAX


def test_an_abort_said_again_does_not_put_off_the_next_view() -> None:
    setting = make_setting(NAMES[0], NAMES)
    boss = setting.coordinator(0)
    me = next(peer for peer in NAMES if peer != boss)
    setting = make_setting(me, NAMES)
    machine = Machine(setting)
    machine.start(0.0)
    propose = Propose(
        *head(setting), setting.base_root, setting.policy.digest(), setting.schema, tuple(NAMES),
        (), None, None,
    )  # fmt: skip
    machine.receive(0.0, boss, unsigned(propose))
    ended = []
    for now in range(1, 40):
        machine.receive(float(now), boss, unsigned(Abort(*head(setting), "again", ())))
        machine.on_time(float(now))
        ended += [order for order in machine.take() if isinstance(order, Ended)]
        if machine.member.view > 0:
            break
    assert machine.member.view == 1
    assert now == 1 + setting.backoff_s
    assert len(ended) == 1


# ---- commits, haves


def planned(me: bytes, names: list[bytes] = NAMES) -> tuple[Setting, Machine, Plan, Signed]:
    """A member that has joined, and the plan that comes next: one part, merged by it."""
    setting = make_setting(me, names)
    boss = setting.coordinator(0)
    machine = Machine(setting)
    machine.start(0.0)
    machine.submit(0.0, Update(1.0))
    propose = Propose(
        *head(setting), setting.base_root, setting.policy.digest(), setting.schema, tuple(names),
        (), None, None,
    )  # fmt: skip
    machine.receive(0.0, boss, unsigned(propose))
    joins = tuple(by(peer, Join(*head(setting), bytes(32), True, 1e6, 1e6)) for peer in names)
    plan = Plan(
        *head(setting), joins, setting.circle, setting.base_root, setting.policy.digest(),
        setting.schema, setting.elements, (PartOf(0, setting.elements, me, boss),), "sum", "f64",
        0.0, 20.0,
    )  # fmt: skip
    machine.take()
    return setting, machine, plan, by(boss, plan)


def test_a_forged_commit_that_comes_before_the_plan_hides_no_true_one() -> None:
    boss = make_setting(NAMES[0], NAMES).coordinator(0)
    me, victim, liar = (peer for peer in NAMES if peer != boss)
    setting, machine, plan, signed = planned(me)
    commit = Commit(*head(setting, 0, sha256(signed.body).digest()), (bytes(32),), 1.0, 1.0, {})
    made = check_plan(setting, signed)
    commit = msgspec.structs.replace(commit, plan=made.hash)
    true = by(victim, commit)
    machine.receive(0.0, victim, packet_of(true))
    forged = msgspec.structs.replace(by(liar, commit), signer=victim)
    with pytest.raises(DecodeError, match="did not sign"):
        machine.member.commit(forged)
    machine.receive(0.0, boss, packet_of(signed))
    orders = machine.take()
    assert any(isinstance(order, Prepare) for order in orders)
    assert machine.member.reducing is not None
    assert victim in machine.member.reducing._commits
    assert plan.parts[0].reducer == me


def test_a_reducer_can_speak_of_members_of_the_plan_alone() -> None:
    """Strangers in a `have` fill no memory and decide nothing."""
    world = World(2, [make_setting(peer, NAMES) for peer in NAMES])
    boss = world.nodes[NAMES[0]].setting.coordinator(0)
    leader = world.until_phase(boss, "scatter")
    strangers = tuple(bytes([index]) * 32 for index in range(60))
    setting = world.nodes[boss].setting
    holdings = leader._holdings
    reducer = holdings.reducer(0)
    unfit = tuple((peer, "no") for peer in strangers)
    leader.have(world.now, reducer, Have(*head(setting), 0, strangers, unfit))
    assert holdings.came(0) <= len(NAMES)
    assert not any(holdings.unfit(peer) for peer in strangers)


# ---- contradictions


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_who_contradicted_itself_is_in_no_later_plan(place: int) -> None:
    """Whichever view it would coordinate: its proposals are not heard."""
    order = make_setting(NAMES[0], NAMES).order
    liar = order[place]
    settings = [
        dataclasses.replace(make_setting(peer, NAMES), banned=frozenset({liar}))
        if peer != liar
        else make_setting(peer, NAMES)
        for peer in NAMES
    ]
    world = World(8, settings)
    world.run(300, done=lambda: all(world.nodes[peer].decided for peer in NAMES if peer != liar))
    for peer in NAMES:
        if peer != liar:
            decided = world.nodes[peer].decided
            assert decided is not None
            assert liar not in {one.signer for one in decided.plan.joins}
            assert decided.view == (1 if place == 0 else 0)
    teller = next(peer for peer in NAMES if peer != liar)
    fates = {one.peer: one for one in world.nodes[teller].machine.member.statuses}
    assert (fates[liar].status, fates[liar].reason[:10]) == ("rejected", "signed two")


def test_two_commits_of_one_member_are_seen_by_all_in_the_end() -> None:
    world = World(9, [make_setting(peer, NAMES) for peer in NAMES])
    liar = next(peer for peer in NAMES if peer != world.nodes[peer].setting.coordinator(0))
    honest_send = world._send

    def two_faced(sender: bytes, order: Send) -> None:
        message = decode_untrusted(order.packet.body)
        honest_send(sender, order)
        if sender == liar and isinstance(message, Commit):
            other = msgspec.structs.replace(message, weight=message.weight * 2)
            honest_send(sender, Send(order.to, packet_of(by(liar, other))))

    world._send = two_faced  # type: ignore[method-assign]
    world.run(200, done=world.all_decided)
    assert world.all_decided()
    for peer, node in world.nodes.items():
        if peer != liar:
            assert node.machine.banned == {liar}
            assert set(node.machine.evidence) == {liar}


def test_a_newcomer_that_was_restarted_does_not_contradict_itself() -> None:
    """It cannot move a round on; in the view it spoke in before, it says nothing more."""
    guest = peers(5)[4]
    setting = make_setting(guest, NAMES, newcomers=[guest])
    setting = dataclasses.replace(setting, candidates=frozenset({guest}))
    boss = setting.coordinator(0)
    propose = Propose(
        *head(setting), setting.base_root, setting.policy.digest(), setting.schema,
        (*NAMES, guest), (), None, None,
    )  # fmt: skip
    first = Machine(setting)
    first.start(0.0)
    first.receive(0.0, boss, unsigned(propose))
    assert any(isinstance(order, Send) for order in first.take())
    again = Machine(setting, promised=first.member.view)
    again.start(0.0)
    again.receive(0.0, boss, unsigned(propose))
    assert not any(isinstance(order, Send) for order in again.take())


def test_a_model_goes_on_without_who_contradicted_itself(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3, 4)]
        federations = await join_all(chairs, tmp_path)
        liar = bytes(chairs[3].member.id)
        post, node = chairs[3].rounds._post, chairs[3].member.node
        honest_send = post.send

        def two_faced(to: bytes, federation: bytes, packet: Packet) -> None:
            honest_send(to, federation, packet)
            message = decode_untrusted(packet.body)
            if isinstance(message, Commit):
                other = msgspec.structs.replace(message, weight=message.weight * 2)
                honest_send(to, federation, packet_of(sign(node, liar, other)))

        post.send = two_faced  # type: ignore[method-assign]
        await train(federations, [1.0, 1.0, 1.0, 1.0], 0)
        for number in (1, 2):
            await train(federations[:3], [1.0, 1.0, 1.0], number)
        for federation in federations[:3]:
            assert federation.standing.banned == (liar,)
            assert liar not in federation.standing.circle
        told = [kind for chair in chairs[:3] for kind, _ in chair.told]
        assert told.count("member.banned") == 3
        # A restart does not forget it, and its question is not answered.
        again = (await (await team.restart(1)).rounds.models()).find(None, "m")
        assert again.standing.banned == (liar,)
        assert again.where(liar).where is None

    play_team(scenario, tmp_path, seed=5)


# ---- merged parts


def test_a_merged_part_of_another_size_is_refused_before_it_is_fetched() -> None:
    setting, _, plan, signed = planned(NAMES[1])
    made = check_plan(setting, signed)
    boss = setting.coordinator(0)
    for nbytes in (0, 8 * plan.elements - 8, 2**40):
        header = Result(*head(setting, 0, made.hash), 0, 0, nbytes, bytes(32))
        results = Results(*head(setting, 0, made.hash), (by(NAMES[1], header),))
        with pytest.raises(DecodeError, match="another size"):
            check_results(setting, by(boss, results), made)


@pytest.mark.parametrize("payload", [8_000, 4_000_000], ids=["star", "butterfly"])
def test_who_signs_for_a_merged_part_that_is_none_merges_no_more(payload: int) -> None:
    world = World(
        4,
        [make_setting(peer, NAMES, elements=payload // 8, payload_bytes=payload) for peer in NAMES],
    )
    liar = world.nodes[NAMES[0]].setting.coordinator(0)
    later = world._later

    def try_it(node: object, event: object) -> None:
        if isinstance(event, ResultArrived):
            results = node.machine.member._results  # type: ignore[attr-defined]
            made_by = dict(zip(results.hashes, results.reducers, strict=True))
            if made_by[event.sha256] == liar:
                event = ResultFailed(event.part, event.sha256, "a value that is not finite")
        later(node, event)  # type: ignore[arg-type]

    world._later = try_it  # type: ignore[method-assign]
    world.run(3000, done=world.all_decided)
    assert world.all_decided()
    for node in world.nodes.values():
        assert node.decided is not None
        assert liar not in {part.reducer for part in node.decided.parts}
    told = [tell for node in world.nodes.values() for tell in node.told]
    assert any(tell.kind == "member.unfit_part" and tell.peer == liar for tell in told)


def test_garbage_and_what_leaves_the_range_is_no_merged_part() -> None:
    base = {"w": np.full(10, 60_000, np.float16), "v": np.zeros(5, np.float32)}
    schema = schema_of(base)
    workshop = Workshop(applies=lambda start, values: refused(schema, base, start, values))  # type: ignore[arg-type]
    piece = PartOf(2, 10, bytes(32), bytes(32))
    small = encode_part("f32", np.full(10, 3, np.float32))
    assert workshop.unfit_merged(bytes(32), "f32", piece, small) == ""
    assert "bytes" in workshop.unfit_merged(bytes(32), "f32", piece, small[:-1])
    assert workshop.unfit_merged(bytes(32), "f32", piece, b"\xff" * 40)
    large = encode_part("f32", np.full(10, 10_000, np.float32))
    assert "leaves the range" in workshop.unfit_merged(bytes(32), "f32", piece, large)


@pytest.mark.parametrize("seed", range(20))
def test_a_piece_is_refused_exactly_when_applying_would_fail(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = {
        "a": rng.uniform(-6e4, 6e4, 17).astype(np.float16),
        "b": rng.normal(size=(3, 4)).astype(np.float32) * np.float32(1e38),
        "c": rng.normal(size=7).astype(np.float32),
    }
    schema = schema_of(base)
    merged = (rng.normal(size=schema.size) * 10 ** rng.uniform(0, 38.4)).astype(np.float32)
    merged[~np.isfinite(merged)] = 0
    cut = int(rng.integers(1, schema.size))
    reasons = [refused(schema, base, 0, merged[:cut]), refused(schema, base, cut, merged[cut:])]
    if any(reasons):
        with pytest.raises(UsageError) as caught:
            apply(schema, base, merged)
        assert str(caught.value) in reasons
    else:
        apply(schema, base, merged)


def test_a_merge_that_cannot_be_computed_says_so() -> None:
    """Coefficients are the coordinator's word, and a plan may be gone: neither ends the member."""
    plan = planned(NAMES[1])[2]
    plan = msgspec.structs.replace(plan, rule="mean", codec="f32")
    workshop = Workshop()
    merge = Merge(b"p" * 32, 0, (NAMES[0],), (0.0, 1e300), 0)
    with pytest.raises(UsageError, match="not worked on"):
        workshop.merge(merge)
    workshop.see(b"p" * 32, plan)
    with pytest.raises(UsageError, match="not here"):
        workshop.gram(MakeGram(b"p" * 32, 0, (NAMES[0],), False))
    row = encode_part("f32", np.ones(plan.elements, np.float32))
    assert workshop.accept(b"p" * 32, 0, NAMES[0], row) == ""
    with pytest.raises(UsageError):
        workshop.merge(merge)
    workshop.see(b"q" * 32, plan)
    assert "not worked on" in workshop.accept(b"p" * 32, 0, NAMES[0], row)


def test_who_lacks_the_last_update_merges_nothing() -> None:
    """Row 0 of the rules is the last update: without it the products would be of something else."""
    settings = [make_setting(peer, NAMES) for peer in NAMES]
    world = World(7, settings)
    boss = settings[0].coordinator(0)
    node = world.nodes[boss]
    node.machine = Machine(node.setting, Link(merges=False))
    world.run(200, done=world.all_decided)
    assert world.all_decided()
    assert node.decided is not None
    assert node.decided.view == 0
    assert {part.reducer for part in node.decided.parts}.isdisjoint({boss})


# ---- bytes


class Holder:
    """A round that serves the same bytes to all."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def receive(self, sender: bytes, packet: Packet) -> None:
        del sender, packet

    def serve(self, caller: bytes, wanted: Wanted) -> bytes:
        del caller, wanted
        return self._data


def test_a_transfer_that_stalls_is_given_up_and_goes_on_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(1).bytes(600_000)
    wanted = Wanted(bytes(32), bytes(32), 0, True, sha256(data).digest(), 0)

    honest = Post._on_fetch
    stalls: list[int] = []

    async def stalling(post: Post, caller: Caller, asked: Wanted, stream: CallStream) -> int:
        if stalls and post._mesh.id == team_ids[stalls[0]]:
            await stream.send(data[asked.offset : asked.offset + 1000])
            while True:
                await stream.send(b"")
                await trio.sleep(5)
        return await honest(post, caller, asked, stream)

    team_ids: dict[int, bytes] = {}
    monkeypatch.setattr(Post, "_on_fetch", stalling)

    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        team_ids.update({index: chair.member.id for index, chair in enumerate(chairs)})
        for chair in chairs[1:]:
            chair.rounds._post.seat(bytes(32), Holder(data))
        stalls.append(1)
        post = chairs[0].rounds._post
        with trio.fail_after(60):
            assert await post.fetch(bytes(chairs[1].member.id), wanted, len(data)) is None
            assert await post.fetch(bytes(chairs[2].member.id), wanted, len(data)) == data
        # What came stays: the next try goes on behind it.
        stalls.clear()
        before = post.bytes_in
        assert await post.fetch(bytes(chairs[1].member.id), wanted, len(data)) == data
        assert post.bytes_in - before == len(data) - 1000

    play_team(scenario, tmp_path, seed=3)


def test_a_seat_takes_away_its_own_place_alone(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        post = (await team.seat(1)).rounds._post
        first, second = Holder(b""), Holder(b"")
        post.seat(bytes(32), first)
        post.seat(bytes(32), second)
        post.unseat(bytes(32), first)
        assert post._seats[bytes(32)] is second

    play_team(scenario, tmp_path, seed=4)
