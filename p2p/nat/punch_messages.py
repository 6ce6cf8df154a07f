"""DCUtR's messages. Source: libp2p specs `relay/DCUtR.md`; docs/specs/punch.md s.2."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from p2p.errors import DecodeError
from p2p.wire.multiaddr import decode_addr_untrusted, encode_addr
from p2p.wire.protobuf import decode_message_untrusted, encode_message

if TYPE_CHECKING:
    from p2p.net.seam import Addr

DCUTR: Final = "/libp2p/dcutr"
MESSAGE_BYTES_MAX: Final = 4096
"""Source: DCUtR.md, "4 KiB"."""
PUNCH_ADDRS_MAX: Final = 8
"""Addresses aimed at; more would make us a tool against others."""

_TYPE, _ADDRS = 1, 2


class PunchType(IntEnum):
    """What a message is."""

    CONNECT = 100
    SYNC = 300


@dataclass(frozen=True)
class PunchMessage:
    """One message."""

    type: PunchType
    addrs: tuple[Addr, ...] = ()
    """Where the sender is seen by others."""


def encode_punch(message: PunchMessage) -> bytes:
    """The bytes of a message."""
    fields: list[tuple[int, int | bytes]] = [(_TYPE, int(message.type))]
    fields += [(_ADDRS, encode_addr(addr)) for addr in message.addrs]
    return encode_message(fields)


def decode_punch_untrusted(data: bytes) -> PunchMessage:
    """Read a message. Addresses we do not understand are left out.

    Raises:
        DecodeError: not a DCUtR message.
    """
    fields = decode_message_untrusted(data)
    try:
        kind = PunchType(fields.int_of(_TYPE))
    except ValueError:
        raise DecodeError("hole punching: an unknown message") from None
    addrs: list[Addr] = []
    for raw in fields.all_bytes(_ADDRS)[:PUNCH_ADDRS_MAX]:
        try:
            addrs.append(decode_addr_untrusted(raw))
        except DecodeError:
            continue
    return PunchMessage(kind, tuple(addrs))
