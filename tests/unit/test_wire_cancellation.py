"""A call cancelled at any of its steps leaves its connection and all other streams as they were."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.config import P2pConfig
from p2p.env import SeededEnv
from p2p.identity import Identity
from p2p.net.memory import MemNet
from p2p.net.wire_fabric import WireFabric
from tests.helpers.cancel import cancel_at_every_step
from tests.helpers.wire_kit import ECHO, SINK, echo, exchange, sink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.net.seam import Stream
    from tests.helpers.cancel import Cut


def fabric(net: MemNet, number: int) -> WireFabric:
    host = f"10.0.0.{number}"
    config = replace(P2pConfig.test(), listen=(f"/ip4/{host}/tcp/15001",), linger_s=2.0)
    made = WireFabric(
        Identity(bytes([number]) * 32),
        config,
        SeededEnv(1, host, trio.current_time),
        [net.host(host)],
    )
    made.handle(ECHO, echo, per_peer_max=50)
    made.handle(SINK, sink, per_peer_max=50)
    return made


async def talk(stream: Stream, text: bytes) -> None:
    await stream.send_all(text)
    got = b""
    while len(got) < len(text):
        got += await stream.receive_some()
    assert got == text


async def upload(a: WireFabric, b: WireFabric) -> None:
    """More than a window, so that it waits for the other side."""
    stream = await a.open(b.id, SINK)
    try:
        await stream.send_all(bytes(600_000))
        await stream.send_eof()
        assert await stream.receive_some() == (600_000).to_bytes(8, "big")
        await stream.aclose()
    except trio.Cancelled:
        stream.reset()
        raise


async def download(a: WireFabric, b: WireFabric) -> None:
    """A conversation whose stream is only closed by its `async with`."""
    stream = await a.open(b.id, ECHO)
    async with stream:
        await talk(stream, bytes(20_000))


async def reconnect(a: WireFabric, b: WireFabric) -> None:
    await a.disconnect(b.id)
    await a.connect(b.id, b.addrs())


@pytest.mark.parametrize("operation", [upload, download], ids=["upload", "download"])
def test_a_stream_cancelled_anywhere_harms_no_other(
    operation: Callable[[WireFabric, WireFabric], Awaitable[None]],
) -> None:
    async def scenario(cut: Cut) -> None:
        net = MemNet(SeededEnv(1, "net", trio.current_time), latency_s=0.005)
        a, b = fabric(net, 1), fabric(net, 2)
        async with trio.open_nursery() as nursery:
            await nursery.start(a.run)
            await nursery.start(b.run)
            await a.connect(b.id, b.addrs())
            bystander = await a.open(b.id, ECHO)
            await talk(bystander, b"before")
            await trio.sleep(1)

            async def attempt() -> None:
                await operation(a, b)

            await cut.attempt(attempt)
            await talk(bystander, b"after")
            await exchange(a, b.id, bytes(300_000))
            await exchange(b, a.id)
            await trio.sleep(20)
            # Only the bystander is left, on both sides, on one connection.
            assert a.peers()[b.id].streams == b.peers()[a.id].streams == 1
            assert a._live == {}
            assert sum(b._live.values()) == 1
            assert a.counters().get("bug", 0) == b.counters().get("bug", 0) == 0
            await bystander.aclose()
            nursery.cancel_scope.cancel()

    assert cancel_at_every_step(scenario) > 5


def test_a_dial_cancelled_anywhere_leaves_no_half_connection() -> None:
    async def scenario(cut: Cut) -> None:
        net = MemNet(SeededEnv(1, "net", trio.current_time), latency_s=0.005)
        a, b = fabric(net, 1), fabric(net, 2)
        async with trio.open_nursery() as nursery:
            await nursery.start(a.run)
            await nursery.start(b.run)
            await a.connect(b.id, b.addrs())
            await trio.sleep(1)

            async def attempt() -> None:
                await reconnect(a, b)

            await cut.attempt(attempt)
            await trio.sleep(20)
            await a.connect(b.id, b.addrs())
            await exchange(a, b.id)
            await trio.sleep(20)
            assert len(list(a._manager.table)) == len(list(b._manager.table)) == 1
            assert a._manager.dialler.under_way == []
            assert a._manager.gate._total == b._manager.gate._total == 1
            assert b._manager.gate._pending_total == 0
            nursery.cancel_scope.cancel()

    assert cancel_at_every_step(scenario) > 5
