"""Hole punching over the simulated network: what it does with a relayed connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from p2p.nat.punch_messages import DCUTR
from tests.helpers.fabrics import ECHO, ask
from tests.helpers.relays import circuits_of, play

if TYPE_CHECKING:
    from tests.helpers.relays import RelayWorld


def test_a_relayed_connection_to_one_who_can_be_dialled_becomes_direct() -> None:
    async def scenario(world: RelayWorld) -> None:
        _, hidden, seeker = await world.trio_of_nodes()
        world.net.heal()
        await seeker.fabric.connect(hidden.id, circuits_of(hidden))
        assert seeker.fabric.peers()[hidden.id].path == "relay"
        stream = await seeker.fabric.open(hidden.id, ECHO)
        await trio.sleep(5)
        assert seeker.fabric.peers()[hidden.id].path == "direct"
        assert hidden.fabric.peers()[seeker.id].path == "direct"
        assert hidden.report().counters["punch_dialled"] == 1
        assert await ask(stream, b"opened before") == b"opened before"

    play(scenario)


def test_two_that_are_cut_off_stay_relayed_and_stop_trying() -> None:
    async def scenario(world: RelayWorld) -> None:
        _, hidden, seeker = await world.trio_of_nodes()
        await seeker.fabric.connect(hidden.id, circuits_of(hidden))
        await trio.sleep(600)
        assert seeker.fabric.peers()[hidden.id].path == "relay"
        assert hidden.report().counters["punch_rounds"] == 3
        assert hidden.report().counters["punch_failed"] == 1
        assert await ask(await seeker.fabric.open(hidden.id, ECHO), b"still") == b"still"

    play(scenario)


def test_a_pair_that_failed_tries_again_within_an_hour_or_so() -> None:
    async def scenario(world: RelayWorld) -> None:
        _, hidden, seeker = await world.trio_of_nodes()
        await seeker.fabric.connect(hidden.id, circuits_of(hidden))
        await trio.sleep(600)
        world.net.heal()
        await trio.sleep(3600)
        assert seeker.fabric.peers()[hidden.id].path == "direct"

    play(scenario)


def test_nobody_is_punched_at_without_a_relayed_connection() -> None:
    async def scenario(world: RelayWorld) -> None:
        middle, hidden, _ = await world.trio_of_nodes()
        stream = await hidden.fabric.open(middle.id, DCUTR)
        await stream.send_all(b"\x02\x08\x64")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert middle.report().counters["violations"] == 1

    play(scenario)
