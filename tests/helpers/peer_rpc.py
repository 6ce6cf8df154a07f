"""Methods, handlers and peers by hand for the tests of peer RPC."""

# ruff: noqa: ARG001, ARG002 - the shape of a handler is fixed, whatever it needs of it

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from p2p.rpc import Caller, CallStream, Method
from p2p.rpc_server import PROTOCOL
from tests.helpers.fabrics import MEM, WIRE_MEM, Kit, Member, NodeMember, RawPeer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.net.seam import Stream

both_kinds = pytest.mark.parametrize("kind", [MEM, WIRE_MEM])


class Pair(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A request with parts."""

    number: int
    text: str


ADD = Method("test.add", Pair, int, idempotent=True)
WAIT = Method("test.wait", float, float, concurrent_max=200)
COUNT = Method("test.count", int, int, item_out=int)
SUM = Method("test.sum", int, int, item_in=bytes)
CHAT = Method("test.chat", str, int, item_in=str, item_out=str)
ONCE = Method("test.once", int, int)
TWICE = Method("test.twice", int, int, idempotent=True)


async def add(caller: Caller, request: Pair, stream: CallStream) -> int:
    """Handles `ADD`."""
    return request.number + len(request.text)


async def count(caller: Caller, request: int, stream: CallStream) -> int:
    """Handles `COUNT`: as many items as were asked for."""
    for number in range(request):
        await stream.send(number)
    return request


class Waiter:
    """Handles `WAIT` and notes what became of each call."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.ended: Counter[str] = Counter()
        self.entered = trio.Event()

    async def __call__(self, caller: Caller, request: float, stream: CallStream) -> float:
        self.callers.append(caller)
        self.entered.set()
        try:
            await trio.sleep(request)
        except trio.Cancelled:
            self.ended["cancelled"] += 1
            raise
        self.ended["done"] += 1
        return request


# --- Small handlers -------------------------------------------------------------------------------


async def add_up(caller: Caller, request: int, stream: CallStream) -> int:
    """Handles `SUM`: the request and the items' sizes."""
    total = request
    async for item in stream:
        assert isinstance(item, bytes)
        total += len(item)
    return total


async def send_for_ever(call: CallStream) -> None:
    """Send items until something ends it."""
    while True:
        await call.send(bytes(100_000))


async def parrot(caller: Caller, request: str, stream: CallStream) -> int:
    """Handles `CHAT`: each item goes back; how many they were."""
    said = 0
    async for item in stream:
        await stream.send(item)
        said += 1
    return said


async def same(caller: Caller, request: int, stream: CallStream) -> int:
    """Answers what was asked."""
    return request


async def never(caller: Caller, request: int, stream: CallStream) -> int:
    """Fails the test: this call was to be refused."""
    raise AssertionError("a denied call must not run")


# --- Callees by hand ------------------------------------------------------------------------------


def serve_by_hand(member: Member, script: Callable[[RawPeer, int], Awaitable[None]]) -> list[int]:
    """Answer RPC streams of `member` by a script; returns their numbers, as they come."""
    numbers: list[int] = []

    async def handler(stream: Stream) -> None:
        numbers.append(len(numbers))
        await script(RawPeer(stream), numbers[-1])

    member.fabric.handle(PROTOCOL, handler, per_peer_max=100)
    return numbers


async def with_script(
    kit: Kit, script: Callable[[RawPeer, int], Awaitable[None]]
) -> tuple[NodeMember, Member, list[int]]:
    """A caller, and a callee whose RPC streams a script answers; the numbers of the streams."""
    first = await kit.node(1)
    second = await kit.start(2)
    first.node.learn(second.id, second.fabric.addrs())
    return first, second, serve_by_hand(second, script)


# --- Counters -------------------------------------------------------------------------------------


def idle_streams(member: NodeMember) -> int:
    """Idle RPC streams this node keeps."""
    return member.rpc._client.idle_streams


def calls_served(member: NodeMember) -> int:
    """Calls this node serves now."""
    return member.rpc._server.calls
