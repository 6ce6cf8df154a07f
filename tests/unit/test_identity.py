"""Keys, peer ids and the key file: one form each, and a refusal that says what to do."""

from __future__ import annotations

import os
import random
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError
from p2p.identity import (
    Identity,
    KeyFileError,
    check_public_key_untrusted,
    decode_multihash_untrusted,
    decode_public_key_untrusted,
    encode_public_key,
    load_or_create,
    parse_peer_untrusted,
    peer_multihash,
    peer_text,
    verify,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEED = bytes.fromhex("7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d")
KEY = bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
TEXT = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"
P = 2**255 - 19
# The fourteen encodings of points of small order that libraries accept: canonical or not, any sign.
SMALL_ORDER = [
    (y | sign << 255).to_bytes(32, "little")
    for y in (
        0,
        1,
        P - 1,
        P,
        P + 1,
        int.from_bytes(
            bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
            "little",
        ),
        int.from_bytes(
            bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
            "little",
        ),
    )
    for sign in (0, 1)
]


def cid_text(peer: bytes) -> str:
    import base64

    raw = bytes.fromhex("0172") + peer_multihash(peer)
    return "b" + base64.b32encode(raw).decode().lower().rstrip("=")


def test_the_published_vector_holds() -> None:
    identity = Identity.from_seed(SEED)
    assert identity.id == KEY
    assert peer_text(identity.id) == TEXT
    assert parse_peer_untrusted(TEXT) == KEY
    assert peer_multihash(KEY).hex() == "002408011220" + KEY.hex()


@given(st.binary(min_size=32, max_size=32))
def test_every_text_form_reads_back(seed: bytes) -> None:
    peer = Identity(seed).id
    assert parse_peer_untrusted(peer_text(peer)) == peer
    assert parse_peer_untrusted(cid_text(peer)) == peer
    assert decode_multihash_untrusted(peer_multihash(peer)) == peer
    assert decode_public_key_untrusted(encode_public_key(peer)) == peer


@given(st.text(max_size=120))
def test_any_text_is_a_peer_or_a_decode_error(text: str) -> None:
    try:
        peer = parse_peer_untrusted(text)
    except DecodeError:
        return
    assert text in (peer_text(peer), cid_text(peer)) or text.startswith("1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "1" * 100,
        "z" * 5000,
        TEXT[:-1],
        TEXT + "1",
        "1" + TEXT,
        TEXT.replace("1", "0"),
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # an RSA peer
        cid_text(KEY).upper(),
        cid_text(KEY)[:-1],
    ],
)
def test_a_text_that_is_no_ed25519_peer_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_peer_untrusted(text)


@pytest.mark.attack
@pytest.mark.parametrize("key", SMALL_ORDER, ids=[key.hex() for key in SMALL_ORDER])
def test_small_order_and_non_canonical_keys_are_refused_everywhere(key: bytes) -> None:
    with pytest.raises(DecodeError):
        check_public_key_untrusted(key)
    with pytest.raises(DecodeError):
        decode_public_key_untrusted(encode_public_key(key))
    # The identity point with S = 0 is a signature "by" a small-order key over anything.
    forged = (1).to_bytes(32, "little") + bytes(32)
    assert not verify(key, b"domain", b"any message", forged)


def test_the_small_order_forgery_would_work_without_the_check() -> None:
    """The control: the library itself accepts what we refuse."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    forged = (1).to_bytes(32, "little") + bytes(32)
    key = Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little"))
    key.verify(forged, b"any message")


def test_a_signature_counts_for_its_domain_body_and_key_only() -> None:
    identity, other = Identity(SEED), Identity(bytes(32))
    signature = identity.sign(b"domain:", b"body")
    assert verify(identity.id, b"domain:", b"body", signature)
    assert not verify(identity.id, b"domain;", b"body", signature)
    assert not verify(identity.id, b"domain:", b"bodY", signature)
    assert not verify(other.id, b"domain:", b"body", signature)
    assert not verify(identity.id, b"domain:", b"body", signature[:-1])
    assert not verify(b"short", b"domain:", b"body", signature)


def test_a_new_key_file_is_private_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "key"
    old = os.umask(0)
    try:
        made = load_or_create(path, random.Random(1))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    data = path.read_bytes()
    assert len(data) == 68
    assert data[:4].hex() == "08011240"
    assert data[36:] == made.id
    again = load_or_create(path, random.Random(2))
    assert again.id == made.id
    assert verify(again.id, b"d", b"b", again.sign(b"d", b"b"))


def test_two_first_starts_make_one_key(tmp_path: Path) -> None:
    """O_EXCL: the second start reads what the first one made."""
    path = tmp_path / "key"
    first = load_or_create(path, random.Random(1))
    assert load_or_create(path, random.Random(2)).id == first.id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_file_open_to_others_is_refused_with_a_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    load_or_create(path, random.Random(1))
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="open to others") as caught:
        load_or_create(path, random.Random(1))
    assert "chmod 600" in caught.value.remedy


def test_a_foreign_owner_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("changing a file's owner needs root")
    path = tmp_path / "key"
    load_or_create(path, random.Random(1))
    os.chown(path, 12345, 12345)
    with pytest.raises(KeyFileError, match="belongs to user 12345"):
        load_or_create(path, random.Random(1))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:0],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\x08\x00" + data[2:],
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: data[:10] + bytes([data[10] ^ 1]) + data[11:],
    ],
    ids=["empty", "short", "long", "other-type", "public-flipped", "seed-flipped"],
)
def test_a_damaged_key_file_is_refused_and_left_alone(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "key"
    load_or_create(path, random.Random(1))
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(KeyFileError) as caught:
        load_or_create(path, random.Random(1))
    assert "backup" in caught.value.remedy
    assert path.read_bytes() == before


def test_a_link_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    load_or_create(target, random.Random(1))
    link = tmp_path / "key"
    link.symlink_to(target)
    with pytest.raises(KeyFileError):
        load_or_create(link, random.Random(1))
    with pytest.raises(KeyFileError, match="cannot create"):
        load_or_create(tmp_path / "missing" / "key", random.Random(1))
