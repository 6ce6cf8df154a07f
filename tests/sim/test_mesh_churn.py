"""Two hundred peers come and go, politely and not: a node that stays keeps nothing of them."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import dataclass, replace

import pytest
import trio

from p2p.config import P2pConfig
from p2p.env import SeededEnv
from p2p.errors import TransientError
from p2p.identity import Identity
from p2p.net.memory import MemNet
from p2p.node import Node
from p2p.rpc import Caller, CallStream, Method
from p2p.rpc_mesh import ECHO, Echo
from tests.helpers.det import run_seeded
from tests.helpers.leaks import task_count

VISITORS = 200
CHAT = Method("test.chat", int, int, item_in=bytes, item_out=bytes)
HANG = Method("test.hang", int, int)

GROWTH_BYTES_MAX = 200_000
"""Memory that 150 more visitors may leave behind: caches with a limit, such as the address book."""


@dataclass(frozen=True)
class Holding:
    """What the node that stays holds."""

    tasks: int
    peers: int
    loads: int
    calls: int
    lanes: int
    bytes_held: int


def build(net: MemNet, seed: bytes, ip: str) -> Node:
    env = SeededEnv(int.from_bytes(seed[:4], "big"), "node", trio.current_time)
    config = replace(P2pConfig.test(), listen=(f"/ip4/{ip}/tcp/0",), book_peers_max=20)
    node = Node(Identity.from_seed(seed), config, env, [net.host(ip)])
    node.set_members(lambda peer: True)  # noqa: ARG005 - everybody
    return node


def holding(node: Node) -> Holding:
    gc.collect()
    return Holding(
        tasks=task_count(),
        peers=len(node.fabric.peers()),
        loads=len(node.rpc._server.loads),
        calls=node.rpc._server.calls,
        lanes=len(node.rpc._client._peers),
        bytes_held=tracemalloc.get_traced_memory()[0],
    )


async def hang(caller: Caller, request: int, stream: CallStream) -> int:  # noqa: ARG001 - a handler's shape
    await trio.sleep_forever()
    return 0


async def chat(caller: Caller, request: int, stream: CallStream) -> int:  # noqa: ARG001 - a handler's shape
    async for item in stream:
        await stream.send(item)
    return 0


async def visit(net: MemNet, host: Node, number: int) -> None:
    """One visitor's life; how it ends depends on its number."""
    ip = f"10.9.0.{number % 10 + 1}"
    visitor = build(net, number.to_bytes(4, "big") * 8, ip)
    async with trio.open_nursery() as nursery:
        await nursery.start(visitor.run)
        visitor.learn(host.id, host.fabric.addrs())
        await visitor.rpc.call(host.id, ECHO, Echo(b"hello"))
        match number % 4:
            case 0:
                await visitor.fabric.disconnect(host.id)
            case 1:  # gone in the middle of a unary call
                nursery.start_soon(_suppressed_hang, visitor, host)
                await trio.sleep(1)
            case 2:  # gone in the middle of a stream, and the host calls back meanwhile
                async with visitor.rpc.stream(host.id, CHAT, 0) as call:
                    await call.send(bytes(100_000))
                    await host.rpc.call(visitor.id, ECHO, Echo(b"back"))
                    await call.receive()
            case _:  # without a word
                net.kill(ip)
        nursery.cancel_scope.cancel()


async def _suppressed_hang(visitor: Node, host: Node) -> None:
    try:
        await visitor.rpc.call(host.id, HANG, 0, timeout_s=1000)
    except TransientError:
        return


def check_nothing_stays(*, early: int, late: int) -> int:
    """Let visitors come and go; returns the bytes held after `late` beyond those after `early`."""
    grown: list[int] = []

    async def main() -> None:
        net = MemNet(SeededEnv(1, "net", trio.current_time), latency_s=0.01)
        host = build(net, b"\x07" * 32, "10.9.1.1")
        host.rpc.serve(CHAT, chat)
        host.rpc.serve(HANG, hang)
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            await trio.sleep(120)
            found = [holding(host)]
            for first, last in ((0, early), (early, late)):
                for number in range(first, last):
                    await visit(net, host, number)
                await trio.sleep(120)
                found.append(holding(host))
            nursery.cancel_scope.cancel()
        for after in found[1:]:
            assert after.tasks == found[0].tasks
            assert (after.peers, after.loads, after.calls, after.lanes) == (0, 0, 0, 0)
        grown.append(found[2].bytes_held - found[1].bytes_held)

    run_seeded(main, seed=1)
    return grown[0]


def test_peers_come_and_go_without_a_task_a_peer_or_a_stream_left() -> None:
    check_nothing_stays(early=8, late=24)


@pytest.mark.slow
def test_two_hundred_peers_come_and_go_without_growth() -> None:
    tracemalloc.start()
    try:
        grown = check_nothing_stays(early=50, late=VISITORS)
    finally:
        tracemalloc.stop()
    assert grown < GROWTH_BYTES_MAX
