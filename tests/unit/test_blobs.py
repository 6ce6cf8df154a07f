"""A blob travels between two nodes over real TCP, Noise and Yamux."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.identity import Identity
from p2p.net.tcp import TcpTransport
from p2p.node import Node
from tests.helpers.blob_kit import GROUP, content, keep_blobs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from p2p.blobs.fetch import Progress


@asynccontextmanager
async def running_node(folder: Path) -> AsyncIterator[Node]:
    env, config = SystemEnv(), P2pConfig.test()
    node = Node(Identity.generate(env.rng), config, env, [TcpTransport(config)])
    node.set_members(lambda _peer: True)
    keep_blobs(node, folder, env, threads=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        nursery.cancel_scope.cancel()


async def test_what_one_node_puts_another_fetches_verified(tmp_path: Path) -> None:
    data = content(3_000_000)
    async with running_node(tmp_path / "a") as first, running_node(tmp_path / "b") as second:
        assert first.blobs is not None
        assert second.blobs is not None
        blob = await first.blobs.put([data[:1_000_001], data[1_000_001:]], GROUP)
        await second.fabric.connect(first.id, first.fabric.addrs())
        told: list[Progress] = []
        path = await second.blobs.fetch(blob, GROUP, on_progress=told.append)
        assert path.read_bytes() == data
        assert told[-1].bytes_done == told[-1].bytes_total == len(data)
        assert max(one.sources for one in told) == 1
        # What was fetched is served on.
        again = await first.blobs.fetch(blob, GROUP)
        assert again.read_bytes() == data
        assert second.blobs.report().bytes_in == len(data)
        assert first.blobs.report().bytes_out == len(data)
