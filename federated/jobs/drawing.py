"""From a client's spec to a job that can begin: checked, drawn, with what earlier jobs answered.

    drawing = Drawing(mesh, env, offload, journal, cache, handlers, engines, core=lambda: core)
    job = await drawing(spec, agent="", group=None, find_peer=..., auto_rows=...)
    await drawing.take_cached(job)

Nothing is kept and nobody is told here: `service` begins the job, or `planner` shows what it would
be. Source: docs/specs/jobs.md s.2 and 11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from federated.errors import PlanError
from federated.jobs.cache import needed, served
from federated.jobs.canon import hash_parts
from federated.jobs.earlier import Parent, bytes_of_hex, take_cached, take_parent
from federated.jobs.effects import check_declared
from federated.jobs.handlers.names import full_id
from federated.jobs.limits import ROWS_MAX
from federated.jobs.plan import check_spec, make_job
from federated.jobs.state import JOB_FINAL, RowState
from federated.jobs.types import ByHandler, JobId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federated.jobs.cache import Entry, ResultCache
    from federated.jobs.coordinator import Coordinator
    from federated.jobs.engines.door import Engines
    from federated.jobs.journal import Journal
    from federated.jobs.rowsource import RowSource
    from federated.jobs.state import Job
    from federated.jobs.types import JobSpec
    from federated.jobs.worker import Offers
    from federated.seams import GroupId, Mesh
    from p2p.env import Env, Offload
    from p2p.identity import PeerId


class Drawing:
    """Makes jobs of specs.

    Args:
        mesh: who is there.
        env: clocks and random numbers.
        offload: where long computations go.
        journal: earlier jobs.
        cache: their answers.
        handlers: of this node.
        engines: that a job may name.
        source: where rows are read that stand elsewhere.
        core: the coordinator's machine, while it runs.
    """

    def __init__(
        self, mesh: Mesh, env: Env, offload: Offload, journal: Journal, cache: ResultCache,
        handlers: Offers, engines: Engines, source: RowSource, *,
        core: Callable[[], Coordinator],
    ) -> None:  # fmt: skip
        self._mesh = mesh
        self._env = env
        self._offload = offload
        self._journal = journal
        self._cache = cache
        self._handlers = handlers
        self._engines = engines
        self._source = source
        self._core = core

    async def __call__(
        self, spec: JobSpec, *, agent: str, group: GroupId | None,
        find_peer: Callable[[str], PeerId | None], auto_rows: Callable[[JobSpec, int, int], int],
    ) -> Job:  # fmt: skip
        """See `planner.Draw`: the job, neither kept nor told to anybody."""
        check_spec(spec)
        spec = msgspec.structs.replace(spec, handler=full_id(spec.handler))
        self._check_reach(spec, group)
        check_declared(spec, self._core().board.own_handlers.get(spec.handler))
        parent = await self._parent_of(spec, agent)
        rows = parent.sources if parent is not None else None
        if rows is None:
            rows = await self._source.rows(spec, agent=agent, group=group)
        ident = JobId(self._env.rng.randbytes(16))
        nonce = self._env.rng.randbytes(16)
        now, wall_ms = self._env.now(), self._env.wall_ms()
        keep_ms = self._keep_ms(spec)
        job = await self._offload.run(
            lambda: make_job(
                spec, rows, ident=ident, nonce=nonce, group=group, agent=agent, now=now,
                wall_ms=wall_ms, code_hash=self._code_hash(spec), cacheable=keep_ms > 0,
                find_peer=find_peer if parent is None else parent.find_peer,
                auto_rows=lambda count, size: auto_rows(spec, count, size),
            )
        )  # fmt: skip
        job.cache_ms = keep_ms
        if parent is not None:
            job.parent = parent.id
            await self._offload.run(lambda: take_parent(job, parent.rows))
        return job

    async def _parent_of(self, spec: JobSpec, agent: str) -> Parent | None:
        """The finished job whose gaps a spec fills.

        Raises:
            PlanError: `bad_spec`: there is none, of this caller's, or it is another table.
        """
        if spec.gaps_of is None:
            return None
        found = await self._journal.job(JobId(bytes_of_hex(spec.gaps_of)))
        if found is None or (agent and found.agent != agent):
            raise PlanError("bad_spec", "no such job", path="gaps_of")
        if found.phase not in JOB_FINAL:
            raise PlanError("bad_spec", f"the job is {found.phase}: it has to end", path="gaps_of")
        if spec.columns != found.spec.columns:
            raise PlanError("bad_spec", "its answers have other columns", path="columns")
        rows = await self._journal.rows(found.id, 0, ROWS_MAX)
        return await self._offload.run(lambda: Parent.of(found.id, spec, rows))

    def _keep_ms(self, spec: JobSpec) -> int:
        """How long answers are kept for later jobs; 0 too while that does not pay."""
        if not self._cache.payoff.on(spec.handler, self._env.wall_ms()):
            return 0
        return self._core().board.cache_ms(spec)

    def _code_hash(self, spec: JobSpec) -> str | None:
        """What computes a row beyond its handler's name: for a model, which one stands behind."""
        info = self._core().board.own_handlers.get(spec.handler)
        if info is None or info.kind != "llm":
            return None
        return hash_parts(info.id, info.summary).hex()

    async def take_cached(self, job: Job) -> None:
        """Settle the rows that an earlier job has answered well enough."""
        begun = self._env.now()
        found = await self._earlier(job)
        if found is None:
            return
        await self._offload.run(lambda: take_cached(job, found))
        took_s, wall_ms = self._env.now() - begun, self._env.wall_ms()
        looked, handler = len(job.rows), job.spec.handler
        await self._cache.looked(handler, looked, job.cached, took_s, wall_ms)
        self._core().board.count("rows_cached", job.cached)

    async def _earlier(self, job: Job) -> Mapping[bytes, Entry] | None:
        """What earlier jobs have answered of a job, by row hash; None: it is not looked up."""
        spec = job.spec
        if not job.cache_ms or spec.cache != "use" or not job.rows:
            return None
        board, wall_ms = self._core().board, self._env.wall_ms()
        need = needed(spec, job.group, kind=board.nature(job)[0])
        bad = board.reputation.quarantined_owners(spec.handler, wall_ms)
        hashes = [row.hash for row in job.rows]
        return await self._cache.look(hashes, wall_ms, lambda entry: served(entry, need, bad=bad))

    async def cached(self, job: Job) -> int | None:
        """How many rows of a job an earlier one has answered; None: it is not looked up."""
        found = await self._earlier(job)
        return (
            None
            if found is None
            else sum(row.state is RowState.PENDING and row.hash in found for row in job.rows)
        )

    def _check_reach(self, spec: JobSpec, group: GroupId | None) -> None:
        """Refuse a job that nobody here or there could do.

        Raises:
            PlanError: `unknown_handler` or `no_eligible_peer`.
        """
        if spec.engine == "local":
            known = sorted(info.id for info in self._handlers.offered_to("own", group))
            for path, handler in handlers_of(spec):
                if handler not in known:
                    raise PlanError(
                        "unknown_handler",
                        f"this machine has no {handler}, but {', '.join(known)}",
                        path=path,
                    )
        elif spec.engine != "peers":
            self._engines.check(spec.engine, handlers_of(spec))
        elif not self._mesh.members(group):
            raise PlanError(
                "no_eligible_peer",
                "no other machine is there to compute it, or to see its rows",
                path="group",
            )


def handlers_of(spec: JobSpec) -> list[tuple[str, str]]:
    """The handlers of a spec, with where it names them."""
    found = [("handler", spec.handler)]
    if isinstance(spec.reduce, ByHandler):
        found.append(("reduce.handler", full_id(spec.reduce.handler)))
    return found
