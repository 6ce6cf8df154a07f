"""An OpenAI-compatible endpoint on loopback that does what a test has written down for it.

    async with endpoint(completion('[{"k": 0, "mood": "good"}]'), status(429)) as served:
        ... served.url, served.requests

One step a connection; the last step repeats. It reads requests as a plain server would, so that
what a client sends is seen as it is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, cast

import trio

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

JsonObject: TypeAlias = dict[str, object]


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    line: str
    headers: dict[str, str]
    body: JsonObject

    @property
    def system(self) -> str:
        """The system's part of a chat."""
        return self._content("system")

    @property
    def user(self) -> str:
        """The user's part of a chat."""
        return self._content("user")

    def _content(self, role: str) -> str:
        messages = cast("list[dict[str, str]]", self.body["messages"])
        [found] = [message["content"] for message in messages if message["role"] == role]
        return found


Step: TypeAlias = Callable[[trio.abc.Stream, Request], Awaitable[None]]


@dataclass
class Served:
    """A running endpoint."""

    url: str
    port: int
    requests: list[Request] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    _arrived: trio.Event = field(default_factory=trio.Event)

    async def until(self, count: int) -> None:
        """Wait until `count` requests have arrived."""
        while len(self.requests) < count:
            await self._arrived.wait()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one connection."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                request = await _request(stream)
                if request is None:
                    return
                self.requests.append(request)
                self._arrived.set()
                self._arrived = trio.Event()
                step = self.steps[min(len(self.requests), len(self.steps)) - 1]
                await step(stream, request)


async def _request(stream: trio.abc.Stream) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        block = await stream.receive_some(65_536)
        if not block:
            return None
        data += block
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (text.partition(": ") for text in lines)}
    while len(body) < int(headers["content-length"]):
        body += await stream.receive_some(65_536)
    return Request(line, headers, json.loads(body))


@asynccontextmanager
async def endpoint(*steps: Step, tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    """Serve on a free port of loopback."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = cast("int", listeners[0].socket.getsockname()[1])
    served = Served(f"http{'s' if tls else ''}://127.0.0.1:{port}/v1", port, steps=list(steps))

    async def connection(stream: trio.abc.Stream) -> None:
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        await served.serve(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, connection, listeners)
        yield served
        nursery.cancel_scope.cancel()


def raw(data: bytes) -> Step:
    """These bytes, whatever they are."""

    async def step(stream: trio.abc.Stream, _request: Request) -> None:
        await stream.send_all(data)

    return step


def status(code: int, body: bytes = b"{}", **headers: str) -> Step:
    """A reply with this status; header names with underscores for hyphens."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {code} X\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    return raw(head.encode() + body)


def completion(text: str, *, tokens: int | None = None, api: str = "chat") -> Step:
    """A model's answer."""
    choice: JsonObject = {"message": {"role": "assistant", "content": text}}
    if api != "chat":
        choice = {"text": text}
    body: JsonObject = {"choices": [choice]}
    if tokens is not None:
        body["usage"] = {"total_tokens": tokens}
    return status(200, json.dumps(body).encode(), Content_Type="application/json")


async def stall(_stream: trio.abc.Stream, _request: Request) -> None:
    """Never answer."""
    await trio.sleep_forever()


def endless(head: bytes, block: bytes) -> Step:
    """`head`, then `block` for as long as somebody reads."""

    async def step(stream: trio.abc.Stream, _request: Request) -> None:
        await stream.send_all(head)
        while True:
            await stream.send_all(block)

    return step
