"""The contract of `p2p.net.seam.Fabric`, rule by rule, on every implementation.

The numbers are those of the seam's own list. A rule that holds on one fabric and not on another is
a bug of one of them: everything above sees only the seam.
"""

from __future__ import annotations

import contextlib
import random
import threading

import pytest
import trio

from p2p.errors import Unreachable
from p2p.net.seam import AddrsChanged, FabricEvent, PeerDown, PeerIdentified, PeerUp, Stream
from tests.helpers.fabrics import (
    ECHO,
    KINDS,
    MEM,
    SINK,
    VIRTUAL,
    Kit,
    ask,
    echo,
    identity,
    next_event,
    play,
    read_exactly,
    read_to_end,
)

every_kind = pytest.mark.parametrize("kind", KINDS)

BUFFER_BYTES_MAX = 8 << 20
"""No fabric may take more than this from a sender whose receiver does not read."""


class Sink:
    """A handler that reads nothing until told to, then counts."""

    def __init__(self) -> None:
        self.read_now = trio.Event()
        self.entered = trio.Event()
        self.total = 0
        self.ended = trio.Event()

    async def __call__(self, stream: Stream) -> None:
        self.entered.set()
        await self.read_now.wait()
        while data := await stream.receive_some():
            self.total += len(data)
        self.ended.set()


# --- 1: a cancelled call never harms another stream -----------------------------------------------


@every_kind
def test_1_cancelled_senders_and_readers_harm_no_bystander(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        count = 200 if kit.virtual else 40
        second.fabric.handle(ECHO, echo, per_peer_max=2 * count)
        second.fabric.handle(SINK, Sink(), per_peer_max=count)
        bystanders = [await first.fabric.open(second.id, ECHO) for _ in range(count)]
        for number in range(count):
            victim = await first.fabric.open(second.id, SINK if number % 2 else ECHO)
            with trio.move_on_after(0.005 + 0.02 * number / count):
                if number % 2:
                    await victim.send_all(bytes(1 << 20))  # blocks: nobody reads
                else:
                    await victim.receive_some()  # blocks: nothing comes
            victim.reset()
        answers = {}

        async def finish(number: int, stream: Stream) -> None:
            answers[number] = await ask(stream, number.to_bytes(4, "big") * 5000)

        async with trio.open_nursery() as nursery:
            for number, stream in enumerate(bystanders):
                nursery.start_soon(finish, number, stream)
        assert answers == {number: number.to_bytes(4, "big") * 5000 for number in range(count)}
        assert first.id in second.fabric.peers()

    play(kind, scenario)


# --- 2: buffers are bounded, and back-pressure has no time-out ------------------------------------


@every_kind
def test_2_a_sender_waits_for_a_reader_and_nothing_is_lost(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        sink = Sink()
        second.fabric.handle(SINK, sink, per_peer_max=1)
        stream = await first.fabric.open(second.id, SINK)
        taken = 0

        async def send() -> None:
            nonlocal taken
            for _ in range(512):
                await stream.send_all(bytes(32_768))
                taken += 32_768
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(300 if kit.virtual else 1.5)  # longer than any liveness limit
            assert taken < BUFFER_BYTES_MAX, "somebody buffers without bound"
            assert sink.total == 0
            assert second.id in first.fabric.peers(), "back-pressure must not end a connection"
            sink.read_now.set()
        await sink.ended.wait()
        assert sink.total == 512 * 32_768

    play(kind, scenario)


# --- 3: a handler's exception resets its own stream only ------------------------------------------


@every_kind
def test_3_a_raising_handler_resets_its_own_stream_only(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()

        async def faulty(stream: Stream) -> None:
            await stream.receive_some()
            raise RuntimeError("a bug in a handler")

        second.fabric.handle(ECHO, echo, per_peer_max=10)
        second.fabric.handle("/test/faulty/1", faulty, per_peer_max=10)
        bystander = await first.fabric.open(second.id, ECHO)
        assert await ask(bystander, b"before") == b"before"
        for _ in range(3):
            stream = await first.fabric.open(second.id, "/test/faulty/1")
            await stream.send_all(b"go")
            with pytest.raises(trio.BrokenResourceError):
                await read_to_end(stream)
        assert await ask(bystander, b"after") == b"after"
        assert first.id in second.fabric.peers()

    play(kind, scenario)


# --- 4: the peer is proved before a byte of it is delivered ---------------------------------------


@every_kind
def test_4_another_peer_at_the_address_is_refused_and_hears_nothing(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first = await kit.start(1)
        second = await kit.start(2)
        heard: list[bytes] = []

        async def listen(stream: Stream) -> None:
            heard.append(bytes(await stream.receive_some()))

        second.fabric.handle(ECHO, listen, per_peer_max=10)
        stranger = identity(99).id
        first.fabric.learn(stranger, second.fabric.addrs())
        with pytest.raises(Unreachable):
            await first.fabric.connect(stranger)
        with pytest.raises(Unreachable):
            await first.fabric.open(stranger, ECHO)
        assert stranger not in first.fabric.peers()
        await trio.sleep(0.1)
        assert not heard

    play(kind, scenario)


@every_kind
def test_4_both_ends_of_a_stream_know_the_proven_peer(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        seen = []

        async def note(stream: Stream) -> None:
            seen.append((stream.peer, stream.protocol, stream.path))
            await stream.send_all(await stream.receive_some())

        second.fabric.handle(ECHO, note, per_peer_max=10)
        stream = await first.fabric.open(second.id, ECHO)
        assert stream.peer == second.id
        assert stream.protocol == ECHO
        assert await ask(stream, b"x") == b"x"
        assert seen == [(first.id, ECHO, stream.path)]
        assert first.fabric.peers()[second.id].path == stream.path

    play(kind, scenario)


# --- 5: a dead peer is reported in bounded time ---------------------------------------------------


@every_kind
def test_5_a_silent_idle_peer_is_reported(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        events = first.fabric.events(), second.fabric.events()
        if kit.virtual:
            await trio.sleep(100)  # idle, but alive: pings keep it
            assert second.id in first.fabric.peers()
        kit.silence(first, second)
        await next_event(events[0], PeerDown, second.id, within_s=45)
        await next_event(events[1], PeerDown, first.id, within_s=45)
        assert second.id not in first.fabric.peers()

    play(kind, scenario)


@every_kind
def test_5_a_silent_peer_with_something_outstanding_is_reported_sooner(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        second.fabric.handle(ECHO, echo, per_peer_max=10)
        stream = await first.fabric.open(second.id, ECHO)
        assert await ask(stream, b"alive") == b"alive"
        events = first.fabric.events()
        kit.silence(first, second)
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(16 if kit.virtual else 40):
            await stream.receive_some()
        assert trio.current_time() - start > 0.1
        await next_event(events, PeerDown, second.id, within_s=1)

    play(kind, scenario)


@every_kind
def test_5_a_peer_that_stops_is_reported_and_its_streams_break(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        second.fabric.handle(ECHO, echo, per_peer_max=10)
        stream = await first.fabric.open(second.id, ECHO)
        assert await ask(stream, b"alive") == b"alive"
        events = first.fabric.events()
        second.scope.cancel()
        with contextlib.suppress(trio.BrokenResourceError):
            await read_to_end(stream)  # a polite end is as good as a broken stream
        await next_event(events, PeerDown, second.id, within_s=10)

    play(kind, scenario)


# --- 6: one connection a peer, chosen alike on both sides -----------------------------------------


@every_kind
def test_6_simultaneous_dials_end_in_one_connection_chosen_alike(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first = await kit.start(1)
        second = await kit.start(2)
        for member in (first, second):
            member.fabric.handle(ECHO, echo, per_peer_max=50)
        there, back = first.fabric.addrs(), second.fabric.addrs()
        ups = first.fabric.events()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(first.fabric.connect, second.id, back)
                nursery.start_soon(second.fabric.connect, first.id, there)
        # Whatever was begun on the connection that loses must still work.
        streams = [await first.fabric.open(second.id, ECHO) for _ in range(5)]
        streams += [await second.fabric.open(first.id, ECHO) for _ in range(5)]
        for number, stream in enumerate(streams):
            assert await ask(stream, bytes([number]) * 1000) == bytes([number]) * 1000
            await stream.aclose()
        await trio.sleep(5 if kit.virtual else 1.5)
        one, other = first.fabric.peers()[second.id], second.fabric.peers()[first.id]
        assert one.inbound != other.inbound, "each side kept another connection"
        ups_seen = [event for event in _drain(ups) if isinstance(event, PeerUp | PeerDown)]
        assert ups_seen == [PeerUp(second.id)], "one peer came up once"
        stream = await second.fabric.open(first.id, ECHO)
        assert await ask(stream, b"still") == b"still"

    play(kind, scenario)


@every_kind
def test_6_connecting_again_keeps_the_connection(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        before = first.fabric.peers()[second.id].since_s
        await trio.sleep(0.05)
        await first.fabric.connect(second.id, second.fabric.addrs())
        await second.fabric.connect(first.id, first.fabric.addrs())
        assert first.fabric.peers()[second.id].since_s == before
        assert list(first.fabric.peers()) == [second.id]

    play(kind, scenario)


# --- 7: no thread, wall clock or global generator -------------------------------------------------


@every_kind
def test_7_no_thread_and_no_global_generator(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        threads = set(threading.enumerate())
        numbers = random.getstate()
        first, second = await kit.pair()
        second.fabric.handle(ECHO, echo, per_peer_max=10)
        stream = await first.fabric.open(second.id, ECHO)
        assert await ask(stream, bytes(100_000)) == bytes(100_000)
        await first.fabric.disconnect(second.id)
        started = {t for t in set(threading.enumerate()) - threads if not _is_of_trio(t)}
        assert not started
        assert random.getstate() == numbers

    play(kind, scenario)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_7_the_same_seed_gives_the_same_virtual_times(kind: str) -> None:
    def run() -> list[float]:
        times: list[float] = []

        async def scenario(kit: Kit) -> None:
            first, second = await kit.pair()
            second.fabric.handle(ECHO, echo, per_peer_max=10)
            for size in (10, 1000, 300_000):
                stream = await first.fabric.open(second.id, ECHO)
                with trio.move_on_after(30):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(stream.send_all, bytes(size))
                        await read_exactly(stream, size)
                await stream.aclose()
                times.append(trio.current_time())

        play(kind, scenario, seed=5)
        return times

    assert run() == run()


# --- 8: end-of-file one way leaves the other way usable -------------------------------------------


@every_kind
def test_8_end_of_file_one_way_leaves_the_other_usable(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()

        async def answer_after_the_end(stream: Stream) -> None:
            data = b""
            while more := await stream.receive_some():
                data += more
            for _ in range(20):
                await stream.send_all(data)
            await stream.send_eof()

        second.fabric.handle(ECHO, answer_after_the_end, per_peer_max=10)
        stream = await first.fabric.open(second.id, ECHO)
        await stream.send_all(b"question")
        await stream.send_eof()
        assert await read_exactly(stream, 160) == b"question" * 20
        assert await stream.receive_some() == b""
        assert await stream.receive_some() == b"", "the end stays the end"
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"more")

    play(kind, scenario)


# --- The rest of the seam -------------------------------------------------------------------------


@every_kind
def test_streams_over_per_peer_max_are_reset_and_the_rest_served(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        second.fabric.handle(ECHO, echo, per_peer_max=3)
        kept = [await first.fabric.open(second.id, ECHO) for _ in range(3)]
        for stream in kept:
            assert await ask(stream, b"hold") == b"hold"
        extra = await first.fabric.open(second.id, ECHO)
        with pytest.raises(trio.BrokenResourceError):
            await ask(extra, b"one too many")
        assert await ask(kept[0], b"still") == b"still"
        await kept[0].aclose()
        await trio.sleep(0.2)
        again = await first.fabric.open(second.id, ECHO)
        assert await ask(again, b"room again") == b"room again"

    play(kind, scenario)


@every_kind
def test_a_place_is_free_again_when_the_peer_hears_of_the_end(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()

        async def brief(stream: Stream) -> None:
            await stream.send_all(b"served")

        second.fabric.handle(ECHO, brief, per_peer_max=1)
        for _ in range(100):
            stream = await first.fabric.open(second.id, ECHO)
            heard = b""
            while part := await stream.receive_some():
                heard += part
            assert heard == b"served"
            await stream.aclose()

    play(kind, scenario)


@every_kind
def test_an_unknown_protocol_shows_as_a_broken_stream(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        stream = await first.fabric.open(second.id, "/test/nobody/1")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert second.id in first.fabric.peers()

    play(kind, scenario)


@every_kind
def test_a_reset_is_seen_as_broken_by_the_other_side(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        seen: list[str] = []
        over = trio.Event()

        async def note(stream: Stream) -> None:
            try:
                await read_to_end(stream)
                seen.append("end")
            except trio.BrokenResourceError:
                seen.append("broken")
            over.set()

        second.fabric.handle(SINK, note, per_peer_max=10)
        stream = await first.fabric.open(second.id, SINK)
        await stream.send_all(b"half a mess")
        await trio.sleep(0.1)
        stream.reset()
        stream.reset()
        await over.wait()
        assert seen == ["broken"]
        for use in (stream.receive_some, stream.send_eof):
            with pytest.raises(trio.ClosedResourceError):
                await use()

    play(kind, scenario)


@every_kind
def test_two_tasks_on_one_direction_are_told(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        second.fabric.handle(ECHO, echo, per_peer_max=10)
        stream = await first.fabric.open(second.id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.sleep(0.1)
            with pytest.raises(trio.BusyResourceError):
                await stream.receive_some()
            nursery.cancel_scope.cancel()
        assert await ask(stream, b"fine") == b"fine"

    play(kind, scenario)


@every_kind
def test_disconnect_ends_the_connection_on_both_sides(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        events = first.fabric.events(), second.fabric.events()
        await first.fabric.disconnect(second.id)
        await next_event(events[0], PeerDown, second.id, within_s=10)
        await next_event(events[1], PeerDown, first.id, within_s=10)
        assert not first.fabric.peers()
        assert not second.fabric.peers()
        await first.fabric.disconnect(second.id)  # again: nothing to do
        await kit.connect(first, second)
        assert second.id in first.fabric.peers()

    play(kind, scenario)


@every_kind
def test_nobody_at_the_address_is_unreachable(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        addrs = second.fabric.addrs()
        second.scope.cancel()
        await trio.sleep(0.2)
        with pytest.raises(Unreachable):
            await first.fabric.connect(identity(3).id, addrs)
        with pytest.raises(Unreachable):
            await first.fabric.open(identity(3).id, ECHO)

    play(kind, scenario)


@every_kind
def test_paused_nothing_goes_in_or_out_until_resumed(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        second.fabric.handle(ECHO, echo, per_peer_max=10)
        events = second.fabric.events()
        first.fabric.pause()
        assert first.fabric.paused
        await next_event(events, PeerDown, first.id, within_s=10)
        with pytest.raises(Unreachable):
            await first.fabric.connect(second.id, second.fabric.addrs())
        with pytest.raises(Unreachable):
            await second.fabric.connect(first.id, first.fabric.addrs())
        first.fabric.resume()
        await first.fabric.connect(second.id, second.fabric.addrs())
        stream = await first.fabric.open(second.id, ECHO)
        assert await ask(stream, b"back") == b"back"

    play(kind, scenario)


@every_kind
def test_a_pinned_peer_is_connected_again_after_it_returns(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        events = first.fabric.events()
        first.fabric.pin(second.id, second.fabric.addrs())
        assert first.fabric.pinned() == [second.id]
        second.fabric.pause()
        await next_event(events, PeerDown, second.id, within_s=10)
        second.fabric.resume()
        await next_event(events, PeerUp, second.id, within_s=40)
        first.fabric.unpin(second.id)
        assert first.fabric.pinned() == []
        assert second.id in first.fabric.peers(), "unpinning ends nothing"
        await second.fabric.disconnect(first.id)
        await next_event(events, PeerDown, second.id, within_s=10)
        await trio.sleep(30 if kit.virtual else 0.3)
        assert not first.fabric.peers()

    play(kind, scenario)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_a_pinned_peer_is_connected_again_after_a_partition(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        events = first.fabric.events()
        first.fabric.pin(second.id, second.fabric.addrs())
        kit.silence(first, second)
        await next_event(events, PeerDown, second.id, within_s=45)
        await trio.sleep(30)
        kit.speak(first, second)
        await next_event(events, PeerUp, second.id, within_s=120)

    play(kind, scenario)


@every_kind
def test_a_subscriber_that_lags_is_closed_and_hurts_nobody(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.pair()
        lagging = first.fabric.events()
        rounds = 150 if kit.kind == MEM else 5
        for _ in range(rounds):
            await first.fabric.disconnect(second.id)
            await kit.connect(first, second)
        if kit.kind != MEM:
            return  # 256 events take too long over real handshakes; nobody was hurt
        assert len(_drain(lagging)) == 256
        with pytest.raises(trio.EndOfChannel):
            lagging.receive_nowait()
        fresh = first.fabric.events()
        await first.fabric.disconnect(second.id)
        await next_event(fresh, PeerDown, second.id, within_s=1)

    play(kind, scenario)


@every_kind
def test_learned_addresses_are_remembered(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first = await kit.start(1)
        second = await kit.start(2)
        second.fabric.handle(ECHO, echo, per_peer_max=10)
        assert first.fabric.known_addrs(second.id) == []
        first.fabric.learn(second.id, second.fabric.addrs())
        assert set(second.fabric.addrs()) <= set(first.fabric.known_addrs(second.id))
        stream = await first.fabric.open(second.id, ECHO)  # connects first
        assert await ask(stream, b"hello") == b"hello"

    play(kind, scenario)


def _drain(channel: trio.MemoryReceiveChannel[FabricEvent]) -> list[FabricEvent]:
    found: list[FabricEvent] = []
    while True:
        try:
            found.append(channel.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return found


def _is_of_trio(thread: threading.Thread) -> bool:
    return thread.name.startswith("Trio")


# --- besides: what a peer serves ------------------------------------------------------------------


@every_kind
def test_a_peer_tells_what_it_serves(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.start(1), await kit.start(2)
        assert first.fabric.protocols(second.id) == frozenset()
        second.fabric.handle(ECHO, echo, per_peer_max=1)
        events = first.fabric.events()
        await kit.connect(first, second)
        await next_event(events, PeerIdentified, second.id, within_s=20)
        assert ECHO in first.fabric.protocols(second.id)
        await first.fabric.disconnect(second.id)
        assert first.fabric.protocols(second.id) == frozenset()

    play(kind, scenario)


@every_kind
def test_own_addresses_come_from_sources_and_are_told_once(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first = await kit.start(1)
        before = first.fabric.addrs()
        events = first.fabric.events()
        first.fabric.set_own_addrs("mapped", ["/ip4/45.77.1.2/tcp/15001"])
        first.fabric.set_own_addrs("observed", ["/ip4/45.77.1.2/tcp/15001"])
        assert first.fabric.addrs() == [*before, "/ip4/45.77.1.2/tcp/15001"]
        assert await events.receive() == AddrsChanged(tuple(first.fabric.addrs()))
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()

    play(kind, scenario)
