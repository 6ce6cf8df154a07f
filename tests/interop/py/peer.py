"""A py-libp2p peer that a test drives: JSON commands on stdin, JSON answers on stdout.

The same commands and protocols as `tests/interop/js/peer.mjs`. It runs in an environment of its own
(build/interop/py) and ends with its stdin.

    python peer.py LISTEN [ROLES]

ROLES is JSON with any of:
    relay: true           carries circuits
    circuit: [ADDR, ...]  dials over relays, and takes a place at each of these
    kad: true             serves the DHT, under /ipfs/kad/1.0.0 as always
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.custom_types import TProtocol
from libp2p.host.ping import PingService
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import parse_identify_response
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.relay.circuit_v2.config import RelayConfig, RelayRole
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.relay.circuit_v2.transport import CircuitV2Transport
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from libp2p.tools.anyio_service import background_trio_service

ECHO = TProtocol("/covey-test/echo/1")
COUNT = TProtocol("/covey-test/count/1")
RESET = TProtocol("/covey-test/reset/1")
HOLD = TProtocol("/covey-test/hold/1")
# Its own errors for the end of a stream, among others RuntimeError: whatever ends a read is an end.
ENDS = Exception


def say(message: dict) -> None:
    """Print one answer."""
    print(json.dumps(message), flush=True)


def pattern(size: int) -> bytes:
    """The same bytes in every implementation."""
    return bytes((i * 31 + (i >> 8)) & 0xFF for i in range(size))


async def read_all(stream) -> bytes:
    """Read until the other side ends its direction."""
    parts = []
    while True:
        try:
            chunk = await stream.read(65536)
        except ENDS as error:
            if "EOF" in type(error).__name__:
                break
            raise
        if not chunk:
            break
        parts.append(chunk)
    return b"".join(parts)


async def on_echo(stream) -> None:
    """Send back what comes."""
    while True:
        try:
            chunk = await stream.read(65536)
        except ENDS:
            break
        if not chunk:
            break
        await stream.write(chunk)
    await stream.close()


async def on_count(stream) -> None:
    """Answer how much came."""
    count = len(await read_all(stream))
    await stream.write(count.to_bytes(8, "big"))
    await stream.close()


async def on_reset(stream) -> None:
    """Reset at the first byte."""
    await stream.read(1)
    await stream.reset()


async def on_hold(stream) -> None:
    """Tell the test how the stream ended."""
    try:
        await stream.read(1)
        say({"event": "held"})
        await read_all(stream)
    except ENDS:
        say({"event": "hold", "reset": True})
        return
    say({"event": "hold", "reset": False})


class Peer:
    """The commands."""

    def __init__(self, host, nursery, parts) -> None:
        self.host = host
        self.circuits = parts.get("circuits")
        self.kad = parts.get("kad")
        self.nursery = nursery
        self.go = trio.Event()

    async def stream_to(self, addr: str, protocol: TProtocol):
        """Open a stream, connecting first if needed."""
        info = info_from_p2p_addr(multiaddr.Multiaddr(addr))
        if info.peer_id not in self.host.get_connected_peers():
            await self.host.connect(info)
        return await self.host.new_stream(info.peer_id, [protocol])

    async def exchange(self, addr: str, size: int) -> None:
        """Send a pattern and demand it back."""
        stream = await self.stream_to(addr, ECHO)
        data, got = pattern(size), b""

        async def write() -> None:
            for at in range(0, size, 16384):
                await stream.write(data[at : at + 16384])
            await stream.close_write()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            got = await read_all(stream)
        if hashlib.sha256(got).digest() != hashlib.sha256(data).digest():
            raise RuntimeError(f"{len(got)} of {size} bytes came back")

    async def reserve(self, relay: str) -> None:
        """Take a place at a relay."""
        stream = await self.stream_to(relay, HOP)
        peer = info_from_p2p_addr(multiaddr.Multiaddr(relay)).peer_id
        if not await self.circuits.reserve(stream, peer, self.nursery):
            raise RuntimeError("no place was given")
        await stream.close()

    async def dial_circuit(self, addr: str) -> dict:
        """Dial `<relay>/p2p/R/p2p-circuit/p2p/P`."""
        await self.circuits.dial(multiaddr.Multiaddr(addr))
        return {}

    async def kad_join(self, addr: str) -> dict:
        """Know a node of the DHT."""
        info = info_from_p2p_addr(multiaddr.Multiaddr(addr))
        await self.host.connect(info)
        return {"added": await self.kad.add_peer(info.peer_id, skip_server_mode_check=True)}

    async def kad_find(self, peer: str) -> dict:
        info = await self.kad.find_peer(ID.from_base58(peer))
        return {"addrs": [] if info is None else [str(addr) for addr in info.addrs]}

    async def kad_put(self, key: str, value: str) -> dict:
        await self.kad.put_value(key, value.encode())
        return {}

    async def kad_get(self, key: str) -> dict:
        value = await self.kad.get_value(key)
        return {"value": None if value is None else value.decode()}

    async def kad_provide(self, key: str) -> dict:
        return {"done": await self.kad.provide(key)}

    async def kad_providers(self, key: str) -> dict:
        found = await self.kad.find_providers(key)
        return {"found": [str(info.peer_id) for info in found]}

    async def dial(self, addr: str) -> dict:
        info = info_from_p2p_addr(multiaddr.Multiaddr(addr))
        await self.host.connect(info)
        return {"peer": str(info.peer_id)}

    async def identify(self, peer: str) -> dict:
        stream = await self.host.new_stream(ID.from_base58(peer), [IDENTIFY])
        message = parse_identify_response(await read_all(stream))
        return {
            "agent": message.agent_version,
            "version": message.protocol_version,
            "protocols": list(message.protocols),
            "addrs": [str(multiaddr.Multiaddr(addr)) for addr in message.listen_addrs],
            "observed": str(multiaddr.Multiaddr(message.observed_addr)),
        }

    async def ping(self, addr: str, count: int) -> dict:
        info = info_from_p2p_addr(multiaddr.Multiaddr(addr))
        return {"times": await PingService(self.host).ping(info.peer_id, count)}

    async def echo(self, addr: str, size: int) -> dict:
        await self.exchange(addr, size)
        return {"size": size}

    async def streams(self, addr: str, count: int, size: int) -> dict:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(self.exchange, addr, size)
        return {"count": count}

    async def halfclose(self, addr: str, size: int) -> dict:
        stream = await self.stream_to(addr, COUNT)
        await stream.write(pattern(size))
        await stream.close_write()
        return {"counted": int.from_bytes(await read_all(stream), "big")}

    async def send_reset(self, addr: str) -> dict:
        stream = await self.stream_to(addr, HOLD)
        await stream.write(pattern(1000))
        await self.go.wait()
        await stream.reset()
        return {}

    async def go_on(self) -> dict:
        self.go.set()
        return {}

    async def get_reset(self, addr: str) -> dict:
        stream = await self.stream_to(addr, RESET)
        await stream.write(pattern(10))
        try:
            await read_all(stream)
        except ENDS:
            return {"reset": True}
        return {"reset": False}

    async def forgotten(self, peer: str) -> dict:
        """Wait until a peer that left is gone here too: its library tells of no such event."""
        while ID.from_base58(peer) in self.host.get_connected_peers():  # noqa: ASYNC110
            await trio.sleep(0.01)
        return {}

    async def stop(self) -> dict:
        self.nursery.cancel_scope.cancel()
        return {}

    async def answer(self, line: bytes) -> None:
        """Carry out one command."""
        request = json.loads(line)
        number, act = request.pop("n"), request.pop("act")
        try:
            say({"n": number, "ok": await getattr(self, act)(**request)})
        except ENDS as error:
            say({"n": number, "error": f"{type(error).__name__}: {error}"})

    async def serve(self) -> None:
        """Read commands until stdin ends."""
        buffer = b""
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            async for chunk in stdin:
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    self.nursery.start_soon(self.answer, line)
        self.nursery.cancel_scope.cancel()


class AnyValue:
    """Takes whatever is stored."""

    def validate(self, key: str, value: bytes) -> None:
        """Find nothing wrong."""

    def select(self, key: str, values: list[bytes]) -> int:  # noqa: ARG002 - its interface
        """Prefer the first."""
        return 0


async def start_parts(host, roles: dict, stack: contextlib.AsyncExitStack) -> dict:
    """What it does besides serving streams."""
    parts: dict = {}
    if "relay" in roles or "circuit" in roles:
        carries = "relay" in roles
        role = RelayRole.HOP if carries else RelayRole.STOP | RelayRole.CLIENT
        protocol = CircuitV2Protocol(host, None, allow_hop=carries)
        await stack.enter_async_context(background_trio_service(protocol))
        await protocol.event_started.wait()
        parts["circuits"] = CircuitV2Transport(host, protocol, RelayConfig(roles=role))
    if "kad" in roles:
        parts["kad"] = KadDHT(host, DHTMode.SERVER)
        parts["kad"].register_validator("test", AnyValue())
        await stack.enter_async_context(background_trio_service(parts["kad"]))
    return parts


async def main(listen: str, roles: dict) -> None:
    """Serve until stdin ends."""
    key = create_new_key_pair()
    # Its default accepts plaintext from anybody under any id; so Noise only.
    noise = Transport(libp2p_keypair=key, noise_privkey=new_noise_key().private_key)
    host = new_host(key_pair=key, sec_opt={PROTOCOL_ID: noise}, muxer_preference="YAMUX")
    async with (
        host.run(listen_addrs=[multiaddr.Multiaddr(listen)]),
        contextlib.AsyncExitStack() as stack,
        trio.open_nursery() as nursery,
    ):
        for protocol, handler in (
            (ECHO, on_echo),
            (COUNT, on_count),
            (RESET, on_reset),
            (HOLD, on_hold),
        ):
            host.set_stream_handler(protocol, handler)
        peer = Peer(host, nursery, await start_parts(host, roles, stack))
        for relay in roles.get("circuit", ()):
            await peer.reserve(relay)
        addrs = [str(addr) for addr in host.get_addrs()]
        own = str(host.get_id())
        say(
            {
                "ready": {
                    "id": own,
                    "addrs": [a if "/p2p/" in a else f"{a}/p2p/{own}" for a in addrs],
                }
            }
        )
        await peer.serve()


logging.disable(logging.CRITICAL)
listen, roles = [*sys.argv[1:], "{}"][:2]
trio.run(main, listen, json.loads(roles))
