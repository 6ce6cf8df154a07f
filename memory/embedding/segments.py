"""The vectors of one scope and tier: how they lie in memory, and which are near by their signs.

What may be done by which thread, and why that is sound, is said in `memory.embedding.vectors`.
Source: docs/specs/memory.md, *Vectors*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CAPACITY_START: Final = 64

_FAR: Final = np.uint16(0xFFFF)
NOWHERE: Final = -1
"""No place."""

Key: TypeAlias = tuple[int, int]
"""(scope row, tier) of a segment."""

Places: TypeAlias = "NDArray[np.int32] | NDArray[np.int64]"
"""Indices of places in a segment."""


def quantise(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes int8[n, dim] and scales float32[n] of vectors float32[n, dim], none of them zero."""
    largest = np.abs(vectors).max(axis=1)
    codes = np.rint(vectors * (127.0 / largest)[:, None]).astype(np.int8)
    return codes, (largest / 127.0).astype(np.float32)


def sign_words(positive: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """uint64[ceil(dim / 64), n]: the bits of bool[n, dim], 64 dimensions a row."""
    packed = np.packbits(positive, axis=1, bitorder="little")
    spare = -packed.shape[1] % 8
    if spare:
        packed = np.pad(packed, ((0, 0), (0, spare)))
    return np.ascontiguousarray(packed.view(np.uint64).T)


class Arrays(NamedTuple):
    """One segment's storage, a place a column or row; replaced as a whole when it grows."""

    bits: NDArray[np.uint64]
    """[words, capacity]"""
    codes: NDArray[np.int8]
    """[capacity, dim]; pages of codes that are not held are never touched, so take no memory."""
    scales: NDArray[np.float32]
    held: NDArray[np.bool_]
    """Whether the code is in memory."""
    chunks: NDArray[np.int64]
    """0 for an emptied place."""
    memories: NDArray[np.int64]
    next: NDArray[np.int32]
    """Place of the same memory's next vector, -1 for its last."""

    @classmethod
    def empty(cls, words: int, dim: int, capacity: int) -> Arrays:
        """Zeroed places."""
        return cls(
            np.zeros((words, capacity), np.uint64),
            np.zeros((capacity, dim), np.int8),
            np.zeros(capacity, np.float32),
            np.zeros(capacity, np.bool_),
            np.zeros(capacity, np.int64),
            np.zeros(capacity, np.int64),
            np.full(capacity, NOWHERE, np.int32),
        )


class Block(NamedTuple):
    """Vectors on their way into a segment."""

    bits: NDArray[np.uint64]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    held: NDArray[np.bool_]
    chunks: NDArray[np.int64]
    memories: NDArray[np.int64]


class Segment:
    """The vectors of one (scope, tier)."""

    __slots__ = ("arrays", "dead", "key", "n", "number")

    def __init__(self, key: Key, number: int, words: int, dim: int) -> None:
        self.key = key
        self.number = number
        self.arrays = Arrays.empty(words, dim, CAPACITY_START)
        self.n = 0
        """Places used, emptied ones among them."""
        self.dead = 0

    def reserve(self, more: int) -> None:
        """Room for `more` places behind those used."""
        capacity = self.arrays.chunks.size
        if self.n + more <= capacity:
            return
        while capacity < self.n + more:
            capacity *= 2
        self.arrays = copy(self.arrays, np.arange(self.n), capacity, keep_next=True)


class Piece(NamedTuple):
    """What a search saw of a segment."""

    arrays: Arrays
    n: int
    dead: bool


class Pool(NamedTuple):
    """Places picked for scoring, copied out of their segments."""

    chunks: NDArray[np.int64]
    memories: NDArray[np.int64]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    held: NDArray[np.bool_]


def copy(old: Arrays, places: NDArray[np.int64], capacity: int, *, keep_next: bool) -> Arrays:
    """The given places of a segment's arrays, at the front of larger or smaller ones."""
    n = places.size
    new = Arrays.empty(old.bits.shape[0], old.codes.shape[1], capacity)
    new.bits[:, :n] = old.bits[:, places]
    held = old.held[places]
    new.codes[np.flatnonzero(held)] = old.codes[places[held]]
    new.scales[:n] = old.scales[places]
    new.held[:n] = held
    new.chunks[:n] = old.chunks[places]
    new.memories[:n] = old.memories[places]
    if keep_next:
        new.next[:n] = old.next[places]
    return new


def take(arrays: Arrays, places: Places) -> Pool:
    """Copies of places. The chunk numbers last: an emptied place shows as 0 there."""
    codes, scales = arrays.codes[places], arrays.scales[places]
    held, memories = arrays.held[places], arrays.memories[places]
    return Pool(arrays.chunks[places], memories, codes, scales, held)


def nearest(pieces: Sequence[Piece], query: NDArray[np.uint64], count: int) -> Pool:
    """The `count` places with the fewest signs unlike the query's.

    Args:
        pieces: at least one.
        query: uint64[words, 1].
        count: how many at most.
    """
    distances = [_distances(piece, query) for piece in pieces]
    together = distances[0] if len(distances) == 1 else np.concatenate(distances)
    if together.size > count:
        picked = np.sort(np.argpartition(together, count - 1)[:count])
    else:
        picked = np.arange(together.size)
    ends = np.cumsum([piece.n for piece in pieces])
    cuts = np.searchsorted(picked, ends)
    pools = []
    start = cut = 0
    for piece, end, upto in zip(pieces, ends.tolist(), cuts.tolist(), strict=True):
        if upto > cut:
            pools.append(take(piece.arrays, picked[cut:upto] - start))
        start, cut = end, upto
    if len(pools) == 1:
        return pools[0]
    return Pool(*(np.concatenate(parts) for parts in zip(*pools, strict=True)))


def _distances(piece: Piece, query: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """uint16[n]: dimensions whose sign differs; the greatest number for emptied places."""
    total = np.zeros(piece.n, np.uint16)
    # Word by word: the intermediate rows stay in the processor's cache.
    for row, word in zip(piece.arrays.bits, query[:, 0], strict=True):
        total += np.bitwise_count(row[: piece.n] ^ word)
    if piece.dead:
        total[piece.arrays.chunks[: piece.n] == 0] = _FAR
    return total
