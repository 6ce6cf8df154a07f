"""Multiaddrs, varints and protobuf: one form each, bounded, and only DecodeError for the rest."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError
from p2p.identity import Identity, peer_text
from p2p.wire.multiaddr import (
    canonical_addr_untrusted,
    decode_addr_untrusted,
    encode_addr,
    ip_of,
    scope_of,
    split_peer_untrusted,
    tcp_addr_untrusted,
)
from p2p.wire.protobuf import decode_message_untrusted, encode_field, encode_message
from p2p.wire.varint import decode_varint_untrusted, encode_varint

PEER = Identity(bytes(32)).id
PEER_TEXT = peer_text(PEER)

# Binary forms from the multiaddr specification's table: code, value.
VECTORS = [
    ("/ip4/192.0.2.7/tcp/15001", "04c0000207063a99"),
    ("/ip6/2001:db8::1/tcp/1", "2920010db8000000000000000000000001060001"),
    ("/dns/example.org/tcp/443", "350b6578616d706c652e6f72670601bb"),
    ("/dns4/a.b/tcp/1", "3603612e62060001"),
    ("/dns6/a.b/tcp/1", "3703612e62060001"),
    ("/dnsaddr/a.b", "3803612e62"),
    ("/ip4/1.2.3.4/udp/80/quic-v1", "04010203049102" + "0050" + "cd03"),
    (f"/p2p/{PEER_TEXT}", "a503" + "26" + "002408011220" + PEER.hex()),
    (
        f"/ip4/1.2.3.4/tcp/80/p2p/{PEER_TEXT}/p2p-circuit",
        "0401020304060050" + "a50326002408011220" + PEER.hex() + "a202",
    ),
]


@pytest.mark.parametrize(("text", "raw"), VECTORS, ids=[v[0][:24] for v in VECTORS])
def test_text_and_bytes_agree_with_the_specification(text: str, raw: str) -> None:
    assert encode_addr(text).hex() == raw
    assert decode_addr_untrusted(bytes.fromhex(raw)) == text
    assert canonical_addr_untrusted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "ip4/1.2.3.4",
        "/ip4",
        "/ip4/1.2.3.4/tcp",
        "/ip4/1.2.3/tcp/1",
        "/ip4/::1/tcp/1",
        "/ip6/1.2.3.4/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/ip4/1.2.3.4/tcp/65536",
        "/ip4/1.2.3.4/tcp/-1",
        "/ip4/1.2.3.4/tcp/01",
        "/ip4/1.2.3.4/tcp/ 1",
        "/ip4/1.2.3.4/tcp/1\n",
        "/ip4/1.2.3.4/sctp/1",
        "/dns//tcp/1",
        "/dns/-a/tcp/1",
        "/dns/" + "a" * 64 + "/tcp/1",
        "/dns/a..b/tcp/1",
        "/p2p/nonsense",
        "/ip4/1.2.3.4" * 100,
        "/dns/" + ("a" * 63 + ".") * 3 + "a" * 61 + "/tcp/1",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        canonical_addr_untrusted(text)


def test_another_spelling_becomes_the_canonical_one() -> None:
    assert canonical_addr_untrusted("/ip6/2001:DB8:0::1/tcp/7") == "/ip6/2001:db8::1/tcp/7"
    assert canonical_addr_untrusted(f"/ipfs/{PEER_TEXT}") == f"/p2p/{PEER_TEXT}"


@given(st.binary(max_size=300))
def test_any_bytes_are_an_address_or_a_decode_error(data: bytes) -> None:
    try:
        text = decode_addr_untrusted(data)
    except DecodeError:
        return
    assert encode_addr(text) == data


@given(
    st.ip_addresses(),
    st.integers(0, 65535),
    st.booleans(),
)
def test_tcp_addresses_round_trip(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, with_peer: bool
) -> None:
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id:
        return
    text = f"/ip{ip.version}/{ip}/tcp/{port}"
    whole = f"{text}/p2p/{PEER_TEXT}" if with_peer else text
    assert decode_addr_untrusted(encode_addr(whole)) == whole
    assert split_peer_untrusted(whole) == (text, PEER if with_peer else None)
    parsed = tcp_addr_untrusted(text)
    assert parsed is not None
    assert (parsed.ip, parsed.port, parsed.text) == (ip, port, text)
    assert ip_of(whole) == ip


def test_only_plain_tcp_is_tcp() -> None:
    assert tcp_addr_untrusted("/ip4/1.2.3.4/udp/80/quic-v1") is None
    assert tcp_addr_untrusted(f"/ip4/1.2.3.4/tcp/80/p2p/{PEER_TEXT}/p2p-circuit") is None
    assert ip_of("/dns/example.org/tcp/1") is None
    assert ip_of("nonsense") is None


@pytest.mark.parametrize(
    ("ip", "scope"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("10.1.2.3", "private"),
        ("192.168.1.1", "private"),
        ("fe80::1", "private"),
        ("fd00::1", "private"),
        ("100.64.0.1", "private"),
        ("8.8.8.8", "public"),
        ("2606:4700::1", "public"),
        ("0.0.0.0", "never"),
        ("::", "never"),
        ("224.0.0.251", "never"),
        ("ff02::fb", "never"),
        ("255.255.255.255", "never"),
    ],
)
def test_scopes(ip: str, scope: str) -> None:
    assert scope_of(ipaddress.ip_address(ip)) == scope


@given(st.integers(0, 2**63 - 1))
def test_varints_round_trip_and_are_minimal(value: int) -> None:
    raw = encode_varint(value)
    assert len(raw) == max(1, -(-value.bit_length() // 7))
    assert decode_varint_untrusted(raw + b"rest") == (value, len(raw))
    for cut in range(len(raw)):
        assert decode_varint_untrusted(raw[:cut]) is None


@pytest.mark.parametrize("raw", ["8000", "ff8000", "80" * 9, "ff" * 9 + "01", "ff" * 100])
def test_padded_and_endless_varints_are_refused(raw: str) -> None:
    with pytest.raises(DecodeError):
        decode_varint_untrusted(bytes.fromhex(raw))


@given(
    st.lists(
        st.tuples(
            st.integers(1, 1000), st.one_of(st.integers(0, 2**63 - 1), st.binary(max_size=40))
        ),
        max_size=20,
    )
)
def test_protobuf_fields_round_trip(fields: list[tuple[int, int | bytes]]) -> None:
    decoded = decode_message_untrusted(encode_message(fields))
    for number in {number for number, _ in fields}:
        values = [v for n, v in fields if n == number and isinstance(v, bytes)]
        assert decoded.all_bytes(number) == values
        scalars = [v for n, v in fields if n == number and isinstance(v, int)]
        assert decoded.int_of(number, default=-1) == (scalars[-1] if scalars else -1)


def test_unknown_fields_of_every_wire_type_are_skipped() -> None:
    data = (
        bytes([99 << 3 & 0x7F | 0x80 | 1, 6])  # number 99, fixed64
        + bytes(8)
        + bytes([15 << 3 | 5])
        + bytes(4)
        + bytes.fromhex("08ffffffffffffffffff01")  # number 1, -1 as ten bytes
        + encode_field(2, b"kept")
    )
    decoded = decode_message_untrusted(data)
    assert decoded.bytes_of(2) == b"kept"
    assert decoded.int_of(1) == 2**64 - 1


@pytest.mark.parametrize(
    "raw",
    [
        "08",  # ends inside a number
        "0a05aa",  # ends inside a field
        "0b0c",  # a group
        "0000",  # field number 0
        "0affffffffffffffff7f",  # a length of 2**63
        "08" + "ff" * 11,  # a number without end
        "0801" * 1025,  # too many fields
    ],
)
def test_broken_protobuf_is_refused(raw: str) -> None:
    with pytest.raises(DecodeError):
        decode_message_untrusted(bytes.fromhex(raw))


@given(st.binary(max_size=400))
def test_any_bytes_are_protobuf_or_a_decode_error(data: bytes) -> None:
    try:
        decode_message_untrusted(data)
    except DecodeError:
        return
