"""The background work that gives chunks their vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import trio

from memory.trust import MAIN
from tests.helpers.embedders import WordEmbedder
from tests.helpers.memories import open_world

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.memories import World


async def embedded(world: World) -> None:
    """Until no chunk waits for a vector."""
    with trio.fail_after(10):
        status = await world.embeddings.status()
        while status.state != "ready" or status.backlog:
            await trio.sleep(0.01)
            status = await world.embeddings.status()


async def nearest(world: World, text: str, tier: int = MAIN) -> list[int]:
    """Memory rows by closeness to a question."""
    index, vector = world.embeddings.index, await world.embeddings.query_vector(text)
    assert index is not None
    assert vector is not None
    found = await world.db.read(
        lambda c: index.search(c, vector, scopes=None, tier=tier, chunks=10)
    )
    return [dense.memory for dense in found]


async def row_of(world: World, memory_id: str) -> int:
    rows = await world.sql("SELECT n FROM record WHERE id = ?", bytes.fromhex(memory_id))
    return cast("int", rows[0][0])


async def test_a_new_note_is_found_by_its_vector(tmp_path: Path) -> None:
    async with open_world(tmp_path, embedder=WordEmbedder()) as world:
        await world.say("the cat sleeps on the warm stove")
        wanted = await world.say("deploys go through staging before production")
        await embedded(world)
        assert (await nearest(world, "staging before production"))[0] == await row_of(world, wanted)
