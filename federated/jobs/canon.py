"""One form of bytes for one value: what keys, hashes and comparisons are made of.

JSON in UTF-8 without spaces, keys in the order of their code points, all text in NFC, integers
within +-2^53, finite floats of which integral ones in that range are written as integers, at most
32 levels deep. Floats and escapes are msgspec's, which differ from `json` and RFC 8785 (`1e16`):
peers must run the same library, and vectors in tests/vectors hold its output still.

The check comes before the encoder, because msgspec writes NaN as `null`.
Source: docs/specs/jobs.md s.2.
"""

from __future__ import annotations

import unicodedata
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, cast

import msgspec

from federated.errors import PlanError
from federated.jobs.limits import DEPTH_MAX, INT_MAX
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_DECODER: Final = msgspec.json.Decoder(list[list[object]])

HASH_BYTES: Final = 32


def normal(value: object, path: str = "", depth: int = 0) -> object:
    """`value` as its canonical form says it: NFC text, integral floats as integers.

    Args:
        value: what JSON can say.
        path: where it stands, for the message.
        depth: levels above it.

    Raises:
        PlanError: `bad_value`, naming the place, for what has no canonical form.
    """
    kind = type(value)
    if kind is str:
        return _text(cast("str", value), path)
    if value is None or kind is bool:
        return value
    if kind is int:
        if not -INT_MAX <= cast("int", value) <= INT_MAX:
            raise PlanError("bad_value", "a whole number beyond 2^53: write it as text", path=path)
        return value
    if kind is float:
        return _number(cast("float", value), path)
    if depth >= DEPTH_MAX:
        raise PlanError("bad_value", f"nested deeper than {DEPTH_MAX} levels", path=path)
    if kind is list or kind is tuple:
        items = cast("Sequence[object]", value)
        return [normal(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(items)]
    if kind is dict:
        return _mapping(cast("dict[object, object]", value), path, depth)
    raise PlanError("bad_value", f"{kind.__name__} is no JSON value", path=path)


def _mapping(value: dict[object, object], path: str, depth: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, item in value.items():
        if type(key) is not str:
            raise PlanError("bad_value", "keys must be text", path=path)
        name = _text(key, path)
        if name in found:
            raise PlanError("bad_value", f"two keys are the same text: {name!r}", path=path)
        found[name] = normal(item, f"{path}.{name}" if path else name, depth + 1)
    return found


def _text(value: str, path: str) -> str:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PlanError("bad_value", "half of a surrogate pair is no text", path=path) from None
    return unicodedata.normalize("NFC", value)


def _number(value: float, path: str) -> float:
    if value != value or value in {float("inf"), float("-inf")}:
        raise PlanError("bad_value", "not a finite number", path=path)
    if value.is_integer() and -INT_MAX <= value <= INT_MAX:
        return int(value)
    return value


def canonical(value: object, path: str = "") -> bytes:
    """The one form of `value`.

    Raises:
        PlanError: `bad_value`, for what has none.
    """
    return _ENCODER.encode(normal(value, path))


def encode_normal(value: object) -> bytes:
    """The canonical form of what `normal` returned."""
    return _ENCODER.encode(value)


def hash_parts(*parts: object) -> bytes:
    """blake2b-256 of the canonical array of `parts`."""
    return blake2b(canonical(list(parts)), digest_size=HASH_BYTES).digest()


def row_hasher(prefix: Sequence[object]) -> _RowHasher:
    """What hashes the rows of one job: everything but the row itself is encoded once."""
    return _RowHasher(prefix)


class _RowHasher:
    """blake2b-256 of the canonical array [*prefix, row], for rows in canonical bytes."""

    __slots__ = ("_begun",)

    def __init__(self, prefix: Sequence[object]) -> None:
        self._begun = blake2b(digest_size=HASH_BYTES)
        self._begun.update(canonical(list(prefix))[:-1] + b",")

    def hash(self, row: bytes, suffix: bytes = b"") -> bytes:
        """The hash of a row; `suffix` is `,` and more elements for rows that are no cache keys."""
        state = self._begun.copy()
        state.update(row)
        state.update(suffix)
        state.update(b"]")
        return state.digest()


def digest(data: bytes) -> bytes:
    """blake2b-256 of bytes."""
    return blake2b(data, digest_size=HASH_BYTES).digest()


def decode_table_untrusted(data: bytes) -> list[list[object]]:
    """A canonical array of arrays, as rows and answers travel.

    Raises:
        DecodeError: it is none, nested too deep included.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
        raise DecodeError("rows are no array of arrays") from None
