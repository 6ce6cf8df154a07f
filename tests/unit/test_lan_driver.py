"""LAN discovery over real multicast sockets on this machine."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.identity import Identity
from p2p.nat.lan_config import LanConfig
from p2p.nat.lan_driver import LanDriver
from p2p.net.interfaces import Interface, list_interfaces
from p2p.net.seam import PeerUp
from p2p.net.tcp import TcpTransport
from p2p.node import Node
from tests.helpers.leaks import Census

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.identity import PeerId
    from p2p.net.seam import Addr

LIMIT_S = 30.0
"""Ends a hang, decides nothing."""


def loopback() -> Interface:
    return next(interface for interface in list_interfaces() if interface.loopback)


class Member:
    """A driver on the loopback interface, and whom it found."""

    def __init__(
        self,
        network: str,
        *,
        config: LanConfig | None = None,
        interfaces: Callable[[], Sequence[Interface]] = lambda: [loopback()],
    ) -> None:
        env = SystemEnv()
        self.id = Identity.generate(env.rng).id
        self.listening = ["/ip4/0.0.0.0/tcp/15001"]
        self.found: dict[PeerId, list[Addr]] = {}
        self._changed = trio.Event()
        self.driver = LanDriver(
            self.id,
            config or LanConfig(),
            env,
            network=network,
            listening=lambda: self.listening,
            found=self._hear,
            interfaces=interfaces,
        )

    def _hear(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        self.found.setdefault(peer, []).extend(addrs)
        self._changed.set()

    async def until(self, check: Callable[[], bool]) -> None:
        with trio.fail_after(LIMIT_S):
            while not check():
                self._changed = trio.Event()
                await self._changed.wait()


@pytest.fixture
def network() -> str:
    """Tests that run at the same time on one machine do not meet."""
    return f"n{SystemEnv().rng.getrandbits(64):x}"


async def test_two_on_one_machine_find_each_other(network: str) -> None:
    first, second = Member(network), Member(network)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.driver.run)
        await nursery.start(second.driver.run)
        await first.until(lambda: second.id in first.found)
        await second.until(lambda: first.id in second.found)
        nursery.cancel_scope.cancel()
    assert first.found == {second.id: ["/ip4/127.0.0.1/tcp/15001"]}


async def test_one_of_another_network_is_not_met(network: str) -> None:
    first, second, other = Member(network), Member(network), Member(network + "x")
    async with trio.open_nursery() as nursery:
        for member in (first, other, second):
            await nursery.start(member.driver.run)
        await first.until(lambda: second.id in first.found)
        await second.until(lambda: first.id in second.found)
        nursery.cancel_scope.cancel()
    assert other.found == {}
    assert other.id not in first.found


async def test_who_goes_is_no_neighbour_any_more(network: str) -> None:
    first, second = Member(network), Member(network)
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        await nursery.start(first.driver.run)

        async def leave_later(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await second.driver.run(task_status=task_status)

        await nursery.start(leave_later)
        await first.until(lambda: second.id in first.found)
        assert [one[0] for one in first.driver.report().neighbours] == [second.id]
        scope.cancel()
        with trio.fail_after(LIMIT_S):
            while first.driver.report().neighbours:
                await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


async def test_nothing_is_left_when_it_ends(network: str) -> None:
    before = Census.take()
    first, second = Member(network), Member(network)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.driver.run)
        await nursery.start(second.driver.run)
        await first.until(lambda: second.id in first.found)
        nursery.cancel_scope.cancel()
    Census.take().assert_nothing_new(since=before)


async def test_switched_off_it_opens_no_socket(network: str) -> None:
    before = Census.take()
    member = Member(network, config=LanConfig(discovery=False, announce=False))
    async with trio.open_nursery() as nursery:
        await nursery.start(member.driver.run)
        Census.take().assert_nothing_new(since=before)
    assert member.driver.report().interfaces == ()


async def test_paused_it_is_silent(network: str) -> None:
    first, second = Member(network), Member(network)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.driver.run)
        second.driver.pause()
        await nursery.start(second.driver.run)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert first.found == {}
        assert second.driver.report().interfaces == ()
        second.driver.resume()
        await first.until(lambda: second.id in first.found)
        first.driver.pause()
        with trio.fail_after(LIMIT_S):
            while first.driver.report().interfaces:
                await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


async def test_an_interface_that_comes_later_is_taken_part_on(network: str) -> None:
    there: list[Interface] = []
    first, second = Member(network, interfaces=lambda: there), Member(network)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.driver.run)
        await nursery.start(second.driver.run)
        await trio.testing.wait_all_tasks_blocked()
        assert first.driver.report().interfaces == ()
        there.append(loopback())
        first.driver.refresh()
        await second.until(lambda: first.id in second.found)
        await first.until(lambda: second.id in first.found)
        # A new door is told without being asked.
        second.found.clear()
        first.listening.append("/ip4/127.0.0.1/tcp/15002")
        first.driver.refresh()
        await second.until(lambda: "/ip4/127.0.0.1/tcp/15002" in second.found.get(first.id, []))
        nursery.cancel_scope.cancel()


async def test_a_link_that_fails_is_named_and_the_others_go_on(network: str) -> None:
    gone = replace(loopback(), name="gone0", index=0x7FFF0000)
    first = Member(network, interfaces=lambda: [loopback(), gone])
    second = Member(network)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.driver.run)
        await nursery.start(second.driver.run)
        await first.until(lambda: second.id in first.found)
        report = first.driver.report()
        assert report.interfaces == (loopback().name,)
        (problem,) = report.problems
        assert problem.startswith("gone0: ")
        nursery.cancel_scope.cancel()


async def test_garbage_on_the_port_harms_nobody(network: str) -> None:
    first, second = Member(network), Member(network)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.driver.run)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
            )
            for size in (0, 1, 11, 12, 100, 9000, 20_000):
                sock.sendto(b"\xff" * size, ("224.0.0.251", 5353))
        await nursery.start(second.driver.run)
        await first.until(lambda: second.id in first.found)
        nursery.cancel_scope.cancel()


async def test_two_nodes_meet_without_an_address_from_anybody(network: str) -> None:
    env = SystemEnv()
    config = replace(P2pConfig.test(), local_net=LanConfig(), network=network)
    nodes = [Node(Identity.generate(env.rng), config, env, [TcpTransport(config)]) for _ in "ab"]
    first, second = nodes
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.run)
        events = first.fabric.events()
        first.pin(second.id)
        with trio.fail_after(LIMIT_S):
            async for event in events:
                if isinstance(event, PeerUp):
                    break
        assert first.surroundings is not None
        assert [one[0] for one in first.surroundings.report().lan.neighbours] == [second.id]
        nursery.cancel_scope.cancel()
