"""After a masked decision: what `Unmasking` hears, and for which sums nothing is said or opened."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import pytest

from federated.rounds.privacy import messages
from federated.rounds.protocol.masked_member import MaskedMember
from federated.rounds.protocol.orders import Decided, OpenSum, Send, SetsRead, SumOpened, Tell
from federated.rounds.protocol.unmasking import Unmasking
from federated.rounds.protocol.wire import (
    Close,
    MaskAgree,
    MaskRead,
    MaskReveal,
    decode_untrusted,
    packet_of,
    sign,
    unsigned,
)
from p2p.errors import DecodeError
from tests.helpers.masked_world import MaskedWorld, masked_settings
from tests.helpers.rounds_kit import FakeSigner, peers

if TYPE_CHECKING:
    from federated.rounds.privacy.roster import Roster
    from federated.rounds.protocol.checks import MadePlan
    from federated.rounds.protocol.orders import Order
    from federated.rounds.protocol.wire import Message

COUNT = 6
OTHER = b"o" * 32
SHARE = b"\0" + b"s" * 65


class Closed:
    """Six members that have masked; the first one's `Unmasking` hears of a decision.

    Args:
        forgot: whether it has no secrets in this attempt, as after a restart.
    """

    def __init__(self, *, forgot: bool = False) -> None:
        self.world = MaskedWorld(1, masked_settings(COUNT))
        self.names = peers(COUNT)
        closes: list[Close] = []
        send = self.world._send

        def listen(sender: bytes, order: Send) -> None:
            message = decode_untrusted(order.packet.body)
            closes.extend([message] if isinstance(message, Close) else [])
            send(sender, order)

        self.world._send = listen  # type: ignore[method-assign]
        self.world.run(60, done=lambda: bool(closes))
        self.me, *self.others = self.names
        member = self.world.nodes[self.me].machine.member
        assert isinstance(member, MaskedMember)
        assert member.made is not None
        assert member.made.masks is not None
        self.made: MadePlan = member.made
        self.roster: Roster = member.made.masks
        self.orders: list[Order] = []
        self.unmasking = Unmasking(member._setting, self.orders.append)
        plan = self.made.plan
        decided = Decided(0, bytes(32), plan, self.made.hash, plan.parts, (bytes(32),), plan)
        ours = None if forgot else member._attempts[self.made.hash]
        self.unmasking.decided(decided, self.roster, ours)
        self.orders.clear()

    def set_of(self, count: int) -> bytes:
        """The first so many."""
        return self.roster.set_of(self.names[:count])

    def sets(self, maskset: int, included: int, plan: bytes = b"") -> None:
        """The decided sum is of these."""
        self.unmasking.sets(
            SetsRead(plan or self.made.hash, self.set_of(maskset), self.set_of(included))
        )

    def all_say(self, maskset: int, included: int) -> None:
        """All others agree to these sets, and reveal for them."""
        plan, outer, inner = self.made.hash, self.set_of(maskset), self.set_of(included)
        agree = messages.encode(messages.Agree(plan, outer, inner))
        reveal = messages.encode(messages.Reveal(plan, outer, inner, (SHARE,) * maskset))
        for peer in self.others:
            for message in (MaskAgree(*self.head(), agree), MaskReveal(*self.head(), reveal)):
                with suppress(DecodeError):
                    self.unmasking.hear(peer, message)

    def head(self, plan: bytes = b"") -> tuple[bytes, int, int, bytes]:
        made = self.made.plan
        return (made.federation, made.round, made.view, plan or self.made.hash)

    def sent(self) -> list[Message]:
        return [decode_untrusted(one.packet.body) for one in self.orders if isinstance(one, Send)]

    def sent_to(self, peer: bytes) -> bool:
        return any(isinstance(one, Send) and one.to == peer for one in self.orders)

    def opens(self) -> bool:
        return any(isinstance(one, OpenSum) for one in self.orders)


@pytest.mark.parametrize("forgot", [False, True])
def test_control_a_sum_of_enough_members_is_opened(forgot: bool) -> None:
    closed = Closed(forgot=forgot)
    closed.sets(6, 4)
    closed.all_say(6, 4)
    assert closed.opens()
    assert any(isinstance(one, MaskReveal) for one in closed.sent()) is not forgot


@pytest.mark.parametrize(
    ("maskset", "included", "why"),
    [(6, 3, "at least 4"), (5, 6, "not in the maskset")],
    ids=["short", "not within"],
)
@pytest.mark.parametrize("forgot", [False, True])
def test_a_set_that_bares_somebody_is_neither_agreed_to_nor_opened(
    maskset: int, included: int, why: str, forgot: bool
) -> None:
    """Not by who has no secrets in it either: liars could reveal enough for it to be read here."""
    closed = Closed(forgot=forgot)
    closed.sets(maskset, included)
    closed.all_say(maskset, included)
    assert not closed.sent()
    assert not closed.opens()
    (told,) = closed.orders
    assert isinstance(told, Tell)
    assert told.kind == "masks.failed"
    assert why in told.detail
    assert closed.unmasking.unread is not None
    assert why in closed.unmasking.unread.reason


def test_nothing_is_said_of_a_maskset_that_we_did_not_share_in() -> None:
    """Our shares are of secrets among others: revealed for this set, they would be for that one."""
    closed = Closed()
    closed.sets(5, 4)
    closed.all_say(5, 4)
    assert not closed.sent()


def test_sets_and_secrets_of_another_plan_are_nothing_to_us() -> None:
    closed = Closed()
    closed.sets(6, 4, plan=OTHER)
    assert not closed.orders
    closed.sets(6, 6)
    assert closed.sent()
    assert not closed.unmasking.opened(SumOpened(OTHER, secrets=(bytes(32),) * 6))
    assert not closed.unmasking.read


def test_who_reads_another_plans_sum_still_hears_of_ours() -> None:
    closed = Closed()
    closed.sets(6, 6)
    other, ours = closed.others[:2]
    closed.unmasking.hear(other, MaskRead(*closed.head(OTHER), ()))
    closed.unmasking.hear(ours, MaskRead(*closed.head(), ()))
    closed.orders.clear()
    closed.unmasking.on_time(0.0)
    assert closed.sent_to(other)
    assert not closed.sent_to(ours)


@pytest.mark.parametrize("plan", [b"", OTHER], ids=["control", "other"])
def test_shares_of_another_plans_sum_are_not_taken_for_ours(plan: bytes) -> None:
    closed = Closed(forgot=True)
    closed.sets(6, 6)
    everybody = closed.set_of(6)
    shares = messages.Reveal(closed.made.hash, everybody, everybody, (SHARE,) * 6)
    for peer in closed.others:
        closed.unmasking.hear(peer, MaskReveal(*closed.head(plan), messages.encode(shares)))
    assert closed.opens() is (plan != OTHER)


def test_a_number_that_no_share_has_is_counted_as_none_and_held_against_its_giver() -> None:
    closed = Closed(forgot=True)
    closed.sets(6, 6)
    everybody = closed.set_of(6)
    for at, peer in enumerate(closed.others):
        given = (b"\xff" * 66 if at < 2 else SHARE, *(SHARE,) * 5)
        reveal = messages.Reveal(closed.made.hash, everybody, everybody, given)
        closed.unmasking.hear(peer, MaskReveal(*closed.head(), messages.encode(reveal)))
    found = closed.unmasking.unread
    assert found is not None
    assert closed.me[:4].hex() not in found.reason
    assert set(found.members) == set(closed.others[:2])
    assert not closed.opens()


def test_who_spoils_a_sum_is_told_once_whoever_finds_it_first() -> None:
    """The last reveal comes while what is here without it is looked through, or just after."""
    closed = Closed()
    closed.sets(6, 6)
    spoiler, other = closed.others[:2]
    plan, unmasking = closed.made.hash, closed.unmasking
    closed.all_say(6, 6)
    assert not unmasking.opened(SumOpened(plan, failure="wrong"))
    assert unmasking.unexamined is not None
    assert not unmasking.news()
    unmasking.examined((spoiler,))
    assert [(one.kind, one.peer) for one in unmasking.news()] == [("member.spoils_sum", spoiler)]
    closed.orders.clear()
    assert not unmasking.opened(SumOpened(plan, failure="wrong", spoilt=(spoiler, other)))
    (told,) = [one for one in closed.orders if isinstance(one, Tell)]
    assert (told.kind, told.peer) == ("member.spoils_sum", other)
    assert not unmasking.news()
    unmasking.examined((closed.me,))
    assert not unmasking.news(), "what was found among more shares stays"


def test_of_a_sum_that_is_read_there_is_no_news() -> None:
    closed = Closed()
    assert not closed.unmasking.news()
    closed.sets(6, 6)
    closed.all_say(6, 6)
    assert not closed.unmasking.opened(SumOpened(closed.made.hash, failure="wrong"))
    assert closed.unmasking.opened(SumOpened(closed.made.hash, secrets=(bytes(32),) * 6))
    closed.unmasking.examined((closed.others[0],))
    assert not closed.unmasking.news()


# ---- strangers


def test_a_stranger_is_not_heard_and_told_nothing() -> None:
    """The secrets that take the masks off are for members; before that, it would fill memory."""
    settings = masked_settings(COUNT)
    world = MaskedWorld(2, settings)
    victim, other = (settings[at].me for at in (0, 1))
    stranger = b"x" * 32
    machine = world.nodes[victim].machine
    member = machine.member
    assert isinstance(member, MaskedMember)

    def say(sender: bytes, plan: bytes) -> list[bytes]:
        """Whom the victim answers."""
        setting = settings[0]
        head = (setting.federation, setting.number, 0, plan)
        agree = messages.encode(messages.Agree(plan, b"\x3f" + bytes(7), b"\x3f" + bytes(7)))
        agreed = sign(FakeSigner(sender), sender, MaskAgree(*head, agree))
        for packet in (packet_of(agreed), unsigned(MaskRead(*head, ()))):
            with suppress(DecodeError):
                machine.receive(world.now, sender, packet)
        return [one.to for one in machine.take() if isinstance(one, Send)]

    say(stranger, OTHER)
    assert not member.unmasking._early
    say(other, OTHER)
    assert len(member.unmasking._early) == 2
    world.run(100, done=world.all_decided)
    assert member.made is not None
    assert stranger not in say(stranger, member.made.hash)
    assert stranger not in member.unmasking._reading
    assert other in say(other, member.made.hash)


# ---- what is forgotten


def holds(thing: object, secret: bytes, depth: int = 12) -> bool:
    """Whether a secret is anywhere in an object's state."""
    if isinstance(thing, bytes):
        return secret in thing
    if depth == 0 or thing is None or isinstance(thing, (int, float, str)):
        return False
    if isinstance(thing, dict):
        inner = [*thing, *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset)):
        inner = list(thing)
    elif isinstance(thing, msgspec.Struct):
        inner = [getattr(thing, name) for name in thing.__struct_fields__]
    else:
        inner = list(getattr(thing, "__dict__", {}).values())
    return any(holds(one, secret, depth - 1) for one in inner)


def test_the_secrets_of_attempts_that_were_not_decided_are_erased() -> None:
    """One that was masked in an earlier view, and one that was begun after the decided one."""
    settings = masked_settings(COUNT)
    world = MaskedWorld(3, settings)
    leader = settings[0].coordinator(0)
    members = [one.me for one in settings if one.me != leader]
    seeds: dict[bytes, list[bytes]] = {peer: [] for peer in members}

    def note() -> None:
        for peer in members:
            member = world.nodes[peer].machine.member
            assert isinstance(member, MaskedMember)
            for secrets, _ in member._attempts.values():
                attempt = secrets._state.attempt
                assert attempt is not None
                if attempt.seed not in seeds[peer]:
                    seeds[peer].append(attempt.seed)

    def strike(peer: bytes, told: Tell) -> None:
        if told.kind == "round.merge" and peer == leader:
            world.kill(leader)  # all have masked; the next view begins anew
        note()

    world.on_tell = strike
    world.run(300, done=world.all_decided)
    assert world.all_decided()
    for peer in members:
        member = world.nodes[peer].machine.member
        assert isinstance(member, MaskedMember)
        old, *_, decided = seeds[peer]
        assert old != decided
        assert holds(member, decided), "the control: it is found where it is"
        assert not holds(member, old)


def test_keys_of_a_view_after_the_decided_one_are_erased() -> None:
    settings = masked_settings(COUNT)
    world = MaskedWorld(4, settings)
    world.run(100, done=world.all_decided)
    member = world.nodes[settings[0].me].machine.member
    assert isinstance(member, MaskedMember)
    # As if a later view had begun when the decision came.
    late = MaskedWorld(5, settings)
    behind = late.nodes[settings[0].me].machine.member
    assert isinstance(behind, MaskedMember)
    behind._masks.begin()
    begun = behind._masks._state.attempt
    assert begun is not None
    behind._decided = member._decided
    assert world.nodes[settings[0].me].decided is not None
    behind._give(world.nodes[settings[0].me].decided)
    assert not holds(behind, begun.seed)
    assert not holds(behind, begun.mask_private)
