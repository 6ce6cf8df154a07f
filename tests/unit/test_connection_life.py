"""The life of connections: which one stays, who is doubted, redialled, refused, let go.

Over the simulated network in virtual time, with the real wire; `tests/attack` and
`test_tcp_fabric.py` use real sockets.
"""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.config import P2pConfig
from p2p.env import SeededEnv
from p2p.errors import Unreachable
from p2p.identity import Identity
from p2p.net.gate import Gate
from p2p.net.memory import MemNet
from p2p.net.seam import PeerDown, PeerIdentified, PeerUp
from p2p.net.wire_fabric import WireFabric
from tests.helpers.det import run_seeded
from tests.helpers.wire_kit import ECHO, HOLD, echo, exchange, hold, wait_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.net.driver import Connection
    from p2p.net.seam import FabricEvent

# Identities in the order of their peer ids, so that "lower" is a fact and not luck.
LOW, HIGH = sorted((Identity(bytes([n]) * 32) for n in (1, 2)), key=lambda who: who.id)
WAN = replace(P2pConfig.test(), preset="wan")


@dataclass
class World:
    """Two hosts that may run fabrics."""

    net: MemNet
    nursery: trio.Nursery
    fabrics: dict[bytes, WireFabric] = field(default_factory=dict)

    async def start(
        self, who: Identity, ip: str, config: P2pConfig = WAN
    ) -> tuple[WireFabric, trio.CancelScope]:
        """Run a fabric on a host; cancel the scope to stop it."""
        config = replace(config, listen=(f"/ip4/{ip}/tcp/15001",))
        env = SeededEnv(3, ip, trio.current_time)
        fabric = WireFabric(who, config, env, [self.net.host(ip)])
        fabric.handle(ECHO, echo, per_peer_max=100)
        fabric.handle(HOLD, hold, per_peer_max=100)
        self.fabrics[who.id] = fabric
        scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await fabric.run(task_status=task_status)

        await self.nursery.start(run)
        return fabric, scope

    async def pair(self, config: P2pConfig = WAN) -> tuple[WireFabric, WireFabric]:
        """The lower and the higher peer, not connected."""
        low, _ = await self.start(LOW, "10.0.0.1", config)
        high, _ = await self.start(HIGH, "10.0.0.2", config)
        return low, high


def play(scenario: Callable[[World], Awaitable[None]], *, seed: int = 1) -> None:
    """Run a scenario in virtual time."""

    async def main() -> None:
        net = MemNet(SeededEnv(seed, "net", trio.current_time), latency_s=0.01)
        async with trio.open_nursery() as nursery:
            await scenario(World(net, nursery))
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=seed)


def live(fabric: WireFabric, peer: WireFabric) -> list[Connection]:
    """Connections of `fabric` to `peer` that are not over."""
    return [c for c in fabric._manager.table if c.peer == peer.id and c.alive]


def taken(events: trio.MemoryReceiveChannel[FabricEvent]) -> list[FabricEvent]:
    """What a subscription holds now."""
    found = []
    while True:
        try:
            found.append(events.receive_nowait())
        except trio.WouldBlock:
            return found


# --- one connection a peer ---


@pytest.mark.parametrize("seed", range(8))
def test_both_dial_at_once_and_keep_the_lower_initiators(seed: int) -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        ups = low.events(), high.events()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(low.connect, high.id, high.addrs())
            nursery.start_soon(high.connect, low.id, low.addrs())
        await trio.sleep(5)
        [kept_low], [kept_high] = live(low, high), live(high, low)
        assert not kept_low.inbound
        assert kept_high.inbound
        await exchange(low, high.id)
        await exchange(high, low.id)
        for events in ups:
            kinds = [type(e) for e in taken(events)]
            assert [kind for kind in kinds if kind is not PeerIdentified] == [PeerUp]

    play(scenario, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_the_loser_is_never_cut_while_a_stream_lives(seed: int) -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        # The higher one's connection loses against the lower one's, which comes second.
        await high.connect(low.id, low.addrs())
        stream = await high.open(low.id, ECHO)
        await stream.send_all(b"before")
        assert await stream.receive_some() == b"before"
        beside = await low._manager.dialler.dial(high.id, high.addrs())
        low._manager._nursery.start_soon(low._manager.carry, beside)  # type: ignore[union-attr]
        await trio.sleep(30)
        assert len(live(high, low)) == 2  # the loser drains, and lives as long as its stream
        await stream.send_all(b"after")
        assert await stream.receive_some() == b"after"
        fresh = await high.open(low.id, ECHO)
        await fresh.send_all(b"new")
        assert await fresh.receive_some() == b"new"
        await fresh.aclose()
        assert next(c for c in live(high, low) if c.carries(stream)).draining or (
            next(c for c in live(low, high) if c.inbound).draining
        )
        await stream.send_eof()
        assert await stream.receive_some() == b""
        await stream.aclose()
        await trio.sleep(5)
        assert len(live(high, low)) == len(live(low, high)) == 1

    play(scenario, seed=seed)


def test_a_redial_by_one_side_moves_both_to_the_newer() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        for first, second in ((low, high), (high, low)):
            await first.connect(second.id, second.addrs())
            await exchange(first, second.id)
            old = live(first, second)[0]
            beside = await first._manager.dialler.dial(second.id, second.addrs())
            first._manager._nursery.start_soon(first._manager.carry, beside)  # type: ignore[union-attr]
            await trio.sleep(5)
            await exchange(first, second.id)
            await exchange(second, first.id)
            assert not old.alive
            assert len(live(first, second)) == len(live(second, first)) == 1
            await first.disconnect(second.id)
            await trio.sleep(1)

    play(scenario)


@pytest.mark.parametrize("restarted", ["low", "high"])
def test_a_restarted_peer_does_not_lose_to_its_ghost(restarted: str) -> None:
    async def scenario(world: World) -> None:
        who, ip = (LOW, "10.0.0.1") if restarted == "low" else (HIGH, "10.0.0.2")
        other_who, other_ip = (HIGH, "10.0.0.2") if restarted == "low" else (LOW, "10.0.0.1")
        fabric, scope = await world.start(who, ip)
        other, _ = await world.start(other_who, other_ip)
        # The ghost is a connection that the survivor would keep: its initiator is the lower peer.
        if restarted == "low":
            await fabric.connect(other.id, other.addrs())
        else:
            await other.connect(fabric.id, fabric.addrs())
        await exchange(other, fabric.id)
        # It is killed without a word: the survivor's TCP knows nothing.
        world.net.kill(ip, silent=True)
        scope.cancel()
        await trio.sleep(1)
        again, _ = await world.start(who, ip)
        await again.connect(other.id, other.addrs())
        with trio.fail_after(3):
            await exchange(again, other.id)
            await exchange(other, again.id)
        await trio.sleep(5)
        assert len(live(other, again)) == 1
        with trio.fail_after(1):
            await exchange(other, again.id)

    play(scenario)


# --- liveness ---


LAN = replace(
    WAN, **{name: getattr(P2pConfig.lan(), name) for name in ("ping_idle_s", "dead_idle_s")}
)


@pytest.mark.parametrize(
    ("config", "limits"), [(WAN, ((False, 45.0), (True, 15.1))), (LAN, ((False, 10.1),))]
)
def test_a_silent_peer_is_reported_in_40_s_and_in_15_s_when_somebody_waits(
    config: P2pConfig, limits: tuple[tuple[bool, float], ...]
) -> None:
    """In a local network in 10 s."""

    async def scenario(world: World) -> None:
        low, high = await world.pair(config)
        for waits, limit_s in limits:
            await low.connect(high.id, high.addrs())
            await trio.sleep(1)
            stream = await low.open(high.id, HOLD)
            if waits:
                await stream.send_all(b"x")
                world.nursery.start_soon(_read_until_broken, stream)
            else:
                await stream.aclose()
            await trio.sleep(1)
            events = low.events()
            world.net.partition("10.0.0.1", "10.0.0.2")
            started_s = trio.current_time()
            down = await _next(events, PeerDown)
            assert isinstance(down, PeerDown)
            assert "silent" in down.reason
            assert trio.current_time() - started_s <= limit_s
            world.net.heal()
            await trio.sleep(60)

    play(scenario)


async def _read_until_broken(stream: trio.abc.ReceiveStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()


async def _next(
    events: trio.MemoryReceiveChannel[FabricEvent], kind: type[PeerUp | PeerDown]
) -> FabricEvent:
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the subscription ended")


def test_an_idle_connection_is_kept_by_pings() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        await low.connect(high.id, high.addrs())
        [connection] = live(low, high)
        await trio.sleep(600)
        assert connection.alive
        assert low.peers()[high.id].rtt_s == pytest.approx(0.02)

    play(scenario)


def deaf(size: int) -> None:
    """Stands for a connection on which no byte arrives any more."""
    del size


def test_beside_a_doubted_connection_a_fresh_one_is_dialled() -> None:
    """A path that died in the middle (a NAT forgot it) is replaced before it counts as dead."""

    async def scenario(world: World) -> None:
        low, high = await world.pair()
        await low.connect(high.id, high.addrs())
        await exchange(low, high.id)
        [old] = live(low, high)
        # Only this connection is silent, the network is fine.
        old.mux.ping(trio.current_time())
        old.mux._ping_value += 1000  # its pong will never be recognised
        old._heard = deaf  # type: ignore[method-assign]
        old._liveness.seen_s = trio.current_time()
        await trio.sleep(25)
        assert low._manager.counters["dials"] == 2
        with trio.fail_after(1):
            await exchange(low, high.id)

    play(scenario)


@pytest.mark.parametrize("told", [True, False])
def test_a_change_of_network_moves_the_traffic_at_once(told: bool) -> None:
    """The machine has another address: what it had open is dead, and TCP does not say so."""

    async def scenario(world: World) -> None:
        low, high = await world.pair()
        low.pin(high.id, high.addrs())
        events = low.events()
        await _next(events, PeerUp)
        waiting = await low.open(high.id, ECHO)
        await waiting.send_all(b"x")
        assert await waiting.receive_some() == b"x"
        await trio.sleep(20)
        world.net.readdress("10.0.0.1", "10.0.0.9")
        if told:
            low.network_changed()
        await trio.sleep(3)
        with trio.move_on_after(1) as limit:
            await exchange(low, high.id)
        assert limit.cancelled_caught is not told, "control: nobody knows it otherwise"
        if told:
            await trio.sleep(1)
            with pytest.raises(trio.BrokenResourceError):
                await waiting.receive_some()  # its caller need not wait for ever either
            assert len(live(low, high)) == 1

    play(scenario)


def test_a_change_of_network_leaves_what_lives_alone() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        await low.connect(high.id, high.addrs())
        await exchange(low, high.id)
        before = live(low, high)
        for _ in range(3):
            low.network_changed()
            await trio.sleep(2)
        assert live(low, high) == before
        assert low._manager.counters["dials"] == 1

    play(scenario)


# --- keeping connected ---


def test_a_pinned_peer_is_dialled_again_after_an_outage() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        low.pin(high.id, high.addrs())
        events = low.events()
        await _next(events, PeerUp)
        world.net.partition("10.0.0.1", "10.0.0.2")
        await _next(events, PeerDown)
        await trio.sleep(30)
        world.net.heal()
        healed_s = trio.current_time()
        await _next(events, PeerUp)
        assert trio.current_time() - healed_s < 60
        assert low.pinned() == [high.id]

    play(scenario)


def test_a_connection_that_lived_a_minute_resets_the_backoff() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        low.pin(high.id, high.addrs())
        events = low.events()
        waits = []
        for life_s in (5, 5, 5, 5, 61, 5):
            await _next(events, PeerUp)
            await trio.sleep(life_s)
            await high.disconnect(low.id)
            await _next(events, PeerDown)
            lost_s = trio.current_time()
            await wait_for(lambda: high.id in low.peers(), limit_s=400)
            waits.append(trio.current_time() - lost_s)
        assert [wait > n for wait, n in zip(waits, (0.4, 0.9, 1.9, 3.9), strict=False)] == [
            True
        ] * 4
        assert waits[4] < 1.2
        assert waits[5] > 0.9

    play(scenario)


def test_after_their_goodbye_live_streams_go_on_and_then_the_connection_ends() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        await low.connect(high.id, high.addrs())
        await trio.sleep(1)
        stream = await low.open(high.id, ECHO)
        await stream.send_all(b"before")
        assert await stream.receive_some() == b"before"
        [theirs] = live(high, low)
        theirs.mux.go_away(0)
        theirs.flush()
        await trio.sleep(1)
        await stream.send_all(b"after")
        assert await stream.receive_some() == b"after"
        await exchange(low, high.id)  # on a new connection
        await stream.send_eof()
        assert await stream.receive_some() == b""
        await stream.aclose()
        await trio.sleep(2)
        assert len(live(low, high)) == 1

    play(scenario)


def test_strangers_do_not_push_wanted_peers_out_of_the_book() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair(replace(WAN, book_peers_max=10))
        low.pin(high.id, high.addrs())
        for number in range(100):
            stranger = Identity(bytes([100, number]) + bytes(30)).id
            low.learn(stranger, [f"/ip4/10.0.9.{number}/tcp/15001"])
        assert low.known_addrs(high.id) == high.addrs()
        assert len(low._book.peers()) == 10

    play(scenario)


def test_backoff_doubles_to_its_limit_and_the_higher_peer_waits_longer() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        for n, longest_s in enumerate((1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300)):
            wait_s = low._manager.keeper.backoff_s(high.id, n)
            assert longest_s / 2 <= wait_s <= longest_s
            wait_s = high._manager.keeper.backoff_s(low.id, n)
            assert longest_s / 2 + 3 <= wait_s <= longest_s + 3

    play(scenario)


def test_a_fresh_address_is_tried_at_once() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        low.pin(high.id, ["/ip4/10.0.0.99/tcp/15001"])
        await trio.sleep(400)  # deep in the backoff
        started_s = trio.current_time()
        events = low.events()
        low.learn(high.id, high.addrs())
        await _next(events, PeerUp)
        # The dead address goes first for one stagger.
        assert trio.current_time() - started_s < 21

    play(scenario)


def test_a_change_of_network_ends_the_waiting_for_pinned_peers() -> None:
    """Deep in the backoff; without the word it would be another three minutes on average."""

    async def scenario(world: World) -> None:
        low, high = await world.pair()
        world.net.partition("10.0.0.1", "10.0.0.2")
        low.pin(high.id, high.addrs())
        await trio.sleep(3000)
        world.net.heal()
        events = low.events()
        low.network_changed()
        with trio.fail_after(2):
            await _next(events, PeerUp)

    play(scenario)


def test_an_unpinned_peer_is_not_dialled_again() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        low.pin(high.id, high.addrs())
        await _next(low.events(), PeerUp)
        low.unpin(high.id)
        await low.disconnect(high.id)
        await trio.sleep(600)
        assert not low.peers()

    play(scenario)


def test_paused_means_no_connection_in_or_out_and_resume_reaches_pinned_peers() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        low.pin(high.id, high.addrs())
        await _next(low.events(), PeerUp)
        low.pause()
        assert low.paused
        await trio.sleep(10)
        assert not low.peers()
        assert not high.peers()
        with pytest.raises(Unreachable, match="offline"):
            await low.connect(high.id)
        with pytest.raises(Unreachable):
            await high.connect(low.id, low.addrs())
        events = low.events()
        low.resume()
        with trio.fail_after(2):
            await _next(events, PeerUp)
        await exchange(high, low.id)

    play(scenario)


def test_a_stop_says_goodbye_and_the_other_side_knows_at_once() -> None:
    async def scenario(world: World) -> None:
        low, scope = await world.start(LOW, "10.0.0.1")
        high, _ = await world.start(HIGH, "10.0.0.2")
        await high.connect(low.id, low.addrs())
        events = high.events()
        await trio.sleep(1)
        scope.cancel()
        with trio.fail_after(1):
            await _next(events, PeerDown)

    play(scenario)


def test_one_dial_serves_everybody_who_waits() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        low.learn(high.id, high.addrs())
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(exchange, low, high.id)
        assert low.counters()["dials"] == 1
        assert len(live(low, high)) == 1

    play(scenario)


def test_a_cancelled_dial_is_not_taken_from_the_others() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        low.learn(high.id, high.addrs())

        async def impatient() -> None:
            with trio.move_on_after(0.015):
                await low.connect(high.id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(impatient)
            nursery.start_soon(low.connect, high.id)
        assert len(live(low, high)) == 1

    play(scenario)


def test_who_comes_later_with_a_better_address_does_not_wait_for_the_dial_under_way() -> None:
    """The first caller knows only addresses at which nobody answers any more."""

    async def scenario(world: World) -> None:
        low, high = await world.pair()
        dead = [f"/ip4/10.0.9.{n}/tcp/15001" for n in range(1, 9)]
        world.net.partition("10.0.0.1", "10.0.9.1")
        for n in range(1, 9):
            world.net.host(f"10.0.9.{n}")
            world.net.partition("10.0.0.1", f"10.0.9.{n}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(low.connect, high.id, dead)
            await trio.sleep(0.1)
            started_s = trio.current_time()
            await low.connect(high.id, high.addrs())
            # One stagger until its turn, then the handshake.
            assert trio.current_time() - started_s < 2 * WAN.dial_stagger_s
        assert low.counters()["dials"] == 1, "both callers shared one race"

    play(scenario)


def test_an_address_learned_during_a_dial_is_tried_in_it() -> None:
    async def scenario(world: World) -> None:
        low, high = await world.pair()
        world.net.host("10.0.9.1")
        world.net.partition("10.0.0.1", "10.0.9.1")
        low.pin(high.id, ["/ip4/10.0.9.1/tcp/15001"])
        await trio.sleep(1)
        events = low.events()
        low.learn(high.id, high.addrs())
        with trio.fail_after(1):
            await _next(events, PeerUp)
        assert low.counters()["dials"] == 1

    play(scenario)


def test_a_first_answer_takes_three_round_trips_with_the_transports_own() -> None:
    async def scenario(world: World) -> None:
        world.net.link("10.0.0.1", "10.0.0.2", latency_s=0.025)
        low, high = await world.pair()
        low.learn(high.id, high.addrs())
        started_s = trio.current_time()
        stream = await low.open(high.id, ECHO)
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        assert trio.current_time() - started_s <= 3.1 * 0.05

    play(scenario)


def test_a_full_subscription_is_closed_and_others_go_on() -> None:
    async def scenario(world: World) -> None:
        low, _ = await world.pair(replace(WAN, events_max=4))
        slow, quick = low.events(), low.events()
        for number in range(10):
            low._publish(PeerDown(HIGH.id, str(number)))
            assert isinstance(quick.receive_nowait(), PeerDown)
        assert len(taken_until_closed(slow)) == 4

    play(scenario)


def taken_until_closed(events: trio.MemoryReceiveChannel[FabricEvent]) -> list[FabricEvent]:
    """What a closed subscription still holds."""
    found = []
    while True:
        try:
            found.append(events.receive_nowait())
        except trio.EndOfChannel:
            return found


def test_the_same_seed_gives_the_same_run() -> None:
    traces: list[list[tuple[float, str]]] = []
    for _ in range(2):
        trace: list[tuple[float, str]] = []

        async def scenario(world: World, trace: list[tuple[float, str]] = trace) -> None:
            low, high = await world.pair()
            low.pin(high.id, high.addrs())
            high.pin(low.id, low.addrs())
            events = low.events()
            for _ in range(3):
                await _next(events, PeerUp)
                trace.append((trio.current_time(), "up"))
                await trio.sleep(2)
                await high.disconnect(low.id)
                await _next(events, PeerDown)
                trace.append((trio.current_time(), "down"))

        play(scenario, seed=5)
        traces.append(trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) == 6


# --- when connections run out ---

FULL = replace(WAN, connections_max=4, connections_for_members=1)
CROWD = [Identity(bytes([50, number]) + bytes(30)) for number in range(10)]


async def crowd(world: World, target: WireFabric, count: int) -> list[WireFabric]:
    """So many peers, connected to `target` one after the other, as far as it lets them."""
    found = []
    for number, who in enumerate(CROWD[:count]):
        fabric, _ = await world.start(who, f"10.0.1.{number + 1}")
        await knock(fabric, target)
        found.append(fabric)
    return found


async def knock(fabric: WireFabric, target: WireFabric) -> None:
    """Connect, and give the other side the time to say no."""
    with contextlib.suppress(Unreachable):
        await fabric.connect(target.id, target.addrs())
    await trio.sleep(2)


def test_strangers_do_not_push_each_other_out() -> None:
    async def scenario(world: World) -> None:
        target, _ = await world.start(LOW, "10.0.0.1", FULL)
        strangers = await crowd(world, target, 6)
        assert list(target.peers()) == [fabric.id for fabric in strangers[:3]]
        assert target.counters()["refused_full"] == 3
        assert target.counters().get("connections_displaced", 0) == 0

    play(scenario)


def test_when_connections_run_out_the_least_goes_and_only_for_who_stands_higher() -> None:
    """Stranger < DHT < our relay < member < pinned; of equal ones the silent go first."""

    async def scenario(world: World) -> None:
        target, _ = await world.start(LOW, "10.0.0.1", FULL)
        ranks: dict[bytes, str] = {}
        target.set_members(lambda peer: ranks.get(peer) == "member")
        target.set_useful(
            is_relay=lambda peer: ranks.get(peer) == "relay",
            in_dht=lambda peer: ranks.get(peer) == "dht",
        )
        for who, rank in zip(CROWD[3:7], ("dht", "relay", "member", "member"), strict=True):
            ranks[who.id] = rank
        fabrics = await crowd(world, target, 3)
        busy = await fabrics[0].open(target.id, HOLD)
        await busy.send_all(b"x")
        await exchange(fabrics[2], target.id)  # so that the second one is silent longest
        ids = [who.id for who in CROWD]

        async def comes(number: int) -> set[int]:
            fabric, _ = await world.start(CROWD[number], f"10.0.1.{number + 1}")
            await knock(fabric, target)
            return {ids.index(peer) for peer in target.peers()}

        assert await comes(3) == {0, 2, 3}, "a DHT node for the idlest stranger"
        assert await comes(4) == {0, 3, 4}, "a relay for the stranger without a stream"
        assert await comes(5) == {0, 3, 4, 5}, "a member has a place of its own"
        assert await comes(6) == {3, 4, 5, 6}, "and then that of a stranger with a stream"
        assert await comes(7) == {3, 4, 5, 6}, "a stranger for nobody"
        target.pin(ids[8])
        assert await comes(8) == {4, 5, 6, 8}, "a pinned peer for the DHT node"
        ranks[ids[9]] = "member"
        assert await comes(9) == {5, 6, 8, 9}, "a member for the relay"
        assert target.counters()["connections_displaced"] == 5
        for number in (0, 1):
            ranks[ids[number]] = "member"
            await knock(fabrics[number], target)
        assert {ids.index(peer) for peer in target.peers()} == {5, 6, 8, 9}, "no equal for another"
        await exchange(world.fabrics[ids[8]], target.id)

    play(scenario)


def test_a_full_node_still_reaches_whom_it_wants() -> None:
    async def scenario(world: World) -> None:
        config = replace(FULL, connections_for_members=0)
        target, _ = await world.start(LOW, "10.0.0.1", config)
        await crowd(world, target, 4)
        assert len(target.peers()) == 4
        friend, _ = await world.start(HIGH, "10.0.0.2")
        await target.connect(friend.id, friend.addrs())
        await exchange(target, friend.id)
        await trio.sleep(2)
        assert len(target.peers()) == 4

    play(scenario)


# --- the gate ---


def gate(**changes: object) -> Gate:
    return Gate(replace(P2pConfig.wan(), **changes))  # type: ignore[arg-type]


def ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text)


def test_pending_places_are_limited_in_all_by_address_and_by_prefix() -> None:
    doors = gate(accepts_per_s=None)
    public = [doors.origin(ip(f"8.8.{net}.{host}")) for net in range(8) for host in range(8)]
    assert [doors.begin(public[0], 0) for _ in range(5)] == [None] * 4 + ["pending_ip"]
    same_net = [doors.begin(origin, 0) for origin in public[1:8] for _ in range(4)]
    assert same_net.count(None) == 12
    assert set(same_net) == {None, "pending_prefix"}
    others = [doors.begin(origin, 0) for origin in public[8:] for _ in range(4)]
    assert others.count(None) == 48
    assert others[-1] == "pending"
    doors.end_pending(public[0])
    assert doors.begin(doors.origin(ip("9.9.9.9")), 0) is None


def test_ipv6_counts_by_64_and_48_and_private_prefixes_four_times() -> None:
    doors = gate(accepts_per_s=None)
    six = doors.origin(ip("2606:4700:1:2::1"))
    assert six == doors.origin(ip("2606:4700:1:2:ffff::9"))
    assert six is not None
    assert six.prefix == "2606:4700:1::/48"
    office = doors.origin(ip("192.168.1.7"))
    assert office is not None
    assert office.factor == 4
    assert doors.origin(ip("127.0.0.1")) is None
    assert gate(limit_loopback=True).origin(ip("127.0.0.1")) is not None


def test_accepts_have_a_rate_with_a_burst() -> None:
    doors = gate(pending_max=1000, pending_per_ip_max=None, pending_per_prefix_max=None)
    origin = doors.origin(ip("8.8.8.8"))
    assert [doors.begin(origin, 0.0) for _ in range(21)] == [None] * 20 + ["rate"]
    assert [doors.begin(origin, 1.0) for _ in range(6)] == [None] * 5 + ["rate"]


def test_members_have_places_that_strangers_cannot_take() -> None:
    doors = gate(connections_max=10, connections_for_members=4)
    peer = LOW.id
    assert [doors.enter(None, peer, 0, member=False) for _ in range(7)] == [None] * 6 + ["full"]
    assert [doors.enter(None, peer, 0, member=True) for _ in range(5)] == [None] * 4 + ["full"]
    doors.leave(None, member=True)
    assert doors.enter(None, peer, 0, member=True) is None


def test_who_stands_higher_displaces_and_the_totals_hold_again() -> None:
    doors = gate(connections_max=2, connections_for_members=1)
    assert doors.enter(None, LOW.id, 0, member=False) is None
    assert doors.enter(None, LOW.id, 0, member=True) is None
    assert doors.full
    assert doors.enter(None, HIGH.id, 0, member=True) == "full"
    assert doors.enter(None, HIGH.id, 0, member=True, displacing=True) is None
    doors.leave(None, member=False)
    assert doors.full
    doors.leave(None, member=True)
    assert not doors.full


def test_a_ban_doubles_to_an_hour_and_is_forgotten_after_good_conduct() -> None:
    doors = gate()
    now, lengths = 0.0, []
    for _ in range(8):
        assert [doors.violation(LOW.id, now) for _ in range(3)] == [False, False, True]
        start = now
        while doors.banned(LOW.id, now):
            now += 1
        lengths.append(now - start)
    assert lengths == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    now += 3601
    for _ in range(3):
        doors.violation(LOW.id, now)
    assert doors.banned(LOW.id, now + 59)
    assert not doors.banned(LOW.id, now + 60)


def test_violations_far_apart_are_forgiven() -> None:
    doors = gate()
    assert not any(doors.violation(LOW.id, n * 301.0) for n in range(20))


def test_what_the_gate_remembers_of_strangers_is_bounded() -> None:
    doors = gate(pending_max=10**6)
    for number in range(10_000):
        origin = doors.origin(ipaddress.IPv4Address(0x08000000 + number))
        if doors.begin(origin, 0.0) is None:
            doors.end_pending(origin)
        doors.failed_handshake(origin, 0.0)
    assert len(doors._buckets) <= 4096
    assert len(doors._offences) <= 4096
    assert not doors._pending
