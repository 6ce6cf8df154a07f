"""Sums that neither their order nor the size of the numbers can spoil.

A variance read off float64 sums of squares is lost as soon as the mean is a hundred million times
the spread: Unix times in milliseconds are. So a member adds its products up in double-double
(about 106 bits), and sends the sum as whole numbers of 40 bits each, at places that are the same
for all. Those add up exactly in float64, whatever their order, for 8,192 members.
Source: Dekker 1971, Knuth 4.2.2 (error-free product and sum).
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64: TypeAlias = NDArray[np.float64]

PLACE_BITS: Final = 40
PLACES: Final = 53
"""40 * 53 bits, from 2^-1074, the smallest float64, up to 2^1046."""
_LOWEST: Final = 1074
_PLACE: Final = 1 << PLACE_BITS
_SPLIT: Final = float((1 << 27) + 1)


def are_whole(numbers: F64) -> bool:
    """Whether all are finite whole numbers: those alone add up exactly, and only so far."""
    return bool(np.isfinite(numbers).all() and (numbers == np.floor(numbers)).all())


def product(a: F64, b: F64) -> tuple[F64, F64]:
    """Give a * b as rounded, and what the rounding took; exact unless it is below 2^-1022.

    Args:
        a: float64[n].
        b: float64[n]; neither exceeds 2^990.
    """
    rounded = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    lost = ((a_high * b_high - rounded) + a_high * b_low + a_low * b_high) + a_low * b_low
    return rounded, lost


def _halves(a: F64) -> tuple[F64, F64]:
    """Two numbers of 26 bits whose sum is `a`."""
    large = _SPLIT * a
    high = large - (large - a)
    return high, a - high


def total(values: F64, lost: F64) -> Fraction:
    """Sum of `values` and of `lost`, right to about 2^-100 of the sum of their sizes.

    Args:
        values: float64[n].
        lost: float64[n], each small against its value.
    """
    high, low = values, lost
    while len(high) > 1:
        if len(high) % 2:
            high, low = np.append(high, 0.0), np.append(low, 0.0)
        a, b = high[::2], high[1::2]
        summed = a + b
        part = summed - a
        error = (a - (summed - part)) + (b - part)
        high, low = summed, low[::2] + low[1::2] + error
    return sum((Fraction(float(one)) for one in (*high, *low)), Fraction(0))


def places(number: Fraction) -> list[float]:
    """A number as `PLACES` whole numbers below 2^40 in size, lowest first, all of its sign.

    What is below 2^-1074 is cut off. The number must be below 2^1046 in size.
    """
    scaled = abs(number.numerator) * (1 << _LOWEST) // number.denominator
    sign = -1.0 if number < 0 else 1.0
    found = []
    for _ in range(PLACES):
        scaled, digit = divmod(scaled, _PLACE)
        found.append(sign * digit if digit else 0.0)
    assert scaled == 0, "beyond the highest place"
    return found


def number(digits: F64) -> Fraction:
    """The number that summed places stand for, exactly.

    Args:
        digits: float64[PLACES] of whole numbers.
    """
    scaled = sum(int(digit) << (PLACE_BITS * place) for place, digit in enumerate(digits.tolist()))
    return Fraction(scaled, 1 << _LOWEST)
