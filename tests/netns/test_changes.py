"""What happens to laptops: the line is dead for half a minute, the network is another one."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, cast

import pytest

from tests.helpers.netns import HOST_V4, need_lab
from tests.helpers.netns_peers import World, wait_found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.netns_peers import Peer

pytestmark = [pytest.mark.need_root, pytest.mark.slow]

LAPTOP, DESK = 11, 12
RETURN_S: Final = 5.0
"""Traffic flows again so long after the network returned."""
OUTAGE_S: Final = 30.0
JOINED_S: Final = 40.0
"""Longest wait for the direct way, which is only where the scenes begin: a busy machine may need a
second attempt. How soon it comes is measured in test_pairs."""
RELAYED_S: Final = 10.0
"""So long no direct way may come where there is none."""


@pytest.fixture
def world() -> Iterator[World]:
    need_lab()
    with ExitStack() as stack:
        yield World(stack, "4")


def joined(world: World, kinds: tuple[str, str], *, direct: bool = True) -> tuple[Peer, Peer]:
    """Two members that keep each other connected, after their first exchange."""
    laptop, desk = world.node(LAPTOP, kinds[0]), world.node(DESK, kinds[1])
    wait_found(world, [laptop, desk])
    for one, other in ((laptop, desk), (desk, laptop)):
        one.act("pin", peer=other.id, addrs=list(other.addrs()))
    first, direct_s = cast(
        "tuple[str, float | None]",
        laptop.act(
            "meet",
            peer=desk.id,
            addrs=list(desk.addrs()),
            limit_s=JOINED_S if direct else RELAYED_S,
        ),
    )
    assert (direct_s is not None) == direct, first
    return laptop, desk


def check_traffic(one: Peer, other: Peer) -> None:
    """Both reach each other in time; they try at the same time, and again and again."""
    asked = [
        (one, one.begin("traffic", peer=other.id)),
        (other, other.begin("traffic", peer=one.id)),
    ]
    for peer, number in asked:
        seconds = cast("float", peer.result(number))
        print(f"{peer.space.name}: traffic after {seconds:.2f} s")
        assert seconds <= RETURN_S


@pytest.mark.parametrize("kinds", [("port-restricted", "open"), ("port-restricted", "restricted")])
def test_traffic_flows_soon_after_an_outage(world: World, kinds: tuple[str, str]) -> None:
    laptop, desk = joined(world, kinds)
    world.lab.cut(LAPTOP)
    time.sleep(OUTAGE_S)  # the outage is the scenario, nothing is waited for
    world.lab.mend(LAPTOP)
    check_traffic(laptop, desk)


@pytest.mark.parametrize("kinds", [("port-restricted", "open"), ("port-restricted", "restricted")])
def test_traffic_flows_soon_after_a_change_of_address(world: World, kinds: tuple[str, str]) -> None:
    laptop, desk = joined(world, kinds)
    laptop.space.ip(
        f"addr del {HOST_V4}/24 dev eth0",
        "addr add 10.0.1.77/24 dev eth0",
        "route add default via 10.0.1.1",
    )
    check_traffic(laptop, desk)


def test_traffic_takes_the_other_relay_when_one_dies(world: World) -> None:
    laptop, desk = joined(world, ("symmetric", "symmetric"), direct=False)
    used = str(laptop.act("via", peer=desk.id))
    (carrier,) = (peer for peer in world.public if f"/p2p/{peer.id}/p2p-circuit" in used)
    carrier.kill()
    check_traffic(laptop, desk)
    assert laptop.path_to(desk) == "relay"
