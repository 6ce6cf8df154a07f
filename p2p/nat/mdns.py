"""Multicast DNS messages: bytes to questions and records, and back.

Only what service discovery needs: PTR, TXT, SRV, A and AAAA records of class IN; others are skipped
with their length. A name is a tuple of labels in lower case, without the root: names are compared
without regard to case, and labels may hold dots. Source: RFC 1035 s.4, RFC 6762, RFC 6763;
docs/specs/lan.md s.2.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from p2p.errors import DecodeError

MESSAGE_BYTES_MAX: Final = 9000
"""Longest message read. Source: RFC 6762 s.17."""
RECORDS_MAX: Final = 64
"""Questions and records of a message, together. A network of printers sends some 30."""
POINTERS_MAX: Final = 16
"""Compression pointers followed within one name. Honest encoders need one or two."""
NAME_BYTES_MAX: Final = 255
LABEL_BYTES_MAX: Final = 63

A: Final = 1
PTR: Final = 12
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
ANY: Final = 255
_CLASS_IN: Final = 1
_CLASS_ANY: Final = 255
# In a question: "answer me directly"; in a record: "forget what you knew of this name".
_TOP_BIT: Final = 0x8000
_RESPONSE: Final = 0x8000
_AUTHORITATIVE: Final = 0x0400
_OPCODE: Final = 0x7800
_POINTER: Final = 0xC0
_HEADER: Final = struct.Struct(">6H")
_RECORD: Final = struct.Struct(">HHIH")

Name: TypeAlias = tuple[bytes, ...]


def name_of(text: str) -> Name:
    """`_p2p._udp.local` as a name; the labels hold no dots."""
    return tuple(label.encode("utf-8") for label in text.lower().split("."))


@dataclass(frozen=True)
class Question:
    """What somebody asks for."""

    name: Name
    kind: int
    """One of `PTR`, `TXT`, `SRV`, `A`, `AAAA`, `ANY`, or a number nobody here knows."""


@dataclass(frozen=True)
class Ptr:
    """An instance of a service."""

    name: Name
    target: Name
    ttl_s: int


@dataclass(frozen=True)
class Txt:
    """Strings that describe an instance, at most 255 bytes each."""

    name: Name
    strings: tuple[bytes, ...]
    ttl_s: int


@dataclass(frozen=True)
class Srv:
    """Host and port of an instance."""

    name: Name
    port: int
    target: Name
    ttl_s: int


@dataclass(frozen=True)
class HostAddress:
    """An address of a host: A or AAAA."""

    name: Name
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    ttl_s: int


Record: TypeAlias = Ptr | Txt | Srv | HostAddress


@dataclass(frozen=True)
class DnsMessage:
    """A query or a response; the sections of a response are read as one list."""

    is_response: bool
    questions: tuple[Question, ...] = ()
    records: tuple[Record, ...] = ()


# --- reading --------------------------------------------------------------------------------------


def decode_dns_untrusted(data: bytes) -> DnsMessage:
    """Read a message.

    Raises:
        DecodeError: too long or short, over 64 entries, a name out of form, a pointer that does not
            lead backwards, an operation other than a query.
    """
    if not _HEADER.size <= len(data) <= MESSAGE_BYTES_MAX:
        raise DecodeError("mDNS: a message has 12 to 9000 bytes")
    _, flags, questions, *rest = _HEADER.unpack_from(data)
    if flags & _OPCODE:
        raise DecodeError("mDNS: not a query")
    if questions + sum(rest) > RECORDS_MAX:
        raise DecodeError("mDNS: over 64 entries")
    offset = _HEADER.size
    asked: list[Question] = []
    for _ in range(questions):
        name, offset = _read_name(data, offset)
        kind, klass = struct.unpack(">HH", _take(data, offset, 4))
        offset += 4
        if klass & ~_TOP_BIT in (_CLASS_IN, _CLASS_ANY):
            asked.append(Question(name, kind))
    records: list[Record] = []
    for _ in range(sum(rest)):
        record, offset = _read_record(data, offset)
        if record is not None:
            records.append(record)
    return DnsMessage(bool(flags & _RESPONSE), tuple(asked), tuple(records))


def _take(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise DecodeError("mDNS: truncated")
    return data[offset : offset + size]


def _read_name(data: bytes, offset: int) -> tuple[Name, int]:
    """A name and the offset behind it.

    A pointer must lead before the place where its own run of labels began, so that following
    pointers ends by itself; their number is limited besides, because the time is the sum over all
    names.
    """
    labels: list[bytes] = []
    size = 1
    end = -1
    pointers = 0
    start = offset
    while True:
        length = _take(data, offset, 1)[0]
        if length & _POINTER == _POINTER:
            target = int.from_bytes(_take(data, offset, 2), "big") & 0x3FFF
            end = offset + 2 if end < 0 else end
            pointers += 1
            if target >= start or pointers > POINTERS_MAX:
                raise DecodeError("mDNS: a pointer that does not lead backwards, or too many")
            offset = start = target
        elif length > LABEL_BYTES_MAX:
            raise DecodeError("mDNS: a label of an unknown kind")
        elif length == 0:
            return tuple(labels), (offset + 1 if end < 0 else end)
        else:
            size += length + 1
            if size > NAME_BYTES_MAX:
                raise DecodeError("mDNS: a name over 255 bytes")
            labels.append(_take(data, offset + 1, length).lower())
            offset += 1 + length


def _read_record(data: bytes, offset: int) -> tuple[Record | None, int]:
    name, offset = _read_name(data, offset)
    kind, klass, ttl_s, size = _RECORD.unpack(_take(data, offset, _RECORD.size))
    offset += _RECORD.size
    _take(data, offset, size)
    end = offset + size
    if klass & ~_TOP_BIT != _CLASS_IN:
        return None, end
    match kind:
        case 12:
            target, stop = _read_name(data, offset)
            record: Record = Ptr(name, target, ttl_s)
        case 16:
            record, stop = Txt(name, _read_strings(data[offset:end]), ttl_s), end
        case 33:
            _, _, port = struct.unpack(">3H", _take(data, offset, 6))
            target, stop = _read_name(data, offset + 6)
            record = Srv(name, port, target, ttl_s)
        case 1 | 28:
            if size != (4 if kind == A else 16):
                raise DecodeError("mDNS: an address of a wrong length")
            record, stop = HostAddress(name, ipaddress.ip_address(data[offset:end]), ttl_s), end
        case _:
            return None, end
    if stop != end:
        raise DecodeError("mDNS: a record longer or shorter than it says")
    return record, end


def _read_strings(data: bytes) -> tuple[bytes, ...]:
    strings: list[bytes] = []
    offset = 0
    while offset < len(data):
        size = data[offset]
        strings.append(_take(data, offset + 1, size))
        offset += 1 + size
    return tuple(strings)


# --- writing --------------------------------------------------------------------------------------


def encode_dns(message: DnsMessage) -> bytes:
    """The bytes of a message. A response's first record is its answer, the others come along."""
    records = message.records
    answers = min(1, len(records)) if message.is_response else 0
    flags = _RESPONSE | _AUTHORITATIVE if message.is_response else 0
    out = bytearray(
        _HEADER.pack(0, flags, len(message.questions), answers, 0, len(records) - answers)
    )
    seen: dict[Name, int] = {}
    for question in message.questions:
        _write_name(out, question.name, seen)
        out += struct.pack(">HH", question.kind, _CLASS_IN)
    for record in records:
        _write_record(out, record, seen)
    assert len(out) <= MESSAGE_BYTES_MAX, "a message of ours is longer than others read"
    return bytes(out)


def _write_name(out: bytearray, name: Name, seen: dict[Name, int]) -> None:
    for index in range(len(name)):
        suffix = name[index:]
        known = seen.get(suffix)
        if known is not None:
            out += struct.pack(">H", _POINTER << 8 | known)
            return
        if len(out) <= 0x3FFF:
            seen[suffix] = len(out)
        assert 0 < len(name[index]) <= LABEL_BYTES_MAX, "a label of ours is out of form"
        out += bytes((len(name[index]),)) + name[index]
    out += b"\0"


def _write_record(out: bytearray, record: Record, seen: dict[Name, int]) -> None:
    _write_name(out, record.name, seen)
    kind = {
        Ptr: PTR,
        Txt: TXT,
        Srv: SRV,
        HostAddress: A if isinstance(record, HostAddress) and record.ip.version == 4 else AAAA,
    }[type(record)]
    out += _RECORD.pack(kind, _CLASS_IN, record.ttl_s, 0)
    start = len(out)
    match record:
        case Ptr():
            _write_name(out, record.target, seen)
        case Txt():
            for string in record.strings or (b"",):
                assert len(string) <= 255, "a string of ours is out of form"
                out += bytes((len(string),)) + string
        case Srv():
            out += struct.pack(">3H", 0, 0, record.port)
            # Not compressed: RFC 2782 forbids it, and old readers hold to that.
            _write_name(out, record.target, {})
        case HostAddress():
            out += record.ip.packed
    out[start - 2 : start] = struct.pack(">H", len(out) - start)
