"""Three nodes and more on a simulated network: a relay, a hidden one, one who looks for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from p2p.config import P2pConfig
from p2p.env import SeededEnv
from p2p.nat.relay_config import RelayConfig, RelayQuota
from p2p.net.memory import MemNet
from p2p.node import Node
from tests.helpers.det import run_seeded
from tests.helpers.fabrics import ECHO, echo, identity, nothing_left

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.identity import PeerId

RELAY, HIDDEN, SEEKER = 1, 2, 3
NO_QUOTA = RelayQuota(
    reservations_max=9,
    reservations_per_prefix_max=9,
    circuit_s_max=9e9,
    circuit_bytes_max=None,
    circuit_bytes_per_s=None,
    circuits_max=9,
    circuits_per_target_max=9,
    circuits_per_source_max=9,
    bytes_per_s=None,
    bytes_per_day=None,
)


class RelayWorld:
    """Nodes of one simulated network; node n has address 45.77.n.1."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.net = MemNet(SeededEnv(1, "net", trio.current_time), latency_s=0.01)
        self.nodes: list[Node] = []
        self.members: set[PeerId] = {identity(n).id for n in (RELAY, HIDDEN, SEEKER)}

    async def node(self, number: int, *, public: bool, relay: RelayConfig | None = None) -> Node:
        """A running node."""
        config = replace(
            P2pConfig.test(),
            listen=(f"/ip4/45.77.{number}.1/tcp/0",),
            reachability="public" if public else "private",
            relay=relay or RelayConfig(),
        )
        host = self.net.host(f"45.77.{number}.1")
        env = SeededEnv(1, f"node {number}", trio.current_time)
        node = Node(identity(number), config, env, [host])
        node.set_members(lambda peer: peer in self.members)
        node.fabric.handle(ECHO, echo, per_peer_max=64)
        await self.nursery.start(node.run)
        self.nodes.append(node)
        return node

    async def trio_of_nodes(self, relay: RelayConfig | None = None) -> tuple[Node, Node, Node]:
        """A relay, a hidden node with a place there, and a seeker that cannot dial it."""
        middle = await self.node(RELAY, public=True, relay=relay)
        hidden = await self.node(HIDDEN, public=False)
        seeker = await self.node(SEEKER, public=False)
        self.net.partition("45.77.2.1", "45.77.3.1")
        await hidden.fabric.connect(middle.id, middle.fabric.addrs())
        await trio.sleep(2)
        return middle, hidden, seeker


def play(
    scenario: Callable[[RelayWorld], Awaitable[None]], *, seed: int = 1, attack: bool = False
) -> None:
    """Run a scenario in virtual time; after an attack nothing may be left of it."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = RelayWorld(nursery)
            await scenario(world)
            if attack:
                await nothing_left(world.nodes)
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=seed)


def circuits_of(node: Node) -> list[str]:
    """Addresses at which a node is reached over relays."""
    return [addr for addr in node.fabric.addrs() if addr.endswith("/p2p-circuit")]
