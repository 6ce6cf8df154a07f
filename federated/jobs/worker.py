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
from typing import TYPE_CHECKING, Final, Protocol

import trio

from federated.errors import HandlerError
from federated.jobs.bulk import Bulk
from federated.jobs.credit import Allowance, with_times
from federated.jobs.desk import REPLIES_MAX, Desk, TaskHere, Waiting
from federated.jobs.held import HELD_BYTES_MAX, HELD_MS
from federated.jobs.items import (
    API,
    RESULT_DOMAIN,
    SESSION,
    Ack,
    Beat,
    Cancel,
    Failed,
    Have,
    Hello,
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
from federated.jobs.limits import OFFER_TASKS_MAX, RESULT_BYTES_MAX
from federated.jobs.manners import LOOK_S, REST_MS, Manners
from federated.jobs.quota import Pace, WorkQuota
from federated.jobs.running import Running
from federated.jobs.saving import SAVE_AFTER_S, Saving
from federated.jobs.worker_task import failed, read_spec, spec_size
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.jobs.handlers.base import Handler, HandlerInfo, PureHandler
    from federated.jobs.held import Held
    from federated.jobs.items import Item, OfferTask, TaskResult
    from federated.jobs.manners import Reading
    from federated.jobs.types import Row
    from federated.seams import GroupId, Mesh, TrustClass
    from p2p.env import Env, Offload
    from p2p.identity import PeerId
    from p2p.rpc_types import Caller, CallStream

log = logging.getLogger("covey.jobs.worker")

PURE_TASKS_MAX: Final = 64
"""Tasks of one trip to a thread: the trip costs as much as two small tasks."""
RETRY_MS: Final = {"busy": 500, "quota": 30_000, "battery": REST_MS, "in_use": REST_MS}
"""When we may be offered tasks again; after other refusals at once, elsewhere."""
STALL_S: Final = 30.0
"""A coordinator that takes nothing for so long is not there. Guess."""
UNACKED_MAX: Final = 4096
"""Results kept for a coordinator that does not acknowledge; beyond it takes no more tasks. What a
worker holds must fit into one item."""
UNKNOWN_MAX: Final = 1024
"""Effects without an outcome, likewise."""
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


class Worker:
    """Serves `job.session`.

    Args:
        mesh: the proven callers.
        handlers: what there is.
        env: the clock.
        offload: where blocking work goes.
        slots: tasks at once.
        parse_template: makes the filler of a template.
        held: where results and effects outlive a restart; None: results are kept in memory, and no
            effects are taken.
        held_bytes_max: results and effects of one coordinator.
        quota: work that others may have of this machine.
        bulk: carries large answers; None: they are refused.
        manners: when none of others is taken; None: there is no such time.
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
        held: Held | None = None,
        held_bytes_max: int = HELD_BYTES_MAX,
        quota: WorkQuota | None = None,
        bulk: Bulk | None = None,
        manners: Manners | None = None,
    ) -> None:
        self._mesh = mesh
        self._handlers = handlers
        self._env = env
        self._held = held
        self._held_bytes_max = held_bytes_max
        self._running = Running(env, offload, held, bulk or Bulk(None))
        self._quota = quota or WorkQuota()
        self._manners = manners or Manners()
        self._offload = offload
        self.slots = slots
        self._parse_template = parse_template
        self._desks: dict[PeerId, Desk] = {}
        self._allowance = Allowance(mesh, slots, self._desks)
        self._turns = self._allowance.turns
        self._work = trio.Event()
        self._saving = Saving(self._desks, held, env, bulk or Bulk(None))
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
            if self._held is not None:
                nursery.start_soon(self._saving.run)
                nursery.start_soon(self._saving.prune)
            if (look := self._manners.look) is not None:
                nursery.start_soon(self._observe, look)
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

    async def _observe(self, look: Callable[[], Reading]) -> None:
        while True:
            self._manners.saw(await self._offload.run(look))
            await trio.sleep(LOOK_S)

    # ---- sessions

    async def serve(self, caller: Caller, _request: bytes, call: CallStream) -> bytes:
        """One session of a coordinator; a newer one of it ends this one."""
        desk = self._desks.get(caller.peer)
        if desk is None:
            desk = self._desks[caller.peer] = Desk(caller.peer)
        if not self._allowance.admit(desk):
            await call.send(encode_item(Failed("quota", "another device of yours is served")))
            return b""
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
                if self._held is not None and not desk.loaded:
                    kept = await self._held.load(bytes(caller.peer), self._env.wall_ms())
                    if desk.session == session:
                        desk.merge(kept, self._env.now())
                await self._session_tasks(desk, call)
            finally:
                if desk.session == session:
                    desk.scope = None
        return b""

    def _trust(self, peer: PeerId, group: GroupId | None) -> TrustClass:
        return "own" if peer == self._mesh.id else self._mesh.trust(peer, group)

    async def _session_tasks(self, desk: Desk, call: CallStream) -> None:
        session = desk.session
        pace = Pace(self._env.now())
        self.greet(desk)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, desk, call)
            nursery.start_soon(self._beat, desk)
            try:
                async for data in call:
                    assert isinstance(data, bytes)
                    if desk.session != session:
                        break  # what an ended session still has to say is said again in the next
                    self._received(desk, decode_job_item_untrusted(data))
                    wait_s = pace.wait_s(len(data), desk.trust, self._env.now())
                    if wait_s:
                        await trio.sleep(wait_s)
                    await desk.taken()
            except DecodeError as error:
                self.counters["sessions_broken"] = self.counters.get("sessions_broken", 0) + 1
                with trio.move_on_after(1):
                    await call.send(encode_item(Failed("decode", str(error)[:256])))
                raise
            nursery.cancel_scope.cancel()

    def greet(self, desk: Desk) -> None:
        """What a session begins with."""
        desk.post(Hello(API, 0, self._offered(desk), None))
        if (credit := self._allowance.credit(desk, begin=True)) is not None:
            desk.post(credit)

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

    async def _write(self, desk: Desk, call: CallStream) -> None:
        """The only sender of a session: what was posted first, then results, in large items."""
        while True:
            if desk.replies or desk.outbox:
                item = desk.replies.popleft() if desk.replies else self._next_result(desk)
                with trio.move_on_after(STALL_S) as limit:
                    await call.send(encode_item(item))
                desk.sent.set()
                if limit.cancelled_caught and desk.scope is not None:
                    desk.scope.cancel()
            else:
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
            if desk.tasks and len(desk.replies) < REPLIES_MAX:
                desk.post(
                    Beat(
                        [(*ref, task.begun, task.progress) for ref, task in desk.tasks.items()],
                        self._allowance.load(self.slots - self._free.value, self._manners.seen),
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
                    desk.forget(ref)
            case Cancel():
                desk.cancel(item)
            case Hello():
                if item.api != API:
                    raise DecodeError(f"job items of version {item.api}, ours are {API}")
                desk.stale = item.epoch < desk.epoch
                desk.epoch = max(desk.epoch, item.epoch)
            case Have():
                desk.answer_have(set(item.jobs))
            case _:
                raise DecodeError("a coordinator sent a worker's item")
        if desk.drops or desk.spent:
            self._saving.wanted.set()

    def _spec(self, desk: Desk, item: Spec) -> None:
        spec = read_spec(item, self._parse_template)
        if desk.make_room(item.job, spec_size(item)):
            desk.jobs[item.job] = spec

    # ---- tasks

    def _offer(self, desk: Desk, item: Offer) -> None:
        accepted, refused = [], []
        if len(item.tasks) > OFFER_TASKS_MAX:
            raise DecodeError("more tasks than one offer may have")
        desk.lease_s = min(60.0, max(1.0, item.lease_ms / 1000))
        for offered in item.tasks:
            ref = (item.job, offered.task, offered.attempt)
            why = self._take(desk, item, offered)
            if why:
                refused.append(Refusal(ref, why, RETRY_MS.get(why, 0)))
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
        if ref in desk.tasks or ref in desk.unacked or ref in desk.unknown:
            return ""
        if self.draining:
            return "draining"
        if desk.stale:
            return "stale_epoch"
        if desk.peer != self._mesh.id and (why := self._manners.refusal()):
            return why
        job = desk.jobs.get(item.job)
        if job is None:
            # One that was left out for others is told again with the next offer.
            return "busy" if item.job in desk.left_out else "policy"
        trust = self._trust(desk.peer, job.spec.group)
        try:
            handler = self._handlers.get(job.spec.handler, trust, job.spec.group)
        except HandlerError as error:
            return error.reason
        if handler.info.effect != job.spec.effect:
            return "version"
        if job.spec.effect and self._held is None:
            return "policy"
        owner, now = self._mesh.owner(desk.peer, job.spec.group), self._env.now()
        if self._quota.spent(owner, bytes(desk.peer), trust, now):
            return "quota"
        if self._allowance.full(desk) or len(desk.unacked) >= UNACKED_MAX:
            return "busy"
        if desk.held_bytes + desk.effect_bytes > self._held_bytes_max:
            return "quota"
        if len(desk.unknown) > UNKNOWN_MAX:
            return "quota"
        task = TaskHere(
            desk, job, offered.task, offered.attempt, offered.rows, handler,
            now + offered.deadline_ms / 1000, trust=trust, owner=owner,
        )  # fmt: skip
        desk.add_task(task)
        if desk not in self._turns:
            self._turns.add(desk)
        return ""

    def _next_tasks(self) -> list[TaskHere]:
        """A task to run, or as many quick ones as one trip to a thread takes."""
        while self._turns:
            desk = self._turns.take()
            share = desk.share
            batch: list[TaskHere] = []
            while desk.queue and len(batch) < PURE_TASKS_MAX:
                task = desk.queue[0]
                if task.cancelled:
                    desk.queue.popleft()
                    continue
                if task.deadline <= self._env.now() and not task.effect:
                    desk.queue.popleft()
                    error = HandlerError("deadline")
                    self._finish(task, failed(task.task, task.attempt, error, Usage()))
                    continue
                pure = is_quick(task)
                if batch and not pure:
                    break
                desk.queue.popleft()
                task.running = True
                batch.append(task)
                if not pure:
                    break
            if desk.queue:
                self._turns.add(desk)
            if batch:
                return batch
            self._turns.end(share)
        return []

    async def _work_on(self, batch: list[TaskHere]) -> None:
        first, began = batch[0], self._env.now()
        try:
            with self._allowance.using(batch[0].desk, len(batch), self._env.now):
                await self._work_through(batch)
        finally:
            now = self._env.now()
            device = bytes(first.desk.peer)
            self._quota.charge(first.owner, device, first.trust, now - began, now)
            self._free.release()
            self._work.set()

    async def _work_through(self, batch: list[TaskHere]) -> None:
        if is_quick(batch[0]):
            for task in batch:
                task.begun = True
            began = self._env.now()
            results = await self._running.quick(batch)
            for task, result in with_times(batch, results, self._env.now() - began):
                self._finish(task, result)
        elif batch[0].effect:
            await self._work_once(batch[0])
        else:
            await self._work_long(batch[0])

    async def _work_long(self, task: TaskHere) -> None:
        result = await self._running.one(task)
        saved = False
        if result.usage.wall_ms >= SAVE_AFTER_S * 1000 and not task.cancelled:
            saved = await self._saving.saved([self._saving.put(task.desk, task.ref, result)], [])
        self._finish(task, result, on_disk=saved)

    async def _work_once(self, task: TaskHere) -> None:
        if task.cancelled:
            return
        found = await self._running.effect(task)
        if found is None:
            task.desk.tasks.pop(task.ref, None)
            return
        result, on_disk = found
        self._finish(task, result, on_disk=on_disk)

    def _finish(self, task: TaskHere, result: TaskResult, *, on_disk: bool = False) -> None:
        desk = task.desk
        if desk.tasks.pop(task.ref, None) is None or task.cancelled:
            if on_disk:
                desk.drops.append(task.ref)
            if result.in_blob:
                desk.spent.append((task.ref, result.rows))
            return
        until_ms = self._env.wall_ms() + HELD_MS
        desk.keep(task.ref, Waiting(result, self._env.now(), until_ms, on_disk))
        self._saving.wanted.set()


def is_quick(task: TaskHere) -> bool:
    """Whether many of its kind run in one trip to a thread."""
    return hasattr(task.handler, "compute") and not task.effect
