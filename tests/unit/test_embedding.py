"""The background work that gives chunks their vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import trio

from memory.embedding import vecrows
from memory.embedding.service import (
    FRESH_MAX,
    HINT,
    QUERIES_MAX,
    QUIET_S,
    RECALL_WAIT_S,
    Embeddings,
)
from memory.errors import EmbedError, RefusedError, StoreError
from memory.model import NoteIn
from memory.tiers import LOW, MAIN
from tests.helpers.embedders import DyingEmbedder, PickyEmbedder, WordEmbedder
from tests.helpers.memories import HOME, InlineOffload, Peer, note_body, open_world

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from apsw import Connection

    from memory.seams import Cell, Embedder
    from tests.helpers.memories import World


OLD = (
    "SELECT s.name FROM vec v JOIN chunk c ON c.id = v.chunk JOIN memory m ON m.id = c.memory"
    " JOIN scope s ON s.id = m.scope WHERE v.model LIKE 'old@%'"
)
"""The scope of every vector of the old model."""


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Until it is so; rows have no event to wait for."""
    with trio.fail_after(10):
        while True:
            if await check():
                return
            await trio.sleep(0.01)


async def left_over(embeddings: Embeddings, chunks: int) -> bool:
    """Whether all but some chunks have vectors."""
    status = await embeddings.status()
    return status.state == "ready" and status.backlog == chunks


async def no_rows(world: World, sql: str) -> bool:
    return not await world.sql(sql)


async def yes(so: bool) -> bool:
    await trio.lowlevel.checkpoint()
    return so


async def holds(world: World, rows: int) -> bool:
    """Whether `vec` has so many rows."""
    return await counted(world) == rows


async def embedded(world: World) -> None:
    """Until no chunk waits for a vector."""
    await until(lambda: left_over(world.embeddings, 0))


async def nearest(world: World, text: str, tier: int = MAIN) -> list[int]:
    """Memory rows by closeness to a question."""
    index, vector = world.embeddings.index, world.embeddings.query_vector(text)
    assert index is not None
    assert vector is not None
    found = await world.db.read(
        lambda c: index.search(c, vector, scopes=None, tier=tier, chunks=10)
    )
    return [dense.memory for dense in found]


async def row_of(world: World, memory_id: str) -> int:
    rows = await world.sql("SELECT n FROM record WHERE id = ?", bytes.fromhex(memory_id))
    return cast("int", rows[0][0])


async def counted(world: World) -> int:
    """Rows of `vec`."""
    return cast("int", (await world.sql("SELECT count(*) FROM vec"))[0][0])


def words(n: int) -> str:
    """A text of its own for each n."""
    return f"note number{n} about subject{n % 7}"


async def fill(world: World, count: int) -> list[str]:
    """Notes 0 to count - 1; their ids."""
    done = await world.memory.remember(world.agent(), [NoteIn(text=words(n)) for n in range(count)])
    return [one.id for one in done]


async def test_a_new_note_is_found_by_its_vector(tmp_path: Path) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder()) as world:
        await world.say("the cat sleeps on the warm stove")
        wanted = await world.say("deploys go through staging before production")
        await embedded(world)
        assert (await nearest(world, "staging before production"))[0] == await row_of(world, wanted)


async def test_title_and_text_are_embedded_and_the_speaker_where_there_is_no_title(
    tmp_path: Path,
) -> None:
    embedder = WordEmbedder()
    async with open_world(tmp_path, embedder=embedder) as world:
        await world.say("by way of staging", title="Deploys")
        await embedded(world)
        assert embedder.texts == ["Deploys\nby way of staging"]


async def test_a_note_whose_commit_is_told_after_the_sweep_has_seen_it_is_embedded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = WordEmbedder()
    async with open_world(tmp_path, embedder=embedder) as world:
        await world.say("by way of staging")
        await embedded(world)
        read = vecrows.missing_below

        def told_late(c: Connection, model: str, below: int) -> tuple[list[vecrows.Todo], int]:
            todo, rest = read(c, model, below)
            world.embeddings._fresh.update(item.memory for item in todo)
            return todo, rest

        monkeypatch.setattr(vecrows, "missing_below", told_late)
        embedder.batches.clear()
        await world.embeddings.reembed()
        await embedded(world)
        await world.say("the second note comes after all of that")
        await embedded(world)
        assert embedder.texts.count("by way of staging") == 1


async def test_without_an_embedder_all_goes_on_and_the_status_says_what_is_missing(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        await world.say("deploys go through staging")
        assert len((await world.find("staging")).hits) == 1
        status = await world.embeddings.status()
        assert (status.state, status.backlog, status.problem) == ("off", 0, False)
        assert world.embeddings.query_vector("staging") is None
        assert world.embeddings.index is None
        with pytest.raises(RefusedError):
            await world.embeddings.reembed()
        # `auto` without the extra: wanted, but nothing to load.
        off = Embeddings(world.db, world.replica, world.clock, InlineOffload(), lambda: None)
        await off.run()
        assert (await off.status()).message == HINT


async def test_an_embedder_that_cannot_be_loaded_is_a_problem_and_nothing_else(
    tmp_path: Path,
) -> None:
    def load() -> Embedder | None:
        raise EmbedError("model_altered", "model.onnx is not the published model")

    async with open_world(tmp_path) as world:
        broken = Embeddings(world.db, world.replica, world.clock, InlineOffload(), load)
        await broken.run()
        status = await broken.status()
        assert (status.state, status.problem) == ("failed", True)
        assert "not the published model" in status.message
        assert broken.query_vector("staging") is None


async def test_work_that_a_crash_left_is_done_by_the_next_start(tmp_path: Path) -> None:
    dying = DyingEmbedder(alive=1)
    async with open_world(tmp_path, embedder=dying) as world:
        await fill(world, 250)
        await until(lambda: yes(dying.failures > 0))
        assert 0 < await counted(world) < 250
    again = WordEmbedder()
    async with open_world(tmp_path, embedder=again) as world:
        await embedded(world)
        assert await counted(world) == 250
        # What had a vector was not embedded once more.
        assert len(again.texts) == 250 - len(dying.texts)
        assert len(await nearest(world, words(17))) == 10
    third = WordEmbedder()
    async with open_world(tmp_path, embedder=third) as world:
        await embedded(world)
        assert third.texts == []
        assert (await nearest(world, words(17)))[0] == (await nearest(world, words(17)))[0]


async def test_new_notes_come_before_old_ones(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for start in (0, 256):
            notes = [NoteIn(text=words(start + n)) for n in range(256)]
            await world.memory.remember(world.agent(), notes)
    embedder = WordEmbedder()
    async with open_world(tmp_path, embedder=embedder) as world:
        await world.say("the newest of all")
        await embedded(world)
        assert len(embedder.texts) == 513
        at = embedder.texts.index("the newest of all")
        assert at < 300


async def test_batches_are_of_like_length_and_bounded(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        notes = [NoteIn(text=f"{n} " + "word " * (n % 90)) for n in range(180)]
        await world.memory.remember(world.agent(), notes)
    embedder = WordEmbedder()
    async with open_world(tmp_path, embedder=embedder) as world:
        await embedded(world)
    assert len(embedder.texts) == 180
    for batch in embedder.batches:
        assert len(batch) * max(map(len, batch)) <= 2_000 or len(batch) == 1
    padded = sum(len(batch) * max(map(len, batch)) for batch in embedder.batches)
    assert padded < 1.2 * sum(map(len, embedder.texts))


async def test_an_embedder_that_dies_is_tried_again_and_words_go_on(
    tmp_path: Path, autojump_clock: object
) -> None:
    del autojump_clock
    embedder = DyingEmbedder(alive=2)
    async with open_world(tmp_path, embedder=embedder, inline=True) as world:
        await fill(world, 200)
        await trio.sleep(30)
        failed = embedder.failures
        # A pause of 1, 2, 4, 8 seconds, two tries each (the batch, its first text) and the probe.
        assert 6 <= failed <= 20
        status = await world.embeddings.status()
        assert status.problem
        assert "RuntimeError" in status.message
        assert 0 < status.backlog < 200
        assert "number3" in str((await world.find("number3")).hits[0].text)
        assert world.embeddings.query_vector("number3") is None
        embedder.mended.set()
        await trio.sleep(61)
        status = await world.embeddings.status()
        assert (status.backlog, status.problem) == (0, False)
        assert world.embeddings.query_vector("number3") is not None


@pytest.mark.parametrize("wrong", ["raise", "nan", "zero", "shape"])
async def test_a_text_that_fails_alone_is_left_out(tmp_path: Path, wrong: str) -> None:
    embedder = PickyEmbedder("poison", wrong)
    async with open_world(tmp_path, embedder=embedder) as world:
        await fill(world, 30)
        bad = await world.say("some poison for the model")
        await fill(world, 40)
        await until(lambda: left_over(world.embeddings, 1))
        await trio.sleep(0.05)
        status = await world.embeddings.status()
        assert status.backlog == 1
        assert "1 cannot be embedded" in status.message
        assert not status.problem
        assert await row_of(world, bad) not in await nearest(world, "some model")
        assert (await world.find("poison")).hits[0].id == bad
        # The embedder works, so later notes get vectors.
        later = await world.say("a later note")
        await until(lambda: left_over(world.embeddings, 1))
        assert (await nearest(world, "a later note"))[0] == await row_of(world, later)


# ---- following what happens to memories


async def test_what_is_forgotten_loses_its_vectors(tmp_path: Path) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder()) as world:
        ids = await fill(world, 3)
        await embedded(world)
        gone = await row_of(world, ids[1])
        await world.memory.forget(world.agent(), [ids[1]])
        assert await counted(world) == 2
        assert gone not in await nearest(world, words(1))
        index = world.embeddings.index
        assert index is not None
        assert len(index) == 2
        assert (await world.embeddings.status()).backlog == 0


async def test_what_comes_back_gets_vectors_again(tmp_path: Path) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder()) as world:
        old = await world.say("the port is 80")
        new = await world.say("the port is 81", supersedes=[old])
        short = await world.say("a note for a second", ttl_s=1)
        await embedded(world)
        assert await counted(world) == 3
        world.clock.ms += 2_000
        await world.memory.expire()
        assert await counted(world) == 2
        assert await row_of(world, short) not in await nearest(world, "a note for a second")
        await world.memory.forget(world.agent(), [new])
        await embedded(world)
        assert await nearest(world, "port") == [await row_of(world, old)]


async def test_a_tier_that_changes_moves_the_vector(tmp_path: Path) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder()) as world:
        bob = Peer(world.clock, 9)
        record = bob.write(HOME, note_body("bob knows the port"))
        await world.replica.admit(HOME, [record])
        await embedded(world)
        row = await row_of(world, record.id.hex())
        assert await nearest(world, "bob knows the port", LOW) == [row]
        assert await nearest(world, "bob knows the port") == []
        owner = bob.sealer.device
        await world.replica.settle(HOME, owners=[(owner, world.sealer.device, "own_device")])
        assert await nearest(world, "bob knows the port") == [row]
        assert await nearest(world, "bob knows the port", LOW) == []
        await embedded(world)
        assert await counted(world) == 1


async def test_a_vector_of_a_text_that_is_gone_meanwhile_is_not_kept(tmp_path: Path) -> None:
    """The embedder works while the note is forgotten."""

    class Slow(InlineOffload):
        def __init__(self) -> None:
            self.working = trio.Event()
            self.go_on = trio.Event()

        async def run(self, fn):  # type: ignore[no-untyped-def]
            found = fn()
            if isinstance(found, np.ndarray):
                self.working.set()
                await self.go_on.wait()
            return found

    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        slow = Slow()
        late = Embeddings(world.db, world.replica, world.clock, slow, WordEmbedder)
        gone, kept = await fill(world, 2)
        await nursery.start(late.run)
        await slow.working.wait()
        await world.memory.forget(world.agent(), [gone])
        slow.go_on.set()
        await until(lambda: left_over(late, 0))
        assert late.index is not None
        assert len(late.index) == 1
        rows = await world.sql("SELECT c.memory FROM vec v JOIN chunk c ON c.id = v.chunk")
        assert rows == [(await row_of(world, kept),)]
        nursery.cancel_scope.cancel()


async def test_an_import_larger_than_the_list_of_touched_notes_is_embedded_whole(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder(dim=64)) as world:
        await embedded(world)
        world.embeddings._notice({10_000_000 + n: (1, MAIN) for n in range(FRESH_MAX - 10)})
        await fill(world, 200)
        await embedded(world)
        assert await counted(world) == 200


# ---- another model


async def test_another_model_fills_up_beside_the_old_and_takes_over(tmp_path: Path) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder("old")) as world:
        await fill(world, 120)
        await embedded(world)
    failing = DyingEmbedder(alive=1)
    failing.id = "new@00000000"
    async with open_world(tmp_path, embedder=failing) as world:
        await until(lambda: yes(failing.failures > 0))
        rows = await world.sql("SELECT model, count(*) FROM vec GROUP BY 1")
        models = dict(cast("list[tuple[str, int]]", rows))
        # The old ones are all there while the new model has not shown that it works.
        assert models["old@00000000"] == 120
        assert 0 < models["new@00000000"] < 120
        status = await world.embeddings.status()
        assert status.backlog == 120 - models["new@00000000"]
    async with open_world(tmp_path, embedder=WordEmbedder("new")) as world:
        await embedded(world)
        await until(lambda: no_rows(world, "SELECT 1 FROM vec_model WHERE model LIKE 'old@%'"))
        assert await world.sql("SELECT model, count(*) FROM vec GROUP BY 1") == [
            ("new@00000000", 120)
        ]
        assert len(await nearest(world, words(3))) == 10


async def test_old_vectors_stay_in_a_scope_that_is_not_done(tmp_path: Path) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder("old")) as world:
        for n in range(40):
            await world.say(words(n), scope="done")
            await world.say(words(n) + " poison", scope="stuck")
        await embedded(world)
    picky = PickyEmbedder("poison")
    picky.id = "new@00000000"
    async with open_world(tmp_path, embedder=picky) as world:
        await until(lambda: no_rows(world, OLD + " AND s.name = 'done'"))
        assert len(await world.sql(OLD)) == 40


async def test_reembedding_makes_every_vector_anew(tmp_path: Path) -> None:
    embedder = WordEmbedder()
    async with open_world(tmp_path, embedder=embedder) as world:
        await fill(world, 50)
        await embedded(world)
        assert await world.embeddings.reembed() == 50
        await embedded(world)
        assert len(embedder.texts) == 100
        assert await counted(world) == 50
        assert len(await nearest(world, words(4))) == 10


async def test_reembedding_that_is_cut_short_leaves_index_and_rows_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled by its caller or out of disk, between two of its transactions."""
    monkeypatch.setattr("memory.embedding.service.RETIRE_CHUNKS", 20)
    ended: list[int] = []
    execute = vecrows.execute

    def execute_once(connection: Connection, sql: str, bound: Sequence[Cell]) -> None:
        if ended:
            raise StoreError("full", "the disk is full")
        ended.append(1)
        execute(connection, sql, bound)

    embedder = WordEmbedder()
    async with open_world(tmp_path, embedder=embedder) as world:
        await fill(world, 50)
        await embedded(world)
        monkeypatch.setattr(vecrows, "execute", execute_once)
        with pytest.raises(StoreError):
            await world.embeddings.reembed()
        await until(lambda: holds(world, 50))
        await embedded(world)
        assert len(embedder.texts) == 70, "the twenty that were deleted, and they alone"
        index = world.embeddings.index
        assert index is not None
        assert len(index) == 50


# ---- questions


async def test_a_question_is_embedded_once(tmp_path: Path) -> None:
    embedder = WordEmbedder()
    async with open_world(tmp_path, embedder=embedder) as world:
        await embedded(world)
        first = world.embeddings.query_vector("which port")
        again = world.embeddings.query_vector("  which port \n")
        assert first is again
        assert embedder.queries == ["which port"]
        assert world.embeddings.query_vector("  ") is None
        for n in range(QUERIES_MAX):
            world.embeddings.query_vector(f"question {n}")
        world.embeddings.query_vector("which port")
        assert embedder.queries.count("which port") == 2


async def test_a_question_that_no_vector_comes_of_is_answered_by_words(tmp_path: Path) -> None:
    async with open_world(tmp_path, embedder=PickyEmbedder("poison", "nan")) as world:
        await embedded(world)
        assert world.embeddings.query_vector("a poison question") is None
        assert (await world.embeddings.status()).problem
        assert world.embeddings.query_vector("a good question") is not None
        assert not (await world.embeddings.status()).problem


async def test_no_batch_begins_while_a_recall_runs(tmp_path: Path, autojump_clock: object) -> None:
    del autojump_clock
    embedder = WordEmbedder()
    async with open_world(tmp_path, embedder=embedder, inline=True) as world:
        await embedded(world)
        with world.embeddings.recalling(), world.embeddings.recalling():
            await fill(world, 5)
            await trio.sleep(RECALL_WAIT_S * 0.9)
            assert embedder.texts == []
        # Nor in the moment between two recalls.
        await trio.sleep(QUIET_S / 2)
        with world.embeddings.recalling():
            pass
        await trio.sleep(QUIET_S * 0.9)
        assert embedder.texts == []
        await trio.sleep(QUIET_S * 2)
        assert len(embedder.texts) == 5
        # Recalls without end hold it up, but not for ever.
        with world.embeddings.recalling():
            await world.say("one more")
            await trio.sleep(RECALL_WAIT_S * 1.1)
            assert embedder.texts[-1] == "one more"


async def test_cancelled_at_any_point_it_leaves_whole_vectors(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await fill(world, 256)
        for steps in (1, 2, 3, 5, 8, 13, 40):
            running = Embeddings(
                world.db, world.replica, world.clock, InlineOffload(), WordEmbedder
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(running.run)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            await world.db.write(lambda _: None)
            assert await world.sql("SELECT count(*) FROM vec WHERE length(code) <> 64") == [(0,)]
        last = Embeddings(world.db, world.replica, world.clock, InlineOffload(), WordEmbedder)
        async with trio.open_nursery() as nursery:
            await nursery.start(last.run)
            await until(lambda: left_over(last, 0))
            nursery.cancel_scope.cancel()
        assert await counted(world) == 256
