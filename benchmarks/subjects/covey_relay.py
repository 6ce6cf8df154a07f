"""Two Covey nodes that nobody can dial, and a third of their group that relays between them.

Usage: covey_relay.py relay
       covey_relay.py hidden PEER ADDRESS            (of the relay)
       covey_relay.py client PEER ADDRESS            (of the hidden node: an address over the relay)

The relay's quotas are lifted: measured is what it can carry, not what it gives away.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from timing import serve_commands

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.identity import Identity, parse_peer_untrusted, peer_text
from p2p.nat.relay_config import RelayConfig, member_quota
from p2p.net.tcp import TcpTransport
from p2p.node import Node

SINK = "/bench/sink/1"
CHUNK = 65536
LIFTED = replace(
    member_quota(),
    circuit_bytes_max=None,
    circuit_bytes_per_s=None,
    bytes_per_s=None,
    bytes_per_day=None,
)


def make_node(*, public):
    """A node that everybody reaches, or one that listens nowhere."""
    env = SystemEnv()
    config = replace(
        P2pConfig.test(),
        reachability="public" if public else "private",
        relay=RelayConfig(member=LIFTED),
    )
    if not public:
        config = replace(config, listen=())
    node = Node(Identity.generate(env.rng), config, env, [TcpTransport(config)])
    node.set_members(lambda _peer: True)
    return node


async def sink(stream):
    """Swallow an upload until its end and confirm it."""
    while await stream.receive_some(262144):
        pass
    await stream.send_all(b"ok")


async def relay():
    """Serve until the end; say who and where."""
    node = make_node(public=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        print(peer_text(node.id), node.fabric.addrs()[0], flush=True)


async def hidden(relay_peer, relay_address):
    """Take a place at the relay; say who and where."""
    node = make_node(public=False)
    node.fabric.handle(SINK, sink, per_peer_max=4)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        node.pin(parse_peer_untrusted(relay_peer), [relay_address])
        while not node.fabric.addrs():  # noqa: ASYNC110 - no event says it
            await trio.sleep(0.05)
        print(peer_text(node.id), node.fabric.addrs()[0], flush=True)


async def client(peer_id, address):
    """Upload over the relay."""
    node, peer = make_node(public=False), parse_peer_untrusted(peer_id)

    async def bulk(mib):
        stream = await node.fabric.open(peer, SINK)
        assert stream.path == "relay"
        chunk = bytes(CHUNK)
        for _ in range((mib << 20) // CHUNK):
            await stream.send_all(chunk)
        await stream.send_eof()
        if await stream.receive_some(2) != b"ok":
            raise EOFError
        await stream.aclose()
        return {}

    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await node.fabric.connect(peer, [address])
        await serve_commands({"bulk": bulk})
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run({"relay": relay, "hidden": hidden, "client": client}[sys.argv[1]], *sys.argv[2:])
