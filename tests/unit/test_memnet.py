"""The simulated network does what it says: delay, rate, order, partitions, clogs, deaths."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2p.env import SeededEnv
from p2p.errors import Unreachable, UsageError
from p2p.net.memory import CONNECT_S_MAX, MemNet, mem_addr, split_mem_addr
from p2p.net.memory_link import PIPE_BYTES_MAX, LinkConfig, PipeStream
from tests.helpers.det import run_seeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.net.seam import Addr

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Rig:
    """Two connected hosts: `near` dialled `far`."""

    def __init__(self, net: MemNet, near: PipeStream, far: PipeStream) -> None:
        self.net = net
        self.near = near
        self.far = far


def new_net(
    *, latency_s: float = 0.1, jitter_s: float = 0.0, seed: int = 1, bytes_per_s: float = 1e12
) -> MemNet:
    env = SeededEnv(seed, "net", trio.current_time)
    return MemNet(env, latency_s=latency_s, jitter_s=jitter_s, bytes_per_s=bytes_per_s)


class Accepted:
    """What connected to a listener, in order. The last packet of a handshake comes after a dial."""

    def __init__(self) -> None:
        self.streams: list[PipeStream] = []
        self._more = trio.lowlevel.ParkingLot()

    def add(self, stream: PipeStream) -> None:
        self.streams.append(stream)
        self._more.unpark_all()

    async def get(self, number: int = 0) -> PipeStream:
        while len(self.streams) <= number:
            await self._more.park()
        return self.streams[number]


async def listen(net: MemNet, ip: str, nursery: trio.Nursery) -> tuple[Addr, Accepted]:
    """Listen on a host and collect what connects."""
    accepted = Accepted()

    async def accept(stream: trio.abc.Stream, remote: Addr) -> None:
        assert isinstance(stream, PipeStream)
        assert net.host(B).dials(remote) or net.host("fd00::1").dials(remote)
        accepted.add(stream)

    return await nursery.start(net.host(ip).listen, mem_addr(ip, 0), accept), accepted


def rigged(
    scenario: Callable[[Rig], Awaitable[None]],
    *,
    latency_s: float = 0.1,
    jitter_s: float = 0.0,
    bytes_per_s: float = 1e12,
) -> None:
    async def main() -> None:
        net = new_net(latency_s=latency_s, jitter_s=jitter_s, bytes_per_s=bytes_per_s)
        async with trio.open_nursery() as nursery:
            addr, accepted = await listen(net, B, nursery)
            near = await net.host(A).dial(addr)
            assert isinstance(near, PipeStream)
            await scenario(Rig(net, near, await accepted.get()))
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)


async def read_exactly(stream: PipeStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some()
        assert more
        data += more
    return data


# --- Delay, rate, order ---------------------------------------------------------------------------


def test_a_dial_takes_a_round_trip_and_bytes_one_way_take_the_latency() -> None:
    async def main() -> None:
        net = new_net(latency_s=0.25)
        async with trio.open_nursery() as nursery:
            addr, accepted = await listen(net, B, nursery)
            start = trio.current_time()
            near = await net.host(A).dial(addr)
            assert trio.current_time() - start == pytest.approx(0.5)
            start = trio.current_time()
            await near.send_all(b"hello")
            assert trio.current_time() == start, "sending does not wait for the way"
            assert await (await accepted.get()).receive_some() == b"hello"
            assert trio.current_time() - start == pytest.approx(0.25)
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)


def test_a_rate_is_kept_and_shared_by_the_streams_of_a_link() -> None:
    async def main() -> None:
        net = new_net(latency_s=0.01)
        net.link(A, B, bytes_per_s=100_000)
        async with trio.open_nursery() as nursery:
            addr, accepted = await listen(net, B, nursery)
            streams = [await net.host(A).dial(addr) for _ in range(2)]
            start = trio.current_time()
            async with trio.open_nursery() as senders:
                for stream in streams:
                    senders.start_soon(stream.send_all, bytes(200_000))
                for number in range(2):
                    far = await accepted.get(number)
                    senders.start_soon(read_exactly, far, 200_000)
            assert trio.current_time() - start == pytest.approx(4.0, abs=0.1)
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    jitter_ms=st.integers(0, 500),
    outages=st.lists(st.tuples(st.integers(0, 900), st.integers(1, 900)), max_size=3),
)
def test_a_stream_keeps_order_and_loses_nothing_whatever_happens_to_its_link(
    sizes: list[int], jitter_ms: int, outages: list[tuple[int, int]]
) -> None:
    data = b"".join(bytes([n % 251]) * size for n, size in enumerate(sizes))

    async def scenario(rig: Rig) -> None:
        async def send() -> None:
            for n, size in enumerate(sizes):
                await rig.near.send_all(bytes([n % 251]) * size)
                await trio.sleep(0.05)
            await rig.near.send_eof()

        async def disturb() -> None:
            for wait_ms, last_ms in outages:
                await trio.sleep(wait_ms / 1000)
                rig.net.partition(A, B)
                await trio.sleep(last_ms / 1000)
                rig.net.heal(A, B)

        got = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(disturb)
            while more := await rig.far.receive_some(1000):
                got += more
        assert got == data

    rigged(scenario, jitter_s=jitter_ms / 1000)


def test_jitter_is_drawn_from_the_seed() -> None:
    def times(seed: int) -> list[float]:
        found: list[float] = []

        async def main() -> None:
            net = new_net(jitter_s=0.5, seed=seed)
            async with trio.open_nursery() as nursery:
                addr, accepted = await listen(net, B, nursery)
                near = await net.host(A).dial(addr)
                for _ in range(5):
                    await near.send_all(b"x")
                    await (await accepted.get()).receive_some()
                    found.append(trio.current_time())
                nursery.cancel_scope.cancel()

        run_seeded(main, seed=1)
        return found

    assert times(1) == times(1)
    assert times(1) != times(2)


def test_links_differ_by_direction_when_asked() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.link(A, B, latency_s=2.0, symmetric=False)
        start = trio.current_time()
        await rig.near.send_all(b"slow")
        await rig.far.receive_some()
        assert trio.current_time() - start == pytest.approx(2.0)
        start = trio.current_time()
        await rig.far.send_all(b"fast")
        await rig.near.receive_some()
        assert trio.current_time() - start == pytest.approx(0.1)

    rigged(scenario)


@pytest.mark.parametrize(
    "bad", [{"latency_s": -1.0}, {"jitter_s": -0.1}, {"bytes_per_s": 0.0}], ids=str
)
def test_an_impossible_link_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="latency_s and jitter_s"):
        LinkConfig(**bad)


# --- Bounded buffers ------------------------------------------------------------------------------


def test_a_sender_waits_when_nobody_reads_for_as_long_as_it_takes() -> None:
    async def scenario(rig: Rig) -> None:
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(100):
                await rig.near.send_all(bytes(10_000))
                sent += 10_000

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(1000)
            assert PIPE_BYTES_MAX - 10_000 <= sent <= PIPE_BYTES_MAX
            await read_exactly(rig.far, 1_000_000)
        assert sent == 1_000_000

    rigged(scenario)


# --- Partitions -----------------------------------------------------------------------------------


def test_a_partition_holds_both_directions_and_a_heal_delivers_what_was_held() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.near.send_all(b"on the way")
        rig.net.partition(A, B)
        await rig.near.send_all(b", held")
        await rig.far.send_all(b"back")
        with trio.move_on_after(1000) as scope:
            await rig.far.receive_some()
        assert scope.cancelled_caught
        with trio.move_on_after(1000) as scope:
            await rig.near.receive_some()
        assert scope.cancelled_caught
        healed = trio.current_time()
        rig.net.heal()
        assert await read_exactly(rig.far, 16) == b"on the way, held"
        assert trio.current_time() - healed == pytest.approx(0.1)
        assert await rig.near.receive_some() == b"back"

    rigged(scenario)


def test_what_arrived_before_a_partition_can_still_be_read() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.near.send_all(b"early")
        await trio.sleep(1)
        rig.net.partition(A, B)
        assert await rig.far.receive_some() == b"early"

    rigged(scenario)


def test_a_one_way_partition_holds_one_direction() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.partition(A, B, symmetric=False)
        await rig.far.send_all(b"passes")
        assert await rig.near.receive_some() == b"passes"
        await rig.near.send_all(b"is held")
        with trio.move_on_after(100) as scope:
            await rig.far.receive_some()
        assert scope.cancelled_caught
        rig.net.heal(A)
        assert await rig.far.receive_some() == b"is held"

    rigged(scenario)


def test_a_partition_concerns_its_pair_and_isolate_everybody() -> None:
    async def main() -> None:
        net = new_net()
        async with trio.open_nursery() as nursery:
            addr, _ = await listen(net, B, nursery)
            net.host(A)
            net.host(C)
            net.partition(A, B)
            await net.host(C).dial(addr)
            net.isolate(B)
            with pytest.raises(Unreachable, match="no answer"):
                await net.host(C).dial(addr)
            net.heal(B, C)
            await net.host(C).dial(addr)
            with pytest.raises(Unreachable):
                await net.host(A).dial(addr)
            net.heal()
            await net.host(A).dial(addr)
            net.split([A], [B, C])
            assert net.blocked(A, C)
            assert not net.blocked(B, C)
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)


def test_a_dial_into_a_partition_gives_up_or_succeeds_when_it_heals() -> None:
    async def main() -> None:
        net = new_net()
        async with trio.open_nursery() as nursery:
            addr, accepted = await listen(net, B, nursery)
            net.partition(A, B)
            start = trio.current_time()
            with pytest.raises(Unreachable):
                await net.host(A).dial(addr)
            assert trio.current_time() - start == pytest.approx(CONNECT_S_MAX)

            async def heal_soon() -> None:
                await trio.sleep(5)
                net.heal()

            nursery.start_soon(heal_soon)
            await net.host(A).dial(addr)
            assert trio.current_time() - start < CONNECT_S_MAX + 6
            await accepted.get()
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)


def test_a_clog_delays_and_loses_nothing() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.clog(A, B, duration_s=30)
        start = trio.current_time()
        await rig.near.send_all(b"late")
        assert await rig.far.receive_some() == b"late"
        assert trio.current_time() - start == pytest.approx(30.1)
        await rig.far.send_all(b"quick again")
        await rig.near.receive_some()
        assert trio.current_time() - start == pytest.approx(30.2)

    rigged(scenario)


def test_partitions_may_follow_each_other() -> None:
    async def scenario(rig: Rig) -> None:
        for number in range(200):
            rig.net.partition(A, B)
            await rig.near.send_all(bytes([number]))
            await trio.sleep(1)
            rig.net.heal()
            assert await rig.far.receive_some() == bytes([number])

    rigged(scenario)


# --- Ends -----------------------------------------------------------------------------------------


def test_end_of_file_leaves_the_other_direction_open() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.near.send_all(b"last")
        await rig.near.send_eof()
        assert await rig.far.receive_some() == b"last"
        assert await rig.far.receive_some() == b""
        assert await rig.far.receive_some() == b""
        await rig.far.send_all(b"answer")
        assert await rig.near.receive_some() == b"answer"
        with pytest.raises(trio.ClosedResourceError):
            await rig.near.send_all(b"more")

    rigged(scenario)


def test_a_closed_stream_delivers_what_was_sent_and_breaks_a_late_sender() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.near.send_all(b"goodbye")
        await rig.near.aclose()
        await rig.near.aclose()
        assert await rig.far.receive_some() == b"goodbye"
        assert await rig.far.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await rig.far.send_all(b"too late")
        for use in (rig.near.receive_some, rig.near.send_eof):
            with pytest.raises(trio.ClosedResourceError):
                await use()

    rigged(scenario)


def test_a_waiting_sender_and_reader_are_woken_by_their_own_close() -> None:
    async def scenario(rig: Rig) -> None:
        ended: list[str] = []

        async def wait(what: str, use: Callable[[], Awaitable[object]]) -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                await use()
                return
            ended.append(what)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "reader", rig.near.receive_some)
            nursery.start_soon(wait, "sender", lambda: rig.near.send_all(bytes(1 << 20)))
            await trio.sleep(1)
            await rig.near.aclose()
        assert sorted(ended) == ["reader", "sender"]

    rigged(scenario)


def test_a_reset_breaks_the_other_end_one_latency_later() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.near.send_all(b"never read")
        start = trio.current_time()
        rig.near.reset()
        with pytest.raises(trio.BrokenResourceError):
            await rig.far.receive_some()
        assert trio.current_time() - start == pytest.approx(0.1)
        with pytest.raises(trio.BrokenResourceError):
            await rig.far.send_all(b"x")

    rigged(scenario)


def test_a_reset_during_a_partition_is_learnt_after_it() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.partition(A, B)
        rig.near.reset()
        with trio.move_on_after(100) as scope:
            await rig.far.receive_some()
        assert scope.cancelled_caught
        rig.net.heal()
        with pytest.raises(trio.BrokenResourceError):
            await rig.far.receive_some()

    rigged(scenario)


def test_a_killed_host_resets_its_streams_and_refuses_dials() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.kill(B)
        with pytest.raises(trio.BrokenResourceError):
            await rig.near.receive_some()
        with pytest.raises(trio.BrokenResourceError, match="killed"):
            await rig.far.receive_some()
        with pytest.raises(Unreachable, match="refused"):
            await rig.net.host(A).dial(mem_addr(B, 15_001))

    rigged(scenario)


def test_a_host_without_power_is_silent() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.kill(B, silent=True)
        await rig.near.send_all(b"into the void")
        with trio.move_on_after(1000) as scope:
            await rig.near.receive_some()
        assert scope.cancelled_caught
        with pytest.raises(Unreachable, match="no answer"):
            await rig.net.host(A).dial(mem_addr(B, 15_001))

    rigged(scenario)


def test_a_cancelled_dial_leaves_no_half_connection() -> None:
    async def main() -> None:
        net = new_net()
        async with trio.open_nursery() as nursery:
            addr, accepted = await listen(net, B, nursery)
            with trio.move_on_after(0.15):  # after the other side answered, before we know
                await net.host(A).dial(addr)
            await trio.sleep(10)
            assert accepted.streams == []
            assert net.host(B).connections == net.host(A).connections == 0
            await net.host(A).dial(addr)
            await accepted.get()
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)


def test_two_tasks_on_one_direction_are_told() -> None:
    async def scenario(rig: Rig) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.near.receive_some)
            nursery.start_soon(rig.near.send_all, bytes(1 << 20))
            await trio.sleep(1)
            with pytest.raises(trio.BusyResourceError):
                await rig.near.receive_some()
            with pytest.raises(trio.BusyResourceError):
                await rig.near.send_all(b"x")
            with pytest.raises(trio.BusyResourceError):
                await rig.near.send_eof()
            nursery.cancel_scope.cancel()
        with pytest.raises(ValueError, match="max_bytes"):
            await rig.near.receive_some(0)

    rigged(scenario)


# --- Addresses and listeners ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "addr",
    [
        "",
        "/ip4/10.0.0.1",
        "/ip4/10.0.0.1/udp/1",
        "/ip4/fd00::1/tcp/1",
        "/ip6/10.0.0.1/tcp/1",
        "/ip4/10.0.0.300/tcp/1",
        "/ip4/10.0.0.1/tcp/65536",
        "/ip4/10.0.0.1/tcp/-1",
        "/ip4/10.0.0.1/tcp/٣",
        "/dns4/example.org/tcp/1",
        "x/ip4/10.0.0.1/tcp/1",
    ],
)
def test_other_addresses_are_not_ours(addr: str) -> None:
    assert split_mem_addr(addr) is None


def test_addresses_go_there_and_back() -> None:
    for ip, port in itertools.product(("10.1.2.3", "fd00::7"), (0, 1, 65_535)):
        assert split_mem_addr(mem_addr(ip, port)) == (ip, port)


def test_a_host_listens_at_its_own_address_and_a_port_once() -> None:
    async def main() -> None:
        net = new_net()
        async with trio.open_nursery() as nursery:
            addr, _ = await listen(net, B, nursery)
            again, _ = await listen(net, B, nursery)
            assert addr != again
            for bad in (addr, mem_addr(A, 0), "/ip4/10.0.0.2/udp/1"):
                with pytest.raises(UsageError, match="cannot listen"):
                    await net.host(B).listen(bad, None, task_status=trio.TASK_STATUS_IGNORED)  # type: ignore[arg-type]
            with pytest.raises(Unreachable, match="refused"):
                await net.host(A).dial(mem_addr(B, 9))
            with pytest.raises(Unreachable, match="not an address"):
                await net.host(A).dial("/ip6/fd00::1/tcp/9")
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)


def test_hosts_may_have_ipv6_addresses() -> None:
    async def main() -> None:
        net = new_net()
        async with trio.open_nursery() as nursery:
            addr, accepted = await listen(net, "fd00::2", nursery)
            assert addr.startswith("/ip6/fd00::2/tcp/")
            near = await net.host("fd00::1").dial(addr)
            await near.send_all(b"six")
            assert await (await accepted.get()).receive_some() == b"six"
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)


def test_a_dial_that_reuses_the_port_is_seen_from_the_listening_one() -> None:
    async def main() -> None:
        net = new_net()
        seen: list[Addr] = []

        async def accept(stream: trio.abc.Stream, remote: Addr) -> None:
            assert isinstance(stream, PipeStream)
            seen.append(remote)

        async with trio.open_nursery() as nursery:
            there = await nursery.start(net.host(B).listen, mem_addr(B, 0), accept)
            here = await nursery.start(net.host(A).listen, mem_addr(A, 0), accept)
            first = await net.host(A).dial(there, reuse_port=True)
            assert isinstance(first, PipeStream)
            assert split_mem_addr(here) == (A, first.local_port)
            await net.host(A).dial(there)
            await trio.sleep(1)
            assert seen[0] == here
            assert seen[1] != here
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)
