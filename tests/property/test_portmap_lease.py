"""A lease under any gateway: what is told is held, and questions stay rare."""

from __future__ import annotations

import ipaddress
import random
import struct

from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError
from p2p.nat.natpmp import (
    AddressReply,
    MapReply,
    Refusal,
    Reply,
    decode_natpmp_untrusted,
    encode_map_tcp,
)
from p2p.nat.portmap import LIFETIME_MIN_S, Grant, PortLease, Work
from p2p.wire.multiaddr import scope_of

U16 = st.integers(0, 65_535)
U32 = st.integers(0, 2**32 - 1)
REPLIES = st.one_of(
    st.builds(AddressReply, U32, st.ip_addresses(v=4)),
    st.builds(MapReply, U32, U16, U16, U32),
    st.builds(Refusal, U32, st.integers(1, 65_535), is_map=st.booleans()),
)


def encode(reply: Reply) -> bytes:
    """As a gateway writes it, from the table of the specification."""
    match reply:
        case AddressReply(epoch_s, address):
            return struct.pack("!BBHI", 0, 128, 0, epoch_s) + address.packed
        case MapReply(epoch_s, internal, external, lifetime_s):
            return struct.pack("!BBHIHHI", 0, 130, 0, epoch_s, internal, external, lifetime_s)
        case Refusal(epoch_s, result, is_map):
            return struct.pack("!BBHI", 0, 130 if is_map else 128, result, epoch_s)


@given(REPLIES)
def test_a_gateways_reply_is_read_as_it_was_meant(reply: Reply) -> None:
    assert decode_natpmp_untrusted(encode(reply)) == reply


@given(st.binary(max_size=20))
def test_other_bytes_are_a_reply_or_refused(data: bytes) -> None:
    try:
        reply = decode_natpmp_untrusted(data)
    except DecodeError:
        return
    assert data.startswith(encode(reply)[:8])


@given(U16, U16, U32)
def test_a_request_has_twelve_bytes(internal: int, external: int, lifetime_s: int) -> None:
    data = encode_map_tcp(internal, external, lifetime_s)
    assert struct.unpack("!BBHHHI", data) == (0, 2, 0, internal, external, lifetime_s)


GRANTS = st.builds(
    Grant,
    kind=st.sampled_from(["nat-pmp", "upnp"]),
    external_ip=st.none() | st.ip_addresses(v=4),
    external_port=st.integers(0, 70_000),
    lifetime_s=st.floats(0, 10_000),
    epoch_s=st.none() | U32,
)
ANSWERS = st.lists(st.none() | GRANTS, min_size=1, max_size=40)


@given(ANSWERS, st.integers(0, 2**32))
def test_whatever_the_gateway_says_what_is_told_is_held_and_public(
    answers: list[Grant | None], seed: int
) -> None:
    lease = PortLease(15001, 3600.0, random.Random(seed))
    lease.want()
    now, asked = 0.0, 0
    waiting = list(answers)
    while waiting and now < 100_000:
        if lease.work is not None:
            asked += 1
            answer = waiting.pop()
            if answer is None:
                lease.refused("no", now)
            elif lease.work is Work.MAP:
                lease.granted(answer, now)
            else:
                lease.checked(answer.external_ip, now, epoch_s=answer.epoch_s)
        else:
            timer = lease.next_timer()
            assert timer is not None, "it would sleep for ever"
            assert timer > now or now == 0
            now = timer
            lease.on_timer(now)
        held = lease.lease
        if held is not None:
            assert held.expires_s > now or lease.work is not None
            assert 0 < held.external_port < 65_536
        if lease.candidate is not None:
            assert held is not None
            assert isinstance(held.external_ip, ipaddress.IPv4Address)
            assert scope_of(held.external_ip) == "public"
    # A check may turn into a mapping at once; else there is half a lease or a rest between two.
    assert asked <= 3 + 3 * now / (LIFETIME_MIN_S / 2)
