"""The other sides of a masked sum: who carries the boxes, and who reads the sum. Sans-IO.

Neither is trusted with anything. The coordinator sees boxes that it cannot open and sets that the
members check; a reducer sees one part of everybody's masked words and the shares that T members
revealed for one set.

Source: docs/specs/masks.md s.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

from federated.errors import UsageError
from federated.rounds.privacy import masks, shamir
from federated.rounds.privacy.errors import MaskError
from federated.rounds.privacy.messages import Agree, MaskSet, Reveal, Shares
from federated.rounds.privacy.roster import Roster

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Hand:
    """Send a member its maskset."""

    to: bytes
    message: MaskSet


class Carried(msgspec.Struct, array_like=True, frozen=True):
    """What a coordinator has been told."""

    roster: Roster
    boxes: dict[int, tuple[bytes, ...]]
    """By roster place of the sharer."""
    maskset: bytes = b""
    included: bytes = b""


_CARRIED: Final = msgspec.msgpack.Decoder(Carried)


class Coordinator:
    """Carries boxes, names the maskset and counts agreements.

    Args:
        roster: of the plan.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._boxes: dict[int, tuple[bytes, ...]] = {}
        self._maskset = b""
        self._included = b""
        self._agreed: dict[int, Agree] = {}

    @classmethod
    def restore(cls, data: bytes) -> Coordinator:
        """A coordinator as `state` kept it; agreements are asked for again.

        Raises:
            UsageError: these bytes are not its state.
        """
        try:
            kept = _CARRIED.decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"the state of a masked attempt: {error}") from None
        found = cls(kept.roster)
        found._boxes, found._maskset, found._included = kept.boxes, kept.maskset, kept.included
        return found

    def state(self) -> bytes:
        """All but the agreements."""
        return msgspec.msgpack.encode(
            Carried(self._roster, self._boxes, self._maskset, self._included)
        )

    @property
    def sharers(self) -> tuple[bytes, ...]:
        """Who has shared so far."""
        return tuple(self._roster.seats[place].peer for place in sorted(self._boxes))

    @property
    def all_shared(self) -> bool:
        """Whether there is nobody to wait for."""
        return len(self._boxes) == len(self._roster.seats)

    def shares(self, sender: bytes, message: Shares) -> None:
        """A member's boxes.

        Raises:
            MaskError: of another plan, not one for each other member, or its second, other ones.
        """
        place = self._roster.place(sender)
        self._check_plan(message.plan)
        empty = [at for at, box in enumerate(message.boxes) if not box]
        if len(message.boxes) != len(self._roster.seats) or empty != [place]:
            raise MaskError("bad_share", "not a box for each other member")
        if self._boxes.get(place, message.boxes) != message.boxes:
            raise MaskError("equivocation", "a member shared twice")
        if self._maskset:
            if place not in self._roster.places(self._maskset):
                raise MaskError("out_of_turn", "the maskset is named")
            return
        self._boxes[place] = message.boxes

    def hand_out(self) -> list[Hand]:
        """Name the maskset: those who have shared. Said again it is the same.

        Raises:
            MaskError: fewer than T members or three owners have shared; the attempt ends.
        """
        if not self._maskset:
            members = self._roster.set_of(self.sharers)
            self._roster.check_enough(members, "below_threshold")
            self._maskset = members
        places = self._roster.places(self._maskset)
        return [
            Hand(
                self._roster.seats[to].peer,
                MaskSet(
                    self._roster.plan,
                    self._maskset,
                    tuple(self._boxes[place][to] for place in places),
                ),
            )
            for to in places
        ]

    def close(self, included: Iterable[bytes]) -> bytes:
        """Fix the included set.

        Returns:
            The set.

        Raises:
            MaskError: too few, not of the maskset, or another than before; the attempt ends.
        """
        wanted = self._roster.set_of(included)
        inner, outer = (int.from_bytes(bits, "little") for bits in (wanted, self._maskset))
        if not self._maskset or inner & ~outer:
            raise MaskError("bad_set", "a member that is not in the maskset")
        self._roster.check_enough(wanted, "below_threshold")
        if self._included not in (b"", wanted):
            raise MaskError("out_of_turn", "the set is closed")
        self._included = wanted
        return wanted

    def agree(self, sender: bytes, message: Agree) -> bool:
        """A member agrees; hand its signed word on to all.

        Returns:
            Whether T members now agree to our set.

        Raises:
            MaskError: of another plan, from nobody of the maskset, or its second, other word.
        """
        self._check_plan(message.plan)
        place = self._roster.place(sender)
        if not self._maskset or place not in self._roster.places(self._maskset):
            raise MaskError("bad_set", "an agreement of somebody who holds no shares")
        if self._agreed.setdefault(place, message) != message:
            raise MaskError("equivocation", "a member agreed to two sets")
        ours = Agree(self._roster.plan, self._maskset, self._included)
        same = sum(agree == ours for agree in self._agreed.values())
        return same >= self._roster.threshold

    def _check_plan(self, plan: bytes) -> None:
        if plan != self._roster.plan:
            raise MaskError("other_plan", "a message of another plan")


@dataclass(frozen=True, slots=True)
class Opened:
    """How to read the sum."""

    mask: masks.Mask
    """To be added to the sum of the included members' words, in any pieces."""
    liars: tuple[bytes, ...]
    """Members whose shares were not of the secrets of others: they lie, or were dealt them so."""
    secrets: tuple[bytes, ...] = ()
    """Of each member of the maskset; others can read the sum by them without its shares."""


class Opening:
    """A reducer's: collects what members reveal, and reconstructs.

    Args:
        roster: of the plan.
        maskset: of the attempt.
        included: the set that T members agreed to.
    """

    def __init__(self, roster: Roster, maskset: bytes, included: bytes) -> None:
        self._roster = roster
        self._maskset = maskset
        self._included = included
        self._places = roster.places(maskset)
        self._revealed: dict[int, tuple[bytes, ...]] = {}
        self._told: tuple[bytes, ...] = ()

    def reveal(self, sender: bytes, message: Reveal) -> bool:
        """A member's shares.

        Returns:
            Whether the sum can be read now. More shares than are needed let lies be corrected, so
            who can wait for the rest does.

        Raises:
            MaskError: of another plan or set, from nobody of the maskset, or other ones before.
        """
        place = self._roster.place(sender)
        if message.plan != self._roster.plan:
            raise MaskError("other_plan", "shares of another plan")
        if (message.maskset, message.included) != (self._maskset, self._included):
            raise MaskError("bad_set", "shares for another set")
        if place not in self._places or len(message.shares) != len(self._places):
            raise MaskError("bad_set", "shares of somebody who holds none")
        if self._revealed.setdefault(place, message.shares) != message.shares:
            raise MaskError("equivocation", "a member revealed twice")
        return all(len(self._of(member)) >= self._roster.threshold for member in self._places)

    @property
    def complete(self) -> bool:
        """Whether nobody is left who could give more."""
        return len(self._revealed) == len(self._places)

    def snapshot(self) -> Opening:
        """What is here now, for a thread to work on."""
        copy = Opening(self._roster, self._maskset, self._included)
        copy._revealed, copy._told = dict(self._revealed), self._told
        return copy

    def told(self, secrets: tuple[bytes, ...]) -> bool:
        """Secrets as somebody says who can read the sum; whether they are what members signed."""
        if len(secrets) != len(self._places):
            return False
        if not all(map(self._is_signed, self._places, secrets)):
            return False
        self._told = secrets
        return True

    def _is_signed(self, member: int, secret: bytes) -> bool:
        seat = self._roster.seats[member]
        if member in self._roster.places(self._included):
            return sha256(secret).digest() == seat.seed_hash
        return masks.public_of(secret) == seat.mask_key

    def spoilt(self) -> tuple[bytes, ...]:
        """Members whose secret the shares that are here do not give.

        They dealt wrong ones, or more others than can be corrected gave wrong ones back: who of
        them it was cannot be told. All secrets are decoded, 0.3 to 1 s of work for 64 members.
        """
        return tuple(
            self._roster.seats[member].peer for member in self._places if not self._gives(member)
        )

    def _gives(self, member: int) -> bool:
        try:
            return self._is_signed(member, self._secret(member, set()))
        except MaskError:
            return False

    def open(self) -> Opened:
        """Reconstruct the seeds of the included and the keys of the lost.

        Raises:
            MaskError: a secret has too few shares, or too many wrong ones: the attempt ends.
        """
        included = set(self._roster.places(self._included))
        liars = self._no_shares()
        seeds: list[bytes] = []
        lost: dict[bytes, bytes] = {}
        secrets = self._told or tuple(self._secret(member, liars) for member in self._places)
        for member, secret in zip(self._places, secrets, strict=True):
            seat = self._roster.seats[member]
            if member in included:
                if seat.seed_hash not in (b"", sha256(secret).digest()):
                    raise MaskError("unfinished", "shares of a seed give another seed")
                seeds.append(secret)
            elif masks.public_of(secret) == seat.mask_key:
                lost[seat.peer] = secret
            else:
                raise MaskError("unfinished", "shares of a mask key give another key")
        publics = {
            seat.peer: seat.mask_key
            for seat in (self._roster.seats[place] for place in sorted(included))
        }
        mask = masks.leftover(seeds, lost, publics, plan=self._roster.plan)
        wrong = tuple(self._roster.seats[place].peer for place in sorted(liars))
        return Opened(mask, wrong, secrets)

    def _secret(self, member: int, liars: set[int]) -> bytes:
        try:
            found = shamir.recover(self._of(member), self._roster.threshold)
        except MaskError as error:
            name = self._roster.seats[member].peer.hex()[:16]
            raise MaskError("unfinished", f"the secret of {name}: {error}") from error
        # The member's own share of its own secret may be the wrong one as well as anybody's.
        liars.update(x - 1 for x in found.wrong)
        return found.secret

    def _of(self, member: int) -> list[shamir.Share]:
        """The shares of one member's secret that are here."""
        at = self._places.index(member)
        # A number that no share has is left out as a missing one is, so that it spoils no other.
        return [
            (place + 1, shares[at])
            for place, shares in self._revealed.items()
            if shamir.is_share(shares[at])
        ]

    def _no_shares(self) -> set[int]:
        """Who gave numbers that no share has: receivers take none out of a box either."""
        return {
            place
            for place, shares in self._revealed.items()
            if not all(shamir.is_share(share) for share in shares if share)
        }
