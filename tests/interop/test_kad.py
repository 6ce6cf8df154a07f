"""Kademlia against js-libp2p under a protocol id of the public network: find, put, provide.

Other software signs nothing in the DHT, so our side runs without required signatures here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
import trio

from p2p.dht.config import DhtConfig
from p2p.dht.keys import provider_key, value_key
from p2p.identity import peer_text
from tests.helpers.interop import LISTEN, addrs_of, id_of, named_addr, running_node
from tests.helpers.oracle import install, running_oracle

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from p2p.dht.service import Dht
    from p2p.node import Node
    from tests.helpers.oracle import Oracle

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(60)]

PROTOCOL: Final = "/ipfs/kad/1.0.0"
DHT: Final = replace(DhtConfig.lab(), protocol=PROTOCOL, require_signed=False)
CLIENT: Final = replace(DHT, server=False)
SERVES: Final = {"protocol": PROTOCOL}
ASKS: Final = {"protocol": PROTOCOL, "client": True}
KEY: Final = provider_key(b"something")


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where js-libp2p is installed."""
    return install("js")


def dht_of(node: Node) -> Dht:
    """Its DHT."""
    assert node.dht is not None
    return node.dht


def server() -> AbstractAsyncContextManager[Node]:
    """A node of ours that serves the DHT."""
    return running_node(dht=DHT, reachability="public")


def client() -> AbstractAsyncContextManager[Node]:
    """A node of ours that only asks: what others find is held by somebody else."""
    return running_node(dht=CLIENT, reachability="auto")


async def until(ready: Callable[[], bool]) -> None:
    """Wait for what no event tells of."""
    while not ready():  # noqa: ASYNC110
        await trio.sleep(0.01)


async def join(node: Node, oracle: Oracle) -> None:
    """Have a node of ours know one of theirs as a node of the DHT."""
    await node.fabric.connect(id_of(oracle), addrs_of(oracle))
    await until(lambda: id_of(oracle) in dht_of(node).table)


async def test_we_find_one_of_theirs_through_another(folder: Path) -> None:
    async with (
        running_oracle("js", folder, LISTEN, kad=SERVES) as middle,
        running_oracle("js", folder, LISTEN, kad=SERVES) as other,
        client() as seeker,
    ):
        await other.act("dial", addr=middle.addrs[0])
        await middle.act("kad_knows", peer=other.id)
        await join(seeker, middle)
        assert await dht_of(seeker).find_peer(id_of(other)) == addrs_of(other)


async def test_we_put_and_get_a_value_at_one_of_theirs(folder: Path) -> None:
    async with (
        running_oracle("js", folder, LISTEN, kad=SERVES) as middle,
        client() as writer,
        client() as reader,
    ):
        await join(writer, middle)
        assert await dht_of(writer).put(b"name", b"said by us") == 1
        await join(reader, middle)
        assert await dht_of(reader).get(value_key(writer.id, b"name")) == b"said by us"
        assert await dht_of(reader).get(value_key(writer.id, b"another")) is None


async def test_we_provide_and_find_providers_at_one_of_theirs(folder: Path) -> None:
    async with (
        running_oracle("js", folder, LISTEN, kad=SERVES) as middle,
        client() as provider,
        client() as seeker,
    ):
        await join(provider, middle)
        # It takes a provider without an answer, as the public protocol has it: nothing to count.
        assert await dht_of(provider).provide(KEY) == 0
        await join(seeker, middle)
        assert await dht_of(seeker).providers(KEY, 1) == [(provider.id, provider.fabric.addrs())]


async def test_they_find_one_of_theirs_through_us(folder: Path) -> None:
    async with (
        server() as middle,
        running_oracle("js", folder, LISTEN, kad=SERVES) as other,
        running_oracle("js", folder, LISTEN, kad=ASKS) as seeker,
    ):
        await join(middle, other)
        await seeker.act("dial", addr=named_addr(middle))
        found = await seeker.act("kad_find", peer=other.id)
        assert found == {"id": other.id, "addrs": addrs_of(other)}


async def test_they_find_us_through_ourselves_and_one_of_theirs(folder: Path) -> None:
    async with (
        server() as sought,
        running_oracle("js", folder, LISTEN, kad=SERVES) as middle,
        running_oracle("js", folder, LISTEN, kad=ASKS) as seeker,
    ):
        await join(sought, middle)
        await middle.act("kad_knows", peer=peer_text(sought.id))
        await seeker.act("dial", addr=middle.addrs[0])
        found = await seeker.act("kad_find", peer=peer_text(sought.id))
        assert found == {"id": peer_text(sought.id), "addrs": sought.fabric.addrs()}


async def test_they_put_and_get_a_value_with_us(folder: Path) -> None:
    async with (
        server() as middle,
        running_oracle("js", folder, LISTEN, kad=ASKS) as writer,
        running_oracle("js", folder, LISTEN, kad=ASKS) as reader,
    ):
        key, value = b"/test/name".hex(), b"said by them".hex()
        await writer.act("dial", addr=named_addr(middle))
        assert await writer.act("kad_put", key=key, value=value) == {"nodes": 1}
        await reader.act("dial", addr=named_addr(middle))
        assert await reader.act("kad_get", key=key) == {"value": value}


async def test_they_provide_and_find_providers_with_us(folder: Path) -> None:
    async with (
        server() as middle,
        running_oracle("js", folder, LISTEN, kad=ASKS) as provider,
        running_oracle("js", folder, LISTEN, kad=ASKS) as seeker,
    ):
        await provider.act("dial", addr=named_addr(middle))
        assert await provider.act("kad_provide", key=KEY.hex()) == {"nodes": 1}
        # It waits for no answer.
        await until(lambda: dht_of(middle).store.entries == 1)
        await seeker.act("dial", addr=named_addr(middle))
        found = await seeker.act("kad_providers", key=KEY.hex())
        assert found == {"found": [{"id": provider.id, "addrs": provider.addrs}]}


async def test_they_find_us_as_a_provider_held_by_another_of_ours(folder: Path) -> None:
    async with (
        server() as middle,
        client() as provider,
        running_oracle("js", folder, LISTEN, kad=ASKS) as seeker,
    ):
        await provider.fabric.connect(middle.id, middle.fabric.addrs())
        await until(lambda: middle.id in dht_of(provider).table)
        assert await dht_of(provider).provide(KEY) == 1
        await seeker.act("dial", addr=named_addr(middle))
        found = await seeker.act("kad_providers", key=KEY.hex())
        assert found == {
            "found": [{"id": peer_text(provider.id), "addrs": provider.fabric.addrs()}]
        }
