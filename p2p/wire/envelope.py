"""Signed envelopes and peer records (libp2p RFC 0002 and 0003).

An envelope says "this key says this, as this kind of statement". It is verified before anything in
it is decoded. Source: docs/specs/wire.md s.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2p.errors import AuthError, DecodeError
from p2p.identity import (
    decode_multihash_untrusted,
    decode_public_key_untrusted,
    encode_public_key,
    peer_multihash,
    verify,
)
from p2p.limits import ADDRS_MAX
from p2p.wire.multiaddr import decode_addr_untrusted, encode_addr
from p2p.wire.protobuf import decode_message_untrusted, encode_message
from p2p.wire.varint import encode_varint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.identity import PeerId, Signer
    from p2p.net.seam import Addr

ENVELOPE_BYTES_MAX: Final = 65_536
PEER_RECORD_DOMAIN: Final = b"libp2p-peer-record"
PEER_RECORD_TYPE: Final = bytes.fromhex("0301")
"""Both js and py send these two raw bytes; RFC 0003 prints another domain."""

_KEY, _TYPE, _PAYLOAD, _SIGNATURE = 1, 2, 3, 5
_RECORD_PEER, _RECORD_SEQ, _RECORD_ADDRS, _RECORD_ADDR = 1, 2, 3, 1


@dataclass(frozen=True)
class Statement:
    """What an envelope says, after its signature was verified."""

    peer: PeerId
    payload_type: bytes
    payload: bytes


def seal_envelope(signer: Signer, domain: bytes, payload_type: bytes, payload: bytes) -> bytes:
    """Sign `payload` as a statement of kind `payload_type` in `domain`."""
    signature = signer.sign(*_signed(domain, payload_type, payload))
    return encode_message(
        [
            (_KEY, encode_public_key(signer.id)),
            (_TYPE, payload_type),
            (_PAYLOAD, payload),
            (_SIGNATURE, signature),
        ]
    )


def open_envelope_untrusted(data: bytes, domain: bytes, payload_type: bytes) -> Statement:
    """Verify an envelope.

    Raises:
        DecodeError: not an envelope, a key we refuse, or another kind of statement.
        AuthError: the signature is wrong.
    """
    if len(data) > ENVELOPE_BYTES_MAX:
        raise DecodeError("the envelope is too large")
    fields = decode_message_untrusted(data)
    peer = decode_public_key_untrusted(fields.bytes_of(_KEY) or b"")
    kind = fields.bytes_of(_TYPE) or b""
    payload = fields.bytes_of(_PAYLOAD) or b""
    if kind != payload_type:
        raise DecodeError("the envelope holds another kind of statement")
    prefix, body = _signed(domain, kind, payload)
    if not verify(peer, prefix, body, fields.bytes_of(_SIGNATURE) or b""):
        raise AuthError("the envelope's signature is wrong", peer)
    return Statement(peer, kind, payload)


def _signed(domain: bytes, payload_type: bytes, payload: bytes) -> tuple[bytes, bytes]:
    def block(part: bytes) -> bytes:
        return encode_varint(len(part)) + part

    return block(domain), block(payload_type) + block(payload)


@dataclass(frozen=True)
class PeerRecord:
    """Addresses a peer signed. Among records of a peer the highest `seq` counts."""

    peer: PeerId
    seq: int
    addrs: tuple[Addr, ...]


def seal_peer_record(signer: Signer, seq: int, addrs: Sequence[Addr]) -> bytes:
    """An envelope with our own record.

    Args:
        signer: our identity.
        seq: Unix milliseconds, at least the last one + 1.
        addrs: where we are reached, at most 32.
    """
    fields: list[tuple[int, int | bytes]] = [
        (_RECORD_PEER, peer_multihash(signer.id)),
        (_RECORD_SEQ, seq),
    ]
    fields += [
        (_RECORD_ADDRS, encode_message([(_RECORD_ADDR, encode_addr(addr))]))
        for addr in addrs[:ADDRS_MAX]
    ]
    return seal_envelope(signer, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, encode_message(fields))


def open_peer_record_untrusted(data: bytes) -> PeerRecord:
    """Verify and read a record. Addresses we do not understand are left out.

    Raises:
        DecodeError: not a peer record.
        AuthError: the signature is wrong, or the record speaks of somebody else.
    """
    statement = open_envelope_untrusted(data, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE)
    fields = decode_message_untrusted(statement.payload)
    if decode_multihash_untrusted(fields.bytes_of(_RECORD_PEER) or b"") != statement.peer:
        raise AuthError("the peer record speaks of another peer", statement.peer)
    addrs: list[Addr] = []
    for entry in fields.all_bytes(_RECORD_ADDRS)[:ADDRS_MAX]:
        try:
            inner = decode_message_untrusted(entry).bytes_of(_RECORD_ADDR) or b""
            addrs.append(decode_addr_untrusted(inner))
        except DecodeError:
            continue
    return PeerRecord(statement.peer, fields.int_of(_RECORD_SEQ), tuple(addrs))
