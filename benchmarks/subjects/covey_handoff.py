"""An update handed over through the host pool and folded.

Usage: covey_handoff.py serve ITEMS SOCKET | covey_handoff.py client ITEMS SOCKET place|copy
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np


def cpu_s() -> float:
    """User and system seconds of this process, all of its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def client(items: int, path: str, way: str) -> None:
    """Hand over as often as asked; answer with this process's CPU seconds for it."""
    from federated.rounds.pool.client import PoolClient

    update = np.arange(items, dtype=np.float32) % 1000
    with PoolClient(path, 1, items) as pool:
        pool.submit(update, 1.5, 1)  # the segment is made and mapped
        print("ready", flush=True)
        for line in sys.stdin:
            used = 0.0
            for _ in range(int(line)):
                if way == "copy":
                    before = cpu_s()
                    pool.submit(update, 1.5, 1)
                else:
                    own = pool.lend()
                    own[:] = update  # what training itself would have written
                    before = cpu_s()
                    pool.filled(own, 1.5, 1)
                used += cpu_s() - before
            print(json.dumps({"cpu_s": used}), flush=True)


async def serve(items: int, path: str) -> None:
    """Serve until the pipe ends; tell the CPU seconds so far when asked."""
    import trio

    from federated.rounds.pool.book import PoolLimits
    from federated.rounds.pool.collecting import Schema
    from federated.rounds.pool.server import Pool
    from p2p.env import SystemEnv

    class Threads:
        async def run(self, fn):  # type: ignore[no-untyped-def]
            return await trio.to_thread.run_sync(fn)

    pool = Pool(SystemEnv(), Threads(), Path(path), PoolLimits())
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        pool.open(Schema(items))
        print("ready", flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(json.dumps({"cpu_s": cpu_s()}), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        import trio

        trio.run(serve, int(sys.argv[2]), sys.argv[3])
    else:
        client(int(sys.argv[2]), sys.argv[3], sys.argv[4])
