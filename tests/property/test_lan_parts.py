"""Laws of what is read from and written to the local network."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError
from p2p.nat.mdns import (
    DnsMessage,
    HostAddress,
    Ptr,
    Question,
    Srv,
    Txt,
    decode_dns_untrusted,
    encode_dns,
)

LETTERS = (string.ascii_lowercase + string.digits + "-_ .").encode()
LABELS = st.lists(st.sampled_from(LETTERS), min_size=1, max_size=20).map(bytes)
NAMES = st.lists(LABELS, max_size=6).map(tuple)
TTLS = st.integers(0, 2**32 - 1)
RECORDS = st.one_of(
    st.builds(Ptr, NAMES, NAMES, TTLS),
    st.builds(
        Txt, NAMES, st.lists(st.binary(max_size=255), min_size=1, max_size=3).map(tuple), TTLS
    ),
    st.builds(Srv, NAMES, st.integers(0, 65_535), NAMES, TTLS),
    st.builds(HostAddress, NAMES, st.ip_addresses(), TTLS),
)
MESSAGES = st.builds(
    DnsMessage,
    st.booleans(),
    st.lists(st.builds(Question, NAMES, st.integers(0, 65_535)), max_size=5).map(tuple),
    st.lists(RECORDS, max_size=6).map(tuple),
)


@given(MESSAGES)
def test_what_is_written_is_read(message: DnsMessage) -> None:
    assert decode_dns_untrusted(encode_dns(message)) == message


@given(MESSAGES, st.data())
def test_a_changed_message_is_read_or_refused(message: DnsMessage, data: st.DataObject) -> None:
    encoded = bytearray(encode_dns(message))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_dns_untrusted(bytes(encoded))
    except DecodeError:
        return
