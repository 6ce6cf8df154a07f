"""Relays end to end: real wire over a simulated network, three nodes and more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.config import P2pConfig
from p2p.env import SeededEnv
from p2p.errors import Unreachable
from p2p.nat.relay_config import RelayConfig, RelayQuota
from p2p.net.memory import MemNet
from p2p.net.seam import PathChanged
from p2p.node import Node
from tests.helpers.det import run_seeded
from tests.helpers.fabrics import ECHO, ask, echo, identity

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


class World:
    """Nodes of one simulated network; node n has address 45.77.n.1."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.net = MemNet(SeededEnv(1, "net", trio.current_time), latency_s=0.01)
        self.members: set[PeerId] = {identity(n).id for n in (RELAY, HIDDEN, SEEKER)}

    async def node(self, number: int, *, public: bool, relay: RelayConfig | None = None) -> Node:
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


def play(scenario: Callable[[World], Awaitable[None]], *, seed: int = 1) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scenario(World(nursery))
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=seed)


def circuits_of(node: Node) -> list[str]:
    return [addr for addr in node.fabric.addrs() if addr.endswith("/p2p-circuit")]


def test_two_that_cannot_dial_each_other_meet_over_a_relay() -> None:
    async def scenario(world: World) -> None:
        middle, hidden, seeker = await world.trio_of_nodes()
        (addr,) = circuits_of(hidden)
        await seeker.fabric.connect(hidden.id, [addr])
        assert seeker.fabric.peers()[hidden.id].path == "relay"
        assert hidden.fabric.peers()[seeker.id].path == "relay"
        stream = await seeker.fabric.open(hidden.id, ECHO)
        assert stream.path == "relay"
        payload = bytes(range(256)) * 2000
        assert await ask(stream, payload) == payload
        assert middle.report().traversal.relay.circuits == 1  # type: ignore[union-attr]
        with pytest.raises(Unreachable, match="only reached through a relay"):
            await seeker.fabric.open(hidden.id, ECHO, direct_only=True)

    play(scenario)


def test_a_direct_connection_replaces_the_relay_without_losing_a_stream() -> None:
    async def scenario(world: World) -> None:
        middle, hidden, seeker = await world.trio_of_nodes()
        await seeker.fabric.connect(hidden.id, circuits_of(hidden))
        old = await seeker.fabric.open(hidden.id, ECHO)
        await old.send_all(b"before")
        assert await old.receive_some() == b"before"
        events = seeker.fabric.events()
        world.net.heal("45.77.2.1", "45.77.3.1")
        manager = seeker.fabric._manager  # type: ignore[attr-defined]
        direct = await manager._dial_addrs(hidden.id, [hidden.fabric.addrs()[0]])
        manager._nursery.start_soon(manager._carry_dialled, direct)
        await trio.sleep(3)
        assert seeker.fabric.peers()[hidden.id].path == "direct"
        assert hidden.fabric.peers()[seeker.id].path == "direct"
        await old.send_all(b"after")
        assert await old.receive_some() == b"after"
        await old.send_eof()
        assert await old.receive_some() == b""
        await old.aclose()
        await trio.sleep(5)
        assert middle.report().traversal.relay.circuits == 0  # type: ignore[union-attr]
        held = events.statistics().current_buffer_used
        assert PathChanged(hidden.id, "direct") in [events.receive_nowait() for _ in range(held)]

    play(scenario)


def test_a_place_follows_the_relays_life() -> None:
    async def scenario(world: World) -> None:
        middle, hidden, _ = await world.trio_of_nodes()
        assert len(circuits_of(hidden)) == 1
        await hidden.fabric.disconnect(middle.id)
        await trio.sleep(1)
        assert circuits_of(hidden) == []
        assert middle.report().traversal.relay.holders == 0  # type: ignore[union-attr]
        await hidden.fabric.connect(middle.id)
        await trio.sleep(1)
        assert len(circuits_of(hidden)) == 1

    play(scenario)


def test_a_place_is_renewed_at_half_its_life() -> None:
    async def scenario(world: World) -> None:
        middle, hidden, seeker = await world.trio_of_nodes(RelayConfig(reservation_s=600))
        await trio.sleep(3600)
        (addr,) = circuits_of(hidden)
        await seeker.fabric.connect(hidden.id, [addr])
        assert middle.report().counters["relay_reservations"] >= 12

    play(scenario)


def test_nobody_is_reached_who_holds_no_place() -> None:
    async def scenario(world: World) -> None:
        middle, _, seeker = await world.trio_of_nodes()
        other = await world.node(4, public=True)
        await other.fabric.connect(middle.id, middle.fabric.addrs())
        await trio.sleep(2)
        world.net.partition("45.77.3.1", "45.77.4.1")
        from p2p.identity import peer_text

        circuit = f"{middle.fabric.addrs()[0]}/p2p/{peer_text(middle.id)}/p2p-circuit"
        with pytest.raises(Unreachable, match="holds no place"):
            await seeker.fabric.connect(other.id, [circuit])

    play(scenario)


def test_strangers_get_no_place_unless_told() -> None:
    async def scenario(world: World) -> None:
        world.members = set()
        _, hidden, _ = await world.trio_of_nodes()
        assert circuits_of(hidden) == []

    async def open_to_all(world: World) -> None:
        world.members = set()
        _, hidden, _ = await world.trio_of_nodes(RelayConfig(strangers=True))
        assert len(circuits_of(hidden)) == 1

    play(scenario)
    play(open_to_all)


def test_a_circuit_that_had_its_share_is_cut() -> None:
    async def scenario(world: World) -> None:
        quota = replace(NO_QUOTA, circuit_bytes_max=64 * 1024)
        middle, hidden, seeker = await world.trio_of_nodes(RelayConfig(member=quota))
        await seeker.fabric.connect(hidden.id, circuits_of(hidden))
        stream = await seeker.fabric.open(hidden.id, ECHO)
        with pytest.raises(trio.BrokenResourceError):
            await ask(stream, bytes(256 * 1024))
        assert middle.report().counters["relay_circuits_cut"] == 1
        await trio.sleep(1)
        assert middle.report().traversal.relay.circuits == 0  # type: ignore[union-attr]

    play(scenario)
