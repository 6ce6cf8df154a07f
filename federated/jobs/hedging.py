"""What is late at one peer is done at another: copies, tasks taken back, limits.

Theory of operation. Most of a job's time is lost at its end, to the few tasks that hang and to
queues at slow peers. Once nothing is queued and peers idle, a task that runs longer than nineteen
in twenty do, or waits twice as long, is copied to an idle peer that has not tried it; the first
answer wins and the other attempt is cancelled. At most two attempts of a task live, and a job has
at most 15 % copies. Tasks that wait in the longest queue are asked back for an idle peer; one that
its worker never started counts as no try. A task that runs beyond its limit is lost, whatever its
worker says.

A hostile worker can say `running` for ever (the limit), or give back what it was not asked for
(ignored). Source: docs/specs/jobs.md s.5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from federated.jobs import effects
from federated.jobs.items import Cancel
from federated.jobs.state import (
    ATTEMPT_TRANSITIONS,
    AttemptInput,
    TaskState,
    step,
)
from federated.jobs.types import JobId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.jobs.board import Board, PeerCell
    from federated.jobs.items import Cancelled
    from federated.jobs.leasing import Leasing
    from federated.jobs.schedule import Lane
    from federated.jobs.state import Attempt, Job

EXTRA_SHARE: Final = 0.15
"""Copies a job may have, of its tasks; one at least (tasks.md s.5 point 8)."""
MEDIANS: Final = 1.5
WAIT_LIMITS: Final = 2.0
LATE_LEAST_S: Final = 0.5
"""Nothing is late before: a tick comes each 0.2 s, and a beat much later."""
WALL_UNKNOWN_S: Final = 86_400.0
"""The longest a handler may be configured to take; of handlers that only others have."""
UNSTARTED_WALLS: Final = 10
TRANSFER_S: Final = 0.05
"""What moving a task costs besides. Guess."""


class Hedging:
    """Late attempts of all jobs.

    Args:
        board: the machine's memory.
        leasing: makes and ends attempts.
    """

    def __init__(self, board: Board, leasing: Leasing) -> None:
        self._board = board
        self._leasing = leasing

    def tick(self, now: float, wall_ms: int) -> None:
        """Look for what is late; after what is queued was offered."""
        jobs = [job for job in self._board.live_jobs() if job.live]
        for job in jobs:
            self._limit(job, now, wall_ms)
        for cell in self._board.peers.values():
            _infer_starts(cell, now)
        idle = [cell for cell in self._board.peers.values() if _free_slots(cell) > 0]
        if not idle:
            return
        for job in jobs:
            if job.leasing and job.spec.hedge and job.spec.effect == "none":
                self._hedge(job, idle, now, wall_ms)
        if not any(job.leasing and job.queue for job in self._board.jobs.values()):
            self._steal(jobs, idle, wall_ms)

    # ---- limits

    def wall_s(self, job: Job) -> float:
        """Seconds a task of a job may run."""
        info = self._board.own_handlers.get(job.spec.handler)
        own = WALL_UNKNOWN_S if info is None else info.limits.wall_s
        return min(own, job.spec.limits.wall_s or own)

    def _limit(self, job: Job, now: float, wall_ms: int) -> None:
        """Lose what runs or waits beyond every limit, though its leases are renewed."""
        if not effects.repeatable(self._board, job):
            return  # its worker may still say what became of it; the deadline ends the wait
        wall_s = self.wall_s(job)
        runs_s = wall_s + self._board.times.grace_s
        for attempt in list(job.live):
            since, most_s = attempt.offered, UNSTARTED_WALLS * wall_s
            if attempt.started is not None:
                since, most_s = attempt.started, runs_s
            if now - since > most_s:
                self._tell(attempt, Cancel(job.id, [(attempt.task.index, attempt.number)], False))
                self._leasing.lose(job, attempt, now, wall_ms)

    def _tell(self, attempt: Attempt, item: Cancel) -> None:
        cell = self._board.peers.get(attempt.peer)
        if cell is not None and not cell.down:
            self._board.orders.send(attempt.peer, item)

    # ---- copies

    def _hedge(self, job: Job, idle: Sequence[PeerCell], now: float, wall_ms: int) -> None:
        late = [attempt for attempt in job.live if self._late(job, attempt, now)]
        late.sort(key=lambda attempt: attempt.offered)
        most = max(1, int(EXTRA_SHARE * len(job.tasks)))
        for attempt in late:
            if job.extra >= most or not job.leasing:
                return
            lane = self._for_copy(job, attempt, idle, wall_ms)
            if lane is not None:
                self._leasing.offer_copy(job, attempt.task, lane, now, wall_ms)

    def _late(self, job: Job, attempt: Attempt, now: float) -> bool:
        task = attempt.task
        if task.live > 1 or task.audit or task.state not in {TaskState.LEASED, TaskState.RUNNING}:
            return False
        limit_s = self._limit_s(job, task.bytes)
        if attempt.began is None or math.isinf(attempt.began):
            return now - attempt.offered > WAIT_LIMITS * limit_s
        return now - attempt.began > limit_s

    def _limit_s(self, job: Job, size: int) -> float:
        """Seconds after which a task that runs is late."""
        durations, handler = self._leasing.durations, job.spec.handler
        if not durations.known(handler, size):
            return self.wall_s(job)
        p95, median = durations.p95(handler, size), durations.t50(handler, size)
        return max(p95, MEDIANS * median, LATE_LEAST_S)

    def _for_copy(
        self, job: Job, attempt: Attempt, idle: Sequence[PeerCell], wall_ms: int
    ) -> Lane | None:
        """The idle peer that is quickest of those that have not tried a task."""
        task = attempt.task
        if job.rows[task.ks[0]].pin is not None:
            return None
        tried = {one.peer for one in task.attempts.values()}
        free = [cell for cell in idle if cell.peer not in tried and _free_slots(cell) > 0]
        choosing = self._leasing.choosing
        lanes = choosing.fitting(job, task, choosing.lanes(job, free, wall_ms))
        return min(lanes, key=lambda lane: lane.slowness, default=None)

    # ---- tasks asked back

    def _steal(self, jobs: Sequence[Job], idle: Sequence[PeerCell], wall_ms: int) -> None:
        """Ask tasks back that wait where the queue is longest, one for each idle slot."""
        owner_of = {attempt: job for job in jobs if job.leasing for attempt in job.live}
        for thief in idle:
            for _ in range(_free_slots(thief)):
                if not self._steal_for(thief, owner_of, wall_ms):
                    break

    def _steal_for(self, thief: PeerCell, owner_of: dict[Attempt, Job], wall_ms: int) -> bool:
        victims = [
            (cell, queue)
            for cell in self._board.peers.values()
            if cell is not thief and (queue := _queue(cell))
        ]
        if not victims:
            return False
        victim, queue = max(victims, key=lambda one: len(one[1]))
        attempt = queue[-1]
        job = owner_of.get(attempt)
        if job is None or not self._worth(job, attempt, len(queue), victim, thief, wall_ms):
            return False
        attempt.revoking = True
        self._tell(attempt, Cancel(job.id, [(attempt.task.index, attempt.number)], True))
        return True

    def _worth(
        self, job: Job, attempt: Attempt, queued: int, victim: PeerCell, thief: PeerCell,
        wall_ms: int,
    ) -> bool:  # fmt: skip
        """Whether an idle peer would have a task done enough sooner."""
        task = attempt.task
        if task.live > 1 or task.audit or job.rows[task.ks[0]].pin is not None:
            return False
        choosing = self._leasing.choosing
        lanes = choosing.fitting(job, task, choosing.lanes(job, [thief], wall_ms))
        if not lanes or any(one.peer == thief.peer for one in task.attempts.values()):
            return False
        handler = job.spec.handler
        t50_s = self._leasing.durations.t50(handler, task.bytes)
        there_s = t50_s * victim.view.slow(handler) * (1 + queued / attempt.slots)
        here_s = t50_s * lanes[0].slowness + lanes[0].cold_s
        return there_s - here_s > TRANSFER_S

    def gave_back(self, cell: PeerCell, item: Cancelled) -> None:
        """A worker says what became of tasks we asked back."""
        job = self._board.jobs.get(JobId(item.job))
        if job is None or job.final:
            return
        for index, number in item.never_started:
            task = job.tasks[index] if 0 <= index < len(job.tasks) else None
            attempt = None if task is None else task.attempts.get(number)
            if attempt is None or attempt.peer != cell.peer or not attempt.revoking:
                continue
            if not attempt.live:
                continue
            attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.CANCEL)
            self._leasing.release(job, attempt)
            if effects.once(job):
                effects.keep_attempt(self._board.orders, job, attempt, "never_started")
            del attempt.task.attempts[number]
            self._board.uncount(job)
            self._board.count("attempts_given_back")
            self._leasing.give_back(job, attempt.task)


def _free_slots(cell: PeerCell) -> int:
    """Tasks a peer could begin at once."""
    if cell.room <= 0 or not cell.handlers:
        return 0
    slots = max(offered.slots for offered in cell.handlers.values())
    return min(cell.room, slots - len(cell.outstanding))


def _queue(cell: PeerCell) -> list[Attempt]:
    """Attempts that wait at a peer, as far as we know, and were not asked back yet."""
    if cell.down or cell.silent:
        return []
    return [
        one for one in cell.outstanding
        if one.started is None and not one.revoking and (one.began is None or math.isinf(one.began))
    ]  # fmt: skip


def _infer_starts(cell: PeerCell, now: float) -> None:
    """A worker begins tasks in the order of their offers, so many at once as it has slots."""
    running = 0
    for attempt in cell.outstanding:
        if running >= attempt.slots:
            return
        if attempt.began is None:
            attempt.began = now
        if not math.isinf(attempt.began):
            running += 1
