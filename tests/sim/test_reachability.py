"""Reachability end to end: real wire over a simulated network."""

from __future__ import annotations

import trio

from p2p.nat.autonat_messages import DIAL_REQUEST
from p2p.nat.reachability import Reach
from tests.helpers.reach_world import ReachWorld, count, meet, play, report_of, state_of


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
