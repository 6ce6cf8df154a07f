"""Multicast DNS messages: another implementation's bytes are read, and ours are read back."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from p2p.errors import DecodeError
from p2p.nat.mdns import (
    AAAA,
    PTR,
    RECORDS_MAX,
    SRV,
    TXT,
    A,
    DnsMessage,
    HostAddress,
    Ptr,
    Question,
    Srv,
    Txt,
    decode_dns_untrusted,
    encode_dns,
    name_of,
)
from tests.helpers import vectors

SERVICE = name_of("_p2p-97bdd6f3c8c2ebbd._udp.local")
INSTANCE = (b"0123456789abcdef0123456789abcdef", *SERVICE)
HOST = name_of("0123456789abcdef0123456789abcdef.local")
ADDR = b"/ip4/192.168.1.7/tcp/15001/p2p/12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"


def golden(name: str) -> bytes:
    messages = vectors.load("mdns.json")["messages"]
    assert isinstance(messages, dict)
    return bytes.fromhex(str(messages[name]))


def test_a_question_of_another_implementation_is_read() -> None:
    message = decode_dns_untrusted(golden("query"))
    assert message == DnsMessage(False, (Question(SERVICE, PTR),))


def test_our_question_has_the_same_bytes() -> None:
    assert encode_dns(DnsMessage(False, (Question(SERVICE, PTR),))) == golden("query")


def test_an_answer_of_another_implementation_is_read() -> None:
    assert decode_dns_untrusted(golden("answer")).records == (
        Ptr(SERVICE, INSTANCE, 120),
        Txt(INSTANCE, (b"dnsaddr=" + ADDR,), 120),
        Srv(INSTANCE, 15001, HOST, 120),
        HostAddress(HOST, ipaddress.ip_address("192.168.1.7"), 120),
        HostAddress(HOST, ipaddress.ip_address("fd00::7"), 120),
    )


def test_printers_and_unknown_records_are_read_past() -> None:
    # Bits that ask for a direct answer or flush a cache are no part of a class; NSEC is skipped.
    asked = decode_dns_untrusted(golden("query of another, unicast bit, known answer"))
    assert [question.name[0] for question in asked.questions] == [b"_googlecast", b"_http"]
    records = decode_dns_untrusted(golden("printer")).records
    assert [type(record) for record in records] == [Ptr, Srv, Txt, HostAddress]
    assert records[2] == Txt(
        (b"printer (2nd floor)", *name_of("_http._tcp.local")), (b"path=/~user/", b"empty="), 4500
    )


def test_what_we_write_we_read() -> None:
    message = DnsMessage(
        True,
        (Question(SERVICE, PTR),),
        (
            Ptr(SERVICE, INSTANCE, 120),
            Txt(INSTANCE, (b"dnsaddr=" + ADDR, b""), 120),
            Srv(INSTANCE, 15001, HOST, 120),
            HostAddress(HOST, ipaddress.ip_address("192.168.1.7"), 0),
            HostAddress(HOST, ipaddress.ip_address("fd00::7"), 120),
        ),
    )
    data = encode_dns(message)
    assert decode_dns_untrusted(data) == message
    assert data.count(SERVICE[0]) == 1, "names are compressed"


def test_every_cut_is_refused() -> None:
    data = golden("answer")
    for size in range(len(data)):
        with pytest.raises(DecodeError):
            decode_dns_untrusted(data[:size])


def header(*counts: int, flags: int = 0x8400) -> bytes:
    return struct.pack(">6H", 0, flags, *counts)


def ptr(name: bytes, rdata: bytes, *, kind: int = PTR, size: int | None = None) -> bytes:
    return name + struct.pack(">HHIH", kind, 1, 120, len(rdata) if size is None else size) + rdata


LOCAL = b"\x05local\x00"


OUT_OF_FORM = [
    (header(1, 0, 0, 0) + b"\xc0\x0c" + b"\0\x0c\0\x01", "a pointer to itself"),
    (header(1, 0, 0, 0) + b"\xc0\x20" + b"\0\x0c\0\x01" + bytes(40), "a pointer forwards"),
    (header(1, 0, 0, 0) + b"\x01a\xc0\x0c" + b"\0\x0c\0\x01", "a loop over a label"),
    (
        header(0, 2, 0, 0) + ptr(LOCAL, b"\xc0\x0c") + ptr(b"\xc0\x0c", b"\xc0\x2b"),
        "a pointer to the pointer's own place",
    ),
    (header(1, 0, 0, 0) + b"\x41" + b"a" * 65 + b"\0\0\x0c\0\x01", "a label of another kind"),
    (header(1, 0, 0, 0) + b"\x3f" + b"a" * 63 + b"\0\0\x0c\0", "truncated in the question"),
    (header(1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 5 + b"\0\0\x0c\0\x01", "a name of 320 bytes"),
    (header(0, 1, 0, 0) + ptr(LOCAL, b"\xc0\x0c", size=1), "a name longer than its record"),
    (header(0, 1, 0, 0) + ptr(LOCAL, b"\xc0\x0c\0\0"), "a record longer than its name"),
    (header(0, 1, 0, 0) + ptr(LOCAL, b"\x7f\0\0", kind=A), "an address of three bytes"),
    (header(0, 1, 0, 0) + ptr(LOCAL, b"\x7f\0\0\1", kind=AAAA), "an IPv6 address of four"),
    (header(0, 1, 0, 0) + ptr(LOCAL, b"\x05abc", kind=TXT), "a string beyond its record"),
    (header(0, 1, 0, 0) + ptr(LOCAL, b"\0\0", kind=SRV), "a service without a port"),
    (header(0, 1, 0, 0) + ptr(LOCAL, b"", size=9000), "a record beyond the end"),
    (header(0, 0, 0, 0, flags=0x2000), "an update"),
    (header(RECORDS_MAX, 1, 0, 0), "65 entries announced"),
    (header(0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF), "262,140 entries announced"),
    (bytes(9001), "over 9,000 bytes"),
]


@pytest.mark.parametrize("data", [pytest.param(data, id=why) for data, why in OUT_OF_FORM])
def test_what_is_out_of_form_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_dns_untrusted(data)


def chain(pointers: int) -> bytes:
    """A message with a name that follows so many pointers, each to the name before."""
    start = 12 + 11  # behind the header, and the head of a record of an unknown kind
    names, last = LOCAL, start
    for _ in range(pointers - 1):
        names += b"\x01a" + struct.pack(">H", 0xC000 | last)
        last = start + len(names) - 4
    holder = ptr(b"\0", names, kind=99)
    return header(0, 2, 0, 0) + holder + ptr(struct.pack(">H", 0xC000 | last), b"\0")


def test_sixteen_pointers_are_followed_and_no_more() -> None:
    (record,) = decode_dns_untrusted(chain(16)).records
    assert record.name == (*[b"a"] * 15, b"local")
    with pytest.raises(DecodeError):
        decode_dns_untrusted(chain(17))


def test_names_are_compared_without_case() -> None:
    data = golden("query").replace(b"_udp", b"_UDP")
    assert decode_dns_untrusted(data).questions == (Question(SERVICE, PTR),)
    assert name_of("_P2P._UDP.Local") == name_of("_p2p._udp.local")


def test_classes_other_than_the_internets_are_skipped() -> None:
    chaos = LOCAL + struct.pack(">HH", PTR, 3)
    assert decode_dns_untrusted(header(1, 0, 0, 0, flags=0) + chaos).questions == ()
    record = LOCAL + struct.pack(">HHIH", PTR, 3, 120, 2) + b"\xc0\x0c"
    assert decode_dns_untrusted(header(0, 1, 0, 0) + record).records == ()


def test_sixty_four_entries_are_read_and_no_more() -> None:
    full = DnsMessage(False, tuple(Question(SERVICE, PTR) for _ in range(RECORDS_MAX)))
    assert decode_dns_untrusted(encode_dns(full)) == full
    with pytest.raises(DecodeError):
        decode_dns_untrusted(
            encode_dns(DnsMessage(False, (*full.questions, Question(SERVICE, PTR))))
        )
