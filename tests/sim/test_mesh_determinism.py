"""A hundred whole nodes with real keys, Noise and Yamux: one seed, one history.

Every byte that leaves a host, every event a fabric reports and every reply is hashed with its
virtual time. Two runs with one seed must agree to the last bit, whatever Python's hash seed is;
another seed must not (else the trace would prove nothing).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from typing_extensions import override

from p2p.config import P2pConfig
from p2p.env import SeededEnv
from p2p.errors import TransientError
from p2p.identity import Identity, PeerId
from p2p.net.memory import MemNet
from p2p.node import Node
from p2p.rpc_mesh import ECHO, Echo
from tests.helpers.det import run_seeded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2p.net.memory import MemTransport
    from p2p.net.seam import Accept, Addr

ROOT = Path(__file__).resolve().parents[2]
NODES = 100
LINKS = 2
"""Peers each node is told of; with those that are told of it, four on average."""


@dataclass
class Trace:
    """A running hash of what happened, and enough counts to see that something did."""

    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    counts: dict[str, int] = field(default_factory=dict)

    def note(self, what: str, number: int, data: bytes = b"") -> None:
        """Something happened now."""
        self.counts[what] = self.counts.get(what, 0) + 1
        head = f"{trio.current_time():.9f} {what} {number} {len(data)} "
        self.digest.update(head.encode() + data)


class NotedStream(trio.abc.HalfCloseableStream):
    """A raw stream whose outgoing bytes are noted."""

    def __init__(self, stream: trio.abc.Stream, number: int, trace: Trace) -> None:
        assert isinstance(stream, trio.abc.HalfCloseableStream)
        self._stream = stream
        self._number = number
        self._trace = trace

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._trace.note("bytes", self._number, bytes(data))
        await self._stream.send_all(data)

    @override
    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    @override
    async def send_eof(self) -> None:
        await self._stream.send_eof()

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    @override
    async def aclose(self) -> None:
        await self._stream.aclose()


class NotedTransport:
    """A host's transport whose outgoing bytes are noted."""

    def __init__(self, host: MemTransport, number: int, trace: Trace) -> None:
        self._host = host
        self._number = number
        self._trace = trace
        self.path = host.path

    def dials(self, addr: Addr) -> bool:
        return self._host.dials(addr)

    async def dial(
        self, addr: Addr, *, peer: PeerId | None = None, reuse_port: bool = False
    ) -> trio.abc.Stream:
        stream = await self._host.dial(addr, peer=peer, reuse_port=reuse_port)
        return NotedStream(stream, self._number, self._trace)

    async def listen(
        self, addr: Addr, accept: Accept, *, task_status: trio.TaskStatus[Addr]
    ) -> None:
        async def noted(stream: trio.abc.Stream, remote: Addr) -> None:
            await accept(NotedStream(stream, self._number, self._trace), remote)

        await self._host.listen(addr, noted, task_status=task_status)


class World:
    """The nodes, their network and what goes wrong with it."""

    def __init__(self, seed: int, size: int) -> None:
        self.trace = Trace()
        self.env = SeededEnv(seed, "world", trio.current_time)
        self.net = MemNet(SeededEnv(seed, "net", trio.current_time), latency_s=0.02, jitter_s=0.03)
        self.nodes = [self._node(seed, number) for number in range(size)]
        self.number_of: Mapping[PeerId, int] = {
            node.id: number for number, node in enumerate(self.nodes)
        }

    def ip(self, number: int) -> str:
        return f"10.1.{number // 250}.{number % 250 + 1}"

    def _node(self, seed: int, number: int) -> Node:
        env = SeededEnv(seed, f"node {number}", trio.current_time)
        ip = self.ip(number)
        config = replace(P2pConfig.test(), listen=(f"/ip4/{ip}/tcp/4001",))
        transport = NotedTransport(self.net.host(ip), number, self.trace)
        node = Node(Identity.generate(env.rng), config, env, [transport])
        node.set_members(lambda peer: True)  # noqa: ARG005 - everybody
        return node

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number, node in enumerate(self.nodes):
                nursery.start_soon(self._note_events, number)
                await nursery.start(node.run)
            await self._introduce()
            await trio.sleep(3)
            async with trio.open_nursery() as callers:
                callers.start_soon(self._disturb)
                for number in range(len(self.nodes)):
                    callers.start_soon(self._chat, number)
            nursery.cancel_scope.cancel()

    async def _note_events(self, number: int) -> None:
        async for event in self.nodes[number].fabric.events():
            peer = getattr(event, "peer", None)
            self.trace.note(type(event).__name__, number, peer or b"")

    async def _introduce(self) -> None:
        for number, node in enumerate(self.nodes):
            for other in self.env.rng.sample(range(len(self.nodes)), LINKS):
                if other != number:
                    node.pin(self.nodes[other].id, [f"/ip4/{self.ip(other)}/tcp/4001"])

    async def _chat(self, number: int) -> None:
        """Call a few neighbours, some of them at the same time as they call us."""
        node = self.nodes[number]
        for turn in range(2):
            for peer in sorted(node.fabric.peers()):
                data = bytes([turn]) * (10 + 3000 * (number % 3))
                try:
                    reply = await node.rpc.call(peer, ECHO, Echo(data), timeout_s=60)
                except TransientError as error:
                    self.trace.note(type(error).__name__, number)
                else:
                    assert reply.data == data
                    self.trace.note("reply", number, self.number_of[peer].to_bytes(2, "big"))

    async def _disturb(self) -> None:
        """Part the network at the wrong moment, long enough to be noticed, and mend it."""
        half = len(self.nodes) // 10
        lonely = [self.ip(number) for number in range(half)]
        others = [self.ip(number) for number in range(half, len(self.nodes))]
        self.net.split(lonely, others)
        await trio.sleep(30)
        self.net.heal()
        await trio.sleep(30)


def history(seed: int, size: int = NODES) -> tuple[str, dict[str, int]]:
    """The hash of a run and its counts."""
    world: list[World] = []

    async def main() -> None:
        world.append(World(seed, size))
        await world[0].run()

    run_seeded(main, seed=seed)
    return world[0].trace.digest.hexdigest(), world[0].trace.counts


def repeated(size: int) -> str:
    """A lively history that one seed repeats to the last bit; returns its hash."""
    first, counts = history(1, size)
    assert counts["PeerUp"] > 2 * size, counts
    assert counts["PeerDown"] > size // 10, counts
    assert counts["reply"] > 4 * size, counts
    assert counts["bytes"] > 20 * size, counts
    again, counts_again = history(1, size)
    assert counts_again == counts
    assert again == first
    return first


def test_a_seed_repeats_and_another_differs() -> None:
    assert repeated(16) != history(2, 16)[0]


@pytest.mark.slow
def test_a_hundred_nodes_with_real_crypto_repeat_and_other_seeds_differ() -> None:
    assert repeated(NODES) != history(2)[0]


def test_the_history_does_not_depend_on_the_hash_seed() -> None:
    def run(hash_seed: str) -> str:
        done = subprocess.run(
            [sys.executable, __file__, "7", "12"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            cwd=ROOT,
            text=True,
        )
        return done.stdout

    assert run("1") == run("2") != ""


if __name__ == "__main__":
    print(*history(int(sys.argv[1]), int(sys.argv[2])))
