"""Forge fingerprints that are sums or XORs of ids: `python -m tests.vectors.make_fingerprints`.

An author chooses what it writes, so it may try texts until the ids suit: here SHA-256 of a counter
stands for them. Neither forgery needs the salt of a session, since both fingerprints are hashed
from the sum. Takes two minutes; the result is kept in `fingerprints.json`. Imports nothing of
ours.

* XOR, 256 bits: linear algebra over GF(2); two sets of the same size with the same XOR.
* Sum, 128 bits: a k-tree of 128 lists (Wagner 2002, A generalized birthday problem); two sets of 64
  ids whose sums are equal modulo 2**128. At 256 bits the same takes 2**15 lists of 2**16: minutes
  in C; not kept here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

XOR_SEED = b"covey xor forgery "
SUM_SEED = b"covey sum forgery "
LISTS = 128
LIST_SIZE = 1 << 17
WIDTH = 128
STEP = 16


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


Entry = tuple[int, tuple[int, ...]]


def _leaf(index: int) -> list[Entry]:
    sign = 1 if index < LISTS // 2 else -1
    first = index * LIST_SIZE
    mask = (1 << WIDTH) - 1
    return [
        (sign * int.from_bytes(candidate(SUM_SEED, n)[:16], "little") & mask, (n,))
        for n in range(first, first + LIST_SIZE)
    ]


def _merge(left: list[Entry], right: list[Entry], bits: int) -> list[Entry]:
    """Sums of pairs that are zero in their low `bits`; those below the step before already are."""
    mask, whole = (1 << bits) - 1, (1 << WIDTH) - 1
    by_low: dict[int, list[Entry]] = {}
    for entry in left:
        by_low.setdefault(entry[0] & mask, []).append(entry)
    found: list[Entry] = []
    for value, members in right:
        for other, others in by_low.get(-value & mask, ()):
            found.append((other + value & whole, others + members))
            if len(found) == LIST_SIZE:
                return found
    return found


def _tree(first: int, size: int) -> list[Entry]:
    if size == 1:
        return _leaf(first)
    level = size.bit_length() - 1
    bits = WIDTH if size == LISTS else level * STEP
    half = size // 2
    return _merge(_tree(first, half), _tree(first + half, half), bits)


def forge_sum() -> tuple[list[int], list[int]]:
    """Two sets of 64 candidates whose ids (16 bytes, little-endian) have the same sum."""
    members = _tree(0, LISTS)[0][1]
    return list(members[: LISTS // 2]), list(members[LISTS // 2 :])


def main() -> None:
    """Write the vectors."""
    xor, total = forge_xor(), forge_sum()
    value = {
        "id": "SHA-256(seed || decimal number)",
        "xor": {"seed": XOR_SEED.decode(), "one": xor[0], "other": xor[1]},
        "sum": {"seed": SUM_SEED.decode(), "bits": WIDTH, "one": total[0], "other": total[1]},
    }
    path = Path(__file__).with_name("fingerprints.json")
    path.write_text(json.dumps(value) + "\n")


if __name__ == "__main__":
    main()
