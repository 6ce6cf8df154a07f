"""The clients of NAT-PMP and UPnP over real sockets, against a router on loopback."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.env import SystemEnv
from p2p.errors import Unreachable
from p2p.nat.natpmp_client import NatPmpClient
from p2p.nat.portmap import Grant
from p2p.nat.portmap_config import MapConfig
from p2p.nat.portmap_driver import PortMapper
from p2p.nat.upnp import FAULTS
from p2p.nat.upnp_client import UpnpClient
from tests.helpers.fake_gateway import GATEWAY, natpmp, router, upnp
from tests.helpers.leaks import Census

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.nat.gateway import Gateway


# --- NAT-PMP --------------------------------------------------------------------------------------


async def test_natpmp_maps_and_gives_back() -> None:
    before = Census.take()
    async with router() as gateway:
        client = natpmp(gateway)
        grant = await client.map(15001, 15001, 3600)
        assert grant == Grant(
            kind="nat-pmp",
            external_ip=(await client.external_address()).address,
            external_port=15001,
            lifetime_s=3600,
            epoch_s=10_000,
        )
        assert gateway.table == {15001: (15001, 3600)}
        await client.unmap(15001)
        assert gateway.table == {}
    Census.take().assert_nothing_new(since=before)


async def test_a_lost_datagram_is_sent_again() -> None:
    async with router() as gateway:
        honest, seen = gateway._natpmp, 0

        def lossy(data: bytes) -> list[bytes]:
            nonlocal seen
            seen += 1
            if seen % 2:
                return []
            gateway.natpmp_replies = None
            answers = list(honest(data))
            gateway.natpmp_replies = lossy
            return answers

        gateway.natpmp_replies = lossy
        assert (await natpmp(gateway).map(15001, 15001, 3600)).external_port == 15001
        assert len(gateway.requests) == 4


async def test_natpmp_refused_says_why() -> None:
    async with router(result=2) as gateway:
        with pytest.raises(Unreachable, match="NAT-PMP: port mapping is switched off there"):
            await natpmp(gateway).map(15001, 15001, 3600)


async def test_where_nobody_listens_it_is_known_at_once() -> None:
    async with router() as gateway:
        port = gateway.natpmp_port
    with trio.fail_after(3), pytest.raises(Unreachable, match="does not speak it"):
        await NatPmpClient(GATEWAY, port=port).map(15001, 15001, 3600)


# --- UPnP -----------------------------------------------------------------------------------------


async def test_upnp_maps_looks_after_it_and_gives_back() -> None:
    before = Census.take()
    async with router() as gateway:
        client = upnp(gateway)
        grant = await client.map(15001, 15001, 3600)
        assert (grant.kind, str(grant.external_ip), grant.external_port, grant.lifetime_s) == (
            "upnp", "45.77.1.1", 15001, 3600,
        )  # fmt: skip
        assert gateway.table == {15001: (15001, 3600)}
        assert await client.forwards(15001, 15001)
        assert not await client.forwards(15001, 15002)
        gateway.table[15001] = 22, 0
        assert not await client.forwards(15001, 15001), "it leads to another port"
        await client.unmap(15001)
        assert gateway.table == {}
        await client.unmap(15001)  # gone already is as good
    Census.take().assert_nothing_new(since=before)


async def test_a_router_of_permanent_mappings_makes_one() -> None:
    async with router(add_faults=[725]) as gateway:
        grant = await upnp(gateway).map(15001, 15001, 3600)
        assert gateway.table == {15001: (15001, 0)}
        assert grant.lifetime_s == 3600, "it is renewed like any other"


async def test_a_taken_port_is_another_port() -> None:
    async with router(add_faults=[718, 718, 718]) as gateway:
        grant = await upnp(gateway).map(15001, 15001, 3600)
        assert grant.external_port != 15001
        assert gateway.table == {grant.external_port: (15001, 3600)}


async def test_four_taken_ports_are_enough() -> None:
    async with router(add_faults=[718] * 9) as gateway:
        with pytest.raises(Unreachable, match="mapped for somebody else"):
            await upnp(gateway).map(15001, 15001, 3600)
        assert len(gateway.add_faults) == 4


@pytest.mark.parametrize("code", [402, 501, 606, 724, 728])
async def test_a_refusal_says_why(code: int) -> None:
    async with router(add_faults=[code]) as gateway:
        with pytest.raises(Unreachable, match=f"UPnP: {FAULTS[code]}"):
            await upnp(gateway).map(15001, 15001, 3600)


async def test_the_service_is_searched_anew_after_the_router_restarted_at_another_port() -> None:
    async with router() as first:
        client = upnp(first)
        await client.map(15001, 15001, 3600)
    async with router() as second:
        client._ssdp_port = second.ssdp_port
        with pytest.raises(Unreachable):
            await client.external_address()
        assert str(await client.external_address()) == "45.77.1.1"


# --- both under the driver ------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", ["nat-pmp", "upnp"])
async def test_the_driver_maps_over_either_and_gives_back_when_it_stops(speaks: str) -> None:
    before = Census.take()
    told: list[Sequence[str]] = []
    heard = trio.Event()

    def hear(addrs: Sequence[str]) -> None:
        told.append(addrs)
        heard.set()

    async def find() -> Gateway:
        await trio.lowlevel.checkpoint()
        return GATEWAY

    async with router() as gateway:
        closed = partial(NatPmpClient, port=gateway.http_port)  # no UDP there: refused at once
        mapper = PortMapper(
            MapConfig(),
            SystemEnv(),
            listening=lambda: ["/ip4/0.0.0.0/tcp/15001"],
            mapped=hear,
            gateway=find,
            natpmp=partial(NatPmpClient, port=gateway.natpmp_port)
            if speaks == "nat-pmp"
            else closed,
            upnp=lambda found: UpnpClient(found, random.Random(1), ssdp_port=gateway.ssdp_port),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(mapper.run)
            with trio.fail_after(30):
                await heard.wait()
            assert told == [("/ip4/45.77.1.1/tcp/15001",)]
            (report,) = mapper.report()
            assert (report.kind, report.state, report.problem) == (speaks, "held", "")
            assert gateway.table == {15001: (15001, 3600)}
            nursery.cancel_scope.cancel()
        assert gateway.table == {}
        assert told[-1] == ()
    Census.take().assert_nothing_new(since=before)
