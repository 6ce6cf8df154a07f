"""A node that a test drives from outside its namespace: JSON lines on stdin and stdout.

    python tests/netns/peer.py SEED REACHABILITY [RELAY...]

It ends when stdin does. Each line `{"n": 1, "act": "paths"}` is answered by `{"n": 1, "ok": ...}`
or `{"n": 1, "error": ...}`; acts run at the same time. The relays, multiaddrs with `/p2p/`, are
kept connected.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, cast

import trio

from p2p.config import P2pConfig
from p2p.env import SystemEnv
from p2p.errors import P2pError
from p2p.identity import Identity, PeerId, parse_peer_untrusted, peer_text
from p2p.nat.lan_config import LanConfig
from p2p.net.tcp import TcpTransport
from p2p.node import Node
from p2p.wire.multiaddr import split_peer_untrusted

if TYPE_CHECKING:
    from p2p.net.seam import Stream
    from tests.helpers.oracle import Json

ECHO: Final = "/test/echo/1"
PORT: Final = 4001
TRY_S: Final = 1.0
"""Patience of somebody who asks again and again."""
ENDINGS: Final = (P2pError, trio.BrokenResourceError, trio.ClosedResourceError)


async def echo(stream: Stream) -> None:
    """Send everything back."""
    while data := await stream.receive_some():
        await stream.send_all(data)


class Driven:
    """A node and the acts that a test may ask for."""

    def __init__(self, seed: int, reachability: Literal["auto", "public", "private"]) -> None:
        config = replace(
            P2pConfig.wan(),
            listen=(f"/ip4/0.0.0.0/tcp/{PORT}", f"/ip6/::/tcp/{PORT}"),
            reachability=reachability,
            local_net=LanConfig(discovery=False, announce=False),
        )
        identity = Identity.from_seed(seed.to_bytes(4, "big") * 8)
        self.node = Node(identity, config, SystemEnv(), [TcpTransport(config)])
        self.node.set_members(lambda peer: True)  # noqa: ARG005 - everybody
        self.node.fabric.handle(ECHO, echo, per_peer_max=64)
        self.held: dict[PeerId, Stream] = {}

    async def act(self, message: dict[str, Json]) -> Json:
        """Do what a line asks for."""
        fabric = self.node.fabric
        peer = _peer(message)
        match message["act"]:
            case "addrs":
                return list(fabric.addrs())
            case "paths":
                return {peer_text(each): info.path for each, info in fabric.peers().items()}
            case "via":
                return fabric.peers()[peer].addr
            case "meet":
                addrs = [str(addr) for addr in cast("list[Json]", message["addrs"])]
                await fabric.connect(peer, addrs)
                path = fabric.peers()[peer].path
                self.held[peer] = await fabric.open(peer, ECHO)
                return [path, await self._until_direct(peer, float(str(message["limit_s"])))]
            case "pin":
                self.node.pin(peer, [str(addr) for addr in cast("list[Json]", message["addrs"])])
                return None
            case "ask":
                fresh = await fabric.open(peer, ECHO) if message["fresh"] else self.held[peer]
                return await _ask(fresh, str(message["data"]))
            case "traffic":
                return await self._traffic(peer)
            case "report":
                report = self.node.report()
                assert report.traversal is not None
                state = report.traversal.reachability.state.value
                return {"state": state, "counters": dict(report.counters)}
            case other:
                return f"no such act: {other}"

    async def _until_direct(self, peer: PeerId, limit_s: float) -> Json:
        """Seconds until `peer` is reached directly; None if it never was in `limit_s`."""
        start = trio.current_time()
        events = self.node.fabric.events()
        with trio.move_on_after(limit_s):
            while True:
                info = self.node.fabric.peers().get(peer)
                if info is not None and info.path == "direct":
                    return trio.current_time() - start
                await events.receive()
        return None

    async def _traffic(self, peer: PeerId) -> float:
        """Seconds until something sent to `peer` came back, asking again and again."""
        start = trio.current_time()
        while True:
            with trio.move_on_after(TRY_S), contextlib.suppress(*ENDINGS):
                await _ask(await self.node.fabric.open(peer, ECHO), "anybody?")
                return trio.current_time() - start
            await trio.sleep(0.05)

    async def run(self, relays: list[str]) -> None:
        """Serve lines until stdin ends."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.node.run)
            for relay in relays:
                addr, peer = split_peer_untrusted(relay)
                assert peer is not None
                self.node.pin(peer, [addr])
            _say({"ready": peer_text(self.node.id)})
            buffer = b""
            async for chunk in trio.lowlevel.FdStream(os.dup(0)):
                *lines, buffer = (buffer + bytes(chunk)).split(b"\n")
                for line in lines:
                    nursery.start_soon(self._answer, cast("dict[str, Json]", json.loads(line)))
            nursery.cancel_scope.cancel()

    async def _answer(self, message: dict[str, Json]) -> None:
        try:
            _say({"n": message["n"], "ok": await self.act(message)})
        except ENDINGS as error:
            _say({"n": message["n"], "error": f"{type(error).__name__}: {error}"})


async def _ask(stream: Stream, text: str) -> str:
    data = text.encode()
    await stream.send_all(data)
    got = b""
    while len(got) < len(data):
        more = await stream.receive_some()
        if not more:
            raise trio.BrokenResourceError("the stream ended")
        got += more
    return got.decode()


def _peer(message: dict[str, Json]) -> PeerId:
    return parse_peer_untrusted(str(message["peer"])) if "peer" in message else PeerId(b"")


def _say(message: dict[str, Json]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    seed, reachability, *relays = sys.argv[1:]
    driven = Driven(int(seed), cast("Literal['auto', 'public', 'private']", reachability))
    trio.run(driven.run, relays)
