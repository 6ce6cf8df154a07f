"""The limit: MessagePack frames over a bare trio TCP stream, no identity, no encryption.

Usage: raw_tcp.py serve | raw_tcp.py client PORT
"""

from __future__ import annotations

import sys

import msgpack
import trio
from timing import request_response, serve_commands

CHUNK = 65536


async def read_exactly(stream, buffer, count):
    """Take `count` bytes from the stream."""
    while len(buffer) < count:
        chunk = await stream.receive_some(262144)
        if not chunk:
            raise EOFError
        buffer += chunk
    taken = bytes(buffer[:count])
    del buffer[:count]
    return taken


async def read_frame(stream, buffer):
    """One length-prefixed MessagePack value."""
    size = int.from_bytes(await read_exactly(stream, buffer, 4), "big")
    return msgpack.unpackb(await read_exactly(stream, buffer, size))


def frame(value):
    """A length-prefixed MessagePack value."""
    body = msgpack.packb(value)
    return len(body).to_bytes(4, "big") + body


async def serve_stream(stream):
    """Echo calls; swallow uploads and confirm them."""
    buffer = bytearray()
    stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
    try:
        while True:
            method, body = await read_frame(stream, buffer)
            if method == "echo":
                await stream.send_all(frame([0, body]))
            else:
                left = body - len(buffer)
                buffer.clear()
                while left > 0:
                    left -= len(await stream.receive_some(262144))
                await stream.send_all(frame([0, b"ok"]))
    except EOFError:
        pass


async def serve():
    """Listen on a free port and print it."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(serve_stream, listeners)


async def client(port):
    """Measure against a server."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
    buffer = bytearray()
    payload = b"x" * 100

    async def call():
        await stream.send_all(frame(["echo", payload]))
        await read_frame(stream, buffer)

    async def bulk(mib):
        await stream.send_all(frame(["upload", mib << 20]))
        chunk = bytes(CHUNK)
        for _ in range((mib << 20) // CHUNK):
            await stream.send_all(chunk)
        await read_frame(stream, buffer)
        return {}

    await serve_commands({"rr": lambda count: request_response(call, count), "bulk": bulk})


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve)
    else:
        trio.run(client, int(sys.argv[2]))
