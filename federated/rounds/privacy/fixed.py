"""Numbers as words that add: fixed point modulo 2^32 (`mfix32`, updates) and 2^64 (statistics).

A word is round(S x), S a power of two, so that the sum of all members' words, and of the noise
they may add, stays below half of the modulus and is read back exactly. An update is clipped to the
norm C first and scaled by its weight's share of the largest; two words behind it add up to the
weights and to the number of members that did not have to clip.

Source: docs/specs/masks.md s.4; clipping: arXiv 1905.03871.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from federated.errors import UsageError
from federated.rounds.privacy.errors import MaskError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TAIL_WORDS: Final = 2
"""Behind an update: its weight's share, then whether it was within the clipping norm."""
TAIL_ONE: Final = 2**24
"""1 in a tail word: 64 members' ones stay below 2^31."""
MEMBERS_MAX: Final = 64
WEIGHT_MAX: Final = 2**20
"""Largest weight in a statistic."""
EXPONENT_MAX: Final = 900
"""Of S, either way: beyond it 2^e and the products with it are no normal float64."""
BLOCK: Final = 65_536
"""Elements that are converted at a time: scratch stays at 512 KiB."""
ROUNDING: Final = 2.0**-40
"""How far, in parts of the bound, a value may lie beyond it by the rounding of floats."""

Bits: TypeAlias = Literal[32, 64]


@dataclass(frozen=True, slots=True)
class Scale:
    """How values become words and sums become values."""

    exponent: int
    """S = 2^exponent."""
    bits: Bits
    largest: int
    """No member's word is greater, noise aside."""

    @property
    def factor(self) -> float:
        """S."""
        return math.ldexp(1.0, self.exponent)


@dataclass(frozen=True, slots=True)
class Tail:
    """What the two words behind a sum say."""

    weight: float
    """Sum of the shares w / w_max."""
    within: int
    """How many members' updates were within the clipping norm."""


def scale_for(bound: float, members: int, *, bits: Bits = 32, noise: int = 0) -> Scale:
    """The largest power of two S with members * (bound * S + noise) < 2^(bits - 1).

    Args:
        bound: no value is greater than this; for updates C, the clipping norm.
        members: of the roster.
        bits: 32 for updates, 64 for statistics.
        noise: the most that one member adds to a word beside its value, in words.

    Raises:
        UsageError: the bound is no positive number, or no S is left.
    """
    if not 1 <= members <= MEMBERS_MAX or noise < 0:
        raise UsageError(f"{members} members with a noise of {noise}")
    if not (math.isfinite(bound) and bound > 0):
        raise UsageError(f"a bound of {bound}: give a positive number")
    room = Fraction(2 ** (bits - 1), members) - noise
    if room <= 0:
        raise UsageError(f"noise of {noise} words leaves no room for values")
    exponent = _exponent_below(room / Fraction(bound))
    if abs(exponent) > EXPONENT_MAX:
        raise UsageError(f"a bound of {bound} is out of range")
    return Scale(exponent, bits, math.floor(Fraction(bound) * Fraction(2) ** exponent))


def count_scale(members: int, *, noise: int = 0) -> Scale:
    """Whole numbers as they are, S = 1, modulo 2^64."""
    if not 1 <= members <= MEMBERS_MAX or not 0 <= noise < 2**62 // members:
        raise UsageError(f"{members} members with a noise of {noise}")
    return Scale(0, 64, (2**63 - 1) // members - noise)


def moment_scale(largest: float, power: int, members: int, *, noise: int = 0) -> Scale:
    """For sums of w x^power modulo 2^64, |x| <= `largest`, w <= 2^20."""
    try:
        bound = WEIGHT_MAX * float(largest) ** power
    except OverflowError:
        bound = math.inf
    return scale_for(bound, members, bits=64, noise=noise)


def encode(
    values: NDArray[np.float32] | NDArray[np.float64], scale: Scale, *, factor: float = 1.0
) -> NDArray[np.uint32] | NDArray[np.uint64]:
    """Values as words.

    Args:
        values: float32[n] or float64[n].
        scale: of `scale_for`.
        factor: what each value is multiplied by first.

    Returns:
        uint32[n] or uint64[n], as the scale says.

    Raises:
        UsageError: a value that is none, or beyond the scale's bound: its sum could overflow.
    """
    words = np.empty(len(values), dtype=_word(scale))
    _encode_into(words, values, scale, factor)
    return words


def decode(
    words: NDArray[np.uint32] | NDArray[np.uint64], scale: Scale, *, divisor: float = 1.0
) -> NDArray[np.float64]:
    """The sum of values that a sum of words stands for, divided by `divisor`.

    Args:
        words: uint32[n] or uint64[n], unmasked.
        scale: that the members encoded with.
        divisor: for a mean of updates the tail's weight.

    Returns:
        float64[n].
    """
    if words.dtype != _word(scale):
        raise UsageError(f"words of {words.dtype} with a scale of {scale.bits} bits")
    if not (math.isfinite(divisor) and divisor > 0):
        raise UsageError(f"a divisor of {divisor}")
    signed = words.view(np.dtype(f"i{scale.bits // 8}"))
    return signed.astype(np.float64) / (scale.factor * divisor)


def encode_update(
    update: NDArray[np.float32], scale: Scale, *, clip: float, share: float = 1.0
) -> NDArray[np.uint32]:
    """An update, clipped and weighted, with its tail.

    Args:
        update: float32[n], new state minus base.
        scale: `scale_for(clip, members)`.
        clip: C; a longer update is shortened to this norm.
        share: w / w_max, in (0, 1]; a greater weight is capped by the caller.

    Returns:
        uint32[n + 2].

    Raises:
        UsageError: not finite, or a share out of range.
    """
    if not 0 < share <= 1:
        raise UsageError(f"a weight of {share} of the largest: it is capped to 1")
    if scale.bits != 32 or not (math.isfinite(clip) and clip > 0):
        raise UsageError(f"a clipping norm of {clip} with {scale.bits} bits")
    norm = norm_of(update)
    if not math.isfinite(norm):
        raise UsageError("the update holds a number that is none")
    weight = max(1, round(share * TAIL_ONE))
    # The factor is the weight as it is sent, so that dividing by the sum of weights is exact.
    factor = weight / TAIL_ONE * min(1.0, clip / norm if norm else 1.0)
    words = np.empty(len(update) + TAIL_WORDS, dtype=np.uint32)
    _encode_into(words[:-TAIL_WORDS], update, scale, factor)
    words[-2] = weight
    words[-1] = TAIL_ONE if norm <= clip else 0
    return words


def read_tail(words: NDArray[np.uint32], included: int) -> Tail:
    """The two words behind the sum of `included` members' updates.

    Raises:
        MaskError: no honest members' words add up to these: somebody sent something else, or a mask
            was left on.
    """
    weight, within = (int(word) for word in words[-TAIL_WORDS:])
    whole, rest = divmod(within, TAIL_ONE)
    if not 0 < weight <= included * TAIL_ONE or rest or whole > included:
        raise MaskError("out_of_range", f"weights of {weight}, {within} within the norm")
    return Tail(weight / TAIL_ONE, whole)


def check_norm(
    mean: NDArray[np.float32] | NDArray[np.float64],
    scale: Scale,
    tail: Tail,
    *,
    clip: float,
    included: int,
) -> None:
    """Refuse a mean that no clipped updates have: it is all that can be checked under masks.

    Args:
        mean: `decode`d with the tail's weight as divisor.
        scale: that the members encoded with.
        tail: of the sum.
        clip: C.
        included: how many members' updates are in it.

    Raises:
        MaskError: longer than the clipping norm, rounding aside.
    """
    norm = norm_of(mean)
    # Rounding moves each element of each member by half a word, or by one at the bound.
    rounding = included * math.sqrt(len(mean)) / (scale.factor * tail.weight)
    if not norm <= clip * (1 + ROUNDING) + rounding:
        raise MaskError("out_of_range", f"a mean of norm {norm:.6g}, clipped to {clip:.6g}")


def norm_of(values: NDArray[np.float32] | NDArray[np.float64]) -> float:
    """Euclidean norm, summed in float64; infinite or none if a value is."""
    total = 0.0
    for begin in range(0, len(values), BLOCK):
        block = values[begin : begin + BLOCK].astype(np.float64)
        total += float(np.dot(block, block))
    return math.sqrt(total) if total >= 0 else math.nan


def digest_of(words: NDArray[np.float32] | NDArray[np.uint32] | NDArray[np.uint64]) -> bytes:
    """SHA-256 of an array's bytes: what `secagg` knows an update and its words by."""
    return sha256(np.ascontiguousarray(words).data).digest()


def _exponent_below(ratio: Fraction) -> int:
    """The largest e with 2^e < ratio."""
    guess = ratio.numerator.bit_length() - ratio.denominator.bit_length() + 1
    while not Fraction(2) ** guess < ratio:
        guess -= 1
    return guess


def _word(scale: Scale) -> np.dtype[np.uint32] | np.dtype[np.uint64]:
    return np.dtype(np.uint32) if scale.bits == 32 else np.dtype(np.uint64)


def _encode_into(
    words: NDArray[np.uint32] | NDArray[np.uint64],
    values: NDArray[np.float32] | NDArray[np.float64],
    scale: Scale,
    factor: float,
) -> None:
    integer = np.dtype(f"i{scale.bits // 8}")
    most = scale.largest * (1 + ROUNDING) + 1
    by = factor * scale.factor
    for begin in range(0, len(values), BLOCK):
        block = values[begin : begin + BLOCK].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # refused in the next line
            np.multiply(block, by, out=block)
        # A comparison with a value that is none is false, so this refuses it too.
        if not bool(np.all(np.abs(block) <= most)):
            raise UsageError("a value is beyond the bound that was agreed on, or is none")
        np.rint(block, out=block)
        whole = block.astype(integer)
        # Rounding up at the very bound must not carry the members' sum over the modulus.
        np.clip(whole, -scale.largest, scale.largest, out=whole)
        words[begin : begin + BLOCK] = whole.view(words.dtype)
