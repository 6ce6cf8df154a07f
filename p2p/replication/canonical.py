"""Canonical MessagePack: one value, one encoding.

Everything that is signed or hashed here must have exactly one spelling, or two replicas could hold
different bytes that mean the same. `msgspec` refuses floats, booleans, text for binary, missing and
trailing elements, but takes long integers, `array16` for short arrays and `bin16` for short binary;
encoding the decoded value again and comparing catches those. Source: docs/specs/record.md s.1.
"""

from __future__ import annotations

import itertools
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from p2p.errors import DecodeError

T = TypeVar("T")

Bytes16: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes32: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Bytes64: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
U8: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]
U16: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
U63: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0x7FFF_FFFF_FFFF_FFFF)]

_encoder = msgspec.msgpack.Encoder()


def encode_canonical(value: object) -> bytes:
    """The one encoding of `value`: MessagePack with the smallest form of everything."""
    return _encoder.encode(value)


def decode_canonical_untrusted(
    decoder: msgspec.msgpack.Decoder[T], data: bytes, *, bytes_max: int, what: str
) -> T:
    """Decode foreign bytes that must be in canonical form.

    Args:
        decoder: typed, so that memory stays in proportion to `data`.
        data: foreign bytes.
        bytes_max: longer input is refused unread.
        what: name of the thing, for the error.

    Raises:
        DecodeError: too long, malformed, out of range, or not the smallest encoding.
    """
    if len(data) > bytes_max:
        raise DecodeError(f"{what}: {len(data)} bytes, at most {bytes_max} allowed")
    try:
        value = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"{what}: {_reason(error)}") from error
    if _encoder.encode(value) != data:
        raise DecodeError(f"{what}: not in its smallest encoding")
    return value


def strictly_ascending(values: tuple[bytes, ...]) -> bool:
    """Whether each value is greater than the one before it, so that none comes twice."""
    return all(a < b for a, b in itertools.pairwise(values))


def _reason(error: Exception) -> str:
    # The text of the other two quotes foreign bytes or our stack.
    return str(error) if isinstance(error, msgspec.DecodeError) else "malformed"
