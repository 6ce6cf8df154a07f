"""What reachability hears of real sockets: who came in, on which address, whom we sent to."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

import trio

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.net.seam import PeerDown, PeerIdentified
from p2p.net.tcp import TcpTransport
from p2p.net.wire_fabric import WireFabric
from p2p.node import Node
from tests.helpers.fabrics import ECHO, echo, identity, next_event

if TYPE_CHECKING:
    from p2p.net.contacts import Contacts
    from p2p.net.driver import Connection

LOOPBACK: Final = ipaddress.ip_address("127.0.0.1")


def new_fabric(number: int) -> WireFabric:
    config = P2pConfig.test()
    return WireFabric(identity(number), config, SystemEnv(), [TcpTransport(config)])


def contacts_of(fabric: WireFabric) -> Contacts:
    return fabric._manager.contacts


async def test_an_accepted_connection_says_where_it_came_in_and_whether_it_was_expected() -> None:
    seen: list[Connection] = []
    came = trio.Event()

    def note(connection: Connection) -> None:
        seen.append(connection)
        came.set()

    first, second = new_fabric(1), new_fabric(2)
    second.on_accepted = note
    first.on_accepted = seen.append  # it is not told of its own dial
    async with trio.open_nursery() as nursery:
        await nursery.start(first.run)
        await nursery.start(second.run)
        for expected in (False, True):
            events = second.events()
            await first.connect(second.id, second.addrs())
            with trio.fail_after(20):
                await came.wait()
            came = trio.Event()
            connection = seen[-1]
            assert (connection.peer, connection.inbound) == (first.id, True)
            assert connection.local_ip == connection.remote_ip == LOOPBACK
            assert connection.unasked is not expected
            await first.disconnect(second.id)
            await next_event(events, PeerDown, first.id, within_s=20)
        assert len(seen) == 2
        assert connection.local_ip is None, "it is closed"
        nursery.cancel_scope.cancel()


async def test_a_name_that_is_dialled_makes_its_hosts_contacts() -> None:
    first, second = new_fabric(1), new_fabric(2)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.run)
        await nursery.start(second.run)
        (addr,) = second.addrs()
        env = SystemEnv()
        assert contacts_of(first).unknown(LOOPBACK, env.now())
        await first.connect(second.id, [addr.replace("/ip4/127.0.0.1/", "/dns4/localhost/")])
        assert not contacts_of(first).unknown(LOOPBACK, env.now())
        later_s = env.now() + 1000
        assert not contacts_of(first).unknown(LOOPBACK, later_s), "the connection lives"
        nursery.cancel_scope.cancel()


async def test_what_is_served_no_more_is_told_and_may_be_served_again() -> None:
    first, second = new_fabric(1), new_fabric(2)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.run)
        await nursery.start(second.run)
        second.handle(ECHO, echo, per_peer_max=4)
        events = first.events()
        await first.connect(second.id, second.addrs())
        for served in (True, False, True):
            await next_event(events, PeerIdentified, second.id, within_s=30)
            assert (ECHO in first.protocols(second.id)) is served
            if served:
                second.unhandle(ECHO)
                second.unhandle(ECHO)
            else:
                second.handle(ECHO, echo, per_peer_max=4)
        nursery.cancel_scope.cancel()


async def test_on_one_machine_nobody_is_asked_and_nothing_is_believed() -> None:
    config = P2pConfig.test()
    nodes = [
        Node(identity(number), config, SystemEnv(), [TcpTransport(config)]) for number in (1, 2)
    ]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            node.set_members(lambda peer: True)  # noqa: ARG005 - everybody
            await nursery.start(node.run)
        await nodes[0].fabric.connect(nodes[1].id, nodes[1].fabric.addrs())
        await trio.sleep(1.5)
        for node in nodes:
            report = node.report().traversal
            assert report is not None
            assert report.reachability.state.value == "unknown"
            assert report.reachability.servers == 0
            assert node.report().counters.get("autonat_asked", 0) == 0
        nursery.cancel_scope.cancel()
