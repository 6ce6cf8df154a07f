"""A node in a namespace that tells what happens around it: one JSON line an event.

    python tests/netns/neighbour.py SEED PORT

Lines on standard input: `pin PEER`, and the end, at which it stops as a daemon does.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import trio

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.errors import Unreachable
from p2p.identity import Identity, parse_peer_untrusted, peer_text
from p2p.net.seam import AddrsChanged, PathChanged, PeerDown, PeerUp
from p2p.net.tcp import TcpTransport
from p2p.node import Node

if TYPE_CHECKING:
    from p2p.net.wire_fabric import WireFabric


def tell(event: str, **fields: object) -> None:
    """One line."""
    print(json.dumps({"event": event, **fields}), flush=True)


async def hear(node: Node) -> None:
    """Tell what the fabric tells."""
    async for event in node.fabric.events():
        match event:
            case PeerUp(peer):
                tell("up", peer=peer_text(peer), path=node.fabric.peers()[peer].path)
            case PeerDown(peer, reason):
                tell("down", peer=peer_text(peer), reason=reason)
            case PathChanged(peer, path):
                tell("path", peer=peer_text(peer), path=path)
            case AddrsChanged(addrs):
                tell("addrs", addrs=list(addrs))
            case _:
                continue


async def ping_forever(node: Node) -> None:
    """Tell each answer of each peer: traffic flows."""
    fabric = cast("WireFabric", node.fabric)
    while True:
        for peer in list(fabric.peers()):
            with trio.move_on_after(1) as limit:
                try:
                    await fabric.ping(peer)
                except (Unreachable, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    tell("unanswered", why=type(error).__name__)
                    continue
            if not limit.cancelled_caught:
                tell("answer", peer=peer_text(peer))
        await trio.sleep(0.1)


async def obey(node: Node) -> None:
    """Until standard input ends."""
    held = b""
    stdin = trio.lowlevel.FdStream(0)
    while data := await stdin.receive_some():
        held += data
        *lines, held = held.split(b"\n")
        for line in lines:
            node.pin(parse_peer_untrusted(line.removeprefix(b"pin ").decode()))


async def main(seed: int, port: int) -> None:
    """Run the node."""
    listen = (f"/ip4/0.0.0.0/tcp/{port}", f"/ip6/::/tcp/{port}")
    config = replace(P2pConfig.wan(), listen=listen)
    node = Node(Identity.from_seed(bytes([seed]) * 32), config, SystemEnv(), [TcpTransport(config)])
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        assert node.surroundings is not None
        node.surroundings.on_change(lambda change: tell("network", woke=change.woke))
        nursery.start_soon(hear, node)
        nursery.start_soon(ping_forever, node)
        tell("ready", peer=peer_text(node.id), addrs=node.fabric.addrs())
        await obey(node)
        tell("mapping", rows=[repr(row) for row in node.surroundings.report().mapping])
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
