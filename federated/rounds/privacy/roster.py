"""Who takes part in a masked attempt, and sets of them.

A set is eight bytes: bit i, from the least one of the first byte on, is roster place i. So a set
has one form, names nobody twice and fits into every signed message.

Source: docs/specs/masks.md s.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec

from federated.rounds.privacy.errors import MaskError
from p2p.errors import DecodeError
from p2p.replication.keys import check_exchange_public_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MEMBERS_MAX: Final = 64
SET_BYTES: Final = 8
MESSAGE_BYTES_MAX: Final = 16_384
"""Of a message of masks; the largest, 64 boxes, has 9.7 kB."""
OWNERS_MIN: Final = 3
"""A sum over fewer owners lets one of two subtract its own."""

Hash: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Members: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=SET_BYTES, max_length=SET_BYTES)]


class Seat(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A member as its signed join says; the owner as the group knows it."""

    peer: Hash
    owner: Hash
    mask_key: Hash
    """X25519, of this attempt alone; likewise below."""
    share_key: Hash
    seed_hash: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    """SHA-256 of its own seed, if it said so beforehand."""


class Roster(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The members of a plan in its order, and the plan's hash.

    Whoever makes one has verified the joins' signatures: the coordinator cannot swap a key.
    """

    plan: Hash
    seats: Annotated[tuple[Seat, ...], msgspec.Meta(min_length=1, max_length=MEMBERS_MAX)]
    circle: int = 0
    """Members that the round began with, if more than this attempt has."""

    @property
    def threshold(self) -> int:
        """T: what gives a secret back, how many must be in a sum, and how many must agree to it.

        Two thirds of the larger of roster and circle: so any two sets of T in all attempts of a
        round have a third of the circle in common.
        """
        return two_thirds(max(len(self.seats), self.circle))

    def place(self, peer: bytes) -> int:
        """Roster place of a member.

        Raises:
            MaskError: it is none.
        """
        for place, seat in enumerate(self.seats):
            if seat.peer == peer:
                return place
        raise MaskError("bad_roster", "somebody who is not of the roster")

    def set_of(self, peers: Iterable[bytes]) -> bytes:
        """A set by its members.

        Raises:
            MaskError: one is not of the roster, or comes twice.
        """
        bits = 0
        for peer in peers:
            bit = 1 << self.place(peer)
            if bits & bit:
                raise MaskError("bad_set", "a member twice")
            bits |= bit
        return bits.to_bytes(SET_BYTES, "little")

    def places(self, members: bytes) -> list[int]:
        """Roster places of a set, ascending.

        Raises:
            MaskError: it names places that there are not.
        """
        bits = int.from_bytes(members, "little")
        if len(members) != SET_BYTES or bits >> len(self.seats):
            raise MaskError("bad_set", "places that the roster does not have")
        return list(_ones(bits))

    def check_enough(self, members: bytes, reason: str) -> None:
        """Refuse a set of fewer than T members or of fewer than three owners.

        Raises:
            MaskError: with `reason`: a sum over so few would bare one of them.
        """
        places = self.places(members)
        owners = {self.seats[place].owner for place in places}
        if len(places) < self.threshold or len(owners) < OWNERS_MIN:
            raise MaskError(
                reason,
                f"{len(places)} members of {len(owners)} owners:"
                f" at least {self.threshold} of {OWNERS_MIN} are needed",
            )


def two_thirds(count: int) -> int:
    """ceil(2n/3)."""
    return -(-2 * count // 3)


def make_roster(plan: bytes, seats: Iterable[Seat], circle: int = 0) -> Roster:
    """The roster of a plan.

    Args:
        plan: the plan's hash.
        seats: in its order.
        circle: members that the round began with.

    Raises:
        MaskError: nobody or too many, somebody twice, two equal keys, or a key of small order. With
            equal keys the reveal of a lost member's would open what is sealed to another.
    """
    found = tuple(seats)
    if not 1 <= len(found) <= MEMBERS_MAX or len(plan) != 32:
        raise MaskError("bad_roster", f"{len(found)} members")
    keys = [key for seat in found for key in (seat.mask_key, seat.share_key)]
    if len({seat.peer for seat in found}) != len(found) or len(set(keys)) != len(keys):
        raise MaskError("bad_roster", "a member or a key comes twice")
    for key in keys:
        try:
            check_exchange_public_untrusted(key)
        except DecodeError as error:
            raise MaskError("bad_roster", "a key that nobody can exchange with") from error
    return Roster(plan, found, circle)


def _ones(bits: int) -> Iterator[int]:
    place = 0
    while bits:
        if bits & 1:
            yield place
        bits >>= 1
        place += 1
