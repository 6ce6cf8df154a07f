"""Two Covey nodes: typed peer RPC, bulk upload, many streams over TCP, Noise and Yamux.

Usage: covey_mesh.py serve | covey_mesh.py client PEER ADDRESS
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from timing import request_response, serve_commands

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.identity import Identity, parse_peer_untrusted, peer_text
from p2p.net.tcp import TcpTransport
from p2p.node import Node
from p2p.rpc import Method

ECHO = Method("bench.echo", request=bytes, reply=bytes)
SINK = "/bench/sink/1"
STREAM = "/bench/echo/1"
STREAMS_MAX = 1024
CHUNK = 65536


def make_node():
    """A node with a new key on loopback."""
    env, config = SystemEnv(), P2pConfig.test()
    return Node(Identity.generate(env.rng), config, env, [TcpTransport(config)])


async def echo(_caller, body, _stream):
    """Return the body."""
    return body


async def sink(stream):
    """Swallow an upload until its end and confirm it."""
    while await stream.receive_some(262144):
        pass
    await stream.send_all(b"ok")


async def echo_once(stream):
    """Return 100 bytes."""
    await stream.send_all(await read_exactly(stream, 100))


async def read_exactly(stream, count):
    """Take `count` bytes."""
    parts = bytearray()
    while len(parts) < count:
        chunk = await stream.receive_some(count - len(parts))
        if not chunk:
            raise EOFError
        parts += chunk
    return bytes(parts)


async def serve():
    """Listen and print who and where."""
    node = make_node()
    node.rpc.serve(ECHO, echo, allow=lambda _peer: True)
    node.fabric.handle(SINK, sink, per_peer_max=4)
    node.fabric.handle(STREAM, echo_once, per_peer_max=STREAMS_MAX)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        print(peer_text(node.id), node.fabric.addrs()[0], flush=True)


async def client(peer_id, address):
    """Measure against a server."""
    node, peer = make_node(), parse_peer_untrusted(peer_id)
    payload = b"x" * 100

    async def call():
        await node.rpc.call(peer, ECHO, payload)

    async def exchange():
        stream = await node.fabric.open(peer, STREAM)
        async with stream:
            await stream.send_all(payload)
            if await read_exactly(stream, len(payload)) != payload:
                raise ValueError

    async def streams(count):
        async with trio.open_nursery() as tasks:
            for _ in range(count):
                tasks.start_soon(exchange)
        return {}

    async def bulk(mib):
        stream = await node.fabric.open(peer, SINK)
        chunk = bytes(CHUNK)
        for _ in range((mib << 20) // CHUNK):
            await stream.send_all(chunk)
        await stream.send_eof()
        confirmed = await stream.receive_some(2)
        if confirmed != b"ok":
            raise EOFError
        await stream.aclose()
        return {}

    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await node.fabric.connect(peer, [address])
        await serve_commands(
            {
                "rr": lambda count: request_response(call, count),
                "bulk": bulk,
                "streams": streams,
            }
        )
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve)
    else:
        trio.run(client, *sys.argv[2:4])
