"""A Covey node with blobs, behind a line of its own rate.

Usage: covey_blobs.py serve FOLDER KIB RATE   (bytes a second towards the reader; 0: no limit)
       covey_blobs.py client FOLDER
"""

from __future__ import annotations

import random
import sys
import time
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from p2p.blobs.manifest import parse_blob_untrusted
from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.identity import Identity, parse_peer_untrusted, peer_text
from p2p.net.tcp import TcpTransport
from p2p.node import Node

GROUP = bytes(32)
STEP_BYTES = 16_384


class Threads:
    """Blocking work in threads, as the daemon has it."""

    async def run(self, fn):
        """Run `fn` in a thread."""
        return await trio.to_thread.run_sync(fn)


def make_node(folder):
    """A node on loopback that keeps blobs; everybody may read them."""
    env, config = SystemEnv(), P2pConfig.test()
    node = Node(Identity.generate(env.rng), config, env, [TcpTransport(config)])
    node.set_members(lambda _peer: True)
    node.keep_blobs(Path(folder), env, Threads()).set_readers(lambda _group, _peer: True)
    return node


async def pump(source, target, rate):
    """Forward, at most `rate` bytes a second."""
    free_at = trio.current_time()
    try:
        while data := await source.receive_some(STEP_BYTES):
            if rate:
                free_at = max(free_at, trio.current_time()) + len(data) / rate
                await trio.sleep_until(free_at)
            await target.send_all(data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


async def forward(port, rate, client):
    """One connection through the line."""
    server = await trio.open_tcp_stream("127.0.0.1", port)
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(pump, client, server, 0)
        nursery.start_soon(pump, server, client, rate)


async def serve(folder, kib, rate):
    """Put a blob of so many KiB, say who, where and what."""
    node = make_node(folder)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        blob = ""
        if int(kib):
            data = random.Random(1).randbytes(int(kib) * 1024)
            blob = (await node.blobs.put([data], GROUP, tag="bench")).hex()
        address = node.fabric.addrs()[0]
        if int(rate):
            port = int(address.rsplit("/", 1)[1])
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            line = partial(forward, port, int(rate))
            nursery.start_soon(trio.serve_listeners, line, listeners)
            address = f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"
        print(peer_text(node.id), address, blob or "-", flush=True)


async def client(folder):
    """Answer `connect PEER ADDRESS` and `fetch ID` lines."""
    node = make_node(folder)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        print("ready", flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            verb, *words = line.split()
            before = time.perf_counter()
            if verb == "connect":
                await node.fabric.connect(parse_peer_untrusted(words[0]), [words[1]])
            else:
                blob = parse_blob_untrusted(words[0])
                await node.blobs.drop(blob)
                before = time.perf_counter()
                await node.blobs.fetch(blob, GROUP)
            print(f'{{"seconds": {time.perf_counter() - before}}}', flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve, *sys.argv[2:5])
    else:
        trio.run(client, sys.argv[2])
