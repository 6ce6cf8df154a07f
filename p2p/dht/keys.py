"""Names of things in the DHT, and the metric between them.

A name is a byte string; its place is `SHA256(name)` read as a number, and the distance of two
places is their XOR. A peer's name is its 38-byte multihash. Source: docs/specs/dht.md s.2; Kademlia
s.2 (Maymounkov and Mazieres, 2002).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NewType

from p2p.errors import DecodeError, UsageError
from p2p.identity import (
    KEY_BYTES,
    PeerId,
    check_public_key_untrusted,
    decode_multihash_untrusted,
    peer_multihash,
)

Place = NewType("Place", int)
"""A point of the key space, 0 <= place < 2**256."""

PLACE_BITS: Final = 256
NAME_BYTES_MAX: Final = 32
"""Longest name of a value below its owner's key."""
KEY_BYTES_MAX: Final = 128
"""Longest key we read: the longest of ours has 75 bytes, a CID of the public network fewer."""

PEER_PREFIX: Final = b"/covey/peer/"
KV_PREFIX: Final = b"/covey/kv/"

_MULTIHASH_SHA256: Final = bytes.fromhex("1220")


def place_of(name: bytes) -> Place:
    """Where `name` belongs."""
    return Place(int.from_bytes(hashlib.sha256(name).digest(), "big"))


def peer_place(peer: PeerId) -> Place:
    """Where a peer is."""
    return place_of(peer_multihash(peer))


def shared_bits(a: Place, b: Place) -> int:
    """Length of the common prefix of two places: 0 for the far half, 256 for the same place."""
    return PLACE_BITS - (a ^ b).bit_length()


def peer_record_key(peer: PeerId) -> bytes:
    """The key of a peer's own record."""
    return PEER_PREFIX + peer_multihash(peer)


def value_key(owner: PeerId, name: bytes) -> bytes:
    """The key of a value: only `owner` can write there.

    Raises:
        UsageError: the name is longer than 32 bytes.
    """
    if len(name) > NAME_BYTES_MAX:
        raise UsageError(f"a value's name has at most {NAME_BYTES_MAX} bytes, this has {len(name)}")
    return KV_PREFIX + owner + name


def provider_key(name: bytes) -> bytes:
    """The key under which providers of something are found: a SHA-256 multihash of its name.

    A multihash, because software of the public network reads the key as one.
    """
    return _MULTIHASH_SHA256 + hashlib.sha256(name).digest()


@dataclass(frozen=True)
class PeerKey:
    """`/covey/peer/`: a peer's own record."""

    owner: PeerId


@dataclass(frozen=True)
class ValueKey:
    """`/covey/kv/`: a value its owner signs."""

    owner: PeerId
    name: bytes


def decode_key_untrusted(key: bytes) -> PeerKey | ValueKey | None:
    """What kind of value lives under `key`; None for a namespace that is not ours.

    Raises:
        DecodeError: a key of ours that is malformed.
    """
    if key.startswith(PEER_PREFIX):
        return PeerKey(decode_multihash_untrusted(key[len(PEER_PREFIX) :]))
    if key.startswith(KV_PREFIX):
        rest = key[len(KV_PREFIX) :]
        if not KEY_BYTES <= len(rest) <= KEY_BYTES + NAME_BYTES_MAX:
            raise DecodeError("a value's key is an owner of 32 bytes and a name of at most 32")
        return ValueKey(check_public_key_untrusted(rest[:KEY_BYTES]), rest[KEY_BYTES:])
    return None
