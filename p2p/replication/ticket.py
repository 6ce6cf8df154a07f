"""The ticket: everything a second device needs to find and join a group, as text.

`COVEY1` and unpadded base32 of MessagePack fields and a checksum, so that a cut-off or mistyped
ticket is refused offline. It is a secret until used: it holds the seed of the invite key.
Source: docs/specs/ticket.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Annotated, Final, TypeAlias

import msgspec

from p2p.errors import DecodeError
from p2p.identity import check_public_key_untrusted
from p2p.replication.canonical import U32, Bytes32, decode_canonical_untrusted, encode_canonical
from p2p.replication.checkwords import check_words
from p2p.replication.ops import Role

__all__ = ["Ticket", "check_words", "decode_ticket_untrusted", "encode_ticket"]

PREFIX: Final = "COVEY1"
_FAMILY: Final = "COVEY"
CHECKSUM_BYTES: Final = 4
ADDRESSES_MAX: Final = 6
# A DNS name of 253 characters with its multiaddr framing; an IPv6 address takes 21.
ADDRESS_BYTES_MAX: Final = 272
NAME_CHARACTERS_MAX: Final = 32
# The largest ticket: six longest addresses, the name in four-byte characters.
TICKET_BYTES_MAX: Final = 2_048
TEXT_CHARACTERS_MAX: Final = 4_096

_Address: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=1, max_length=ADDRESS_BYTES_MAX)]


class Ticket(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a ticket says."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    group: Bytes32
    role: Role
    inviter: Bytes32
    """Device key of whoever made the ticket."""
    seed: Bytes32
    """Secret: seed of the invite key (`invites.invite_identity`)."""
    not_after_s: U32
    """Unix seconds."""
    uses: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
    addrs: Annotated[tuple[_Address, ...], msgspec.Meta(max_length=ADDRESSES_MAX)]
    """Binary multiaddrs of the inviter without `/p2p`, global ones first."""
    name: Annotated[str, msgspec.Meta(max_length=NAME_CHARACTERS_MAX)]
    """The inviter's local name of the group, a suggestion."""

    def expired(self, wall_ms: int) -> bool:
        """Whether the ticket's time is over by the given clock."""
        return wall_ms > self.not_after_s * 1000


_decoder = msgspec.msgpack.Decoder(Ticket)


def encode_ticket(ticket: Ticket) -> str:
    """The text to hand over."""
    fields = encode_canonical(ticket)
    return PREFIX + _base32(fields + _checksum(fields))


def decode_ticket_untrusted(text: str) -> Ticket:
    """Read a ticket as a person pasted it: any case, white space anywhere.

    Raises:
        DecodeError: not a ticket, of another version, damaged, or holding an unusable key; the
            message tells the person what to do.
    """
    if len(text) > TEXT_CHARACTERS_MAX:
        raise DecodeError("this is too long to be a Covey ticket")
    compact = "".join(text.split()).upper()
    if not compact.startswith(PREFIX):
        if compact.startswith(_FAMILY):
            raise DecodeError(
                "this ticket was made by another version of Covey; this one reads COVEY1 tickets: "
                "use the same version on both devices"
            )
        raise DecodeError("this is not a Covey ticket: those begin with COVEY1")
    data = _unbase32(compact[len(PREFIX) :])
    fields, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if not hmac.compare_digest(_checksum(fields), checksum):
        raise DecodeError("the ticket is damaged or not complete: copy it again, all of it")
    ticket = decode_canonical_untrusted(_decoder, fields, bytes_max=TICKET_BYTES_MAX, what="ticket")
    check_public_key_untrusted(ticket.inviter)
    if not ticket.name.isprintable():
        # It is shown on a terminal before anything is trusted.
        raise DecodeError("ticket: the group's name holds control characters")
    return ticket


def _checksum(fields: bytes) -> bytes:
    return hashlib.sha256(fields).digest()[:CHECKSUM_BYTES]


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=")


def _unbase32(text: str) -> bytes:
    damaged = "the ticket is damaged or not complete: copy it again, all of it"
    try:
        data = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError) as error:
        raise DecodeError(damaged) from error
    # The last character has spare bits; a ticket has one spelling only.
    if _base32(data) != text or len(data) <= CHECKSUM_BYTES:
        raise DecodeError(damaged)
    return data
