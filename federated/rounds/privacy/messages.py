"""What members, coordinator and reducers of a masked attempt say to each other.

Each is a MessagePack array that begins with the plan's hash; the round's wire adds its head and
signatures (`shares`, `maskset` and `agree` are signed) and hands on who sent it. Decoding checks
the form; whether it fits the attempt is the machines' matter.

Source: docs/specs/masks.md s.5.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from federated.rounds.privacy.boxes import BOX_BYTES
from federated.rounds.privacy.roster import MEMBERS_MAX, MESSAGE_BYTES_MAX, Hash, Members
from federated.rounds.privacy.shamir import SHARE_BYTES
from p2p.errors import DecodeError

Box = Annotated[bytes, msgspec.Meta(max_length=BOX_BYTES)]
Boxes = Annotated[tuple[Box, ...], msgspec.Meta(min_length=1, max_length=MEMBERS_MAX)]
ShareBytes = Annotated[bytes, msgspec.Meta(max_length=SHARE_BYTES)]


class _Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    plan: Hash


class Shares(_Message, frozen=True):
    """Member to coordinator: a box for each place of the roster, its own empty."""

    boxes: Boxes


class MaskSet(_Message, frozen=True):
    """Coordinator to a member: who has shared, and the box of each of them to this member."""

    members: Members
    boxes: Boxes
    """One a member, ascending; the reader's own is empty."""


class Agree(_Message, frozen=True):
    """Member to all: these have shared, and the sum is over those."""

    maskset: Members
    included: Members


class Reveal(_Message, frozen=True):
    """Member to reducers: of each member of the maskset one share.

    Of its seed if it is included, of its mask key if it is lost: the form has no room for both.
    """

    maskset: Members
    included: Members
    shares: Annotated[tuple[ShareBytes, ...], msgspec.Meta(min_length=1, max_length=MEMBERS_MAX)]
    """One a member of the maskset, ascending; empty where the box did not open."""


M = TypeVar("M", bound=_Message)

_SHARES: Final = msgspec.msgpack.Decoder(Shares)
_MASKSET: Final = msgspec.msgpack.Decoder(MaskSet)
_AGREE: Final = msgspec.msgpack.Decoder(Agree)
_REVEAL: Final = msgspec.msgpack.Decoder(Reveal)
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: Shares | MaskSet | Agree | Reveal) -> bytes:
    """A message's bytes."""
    return _ENCODER.encode(message)


def decode_shares_untrusted(data: bytes) -> Shares:
    """Boxes as a member sent them.

    Raises:
        DecodeError: malformed.
    """
    message = _decode(_SHARES, data)
    _check_sizes(message.boxes, BOX_BYTES, spare=1)
    return message


def decode_maskset_untrusted(data: bytes) -> MaskSet:
    """A maskset as a coordinator sent it.

    Raises:
        DecodeError: malformed, or not a box for each member but one.
    """
    message = _decode(_MASKSET, data)
    _check_sizes(message.boxes, BOX_BYTES, spare=1)
    _check_count(message.members, len(message.boxes))
    return message


def decode_agree_untrusted(data: bytes) -> Agree:
    """What a member agrees to.

    Raises:
        DecodeError: malformed, or a set that is not within the other.
    """
    message = _decode(_AGREE, data)
    _check_within(message.included, message.maskset)
    return message


def decode_reveal_untrusted(data: bytes) -> Reveal:
    """Shares as a member revealed them.

    Raises:
        DecodeError: malformed, a set that is not within the other, or not a share for each member.
    """
    message = _decode(_REVEAL, data)
    _check_within(message.included, message.maskset)
    _check_count(message.maskset, len(message.shares))
    _check_sizes(message.shares, SHARE_BYTES, spare=len(message.shares))
    return message


def _decode(decoder: msgspec.msgpack.Decoder[M], data: bytes) -> M:
    if len(data) > MESSAGE_BYTES_MAX:
        raise DecodeError(f"a message of masks of {len(data)} bytes: over {MESSAGE_BYTES_MAX}")
    try:
        message = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"a message of masks: {error}") from None
    if _ENCODER.encode(message) != data:
        raise DecodeError("a message of masks: not in its smallest encoding")
    return message


def _check_sizes(pieces: tuple[bytes, ...], size: int, *, spare: int) -> None:
    empty = pieces.count(b"")
    if empty > spare or any(len(piece) not in (0, size) for piece in pieces):
        raise DecodeError(f"a message of masks: pieces that have not {size} bytes")


def _check_count(members: bytes, count: int) -> None:
    if int.from_bytes(members, "little").bit_count() != count:
        raise DecodeError("a message of masks: not one piece a member")


def _check_within(inner: bytes, outer: bytes) -> None:
    if int.from_bytes(inner, "little") & ~int.from_bytes(outer, "little"):
        raise DecodeError("a message of masks: included and not in the maskset")
