"""Relay and Kademlia against py-libp2p 0.8.1, for as far as it speaks them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

import pytest
import trio

from p2p.dht.config import DhtConfig
from p2p.dht.keys import provider_key
from p2p.identity import peer_text
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
from tests.helpers.oracle import install, running_oracle

if TYPE_CHECKING:
    from pathlib import Path

    from p2p.dht.service import Dht
    from p2p.identity import PeerId
    from p2p.node import Node

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(60)]

SMALL: Final = 20_000
STRANGERS: Final = RelayConfig(strangers=True)
# It knows no other protocol id.
DHT: Final = replace(DhtConfig.lab(), protocol="/ipfs/kad/1.0.0", require_signed=False)
KEY: Final = provider_key(b"something")
NAME: Final = b"/test/name"


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where py-libp2p is installed."""
    return install("py")


def dht_of(node: Node) -> Dht:
    """Its DHT."""
    assert node.dht is not None
    return node.dht


async def until_known(node: Node, peer: PeerId) -> None:
    """Wait until a node of ours would name `peer` to others of the DHT."""
    while peer not in dht_of(node).table:  # noqa: ASYNC110 - no event tells
        await trio.sleep(0.01)


async def test_their_relay_carries_a_circuit_between_two_of_ours(folder: Path) -> None:
    async with (
        running_oracle("py", folder, LISTEN, relay=True) as relay,
        running_node(reachability="private") as hidden,
        running_node(reachability="private") as seeker,
    ):
        await hidden.fabric.connect(id_of(relay), addrs_of(relay))
        addr = await circuit_addr(hidden)
        assert f"/p2p/{relay.id}/p2p-circuit" in addr
        await seeker.fabric.connect(hidden.id, [addr])
        await exchange(seeker.fabric, hidden.id, SMALL)
        await exchange(hidden.fabric, seeker.id, SMALL)
        assert seeker.fabric.peers()[hidden.id].path == "relay"


async def test_our_relay_carries_a_circuit_to_one_of_theirs(folder: Path) -> None:
    async with running_node(reachability="public", relay=STRANGERS) as relay:
        place = named_addr(relay)
        async with (
            running_oracle("py", folder, LISTEN, circuit=[place]) as hidden,
            running_node(reachability="private") as seeker,
        ):
            await seeker.fabric.connect(id_of(hidden), [f"{place}/p2p-circuit"])
            await exchange(seeker.fabric, id_of(hidden), SMALL)
            assert seeker.fabric.peers()[id_of(hidden)].path == "relay"


async def test_our_relay_carries_a_circuit_from_one_of_theirs(folder: Path) -> None:
    async with (
        running_node(reachability="public", relay=STRANGERS) as relay,
        running_node(reachability="private") as hidden,
        running_oracle("py", folder, LISTEN, circuit=[]) as seeker,
    ):
        await hidden.fabric.connect(relay.id, relay.fabric.addrs())
        addr = f"{await circuit_addr(hidden)}/p2p/{peer_text(hidden.id)}"
        await seeker.act("dial_circuit", addr=addr)
        await seeker.act("echo", addr=addr, size=SMALL)
        assert hidden.fabric.peers()[id_of(seeker)].path == "relay"


async def test_we_find_put_get_and_provide_at_one_of_theirs(folder: Path) -> None:
    async with (
        running_oracle("py", folder, LISTEN, kad=True) as middle,
        running_node(dht=DHT) as one,
        running_node(dht=DHT) as two,
    ):
        for node in (one, two):
            await node.fabric.connect(id_of(middle), addrs_of(middle))
            await until_known(node, id_of(middle))
        assert await dht_of(two).find_peer(one.id) == one.fabric.addrs()
        assert await dht_of(one).put_record(NAME, b"said by us") >= 1
        assert await dht_of(two).get(NAME) == b"said by us"
        await dht_of(one).provide(KEY)
        assert await dht_of(two).providers(KEY, 1) == [(one.id, one.fabric.addrs())]


async def test_they_find_put_get_and_provide_at_us(folder: Path) -> None:
    async with (
        running_node(dht=DHT) as middle,
        running_node(dht=DHT) as sought,
        running_oracle("py", folder, LISTEN, kad=True) as one,
        running_oracle("py", folder, LISTEN, kad=True) as two,
    ):
        for peer in (one, two):
            await peer.act("kad_join", addr=named_addr(middle))
        # One of ours: it does not say where it is itself when asked for itself.
        await sought.fabric.connect(middle.id, middle.fabric.addrs())
        await until_known(middle, sought.id)
        found = await two.act("kad_find", peer=peer_text(sought.id))
        assert found == {"addrs": sought.fabric.addrs()}
        name = NAME.decode()
        await one.act("kad_put", key=name, value="said by them")
        assert dht_of(middle).store.value(NAME, 0) is not None
        assert await two.act("kad_get", key=name) == {"value": "said by them"}
        await one.act("kad_provide", key=KEY.hex())
        found = await two.act("kad_providers", key=KEY.hex())
        # Once for each of our nodes that answered.
        assert set(cast("list[str]", found["found"])) == {one.id}
