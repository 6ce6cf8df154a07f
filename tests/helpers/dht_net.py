"""Networks of nodes with a DHT: over the real wire, or without crypto."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from p2p.config import P2pConfig
from p2p.dht.config import DhtConfig
from p2p.env import SeededEnv
from p2p.identity import Identity
from p2p.net.memory import MemNet
from p2p.net.tcp import TcpTransport
from p2p.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.dht.service import Dht
    from p2p.identity import PeerId
    from p2p.net.seam import Addr

LAB = DhtConfig.lab()


def lab_config(**changes: object) -> P2pConfig:
    """One machine, every node a server of the DHT."""
    config = replace(P2pConfig.test(), dht=LAB)
    return replace(config, **changes)  # type: ignore[arg-type]


@dataclass
class DhtNode:
    """A running node."""

    node: Node
    scope: trio.CancelScope
    number: int

    @property
    def id(self) -> PeerId:
        """Its peer id."""
        return self.node.id

    @property
    def dht(self) -> Dht:
        """Its DHT."""
        assert self.node.dht is not None
        return self.node.dht

    def stop(self) -> None:
        """End it."""
        self.scope.cancel()


@dataclass
class DhtNet:
    """Nodes over a simulated network or over loopback.

    Attributes:
        nursery: where nodes run.
        kind: `mem` (no crypto), `wire` (the real wire over the simulated network), `tcp`.
        seed: of everything drawn.
    """

    nursery: trio.Nursery
    kind: str = "mem"
    seed: int = 1
    latency_s: float = 0.02
    net: MemNet = field(init=False)
    made: int = 0

    def __post_init__(self) -> None:
        self.net = MemNet(SeededEnv(self.seed, "net", trio.current_time), latency_s=self.latency_s)

    def ip(self, number: int) -> str:
        """Where a node lives."""
        return f"10.{number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"

    async def start(
        self,
        number: int,
        *,
        seeds: tuple[Addr, ...] = (),
        at: int | None = None,
        dht: DhtConfig = LAB,
        **changes: object,
    ) -> DhtNode:
        """Start a node.

        Args:
            number: decides its key, and its address unless `at` does.
            seeds: addresses with `/p2p/`.
            at: number of the address.
            dht: its configuration.
            changes: of the mesh's configuration.
        """
        identity = Identity.from_seed(number.to_bytes(4, "big") * 8)
        env = SeededEnv(self.seed, f"node {number} {self.made}", trio.current_time)
        self.made += 1
        config = lab_config(bootstrap=seeds, dht=dht, **changes)
        ip = self.ip(number if at is None else at)
        if self.kind == "mem":
            node = Node.over(self.net.fabric(identity.id, ip, env=env), identity, config, env=env)
        elif self.kind == "wire":
            config = replace(config, listen=(f"/ip4/{ip}/tcp/4001",))
            node = Node(identity, config, env, [self.net.host(ip)])
        else:
            node = Node(identity, config, env, [TcpTransport(config)])
        scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await node.run(task_status=task_status)

        await self.nursery.start(run)
        return DhtNode(node, scope, number)

    def seed_of(self, member: DhtNode) -> Addr:
        """A bootstrap entry for a running node."""
        from p2p.identity import peer_text

        return f"{member.node.fabric.addrs()[0]}/p2p/{peer_text(member.id)}"


async def until(condition: Callable[[], bool], *, within_s: float = 30.0) -> None:
    """Wait for a state that no event announces, looking again every 50 ms."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - the product has no event for it
            await trio.sleep(0.05)
