"""A hostile router, or somebody in its place: it costs seconds and KiB, and lies in vain."""

from __future__ import annotations

import ipaddress
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.errors import Unreachable
from p2p.nat.natpmp_client import NatPmpClient
from p2p.nat.portmap import Grant, MapState, PortLease
from p2p.nat.upnp import REPLY_BYTES_MAX
from p2p.nat.upnp_client import UpnpClient
from tests.helpers.fake_gateway import GATEWAY, natpmp, router, upnp
from tests.helpers.leaks import Census, task_count

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.helpers.fake_gateway import FakeGateway

pytestmark = pytest.mark.attack

LIMIT_S = 30.0
"""Ends a hang, decides nothing."""
SHORT_S = 0.4
"""Where the outcome is that nobody answers, and waiting longer would show no more."""


@asynccontextmanager
async def hostile(**changes: object) -> AsyncIterator[FakeGateway]:
    """A router with ways of its own; nothing of the exchange is left when it is gone."""
    before, tasks = Census.take(), task_count()
    async with router(**changes) as gateway:
        yield gateway
    assert task_count() == tasks
    Census.take().assert_nothing_new(since=before)


async def refuses(client: NatPmpClient | UpnpClient) -> str:
    """Why a mapping failed."""
    with trio.fail_after(LIMIT_S), pytest.raises(Unreachable) as caught:
        await client.map(15001, 15001, 3600)
    return str(caught.value)


def hurried_upnp(of: FakeGateway) -> UpnpClient:
    return UpnpClient(GATEWAY, random.Random(1), ssdp_port=of.ssdp_port, exchange_s=SHORT_S)


def hurried_natpmp(of: FakeGateway) -> NatPmpClient:
    return NatPmpClient(GATEWAY, port=of.natpmp_port, give_up_s=SHORT_S)


def description(body: str) -> bytes:
    return f"<root><device>{body}</device></root>".encode()


BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE root [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(
        b'<!ENTITY %c "%s">' % (letter, b"&%c;" % (letter - 1) * 10) for letter in range(98, 107)
    )
    + b"]><root>&j;</root>"
)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (BOMB, "XML: a document type"),
        (BOMB.decode().encode("utf-16"), "XML: a document type"),
        (b'<!DOCTYPE r SYSTEM "file:///etc/passwd"><root/>', "XML: a document type"),
        (b"<root>" + b"<a>" * 1000 + b"</a>" * 1000 + b"</root>", "XML: too many"),
        (b"<root>" + b"<a/>" * 10_000 + b"</root>", "XML: too many"),
        (b"<root>" + b"x" * 50_000 + b"</root>", "XML: a text over"),
        (b"\x00" * 1000, "XML: out of form"),
        (description(""), "no service that maps ports"),
    ],
)
async def test_a_hostile_description_is_refused(body: bytes, why: str) -> None:
    async with hostile(description=body) as gateway:
        assert why in await refuses(upnp(gateway))


def endless(_: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * (REPLY_BYTES_MAX * 16)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (endless, "over 64 KiB"),
        (lambda _: b"HTTP/1.1 200 OK\r\nX: " + b"y" * 60_000, "a head over 8 KiB"),
        (lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", "of no length"),
        (lambda _: b"HTTP/1.1 302 X\r\nLocation: http://203.0.113.1/\r\nContent-Length: 0\r\n\r\n",
         "out of form"),
        (lambda _: b"SSH-2.0-OpenSSH\r\n\r\n", "no status line"),
        (lambda _: b"", "cut short"),
    ],
)  # fmt: skip
async def test_a_hostile_reply_is_refused_in_time(
    answer: Callable[[bytes], bytes | None], why: str
) -> None:
    async with hostile(http_reply=answer) as gateway:
        assert why in await refuses(upnp(gateway))


async def test_a_router_that_accepts_and_says_nothing_is_left() -> None:
    async with hostile(http_reply=lambda _: None) as gateway:
        client = upnp(gateway)
        client._exchange_s = 2.0
        assert "too slow" in await refuses(client)


@pytest.mark.parametrize(
    "location",
    [
        "http://203.0.113.80/desc.xml",
        "http://127.0.0.2:{port}/desc.xml",
        "http://localhost:{port}/desc.xml",
        "http://127.0.0.1@203.0.113.80/",
        "https://127.0.0.1:{port}/desc.xml",
        "file:///etc/passwd",
    ],
)
async def test_a_place_elsewhere_is_not_visited(location: str) -> None:
    async with hostile() as gateway:
        gateway.location = location.format(port=gateway.http_port)
        assert "does not answer" in await refuses(hurried_upnp(gateway))
        assert not [one for one in gateway.requests if one.startswith((b"GET", b"POST"))]


@pytest.mark.parametrize(
    "control", ["http://203.0.113.80/ctl", "http://127.0.0.2:1/ctl", "http://localhost/ctl"]
)
async def test_a_service_elsewhere_is_not_called(control: str) -> None:
    async with hostile(control_url=control) as gateway:
        assert "UPnP:" in await refuses(upnp(gateway))
        assert not [one for one in gateway.requests if one.startswith(b"POST")]


async def test_a_path_cannot_smuggle_a_second_request() -> None:
    async with hostile(control_url="/ctl HTTP/1.1&#13;&#10;Host: x&#13;&#10;&#13;&#10;") as gateway:
        assert "a path out of form" in await refuses(upnp(gateway))


async def test_a_flood_of_search_answers_ends() -> None:
    async with hostile(ssdp_replies=lambda _: [b"x" * 1000] * 50) as gateway:
        client = upnp(gateway)
        client._exchange_s = 2 * LIMIT_S  # not the clock ends it
        assert "does not answer" in await refuses(client)


async def test_answers_of_others_on_the_link_are_not_followed() -> None:
    # Another address leads to a description that would do: only the gateway's own word counts.
    async with hostile(spoofed_from="127.0.0.2") as gateway:
        assert "does not answer" in await refuses(hurried_upnp(gateway))
        assert not [one for one in gateway.requests if one.startswith(b"GET")]


# --- NAT-PMP --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        b"\xff" * 5000,
        bytes.fromhex("0082000000000e10ffff3a9900000e10"),  # about a port that is not ours
        bytes.fromhex("0081000000000e103a993a9900000e10"),
        bytes.fromhex("0280000000000e102d4d0101"),
    ],
)
async def test_garbage_from_the_router_is_no_answer(data: bytes) -> None:
    async with hostile(natpmp_replies=lambda _: [data]) as gateway:
        assert "no answer" in await refuses(hurried_natpmp(gateway))


async def test_a_mapping_of_another_port_is_not_taken_for_ours() -> None:
    async with hostile() as gateway:
        gateway.natpmp_replies = lambda data: (
            [bytes.fromhex("0080000000000e102d4d0101")]
            if len(data) == 2
            else [bytes.fromhex("0082000000000e10ffff3a9900000e10")]
        )
        assert "no answer" in await refuses(hurried_natpmp(gateway))
        assert len(gateway.requests) >= 2


async def test_a_flood_of_garbage_ends_the_question() -> None:
    before = Census.take()
    async with hostile(natpmp_replies=lambda _: [b"\xff" * 60] * 200) as gateway:
        assert "answers nothing" in await refuses(natpmp(gateway))
    Census.take().assert_nothing_new(since=before)


def lease() -> PortLease:
    machine = PortLease(15001, 3600.0, random.Random(1))
    machine.want()
    return machine


def grant(ip: str, *, port: int = 15001, lifetime_s: float = 3600, epoch_s: int = 0) -> Grant:
    return Grant(
        kind="nat-pmp",
        external_ip=ipaddress.IPv4Address(ip),
        external_port=port,
        lifetime_s=lifetime_s,
        epoch_s=epoch_s,
    )


@pytest.mark.parametrize(
    "ip", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "100.64.1.1", "169.254.1.1", "224.0.0.1",
           "0.0.0.0", "255.255.255.255"],
)  # fmt: skip
def test_a_lie_about_the_external_address_is_told_to_nobody(ip: str) -> None:
    machine = lease()
    machine.granted(grant(ip), 0.0)
    assert machine.candidate is None
    assert machine.problem


@pytest.mark.parametrize("lifetime_s", [0, 1, 59])
def test_a_lease_of_seconds_makes_us_ask_no_more_often(lifetime_s: float) -> None:
    machine = lease()
    asked = 0
    now = 0.0
    while now < 3600:
        if machine.work is not None:
            asked += 1
            machine.granted(grant("45.77.1.1", lifetime_s=lifetime_s), now)
        timer = machine.next_timer()
        assert timer is not None
        now = timer
        machine.on_timer(now)
    assert asked <= 8


def test_a_clock_that_runs_backwards_makes_us_ask_at_most_at_each_check() -> None:
    machine = lease()
    asked = 0
    now, epoch_s = 0.0, 10**6
    while now < 3600:
        if machine.state is MapState.CHECKING:
            epoch_s -= 1000
            machine.checked(ipaddress.IPv4Address("45.77.1.1"), now, epoch_s=epoch_s)
        elif machine.work is not None:
            asked += 1
            machine.granted(grant("45.77.1.1", epoch_s=epoch_s), now)
        else:
            timer = machine.next_timer()
            assert timer is not None
            now = timer
            machine.on_timer(now)
    assert asked <= 1 + 12
