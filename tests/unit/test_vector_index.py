"""The vector index: what it finds, what it forgets, and many threads at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

import apsw
import numpy as np
import pytest

from memory.embedding.segments import quantise, sign_words
from memory.embedding.vecrows import VectorRow
from memory.embedding.vectors import VectorIndex
from memory.tiers import LOW, MAIN, NONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DIM = 128


def unit(rng: np.random.Generator, n: int, dim: int = DIM) -> NDArray[np.float32]:
    found = rng.normal(size=(n, dim)).astype(np.float32)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def rows_of(
    vectors: NDArray[np.float32],
    *,
    scope: int = 1,
    tier: int = MAIN,
    chunks: int = 1,
    first: int = 1,
) -> list[VectorRow]:
    """A row a vector; every `chunks` of them make a memory."""
    codes, scales = quantise(vectors)
    return [
        VectorRow(first + i, first + i // chunks, scope, tier, float(scales[i]), codes[i].tobytes())
        for i in range(len(vectors))
    ]


def stored(rows: Sequence[VectorRow], model: str = "m") -> apsw.Connection:
    """A database that holds the rows, as `vec` does."""
    connection = apsw.Connection(":memory:")
    connection.execute(
        "CREATE TABLE vec(chunk INTEGER, model TEXT, scale REAL, code BLOB,"
        " PRIMARY KEY (chunk, model)) WITHOUT ROWID"
    )
    connection.executemany(
        "INSERT INTO vec VALUES (?, ?, ?, ?)", [(r.chunk, model, r.scale, r.code) for r in rows]
    )
    return connection


NO_DATABASE = cast("apsw.Connection", None)
"""Codes in memory need none."""


def exact(rows: Sequence[VectorRow], vector: NDArray[np.float32], count: int) -> list[int]:
    """Chunks by cosine of their codes, the slow obvious way."""
    scored = sorted(
        (-float(np.frombuffer(r.code, np.int8).astype(np.float32) @ vector) * r.scale, r.chunk)
        for r in rows
    )
    return [chunk for _, chunk in scored[:count]]


def found(
    index: VectorIndex, vector: NDArray[np.float32], count: int = 20, **where: object
) -> list[int]:
    scopes = cast("list[int] | None", where.get("scopes"))
    tier = cast("int", where.get("tier", MAIN))
    dense = index.search(NO_DATABASE, vector, scopes=scopes, tier=tier, chunks=count)
    return [item.chunk for item in dense]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_codes_give_back_the_vector(rng: np.random.Generator) -> None:
    vectors = unit(rng, 50)
    codes, scales = quantise(vectors)
    assert np.abs(codes).max(axis=1).tolist() == [127] * 50
    np.testing.assert_allclose(
        codes * scales[:, None], vectors, atol=float(scales.max()) / 2 + 1e-6
    )


@pytest.mark.parametrize("dim", [64, 100, 384])
def test_bits_of_any_dimension_count_the_signs_that_differ(
    rng: np.random.Generator, dim: int
) -> None:
    a, b = unit(rng, 2, dim)
    words = sign_words(np.stack([a, b]) > 0)
    assert words.shape == (-(-dim // 64), 2)
    assert int(np.bitwise_count(words[:, 0] ^ words[:, 1]).sum()) == int(((a > 0) != (b > 0)).sum())


def test_up_to_the_pool_the_search_is_exact(rng: np.random.Generator) -> None:
    rows = rows_of(unit(rng, 500))
    index = VectorIndex("m", DIM)
    index.add(rows)
    for vector in unit(rng, 10):
        assert found(index, vector) == exact(rows, vector, 20)


def test_beyond_the_pool_nearly_all_the_best_are_found(rng: np.random.Generator) -> None:
    # Queries near something that is there, as questions are.
    vectors = unit(rng, 5_000)
    rows = rows_of(vectors)
    index = VectorIndex("m", DIM)
    index.add(rows)
    hits = total = 0
    for at in range(0, 500, 10):
        vector = unit(rng, 1)[0] * 0.6 + vectors[at]
        vector /= np.linalg.norm(vector)
        wanted = exact(rows, vector, 5)
        assert wanted[0] == found(index, vector, 5)[0] == at + 1
        hits += len(set(wanted) & set(found(index, vector, 5)))
        total += 5
    assert hits / total > 0.8


def test_a_tier_and_a_scope_see_their_own_alone(rng: np.random.Generator) -> None:
    vectors = unit(rng, 90)
    parts = {
        (1, MAIN): rows_of(vectors[:30]),
        (2, MAIN): rows_of(vectors[30:60], scope=2, first=31),
        (1, LOW): rows_of(vectors[60:], tier=LOW, first=61),
    }
    index = VectorIndex("m", DIM)
    index.add([row for rows in parts.values() for row in rows])
    asked = unit(rng, 1)[0]
    assert found(index, asked, 90, scopes=[1]) == exact(parts[1, MAIN], asked, 90)
    assert found(index, asked, 90, scopes=[1], tier=LOW) == exact(parts[1, LOW], asked, 90)
    assert found(index, asked, 90, scopes=[2], tier=LOW) == []
    assert found(index, asked, 90, scopes=[3]) == []
    assert found(index, asked, 90, scopes=[]) == []
    both = parts[1, MAIN] + parts[2, MAIN]
    assert found(index, asked, 90, scopes=[2, 1, 2]) == exact(both, asked, 90)
    assert found(index, asked, 90) == exact(both, asked, 90)
    assert index.counts() == {1: 60, 2: 30}


def test_a_memory_takes_all_its_chunks_to_another_tier(rng: np.random.Generator) -> None:
    rows = rows_of(unit(rng, 30), chunks=3)
    index = VectorIndex("m", DIM)
    index.add(rows)
    asked = unit(rng, 1)[0]
    index.move({4: (1, LOW), 2: (1, MAIN), 999: (1, LOW)})
    moved = [row for row in rows if row.memory == 4]
    assert found(index, asked, 30, tier=LOW) == exact(moved, asked, 3)
    assert found(index, asked, 30) == exact([r for r in rows if r.memory != 4], asked, 30)
    index.move({4: (2, MAIN)})
    assert found(index, asked, 30, scopes=[2]) == exact(moved, asked, 3)
    assert found(index, asked, 30, tier=LOW) == []
    assert len(index) == 30


@pytest.mark.parametrize("place", [None, (1, NONE)], ids=["erased", "in no tier"])
def test_what_leaves_is_zeroed_in_memory(
    rng: np.random.Generator, place: tuple[int, int] | None
) -> None:
    rows = rows_of(unit(rng, 60), chunks=2)
    index = VectorIndex("m", DIM)
    index.add(rows)
    arrays = index._numbered[0].arrays
    index.move({3: place})
    assert not arrays.bits[:, 4:6].any()
    assert not arrays.codes[4:6].any()
    assert not arrays.chunks[4:6].any()
    assert len(index) == 58
    asked = unit(rng, 1)[0]
    assert found(index, asked, 60) == exact([r for r in rows if r.memory != 3], asked, 60)
    assert index.cosines(NO_DATABASE, asked, [3]) == {}
    # What comes back is found again.
    index.add([r for r in rows if r.memory == 3])
    assert found(index, asked, 60) == exact(rows, asked, 60)


def test_emptied_places_are_packed(rng: np.random.Generator) -> None:
    rows = rows_of(unit(rng, 1_000), chunks=5)
    index = VectorIndex("m", DIM)
    index.add(rows)
    index.move(dict.fromkeys(range(1, 191)))
    segment = index._numbered[0]
    assert segment.n - segment.dead == 50
    assert segment.n <= 64
    assert segment.arrays.chunks.size <= 128
    left = [row for row in rows if row.memory > 190]
    asked = unit(rng, 1)[0]
    assert found(index, asked, 60) == exact(left, asked, 60)
    assert index.cosines(NO_DATABASE, asked, [195])[195][1] == 5
    index.move({195: (1, LOW)})
    assert sorted(found(index, asked, 60, tier=LOW)) == [r.chunk for r in rows if r.memory == 195]


def test_cosines_are_of_the_best_chunk(rng: np.random.Generator) -> None:
    vectors = unit(rng, 40)
    rows = rows_of(vectors[:30], chunks=3) + rows_of(vectors[30:], tier=LOW, first=31)
    index = VectorIndex("m", DIM)
    index.add(rows)
    asked = unit(rng, 1)[0]
    got = index.cosines(NO_DATABASE, asked, [1, 7, 35, 5_000, -3])
    assert sorted(got) == [1, 7, 35]
    assert got[7][1] == 3
    assert got[35][1] == 1
    best = max(float(vectors[i] @ asked) for i in (18, 19, 20))
    assert got[7][0] == pytest.approx(best, abs=0.01)


def test_chunks_of_a_memory_may_come_one_by_one(rng: np.random.Generator) -> None:
    rows = rows_of(unit(rng, 6), chunks=3)
    index = VectorIndex("m", DIM)
    for row in (rows[4], rows[0], rows[2], rows[5], rows[1], rows[3], rows[3], rows[0]):
        index.add([row])
    asked = unit(rng, 1)[0]
    assert found(index, asked, 20) == exact(rows, asked, 20)
    assert {m: n for m, (_, n) in index.cosines(NO_DATABASE, asked, [1, 2]).items()} == {1: 3, 2: 3}
    assert len(index) == 6


def test_beyond_the_limit_codes_come_from_the_database(rng: np.random.Generator) -> None:
    rows = rows_of(unit(rng, 300), chunks=2)
    index = VectorIndex("m", DIM, ram_bytes_max=100 * DIM)
    index.add(rows[:150])
    index.add(rows[150:])
    assert index.held_bytes == 100 * DIM
    connection = stored(rows)
    asked = unit(rng, 1)[0]
    dense = index.search(connection, asked, scopes=None, tier=MAIN, chunks=300)
    assert [item.chunk for item in dense] == exact(rows, asked, 300)
    assert index.cosines(connection, asked, [120]).keys() == {120}
    # A row that is gone in the caller's transaction is no result.
    connection.execute("DELETE FROM vec WHERE chunk = 290")
    dense = index.search(connection, asked, scopes=None, tier=MAIN, chunks=300)
    assert sorted(item.chunk for item in dense) == [c for c in range(1, 301) if c != 290]
    # Room that is given up is used again.
    index.move(dict.fromkeys(range(1, 21)))
    assert index.held_bytes == 60 * DIM
    index.add(rows_of(unit(rng, 10), first=1_000))
    assert index.held_bytes == 70 * DIM


def test_clearing_forgets_all(rng: np.random.Generator) -> None:
    rows = rows_of(unit(rng, 20))
    index = VectorIndex("m", DIM)
    index.add(rows)
    index.clear()
    asked = unit(rng, 1)[0]
    assert len(index) == index.held_bytes == 0
    assert found(index, asked) == []
    index.add(rows)
    assert found(index, asked) == exact(rows, asked, 20)


def test_searches_go_on_while_memories_come_and_go(rng: np.random.Generator) -> None:
    """Readers in threads always see true pairs of chunk and cosine, and what is never touched."""
    vectors = unit(rng, 3_000)
    rows = rows_of(vectors, chunks=3)
    index = VectorIndex("m", DIM)
    index.add(rows[:900])
    asked = unit(rng, 1)[0]
    cosines = {row.chunk: float(vectors[i] @ asked) for i, row in enumerate(rows)}
    wrong: list[str] = []
    over = threading.Event()
    searches = [0] * 4

    def search(worker: int) -> None:
        while not over.is_set():
            dense = index.search(NO_DATABASE, asked, scopes=None, tier=MAIN, chunks=3_000)
            chunks = [item.chunk for item in dense]
            if len(set(chunks)) != len(chunks):
                wrong.append("a chunk twice")
            if any(abs(item.cosine - cosines[item.chunk]) > 0.02 for item in dense):
                wrong.append("another chunk's cosine")
            if any(item.memory != 1 + (item.chunk - 1) // 3 for item in dense):
                wrong.append("another chunk's memory")
            if not set(range(1, 91)) <= set(chunks):
                wrong.append("an untouched chunk is missing")
            got = index.cosines(NO_DATABASE, asked, range(1, 31))
            if {n for _, n in got.values()} != {3} or len(got) != 30:
                wrong.append("an untouched memory's chunks are missing")
            searches[worker] += 1

    threads = [threading.Thread(target=search, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(60):
            start = 900 + turn * 30
            index.add(rows[start : start + 30])
            gone = range(31 + turn * 4, 41 + turn * 4)
            index.move(dict.fromkeys(gone, (1, LOW)))
            index.move({m: (1, MAIN) for m in gone if m % 2})
            index.move(dict.fromkeys(m for m in gone if not m % 3))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong, set(wrong)
    assert all(searches)
