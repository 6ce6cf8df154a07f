"""Reachability end to end: real wire over a simulated network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from p2p.nat.autonat_messages import DIAL_REQUEST
from p2p.nat.reachability import Reach
from p2p.net.memnat import FULL_CONE, PORT_RESTRICTED, RESTRICTED, SYMMETRIC
from p2p.net.netwatch import NetworkChange
from tests.helpers.reach_world import (
    ReachWorld,
    circuits_of,
    count,
    meet,
    play,
    report_of,
    state_of,
)

if TYPE_CHECKING:
    from p2p.net.memnat import NatConfig
    from p2p.node import Node


def test_an_open_host_becomes_public_by_a_third_peer_and_serves_as_a_relay() -> None:
    async def scenario(world: ReachWorld) -> None:
        server, helper = await world.node(1, "public"), await world.node(2, "public")
        await meet(server, helper)
        node = await world.node(3)
        assert state_of(node) is Reach.UNKNOWN
        await meet(node, server)
        await trio.sleep(3)
        assert state_of(node) is Reach.PUBLIC
        (row,) = report_of(node).addrs
        assert (row.source, row.proved_by) == ("interface", "45.77.2.1")
        assert count(server, "dialback_helped") == 1
        assert node.report().traversal.relay.serving  # type: ignore[union-attr]
        assert DIAL_REQUEST in server.fabric.protocols(node.id)
        assert helper.id not in node.fabric.peers(), "the nonce came under a fresh key"

        hidden = await world.node(4, "private")
        await meet(hidden, node)
        assert [a for a in hidden.fabric.addrs() if a.endswith("/p2p-circuit")]

    play(scenario)


def test_the_first_public_node_learns_it_from_an_unasked_connection() -> None:
    async def scenario(world: ReachWorld) -> None:
        node, other = await world.node(1), await world.node(2, "private")
        await trio.sleep(60)
        assert state_of(node) is Reach.UNKNOWN
        await meet(other, node)
        assert state_of(node) is Reach.PUBLIC
        assert report_of(node).why.startswith("45.77.2.1 reached us unasked at /ip4/45.77.1.1/")

    play(scenario)


async def behind(world: ReachWorld, nat: NatConfig) -> tuple[Node, Node, Node]:
    """A node behind a NAT that knows two servers; one of them knows a helper that it does not."""
    servers = [await world.node(1, "public"), await world.node(2, "public")]
    helper = await world.node(3, "public")
    await meet(servers[0], helper)
    node = await world.node(9, nat=nat)
    await meet(node, *servers)
    await trio.sleep(120)
    return node, servers[0], helper


def test_an_address_restricted_nat_is_never_public_although_every_server_gets_in() -> None:
    async def scenario(world: ReachWorld) -> None:
        node, server, helper = await behind(world, RESTRICTED)
        for _ in range(12):
            assert state_of(node) is Reach.LIKELY
            await trio.sleep(600)
        assert count(node, "reach_nonces") > 3
        assert count(server, "autonat_ok") > 3
        assert count(server, "dialback_missed") > 3, "the helper tried, and did not get in"
        assert count(helper, "dialback_served") > 3
        assert not node.report().traversal.relay.serving  # type: ignore[union-attr]
        assert DIAL_REQUEST not in server.fabric.protocols(node.id)
        (row,) = report_of(node).addrs
        assert (row.source, row.state) == ("observed", Reach.LIKELY)
        assert row.addr in node.fabric.addrs(), "likely addresses are advertised"
        assert report_of(node).symmetric is False

    play(scenario)


def test_a_full_cone_nat_is_public_once_a_stranger_to_it_got_in() -> None:
    async def scenario(world: ReachWorld) -> None:
        node, _, _ = await behind(world, FULL_CONE)
        assert state_of(node) is Reach.PUBLIC
        (row,) = report_of(node).addrs
        assert (row.source, row.proved_by) == ("observed", "45.77.3.1")

    play(scenario)


def test_a_port_restricted_nat_is_private_and_its_address_is_not_told() -> None:
    async def scenario(world: ReachWorld) -> None:
        node, server, _ = await behind(world, PORT_RESTRICTED)
        assert state_of(node) is Reach.PRIVATE
        (row,) = report_of(node).addrs
        assert row.addr.startswith("/ip4/45.77.9.1/")
        assert row.addr not in node.fabric.addrs()
        assert row.failures >= 1
        assert "no server could reach us at /ip4/45.77.9.1/" in report_of(node).why
        assert count(server, "autonat_dial_error") >= 1

    play(scenario)


def test_a_symmetric_nat_is_recognised() -> None:
    async def scenario(world: ReachWorld) -> None:
        node, _, _ = await behind(world, SYMMETRIC)
        assert report_of(node).symmetric is True
        assert state_of(node) is Reach.PRIVATE
        assert "another port for each peer" in report_of(node).why

    play(scenario)


def test_who_is_not_public_looks_for_relays_after_ten_seconds_and_a_public_one_does_not() -> None:
    async def scenario(world: ReachWorld) -> None:
        server, helper = await world.node(1, "public"), await world.node(2, "public")
        other = await world.node(3, "public")
        await meet(server, helper)
        hidden = await world.node(9, nat=PORT_RESTRICTED)
        await meet(hidden, server)
        assert not circuits_of(hidden), "it may turn out to be public"
        await trio.sleep(10)
        assert circuits_of(hidden)

        node = await world.node(4)
        await meet(node, server, other)
        await trio.sleep(30)
        assert state_of(node) is Reach.PUBLIC
        assert count(node, "relay_places") == 0

    play(scenario)


def test_a_change_of_network_begins_anew() -> None:
    async def scenario(world: ReachWorld) -> None:
        server, helper = await world.node(1, "public"), await world.node(2, "public")
        await meet(server, helper)
        node = await world.node(3)
        states: list[Reach] = []
        assert node.traversal is not None
        node.traversal.on_state = states.append
        await meet(node, server)
        await trio.sleep(3)
        node.traversal.network_changed(NetworkChange(("45.77.3.1",), woke=False, moved=True))
        assert state_of(node) is Reach.UNKNOWN
        assert not node.report().traversal.relay.serving  # type: ignore[union-attr]
        await trio.sleep(600)
        found = [Reach.LIKELY, Reach.PUBLIC]  # the server first, then its helper
        assert states == [*found, Reach.UNKNOWN, *found]

    play(scenario)


def test_after_a_change_of_network_peers_are_asked_again_where_they_see_us() -> None:
    async def scenario(world: ReachWorld) -> None:
        node, _, _ = await behind(world, FULL_CONE)
        assert node.traversal is not None
        node.traversal.network_changed(NetworkChange((), woke=False, moved=True))
        assert report_of(node).symmetric is None
        await trio.sleep(600)
        assert [row.source for row in report_of(node).addrs] == ["observed"]
        assert state_of(node) in {Reach.LIKELY, Reach.PUBLIC}

    play(scenario)


def test_a_public_node_that_is_cut_off_notices() -> None:
    async def scenario(world: ReachWorld) -> None:
        node, server, helper = await behind(world, FULL_CONE)
        assert state_of(node) is Reach.PUBLIC
        # Nobody gets in any more, while what is open stays open.
        gateway = world.gateways[9]
        gateway.nat.config = PORT_RESTRICTED
        await trio.sleep(900 + 3 * 60)
        assert state_of(node) is Reach.PRIVATE
        assert server.id in node.fabric.peers()
        assert helper.id not in node.fabric.peers()
        assert not node.report().traversal.relay.serving  # type: ignore[union-attr]

    play(scenario)


def test_with_a_known_answer_nothing_is_asked() -> None:
    async def scenario(world: ReachWorld) -> None:
        server = await world.node(1, "public")
        node = await world.node(2, "private")
        await meet(node, server)
        await trio.sleep(1000)
        assert report_of(node).forced
        assert (state_of(node), state_of(server)) == (Reach.PRIVATE, Reach.PUBLIC)
        assert count(node, "autonat_asked") == 0

    play(scenario)


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> list[tuple[float, str, str]]:
        seen: list[tuple[float, str, str]] = []

        async def scenario(world: ReachWorld) -> None:
            node, _, _ = await behind(world, RESTRICTED)
            await trio.sleep(4000)
            rows = report_of(node).addrs
            seen.extend((row.checked_s or 0.0, row.addr, str(row.proved_by)) for row in rows)
            seen.extend((float(value), key, "") for key, value in node.report().counters.items())

        play(scenario, seed=7)
        return seen

    assert run() == run()
