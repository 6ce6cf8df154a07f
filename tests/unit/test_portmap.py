"""A lease of a port: every state and input, its times, and the driver under a virtual clock."""

from __future__ import annotations

import ipaddress
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.env import SeededEnv
from p2p.errors import Unreachable, UsageError
from p2p.nat.gateway import Gateway, gateway_of_command, gateway_of_routes
from p2p.nat.natpmp import AddressReply
from p2p.nat.portmap import (
    CHECK_S,
    LIFETIME_MIN_S,
    REST_MAX_S,
    REST_MIN_S,
    TRANSITIONS,
    Grant,
    MapInput,
    MapState,
    PortLease,
    Work,
)
from p2p.nat.portmap_config import MapConfig
from p2p.nat.portmap_driver import LOOK_S, STOP_S, PortMapper
from tests.helpers.det import run_seeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

PUBLIC = ipaddress.IPv4Address("45.77.1.1")
ADDR = "/ip4/45.77.1.1/tcp/15001"


def lease(lease_s: float = 3600.0) -> PortLease:
    return PortLease(15001, lease_s, random.Random(3))


def grant(
    *,
    ip: str | None = "45.77.1.1",
    port: int = 15001,
    lifetime_s: float = 3600.0,
    epoch_s: int | None = None,
) -> Grant:
    return Grant(
        kind="nat-pmp",
        external_ip=None if ip is None else ipaddress.IPv4Address(ip),
        external_port=port,
        lifetime_s=lifetime_s,
        epoch_s=epoch_s,
    )


def held(now: float = 0.0, **changes: object) -> PortLease:
    machine = lease()
    machine.want()
    machine.granted(grant(**changes), now)  # type: ignore[arg-type]
    return machine


# --- the table ------------------------------------------------------------------------------------


def in_state(state: MapState) -> PortLease:
    """A lease that came there by the ordinary way, at 0 s or when its timer fired."""
    machine = lease()
    match state:
        case MapState.IDLE:
            return machine
        case MapState.ASKING:
            machine.want()
        case MapState.HELD:
            machine = held()
        case MapState.CHECKING:
            machine = held()
            machine.on_timer(CHECK_S)
        case MapState.RENEWING:
            machine = held()
            machine.on_timer(1800.0)
        case MapState.RESTING:
            machine.want()
            machine.refused("no", 0.0)
    assert machine.state is state
    return machine


def apply(machine: PortLease, what: MapInput) -> None:
    now = 1800.0
    match what:
        case MapInput.SEND_WANT:
            machine.want()
        case MapInput.SEND_DROP:
            machine.drop()
        case MapInput.RECV_GRANT:
            machine.granted(grant(), now)
        case MapInput.RECV_SAME:
            machine.checked(PUBLIC, now)
        case MapInput.RECV_LOST:
            machine.checked(PUBLIC, now, forwards=False)
        case MapInput.RECV_REFUSAL:
            machine.refused("no", now)
        case MapInput.TIMER_CHECK:
            machine.on_timer(CHECK_S)
        case MapInput.TIMER_RENEW:
            machine.on_timer(1800.0)
        case MapInput.TIMER_RETRY:
            machine.on_timer(REST_MIN_S)


PAIRS = list(itertools.product(MapState, MapInput))


def test_the_pairs_are_all_of_them() -> None:
    assert len(PAIRS) == 6 * 9
    assert set(TRANSITIONS) <= set(PAIRS)


@pytest.mark.parametrize(("state", "what"), PAIRS)
def test_every_input_in_every_state(state: MapState, what: MapInput) -> None:
    machine = in_state(state)
    following = TRANSITIONS.get((state, what))
    if following is not None:
        apply(machine, what)
        assert machine.state is following
    elif what.name.startswith("TIMER"):
        before = machine.state
        apply(machine, what)
        # The one timer of a state fires whatever it is called for: a renewal is due before a check.
        assert machine.state is before or (state, machine.state) in {
            (MapState.HELD, MapState.CHECKING),
            (MapState.HELD, MapState.RENEWING),
            (MapState.RESTING, MapState.ASKING),
        }
    else:
        with pytest.raises(UsageError):
            apply(machine, what)


@pytest.mark.parametrize("state", MapState)
def test_a_timer_that_fired_is_over(state: MapState) -> None:
    machine = in_state(state)
    while (at_s := machine.next_timer()) is not None:
        machine.on_timer(at_s)
        following = machine.next_timer()
        assert following is None or following > at_s


# --- times ----------------------------------------------------------------------------------------


def test_it_is_renewed_at_half_of_its_time() -> None:
    machine = held(now=100.0)
    at_s = 100.0
    while machine.state is MapState.HELD:
        timer = machine.next_timer()
        assert timer is not None
        at_s = timer
        machine.on_timer(at_s)
        if machine.state is MapState.CHECKING:
            machine.checked(PUBLIC, at_s)
    assert machine.state is MapState.RENEWING
    assert at_s == 100.0 + 1800.0
    assert machine.candidate == ADDR, "it holds meanwhile"


@pytest.mark.parametrize(
    ("lifetime_s", "renewed_at_s"), [(3600, 1800), (120, 60), (10**9, 1800), (600, 300)]
)
def test_a_shorter_lease_is_renewed_earlier_and_a_longer_one_is_not_believed(
    lifetime_s: float, renewed_at_s: float
) -> None:
    machine = held(lifetime_s=lifetime_s)
    assert machine.lease is not None
    assert machine.lease.expires_s == 2 * renewed_at_s
    machine.on_timer(renewed_at_s)
    assert machine.state is MapState.RENEWING


@pytest.mark.parametrize("changes", [{"port": 0}, {"port": 65_536}, {"lifetime_s": 59}])
def test_a_grant_of_nothing_is_a_refusal(changes: dict[str, object]) -> None:
    machine = held(**changes)
    assert machine.state is MapState.RESTING
    assert machine.candidate is None
    assert machine.problem
    assert LIFETIME_MIN_S > 59


def test_refused_it_rests_twice_as_long_each_time() -> None:
    machine = lease()
    machine.want()
    now, rests = 0.0, []
    for _ in range(9):
        machine.refused("the router does not speak it", now)
        timer = machine.next_timer()
        assert timer is not None
        rests.append(timer - now)
        now = timer
        machine.on_timer(now)
        assert machine.work is Work.MAP
    for doubled, rest_s in enumerate(rests):
        longest_s = min(REST_MIN_S * 2**doubled, REST_MAX_S)
        assert 0.8 * longest_s <= rest_s <= longest_s
    machine.refused("no", now)
    machine.look_now(now + 1)
    machine.on_timer(now + 1)
    assert machine.work is Work.MAP, "a change of network asks at once"


def test_while_a_renewal_is_refused_the_lease_holds_to_its_end() -> None:
    machine = held()
    machine.on_timer(1800.0)
    machine.refused("the router does not answer", 1800.0)
    gone_at_s = None
    now = 1800.0
    while gone_at_s is None:
        timer = machine.next_timer()
        assert timer is not None
        now = timer
        machine.on_timer(now)
        if machine.candidate is None:
            gone_at_s = now
        elif machine.work is not None:
            machine.refused("the router does not answer", now)
    assert gone_at_s == 3600.0


# --- the gateway's clock and address --------------------------------------------------------------


def test_a_restarted_gateway_is_asked_again_at_once() -> None:
    machine = held(epoch_s=50_000)
    machine.on_timer(CHECK_S)
    assert machine.work is Work.CHECK
    machine.checked(PUBLIC, CHECK_S, epoch_s=50_000 + int(CHECK_S))
    assert machine.state is MapState.HELD
    machine.on_timer(2 * CHECK_S)
    machine.checked(PUBLIC, 2 * CHECK_S, epoch_s=12)
    assert machine.work is Work.MAP
    machine.granted(grant(epoch_s=12), 2 * CHECK_S)
    machine.on_timer(3 * CHECK_S)
    machine.checked(PUBLIC, 3 * CHECK_S, epoch_s=12 + int(CHECK_S))
    assert machine.state is MapState.HELD


def test_another_external_address_is_another_candidate() -> None:
    machine = held()
    machine.on_timer(CHECK_S)
    machine.checked(ipaddress.IPv4Address("45.77.1.2"), CHECK_S)
    assert machine.work is Work.MAP
    machine.granted(grant(ip="45.77.1.2"), CHECK_S)
    assert machine.candidate == "/ip4/45.77.1.2/tcp/15001"


def test_the_port_that_was_given_counts_not_the_one_that_was_asked_for() -> None:
    assert held(port=4005).candidate == "/ip4/45.77.1.1/tcp/4005"


@pytest.mark.parametrize(
    "ip", ["192.168.178.2", "10.0.0.2", "172.16.0.9", "100.64.0.1", "100.127.255.1"]
)
def test_a_private_external_address_is_a_second_nat_and_no_candidate(ip: str) -> None:
    machine = held(ip=ip)
    assert machine.state is MapState.HELD
    assert machine.double_nat
    assert machine.candidate is None
    assert ip in machine.problem


@pytest.mark.parametrize(
    "ip", ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1", None]
)
def test_an_address_that_nobody_can_dial_is_no_candidate(ip: str | None) -> None:
    machine = held(ip=ip)
    assert machine.candidate is None
    assert machine.problem


# --- the system's routes --------------------------------------------------------------------------

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\tFE01A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0
eth1\t00000000\t0102A8C0\t0002\t0\t0\t10\t00000000\t0\t0\t0
tun1\t00000000\t0103A8C0\t0003\t0\t0\t10\t00000080\t0\t0\t0
eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""


def test_the_gateway_is_the_default_route_of_the_least_metric() -> None:
    assert gateway_of_routes(ROUTES) == ipaddress.IPv4Address("192.168.1.254")
    assert gateway_of_routes("") is None
    assert gateway_of_routes(ROUTES.splitlines()[0]) is None
    assert gateway_of_routes("nonsense\nmore of it") is None


def test_the_gateway_of_the_other_system_is_read_from_its_command() -> None:
    shown = "   route to: default\ndestination: default\n    gateway: 192.168.1.1\n"
    assert gateway_of_command(shown) == ipaddress.IPv4Address("192.168.1.1")
    assert gateway_of_command("    gateway: fe80::1%en0\n") is None
    assert gateway_of_command("    gateway: 999.1.1.1\n") is None
    assert gateway_of_command("route: writing to routing socket: not in table\n") is None


# --- the driver -----------------------------------------------------------------------------------

HOME = Gateway(ipaddress.IPv4Address("192.168.1.1"), ipaddress.IPv4Address("192.168.1.5"))


@dataclass
class Router:
    """A router that speaks what it is told to, with a clock and a table of mappings."""

    natpmp: bool = True
    upnp: bool = True
    external: str = "45.77.1.1"
    born_s: float = -10_000.0
    hangs: bool = False
    calls: list[tuple[float, str, str]] = field(default_factory=list)
    table: dict[int, int] = field(default_factory=dict)
    """External port -> internal one."""

    def restart(self) -> None:
        self.born_s = trio.current_time()
        self.table.clear()

    async def _called(self, protocol: str, what: str) -> None:
        self.calls.append((trio.current_time(), protocol, what))
        await trio.sleep(0.01)
        if self.hangs:
            await trio.sleep_forever()
        if not getattr(self, protocol):
            raise Unreachable(f"{protocol}: no answer")

    @property
    def epoch_s(self) -> int:
        return int(trio.current_time() - self.born_s)


class FakeNatPmp:
    def __init__(self, router: Router) -> None:
        self.router = router

    async def map(self, internal_port: int, external_port: int, lifetime_s: float) -> Grant:
        await self.router._called("natpmp", "map")
        self.router.table[external_port] = internal_port
        return Grant(
            kind="nat-pmp",
            external_ip=ipaddress.IPv4Address(self.router.external),
            external_port=external_port,
            lifetime_s=lifetime_s,
            epoch_s=self.router.epoch_s,
        )

    async def external_address(self) -> AddressReply:
        await self.router._called("natpmp", "address")
        return AddressReply(self.router.epoch_s, ipaddress.IPv4Address(self.router.external))

    async def unmap(self, internal_port: int) -> None:
        await self.router._called("natpmp", "unmap")
        self.router.table = {k: v for k, v in self.router.table.items() if v != internal_port}


class FakeUpnp:
    def __init__(self, router: Router) -> None:
        self.router = router

    async def map(self, internal_port: int, external_port: int, lifetime_s: float) -> Grant:
        await self.router._called("upnp", "map")
        self.router.table[external_port] = internal_port
        return Grant(
            kind="upnp",
            external_ip=ipaddress.IPv4Address(self.router.external),
            external_port=external_port,
            lifetime_s=lifetime_s,
        )

    async def external_address(self) -> ipaddress.IPv4Address | None:
        await self.router._called("upnp", "address")
        return ipaddress.IPv4Address(self.router.external)

    async def forwards(self, internal_port: int, external_port: int) -> bool:
        await self.router._called("upnp", "forwards")
        return self.router.table.get(external_port) == internal_port

    async def unmap(self, external_port: int) -> None:
        await self.router._called("upnp", "unmap")
        self.router.table.pop(external_port, None)


class Household:
    """A mapper behind a router, and what it told."""

    def __init__(self, *, config: MapConfig | None = None, gateway: Gateway | None = HOME) -> None:
        self.router = Router()
        self.gateway = gateway
        self.listening = ["/ip4/0.0.0.0/tcp/15001", "/ip6/::/tcp/15001"]
        self.told: list[tuple[float, tuple[str, ...]]] = []
        self.started_s = trio.current_time()
        self.mapper = PortMapper(
            config or MapConfig(),
            SeededEnv(5, "mapper", trio.current_time),
            listening=lambda: self.listening,
            mapped=self._hear,
            gateway=self._find,
            natpmp=lambda _: FakeNatPmp(self.router),
            upnp=lambda _: FakeUpnp(self.router),
        )

    def _hear(self, addrs: Sequence[str]) -> None:
        self.told.append((trio.current_time() - self.started_s, tuple(addrs)))

    async def _find(self) -> Gateway | None:
        await trio.lowlevel.checkpoint()
        return self.gateway

    def calls(self, what: str) -> list[float]:
        return [round(at_s - self.started_s) for at_s, _, name in self.router.calls if name == what]


def behind_a_router(
    scenario: Callable[[Household], Awaitable[None]], **changes: object
) -> Household:
    """Run a scenario beside a mapper; the household as it is when the mapper has stopped."""
    kept: list[Household] = []

    async def main() -> None:
        household = Household(**changes)  # type: ignore[arg-type]
        kept.append(household)
        async with trio.open_nursery() as nursery:
            await nursery.start(household.mapper.run)
            await scenario(household)
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=2)
    return kept[0]


def test_it_maps_renews_at_half_and_deletes_when_it_stops() -> None:
    async def scenario(house: Household) -> None:
        await trio.sleep(1)
        assert house.told == [(0.01, (ADDR,))]
        assert house.router.table == {15001: 15001}
        await trio.sleep(2 * 3600)

    house = behind_a_router(scenario)
    assert house.calls("map") == [0, 1800, 3600, 5400, 7200]
    assert house.calls("address")[:5] == [300, 600, 900, 1200, 1500]
    assert house.calls("unmap") == [7201]
    assert house.router.table == {}
    assert house.told[-1][1] == ()
    assert len(house.told) == 2, "a renewal is no news"


def test_upnp_is_asked_where_natpmp_is_not_spoken_and_remembered() -> None:
    async def scenario(house: Household) -> None:
        house.router.natpmp = False
        await trio.sleep(4000)
        (report,) = house.mapper.report()
        assert (report.kind, report.external, report.problem) == ("upnp", ADDR, "")

    house = behind_a_router(scenario)
    assert [name for _, name, what in house.router.calls if what == "map"] == [
        "natpmp", "upnp", "upnp", "upnp",
    ]  # fmt: skip
    assert house.router.table == {}


def test_a_router_that_speaks_neither_is_reported_with_what_to_do() -> None:
    async def scenario(house: Household) -> None:
        house.router.natpmp = house.router.upnp = False
        await trio.sleep(1)
        (report,) = house.mapper.report()
        assert report.state == "resting"
        assert report.problem == "natpmp: no answer; upnp: no answer"
        assert "forward TCP port 15001 to 192.168.1.5" in report.remedy
        await trio.sleep(4 * 3600)
        house.router.natpmp = True
        house.mapper.refresh()
        await trio.sleep(1)
        assert house.told[-1][1] == (ADDR,), "a change of network asks at once"

    house = behind_a_router(scenario)
    assert 6 <= len(house.calls("map")) <= 24, "it does not nag"


@pytest.mark.parametrize("natpmp", [True, False])
def test_a_router_that_restarted_is_asked_anew_within_five_minutes(natpmp: bool) -> None:
    async def scenario(house: Household) -> None:
        house.router.natpmp = natpmp
        await trio.sleep(700)
        house.router.restart()
        assert house.router.table == {}
        await trio.sleep(CHECK_S + 1)
        assert house.router.table == {15001: 15001}

    behind_a_router(scenario)


def test_a_new_external_address_is_told() -> None:
    async def scenario(house: Household) -> None:
        await trio.sleep(10)
        house.router.external = "45.77.1.2"
        await trio.sleep(CHECK_S)
        assert house.told[-1][1] == ("/ip4/45.77.1.2/tcp/15001",)

    behind_a_router(scenario)


def test_behind_two_nats_the_report_says_so_and_nothing_is_told() -> None:
    async def scenario(house: Household) -> None:
        house.router.external = "100.64.0.7"
        await trio.sleep(10)
        (report,) = house.mapper.report()
        assert report.double_nat
        assert "second NAT" in report.problem
        assert "bridge mode" in report.remedy

    assert behind_a_router(scenario).told == []


def test_another_network_is_another_router() -> None:
    async def scenario(house: Household) -> None:
        await trio.sleep(10)
        office = Router(external="45.77.9.9")
        house.router = office
        house.gateway = Gateway(
            ipaddress.IPv4Address("10.0.0.1"), ipaddress.IPv4Address("10.0.0.9")
        )
        house.mapper.refresh()
        await trio.sleep(1)
        assert house.told[-1][1] == ("/ip4/45.77.9.9/tcp/15001",)
        assert house.mapper.gateway == house.gateway
        house.gateway = None
        house.mapper.refresh()
        await trio.sleep(1)
        assert house.told[-1][1] == ()
        assert house.mapper.note == "no IPv4 gateway: nothing to ask"
        house.gateway = HOME
        await trio.sleep(LOOK_S + 1)
        assert house.told[-1][1] == ("/ip4/45.77.9.9/tcp/15001",), "found without being told"

    behind_a_router(scenario)


def test_what_needs_no_mapping_asks_for_none() -> None:
    async def own_is_public(house: Household) -> None:
        await trio.sleep(1)
        assert "no port has to be mapped" in house.mapper.note

    public = Gateway(ipaddress.IPv4Address("45.77.1.254"), ipaddress.IPv4Address("45.77.1.5"))
    assert behind_a_router(own_is_public, gateway=public).router.calls == []

    async def switched_off(house: Household) -> None:
        await trio.sleep(1)
        assert "enabled = false" in house.mapper.note

    off = MapConfig(enabled=False)
    assert behind_a_router(switched_off, config=off).router.calls == []


def test_only_doors_that_the_router_reaches_are_mapped() -> None:
    async def scenario(house: Household) -> None:
        house.listening[:] = [
            "/ip4/127.0.0.1/tcp/15001",
            "/ip6/::/tcp/15002",
            "/ip4/192.168.1.5/tcp/15003",
            "/ip4/10.9.9.9/tcp/15004",
        ]
        house.mapper.refresh()
        await trio.sleep(1)
        assert house.router.table == {15003: 15003}
        house.listening[:] = ["/ip4/0.0.0.0/tcp/15005"]
        house.mapper.refresh()
        await trio.sleep(1)
        assert house.router.table == {15005: 15005}

    behind_a_router(scenario)


def test_paused_it_gives_the_port_back() -> None:
    async def scenario(house: Household) -> None:
        await trio.sleep(1)
        house.mapper.pause()
        await trio.sleep(1)
        assert house.router.table == {}
        assert house.told[-1][1] == ()
        house.mapper.resume()
        await trio.sleep(1)
        assert house.told[-1][1] == (ADDR,)

    behind_a_router(scenario)


@pytest.mark.parametrize("hangs", [False, True])
def test_it_stops_within_a_second_whatever_the_router_does(hangs: bool) -> None:
    took_s: list[float] = []

    async def main() -> None:
        house = Household()
        async with trio.open_nursery() as nursery:
            await nursery.start(house.mapper.run)
            await trio.sleep(1)
            house.router.hangs = hangs
            before_s = trio.current_time()
            nursery.cancel_scope.cancel()
        took_s.append(trio.current_time() - before_s)
        assert house.told[-1][1] == ()

    run_seeded(main, seed=2)
    assert took_s[0] <= STOP_S


@pytest.mark.parametrize("lease_s", [119, 86_401])
def test_an_impossible_lease_is_refused_by_name(lease_s: float) -> None:
    with pytest.raises(UsageError, match="lease_s"):
        MapConfig(lease_s=lease_s)
