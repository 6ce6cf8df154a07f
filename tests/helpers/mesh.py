"""Whole replicating nodes over MemNet: real keys and records, a store in memory, no wire crypto."""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
from typing_extensions import override

from p2p.env import SeededEnv
from p2p.identity import Identity
from p2p.identity import verify as verify_signature
from p2p.net.memory import MemNet
from p2p.node import Node
from p2p.replication.again import as_it_is
from p2p.replication.config import ReplicationConfig
from p2p.replication.memstore import MemDisk, MemStore
from p2p.replication.ops import Role
from p2p.replication.sealing import GroupSealer
from p2p.replication.service import Replication
from tests.helpers.chains import PlainDraft
from tests.helpers.det import run_seeded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from p2p.identity import PeerId, Verifier
    from p2p.net.memory_fabric import MemFabric
    from p2p.replication.again import Readdress
    from p2p.replication.events import ReplicationEvent
    from p2p.replication.store import RecordStore


class OffsetEnv(SeededEnv):
    """A world whose wall clock is wrong by a settable amount."""

    offset_ms = 0

    @override
    def wall_ms(self) -> int:
        """Virtual Unix milliseconds, plus the error."""
        return super().wall_ms() + self.offset_ms


@dataclass(eq=False)
class Peer:
    """One node: what survives a restart, and what runs now."""

    net: MemNet
    name: str
    ip: str
    identity: Identity
    env: OffsetEnv
    config: ReplicationConfig
    disk: MemDisk = field(default_factory=MemDisk)
    events: list[ReplicationEvent] = field(default_factory=list)
    addr: str = ""
    book: dict[PeerId, list[str]] | None = None
    verify: Verifier = verify_signature
    readdress: Readdress = as_it_is

    def new_fabric(self) -> MemFabric:
        """The fabric of this start, at the next free port."""
        return self.net.fabric(self.identity.id, self.ip, env=self.env)

    def new_store(self) -> MemStore:
        """The store of this start, over the disk that stays."""
        return MemStore(self.sealer, self.disk)

    def build(self, make_store: Callable[[GroupSealer], RecordStore] | None = None) -> None:
        """Make the parts, as after a start of the process.

        Args:
            make_store: another store than the one in memory.
        """
        fabric = self.new_fabric()
        if self.book is not None:
            # As the real node: a restart keeps its port and its address book.
            del self.net.fabrics[fabric.addr]
            fabric.addr = self.addr
            self.net.fabrics[self.addr] = fabric
            for peer, addrs in self.book.items():
                fabric.learn(peer, addrs)
        self.addr = fabric.addr
        self.book = fabric._book
        self.node = Node.over(fabric, self.identity)
        self.sealer = GroupSealer(self.identity, self.env)
        self.store = self.new_store()
        store = self.store if make_store is None else make_store(self.sealer)
        self.replication = Replication(
            self.node,
            store,
            self.sealer,
            self.env,
            self.config,
            verify=self.verify,
            readdress=self.readdress,
        )
        self.replication.subscribe(self.events.append)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Peer]:
        """Build, load and run until the block ends; a second time is a restart."""
        self.build()
        await self.replication.load()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.node.run)
            await nursery.start(self.replication.run)
            yield self
            nursery.cancel_scope.cancel()

    @property
    def id(self) -> bytes:
        """Peer id."""
        return self.identity.id

    async def write(self, group: bytes, text: str) -> bytes:
        """Append one entry; its id."""
        (ident,) = await self.store.append(group, [PlainDraft(32, text.encode())])
        return ident

    def texts(self, group: bytes) -> list[str]:
        """Bodies that count and are open, sorted."""
        return sorted(
            row.plain.decode()
            for row in self.disk.rows.values()
            if row.record.group == group
            and row.record.kind == 32
            and row.state == "live"
            and row.plain is not None
        )

    def roots(self, group: bytes) -> tuple[str, str]:
        """Hashes of both lanes' sets, for comparison between nodes."""
        control, data = (self.store.index_now(group, lane).packed for lane in (0, 1))
        return hashlib.sha256(control).hexdigest()[:16], hashlib.sha256(data).hexdigest()[:16]

    def named(self, name: str) -> list[ReplicationEvent]:
        """Events of that name."""
        return [event for event in self.events if event.name == name]


class Mesh:
    """A network and its nodes.

    Args:
        seed: of everything.
        config: replication's settings.
        latency_s: one-way delay of every link.
        jitter_s: upper bound of its extra delay.
        loss: probability that a packet has to be sent again.
    """

    def __init__(
        self,
        seed: int = 0,
        config: ReplicationConfig | None = None,
        *,
        latency_s: float = 0.001,
        jitter_s: float = 0.0,
        loss: float = 0.0,
    ) -> None:
        self.seed = seed
        self.env = SeededEnv(seed, "net", trio.current_time)
        self.net = MemNet(self.env, latency_s=latency_s, jitter_s=jitter_s, loss=loss)
        self.config = config or ReplicationConfig.test()

    def peer(self, name: str, *, config: ReplicationConfig | None = None) -> Peer:
        """A new node; nothing runs yet."""
        number = len(self.net.__dict__.setdefault("_test_peers", [])) + 1
        self.net.__dict__["_test_peers"].append(name)
        env = OffsetEnv(self.seed, name, trio.current_time)
        return Peer(
            self.net,
            name,
            f"10.0.0.{number}",
            Identity.generate(SeededEnv(self.seed, f"{name}/key", trio.current_time).rng),
            env,
            config or self.config,
        )


async def wait_until(
    condition: Callable[[], bool], limit_s: float = 120.0, *, step_s: float = 0.05
) -> None:
    """Let virtual time pass until the condition holds; fail when it does not in time."""
    deadline = trio.current_time() + limit_s
    while not condition():
        if trio.current_time() > deadline:
            raise AssertionError("the condition did not come true in time")
        await trio.sleep(step_s)


# ---- scenes


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """Run a scene under virtual time."""
    run_seeded(scene, seed=1)


@asynccontextmanager
async def nodes(*names: str, config: ReplicationConfig | None = None) -> AsyncIterator[list[Peer]]:
    """Running nodes."""
    mesh = Mesh(5, config)
    peers = [mesh.peer(name) for name in names]
    async with AsyncExitStack() as stack:
        for peer in peers:
            await stack.enter_async_context(peer.running())
        yield peers


async def pair_up(a: Peer, b: Peer, *, name: str = "team", role: Role = Role.WRITE) -> bytes:
    """A founds, B joins; the group."""
    group = (await a.replication.create_group(name)).group
    invite = await a.replication.create_invite(group, role=role)
    joined = await b.replication.join(invite.ticket)
    assert joined.state == "member"
    return group


def roles(peer: Peer, group: bytes) -> dict[bytes, Role]:
    """Members and roles as the peer sees them."""
    return {m.member: m.role for m in peer.replication.members(group)}
