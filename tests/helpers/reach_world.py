"""Nodes of a simulated internet that find out whether they can be dialled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio
from typing_extensions import override

from p2p.config import P2pConfig
from p2p.env import SeededEnv
from p2p.net.memory import MemNet
from p2p.net.memory_host import Kind
from p2p.node import Node
from tests.helpers.det import run_seeded
from tests.helpers.fabrics import ECHO, echo, identity, nothing_left

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Literal

    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.nat.reachability import Reach
    from p2p.nat.reachability_driver import ReachabilityReport
    from p2p.net.memnat import Endpoint, NatConfig
    from p2p.net.memory_host import MemTransport, Packet
    from p2p.net.memory_route import Gateway


class WatchedNet(MemNet):
    """A network that remembers who knocked where."""

    def __init__(self, env: Env) -> None:
        super().__init__(env, latency_s=0.01)
        self.knocks: list[tuple[str, Endpoint]] = []
        """(host that sent it, target) of each SYN, repetitions too."""

    @override
    def transmit(self, sender: MemTransport, packet: Packet) -> None:
        if packet.kind is Kind.SYN:
            self.knocks.append((sender.ip, packet.target))
        super().transmit(sender, packet)

    def knocked(self, source: str, target: str) -> int:
        """How many SYNs `source` sent to `target`."""
        return sum(1 for ip, at in self.knocks if (ip, at.ip) == (source, target))


class ReachWorld:
    """Nodes of one simulated network; node n has address 45.77.n.1 if nothing else is said.

    Everybody is a member of everybody's group, less who is in `strangers`.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.net = WatchedNet(SeededEnv(1, "net", trio.current_time))
        self.nodes: list[Node] = []
        self.strangers: set[PeerId] = set()
        self.gateways: dict[int, Gateway] = {}

    async def node(
        self,
        number: int,
        reachability: Literal["auto", "public", "private"] = "auto",
        *,
        config: P2pConfig | None = None,
        ip: str = "",
        nat: NatConfig | None = None,
    ) -> Node:
        """A running node; with `nat`, behind one of these at its usual address."""
        ip = ip or f"45.77.{number}.1"
        gateway = None
        if nat is not None:
            gateway = self.net.nat(ip if nat.translates else None, nat)
            self.gateways[number] = gateway
            ip = f"10.0.{number}.2" if nat.translates else ip
        config = replace(
            config or P2pConfig.test(),
            listen=(f"/ip4/{ip}/tcp/0",),
            reachability=reachability,
            private_is_public=False,
        )
        env = SeededEnv(1, f"node {number}", trio.current_time)
        node = Node(identity(number), config, env, [self.net.host(ip, gateway)])
        node.set_members(lambda peer: peer not in self.strangers)
        node.fabric.handle(ECHO, echo, per_peer_max=64)
        await self.nursery.start(node.run)
        self.nodes.append(node)
        return node


async def meet(dialler: Node, *others: Node) -> None:
    """Have one node dial others, and let them tell each other who they are."""
    for other in others:
        await dialler.fabric.connect(other.id, other.fabric.addrs())
    await trio.sleep(2)


def report_of(node: Node) -> ReachabilityReport:
    """What a node knows of its reachability."""
    assert node.traversal is not None
    return node.traversal.report().reachability


def state_of(node: Node) -> Reach:
    """Whether a node believes that it can be dialled."""
    return report_of(node).state


def circuits_of(node: Node) -> list[str]:
    """Where a node is reached through relays."""
    return [addr for addr in node.fabric.addrs() if addr.endswith("/p2p-circuit")]


def count(node: Node, name: str) -> int:
    """One of a node's counters."""
    return node.report().counters.get(name, 0)


def play(
    scenario: Callable[[ReachWorld], Awaitable[None]], *, seed: int = 1, attack: bool = False
) -> None:
    """Run a scenario under a virtual clock; after an attack nothing may be left of it."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = ReachWorld(nursery)
            await scenario(world)
            if attack:
                await nothing_left(world.nodes)
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=seed)
