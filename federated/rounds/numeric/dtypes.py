"""Numbers of a tensor: f32, f16 and bf16, little-endian; bf16 is held as u16, for numpy has none.

Everything between members is f32. f16 and bf16 are widened exactly and narrowed once, to the
nearest value with ties to even, so that all members end up with the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DType: TypeAlias = Literal["f32", "f16", "bf16"]
F32: TypeAlias = "NDArray[np.float32]"
Array: TypeAlias = "NDArray[np.float16 | np.float32 | np.float64 | np.uint16]"

NUMPY: Final[dict[DType, np.dtype[np.float16 | np.float32 | np.uint16]]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
}
"""What each is held in."""

BLOCK: Final = 1 << 16
"""Elements looked at together: scratch stays in the second-level cache."""


def itemsize(dtype: DType) -> int:
    """Bytes of one number."""
    return NUMPY[dtype].itemsize


def dtype_of(array: Array) -> DType | None:
    """Which of the three `array` holds, None for any other; u16 is bf16, as is ml_dtypes' own."""
    for name, kind in NUMPY.items():
        if array.dtype == kind:
            return name
    return "bf16" if array.dtype.name == "bfloat16" else None


def held(array: Array, dtype: DType) -> Array:
    """The array, contiguous, one-dimensional and as `NUMPY` holds it; copied only if it is not.

    Args:
        array: what `dtype_of` says is `dtype`.
        dtype: of its numbers.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat if flat.dtype == NUMPY[dtype] else flat.view(NUMPY[dtype])


def widen(array: Array, dtype: DType, out: F32) -> None:
    """Write the numbers of `array` (n, as held) to `out` (n, f32), exactly."""
    if dtype == "bf16":
        bits = out.view(np.uint32)
        np.left_shift(array, np.uint32(16), out=bits, dtype=np.uint32, casting="unsafe")
    else:
        out[...] = array


def narrow(values: F32, dtype: DType) -> Array:
    """The f32 `values` (n) in `dtype`, as held; beyond its range they become infinite."""
    if dtype == "f32":
        return values
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return values.astype(NUMPY["f16"])
    bits = values.view(np.uint32)
    # Half of the last place less one, and one more if the last kept bit is odd: ties to even.
    rounded = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
    # A NaN would be rounded into an infinity, or over the end: it keeps its sign and becomes quiet.
    nan = (bits & np.uint32(0x7FFF_FFFF)) > np.uint32(0x7F80_0000)
    rounded[nan] = bits[nan] | np.uint32(0x0040_0000)
    return (rounded >> np.uint32(16)).astype(NUMPY["bf16"])


def first_not_finite(array: Array, dtype: DType) -> int | None:
    """Position of the first NaN or infinity in `array` (n, as held), None if all are finite."""
    for start in range(0, array.size, BLOCK):
        block = array[start : start + BLOCK]
        if dtype == "bf16":
            bad = (block.view(np.uint16) & np.uint16(0x7F80)) == np.uint16(0x7F80)
        else:
            bad = ~np.isfinite(block.view(NUMPY[dtype]))
        if bad.any():
            return start + int(bad.argmax())
    return None
