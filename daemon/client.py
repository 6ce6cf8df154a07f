"""An asynchronous client of the local socket, for trio programs on this machine.

    client = await LocalClient.connect(socket_path)
    hits = await client.call("memory.recall", {"query": "node version"})

The command line has a smaller blocking one of its own (`daemon.cli.client`).
Source: docs/specs/local-rpc.md.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.json_types import Json

READ_BYTES = 65536


class CallFailed(Exception):
    """The daemon answered with an error.

    Args:
        code: one of docs/specs/local-rpc.md's codes.
        message: what is wrong.
        data: more of it: `name`, `remedy`, and often `reason`.
    """

    def __init__(self, code: int, message: str, data: Mapping[str, Json] | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.data: dict[str, Json] = dict(data or {})

    @property
    def name(self) -> str:
        """Name in the error table, such as not_found."""
        return str(self.data.get("name", ""))

    @property
    def remedy(self) -> str:
        """What to do."""
        return str(self.data.get("remedy", ""))


class LocalClient:
    """One connection. Calls from several tasks wait for each other."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._id = 0
        self._turn = trio.Lock()
        self.notifications: list[dict[str, Json]] = []
        """Events that arrived while answers were awaited, oldest first."""

    @classmethod
    async def connect(cls, path: str, **hello: Json) -> LocalClient:
        """Connect to the daemon at `path`.

        Args:
            path: its socket.
            hello: more fields of `rpc.hello`, such as `agent` and `token`.

        Raises:
            OSError: nobody listens.
            CallFailed: it refused us.
        """
        stream = await trio.open_unix_socket(path)
        client = cls(stream)
        try:
            await client.call("rpc.hello", {"client": "python", "api": [1, 0], **hello})
        except BaseException:
            stream.socket.close()
            raise
        return client

    async def call(self, method: str, params: Mapping[str, Json] | None = None) -> Json:
        """Call a method and wait for its result.

        Raises:
            CallFailed: the daemon's error.
            EOFError: the daemon went away.
        """
        async with self._turn:
            self._id += 1
            request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params or {}}
            try:
                await self._stream.send_all(json.dumps(request).encode() + b"\n")
                answer = await self._answer()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise EOFError("the daemon went away") from None
        error = answer.get("error")
        if isinstance(error, dict):
            code = error.get("code")
            data = error.get("data")
            raise CallFailed(
                code if isinstance(code, int) else 0,
                str(error.get("message")),
                data if isinstance(data, dict) else None,
            )
        return answer.get("result")

    async def notification(self) -> dict[str, Json]:
        """The next event of a subscription.

        Raises:
            EOFError: the daemon went away.
        """
        async with self._turn:
            while not self.notifications:
                self._keep_notification(await self._message())
            return self.notifications.pop(0)

    async def _answer(self) -> dict[str, Json]:
        while True:
            message = await self._message()
            if message.get("id") == self._id and "method" not in message:
                return message
            self._keep_notification(message)

    def _keep_notification(self, message: dict[str, Json]) -> None:
        params = message.get("params")
        if message.get("method") == "event" and isinstance(params, dict):
            self.notifications.append(params)

    async def _message(self) -> dict[str, Json]:
        while (end := self._buffer.find(b"\n")) < 0:
            chunk = await self._stream.receive_some(READ_BYTES)
            if not chunk:
                raise EOFError("the daemon went away")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        message = json.loads(line)
        return message if isinstance(message, dict) else {}

    async def aclose(self) -> None:
        """Hang up."""
        await self._stream.aclose()
