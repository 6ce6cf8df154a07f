"""AutoNAT v2's messages: "can you dial me there?", the answer, and the number that proves it.

Two protocols: on `/libp2p/autonat/2/dial-request` a client names addresses of its own and a nonce;
on `/libp2p/autonat/2/dial-back` the server delivers the nonce over a new connection. Field 64 of a
request is Covey's: short hashes of peers that need not be asked to help (docs/specs/reachability.md
s.2); others skip it. Source: libp2p specs `autonat/autonat-v2.md`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from p2p.errors import DecodeError
from p2p.wire.multiaddr import decode_addr_untrusted, encode_addr
from p2p.wire.protobuf import decode_message_untrusted, encode_fixed64, encode_message

if TYPE_CHECKING:
    from p2p.identity import PeerId
    from p2p.net.seam import Addr

DIAL_REQUEST: Final = "/libp2p/autonat/2/dial-request"
DIAL_BACK: Final = "/libp2p/autonat/2/dial-back"

MESSAGE_BYTES_MAX: Final = 8192
"""Source: go-libp2p's `maxMsgSize` of autonatv2; js asks for no more."""
REQUEST_ADDRS_MAX: Final = 32
"""Addresses read of a request: as many as a peer may have (docs/specs/wire.md s.2)."""
AVOIDED_MAX: Final = 64
"""Peers that a request may ask not to bother."""
AVOIDED_BYTES: Final = 8
"""Length of their hashes: enough to tell 64 peers apart, too little to name a stranger."""
NONCE_MAX: Final = (1 << 64) - 1

_REQUEST, _RESPONSE, _DATA_REQUEST = 1, 2, 3
_ADDRS, _NONCE, _AVOIDED = 1, 2, 64
_STATUS, _INDEX, _DIAL_STATUS = 1, 2, 3
_DATA_BYTES = 2
_BACK_NONCE, _BACK_STATUS = 1, 1


class RequestStatus(IntEnum):
    """What became of a request. Source: autonat-v2.md, `ResponseStatus`."""

    INTERNAL_ERROR = 0
    REJECTED = 100
    """Too many requests."""
    REFUSED = 101
    """None of the addresses is dialled for this peer."""
    OK = 200


class DialStatus(IntEnum):
    """What became of the dial. Source: autonat-v2.md, `DialStatus`."""

    UNUSED = 0
    DIAL_ERROR = 100
    DIAL_BACK_ERROR = 101
    """Connected, but the nonce could not be delivered."""
    OK = 200


@dataclass(frozen=True)
class DialRequest:
    """Which of these can you dial?"""

    addrs: tuple[Addr | None, ...]
    """In order of preference; None where we do not understand one, so that indexes stay true."""
    nonce: int
    avoided: frozenset[bytes] = frozenset()
    """Of peers that the client talked to lately: `avoided_hash`."""


@dataclass(frozen=True)
class DialResponse:
    """How it went."""

    status: RequestStatus | int
    index: int = 0
    """Of the address that was dialled."""
    dial_status: DialStatus | int = DialStatus.UNUSED


@dataclass(frozen=True)
class DialDataRequest:
    """The server wants to be sent bytes before it dials another host than it sees."""

    index: int
    size_bytes: int


DialMessage: TypeAlias = DialRequest | DialResponse | DialDataRequest


def avoided_hash(nonce: int, peer: PeerId) -> bytes:
    """How a request names a peer: only who knows the peer can tell, and for this request only."""
    return hashlib.sha256(nonce.to_bytes(8, "big") + peer).digest()[:AVOIDED_BYTES]


def encode_dial(message: DialMessage) -> bytes:
    """The bytes of a message on the dial-request stream."""
    match message:
        case DialRequest(addrs, nonce, avoided):
            body = encode_message([(_ADDRS, encode_addr(addr)) for addr in addrs if addr])
            body += encode_fixed64(_NONCE, nonce)
            body += encode_message([(_AVOIDED, each) for each in sorted(avoided)])
            return encode_message([(_REQUEST, body)])
        case DialResponse(status, index, dial_status):
            fields = [(_STATUS, int(status)), (_INDEX, index), (_DIAL_STATUS, int(dial_status))]
            return encode_message([(_RESPONSE, encode_message(fields))])
        case DialDataRequest(index, size_bytes):
            fields = [(1, index), (_DATA_BYTES, size_bytes)]
            return encode_message([(_DATA_REQUEST, encode_message(fields))])


def decode_dial_untrusted(data: bytes) -> DialMessage:
    """Read a message of the dial-request stream.

    Raises:
        DecodeError: none of the messages that anybody sends us.
    """
    outer = decode_message_untrusted(data)
    if (body := outer.bytes_of(_REQUEST)) is not None:
        fields = decode_message_untrusted(body)
        avoided = fields.all_bytes(_AVOIDED)[:AVOIDED_MAX]
        return DialRequest(
            tuple(_addr(raw) for raw in fields.all_bytes(_ADDRS)[:REQUEST_ADDRS_MAX]),
            fields.int_of(_NONCE),
            frozenset(each for each in avoided if len(each) == AVOIDED_BYTES),
        )
    if (body := outer.bytes_of(_RESPONSE)) is not None:
        fields = decode_message_untrusted(body)
        return DialResponse(
            _request_status(fields.int_of(_STATUS)),
            fields.int_of(_INDEX),
            _dial_status(fields.int_of(_DIAL_STATUS)),
        )
    if (body := outer.bytes_of(_DATA_REQUEST)) is not None:
        fields = decode_message_untrusted(body)
        return DialDataRequest(fields.int_of(1), fields.int_of(_DATA_BYTES))
    raise DecodeError("autonat: an unknown message")


def encode_dial_back(nonce: int) -> bytes:
    """The bytes that deliver a nonce."""
    return encode_fixed64(_BACK_NONCE, nonce)


def decode_dial_back_untrusted(data: bytes) -> int:
    """The nonce that somebody delivers.

    Raises:
        DecodeError: there is none.
    """
    fields = decode_message_untrusted(data)
    if not fields.has(_BACK_NONCE) or fields.bytes_of(_BACK_NONCE) is not None:
        raise DecodeError("autonat: a dial-back without a nonce")
    return fields.int_of(_BACK_NONCE)


def encode_dial_back_ok() -> bytes:
    """The bytes that confirm a nonce. The status is written although it is 0."""
    return encode_message([(_BACK_STATUS, 0)])


def decode_dial_back_answer_untrusted(data: bytes) -> bool:
    """Whether the client confirms the nonce.

    Raises:
        DecodeError: not an answer.
    """
    return decode_message_untrusted(data).int_of(_BACK_STATUS) == 0


def _addr(raw: bytes) -> Addr | None:
    try:
        return decode_addr_untrusted(raw)
    except DecodeError:
        return None


def _request_status(value: int) -> RequestStatus | int:
    try:
        return RequestStatus(value)
    except ValueError:
        return value


def _dial_status(value: int) -> DialStatus | int:
    try:
        return DialStatus(value)
    except ValueError:
        return value
