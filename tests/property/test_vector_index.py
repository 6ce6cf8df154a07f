"""The vector index against a dictionary that is searched by brute force."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.embedding.segments import quantise
from memory.embedding.vecrows import VectorRow
from memory.embedding.vectors import VectorIndex
from memory.tiers import LOW, MAIN, NONE

if TYPE_CHECKING:
    import apsw
    from numpy.typing import NDArray

DIM = 70
MEMORIES = 40
_RNG = np.random.default_rng(3)
VECTORS = _RNG.normal(size=(MEMORIES * 3 + 5, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
CODES, SCALES = quantise(VECTORS)

places = st.tuples(st.integers(1, 3), st.sampled_from((MAIN, LOW, NONE)))
memories = st.integers(1, MEMORIES)
steps = st.one_of(
    st.tuples(st.just("add"), memories, places, st.sets(st.integers(0, 2), min_size=1)),
    st.tuples(
        st.just("move"), st.dictionaries(memories, st.one_of(st.none(), places), max_size=12)
    ),
    st.tuples(st.just("clear")),
)


def chunk_of(memory: int, i: int) -> int:
    return (memory - 1) * 3 + i + 1


class Model:
    """What should be there: chunk to (memory, scope, tier)."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, int, int]] = {}

    def add(self, memory: int, place: tuple[int, int], pieces: set[int]) -> list[VectorRow]:
        scope, tier = place
        made = []
        for i in sorted(pieces):
            chunk = chunk_of(memory, i)
            code, scale = CODES[chunk - 1].tobytes(), float(SCALES[chunk - 1])
            made.append(VectorRow(chunk, memory, scope, tier, scale, code))
            if tier != NONE:
                self.rows[chunk] = (memory, scope, tier)
        if tier != NONE:
            self.move({memory: place})
        return made

    def move(self, places: dict[int, tuple[int, int] | None]) -> None:
        for chunk, (memory, _, _) in list(self.rows.items()):
            if memory not in places:
                continue
            place = places[memory]
            if place is None or place[1] == NONE:
                del self.rows[chunk]
            else:
                self.rows[chunk] = (memory, *place)

    def best(
        self, vector: NDArray[np.float32], scopes: list[int] | None, tier: int, count: int
    ) -> list[tuple[int, int]]:
        found = [
            (-float(CODES[chunk - 1].astype(np.float32) @ vector) * float(SCALES[chunk - 1]), chunk)
            for chunk, (_, scope, where) in self.rows.items()
            if where == tier and (scopes is None or scope in scopes)
        ]
        return [(chunk, self.rows[chunk][0]) for _, chunk in sorted(found)[:count]]


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=40), st.integers(0, 4))
def test_whatever_happened_the_index_finds_what_brute_force_finds(
    done: list[tuple[object, ...]], asked: int
) -> None:
    index, model = VectorIndex("m", DIM), Model()
    for step in done:
        match step:
            case ("add", memory, place, pieces):
                index.add(
                    model.add(
                        cast("int", memory),
                        cast("tuple[int, int]", place),
                        cast("set[int]", pieces),
                    )
                )
            case ("move", moved):
                wanted = cast("dict[int, tuple[int, int] | None]", moved)
                model.move(wanted)
                index.move(wanted)
            case _:
                model.rows.clear()
                index.clear()
        vector = VECTORS[MEMORIES * 3 + asked]
        nobody = cast("apsw.Connection", None)
        for tier in (MAIN, LOW):
            for scopes in (None, [1], [2, 3]):
                dense = index.search(nobody, vector, scopes=scopes, tier=tier, chunks=10)
                assert [(d.chunk, d.memory) for d in dense] == model.best(vector, scopes, tier, 10)
                near, chunks = index.nearest(nobody, vector, scopes=scopes, tier=tier, chunks=10)
                assert list(near) == list(dict.fromkeys(d.memory for d in dense))
                assert near == {d.memory: d.cosine for d in reversed(dense)}
                assert chunks == len(dense)
        got = index.cosines(nobody, vector, range(MEMORIES + 2))
        counted: dict[int, int] = {}
        for memory, _, _ in model.rows.values():
            counted[memory] = counted.get(memory, 0) + 1
        assert {memory: n for memory, (_, n) in got.items()} == counted
        assert len(index) == len(model.rows)
        assert index.held_bytes == len(model.rows) * DIM
