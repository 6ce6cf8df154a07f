"""A round's numbers as bytes: one encoded part, and a vector of several.

`f64` is the codec of sums; the others are those of updates (codec.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric import codec
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Vector: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


MASK_HEAD_BYTES: Final = 16
"""Before a masked sum: the sets of those who shared, and of those whose words are in it."""


def encoded_bytes(name: str, count: int) -> int:
    """Bytes of `count` values in a codec; `f64` is that of sums, `mfix64` that of masked ones."""
    if name in {"f64", "mfix64"}:
        return 8 * count
    return codec.encoded_size(cast("codec.Codec", name), count)


def merged_bytes(name: str, count: int) -> int:
    """Bytes of a merged part of `count` values: as of one member's, and two sets if masked."""
    return encoded_bytes(name, count) + (MASK_HEAD_BYTES if name == "mfix64" else 0)


def encode(name: str, values: Vector) -> bytes:
    """Values in a codec.

    Raises:
        UsageError: a value that cannot be encoded.
    """
    if name == "f64":
        if not np.isfinite(values).all():
            raise UsageError("a sum is not finite: the values are too large")
        return np.ascontiguousarray(values, "<f8").tobytes()
    return codec.encode(cast("codec.Codec", name), np.ascontiguousarray(values, np.float32))


def decode_part_untrusted(name: str, data: bytes | bytearray, count: int) -> Vector:
    """A peer's values.

    Raises:
        DecodeError: of another length, or not all finite.
    """
    if name == "f64":
        if len(data) != 8 * count:
            raise DecodeError(f"{len(data)} bytes where {8 * count} belong")
        values = np.frombuffer(bytes(data), "<f8")
        if not np.isfinite(values).all():
            raise DecodeError("a value that is not finite")
        return values
    return codec.decode_untrusted(cast("codec.Codec", name), data, count)


def join_parts(name: str, parts: Sequence[tuple[bytes, int]]) -> Vector:
    """The vector of encoded (part, number of values), in order.

    Raises:
        DecodeError: one does not decode.
    """
    pieces = [decode_part_untrusted(name, data, count) for data, count in parts]
    if len(pieces) == 1:
        return pieces[0]
    return cast("Vector", np.concatenate(pieces))
