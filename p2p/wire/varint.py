"""Unsigned varints (LEB128) as libp2p uses them: minimal, at most nine bytes.

Source: https://github.com/multiformats/unsigned-varint; docs/specs/wire.md s.2.
"""

from __future__ import annotations

from typing import Final

from p2p.errors import DecodeError

VARINT_BYTES_MAX: Final = 9
"""63 bits: the practical maximum of the unsigned-varint specification."""


def encode_varint(value: int) -> bytes:
    """The minimal varint of `value`, 0 <= value < 2**63."""
    assert 0 <= value < 1 << 63, "varints carry 63 bits"
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint_untrusted(data: bytes | bytearray, offset: int = 0) -> tuple[int, int] | None:
    """Read a varint at `offset`.

    Returns:
        (value, offset after it), or None if the bytes end before it does.

    Raises:
        DecodeError: longer than nine bytes, or not minimal.
    """
    value = 0
    for index in range(VARINT_BYTES_MAX):
        if offset + index >= len(data):
            return None
        byte = data[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            # A zero last byte adds nothing: the same number had a shorter form.
            if byte == 0 and index:
                raise DecodeError("varint is not minimal")
            return value, offset + index + 1
    raise DecodeError("varint is longer than nine bytes")
