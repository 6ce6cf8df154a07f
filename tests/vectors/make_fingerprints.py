"""Forge fingerprints that are sums or XORs of ids: `python -m tests.vectors.make_fingerprints`.

An author chooses what it writes, so it may try texts until the ids suit: here SHA-256 of a counter
stands for them. Neither forgery needs the salt of a session, since both fingerprints are hashed
from the sum. Takes some minutes and gigabytes; the result is kept in `fingerprints.json`. Another
machine may find another: numbers equal in the bits compared are in no order. Imports nothing of
ours.

* XOR, 256 bits: linear algebra over GF(2); two sets of the same size with the same XOR.
* Sum, 256 bits (the 32-byte ids of Negentropy V1): a generalised birthday attack (Wagner 2002, A
  generalized birthday problem) on one list instead of many. Of 2**23 candidates, pairs equal in
  their low 22 bits give as many differences that are zero there; ten more such steps leave 2,048
  ids, half added and half subtracted, whose sum is zero modulo 2**256. An id that comes up on both
  sides cancels; a result where one comes up twice on a side is passed over.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

XOR_SEED = b"covey xor forgery "
SUM_SEED = b"covey sum forgery "
CANDIDATES = 1 << 23
STEP = 22
"""Bits a step makes zero: one less than the list has, so that the list stays as long."""
STEPS = 11

Words: TypeAlias = "list[npt.NDArray[np.uint64]]"
"""256-bit numbers by their four words, the lowest first."""
Pairs: TypeAlias = "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]"
"""Positions in the list before: what is added and what is subtracted."""


def candidate(seed: bytes, number: int) -> bytes:
    """The id of an author's candidate record."""
    return hashlib.sha256(seed + str(number).encode()).digest()


def forge_xor() -> tuple[list[int], list[int]]:
    """Two disjoint sets of candidates, equal in size and in the XOR of their ids."""
    basis: dict[int, tuple[int, int]] = {}
    number = 0
    while True:
        value, members = int.from_bytes(candidate(XOR_SEED, number), "big"), 1 << number
        # A bit beside the id counts members modulo 2: the subset found has an even number.
        value |= 1 << 256
        while value:
            top = value.bit_length()
            if top not in basis:
                basis[top] = value, members
                break
            value ^= basis[top][0]
            members ^= basis[top][1]
        else:
            chosen = [n for n in range(number + 1) if members >> n & 1]
            half = len(chosen) // 2
            return chosen[:half], chosen[half:]
        number += 1


def _candidates() -> Words:
    """All candidates' ids, little-endian as Negentropy adds them."""
    data = b"".join(candidate(SUM_SEED, n) for n in range(CANDIDATES))
    words = np.frombuffer(data, dtype="<u8").reshape(CANDIDATES, 4)
    return [words[:, i].astype(np.uint64) for i in range(4)]


def _bits(words: Words, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Bits `first` to `first + count`, count below 64, of each number."""
    word, shift = divmod(first, 64)
    low = words[word] >> np.uint64(shift)
    if shift and word < 3:
        low |= words[word + 1] << np.uint64(64 - shift)
    return low & np.uint64((1 << count) - 1)


def _pairs(keys: npt.NDArray[np.uint64]) -> Pairs:
    """Pairs of positions with equal keys, neighbours first, at most as many as there are keys."""
    order = np.argsort(keys)
    in_order = keys[order]
    ones, others, found = [], [], 0
    for distance in range(1, 8):
        here = np.flatnonzero(in_order[:-distance] == in_order[distance:])[: len(keys) - found]
        ones.append(order[here])
        others.append(order[here + distance])
        found += len(here)
    return np.concatenate(ones), np.concatenate(others)


def _differences(words: Words, pairs: Pairs) -> Words:
    """Modulo 2**256."""
    borrow = np.zeros(len(pairs[0]), np.uint64)
    made = []
    for word in words:
        one, other = word[pairs[0]], word[pairs[1]]
        made.append(one - other - borrow)
        borrow = ((one < other) | ((one == other) & (borrow > 0))).astype(np.uint64)
    return made


def _members(levels: list[Pairs], last: int) -> tuple[list[int], list[int]] | None:
    """What is added and subtracted in one of the last differences; None if any id is so twice."""
    signs = {last: 1}
    for ones, others in reversed(levels):
        below: dict[int, int] = {}
        for position, sign in signs.items():
            for at, part in ((int(ones[position]), sign), (int(others[position]), -sign)):
                below[at] = below.get(at, 0) + part
        signs = {at: sign for at, sign in below.items() if sign}
    if not signs or max(abs(sign) for sign in signs.values()) > 1:
        return None
    return sorted(n for n, s in signs.items() if s > 0), sorted(
        n for n, s in signs.items() if s < 0
    )


def forge_sum() -> tuple[list[int], list[int]]:
    """Two disjoint sets of candidates, equal in size and in the sum of their ids."""
    words, levels = _candidates(), []
    for step in range(STEPS):
        first = step * STEP
        count = STEP if step < STEPS - 1 else 256 - first
        levels.append(_pairs(_bits(words, first, count)))
        words = _differences(words, levels[-1])
    found = (_members(levels, last) for last in range(len(words[0])))
    return next(members for members in found if members is not None)


def main() -> None:
    """Write the vectors."""
    xor, total = forge_xor(), forge_sum()
    value = {
        "id": "SHA-256(seed || decimal number)",
        "xor": {"seed": XOR_SEED.decode(), "one": xor[0], "other": xor[1]},
        "sum": {"seed": SUM_SEED.decode(), "one": total[0], "other": total[1]},
    }
    path = Path(__file__).with_name("fingerprints.json")
    path.write_text(json.dumps(value) + "\n")


if __name__ == "__main__":
    main()
