"""Cancelling a write or a read at every step it takes: whole or not at all, and the rest lives."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio

from tests.helpers.cancel import Cut, cancel_at_every_step
from tests.helpers.memories import open_world


def test_a_cut_remember_is_whole_or_absent_and_bystanders_succeed() -> None:
    async def scenario(cut: Cut) -> None:
        with tempfile.TemporaryDirectory() as name:
            async with open_world(Path(name), inline=True) as world:
                bystanders: list[str] = []

                async def bystander(n: int) -> None:
                    bystanders.append(await world.say(f"bystander {n}"))

                async with trio.open_nursery() as nursery:
                    for n in range(5):
                        nursery.start_soon(bystander, n)
                    whole = await cut.attempt(lambda: world.say("the cut one", thread="t"))
                assert len(bystanders) == 5
                found = (await world.find("cut one")).hits
                assert len(found) == 1 or (not whole and found == [])
                records = await world.sql("SELECT count(*) FROM record")
                assert records == [(5 + len(found),)]
                await world.check_index()
                await world.say("life goes on")

    assert cancel_at_every_step(scenario, seed=1) > 3


def test_a_cut_recall_leaves_the_readers_free() -> None:
    async def scenario(cut: Cut) -> None:
        with tempfile.TemporaryDirectory() as name:
            async with open_world(Path(name), inline=True) as world:
                await world.say("something to find")
                await cut.attempt(lambda: world.find("something"))
                for _ in range(5):
                    assert len((await world.find("something")).hits) == 1

    assert cancel_at_every_step(scenario, seed=1) > 1
