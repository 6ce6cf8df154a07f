"""Hostile relays, clients and punchers, over the real wire on a simulated network.

After each attack an honest pair still meets over the relay, and nothing is left open.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.errors import Unreachable
from p2p.identity import peer_text
from p2p.nat.punch_messages import DCUTR, PunchMessage, PunchType, encode_punch
from p2p.nat.relay_config import RelayConfig
from p2p.nat.relay_messages import (
    HOP,
    MESSAGE_BYTES_MAX,
    STOP,
    HopMessage,
    HopType,
    Status,
    StopMessage,
    StopType,
    decode_hop_untrusted,
    decode_stop_untrusted,
    encode_hop,
    encode_stop,
)
from p2p.net.framed import FramedStream
from tests.helpers.fabrics import ECHO, ask
from tests.helpers.relays import NO_QUOTA, circuits_of, play

if TYPE_CHECKING:
    from p2p.net.seam import Stream
    from p2p.node import Node
    from tests.helpers.relays import RelayWorld

pytestmark = pytest.mark.attack


def framed(stream: Stream) -> FramedStream:
    return FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)


async def hop(us: Node, relay: Node, message: HopMessage) -> HopMessage:
    """One request to a relay."""
    stream = await us.fabric.open(relay.id, HOP)
    talk = framed(stream)
    await talk.send(encode_hop(message))
    answer = decode_hop_untrusted(await talk.receive())
    stream.reset()
    return answer


async def offer(us: Node, victim: Node) -> StopMessage:
    """Offer a circuit as a relay would."""
    stream = await us.fabric.open(victim.id, STOP)
    talk = framed(stream)
    await talk.send(encode_stop(StopMessage(type=StopType.CONNECT, peer=us.id)))
    answer = decode_stop_untrusted(await talk.receive())
    stream.reset()
    return answer


async def bystander_is_served(relay: Node, hidden: Node, seeker: Node) -> None:
    """An honest pair meets over the relay, and nothing is left open afterwards."""
    await seeker.fabric.connect(hidden.id, circuits_of(hidden))
    assert await ask(await seeker.fabric.open(hidden.id, ECHO), b"served") == b"served"
    await seeker.fabric.disconnect(hidden.id)
    await trio.sleep(20)
    report = relay.report().traversal
    assert report is not None
    assert report.relay.circuits == 0
    assert relay.report().counters.get("bug", 0) == 0


def test_nobody_is_reached_against_their_will() -> None:
    async def scenario(world: RelayWorld) -> None:
        relay, hidden, seeker = await world.trio_of_nodes()
        await seeker.fabric.connect(relay.id, relay.fabric.addrs())
        other = await world.node(4, public=True)
        await other.fabric.connect(relay.id, relay.fabric.addrs())
        answer = await hop(seeker, relay, HopMessage(type=HopType.CONNECT, peer=other.id))
        assert answer.status == Status.NO_RESERVATION
        await bystander_is_served(relay, hidden, seeker)

    play(scenario, attack=True)


def test_a_stranger_gets_neither_a_place_nor_a_circuit_to_a_stranger() -> None:
    async def scenario(world: RelayWorld) -> None:
        relay, hidden, seeker = await world.trio_of_nodes()
        stranger = await world.node(5, public=False)
        await stranger.fabric.connect(relay.id, relay.fabric.addrs())
        answer = await hop(stranger, relay, HopMessage(type=HopType.RESERVE))
        assert answer.status == Status.PERMISSION_DENIED
        circuit = f"{relay.fabric.addrs()[0]}/p2p/{peer_text(relay.id)}/p2p-circuit"
        world.net.partition("45.77.3.1", "45.77.5.1")
        with pytest.raises(Unreachable, match="holds no place"):
            await seeker.fabric.connect(stranger.id, [circuit])
        await bystander_is_served(relay, hidden, seeker)

    play(scenario, attack=True)


def test_a_node_that_nobody_can_dial_gives_no_places() -> None:
    async def scenario(world: RelayWorld) -> None:
        relay, hidden, seeker = await world.trio_of_nodes()
        await seeker.fabric.connect(relay.id, relay.fabric.addrs())
        with pytest.raises(trio.BrokenResourceError):  # not even the protocol is there
            await hop(relay, hidden, HopMessage(type=HopType.RESERVE))
        await bystander_is_served(relay, hidden, seeker)

    play(scenario, attack=True)


def test_only_our_relays_may_offer_circuits_and_only_so_many() -> None:
    async def scenario(world: RelayWorld) -> None:
        relay, hidden, seeker = await world.trio_of_nodes(RelayConfig(strangers=True))
        other = await world.node(4, public=True)
        await other.fabric.connect(hidden.id, [hidden.fabric.addrs()[0]])
        world.members.discard(other.id)
        place = await offer(other, hidden)
        assert place.status == Status.PERMISSION_DENIED, "no place there"
        answers = [(await offer(relay, hidden)).status for _ in range(12)]
        assert answers[:10] == [Status.OK] * 10
        assert answers[10:] == [Status.PERMISSION_DENIED] * 2
        await trio.sleep(61)
        await bystander_is_served(relay, hidden, seeker)

    play(scenario, attack=True)


def test_silent_and_oversize_requests_cost_a_stream_for_a_while() -> None:
    async def scenario(world: RelayWorld) -> None:
        relay, hidden, seeker = await world.trio_of_nodes()
        await seeker.fabric.connect(relay.id, relay.fabric.addrs())
        silent = [await seeker.fabric.open(relay.id, HOP) for _ in range(40)]
        for stream in silent:
            await stream.send_all(b"\x7f")
        await trio.sleep(20)
        for stream in silent:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        huge = await seeker.fabric.open(relay.id, HOP)
        await huge.send_all(b"\xff\xff\xff\x7f" + bytes(100))
        answer = decode_hop_untrusted(await framed(huge).receive())
        assert answer.status == Status.MALFORMED_MESSAGE
        huge.reset()
        await bystander_is_served(relay, hidden, seeker)

    play(scenario, attack=True)


def test_a_circuit_ends_at_its_time_however_quiet() -> None:
    async def scenario(world: RelayWorld) -> None:
        quota = replace(NO_QUOTA, circuit_s_max=60.0)
        relay, hidden, seeker = await world.trio_of_nodes(RelayConfig(member=quota))
        await seeker.fabric.connect(hidden.id, circuits_of(hidden))
        await trio.sleep(61)
        assert relay.report().counters["relay_circuits_cut"] == 1
        assert hidden.id not in seeker.fabric.peers()
        await bystander_is_served(relay, hidden, seeker)

    play(scenario, attack=True)


def test_a_circuit_is_held_to_its_rate() -> None:
    async def scenario(world: RelayWorld) -> None:
        quota = replace(NO_QUOTA, circuit_bytes_per_s=100_000.0)
        relay, hidden, seeker = await world.trio_of_nodes(RelayConfig(member=quota))
        await seeker.fabric.connect(hidden.id, circuits_of(hidden))
        stream = await seeker.fabric.open(hidden.id, ECHO)
        began = trio.current_time()
        await ask(stream, bytes(1_000_000))
        took_s = trio.current_time() - began
        assert 8.5 < took_s < 20, "one second's worth is a burst, the rest is paced"
        await bystander_is_served(relay, hidden, seeker)

    play(scenario, attack=True)


@pytest.mark.parametrize(
    "aim",
    [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/192.168.1.1/tcp/4001",
        "/ip4/224.0.0.1/tcp/4001",
        "/ip4/45.77.9.9/tcp/22",
        "/ip6/::1/tcp/4001",
    ],
)
def test_a_punch_is_never_aimed_at_private_or_low_places(aim: str) -> None:
    from p2p.config import P2pConfig
    from p2p.nat.punch import may_aim_at
    from p2p.net.identify import REACH_EVERYBODY, reach_of

    config = P2pConfig.wan()
    assert not may_aim_at(aim, lambda addr: reach_of(addr, config) == REACH_EVERYBODY)
    good = "/ip4/45.77.9.9/tcp/4001"
    assert may_aim_at(good, lambda addr: reach_of(addr, config) == REACH_EVERYBODY)


def test_punching_asks_for_a_relayed_connection_and_is_counted() -> None:
    async def scenario(world: RelayWorld) -> None:
        relay, hidden, seeker = await world.trio_of_nodes()
        await seeker.fabric.connect(hidden.id, circuits_of(hidden))
        dials = seeker.report().counters["dials"]
        await trio.sleep(60)  # hidden leads its three rounds, in vain
        assert hidden.report().counters["punch_rounds"] == 3
        stream = await hidden.fabric.open(seeker.id, DCUTR)
        aim = encode_punch(PunchMessage(PunchType.CONNECT, ("/ip4/45.77.9.9/tcp/4001",)))
        await framed(stream).send(aim)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert seeker.report().counters["punch_refused"] == 1
        assert seeker.report().counters["dials"] == dials
        direct = await seeker.fabric.open(relay.id, DCUTR)
        await framed(direct).send(aim)
        with pytest.raises(trio.BrokenResourceError):
            await direct.receive_some()
        assert relay.report().counters["violations"] == 1

    play(scenario, attack=True)
