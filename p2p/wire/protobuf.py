"""A protobuf codec of the size this project needs: varints and length-delimited fields.

libp2p's own messages (keys, Noise payloads, identify, peer records) are protobuf, and their schemas
are a handful of fields, so a table-free reader of (number, value) pairs is enough. Unknown numbers
are skipped, the last scalar wins, and nothing is decoded recursively: a nested message is a byte
string until somebody asks. Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2p.errors import DecodeError
from p2p.wire.varint import encode_varint

if TYPE_CHECKING:
    from collections.abc import Iterable

FIELDS_MAX: Final = 1024
"""Fields read from one message; with the callers' byte limits this bounds time and memory."""

_WIRE_VARINT: Final = 0
_WIRE_FIXED64: Final = 1
_WIRE_BYTES: Final = 2
_WIRE_FIXED32: Final = 5
_FIXED_BYTES: Final = {_WIRE_FIXED64: 8, _WIRE_FIXED32: 4}
# A protobuf varint may have ten bytes: negative numbers are sent as 64-bit two's complement.
_VARINT_BYTES_MAX: Final = 10


def encode_field(number: int, value: int | bytes) -> bytes:
    """One field: a varint for an int, length-delimited for bytes."""
    if isinstance(value, int):
        return encode_varint(number << 3 | _WIRE_VARINT) + encode_varint(value)
    return encode_varint(number << 3 | _WIRE_BYTES) + encode_varint(len(value)) + value


def encode_fixed64(number: int, value: int) -> bytes:
    """One field of type fixed64: eight bytes, little-endian."""
    return encode_varint(number << 3 | _WIRE_FIXED64) + value.to_bytes(8, "little")


def encode_message(fields: Iterable[tuple[int, int | bytes]]) -> bytes:
    """Fields in the order given."""
    return b"".join(encode_field(number, value) for number, value in fields)


class Fields:
    """The fields of one decoded message, by number."""

    def __init__(self) -> None:
        self._ints: dict[int, int] = {}
        self._bytes: dict[int, list[bytes]] = {}

    def add_int(self, number: int, value: int) -> None:
        """Remember a scalar; the last one wins."""
        self._ints[number] = value

    def add_bytes(self, number: int, value: bytes) -> None:
        """Remember one more length-delimited value."""
        self._bytes.setdefault(number, []).append(value)

    def int_of(self, number: int, default: int = 0) -> int:
        """A scalar; absent = `default`."""
        return self._ints.get(number, default)

    def bytes_of(self, number: int) -> bytes | None:
        """The last length-delimited value, or None if absent."""
        values = self._bytes.get(number)
        return values[-1] if values else None

    def all_bytes(self, number: int) -> list[bytes]:
        """All values of a repeated field, in order."""
        return self._bytes.get(number, [])

    def has(self, number: int) -> bool:
        """Whether the field came at all."""
        return number in self._bytes or number in self._ints


def decode_message_untrusted(data: bytes) -> Fields:
    """Read one message.

    Raises:
        DecodeError: truncated, a group, field number 0, or more than `FIELDS_MAX` fields.
    """
    fields = Fields()
    offset = 0
    for _ in range(FIELDS_MAX):
        if offset == len(data):
            return fields
        tag, offset = _varint(data, offset)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise DecodeError("protobuf field number 0")
        if wire == _WIRE_VARINT:
            value, offset = _varint(data, offset)
            fields.add_int(number, value)
        elif wire == _WIRE_BYTES:
            length, offset = _varint(data, offset)
            fields.add_bytes(number, _slice(data, offset, length))
            offset += length
        elif wire in _FIXED_BYTES:
            raw = _slice(data, offset, _FIXED_BYTES[wire])
            fields.add_int(number, int.from_bytes(raw, "little"))
            offset += len(raw)
        else:
            raise DecodeError(f"protobuf wire type {wire} is not used here")
    if offset == len(data):
        return fields
    raise DecodeError("protobuf message has too many fields")


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    # Unlike libp2p's length prefixes, protobuf itself allows padded varints; encoders of other
    # languages do emit ten-byte ones.
    value = 0
    for index in range(_VARINT_BYTES_MAX):
        if offset + index >= len(data):
            raise DecodeError("protobuf message ends inside a number")
        byte = data[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & (1 << 64) - 1, offset + index + 1
    raise DecodeError("protobuf number is too long")


def _slice(data: bytes, offset: int, length: int) -> bytes:
    if length > len(data) - offset:
        raise DecodeError("protobuf message ends inside a field")
    return bytes(data[offset : offset + length])
