"""Circuit relay against js-libp2p: its relay carries our circuits, and ours carries its."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.helpers.interop import (
    LISTEN,
    addrs_of,
    circuit_addr,
    exchange,
    id_of,
    running_node,
)
from tests.helpers.oracle import install, running_oracle

if TYPE_CHECKING:
    from pathlib import Path

    from p2p.node import Node

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(60)]

SMALL: int = 20_000
"""Bytes that pass within the limits both implementations set by default (128 KiB)."""
LARGE: int = 300_000
"""Bytes that do not."""


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
