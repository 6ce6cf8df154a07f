"""AutoNAT v2's bytes: fixed vectors, what others may send, what is refused."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError
from p2p.identity import PeerId
from p2p.nat.autonat_messages import (
    AVOIDED_BYTES,
    AVOIDED_MAX,
    NONCE_MAX,
    REQUEST_ADDRS_MAX,
    DialDataRequest,
    DialMessage,
    DialRequest,
    DialResponse,
    DialStatus,
    RequestStatus,
    avoided_hash,
    decode_dial_back_answer_untrusted,
    decode_dial_back_untrusted,
    decode_dial_untrusted,
    encode_dial,
    encode_dial_back,
    encode_dial_back_ok,
)

ADDR: Final = "/ip4/45.77.1.1/tcp/15001"
NONCE: Final = 0x0102030405060708

# js's @libp2p/autonat-v2 2.0.15 writes the first one alike and reads them all, field 64 skipped.
# By hand from the schema: field 1 of the outer message is the request; field 1 of that the address,
# field 2 the nonce as fixed64, which is little-endian.
VECTORS: Final[list[tuple[DialMessage, str]]] = [
    (DialRequest((ADDR,), NONCE), "0a130a08042d4d0101063a99110807060504030201"),
    (
        DialRequest((ADDR,), 1, frozenset({bytes(8)})),
        "0a1e0a08042d4d0101063a991101000000000000008204080000000000000000",
    ),
    (DialResponse(RequestStatus.OK, 0, DialStatus.OK), "120808c801100018c801"),
    (DialResponse(RequestStatus.OK, 2, DialStatus.DIAL_ERROR), "120708c80110021864"),
    (DialResponse(RequestStatus.REFUSED), "1206086510001800"),
    (DialResponse(RequestStatus.INTERNAL_ERROR), "1206080010001800"),
    (DialDataRequest(0, 30_000), "1a06080010b0ea01"),
]


@pytest.mark.parametrize(("message", "data"), VECTORS)
def test_messages_have_these_bytes(message: DialMessage, data: str) -> None:
    assert encode_dial(message).hex() == data
    assert decode_dial_untrusted(bytes.fromhex(data)) == message


def test_dial_backs_have_these_bytes() -> None:
    assert encode_dial_back(NONCE).hex() == "090807060504030201"
    assert decode_dial_back_untrusted(encode_dial_back(NONCE)) == NONCE
    assert encode_dial_back_ok().hex() == "0800"
    assert decode_dial_back_answer_untrusted(encode_dial_back_ok())
    assert decode_dial_back_answer_untrusted(b""), "others leave out a status of 0"
    assert not decode_dial_back_answer_untrusted(b"\x08\x01")


def test_others_leave_out_zeros_and_know_statuses_that_we_do_not() -> None:
    assert decode_dial_untrusted(bytes.fromhex("1200")) == DialResponse(
        RequestStatus.INTERNAL_ERROR
    )
    assert decode_dial_untrusted(bytes.fromhex("120708ac0210001807")) == DialResponse(300, 0, 7)


def test_an_address_that_we_do_not_understand_keeps_its_place() -> None:
    data = encode_dial(DialRequest((ADDR, ADDR), 1))
    strange = data.replace(
        bytes.fromhex("0a08042d4d0101063a99"), bytes.fromhex("0a087f2d4d0101063a99"), 1
    )
    message = decode_dial_untrusted(strange)
    assert isinstance(message, DialRequest)
    assert message.addrs == (None, ADDR)


@pytest.mark.parametrize("data", ["", "22020a00", "0a", "0a05ffffffffff", "08c801"])
def test_what_is_no_message_is_refused(data: str) -> None:
    with pytest.raises(DecodeError):
        decode_dial_untrusted(bytes.fromhex(data))


@pytest.mark.parametrize("data", ["", "0a080102030405060708", "09010203"])
def test_what_is_no_dial_back_is_refused(data: str) -> None:
    with pytest.raises(DecodeError):
        decode_dial_back_untrusted(bytes.fromhex(data))


def test_long_lists_are_cut_and_wrong_hashes_left_out() -> None:
    hashes = {n.to_bytes(AVOIDED_BYTES, "big") for n in range(AVOIDED_MAX + 9)}
    message = decode_dial_untrusted(
        encode_dial(
            DialRequest((ADDR,) * (REQUEST_ADDRS_MAX + 9), 1, frozenset(hashes | {b"short"}))
        )
    )
    assert isinstance(message, DialRequest)
    assert len(message.addrs) == REQUEST_ADDRS_MAX
    assert len(message.avoided) <= AVOIDED_MAX
    assert b"short" not in message.avoided


def test_an_avoided_peer_is_named_for_one_request_only() -> None:
    peer = PeerId(bytes(32))
    assert len(avoided_hash(1, peer)) == AVOIDED_BYTES
    assert avoided_hash(1, peer) == avoided_hash(1, peer) != avoided_hash(2, peer)
    assert avoided_hash(1, peer) != avoided_hash(1, PeerId(bytes([1] * 32)))


_PORTS = st.integers(0, 65_535)
_ADDRS = st.builds("/ip4/{}/tcp/{}".format, st.ip_addresses(v=4), _PORTS) | st.builds(
    "/ip6/{}/tcp/{}".format, st.ip_addresses(v=6), _PORTS
)
_NONCES = st.integers(0, NONCE_MAX)
_REQUESTS = st.builds(
    DialRequest,
    st.lists(_ADDRS, max_size=8).map(tuple),
    _NONCES,
    st.frozensets(st.binary(min_size=AVOIDED_BYTES, max_size=AVOIDED_BYTES), max_size=8),
)
_RESPONSES = st.builds(
    DialResponse,
    st.sampled_from(RequestStatus),
    st.integers(0, 100),
    st.sampled_from(DialStatus),
)


@given(_REQUESTS | _RESPONSES | st.builds(DialDataRequest, st.integers(0, 9), st.integers(0, 9)))
def test_what_is_written_is_read(message: DialMessage) -> None:
    assert decode_dial_untrusted(encode_dial(message)) == message


@given(_NONCES)
def test_a_nonce_is_read_as_written(nonce: int) -> None:
    assert decode_dial_back_untrusted(encode_dial_back(nonce)) == nonce
