"""What `covey doctor net` says of a snapshot of the mesh."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from daemon.net_checks import net_checks
from p2p.identity import PeerId
from p2p.nat.lan_driver import LanReport
from p2p.nat.portmap_driver import MappingReport
from p2p.nat.reachability import AddrReport, Reach
from p2p.nat.reachability_driver import ReachabilityReport
from p2p.nat.relay import RelayReport
from p2p.nat.surroundings import SurroundingsReport
from p2p.nat.traversal import TraversalReport
from p2p.node import NetReport

if TYPE_CHECKING:
    from daemon.health import Check

US, FRIEND = PeerId(bytes(31) + b"\1"), PeerId(bytes(31) + b"\2")
ADDR = "/ip4/45.77.1.2/tcp/15001"


def snapshot(
    state: Reach,
    *,
    relays: tuple[PeerId, ...] = (),
    symmetric: bool | None = None,
    mapping: tuple[MappingReport, ...] = (),
    note: str = "",
) -> NetReport:
    reach = ReachabilityReport(
        state=state,
        why="said so",
        forced=False,
        addrs=(
            AddrReport(
                addr=ADDR,
                source="observed",
                state=state,
                proved_by="45.78.1.9",
                failures=0,
                checked_s=1.0,
            ),
        ),
        symmetric=symmetric,
        servers=2,
        checked_s=1.0,
    )
    relay = RelayReport(serving=False, holders=0, circuits=0, relays=relays, addrs=())
    around = SurroundingsReport(
        lan=LanReport(interfaces=("eth0",), problems=(), neighbours=()),
        gateway="192.168.1.1",
        mapping=mapping,
        mapping_note=note,
    )
    return NetReport(
        id=US,
        listen=(ADDR,),
        peers={},
        pinned=(),
        paused=False,
        counters={},
        traversal=TraversalReport(relay=relay, reachability=reach),
        surroundings=around,
        dht=None,
    )


def rows(report: NetReport, name: str) -> list[Check]:
    found = net_checks(report, lambda peer: "desk" if peer == FRIEND else "?")
    return [check for check in found if check.name == name]


@pytest.mark.parametrize("state", list(Reach))
def test_each_state_is_told_and_only_a_lost_machine_is_a_problem(state: Reach) -> None:
    (row,) = rows(snapshot(state), "mesh.reach")
    assert "said so" in row.message
    assert (row.status == "degraded") == (state is Reach.PRIVATE)


def test_a_machine_that_nobody_finds_is_told_its_port() -> None:
    (row,) = rows(snapshot(Reach.PRIVATE), "mesh.reach")
    assert "TCP port 15001" in row.remedy


def test_a_relay_makes_a_hidden_machine_well() -> None:
    report = snapshot(Reach.PRIVATE, relays=(FRIEND,))
    (row,) = rows(report, "mesh.reach")
    assert row.status == "ok"
    assert rows(report, "mesh.relays")[0].message == "reached over desk"


def test_who_proved_an_address_is_shown() -> None:
    (row,) = rows(snapshot(Reach.PUBLIC), "mesh.addr")
    assert row.message == f"{ADDR}: public (proved by 45.78.1.9)"


def test_a_symmetric_nat_is_named_with_what_it_means() -> None:
    assert rows(snapshot(Reach.PRIVATE), "mesh.nat") == []
    (row,) = rows(snapshot(Reach.PRIVATE, symmetric=True), "mesh.nat")
    assert row.status == "degraded"
    (row,) = rows(snapshot(Reach.PRIVATE, symmetric=False), "mesh.nat")
    assert row.status == "ok"


def test_the_router_says_what_it_forwards_or_what_to_do() -> None:
    good = MappingReport(
        internal_port=15001,
        state="held",
        kind="upnp",
        external=ADDR,
        double_nat=False,
        problem="",
        remedy="",
    )
    bad = replace(good, external="", problem="double NAT", remedy="ask the provider")
    first, second = rows(snapshot(Reach.PRIVATE, mapping=(good, bad)), "mesh.router")
    assert (first.status, first.message) == ("ok", f"port 15001 is {ADDR} (upnp)")
    assert (second.status, second.remedy) == ("degraded", "ask the provider")
    _, second = rows(snapshot(Reach.PUBLIC, mapping=(good, bad)), "mesh.router")
    assert (second.status, second.remedy) == ("ok", "ask the provider")
    (row,) = rows(snapshot(Reach.PUBLIC, note="switched off"), "mesh.router")
    assert row.message == "switched off"


def test_working_offline_is_said_first() -> None:
    first = net_checks(replace(snapshot(Reach.PUBLIC), paused=True), lambda _: "?")[0]
    assert (first.name, first.status) == ("mesh.paths", "degraded")
