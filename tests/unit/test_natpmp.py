"""NAT-PMP: the table of RFC 6886 byte by byte, and a gateway's clock."""

from __future__ import annotations

import ipaddress

import pytest

from p2p.errors import DecodeError
from p2p.nat.natpmp import (
    REFUSALS,
    AddressReply,
    EpochWatch,
    MapReply,
    Refusal,
    Reply,
    decode_natpmp_untrusted,
    encode_ask_address,
    encode_map_tcp,
)


def test_requests_have_the_bytes_of_the_table() -> None:
    assert encode_ask_address().hex() == "0000"
    # Internal 15001, external 4005, an hour.
    assert encode_map_tcp(15001, 4005, 3600).hex() == "000200003a990fa500000e10"
    assert encode_map_tcp(15001, 0, 0).hex() == "000200003a99000000000000"


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        ("0080000000000e102d4d0101", AddressReply(3600, ipaddress.IPv4Address("45.77.1.1"))),
        ("0082000000000e103a990fa500000078", MapReply(3600, 15001, 4005, 120)),
        ("0082000000000e103a99000000000000", MapReply(3600, 15001, 0, 0)),
        ("0082000200000e10", Refusal(3600, 2, is_map=True)),
        ("0082000400000e103a990fa500000078", Refusal(3600, 4, is_map=True)),
        ("0080000300000e1000000000", Refusal(3600, 3, is_map=False)),
    ],
)
def test_replies_are_read(data: str, reply: Reply) -> None:
    assert decode_natpmp_untrusted(bytes.fromhex(data)) == reply


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "empty"),
        ("0080000000000e", "seven bytes"),
        ("0080000000000e102d4d01", "an address of three bytes"),
        ("0080000000000e102d4d010100", "one byte too many"),
        ("0082000000000e103a990fa5000000", "a mapping cut short"),
        ("0280000000000e102d4d0101", "PCP's version"),
        ("0000000000000e102d4d0101", "a request"),
        ("0081000000000e103a990fa500000078", "a reply about UDP, which we never ask for"),
    ],
)
def test_what_is_no_reply_to_us_is_refused(data: str, why: str) -> None:
    with pytest.raises(DecodeError):
        decode_natpmp_untrusted(bytes.fromhex(data))
    assert why


def test_a_refusal_says_why() -> None:
    assert Refusal(0, 2, is_map=True).reason == REFUSALS[2]
    assert Refusal(0, 77, is_map=True).reason == "it answered with result 77"


@pytest.mark.parametrize(
    ("epochs", "restarted"),
    [
        ([(1000, 0.0)], [False]),
        ([(1000, 0.0), (1300, 300.0)], [False, False]),
        ([(1000, 0.0), (1265, 300.0)], [False, False]),
        ([(1000, 0.0), (1260, 300.0)], [False, True]),
        ([(1000, 0.0), (0, 300.0)], [False, True]),
        ([(1000, 0.0), (5, 300.0), (305, 600.0)], [False, True, False]),
        ([(0, 0.0), (9_000_000, 300.0)], [False, False]),
    ],
)
def test_a_clock_that_lags_means_a_restart(
    epochs: list[tuple[int, float]], restarted: list[bool]
) -> None:
    watch = EpochWatch()
    assert [watch.restarted(epoch_s, now) for epoch_s, now in epochs] == restarted
