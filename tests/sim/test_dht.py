"""Nodes find each other, and what they stored, through the DHT alone."""

from __future__ import annotations

import pytest
import trio

from p2p.dht.keys import provider_key, value_key
from tests.helpers.det import run_seeded
from tests.helpers.dht_net import DhtNet, DhtNode, until

VIRTUAL = ("mem", "wire")


async def three_nodes(net: DhtNet) -> list[DhtNode]:
    first = await net.start(1)
    others = [await net.start(n, seeds=(net.seed_of(first),)) for n in (2, 3)]
    nodes = [first, *others]
    await until(lambda: all(len(node.dht.table) == 2 for node in nodes))
    return nodes


async def check_find_put_get(kind: str) -> None:
    async with trio.open_nursery() as nursery:
        net = DhtNet(nursery, kind)
        first, second, third = await three_nodes(net)
        assert await second.dht.put(b"name", b"body") == 2
        assert await third.dht.get(value_key(second.id, b"name")) == b"body"
        assert await third.dht.get(value_key(second.id, b"other")) is None
        assert await second.dht.find_peer(third.id) == third.node.fabric.addrs()
        key = provider_key(b"what")
        assert await second.dht.provide(key) == 2
        found = await third.dht.providers(key, 10)
        assert found == [(second.id, second.node.fabric.addrs())]
        assert first.dht.report().stored >= 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", VIRTUAL)
def test_three_nodes_find_put_get_and_provide(kind: str) -> None:
    run_seeded(check_find_put_get, kind, seed=1)


def test_three_nodes_find_put_get_and_provide_over_tcp() -> None:
    trio.run(check_find_put_get, "tcp")
