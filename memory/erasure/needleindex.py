"""Thousands of needles in files of hundreds of megabytes: found by a hash of their first bytes.

Apart from `memory.erasure.residue`, so that a daemon which searches in another process never loads
numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from memory.erasure.residue import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from memory.erasure.residue import Needle


class NeedleIndex:
    """Needles by their first six bytes.

    A node has files of hundreds of megabytes and a batch thousands of needles: every place of a
    file is hashed at once, and only where a needle may begin are bytes compared.
    """

    _BITS = 20
    _FACTOR = np.uint64(0x9E3779B97F4A7C15)
    """2^64 / golden ratio (Knuth, TAOCP 6.4): spreads neighbouring keys."""

    def __init__(self, needles: Sequence[Needle]) -> None:
        self.needles = [needle for needle in needles if len(needle.data) >= KEY_BYTES]
        assert len(self.needles) == len(needles), "prepare makes no shorter ones"
        self.longest = max((len(needle.data) for needle in needles), default=1)
        self._by_key: dict[bytes, list[int]] = {}
        for number, needle in enumerate(needles):
            self._by_key.setdefault(needle.data[:KEY_BYTES], []).append(number)
        self._table = np.zeros(1 << self._BITS, dtype=np.bool_)
        if self._by_key:
            first = np.frombuffer(b"".join(sorted(self._by_key)), dtype=np.uint8)
            rows = first.reshape(-1, KEY_BYTES)
            self._table[self._hash([rows[:, i] for i in range(KEY_BYTES)])] = True

    def _hash(self, columns: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint64]:
        key = np.zeros(len(columns[0]), dtype=np.uint64)
        for column in columns:
            key = (key << np.uint64(8)) | column
        return (key * self._FACTOR) >> np.uint64(64 - self._BITS)

    def find(self, data: bytes) -> Iterator[tuple[int, int]]:
        """(offset, needle) of every needle in the data."""
        places = len(data) - KEY_BYTES + 1
        if places <= 0 or not self._by_key:
            return
        values = np.frombuffer(data, dtype=np.uint8)
        hashes = self._hash([values[i : i + places] for i in range(KEY_BYTES)])
        for offset in np.flatnonzero(self._table[hashes]).tolist():
            for number in self._by_key.get(data[offset : offset + KEY_BYTES], ()):
                if data.startswith(self.needles[number].data, offset):
                    yield offset, number
