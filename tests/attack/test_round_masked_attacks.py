"""Coordinators and members of masked rounds that lie: nobody is bared, no false sum counts.

The liars here are of the round: they sign what they say. What a lie about shares, sets and keys can
do by itself is in test_round_masks.py; here it goes through whole rounds and their views.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec
import pytest

from federated.rounds.masked_workshop import MaskedWorkshop
from federated.rounds.privacy import messages
from federated.rounds.protocol.checks import check_plan
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.orders import Decided, Encoded, Send, SetsRead
from federated.rounds.protocol.unmasking import Unmasking
from federated.rounds.protocol.wire import (
    Apply,
    Close,
    Commit,
    Keys,
    MaskAgree,
    MaskedPlan,
    MaskMembers,
    MaskRead,
    MaskReveal,
    MaskShares,
    PartOf,
    Plan,
    decode_untrusted,
    packet_of,
    unsigned,
)
from p2p.errors import DecodeError
from tests.helpers.masked_lies import lying, member_of
from tests.helpers.masked_world import MASKED, MaskedWorld, masked_settings, sum_of
from tests.helpers.rounds_kit import POLICY, Faults, by, make_setting, peers

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.rounds.protocol.checks import MadePlan, Setting
    from federated.rounds.protocol.orders import Merge, Merged, Tell
    from federated.rounds.protocol.wire import Message

SMALL_ORDER = bytes(32)


def heard(world: MaskedWorld) -> list[tuple[bytes, bytes, Message]]:
    """Everything that is sent in this world from now on: who, to whom, what."""
    found: list[tuple[bytes, bytes, Message]] = []
    send = world._send

    def listen(sender: bytes, order: Send) -> None:
        found.append((sender, order.to, decode_untrusted(order.packet.body)))
        send(sender, order)

    world._send = listen  # type: ignore[method-assign]
    return found


def one_set_a_plan(said: list[tuple[bytes, bytes, Message]]) -> dict[bytes, set[bytes]]:
    """The sets for which shares were revealed, by plan: never two, so never both of a member."""
    sets: dict[bytes, set[bytes]] = {}
    for _, _, message in said:
        if isinstance(message, MaskReveal):
            reveal = messages.decode_reveal_untrusted(message.body)
            assert reveal.plan == message.plan
            sets.setdefault(message.plan, set()).add(reveal.included)
    assert all(len(found) == 1 for found in sets.values())
    return sets


def planned(count: int = 6, seed: int = 1) -> tuple[Setting, MaskedPlan, bytes]:
    """A member's setting, an honest plan of its round, and whose it is."""
    settings = masked_settings(count)
    world = MaskedWorld(seed, settings)
    world.run(100, done=world.all_decided)
    node = world.nodes[settings[0].me]
    assert node.decided is not None
    assert isinstance(node.decided.plan, MaskedPlan)
    return settings[0], node.decided.plan, settings[0].coordinator(0)


# ---- plans


def swapped(plan: MaskedPlan) -> MaskedPlan:
    first, second, *rest = plan.keys
    return msgspec.structs.replace(plan, keys=(second, first, *rest))


def forged(plan: MaskedPlan, key: bytes) -> MaskedPlan:
    """The coordinator puts a key of its own in a member's place."""
    victim = plan.keys[0]
    keys = decode_untrusted(victim.body)
    assert isinstance(keys, Keys)
    liar = by(plan.parts[0].reducer, msgspec.structs.replace(keys, mask_key=key))
    own = msgspec.structs.replace(liar, signer=victim.signer)
    return msgspec.structs.replace(plan, keys=(own, *plan.keys[1:]))


def elsewhere(plan: MaskedPlan, **where: object) -> MaskedPlan:
    """Keys that a member really signed, in another attempt, round or federation."""
    signer = plan.keys[0].signer
    keys = decode_untrusted(plan.keys[0].body)
    assert isinstance(keys, Keys)
    old = by(signer, msgspec.structs.replace(keys, **where))
    return msgspec.structs.replace(plan, keys=(old, *plan.keys[1:]))


def no_keys(plan: MaskedPlan) -> MaskedPlan:
    """Something else that the member signed."""
    return msgspec.structs.replace(plan, keys=(plan.joins[0], *plan.keys[1:]))


def equal_keys(plan: MaskedPlan) -> MaskedPlan:
    """A member of the liar's has another member's key: what opens for one opens for both."""
    first, second = (decode_untrusted(one.body) for one in plan.keys[:2])
    assert isinstance(first, Keys)
    assert isinstance(second, Keys)
    same = by(plan.keys[1].signer, msgspec.structs.replace(second, mask_key=first.mask_key))
    return msgspec.structs.replace(plan, keys=(plan.keys[0], same, *plan.keys[2:]))


def halves(plan: MaskedPlan) -> MaskedPlan:
    """A sum in parts could be opened for other sets, part by part."""
    (part,) = plan.parts
    pieces = (
        PartOf(0, 3, part.reducer, part.standby),
        PartOf(3, part.count - 3, part.standby, part.reducer),
    )
    return msgspec.structs.replace(plan, parts=pieces)


def few(plan: MaskedPlan) -> MaskedPlan:
    """A roster in which two thirds are fewer than two thirds of all."""
    return msgspec.structs.replace(plan, joins=plan.joins[:3], keys=plan.keys[:3])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (swapped, "somebody else's keys"),
        (lambda plan: forged(plan, b"k" * 32), "did not sign"),
        (lambda plan: elsewhere(plan, view=plan.view + 1), "another view"),
        (lambda plan: elsewhere(plan, round=plan.round + 1), "another view"),
        (lambda plan: elsewhere(plan, federation=bytes(32)), "another view"),
        (no_keys, "somebody else's keys"),
        (equal_keys, "comes twice"),
        (halves, "in parts"),
        (few, "few"),
        (lambda plan: msgspec.structs.replace(plan, keys=plan.keys[:-1]), "everybody's keys"),
    ],
    ids=[
        "swapped", "forged", "other view", "other round", "other federation", "no keys", "equal",
        "parts", "few", "missing",
    ],
)  # fmt: skip
def test_a_plan_that_hides_less_is_refused(
    change: Callable[[MaskedPlan], MaskedPlan], why: str
) -> None:
    setting, plan, leader = planned()
    check_plan(setting, by(leader, plan))
    with pytest.raises(DecodeError, match=why):
        check_plan(setting, by(leader, change(plan)))


@pytest.mark.parametrize("count", [5, 6])
def test_a_plan_of_fewer_than_have_to_agree_is_refused_by_whatever_quorum(count: int) -> None:
    """A policy may let half of nine members go on; a sum of theirs takes six, two thirds."""
    policy = msgspec.structs.replace(MASKED, quorum=(51, 100))
    settings = masked_settings(9, policy=policy)
    world = MaskedWorld(1, settings)
    world.run(100, done=world.all_decided)
    decided = world.nodes[settings[0].me].decided
    assert decided is not None
    assert isinstance(decided.plan, MaskedPlan)
    plan = msgspec.structs.replace(
        decided.plan, joins=decided.plan.joins[:count], keys=decided.plan.keys[:count]
    )
    among = {one.signer for one in plan.joins}
    first = PartOf(0, plan.elements, *sorted(among)[:2])
    signed = by(settings[0].coordinator(0), msgspec.structs.replace(plan, parts=(first,)))
    if count == 6:
        check_plan(settings[0], signed)
        return
    with pytest.raises(DecodeError, match="fewer members than have to agree"):
        check_plan(settings[0], signed)


def test_masked_rounds_take_no_plain_plans_and_plain_ones_no_masked_plans() -> None:
    setting, plan, leader = planned()
    fields = {name: getattr(plan, name) for name in Plan.__struct_fields__}
    with pytest.raises(DecodeError, match="keys"):
        check_plan(setting, by(leader, Plan(**fields)))
    plain = make_setting(setting.me, setting.circle, elements=plan.elements)
    fields |= {"policy": POLICY.digest(), "codec": POLICY.codec}
    check_plan(plain, by(leader, Plan(**fields)))
    with pytest.raises(DecodeError, match="keys"):
        check_plan(plain, by(leader, MaskedPlan(**fields, keys=plan.keys)))


def test_owners_are_counted_again_on_the_roster() -> None:
    names = peers(6)
    owners = {peer: bytes([index]) * 32 for index, peer in enumerate(names)}
    _, plan, leader = planned()
    for shared in (owners | {names[1]: owners[names[0]]}, dict.fromkeys(names, b"o" * 32)):
        setting = make_setting(
            names[0], names, policy=MASKED, elements=plan.elements, owners=shared
        )
        with pytest.raises(DecodeError, match=r"owners|a third"):
            check_plan(setting, by(leader, plan))


@pytest.mark.parametrize("trick", ["small order", "copied"])
def test_keys_that_nobody_can_use_leave_out_who_brought_them(trick: str) -> None:
    settings = masked_settings(6)
    world = MaskedWorld(4, settings)
    liar = next(one.me for one in settings if one.me != settings[0].coordinator(0))
    send = world._send
    seen: list[bytes] = []

    def lie(sender: bytes, order: Send) -> None:
        message = decode_untrusted(order.packet.body)
        if isinstance(message, Keys) and sender != liar:
            seen.append(message.mask_key)
        if isinstance(message, Keys) and sender == liar:
            key = SMALL_ORDER if trick == "small order" else seen[0] if seen else SMALL_ORDER
            changed = msgspec.structs.replace(message, mask_key=key)
            order = Send(order.to, packet_of(by(liar, changed)))
            world.at(1.0, lambda: send(sender, order))  # when the copied one is there
            return
        send(sender, order)

    world._send = lie  # type: ignore[method-assign]
    world.run(500, done=world.all_decided)
    assert world.all_decided()
    decided = world.nodes[settings[0].me].decided
    assert decided is not None
    assert liar not in [one.signer for one in decided.plan.joins]


# ---- the set


def test_nothing_is_revealed_before_the_decision() -> None:
    for seed in range(4):
        settings = masked_settings(6)
        world = MaskedWorld(seed, settings)
        said = heard(world)
        world.run(30, done=world.all_decided)
        kinds = [type(message) for _, _, message in said]
        first = min(kinds.index(MaskAgree), kinds.index(MaskReveal))
        assert Apply in kinds[:first]
        assert len({one.signer for one in proof(said[:first]).confirms}) >= 4
        assert len(one_set_a_plan(said)) == 1


def proof(said: list[tuple[bytes, bytes, Message]]) -> Apply:
    return next(message for _, _, message in said if isinstance(message, Apply))


def test_a_coordinator_with_two_sets_gets_shares_for_one_at_most() -> None:
    """It wants a member's seed with the one set and its mask key with the other."""
    for seed in range(5):
        settings = masked_settings(7)
        world = MaskedWorld(seed, settings)
        liar = settings[0].coordinator(0)
        names = [one.me for one in settings]
        victim = next(peer for peer in names if peer != liar)
        fooled = [peer for peer in names if peer not in {liar, victim}][:3]
        send = world._send

        def lie(sender: bytes, order: Send, liar=liar, victim=victim, fooled=fooled, send=send):  # type: ignore[no-untyped-def]
            message = decode_untrusted(order.packet.body)
            if isinstance(message, Close) and sender == liar and message.view == 0:
                rest = tuple(peer for peer in message.included if peer != victim)
                weights = message.weights[: len(rest)]
                changed = msgspec.structs.replace(message, included=rest, weights=weights)
                other = Send(order.to, packet_of(by(liar, changed)))
                if order.to not in fooled:
                    send(sender, order)
                send(sender, other)
                return
            send(sender, order)

        world._send = lie  # type: ignore[method-assign]
        said = heard(world)
        world.run(60)
        assert len(one_set_a_plan(said)) <= 1
        assert any(
            tell.kind == "evidence" and tell.peer == liar
            for node in world.nodes.values()
            for tell in node.told
        )


@pytest.mark.parametrize("seed", range(6))
def test_two_decided_sums_of_one_round_are_not_both_opened(seed: int) -> None:
    """Two sums of which one is without a member would bare it: their difference is its numbers.

    Here the coordinators, who work together, have it both ways: the first result is decided among
    some members, the second one among the others, by votes that liars forge. Each honest member
    reveals for what it saw decided, once, so neither set has enough of them.
    """
    settings = masked_settings(9)
    names = [one.me for one in settings]
    world = MaskedWorld(seed, settings)
    said = heard(world)
    world.run(60, done=lambda: any(isinstance(one, Close) for _, _, one in said))
    made = world.nodes[names[0]].machine.member.made
    assert made is not None
    assert made.masks is not None
    victim = names[seed]
    every = made.masks.set_of(names)
    without = made.masks.set_of(peer for peer in names if peer != victim)
    revealed: dict[bytes, set[bytes]] = {every: set(), without: set()}
    for place, peer in enumerate(names):
        machine = world.nodes[peer].machine
        attempt = machine.member._attempts[made.hash]  # type: ignore[attr-defined]
        for wanted in (every, without) if place % 2 else (without, every):
            shown: list[object] = []
            one = Unmasking(machine._setting, shown.append)
            one.decided(_decision(made), made.masks, attempt)
            one.sets(SetsRead(made.hash, every, wanted))
            agree = messages.encode(messages.Agree(made.hash, every, wanted))
            for other in names:
                if other != peer:
                    with suppress(DecodeError):
                        one.hear(other, MaskAgree(*_head(made), agree))
            if any(isinstance(decode_untrusted(order.packet.body), MaskReveal)
                   for order in shown if isinstance(order, Send)):  # fmt: skip
                revealed[wanted].add(peer)
    # Five by four of nine at most: each once, though it was told that all agree to both.
    assert not revealed[every] & revealed[without]
    assert max(len(found) for found in revealed.values()) < made.masks.threshold


def _head(made: MadePlan) -> tuple[bytes, int, int, bytes]:
    return (made.plan.federation, made.plan.round, made.plan.view, made.hash)


def _decision(made: MadePlan) -> Decided:
    return Decided(0, bytes(32), made.plan, made.hash, made.plan.parts, (bytes(32),), made.plan)


def test_a_sum_of_a_set_that_bares_somebody_is_not_voted_for() -> None:
    """The reducer names fewer members than have to agree, or some that have not shared."""
    shop = MaskedWorkshop(6)
    part = PartOf(0, 1, bytes(32), bytes(32))

    def sets(shared: int, inside: int) -> bytes:
        return shared.to_bytes(8, "little") + inside.to_bytes(8, "little") + bytes(8)

    assert not shop.unfit_merged(b"p" * 32, "mfix64", part, sets(0b111111, 0b001111))
    right = sets(0b111111, 0b001111)
    for wrong in (
        sets(0b111111, 0b000111), sets(0b011111, 0b111111), bytes(8), bytes(24), right[:-1],
        right + bytes(8),
    ):  # fmt: skip
        assert shop.unfit_merged(b"p" * 32, "mfix64", part, wrong)
    settings = masked_settings(6)
    world = MaskedWorld(1, settings)
    liar = settings[0].coordinator(0)
    merge = world.shops[liar].merge

    def short(order: Merge) -> Merged:
        done = merge(order)
        data = world.shops[liar].merged.pop(done.sha256)
        data = data[:8] + sets(0, 0b000111)[8:16] + data[16:]
        world.shops[liar].merged[sha256(data).digest()] = data
        return replace(done, sha256=sha256(data).digest())

    world.shops[liar].merge = short  # type: ignore[method-assign, assignment]
    said = heard(world)
    world.run(60)
    bared = (0b000111).to_bytes(8, "little")
    assert all(bared not in found for found in one_set_a_plan(said).values())


def test_who_shared_no_secrets_commits_to_nothing() -> None:
    """Its words in the sum would make it one that nobody may open: the view would be lost."""
    settings = masked_settings(6)
    leader = settings[0].coordinator(0)
    liar = next(one.me for one in settings if one.me != leader)
    world = MaskedWorld(6, settings)
    words = bytes(8 * settings[0].elements)

    def bring() -> None:
        """It has words for whoever merges them, and says so."""
        made = world.nodes[liar].machine.member.made
        assert made is not None
        shop = world.shops[liar]
        shop.see(made.hash, made.plan)
        shop._at(made.hash).own[0] = words
        for one in settings:
            world.nodes[liar].serving[made.hash, 0] = one.me
            commit = Commit(*_head(made), (sha256(words).digest(),), 0.0, 1.0, {})
            world._send(liar, Send(one.me, packet_of(by(liar, commit))))

    def strike(peer: bytes, told: Tell) -> None:
        if told.kind == "round.committing" and peer == leader:
            bring()

    send = world._send

    def lie(sender: bytes, order: Send) -> None:
        if sender != liar or not isinstance(decode_untrusted(order.packet.body), MaskShares):
            send(sender, order)

    world._send = lie  # type: ignore[method-assign]
    world.on_tell = strike
    world.run(300, done=world.all_decided)
    for one in settings:
        decided = world.nodes[one.me].decided
        assert decided is not None
        assert decided.view == 0
        assert world.total(one.me) == sum_of([each.me for each in settings if each.me != liar])
    fates = {one.peer: one for one in world.nodes[leader].machine.member.statuses}
    assert (fates[liar].status, fates[liar].reason[:25]) == ("lost", "shared no secrets in time")


def test_a_set_that_is_too_small_to_be_opened_is_never_closed() -> None:
    """A quorum of seven that joined, five, would do for a plain sum; six of nine have to agree."""
    settings = masked_settings(9)
    leader = settings[0].coordinator(0)
    world = MaskedWorld(7, settings)
    said = heard(world)
    lost = [one.me for one in settings if one.me != leader][:4]
    for peer in lost[:2]:
        world.kill(peer)

    def strike(_: bytes, told: Tell) -> None:
        if told.kind == "round.committing":
            for peer in lost[2:]:
                world.kill(peer)

    world.on_tell = strike
    world.run(200, done=world.all_decided)
    kinds = {type(message) for _, _, message in said}
    assert Commit in kinds
    assert Close not in kinds
    assert any("below_quorum" in reason for reason in world.nodes[leader].ended)


def test_who_restarts_shares_no_keys_in_that_round() -> None:
    settings = masked_settings(6)
    world = MaskedWorld(3, settings)
    leader = settings[0].coordinator(0)
    member = next(one.me for one in settings if one.me != leader)
    said = heard(world)

    def strike(_: bytes, told: Tell) -> None:
        if told.kind == "round.merge" and world.on_tell is not None:
            world.on_tell = None
            world.kill(member)
            world.kill(leader)
            world.restart(member)

    world.on_tell = strike
    world.run(300)
    assert world.counts["restarted"]
    keys = [
        message for sender, _, message in said if isinstance(message, Keys) and sender == member
    ]
    assert {message.view for message in keys} == {0}
    one_set_a_plan(said)


# ---- agreements, secrets


def test_secrets_that_nobody_signed_open_nothing() -> None:
    settings = masked_settings(6)
    world = MaskedWorld(3, settings)
    liar = settings[0].me
    send = world._send

    def lie(sender: bytes, order: Send) -> None:
        """It is the first to say that it can read, by secrets that it made up."""
        message = decode_untrusted(order.packet.body)
        if isinstance(message, MaskAgree | MaskReveal | MaskRead) and sender == liar:
            head = (message.federation, message.round, message.view, message.plan)
            order = Send(order.to, unsigned(MaskRead(*head, (bytes(range(32)),) * 6)))
        send(sender, order)

    world._send = lie  # type: ignore[method-assign]
    world.run(100, done=world.all_decided)
    for one in settings:
        assert world.total(one.me) == sum_of([each.me for each in settings])


def test_only_the_coordinator_says_who_has_shared() -> None:
    """One set is masked for in an attempt: who came first with another one would leave us out."""
    settings = masked_settings(6)
    leader = settings[0].coordinator(0)
    victim, liar = [one.me for one in settings if one.me != leader][:2]
    world = MaskedWorld(5, settings)
    handed: list[MaskMembers] = []

    def hold(_: bytes, to: bytes, said: Message) -> Message:
        if isinstance(said, MaskMembers) and to == victim:
            handed.append(said)
        return said

    lying(world, hold)
    world.run(60, done=lambda: bool(handed))
    machine, member = world.nodes[victim].machine, member_of(world, victim)
    assert not member._maskset
    for sender, taken in ((liar, False), (leader, True)):
        machine.receive(world.now, sender, packet_of(by(sender, handed[0])))
        assert bool(member._maskset) is taken


def test_words_of_an_earlier_plan_are_not_bound_to_this_ones_mask() -> None:
    settings = masked_settings(6)
    world = MaskedWorld(5, settings)
    member = member_of(world, settings[1].me)
    world.run(60, done=lambda: bool(member._maskset))
    made = member.made
    assert made is not None
    for plan, bound in ((b"o" * 32, False), (made.hash, True)):
        member.encoded(Encoded(plan, bytes(32), b"w" * 32))
        attempt = member._masks._state.attempt
        assert attempt is not None
        assert (attempt.words == b"w" * 32) is bound


def test_agreements_without_a_decision_make_nobody_reveal() -> None:
    """All others say, signed, that they agree; but nothing is decided."""
    settings = masked_settings(6)
    world = MaskedWorld(2, settings)
    victim = settings[0].me
    said = heard(world)
    world.run(30, done=lambda: any(isinstance(one, Close) for _, _, one in said))
    made = world.nodes[victim].machine.member.made
    assert made is not None
    assert made.masks is not None
    every = made.masks.set_of(made.roster)
    agree = messages.encode(messages.Agree(made.hash, every, every))
    for one in settings[1:]:
        packet = packet_of(by(one.me, MaskAgree(*_head(made), agree)))
        world.nodes[victim].machine.receive(world.now, one.me, packet)
    orders = world.nodes[victim].machine.take()
    kinds = [type(decode_untrusted(one.packet.body)) for one in orders if isinstance(one, Send)]
    assert MaskReveal not in kinds
    assert MaskAgree not in kinds
    forged_one = packet_of(by(settings[2].me, MaskAgree(*_head(made), agree)))
    with pytest.raises(DecodeError, match="did not sign"):
        world.nodes[victim].machine.receive(world.now, settings[1].me, forged_one)


def test_masks_in_a_plain_round_are_no_messages() -> None:
    names = peers(4)
    machine = Machine(make_setting(names[0], names))
    machine.start(0.0)
    machine.take()
    setting = make_setting(names[0], names)
    head = (setting.federation, setting.number, 0, bytes(32))
    machine.receive(
        0.0, names[1], packet_of(by(names[1], Keys(*head, b"a" * 32, b"b" * 32, bytes(32))))
    )
    machine.receive(0.0, names[1], unsigned(MaskReveal(*head, b"")))
    assert not machine.take()


def test_over_all_views_and_faults_one_set_of_a_round_is_opened() -> None:
    views = set()
    for seed in range(12):
        settings = masked_settings(6)
        faults = Faults(loss=0.2, repeat=0.3, delay_s=0.5, fetch_loss=0.2)
        world = MaskedWorld(seed, settings, faults)
        said = heard(world)
        for one in settings[:2]:
            world.at(world.rng.random() * 20, partial(world.kill, one.me))
        world.run(300, done=world.all_decided)
        assert len(one_set_a_plan(said)) <= 1
        views |= {message.view for _, _, message in said if isinstance(message, MaskReveal)}
    assert len(views) > 1, "no later view was ever opened"


def test_a_sum_under_another_set_than_was_handed_out_gets_no_vote() -> None:
    """Decided, nobody could ever read it, and the round would be over."""
    world = MaskedWorld(3, masked_settings(5))
    boss = world.nodes[peers(5)[0]].setting.coordinator(0)
    shop = world.shops[boss]
    honest = shop.merge

    def lie(wanted: Merge) -> Merged:
        made = honest(wanted)
        data = shop.merged.pop(made.sha256)
        first = int.from_bytes(data[:8], "little")
        # One more than shared: a place that nobody has.
        other = (first | 1 << 5).to_bytes(8, "little") + data[8:]
        digest = sha256(other).digest()
        shop.merged[digest] = other
        return replace(made, sha256=digest)

    shop.merge = lie  # type: ignore[method-assign, assignment]
    world.run(600, done=world.all_decided)
    assert world.all_decided()
    decided = world.nodes[boss].decided
    assert decided is not None
    assert decided.view > 0
    assert world.total(peers(5)[0]) == sum_of(peers(5))
