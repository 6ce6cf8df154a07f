"""Hostile bytes at the TCP port: each is dropped or refused, and bystanders are served."""

from __future__ import annotations

import contextlib
import gc
import random
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2p.errors import Unreachable
from p2p.limits import YAMUX_WINDOW_BYTES
from p2p.wire.envelope import seal_peer_record
from p2p.wire.identify import IDENTIFY, IdentifyMessage, encode_identify, frame
from p2p.wire.multistream import HEADER as MULTISTREAM
from p2p.wire.multistream import encode_line
from p2p.wire.yamux_frames import HEADER
from tests.helpers.leaks import left_as_found, open_descriptors, task_count
from tests.helpers.wire_kit import (
    ECHO,
    HOLD,
    RawPeer,
    exchange,
    identity,
    make,
    running,
    tcp_of,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.net.seam import Stream
    from p2p.net.wire_fabric import WireFabric

pytestmark = pytest.mark.attack

SYN, ACK, FIN, RST = 1, 2, 4, 8
START = encode_line(MULTISTREAM) + encode_line("/noise")
GARBAGE = [
    bytes([random.Random(size).randrange(256)]) * size for size in (1, 10, 100, 1000, 70_000)
] + [
    b"",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
    b"SSH-2.0-OpenSSH_9.0\r\n",
    b"\xff" * 4096,
    bytes(4096),
    encode_line(MULTISTREAM),
    encode_line(MULTISTREAM) + b"\xff" * 8,
    encode_line(MULTISTREAM) + b"".join(encode_line(f"/x/{n}") for n in range(9)),
    START,
    START + b"\x00\x00",
    START + b"\x00\x20" + bytes(32),
    START + b"\xff\xff" + bytes(70_000),
    START + b"\x00\x40" + bytes(64),
    START
    + b"\x00\x20"
    + X25519PrivateKey.from_private_bytes(b"k" * 32).public_key().public_bytes_raw()
    + b"\x01\x00"
    + bytes(256),
]


async def throw(addr: str, data: bytes, *, wait_s: float) -> bytes:
    """Send `data` and return what comes back until the other side closes or `wait_s` passed."""
    got = b""
    host, port = tcp_of(addr)
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError:
        return got
    async with stream:
        with trio.move_on_after(wait_s):
            try:
                if data:
                    await stream.send_all(data)
                while piece := await stream.receive_some():
                    got += bytes(piece)
            except trio.BrokenResourceError:
                pass
    return got


def knock(addr: str, source: str) -> socket.socket:
    """A connection from another loopback address."""
    host, port = tcp_of(addr)
    return socket.create_connection((host, port), timeout=10, source_address=(source, 0))


async def served_while(
    bystander: WireFabric, target: WireFabric, attack: Callable[[], Awaitable[object]]
) -> int:
    """Run an attack; how many exchanges the bystander made meanwhile and after."""
    served = 0

    async def keep_talking() -> None:
        nonlocal served
        while True:
            with trio.fail_after(5):
                await exchange(bystander, target.id)
            served += 1
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_talking)
        await attack()
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        await exchange(bystander, target.id)
    return served + 1


async def test_garbage_gets_no_answer_that_matters_and_leaves_nothing() -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)
        tasks, files = task_count(), len(open_descriptors())
        answers: list[bytes] = []

        async def one(data: bytes) -> None:
            answers.append(await throw(b.addrs()[0], data, wait_s=0.2))

        async def attack() -> None:
            for _ in range(5):
                async with trio.open_nursery() as nursery:
                    for data in GARBAGE:
                        nursery.start_soon(one, data)

        assert await served_while(a, b, attack) > 3
        # Only what began with the header is answered; nothing is ever granted beyond Noise.
        header = encode_line(MULTISTREAM)
        assert all(not answer or answer.startswith(header) for answer in answers)
        await wait_for(lambda: task_count() <= tasks and len(open_descriptors()) <= files)
        assert b.counters()["handshakes_failed"] >= 60
        assert len(b.peers()) == 1


@pytest.mark.parametrize("offer", ["/plaintext/2.0.0", "/tls/1.0.0", "/secio/1.0.0", "ls"])
async def test_plaintext_and_other_offers_are_not_available(offer: str) -> None:
    b = make(2)
    async with running(b):
        answer = await throw(
            b.addrs()[0], encode_line(MULTISTREAM) + encode_line(offer), wait_s=0.1
        )
        assert answer == encode_line(MULTISTREAM) + encode_line("na")
        assert not b.peers()


async def test_300_silent_connections_are_closed_while_a_bystander_is_served() -> None:
    """The pending places are 64 in all: the rest is closed unread, at once."""
    a, b = make(1), make(2, upgrade_deadline_s=0.5)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)

        async def attack() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(300):
                    nursery.start_soon(_silent, b.addrs()[0])

        async with left_as_found():
            began_s = trio.current_time()
            assert await served_while(a, b, attack) > 3
            refused, held = b.counters()["refused_pending"], b.counters()["handshakes_failed"]
            assert refused + held == 300
            # However slow this machine is: 64 places, each taken for a whole deadline.
            assert held <= 64 * (1 + (trio.current_time() - began_s) // 0.5)
        # The places came back: a new peer is let in.
        c = make(3)
        async with running(c):
            await c.connect(b.id, b.addrs())
            await exchange(c, b.id)


async def test_64_slow_handshakes_end_at_the_deadline_while_a_bystander_is_served() -> None:
    """A byte now and then resets no clock: the places come back when the time is over."""
    a, b = make(1), make(2, upgrade_deadline_s=0.5)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)

        async def attack() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(64):
                    nursery.start_soon(_dribble, b.addrs()[0])

        async with left_as_found():
            with trio.fail_after(20):
                assert await served_while(a, b, attack) > 3
            assert b.counters()["handshakes_failed"] == 64
        c = make(3)
        async with running(c):
            await c.connect(b.id, b.addrs())
            await exchange(c, b.id)


async def _dribble(addr: str) -> None:
    """Begin an honest handshake, a byte at a time, and wait for the answer for ever."""
    key = X25519PrivateKey.from_private_bytes(b"k" * 32).public_key().public_bytes_raw()
    stream = await trio.open_tcp_stream(*tcp_of(addr))
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in START + b"\x00\x20" + key:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.02)
            while await stream.receive_some():
                pass


PLACES = {"pending_per_prefix_max": 8, "pending_per_ip_max": 2, "private_prefix_factor": 1}


async def test_one_network_cannot_take_all_places() -> None:
    """Two silent connections of each of 30 addresses of a /24: the other /24 is let in."""
    b = make(2, limit_loopback=True, upgrade_deadline_s=1.0, **PLACES)
    a = make(1)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)
        async with left_as_found():
            with contextlib.ExitStack() as stack:
                for number in range(30):
                    for _ in range(2):
                        source = f"127.0.9.{number + 1}"
                        stack.enter_context(knock(b.addrs()[0], source))
                await wait_for(lambda: b.counters().get("refused_pending_prefix", 0) == 60 - 8)
                c = make(3)
                async with running(c):
                    await c.connect(b.id, b.addrs())
                    await exchange(c, b.id)
            await exchange(a, b.id)
        assert b.counters()["handshakes_failed"] == 8


async def test_one_network_cannot_take_all_proven_connections() -> None:
    """Proven peers of one /24 with an address each: so many, and no more."""
    b = make(2, limit_loopback=True, inbound_per_prefix_max=6, private_prefix_factor=1)
    a = make(1)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)
        async with left_as_found():
            crowd = [RawPeer(100 + number) for number in range(12)]
            for number, peer in enumerate(crowd):
                with contextlib.suppress(AssertionError, trio.BrokenResourceError):  # it is closed
                    await peer.connect(b.addrs()[0], source=f"127.0.9.{number + 1}")
            await wait_for(lambda: b.counters().get("refused_inbound_prefix", 0) == 6)
            assert len(b.peers()) == 1 + 6
            c = make(3)
            async with running(c):
                await c.connect(b.id, b.addrs())
                await exchange(c, b.id)
            await exchange(a, b.id)
            for peer in crowd:
                await peer.aclose()


async def _silent(addr: str) -> None:
    await throw(addr, b"", wait_s=5)


async def test_one_address_cannot_take_all_places() -> None:
    """With the limits on for loopback: 4 pending, then a burst of 20 a 5 s, then a ban."""
    b = make(
        2,
        limit_loopback=True,
        pending_per_ip_max=4,
        accepts_per_s=5.0,
        failed_handshakes_max=10,
        upgrade_deadline_s=0.3,
    )
    async with running(b):
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(_silent, b.addrs()[0])
        counters = b.counters()
        assert counters["refused_pending_ip"] == 16
        assert counters["refused_rate"] == 10
        assert counters["handshakes_failed"] == 4


async def test_an_address_that_keeps_failing_is_banned() -> None:
    b = make(2, limit_loopback=True, failed_handshakes_max=10)
    async with running(b):
        for _ in range(10):
            await throw(b.addrs()[0], b"garbage", wait_s=1)
        assert await throw(b.addrs()[0], encode_line(MULTISTREAM), wait_s=1) == b""
        assert b.counters()["refused_banned"] == 1


TO_HOLD = encode_line(MULTISTREAM) + encode_line(HOLD)
FRAMES = {
    "random": random.Random(1).randbytes(4000),
    "length-bomb": HEADER.pack(0, 0, SYN, 1, 1 << 30),
    "our-id": HEADER.pack(0, 0, SYN, 2, 0),
    "stream-0": HEADER.pack(0, 0, 0, 0, 5) + b"xxxxx",
    "window-overrun": HEADER.pack(0, 0, SYN, 1, len(TO_HOLD))
    + TO_HOLD
    + b"".join(HEADER.pack(0, 0, 0, 1, 32_768) + bytes(32_768) for n in range(9)),
    "unknown-type": HEADER.pack(0, 9, 0, 0, 0),
    "version": HEADER.pack(7, 0, 0, 0, 0),
    "data-for-nobody": b"".join(
        HEADER.pack(0, 0, 0, 999, 32_768) + bytes(32_768) for _ in range(130)
    ),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_a_proven_peer_with_bad_frames_loses_its_connection_only(name: str) -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)
        async with left_as_found():
            hostile = RawPeer(66)
            await hostile.connect(b.addrs()[0])
            await wait_for(lambda: hostile.identity.id in b.peers())
            with contextlib.suppress(trio.BrokenResourceError):  # it is closed while we send
                await hostile.send_frames(FRAMES[name])
            with trio.fail_after(5):
                await hostile.read_until_closed()
            await hostile.aclose()
            await wait_for(lambda: hostile.identity.id not in b.peers())
            assert b.counters()["violations"] == 1
            await exchange(a, b.id)


async def test_garbage_right_behind_the_proof_leaves_no_socket() -> None:
    """The peer is proven and broken within one read: nobody may forget to close it."""
    b = make(2)
    async with running(b):
        files = len(open_descriptors())
        for number in range(30, 40):
            hostile = RawPeer(number)
            await hostile.connect_badly(b.addrs()[0])
            with trio.fail_after(5):
                await hostile.read_until_closed()
            await hostile.aclose()
        await wait_for(lambda: len(open_descriptors()) <= files)
        assert b.counters()["handshakes_failed"] == 10
        assert not b.peers()


async def test_the_third_violation_refuses_the_peer() -> None:
    b = make(2)
    async with running(b):
        for number in range(3):
            hostile = RawPeer(66)
            await hostile.connect(b.addrs()[0])
            await hostile.send_frames(FRAMES["our-id"])
            await hostile.read_until_closed()
            await hostile.aclose()
            assert b.counters()["violations"] == number + 1
        assert b.counters()["bans"] == 1
        again = make(66)
        async with running(again):
            with pytest.raises(Unreachable):
                await again.connect(b.id, b.addrs())
        assert b.counters()["refused_banned"] >= 1
        # Others are not touched.
        c = make(3)
        async with running(c):
            await c.connect(b.id, b.addrs())


async def test_a_syn_flood_is_capped_and_streams_over_it_are_reset() -> None:
    a, b = make(1), make(2, identify_s=0.1)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)
        async with left_as_found():
            hostile = RawPeer(66)
            await hostile.connect(b.addrs()[0])
            flood = b"".join(HEADER.pack(0, 1, SYN, sid, 0) for sid in range(1, 3001, 2))

            async def attack() -> None:
                await hostile.send_frames(flood)
                await wait_for(lambda: b.peers()[hostile.identity.id].streams == 1024)

            assert await served_while(a, b, attack) >= 1
            assert b.peers()[hostile.identity.id].streams <= 1024
            await hostile.aclose()
            await wait_for(lambda: hostile.identity.id not in b.peers())


async def test_a_stream_that_never_names_its_protocol_is_reset() -> None:
    b = make(2, negotiate_s=0.2, ping_busy_s=0.1, identify_s=0.1)
    async with running(b):
        hostile = RawPeer(66)
        await hostile.connect(b.addrs()[0])
        await hostile.send_frames(HEADER.pack(0, 1, SYN, 1, 0))
        await wait_for(lambda: b.peers()[hostile.identity.id].streams == 1)
        await wait_for(lambda: b.peers()[hostile.identity.id].streams == 0)
        await hostile.aclose()


async def test_a_ping_flood_by_a_peer_that_does_not_read_ends_it() -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)
        async with left_as_found():
            hostile = RawPeer(66)
            await hostile.connect(b.addrs()[0])

            async def attack() -> None:
                pings = HEADER.pack(0, 2, SYN, 0, 7) * 5000
                try:
                    with trio.move_on_after(10):
                        while hostile.identity.id in b.peers():
                            await hostile.send_frames(pings)
                except trio.BrokenResourceError:
                    pass
                await wait_for(lambda: hostile.identity.id not in b.peers())

            assert await served_while(a, b, attack) > 1
            await hostile.aclose()


HOARD_BYTES = 32 << 20


async def test_a_peer_that_does_not_read_holds_a_bounded_buffer() -> None:
    """Its echo fills the send buffer; then nobody reads what it sends, and it is granted no more.

    It sends whatever it is granted, up to 32 MiB on four streams, and reads nothing.
    """
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)
        async with left_as_found():
            hostile = RawPeer(66)
            await hostile.connect(b.addrs()[0])
            opening = encode_line(MULTISTREAM) + encode_line(ECHO)
            sids = range(1, 9, 2)
            for sid in sids:
                await hostile.send_frames(HEADER.pack(0, 0, SYN, sid, len(opening)) + opening)
            await wait_for(lambda: hostile.identity.id in b.peers())
            connection = next(c for c in b._manager.table if c.peer == hostile.identity.id)
            await wait_for(lambda: set(sids) <= set(connection.mux._streams))
            sent, quiet = 0, 0
            while sent < HOARD_BYTES and quiet < 20:
                streams = connection.mux._streams
                granted = {sid: streams[sid].recv_window for sid in sids if sid in streams}
                before = connection.bytes_in
                for sid, room in granted.items():
                    await hostile.send_frames(HEADER.pack(0, 0, 0, sid, room) + bytes(room))
                sent += sum(granted.values())
                await wait_for(lambda: connection.bytes_in >= before + sum(granted.values()))  # noqa: B023
                quiet = 0 if any(granted.values()) else quiet + 1
                await trio.sleep(0.01)
            # What a stream's send buffer, both windows and one read of the echo take.
            assert sent <= len(sids) * 6 * YAMUX_WINDOW_BYTES
            held = sum(len(s.out) for s in connection.mux._streams.values()) + connection.mux.unread
            assert held <= len(sids) * 4 * YAMUX_WINDOW_BYTES
            assert connection._unsent is None or len(connection._unsent) <= 400_000
            await exchange(a, b.id, bytes(300_000))
            await hostile.aclose()
            await wait_for(lambda: hostile.identity.id not in b.peers())


async def test_identify_with_a_foreign_key_is_a_violation() -> None:
    b = make(2)
    lie = IdentifyMessage(peer=identity(9).id, agent="liar")
    assert await _violations_after_identify(b, frame(encode_identify(lie))) == 1


async def test_identify_with_a_foreign_record_is_a_violation() -> None:
    b = make(2)
    record = seal_peer_record(identity(9), 1, ["/ip4/127.0.0.1/tcp/15001"])
    lie = IdentifyMessage(agent="liar", signed_record=record)
    assert await _violations_after_identify(b, frame(encode_identify(lie))) == 1


async def test_identify_that_never_ends_or_bombs_is_given_up() -> None:
    b = make(2)
    assert await _violations_after_identify(b, b"\xff\xff\xff\x7f" + bytes(10)) == 1


async def _violations_after_identify(b: WireFabric, answer: bytes) -> int:
    """Let a hostile peer answer our identify with `answer`; the violations counted."""
    liar = make(66)

    async def lie(stream: Stream) -> None:
        await stream.send_all(answer)

    del liar._services[IDENTIFY]
    liar.handle(IDENTIFY, lie, per_peer_max=8)
    async with running(b, liar):
        await liar.connect(b.id, b.addrs())
        await wait_for(lambda: b.counters().get("violations", 0) >= 1)
        return b.counters()["violations"]


async def test_addresses_that_are_not_the_peers_reach_are_not_remembered() -> None:
    """Of what a stranger says of itself: no service ports, no multicast, no other peer's part."""
    from p2p.config import P2pConfig
    from p2p.net.identify import dialable_addrs

    peer, other = identity(66).id, identity(9).id
    from p2p.identity import peer_text

    said = [
        "/ip4/8.8.8.8/tcp/15001",
        "/ip4/8.8.8.8/tcp/22",
        "/ip4/224.0.0.1/tcp/15001",
        "/ip4/0.0.0.0/tcp/15001",
        "/ip4/127.0.0.1/tcp/15001",
        "/ip4/10.0.0.1/tcp/15001",
        f"/ip4/9.9.9.9/tcp/15001/p2p/{peer_text(other)}",
        f"/ip4/9.9.9.9/tcp/15001/p2p/{peer_text(peer)}",
        "/ip4/8.8.4.4/udp/15001/quic-v1",
    ]
    public = ["/ip4/8.8.8.8/tcp/15001", "/ip4/9.9.9.9/tcp/15001"]
    config = P2pConfig.wan()
    assert dialable_addrs(said, peer, "/ip4/1.1.1.1/tcp/1", config) == public
    seen_privately = dialable_addrs(said, peer, "/ip4/10.0.0.9/tcp/1", config)
    assert seen_privately == [public[0], "/ip4/10.0.0.1/tcp/15001", public[1]]
    assert "/ip4/127.0.0.1/tcp/15001" in dialable_addrs(said, peer, "/ip4/127.0.0.1/tcp/9", config)


async def test_a_peer_coming_and_going_200_times_leaves_nothing() -> None:
    b = make(2)
    async with running(b):

        async def come_and_go(rounds: int) -> None:
            for _ in range(rounds):
                a = make(1)
                async with running(a):
                    await a.connect(b.id, b.addrs())
                    await exchange(a, b.id)
                    # One stream is left open, as a peer that vanishes leaves it.
                    await (await a.open(b.id, HOLD)).send_all(b"x")
                await wait_for(lambda: not b.peers())

        await come_and_go(40)
        tasks, files, memory = task_count(), len(open_descriptors()), _rss_bytes()
        objects = _own_objects()
        await come_and_go(160)
        # The tasks of the last peer hold its objects until they have ended.
        await wait_for(lambda: task_count() <= tasks)
        await wait_for(lambda: _own_objects() <= objects)
        assert len(open_descriptors()) <= files
        assert _rss_bytes() <= memory + (4 << 20)


def _own_objects() -> int:
    """Living objects of classes of ours, those in unreachable cycles apart."""
    gc.collect()
    return sum(str(type(thing).__module__).startswith("p2p") for thing in gc.get_objects())


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
