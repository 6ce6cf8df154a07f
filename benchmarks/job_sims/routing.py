"""Requests to models with caches: how many are answered in time, by who sends them where.

    python -m benchmarks.job_sims.routing --data FOLDER

Mooncake's conversation trace (kvcache-ai/Mooncake, FAST25, Apache-2.0), a quarter faster than it
was: each request is a job of one row whose prefix blocks are the trace's. Eight nodes serve one
request after another; a block that a node has not read among its last 4,000 takes 80 ms, and each
request 20 ms. In time: 5 s after it came. The real coordinator chooses the node; there is one, or
there are eight that hear of the nodes' queues and caches each 10 s and know what they sent since.
Least loaded is the same without caches in the choice. The smallest hit of a whole prefix counts:
blocks are cached only from the first on. Source of the settings: docs/specs/jobs.md s.5.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import os
import random
import struct
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.job_sims.fleet import Fleet
from benchmarks.memory.data import DataMissing
from federated.jobs.items import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.job_sims.fleet import PlayedTask
    from federated.jobs.state import Job, TaskCell

TRACE: Final = "mooncake_conversation.jsonl.gz"
FASTER: Final = 1.25
NODES: Final = 8
CACHE_BLOCKS: Final = 4000
BLOCK_S: Final = 0.08
OTHER_S: Final = 0.02
SLO_S: Final = 5.0
CREDIT: Final = 4096
"""Nodes queue whatever they get, as the yardstick's do."""


class Request(msgspec.Struct):
    """A line of the trace."""

    timestamp: int
    hash_ids: list[int]


@dataclass(frozen=True)
class Setting:
    """Who sends.

    Attributes:
        coordinators: how many, each request at one of them by chance.
        every_s: how often nodes tell their queue and cache; None: never.
        least_loaded: choose by queues alone: the yardstick.
    """

    coordinators: int = 1
    every_s: float | None = None
    least_loaded: bool = False


TABLE: Final = {
    "fresh views": Setting(),
    "least loaded, fresh views": Setting(least_loaded=True),
    "views 10 s old": Setting(coordinators=8, every_s=10.0),
    "least loaded, views 10 s old": Setting(coordinators=8, every_s=10.0, least_loaded=True),
}


def trace(folder: Path | None = None) -> list[Request]:
    """The requests, in order.

    Raises:
        DataMissing: the trace is not in `folder`, nor where `COVEY_DATA` says.
    """
    found = folder or Path(os.environ.get("COVEY_DATA", "."))
    path = found / TRACE
    if not path.is_file():
        raise DataMissing(f"no {TRACE} in the data folder")
    with gzip.open(path) as lines:
        return [msgspec.json.decode(line, type=Request) for line in lines]


class Node:
    """Serves one request after another and remembers the last blocks it read.

    What a request takes is known when it comes, since all before it will have been read by then.
    """

    def __init__(self) -> None:
        self.free_at = 0.0
        self.cache: OrderedDict[int, None] = OrderedDict()
        self.read: list[int] = []

    def serve(self, blocks: Sequence[int], now: float) -> float:
        """Take a request; the seconds it will take once it is begun."""
        hit = next((n for n, block in enumerate(blocks) if block not in self.cache), len(blocks))
        for block in blocks:
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > CACHE_BLOCKS:
            self.cache.popitem(last=False)
        self.read += blocks
        took_s = (max(1, len(blocks)) - hit) * BLOCK_S + OTHER_S
        self.free_at = max(self.free_at, now) + took_s
        return took_s


def in_time(requests: Sequence[Request], setting: Setting, *, seed: int = 1) -> float:
    """Share of the requests that are answered within the limit."""
    if setting.least_loaded:
        return _LeastLoaded(requests, setting, seed).run()
    return _Routing(requests, setting, seed).run()


def _block(number: int) -> bytes:
    return struct.pack(">Q", number)


class _Routing:
    """The trace through real coordinators."""

    def __init__(self, requests: Sequence[Request], setting: Setting, seed: int) -> None:
        self._requests = requests
        self._setting = setting
        self._rng = random.Random(seed)
        self._now = 0.0
        self._late = 0
        self._nodes = {f"node {n}": Node() for n in range(NODES)}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = count()
        self._answered = 0
        self._told: dict[tuple[int, str], int] = {}
        self._fleets = [self._fleet(seed + n) for n in range(setting.coordinators)]

    def _fleet(self, seed: int) -> Fleet:
        fleet = Fleet(seed=seed, prefix_of=self._prefix_of)
        fleet.on_offer = lambda task: self._offered(fleet, task)
        for name in self._nodes:
            fleet.join(name, slots=1, credit=CREDIT)
        return fleet

    def _prefix_of(self, job: Job, task: TaskCell) -> Sequence[bytes]:
        row = msgspec.json.decode(job.rows[task.ks[0]].source)
        return [_block(number) for number in self._requests[row["request"]].hash_ids]

    def run(self) -> float:
        """Share of the requests in time."""
        for number, request in enumerate(self._requests):
            came_s = request.timestamp / 1000 / FASTER
            self._at(came_s, partial(self._arrive, number))
        if self._setting.every_s is not None:
            for fleet in self._fleets:
                first_s = self._rng.random() * self._setting.every_s
                self._at(first_s, partial(self._tell, fleet))
        while self._answered < len(self._requests):
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        return 1 - self._late / len(self._requests)

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._counter), happen))

    def _arrive(self, number: int) -> None:
        fleet = self._rng.choice(self._fleets)
        fleet.now = self._now
        fleet.submit(rows=[{"request": number}], hedge=False)

    def _offered(self, fleet: Fleet, task: PlayedTask) -> None:
        ((_, row),) = msgspec.json.decode(task.offered.rows)
        request = self._requests[row["request"]]
        node = self._nodes[task.peer]
        took_s = node.serve(request.hash_ids, self._now)
        self._at(node.free_at, lambda: self._finish(task, fleet, request, took_s))

    def _finish(self, task: PlayedTask, fleet: Fleet, request: Request, took_s: float) -> None:
        self._answered += 1
        self._late += self._now - request.timestamp / 1000 / FASTER > SLO_S
        fleet.now = self._now
        fleet.answer(task, wall_ms=round(took_s * 1000))
        fleet.core.forget(task.job)

    def _tell(self, fleet: Fleet) -> None:
        """Nodes tell one coordinator their queue, and what they read since they told it last."""
        assert self._setting.every_s is not None
        fleet.now = self._now
        for name, node in self._nodes.items():
            queue_s = max(0.0, node.free_at - self._now)
            known = self._told.get((id(fleet), name), 0)
            self._told[id(fleet), name] = len(node.read)
            warm = [_block(number).hex() for number in node.read[known:][-CACHE_BLOCKS:]]
            load = Load(1, int(queue_s > 0), round(queue_s * 1000), warm, True, 255)
            fleet.say(name, load)
        self._at(self._now + self._setting.every_s, lambda: self._tell(fleet))


class _LeastLoaded:
    """The yardstick: the node whose queue is the shortest, as far as each coordinator knows."""

    def __init__(self, requests: Sequence[Request], setting: Setting, seed: int) -> None:
        self._requests = requests
        self._setting = setting
        self._rng = random.Random(seed)

    def run(self) -> float:
        """Share of the requests in time."""
        nodes = [Node() for _ in range(NODES)]
        views = [[0.0] * NODES for _ in range(self._setting.coordinators)]
        told_s = [-1e9] * len(views)
        late = 0
        for request in self._requests:
            now = request.timestamp / 1000 / FASTER
            at = self._rng.randrange(len(views))
            if now - told_s[at] > (self._setting.every_s or 0.0):
                told_s[at] = now
                views[at] = [node.free_at for node in nodes]
            view = views[at]
            chosen = min(range(NODES), key=lambda n: (max(0.0, view[n] - now), self._rng.random()))
            node = nodes[chosen]
            took_s = node.serve(request.hash_ids, now)
            view[chosen] = max(view[chosen], now) + took_s
            late += node.free_at - now > SLO_S
        return 1 - late / len(self._requests)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="requests to models with caches")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    requests = trace(arguments.data)
    for name, setting in TABLE.items():
        found = [in_time(requests, setting, seed=seed) for seed in range(1, arguments.seeds + 1)]
        shares = " ".join(f"{share:.3f}" for share in sorted(found))
        print(f"{name:30} {shares} in time", flush=True)


if __name__ == "__main__":
    main()
