"""A small sealer and an author that really sign and encrypt, for tests of the store alone.

Headers here are JSON: the store treats them as opaque bytes, and `p2p` is not needed to test it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from memory.seams import Draft, LogKey, Position

NONCE = bytes(12)


@dataclass(frozen=True)
class PlainEnvelope:
    """A record's detachable part."""

    salt: bytes
    epoch: bytes | None
    wrap: bytes | None
    ct: bytes


@dataclass(frozen=True)
class PlainRecord:
    """A signed record; satisfies `memory.seams.Verified`."""

    id: bytes
    group: bytes
    author: bytes
    incarnation: int
    lane: int
    seq: int
    prev: bytes | None
    hlc: int
    kind: int
    key_tag: bytes | None
    supersedes: Sequence[bytes]
    header: bytes
    signature: bytes
    envelope: PlainEnvelope | None
    plain: bytes | None
    state: str
    owner: bytes
    relation: str

    def as_seen(self, relation: str, **changes: object) -> PlainRecord:
        """The same record as another node's admission hands it to the store."""
        return replace(self, relation=relation, **changes)  # type: ignore[arg-type]

    def check(self) -> None:
        """Verify the signature.

        Raises:
            InvalidSignature: it does not hold.
        """
        Ed25519PublicKey.from_public_bytes(self.author).verify(self.signature, self.header)


@dataclass
class PlainSealer:
    """One device: signs, encrypts and dates drafts for any group it has joined.

    Args:
        rng: keys and salts come from it.
        wall_ms: the device's clock.
        owner: owner key, by default the device's own.
    """

    rng: random.Random
    wall_ms: Callable[[], int]
    owner: bytes | None = None
    incarnation: int = 1
    groups: set[bytes] = field(default_factory=set)
    hlc: int = 0

    def __post_init__(self) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(self.rng.randbytes(32))
        self.device = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.epoch_key = hashlib.sha256(b"epoch").digest()
        self.epoch = hashlib.sha256(self.epoch_key).digest()[:16]

    def join(self, group: bytes) -> bytes:
        """Become able to write to the group."""
        self.groups.add(group)
        return group

    def log(self, group: bytes, lane: int) -> LogKey:
        """Our log."""
        if group not in self.groups:
            raise KeyError(group)
        return (group, self.device, self.incarnation, lane)

    def seal(self, draft: Draft, at: Position) -> PlainRecord:
        """Sign and encrypt."""
        self.hlc = max(self.hlc + 1, self.wall_ms() << 16, at.hlc_min + 1)
        group, author, incarnation, lane = at.log
        envelope = self._envelope(draft.body, lane)
        header = json.dumps(
            [
                group.hex(),
                author.hex(),
                incarnation,
                lane,
                at.seq,
                at.prev.hex() if at.prev else None,
                self.hlc,
                draft.kind,
                hashlib.sha256(envelope.ct).hexdigest(),
            ]
        ).encode()
        return PlainRecord(
            id=hashlib.sha256(header).digest(),
            group=group,
            author=author,
            incarnation=incarnation,
            lane=lane,
            seq=at.seq,
            prev=at.prev,
            hlc=self.hlc,
            kind=draft.kind,
            key_tag=draft.key_tag,
            supersedes=tuple(draft.supersedes),
            header=header,
            signature=self._key.sign(header),
            envelope=envelope,
            plain=draft.body if lane else None,
            state="live",
            owner=self.owner or author,
            relation="own",
        )

    def _envelope(self, body: bytes, lane: int) -> PlainEnvelope:
        salt = self.rng.randbytes(16)
        if lane == 0:
            return PlainEnvelope(salt, None, None, body)
        data_key = self.rng.randbytes(32)
        wrap_nonce = self.rng.randbytes(12)
        wrap = wrap_nonce + ChaCha20Poly1305(self.epoch_key).encrypt(wrap_nonce, data_key, b"")
        ct = ChaCha20Poly1305(data_key).encrypt(NONCE, body, b"")
        return PlainEnvelope(salt, self.epoch, wrap, ct)


def open_body(record_envelope: PlainEnvelope, epoch_key: bytes) -> bytes:
    """The plain body again."""
    wrap, ct = record_envelope.wrap, record_envelope.ct
    assert wrap is not None
    data_key = ChaCha20Poly1305(epoch_key).decrypt(wrap[:12], wrap[12:], b"")
    return ChaCha20Poly1305(data_key).decrypt(NONCE, ct, b"")
