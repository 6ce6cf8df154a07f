"""Builds a network of nodes with a DHT under a virtual clock; its one line says the CPU seconds.

Usage: covey_dht.py mem|wire COUNT   (without crypto, or over the real wire on a simulated network)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers.det import run_seeded
from tests.helpers.dht_net import LAB, DhtNet, until


async def build(kind, count):
    """Nodes that joined through the first one, until each knows a bucket's worth of others."""
    async with trio.open_nursery() as nursery:
        net = DhtNet(nursery, kind)
        before = time.process_time()
        nodes = [await net.start(1)]
        seeds = (net.seed_of(nodes[0]),)
        nodes += [await net.start(number, seeds=seeds) for number in range(2, count + 1)]
        few = min(count - 1, LAB.k)
        await until(lambda: all(len(node.dht.table) >= few for node in nodes))
        print(time.process_time() - before, flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    run_seeded(build, sys.argv[1], int(sys.argv[2]), seed=1)
