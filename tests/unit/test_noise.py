"""Noise XX: the same bytes as a plain second implementation, proofs, and every way to fail.

`Reference` below is written from the specification's pseudocode, straight down, without a class of
the product: it holds both sides' keys and computes the transcript.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import AuthError, DecodeError, PeerError, ProtocolError, UsageError
from p2p.identity import Identity
from p2p.wire.noise import (
    NOISE_TRANSITIONS,
    NoiseHandshake,
    NoiseInput,
    NoiseState,
    Opener,
    Sealer,
)
from tests.helpers.wire_kit import seal

ALICE = Identity(b"a" * 32)
BOB = Identity(b"b" * 32)
KEYS = {name: hashlib.sha256(name.encode()).digest() for name in ("sa", "ea", "sb", "eb")}

# The eight encodings of X25519 points of low order and their twists that libraries list.
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


class Transcript(NamedTuple):
    """What a handshake with fixed keys looks like."""

    messages: list[bytes]
    initiator_key: bytes
    responder_key: bytes


def reference_handshake(static_a: bytes, eph_a: bytes, static_b: bytes, eph_b: bytes) -> Transcript:
    """Both sides at once, from the pseudocode of the Noise specification."""

    def public(private: bytes) -> bytes:
        return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()

    def dh(private: bytes, remote: bytes) -> bytes:
        key = X25519PrivateKey.from_private_bytes(private)
        return key.exchange(X25519PublicKey.from_public_bytes(remote))

    def payload(seed: bytes, static: bytes) -> bytes:
        key = Ed25519PrivateKey.from_private_bytes(seed)
        identity = b"\x08\x01\x12\x20" + key.public_key().public_bytes_raw()
        signature = key.sign(b"noise-libp2p-static-key:" + static)
        return b"\x0a\x24" + identity + b"\x12\x40" + signature

    h = ck = b"Noise_XX_25519_ChaChaPoly_SHA256"
    h = hashlib.sha256(h).digest()

    # Message 1: -> e
    h = hashlib.sha256(h + public(eph_a)).digest()
    h = hashlib.sha256(h + b"").digest()
    first = public(eph_a)

    # Message 2: <- e, ee, s, es
    h = hashlib.sha256(h + public(eph_b)).digest()
    temp = hmac.digest(ck, dh(eph_b, public(eph_a)), "sha256")
    ck = hmac.digest(temp, b"\x01", "sha256")
    k = hmac.digest(temp, ck + b"\x02", "sha256")
    sealed_s = ChaCha20Poly1305(k).encrypt(bytes(12), public(static_b), h)
    h = hashlib.sha256(h + sealed_s).digest()
    temp = hmac.digest(ck, dh(static_b, public(eph_a)), "sha256")
    ck = hmac.digest(temp, b"\x01", "sha256")
    k = hmac.digest(temp, ck + b"\x02", "sha256")
    sealed_p = ChaCha20Poly1305(k).encrypt(bytes(12), payload(b"b" * 32, public(static_b)), h)
    h = hashlib.sha256(h + sealed_p).digest()
    second = public(eph_b) + sealed_s + sealed_p

    # Message 3: -> s, se. The key of "es" is still in use for s, with nonce 1.
    sealed_s = ChaCha20Poly1305(k).encrypt(bytes(4) + b"\x01" + bytes(7), public(static_a), h)
    h = hashlib.sha256(h + sealed_s).digest()
    temp = hmac.digest(ck, dh(static_a, public(eph_b)), "sha256")
    ck = hmac.digest(temp, b"\x01", "sha256")
    k = hmac.digest(temp, ck + b"\x02", "sha256")
    sealed_p = ChaCha20Poly1305(k).encrypt(bytes(12), payload(b"a" * 32, public(static_a)), h)
    third = sealed_s + sealed_p

    temp = hmac.digest(ck, b"", "sha256")
    k1 = hmac.digest(temp, b"\x01", "sha256")
    k2 = hmac.digest(temp, k1 + b"\x02", "sha256")
    return Transcript([first, second, third], k1, k2)


def test_large_messages_share_a_buffer_and_are_right() -> None:
    sealer, opener = Sealer(KEYS["sa"]), Opener(KEYS["sa"])
    texts = [bytes([n]) * (60_000 + n) for n in range(3)] + [b"small"]
    data = b"".join(seal(sealer, text) for text in texts)
    assert [bytes(plain) for plain in opener.receive(data)] == texts


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def pair(
    *, expected: Identity | None = BOB, alice: Identity = ALICE, bob: Identity = BOB
) -> tuple[NoiseHandshake, NoiseHandshake]:
    initiator = NoiseHandshake(
        alice,
        initiator=True,
        static=KEYS["sa"],
        ephemeral=KEYS["ea"],
        expected=expected.id if expected else None,
    )
    responder = NoiseHandshake(bob, initiator=False, static=KEYS["sb"], ephemeral=KEYS["eb"])
    return initiator, responder


def test_every_message_equals_the_reference() -> None:
    expected = reference_handshake(KEYS["sa"], KEYS["ea"], KEYS["sb"], KEYS["eb"])
    initiator, responder = pair()
    first = initiator.to_send()
    responder.receive(first)
    second = responder.to_send()
    assert initiator.receive(second)
    third = initiator.to_send()
    assert responder.receive(third)
    assert [first, second, third] == [framed(message) for message in expected.messages]
    assert initiator.peer == BOB.id
    assert responder.peer == ALICE.id
    # Split: the initiator sends with the first key, counters from 0, empty associated data.
    sealer, _ = initiator.channel()
    _, opener = responder.channel()
    for number, text in enumerate([b"first", b"second"]):
        wire = seal(sealer, text)
        nonce = bytes(4) + number.to_bytes(8, "little")
        assert wire == framed(ChaCha20Poly1305(expected.initiator_key).encrypt(nonce, text, None))
        assert list(opener.receive(wire)) == [text]
    back, _ = responder.channel()
    sealed = ChaCha20Poly1305(expected.responder_key).encrypt(bytes(12), b"back", None)
    assert seal(back, b"back") == framed(sealed)


@given(st.lists(st.integers(0, 1000), max_size=10))
def test_any_cut_of_the_bytes_gives_the_same_handshake(places: list[int]) -> None:
    initiator, responder = pair()

    def carry(source: NoiseHandshake, target: NoiseHandshake) -> None:
        data = source.to_send()
        edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
        for a, b in itertools.pairwise(edges):
            target.receive(data[a:b])

    carry(initiator, responder)
    carry(responder, initiator)
    carry(initiator, responder)
    assert initiator.peer == BOB.id
    assert responder.peer == ALICE.id


def test_bytes_after_the_handshake_are_kept() -> None:
    initiator, responder = pair()
    responder.receive(initiator.to_send())
    initiator.receive(responder.to_send())
    sealer, _ = initiator.channel()
    early = seal(sealer, b"early")
    assert responder.receive(initiator.to_send() + early)
    assert responder.rest() == early


def test_every_pair_follows_the_table() -> None:
    pairs = list(itertools.product(NoiseState, NoiseInput))
    assert len(pairs) == 10
    for state, what in pairs:
        machine, _ = pair()
        machine.state = state
        following = NOISE_TRANSITIONS.get((state, what))
        if following is None:
            with pytest.raises(ProtocolError):
                machine.input(what)
        else:
            machine.input(what)
            assert machine.state is following


def test_no_channel_before_the_end() -> None:
    initiator, _ = pair()
    with pytest.raises(UsageError):
        initiator.channel()


@pytest.mark.attack
def test_an_unexpected_peer_learns_nothing_of_the_caller() -> None:
    initiator, responder = pair(expected=Identity(b"c" * 32))
    responder.receive(initiator.to_send())
    with pytest.raises(AuthError, match="another peer"):
        initiator.receive(responder.to_send())
    assert initiator.to_send() == b""
    assert initiator.state is NoiseState.FAILED
    assert initiator.peer is None


@pytest.mark.attack
def test_our_own_identity_is_refused_on_both_sides() -> None:
    initiator, responder = pair(expected=None, bob=ALICE)
    responder.receive(initiator.to_send())
    with pytest.raises(AuthError, match="ourselves"):
        initiator.receive(responder.to_send())


@pytest.mark.attack
@pytest.mark.parametrize("point", LOW_ORDER, ids=[point.hex() for point in LOW_ORDER])
def test_low_order_points_are_refused(point: bytes) -> None:
    _, responder = pair()
    with pytest.raises(PeerError):
        responder.receive(framed(point))
    initiator, _ = pair()
    initiator.to_send()
    with pytest.raises(PeerError):
        initiator.receive(framed(point + bytes(200)))


class LyingSigner:
    """Claims to be Bob and signs with another key."""

    id = BOB.id

    def sign(self, domain: bytes, body: bytes) -> bytes:
        return ALICE.sign(domain, body)


class SmallOrderSigner:
    """Claims a key under which one signature verifies for every message."""

    id = (1).to_bytes(32, "little")

    def sign(self, domain: bytes, body: bytes) -> bytes:  # noqa: ARG002
        return (1).to_bytes(32, "little") + bytes(32)


@pytest.mark.attack
@pytest.mark.parametrize("liar", [LyingSigner(), SmallOrderSigner()], ids=["foreign", "small"])
def test_a_claimed_identity_without_its_key_is_refused(liar: LyingSigner) -> None:
    initiator, _ = pair(expected=None)
    responder = NoiseHandshake(liar, initiator=False, static=KEYS["sb"], ephemeral=KEYS["eb"])
    responder.receive(initiator.to_send())
    with pytest.raises(PeerError):
        initiator.receive(responder.to_send())
    # The other way round: an initiator that lies is refused by message 3.
    _, honest = pair(bob=Identity(b"c" * 32))
    lying = NoiseHandshake(liar, initiator=True, static=KEYS["sa"], ephemeral=KEYS["ea"])
    honest.receive(lying.to_send())
    lying.receive(honest.to_send())
    with pytest.raises(PeerError):
        honest.receive(lying.to_send())
    assert honest.peer is None


@pytest.mark.attack
def test_a_proof_cannot_be_replayed_for_another_static_key() -> None:
    """Bob's payload, recorded from one handshake, signed another static key."""
    recorded = reference_handshake(KEYS["sa"], KEYS["ea"], KEYS["sb"], KEYS["eb"]).messages[1]
    initiator = NoiseHandshake(
        ALICE, initiator=True, static=KEYS["sa"], ephemeral=b"x" * 32, expected=BOB.id
    )
    with pytest.raises(AuthError):
        initiator.receive(framed(recorded))


@pytest.mark.attack
@pytest.mark.parametrize("byte", [0, 31, 32, 79, 80, 130, 199])
def test_one_flipped_bit_in_message_2_ends_it(byte: int) -> None:
    initiator, responder = pair()
    responder.receive(initiator.to_send())
    message = bytearray(responder.to_send())
    message[2 + byte] ^= 1
    with pytest.raises(PeerError):
        initiator.receive(bytes(message))


@pytest.mark.parametrize("size", [0, 31, 33, 64, 4096])
def test_message_1_has_exactly_32_bytes(size: int) -> None:
    _, responder = pair()
    with pytest.raises(PeerError):
        responder.receive(framed(bytes([9]) * size))


def test_a_length_bomb_is_refused_before_it_is_awaited() -> None:
    _, responder = pair()
    with pytest.raises(DecodeError, match="too long"):
        responder.receive(b"\xff\xff")
    with pytest.raises(ProtocolError):
        responder.input(NoiseInput.RECV_MESSAGE)


@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=8),
    st.lists(st.integers(0, 3000), max_size=12),
)
def test_the_channel_takes_any_cut(texts: list[bytes], places: list[int]) -> None:
    sealer, opener = Sealer(KEYS["sa"]), Opener(KEYS["sa"])
    data = b"".join(seal(sealer, text) for text in texts)
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    got = [p for a, b in itertools.pairwise(edges) for p in opener.receive(data[a:b])]
    assert b"".join(got) == b"".join(texts)
    assert list(Opener(KEYS["sa"]).receive(data)) == texts
    one = Opener(KEYS["sa"])
    assert [p for byte in data for p in one.receive(bytes([byte]))] == texts


@pytest.mark.attack
def test_the_channel_refuses_forgery_replay_and_stubs() -> None:
    sealer = Sealer(KEYS["sa"])
    first = seal(sealer, b"once")
    opener = Opener(KEYS["sa"])
    assert list(opener.receive(first)) == [b"once"]
    with pytest.raises(AuthError):
        list(opener.receive(first))  # the counter moved on
    with pytest.raises(AuthError):
        list(Opener(KEYS["sb"]).receive(first))
    with pytest.raises(DecodeError):
        list(Opener(KEYS["sa"]).receive(framed(bytes(15))))


@given(st.binary(max_size=300))
def test_any_bytes_end_in_waiting_or_a_peer_error(data: bytes) -> None:
    for machine in pair():
        try:
            machine.receive(data)
        except PeerError:
            continue
