"""X25519 keys and HPKE: how secrets reach one reader.

`cryptography` has an HPKE of its own, but it draws its ephemeral key from the operating system,
which breaks seeded simulation; so it is written here on its primitives, the ephemeral key coming
from the caller, and the tests hold it against that HPKE and the vectors of RFC 9180.

Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305, base mode, one message a context.
Source: RFC 9180 s.4.1, 5.1, 6.1; docs/specs/record.md s.7.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2p.errors import DecodeError

if TYPE_CHECKING:
    import random

DOMAIN_SEAL: Final = b"covey/seal/1\0"
DOMAIN_SEAL_OWNER: Final = b"covey/seal-owner/1\0"

KEY_BYTES: Final = 32
SEAL_OVERHEAD_BYTES: Final = 48
"""Ephemeral key 32 and tag 16."""

# RFC 9180 s.4.1 and 5.1: KEM 0x0020, KDF 0x0001, AEAD 0x0003.
_KEM_SUITE: Final = b"KEM\x00\x20"
_SUITE: Final = b"HPKE\x00\x20\x00\x01\x00\x03"
_VERSION: Final = b"HPKE-v1"
_MODE_BASE: Final = b"\x00"

# Any private key finds a low-order point: clamped scalars are multiples of the cofactor, so the
# exchange gives zero whoever tries. This one is no secret.
_PROBE: Final = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"covey/probe/1\0").digest())


class SealError(DecodeError):
    """A sealed secret does not open: another reader's, another group's, or damaged."""


def generate_exchange(rng: random.Random) -> bytes:
    """A new X25519 private key, 32 bytes."""
    return rng.randbytes(KEY_BYTES)


def exchange_public(private: bytes) -> bytes:
    """The public half of an X25519 private key, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def check_exchange_public_untrusted(public: bytes) -> None:
    """Refuse an X25519 key nobody can exchange with.

    One such key in a group would make every later rotation fail.

    Raises:
        DecodeError: not 32 bytes, or a point of low order.
    """
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise DecodeError("X25519 key: not a usable point") from error


def hpke_seal(public: bytes, info: bytes, plain: bytes, rng: random.Random) -> bytes:
    """Seal `plain` to the holder of `public`.

    Args:
        public: X25519 key, checked when it was decoded.
        info: what the secret is for; another info does not open it.
        plain: the secret.
        rng: source of the ephemeral key.

    Returns:
        Ephemeral key 32 || ciphertext || tag 16.
    """
    ephemeral = X25519PrivateKey.from_private_bytes(generate_exchange(rng))
    enc = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    key, nonce = _schedule(_decapsulated(shared, enc, public), info)
    return enc + ChaCha20Poly1305(key).encrypt(nonce, plain, b"")


def hpke_open(private: bytes, info: bytes, sealed: bytes) -> bytes:
    """Open what was sealed to our key.

    Raises:
        SealError: not for this key or this info, or damaged.
    """
    if len(sealed) < SEAL_OVERHEAD_BYTES:
        raise SealError("sealed secret: too short")
    enc, ct = sealed[:KEY_BYTES], sealed[KEY_BYTES:]
    ours = X25519PrivateKey.from_private_bytes(private)
    try:
        shared = ours.exchange(X25519PublicKey.from_public_bytes(enc))
        public = ours.public_key().public_bytes_raw()
        key, nonce = _schedule(_decapsulated(shared, enc, public), info)
        return ChaCha20Poly1305(key).decrypt(nonce, ct, b"")
    except (InvalidTag, ValueError) as error:
        raise SealError("sealed secret: does not open with this key") from error


def _decapsulated(shared: bytes, enc: bytes, public: bytes) -> bytes:
    """The KEM's shared secret (RFC 9180 s.4.1, ExtractAndExpand)."""
    prk = _extract(_KEM_SUITE, b"", b"eae_prk", shared)
    return _expand(_KEM_SUITE, prk, b"shared_secret", enc + public, 32)


def _schedule(shared_secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key and nonce of the only message (RFC 9180 s.5.1, base mode, empty psk)."""
    context = (
        _MODE_BASE
        + _extract(_SUITE, b"", b"psk_id_hash", b"")
        + _extract(_SUITE, b"", b"info_hash", info)
    )
    secret = _extract(_SUITE, shared_secret, b"secret", b"")
    return (
        _expand(_SUITE, secret, b"key", context, 32),
        _expand(_SUITE, secret, b"base_nonce", context, 12),
    )


def _extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), _VERSION + suite + label + ikm, "sha256")


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    # One HMAC block is enough: no length here is over 32.
    assert length <= 32
    labeled = length.to_bytes(2, "big") + _VERSION + suite + label + info
    return hmac.digest(prk, labeled + b"\x01", "sha256")[:length]
