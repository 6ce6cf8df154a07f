"""Members, coordinator and reducers of masked sums in one process; messages go through their bytes.

`Party` plays the honest driver of each member: it keeps the journal before it hands anything on,
and can kill a member between the two. What a test leaves out (a delivery, a member) is lost.
"""

from __future__ import annotations

import random
from hashlib import sha256
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from federated.rounds.privacy import fixed, masks, messages
from federated.rounds.privacy.gather import Coordinator, Opening
from federated.rounds.privacy.messages import Agree, MaskSet, Reveal, Shares
from federated.rounds.privacy.roster import Roster, Seat, make_roster
from federated.rounds.privacy.secagg import Action, Journal, Member, Publish, Ready, Send

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Words = NDArray[np.uint32]

AnyMessage: TypeAlias = "Shares | MaskSet | Agree | Reveal"
M = TypeVar("M", Shares, Agree, Reveal)

CLIP = 4.0
SIZE = 203
"""Elements of an update: no multiple of anything."""
PARTS = ((0, 64), (64, 131), (131, SIZE + fixed.TAIL_WORDS))


class Party:
    """Members of a federation.

    Args:
        count: how many.
        seed: of all that is drawn.
        owners: owner of each; each its own if not given.
    """

    def __init__(self, count: int, seed: int = 1, owners: Sequence[int] | None = None) -> None:
        self.rng = random.Random(seed)
        self.ids = [self.rng.randbytes(32) for _ in range(count)]
        numbers = owners or range(count)
        self.owners = {
            peer: bytes([number]) * 32 for peer, number in zip(self.ids, numbers, strict=True)
        }
        self.members = {peer: self._member(peer) for peer in self.ids}
        self.journals: dict[bytes, bytes] = {}
        self.keys: dict[bytes, Publish] = {}
        self.sent: dict[bytes, list[AnyMessage]] = {peer: [] for peer in self.ids}
        """All that has left each member, over all attempts."""

    def _member(self, peer: bytes) -> Member:
        return Member(peer, random.Random(self.rng.randbytes(8)).randbytes)

    # ---- a driver

    def carry(
        self, peer: bytes, actions: Iterable[Action], *, cut: int | None = None
    ) -> list[Action]:
        """Do what a machine says; `cut` kills the member after so many actions."""
        done: list[Action] = []
        for number, action in enumerate(actions):
            if number == cut:
                break
            match action:
                case Journal():
                    self.journals[peer] = action.state
                case Publish():
                    self.keys[peer] = action
                case Send():
                    self.sent[peer].append(through_bytes(action.message))
                case Ready():
                    pass
            done.append(action)
        return done

    def crash(self, peer: bytes) -> list[Action]:
        """Start a member anew from its journal; what it says again is carried out and returned."""
        source = random.Random(self.rng.randbytes(8)).randbytes
        state = self.journals.get(peer)
        self.members[peer] = (
            Member(peer, source) if state is None else Member.restore(peer, source, state)
        )
        return self.carry(peer, self.members[peer].pending())

    # ---- the steps

    def plan(self, who: Sequence[bytes] | None = None, view: int = 0) -> Roster:
        """Everybody of `who` begins an attempt and joins; the plan of their joins."""
        who = self.ids if who is None else who
        for peer in who:
            self.carry(peer, self.members[peer].begin())
        return self.roster(who, view)

    def roster(self, who: Sequence[bytes], view: int = 0) -> Roster:
        """A plan of the last joins of `who`."""
        seats = [
            Seat(peer, self.owners[peer], self.keys[peer].mask_key, self.keys[peer].share_key)
            for peer in who
        ]
        joins = b"".join(seat.peer + seat.mask_key + seat.share_key for seat in seats)
        return make_roster(sha256(view.to_bytes(4, "big") + joins).digest(), seats)

    def share(self, roster: Roster, who: Iterable[bytes]) -> Coordinator:
        """`who` shares; the coordinator has their boxes."""
        coordinator = Coordinator(roster)
        for peer in who:
            self.carry(peer, self.members[peer].plan(roster))
            message = self.sent[peer][-1]
            assert isinstance(message, Shares)
            coordinator.shares(peer, message)
        return coordinator

    def hand_out(self, coordinator: Coordinator, who: Iterable[bytes]) -> bytes:
        """`who` gets the maskset, which is returned."""
        wanted, found = set(who), b""
        for hand in coordinator.hand_out():
            message = through_bytes(hand.message)
            assert isinstance(message, MaskSet)
            found = message.members
            if hand.to in wanted:
                self.carry(hand.to, self.members[hand.to].maskset(message))
        return found

    def masked(self, peer: bytes, words: Words, update: bytes | None = None) -> Words:
        """`peer` binds and masks its words, part by part."""
        digest = fixed.digest_of(words)
        member = self.members[peer]
        self.carry(peer, member.bind(digest if update is None else update, digest))
        covered = words.copy()
        for begin, end in PARTS:
            masks.apply(covered[begin:end], member.mask(), start=begin)
        return covered

    def close(
        self, roster: Roster, included: Sequence[bytes], who: Iterable[bytes]
    ) -> dict[bytes, Agree]:
        """`who` hears of the set; what they agree to."""
        agreed: dict[bytes, Agree] = {}
        for peer in who:
            self.carry(peer, self.members[peer].close(roster.plan, included))
            said = self.last(peer, Agree)
            if said is not None and said.plan == roster.plan:
                agreed[peer] = said
        return agreed

    def spread(self, agreed: Mapping[bytes, Agree], who: Iterable[bytes]) -> dict[bytes, Reveal]:
        """`who` hears all agreements; what they reveal."""
        revealed: dict[bytes, Reveal] = {}
        for peer in who:
            for sender, message in agreed.items():
                if sender != peer:
                    self.carry(peer, self.members[peer].agree(sender, message))
            said = self.last(peer, Reveal)
            if said is not None:
                revealed[peer] = said
        return revealed

    def last(self, peer: bytes, kind: type[M]) -> M | None:
        """The last message of a kind that has left a member."""
        return next((said for said in reversed(self.sent[peer]) if isinstance(said, kind)), None)

    def updates(self) -> dict[bytes, NDArray[np.float32]]:
        """An update a member, some longer than `CLIP`."""
        draws = np.random.default_rng(self.rng.getrandbits(32))
        sizes = draws.permutation(np.linspace(0.1, 0.5, len(self.ids)))
        return {
            peer: (draws.normal(size=SIZE) * size).astype(np.float32)
            for peer, size in zip(self.ids, sizes, strict=True)
        }


def through_bytes(message: AnyMessage) -> AnyMessage:
    """A message as its receiver decodes it."""
    data = messages.encode(message)
    match message:
        case Shares():
            return messages.decode_shares_untrusted(data)
        case MaskSet():
            return messages.decode_maskset_untrusted(data)
        case Agree():
            return messages.decode_agree_untrusted(data)
        case Reveal():
            return messages.decode_reveal_untrusted(data)


def words_of(updates: Mapping[bytes, NDArray[np.float32]], members: int) -> dict[bytes, Words]:
    """Updates in fixed point."""
    scale = fixed.scale_for(CLIP, members)
    return {peer: fixed.encode_update(one, scale, clip=CLIP) for peer, one in updates.items()}


def plain_sum(words: Mapping[bytes, Words], who: Iterable[bytes]) -> Words:
    """What the masked sum has to be."""
    total = np.zeros(SIZE + fixed.TAIL_WORDS, np.uint32)
    for peer in who:
        total += words[peer]
    return total


def opened(
    roster: Roster, maskset: bytes, included: Sequence[bytes], revealed: Mapping[bytes, Reveal]
) -> masks.Mask:
    """What a reducer takes off the sum, from what members revealed."""
    opening = Opening(roster, maskset, roster.set_of(included))
    for peer, message in revealed.items():
        opening.reveal(peer, message)
    return opening.open().mask
