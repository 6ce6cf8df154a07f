"""Our side against a peer of a public libp2p implementation: whole nodes, and what both serve."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.identity import Identity, parse_peer_untrusted, peer_text
from p2p.nat.punch_config import PunchConfig
from p2p.net.tcp import TcpTransport
from p2p.node import Node

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from p2p.identity import PeerId
    from p2p.net.seam import Addr, Fabric, Stream
    from tests.helpers.oracle import Oracle

ECHO: Final = "/covey-test/echo/1"
"""Sends back what comes; every peer of these tests serves it."""
LISTEN: Final = "/ip4/127.0.0.1/tcp/0"


def pattern(size: int) -> bytes:
    """The same bytes in every implementation."""
    return bytes((i * 31 + (i >> 8)) & 0xFF for i in range(size))


async def read_all(stream: Stream) -> bytes:
    """Read to the end of the other side's direction."""
    parts = []
    while chunk := await stream.receive_some(65_536):
        parts.append(bytes(chunk))
    return b"".join(parts)


async def echo(stream: Stream) -> None:
    """Send everything back."""
    while chunk := await stream.receive_some(65_536):
        await stream.send_all(chunk)


async def exchange(fabric: Fabric, peer: PeerId, size: int) -> None:
    """Have the other side echo `size` bytes while we still send, and compare."""
    stream = await fabric.open(peer, ECHO)
    data = pattern(size)

    async def write() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(write)
        received = await read_all(stream)
    assert len(received) == size
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


def node_config(**changes: object) -> P2pConfig:
    """One machine, where a relayed connection stays relayed."""
    config = replace(P2pConfig.test(), listen=(LISTEN,), punch=PunchConfig(enabled=False))
    return replace(config, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def running_node(**changes: object) -> AsyncGenerator[Node]:
    """A node of ours over real TCP that serves `ECHO`; `changes` are of its `P2pConfig`."""
    env, config = SystemEnv(), node_config(**changes)
    node = Node(Identity.generate(env.rng), config, env, [TcpTransport(config)])
    node.fabric.handle(ECHO, echo, per_peer_max=64)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        nursery.cancel_scope.cancel()


def addrs_of(oracle: Oracle) -> list[Addr]:
    """Where the other implementation's peer listens, without its name."""
    return [address.rpartition("/p2p/")[0] for address in oracle.addrs]


def id_of(oracle: Oracle) -> PeerId:
    """Its peer id."""
    return parse_peer_untrusted(oracle.id)


def named_addr(node: Node) -> Addr:
    """Where a node of ours listens, with its name."""
    direct = next(addr for addr in node.fabric.addrs() if not addr.endswith("/p2p-circuit"))
    return f"{direct}/p2p/{peer_text(node.id)}"


async def circuit_addr(node: Node) -> Addr:
    """Where a node of ours is reached over a relay, as soon as it is."""
    events = node.fabric.events()
    while True:
        for addr in node.fabric.addrs():
            if addr.endswith("/p2p-circuit"):
                return addr
        await events.receive()
