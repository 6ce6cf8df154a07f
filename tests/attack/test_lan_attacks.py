"""A hostile machine on the local network: it may say what it likes, and gains nothing by it."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.identity import Identity, peer_text
from p2p.nat.lan import (
    ANSWER_GAP_S,
    DATAGRAMS_BURST,
    DATAGRAMS_PER_S,
    MDNS_PORT,
    NEIGHBOURS_MAX,
    NEW_PEERS_PER_MIN,
    LanLink,
    Neighbours,
    service_of,
)
from p2p.nat.lan_config import LanConfig
from p2p.nat.lan_driver import LanDriver
from p2p.nat.mdns import PTR, DnsMessage, Ptr, Question, Txt, decode_dns_untrusted, encode_dns
from p2p.net.book import Book
from p2p.net.interfaces import list_interfaces
from p2p.net.manager import own_parts
from tests.helpers.leaks import Census, task_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.identity import PeerId
    from p2p.net.seam import Addr

pytestmark = pytest.mark.attack

SERVICE = service_of("main")
NETWORKS = [ipaddress.ip_interface("192.168.1.5/24")]
NEAR = ipaddress.ip_address("192.168.1.66")
ADDR = "/ip4/192.168.1.7/tcp/15001"


def peer(number: int) -> PeerId:
    return Identity.from_seed(number.to_bytes(4, "big") * 8).id


US, FRIEND = peer(1), peer(2)


def link(neighbours: Neighbours) -> LanLink:
    return LanLink(
        SERVICE, NETWORKS, ["/ip4/192.168.1.5/tcp/15001"], neighbours, random.Random(1), 0.0
    )


def answer(service: tuple[bytes, ...], *told: tuple[PeerId, str]) -> bytes:
    instance = (b"0123456789abcdef0123456789abcdef", *service)
    strings = tuple(f"dnsaddr={addr}/p2p/{peer_text(who)}".encode() for who, addr in told)
    return encode_dns(
        DnsMessage(True, (), (Ptr(service, instance, 120), Txt(instance, strings, 120)))
    )


@pytest.mark.parametrize("source", ["203.0.113.9", "10.0.0.1", "192.168.2.5", "127.0.0.1", "::1"])
def test_who_is_not_on_the_link_is_not_heard(source: str) -> None:
    neighbours = Neighbours(US, lambda _: True)
    machine = link(neighbours)
    machine.on_timer(0.0)
    machine.to_send()
    far = ipaddress.ip_address(source)
    assert machine.receive(answer(SERVICE, (FRIEND, ADDR)), far, MDNS_PORT, 0.0) == []
    asked = encode_dns(DnsMessage(False, (Question(SERVICE, PTR),)))
    assert machine.receive(asked, far, MDNS_PORT, 0.0) == []
    machine.on_timer(0.9)
    assert machine.to_send() == [], "and it is not answered"
    assert neighbours.counters["lan_off_link"] == 2


def test_an_answer_from_an_ordinary_users_port_is_not_believed() -> None:
    # Who may not bind the port of mDNS's responder is a program without that right on some system.
    neighbours = Neighbours(US, lambda _: True)
    assert link(neighbours).receive(answer(SERVICE, (FRIEND, ADDR)), NEAR, 40_000, 0.0) == []


@pytest.mark.parametrize("third", ["203.0.113.80", "8.8.8.8", "10.1.1.1", "127.0.0.1", "224.0.0.1"])
def test_nobody_is_made_to_dial_a_third_party(third: str) -> None:
    neighbours = Neighbours(US, lambda _: True)
    machine = link(neighbours)
    data = answer(SERVICE, (FRIEND, f"/ip4/{third}/tcp/15001"))
    assert machine.receive(data, NEAR, MDNS_PORT, 0.0) == []
    assert neighbours.now(0.0) == []


def test_ten_thousand_made_up_peers_neither_fill_us_nor_hide_a_friend() -> None:
    neighbours = Neighbours(US, lambda one: one == FRIEND)
    machine = link(neighbours)
    book = Book()
    book.keeps = lambda one: one == FRIEND
    told = 0
    # A hundred a second: below the rate at which datagrams go unread when they hold 16 each.
    for number in range(0, 10_000, 16):
        batch = [(made_up_peer(n), ADDR) for n in range(number, number + 16)]
        now = number / 320
        for found in machine.receive(answer(SERVICE, *batch), NEAR, MDNS_PORT, now):
            told += 1
            book.learn(found.peer, own_parts(found.addrs, found.peer), 0)
    assert NEW_PEERS_PER_MIN <= told <= NEW_PEERS_PER_MIN * (1 + 10_000 / 320 / 60)
    assert len(neighbours.now(40.0)) <= min(NEIGHBOURS_MAX, told)
    assert len(book.peers()) <= told
    friends = machine.receive(answer(SERVICE, (FRIEND, ADDR)), NEAR, MDNS_PORT, 40.0)
    assert [found.peer for found in friends] == [FRIEND]


def made_up_peer(number: int) -> PeerId:
    """A peer id that costs no key."""
    from p2p.identity import PeerId

    return PeerId(struct.pack(">I", number) + bytes(range(28)))


def test_a_flood_is_left_unread() -> None:
    neighbours = Neighbours(US)
    machine = link(neighbours)
    data = b"\xff" * 12 + SERVICE[0]  # costs a decoding
    for number in range(10_000):
        machine.receive(data, NEAR, MDNS_PORT, number / 1000)
    read = neighbours.counters["lan_malformed"]
    assert read + neighbours.counters["lan_flooded"] == 10_000
    assert read <= DATAGRAMS_BURST + 10 * DATAGRAMS_PER_S


def test_a_flood_of_questions_is_no_amplifier() -> None:
    machine = link(Neighbours(US))
    asked = encode_dns(DnsMessage(False, tuple(Question(SERVICE, PTR) for _ in range(60))))
    sent = 0
    for number in range(10_000):
        now = 100 + number / 1000
        machine.receive(asked, NEAR, MDNS_PORT, now)
        machine.on_timer(now)
        sent += sum(decode_dns_untrusted(data).is_response for data in machine.to_send())
    assert 1 <= sent <= 10 / ANSWER_GAP_S + 1


def test_a_spoofed_goodbye_takes_no_address_from_the_book() -> None:
    neighbours = Neighbours(US, lambda _: True)
    machine = link(neighbours)
    book = Book()
    for found in machine.receive(answer(SERVICE, (FRIEND, ADDR)), NEAR, MDNS_PORT, 0.0):
        book.learn(found.peer, found.addrs, 0)
    instance = (b"0123456789abcdef0123456789abcdef", *SERVICE)
    text = f"dnsaddr={ADDR}/p2p/{peer_text(FRIEND)}".encode()
    gone = encode_dns(DnsMessage(True, (), (Txt(instance, (text,), 0),)))
    assert machine.receive(gone, NEAR, MDNS_PORT, 1.0) == []
    assert book.addrs(FRIEND) == [ADDR]


async def test_while_the_port_is_flooded_a_friend_is_found_and_the_loop_goes_on() -> None:
    before = Census.take()
    tasks = task_count()
    env = SystemEnv()
    network = str(env.rng.random())
    service = service_of(network)
    found: dict[PeerId, Sequence[Addr]] = {}
    friend_found = trio.Event()
    loopback = [interface for interface in list_interfaces() if interface.loopback]

    def hear(who: PeerId, addrs: Sequence[Addr]) -> None:
        found[who] = addrs
        if who == FRIEND:
            friend_found.set()

    def driver(us: PeerId) -> LanDriver:
        return LanDriver(
            us,
            LanConfig(),
            env,
            network=network,
            listening=lambda: ["/ip4/127.0.0.1/tcp/15001"],
            found=hear if us == US else lambda _peer, _addrs: None,
            wanted=lambda one: one == FRIEND,
            interfaces=lambda: loopback,
        )

    victim = driver(US)
    steps = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", MDNS_PORT))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        async with trio.open_nursery() as nursery:
            await nursery.start(victim.run)
            for number in range(2000):
                made_up = [
                    (made_up_peer(number * 8 + n), "/ip4/127.0.0.1/tcp/2000") for n in range(8)
                ]
                with contextlib.suppress(BlockingIOError):
                    sock.sendto(answer(service, *made_up), ("224.0.0.251", MDNS_PORT))
                await trio.lowlevel.checkpoint()
                steps += 1
            await nursery.start(driver(FRIEND).run)
            with trio.fail_after(30):
                await friend_found.wait()
            nursery.cancel_scope.cancel()
    assert steps == 2000
    assert len(found) <= NEW_PEERS_PER_MIN + 2
    assert victim.counters()["lan_strangers_dropped"] > 0
    assert task_count() == tasks
    Census.take().assert_nothing_new(since=before)


def test_the_preset_for_tests_neither_asks_nor_tells() -> None:
    config = P2pConfig.test().local_net
    assert not config.discovery
    assert not config.announce
