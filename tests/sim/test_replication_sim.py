"""Three to five replicating nodes, a network that breaks, and then the demand of equal sets.

All choices come from the seed: who writes, who is cut off one way or both, who restarts from its
disk. First faults, then everything heals and equality is demanded within a bound of virtual time.
"""

from __future__ import annotations

import copy
import hashlib
import random
from typing import TYPE_CHECKING

import pytest
import trio
from typing_extensions import override

from p2p.replication.ops import Role
from tests.helpers.det import run_seeded
from tests.helpers.mesh import Mesh, wait_until
from tests.helpers.sometimes import Sometimes

if TYPE_CHECKING:
    from p2p.replication.config import ReplicationConfig
    from p2p.replication.memstore import MemDisk
    from tests.helpers.mesh import Peer

STEPS = 24
SEEDS = range(20)


def some_slow(count: int, *, fast: int) -> list[object]:
    """Seeds, the later ones for the slow layer."""
    late = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(fast, count)]
    return [*range(fast), *late]


class World:
    """One run.

    Args:
        seed: of all choices.
        sometimes: counts of what happened.
        config: replication's settings.
    """

    kinds = ("write", "write", "write", "cut", "one_way", "heal", "restart")
    heal_limit_s = 240.0

    def __init__(
        self, seed: int, sometimes: Sometimes, config: ReplicationConfig | None = None
    ) -> None:
        self.rng = random.Random(f"world/{seed}")
        self.mesh = Mesh(seed, config)
        self.sometimes = sometimes
        self.group = b""
        self.acknowledged: list[str] = []
        self.alive: dict[str, trio.CancelScope] = {}
        self.peers: list[Peer] = [self.mesh.peer(f"n{i}") for i in range(self.rng.randint(3, 5))]

    async def live(self, peer: Peer, *, task_status: trio.TaskStatus[None]) -> None:
        """Run a node until it is stopped."""
        with trio.CancelScope() as scope:
            self.alive[peer.name] = scope
            async with peer.running():
                task_status.started()
                await trio.sleep_forever()

    async def main(self) -> str:
        """Found, join, break, heal; the trace."""
        async with trio.open_nursery() as nursery:
            for peer in self.peers:
                await nursery.start(self.live, peer)
            await self.found()
            for _ in range(STEPS):
                await self.step(nursery)
                await trio.sleep(self.rng.uniform(0, 20))
            self.mesh.net.heal()
            await self.converge()
            trace = self.trace()
            nursery.cancel_scope.cancel()
        return trace

    async def found(self) -> None:
        """The first node founds, the others join by ticket."""
        first = self.peers[0]
        self.group = (await first.replication.create_group("home", home=True)).group
        for peer in self.peers[1:]:
            role = self.rng.choice([Role.WRITE, Role.ADMIN])
            invite = await first.replication.create_invite(self.group, role=role)
            joined = await peer.replication.join(invite.ticket)
            assert joined.state == "member"

    async def step(self, nursery: trio.Nursery) -> None:
        """One random thing."""
        kind = self.rng.choice(self.kinds)
        a, b = self.rng.sample(self.peers, 2)
        if kind == "write":
            for _ in range(self.rng.choice([1, 1, 5, 30])):
                text = f"{a.name}-{len(self.acknowledged)}"
                await a.write(self.group, text)
                self.acknowledged.append(text)
        elif kind == "restart":
            self.alive[a.name].cancel()
            await trio.sleep(self.rng.uniform(0.1, 30))
            await nursery.start(self.live, a)
        elif kind == "heal":
            self.mesh.net.heal(a.ip, b.ip)
        elif kind in {"cut", "one_way"}:
            self.mesh.net.partition(a.ip, b.ip, symmetric=kind == "cut")
        else:
            await self.other(kind, a, nursery)
        self.sometimes(kind)

    async def other(self, kind: str, a: Peer, nursery: trio.Nursery) -> None:
        """What only some worlds do."""
        raise AssertionError(f"{kind} of {a.name} in {nursery}")

    async def converge(self) -> None:
        """All nodes hold the same sets and every acknowledged text."""

        def equal() -> bool:
            return len({peer.roots(self.group) for peer in self.peers}) == 1

        await wait_until(equal, self.heal_limit_s, step_s=1.0)
        expected = sorted(self.acknowledged)
        await wait_until(lambda: all(peer.texts(self.group) == expected for peer in self.peers), 60)
        for peer in self.peers:
            assert not peer.named("record.refused"), "honest records were refused"
            assert not peer.named("fork.detected"), "an honest log forked"

    def trace(self) -> str:
        """Everything the nodes told, as one hash."""
        digest = hashlib.sha256()
        for peer in self.peers:
            for event in peer.events:
                digest.update(f"{event.name} {sorted(event.data.items())}".encode())
            digest.update(str(peer.roots(self.group)).encode())
        digest.update(str(trio.current_time()).encode())
        return digest.hexdigest()


class ClockWorld(World):
    """Some clocks are wrong by up to an hour, and jump."""

    kinds = ("write", "write", "write", "cut", "heal", "restart", "clock", "clock")
    heal_limit_s = 2 * 3600.0 + 300

    @override
    async def other(self, kind: str, a: Peer, nursery: trio.Nursery) -> None:
        a.env.offset_ms = self.rng.randint(-3_600_000, 3_600_000)

    @override
    async def converge(self) -> None:
        self.check_clocks()
        for peer in self.peers:
            peer.env.offset_ms = 0
        await super().converge()
        self.check_clocks()

    def check_clocks(self) -> None:
        """Nobody's clock was moved over ten minutes ahead by somebody else."""
        for peer in self.peers:
            foreign = [
                row.record.hlc >> 16
                for row in peer.disk.rows.values()
                if row.record.author != peer.id
            ]
            latest = peer.env.wall_ms_start + int(trio.current_time() * 1000) + 3_600_000
            assert max(foreign, default=0) <= latest + 600_000
        if any(peer.named("clock.skew") for peer in self.peers):
            self.sometimes("held")


class ImageWorld(World):
    """Nodes come back from old images of their disk, some after going on without the others."""

    kinds = ("write", "write", "write", "cut", "heal", "image", "restore", "invite", "restart")

    def __init__(self, seed: int, sometimes: Sometimes) -> None:
        super().__init__(seed, sometimes)
        self.images: dict[str, MemDisk] = {}

    @override
    async def other(self, kind: str, a: Peer, nursery: trio.Nursery) -> None:
        if kind == "image":
            self.images[a.name] = copy.deepcopy(a.disk)
        elif kind == "invite":
            if a.replication.groups()[0].role == Role.ADMIN:
                await a.replication.create_invite(self.group)
        elif a.name in self.images:
            self.alive[a.name].cancel()
            await trio.sleep(1)
            a.disk = copy.deepcopy(self.images[a.name])
            await nursery.start(self.live, a)
            self.sometimes("restored")

    @override
    async def converge(self) -> None:
        """Equal sets. What only an image knew may be gone; what was forked is void everywhere."""

        def equal() -> bool:
            return len({peer.roots(self.group) for peer in self.peers}) == 1

        await wait_until(equal, self.heal_limit_s, step_s=1.0)
        texts = self.peers[0].texts(self.group)
        assert all(peer.texts(self.group) == texts for peer in self.peers)
        for peer in self.peers:
            assert not peer.named("record.refused"), "honest records were refused"
            assert len(peer.replication.members(self.group)) == len(self.peers), "a member was lost"
            if peer.named("own_log.restored"):
                self.sometimes("noticed")


def run(seed: int, sometimes: Sometimes) -> str:
    """One run of a seed."""
    return run_seeded(World(seed, sometimes).main, seed=seed)


@pytest.fixture(scope="module")
def sometimes() -> Sometimes:
    """Counts over all seeds of this module."""
    return Sometimes("write", "cut", "one_way", "heal", "restart")


@pytest.fixture(scope="module")
def clock_faults() -> Sometimes:
    """Counts over the runs with wrong clocks."""
    return Sometimes("write", "cut", "heal", "restart", "clock", "held")


@pytest.fixture(scope="module")
def image_faults() -> Sometimes:
    """Counts over the runs with old images."""
    names = ("write", "cut", "heal", "restart", "image", "restore", "invite")
    return Sometimes(*names, "restored", "noticed")


@pytest.mark.parametrize("seed", SEEDS)
def test_nodes_agree_after_partitions_and_restarts(seed: int, sometimes: Sometimes) -> None:
    run(seed, sometimes)


@pytest.mark.parametrize("seed", some_slow(8, fast=3))
def test_nodes_agree_whatever_their_clocks_say(seed: int, clock_faults: Sometimes) -> None:
    run_seeded(ClockWorld(seed, clock_faults).main, seed=seed)


@pytest.mark.parametrize("seed", some_slow(24, fast=12))
def test_nodes_agree_after_old_images_came_back(seed: int, image_faults: Sometimes) -> None:
    run_seeded(ImageWorld(seed, image_faults).main, seed=seed)


def test_every_fault_happened(sometimes: Sometimes) -> None:
    sometimes.check()


def test_every_wrong_clock_and_old_image_happened(
    clock_faults: Sometimes, image_faults: Sometimes
) -> None:
    clock_faults.check()
    image_faults.check()


def test_the_same_seed_gives_the_same_trace() -> None:
    ignored = Sometimes("write", "cut", "one_way", "heal", "restart")
    assert run(3, ignored) == run(3, ignored)
    assert run(3, ignored) != run(4, ignored)
