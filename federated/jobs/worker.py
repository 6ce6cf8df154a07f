"""The worker's side: takes tasks of coordinators, runs them off the loop, sends results until kept.

Theory of operation. Each coordinator has a desk, which outlives its sessions: what it asked for,
what runs, and the results it has not acknowledged. A session says hello, which handlers this
caller may use and how many tasks it may leave here; the coordinator says which of its jobs live;
the worker says what it holds and sends unacknowledged results again. Tasks wait in one queue per
desk and are started in turn, at most `slots` at once. Quick pure handlers run many tasks in one
trip to a thread; the others get a task of their own with the wall time as its limit. Nothing of a
handler runs in the loop.

A hostile coordinator is bounded by its credit, by the size of its items and specs, and by the
limits of the handlers the operator offers it; what it may not use it may not even distinguish from
what does not exist. Source: docs/specs/jobs.md s.4 and s.6.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import trio

from federated.errors import HandlerError
from federated.jobs.handlers.base import TaskCtx, TaskLimits
from federated.jobs.items import (
    API,
    RESULT_DOMAIN,
    SESSION,
    Ack,
    Beat,
    Cancel,
    Cancelled,
    Credit,
    Failed,
    Have,
    Hello,
    Holding,
    Offer,
    Offered,
    Refusal,
    Reply,
    Result,
    Spec,
    Usage,
    decode_job_item_untrusted,
    encode_item,
    encode_results,
    signed_part,
)
from federated.jobs.worker_task import done, failed, read_rows, read_spec, write_rows
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.jobs.handlers.base import Handler, HandlerInfo, PureHandler
    from federated.jobs.items import Item, OfferTask, TaskResult
    from federated.jobs.types import Row
    from federated.jobs.worker_task import JobHere
    from federated.seams import GroupId, Mesh, TrustClass
    from p2p.env import Env, Offload
    from p2p.identity import PeerId
    from p2p.rpc_types import Caller, CallStream

log = logging.getLogger("covey.jobs.worker")

AHEAD_MAX: Final = 64
"""Tasks beyond the slots that a coordinator may leave here: they hide the round trip."""
PURE_TASKS_MAX: Final = 64
"""Tasks of one trip to a thread: the trip costs as much as two small tasks."""
RESULT_BYTES_MAX: Final = 196_608
"""Body of one `Result`; an item has 256 KiB."""
JOBS_MAX: Final = 64
"""Specs kept of one coordinator."""
UNACKED_MAX: Final = 16_384
"""Results kept for a coordinator that does not acknowledge; beyond it takes no more tasks."""
BEAT_SHARE: Final = 3


class Offers(Protocol):
    """Which handlers there are, and who may use them: `handlers.registry.Handlers`."""

    def offered_to(self, trust: TrustClass, group: GroupId | None) -> Sequence[HandlerInfo]:
        """Handlers that such a caller may use."""
        ...

    async def aclose(self) -> None:
        """End what handlers keep between tasks."""
        ...

    def get(self, handler: str, trust: TrustClass, group: GroupId | None) -> Handler | PureHandler:
        """A handler.

        Raises:
            HandlerError: `policy`: there is none, or this caller may not use it.
        """
        ...


@dataclass(slots=True)
class TaskHere:
    """A task that a coordinator left here."""

    desk: Desk
    job: JobHere
    task: int
    attempt: int
    rows: bytes
    handler: Handler | PureHandler
    deadline: float
    running: bool = False
    cancelled: bool = False
    progress: float = 0.0
    scope: trio.CancelScope | None = None


@dataclass(slots=True)
class Desk:
    """What a coordinator has here, over its sessions."""

    peer: PeerId
    trust: TrustClass = "none"
    owner: bytes = b""
    epoch: int = 0
    session: int = 0
    jobs: dict[bytes, JobHere] = field(default_factory=dict)
    tasks: dict[tuple[bytes, int, int], TaskHere] = field(default_factory=dict)
    queue: deque[TaskHere] = field(default_factory=deque)
    unacked: dict[tuple[bytes, int, int], TaskResult] = field(default_factory=dict)
    outbox: deque[tuple[bytes, TaskResult]] = field(default_factory=deque)
    """Results to send in the session; after a reconnection all unacknowledged ones."""
    replies: deque[Item] = field(default_factory=deque)
    work: trio.Event = field(default_factory=trio.Event)
    lease_s: float = 10.0
    scope: trio.CancelScope | None = None

    def post(self, item: Item) -> None:
        """Send an item when the session's writer comes to it."""
        self.replies.append(item)
        self.work.set()


class Worker:
    """Serves `job.session`.

    Args:
        mesh: the proven callers.
        handlers: what there is.
        env: the clock.
        offload: where blocking work goes.
        slots: tasks at once.
        parse_template: makes the filler of a template.
    """

    def __init__(
        self,
        mesh: Mesh,
        handlers: Offers,
        env: Env,
        offload: Offload,
        *,
        slots: int,
        parse_template: Callable[[str], Callable[[Row], str]],
    ) -> None:
        self._mesh = mesh
        self._handlers = handlers
        self._env = env
        self._offload = offload
        self.slots = slots
        self._parse_template = parse_template
        self._desks: dict[PeerId, Desk] = {}
        self._turns: deque[Desk] = deque()
        self._work = trio.Event()
        self._free = trio.Semaphore(slots)
        self._session = 0
        self.draining = False
        self.counters: dict[str, int] = {}

    def register(self) -> None:
        """Take calls from peers."""
        self._mesh.rpc.serve(SESSION, self.serve, allow=self._may_call)

    def _may_call(self, peer: PeerId) -> bool:
        return self._trust(peer, None) != "none" or bool(self._mesh.shared_groups(peer))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run tasks until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                while self._turns:
                    await self._free.acquire()
                    batch = self._next_tasks()
                    if batch:
                        nursery.start_soon(self._work_on, batch)
                    else:
                        self._free.release()
                self._work = trio.Event()
                await self._work.wait()

    # ---- sessions

    async def serve(self, caller: Caller, _request: bytes, call: CallStream) -> bytes:
        """One session of a coordinator; a newer one of it ends this one."""
        desk = self._desks.get(caller.peer)
        if desk is None:
            desk = self._desks[caller.peer] = Desk(caller.peer)
        if desk.scope is not None:
            desk.scope.cancel()
        self._session += 1
        desk.session = session = self._session
        desk.trust = self._trust(caller.peer, None)
        desk.owner = self._mesh.owner(caller.peer, None)
        desk.replies.clear()
        desk.outbox.clear()
        with trio.CancelScope() as scope:
            desk.scope = scope
            try:
                await self._session_tasks(desk, call)
            finally:
                if desk.session == session:
                    desk.scope = None
        return b""

    def _trust(self, peer: PeerId, group: GroupId | None) -> TrustClass:
        return "own" if peer == self._mesh.id else self._mesh.trust(peer, group)

    async def _session_tasks(self, desk: Desk, call: CallStream) -> None:
        desk.post(Hello(API, 0, self._offered(desk), None))
        desk.post(Credit(self._credit()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, desk, call)
            nursery.start_soon(self._beat, desk)
            try:
                async for data in call:
                    assert isinstance(data, bytes)
                    self._received(desk, decode_job_item_untrusted(data))
            except DecodeError as error:
                self.counters["sessions_broken"] = self.counters.get("sessions_broken", 0) + 1
                with trio.move_on_after(1):
                    await call.send(encode_item(Failed("decode", str(error)[:256])))
                raise
            nursery.cancel_scope.cancel()

    def _offered(self, desk: Desk) -> list[Offered]:
        """What this caller may use in any group it shares with us; each task is asked again."""
        infos: dict[str, HandlerInfo] = {}
        for group in (None, *self._mesh.shared_groups(desk.peer)):
            for info in self._handlers.offered_to(self._trust(desk.peer, group), group):
                infos[info.id] = info
        return [
            Offered(
                info.id, info.kind, info.deterministic, info.effect, info.slots or self.slots,
                int(info.cold_s * 1000), True,
            )
            for _, info in sorted(infos.items())
        ]  # fmt: skip

    def _credit(self) -> int:
        return self.slots + AHEAD_MAX

    async def _write(self, desk: Desk, call: CallStream) -> None:
        """The only sender of a session: what was posted first, then results, in large items."""
        while True:
            while desk.replies:
                await call.send(encode_item(desk.replies.popleft()))
            if desk.outbox:
                await call.send(encode_item(self._next_result(desk)))
            elif not desk.replies:
                desk.work = trio.Event()
                await desk.work.wait()

    def _next_result(self, desk: Desk) -> Result:
        job, first = desk.outbox.popleft()
        part, size = [first], len(first.rows)
        while desk.outbox and desk.outbox[0][0] == job:
            size += len(desk.outbox[0][1].rows) + 128
            if size > RESULT_BYTES_MAX:
                break
            part.append(desk.outbox.popleft()[1])
        body = encode_results(part)
        signature = b""
        if desk.trust != "own":
            signed = signed_part(bytes(desk.peer), job, desk.epoch, body)
            signature = self._mesh.sign(RESULT_DOMAIN, signed)
        return Result(job, body, signature)

    async def _beat(self, desk: Desk) -> None:
        while True:
            await trio.sleep(desk.lease_s / BEAT_SHARE)
            if desk.tasks:
                desk.post(
                    Beat(
                        [(*ref, task.running, task.progress) for ref, task in desk.tasks.items()],
                        None,
                    )
                )

    def _received(self, desk: Desk, item: Item) -> None:
        match item:
            case Offer():
                self._offer(desk, item)
            case Spec():
                self._spec(desk, item)
            case Ack():
                for ref in item.refs:
                    desk.unacked.pop(ref, None)
            case Cancel():
                self._cancel(desk, item)
            case Hello():
                if item.api != API:
                    raise DecodeError(f"job items of version {item.api}, ours are {API}")
                desk.epoch = max(desk.epoch, item.epoch)
            case Have():
                self._have(desk, item)
            case _:
                raise DecodeError("a coordinator sent a worker's item")

    def _have(self, desk: Desk, item: Have) -> None:
        """Forget what is over, tell what is here, send again what was not acknowledged."""
        live = set(item.jobs)
        for job in [job for job in desk.jobs if job not in live]:
            self._drop_job(desk, job)
        held: list[tuple[bytes, int, int, str]] = [
            (*ref, "running" if task.running else "queued") for ref, task in desk.tasks.items()
        ]
        held += [(*ref, "finished") for ref in desk.unacked]
        desk.post(Holding(held))  # type: ignore[arg-type]
        desk.outbox = deque((ref[0], result) for ref, result in desk.unacked.items())
        desk.work.set()

    def _drop_job(self, desk: Desk, job: bytes) -> None:
        for ref, task in list(desk.tasks.items()):
            if ref[0] == job:
                self._stop(task)
        for ref in [ref for ref in desk.unacked if ref[0] == job]:
            del desk.unacked[ref]
        desk.outbox = deque(pair for pair in desk.outbox if pair[0] != job)
        desk.jobs.pop(job, None)

    def _spec(self, desk: Desk, item: Spec) -> None:
        if len(desk.jobs) >= JOBS_MAX and item.job not in desk.jobs:
            raise DecodeError("more jobs than one coordinator may have")
        desk.jobs[item.job] = read_spec(item, self._parse_template)

    # ---- tasks

    def _offer(self, desk: Desk, item: Offer) -> None:
        accepted, refused = [], []
        desk.lease_s = min(60.0, max(1.0, item.lease_ms / 1000))
        for offered in item.tasks:
            ref = (item.job, offered.task, offered.attempt)
            why = self._take(desk, item, offered)
            if why:
                refused.append(Refusal(ref, why, 500 if why in {"busy", "quota"} else 0))
            else:
                accepted.append(ref)
        if refused:
            desk.post(Reply([], refused))
        if accepted:
            # Their results come soon enough; a beat renews what lasts.
            self._work.set()

    def _take(self, desk: Desk, item: Offer, offered: OfferTask) -> str:
        """Queue an offered task; why not, otherwise."""
        ref = (item.job, offered.task, offered.attempt)
        if ref in desk.tasks or ref in desk.unacked:
            return ""
        if self.draining:
            return "draining"
        job = desk.jobs.get(item.job)
        if job is None:
            return "policy"
        trust = self._trust(desk.peer, job.spec.group)
        try:
            handler = self._handlers.get(job.spec.handler, trust, job.spec.group)
        except HandlerError as error:
            return error.reason
        if len(desk.tasks) >= self._credit() or len(desk.unacked) >= UNACKED_MAX:
            return "busy"
        deadline = self._env.now() + offered.deadline_ms / 1000
        task = TaskHere(desk, job, offered.task, offered.attempt, offered.rows, handler, deadline)
        desk.tasks[ref] = task
        desk.queue.append(task)
        if len(desk.queue) == 1:
            self._turns.append(desk)
        return ""

    def _next_tasks(self) -> list[TaskHere]:
        """A task to run, or as many quick ones as one trip to a thread takes."""
        while self._turns:
            desk = self._turns.popleft()
            batch: list[TaskHere] = []
            while desk.queue and len(batch) < PURE_TASKS_MAX:
                task = desk.queue[0]
                if task.cancelled:
                    desk.queue.popleft()
                    continue
                pure = hasattr(task.handler, "compute")
                if batch and not pure:
                    break
                desk.queue.popleft()
                task.running = True
                batch.append(task)
                if not pure:
                    break
            if desk.queue:
                self._turns.append(desk)
            if batch:
                return batch
        return []

    async def _work_on(self, batch: list[TaskHere]) -> None:
        try:
            if hasattr(batch[0].handler, "compute"):
                results = await self._offload.run(lambda: [_compute(task) for task in batch])
                for task, result in zip(batch, results, strict=True):
                    self._finish(task, result)
            else:
                self._finish(batch[0], await self._run_one(batch[0]))
        finally:
            self._free.release()
            self._work.set()

    async def _run_one(self, task: TaskHere) -> TaskResult:
        handler = task.handler
        assert hasattr(handler, "run")
        began = self._env.now()
        limits = task_limits(task)
        try:
            batch = read_rows(task.job, task.rows)
            ctx = TaskCtx(
                caller=task.desk.peer, owner=task.desk.owner, trust=task.desk.trust,
                group=task.job.spec.group, limits=limits, offload=self._offload,
                progress=lambda share: setattr(task, "progress", share),
            )  # fmt: skip
            wall_s = min(limits.wall_s, max(0.0, task.deadline - began))
            with trio.fail_after(wall_s) as task.scope:
                answers = await handler.run(batch, ctx)
            rows = write_rows(batch, answers, limits.out_bytes)
            return done(task.task, task.attempt, rows, self._usage(began))
        except trio.TooSlowError:
            return failed(task.task, task.attempt, HandlerError("timeout"), self._usage(began))
        except HandlerError as error:
            return failed(task.task, task.attempt, error, self._usage(began))
        except DecodeError:
            return failed(task.task, task.attempt, HandlerError("bad_rows"), self._usage(began))
        except Exception:
            # A handler's own fault ends its task, never the daemon.
            log.exception("handler_failed", extra={"f": {"handler": task.job.spec.handler}})
            return failed(task.task, task.attempt, HandlerError("exception"), self._usage(began))
        finally:
            task.scope = None

    def _usage(self, began: float) -> Usage:
        return Usage(wall_ms=int((self._env.now() - began) * 1000))

    def _finish(self, task: TaskHere, result: TaskResult) -> None:
        desk = task.desk
        ref = (task.job.spec.job, task.task, task.attempt)
        if desk.tasks.pop(ref, None) is None or task.cancelled:
            return
        desk.unacked[ref] = result
        desk.outbox.append((ref[0], result))
        desk.work.set()

    def _stop(self, task: TaskHere) -> None:
        task.cancelled = True
        task.desk.tasks.pop((task.job.spec.job, task.task, task.attempt), None)
        if task.scope is not None:
            task.scope.cancel()

    def _cancel(self, desk: Desk, item: Cancel) -> None:
        stopped: list[tuple[int, int]] = []
        never: list[tuple[int, int]] = []
        already: list[tuple[int, int]] = []
        wanted = None if item.attempts is None else set(item.attempts)
        for (job, number, attempt), task in list(desk.tasks.items()):
            if job != item.job or (wanted is not None and (number, attempt) not in wanted):
                continue
            if task.running and item.unstarted_only:
                continue
            (stopped if task.running else never).append((number, attempt))
            self._stop(task)
        for ref in [ref for ref in desk.unacked if ref[0] == item.job]:
            if wanted is None or (ref[1], ref[2]) in wanted:
                already.append((ref[1], ref[2]))
                del desk.unacked[ref]
        if wanted is None:
            desk.jobs.pop(item.job, None)
        desk.post(Cancelled(item.job, stopped, never, already))


def task_limits(task: TaskHere) -> TaskLimits:
    """The smaller of what the job asks for and the handler allows."""
    own, spec = task.handler.info.limits, task.job.spec
    return TaskLimits(
        wall_s=min(own.wall_s, spec.wall_ms / 1000 or own.wall_s),
        mem_bytes=min(own.mem_bytes, spec.mem_bytes or own.mem_bytes),
        out_bytes=min(own.out_bytes, spec.out_bytes or own.out_bytes),
    )


def _compute(task: TaskHere) -> TaskResult:
    """Run a quick task; in a thread."""
    handler = task.handler
    assert hasattr(handler, "compute")
    try:
        batch = read_rows(task.job, task.rows)
        rows = write_rows(batch, handler.compute(batch), task_limits(task).out_bytes)
        return done(task.task, task.attempt, rows, Usage())
    except HandlerError as error:
        return failed(task.task, task.attempt, error, Usage())
    except DecodeError:
        return failed(task.task, task.attempt, HandlerError("bad_rows"), Usage())
    except Exception:
        log.exception("handler_failed", extra={"f": {"handler": task.job.spec.handler}})
        return failed(task.task, task.attempt, HandlerError("exception"), Usage())
