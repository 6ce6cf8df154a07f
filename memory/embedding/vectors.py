"""Vectors in memory: found by sign bits, scored by int8 codes.

Theory of operation. A vector x is kept as code = round(127 x / max|x|) in int8 with scale
max|x| / 127, and its signs once more as bits. A search takes the Hamming distance of every vector
of the wanted scopes and tier (one XOR and one population count for 64 dimensions), the nearest
500, and scores these by their codes: .96 of the exact twenty best for a ninth of the traffic.

Vectors of a (scope, tier) lie together in a segment, so a caller of a few scopes pays for these
alone and a flood in the low tier costs the main one nothing. Segments grow by doubling; a vector
that leaves is zeroed in its place, and a segment with a quarter of such places is packed anew. The
bits are always in memory; the codes up to a limit, and beyond it they are read from the database.

Threads: one thread changes the index (the loop, in the order of commits), any number search it. A
search takes the arrays of its segments under the lock and reads them without it. That is sound
because a place is written once, before its number is counted, and is only ever emptied after its
chunk was set to 0, which a search looks at last. So a result may be as old as the search's begin;
callers join it with rows of their own read transaction.

Source: docs/specs/memory.md, *Vectors*. This module needs numpy and is imported when there is an
embedder, not before.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np

from memory.embedding.segments import (
    CAPACITY_START,
    NOWHERE,
    Arrays,
    Block,
    Piece,
    Pool,
    Segment,
    copy,
    nearest,
    sign_words,
    take,
)
from memory.tiers import NONE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import apsw
    from numpy.typing import NDArray

    from memory.embedding.segments import Key
    from memory.embedding.vecrows import VectorRow
    from memory.storage.txn import Place

HAMMING_POOL: Final = 500
"""Nearest by signs that are scored by their codes: recall@20 of exact .96 at 100,000 vectors."""

DEAD_RATIO_MAX: Final = 0.25
"""Part of a segment that may be emptied places before it is packed."""

_NO_PLACES: Final = np.empty(0, np.intp)
_NO_COSINES: Final = np.empty(0, np.float32)


class Dense(NamedTuple):
    """A chunk found by its vector."""

    chunk: int
    memory: int
    cosine: float


class VectorIndex:
    """All vectors of one model.

    Args:
        model: id of the embedder.
        dim: length of a vector.
        ram_bytes_max: codes held in memory; beyond it they are read from `vec`.
    """

    def __init__(self, model: str, dim: int, *, ram_bytes_max: int = 96 * 2**20) -> None:
        self.model = model
        self.dim = dim
        self._words = -(-dim // 64)
        self._held_max = ram_bytes_max // dim
        self._held = 0
        self._lock = threading.Lock()
        self._segments: dict[Key, Segment] = {}
        self._numbered: list[Segment] = []
        # By memory row: the number of its segment and the place of its first vector in there.
        self._home = np.full(1024, NOWHERE, np.int32)
        self._head = np.full(1024, NOWHERE, np.int32)
        self._epochs: Counter[int] = Counter()

    # ---- asking; any thread

    def __len__(self) -> int:
        """Vectors in the index."""
        with self._lock:
            return sum(segment.n - segment.dead for segment in self._numbered)

    def counts(self) -> dict[int, int]:
        """Vectors of each scope that has any."""
        found: dict[int, int] = {}
        with self._lock:
            for (scope, _), segment in self._segments.items():
                found[scope] = found.get(scope, 0) + segment.n - segment.dead
        return {scope: n for scope, n in found.items() if n}

    def epochs(self, scopes: Sequence[int]) -> tuple[int, ...]:
        """How often the vectors of each scope have changed here.

        Vectors arrive after the commit that stores them, so a transaction's generations alone do
        not tell what a search in it could find.
        """
        with self._lock:
            return tuple(self._epochs[scope] for scope in scopes)

    @property
    def held_bytes(self) -> int:
        """Codes held in memory."""
        return self._held * self.dim

    def search(
        self,
        connection: apsw.Connection,
        vector: NDArray[np.float32],
        *,
        scopes: Sequence[int] | None,
        tier: int,
        chunks: int,
    ) -> list[Dense]:
        """The chunks nearest to a vector, best first.

        Args:
            connection: a reader, for codes that are not in memory.
            vector: float32[dim], length 1, of this index's model.
            scopes: scope rows, None for all there are.
            tier: main or low.
            chunks: how many at most.
        """
        pool, scored, best = self._best(connection, vector, scopes, tier, chunks)
        return [
            Dense(chunk, memory, cosine)
            for chunk, memory, cosine in zip(
                pool.chunks[best].tolist(),
                pool.memories[best].tolist(),
                scored[best].tolist(),
                strict=True,
            )
        ]

    def nearest(
        self,
        connection: apsw.Connection,
        vector: NDArray[np.float32],
        *,
        scopes: Sequence[int] | None,
        tier: int,
        chunks: int,
    ) -> tuple[dict[int, float], int]:
        """(the memories of the chunks that `search` would give, how many chunks those are).

        The memories stand in the order of their best chunks, each with its cosine.
        """
        pool, scored, best = self._best(connection, vector, scopes, tier, chunks)
        memories = pool.memories[best]
        first = np.sort(np.unique(memories, return_index=True)[1])
        cosines = scored[best[first]].tolist()
        return dict(zip(memories[first].tolist(), cosines, strict=True)), best.size

    def cosines(
        self, connection: apsw.Connection, vector: NDArray[np.float32], memories: Sequence[int]
    ) -> dict[int, tuple[float, int]]:
        """(best chunk's cosine, chunks with a vector) of those of the memories that have any."""
        pools = self._pools_of(np.unique(np.asarray(memories, np.int64)))
        found: dict[int, tuple[float, int]] = {}
        for pool in pools:
            scored = self._score(connection, vector, pool)
            for memory, cosine in zip(pool.memories.tolist(), scored.tolist(), strict=True):
                if cosine == cosine:
                    best, n = found.get(memory, (-1.0, 0))
                    found[memory] = (max(best, cosine), n + 1)
        return found

    # ---- changing; the loop's thread alone, in the order of commits

    def add(self, rows: Sequence[VectorRow]) -> None:
        """Take in vectors; those of chunks that are here already, or in no tier, are left out."""
        by_key: dict[Key, list[VectorRow]] = {}
        with self._lock:
            for row in self._new_among(rows):
                by_key.setdefault((row.scope, row.tier), []).append(row)
            for key, group in by_key.items():
                self._append(self._segment(key), self._block(group))

    def move(self, places: Mapping[int, Place]) -> None:
        """Follow memories to the tier they are in now; forget those that are gone or in none."""
        with self._lock:
            self._move(places)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            for segment in self._numbered:
                self._empty(segment, np.arange(segment.n, dtype=np.int32))
            self._segments.clear()
            self._numbered.clear()
            self._home.fill(NOWHERE)
            self._head.fill(NOWHERE)

    # ---- inside the lock

    def _pieces(self, scopes: Sequence[int] | None, tier: int) -> list[Piece]:
        with self._lock:
            if scopes is None:
                wanted = [s for (_, t), s in self._segments.items() if t == tier]
            else:
                keys = ((scope, tier) for scope in dict.fromkeys(scopes))
                wanted = [self._segments[key] for key in keys if key in self._segments]
            return [Piece(s.arrays, s.n, s.dead > 0) for s in wanted if s.n > s.dead]

    def _pools_of(self, memories: NDArray[np.int64]) -> list[Pool]:
        with self._lock:
            known = memories[(memories > 0) & (memories < self._home.size)]
            homes = self._home[known]
            return [
                take(
                    self._numbered[number].arrays,
                    self._places(self._numbered[number], known[homes == number]),
                )
                for number in np.unique(homes[homes != NOWHERE]).tolist()
            ]

    def _places(self, segment: Segment, memories: NDArray[np.int64]) -> NDArray[np.int32]:
        """Places of all vectors of memories that live in this segment."""
        current = self._head[memories]
        found = []
        # As many rounds as the longest memory has chunks.
        while current.size:
            found.append(current)
            current = segment.arrays.next[current]
            current = current[current != NOWHERE]
        return np.concatenate(found) if found else np.empty(0, np.int32)

    def _new_among(self, rows: Sequence[VectorRow]) -> list[VectorRow]:
        indexed = [row for row in rows if row.tier != NONE]
        moved: dict[int, Place] = {}
        here: dict[int, set[int]] = {}
        for row in indexed:
            if row.memory in here or self._home_of(row.memory) == NOWHERE:
                continue
            segment = self._numbered[self._home_of(row.memory)]
            places = self._places(segment, np.asarray([row.memory]))
            here[row.memory] = set(segment.arrays.chunks[places].tolist())
            if segment.key != (row.scope, row.tier):
                moved[row.memory] = (row.scope, row.tier)
        self._move(moved)
        return [row for row in indexed if row.chunk not in here.get(row.memory, ())]

    def _home_of(self, memory: int) -> int:
        return int(self._home[memory]) if memory < self._home.size else NOWHERE

    def _segment(self, key: Key) -> Segment:
        segment = self._segments.get(key)
        if segment is None:
            segment = Segment(key, len(self._numbered), self._words, self.dim)
            self._segments[key] = segment
            self._numbered.append(segment)
        return segment

    def _block(self, rows: Sequence[VectorRow]) -> Block:
        codes = np.frombuffer(b"".join(row.code for row in rows), np.int8)
        codes = codes.reshape(len(rows), self.dim)
        return Block(
            sign_words(codes > 0),
            codes,
            np.array([row.scale for row in rows], np.float32),
            np.ones(len(rows), np.bool_),
            np.array([row.chunk for row in rows], np.int64),
            np.array([row.memory for row in rows], np.int64),
        )

    def _append(self, segment: Segment, block: Block) -> None:
        """Write the places, chain each memory's, and only then count them."""
        count = block.chunks.size
        segment.reserve(count)
        start, end = segment.n, segment.n + count
        arrays = segment.arrays
        held = block.held.copy()
        # Past the limit a code stays in the database alone.
        held[np.cumsum(held) > self._held_max - self._held] = False
        self._epochs[segment.key[0]] += 1
        places = np.arange(start, end, dtype=np.int32)
        arrays.bits[:, start:end] = block.bits
        arrays.codes[places[held]] = block.codes[held]
        arrays.scales[start:end] = block.scales
        arrays.held[start:end] = held
        arrays.memories[start:end] = block.memories
        arrays.chunks[start:end] = block.chunks
        self._held += int(held.sum())
        self._chain(segment, places, block.memories)
        segment.n = end

    def _chain(
        self, segment: Segment, places: NDArray[np.int32], memories: NDArray[np.int64]
    ) -> None:
        """Put places in front of their memories' lists."""
        self._make_room(int(memories.max()))
        order = np.argsort(memories, kind="stable")
        sorted_places, sorted_memories = places[order], memories[order]
        last = np.append(sorted_memories[1:] != sorted_memories[:-1], True)
        following = np.append(sorted_places[1:], np.int32(NOWHERE))
        owners = sorted_memories[last]
        following[last] = np.where(
            self._home[owners] == segment.number, self._head[owners], NOWHERE
        )
        segment.arrays.next[sorted_places] = following
        first = np.append(True, last[:-1])
        self._head[sorted_memories[first]] = sorted_places[first]
        self._home[owners] = segment.number

    def _make_room(self, memory: int) -> None:
        size = self._home.size
        if memory < size:
            return
        while size <= memory:
            size *= 2
        for name in ("_home", "_head"):
            grown = np.full(size, NOWHERE, np.int32)
            old = cast("NDArray[np.int32]", getattr(self, name))
            grown[: old.size] = old
            setattr(self, name, grown)

    def _move(self, places: Mapping[int, Place]) -> None:
        groups: dict[tuple[int, Place], list[int]] = {}
        for memory, place in places.items():
            home = self._home_of(memory)
            target = None if place is None or place[1] == NONE else place
            if home != NOWHERE and self._numbered[home].key != target:
                groups.setdefault((home, target), []).append(memory)
        for (home, target), memories in groups.items():
            self._move_group(self._numbered[home], target, np.asarray(memories, np.int64))

    def _move_group(self, source: Segment, target: Place, memories: NDArray[np.int64]) -> None:
        places = self._places(source, memories)
        a = source.arrays
        block = Block(
            a.bits[:, places],
            a.codes[places],
            a.scales[places],
            a.held[places],
            a.chunks[places],
            a.memories[places],
        )
        self._empty(source, places)
        self._home[memories] = NOWHERE
        self._head[memories] = NOWHERE
        if target is not None:
            self._append(self._segment(target), block)
        if source.dead > DEAD_RATIO_MAX * source.n:
            self._pack(source)

    def _empty(self, segment: Segment, places: NDArray[np.int32]) -> None:
        """Zero places: the chunk first, so that a search under way sees that it is gone."""
        self._epochs[segment.key[0]] += 1
        a = segment.arrays
        was = a.chunks[places] != 0
        a.chunks[places] = 0
        a.memories[places] = 0
        a.bits[:, places] = 0
        held = places[a.held[places]]
        a.codes[held] = 0
        a.scales[places] = 0
        a.held[places] = False
        self._held -= held.size
        segment.dead += int(was.sum())

    def _pack(self, segment: Segment) -> None:
        """Leave the emptied places behind."""
        alive = np.flatnonzero(segment.arrays.chunks[: segment.n])
        capacity = CAPACITY_START
        while capacity < alive.size:
            capacity *= 2
        segment.arrays = copy(segment.arrays, alive, capacity, keep_next=False)
        segment.n, segment.dead = alive.size, 0
        memories = segment.arrays.memories[: alive.size]
        if alive.size:
            self._head[memories] = NOWHERE
            self._chain(segment, np.arange(alive.size, dtype=np.int32), memories)

    # ---- outside the lock

    def _best(
        self,
        connection: apsw.Connection,
        vector: NDArray[np.float32],
        scopes: Sequence[int] | None,
        tier: int,
        chunks: int,
    ) -> tuple[Pool, NDArray[np.float32], NDArray[np.intp]]:
        """(places near a vector, their cosines, which of them are the best, in order)."""
        pieces = self._pieces(scopes, tier)
        if not pieces:
            return take(Arrays.empty(0, self.dim, 0), _NO_PLACES), _NO_COSINES, _NO_PLACES
        pool = nearest(pieces, sign_words((vector > 0)[None, :]), max(HAMMING_POOL, chunks))
        scored = self._score(connection, vector, pool)
        best = np.argsort(-scored, kind="stable")[:chunks]
        # Not those emptied meanwhile, nor whose row was gone.
        return pool, scored, best[(pool.chunks[best] != 0) & ~np.isnan(scored[best])]

    def _score(
        self, connection: apsw.Connection, vector: NDArray[np.float32], pool: Pool
    ) -> NDArray[np.float32]:
        """Cosine of each place; NaN where it was emptied or its row is not there."""
        scored = (pool.codes.astype(np.float32) @ vector) * pool.scales
        scored[pool.chunks == 0] = np.nan
        away = np.flatnonzero(~pool.held & (pool.chunks != 0))
        if away.size:
            scored[away] = self._score_stored(connection, vector, pool.chunks[away])
        return scored

    def _score_stored(
        self, connection: apsw.Connection, vector: NDArray[np.float32], chunks: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Cosines of chunks whose codes are in the database alone."""
        rows = cast(
            "list[tuple[int, float, bytes]]",
            connection.execute(
                "SELECT chunk, scale, code FROM vec"
                " WHERE chunk IN (SELECT value FROM json_each(?)) AND model = ?",
                (json.dumps(chunks.tolist()), self.model),
            ).fetchall(),
        )
        scored = np.full(chunks.size, np.nan, np.float32)
        if rows:
            codes = np.frombuffer(b"".join(row[2] for row in rows), np.int8)
            scales = np.array([row[1] for row in rows], np.float32)
            cosines = (codes.reshape(-1, self.dim).astype(np.float32) @ vector) * scales
            by_chunk = dict(zip((row[0] for row in rows), cosines.tolist(), strict=True))
            scored[:] = [by_chunk.get(chunk, np.nan) for chunk in chunks.tolist()]
        return scored
