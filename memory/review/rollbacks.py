"""Rollbacks, as the person handles them: a dry run, carrying it out, undoing it, the list.

What a rollback does to records is in `memory.review.rollback`. They are this machine's own.
Source: docs/specs/memory.md, *Rollback*.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, cast

from memory.errors import RefusedError
from memory.review import rollback as undoing
from memory.review import views
from memory.trust.muting import Rule
from memory.trust.subjects import find_subjects

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import apsw

    from memory.records.replica import Replica
    from memory.review.views import RolledBack
    from memory.seams import Env
    from memory.storage.db import Db
    from memory.storage.txn import Txn
    from memory.trust.subjects import Named

PLAN_LIFE_MS: Final = 3_600_000
"""A dry run may be executed for an hour: later it may no longer be what was looked at."""


class Progress(Protocol):
    """Where long work reports how far it is."""

    async def __call__(self, done: int, total: int | None, message: str) -> None:
        """Report `done` of `total` (None: unknown)."""
        ...


class Rollbacks:
    """Hides what an author wrote since a time, on this machine, and brings it back.

    Args:
        db: the open database.
        replica: the record store over it.
        env: clocks and random numbers.
        settle: folds anew what a rollback changed.
    """

    def __init__(
        self, db: Db, replica: Replica, env: Env, settle: Callable[[], Awaitable[None]]
    ) -> None:
        self._db = db
        self._replica = replica
        self._env = env
        self._settle = settle

    async def resume(self) -> None:
        """After a start: finish what a crash interrupted."""
        for rollback in await self._db.read(undoing.unfinished):
            await self._finish(rollback)

    async def make(
        self,
        wanted: str,
        since_ms: int,
        group: str | None = None,
        *,
        dry_run: bool = True,
        progress: Progress | None = None,
    ) -> RolledBack:
        """Hide what an author wrote since a time, on this machine; or say what that would hide.

        Args:
            wanted: the author: `agent@device` for one agent, a device's name for all of them.
            since_ms: Unix milliseconds.
            group: local name of one group, None for all.
            dry_run: only count, and return a token to execute it with.
            progress: told after each batch.

        Raises:
            RefusedError: `not_found`, or `invalid` (several authors, or yourself).
        """
        token = self._env.rng.randbytes(8).hex()

        def unit(txn: Txn) -> tuple[int, RolledBack]:
            connection = txn.connection
            rule, names = self._rule(connection, wanted, since_ms, group)
            counts = undoing.count(connection, rule)
            connection.execute(
                "INSERT INTO rollback(token, device, agent, grp, since_ms, at_ms, state)"
                " VALUES (?, ?, ?, ?, ?, ?, 'planned')",
                (token, rule.device, rule.agent, rule.grp, since_ms, self._env.wall_ms()),
            )
            row = connection.last_insert_rowid()
            return row, views.rolled_back(token, names, since_ms, "planned", counts)

        row, planned = await self._replica.transact(unit)
        if dry_run:
            return planned
        await self._set_state(row, "hiding")
        await self._finish(row, progress)
        planned.state = "done"
        return planned

    async def execute(self, token: str, progress: Progress | None = None) -> RolledBack:
        """Carry out a dry run; again for one that was carried out: what it hid.

        Raises:
            RefusedError: `not_found`, or `conflict` when it is too old or was undone.
        """
        row, state, at_ms = await self._rollback_of(token)
        if state in ("hiding", "done"):
            await self._finish(row, progress)
            return await self._view(
                token, row, "done", await self._db.read(lambda c: views.muted_counts(c, row))
            )
        if state != "planned":
            raise RefusedError("conflict", f"this rollback is {state} already")
        if self._env.wall_ms() - at_ms > PLAN_LIFE_MS:
            raise RefusedError("conflict", "this dry run is over an hour old: make a new one")
        counts = await self._db.read(lambda c: undoing.count(c, undoing.rule_of(c, row)))
        await self._set_state(row, "hiding")
        await self._finish(row, progress, sum(counts))
        return await self._view(token, row, "done", counts)

    async def undo(self, token: str, progress: Progress | None = None) -> RolledBack:
        """Bring back what a rollback hid.

        Raises:
            RefusedError: `not_found`, or `conflict` when nothing is hidden by it.
        """
        row, state, _ = await self._rollback_of(token)
        if state not in ("hiding", "done", "undoing"):
            raise RefusedError("conflict", "nothing is hidden by this rollback")
        hidden = await self._db.read(lambda c: views.muted_counts(c, row))
        await self._set_state(row, "undoing")
        await self._finish(row, progress, sum(hidden))
        return await self._view(token, row, "undone", hidden)

    async def listed(self) -> list[RolledBack]:
        """Every rollback made here, newest first, but dry runs."""
        return await self._db.read(views.rollbacks)

    def _rule(
        self, connection: apsw.Connection, wanted: str, since_ms: int, group: str | None
    ) -> tuple[Rule, list[str]]:
        found = find_subjects(connection, wanted)
        devices = {named.device for named in found}
        if len(devices) > 1:
            names = ", ".join(sorted(named.shown for named in found)[:4])
            raise RefusedError("invalid", f"{wanted} is on several devices: say which of {names}")
        agent = _agent_meant(found, wanted)
        if found[0].relation == "own" and not agent:
            raise RefusedError(
                "invalid",
                "name one agent of this machine: what you wrote yourself is taken back with"
                " `covey forget`",
            )
        grp = None
        if group is not None:
            known = connection.execute("SELECT n FROM grp WHERE name = ?", (group,)).get
            if known is None:
                raise RefusedError("not_found", f"there is no group {group} here: `covey group`")
            grp = cast("int", known)
        rule = Rule(0, found[0].device, agent, grp, since_ms)
        return rule, [named.shown for named in found]

    async def _rollback_of(self, token: str) -> tuple[int, str, int]:
        row = await self._db.read(
            lambda c: c.execute(
                "SELECT id, state, at_ms FROM rollback WHERE token = ?", (token,)
            ).fetchone()
        )
        if row is None:
            raise RefusedError(
                "not_found", "no rollback has this token: `covey rollback --list` shows them"
            )
        return int(row[0]), str(row[1]), int(row[2])

    async def _set_state(self, row: int, state: str) -> None:
        def unit(txn: Txn) -> None:
            # From this commit on it covers what arrives, and a crash cannot leave it half done.
            txn.lookups.clear()
            txn.connection.execute(
                "UPDATE rollback SET state = ?, cursor = 0, at_ms = ? WHERE id = ?",
                (state, self._env.wall_ms(), row),
            )

        await self._replica.transact(unit)

    async def _finish(
        self, row: int, progress: Progress | None = None, total: int | None = None
    ) -> None:
        done = 0
        while await self._replica.transact(partial(undoing.step, rollback=row)):
            done += undoing.BATCH
            if progress is not None:
                await progress(done, total, "records")
            self._env.fault("rollback.step")
        await self._settle()

    async def _view(self, token: str, row: int, state: str, counts: undoing.Counts) -> RolledBack:
        def read(connection: apsw.Connection) -> RolledBack:
            rule = undoing.rule_of(connection, row)
            names = views.names_of(connection, rule)
            return views.rolled_back(token, names, rule.since_ms, state, counts)

        return await self._db.read(read)


def _agent_meant(found: Sequence[Named], wanted: str) -> str | None:
    """The one agent that was named; None when the device was."""
    named = {one.agent for one in found}
    by_agent = any(wanted.strip().lower().partition("@")[0] == (a.lower() or "you") for a in named)
    return found[0].agent if by_agent and len(named) == 1 else None
