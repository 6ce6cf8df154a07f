"""Trainers and a pool as processes of their own, killed at every stage."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio

from federated.rounds.pool.book import PoolLimits, State
from tests.helpers.leaks import open_descriptors
from tests.helpers.need import need
from tests.helpers.pool_kit import (
    ROOT,
    Subject,
    Threads,
    memory_files,
    running,
    server,
    trainer,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.rounds.pool.server import Pool

ITEMS = 600_000
T = TypeVar("T")


class Gate(Threads):
    """Folding that stands still until it is let go."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.reached = trio.Event()
        self.shut = False

    async def run(self, fn: Callable[[], T]) -> T:
        if self.shut:
            self.reached.set()
            await self.open.wait()
        return await super().run(fn)


async def ask(subject: Subject, *words: object) -> object:
    return await trio.to_thread.run_sync(subject.ask, *words)


def states(pool: Pool) -> list[State]:
    return sorted((e.state for e in pool.book if not e.shown), key=lambda state: state.value)


async def test_trainers_at_once_are_folded_into_one_sum(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS, workers_max=2) as (pool, lane):
        trainers = [trainer(pool._path, ITEMS) for _ in range(4)]

        async def train(subject: Subject, value: int) -> None:
            for round_ in (1, 2):
                assert await ask(subject, "submit", value, 2, round_) == "submit"
            for order in ("lend", f"write {10 * value}", "fill 1 1"):
                assert await ask(subject, order) == order.split()[0]

        async with trio.open_nursery() as nursery:
            for value, subject in enumerate(trainers, 1):
                nursery.start_soon(train, subject, value)
        folded = await lane.folded(1)
        assert (folded.count, folded.weight) == (8, 12.0)
        assert set((folded.total * folded.unit).tolist()) == {2.0 * 10 + 100}
        assert set(folded.mean().tolist()) == {10.0}
        await lane.publish(1)
        for subject in trainers:
            assert await ask(subject, "wait", 1) == [1, 10.0]
        folded = await lane.folded(2)
        assert (folded.count, set(folded.mean().tolist())) == (4, {2.5})
        for subject in trainers:
            subject.close()


async def test_a_trainer_killed_while_it_writes_leaves_nothing_of_its_update(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        with trainer(pool._path, ITEMS) as victim, trainer(pool._path, ITEMS) as other:
            assert await ask(victim, "lend") == "lend"
            assert await ask(victim, "write", 7) == "write"
            assert states(pool) == [State.LENT]
            victim.kill()
            await until(pool, "ended")
            assert [(e.state, e.holder) for e in pool.book] == [(State.FREE, None)]
            assert await ask(other, "submit", 1, 1, 1) == "submit"
            folded = await lane.folded(1)
            assert (folded.count, folded.total[-1]) == (1, 1.0)
            assert len(pool.book) == 2, "the dead one's segment is used again"


async def test_a_trainer_that_left_but_lives_keeps_its_segment_out_of_use(tmp_path: Path) -> None:
    limits = PoolLimits(bytes_max=3 * (4 << 20), free_bytes_min=0)
    async with running(tmp_path, ITEMS, limits=limits) as (pool, lane):
        with trainer(pool._path, ITEMS) as victim, trainer(pool._path, ITEMS) as other:
            assert await ask(victim, "lend") == "lend"
            assert await ask(victim, "leave") == "leave"
            await until(pool, "retired")
            assert states(pool) == [State.RETIRED]
            assert await ask(victim, "return") == "return"
            for subject, value in ((other, 1), (victim, 2)):
                assert await ask(subject, "submit", value, 1, 1) == "submit"
            assert State.RETIRED in states(pool), "coming back does not unmap it"
            victim.kill()
            await until(pool, "ended")
            assert State.RETIRED not in states(pool)
            assert (await lane.folded(1)).count == 2


async def test_updates_that_are_complete_are_folded_though_their_trainers_are_killed(
    tmp_path: Path,
) -> None:
    gate = Gate()
    async with running(tmp_path, ITEMS, offload=gate) as (pool, lane):
        with trainer(pool._path, ITEMS) as first, trainer(pool._path, ITEMS) as second:
            for subject, value in ((first, 1), (second, 10)):
                assert await ask(subject, "lend") == "lend"
                assert await ask(subject, "write", value) == "write"
            gate.shut = True
            first.tell("fill 2 1")
            await gate.reached.wait()
            second.tell("fill 3 1")
            while State.LENT in states(pool):  # noqa: ASYNC110
                await trio.sleep(0.001)
            assert states(pool) == [State.FILLED, State.FOLDING]
            first.kill()
            second.kill()
            await until(pool, "ended")
            await until(pool, "ended")
            assert states(pool) == [State.FILLED, State.FOLDING]
            gate.open.set()
            folded = await lane.folded(1)
            assert (folded.count, folded.weight) == (2, 5.0)
            assert folded.total[-1] * folded.unit == 32.0
            assert states(pool) == [State.FREE, State.FREE]


async def test_a_reader_that_is_killed_gives_the_result_back(tmp_path: Path) -> None:
    async with running(tmp_path, ITEMS) as (pool, lane):
        with trainer(pool._path, ITEMS) as reader:
            assert await ask(reader, "submit", 4, 1, 1) == "submit"
            await lane.folded(1)
            await lane.publish(1)
            assert await ask(reader, "wait", 1) == [1, 4.0]
            assert [len(e.readers) for e in pool.book if e.shown] == [1]
            reader.kill()
            await until(pool, "ended")
            assert [len(e.readers) for e in pool.book if e.shown] == [0]


def test_a_pool_that_is_killed_is_noticed_and_the_next_one_serves(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "pool.sock"
    with server(path, ITEMS) as dead, trainer(path, ITEMS) as subject:
        assert subject.ask("lend") == "lend"
        dead.kill()
        assert subject.ask("write", 3) == "write", "its mapping is good as long as it has it"
        assert "the pool has ended" in str(subject.ask("fill", 1, 1))
        assert "start the daemon" in str(subject.ask("return"))
        with server(path, ITEMS) as pool:
            assert subject.ask("leave") == "leave"
            assert subject.ask("return") == "return"
            assert subject.ask("submit", 3, 1, 1) == "submit"
            assert pool.ask("fold", 1) == [1, 1.0, 3.0, True]
            assert pool.ask("publish", 1) == "published"
            assert subject.ask("wait", 1) == [1, 3.0]
            subject.close()
            pool.close()
    assert not list(tmp_path.iterdir())


ROUNDS = 100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_leave_no_segment_file_or_descriptor_behind(tmp_path: Path) -> None:
    """Each round a trainer and then the pool die by kill -9, somewhere; one trainer lives on."""
    need("linux")
    rng = random.Random(20)
    tmp_path.chmod(0o700)
    path = tmp_path / "pool.sock"
    gc.collect()
    shared, own = sorted(Path("/dev/shm").iterdir()), len(open_descriptors())
    pool = server(path, ITEMS)
    baseline = len(list(Path(f"/proc/{pool.process.pid}/fd").iterdir()))
    with trainer(path, ITEMS) as survivor:
        assert survivor.ask("leave") == "leave"
        idle = len(list(Path(f"/proc/{survivor.process.pid}/fd").iterdir()))
        stages = [0, 0, 0, 0]
        for _ in range(ROUNDS):
            assert survivor.ask("return") == "return"
            stage = rng.randrange(4)
            stages[stage] += 1
            with trainer(path, ITEMS) as victim:
                for order in ("lend", "write 5", "fill 1 1")[: stage + 1]:
                    if order.startswith("fill"):
                        victim.tell(order)  # killed while it may be filled, folding or folded
                    else:
                        assert victim.ask(order) == order.split()[0]
                if stage == 3:
                    assert victim.answer() == "fill"
                victim.kill()
            assert pool.ask("event ended") == "ended"
            assert survivor.ask("submit", 2, 1, 1) == "submit"
            count, weight, last, finite = pool.ask("fold 1")  # type: ignore[misc]
            assert (weight, finite) == (count, True)
            assert (count, last) in ((1, 2.0), (2, 7.0)), "an update is whole or not there"
            assert count == 1 or stage >= 2
            assert count == 2 or stage < 3
            assert memory_files(pool.process.pid) <= 3 * 2
            if rng.random() < 0.5:
                assert pool.ask("publish 1") == "published"
            pool.kill()
            assert "the pool has ended" in str(survivor.ask("wait", 2))
            assert survivor.ask("leave") == "leave"
            assert memory_files(survivor.process.pid) == 0
            assert len(list(Path(f"/proc/{survivor.process.pid}/fd").iterdir())) == idle
            pool = server(path, ITEMS)
            assert len(list(Path(f"/proc/{pool.process.pid}/fd").iterdir())) == baseline
            assert [each.name for each in tmp_path.iterdir()] == ["pool.sock"]
        assert all(stages), stages
        survivor.close()
    pool.close()
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert sorted(Path("/dev/shm").iterdir()) == shared
    assert len(open_descriptors()) == own


def test_the_client_is_cheap_to_import() -> None:
    script = (
        "import sys, federated.rounds.pool.client;"
        "print(sorted(sys.modules.keys() & {'trio', 'msgspec', 'asyncio', 'multiprocessing',"
        " 'federated.rounds.numeric.kernels', 'cryptography'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, timeout=30, cwd=ROOT
    )
    assert done.stdout.strip() == b"[]"
