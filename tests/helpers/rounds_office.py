"""Nodes that run rounds with each other over a network in memory, on a virtual clock.

async def scenario(team: Team) -> None:
    one, two = await team.seat(1), await team.seat(2)
    ...

play_team(scenario, tmp_path, seed=1)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from federated.rounds.service import Rounds
from memory.storage.db import Db
from tests.helpers.det import run_seeded
from tests.helpers.fabrics import MEM, Kit
from tests.helpers.jobs_kit import FakeDoor, Office
from tests.helpers.memories import InlineOffload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.helpers.fabrics import NodeMember


@dataclass
class Chair:
    """A running node with its rounds."""

    member: NodeMember
    rounds: Rounds
    scope: trio.CancelScope
    told: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Team:
    """All nodes of a scenario."""

    kit: Kit
    folder: Path
    office: Office
    chairs: dict[int, Chair] = field(default_factory=dict)
    starts: int = 0

    async def restart(self, number: int) -> Chair:
        """Kill a node and start it anew on the same files."""
        old = self.chairs[number]
        old.scope.cancel()
        old.member.scope.cancel()
        await trio.sleep(1)
        self.office.ids.remove(old.member.id)
        del self.chairs[number]
        return await self.seat(number)

    async def seat(self, number: int, *, owner: bytes | None = None) -> Chair:
        """A running node, connected with those before it."""
        member = await self.kit.node(number)
        if owner is not None:
            self.office.owners[member.id] = owner
        self.office.ids.append(member.id)
        for chair in self.chairs.values():
            await self.kit.connect(member, chair.member)
        self.starts += 1
        env = self.kit._env(f"rounds {number}, start {self.starts}")
        db = Db(
            self.folder / f"rounds{number}.db", env, inline=True, migrations="federated.migrations"
        )
        models = self.folder / f"models{number}"
        rounds = Rounds(
            FakeDoor(member, self.office),
            db,
            env,
            InlineOffload(),
            models,
            self.folder / f"pool{number}.sock",
        )
        chair = Chair(member, rounds, trio.CancelScope())
        rounds.on_event(lambda _, kind, detail, __: chair.told.append((kind, detail)))
        await self.kit.nursery.start(_run, db, chair)
        self.chairs[number] = chair
        return chair


async def _run(db: Db, chair: Chair, *, task_status: trio.TaskStatus[None]) -> None:
    with chair.scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(db.run)
            await nursery.start(chair.rounds.run)
            task_status.started()


def play_team(
    scenario: Callable[[Team], Awaitable[None]], folder: Path, *, seed: int, within_s: float = 900
) -> None:
    """Run a scenario under a virtual clock."""

    async def main() -> None:
        with trio.fail_after(within_s):
            async with trio.open_nursery() as nursery:
                kit = Kit(MEM, nursery)
                await scenario(Team(kit, folder, Office(kit, folder)))
                nursery.cancel_scope.cancel()

    run_seeded(main, seed=seed)
