"""A fragment of a model: the common state that members agree on, and its saved form."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from federated.errors import UsageError
from federated.rounds.training.arrays import flatten, view
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federated.rounds.training.arrays import F32, Array

SIZE_MAX: Final = float(2**126)
"""A difference this large is a divergence; every codec can still hold it."""

_LIMB_BITS: Final = 16
"""Counters are saved as float32: four limbs of 16 bits each, which it holds exactly."""

_ROOT: Final = b"covey/fed/outer/1\0"


@dataclass(eq=False)
class Fragment:
    """A fragment's common state and what is under way.

    Attributes:
        names: its parameters, ascending.
        shapes: theirs.
        offset: inner steps by which its turns come later than multiples of H.
        common: float32[n], G.
        momentum: float32[n], m.
        root: hash of both; see `hash`.
        root_before: the one before the last result.
        tokens: since the last sync that was merged.
        synced_at: its inner step.
        sent: step and tokens of the sync under way.
        due: inner step from which theta takes G over; None: it has.
        moved: float32[n], what theta is to be moved by, so that its difference to G stays; None:
            nothing.
        fetching: the others are ahead.
        failure: why the last round failed; empty if it did not.
    """

    names: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    offset: int
    common: F32
    momentum: F32
    root: bytes = b""
    root_before: bytes = b""
    tokens: int = 0
    synced_at: int = 0
    sent: tuple[int, int] | None = None
    due: int | None = None
    moved: F32 | None = None
    fetching: bool = False
    failure: str = ""

    def hash(self) -> None:
        """Set the root to that of the current state."""
        told = hashlib.sha256(_ROOT)
        for vector in (self.common, self.momentum):
            told.update(np.ascontiguousarray(vector, "<f4").view(np.uint8).data)
        self.root = told.digest()

    def turns(self, step: int, interval: int) -> int:
        """Syncs that fall due up to and with `step`."""
        return max(0, (step - self.offset) // interval)

    def tensors(self, vector: F32) -> dict[str, F32]:
        """Views of a vector by name."""
        found, at = {}, 0
        for name in self.names:
            size = int(np.prod(self.shapes[name], dtype=np.int64))
            found[name] = vector[at : at + size].reshape(self.shapes[name])
            at += size
        return found


def start(names: tuple[str, ...], params: Mapping[str, object], offset: int) -> Fragment:
    """A fragment whose common state are these parameters.

    Raises:
        UsageError: one is no array of floating-point numbers, or not finite.
    """
    arrays = {name: view(name, params[name]) for name in names}
    common = np.empty(sum(array.size for array in arrays.values()), np.float32)
    flatten(names, params, common)
    if not np.isfinite(common).all():
        raise UsageError("a parameter is not finite")
    shapes = {name: array.shape for name, array in arrays.items()}
    return Fragment(names, shapes, offset, common, np.zeros_like(common))


def diverged(array: Array) -> bool:
    """Whether a value is too large or no number: then both comparisons are false."""
    least, most = float(array.min(initial=0)), float(array.max(initial=0))
    return not (least > -SIZE_MAX and most < SIZE_MAX)


def joined(part: Fragment, state: Mapping[str, F32], kind: str) -> F32:
    """One vector of a state's tensors, checked.

    Raises:
        DecodeError: one is missing, or of another shape or dtype, or not finite.
    """
    vector = np.empty_like(part.common)
    for name, place in part.tensors(vector).items():
        array = state.get(f"{kind}/{name}")
        if array is None or array.dtype != np.float32 or array.shape != place.shape:
            raise DecodeError(f"no tensor {kind}/{name[:80]} of this shape")
        place[...] = array
    if not np.isfinite(vector).all():
        raise DecodeError("a state with a value that is not finite")
    return vector


def limbs(counts: Sequence[int]) -> F32:
    """float32[n, 4]: counters below 2^64 in a form that files of tensors keep."""
    mask = (1 << _LIMB_BITS) - 1
    return np.array(
        [[count >> shift & mask for shift in range(0, 64, _LIMB_BITS)] for count in counts],
        np.float32,
    )


def from_limbs(limbs: F32 | None, n: int) -> list[int]:
    """The `n` counters that `limbs` made an array of.

    Raises:
        DecodeError: no such array.
    """
    if limbs is None or limbs.shape != (n, 64 // _LIMB_BITS):
        raise DecodeError("other counters")
    if not ((limbs >= 0) & (limbs < 1 << _LIMB_BITS)).all() or (limbs != np.floor(limbs)).any():
        raise DecodeError("counters that are none")
    return [
        sum(int(limb) << shift for limb, shift in zip(row, range(0, 64, _LIMB_BITS), strict=True))
        for row in limbs
    ]
