"""A mesh node as it ships, that keeps its peers connected and otherwise has nothing to do.

Usage: covey_idle.py NETWORK [PEER ADDRESS]

It listens on loopback and asks no router for a port: a measurement leaves the user's router alone.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.identity import Identity, parse_peer_untrusted, peer_text
from p2p.nat.portmap_config import MapConfig
from p2p.net.tcp import TcpTransport
from p2p.node import Node


async def main(network, *hub):
    """Run; say who and where. With a hub, be connected to it first."""
    env = SystemEnv()
    config = replace(
        P2pConfig.wan(),
        network=network,
        listen=("/ip4/127.0.0.1/tcp/0",),
        draw_port=False,
        mapping=MapConfig(enabled=False),
    )
    node = Node(Identity.generate(env.rng), config, env, [TcpTransport(config)])
    node.set_members(lambda _peer: True)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        for peer, address in zip(hub[::2], hub[1::2], strict=True):
            node.pin(parse_peer_untrusted(peer), [address])
            await node.fabric.connect(parse_peer_untrusted(peer), [address])
        (port,) = {a.rsplit("/", 1)[1] for a in node.report().listen}
        print(peer_text(node.id), f"/ip4/127.0.0.1/tcp/{port}", flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            print(f'{{"peers": {len(node.fabric.peers())}}}', flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
