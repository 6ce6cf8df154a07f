"""How long the loop stands still for LAN discovery, port mapping and the watch over the network.

    python -m benchmarks.surroundings

Everything runs in one trio loop over real sockets of this machine: two LAN drivers that find each
other, a mapper with a router on loopback, the watch; and somebody on the link who sends the largest
messages that are read. Measured is the longest step of any task between two of its awaits: so long
nobody else in the loop is served. CPU time besides wall time, because a step that the kernel puts
aside for another process is no stall of ours.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from p2p.env import SystemEnv
from p2p.identity import Identity, peer_text
from p2p.nat.gateway import Gateway
from p2p.nat.lan import service_of
from p2p.nat.lan_config import LanConfig
from p2p.nat.lan_driver import LanDriver
from p2p.nat.mdns import DnsMessage, Ptr, Txt, encode_dns
from p2p.nat.natpmp_client import NatPmpClient
from p2p.nat.portmap_config import MapConfig
from p2p.nat.portmap_driver import PortMapper
from p2p.nat.upnp import decode_description_untrusted, parse_http_url_untrusted
from p2p.net.interfaces import list_interfaces
from p2p.net.netwatch import NetWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.identity import PeerId

LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
LIMIT_S = 30.0


class _Steps(trio.abc.Instrument):
    """The longest step of any task, in wall and in CPU time."""

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self._before: tuple[float, float] | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self._before = time.perf_counter(), time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        if self._before is None:
            return  # the step in which this instrument was added
        wall_s, cpu_s = self._before
        self.wall_s = max(self.wall_s, time.perf_counter() - wall_s)
        self.cpu_s = max(self.cpu_s, time.thread_time() - cpu_s)


async def _router(*, task_status: trio.TaskStatus[int]) -> None:
    """NAT-PMP on loopback, honest."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((str(LOOPBACK), 0))
        task_status.started(sock.getsockname()[1])
        while True:
            data, remote = await sock.recvfrom(64)
            if len(data) == 2:
                answer = struct.pack("!BBHI", 0, 0x80, 0, 1) + bytes((45, 77, 1, 1))
            else:
                ports = struct.unpack("!BBHHHI", data)[3:]
                answer = struct.pack("!BBHI", 0, 0x82, 0, 1) + struct.pack("!HHI", *ports)
            await sock.sendto(answer, remote)


def _hostile(network: str) -> list[bytes]:
    """The largest messages that are read: many addresses, and as many peers."""
    service = service_of(network)
    instance = (b"0" * 32, *service)
    strings = tuple(
        f"dnsaddr=/ip4/127.0.0.1/tcp/{2000 + n}/p2p/{peer_text(_peer(n))}".encode()
        for n in range(60)
    )
    rows = tuple(Ptr(service, (b"%032d" % n, *service), 120) for n in range(60))
    answer = DnsMessage(True, (), (Ptr(service, instance, 120), Txt(instance, strings, 120)))
    return [encode_dns(answer), encode_dns(DnsMessage(True, (), rows))]


def _peer(number: int) -> PeerId:
    return Identity.from_seed(number.to_bytes(4, "big") * 8).id


def description(services: int = 199) -> bytes:
    """A router's description with about as many elements as are read."""
    row = (
        "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>"
        "<controlURL>/ctl/IPConn</controlURL><a>1</a><a>2</a></service>"
    )
    return f"<root><device><serviceList>{row * services}</serviceList></device></root>".encode()


async def _measure(seconds: float, steps: _Steps) -> None:
    env = SystemEnv()
    network = str(env.rng.random())
    messages = _hostile(network)  # made before anything is measured
    both = trio.Event()
    mapped = trio.Event()
    found: list[PeerId] = []

    def hear(peer: PeerId, addrs: Sequence[str]) -> None:
        del addrs
        found.append(peer)
        if len(found) > 1:
            both.set()

    def driver() -> LanDriver:
        return LanDriver(
            Identity.generate(env.rng).id,
            LanConfig(),
            env,
            network=network,
            listening=lambda: ["/ip4/0.0.0.0/tcp/15001", "/ip6/::/tcp/15001"],
            found=hear,
        )

    async def find() -> Gateway:
        await trio.lowlevel.checkpoint()
        return Gateway(LOOPBACK, LOOPBACK)

    async with trio.open_nursery() as nursery:
        port = await nursery.start(_router)
        mapper = PortMapper(
            MapConfig(),
            env,
            listening=lambda: ["/ip4/0.0.0.0/tcp/15001"],
            mapped=lambda addrs: mapped.set() if addrs else None,
            gateway=find,
            natpmp=partial(NatPmpClient, port=port),
        )
        trio.lowlevel.add_instrument(steps)
        await nursery.start(driver().run)
        await nursery.start(driver().run)
        await nursery.start(mapper.run)
        await nursery.start(NetWatch(env, lambda _: None, 0.2).run)
        with trio.fail_after(LIMIT_S):
            await both.wait()
            await mapped.wait()
        await _annoy(messages, seconds)
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(steps)


async def _annoy(messages: Sequence[bytes], seconds: float) -> None:
    # In one step, as the client reads it; what was made before is not counted.
    location, largest = parse_http_url_untrusted("http://127.0.0.1/"), description()
    await trio.lowlevel.checkpoint()
    decode_description_untrusted(largest, location)
    await trio.lowlevel.checkpoint()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", 5353))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, LOOPBACK.packed)
        with trio.move_on_after(seconds):
            while True:
                for message in messages:
                    with contextlib.suppress(BlockingIOError):
                        sock.sendto(message, ("224.0.0.251", 5353))
                await trio.sleep(0.01)


def stall_ms(seconds: float = 3.0) -> dict[str, float]:
    """The longest stall of the loop.

    Args:
        seconds: how long the neighbours annoy us.

    Returns:
        `cpu_ms` and `wall_ms` of the longest step; `interfaces`, on which it was measured.
    """
    steps = _Steps()
    trio.run(_measure, seconds, steps)
    return {
        "cpu_ms": steps.cpu_s * 1000,
        "wall_ms": steps.wall_s * 1000,
        "interfaces": float(len(list_interfaces())),
    }


if __name__ == "__main__":
    for name, value in stall_ms().items():
        print(f"{name} {value:.2f}")
