"""Relays end to end: real wire over a simulated network, three nodes and more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.errors import Unreachable
from p2p.nat.relay_config import RelayConfig
from p2p.nat.relay_messages import HOP
from p2p.net.seam import PathChanged
from tests.helpers.fabrics import ECHO, ask, identity
from tests.helpers.relays import NO_QUOTA, RELAY, circuits_of, play

if TYPE_CHECKING:
    from tests.helpers.relays import RelayWorld


def test_two_that_cannot_dial_each_other_meet_over_a_relay() -> None:
    async def scenario(world: RelayWorld) -> None:
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
    async def scenario(world: RelayWorld) -> None:
        middle, hidden, seeker = await world.trio_of_nodes()
        await seeker.fabric.connect(hidden.id, circuits_of(hidden))
        old = await seeker.fabric.open(hidden.id, ECHO)
        await old.send_all(b"before")
        assert await old.receive_some() == b"before"
        events = seeker.fabric.events()
        world.net.heal("45.77.2.1", "45.77.3.1")
        manager = seeker.fabric._manager  # type: ignore[attr-defined]
        direct = await manager.dialler.dial(hidden.id, [hidden.fabric.addrs()[0]])
        manager._nursery.start_soon(manager.carry, direct)
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
    async def scenario(world: RelayWorld) -> None:
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


def test_only_who_relays_says_so_and_places_given_before_last_on() -> None:
    async def scenario(world: RelayWorld) -> None:
        middle, hidden, _ = await world.trio_of_nodes()
        watcher = await world.node(4, public=True, relay=RelayConfig(serve=False))
        await watcher.fabric.connect(middle.id, middle.fabric.addrs())
        await trio.sleep(120)  # reachability has said its last word
        assert HOP in watcher.fabric.protocols(middle.id)
        assert HOP not in middle.fabric.protocols(hidden.id)
        relay = middle.traversal._relay  # type: ignore[union-attr]
        relay.reachable(False)
        await trio.sleep(2)
        assert HOP in watcher.fabric.protocols(middle.id)
        world.net.partition("45.77.2.1", "45.77.4.1")
        await watcher.fabric.connect(hidden.id, circuits_of(hidden))  # who has a place is reached
        await watcher.fabric.disconnect(hidden.id)
        await hidden.fabric.disconnect(middle.id)
        await trio.sleep(3)
        assert HOP not in watcher.fabric.protocols(middle.id), "the last place is gone"
        await hidden.fabric.connect(middle.id, middle.fabric.addrs())
        await trio.sleep(2)
        assert circuits_of(hidden) == []
        assert hidden.report().counters.get("relay_places_refused", 0) == 0, "nobody asks in vain"
        relay.reachable(True)
        await trio.sleep(3)
        assert len(circuits_of(hidden)) == 1, "who heard of it asks at once"

    play(scenario)


def test_a_node_told_not_to_relay_does_not_say_that_it_does() -> None:
    async def scenario(world: RelayWorld) -> None:
        _, hidden, _ = await world.trio_of_nodes(RelayConfig(serve=False))
        assert HOP not in hidden.fabric.protocols(identity(RELAY).id)
        assert circuits_of(hidden) == []

    play(scenario)


def test_a_place_is_renewed_at_half_its_life() -> None:
    async def scenario(world: RelayWorld) -> None:
        middle, hidden, seeker = await world.trio_of_nodes(RelayConfig(reservation_s=600))
        await trio.sleep(3600)
        (addr,) = circuits_of(hidden)
        await seeker.fabric.connect(hidden.id, [addr])
        assert middle.report().counters["relay_reservations"] >= 12

    play(scenario)


def test_nobody_is_reached_who_holds_no_place() -> None:
    async def scenario(world: RelayWorld) -> None:
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
    async def scenario(world: RelayWorld) -> None:
        world.members = set()
        _, hidden, _ = await world.trio_of_nodes()
        assert circuits_of(hidden) == []

    async def open_to_all(world: RelayWorld) -> None:
        world.members = set()
        _, hidden, _ = await world.trio_of_nodes(RelayConfig(strangers=True))
        assert len(circuits_of(hidden)) == 1

    play(scenario)
    play(open_to_all)


def test_a_circuit_that_had_its_share_is_cut() -> None:
    async def scenario(world: RelayWorld) -> None:
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


def test_a_relay_that_did_not_know_us_yet_is_asked_again_soon() -> None:
    async def scenario(world: RelayWorld) -> None:
        everybody, world.members = world.members, set()
        middle, hidden, _ = await world.trio_of_nodes()
        assert circuits_of(hidden) == []
        world.members |= everybody
        await trio.sleep(5)
        assert len(circuits_of(hidden)) == 1
        refused = middle.report().counters["relay_permission_denied"]
        assert refused <= 3, "not at once, again and again"

    play(scenario)


def test_a_relay_that_goes_on_refusing_is_asked_once_a_minute() -> None:
    async def scenario(world: RelayWorld) -> None:
        world.members = set()
        middle, _, _ = await world.trio_of_nodes()
        await trio.sleep(3600)
        assert middle.report().counters["relay_permission_denied"] < 75

    play(scenario)
