"""Members, coordinator and reducers of masked sums: turns, crashes, journals, bytes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
import pytest
from msgspec.structs import replace

from federated.errors import UsageError
from federated.rounds.privacy import boxes, messages
from federated.rounds.privacy.errors import MaskError
from federated.rounds.privacy.gather import Coordinator
from federated.rounds.privacy.messages import Agree, MaskSet, Reveal, Shares
from federated.rounds.privacy.secagg import (
    SPENT_MAX,
    STATE_VERSION,
    Journal,
    Member,
    Publish,
    Ready,
    Send,
    State,
)
from p2p.errors import DecodeError
from tests.helpers import vectors
from tests.helpers.masked_round import Party, words_of

if TYPE_CHECKING:
    from collections.abc import Callable

V = vectors.load("masks_v1.json")


def test_a_box_is_the_vector_and_opens_for_its_reader():
    plan = bytes.fromhex(V["plan"])
    ann, _, cat = ({k: bytes.fromhex(v) for k, v in row.items()} for row in V["members"])
    plain, sealed = (bytes.fromhex(V["box"][name]) for name in ("plain", "box"))
    ways = {"sender": ann["id"], "receiver": cat["id"], "plan": plan}
    made = boxes.seal(
        plain[:66], plain[66:], private=ann["share_private"], public=cat["share_public"], **ways
    )
    assert made == sealed
    found = boxes.open_box(sealed, private=cat["share_private"], public=ann["share_public"], **ways)
    assert found == (plain[:66], plain[66:])
    for size in (0, 147, 149):
        assert not boxes.open_box(
            bytes(size), private=cat["share_private"], public=ann["share_public"], **ways
        )


# ---- steps and turns


class Stage:
    """A party whose first member is taken step by step; the others go along honestly."""

    STEPS = ("begin", "plan", "maskset", "bind", "close", "agree")

    def __init__(self) -> None:
        self.party = Party(9)
        self.me = self.party.ids[0]
        others = self.party.ids[1:]
        self.party.plan()
        self.words = words_of(self.party.updates(), 9)[self.me]
        self.others = others
        self.roster = None
        self.coordinator = None
        self.agreed = {}

    @property
    def member(self) -> Member:
        return self.party.members[self.me]

    def actions(self, step: str) -> list:
        """What the member answers to a step; the world around is moved first."""
        match step:
            case "begin":
                return self.member.begin()
            case "plan":
                if self.roster is None:
                    self.roster = self.party.roster(self.party.ids)
                return self.member.plan(self.roster)
            case "maskset":
                return self.member.maskset(self.hand())
            case "bind":
                return self.member.bind(bytes(32), b"\x01" * 32)
            case "close":
                return self.member.close(self.roster.plan, self.included)
            case _:
                found = []
                for peer, message in self.others_agree().items():
                    found += self.member.agree(peer, message)
                return found

    @property
    def included(self) -> list[bytes]:
        return self.party.ids[:7]

    def hand(self) -> MaskSet:
        if self.coordinator is None:
            self.coordinator = self.party.share(self.roster, self.others)
            self.coordinator.shares(self.me, self.party.last(self.me, Shares))
        return self.coordinator.hand_out()[0].message

    def others_agree(self) -> dict[bytes, Agree]:
        if not self.agreed:
            self.party.hand_out(self.coordinator, self.others)
            words = words_of(self.party.updates(), 9)
            for peer in self.others:
                self.party.masked(peer, words[peer])
            self.agreed = self.party.close(self.roster, self.included, self.others)
        return self.agreed

    def upto(self, step: str) -> None:
        """All steps before `step`, carried out."""
        for earlier in self.STEPS[: self.STEPS.index(step)]:
            self.party.carry(self.me, self.actions(earlier))


def kinds(actions: list) -> list[type]:
    return [type(action.message if isinstance(action, Send) else action) for action in actions]


def test_every_step_journals_before_it_speaks():
    stage, said = Stage(), {}
    for step in Stage.STEPS:
        actions = stage.actions(step)
        stage.party.carry(stage.me, actions)
        said[step] = kinds(actions)
    assert said == {
        "begin": [Journal, Publish],
        "plan": [Journal, Shares],
        "maskset": [Journal, Ready],
        "bind": [Journal],
        "close": [Journal, Agree],
        "agree": [Journal, Reveal],
    }


SPOKEN = {"begin": Publish, "plan": Shares, "close": Agree, "agree": Reveal}


@pytest.mark.parametrize("step", SPOKEN)
def test_a_crash_between_journal_and_send_says_the_same_bytes_later(step: str):
    stage = Stage()
    stage.upto(step)
    actions = stage.actions(step)
    spoken = [action for action in actions if not isinstance(action, Journal)]
    stage.party.carry(stage.me, actions, cut=1)  # durable; nothing has left
    again = stage.party.crash(stage.me)
    assert again[-1] == spoken[-1]
    assert kinds(again)[-1] is SPOKEN[step]
    # And again, for a loss, a second crash, the coordinator's question.
    assert stage.party.crash(stage.me) == again
    if step in ("plan", "close"):
        assert stage.actions(step)[-1] == spoken[-1]


@pytest.mark.parametrize("step", Stage.STEPS[1:])
def test_a_crash_before_the_journal_leaves_the_step_undone(step: str):
    stage = Stage()
    stage.upto(step)
    before = stage.party.journals[stage.me]
    stage.party.carry(stage.me, stage.actions(step), cut=0)
    sent = len(stage.party.sent[stage.me])
    stage.party.members[stage.me] = Member.restore(stage.me, random.Random(9).randbytes, before)
    stage.party.carry(stage.me, stage.actions(step))
    assert len(stage.party.sent[stage.me]) == sent + (step in SPOKEN)
    for later in Stage.STEPS[Stage.STEPS.index(step) + 1 :]:
        stage.party.carry(stage.me, stage.actions(later))
    assert stage.party.last(stage.me, Reveal) is not None


TOO_EARLY: dict[str, Callable[[Stage], object]] = {
    "plan": lambda stage: stage.member.plan(stage.party.roster(stage.party.ids)),
    "maskset": lambda stage: stage.member.maskset(
        MaskSet(bytes(32), bytes(8), (b"",)),
    ),
    "bind": lambda stage: stage.member.bind(bytes(32), bytes(32)),
    "mask": lambda stage: stage.member.mask(),
    "close": lambda stage: stage.member.close(bytes(32), stage.party.ids),
    "agree": lambda stage: stage.member.agree(
        stage.party.ids[1], Agree(bytes(32), bytes(8), bytes(8))
    ),
}


@pytest.mark.parametrize("name", TOO_EARLY)
def test_nothing_is_answered_outside_of_an_attempt(name: str):
    stage = Stage()
    stage.party.carry(stage.me, stage.member.end())
    with pytest.raises(MaskError, match="out_of_turn"):
        TOO_EARLY[name](stage)
    assert stage.member.pending() == []


@pytest.mark.parametrize("name", ["maskset", "bind", "mask", "close", "agree"])
def test_nothing_is_answered_before_the_plan(name: str):
    stage = Stage()
    with pytest.raises(MaskError, match=r"out_of_turn|other_plan"):
        TOO_EARLY[name](stage)


def test_close_and_agree_before_the_maskset_are_refused():
    stage = Stage()
    stage.upto("maskset")
    with pytest.raises(MaskError, match="bad_set"):
        stage.member.close(stage.roster.plan, stage.party.ids)
    with pytest.raises(MaskError, match="bad_set"):
        stage.member.agree(stage.party.ids[1], Agree(stage.roster.plan, bytes(8), bytes(8)))


@pytest.mark.parametrize(
    "included",
    [range(5), [0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 8]],
    ids=["short", "twice", "not in the maskset"],
)
def test_a_set_that_is_none_is_not_agreed_to(included):
    party = Party(9)
    roster = party.plan()
    sharers = party.ids[:7]
    party.hand_out(party.share(roster, sharers), sharers)
    party.masked(party.ids[0], words_of(party.updates(), 9)[party.ids[0]])
    with pytest.raises(MaskError, match="bad_set"):
        party.members[party.ids[0]].close(roster.plan, [party.ids[at] for at in included])
    assert party.last(party.ids[0], Agree) is None


def test_a_set_of_two_owners_is_not_agreed_to():
    party = Party(9, owners=[1, 1, 1, 2, 2, 2, 3, 4, 5])
    roster = party.plan()
    party.hand_out(party.share(roster, party.ids), party.ids)
    words = words_of(party.updates(), 9)
    party.masked(party.ids[0], words[party.ids[0]])
    with pytest.raises(MaskError, match="2 owners"):
        party.members[party.ids[0]].close(roster.plan, party.ids[:6])
    party.carry(party.ids[0], party.members[party.ids[0]].close(roster.plan, party.ids[:7]))


def test_agreements_that_come_before_the_close_count():
    stage = Stage()
    stage.upto("close")
    for peer, message in stage.others_agree().items():
        assert stage.member.agree(peer, message) == []
    actions = stage.actions("close")
    assert kinds(actions) == [Journal, Agree, Journal, Reveal]


def test_each_reveals_for_the_included_a_seed_share_and_for_the_lost_a_key_share():
    stage = Stage()
    for step in Stage.STEPS:
        stage.party.carry(stage.me, stage.actions(step))
    attempt = stage.member._state.attempt
    reveal = stage.party.last(stage.me, Reveal)
    for place, share in enumerate(reveal.shares):
        assert share == attempt.held[place][0 if place < 7 else 1]


def test_a_plan_is_one_an_attempt():
    stage = Stage()
    stage.upto("maskset")
    other = replace(stage.roster, plan=bytes(32))
    with pytest.raises(MaskError, match="other_plan"):
        stage.member.plan(other)


def test_what_is_secret_is_not_printed():
    stage = Stage()
    stage.upto("agree")
    shown = repr(stage.member._state) + repr(stage.member.pending()[0]) + repr(Journal(b"secret"))
    attempt = stage.member._state.attempt
    for secret in (attempt.mask_private, attempt.seed, b"secret"):
        assert repr(secret)[2:-1] not in shown


@pytest.mark.parametrize("data", [b"", b"\x90", b"\xff" * 40, msgspec.msgpack.encode(["a"])])
def test_a_journal_that_is_none_is_refused(data: bytes):
    if data == b"\x90":  # all defaults: a member that has done nothing
        assert Member.restore(bytes(32), random.Random(1).randbytes, data).pending() == []
        return
    with pytest.raises(UsageError):
        Member.restore(bytes(32), random.Random(1).randbytes, data)


def test_a_journal_of_a_later_version_is_refused():
    data = msgspec.msgpack.encode(State(version=STATE_VERSION + 1))
    with pytest.raises(UsageError, match="version"):
        Member.restore(bytes(32), random.Random(1).randbytes, data)


def test_the_list_of_spent_updates_is_bounded():
    member = Member(bytes(32), random.Random(1).randbytes)
    for number in range(SPENT_MAX + 10):
        member._keep(None, spend=number.to_bytes(32, "big"))
    assert len(member._state.spent) == SPENT_MAX
    assert member._state.spent[-1] == (SPENT_MAX + 9).to_bytes(32, "big")


# ---- the coordinator


def test_a_coordinator_goes_on_from_its_state():
    party = Party(9)
    roster = party.plan()
    coordinator = party.share(roster, party.ids[:8])
    assert not coordinator.all_shared
    again = Coordinator.restore(coordinator.state())
    assert again.sharers == tuple(party.ids[:8])
    assert again.hand_out() == coordinator.hand_out()
    assert Coordinator.restore(again.state()).hand_out() == coordinator.hand_out()
    again.close(party.ids[:7])
    with pytest.raises(MaskError, match="closed"):
        Coordinator.restore(again.state()).close(party.ids[:6])
    with pytest.raises(UsageError):
        Coordinator.restore(b"\x90")


def test_boxes_that_do_not_fit_the_roster_are_refused():
    party = Party(9)
    roster = party.plan()
    coordinator = party.share(roster, party.ids[:1])
    good = party.last(party.ids[0], Shares)
    coordinator.shares(party.ids[0], good)  # said again, the same
    swapped = (good.boxes[0], good.boxes[2], good.boxes[1], *good.boxes[3:])
    for bad, reason in (
        (replace(good, boxes=good.boxes[:-1]), "bad_share"),
        (replace(good, boxes=(*good.boxes[1:], b"")), "bad_share"),
        (replace(good, plan=bytes(32)), "other_plan"),
        (replace(good, boxes=swapped), "equivocation"),
    ):
        with pytest.raises(MaskError, match=reason):
            coordinator.shares(party.ids[0], bad)
    with pytest.raises(MaskError, match="bad_roster"):
        coordinator.shares(bytes(32), good)


def test_who_shares_after_the_maskset_is_not_in_it():
    party = Party(9)
    roster = party.plan()
    coordinator = party.share(roster, party.ids[:8])
    handed = coordinator.hand_out()
    late = party.ids[8]
    party.carry(late, party.members[late].plan(roster))
    with pytest.raises(MaskError, match="out_of_turn"):
        coordinator.shares(late, party.last(late, Shares))
    assert coordinator.hand_out() == handed
    with pytest.raises(MaskError, match="bad_set"):
        coordinator.close(party.ids)
    with pytest.raises(MaskError, match="below_threshold"):
        coordinator.close(party.ids[:5])


def test_a_coordinator_counts_agreements_to_its_own_set():
    party = Party(9)
    roster = party.plan()
    coordinator = party.share(roster, party.ids)
    maskset = party.hand_out(coordinator, party.ids)
    with pytest.raises(MaskError, match="bad_set"):
        Coordinator(roster).agree(party.ids[0], Agree(roster.plan, maskset, maskset))
    coordinator.close(party.ids)
    enough = [coordinator.agree(peer, Agree(roster.plan, maskset, maskset)) for peer in party.ids]
    assert enough == [False] * 5 + [True] * 4
    other = Agree(roster.plan, maskset, roster.set_of(party.ids[:6]))
    with pytest.raises(MaskError, match="equivocation"):
        coordinator.agree(party.ids[0], other)


# ---- bytes


def full() -> list[Shares | MaskSet | Agree | Reveal]:
    """The largest messages there are: 64 members."""
    plan, everybody = b"\x07" * 32, b"\xff" * 8
    sealed = (b"", *(bytes([n]) * boxes.BOX_BYTES for n in range(63)))
    shares = tuple(bytes([n]) * 66 for n in range(64))
    return [
        Shares(plan, sealed),
        MaskSet(plan, everybody, sealed),
        Agree(plan, everybody, b"\x0f" * 8),
        Reveal(plan, everybody, b"\x0f" * 8, shares),
    ]


DECODERS = (
    messages.decode_shares_untrusted,
    messages.decode_maskset_untrusted,
    messages.decode_agree_untrusted,
    messages.decode_reveal_untrusted,
)


@pytest.mark.parametrize("kind", range(4), ids=["shares", "maskset", "agree", "reveal"])
def test_the_largest_messages_are_read_and_larger_ones_are_not(kind: int):
    message, decode = full()[kind], DECODERS[kind]
    data = messages.encode(message)
    assert decode(data) == message
    fields = list(msgspec.structs.astuple(message))
    if kind != 2:
        fields[-1] = (*fields[-1], fields[-1][1])
        with pytest.raises(DecodeError):
            decode(msgspec.msgpack.encode(fields))
    for bad in (b"", data[:-1], data + b"\0", bytes(messages.MESSAGE_BYTES_MAX + 1)):
        with pytest.raises(DecodeError):
            decode(bad)
    with pytest.raises(DecodeError):
        decode(msgspec.msgpack.encode([*fields[:-1], fields[-1], 0]))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (0, {"boxes": (b"", b"")}),
        (0, {"boxes": (b"x" * 10,)}),
        (1, {"members": bytes(8)}),
        (1, {"members": b"\x01" + bytes(7)}),
        (2, {"maskset": b"\x0e" + b"\xff" * 7}),
        (3, {"included": b"\xff" * 8, "maskset": b"\x0f" * 8}),
        (3, {"shares": (b"x",) * 64}),
        (3, {"plan": bytes(31)}),
    ],
)
def test_a_message_that_contradicts_itself_is_refused(kind: int, change: dict[str, object]):
    data = msgspec.msgpack.encode(replace(full()[kind], **change))
    with pytest.raises(DecodeError):
        DECODERS[kind](data)


def test_a_message_has_one_encoding():
    data = messages.encode(full()[2])
    longer = b"\xdc\x00\x03" + data[1:]  # an array of three, in the form for many
    assert msgspec.msgpack.decode(longer) == msgspec.msgpack.decode(data)
    with pytest.raises(DecodeError, match="smallest"):
        messages.decode_agree_untrusted(longer)


def test_places_that_the_roster_does_not_have_are_no_set():
    roster = Party(9).plan()
    with pytest.raises(MaskError, match="bad_set"):
        roster.places(b"\x00\x02" + bytes(6))
    assert roster.places(b"\xff\x01" + bytes(6)) == list(range(9))


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (3, 2), (4, 3), (6, 4), (9, 6), (64, 43)])
def test_the_threshold_is_two_thirds_rounded_up(count: int, threshold: int):
    assert Party(count).plan().threshold == threshold
