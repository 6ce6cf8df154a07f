"""Parameters of any framework as numpy arrays, and layers of a model by their names.

Nothing of a framework is imported: numpy arrays, torch tensors on the CPU and jax arrays are seen
through `__array__` or DLPack, without a copy.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np

from federated.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

F32: TypeAlias = "NDArray[np.float32]"
Array: TypeAlias = "NDArray[np.float16 | np.float32 | np.float64]"

DTYPES: Final = frozenset({"float32", "float16", "float64", "bfloat16"})
"""What can be trained; `bfloat16` is the one of ml_dtypes, as jax has it."""

BLOCK: Final = 32_768
"""128 KiB, as `kernels.NUMPY_BLOCK`."""

_NUMBERED: Final = re.compile(r"(?:.*?\.)?\d+(?=\.)")


def view(name: str, value: object) -> Array:
    """`value` as an array that shares its memory wherever the framework allows it.

    Args:
        name: for the message.
        value: an array, or what `__array__` or `__dlpack__` makes one of.

    Raises:
        UsageError: it cannot be seen from here, or does not hold floating-point numbers.
    """
    detach: Callable[[], object] | None = getattr(value, "detach", None)
    if callable(detach):  # a torch tensor that requires gradients refuses to be seen otherwise
        value = detach()
    try:
        array = np.asarray(value) if _has_array(value) else np.from_dlpack(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError, RuntimeError, AttributeError) as error:
        raise UsageError(f"parameter {name!r} is no array on the CPU: {error}") from error
    if array.dtype.name not in DTYPES:
        raise UsageError(f"parameter {name!r} is {array.dtype}: hand in floating-point ones alone")
    return cast("Array", array)


def _has_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "__array__")


def flatten(names: Sequence[str], params: Mapping[str, object], out: F32) -> None:
    """Write the parameters `names` one after the other to `out`: float32[sum of their sizes]."""
    at = 0
    for name in names:
        array = view(name, params[name])
        # The cast of a float64 beyond float32 is an infinity, which the caller looks for.
        with np.errstate(over="ignore"):
            out[at : at + array.size] = array.reshape(-1)
        at += array.size


def mix(array: Array, common: F32, alpha: float) -> Array:
    """`alpha * array + (1 - alpha) * common`: in place where it can be written, else anew.

    Args:
        array: a parameter.
        common: float32 of the same shape, contiguous.
        alpha: share of the parameter; with 0 whatever it holds is gone, be it no number.

    Returns:
        The array that holds the sum, of the parameter's shape and dtype.
    """
    writable = array.flags.writeable
    if writable and array.dtype == np.float32 and array.flags.c_contiguous:
        _mix_rows(cast("F32", array.reshape(-1)), common.reshape(-1), alpha)
        return array
    mixed = array.astype(np.float32, order="C")
    _mix_rows(mixed.reshape(-1), common.reshape(-1), alpha)
    if not writable:
        return mixed.astype(array.dtype)
    array[...] = mixed
    return array


def _mix_rows(row: F32, common: F32, alpha: float) -> None:
    """In blocks whose scratch stays in the second-level cache."""
    if not alpha:
        row[:] = common
        return
    own, other = np.float32(alpha), np.float32(1) - np.float32(alpha)
    scratch = np.empty(min(len(row), BLOCK), np.float32)
    for start in range(0, len(row), BLOCK):
        block = row[start : start + BLOCK]
        scaled = scratch[: len(block)]
        np.multiply(common[start : start + BLOCK], other, out=scaled)
        block *= own
        block += scaled


def moved(array: Array, by: F32) -> Array:
    """`array + by`: in place where it can be written, else anew.

    Args:
        array: a parameter.
        by: float32 of the same shape.
    """
    summed = array.astype(np.float32) + by
    if not array.flags.writeable:
        return summed.astype(array.dtype)
    array[...] = summed
    return array


# ---- layers


def layers(names: Iterable[str]) -> list[list[str]]:
    """Names of parameters by layer, layers in the order in which they first appear.

    A layer is what stands before the last dot, or up to the first part that is a number: the
    parameters `h.3.attn.weight` and `h.3.mlp.bias` are of one layer. A name without a dot is one.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        numbered = _NUMBERED.match(name)
        layer = numbered[0] if numbered else name.rpartition(".")[0] or name
        found.setdefault(layer, []).append(name)
    return list(found.values())


def fragments(
    names: Sequence[str], wanted: int | Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], ...]:
    """The names of each fragment, ascending: the order of a schema.

    Args:
        names: all parameters, in the model's order.
        wanted: how many fragments: layer i goes to fragment i mod that number, or to fewer where
            there are fewer layers; or the fragments themselves, which hold every name once.

    Raises:
        UsageError: no parameter, no fragment, or not every name once.
    """
    if isinstance(wanted, int):
        if wanted < 1 or not names:
            raise UsageError("at least one fragment and one parameter")
        by_layer = layers(names)
        count = min(wanted, len(by_layer))
        parts = [
            [name for layer in by_layer[first::count] for name in layer] for first in range(count)
        ]
    else:
        parts = [list(part) for part in wanted]
        if not parts or not all(parts):
            raise UsageError("a fragment holds at least one parameter")
        if sorted(name for part in parts for name in part) != sorted(names):
            raise UsageError("the fragments hold every parameter once and no other")
    return tuple(tuple(sorted(part)) for part in parts)
