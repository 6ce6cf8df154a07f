"""Relay and punch messages: bytes as libp2p's schemas have them, both ways."""

from __future__ import annotations

import pytest

from p2p.errors import DecodeError
from p2p.nat.punch_messages import (
    PUNCH_ADDRS_MAX,
    PunchMessage,
    PunchType,
    decode_punch_untrusted,
    encode_punch,
)
from p2p.nat.relay_messages import (
    HopMessage,
    HopType,
    Limit,
    Reservation,
    Status,
    StopMessage,
    StopType,
    decode_hop_untrusted,
    decode_stop_untrusted,
    encode_hop,
    encode_stop,
)
from p2p.nat.relay_transport import split_circuit_untrusted
from p2p.wire.multiaddr import encode_addr
from tests.helpers.fabrics import identity

PEER = identity(7).id
ADDR = "/ip4/45.77.1.10/tcp/4001"
PEER_BYTES = bytes.fromhex("0a26002408011220") + PEER


def test_reserve_says_its_type_although_it_is_zero() -> None:
    assert encode_hop(HopMessage(type=HopType.RESERVE)) == b"\x08\x00"


def test_connect_names_the_peer_by_its_multihash() -> None:
    data = encode_hop(HopMessage(type=HopType.CONNECT, peer=PEER))
    assert data == b"\x08\x01\x12" + bytes([len(PEER_BYTES)]) + PEER_BYTES
    assert decode_hop_untrusted(data).peer == PEER


def test_a_status_carries_a_reservation_and_its_limit() -> None:
    message = HopMessage(
        type=HopType.STATUS,
        status=Status.OK,
        reservation=Reservation(1_700_000_000, (ADDR,), b"voucher"),
        limit=Limit(120, 131_072),
    )
    data = encode_hop(message)
    assert data.startswith(b"\x08\x02\x1a")
    assert data.endswith(b"\x22\x06\x08\x78\x10\x80\x80\x08\x28\x64")
    assert decode_hop_untrusted(data) == message


def test_stop_messages() -> None:
    offer = StopMessage(type=StopType.CONNECT, peer=PEER, limit=Limit(7200, 1 << 30))
    assert encode_stop(offer).startswith(b"\x08\x00\x12")
    assert decode_stop_untrusted(encode_stop(offer)) == offer
    answer = StopMessage(type=StopType.STATUS, status=Status.OK)
    assert encode_stop(answer) == b"\x08\x01\x20\x64"
    assert decode_stop_untrusted(encode_stop(answer)) == answer


def test_a_status_we_do_not_know_is_kept_as_a_number() -> None:
    assert decode_hop_untrusted(b"\x08\x02\x28\xe7\x07").status == 999


def test_addresses_of_a_relay_that_we_do_not_understand_are_left_out() -> None:
    strange = b"\x12\x02\xff\x7f"
    good = b"\x12" + bytes([len(encode_addr(ADDR))]) + encode_addr(ADDR)
    inner = b"\x08\x01" + strange + good
    found = decode_hop_untrusted(b"\x08\x02\x1a" + bytes([len(inner)]) + inner).reservation
    assert found is not None
    assert found.addrs == (ADDR,)


@pytest.mark.parametrize(
    "data", [b"", b"\x08\x09", b"\x08", b"\x12\x02\x0a\x00", b"\x08\x01\x12\x01"]
)
def test_what_is_no_hop_message_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_hop_untrusted(data)


def test_punch_messages() -> None:
    sync = encode_punch(PunchMessage(PunchType.SYNC))
    assert sync == b"\x08\xac\x02"
    assert decode_punch_untrusted(sync).type is PunchType.SYNC
    connect = PunchMessage(PunchType.CONNECT, (ADDR,))
    assert encode_punch(connect).startswith(b"\x08\x64\x12\x08")
    assert decode_punch_untrusted(encode_punch(connect)) == connect
    for data in (b"", b"\x08\x01"):
        with pytest.raises(DecodeError):
            decode_punch_untrusted(data)


def test_no_more_addresses_are_read_than_may_be_aimed_at() -> None:
    addrs = tuple(f"/ip4/45.77.1.10/tcp/{4000 + n}" for n in range(PUNCH_ADDRS_MAX + 5))
    read = decode_punch_untrusted(encode_punch(PunchMessage(PunchType.CONNECT, addrs)))
    assert read.addrs == addrs[:PUNCH_ADDRS_MAX]


@pytest.mark.parametrize(
    ("addr", "relayed"),
    [
        (f"{ADDR}/p2p/{{}}/p2p-circuit", True),
        (ADDR, False),
        (f"{ADDR}/p2p/{{}}", False),
        (f"{ADDR}/p2p-circuit", False),
        (f"{ADDR}/p2p/{{}}/p2p-circuit/p2p/{{}}/p2p-circuit", False),
    ],
)
def test_a_circuit_leads_over_exactly_one_relay(addr: str, relayed: bool) -> None:
    from p2p.identity import peer_text

    found = split_circuit_untrusted(addr.replace("{}", peer_text(PEER)))
    assert found == ((ADDR, PEER) if relayed else None)
