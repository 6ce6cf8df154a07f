"""Files of tensors in the safetensors format, through a view of the header that copies nothing.

A file is the header's length (u64, little-endian), the header (JSON, padded with spaces) and the
tensors' bytes. The header gives each name its dtype, shape and span of bytes:
`{"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}`; `__metadata__`, a map of text
to text, is read over. We take less than the format allows: f32, f16 and bf16 alone, no name twice
(which of the two counts would hang on the reader), no byte outside of every tensor or in two.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric.dtypes import NUMPY, DType, dtype_of, held, itemsize
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federated.rounds.numeric.dtypes import Array

HEADER_BYTES_MAX: Final = 1 << 20
TENSORS_MAX: Final = 1024
NAME_BYTES_MAX: Final = 256
DIMENSIONS_MAX: Final = 16
DATA_BYTES_MAX: Final = 4 << 30

_LENGTH_BYTES: Final = 8
_ALIGNMENT: Final = 8
_METADATA: Final = "__metadata__"
_DTYPES: Final[dict[str, DType]] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_NAMES: Final[dict[DType, str]] = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies in a file.

    Attributes:
        name: at most `NAME_BYTES_MAX` bytes of UTF-8.
        dtype: of its numbers.
        shape: empty for a single number.
        start: its first byte, counted from the beginning of the file.
        nbytes: its length.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds, in the order of its header."""

    tensors: tuple[Tensor, ...]


def read_header_untrusted(data: bytes | memoryview) -> Header:
    """Look at a whole file, without touching its tensors.

    Args:
        data: the file's bytes, perhaps mapped.

    Raises:
        DecodeError: cut short or too long, over a limit, or not of this format; the message says
            which and quotes nothing foreign.
    """
    size = len(data)
    if size < _LENGTH_BYTES:
        raise DecodeError("tensor file: shorter than its header's length")
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        raise DecodeError(f"tensor file: a header of over {HEADER_BYTES_MAX} bytes")
    begin = _LENGTH_BYTES + length
    if size < begin:
        raise DecodeError("tensor file: shorter than its header")
    if size - begin > DATA_BYTES_MAX:
        raise DecodeError(f"tensor file: over {DATA_BYTES_MAX} bytes of tensors")
    entries = _entries(bytes(data[_LENGTH_BYTES:begin]))
    tensors = tuple(_tensor(name, entry, begin) for name, entry in entries)
    _check_cover(tensors, begin, size)
    return Header(tensors)


def _entries(text: bytes) -> list[tuple[str, object]]:
    """Names and what is said of them, in order, without the metadata."""
    if not text.startswith(b"{"):
        raise DecodeError("tensor file: the header does not begin with a brace")
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_pairs)
    except (ValueError, RecursionError):  # bad UTF-8 and endless numbers are ValueErrors, too
        raise DecodeError("tensor file: the header is no JSON") from None
    found: list[tuple[str, object]] = []
    seen = set()
    for name, entry in cast("_Pairs", parsed):
        if name in seen:
            raise DecodeError("tensor file: a name comes twice")
        seen.add(name)
        if name == _METADATA:
            _check_metadata(entry)
        else:
            found.append((name, entry))
    if len(found) > TENSORS_MAX:
        raise DecodeError(f"tensor file: over {TENSORS_MAX} tensors")
    return found


class _Pairs(list[tuple[str, object]]):
    """An object of the header with its keys as they came; `dict` would hide those that repeat."""

    __slots__ = ()


def _pairs(pairs: list[tuple[str, object]]) -> _Pairs:
    return _Pairs(pairs)


def _check_metadata(entry: object) -> None:
    if not isinstance(entry, _Pairs) or not all(isinstance(text, str) for _, text in entry):
        raise DecodeError("tensor file: metadata that is no map of text to text")


def _tensor(name: str, entry: object, begin: int) -> Tensor:
    _check_name(name)
    if not isinstance(entry, _Pairs) or len(entry) != 3:
        raise DecodeError("tensor file: a tensor needs dtype, shape and data_offsets alone")
    fields = dict(entry)
    dtype = _dtype(fields.get("dtype"))
    shape = _numbers(fields.get("shape"), "shape")
    offsets = _numbers(fields.get("data_offsets"), "data_offsets")
    if len(shape) > DIMENSIONS_MAX:
        raise DecodeError(f"tensor file: over {DIMENSIONS_MAX} dimensions")
    if len(offsets) != 2:
        raise DecodeError("tensor file: data_offsets are not two")
    nbytes = math.prod(shape) * itemsize(dtype)  # Python's integers do not overflow
    if offsets[1] - offsets[0] != nbytes:
        raise DecodeError("tensor file: a shape and its data_offsets disagree")
    return Tensor(name, dtype, shape, begin + offsets[0], nbytes)


def _check_name(name: str) -> None:
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise DecodeError("tensor file: a name that is no text") from None
    if not 0 < size <= NAME_BYTES_MAX:
        raise DecodeError(f"tensor file: a name is not 1 to {NAME_BYTES_MAX} bytes long")


def _dtype(value: object) -> DType:
    found = _DTYPES.get(value) if isinstance(value, str) else None
    if found is None:
        raise DecodeError("tensor file: a dtype other than F32, F16, BF16")
    return found


def _numbers(value: object, what: str) -> tuple[int, ...]:
    # `type is int`: JSON's true is an int, too.
    if not isinstance(value, list) or isinstance(value, _Pairs):
        raise DecodeError(f"tensor file: {what} is no list")
    for number in value:
        if type(number) is not int or not 0 <= number <= DATA_BYTES_MAX:
            raise DecodeError(f"tensor file: {what} holds something else than small whole numbers")
    return tuple(value)


def _check_cover(tensors: Sequence[Tensor], begin: int, end: int) -> None:
    """Each byte after the header belongs to exactly one tensor."""
    at = begin
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.nbytes)):
        if tensor.start != at:
            word = "overlap" if tensor.start < at else "leave a gap"
            raise DecodeError(f"tensor file: its tensors {word}")
        at += tensor.nbytes
    if at != end:
        raise DecodeError("tensor file: its tensors do not end where it ends")


def view(data: bytes | memoryview, header: Header) -> dict[str, Array]:
    """The tensors by name, as views of `data`: nothing is copied, bf16 shows as u16.

    Args:
        data: what `header` was read from; it stays alive as long as a view does.
        header: of these bytes.
    """
    found: dict[str, Array] = {}
    for tensor in header.tensors:
        kind = NUMPY[tensor.dtype]
        count = tensor.nbytes // kind.itemsize
        flat = np.frombuffer(data, kind, count, tensor.start) if count else np.empty(0, kind)
        found[tensor.name] = flat.reshape(tensor.shape)
    return found


def dump(tensors: Mapping[str, Array]) -> tuple[bytes, list[memoryview]]:
    """A file in pieces: all before the tensors, then each tensor's bytes in the mapping's order.

    Args:
        tensors: f32, f16 or bf16 (as u16 or ml_dtypes' bfloat16), in the order of the file.

    Returns:
        Header bytes and one piece a tensor, without a copy where a tensor is contiguous. The header
        has no metadata and no space but at its end, where it fills up to a multiple of 8 bytes.

    Raises:
        UsageError: a tensor of another dtype, or over a limit of this format.
    """
    entries: dict[str, object] = {}
    chunks: list[memoryview] = []
    at = 0
    if len(tensors) > TENSORS_MAX:
        raise UsageError(f"{len(tensors)} tensors, at most {TENSORS_MAX} in one file")
    for name, array in tensors.items():
        dtype = dtype_of(array)
        if dtype is None or name == _METADATA:
            raise UsageError(f"tensor {name!r} ({array.dtype}) is not f32, f16 or bf16")
        chunk = held(array, dtype)
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + chunk.nbytes],
        }
        at += chunk.nbytes
        chunks.append(chunk.view(np.uint8).data)
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > HEADER_BYTES_MAX or at > DATA_BYTES_MAX:
        raise UsageError(
            f"a header of {len(text)} bytes and {at} bytes of tensors: at most "
            f"{HEADER_BYTES_MAX} and {DATA_BYTES_MAX} in one file"
        )
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text, chunks
