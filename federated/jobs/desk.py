"""What a coordinator has at a worker: tasks that wait and run, results not yet acknowledged.

A desk outlives the sessions of its coordinator. While there is none, results that are on the disk
leave memory; the next session reads them back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from federated.jobs.credit import Grant
from federated.jobs.items import Cancelled, Holding
from federated.jobs.limits import JOBS_LIVE_MAX, SPECS_BYTES_MAX
from federated.jobs.worker_task import spec_size

if TYPE_CHECKING:
    from federated.jobs.handlers.base import Handler, PureHandler
    from federated.jobs.held import Kept
    from federated.jobs.items import Cancel, HeldState, Item, Ref, TaskResult
    from federated.jobs.worker_task import JobHere
    from federated.seams import TrustClass
    from p2p.identity import PeerId

RESULT_BYTES: Final = 128
"""What a result takes besides its rows."""
JOBS_MAX: Final = JOBS_LIVE_MAX
"""Specs kept of one coordinator."""
LEFT_OUT_MAX: Final = 1024
"""Jobs remembered whose specs were not kept: 16 bytes each."""
REPLIES_MAX: Final = 64
"""Items that may wait for a coordinator before no more of it is read."""


@dataclass(slots=True, eq=False)
class TaskHere:
    """A task that a coordinator left here.

    Attributes:
        running: it has left the queue.
        begun: its handler may have started; of an effect, once that is on the disk.
        trust, owner: what its coordinator is to us in the job's group, and whose device it is.
    """

    desk: Desk
    job: JobHere
    task: int
    attempt: int
    rows: bytes
    handler: Handler | PureHandler
    deadline: float
    running: bool = False
    begun: bool = False
    cancelled: bool = False
    progress: float = 0.0
    scope: trio.CancelScope | None = None
    trust: TrustClass = "none"
    owner: bytes = b""

    @property
    def ref(self) -> Ref:
        """Names its attempt."""
        return self.job.spec.job, self.task, self.attempt

    @property
    def effect(self) -> bool:
        """Whether it acts on the world."""
        return self.job.spec.effect


@dataclass(slots=True, eq=False)
class Waiting:
    """A result that its coordinator has not acknowledged.

    Attributes:
        since: monotonic seconds of its end.
        expires_ms: Unix milliseconds until which it is kept.
        on_disk: whether a restart finds it.
    """

    result: TaskResult
    since: float
    expires_ms: int
    on_disk: bool

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return len(self.result.rows) + RESULT_BYTES


@dataclass(slots=True, eq=False)
class Desk:
    """What a coordinator has here, over its sessions.

    Attributes:
        share: what it is to us at best, in any group: decides its share of the slots.
        payer: whose device it is there.
        grant: how many tasks it may leave here.
        left_out: jobs whose specs had no room here, the oldest first.
        unacked: results to tell until they are acknowledged.
        unknown: attempts with effects that began here and will have no answer.
        outbox: (job, result) to send in this session.
        drops: refs whose results on the disk are wanted no more.
        spent: (ref, rows) of results whose blobs are wanted no more.
        loaded: whether what is on the disk is known here.
        held_bytes: of `unacked`.
        effect_bytes: what rows of effects take on the disk.
        sent: set when an item has left.
    """

    peer: PeerId
    trust: TrustClass = "none"
    owner: bytes = b""
    share: TrustClass = "none"
    payer: bytes = b""
    grant: Grant = field(default_factory=Grant)
    epoch: int = 0
    session: int = 0
    stale: bool = False
    jobs: dict[bytes, JobHere] = field(default_factory=dict)
    left_out: dict[bytes, None] = field(default_factory=dict)
    tasks: dict[Ref, TaskHere] = field(default_factory=dict)
    queue: deque[TaskHere] = field(default_factory=deque)
    unacked: dict[Ref, Waiting] = field(default_factory=dict)
    unknown: set[Ref] = field(default_factory=set)
    outbox: deque[tuple[bytes, TaskResult]] = field(default_factory=deque)
    drops: list[Ref] = field(default_factory=list)
    spent: list[tuple[Ref, bytes]] = field(default_factory=list)
    loaded: bool = False
    held_bytes: int = 0
    effect_bytes: int = 0
    replies: deque[Item] = field(default_factory=deque)
    work: trio.Event = field(default_factory=trio.Event)
    sent: trio.Event = field(default_factory=trio.Event)
    lease_s: float = 10.0
    scope: trio.CancelScope | None = None

    # ---- specs

    def make_room(self, job: bytes, size: int) -> bool:
        """Forget specs of jobs that have no task here, the longest unused first, for another's.

        Args:
            job: whose spec comes.
            size: its bytes.

        Returns:
            Whether there is room now; if not its offers are refused as `busy` until there is.
        """
        self.jobs.pop(job, None)
        sizes = {ident: spec_size(one.spec) for ident, one in self.jobs.items()}
        busy = {ref[0] for ref in self.tasks}
        spare = [ident for ident in sizes if ident not in busy]
        total = sum(sizes.values()) + size
        while spare and (len(self.jobs) >= JOBS_MAX or total > SPECS_BYTES_MAX):
            ident = spare.pop(0)
            total -= sizes[ident]
            del self.jobs[ident]
            self._leave_out(ident)
        if len(self.jobs) >= JOBS_MAX or total > SPECS_BYTES_MAX:
            self._leave_out(job)
            return False
        self.left_out.pop(job, None)
        return True

    def _leave_out(self, job: bytes) -> None:
        self.left_out[job] = None
        if len(self.left_out) > LEFT_OUT_MAX:
            del self.left_out[next(iter(self.left_out))]

    def add_task(self, task: TaskHere) -> None:
        """Queue an offered task; its job was used last."""
        self.tasks[task.ref] = task
        self.queue.append(task)
        ident = task.job.spec.job
        if next(reversed(self.jobs)) != ident:
            self.jobs[ident] = self.jobs.pop(ident)

    def post(self, item: Item) -> None:
        """Send an item when the session's writer comes to it."""
        self.replies.append(item)
        self.work.set()

    async def taken(self) -> None:
        """Wait while the coordinator takes no answers: who does not read is not read either."""
        while len(self.replies) > REPLIES_MAX:
            self.sent = trio.Event()
            await self.sent.wait()

    # ---- results

    def keep(self, ref: Ref, waiting: Waiting) -> None:
        """Have a result sent until it is acknowledged."""
        self.add(ref, waiting)
        self.outbox.append((ref[0], waiting.result))
        self.work.set()

    def add(self, ref: Ref, waiting: Waiting) -> None:
        """Count a result among the unacknowledged ones."""
        self.unacked[ref] = waiting
        self.held_bytes += waiting.size

    def forget(self, ref: Ref) -> bool:
        """A result is wanted no more; whether there was one."""
        waiting = self.unacked.pop(ref, None)
        if waiting is None:
            return False
        self.held_bytes -= waiting.size
        if waiting.on_disk:
            self.drops.append(ref)
        if waiting.result.in_blob:
            self.spent.append((ref, waiting.result.rows))
        return True

    def merge(self, kept: Kept, now: float) -> None:
        """Know again what is on the disk."""
        gone = set(self.drops)
        for ref, (result, expires_ms) in kept.results.items():
            if ref not in self.unacked and ref not in gone and ref not in self.tasks:
                self.add(ref, Waiting(result, now, expires_ms, on_disk=True))
        self.unknown |= kept.started - self.tasks.keys() - self.unacked.keys()
        self.effect_bytes = kept.effect_bytes
        self.loaded = True

    def unload(self) -> None:
        """Let go of what is on the disk; the next session reads it."""
        for ref in [ref for ref, waiting in self.unacked.items() if waiting.on_disk]:
            self.held_bytes -= self.unacked.pop(ref).size
        self.outbox.clear()
        self.loaded = False

    # ---- what the coordinator asks

    def answer_have(self, live: set[bytes]) -> None:
        """Forget what is over, tell what is here, send again what was not acknowledged."""
        for job in {ref[0] for ref in (*self.tasks, *self.unacked)} | self.jobs.keys():
            if job not in live:
                self.drop_job(job)
        self.unknown = {ref for ref in self.unknown if ref[0] in live}
        self.left_out = {job: None for job in self.left_out if job in live}
        held: list[tuple[bytes, int, int, HeldState]] = [
            (*ref, "running" if task.begun else "queued") for ref, task in self.tasks.items()
        ]
        held += [(*ref, "finished") for ref in self.unacked]
        held += [(*ref, "unknown") for ref in sorted(self.unknown)]
        self.post(Holding(held))
        self.outbox = deque((ref[0], waiting.result) for ref, waiting in self.unacked.items())
        self.work.set()

    def drop_job(self, job: bytes) -> None:
        """A job is over: stop its tasks, forget its results."""
        for ref, task in list(self.tasks.items()):
            if ref[0] == job:
                self.stop(task)
        for ref in [ref for ref in self.unacked if ref[0] == job]:
            self.forget(ref)
        self.outbox = deque(pair for pair in self.outbox if pair[0] != job)
        self.jobs.pop(job, None)

    def stop(self, task: TaskHere) -> None:
        """End a task; one whose effect may have begun stays known as that."""
        task.cancelled = True
        self.tasks.pop(task.ref, None)
        if not task.running:
            self.queue.remove(task)
        if task.effect and task.running:
            self.unknown.add(task.ref)
        if task.scope is not None:
            task.scope.cancel()

    def cancel(self, item: Cancel) -> None:
        """Stop what is asked, and say what was met."""
        stopped: list[tuple[int, int]] = []
        never: list[tuple[int, int]] = []
        already: list[tuple[int, int]] = []
        wanted = None if item.attempts is None else set(item.attempts)
        for (job, number, attempt), task in list(self.tasks.items()):
            if job != item.job or (wanted is not None and (number, attempt) not in wanted):
                continue
            if task.running and item.unstarted_only:
                continue
            (stopped if task.running else never).append((number, attempt))
            self.stop(task)
        for ref in [ref for ref in self.unacked if ref[0] == item.job]:
            if wanted is None or (ref[1], ref[2]) in wanted:
                already.append((ref[1], ref[2]))
                self.forget(ref)
        if wanted is None:
            self.jobs.pop(item.job, None)
        self.post(Cancelled(item.job, stopped, never, already))
