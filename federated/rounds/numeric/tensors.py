"""What a federation averages: a schema, a state that follows it, updates, and roots of states.

A state is a mapping of names to arrays (f32, f16, bf16 as u16). An update is one f32 vector: all
tensors flattened in the schema's order, the order of their names' code points. A state's root says
how it came about: each round's root hashes the one before it and the merged parts, so two members
with one root have applied the same parts to the same genesis.
"""

from __future__ import annotations

import itertools
import math
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric.dtypes import (
    DType,
    dtype_of,
    first_not_finite,
    held,
    itemsize,
    narrow,
    widen,
)
from federated.rounds.numeric.safetensors import (
    DATA_BYTES_MAX,
    DIMENSIONS_MAX,
    NAME_BYTES_MAX,
    TENSORS_MAX,
)
from p2p.errors import DecodeError
from p2p.replication.canonical import decode_canonical_untrusted, encode_canonical

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from federated.rounds.numeric.dtypes import F32, Array

SCHEMA_BYTES_MAX: Final = 512 * 1024
"""1,024 tensors of the longest names and most dimensions stay below."""
ROOT_BYTES: Final = 32

_SCHEMA: Final = b"covey/fed/schema/1\0"
_GENESIS: Final = b"covey/fed/genesis/1\0"
_ROOT: Final = b"covey/fed/root/1\0"

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=DATA_BYTES_MAX)]
_Shape = Annotated[tuple[_Size, ...], msgspec.Meta(max_length=DIMENSIONS_MAX)]


class TensorSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Name, shape and dtype of one tensor.

    Attributes:
        name: at most 256 bytes of UTF-8.
        shape: empty for a single number; a 0 in it means an empty tensor.
        dtype: of the state; updates are f32 whatever it is.
    """

    name: _Name
    shape: _Shape
    dtype: DType

    @property
    def size(self) -> int:
        """Its numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes in a state."""
        return self.size * itemsize(self.dtype)


_SPECS: Final = msgspec.msgpack.Decoder(
    Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
)


class Schema(msgspec.Struct, frozen=True):
    """The tensors of a state, ascending by name.

    Made by `schema_of` and `decode_schema_untrusted`, which check it.

    Attributes:
        tensors: 1 to 1,024 of them.
    """

    tensors: tuple[TensorSpec, ...]

    @property
    def size(self) -> int:
        """Numbers of an update."""
        return sum(spec.size for spec in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of a state's tensors."""
        return sum(spec.nbytes for spec in self.tensors)

    def encode(self) -> bytes:
        """The one encoding: MessagePack `[[name, shape, dtype], ...]`."""
        return encode_canonical(self.tensors)

    def hash(self) -> bytes:
        """32 bytes that stand for the schema."""
        return sha256(_SCHEMA + self.encode()).digest()

    def spans(self) -> Iterator[tuple[TensorSpec, int, int]]:
        """Each tensor with where it begins and ends in an update."""
        at = 0
        for spec in self.tensors:
            yield spec, at, at + spec.size
            at += spec.size


def decode_schema_untrusted(data: bytes) -> Schema:
    """A peer's schema.

    Raises:
        DecodeError: malformed, not in its one encoding, names not ascending, or over a limit.
    """
    specs = decode_canonical_untrusted(_SPECS, data, bytes_max=SCHEMA_BYTES_MAX, what="schema")
    schema = Schema(specs)
    fault = _fault(schema)
    if fault:
        raise DecodeError(f"schema: {fault}")
    return schema


def _fault(schema: Schema) -> str:
    """What a type cannot say and is wrong with a schema, without its names; empty if nothing."""
    names = [spec.name for spec in schema.tensors]
    if any(len(name.encode("utf-8")) > NAME_BYTES_MAX for name in names):
        return f"a name of over {NAME_BYTES_MAX} bytes"
    if not all(a < b for a, b in itertools.pairwise(names)):
        return "names that do not ascend"
    # An update is f32 whatever the state is, and it is what travels.
    if any(spec.size * 4 > DATA_BYTES_MAX for spec in schema.tensors):
        return f"a tensor of over {DATA_BYTES_MAX} bytes"
    if schema.size * 4 > DATA_BYTES_MAX:
        return f"over {DATA_BYTES_MAX} bytes in all"
    return ""


def schema_of(tensors: Mapping[str, Array]) -> Schema:
    """The schema of a state, whatever the order of its mapping.

    Raises:
        UsageError: no tensor, another dtype, a name that is no text, or over a limit.
    """
    if not 0 < len(tensors) <= TENSORS_MAX:
        raise UsageError(f"{len(tensors)} tensors: give 1 to {TENSORS_MAX}")
    specs = []
    for name, array in tensors.items():
        dtype = dtype_of(array)
        if dtype is None:
            raise UsageError(_wrong_dtype(name, array, "float32, float16 or bfloat16 (as uint16)"))
        if not _is_name(name):
            raise UsageError(f"tensor {name[:40]!r}: a name is 1 to {NAME_BYTES_MAX} bytes of text")
        if array.ndim > DIMENSIONS_MAX:
            raise UsageError(f"tensor {name!r} has {array.ndim} dimensions, over {DIMENSIONS_MAX}")
        specs.append(TensorSpec(name, array.shape, dtype))
    schema = Schema(tuple(sorted(specs, key=lambda spec: spec.name)))
    fault = _fault(schema)
    if fault:
        raise UsageError(f"tensors: {fault}")
    return schema


def _is_name(name: str) -> bool:
    try:
        return 0 < len(name.encode("utf-8")) <= NAME_BYTES_MAX
    except UnicodeEncodeError:
        return False


def _wrong_dtype(name: str, array: Array, wanted: str) -> str:
    return f"tensor {name!r} is {array.dtype}, not {wanted}: convert it with .astype()"


def check(schema: Schema, tensors: Mapping[str, Array]) -> None:
    """Refuse a state that does not follow the schema, or holds a NaN or an infinity.

    Raises:
        UsageError: with the tensor's name, what is wrong with it, and where.
    """
    check_shape(schema, tensors)
    for spec in schema.tensors:
        _check_finite(spec, held(tensors[spec.name], spec.dtype), "holds a NaN or an infinity")


def check_shape(schema: Schema, tensors: Mapping[str, Array]) -> None:
    """Refuse a state with other names, shapes or dtypes than the schema's; looks at no number.

    Raises:
        UsageError: with the tensor's name.
    """
    for spec in schema.tensors:
        array = tensors.get(spec.name)
        if array is None:
            raise UsageError(f"tensor {spec.name!r} is missing")
        if dtype_of(array) != spec.dtype:
            raise UsageError(_wrong_dtype(spec.name, array, spec.dtype))
        if array.shape != spec.shape:
            raise UsageError(f"tensor {spec.name!r} has the shape {array.shape}, not {spec.shape}")
    if len(tensors) != len(schema.tensors):
        known = {spec.name for spec in schema.tensors}
        extra = min(name for name in tensors if name not in known)
        raise UsageError(f"tensor {extra!r} is not part of the schema")


def check_update(schema: Schema, update: F32) -> None:
    """Refuse an update of another length or dtype, or with a NaN or an infinity in it.

    Raises:
        UsageError: with the tensor's name.
    """
    _check_vector(schema, update)
    for spec, start, end in schema.spans():
        at = first_not_finite(update[start:end], "f32")
        if at is not None:
            raise UsageError(_not_finite(spec, at, "holds a NaN or an infinity"))


def _check_vector(schema: Schema, update: F32) -> None:
    if update.shape != (schema.size,) or update.dtype != np.float32:
        raise UsageError(
            f"an update is {schema.size} float32 numbers in one dimension, "
            f"not {update.dtype} of the shape {update.shape}"
        )


def _check_finite(spec: TensorSpec, flat: Array, what: str) -> None:
    at = first_not_finite(flat, spec.dtype)
    if at is not None:
        raise UsageError(_not_finite(spec, at, what))


def _not_finite(spec: TensorSpec, at: int, what: str) -> str:
    place = (
        [int(index) for index in np.unravel_index(at, spec.shape)] if spec.shape else "its value"
    )
    return f"tensor {spec.name!r} {what}, first at {place}"


def flatten(schema: Schema, tensors: Mapping[str, Array], out: F32 | None = None) -> F32:
    """All numbers of a state as one f32 vector, in the schema's order; exact.

    Args:
        schema: of the state.
        tensors: the state.
        out: where to write, a vector of `schema.size`; a new one by default.

    Raises:
        UsageError: the state does not follow the schema.
    """
    check_shape(schema, tensors)
    flat = np.empty(schema.size, np.float32) if out is None else out
    _check_vector(schema, flat)
    for spec, start, end in schema.spans():
        widen(held(tensors[spec.name], spec.dtype), spec.dtype, flat[start:end])
    return flat


def unflatten(schema: Schema, flat: F32) -> dict[str, F32]:
    """The parts of an f32 vector under their names and in their shapes, as views of it.

    Raises:
        UsageError: a vector of another length.
    """
    _check_vector(schema, flat)
    return {spec.name: flat[start:end].reshape(spec.shape) for spec, start, end in schema.spans()}


def delta(
    schema: Schema, new: Mapping[str, Array], base: Mapping[str, Array], out: F32 | None = None
) -> F32:
    """The update that leads from `base` to `new`: one f32 subtraction a number.

    Args:
        schema: of both.
        new: what training made.
        base: what it began with.
        out: where to write, as for `flatten`.

    Raises:
        UsageError: a state does not follow the schema, or the difference is beyond f32.
    """
    check_shape(schema, base)
    update = flatten(schema, new, out)
    scratch = np.empty(max((spec.size for spec in schema.tensors), default=0), np.float32)
    for spec, start, end in schema.spans():
        old = scratch[: end - start]
        widen(held(base[spec.name], spec.dtype), spec.dtype, old)
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(update[start:end], old, out=update[start:end])
        at = first_not_finite(update[start:end], "f32")
        if at is not None:
            raise UsageError(_not_finite(spec, at, "changed by a NaN, an infinity or beyond f32"))
    return update


def apply(schema: Schema, base: Mapping[str, Array], merged: F32) -> dict[str, Array]:
    """The state after a round: base + merged, one f32 add, then the tensor's dtype.

    The same bits on every machine that has the same base and the same merged update.

    Args:
        schema: of the state.
        base: the state before, untouched.
        merged: the merged update, untouched.

    Returns:
        New arrays in the schema's order.

    Raises:
        UsageError: base or update do not follow the schema, or a number leaves its dtype's range.
    """
    check_shape(schema, base)
    _check_vector(schema, merged)
    state: dict[str, Array] = {}
    for spec, start, end in schema.spans():
        old = held(base[spec.name], spec.dtype)
        narrowed = _added(spec, old, merged[start:end])
        _check_finite(spec, narrowed, _leaves(spec))
        state[spec.name] = narrowed.reshape(spec.shape)
    return state


def refused(schema: Schema, base: Mapping[str, Array], start: int, merged: F32) -> str:
    """Why `apply` would refuse this piece of a merged update, or nothing.

    Args:
        schema: of the state.
        base: the state before, which follows it.
        start: the piece's first element of the flattened update.
        merged: float32[n], finite.
    """
    for spec, first, end in schema.spans():
        lo, hi = max(first, start), min(end, start + len(merged))
        if lo >= hi:
            continue
        old = held(base[spec.name], spec.dtype)[lo - first : hi - first]
        at = first_not_finite(_added(spec, old, merged[lo - start : hi - start]), spec.dtype)
        if at is not None:
            return _not_finite(spec, at + lo - first, _leaves(spec))
    return ""


def _added(spec: TensorSpec, old: Array, merged: F32) -> Array:
    """One f32 add, then the tensor's dtype."""
    total = np.empty(len(old), np.float32)
    widen(old, spec.dtype, total)
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(total, merged, out=total)
        return narrow(total, spec.dtype)


def _leaves(spec: TensorSpec) -> str:
    return f"leaves the range of {spec.dtype}"


def genesis_root(schema: Schema, tensors: Mapping[str, Array]) -> bytes:
    """Root of a first state: SHA-256 of its schema and of its bytes in the schema's order.

    Raises:
        UsageError: the state does not follow the schema.
    """
    check_shape(schema, tensors)
    digest = sha256(_GENESIS + schema.hash())
    for spec in schema.tensors:
        digest.update(held(tensors[spec.name], spec.dtype).view(np.uint8).data)
    return digest.digest()


def next_root(base_root: bytes, part_hashes: Sequence[bytes]) -> bytes:
    """Root after a round: SHA-256 of the root before and of the hashes of the encoded merged parts.

    Args:
        base_root: 32 bytes.
        part_hashes: SHA-256 of each encoded merged part, by its index.

    Raises:
        UsageError: a root or a hash that is not 32 bytes long.
    """
    if any(len(part) != ROOT_BYTES for part in (base_root, *part_hashes)):
        raise UsageError("roots and hashes of parts are 32 bytes long")
    return sha256(_ROOT + base_root + b"".join(part_hashes)).digest()
