"""Circuit relay v2's messages: hop (to the relay), stop (to the target), voucher.

The schemas are libp2p's `circuit-v2.md`; `type` and `status` are written even when 0, because js
refuses RESERVE and STOP messages without them. Nothing in a message is proof: a voucher is advice,
and the end-to-end handshake proves who is at the other end. Source: docs/specs/relay.md s.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from p2p.errors import DecodeError
from p2p.identity import decode_multihash_untrusted, peer_multihash
from p2p.limits import ADDRS_MAX
from p2p.wire.envelope import seal_envelope
from p2p.wire.multiaddr import decode_addr_untrusted, encode_addr
from p2p.wire.protobuf import decode_message_untrusted, encode_message

if TYPE_CHECKING:
    from p2p.identity import PeerId, Signer
    from p2p.net.seam import Addr
    from p2p.wire.protobuf import Fields

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"

VOUCHER_DOMAIN: Final = b"libp2p-relay-rsvp"
VOUCHER_TYPE: Final = bytes.fromhex("0302")

MESSAGE_BYTES_MAX: Final = 4096
"""Source: circuit-v2.md asks for a bound; js and go read 4 KiB."""

_TYPE, _PEER, _RESERVATION, _LIMIT, _STATUS = 1, 2, 3, 4, 5
_STOP_LIMIT, _STOP_STATUS = 3, 4
_PEER_ID, _PEER_ADDRS = 1, 2
_EXPIRE, _ADDRS, _VOUCHER = 1, 2, 3
_DURATION, _DATA = 1, 2


class HopType(IntEnum):
    """What a hop message is."""

    RESERVE = 0
    CONNECT = 1
    STATUS = 2


class StopType(IntEnum):
    """What a stop message is."""

    CONNECT = 0
    STATUS = 1


class Status(IntEnum):
    """How it went. Source: circuit-v2.md, "Status codes"."""

    NONE = 0
    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


@dataclass(frozen=True)
class Limit:
    """What a relay grants a circuit. js sends milliseconds for seconds: it is a hint.

    Args:
        duration_s: its longest life, 0 = unlimited.
        data_bytes: most bytes each way, 0 = unlimited.
    """

    duration_s: int
    data_bytes: int


@dataclass(frozen=True)
class Reservation:
    """A place at a relay."""

    expire_s: int
    """Unix seconds."""
    addrs: tuple[Addr, ...]
    """Where the relay is reached, with or without its `/p2p/R`."""
    voucher: bytes


@dataclass(frozen=True, kw_only=True)
class HopMessage:
    """Between a client and the relay."""

    type: HopType
    peer: PeerId | None = None
    reservation: Reservation | None = None
    limit: Limit | None = None
    status: Status | int = Status.NONE


@dataclass(frozen=True, kw_only=True)
class StopMessage:
    """Between the relay and the target of a circuit."""

    type: StopType
    peer: PeerId | None = None
    limit: Limit | None = None
    status: Status | int = Status.NONE


def encode_hop(message: HopMessage) -> bytes:
    """The bytes of a hop message."""
    fields: list[tuple[int, int | bytes]] = [(_TYPE, int(message.type))]
    if message.peer is not None:
        fields.append((_PEER, _encode_peer(message.peer)))
    if message.reservation is not None:
        fields.append((_RESERVATION, _encode_reservation(message.reservation)))
    if message.limit is not None:
        fields.append((_LIMIT, _encode_limit(message.limit)))
    if message.type is HopType.STATUS:
        fields.append((_STATUS, int(message.status)))
    return encode_message(fields)


def encode_stop(message: StopMessage) -> bytes:
    """The bytes of a stop message."""
    fields: list[tuple[int, int | bytes]] = [(_TYPE, int(message.type))]
    if message.peer is not None:
        fields.append((_PEER, _encode_peer(message.peer)))
    if message.limit is not None:
        fields.append((_STOP_LIMIT, _encode_limit(message.limit)))
    if message.type is StopType.STATUS:
        fields.append((_STOP_STATUS, int(message.status)))
    return encode_message(fields)


def decode_hop_untrusted(data: bytes) -> HopMessage:
    """Read a hop message. Addresses we do not understand are left out.

    Raises:
        DecodeError: not a hop message.
    """
    fields = decode_message_untrusted(data)
    try:
        kind = HopType(fields.int_of(_TYPE, -1))
    except ValueError:
        raise DecodeError("relay: an unknown hop message") from None
    reservation = fields.bytes_of(_RESERVATION)
    return HopMessage(
        type=kind,
        peer=_peer(fields),
        reservation=None if reservation is None else _reservation(reservation),
        limit=_limit(fields.bytes_of(_LIMIT)),
        status=_status(fields.int_of(_STATUS)),
    )


def decode_stop_untrusted(data: bytes) -> StopMessage:
    """Read a stop message.

    Raises:
        DecodeError: not a stop message.
    """
    fields = decode_message_untrusted(data)
    try:
        kind = StopType(fields.int_of(_TYPE, -1))
    except ValueError:
        raise DecodeError("relay: an unknown stop message") from None
    return StopMessage(
        type=kind,
        peer=_peer(fields),
        limit=_limit(fields.bytes_of(_STOP_LIMIT)),
        status=_status(fields.int_of(_STOP_STATUS)),
    )


def seal_voucher(relay: Signer, peer: PeerId, expire_s: int) -> bytes:
    """The relay's signed word that `peer` holds a place until `expire_s` (Unix seconds)."""
    payload = encode_message(
        [(1, peer_multihash(relay.id)), (2, peer_multihash(peer)), (3, expire_s)]
    )
    return seal_envelope(relay, VOUCHER_DOMAIN, VOUCHER_TYPE, payload)


def _encode_peer(peer: PeerId) -> bytes:
    return encode_message([(_PEER_ID, peer_multihash(peer))])


def _encode_reservation(reservation: Reservation) -> bytes:
    fields: list[tuple[int, int | bytes]] = [(_EXPIRE, reservation.expire_s)]
    fields += [(_ADDRS, encode_addr(addr)) for addr in reservation.addrs]
    if reservation.voucher:
        fields.append((_VOUCHER, reservation.voucher))
    return encode_message(fields)


def _encode_limit(limit: Limit) -> bytes:
    return encode_message([(_DURATION, limit.duration_s), (_DATA, limit.data_bytes)])


def _peer(fields: Fields) -> PeerId | None:
    raw = fields.bytes_of(_PEER)
    if raw is None:
        return None
    return decode_multihash_untrusted(decode_message_untrusted(raw).bytes_of(_PEER_ID) or b"")


def _reservation(raw: bytes) -> Reservation:
    fields = decode_message_untrusted(raw)
    addrs: list[Addr] = []
    for entry in fields.all_bytes(_ADDRS)[:ADDRS_MAX]:
        try:
            addrs.append(decode_addr_untrusted(entry))
        except DecodeError:
            continue
    return Reservation(fields.int_of(_EXPIRE), tuple(addrs), fields.bytes_of(_VOUCHER) or b"")


def _limit(raw: bytes | None) -> Limit | None:
    if raw is None:
        return None
    fields = decode_message_untrusted(raw)
    return Limit(fields.int_of(_DURATION), fields.int_of(_DATA))


def _status(value: int) -> Status | int:
    try:
        return Status(value)
    except ValueError:
        return value
