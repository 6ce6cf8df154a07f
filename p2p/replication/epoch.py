"""Epoch secrets: the key a group's bodies are wrapped under, and how members come by it.

A secret is 64 bytes: epoch key 32 and tag key 32. The tag key is constant over a group's life and
committed to in the genesis, or an admin could give two members different ones and split their state
cells. The epoch record commits to the secret, so no two members can be given different keys.
Source: docs/specs/record.md s.7.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from p2p.errors import AuthError
from p2p.replication.events import GroupError
from p2p.replication.keys import (
    DOMAIN_SEAL,
    DOMAIN_SEAL_OWNER,
    SealError,
    hpke_open,
    hpke_seal,
)
from p2p.replication.ops import Epoch, KeyShare, Role

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Mapping

    from p2p.replication.groups import Group
    from p2p.replication.standing import EpochRecord, Standing

SECRET_BYTES: Final = 64
EPOCH_ID_BYTES: Final = 16
KEY_TAG_BYTES: Final = 16
DOMAIN_EPOCH: Final = b"covey/epoch/1\0"
DOMAIN_TAG_KEY: Final = b"covey/tag-key/1\0"
DOMAIN_KEY_TAG: Final = b"covey/key/1\0"


def epoch_id(record_id: bytes) -> bytes:
    """How envelopes name an epoch: the first 16 bytes of its record's id.

    Sixteen, because of eight an admin could find twins in 2**32 hashes: two texts of one record.
    """
    return record_id[:EPOCH_ID_BYTES]


def new_secret(rng: random.Random, tag_key: bytes | None = None) -> bytes:
    """A fresh epoch secret; `tag_key` is the group's, None only when founding it."""
    return rng.randbytes(32) + (rng.randbytes(32) if tag_key is None else tag_key)


def epoch_key(secret: bytes) -> bytes:
    """The half that wraps data keys."""
    return secret[:32]


def tag_key(secret: bytes) -> bytes:
    """The half that tags state cells."""
    return secret[32:]


def tag_commit(secret: bytes) -> bytes:
    """What the genesis says of the tag key."""
    return hashlib.sha256(DOMAIN_TAG_KEY + tag_key(secret)).digest()


def key_commit(secret: bytes) -> bytes:
    """What the epoch record says of the secret."""
    return hashlib.sha256(DOMAIN_EPOCH + secret).digest()


def key_tag(secret: bytes, kind: str, path: bytes) -> bytes:
    """16 bytes naming a state cell without telling its path.

    Args:
        secret: any epoch's; they share the tag key.
        kind: the cell's type, so that two types under one path never meet.
        path: canonical path, the MessagePack array of its parts.
    """
    body = DOMAIN_KEY_TAG + kind.encode() + b"\0" + path
    return hmac.digest(tag_key(secret), body, "sha256")[:KEY_TAG_BYTES]


def make_epoch(
    group: bytes, secret: bytes, readers: Mapping[bytes, bytes], rng: random.Random
) -> Epoch:
    """The payload that starts an epoch.

    Args:
        group: the group.
        secret: see `new_secret`; the tag key must be the group's.
        readers: member -> X25519 key, of every member that may read.
        rng: source of the ephemeral keys.
    """
    shares = {
        member: seal_secret(group, secret, exchange_key, rng)
        for member, exchange_key in readers.items()
    }
    return Epoch(key_commit(secret), tuple(sorted(shares.items())))


def readers(standing: Standing, *, but: Collection[bytes] = ()) -> dict[bytes, bytes]:
    """Member -> X25519 key, of everybody who may read, but some."""
    return {
        member: key
        for member, role in standing.members().items()
        if role >= Role.READ
        and member not in but
        and (key := standing.exchange_key(member)) is not None
    }


def next_epoch(group: Group, rng: random.Random, *, but: Collection[bytes] = ()) -> Epoch:
    """The payload of a group's next epoch.

    Args:
        group: one whose key is here.
        rng: source of the secret and of the ephemeral keys.
        but: readers to leave out.

    Raises:
        GroupError: `key_missing`: none of its keys is here, so its tag key is not either.
    """
    former = next(iter(group.epochs.values()), None)
    if former is None:
        raise GroupError("key_missing", "no key of this group has arrived yet: sync first")
    secret = new_secret(rng, tag_key(former))
    return make_epoch(group.id, secret, readers(group.standing, but=but), rng)


def make_key_share(
    group: bytes,
    member: bytes,
    exchange_key: bytes,
    secrets: Mapping[bytes, bytes],
    rng: random.Random,
) -> KeyShare:
    """The payload that hands a newcomer epochs.

    Args:
        group: the group.
        member: the newcomer.
        exchange_key: its X25519 key.
        secrets: id of the epoch *record* (32 bytes) -> secret.
        rng: source of the ephemeral keys.
    """
    shares = {
        record_id: seal_secret(group, secret, exchange_key, rng)
        for record_id, secret in secrets.items()
    }
    return KeyShare(member, tuple(sorted(shares.items())))


def seal_secret(group: bytes, secret: bytes, exchange_key: bytes, rng: random.Random) -> bytes:
    """An epoch secret sealed to one member, 112 bytes."""
    return hpke_seal(exchange_key, DOMAIN_SEAL + group, secret, rng)


def open_share(epoch: EpochRecord, group: bytes, private: bytes, share: bytes, tag: bytes) -> bytes:
    """Open a sealed epoch secret and hold it against what the group committed to.

    Args:
        epoch: the record of the epoch it is said to belong to.
        group: the group.
        private: our X25519 key.
        share: the sealed secret, from the epoch itself or a key share.
        tag: the genesis's `tag_commit`.

    Raises:
        SealError: it does not open: not for us, or damaged.
        AuthError: it opens to another secret than the epoch or the genesis commits to.
    """
    secret = hpke_open(private, DOMAIN_SEAL + group, share)
    if len(secret) != SECRET_BYTES:
        raise SealError("sealed secret: not an epoch secret")
    if not hmac.compare_digest(key_commit(secret), epoch.payload.key_commit):
        raise AuthError("epoch: the sealed key is not the one the epoch commits to")
    if not hmac.compare_digest(tag_commit(secret), tag):
        raise AuthError("epoch: the tag key is not the group's")
    return secret


def seal_owner_seed(group: bytes, seed: bytes, exchange_key: bytes, rng: random.Random) -> bytes:
    """An owner key's seed sealed to one admin of the home, 80 bytes."""
    return hpke_seal(exchange_key, DOMAIN_SEAL_OWNER + group, seed, rng)


def open_owner_seed(group: bytes, private: bytes, sealed: bytes) -> bytes:
    """The owner key's seed; the caller checks it against the owner key.

    Raises:
        SealError: it does not open.
    """
    return hpke_open(private, DOMAIN_SEAL_OWNER + group, sealed)
