"""ONNX files: weights out of one, and another written around them.

The file that is read was checked by its hash, so its fields are known; nothing foreign is parsed.
Of protobuf this knows what a graph needs: varints, fixed 32-bit numbers, length-delimited fields.
Source: onnx.proto: of ModelProto ir_version = 1, graph = 7, opset_import = 8, of GraphProto
node = 1, name = 2, initializer = 5, input = 11, output = 12; the rest stands where it is used.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

Array: TypeAlias = (
    "NDArray[np.float32] | NDArray[np.int8] | NDArray[np.uint8] | NDArray[np.int32]"
    " | NDArray[np.int64] | NDArray[np.bool_]"
)
Attribute: TypeAlias = "int | float | Sequence[int]"

IR_VERSION: Final = 8
"""Of 2021, as the operator set 17 of `Graph`: every supported runtime reads it."""

OPSET: Final = 17
CONTRIB: Final = "com.microsoft"
"""Operators of onnxruntime itself, version 1 of their set."""

FLOAT: Final = 1
INT32: Final = 6
INT64: Final = 7
"""Types as `Cast` and inputs name them."""

_TYPES: Final = {
    FLOAT: np.float32,
    2: np.uint8,
    3: np.int8,
    INT32: np.int32,
    INT64: np.int64,
    9: np.bool_,
}
_NUMBERS: Final = {np.dtype(kind).str: number for number, kind in _TYPES.items()}

_VARINT, _BYTES, _FIXED32 = 0, 2, 5


class ModelParts(NamedTuple):
    """What is taken from a file.

    Attributes:
        tensors: initial values by name, views of the file's bytes.
        inputs: of each node in the order of work: (operator, names of its inputs).
    """

    tensors: dict[str, Array]
    inputs: list[tuple[str, list[str]]]


def read_model(model: bytes) -> ModelParts:
    """The weights of a model file, and what uses them."""
    (graph,) = (field.content for field in _fields(memoryview(model)) if field.number == 7)
    tensors: dict[str, Array] = {}
    inputs: list[tuple[str, list[str]]] = []
    for field in _fields(graph):
        if field.number == 5:
            name, array = _tensor(field.content)
            tensors[name] = array
        elif field.number == 1:
            parts = list(_fields(field.content))
            operator = next(str(part.content, "utf-8") for part in parts if part.number == 4)
            names = [str(part.content, "utf-8") for part in parts if part.number == 1]
            inputs.append((operator, names))
    return ModelParts(tensors, inputs)


class Graph:
    """A graph on its way into a file: nodes in the order of their work."""

    def __init__(self) -> None:
        self._parts: list[bytes] = [_text(2, "covey")]

    def tensor(self, name: str, array: Array) -> str:
        """An initial value; its name."""
        shape = [_number(1, size) for size in array.shape]
        kind = _number(2, _NUMBERS[array.dtype.str])
        raw = _field(9, np.ascontiguousarray(array).tobytes())
        self._parts.append(_field(5, b"".join([*shape, kind, _text(8, name), raw])))
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: str | Sequence[str],
        *,
        domain: str = "",
        **attributes: Attribute,
    ) -> str:
        """A step; the name of its first output. An input left out in the middle is empty."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        parts = [_text(1, name) for name in inputs]
        parts += [_text(2, name) for name in names]
        parts += [_text(4, operator), _text(7, domain)]
        parts += [_field(5, _attribute(name, value)) for name, value in attributes.items()]
        self._parts.append(_field(1, b"".join(parts)))
        return names[0]

    def model(
        self,
        inputs: Mapping[str, tuple[int, Sequence[str]]],
        outputs: Mapping[str, tuple[int, Sequence[str]]],
    ) -> bytes:
        """The file.

        Args:
            inputs: type and dimensions of each, the dimensions by names of their own.
            outputs: the same.
        """
        declared = [_field(11, _value(name, *what)) for name, what in inputs.items()]
        declared += [_field(12, _value(name, *what)) for name, what in outputs.items()]
        sets = [
            _field(8, _text(1, domain) + _number(2, version))
            for domain, version in (("", OPSET), (CONTRIB, 1))
        ]
        graph = _field(7, b"".join([*self._parts, *declared]))
        return b"".join([_number(1, IR_VERSION), graph, *sets])


class _Field(NamedTuple):
    """One field of a message: its number, and its content unless that is a varint."""

    number: int
    content: memoryview
    value: int


def _tensor(message: memoryview) -> tuple[str, Array]:
    fields = list(_fields(message))
    shape = [field.value for field in fields if field.number == 1]
    kind = next(field.value for field in fields if field.number == 2)
    name = next(str(field.content, "utf-8") for field in fields if field.number == 8)
    raw = next((field.content for field in fields if field.number == 9), memoryview(b""))
    return name, np.frombuffer(raw, _TYPES[kind]).reshape(shape)


def _fields(message: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, value = key >> 3, 0
        match key & 7:
            case 0:
                value, end = _varint(message, at)
            case 2:
                size, at = _varint(message, at)
                end = at + size
            case 5:
                end = at + 4
            case kind:
                raise AssertionError(f"wire type {kind}: not the file that the hash promises")
        yield _Field(number, message[at:end], value)
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(value, where it ends)."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _attribute(name: str, value: Attribute) -> bytes:
    named = _text(1, name)
    if isinstance(value, float):
        return named + _encode(2 << 3 | _FIXED32) + struct.pack("<f", value) + _number(20, 1)
    if isinstance(value, int):
        return named + _number(3, value) + _number(20, 2)
    return named + b"".join(_number(8, item) for item in value) + _number(20, 7)


def _value(name: str, kind: int, dimensions: Sequence[str]) -> bytes:
    """The declaration of an input or output."""
    shape = b"".join(_field(1, _text(2, dimension)) for dimension in dimensions)
    tensor = _number(1, kind) + _field(2, shape)
    return _text(1, name) + _field(2, _field(1, tensor))


def _text(number: int, content: str) -> bytes:
    return _field(number, content.encode())


def _field(number: int, content: bytes) -> bytes:
    return _encode(number << 3 | _BYTES) + _encode(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _encode(number << 3 | _VARINT) + _encode(value)


def _encode(value: int) -> bytes:
    """A varint; negative numbers take ten bytes, as int64 does."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
