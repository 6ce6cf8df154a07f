"""py-libp2p 0.8.1 over TCP, Noise only, Yamux; runs in that peer's own environment.

Usage: py_libp2p.py serve | py_libp2p.py client MULTIADDR
"""

from __future__ import annotations

import logging
import sys

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from timing import request_response, serve_commands

ECHO = TProtocol("/bench/echo/1")
SINK = TProtocol("/bench/sink/1")
CHUNK = 65536


def make_host():
    """A host that speaks Noise only: its default would accept plaintext too."""
    key = create_new_key_pair()
    noise = Transport(libp2p_keypair=key, noise_privkey=new_noise_key().private_key)
    return new_host(key_pair=key, sec_opt={PROTOCOL_ID: noise})


async def read_exactly(stream, count):
    """Take `count` bytes."""
    parts = []
    while count:
        chunk = await stream.read(count)
        if not chunk:
            raise EOFError
        parts.append(chunk)
        count -= len(chunk)
    return b"".join(parts)


async def echo(stream):
    """Return 100-byte messages."""
    try:
        while True:
            await stream.write(await read_exactly(stream, 100))
    except Exception:  # noqa: BLE001 - the peer's own error types, at the end of a run
        await stream.close()


async def sink(stream):
    """Swallow an upload of announced size and confirm it."""
    left = int.from_bytes(await read_exactly(stream, 8), "big")
    while left:
        left -= len(await stream.read(min(left, 262144)))
    await stream.write(b"ok")
    await stream.close()


async def serve():
    """Listen on a free port and print the address."""
    host = make_host()
    async with host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        host.set_stream_handler(ECHO, echo)
        host.set_stream_handler(SINK, sink)
        address = str(host.get_addrs()[0])
        if "/p2p/" not in address:
            address += f"/p2p/{host.get_id()}"
        print(address, flush=True)
        await trio.sleep_forever()


async def client(address):
    """Measure against a server."""
    host = make_host()
    async with host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        info = info_from_p2p_addr(multiaddr.Multiaddr(address))
        await host.connect(info)
        stream = await host.new_stream(info.peer_id, [ECHO])
        payload = b"x" * 100

        async def call():
            await stream.write(payload)
            await read_exactly(stream, 100)

        async def bulk(mib):
            upload = await host.new_stream(info.peer_id, [SINK])
            await upload.write((mib << 20).to_bytes(8, "big"))
            chunk = bytes(CHUNK)
            for _ in range((mib << 20) // CHUNK):
                await upload.write(chunk)
            await read_exactly(upload, 2)
            return {}

        await serve_commands({"rr": lambda count: request_response(call, count), "bulk": bulk})


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    if sys.argv[1] == "serve":
        trio.run(serve)
    else:
        trio.run(client, sys.argv[2])
