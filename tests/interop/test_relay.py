"""Circuit relay against js-libp2p: its relay carries our circuits, and ours carries its."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import trio

from p2p.identity import Identity, peer_text
from p2p.nat.relay_config import RelayConfig
from tests.helpers.interop import (
    LISTEN,
    addrs_of,
    circuit_addr,
    exchange,
    id_of,
    named_addr,
    running_node,
)
from tests.helpers.oracle import OracleError, install, running_oracle

if TYPE_CHECKING:
    from pathlib import Path

    from p2p.node import Node

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(60)]

SMALL: int = 20_000
"""Bytes that pass within the limits both implementations set by default (128 KiB)."""
LARGE: int = 300_000
"""Bytes that do not."""
STRANGERS = RelayConfig(strangers=True)


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where js-libp2p is installed."""
    return install("js")


def path_of(node: Node, peer: bytes) -> str:
    """How a node of ours reaches a peer now."""
    return {bytes(each): info.path for each, info in node.fabric.peers().items()}[peer]


async def test_their_relay_carries_a_circuit_between_two_of_ours(folder: Path) -> None:
    async with (
        running_oracle("js", folder, LISTEN, relay={}) as relay,
        running_node(reachability="private") as hidden,
        running_node(reachability="private") as seeker,
    ):
        await hidden.fabric.connect(id_of(relay), addrs_of(relay))
        addr = await circuit_addr(hidden)
        assert f"/p2p/{relay.id}/p2p-circuit" in addr
        await seeker.fabric.connect(hidden.id, [addr])
        await exchange(seeker.fabric, hidden.id, SMALL)
        await exchange(hidden.fabric, seeker.id, SMALL)
        assert path_of(seeker, hidden.id) == path_of(hidden, seeker.id) == "relay"


async def test_their_limit_ends_a_circuit_and_the_next_one_works(folder: Path) -> None:
    async with (
        running_oracle("js", folder, LISTEN, relay={}) as relay,
        running_node(reachability="private") as hidden,
        running_node(reachability="private") as seeker,
    ):
        await hidden.fabric.connect(id_of(relay), addrs_of(relay))
        addr = await circuit_addr(hidden)
        await seeker.fabric.connect(hidden.id, [addr])
        with pytest.RaisesGroup(trio.BrokenResourceError, flatten_subgroups=True):
            await exchange(seeker.fabric, hidden.id, LARGE)
        await seeker.fabric.connect(hidden.id, [addr])
        await exchange(seeker.fabric, hidden.id, SMALL)


async def test_their_unlimited_relay_carries_a_large_exchange(folder: Path) -> None:
    async with (
        running_oracle("js", folder, LISTEN, relay={"limited": False}) as relay,
        running_node(reachability="private") as hidden,
        running_node(reachability="private") as seeker,
    ):
        await hidden.fabric.connect(id_of(relay), addrs_of(relay))
        await seeker.fabric.connect(hidden.id, [await circuit_addr(hidden)])
        await exchange(seeker.fabric, hidden.id, LARGE)
        assert path_of(seeker, hidden.id) == "relay"


async def test_our_relay_carries_a_circuit_to_one_of_theirs(folder: Path) -> None:
    async with running_node(reachability="public", relay=STRANGERS) as relay:
        place = named_addr(relay)
        async with (
            running_oracle("js", folder, "", circuit=[place]) as hidden,
            running_node(reachability="private") as seeker,
        ):
            (addr,) = addrs_of(hidden)
            assert addr == f"{place}/p2p-circuit"
            await seeker.fabric.connect(id_of(hidden), [addr])
            await exchange(seeker.fabric, id_of(hidden), SMALL)
            assert path_of(seeker, id_of(hidden)) == "relay"
            assert relay.report().counters["relay_circuits"] == 1


async def test_our_relay_carries_a_circuit_from_one_of_theirs(folder: Path) -> None:
    async with (
        running_node(reachability="public", relay=STRANGERS) as relay,
        running_node(reachability="private") as hidden,
        running_oracle("js", folder, "", circuit=[]) as seeker,
    ):
        await hidden.fabric.connect(relay.id, relay.fabric.addrs())
        addr = f"{await circuit_addr(hidden)}/p2p/{peer_text(hidden.id)}"
        dialled = await seeker.act("dial", addr=addr)
        assert dialled["peer"] == peer_text(hidden.id)
        await seeker.act("echo", addr=addr, size=SMALL)
        await exchange(hidden.fabric, id_of(seeker), SMALL)
        assert path_of(hidden, id_of(seeker)) == "relay"
        paths = await seeker.act("paths", peer=peer_text(hidden.id))
        assert set(cast("list[str]", paths["paths"])) == {"relay"}
        # At least: js-libp2p dials anew for each stream beside a limited connection.
        assert relay.report().counters["relay_circuits"] >= 1


async def test_our_relay_carries_a_circuit_between_two_of_theirs(folder: Path) -> None:
    async with (
        running_node(reachability="public", relay=STRANGERS) as relay,
        running_oracle("js", folder, "", circuit=[named_addr(relay)]) as hidden,
        running_oracle("js", folder, "", circuit=[]) as seeker,
    ):
        (addr,) = hidden.addrs
        await seeker.act("echo", addr=addr, size=SMALL)
        paths = await seeker.act("paths", peer=hidden.id)
        assert set(cast("list[str]", paths["paths"])) == {"relay"}


async def test_our_relay_tells_one_of_theirs_why_it_refuses(folder: Path) -> None:
    async with (
        running_node(reachability="public") as relay,  # serves its groups only
        running_oracle("js", folder, "", circuit=[]) as stranger,
    ):
        nobody = peer_text(Identity.from_seed(bytes(range(32))).id)
        circuit = f"{named_addr(relay)}/p2p-circuit/p2p/{nobody}"
        with pytest.raises(OracleError, match="NO_RESERVATION"):
            await stranger.act("dial", addr=circuit)
        with pytest.raises(OracleError, match="status"):
            await stranger.act("listen", addr=f"{named_addr(relay)}/p2p-circuit")
        # The connection itself is left alone.
        assert (await stranger.act("paths", peer=peer_text(relay.id)))["paths"] == ["direct"]
