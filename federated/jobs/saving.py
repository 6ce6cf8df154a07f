"""What a worker writes to the disk: results that wait for their acknowledgement.

Whatever waits longer than a second is kept, so that a kill takes about as much work as writing it
would cost. Source: docs/specs/jobs.md s.6.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from federated.jobs.held import HELD_MS, Put

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federated.jobs.bulk import Bulk
    from federated.jobs.desk import Desk
    from federated.jobs.held import Held
    from federated.jobs.items import Ref, TaskResult
    from p2p.env import Env
    from p2p.identity import PeerId

log = logging.getLogger("covey.jobs.worker")

SAVE_AFTER_S: Final = 1.0
"""What took longer, or waits longer for its acknowledgement, is written to the disk: the work that
a kill can take is then about as much as writing would cost. Guess."""
PRUNE_S: Final = 3600.0


class Saving:
    """Keeps results, and forgets them.

    Args:
        desks: of all coordinators.
        held: the tables; None: nothing is kept.
        env: clocks.
        bulk: lets go of large answers.

    Attributes:
        wanted: set when there may be something to write or to forget.
    """

    def __init__(
        self, desks: Mapping[PeerId, Desk], held: Held | None, env: Env, bulk: Bulk
    ) -> None:  # fmt: skip
        self._desks = desks
        self._held = held
        self._env = env
        self._bulk = bulk
        self.wanted = trio.Event()

    def put(self, desk: Desk, ref: Ref, result: TaskResult) -> Put:
        """A result, as it is kept."""
        return Put(bytes(desk.peer), ref, desk.epoch, result, self._env.wall_ms() + HELD_MS)

    async def saved(self, puts: Sequence[Put], drops: Sequence[tuple[bytes, Ref]]) -> bool:
        """Change what is on the disk; False if it cannot be."""
        if self._held is None:
            return False
        try:
            await self._held.change(puts, drops)
        except Exception:
            # A full disk keeps results in memory; nobody's work stops for that.
            log.exception("results_not_kept", extra={"f": {"results": len(puts)}})
            return False
        return True

    async def run(self) -> None:
        """Write what waits for its acknowledgement; forget what has it."""
        while True:
            await self.wanted.wait()
            self.wanted = trio.Event()
            await trio.sleep(SAVE_AFTER_S)
            await self.once()
            for desk in self._desks.values():
                spent, desk.spent = desk.spent, []
                for ref, rows in spent:
                    await self._bulk.release(ref, rows)

    async def once(self) -> None:
        """Write what has waited long enough, and forget what is wanted no more."""
        old = self._env.now() - SAVE_AFTER_S / 2
        waiting = [
            (desk, ref, one)
            for desk in self._desks.values()
            for ref, one in desk.unacked.items()
            if not one.on_disk and one.since <= old
        ]
        drops: list[tuple[bytes, Ref]] = []
        for desk in self._desks.values():
            drops += [(bytes(desk.peer), ref) for ref in desk.drops]
            desk.drops = []
        if not waiting and not drops:
            return
        puts = [self.put(desk, ref, one.result) for desk, ref, one in waiting]
        if await self.saved(puts, drops):
            for desk, ref, one in waiting:
                one.on_disk = True
                if desk.unacked.get(ref) is not one:
                    desk.drops.append(ref)
        for desk in self._desks.values():
            if desk.scope is None and desk.loaded and not desk.drops:
                desk.unload()
            elif desk.drops or any(not one.on_disk for one in desk.unacked.values()):
                self.wanted.set()

    async def prune(self) -> None:
        """Remove what is too old, now and then."""
        held = self._held
        if held is None:
            return
        while True:
            try:
                await held.prune(self._env.wall_ms())
                await self._bulk.prune(self._env.wall_ms())
            except Exception:
                # It is tried again; what is too old is not read either.
                log.exception("held_not_pruned")
            await trio.sleep(PRUNE_S)
