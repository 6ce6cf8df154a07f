"""Shamir's secret sharing over the integers modulo 2^521 - 1.

A secret of 32 bytes is the constant of a random polynomial of degree T - 1; the share of member x
is its value there. T shares give the secret, fewer say nothing about it.

The field is larger than the secret by 265 bits, so a share that is wrong by accident gives a number
that is no secret. One that is wrong on purpose is found only where there are more than T shares: of
m, `recover` corrects (m - T) // 2 by Gao's decoding of Reed-Solomon codes and names them.

Source: A. Shamir, How to Share a Secret, 1979; S. Gao, A New Algorithm for Decoding Reed-Solomon
Codes, 2003; docs/specs/masks.md s.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from federated.errors import UsageError
from federated.rounds.privacy.errors import MaskError

PRIME: Final = 2**521 - 1
"""The Mersenne prime above 256 bits: reduction is cheap and every key is below it."""
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 66
SHARES_MAX: Final = 64
"""As many as a roster may hold."""

RandomBytes: TypeAlias = Callable[[int], bytes]
"""Gives so many bytes that nobody can foresee; the caller's generator, so that a run repeats."""
Share: TypeAlias = tuple[int, bytes]
"""(x, y): the member's number from 1 on, and 66 bytes big-endian."""
Polynomial: TypeAlias = list[int]
"""Coefficients, the constant first, the last one not 0; nothing is the zero polynomial."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A secret, and whose shares were not of it."""

    secret: bytes
    wrong: tuple[int, ...]
    """Their x, ascending."""


def split(secret: bytes, threshold: int, count: int, random_bytes: RandomBytes) -> list[bytes]:
    """Share a secret among members 1..count.

    Args:
        secret: 32 bytes.
        threshold: how many shares give it back, 1..count.
        count: how many shares there are, at most 64.
        random_bytes: draws the polynomial.

    Returns:
        The share of member x at place x - 1, 66 bytes each.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count <= SHARES_MAX:
        raise UsageError(f"{len(secret)} bytes cannot be shared as {threshold} of {count}")
    polynomial = [int.from_bytes(secret, "big")]
    polynomial += [_element(random_bytes) for _ in range(threshold - 1)]
    return [_value(polynomial, x).to_bytes(SHARE_BYTES, "big") for x in range(1, count + 1)]


def combine(shares: Sequence[Share], threshold: int) -> bytes:
    """The secret of at least `threshold` shares, all of which must be right.

    Raises:
        MaskError: too few, one twice, one out of range, or they are not of one secret.
    """
    found = recover(shares, threshold)
    if found.wrong:
        raise MaskError("wrong_shares", f"those of {list(found.wrong)} are not of this secret")
    return found.secret


def recover(shares: Sequence[Share], threshold: int) -> Recovered:
    """The secret of m >= `threshold` shares, of which (m - threshold) // 2 may be wrong.

    Raises:
        MaskError: too few, one twice, one out of range, or more are wrong than can be corrected.
    """
    points = _checked(shares, threshold)
    polynomial = _decoded(points, threshold)
    if polynomial is None or (polynomial and polynomial[0] >> (8 * SECRET_BYTES)):
        raise MaskError("wrong_shares", f"{len(points)} shares are not of one secret")
    wrong = tuple(sorted(x for x, y in points if _value(polynomial, x) != y))
    if len(points) - len(wrong) < threshold:
        raise MaskError("wrong_shares", f"only {len(points) - len(wrong)} of one secret")
    constant = polynomial[0] if polynomial else 0
    return Recovered(constant.to_bytes(SECRET_BYTES, "big"), wrong)


def is_share(data: bytes) -> bool:
    """Whether these bytes can be a share: a number below the prime, in its one form."""
    return len(data) == SHARE_BYTES and int.from_bytes(data, "big") < PRIME


def _element(random_bytes: RandomBytes) -> int:
    """A uniform element of the field."""
    while True:
        drawn = int.from_bytes(random_bytes(SHARE_BYTES), "big") & PRIME
        if drawn != PRIME:  # 2^521 - 1 is 0 again: taking it would make 0 likelier
            return drawn


def _checked(shares: Sequence[Share], threshold: int) -> list[tuple[int, int]]:
    if threshold < 1:
        raise UsageError(f"a threshold of {threshold}")
    if len(shares) < threshold:
        raise MaskError("few_shares", f"{len(shares)} shares, {threshold} needed")
    points = [(x, int.from_bytes(y, "big")) for x, y in shares]
    if len({x for x, _ in points}) != len(points):
        raise MaskError("bad_share", "two shares of one member")
    for (x, number), (_, y) in zip(points, shares, strict=True):
        if not 1 <= x <= SHARES_MAX or len(y) != SHARE_BYTES or number >= PRIME:
            raise MaskError("bad_share", f"the share of {x} is out of range")
    return points


def _value(polynomial: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


# ---- decoding: the polynomial of degree < k that most of the points lie on


def _decoded(points: Sequence[tuple[int, int]], k: int) -> Polynomial | None:
    """Gao's decoder; None when no polynomial is near enough.

    With r = g0 u + g1 v of degree below (m + k) / 2, r / v is the polynomial sought, and v is zero
    where a point is wrong. Without an error g1 itself is it, v = 1.
    """
    m = len(points)
    g0 = list(_vanishing(tuple(x for x, _ in points)))
    remainder, last = _interpolated(points), g0
    v: Polynomial = [1]
    v_last: Polynomial = []
    while 2 * (len(remainder) - 1) >= m + k:
        quotient, rest = _divided(last, remainder)
        last, remainder = remainder, rest
        v_last, v = v, _minus(v_last, _times(quotient, v))
    found, rest = _divided(remainder, v)
    return found if not rest and len(found) <= k else None


@lru_cache(maxsize=256)
def _vanishing(xs: tuple[int, ...]) -> tuple[int, ...]:
    """The product of (X - x)."""
    product: Polynomial = [1]
    for x in xs:
        product = _times(product, [PRIME - x, 1])
    return tuple(product)


@lru_cache(maxsize=256)
def _basis(xs: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Lagrange's polynomials: 1 at one of the places, 0 at the others."""
    found = []
    for x in xs:
        others, _ = _divided(list(_vanishing(xs)), [PRIME - x, 1])
        scale = pow(_value(others, x), -1, PRIME)
        found.append(tuple(coefficient * scale % PRIME for coefficient in others))
    return tuple(found)


def _interpolated(points: Sequence[tuple[int, int]]) -> Polynomial:
    total = [0] * len(points)
    for (_, y), basis in zip(points, _basis(tuple(x for x, _ in points)), strict=True):
        for place, coefficient in enumerate(basis):
            total[place] += y * coefficient
    return _trimmed([coefficient % PRIME for coefficient in total])


def _trimmed(polynomial: Polynomial) -> Polynomial:
    while polynomial and not polynomial[-1]:
        polynomial.pop()
    return polynomial


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    product = [0] * (len(a) + len(b) - 1) if a and b else []
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            product[i + j] += left * right
    return _trimmed([coefficient % PRIME for coefficient in product])


def _minus(a: Polynomial, b: Polynomial) -> Polynomial:
    size = max(len(a), len(b))
    left, right = a + [0] * (size - len(a)), b + [0] * (size - len(b))
    return _trimmed([(x - y) % PRIME for x, y in zip(left, right, strict=True)])


def _divided(a: Polynomial, b: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Quotient and remainder; `b` is not zero."""
    rest = list(a)
    quotient = [0] * max(0, len(a) - len(b) + 1)
    inverse = pow(b[-1], -1, PRIME)
    for shift in reversed(range(len(quotient))):
        factor = rest[shift + len(b) - 1] * inverse % PRIME
        quotient[shift] = factor
        for place, coefficient in enumerate(b):
            rest[shift + place] = (rest[shift + place] - factor * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(rest)
