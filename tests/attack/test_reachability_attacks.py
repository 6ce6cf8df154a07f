"""Whoever asks, answers or delivers in bad faith: no packet to a third, no false "public"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio

from p2p.config import P2pConfig
from p2p.env import SeededEnv
from p2p.errors import AuthError, Busy, RemoteError, Unreachable
from p2p.nat.autonat_messages import (
    DIAL_BACK,
    DIAL_REQUEST,
    MESSAGE_BYTES_MAX,
    DialDataRequest,
    DialRequest,
    DialResponse,
    DialStatus,
    RequestStatus,
    decode_dial_untrusted,
    encode_dial,
    encode_dial_back,
)
from p2p.nat.dialback import DIALBACK, DialBackQuery, DialBackReply
from p2p.nat.dialback_wire import NonceDialer
from p2p.nat.reachability import Reach
from p2p.net.framed import FramedStream
from p2p.net.memnat import PORT_RESTRICTED, Dependence, NatConfig
from tests.helpers.fabrics import ECHO, ask
from tests.helpers.reach_world import ReachWorld, circuits_of, count, meet, play, state_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.net.seam import Stream
    from p2p.node import Node

pytestmark = pytest.mark.attack

VICTIM: Final = "45.77.66.1"
SERVER_IP: Final = "45.77.1.1"
FIREWALL: Final = NatConfig(translates=False, filtering=Dependence.ADDRESS)
"""Lets in any port of a host that was sent to."""


async def request(client: Node, server: Node, *addrs: str, nonce: int = 7) -> DialResponse:
    """Ask a server for a dial; what it answers."""
    stream = await client.fabric.open(server.id, DIAL_REQUEST)
    framed = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
    await framed.send(encode_dial(DialRequest(addrs, nonce)))
    answer = decode_dial_untrusted(await framed.receive())
    assert isinstance(answer, DialResponse)
    await stream.aclose()
    return answer


def dialer_of(node: Node) -> NonceDialer:
    """What a hostile node delivers nonces with."""
    env = SeededEnv(2, "hostile", trio.current_time)
    return NonceDialer(node.fabric.dial_apart, P2pConfig.test(), env)  # type: ignore[attr-defined]


async def hostile_server(
    world: ReachWorld, number: int, act: Callable[[Stream, DialRequest], Awaitable[None]]
) -> Node:
    """A node that serves AutoNAT as `act` pleases."""
    node = await world.node(number, "private")

    async def serve(stream: Stream) -> None:
        framed = FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX)
        asked = decode_dial_untrusted(await framed.receive())
        assert isinstance(asked, DialRequest)
        await act(stream, asked)

    node.fabric.handle(DIAL_REQUEST, serve, per_peer_max=9)
    return node


async def say(stream: Stream, message: DialResponse | DialDataRequest) -> None:
    await FramedStream(stream, message_bytes_max=MESSAGE_BYTES_MAX).send(encode_dial(message))


SAYS_OK: Final = DialResponse(RequestStatus.OK, 0, DialStatus.OK)
SAYS_NO: Final = DialResponse(RequestStatus.OK, 0, DialStatus.DIAL_ERROR)

# --- what a server can be made to do --------------------------------------------------------------


def test_a_dial_back_aimed_at_a_third_party_is_refused_without_a_packet() -> None:
    async def scenario(world: ReachWorld) -> None:
        server = await world.node(1, "public")
        attacker = await world.node(2, "private")
        victim = await world.node(66, "private")
        await meet(attacker, server)
        aims = [f"/ip4/{VICTIM}/tcp/{port}" for port in range(15_000, 15_031)]
        answer = await request(attacker, server, *victim.fabric.addrs(), *aims)
        assert answer.status is RequestStatus.REFUSED
        assert world.net.knocked(SERVER_IP, VICTIM) == 0
        answer = await request(attacker, server, *aims[:2], *attacker.fabric.addrs())
        assert (answer.status, answer.index) == (RequestStatus.OK, 2)
        assert world.net.knocked(SERVER_IP, VICTIM) == 0

    play(scenario, attack=True)


@pytest.mark.parametrize(
    "addr", ["/ip4/45.77.2.1/tcp/22", "/ip4/10.0.0.1/tcp/15001", "/dns4/example.org/tcp/15001"]
)
def test_services_private_hosts_and_names_are_not_dialled(addr: str) -> None:
    async def scenario(world: ReachWorld) -> None:
        server, attacker = await world.node(1, "public"), await world.node(2, "private")
        await meet(attacker, server)
        before = len(world.net.knocks)
        assert (await request(attacker, server, addr)).status is RequestStatus.REFUSED
        assert len(world.net.knocks) == before

    play(scenario, attack=True)


def test_who_comes_over_a_relay_cannot_have_the_relay_dialled() -> None:
    async def scenario(world: ReachWorld) -> None:
        relay = await world.node(1, "public")
        server, attacker = await world.node(2, "private"), await world.node(3, "private")
        await meet(server, relay)
        world.net.partition("45.77.2.1", "45.77.3.1")
        assert server.traversal is not None
        server.traversal._reach._server.serving = True
        await attacker.fabric.connect(server.id, circuits_of(server))
        await trio.sleep(1)
        assert attacker.fabric.peers()[server.id].path == "relay"
        before = world.net.knocked("45.77.2.1", "45.77.1.1")
        answer = await request(attacker, server, relay.fabric.addrs()[0])
        assert answer.status is RequestStatus.REFUSED
        assert world.net.knocked("45.77.2.1", "45.77.1.1") == before

    play(scenario, attack=True)


def test_a_flood_of_requests_is_answered_six_times_a_minute() -> None:
    async def scenario(world: ReachWorld) -> None:
        server = await world.node(1, "public")
        attacker, other = await world.node(2, "private"), await world.node(3, "private")
        await meet(attacker, server)
        await meet(other, server)
        addr = attacker.fabric.addrs()[0]
        before = world.net.knocked(SERVER_IP, "45.77.2.1")
        answers = [await request(attacker, server, addr) for _ in range(40)]
        assert [answer.status for answer in answers[:6]] == [RequestStatus.OK] * 6
        assert {answer.status for answer in answers[6:]} == {RequestStatus.REJECTED}
        assert world.net.knocked(SERVER_IP, "45.77.2.1") == before + 6
        assert (await request(other, server, *other.fabric.addrs())).status is RequestStatus.OK
        assert await ask(await other.fabric.open(server.id, ECHO), b"served") == b"served"
        await trio.sleep(60)
        assert (await request(attacker, server, addr)).status is RequestStatus.OK

    play(scenario, attack=True)


def test_many_attackers_together_get_sixty_dials_a_minute() -> None:
    async def scenario(world: ReachWorld) -> None:
        server = await world.node(1, "public")
        attackers = [await world.node(n, "private") for n in range(2, 14)]
        for attacker in attackers:
            await meet(attacker, server)
        granted = 0
        for attacker in attackers:
            for _ in range(6):
                answer = await request(attacker, server, *attacker.fabric.addrs())
                granted += answer.status is RequestStatus.OK
        assert granted == 60

    play(scenario, attack=True)


def test_a_request_brings_no_more_packets_than_it_costs() -> None:
    async def scenario(world: ReachWorld) -> None:
        server = await world.node(1, "public")
        attacker = await world.node(2, "private", nat=PORT_RESTRICTED)
        await meet(attacker, server)
        aims = [f"/ip4/45.77.2.1/tcp/{port}" for port in range(20_000, 20_032)]
        began_s = trio.current_time()
        answer = await request(attacker, server, *aims)
        assert answer.dial_status is DialStatus.DIAL_ERROR
        assert trio.current_time() - began_s < 6
        await trio.sleep(60)
        # One of 32 addresses, with the repetitions of TCP's opening in five seconds.
        assert world.net.knocked(SERVER_IP, "45.77.2.1") <= 3

    play(scenario, attack=True)


# --- what a server can make of us -----------------------------------------------------------------


def test_a_server_that_lies_is_not_believed() -> None:
    async def scenario(world: ReachWorld) -> None:
        async def lie(stream: Stream, asked: DialRequest) -> None:  # noqa: ARG001 - the shape
            await say(stream, SAYS_OK)

        liar = await hostile_server(world, 1, lie)
        node = await world.node(2)
        await meet(node, liar)
        await trio.sleep(600)
        assert count(node, "autonat_asked") > 0
        assert state_of(node) is Reach.UNKNOWN

    play(scenario, attack=True)


def test_one_bad_word_does_not_outweigh_a_proof() -> None:
    async def scenario(world: ReachWorld) -> None:
        async def lie(stream: Stream, asked: DialRequest) -> None:  # noqa: ARG001 - the shape
            await say(stream, SAYS_NO)

        liars = [await hostile_server(world, n, lie) for n in (1, 2)]
        server, helper = await world.node(3, "public"), await world.node(4, "public")
        await meet(server, helper)
        node = await world.node(5)
        await meet(node, *liars, server)
        await trio.sleep(1200)
        assert state_of(node) is Reach.PUBLIC

    play(scenario, attack=True)


def test_a_server_that_wants_bytes_gets_none() -> None:
    got: list[bytes] = []

    async def scenario(world: ReachWorld) -> None:
        async def demand(stream: Stream, asked: DialRequest) -> None:  # noqa: ARG001 - the shape
            await say(stream, DialDataRequest(0, 100_000))
            try:
                while data := await stream.receive_some():
                    got.append(bytes(data))
            except trio.BrokenResourceError:
                got.append(b"reset")
                raise

        server = await hostile_server(world, 1, demand)
        node = await world.node(2)
        await meet(node, server)
        await trio.sleep(20)
        assert got == [b"reset"]
        assert state_of(node) is Reach.UNKNOWN

    play(scenario, attack=True)


def test_a_forged_nonce_proves_nothing() -> None:
    async def scenario(world: ReachWorld) -> None:
        async def forge(stream: Stream, asked: DialRequest) -> None:
            for wrong in (asked.nonce ^ 1, 0, asked.nonce >> 1):
                status = await dialer_of(server).deliver(stream.peer, str(asked.addrs[0]), wrong)
                assert status is DialStatus.DIAL_BACK_ERROR
            await say(stream, SAYS_OK)

        server = await hostile_server(world, 1, forge)
        node = await world.node(2)
        await meet(node, server)
        await trio.sleep(60)
        assert count(node, "autonat_nonces_refused") == 3
        assert state_of(node) is Reach.UNKNOWN

    play(scenario, attack=True)


def test_a_replayed_nonce_counts_once() -> None:
    async def scenario(world: ReachWorld) -> None:
        async def replay(stream: Stream, asked: DialRequest) -> None:
            addr = str(asked.addrs[0])
            statuses = [
                await dialer_of(server).deliver(stream.peer, addr, asked.nonce) for _ in range(3)
            ]
            assert statuses == [DialStatus.OK, *[DialStatus.DIAL_BACK_ERROR] * 2]
            await say(stream, SAYS_OK)
            await trio.sleep(30)
            late = await dialer_of(server).deliver(stream.peer, addr, asked.nonce)
            assert late is DialStatus.DIAL_BACK_ERROR

        server = await hostile_server(world, 1, replay)
        node = await world.node(2)
        await meet(node, server)
        await trio.sleep(60)
        assert count(node, "reach_nonces") == 1
        assert state_of(node) is Reach.LIKELY

    play(scenario, attack=True)


def test_a_nonce_on_a_connection_that_we_made_or_had_proves_nothing() -> None:
    async def scenario(world: ReachWorld) -> None:
        async def deliver_there(stream: Stream, asked: DialRequest) -> None:
            back = await server.fabric.open(stream.peer, DIAL_BACK)
            framed = FramedStream(back, message_bytes_max=256)
            await framed.send(encode_dial_back(asked.nonce))
            with pytest.raises(trio.BrokenResourceError):
                await back.receive_some()
            await say(stream, SAYS_OK)

        server = await hostile_server(world, 1, deliver_there)
        node = await world.node(2)
        await meet(node, server)
        await trio.sleep(20)
        assert not node.fabric.peers()[server.id].inbound
        assert count(node, "autonat_nonces_refused") >= 1
        assert state_of(node) is Reach.UNKNOWN

        before = count(node, "autonat_nonces_refused")
        await node.fabric.disconnect(server.id)
        await trio.sleep(1)
        await server.fabric.connect(node.id, node.fabric.addrs())
        await trio.sleep(120)
        assert node.fabric.peers()[server.id].inbound
        assert count(node, "autonat_nonces_refused") > before
        assert state_of(node) is Reach.UNKNOWN

    play(scenario, attack=True)


def test_a_host_that_we_talked_to_proves_nothing_by_connecting() -> None:
    async def scenario(world: ReachWorld) -> None:
        other, node = await world.node(1, "private"), await world.node(2, nat=FIREWALL)
        await meet(node, other)
        await node.fabric.disconnect(other.id)
        await trio.sleep(240)
        await meet(other, node)
        assert node.fabric.peers()[other.id].inbound, "the firewall let it in for our sake"
        assert state_of(node) is Reach.UNKNOWN

    play(scenario, attack=True)


def test_a_neighbour_proves_nothing_by_connecting() -> None:
    async def scenario(world: ReachWorld) -> None:
        node = await world.node(1, ip="45.77.1.1")
        neighbour = await world.node(2, "private", ip="45.77.1.2")
        await meet(neighbour, node)
        assert state_of(node) is Reach.UNKNOWN

    play(scenario, attack=True)


def test_a_lie_about_where_we_are_seen_brings_no_packet_to_that_place() -> None:
    async def scenario(world: ReachWorld) -> None:
        server, helper = await world.node(1, "public"), await world.node(2, "public")
        victim = await world.node(66, "private")
        liars = [await world.node(n, "private") for n in (3, 4)]
        await meet(server, helper)
        node = await world.node(5, nat=PORT_RESTRICTED)
        await meet(node, server, *liars)
        (aim,) = victim.fabric.addrs()
        for liar in liars:
            node.fabric.on_observed(liar.id, liar.fabric.addrs()[0], aim)  # type: ignore[attr-defined]
        await trio.sleep(1200)
        assert count(server, "autonat_refused") >= 1
        for source in (SERVER_IP, "45.77.2.1", "10.0.5.2"):
            assert world.net.knocked(source, VICTIM) == 0

    play(scenario, attack=True)


# --- what a helper can be made to do --------------------------------------------------------------


async def call(caller: Node, helper: Node, target: Node, addr: str = "") -> DialBackReply:
    addr = addr or target.fabric.addrs()[0]
    query = DialBackQuery(target.id, addr, bytes(8))
    return await caller.rpc.call(helper.id, DIALBACK, query, timeout_s=20)


def test_a_stranger_has_nobody_dialled() -> None:
    async def scenario(world: ReachWorld) -> None:
        helper, stranger = await world.node(1, "public"), await world.node(2, "private")
        victim = await world.node(66, "private")
        world.strangers.add(stranger.id)
        await meet(stranger, helper)
        with pytest.raises(AuthError):
            await call(stranger, helper, victim)
        assert world.net.knocked(SERVER_IP, VICTIM) == 0

    play(scenario, attack=True)


def test_no_member_is_asked_to_help_a_stranger() -> None:
    async def scenario(world: ReachWorld) -> None:
        server, helper = await world.node(1, "public"), await world.node(2, "public")
        await meet(server, helper)
        stranger = await world.node(3)
        world.strangers.add(stranger.id)
        await meet(stranger, server)
        await trio.sleep(60)
        assert state_of(stranger) is Reach.LIKELY, "the server itself serves anybody"
        assert count(helper, "dialback_served") == 0

    play(scenario, attack=True)


def test_a_member_has_six_dialled_a_minute_and_nobody_told_the_nonce() -> None:
    async def scenario(world: ReachWorld) -> None:
        helper, member = await world.node(1, "public"), await world.node(2, "private")
        other = await world.node(3, "private")
        victim = await world.node(66, "private")
        await meet(member, helper)
        for _ in range(6):
            # Somebody else lives there than the one it is for.
            assert not (await call(member, helper, other, victim.fabric.addrs()[0])).delivered
        with pytest.raises(Busy):
            await call(member, helper, other)
        assert world.net.knocked(SERVER_IP, VICTIM) == 6
        assert count(victim, "autonat_nonces_refused") == 0
        assert count(victim, "handshakes_failed") == 6
        await trio.sleep(60)
        await call(member, helper, other)

    play(scenario, attack=True)


@pytest.mark.parametrize(
    "addr", [f"/ip4/{VICTIM}/tcp/22", "/ip4/10.0.0.1/tcp/15001", "/dns4/example.org/tcp/15001", "x"]
)
def test_a_helper_dials_no_service_no_private_host_and_no_name(addr: str) -> None:
    async def scenario(world: ReachWorld) -> None:
        helper, member = await world.node(1, "public"), await world.node(2, "private")
        victim = await world.node(66, "private")
        await meet(member, helper)
        before = len(world.net.knocks)
        for target in (victim, member, helper):
            with pytest.raises(RemoteError, match="not an address to dial"):
                await call(member, helper, target, addr)
        for target in (member, helper):
            with pytest.raises(RemoteError, match="not an address to dial"):
                await call(member, helper, target)
        assert len(world.net.knocks) == before

    play(scenario, attack=True)


def test_who_is_not_public_does_not_help() -> None:
    async def scenario(world: ReachWorld) -> None:
        helper, member = await world.node(1, "private"), await world.node(2, "private")
        target = await world.node(3, "private")
        await meet(member, helper)
        with pytest.raises(Unreachable, match="not known to be reachable"):
            await call(member, helper, target)
        assert world.net.knocked(SERVER_IP, "45.77.3.1") == 0

    play(scenario, attack=True)
