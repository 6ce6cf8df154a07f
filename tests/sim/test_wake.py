"""A machine that slept: whole nodes notice by their clocks, and traffic flows again at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from p2p.config import P2pConfig
from p2p.env import SeededEnv
from p2p.net.memory import MemNet
from p2p.node import Node
from tests.helpers.det import run_seeded
from tests.helpers.fabrics import ECHO, ask, echo, identity
from tests.helpers.mesh import OffsetEnv

HOUR_MS = 3_600_000
NOTICED_S = 5.0
"""Two seconds until the clocks are compared, one until nobody answered, then a dial."""


async def start(nursery: trio.Nursery, net: MemNet, number: int) -> tuple[Node, OffsetEnv]:
    """A running node that looks at its clocks every two seconds."""
    config = replace(
        P2pConfig.test(), listen=("/ip4/0.0.0.0/tcp/15001",), network_check_s=2.0, preset="wan"
    )
    env = OffsetEnv(1, f"node {number}", trio.current_time)
    node = Node(identity(number), config, env, [net.host(f"10.0.0.{number}")])
    node.fabric.handle(ECHO, echo, per_peer_max=9)
    await nursery.start(node.run)
    return node, env


@pytest.mark.parametrize("noticed", [True, False])
def test_after_sleep_the_traffic_flows_within_seconds(noticed: bool) -> None:
    """The other side gave it up meanwhile, and its own connection is a ghost."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            net = MemNet(SeededEnv(1, "net", trio.current_time), latency_s=0.01)
            laptop, env = await start(nursery, net, 1)
            server, _ = await start(nursery, net, 2)
            where = ["/ip4/10.0.0.2/tcp/15001"]
            laptop.pin(server.id, where)
            await trio.sleep(20)
            assert await ask(await laptop.fabric.open(server.id, ECHO), b"before") == b"before"
            await trio.sleep(6)
            net.readdress("10.0.0.1", "10.0.0.9")  # opened again in another place
            if noticed:
                env.offset_ms += HOUR_MS
            await trio.sleep(NOTICED_S)
            with trio.move_on_after(1) as limit:
                assert await ask(await laptop.fabric.open(server.id, ECHO), b"after") == b"after"
            assert limit.cancelled_caught is not noticed, "control: nobody looked at the clock"
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)


def test_a_wake_up_harms_no_connection_that_lives() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            net = MemNet(SeededEnv(1, "net", trio.current_time), latency_s=0.01)
            laptop, env = await start(nursery, net, 1)
            server, _ = await start(nursery, net, 2)
            await laptop.fabric.connect(server.id, ["/ip4/10.0.0.2/tcp/15001"])
            await trio.sleep(5)
            since_s = laptop.fabric.peers()[server.id].since_s
            for _ in range(3):
                env.offset_ms += HOUR_MS
                await trio.sleep(5)
            assert laptop.fabric.peers()[server.id].since_s == since_s
            assert await ask(await laptop.fabric.open(server.id, ECHO), b"same") == b"same"
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)
