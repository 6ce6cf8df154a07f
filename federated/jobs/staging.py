"""Reducing by a handler: the levels of a tree, each a job of its own.

Theory of operation. The answers of a job, in the order of its rows, are the leaves of a binary
tree; a handler combines the two children of a node (`reduce.pair_up`). All pairs of a level are the
rows of a job that is leased, verified and journalled as every other; its tasks carry the level as
their `stage`. Its id is a hash of the parent and of what is combined, so after a restart the same
level finds the same job, finished or under way, and after a row was reopened a level whose pairs
changed is another job while the others are found done. A level job is no caller's: lists leave it
out, it ends when its parent is cancelled and goes when its parent is purged.

A pair for which no answer is accepted ends the parent as `failed`: half a sum is no sum.
Source: docs/specs/jobs.md s.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from federated.errors import JobError, PlanError
from federated.jobs.canon import canonical, digest, encode_normal
from federated.jobs.handlers.names import EXPR_ID, full_id
from federated.jobs.limits import BATCH_ROWS_MAX
from federated.jobs.plan import make_job, spec_hash
from federated.jobs.reduce import pair_up
from federated.jobs.state import JobPhase, RowState
from federated.jobs.types import ByHandler, Collect, JobId, Open

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from federated.jobs.journal import Journal
    from federated.jobs.state import Job
    from federated.jobs.types import JobSpec, Row
    from p2p.env import Env, Offload

ID_BYTES: Final = 16
PAGE: Final = 1000
REDUCE_FAILED: Final = "reduce_failed"


class Superseded(Exception):
    """The answers changed, or nobody wants them any more."""


class Stages:
    """The level jobs of a node.

    Args:
        env: clocks and random numbers.
        offload: where long computations go.
        journal: keeps them.
        find: a job in memory.
        launch: begins a job that is in the journal.
        wait: until a job is over.
        cancel: ends a job.
    """

    def __init__(
        self, env: Env, offload: Offload, journal: Journal, *,
        find: Callable[[JobId], Job | None], launch: Callable[[Job], None],
        wait: Callable[[JobId], Awaitable[None]], cancel: Callable[[JobId], object],
    ) -> None:  # fmt: skip
        self._env = env
        self._offload = offload
        self._journal = journal
        self._find = find
        self._launch = launch
        self._wait = wait
        self._cancel = cancel
        self._scopes: dict[JobId, trio.CancelScope] = {}
        self._running: dict[JobId, JobId] = {}

    async def reduce(self, job: Job) -> list[bytes]:
        """The one row a job's answers combine to, in canonical form; none for no answers.

        A second call for the same job, after a row was reopened, ends the first.

        Raises:
            PlanError: `reduce_failed`, `deadline` or `cancelled`: why there is none.
            Superseded: a later call, or a cancel, ended this one.
        """
        earlier = self._scopes.get(job.id)
        if earlier is not None:
            earlier.cancel()
        with trio.CancelScope() as scope:
            self._scopes[job.id] = scope
            try:
                return await self._levels(job)
            finally:
                if self._scopes.get(job.id) is scope:
                    del self._scopes[job.id]
        raise Superseded

    def stop(self, ident: JobId) -> None:
        """Reduce a job no further, and end its level under way."""
        scope = self._scopes.pop(ident, None)
        if scope is not None:
            scope.cancel()
        self._end_level(self._running.pop(ident, None))

    def _end_level(self, level: JobId | None) -> None:
        found = None if level is None else self._find(level)
        if found is not None and not found.final:
            self._cancel(found.id)

    async def _levels(self, job: Job) -> list[bytes]:
        assert isinstance(job.spec.reduce, ByHandler)
        slots = [row.value if row.state is RowState.OK else None for row in job.rows]
        number = 0
        while len(slots) > 1:
            number += 1
            level = pair_up(slots)
            slots = level.slots
            if level.pairs:
                values = await self._combined(job, number, level.pairs)
                for place, value in zip(level.places, values, strict=True):
                    slots[place] = value
        return [canonical(value) for value in slots if value is not None]

    async def _combined(self, job: Job, number: int, pairs: list[Row]) -> list[Row]:
        """What a level's pairs combine to, in their order."""
        ident = await self._offload.run(lambda: level_id(job.id, number, pairs))
        if self._running.get(job.id) != ident:
            self._end_level(self._running.get(job.id))
        self._running[job.id] = ident
        if self._find(ident) is None and await self._journal.job(ident) is None:
            await self._begin(job, ident, number, pairs)
        await self._wait(ident)
        if self._running.get(job.id) == ident:
            del self._running[job.id]
        return await self._values(ident, len(pairs))

    async def _begin(self, job: Job, ident: JobId, number: int, pairs: list[Row]) -> None:
        spec = level_spec(job.spec, pairs, left_s=job.deadline - self._env.now())
        nonce = self._env.rng.randbytes(ID_BYTES)
        now, wall_ms = self._env.now(), self._env.wall_ms()
        level = await self._offload.run(
            lambda: make_job(
                spec, pairs, ident=ident, nonce=nonce, group=job.group, agent=job.agent, now=now,
                wall_ms=wall_ms, code_hash=None, cacheable=False, find_peer=lambda _name: None,
            )
        )  # fmt: skip
        level.stage = number
        level.only = job.only  # what is combined are its rows, and a restart finds that by `stage`
        # In this order: a level that is known without its job is nothing, a job without its level
        # would be somebody's.
        await self._journal.keep_stage(ident, job.id, number)
        await self._journal.add(
            level, spec_hash=spec_hash(spec), idem=None,
            deadline_ms=wall_ms + int(spec.deadline_s * 1000), parent=None,
        )  # fmt: skip
        self._launch(level)

    async def _values(self, ident: JobId, count: int) -> list[Row]:
        found = await self._journal.job(ident)
        if found is None:
            raise PlanError("cancelled", "the level is gone")
        if found.phase is JobPhase.EXPIRED or found.phase is JobPhase.CANCELLED:
            reason = "deadline" if found.phase is JobPhase.EXPIRED else "cancelled"
            raise PlanError(reason, "the level was not finished")
        values: list[Row] = []
        while len(values) < count:
            page = await self._journal.rows(ident, len(values), PAGE)
            for row in page:
                if row.state is not RowState.OK or row.value is None:
                    raise PlanError(REDUCE_FAILED, f"two answers did not combine: {row.reason}")
                values.append(msgspec.json.decode(row.value, type=dict[str, object]))
            if not page:
                raise JobError("journal", "a level has fewer rows than pairs")
        return values


def level_id(parent: JobId, number: int, pairs: Sequence[Row]) -> JobId:
    """The id of the job that combines `pairs`: the same for the same, at every start."""
    body = encode_normal([bytes(parent).hex(), number, pairs])
    return JobId(digest(b"covey/job-level/1\0" + body)[:ID_BYTES])


def level_spec(spec: JobSpec, pairs: list[Row], *, left_s: float) -> JobSpec:
    """The job that combines pairs: as its parent, but for the handler and what concerns rows."""
    assert isinstance(spec.reduce, ByHandler)
    handler = full_id(spec.reduce.handler)
    params = {**spec.params, "function": "reduce"} if handler == EXPR_ID else spec.params
    return msgspec.structs.replace(
        spec, handler=handler, rows=pairs, params=params, template=None, key_columns=[],
        batch=Open(groups=[], chunk=BATCH_ROWS_MAX), reduce=Collect(),
        deadline_s=max(0.001, left_s), gaps_of=None, effect="none",
        limits=msgspec.structs.replace(spec.limits, executions=None),
        title=f"level of {spec.title or spec.handler}"[:200],
    )  # fmt: skip
