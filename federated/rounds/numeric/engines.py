"""Which arithmetic a kernel runs on: numpy alone, or scipy and numba where they are installed.

numpy is the only one that is required, and its kernels are the *strict* ones: a separate multiply
and add in the order of the rows, which every IEEE 754 machine rounds alike. BLAS and numba fuse the
two and add in an order of their own, so their results differ in the last bits from machine to
machine. Codecs and order statistics are bit-equal on every engine.

Both libraries are imported at first use: scipy takes 100 ms, and numba some hundred more for every
function that it compiles. `auto` therefore asks for scipy before numba, and for either only where
there is enough to do. Source: federated-experiments E1, E3 (docs/specs/rounds.md).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, cast

from federated.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    F32: TypeAlias = NDArray[np.float32]
    F64: TypeAlias = NDArray[np.float64]
    Part: TypeAlias = slice[int, int, int]

Engine: TypeAlias = Literal["auto", "numpy", "scipy", "numba"]

SCIPY_ITEMS_MIN: Final = 1 << 20
"""Elements read from which `auto` takes scipy's mean; below it numpy is done in a millisecond."""
NUMBA_ITEMS_MIN: Final = 1 << 24
"""Elements read from which `auto` takes numba's mean where scipy is missing: 64 MB."""
LOOP_ITEMS_MIN: Final = 1 << 20
"""Elements read from which `auto` takes numba for codecs, order statistics and products, which gain
two to six times: below it numpy is done in some milliseconds, and compiling takes a second."""


class Saxpy(Protocol):
    """`scipy.linalg.blas.saxpy`: y += a x, in place when y is contiguous float32."""

    def __call__(self, x: F32, y: F32, *, a: float) -> F32:
        """Add; what is returned is y."""
        ...


class Compiler(Protocol):
    """`numba.njit(...)`: a function in, the same function compiled out."""

    def __call__(self, function: object, /) -> object:
        """Compile at the first call, by the types of its arguments."""
        ...


@functools.cache
def saxpy() -> Saxpy | None:
    """The saxpy of scipy; None where scipy is not installed."""
    try:
        blas = importlib.import_module("scipy.linalg.blas")
    except ImportError:
        return None
    return cast("Saxpy", blas.saxpy)


def has_numba() -> bool:
    """Whether numba is installed. Does not import it."""
    return importlib.util.find_spec("numba") is not None


def compiler(*, fast: bool) -> Compiler:
    """The compiler of numba, releasing the interpreter while compiled code runs.

    Args:
        fast: allow reordering and fusing, for sums alone; what is not finite still spoils a sum.

    Raises:
        UsageError: numba is not installed.
    """
    try:
        numba = importlib.import_module("numba")
    except ImportError:
        raise UsageError("numba is not installed: `pip install covey[fast]`") from None
    flags = {"reassoc", "contract", "nsz"} if fast else False
    return cast("Callable[[object], object]", numba.njit(nogil=True, fastmath=flags))


def for_sums(engine: Engine, items: int, *, strict: bool) -> Engine:
    """The engine of a linear combination over `items` elements in all: never `auto`.

    Raises:
        UsageError: strict on another engine than numpy, or an engine that is not installed.
    """
    if strict:
        if engine not in ("auto", "numpy"):
            raise UsageError(f"strict arithmetic is numpy's, not {engine}'s")
        return "numpy"
    if engine == "scipy" and saxpy() is None:
        raise UsageError("scipy is not installed: `pip install covey[fast]`")
    if engine != "auto":
        return engine
    if items >= SCIPY_ITEMS_MIN and saxpy() is not None:
        return "scipy"
    return "numba" if items >= NUMBA_ITEMS_MIN and has_numba() else "numpy"


def for_loops(engine: Engine, items: int) -> Engine:
    """The engine of what scipy has no function for, over `items` elements: `numpy` or `numba`.

    Raises:
        UsageError: scipy was asked for.
    """
    if engine == "scipy":
        raise UsageError("scipy has no function for this: numpy or numba")
    if engine != "auto":
        return engine
    return "numba" if items >= LOOP_ITEMS_MIN and has_numba() else "numpy"
