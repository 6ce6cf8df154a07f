"""A trio client of the local socket for many writers in one process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from benchmarks.node import Json


class AsyncClient:
    """One connection; calls in turn."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._id = 0

    @classmethod
    async def connect(cls, path: str) -> AsyncClient:
        """Connect and say hello."""
        client = cls(await trio.open_unix_socket(path))
        await client.call("rpc.hello", {"client": "benchmark", "api": [1, 0]})
        return client

    async def call(self, method: str, params: Json) -> Json:
        """One call; its result."""
        self._id += 1
        request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        await self._stream.send_all(json.dumps(request).encode() + b"\n")
        while True:
            answer = json.loads(await self._line())
            if answer.get("id") == self._id:
                break
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: Json = answer["result"]
        return result

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            chunk = await self._stream.receive_some(65536)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def aclose(self) -> None:
        """Hang up."""
        await self._stream.aclose()
