"""A change to the embedder's graph: look words up before unpacking them, not after.

The published file keeps its weights in int8, a scale a row, and its graph begins with unpacking:
Cast and Mul over the whole word table (30,522 x 384), then Gather of a few rows. The runtime
computes the first two when it loads the model and keeps their result, 47 MB in float32 for ever
(told not to, it computes them anew for every text, 60 ms). Gathering the packed rows and their
scales first gives the same numbers, bit for bit, from the 12 MB that are in the file.

The file is checked by its hash before it comes here, so the nodes are known; nothing foreign is
parsed. Of protobuf this knows what a graph's nodes need: varints and length-delimited fields.
Source: onnx.proto, ModelProto.graph = 7, GraphProto.node = 1, NodeProto.input = 1, output = 2,
op_type = 4, attribute = 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE: Final = b"inner.embeddings.word_embeddings.weight"
IDS: Final = b"input_ids"

_GRAPH, _NODE = 7, 1
_INPUT, _OUTPUT, _OP, _ATTRIBUTE = 1, 2, 4, 5
_LENGTH = 2


class _Field(NamedTuple):
    """One field of a message: its number, its bytes with the tag, its content alone."""

    number: int
    whole: memoryview
    content: memoryview


def gather_before_unpacking(model: bytes) -> bytes:
    """The model with the word table unpacked row by row, when the rows are needed."""
    changed = 0
    parts: list[bytes | memoryview] = []
    for field in _fields(memoryview(model)):
        if field.number == _GRAPH:
            changed += 1
            parts.append(_field(_GRAPH, _rewire(field.content)))
        else:
            parts.append(field.whole)
    assert changed == 1, "a model has one graph"
    return b"".join(parts)


def _rewire(graph: memoryview) -> bytes:
    fields = list(_fields(graph))
    nodes = [field for field in fields if field.number == _NODE]
    cast = _node_that(nodes, _OUTPUT, TABLE + b"_f")
    mul = _node_that(nodes, _OUTPUT, TABLE)
    gather = _node_that(nodes, _INPUT, TABLE)
    rows, unpacked, scales = TABLE + b"_rows", TABLE + b"_rows_f", TABLE + b"_row_scales"
    (embedding,) = _contents(gather, _OUTPUT)
    new = [
        _node(b"Gather", [TABLE + b"_q", IDS], rows, gather),
        _node(b"Cast", [rows], unpacked, cast),
        _node(b"Gather", [TABLE + b"_scale", IDS], scales, gather),
        _node(b"Mul", [unpacked, scales], embedding, mul),
    ]
    old = {id(cast), id(mul), id(gather)}
    # Nodes stand in the order of their work; these need initial values and the input alone.
    kept = [field.whole for field in fields if id(field) not in old]
    return b"".join([*new, *kept])


def _node_that(nodes: list[_Field], number: int, name: bytes) -> _Field:
    """The one node with this input or output."""
    found = [node for node in nodes if name in _contents(node, number)]
    assert len(found) == 1, (
        f"{len(found)} nodes with {name!r}: not the graph that the hash promises"
    )
    return found[0]


def _node(op: bytes, inputs: list[bytes], output: bytes, like: _Field) -> bytes:
    """A node with the attributes of another."""
    parts: list[bytes | memoryview] = [_field(_INPUT, name) for name in inputs]
    parts += [_field(_OUTPUT, output), _field(_OP, op)]
    parts += [field.whole for field in _fields(like.content) if field.number == _ATTRIBUTE]
    return _field(_NODE, b"".join(parts))


def _contents(node: _Field, number: int) -> list[bytes]:
    return [bytes(field.content) for field in _fields(node.content) if field.number == number]


def _fields(message: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        match key & 7:
            case 0:  # a varint
                value_at = at
                _, at = _varint(message, at)
            case 2:  # length-delimited
                size, value_at = _varint(message, at)
                at = value_at + size
            case kind:
                raise AssertionError(f"wire type {kind}: not the graph that the hash promises")
        yield _Field(key >> 3, message[start:at], message[value_at:at])


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


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return _encode(number << 3 | _LENGTH) + _encode(len(content)) + content


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
