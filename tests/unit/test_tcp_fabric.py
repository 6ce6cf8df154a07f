"""WireFabric over real TCP sockets: addresses, ports, streams, cancellation, and its book."""

from __future__ import annotations

import random
import resource
import socket
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from typing_extensions import override

from p2p.env import SystemEnv
from p2p.errors import Busy, Unreachable, UsageError
from p2p.identity import peer_text
from p2p.net.book import Book, decode_book_untrusted
from p2p.net.table import PeerTable
from p2p.net.tcp import TcpTransport, source_addresses
from p2p.net.wire_fabric import WireFabric
from tests.helpers.leaks import open_descriptors
from tests.helpers.wire_kit import (
    ECHO,
    HOLD,
    SINK,
    TEST,
    exchange,
    hold,
    identity,
    make,
    running,
    tcp_of,
    wait_for,
)

if TYPE_CHECKING:
    from pathlib import Path

    from p2p.net.driver import Connection
    from p2p.net.seam import Addr, PeerInfo, Stream

BOTH = ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0")


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("listen", BOTH)
async def test_two_nodes_talk_over_either_family(listen: str) -> None:
    a, b = make(1), make(2, listen=(listen,))
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id, random.Random(1).randbytes(1_000_000))
        await exchange(b, a.id)
        info = a.peers()[b.id]
        assert (info.path, info.inbound, info.addr) == ("direct", False, b.addrs()[0])
        await wait_for(lambda: a.peers()[b.id].agent == "covey/0.1")
        assert await a.ping(b.id) > 0


async def test_a_peer_whose_connection_is_being_made_is_not_connected_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = make(1), make(2)
    seen: list[PeerInfo | None] = []
    add_fresh = PeerTable.add_fresh

    def look(table: PeerTable, connection: Connection) -> None:
        add_fresh(table, connection)
        fabric = a if connection.peer == b.id else b
        seen.append(fabric.info(connection.peer))
        assert connection.peer not in fabric.peers()

    monkeypatch.setattr(PeerTable, "add_fresh", look)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)
        assert seen == [None, None]
        assert a.info(b.id) is not None


async def test_a_dead_address_does_not_hide_a_live_one() -> None:
    a, b = make(1), make(2, listen=BOTH)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        dead = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        async with running(a, b):
            assert len(b.addrs()) == 2
            with trio.fail_after(3):
                await a.connect(b.id, [dead, *b.addrs(), "/ip4/127.0.0.1/udp/1/quic-v1"])
            await exchange(a, b.id)


async def test_nobody_there_is_unreachable_and_says_why() -> None:
    a = make(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        async with running(a):
            with pytest.raises(Unreachable, match="Connection refused"):
                await a.connect(identity(9).id, [dead])
            with pytest.raises(Unreachable, match="no address known"):
                await a.open(identity(9).id, ECHO)


@pytest.mark.attack
async def test_another_peer_at_the_address_is_refused_and_forgotten() -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        a.learn(identity(3).id, b.addrs())
        with pytest.raises(Unreachable, match="another peer answered"):
            await a.connect(identity(3).id)
        assert a.known_addrs(identity(3).id) == []
        await a.connect(b.id, [f"{b.addrs()[0]}/p2p/{peer_text(b.id)}"])
        with pytest.raises(UsageError, match="names another peer"):
            await a.connect(identity(4).id, [f"{b.addrs()[0]}/p2p/{peer_text(b.id)}"])


async def test_a_node_does_not_connect_to_itself_and_not_before_it_runs() -> None:
    a = make(1)
    with pytest.raises(UsageError, match="not running"):
        await a.connect(identity(2).id)
    async with running(a):
        with pytest.raises(UsageError, match="itself"):
            await a.connect(a.id, a.addrs())


async def test_a_half_closed_stream_still_answers() -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        stream = await a.open(b.id, SINK)
        await stream.send_all(bytes(300_000))
        await stream.send_eof()
        assert await stream.receive_some() == (300_000).to_bytes(8, "big")
        assert await stream.receive_some() == b""
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"more")
        await stream.aclose()
        await wait_for(lambda: a.peers()[b.id].streams == 0)


async def test_an_unknown_protocol_shows_as_a_broken_stream() -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        stream = await a.open(b.id, "/nobody/1")
        with pytest.raises(trio.BrokenResourceError, match="does not speak"):
            await stream.receive_some()
        await exchange(a, b.id)


async def test_streams_over_the_limit_of_a_peer_are_reset_only() -> None:
    a, b = make(1), make(2)
    b.handle("/two/1", hold, per_peer_max=2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        streams = [await a.open(b.id, "/two/1") for _ in range(3)]
        for stream in streams:
            await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await streams[2].receive_some()
        assert b.counters()["streams_refused"] == 1
        for stream in streams[:2]:
            await stream.send_all(b"still open")


async def test_a_handler_that_raises_resets_its_own_stream() -> None:
    a, b = make(1), make(2)

    async def broken(stream: Stream) -> None:
        await stream.receive_some()
        raise RuntimeError("a bug")

    b.handle("/broken/1", broken, per_peer_max=10)
    async with trio.open_nursery() as nursery:
        await nursery.start(a.run)
        await nursery.start(b.run)
        await a.connect(b.id, b.addrs())
        bystander = await a.open(b.id, ECHO)
        stream = await a.open(b.id, "/broken/1")
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await bystander.send_all(b"alive")
        assert await bystander.receive_some() == b"alive"
        assert b.counters()["bug"] == 1
        nursery.cancel_scope.cancel()


async def test_200_of_200_bystanders_survive_cancelled_calls() -> None:
    a, b = make(1), make(2)
    rng = random.Random(7)
    survived = 0

    async def bystander(number: int) -> None:
        nonlocal survived
        data = random.Random(number).randbytes(20_000)
        stream = await a.open(b.id, ECHO)
        for start in range(0, len(data), 1000):
            piece = data[start : start + 1000]
            await stream.send_all(piece)
            got = b""
            while len(got) < len(piece):
                got += await stream.receive_some()
            assert got == piece
        await stream.aclose()
        survived += 1

    async def cancelled(delay_s: float) -> None:
        stream = await a.open(b.id, HOLD)
        # Never read: its window fills, and it is among the first to go when 16 MiB are unread.
        with trio.move_on_after(delay_s), suppress(trio.BrokenResourceError):
            await stream.send_all(bytes(2_000_000))
        stream.reset()

    async with running(a, b):
        await a.connect(b.id, b.addrs())
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(bystander, number)
                nursery.start_soon(cancelled, rng.uniform(0, 0.3))
        assert survived == 200
        assert len(a.peers()) == len(b.peers()) == 1


async def test_a_slow_reader_stops_its_sender_and_nobody_else() -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        slow = await a.open(b.id, HOLD)
        with trio.move_on_after(0.2) as scope:
            await slow.send_all(bytes(8_000_000))
        assert scope.cancelled_caught
        await exchange(a, b.id, bytes(500_000))


async def test_a_thousand_streams_at_once() -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(exchange, a, b.id)
        await wait_for(lambda: a.peers()[b.id].streams == b.peers()[a.id].streams == 0)


async def test_one_task_a_direction() -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        stream = await a.open(b.id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.receive_some()
            nursery.cancel_scope.cancel()
        with pytest.raises(ValueError, match="at least 1"):
            await stream.receive_some(0)


async def test_a_protocol_is_served_once() -> None:
    a = make(1)
    with pytest.raises(UsageError, match="served already"):
        a.handle(ECHO, hold, per_peer_max=1)


async def test_running_out_of_descriptors_pauses_the_door_and_sheds_a_stranger() -> None:
    a, b = make(1), make(2, upgrade_deadline_s=0.2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)
        await wait_for(lambda: b.peers()[a.id].streams == 0)
        knocks = [socket.socket() for _ in range(3)]
        for knock in knocks:
            knock.setblocking(False)  # the kernel completes it; nobody accepts before we yield
            knock.connect_ex(tcp_of(b.addrs()[0]))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        held = open_descriptors()
        lowest_free = next(n for n in range(len(held) + 1) if n not in held)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            await wait_for(lambda: a.id not in b.peers())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for knock in knocks:
                knock.close()
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)


# --- ports and the book ---


def drawing(path: Path, number: int = 1, listen: tuple[Addr, ...] = BOTH) -> WireFabric:
    config = replace(TEST, draw_port=True, listen=listen)
    return WireFabric(identity(number), config, SystemEnv(), [TcpTransport(config)], Book(path))


async def test_a_drawn_port_is_kept_over_restarts_and_families(tmp_path: Path) -> None:
    path = tmp_path / "peers.msgpack"
    ports = set()
    for _ in range(3):
        fabric = drawing(path)
        async with running(fabric):
            found = {tcp_of(addr)[1] for addr in fabric.addrs()}
            assert len(fabric.addrs()) == 2
            ports |= found
    assert len(ports) == 1
    assert 10_000 <= ports.pop() <= 32_767


class Draws(random.Random):
    """Numbers to be drawn first, then chance."""

    def __init__(self, *first: int) -> None:
        super().__init__(1)
        self.first = list(first)

    @override
    def randint(self, a: int, b: int) -> int:
        return self.first.pop(0) if self.first else super().randint(a, b)


@pytest.mark.parametrize("taken_at", ["::", "0.0.0.0"])
async def test_a_port_taken_in_one_family_is_drawn_again_for_both(
    tmp_path: Path, taken_at: str
) -> None:
    family = socket.AF_INET6 if ":" in taken_at else socket.AF_INET
    with socket.socket(family) as other:
        if family == socket.AF_INET6:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind((taken_at, 0))
        other.listen()
        port = other.getsockname()[1]
        fabric = drawing(tmp_path / "peers.msgpack")
        fabric._env.rng = Draws(port)
        async with running(fabric):
            ports = {tcp_of(addr)[1] for addr in fabric.addrs()}
            assert len(fabric.addrs()) == 2
            assert len(ports) == 1
            assert port not in ports


async def test_a_second_daemon_on_the_port_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "peers.msgpack"
    first = drawing(path)
    async with running(first):
        second = drawing(path, number=2)
        with pytest.raises(Busy, match="another process does"):
            await second.run()


async def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "peers.msgpack"
    b = make(2)
    async with running(b):
        a = drawing(path)
        async with running(a):
            await a.connect(b.id, b.addrs())
        again = drawing(path)
        assert again.known_addrs(b.id) == b.addrs()
        async with running(again):
            await exchange(again, b.id)
    assert decode_book_untrusted(path.read_bytes()).version == 1


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\x91" * 100_000, b"\x93\x02\x00\x90"])
def test_a_damaged_book_is_an_empty_one(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "peers.msgpack"
    path.write_bytes(data)
    book = Book(path)
    assert book.peers() == []
    assert book.port == 0
    book.learn(identity(1).id, ["/ip4/192.0.2.1/tcp/15001"], 5)
    book.save()
    assert Book(path).addrs(identity(1).id) == ["/ip4/192.0.2.1/tcp/15001"]


def test_the_book_is_bounded_and_forgets_the_longest_unseen() -> None:
    book = Book(peers_max=3)
    for number in range(1, 6):
        book.learn(identity(number).id, [f"/ip4/192.0.2.{number}/tcp/15001"], number)
        book.learn(identity(3).id, ["nonsense", "/ip4/192.0.2.3/tcp/15001"], number)
    assert book.peers() == [identity(4).id, identity(5).id, identity(3).id]
    for port in range(1, 100):
        book.learn(identity(3).id, [f"/ip4/192.0.2.3/tcp/{port}"], 9)
    assert len(book.addrs(identity(3).id)) == 32
    book.succeeded(identity(3).id, "/ip4/192.0.2.9/tcp/2", 10)
    assert book.addrs(identity(3).id)[0] == "/ip4/192.0.2.9/tcp/2"


async def test_listening_at_nothing_usable_is_an_error_that_names_the_address() -> None:
    fabric = make(1, listen=("/ip4/192.0.2.1/tcp/0",))
    with pytest.raises(Unreachable, match=r"192\.0\.2\.1"):
        await fabric.run()


async def test_one_unusable_address_does_not_stop_the_others() -> None:
    fabric = make(1, listen=("/ip4/192.0.2.1/tcp/0", "/ip4/127.0.0.1/tcp/0"))
    async with running(fabric):
        assert len(fabric.addrs()) == 1


async def test_an_unspecified_address_becomes_this_machines_own() -> None:
    fabric = make(1, listen=("/ip4/0.0.0.0/tcp/0",))
    async with running(fabric):
        hosts = [tcp_of(addr)[0] for addr in fabric.addrs()]
        assert "0.0.0.0" not in hosts
        assert hosts[-1] == "127.0.0.1"
        assert all(host in {*source_addresses(), "127.0.0.1"} for host in hosts)


async def test_a_dial_from_the_listen_port_shows_that_port() -> None:
    listener, dialler = TcpTransport(TEST), TcpTransport(TEST)
    seen: list[Addr] = []
    arrived = trio.Event()

    async def accept(stream: trio.abc.Stream, addr: Addr) -> None:
        seen.append(addr)
        arrived.set()
        await stream.aclose()

    async def refuse(stream: trio.abc.Stream, addr: Addr) -> None:
        del addr
        await stream.aclose()

    async with trio.open_nursery() as nursery:

        async def door(
            transport: TcpTransport, fn: object, *, task_status: trio.TaskStatus[Addr]
        ) -> None:
            await transport.listen("/ip4/127.0.0.1/tcp/0", fn, task_status=task_status)  # type: ignore[arg-type]

        target = await nursery.start(door, listener, accept)
        own = await nursery.start(door, dialler, refuse)
        stream = await dialler.dial(target, reuse_port=True)
        await arrived.wait()
        assert seen == [own]
        await stream.aclose()
        nursery.cancel_scope.cancel()
