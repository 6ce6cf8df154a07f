"""Messages of the DHT: libp2p's Kademlia protobuf, with two fields of our own kind in `Peer`.

A stream carries any number of requests, each `uv length` + message, and their answers in order.
`signedRecord` (4) and `covey_claim` (64) are skipped by other software. Nothing in a message is
proof: signatures are verified by `p2p.dht.records`. Source: docs/specs/dht.md s.3; libp2p specs
`kad-dht/README.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from p2p.dht.keys import KEY_BYTES_MAX
from p2p.errors import DecodeError, LimitError
from p2p.identity import decode_multihash_untrusted, peer_multihash
from p2p.limits import ADDRS_MAX
from p2p.wire.multiaddr import decode_addr_untrusted, encode_addr
from p2p.wire.protobuf import decode_message_untrusted, encode_message
from p2p.wire.varint import decode_varint_untrusted, encode_varint

if TYPE_CHECKING:
    from p2p.identity import PeerId
    from p2p.net.seam import Addr

MESSAGE_BYTES_MAX: Final = 65_536
"""A message without its length; go and js send at most a quarter of it."""
CLOSER_MAX: Final = 20
"""Closer peers read of one answer: k. An honest node sends no more."""
PROVIDERS_MAX: Final = 64
"""Providers read of one answer, and held of one key."""
VALUE_BYTES_MAX: Final = 2048
"""A value: an envelope around 1,024 bytes of body has about 1,250."""
RECORD_BYTES_MAX: Final = 2048
"""A signed peer record. Twenty of them and their claims fit into a message."""
CLAIM_BYTES_MAX: Final = 512
"""A provider's claim; ours have about 200 bytes."""

_TYPE, _KEY, _RECORD, _CLOSER, _PROVIDERS = 1, 2, 3, 8, 9
_RECORD_KEY, _RECORD_VALUE, _RECORD_RECEIVED = 1, 2, 5
_PEER_ID, _PEER_ADDRS, _PEER_CONNECTION, _PEER_SIGNED, _PEER_CLAIM = 1, 2, 3, 4, 64


class MessageType(IntEnum):
    """What is asked or answered. Numbers of the public format."""

    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4


@dataclass(frozen=True)
class DhtPeer:
    """A peer as a message names it."""

    peer: PeerId
    addrs: tuple[Addr, ...] = ()
    """Addresses without a signature; not read if there is a signed record."""
    signed_record: bytes = b""
    """The peer's own record, an envelope."""
    claim: bytes = b""
    """The peer's own word that it provides something, an envelope."""


@dataclass(frozen=True)
class DhtRecord:
    """A value as a message carries it."""

    key: bytes
    value: bytes


@dataclass(frozen=True, kw_only=True)
class DhtMessage:
    """A request or its answer."""

    kind: MessageType
    key: bytes = b""
    record: DhtRecord | None = None
    closer: tuple[DhtPeer, ...] = ()
    providers: tuple[DhtPeer, ...] = ()


def encode_dht_message(message: DhtMessage) -> bytes:
    """The message without its length. Last peers are left out if it would pass 64 KiB."""
    while True:
        encoded = _encode(message)
        if len(encoded) <= MESSAGE_BYTES_MAX:
            return encoded
        if len(message.providers) > 1:
            kept = message.providers[: len(message.providers) * 3 // 4]
            message = replace(message, providers=kept)
        else:
            assert message.closer, "a record alone fits into a message"
            message = replace(message, closer=message.closer[: len(message.closer) * 3 // 4])


def frame(message: DhtMessage) -> bytes:
    """The message with its length, as it is sent."""
    encoded = encode_dht_message(message)
    return encode_varint(len(encoded)) + encoded


def _encode(message: DhtMessage) -> bytes:
    # The type is written even when it is 0: some readers refuse a message without it.
    fields: list[tuple[int, int | bytes]] = [(_TYPE, int(message.kind))]
    if message.key:
        fields.append((_KEY, message.key))
    if message.record is not None:
        record = [(_RECORD_KEY, message.record.key), (_RECORD_VALUE, message.record.value)]
        fields.append((_RECORD, encode_message(record)))
    fields += [(_CLOSER, encode_peer(peer)) for peer in message.closer]
    fields += [(_PROVIDERS, encode_peer(peer)) for peer in message.providers]
    return encode_message(fields)


# The same nodes are named in answer after answer, by us and to us: a look-up hears of each some
# twenty times. A thousand are those that a busy node meets in some minutes, 3 MB at most.
@lru_cache(maxsize=1024)
def encode_peer(peer: DhtPeer) -> bytes:
    """The bytes of one peer inside a message."""
    fields: list[tuple[int, int | bytes]] = [(_PEER_ID, peer_multihash(peer.peer))]
    fields += [(_PEER_ADDRS, encode_addr(addr)) for addr in peer.addrs[:ADDRS_MAX]]
    if peer.signed_record:
        fields.append((_PEER_SIGNED, peer.signed_record))
    if peer.claim:
        fields.append((_PEER_CLAIM, peer.claim))
    return encode_message(fields)


def decode_dht_message_untrusted(data: bytes) -> DhtMessage:
    """Read one message without its length.

    Peers with keys of other kinds than ours, or malformed, are left out; their neighbours count.

    Raises:
        DecodeError: malformed, over a limit, or of a type we do not know.
    """
    if len(data) > MESSAGE_BYTES_MAX:
        raise DecodeError("a DHT message is over 64 KiB")
    fields = decode_message_untrusted(data)
    number = fields.int_of(_TYPE)
    if number not in set(MessageType):
        raise DecodeError("a DHT message of an unknown type")
    key = fields.bytes_of(_KEY) or b""
    if len(key) > KEY_BYTES_MAX:
        raise DecodeError(f"a DHT key is over {KEY_BYTES_MAX} bytes")
    record = fields.bytes_of(_RECORD)
    return DhtMessage(
        kind=MessageType(number),
        key=key,
        record=None if record is None else _decode_record_untrusted(record),
        closer=_decode_peers(fields.all_bytes(_CLOSER)[:CLOSER_MAX]),
        providers=_decode_peers(fields.all_bytes(_PROVIDERS)[:PROVIDERS_MAX]),
    )


def _decode_record_untrusted(data: bytes) -> DhtRecord:
    fields = decode_message_untrusted(data)
    key = fields.bytes_of(_RECORD_KEY) or b""
    value = fields.bytes_of(_RECORD_VALUE) or b""
    if len(key) > KEY_BYTES_MAX or len(value) > VALUE_BYTES_MAX:
        raise DecodeError(
            f"a DHT record's key or value ({VALUE_BYTES_MAX} bytes) is over its limit"
        )
    return DhtRecord(key, value)


def _decode_peers(entries: list[bytes]) -> tuple[DhtPeer, ...]:
    found: dict[PeerId, DhtPeer] = {}
    for entry in entries:
        try:
            peer = _decode_peer_untrusted(entry)
        except DecodeError:
            continue
        found.setdefault(peer.peer, peer)
    return tuple(found.values())


@lru_cache(maxsize=1024)
def _decode_peer_untrusted(data: bytes) -> DhtPeer:
    fields = decode_message_untrusted(data)
    signed = fields.bytes_of(_PEER_SIGNED) or b""
    claim = fields.bytes_of(_PEER_CLAIM) or b""
    if len(signed) > RECORD_BYTES_MAX or len(claim) > CLAIM_BYTES_MAX:
        raise DecodeError("a DHT peer's record or claim is over its limit")
    addrs: list[Addr] = []
    # With a record nobody asks for what is unsigned, and twenty peers have some hundred addresses.
    for raw in [] if signed else fields.all_bytes(_PEER_ADDRS)[:ADDRS_MAX]:
        try:
            addrs.append(decode_addr_untrusted(raw))
        except DecodeError:
            continue
    peer = decode_multihash_untrusted(fields.bytes_of(_PEER_ID) or b"")
    return DhtPeer(peer, tuple(addrs), signed, claim)


class MessageReader:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> None:
        """Take bytes in any cut."""
        self._buffer += data

    def next_message_untrusted(self) -> DhtMessage | None:
        """The next whole message, or None if more bytes are needed.

        Raises:
            DecodeError: not a message.
            LimitError: announced as over 64 KiB; nothing of it is kept.
        """
        found = decode_varint_untrusted(self._buffer)
        if found is None:
            return None
        length, start = found
        if length > MESSAGE_BYTES_MAX:
            raise LimitError("a DHT message is over 64 KiB")
        if len(self._buffer) < start + length:
            return None
        data = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return decode_dht_message_untrusted(data)

    @property
    def is_between(self) -> bool:
        """Whether no message has begun: a good moment for the stream to end."""
        return not self._buffer
