"""Jobs of this node: the face towards the local socket, and the driver of the machine.

    jobs = Jobs(mesh, db, env, offload, handlers, config)
    await nursery.start(jobs.run)
    ident = await jobs.submit(spec, agent="", group=None)
    await jobs.finished(ident)

The driver feeds the machine (`coordinator`) what comes from sessions, clients and the clock, and
carries out its orders: items go to sessions at once; rows go to the journal's writer, which takes
all that waits in one transaction and only then lets acknowledgements leave and events be told.
Source: docs/specs/jobs.md.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, TypeVar, cast

import msgspec
import trio

from federated.errors import JobError, is_full
from federated.jobs.bulk import Bulk
from federated.jobs.cache import ResultCache
from federated.jobs.coordinator import TICK_S, Coordinator
from federated.jobs.drawing import Drawing
from federated.jobs.earlier import drop_erased
from federated.jobs.engines.door import DoorWithEngines, Engines
from federated.jobs.engines.seam import engine_id
from federated.jobs.erasing import Erasing
from federated.jobs.held import Held
from federated.jobs.holders import Holders
from federated.jobs.journal import Journal
from federated.jobs.lessons import Lessons
from federated.jobs.places import Places
from federated.jobs.plan import spec_hash
from federated.jobs.planner import Planner
from federated.jobs.reducing import Reducing
from federated.jobs.rowsource import RowSource
from federated.jobs.sessions import Hooks, Sessions
from federated.jobs.staging import Stages
from federated.jobs.template import parse_template
from federated.jobs.types import JobId
from federated.jobs.worker import Worker
from federated.jobs.writing import FULL, Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from federated.jobs.engines.seam import Engine
    from federated.jobs.items import Item
    from federated.jobs.keeping import Kept
    from federated.jobs.manners import Manners
    from federated.jobs.orders import Large, Orders
    from federated.jobs.planner import Planned
    from federated.jobs.quota import WorkQuota
    from federated.jobs.state import Job
    from federated.jobs.types import JobSpec
    from federated.jobs.worker import Offers
    from federated.seams import Db, GroupId, Mesh
    from p2p.blobs.service import Blobs
    from p2p.env import Env, Offload
    from p2p.identity import PeerId

A = TypeVar("A")

log = logging.getLogger("covey.jobs")

KEEP_ENDED_S: Final = 60.0
"""How long a finished job stays in memory: late results of it are still recognised."""


class Jobs:
    """The jobs of a node, as coordinator and as worker.

    Args:
        mesh: peers and calls.
        db: jobs.db; open while `run` runs.
        env: clocks and random numbers.
        offload: where long computations go.
        handlers: what this node computes for others and itself.
        slots: tasks at once here.
        engines: how to make each engine that a job may name, by its address.
        quota: work that others may have of this machine.
        blobs: where rows may stand; None: nowhere.
        manners: when no work for others is taken; None: it always is.
    """

    def __init__(
        self, mesh: Mesh, db: Db, env: Env, offload: Offload, handlers: Offers, *, slots: int,
        engines: Mapping[str, Callable[[], Engine]] | None = None, quota: WorkQuota | None = None,
        blobs: Blobs | None = None, manners: Manners | None = None,
    ) -> None:  # fmt: skip
        self._mesh = mesh
        self._env = env
        self._offload = offload
        self.handlers = handlers
        self.journal = Journal(db)
        self.writer = Writer(self.journal, kept=self._after, filled=self._filled)
        self.cache = ResultCache(db)
        self.lessons = Lessons(db)
        self._bulk, self._holders = Bulk(blobs), Holders(mesh, blobs)
        self.worker = Worker(
            mesh, handlers, env, offload, slots=slots,
            parse_template=lambda text: parse_template(text, None).render, held=Held(db),
            quota=quota, bulk=self._bulk, manners=manners,
        )  # fmt: skip
        self.worker.register()
        self.engines = Engines(engines or {}, handlers, env, offload)
        self._sessions = Sessions(
            mesh, {mesh.id: self.worker.serve, **self.engines.serves},
            Hooks(self._peer_up, self._peer_down, self._received), self._wanted_peers,
        )  # fmt: skip
        self._stages = Stages(
            env, offload, self.journal, find=self._in_memory,
            launch=self._launch, wait=self.finished, cancel=self._cancel,
        )  # fmt: skip
        self.draw = Drawing(
            mesh, env, offload, self.journal, self.cache, handlers, self.engines,
            RowSource(self.journal, blobs, offload), core=lambda: self.core,
        )  # fmt: skip
        self.planner = Planner(
            mesh, env, self.lessons, core=lambda: self.core, draw=self.draw,
            cached=self.draw.cached, look=self._sessions.look,
        )  # fmt: skip
        self._erasing = Erasing(
            env, offload, self.journal, core=lambda: self.core, order=self._carry,
            reduce_again=self._reduce_again,
        )  # fmt: skip
        self._places = Places(lambda: self.core)
        self._reductions = Reducing(
            offload, self.journal, self.writer, self._stages,
            find=self._in_memory, reduced=self._reduced,
        )  # fmt: skip
        self._core: Coordinator | None = None
        self._ready = trio.Event()
        self._ended: dict[JobId, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._listeners: list[Callable[[JobId, int, str, bytes], None]] = []
        self._news = trio.Event()

    # ---- life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Go on with what was under way, and serve, until cancelled."""
        wall_ms = self._env.wall_ms()
        epoch, first = await self.journal.begin(wall_ms // 1000)
        door = DoorWithEngines(self._mesh, self.engines)
        core = Coordinator(door, self._env.rng, epoch=epoch, next_event=first)
        try:
            await self._serve(core, wall_ms, task_status)
        finally:
            await self.handlers.aclose()

    async def _serve(
        self, core: Coordinator, wall_ms: int, task_status: trio.TaskStatus[None]
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._core = core
            core.board.own_handlers = {
                info.id: info for info in self.handlers.offered_to("own", None)
            }
            core.board.on_computed = self.cache.payoff.computed
            core.board.engines = dict(self.engines.by_id)
            core.board.reputation.load(await self.journal.stats(), await self.journal.alone())
            core.learn(await self.journal.durations())
            await self.lessons.load()
            await self.cache.load()
            for job in await self.journal.live(self._env.now(), wall_ms):
                self._ended[job.id] = trio.Event()
                job.only = await self.lessons.seeing(job.id)
                core.resume_loaded(job)
                nursery.start_soon(self._holders.ask, job)
            nursery.start_soon(self.writer.run)
            nursery.start_soon(self._tick)
            self._carry_out()
            await nursery.start(self.worker.run)
            await nursery.start(self._sessions.run)
            self._ready.set()
            task_status.started()

    @property
    def core(self) -> Coordinator:
        """The machine, while `run` runs."""
        if self._core is not None:
            return self._core
        raise JobError("bad_state", "jobs have not started yet: try again in a moment")

    def _spawn(self, fn: Callable[[A], Awaitable[None]], about: A) -> None:
        """Do something beside, as long as we run."""
        assert self._nursery is not None
        self._nursery.start_soon(fn, about)

    def _in_memory(self, ident: JobId) -> Job | None:
        return self.core.job(ident)

    def on_event(self, fn: Callable[[JobId, int, str, bytes], None]) -> None:
        """Have `fn(job, seq, kind, JSON body)` told each event once it is kept."""
        self._listeners.append(fn)

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            if self.core.board.jobs:
                self.core.tick(now=self._env.now(), wall_ms=self._env.wall_ms())
                self._carry_out()

    # ---- orders

    def _carry_out(self) -> None:
        self._carry(self.core.take_orders())

    def _carry(self, orders: Orders) -> None:
        for peer, item in orders.sends:
            self._sessions.send(peer, item)
        for peer, _code in orders.closes:
            self._sessions.close(peer)
        for large in orders.fetches:
            self._spawn(self._fetch, large)
        if (
            orders.writes or orders.after or orders.ended or orders.reduces or orders.caught
            or orders.forgets
        ):  # fmt: skip
            self.writer.order(orders)

    async def _after(self, batch: Sequence[Orders], kept: Kept) -> None:
        """What may happen now that orders are on the disk."""
        if kept.cached:
            try:
                await self.cache.grew(kept.cached, self._env.wall_ms())
            except Exception as error:
                if not is_full(error):
                    raise
        for orders in batch:
            self._kept(orders)
        self._erasing.kept(batch, kept)
        for seq, job, _at, kind, body in kept.events:
            self._tell(JobId(job), seq, kind, body)

    def _filled(self, full: bool) -> None:
        """The disk is full, or is not any more: jobs stop being handed out, or go on."""
        wall_ms = self._env.wall_ms()
        stopped = self.core.halt(wall_ms) if full else self.core.unhalt(self._env.now(), wall_ms)
        for job in stopped if full else ():
            # What cannot be kept now is at least said; its event comes when there is room.
            body = msgspec.json.encode({"state": job.phase, "reason": job.reason})
            for listener in self._listeners:
                listener(job.id, 0, FULL, body)
        self._carry_out()

    def _kept(self, orders: Orders) -> None:
        """What may happen now that the orders' rows are on disk."""
        for peer, item in orders.after:
            self._sessions.send(peer, item)
        for event in orders.writes.get("event", ()):
            seq, job, _, kind, body = cast("tuple[int, bytes, int, str, bytes]", event)
            self._tell(JobId(job), seq, kind, body)
        for ident in orders.reduces:
            self._spawn(self._reductions.run, ident)
        for ident in orders.ended:
            self._ended.pop(ident, trio.Event()).set()
            self._spawn(self._forget_later, ident)
            self._spawn(self._learn, ident)
        if orders.offers:
            self.core.offers_kept(orders.offers)
            self._carry_out()
        if orders.ended:
            self._sessions.look()

    async def _fetch(self, large: Large) -> None:
        """Have an answer that a result names."""
        rows = await self._bulk.fetched(large.result.rows, large.group)
        self.core.fetched(
            large.peer, large.job, large.result, rows,
            now=self._env.now(), wall_ms=self._env.wall_ms(),
        )  # fmt: skip
        self._carry_out()

    def _reduced(self, ident: JobId, problem: str) -> None:
        self.core.reduced(ident, wall_ms=self._env.wall_ms(), problem=problem)
        self._carry_out()

    def _reduce_again(self, ident: JobId) -> None:
        self._stages.stop(ident)
        self._spawn(self._reductions.run, ident)

    async def erase(self, records: Sequence[bytes]) -> int:
        """Overwrite what quotes any of these memories; see `Erasing.erase`."""
        await self._ready.wait()
        return await self._erasing.erase(records)

    def _tell(self, job: JobId, seq: int, kind: str, body: bytes) -> None:
        """An event is on disk: tell who waits for it."""
        for listener in self._listeners:
            listener(job, seq, kind, body)
        news, self._news = self._news, trio.Event()
        news.set()

    async def _forget_later(self, ident: JobId) -> None:
        await trio.sleep(KEEP_ENDED_S)
        self.core.forget(ident)

    async def _learn(self, ident: JobId) -> None:
        """What an ended job teaches; one whose end a crash cut off teaches nothing."""
        job = self.core.job(ident)
        if job is None:
            return
        try:
            slots = self.core.board.slots_of(job.spec.handler)
            await self.lessons.finished(job, slots, self._env.wall_ms())
        except Exception as error:  # noqa: BLE001 - a full disk or a store that closes under it:
            # what is learned is a convenience, whose loss may end no job.
            log.info("job_not_learned", extra={"f": {"why": str(error)}})

    # ---- sessions

    def _wanted_peers(self) -> set[PeerId]:
        if self._core is None:
            return set()
        wanted: set[PeerId] = self.planner.wanted
        for job in self._core.board.live_jobs():
            if job.spec.engine == "peers":
                wanted.update(self._mesh.members(job.group))
            elif job.spec.engine != "local":
                wanted.add(engine_id(job.spec.engine))
            # Our own worker: for rows pinned to it, and as the arbiter of others' answers.
            wanted.add(self._mesh.id)
        return wanted

    def _peer_up(self, peer: PeerId, session: int) -> None:
        self.core.peer_up(peer, session)
        self._carry_out()

    def _peer_down(self, peer: PeerId, session: int) -> None:
        self.core.peer_down(peer, session, now=self._env.now(), wall_ms=self._env.wall_ms())
        self._carry_out()
        self.planner.heard()

    def _received(self, peer: PeerId, session: int, item: Item) -> None:
        try:
            self.core.received(
                peer, session, item, now=self._env.now(), wall_ms=self._env.wall_ms()
            )
        finally:
            self._carry_out()
            self.planner.heard()

    # ---- clients

    async def submit(
        self, spec: JobSpec, *, agent: str, group: GroupId | None, idem: str | None = None,
        find_peer: Callable[[str], PeerId | None] = lambda _name: None,
    ) -> JobId:  # fmt: skip
        """Begin a job; durable when it returns.

        Raises:
            PlanError: the spec cannot be run.
            JobError: `conflict` if the key was used for another spec; `too_many`; `journal_full`.
        """
        await self._ready.wait()
        hashed = await self._offload.run(lambda: spec_hash(spec))
        if idem is not None and (found := await self.journal.find_idem(agent, idem)) is not None:
            if found[1] != hashed:
                raise JobError("conflict", "the key was used for another job")
            return found[0]
        with self.writer.refusing(), self._places.taken(agent):
            job = await self.draw(
                spec, agent=agent, group=group, find_peer=find_peer,
                auto_rows=lambda spec, rows, size: self.planner.choose(spec, rows, size).size,
            )  # fmt: skip
            return await self._begin(job, hashed, idem)

    async def plan(
        self, spec: JobSpec, *, agent: str, group: GroupId | None, owner: bool = False,
        find_peer: Callable[[str], PeerId | None] = lambda _name: None,
    ) -> Planned:  # fmt: skip
        """What would become of a job; see `Planner.plan`."""
        await self._ready.wait()
        return await self.planner.plan(
            spec, agent=agent, group=group, owner=owner, find_peer=find_peer
        )

    async def submit_plan(
        self, ident: bytes, *, agent: str, idem: str | None = None,
        find_peer: Callable[[str], PeerId | None] = lambda _name: None,
        name: Callable[[PeerId], str] = lambda peer: bytes(peer).hex()[:8],
    ) -> JobId:  # fmt: skip
        """Begin the job of a plan as planned; durable when it returns.

        Raises:
            JobError: `unknown_job`: no plan of this agent, or too old; `conflict`,
                `too_many` and `journal_full` as in `submit`.
            PlanError: `plan_changed`, naming what changed.
        """
        await self._ready.wait()
        spec = self.planner.find(ident, agent).spec
        hashed = await self._offload.run(lambda: spec_hash(spec))
        if idem is not None and (found := await self.journal.find_idem(agent, idem)) is not None:
            if found[1] != hashed:
                raise JobError("conflict", "the key was used for another job")
            return found[0]
        with self.writer.refusing(), self._places.taken(agent):
            plan, job = await self.planner.redeem(
                ident, agent=agent, find_peer=find_peer, name=name
            )
            assert job.only is not None
            await self.lessons.plan(job.id, job.only, plan.rules)
            return await self._begin(job, hashed, idem)

    async def _begin(self, job: Job, hashed: bytes, idem: str | None) -> JobId:
        """Keep a job, then run it."""
        await self.draw.take_cached(job)
        await self._holders.ask(job)
        deadline_ms = job.submitted_ms + int(job.spec.deadline_s * 1000)
        gone = await self.journal.add(
            job, spec_hash=hashed, idem=idem, deadline_ms=deadline_ms, parent=job.parent
        )
        if gone:
            drop_erased(job, gone)
        self._launch(job)
        return job.id

    def _launch(self, job: Job) -> None:
        """Begin a job that is in the journal."""
        self._ended[job.id] = trio.Event()
        self.core.submit(job, now=self._env.now(), wall_ms=self._env.wall_ms())
        self._carry_out()
        self._sessions.look()

    async def finished(self, ident: JobId) -> None:
        """Wait until a job is over."""
        if (event := self._ended.get(ident)) is not None:
            await event.wait()

    def next_event(self) -> trio.Event:
        """Set when the next event of any job is kept. Take it before looking at what there is."""
        return self._news

    async def news(self) -> None:
        """Wait until an event of any job was kept."""
        await self._news.wait()

    async def cancel(self, ident: JobId) -> dict[str, int]:
        """End a job; durable when it returns. See `Coordinator.cancel`.

        Raises:
            JobError: as of `Coordinator.cancel`; `journal_full`: it is stopped, but not for good.
        """
        told = self._cancel(ident)
        await self.writer.flushed("the job is stopped, but a restart would go on with it: ")
        return told

    def _cancel(self, ident: JobId) -> dict[str, int]:
        told = self.core.cancel(ident, now=self._env.now(), wall_ms=self._env.wall_ms())
        self._stages.stop(ident)
        self._carry_out()
        return told

    async def pause(self, ident: JobId) -> None:
        """Lease no more tasks of a job; durable when it returns.

        Raises:
            JobError: as of `Coordinator.pause`; `journal_full`.
        """
        self.writer.check()
        self.core.pause(ident, wall_ms=self._env.wall_ms())
        self._carry_out()
        await self.writer.flushed()

    async def lift(self, who: bytes) -> bool:
        """End the quarantine of an owner or device; durable. See `Reputation.lift`.

        Raises:
            JobError: `journal_full`.
        """
        self.writer.check()
        board = self.core.board
        found = board.reputation.lift(who)
        for stat in board.reputation.take_changed():
            board.orders.write("peer_stat", tuple(stat))
        board.orders.full = True
        self._carry_out()
        await self.writer.flushed()
        return found

    async def go_on(self, ident: JobId, executions: int | None = None) -> None:
        """Lease again; durable when it returns.

        Raises:
            JobError: as of `Coordinator.go_on`; `journal_full`.
        """
        self.writer.check()
        self.core.go_on(
            ident, executions=executions, now=self._env.now(), wall_ms=self._env.wall_ms()
        )
        self._carry_out()
        await self.writer.flushed()
