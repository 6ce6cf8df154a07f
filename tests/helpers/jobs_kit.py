"""An office of nodes that run jobs for each other, over a network in memory.

    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.finished(ident)

    play_office(scenario, tmp_path, seed=1)

Everybody is a device of one owner unless `owners` or `strangers` say otherwise. Virtual clock,
seeded scheduler, SQLite in the loop: the same seed gives the same run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import trio

from federated.jobs.handlers.builtin import builtins
from federated.jobs.handlers.registry import ANYBODY, Handlers
from federated.jobs.service import Jobs
from federated.jobs.state import RowState
from memory.storage.db import Db
from tests.helpers.det import run_seeded
from tests.helpers.fabrics import MEM, Kit
from tests.helpers.memories import InlineOffload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from federated.jobs.engines.seam import Engine
    from federated.jobs.handlers.base import Handler, PureHandler
    from federated.jobs.manners import Manners
    from federated.jobs.types import JobId
    from federated.seams import GroupId, TrustClass
    from p2p.blobs.service import Blobs
    from p2p.identity import PeerId
    from p2p.net.seam import Fabric
    from p2p.rpc import Rpc
    from tests.helpers.fabrics import NodeMember


GROUP = b"g" * 32
"""The one group everybody is in who is somebody."""


class FakeDoor:
    """A `Mesh` over a node of the kit, with who is who as the test says."""

    def __init__(self, member: NodeMember, office: Office) -> None:
        self._member = member
        self._office = office

    @property
    def id(self) -> PeerId:
        return self._member.id

    @property
    def fabric(self) -> Fabric:
        return self._member.fabric

    @property
    def rpc(self) -> Rpc:
        return self._member.rpc

    def sign(self, domain: bytes, body: bytes) -> bytes:
        return self._member.node.sign(domain, body)

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        return self._member.node.verify(peer, domain, body, signature)

    def trust(self, peer: PeerId, group: GroupId | None) -> TrustClass:  # noqa: ARG002
        if peer in self._office.nobodies:
            return "none"
        return "own" if self.owner(peer, None) == self.owner(self.id, None) else "stranger"

    def owner(self, peer: PeerId, group: GroupId | None) -> bytes:  # noqa: ARG002
        return self._office.owners.get(peer, b"o" * 32)

    def members(self, group: GroupId | None) -> Sequence[PeerId]:  # noqa: ARG002
        return sorted(peer for peer in self._office.ids if peer != self.id)

    def shared_groups(self, peer: PeerId) -> Sequence[GroupId]:
        return [GROUP] if peer not in self._office.nobodies else []


@dataclass
class Desk:
    """A running node with its jobs."""

    member: NodeMember
    jobs: Jobs
    db: Db
    door: FakeDoor
    scope: trio.CancelScope
    blobs: Blobs

    @property
    def id(self) -> PeerId:
        return self.member.id

    async def table(self, ident: JobId) -> list[dict[str, object] | str]:
        """The rows of a job: answers, or reasons."""
        found: list[dict[str, object] | str] = []
        for row in await self.jobs.journal.rows(ident, 0, 100_000):
            if row.state is RowState.OK:
                assert row.value is not None
                found.append(msgspec.json.decode(row.value))
            else:
                found.append(row.reason or row.state.name)
        return found


@dataclass
class Office:
    """All nodes of a scenario."""

    kit: Kit
    folder: Path
    owners: dict[PeerId, bytes] = field(default_factory=dict)
    nobodies: set[PeerId] = field(default_factory=set)
    ids: list[PeerId] = field(default_factory=list)
    desks: dict[int, Desk] = field(default_factory=dict)
    starts: int = 0

    async def desk(
        self,
        number: int,
        *,
        handlers: Iterable[Handler | PureHandler] = (),
        slots: int = 2,
        owner: bytes | None = None,
        engines: Mapping[str, Callable[[], Engine]] | None = None,
        vfs: str | None = None,
        manners: Manners | None = None,
    ) -> Desk:
        """A running node, connected with those before it; `vfs`: what its jobs.db stands on."""
        member = await self.kit.node(number)
        if owner is not None:
            self.owners[member.id] = owner
        self.ids.append(member.id)
        desk = await self._start(member, number, handlers, slots, engines, vfs, manners)
        for other in self.desks.values():
            await self.kit.connect(member, other.member)
        self.desks[number] = desk
        return desk

    async def restart(self, desk: Desk, *, handlers: Iterable[Handler | PureHandler] = ()) -> Desk:
        """Kill a node and start it anew on the same journal."""
        number = desk.member.number
        desk.scope.cancel()
        desk.member.scope.cancel()
        await trio.sleep(1)
        member = await self.kit.node(number)
        fresh = await self._start(member, number, handlers, desk.jobs.worker.slots)
        for other in self.desks.values():
            if other is not desk:
                await self.kit.connect(member, other.member)
        self.desks[number] = fresh
        return fresh

    async def _start(
        self, member: NodeMember, number: int, handlers: Iterable[Handler | PureHandler],
        slots: int, engines: Mapping[str, Callable[[], Engine]] | None = None,
        vfs: str | None = None, manners: Manners | None = None,
    ) -> Desk:  # fmt: skip
        self.starts += 1
        env = self.kit._env(f"jobs {number}, start {self.starts}")
        db = Db(
            self.folder / f"jobs{number}.db", env, vfs=vfs, inline=True,
            migrations="federated.migrations",
        )  # fmt: skip
        door = FakeDoor(member, self)
        offered = {handler.info.id: handler for handler in (*builtins(), *handlers)}
        known = Handlers(
            [(handler, ANYBODY) for handler in offered.values()], named=lambda _name: None
        )
        folder = self.folder / f"blobs{number}"
        blobs = member.node.keep_blobs(folder, env, InlineOffload())
        blobs.set_readers(lambda _group, peer: peer not in self.nobodies)
        jobs = Jobs(
            door, db, env, InlineOffload(), known, slots=slots, engines=engines, blobs=blobs,
            manners=manners,
        )  # fmt: skip
        scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(db.run)
                    await nursery.start(jobs.run)
                    task_status.started()

        await self.kit.nursery.start(run)
        return Desk(member, jobs, db, door, scope, blobs)


def play_office(
    scenario: Callable[[Office], Awaitable[None]], folder: Path, *, seed: int, within_s: float = 900
) -> None:
    """Run a scenario under a virtual clock."""

    async def main() -> None:
        with trio.fail_after(within_s):
            async with trio.open_nursery() as nursery:
                await scenario(Office(Kit(MEM, nursery), folder))
                nursery.cancel_scope.cancel()

    run_seeded(main, seed=seed)
