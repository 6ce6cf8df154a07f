"""Whoever coordinates, carries or joins a masked sum with bad intent learns nobody's words.

Each test plays one attack on honest members; what they must not do is asserted on everything that
ever left them (`Party.sent`).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace

from federated.rounds.privacy import boxes, fixed, masks, shamir
from federated.rounds.privacy.errors import MaskError
from federated.rounds.privacy.gather import Opening
from federated.rounds.privacy.messages import Agree, MaskSet, Reveal, Shares
from federated.rounds.privacy.roster import Seat, make_roster
from tests.helpers.masked_round import SIZE, Party, opened, plain_sum, words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.rounds.privacy.roster import Roster

pytestmark = pytest.mark.attack

SMALL_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


def never_both(party: Party) -> None:
    """The iron rule: in no plan has a member revealed two kinds of shares of one member."""
    kinds: dict[tuple[bytes, bytes, int], set[bool]] = defaultdict(set)
    for peer, said in party.sent.items():
        for message in said:
            if isinstance(message, Reveal):
                inside = int.from_bytes(message.included, "little")
                everybody = int.from_bytes(message.maskset, "little")
                for place in range(64):
                    if everybody >> place & 1:
                        kinds[peer, message.plan, place].add(bool(inside >> place & 1))
    assert all(len(kind) == 1 for kind in kinds.values())


class Closed:
    """Nine members that have masked; the set of the first seven is closed and agreed to."""

    def __init__(self, count: int = 9, *, reveal: bool = True) -> None:
        self.party = Party(count)
        self.roster = self.party.plan()
        coordinator = self.party.share(self.roster, self.party.ids)
        self.maskset = self.party.hand_out(coordinator, self.party.ids)
        self.words = words_of(self.party.updates(), count)
        self.masked = {peer: self.party.masked(peer, self.words[peer]) for peer in self.party.ids}
        self.included = self.party.ids[:7]
        self.agreed = self.party.close(self.roster, self.included, self.party.ids)
        self.revealed = self.party.spread(self.agreed, self.party.ids) if reveal else {}

    def agreement(self, included: Sequence[bytes]) -> Agree:
        return Agree(self.roster.plan, self.maskset, self.roster.set_of(included))

    def total(self) -> list[int]:
        total = np.zeros_like(self.words[self.party.ids[0]])
        for peer in self.included:
            total += self.masked[peer]
        masks.apply(total, opened(self.roster, self.maskset, self.included, self.revealed))
        return [int(word) for word in total]


def test_the_set_closed_is_the_set_summed() -> None:
    closed = Closed()
    assert closed.total() == plain_sum(closed.words, closed.included).tolist()
    never_both(closed.party)


# ---- both kinds of shares of one member


@pytest.mark.parametrize("crashed", [False, True])
@pytest.mark.parametrize("reveal", [False, True])
def test_a_second_set_in_one_attempt_is_refused_before_and_after_a_crash(
    reveal: bool, crashed: bool
) -> None:
    closed = Closed(reveal=reveal)
    party = closed.party
    # The victim, included, is now said to be lost: its key-shares would join its b-shares.
    other = [peer for peer in party.ids if peer != closed.included[0]]
    for peer in party.ids:
        if crashed:
            party.crash(peer)
        with pytest.raises(MaskError, match="revealed"):
            party.carry(peer, party.members[peer].close(closed.roster.plan, other))
    # Colluders that say they agree do not help: the honest said another thing.
    for peer in party.ids[2:]:
        for colluder in party.ids[:2]:
            tell(party, peer, colluder, closed.agreement(other))
    never_both(party)


def test_a_member_that_agrees_to_two_sets_is_noticed() -> None:
    closed = Closed(reveal=False)
    party = closed.party
    party.carry(
        party.ids[0], party.members[party.ids[0]].agree(party.ids[1], closed.agreed[party.ids[1]])
    )
    with pytest.raises(MaskError, match="equivocation"):
        party.members[party.ids[0]].agree(party.ids[1], closed.agreement(party.ids))


def tell(party: Party, peer: bytes, sender: bytes, message: Agree) -> None:
    """`sender` says it agrees; that it said another thing before is all that may be wrong."""
    try:
        party.carry(peer, party.members[peer].agree(sender, message))
    except MaskError as error:
        if error.reason != "equivocation":
            raise


def split_vote() -> tuple[Party, dict[bytes, Agree]]:
    """The coordinator closes one set for four honest members and another for three."""
    party = Party(9)
    roster = party.plan()
    party.hand_out(party.share(roster, party.ids), party.ids)
    words = words_of(party.updates(), 9)
    for peer in party.ids:
        party.masked(peer, words[peer])
    agreed = party.close(roster, party.ids[:7], party.ids[2:6])
    return party, agreed | party.close(roster, party.ids[2:], party.ids[6:])


def test_a_split_vote_reveals_nothing() -> None:
    party, agreed = split_vote()
    assert len({message.included for message in agreed.values()}) == 2
    assert not party.spread(agreed, party.ids[2:])


def test_two_colluders_that_say_both_make_one_set_whole_at_most() -> None:
    party, agreed = split_vote()
    party.spread(agreed, party.ids[2:])
    said = list({message.included: message for message in agreed.values()}.values())
    for peer in party.ids[2:]:
        # Each honest member hears from both colluders what it said itself, then the other thing.
        for message in sorted(said, key=lambda message: message != agreed[peer]):
            for colluder in party.ids[:2]:
                tell(party, peer, colluder, message)
    revealed = [one for sent in party.sent.values() for one in sent if isinstance(one, Reveal)]
    assert len(revealed) == 4
    assert len({message.included for message in revealed}) == 1
    never_both(party)


def test_no_later_attempt_takes_words_or_sets_of_an_earlier_one() -> None:
    closed = Closed()
    party, old = closed.party, closed.roster
    roster = party.plan(view=1)
    assert roster.plan != old.plan
    member = party.members[party.ids[0]]
    with pytest.raises(MaskError, match="bad_roster"):
        member.plan(old)  # keys of the earlier attempt are not ours any more
    coordinator = party.share(roster, party.ids)
    with pytest.raises(MaskError, match="other_plan"):
        member.close(old.plan, party.ids[1:])
    with pytest.raises(MaskError, match="other_plan"):
        member.agree(party.ids[1], closed.agreement(party.ids[1:]))
    party.hand_out(coordinator, party.ids)
    # The update is spent: two sums, one with and one without it, would bare it.
    for peer in closed.included:
        with pytest.raises(MaskError, match="spent"):
            party.masked(peer, closed.words[peer])
        party.crash(peer)
        with pytest.raises(MaskError, match="spent"):
            party.masked(peer, closed.words[peer])
    for peer in party.ids[7:]:  # whose update was in no sum may bring it again
        party.masked(peer, closed.words[peer])
    never_both(party)


def test_an_ended_attempt_answers_nothing() -> None:
    closed = Closed()
    party = closed.party
    for peer in party.ids:
        held = party.members[peer]._state.attempt.held
        secrets = [share for pair in held for share in pair if share]
        assert len(secrets) == 18
        party.carry(peer, party.members[peer].end())
        assert not any(share in party.journals[peer] for share in secrets)
        for member in (party.members[peer], party.crash(peer) or party.members[peer]):
            with pytest.raises(MaskError, match="out_of_turn"):
                member.close(closed.roster.plan, closed.included)
            with pytest.raises(MaskError, match="out_of_turn"):
                member.mask()


# ---- masksets


def shared() -> tuple[Party, Roster, MaskSet]:
    """A party that has shared, and the honest maskset for its first member."""
    party = Party(9)
    roster = party.plan()
    coordinator = party.share(roster, party.ids)
    return party, roster, coordinator.hand_out()[0].message


def cut_to(message: MaskSet, places: Sequence[int]) -> MaskSet:
    bits = sum(1 << place for place in places)
    return replace(
        message,
        members=bits.to_bytes(8, "little"),
        boxes=tuple(message.boxes[place] for place in places),
    )


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ([0], "bad_maskset"),  # alone: its words would be bare under b
        ([0, 1, 2, 3, 4], "bad_maskset"),  # one fewer than T
        ([1, 2, 3, 4, 5, 6, 7, 8], "bad_maskset"),  # without the reader
    ],
)
def test_a_short_maskset_is_refused(places: list[int], reason: str) -> None:
    party, _, message = shared()
    with pytest.raises(MaskError, match=reason):
        party.members[party.ids[0]].maskset(cut_to(message, places))
    # It has changed nothing: the honest one is taken.
    party.carry(party.ids[0], party.members[party.ids[0]].maskset(message))


def test_a_maskset_of_two_owners_is_refused() -> None:
    party = Party(9, owners=[1, 1, 1, 1, 2, 2, 2, 2, 2])
    roster = party.plan()
    coordinator = party.share(roster, party.ids)
    with pytest.raises(MaskError, match="below_threshold"):
        coordinator.hand_out()
    # One that does it all the same.
    message = MaskSet(
        roster.plan,
        roster.set_of(party.ids),
        tuple(coordinator._boxes[place][0] for place in range(9)),
    )
    with pytest.raises(MaskError, match="bad_maskset"):
        party.members[party.ids[0]].maskset(message)


def test_a_second_maskset_is_refused() -> None:
    party, _, message = shared()
    member = party.members[party.ids[0]]
    party.carry(party.ids[0], member.maskset(message))
    for _ in range(2):
        with pytest.raises(MaskError, match="out_of_turn"):
            party.members[party.ids[0]].maskset(cut_to(message, [0, 1, 2, 3, 4, 5]))
        party.crash(party.ids[0])


def test_members_that_never_shared_do_not_fill_a_maskset() -> None:
    party = Party(9)
    roster = party.plan()
    coordinator = party.share(roster, party.ids[:4])
    honest = {place: coordinator._boxes[place][0] for place in range(4)}
    forged = tuple(
        b"" if place == 0 else honest.get(place, random.Random(place).randbytes(boxes.BOX_BYTES))
        for place in range(9)
    )
    message = MaskSet(roster.plan, (2**9 - 1).to_bytes(8, "little"), forged)
    with pytest.raises(MaskError, match="bad_maskset"):
        party.members[party.ids[0]].maskset(message)


# ---- keys


def test_swapped_keys_are_refused_by_who_they_belong_to_and_useless_with_others() -> None:
    party = Party(9)
    roster = party.plan()
    a, b = roster.seats[0], roster.seats[1]
    swapped = make_roster(
        bytes(31) + b"\x01",
        [
            Seat(a.peer, a.owner, b.mask_key, b.share_key),
            Seat(b.peer, b.owner, a.mask_key, a.share_key),
            *roster.seats[2:],
        ],
    )
    for peer in party.ids[:2]:
        with pytest.raises(MaskError, match="bad_roster"):
            party.members[peer].plan(swapped)
    # The others cannot know; but what they seal in that plan opens for nobody it was not meant for.
    party.carry(party.ids[2], party.members[party.ids[2]].plan(swapped))
    sealed = party.last(party.ids[2], Shares).boxes
    for place, reader in enumerate(party.ids[:2]):
        attempt = party.members[reader]._state.attempt
        for plan in (roster.plan, swapped.plan):
            assert not boxes.open_box(
                sealed[place], private=attempt.share_private, public=roster.seats[2].share_key,
                sender=party.ids[2], receiver=reader, plan=plan,
            )  # fmt: skip


@pytest.mark.parametrize("use", ["mask_key", "share_key"])
@pytest.mark.parametrize("point", SMALL_ORDER, ids=lambda point: point.hex()[:8])
def test_keys_of_small_order_are_refused(point: bytes, use: str) -> None:
    party = Party(4)
    roster = party.plan()
    bad = replace(roster.seats[3], **{use: point})
    with pytest.raises(MaskError, match="bad_roster"):
        make_roster(roster.plan, [*roster.seats[:3], bad])
    with pytest.raises(MaskError, match="bad_roster"):
        masks.exchange(bytes(range(32)), point, salt=roster.plan, info=b"x")


@pytest.mark.parametrize(
    "twist",
    [
        lambda seats: [*seats, seats[0]],
        lambda seats: [*seats[:3], replace(seats[3], mask_key=seats[0].mask_key)],
        lambda seats: [*seats[:3], replace(seats[3], share_key=seats[3].mask_key)],
        lambda seats: [*seats[:3], replace(seats[3], share_key=seats[2].mask_key)],
        lambda seats: [*seats][:0],
        lambda seats: [*seats] * 17,
    ],
    ids=["twice", "anothers mask key", "one key for both", "anothers key", "nobody", "crowd"],
)
def test_a_roster_with_a_key_or_member_twice_is_refused(
    twist: Callable[[tuple[Seat, ...]], list[Seat]],
) -> None:
    roster = Party(4).plan()
    with pytest.raises(MaskError, match="bad_roster"):
        make_roster(roster.plan, twist(roster.seats))


# ---- boxes


def test_a_tampered_box_harms_one_share_and_names_its_sender() -> None:
    party = Party(9)
    roster = party.plan()
    coordinator = party.share(roster, party.ids)
    for hand in coordinator.hand_out():
        message = hand.message
        if hand.to == party.ids[0]:
            spoilt = bytearray(message.boxes[3])
            spoilt[70] ^= 1
            message = replace(
                message, boxes=(*message.boxes[:3], bytes(spoilt), *message.boxes[4:])
            )
        ready = party.carry(hand.to, party.members[hand.to].maskset(message))[-1]
        assert ready.unopened == ((party.ids[3],) if hand.to == party.ids[0] else ())
    words = words_of(party.updates(), 9)
    masked = {peer: party.masked(peer, words[peer]) for peer in party.ids}
    included = party.ids[1:]
    revealed = party.spread(party.close(roster, included, party.ids), party.ids)
    assert revealed[party.ids[0]].shares[3] == b""
    maskset = revealed[party.ids[0]].maskset
    total = sum((masked[peer] for peer in included), start=np.zeros_like(masked[party.ids[0]]))
    masks.apply(total, opened(roster, maskset, included, revealed))
    assert total.tolist() == plain_sum(words, included).tolist()


def test_boxes_of_another_plan_member_or_direction_do_not_open() -> None:
    party, _, message = shared()
    first = party.members[party.ids[0]]
    roster = party.plan(view=1)
    party.share(roster, party.ids)
    replayed = replace(message, plan=roster.plan)
    with pytest.raises(MaskError, match="bad_maskset"):
        first.maskset(replayed)
    # Reflected: what 0 sealed to 1 is handed to it as sealed by 1; permuted: 2's as 1's.
    coordinator = party.share(roster, party.ids)
    honest = coordinator.hand_out()[0].message
    own = party.last(party.ids[0], Shares).boxes
    twisted = (honest.boxes[0], own[1], honest.boxes[3], honest.boxes[2], *honest.boxes[4:])
    ready = party.carry(party.ids[0], first.maskset(replace(honest, boxes=twisted)))[-1]
    assert ready.unopened == tuple(party.ids[1:4])


# ---- members that lie


def lied(message: Reveal, at: int) -> Reveal:
    x = int.from_bytes(message.shares[at], "big")
    shares = list(message.shares)
    shares[at] = ((x + 1) % shamir.PRIME).to_bytes(66, "big")
    return replace(message, shares=tuple(shares))


def test_a_lying_revealer_is_corrected_and_named() -> None:
    closed = Closed()
    opening = Opening(closed.roster, closed.maskset, closed.roster.set_of(closed.included))
    for place, (peer, message) in enumerate(closed.revealed.items()):
        opening.reveal(peer, lied(message, 2) if place == 4 else message)
    found = opening.open()
    assert found.liars == (closed.party.ids[4],)
    total = sum(
        (closed.masked[peer] for peer in closed.included), start=np.zeros(SIZE + 2, np.uint32)
    )
    masks.apply(total, found.mask)
    assert total.tolist() == plain_sum(closed.words, closed.included).tolist()


@pytest.mark.parametrize("number", [shamir.PRIME, 2**528 - 1])
def test_a_number_that_no_share_has_spoils_no_other_and_names_its_giver(number: int) -> None:
    closed = Closed()
    opening = Opening(closed.roster, closed.maskset, closed.roster.set_of(closed.included))
    for place, (peer, message) in enumerate(closed.revealed.items()):
        shares = list(message.shares)
        if place in (4, 5, 6):  # all that may lie
            shares[2] = number.to_bytes(66, "big")
        opening.reveal(peer, replace(message, shares=tuple(shares)))
    found = opening.open()
    assert found.liars == tuple(closed.party.ids[4:7])
    total = sum(
        (closed.masked[peer] for peer in closed.included), start=np.zeros(SIZE + 2, np.uint32)
    )
    masks.apply(total, found.mask)
    assert total.tolist() == plain_sum(closed.words, closed.included).tolist()


@pytest.mark.parametrize("junk", [0, 1], ids=["seed", "key"])
def test_a_box_with_a_number_that_no_share_has_is_one_that_did_not_open(junk: int) -> None:
    """Given back, the number would name who was dealt it."""
    party, roster, message = shared()
    dealer = party.members[party.ids[3]]._state.attempt
    pair = [bytes(66), bytes(66)]
    pair[junk] = b"\xff" * 66
    sealed = boxes.seal(
        *pair, private=dealer.share_private, public=roster.seats[0].share_key,
        sender=party.ids[3], receiver=party.ids[0], plan=roster.plan,
    )  # fmt: skip
    twisted = replace(message, boxes=(*message.boxes[:3], sealed, *message.boxes[4:]))
    ready = party.carry(party.ids[0], party.members[party.ids[0]].maskset(twisted))[-1]
    assert ready.unopened == (party.ids[3],)


def test_more_liars_than_can_be_corrected_end_the_attempt() -> None:
    closed = Closed()
    for member in (2, 8):  # an included one's seed, a lost one's key
        opening = Opening(closed.roster, closed.maskset, closed.roster.set_of(closed.included))
        for place, (peer, message) in enumerate(closed.revealed.items()):
            opening.reveal(peer, lied(message, member) if place in (3, 4) else message)
        with pytest.raises(MaskError, match="unfinished"):
            opening.open()


def test_a_false_key_made_of_just_enough_shares_is_found_by_the_join() -> None:
    closed = Closed()
    opening = Opening(closed.roster, closed.maskset, closed.roster.set_of(closed.included))
    for place, (peer, message) in enumerate(list(closed.revealed.items())[:6]):
        opening.reveal(peer, lied(message, 8) if place == 4 else message)
    with pytest.raises(MaskError, match="unfinished"):
        opening.open()


@pytest.mark.parametrize(
    "twist",
    [
        lambda message: replace(message, plan=bytes(32)),
        lambda message: replace(message, included=message.maskset),
        lambda message: replace(message, shares=message.shares[:-1]),
    ],
    ids=["plan", "set", "count"],
)
def test_reveals_for_anything_else_are_refused(twist: Callable[[Reveal], Reveal]) -> None:
    closed = Closed()
    opening = Opening(closed.roster, closed.maskset, closed.roster.set_of(closed.included))
    peer, message = next(iter(closed.revealed.items()))
    with pytest.raises(MaskError):
        opening.reveal(peer, twist(message))
    opening.reveal(peer, message)
    with pytest.raises(MaskError, match="equivocation"):
        opening.reveal(peer, lied(message, 1))


def test_agreements_of_outsiders_and_of_members_without_shares_do_not_count() -> None:
    party = Party(9)
    roster = party.plan()
    sharers = party.ids[:7]
    maskset = party.hand_out(party.share(roster, sharers), sharers)
    words = words_of(party.updates(), 9)
    for peer in sharers:
        party.masked(peer, words[peer])
    included = sharers[:6]
    agreed = party.close(roster, included, sharers[:5])
    said = Agree(roster.plan, maskset, roster.set_of(included))
    for stranger in (party.ids[8], random.Random(9).randbytes(32)):
        with pytest.raises(MaskError):
            party.members[party.ids[0]].agree(stranger, said)
    assert not party.spread(agreed, sharers[:5])  # five of six


# ---- what is masked


def test_a_second_vector_under_one_mask_is_refused() -> None:
    closed = Closed(reveal=False)
    party = closed.party
    peer, other = party.ids[:2]
    for _ in range(2):
        with pytest.raises(MaskError, match="out_of_turn"):
            party.masked(peer, closed.words[other])
        with pytest.raises(MaskError, match="out_of_turn"):
            party.masked(peer, closed.words[peer], update=bytes(32))
        with pytest.raises(MaskError, match="out_of_turn"):  # the same update, weighted otherwise
            party.masked(peer, closed.words[peer] * 2, update=fixed.digest_of(closed.words[peer]))
        again = party.masked(peer, closed.words[peer])  # the same words are the same bytes
        assert again.tolist() == closed.masked[peer].tolist()
        party.crash(peer)


def test_who_did_not_mask_is_not_included() -> None:
    party = Party(9)
    roster = party.plan()
    party.hand_out(party.share(roster, party.ids), party.ids)
    with pytest.raises(MaskError, match="bad_set"):
        party.members[party.ids[0]].close(roster.plan, party.ids)


def chi_square(words: np.ndarray) -> float:
    """Of the words' bytes against the uniform distribution: 255 degrees of freedom."""
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


UNIFORM_BELOW = 330.5
"""Of 255 degrees of freedom, exceeded once in a thousand draws."""


@pytest.mark.parametrize("victim_is_lost", [False, True])
def test_below_the_threshold_colluders_see_uniform_words(victim_is_lost: bool) -> None:
    """Two of nine work with coordinator and reducers, and get all that honest members reveal."""
    party, size = Party(9), 100_000
    roster = party.plan()
    maskset = party.hand_out(party.share(roster, party.ids), party.ids)
    victim, colluders = party.ids[0], party.ids[1:3]
    secret = np.full(size, 7, np.uint32)  # the most telling vector there is
    covered = secret.copy()
    party.carry(victim, party.members[victim].bind(bytes(32), bytes(32)))
    masks.apply(covered, party.members[victim].mask())
    for peer in party.ids[1:]:
        party.masked(peer, words_of(party.updates(), 9)[peer])
    included = party.ids[1:] if victim_is_lost else party.ids[:-1]
    revealed = party.spread(party.close(roster, included, party.ids), party.ids)
    # Take off everything that can be known: keys of pairs with colluders; then b if it is revealed,
    # else the victim's mask key and with it every pair.
    attempt = party.members[victim]._state.attempt
    opening = Opening(roster, maskset, roster.set_of(included))
    for peer, message in revealed.items():
        opening.reveal(peer, message)
    seats = {seat.peer: seat for seat in roster.seats}
    known = []
    for peer in party.ids[1:]:
        if peer in colluders or victim_is_lost:
            mine = (
                attempt.mask_private
                if victim_is_lost
                else party.members[peer]._state.attempt.mask_private
            )
            me, other = (victim, peer) if victim_is_lost else (peer, victim)
            key = masks.pair_key(me, mine, other, seats[other].mask_key, plan=roster.plan)
            known.append((key, peer > victim))
    # It is really known: this is what the reveal reconstructs.
    reconstructed = shamir.combine(opening._of(0), roster.threshold)
    assert reconstructed == (attempt.mask_private if victim_is_lost else attempt.seed)
    if not victim_is_lost:
        known.append((attempt.seed, True))
    masks.apply(covered, masks.Mask(tuple(known)))
    assert chi_square(covered) < UNIFORM_BELOW
    assert not np.array_equal(covered, secret)
    # Control: with the one thing they cannot have the words are bare.
    rest = (
        [(attempt.seed, True)]
        if victim_is_lost
        else [
            (
                masks.pair_key(
                    victim, attempt.mask_private, peer, seats[peer].mask_key, plan=roster.plan
                ),
                peer > victim,
            )
            for peer in party.ids[3:]
        ]
    )
    masks.apply(covered, masks.Mask(tuple(rest)))
    assert np.array_equal(covered, secret)
    assert chi_square(covered) > 1000 * UNIFORM_BELOW


def test_below_the_threshold_shares_fit_every_secret() -> None:
    known = list(enumerate(shamir.split(bytes(range(32)), 6, 9, random.Random(1).randbytes), 1))[:5]
    for guess in (bytes(32), b"\xff" * 32, bytes(range(32))):
        # There is a polynomial of their degree through all five that has the guess as its secret,
        # and so a sixth share that makes it come out: five shares exclude no secret.
        points = [(0, int.from_bytes(guess, "big"))]
        points += [(x, int.from_bytes(y, "big")) for x, y in known]
        sixth = interpolated(points, 6).to_bytes(66, "big")
        assert shamir.combine([*known, (6, sixth)], 6) == guess


def interpolated(points: list[tuple[int, int]], at: int) -> int:
    """The value at a place of the polynomial through some points, by Lagrange."""
    total = 0
    for x, y in points:
        above = math.prod(at - other for other, _ in points if other != x)
        below = math.prod(x - other for other, _ in points if other != x)
        total += y * above * pow(below, -1, shamir.PRIME)
    return total % shamir.PRIME
