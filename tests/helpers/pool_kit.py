"""A pool and trainers for tests: the pool here or in a process of its own, trainers in theirs.

python -m tests.helpers.pool_kit serve SOCKET ITEMS     commands on stdin: fold R, publish R, ...
python -m tests.helpers.pool_kit train SOCKET ITEMS     commands on stdin: lend, write V, ...
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

import numpy as np
import trio

from federated.rounds.pool.book import PoolLimits
from federated.rounds.pool.client import PoolClient, PoolError, PoolRefused, Result
from federated.rounds.pool.collecting import Schema
from federated.rounds.pool.server import Pool
from p2p.env import SystemEnv

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from federated.rounds.pool.lane import Lane
    from p2p.env import Offload

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[2]


class Threads:
    """Blocking work in trio's threads."""

    async def run(self, fn: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(fn)


def set_mode(path: Path, mode: int) -> None:
    """Change who may enter; a blocking call that takes no time."""
    path.chmod(mode)


@asynccontextmanager
async def running(
    folder: Path,
    items: int = 1000,
    *,
    limits: PoolLimits | None = None,
    offload: Offload | None = None,
    available_bytes: int | None = None,
    workers_max: int = 1,
) -> AsyncGenerator[tuple[Pool, Lane]]:
    """A pool that serves, with one lane."""
    set_mode(folder, 0o700)
    available = (lambda: 1 << 40) if available_bytes is None else (lambda: available_bytes)
    pool = Pool(
        SystemEnv(),
        offload or Threads(),
        folder / "pool.sock",
        limits,
        available_bytes=available,
        workers_max=workers_max,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        try:
            yield pool, pool.open(Schema(items))
        finally:
            nursery.cancel_scope.cancel()
    assert pool.bugs == 0


async def until(pool: Pool, kind: str) -> None:
    """Wait for an event of the pool."""
    async for event in pool.events:
        if event.kind == kind:
            return


class Subject:
    """A process of this module: told line by line, answering each with a line of JSON.

    Args:
        words: command line.
    """

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.pool_kit", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
            text=True,
        )
        assert self.answer() == "ready"

    def answer(self) -> object:
        """The next answer; None when it is dead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def tell(self, *words: object) -> None:
        """Give an order without waiting."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            print(*words, file=self.process.stdin, flush=True)

    def ask(self, *words: object) -> object:
        """Give an order and wait for the answer."""
        self.tell(*words)
        return self.answer()

    def kill(self) -> None:
        """Kill -9, and reap."""
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """End it: at the end of its input it leaves by itself."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.close()


def trainer(path: Path, items: int) -> Subject:
    """A trainer's process, connected."""
    return Subject("train", path, items)


def server(path: Path, items: int) -> Subject:
    """A pool's process, serving lane 1."""
    return Subject("serve", path, items)


def memory_files(pid: int) -> int:
    """Descriptors of segments that a process has open."""
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += "memfd:covey-pool" in str(fd.readlink())
    return found


# --- the processes --------------------------------------------------------------------------------


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


class _Trainer:
    """What a trainer's process does when told."""

    def __init__(self, path: str, items: int) -> None:
        self._path = path
        self._items = items
        self._pool = PoolClient(path, 1, items)
        self._update = np.empty(0, np.float32)
        self._results: list[Result] = []

    def do(self, word: str, rest: list[float]) -> object:
        """Follow one order; the answer."""
        pool = self._pool
        match word:
            case "lend":
                self._update = pool.lend()
            case "write":
                self._update[:] = rest[0]
            case "fill":
                pool.filled(self._update, rest[0], int(rest[1]))
            case "submit":
                pool.submit(np.full(self._items, rest[0], np.float32), rest[1], int(rest[2]))
            case "wait":
                self._results.append(pool.wait(int(rest[0])))
                return [self._results[-1].round, float(self._results[-1].state[-1])]
            case "leave":
                self._update = np.empty(0, np.float32)
                self._results.clear()
                pool.close()
            case "return":
                self._pool = PoolClient(self._path, 1, self._items)
            case _:
                raise ValueError(word)
        return word


def _train(path: str, items: int) -> None:
    trainer = _Trainer(path, items)
    _say("ready")
    for line in sys.stdin:
        word, *rest = line.split()
        try:
            _say(trainer.do(word, [float(each) for each in rest]))
        except PoolRefused as refused:
            _say(refused.reason.name)
        except PoolError as error:
            _say(str(error))


async def _serve(path: str, items: int) -> None:
    pool = Pool(SystemEnv(), Threads(), Path(path), PoolLimits(free_bytes_min=0), workers_max=2)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        lane = pool.open(Schema(items))
        _say("ready")
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            word, number = line.split()
            match word:
                case "fold":
                    folded = await lane.folded(int(number))
                    _say(
                        [
                            folded.count,
                            folded.weight,
                            float(folded.total[-1]) * folded.unit,
                            folded.finite,
                        ]
                    )
                case "publish":
                    await lane.publish(int(number))
                    _say("published")
                case "event":
                    async for event in pool.events:
                        if event.kind == number:
                            break
                    _say(number)
                case _:
                    raise ValueError(line)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    if sys.argv[1] == "train":
        _train(sys.argv[2], int(sys.argv[3]))
    else:
        trio.run(_serve, sys.argv[2], int(sys.argv[3]))
