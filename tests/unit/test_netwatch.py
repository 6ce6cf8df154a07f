"""A change of network or a wake-up is noticed once, and nothing else is taken for one."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from p2p.env import SeededEnv
from p2p.net.interfaces import (
    CANDIDATES_MAX,
    Interface,
    addresses_of,
    candidates,
    list_interfaces,
)
from p2p.net.netwatch import WOKE_S, NetWatch, NetworkChange, Watch
from tests.helpers.det import run_seeded

if TYPE_CHECKING:
    from collections.abc import Sequence


def interface(*addresses: str, name: str = "eth0", loopback: bool = False) -> Interface:
    return Interface(
        name, 2, tuple(ipaddress.ip_interface(text) for text in addresses), loopback=loopback
    )


LO = interface("127.0.0.1/8", "::1/128", name="lo", loopback=True)
HOME = interface("192.168.1.5/24", "fe80::1/64", "2001:db8::5/64")
OFFICE = interface("10.0.0.9/8")


def test_the_first_look_is_no_change_and_the_same_again_is_none() -> None:
    watch = Watch()
    assert watch.observe(["192.168.1.5"], [LO, HOME], 0.0, 1_000_000) is None
    assert watch.observe(["192.168.1.5"], [LO, HOME], 2.0, 1_002_000) is None


def test_another_address_is_a_change_and_is_told_once() -> None:
    watch = Watch()
    watch.observe(["192.168.1.5"], [LO, HOME], 0.0, 1_000_000)
    change = watch.observe(["10.0.0.9"], [LO, OFFICE], 2.0, 1_002_000)
    assert change == NetworkChange(("10.0.0.9",), woke=False, moved=True)
    assert watch.observe(["10.0.0.9"], [LO, OFFICE], 4.0, 1_004_000) is None


def test_the_address_that_is_sent_from_comes_first_and_each_once() -> None:
    watch = Watch()
    watch.observe([], [LO], 0.0, 0)
    change = watch.observe(["2001:db8::5"], [LO, HOME], 2.0, 2_000)
    assert change is not None
    assert change.addresses == ("2001:db8::5", "192.168.1.5")


def test_another_way_out_over_the_same_addresses_is_a_change() -> None:
    watch = Watch()
    both = [LO, HOME, replace(OFFICE, name="wlan0", index=3)]
    watch.observe(["192.168.1.5"], both, 0.0, 0)
    change = watch.observe(["10.0.0.9"], both, 2.0, 2_000)
    assert change is not None
    assert change.moved


def test_losing_the_network_is_a_change_too() -> None:
    watch = Watch()
    watch.observe(["192.168.1.5"], [LO, HOME], 0.0, 0)
    assert watch.observe([], [LO], 2.0, 2_000) == NetworkChange((), woke=False, moved=True)


def test_addresses_of_the_link_alone_and_loopback_are_no_change() -> None:
    watch = Watch()
    watch.observe(["192.168.1.5"], [LO, HOME], 0.0, 0)
    container = interface("fe80::42/64", name="veth0")
    second = replace(LO, name="lo1", index=9)
    assert watch.observe(["192.168.1.5"], [LO, second, HOME, container], 2.0, 2_000) is None
    assert addresses_of([LO, HOME, container]) == {("eth0", "192.168.1.5"), ("eth0", "2001:db8::5")}


def test_a_wall_clock_far_ahead_of_the_monotonic_one_means_that_we_slept() -> None:
    watch = Watch()
    watch.observe(["192.168.1.5"], [HOME], 0.0, 0)
    slow_ms = int((2.0 + WOKE_S) * 1000)
    assert watch.observe(["192.168.1.5"], [HOME], 2.0, slow_ms) is None, "up to 10 s is drift"
    change = watch.observe(["192.168.1.5"], [HOME], 4.0, slow_ms + 2_000 + 3_600_000)
    assert change == NetworkChange(("192.168.1.5", "2001:db8::5"), woke=True, moved=False)
    back = watch.observe(["192.168.1.5"], [HOME], 6.0, 4_000)
    assert back is None, "a clock that is set back is no sleep"


def test_it_looks_every_two_seconds_and_tells() -> None:
    there: list[Interface] = [LO, HOME]
    told: list[tuple[float, NetworkChange]] = []
    looks: list[float] = []

    def look() -> Sequence[Interface]:
        looks.append(trio.current_time())
        return list(there)

    async def main() -> None:
        env = SeededEnv(1, "watch", trio.current_time)
        started_s = trio.current_time()
        watch = NetWatch(
            env,
            lambda change: told.append((trio.current_time() - started_s, change)),
            2.0,
            sources=lambda: [str(there[-1].addresses[0].ip)],
            interfaces=look,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(watch.run)
            await trio.sleep(9)
            assert told == []
            there[-1] = OFFICE
            await trio.sleep(2)
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)
    assert told == [(10.0, NetworkChange(("10.0.0.9",), woke=False, moved=True))]
    assert len(looks) == 6


def test_this_machines_interfaces_are_listed_with_their_networks() -> None:
    found = {one.name: one for one in list_interfaces()}
    assert set(found) <= {name for _, name in socket.if_nameindex()}
    loopback = next(one for one in found.values() if one.loopback)
    assert ipaddress.ip_interface("127.0.0.1/8") in loopback.addresses
    assert loopback.index == socket.if_nametoindex(loopback.name)
    assert loopback.holds(ipaddress.ip_address("127.0.0.9"))
    assert not loopback.holds(ipaddress.ip_address("192.0.2.1"))
    assert not loopback.point_to_point


def test_others_are_told_addresses_at_which_they_may_reach_us() -> None:
    vpn = replace(interface("100.64.0.9/32", name="wg0"), point_to_point=True)
    bridge = interface("172.17.0.1/16", name="docker0")
    odd = interface("224.0.0.1/4", "0.0.0.0/0", "169.254.1.1/16", name="odd0")
    many = interface(*(f"2001:db8::{n}/64" for n in range(1, 9)), "2a02::1/64", name="eth9")
    told = candidates([LO, bridge, HOME, vpn, odd, many], lambda one: one.name == "docker0")
    assert told == [
        "192.168.1.5", "100.64.0.9", "2a02::1", "2001:db8::5", "2001:db8::1", "2001:db8::2",
    ]  # fmt: skip
    assert sum(":" in one for one in told) == CANDIDATES_MAX
