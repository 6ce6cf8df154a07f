"""Connections through simulated NATs: who reaches whom, and how a simultaneous open ends."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
import trio

from p2p.env import SeededEnv
from p2p.errors import Unreachable, UsageError
from p2p.identity import Identity
from p2p.net.memnat import (
    FIREWALL,
    FULL_CONE,
    OPEN,
    PORT_RESTRICTED,
    RESTRICTED,
    SYMMETRIC,
    Dependence,
    Endpoint,
    NatConfig,
)
from p2p.net.memory import MemNet, mem_addr, split_mem_addr
from p2p.net.memory_udp import INBOX_MAX, MemUdp
from tests.helpers.det import run_seeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.net.memory import Gateway
    from p2p.net.seam import Addr

PEER: Final = Identity.from_seed(bytes(32)).id
SERVER: Final = "45.77.1.10"
PORT: Final = 4001
LATENCY_S: Final = 0.05
EI, AD, APD = Dependence.ENDPOINT_INDEPENDENT, Dependence.ADDRESS, Dependence.ADDRESS_AND_PORT
KINDS: Final = {
    f"{mapping.name}/{filtering.name}": NatConfig(mapping=mapping, filtering=filtering)
    for mapping, filtering in itertools.product(Dependence, Dependence)
}
PRESETS: Final = {
    "open": OPEN,
    "full-cone": FULL_CONE,
    "restricted": RESTRICTED,
    "port-restricted": PORT_RESTRICTED,
    "symmetric": SYMMETRIC,
}


class Side:
    """A host behind a NAT that listens, and that a server has seen."""

    def __init__(self, net: MemNet, ip: str, nat: Gateway | None) -> None:
        self.net = net
        self.host = net.host(ip, nat)
        self.observed: Addr = ""
        self.accepted: list[tuple[trio.abc.Stream, Addr]] = []
        self.dialled: trio.abc.Stream | None = None

    async def start(self, nursery: trio.Nursery) -> None:
        """Listen, and stay connected to the server from the listen port."""

        async def accept(stream: trio.abc.Stream, remote: Addr) -> None:
            self.accepted.append((stream, remote))

        version = 6 if ":" in self.host.ip else 4
        anywhere = f"/ip{version}/{'::' if version == 6 else '0.0.0.0'}/tcp/{PORT}"
        await nursery.start(self.host.listen, anywhere, accept)

    async def meet(self, server: Server) -> None:
        """Learn from the server how we look from outside."""
        stream = await self.host.dial(server.addr, reuse_port=True)
        self.observed = (await stream.receive_some()).decode()

    async def dial(self, addr: Addr, wait_s: float = 0.0) -> None:
        """Dial from the listen port."""
        await trio.sleep(wait_s)
        with contextlib.suppress(Unreachable):
            self.dialled = await self.host.dial(addr, reuse_port=True)

    def streams(self, other: Side) -> list[trio.abc.Stream]:
        """Everything that connects us with `other`."""
        ip = split_mem_addr(other.observed)
        assert ip is not None
        dialled = [] if self.dialled is None else [self.dialled]
        return dialled + [s for s, remote in self.accepted if f"/{ip[0]}/" in remote]


class Server:
    """A public host that tells whoever connects what it looks like."""

    def __init__(self, net: MemNet, ip: str = SERVER) -> None:
        self.host = net.host(ip)
        self.addr: Addr = mem_addr(ip, PORT)

    async def start(self, nursery: trio.Nursery) -> None:
        async def accept(stream: trio.abc.Stream, remote: Addr) -> None:
            await stream.send_all(remote.encode())

        await nursery.start(self.host.listen, self.addr, accept)


def new_net(seed: int = 1, **link: float) -> MemNet:
    env = SeededEnv(seed, "net", trio.current_time)
    return MemNet(env, latency_s=LATENCY_S, **link)


def simulated(main: Callable[[MemNet, trio.Nursery], Awaitable[None]], seed: int = 1) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await main(new_net(seed), nursery)
            nursery.cancel_scope.cancel()

    run_seeded(run, seed=seed)


async def two_sides(
    net: MemNet, nursery: trio.Nursery, a: NatConfig, b: NatConfig
) -> tuple[Side, Side]:
    """Two hosts behind a NAT each, as a server has seen them."""
    server = Server(net)
    await server.start(nursery)
    sides = []
    for number, config in enumerate((a, b), 1):
        if config == OPEN:
            side = Side(net, f"45.77.1.{number}", None)
        else:
            side = Side(net, f"10.0.{number}.2", net.nat(f"45.77.1.{number}", config))
        await side.start(nursery)
        await side.meet(server)
        sides.append(side)
    return sides[0], sides[1]


async def talk(near: trio.abc.Stream, far: trio.abc.Stream) -> None:
    """Both ends are of one connection, and it works both ways."""
    for sender, reader in ((near, far), (far, near)):
        await sender.send_all(b"hello")
        with trio.fail_after(5):
            assert await reader.receive_some() == b"hello"


# --- The table: mapping x filtering x who dials ---------------------------------------------------


def passes(source: NatConfig, target: NatConfig, *, both: bool) -> bool:
    """Whether a SYN of `source` gets in at the endpoint that the server saw of `target`.

    Written from RFC 4787's words, not from the model: `target` lets in whom its filter allows. It
    allows for the observed endpoint what was sent from there, so with a mapping that depends on
    the destination, the answer to our dial came from another port and opened nothing here. To be
    let in at an exact port, `source` must appear at the port that the server saw.
    """
    if target.filtering is EI or target == OPEN:
        return True
    if not both or target.mapping is not EI:
        return False
    return target.filtering is AD or source.mapping is EI


def collides(source: NatConfig, target: NatConfig) -> bool:
    """Whether crossing SYNs spoil each other.

    The SYN of `source` gets in at the observed port and meets the half of `target`'s own dial, for
    it comes from where that dial went. The answer belongs to that dial, and leaves from its port.
    """
    return target.filtering is EI and target.mapping is not EI and source.mapping is EI


def check_pair(a: NatConfig, b: NatConfig) -> None:
    for dials_a, dials_b in ((True, False), (False, True), (True, True)):

        async def main(
            net: MemNet, nursery: trio.Nursery, who: tuple[bool, bool] = (dials_a, dials_b)
        ) -> None:
            one, two = await two_sides(net, nursery, a, b)
            async with trio.open_nursery() as diallers:
                if who[0]:
                    diallers.start_soon(one.dial, two.observed)
                if who[1]:
                    diallers.start_soon(two.dial, one.observed)
            await trio.sleep(1)
            both = all(who)
            wanted = (who[0] and passes(a, b, both=both)) or (who[1] and passes(b, a, both=both))
            if both and (collides(a, b) or collides(b, a)):
                wanted = False
            assert bool(one.streams(two)) == bool(two.streams(one)) == wanted, (a, b, who)

        simulated(main)


@pytest.mark.parametrize("b", KINDS)
@pytest.mark.parametrize("a", KINDS)
def test_who_reaches_whom_over_the_whole_table(a: str, b: str) -> None:
    check_pair(KINDS[a], KINDS[b])


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations_with_replacement(PRESETS, 2)))
def test_who_reaches_whom_among_the_usual_kinds(a: str, b: str) -> None:
    check_pair(PRESETS[a], PRESETS[b])
    expected = {a, b} not in ({"port-restricted", "symmetric"}, {"symmetric"})
    there = passes(PRESETS[a], PRESETS[b], both=True)
    assert (there or passes(PRESETS[b], PRESETS[a], both=True)) == expected


PUNCHED: Final = [
    (a, b)
    for a, b in itertools.product(PRESETS, PRESETS)
    if passes(PRESETS[a], PRESETS[b], both=True) or passes(PRESETS[b], PRESETS[a], both=True)
]


@pytest.mark.parametrize("late_s", [0.0, 0.01, 0.3, 2.0])
@pytest.mark.parametrize(("a", "b"), PUNCHED)
def test_a_punched_connection_works_whoever_was_first(a: str, b: str, late_s: float) -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        one, two = await two_sides(net, nursery, PRESETS[a], PRESETS[b])
        async with trio.open_nursery() as diallers:
            diallers.start_soon(one.dial, two.observed)
            diallers.start_soon(two.dial, one.observed, late_s)
        await trio.sleep(1)
        near, far = one.streams(two), two.streams(one)
        assert len(near) == len(far) > 0
        pairs = [(n, f) for n in near for f in far if n.incoming is f.outgoing]  # type: ignore[attr-defined]
        assert len(pairs) == len(near)
        for n, f in pairs:
            await talk(n, f)

    simulated(main)


# --- Simultaneous open ----------------------------------------------------------------------------


def test_two_dials_that_cross_are_one_connection_and_no_listener_hears_of_it() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        one, two = await two_sides(net, nursery, PORT_RESTRICTED, PORT_RESTRICTED)
        start = trio.current_time()
        async with trio.open_nursery() as diallers:
            diallers.start_soon(one.dial, two.observed)
            diallers.start_soon(two.dial, one.observed)
        assert trio.current_time() - start == pytest.approx(2 * LATENCY_S)
        assert one.accepted == two.accepted == []
        assert one.dialled is not None
        assert two.dialled is not None
        await talk(one.dialled, two.dialled)

    simulated(main)


def test_a_syn_that_is_first_is_taken_by_the_listener_and_the_dial_leaves_from_elsewhere() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        one, two = await two_sides(net, nursery, PORT_RESTRICTED, FULL_CONE)
        async with trio.open_nursery() as diallers:
            diallers.start_soon(one.dial, two.observed)
            diallers.start_soon(two.dial, one.observed, 3 * LATENCY_S)
        assert one.dialled is not None
        ((accepted, remote),) = two.accepted
        assert remote == one.observed
        assert two.dialled is None, "its own dial left from a port that was filtered"
        await talk(one.dialled, accepted)

    simulated(main)


def test_a_filtered_syn_is_repeated_until_the_other_side_dials_too() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        one, two = await two_sides(net, nursery, PORT_RESTRICTED, PORT_RESTRICTED)
        start = trio.current_time()
        async with trio.open_nursery() as diallers:
            diallers.start_soon(one.dial, two.observed)
            diallers.start_soon(two.dial, one.observed, 5.0)
        assert trio.current_time() - start == pytest.approx(5.0 + 3 * LATENCY_S)
        assert one.dialled is not None
        assert two.dialled is not None
        await talk(one.dialled, two.dialled)

    simulated(main)


def test_a_nat_that_refuses_ends_the_dial_that_came_too_early() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        refusing = replace(PORT_RESTRICTED, refuses=True)
        one, two = await two_sides(net, nursery, PORT_RESTRICTED, refusing)
        start = trio.current_time()
        with pytest.raises(Unreachable, match="refused"):
            await one.host.dial(two.observed, reuse_port=True)
        assert trio.current_time() - start == pytest.approx(2 * LATENCY_S)
        await two.dial(one.observed)  # the mapping of the refused dial is still there
        assert two.dialled is not None
        await trio.sleep(1)
        await talk(two.dialled, one.streams(two)[0])

    simulated(main)


def test_a_cancelled_punch_leaves_nothing_behind() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        one, two = await two_sides(net, nursery, PORT_RESTRICTED, PORT_RESTRICTED)
        before = one.host.connections, two.host.connections
        for patience_s in (0.01, 0.04, 0.06, 0.09):
            async with trio.open_nursery() as diallers:
                diallers.start_soon(two.dial, one.observed)
                with trio.move_on_after(patience_s):
                    await one.host.dial(two.observed, reuse_port=True)
                await trio.sleep(1)
                diallers.cancel_scope.cancel()
            await trio.sleep(1)
            if two.dialled is not None:  # the last packet but one had left already
                with pytest.raises(trio.BrokenResourceError):
                    await two.dialled.receive_some()
                two.dialled = None
            assert (one.host.connections, two.host.connections) == before

    simulated(main)


def test_a_ghost_does_not_keep_a_returning_peer_out() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        one, two = await two_sides(net, nursery, FULL_CONE, FULL_CONE)
        await one.dial(two.observed)
        await trio.sleep(1)
        ((ghost, _),) = two.accepted
        net.kill(one.host.name, silent=True)
        await one.start(nursery)
        await one.dial(two.observed)
        await trio.sleep(1)
        assert one.dialled is not None
        await talk(one.dialled, two.accepted[1][0])
        with pytest.raises(trio.BrokenResourceError, match="anew"):
            await ghost.receive_some()

    simulated(main)


# --- Realms ---------------------------------------------------------------------------------------


def test_an_address_inside_is_unknown_outside_and_neighbours_meet_directly() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        home = net.nat("45.77.1.1", PORT_RESTRICTED)
        away = net.nat("45.77.1.2", PORT_RESTRICTED)
        desk = Side(net, "192.168.1.2", home)
        await desk.start(nursery)
        laptop = net.host("192.168.1.3", home)
        assert net.host("192.168.1.3") is laptop
        stranger = net.host("192.168.1.3", away)
        with pytest.raises(UsageError, match="may be any of"):
            net.host("192.168.1.3")
        await laptop.dial(mem_addr(desk.host.ip, PORT))
        await trio.sleep(1)
        assert desk.accepted[0][1].startswith("/ip4/192.168.1.3/")
        for outsider in (stranger, net.host("45.77.1.9")):
            with pytest.raises(Unreachable, match="no answer"):
                await outsider.dial(mem_addr(desk.host.ip, PORT))

    simulated(main)


@pytest.mark.parametrize("hairpin", [True, False])
def test_neighbours_meet_at_the_external_address_if_the_nat_hairpins(hairpin: bool) -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        server = Server(net)
        await server.start(nursery)
        home = net.nat("45.77.1.1", replace(FULL_CONE, hairpin=hairpin))
        desk, laptop = (Side(net, f"10.0.1.{n}", home) for n in (2, 3))
        await desk.start(nursery)
        await desk.meet(server)
        await laptop.dial(desk.observed)
        assert (laptop.dialled is not None) == hairpin
        if hairpin:
            await trio.sleep(1)
            assert desk.accepted[0][1].startswith("/ip4/45.77.1.1/")
            assert laptop.dialled is not None
            await talk(laptop.dialled, desk.accepted[0][0])

    simulated(main)


@pytest.mark.parametrize(("outer", "works"), [(PORT_RESTRICTED, True), (SYMMETRIC, False)])
def test_nats_nest_and_the_worst_one_decides(outer: NatConfig, works: bool) -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        server = Server(net)
        await server.start(nursery)
        carrier = net.nat("45.77.1.1", outer)
        home = net.nat("100.64.0.7", PORT_RESTRICTED, behind=carrier)
        one = Side(net, "192.168.1.2", home)
        two = Side(net, "192.168.1.2", net.nat("45.77.1.2", PORT_RESTRICTED))
        for side in (one, two):
            await side.start(nursery)
            await side.meet(server)
        assert one.observed.startswith("/ip4/45.77.1.1/")
        async with trio.open_nursery() as diallers:
            diallers.start_soon(one.dial, two.observed)
            diallers.start_soon(two.dial, one.observed)
        assert bool(one.dialled) == bool(two.dialled) == works
        if one.dialled is not None and two.dialled is not None:
            await talk(one.dialled, two.dialled)

    simulated(main)


def test_hosts_behind_firewalls_keep_their_address_and_punch() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        server = Server(net, "2001:470::10")
        await server.start(nursery)
        office = net.nat(None, FIREWALL)
        room = net.nat(None, FIREWALL, behind=office)
        one, two = Side(net, "2001:470:1::2", room), Side(net, "2001:470:2::2", None)
        three = Side(net, "2001:470:3::2", net.nat(None, FIREWALL))
        for side in (one, two, three):
            await side.start(nursery)
            await side.meet(server)
            assert side.observed == mem_addr(side.host.ip, PORT)
        await two.dial(one.observed)
        assert two.dialled is None
        await one.dial(two.observed)
        await trio.sleep(1)
        assert one.dialled is not None
        await talk(one.dialled, two.streams(one)[0])
        async with trio.open_nursery() as diallers:
            diallers.start_soon(one.dial, three.observed)
            diallers.start_soon(three.dial, one.observed)
        assert one.dialled is not None
        assert three.dialled is not None
        await talk(one.dialled, three.dialled)

    simulated(main)


def test_a_forwarded_port_reaches_its_host() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        home = net.nat("45.77.1.1", SYMMETRIC)
        desk = Side(net, "10.0.1.2", home)
        await desk.start(nursery)
        home.nat.forward(7_000, Endpoint("10.0.1.2", PORT))
        stream = await net.host("45.77.1.9").dial("/ip4/45.77.1.1/tcp/7000")
        await trio.sleep(1)
        await talk(stream, desk.accepted[0][0])

    simulated(main)


def test_what_cannot_be_is_refused() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:  # noqa: ARG001 - the same shape for all
        home = net.nat("45.77.1.1", PORT_RESTRICTED)
        net.host("10.0.1.2", home)
        net.host("45.77.1.9")
        with pytest.raises(UsageError, match="no host"):
            net.host("45.77.1.1", None)
        with pytest.raises(UsageError, match="taken"):
            net.nat("45.77.1.9", PORT_RESTRICTED)
        with pytest.raises(UsageError, match="behind a NAT"):
            net.fabric(PEER, "10.0.1.2")
        net.fabric(PEER, "45.77.1.9")
        with pytest.raises(UsageError, match="MemFabric"):
            net.readdress("45.77.1.9", "45.77.1.8")
        with pytest.raises(UsageError, match="taken"):
            net.readdress("10.0.1.2", "45.77.1.9")
        with pytest.raises(UsageError, match="taken"):
            net.renumber(home, "45.77.1.9")

    simulated(main)


async def hang_up(stream: trio.abc.Stream, remote: Addr) -> None:  # noqa: ARG001
    await stream.aclose()


# --- What happens to connections ------------------------------------------------------------------


async def silent(stream: trio.abc.Stream) -> None:
    """Nothing comes, no byte, no end, no error."""
    with trio.move_on_after(10_000) as scope:
        await stream.receive_some()
    assert scope.cancelled_caught


def test_a_connection_that_the_nat_forgot_goes_silent() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        server = Server(net)
        await server.start(nursery)
        desk = Side(net, "10.0.1.2", net.nat("45.77.1.1", replace(SYMMETRIC, tcp_idle_s=300)))
        other = Side(net, "45.77.1.9", None)
        await other.start(nursery)
        await desk.dial(mem_addr("45.77.1.9", PORT))
        await trio.sleep(1)
        near, far = desk.dialled, other.accepted[0][0]
        assert near is not None
        for _ in range(3):
            await trio.sleep(250)
            await talk(near, far)
        await trio.sleep(301)
        await far.send_all(b"anybody?")
        await silent(near)
        await near.send_all(b"anybody?")
        await silent(far)

    simulated(main)


def test_a_host_that_changes_its_address_leaves_silence_and_can_be_found_again() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        server = Server(net)
        await server.start(nursery)
        away = net.nat("45.77.1.2", PORT_RESTRICTED)
        desk, other = Side(net, "45.77.1.5", None), Side(net, "45.77.1.9", None)
        await desk.start(nursery)
        await other.start(nursery)
        fixed = mem_addr("45.77.1.5", PORT + 1)
        await nursery.start(desk.host.listen, fixed, hang_up)
        await desk.dial(mem_addr("45.77.1.9", PORT))
        await trio.sleep(1)
        near, far = desk.dialled, other.accepted[0][0]
        assert near is not None
        await near.send_all(b"on the way")
        assert net.readdress("45.77.1.5", "10.0.2.2", away) is desk.host
        assert desk.host.source_addresses() == ["10.0.2.2"]
        assert desk.host.connections == 0
        for stream in (near, far):
            await stream.send_all(b"still there?")
            await silent(stream)
        with pytest.raises(Unreachable, match="no answer"):
            await other.host.dial(mem_addr("45.77.1.5", PORT))
        await desk.meet(server)
        assert desk.observed.startswith("/ip4/45.77.1.2/")
        net.readdress("10.0.2.2", "45.77.1.6")
        await other.host.dial(mem_addr("45.77.1.6", PORT))
        with pytest.raises(Unreachable, match="refused"):
            await other.host.dial(mem_addr("45.77.1.6", PORT + 1))

    simulated(main)


def test_a_dial_under_way_does_not_survive_a_change_of_address() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        other = Side(net, "45.77.1.9", None)
        await other.start(nursery)
        mover = net.host("45.77.1.5")

        async def move() -> None:
            await trio.sleep(LATENCY_S)
            net.readdress("45.77.1.5", "45.77.1.6")

        nursery.start_soon(move)
        with pytest.raises(Unreachable, match="no answer"):
            await mover.dial(mem_addr("45.77.1.9", PORT))

    simulated(main)


def test_a_home_that_is_renumbered_is_found_at_its_new_address() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        server = Server(net)
        await server.start(nursery)
        home = net.nat("45.77.1.1", FULL_CONE)
        desk, other = Side(net, "10.0.1.2", home), Side(net, "45.77.1.9", None)
        await desk.start(nursery)
        await other.start(nursery)
        await desk.dial(mem_addr("45.77.1.9", PORT))
        assert desk.dialled is not None
        net.renumber(home, "45.77.1.7")
        await desk.dialled.send_all(b"anybody?")
        await trio.sleep(1)
        await silent(other.accepted[0][0])
        await desk.meet(server)
        assert desk.observed == mem_addr("45.77.1.7", PORT)
        await other.host.dial(desk.observed)

    simulated(main)


def test_a_lost_syn_is_repeated_and_a_lost_segment_comes_late() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        other = Side(net, "45.77.1.9", None)
        await other.start(nursery)
        net.link("45.77.1.5", "45.77.1.9", loss=0.1)
        lasted = []
        for _ in range(40):
            start = trio.current_time()
            near = await net.host("45.77.1.5").dial(mem_addr("45.77.1.9", PORT))
            lasted.append(trio.current_time() - start)
        assert min(lasted) == pytest.approx(2 * LATENCY_S)
        assert any(seconds == pytest.approx(1 + 2 * LATENCY_S) for seconds in lasted)
        await trio.sleep(10)
        far = other.accepted[-1][0]
        data = bytes(range(256)) * 200
        lasted = []
        for offset in range(0, len(data), 256):
            start = trio.current_time()
            await near.send_all(data[offset : offset + 256])
            assert await far.receive_some() == data[offset : offset + 256]
            lasted.append(trio.current_time() - start)
        assert min(lasted) == pytest.approx(LATENCY_S)
        assert any(seconds == pytest.approx(0.2 + LATENCY_S) for seconds in lasted)

    simulated(main)


# --- Datagrams ------------------------------------------------------------------------------------


def test_datagrams_go_through_nats_and_show_the_mapped_endpoint() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:  # noqa: ARG001
        home = net.nat("45.77.1.1", PORT_RESTRICTED)
        near = MemUdp(net.host("10.0.1.2", home), 5_000)
        far, stranger = (MemUdp(net.host(f"45.77.1.{n}"), 5_000) for n in (8, 9))
        await near.send_to(b"hello", Endpoint("45.77.1.8", 5_000))
        data, seen = await far.receive_from()
        assert (data, seen) == (b"hello", Endpoint("45.77.1.1", 5_000))
        await stranger.send_to(b"let me in", seen)
        await far.send_to(b"answer", seen)
        assert await near.receive_from() == (b"answer", Endpoint("45.77.1.8", 5_000))
        with trio.move_on_after(10) as scope:
            await near.receive_from()
        assert scope.cancelled_caught
        with pytest.raises(UsageError, match="in use"):
            MemUdp(net.host("10.0.1.2"), 5_000)
        near.close()
        MemUdp(net.host("10.0.1.2"), 5_000)
        assert MemUdp(net.host("10.0.1.2")).port != 5_000

    simulated(main)


def test_datagrams_are_lost_doubled_and_overtaken_as_told() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:  # noqa: ARG001
        near, far = (MemUdp(net.host(f"45.77.1.{n}")) for n in (8, 9))
        target = Endpoint("45.77.1.9", far.port)

        async def sent(number: int) -> list[int]:
            for n in range(number):
                await near.send_to(bytes([n]), target)
            await trio.sleep(10)
            got: list[int] = []
            with trio.move_on_after(0.1):
                while True:
                    data, _ = await far.receive_from()
                    got += data
            return got

        assert await sent(100) == list(range(100))
        net.link("45.77.1.8", "45.77.1.9", loss=0.3, symmetric=False)
        assert 50 < len(await sent(100)) < 90
        net.link("45.77.1.8", "45.77.1.9", loss=0.0, duplicate=0.5, symmetric=False)
        got = await sent(100)
        assert sorted(set(got)) == list(range(100))
        assert 120 < len(got) < 180
        net.link("45.77.1.8", "45.77.1.9", duplicate=0.0, jitter_s=0.5, symmetric=False)
        got = await sent(100)
        assert sorted(got) == list(range(100))
        assert got != sorted(got)
        assert len(await sent(200) + await sent(0)) == 200
        net.link("45.77.1.8", "45.77.1.9", duplicate=1.0, symmetric=False)
        assert len(await sent(200)) == INBOX_MAX

    simulated(main)


def test_a_partition_loses_datagrams_for_good() -> None:
    async def main(net: MemNet, nursery: trio.Nursery) -> None:  # noqa: ARG001
        near, far = (MemUdp(net.host(f"45.77.1.{n}")) for n in (8, 9))
        target = Endpoint("45.77.1.9", far.port)
        await near.send_to(b"under way", target)
        net.partition("45.77.1.8", "45.77.1.9")
        await near.send_to(b"held", target)
        await trio.sleep(1)
        net.heal()
        await near.send_to(b"after", target)
        assert (await far.receive_from())[0] == b"after"

    simulated(main)


# --- One seed, one history ------------------------------------------------------------------------


def history(seed: int) -> list[str]:
    """What a handful of hosts behind all kinds of NAT see of each other, with times."""
    seen: list[str] = []

    async def main(net: MemNet, nursery: trio.Nursery) -> None:
        server = Server(net)
        await server.start(nursery)
        sides = []
        for number, config in enumerate([*KINDS.values(), SYMMETRIC], 20):
            side = Side(net, f"10.0.{number}.2", net.nat(f"45.77.1.{number}", config))
            net.link(side.host.name, SERVER, jitter_s=0.1, loss=0.1)
            await side.start(nursery)
            await side.meet(server)
            sides.append(side)
        async with trio.open_nursery() as diallers:
            for one, two in itertools.permutations(sides, 2):
                diallers.start_soon(one.dial, two.observed)
        for side in sides:
            seen.append(f"{trio.current_time():.9f} {side.observed}")
            seen.extend(remote for _, remote in side.accepted)

    simulated(main, seed)
    return seen


def test_a_seed_repeats_and_another_differs() -> None:
    assert history(1) == history(1)
    assert history(1) != history(2)
    assert len(history(1)) > 20
