"""HPKE on our primitives: RFC 9180's numbers, the library's own HPKE as oracle, refusals."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2p.errors import DecodeError
from p2p.replication import keys
from p2p.replication.keys import (
    SealError,
    check_exchange_public_untrusted,
    exchange_public,
    generate_exchange,
    hpke_open,
    hpke_seal,
)

SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
INFO = b"covey/seal/1\0" + bytes(32)


def rng(seed: int = 0) -> random.Random:
    return random.Random(seed)


class FixedBytes:
    """A generator that gives one key."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def randbytes(self, n: int) -> bytes:
        assert n == len(self.data)
        return self.data


def test_rfc_9180_base_mode_x25519_chacha20():
    # RFC 9180, appendix A.2.1.
    info = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
    ephemeral = "f4ec9b33b792c372c1d2c2063507b684ef925b8c75a42dbcbf57d63ccd381600"
    recipient = "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb"
    public = "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a"
    enc = "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a"
    shared = "0bbe78490412b4bbea4812666f7916932b828bba79942424abb65244930d69a7"
    assert exchange_public(bytes.fromhex(recipient)).hex() == public
    assert exchange_public(bytes.fromhex(ephemeral)).hex() == enc
    dh = X25519PrivateKey.from_private_bytes(bytes.fromhex(ephemeral)).exchange(
        X25519PublicKey.from_public_bytes(bytes.fromhex(public))
    )
    secret = keys._decapsulated(dh, bytes.fromhex(enc), bytes.fromhex(public))
    assert secret.hex() == shared
    key, nonce = keys._schedule(secret, info)
    assert key.hex() == "ad2744de8e17f4ebba575b3f5f5a8fa1f69c2a07f6e7500bc60ca6e3e3ec1c91"
    assert nonce.hex() == "5c4d98150661b848853b547f"
    plain = bytes.fromhex("4265617574792069732074727574682c20747275746820626561757479")
    ct = ChaCha20Poly1305(key).encrypt(nonce, plain, b"Count-0")
    assert ct.hex() == (
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28"
    )
    # With no associated data the whole message, from the sealer itself.
    sealed = hpke_seal(bytes.fromhex(public), info, plain, FixedBytes(bytes.fromhex(ephemeral)))
    assert sealed[:32].hex() == enc
    assert sealed[32:] == ChaCha20Poly1305(key).encrypt(nonce, plain, b"")


@pytest.mark.parametrize("length", [0, 1, 32, 64, 1_000])
def test_the_librarys_hpke_opens_ours_and_we_open_its(length):
    private = generate_exchange(rng(length))
    theirs = X25519PrivateKey.from_private_bytes(private)
    plain = rng(length + 1).randbytes(length)
    sealed = hpke_seal(exchange_public(private), INFO, plain, rng(2))
    assert SUITE.decrypt(sealed, theirs, info=INFO) == plain
    assert hpke_open(private, INFO, SUITE.encrypt(plain, theirs.public_key(), info=INFO)) == plain


def test_the_ephemeral_key_comes_from_the_caller():
    public = exchange_public(generate_exchange(rng(1)))
    assert hpke_seal(public, INFO, b"s", rng(2)) == hpke_seal(public, INFO, b"s", rng(2))
    assert hpke_seal(public, INFO, b"s", rng(2)) != hpke_seal(public, INFO, b"s", rng(3))


def test_sizes_are_those_of_the_specification():
    public = exchange_public(generate_exchange(rng(1)))
    assert len(hpke_seal(public, INFO, bytes(64), rng(2))) == 112
    assert len(hpke_seal(public, INFO, bytes(32), rng(2))) == 80


@pytest.mark.attack
def test_a_seal_opens_for_its_reader_and_its_purpose_only():
    private, other = generate_exchange(rng(1)), generate_exchange(rng(9))
    sealed = hpke_seal(exchange_public(private), INFO, b"secret", rng(2))
    assert hpke_open(private, INFO, sealed) == b"secret"
    for key, info, data in (
        (other, INFO, sealed),
        (private, INFO + b"x", sealed),
        (private, INFO, sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (private, INFO, bytes([sealed[0] ^ 1]) + sealed[1:]),
        (private, INFO, sealed[:47]),
        (private, INFO, b""),
        (private, INFO, bytes(112)),  # a low-order ephemeral key
    ):
        with pytest.raises(SealError):
            hpke_open(key, info, data)


@pytest.mark.attack
@pytest.mark.parametrize("length", [0, 31, 33])
def test_an_exchange_key_of_another_length_is_refused(length):
    with pytest.raises(DecodeError, match="X25519"):
        check_exchange_public_untrusted(bytes(length))
