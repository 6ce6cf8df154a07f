"""One node of the DHT in a process of its own, driven by lines: `SEED [BOOTSTRAP]`.

Prints `ready ADDR` and answers `put NAME BODY`, `get OWNER NAME` and `size`, a line each. Ends when
its input does.
"""

from __future__ import annotations

import sys

import trio

from p2p.dht.keys import value_key
from p2p.env import SystemEnv
from p2p.identity import Identity, PeerId, peer_text
from p2p.net.tcp import TcpTransport
from p2p.node import Node
from tests.helpers.dht_net import lab_config


async def answer(node: Node, line: str) -> str:
    """Do what a line asks."""
    assert node.dht is not None
    match line.split():
        case ["put", name, body]:
            return str(await node.dht.put(name.encode(), body.encode(), keep=False))
        case ["get", owner, name]:
            key = value_key(PeerId(bytes.fromhex(owner)), name.encode())
            found = await node.dht.get(key)
            return "none" if found is None else found.decode()
        case ["size"]:
            return str(len(node.dht.table))
        case _:
            return "what?"


async def main(seed: int, bootstrap: tuple[str, ...]) -> None:
    """Run a node and answer lines."""
    identity = Identity.from_seed(seed.to_bytes(4, "big") * 8)
    config = lab_config(bootstrap=bootstrap)
    node = Node(identity, config, SystemEnv(), [TcpTransport(config)])
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        print(f"ready {node.fabric.addrs()[0]}/p2p/{peer_text(node.id)}", flush=True)
        held = b""
        async with trio.lowlevel.FdStream(sys.stdin.fileno()) as lines:
            async for data in lines:
                held += data
                *whole, held = held.split(b"\n")
                for line in whole:
                    print(await answer(node, line.decode()), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), tuple(sys.argv[2:]))
