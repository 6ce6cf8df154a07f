"""A router on loopback: NAT-PMP and UPnP over real sockets, as hostile as a test wants."""

from __future__ import annotations

import ipaddress
import random
import re
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from p2p.nat.gateway import Gateway
from p2p.nat.natpmp_client import NatPmpClient
from p2p.nat.upnp import SEARCH_TARGETS
from p2p.nat.upnp_client import UpnpClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

LOOPBACK: Final = "127.0.0.1"
GATEWAY: Final = Gateway(ipaddress.IPv4Address(LOOPBACK), ipaddress.IPv4Address(LOOPBACK))
SERVICE: Final = "urn:schemas-upnp-org:service:WANIPConnection:1"

_ACTION: Final = re.compile(rb'SOAPAction: "[^#"]*#(\w+)"')


def reply(body: bytes, *, status: int = 200) -> bytes:
    """An HTTP reply with its length."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


def soap(action: str, **values: str) -> bytes:
    """The reply to a call that succeeded."""
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
    return reply(
        f"<s:Envelope xmlns:s='e'><s:Body><u:{action}Response xmlns:u='{SERVICE}'>{inner}"
        f"</u:{action}Response></s:Body></s:Envelope>".encode()
    )


def fault(code: int) -> bytes:
    """The reply to a call that was refused."""
    return reply(
        b"<s:Envelope xmlns:s='e'><s:Body><s:Fault><faultcode>s:Client</faultcode>"
        b"<faultstring>UPnPError</faultstring><detail><UPnPError><errorCode>%d</errorCode>"
        b"</UPnPError></detail></s:Fault></s:Body></s:Envelope>" % code,
        status=500,
    )


@dataclass
class FakeGateway:
    """What it answers; set a field to change that.

    Attributes:
        table: external port -> (internal port, lease in seconds).
    """

    external: str = "45.77.1.1"
    epoch_s: int = 10_000
    result: int = 0
    """NAT-PMP's result of mappings."""
    add_faults: list[int] = field(default_factory=list)
    """Faults of the next calls of AddPortMapping."""
    location: str = ""
    """In answers to searches; empty: where the description is."""
    control_url: str = "/ctl"
    natpmp_replies: Callable[[bytes], Iterable[bytes]] | None = None
    """Replaces the honest answers."""
    ssdp_replies: Callable[[bytes], Iterable[bytes]] | None = None
    http_reply: Callable[[bytes], bytes | None] | None = None
    """Replaces the honest reply; None: says nothing and keeps the connection."""
    spoofed_from: str = ""
    """Answers to searches come from this address of loopback, as if somebody else gave them."""
    description: bytes = b""
    """Replaces the honest one."""
    table: dict[int, tuple[int, int]] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)
    natpmp_port: int = 0
    ssdp_port: int = 0
    http_port: int = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started when the ports are known."""
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
            self.http_port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(partial(trio.serve_listeners, self._http, listeners))
            self.natpmp_port = await nursery.start(self._serve_datagrams, self._natpmp, "")
            self.ssdp_port = await nursery.start(
                self._serve_datagrams, self._ssdp, self.spoofed_from
            )
            task_status.started()

    async def _serve_datagrams(
        self,
        answer: Callable[[bytes], Iterable[bytes]],
        answer_from: str,
        *,
        task_status: trio.TaskStatus[int],
    ) -> None:
        kind = trio.socket.AF_INET, trio.socket.SOCK_DGRAM
        with trio.socket.socket(*kind) as sock, trio.socket.socket(*kind) as other:
            await sock.bind((LOOPBACK, 0))
            await other.bind((answer_from or LOOPBACK, 0))
            task_status.started(sock.getsockname()[1])
            while True:
                data, remote = await sock.recvfrom(4096)
                self.requests.append(data)
                for one in answer(data):
                    await (other if answer_from else sock).sendto(one, remote)

    def _natpmp(self, data: bytes) -> Iterable[bytes]:
        if self.natpmp_replies is not None:
            return self.natpmp_replies(data)
        if data == b"\0\0":
            packed = ipaddress.IPv4Address(self.external).packed
            return [struct.pack("!BBHI", 0, 0x80, 0, self.epoch_s) + packed]
        _, _, _, internal, external, lifetime_s = struct.unpack("!BBHHHI", data)
        if self.result:
            return [struct.pack("!BBHI", 0, 0x82, self.result, self.epoch_s)]
        if lifetime_s:
            self.table[external] = internal, lifetime_s
        else:
            self.table = {k: v for k, v in self.table.items() if v[0] != internal}
        head = struct.pack("!BBHI", 0, 0x82, 0, self.epoch_s)
        return [head + struct.pack("!HHI", internal, external, lifetime_s)]

    def _ssdp(self, data: bytes) -> Iterable[bytes]:
        if self.ssdp_replies is not None:
            return self.ssdp_replies(data)
        if SEARCH_TARGETS[0].encode() not in data:
            return []
        return [self.search_answer()]

    def search_answer(self) -> bytes:
        """An answer to a search."""
        location = self.location or f"http://{LOOPBACK}:{self.http_port}/desc.xml"
        return (
            f"HTTP/1.1 200 OK\r\nST: {SEARCH_TARGETS[0]}\r\nLOCATION: {location}\r\n\r\n".encode()
        )

    async def _http(self, stream: trio.SocketStream) -> None:
        held = b""
        while b"\r\n\r\n" not in held or (
            held.startswith(b"POST") and not held.rstrip().endswith(b"Envelope>")
        ):
            data = await stream.receive_some()
            if not data:
                return
            held += data
        self.requests.append(held)
        answer = self.http_reply(held) if self.http_reply is not None else self._honest(held)
        try:
            if answer is None:
                await trio.sleep_forever()
            else:
                await stream.send_all(answer)
        except trio.BrokenResourceError:
            return
        finally:
            await trio.aclose_forcefully(stream)

    def _honest(self, request: bytes) -> bytes:
        action = _ACTION.search(request)
        if action is None:
            return reply(self.description or self._described())
        values = dict(re.findall(rb"<(New\w+)>([^<]*)</", request))
        port = int(values.get(b"NewExternalPort", b"0"))
        match action[1]:
            case b"AddPortMapping":
                if self.add_faults:
                    return fault(self.add_faults.pop(0))
                lease_s = int(values[b"NewLeaseDuration"])
                self.table[port] = int(values[b"NewInternalPort"]), lease_s
                return soap("AddPortMapping")
            case b"GetExternalIPAddress":
                return soap("GetExternalIPAddress", NewExternalIPAddress=self.external)
            case b"GetSpecificPortMappingEntry":
                if port not in self.table:
                    return fault(714)
                return soap(
                    "GetSpecificPortMappingEntry",
                    NewInternalPort=str(self.table[port][0]),
                    NewInternalClient=LOOPBACK,
                )
            case _:
                if self.table.pop(port, None) is None:
                    return fault(714)
                return soap("DeletePortMapping")

    def _described(self) -> bytes:
        return (
            "<root><device><deviceList><device><serviceList><service>"
            f"<serviceType>{SERVICE}</serviceType><controlURL>{self.control_url}</controlURL>"
            "</service></serviceList></device></deviceList></device></root>"
        ).encode()


@asynccontextmanager
async def router(**changes: object) -> AsyncIterator[FakeGateway]:
    """A router that runs for as long as the block."""
    found = FakeGateway(**changes)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(found.run)
        yield found
        nursery.cancel_scope.cancel()


def natpmp(of: FakeGateway) -> NatPmpClient:
    """A client of its NAT-PMP."""
    return NatPmpClient(GATEWAY, port=of.natpmp_port)


def upnp(of: FakeGateway) -> UpnpClient:
    """A client of its UPnP."""
    return UpnpClient(GATEWAY, random.Random(1), ssdp_port=of.ssdp_port)
