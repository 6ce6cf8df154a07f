"""One visit to a reader's thread answers a question, and no transaction is open in the embedder."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import trio
from typing_extensions import override

from memory.model import Hit, Query
from memory.recall import answering
from tests.helpers.embedders import DyingEmbedder, WordEmbedder
from tests.helpers.memories import open_world

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from memory.storage.db import Reader
    from tests.helpers.memories import World

QUESTION = "which port does staging use"


async def explained(world: World, question: str = QUESTION) -> list[Hit]:
    hits = await world.memory.recall(world.person, Query(query=question, explain=True))
    return hits.hits


async def embedded(world: World) -> None:
    """Wait until every chunk has its vector."""
    with trio.fail_after(20):
        while True:
            status = await world.embeddings.status()
            if status.state == "ready" and not status.backlog:
                return
            await trio.sleep(0.01)


async def test_a_question_is_one_visit_whether_it_is_answered_anew_or_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = WordEmbedder()
    async with open_world(tmp_path, embedder=embedder) as world:
        await world.say("staging uses port 5433")
        await embedded(world)
        visit, visits = world.db.visit, []

        async def note(fn: Callable[[Reader], object]) -> object:
            visits.append(fn)
            return await visit(fn)

        monkeypatch.setattr(world.db, "visit", note)
        (hit,) = await explained(world)
        assert hit.explain is not None
        assert hit.explain.embedder == embedder.id
        assert await explained(world) == [hit]
        assert embedder.queries == [QUESTION], "the answer was not kept"
        assert len(visits) == 2


class HeldEmbedder(WordEmbedder):
    """Takes as long over a question as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = threading.Event(), threading.Event()

    @override
    def encode(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        if query:
            self.asked.set()
            assert self.go_on.wait(20)
        return super().encode(texts, query=query)


async def test_no_transaction_is_open_while_the_embedder_works(tmp_path: Path) -> None:
    embedder = HeldEmbedder()
    found: list[Hit] = []
    async with open_world(tmp_path, embedder=embedder) as world:
        await world.say("staging uses port 5433")
        await embedded(world)

        async def ask() -> None:
            found.extend(await explained(world))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            with trio.fail_after(20):
                while True:
                    if embedder.asked.is_set():
                        break
                    await trio.sleep(0.01)
            try:
                assert await world.db.checkpoint(), "a reader was in the way"
            finally:
                embedder.go_on.set()
    assert found[0].explain is not None
    assert found[0].explain.embedder == embedder.id


async def test_an_embedder_that_fails_leaves_the_words_and_keeps_no_answer(tmp_path: Path) -> None:
    embedder = DyingEmbedder(1)
    async with open_world(tmp_path, embedder=embedder) as world:
        await world.say("staging uses port 5433")
        await embedded(world)
        (hit,) = await explained(world)
        assert hit.explain is not None
        assert (hit.explain.embedder, hit.explain.cosine) == ("", None)
        embedder.mended.set()
        (hit,) = await explained(world)
        assert hit.explain is not None
        assert hit.explain.embedder == embedder.id


async def test_a_question_that_was_forgotten_while_it_was_embedded_is_not_kept(
    tmp_path: Path,
) -> None:
    embedder = HeldEmbedder()
    async with open_world(tmp_path, embedder=embedder) as world:
        victim = await world.say("staging uses port 5433")
        await embedded(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(explained, world)
            with trio.fail_after(20):
                while True:
                    if embedder.asked.is_set():
                        break
                    await trio.sleep(0.01)
            try:
                await world.memory.forget(world.person, [victim])
                world.embeddings._notice({1: None})  # as an erasure does after its commit
            finally:
                embedder.go_on.set()
        assert world.embeddings.query_vector(QUESTION) is not None
        assert embedder.queries == [QUESTION, QUESTION]


async def test_an_error_of_the_ranking_comes_out_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder()) as world:
        await world.say("staging uses port 5433")
        await embedded(world)

        def broken(*_: object) -> None:
            raise ValueError("broken")

        monkeypatch.setattr(answering, "recall", broken)
        with pytest.raises(ValueError, match="broken"):
            await explained(world)
        monkeypatch.undo()
        assert len(await explained(world)) == 1, "the reader was left in a transaction"
