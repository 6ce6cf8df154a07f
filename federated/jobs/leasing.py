"""Handing tasks out: offers, leases, refusals, losses and second tries.

Theory of operation. Each worker has a credit, which it grants, and a window, which we trust it
with: a new one gets one task, twice as many after each window that came back clean, half after
three refusals for being busy. An offered task is leased for ten seconds; beats renew the lease.
When a lease ends the attempt is lost and its rows go to another peer, which counts as a try. A
refusal counts as nothing: whoever is busy, on battery or out of quota says so without harm.

A hostile worker can take tasks and sleep (the lease ends, and a task that runs beyond its limit is
lost whatever it beats), refuse for ever (the task goes elsewhere), or answer garbage (`settling`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from federated.jobs import effects
from federated.jobs.choosing import Choosing, PrefixOf, prefix_of
from federated.jobs.hedging import Hedging
from federated.jobs.items import Cancel, Offer, OfferTask, Spec
from federated.jobs.limits import INLINE_BYTES_MAX, OFFER_TASKS_MAX
from federated.jobs.schedule import (
    TOOK_LEAST_S,
    Lane,
    Need,
)
from federated.jobs.state import (
    ATTEMPT_TRANSITIONS,
    TASK_TRANSITIONS,
    Attempt,
    AttemptInput,
    AttemptState,
    JobInput,
    JobPhase,
    TaskInput,
    TaskState,
    step,
)
from federated.jobs.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.jobs.board import Board, PeerCell
    from federated.jobs.state import Job, TaskCell
    from p2p.identity import PeerId

RETRYABLE: Final = frozenset({"timeout", "busy", "unavailable", "quota", "lost"})
"""Failures that say nothing about the row: another peer, or later, may do."""

SCAN_MAX: Final = 256
"""Tasks looked at for a peer that may have them, when those before it may not be offered now."""

WINDOW_MAX: Final = 4096
HALVE_AFTER: Final = 3
SILENT_SHARE: Final = 0.7
"""Of a lease without a word from a peer that has tasks: two beats are missing."""
REST_S: Final = 5.0
"""A peer that refuses and says to come again after so long is offered nothing until then: its
battery, its user or its quota is why, not the task."""
SILENT_LEASES: Final = 3
"""A silent peer is tried again after so many. Guess."""
TAKEN_BACK_FROM: Final = frozenset({TaskState.LEASED, TaskState.RUNNING, TaskState.VERIFYING})


class Leasing:
    """Tasks on their way to peers.

    Args:
        board: the machine's memory.
        spec_item: makes the `Spec` of a job; the coordinator knows how.
        row_bytes: canonical bytes of a task's rows for an attempt.
        gave_up: told a task whose rows will get no answer, and why.
        prefix_of: blocks a task begins with; empty where all peers are alike.
    """

    def __init__(
        self,
        board: Board,
        *,
        spec_item: Callable[[Job], Spec],
        row_bytes: Callable[[Job, Sequence[int]], bytes],
        gave_up: Callable[[Job, TaskCell, str, int], None],
        prefix_of: PrefixOf = prefix_of,
    ) -> None:
        self._board = board
        self._spec_item = spec_item
        self._row_bytes = row_bytes
        self._gave_up = gave_up
        self._turns = Turns()
        self.choosing = Choosing(board, prefix_of)
        self.durations = self.choosing.durations
        self.hedging = Hedging(board, self)

    # ---- offers

    def fill(self, now: float, wall_ms: int) -> None:
        """Offer what is queued to whoever has room."""
        if self._board.halted:
            return
        ready = [job for job in self._board.jobs.values() if job.leasing and job.queue]
        if not ready:
            return
        roomy = [cell for cell in self._board.peers.values() if cell.room > 0]
        if not roomy:
            return

        def give(job: Job, budget_s: float) -> float:
            given_s = self._fill_job(job, roomy, budget_s, now, wall_ms)
            roomy[:] = [cell for cell in roomy if cell.room > 0]
            return given_s

        def rest_s(job: Job) -> float:
            size = job.queue[0].bytes
            cells = self._board.peers.values()
            slots = sum(self.choosing.slots(job, cell, wall_ms) for cell in cells)
            return len(job.queue) * self.durations.t50(job.spec.handler, size) / max(1, slots)

        self._turns.serve(ready, now, rest_s=rest_s, give=give, more=lambda: bool(roomy))

    def _fill_job(
        self, job: Job, roomy: Sequence[PeerCell], budget_s: float, now: float, wall_ms: int
    ) -> float:
        """Offer tasks of a job worth up to so many slot-seconds; the slot-seconds offered."""
        lanes = self.choosing.lanes(job, roomy, wall_ms)
        offers: dict[PeerId, list[OfferTask]] = {}
        passed: list[TaskCell] = []
        plain: dict[int, Need] = {}
        given_s = 0.0
        queue = job.queue
        while queue and lanes and job.leasing and given_s < budget_s and len(passed) < SCAN_MAX:
            task = queue.popleft()
            if task.state is not TaskState.QUEUED:
                continue
            need = None if task.avoid or task.attempts else plain.get(task.bytes)
            if need is None:
                need = self.choosing.need(job, task)
                if not need.blocks and not need.tried:
                    plain[task.bytes] = need
            lane = self.choosing.pick(job, task, lanes, need, now)
            if lane is None:
                passed.append(task)
                continue
            if self.choosing.too_late(job, lane, need, now):
                if now + need.cost(lane) > job.deadline:
                    self._gave_up(job, task, "deadline", wall_ms)
                else:
                    passed.append(task)
                continue
            offers.setdefault(lane.cell.peer, []).append(self._offer(job, task, lane, need, now))
            given_s += need.t50_s * lane.slowness
            lane.room -= 1
            if lane.room <= 0:
                lanes.remove(lane)
            if self._out_of_executions(job, wall_ms):
                break
        queue.extendleft(reversed(passed))
        if offers:
            self._sent(job, offers, now, wall_ms)
        return given_s

    def _sent(
        self, job: Job, offers: dict[PeerId, list[OfferTask]], now: float, wall_ms: int
    ) -> None:
        for ident, tasks in offers.items():
            self._send_offers(job, self._board.peers[ident], tasks)
        job.served_at = now
        job.reason = ""
        if job.phase is JobPhase.QUEUED:
            job.move(JobInput.LEASED)
            self._board.keep_job(job)
            self._board.tell_state(job, wall_ms)

    def _offer(self, job: Job, task: TaskCell, lane: Lane, need: Need, now: float) -> OfferTask:
        board = self._board
        ks = task.ks if task.audit else job.pending(task)
        number = board.rng.getrandbits(16)
        while number in task.attempts:
            number = board.rng.getrandbits(16)
        cell = lane.cell
        attempt = Attempt(task, number, cell.peer, lane.owner, ks, now, board.times.lease_s)
        attempt.session = cell.session
        if task.live:
            attempt.overlapped = True
            for other in task.attempts.values():
                other.overlapped = other.overlapped or other.live
        task.attempts[number] = attempt
        task.live += 1
        task.state = step(TASK_TRANSITIONS, task.state, TaskInput.OFFERED)
        self._schedule(attempt, lane, need, now)
        cell.outstanding[attempt] = None
        job.live[attempt] = None
        job.executions += 1
        rows = self._row_bytes(job, ks)
        left_ms = max(0, int((job.deadline - now) * 1000))
        return OfferTask(task.index, number, rows, False, left_ms)

    def _schedule(self, attempt: Attempt, lane: Lane, need: Need, now: float) -> None:
        """Note what was expected of an attempt."""
        cost_s = need.cost(lane)
        attempt.slots = lane.slots
        attempt.share_s = cost_s / lane.slots
        attempt.expected_s = need.t50_s if need.known else 0.0
        if lane.cold_s or need.blocks:
            attempt.apart_s = cost_s - need.t50_s * lane.slowness
            attempt.expected_s += attempt.apart_s if need.known else 0.0
            lane.view.read(need.blocks)
            self.choosing.popularity.count(need.blocks, now)
        lane.view.given(now, attempt.share_s)
        if len(lane.cell.outstanding) < lane.slots:
            attempt.began = now

    def offer_copy(self, job: Job, task: TaskCell, lane: Lane, now: float, wall_ms: int) -> None:
        """Have a second peer do a task that is late at the first."""
        offered = self._offer(job, task, lane, self.choosing.need(job, task), now)
        task.attempts[offered.attempt].hedge = True
        job.extra += 1
        self._sent(job, {lane.cell.peer: [offered]}, now, wall_ms)
        self._out_of_executions(job, wall_ms)

    def _send_offers(self, job: Job, peer: PeerCell, tasks: list[OfferTask]) -> None:
        orders = effects.outlet(self._board, job, peer)
        if job.id not in peer.specs:
            peer.specs.add(job.id)
            orders.send(peer.peer, self._spec_item(job))
        lease_ms = int(self._board.times.lease_s * 1000)
        part: list[OfferTask] = []
        size = 0
        for task in tasks:
            if part and (len(part) >= OFFER_TASKS_MAX or size + len(task.rows) > INLINE_BYTES_MAX):
                orders.send(peer.peer, Offer(job.id, lease_ms, part))
                part, size = [], 0
            part.append(task)
            size += len(task.rows)
        orders.send(peer.peer, Offer(job.id, lease_ms, part))

    def _out_of_executions(self, job: Job, wall_ms: int) -> bool:
        if job.executions_max is None or job.executions < job.executions_max:
            return False
        job.move(JobInput.OUT_OF_EXECUTIONS)
        job.reason = "executions"
        self._board.keep_job(job, full=True)
        self._board.tell_state(job, wall_ms)
        return True

    # ---- what peers say of attempts

    def accepted(self, attempt: Attempt, now: float) -> None:
        """A peer took a task."""
        if attempt.state is AttemptState.OFFERED:
            attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.ACCEPT)
            self._renew(attempt, now)

    def refused(
        self, job: Job, attempt: Attempt, peer: PeerCell, why: str, retry_s: float, now: float
    ) -> None:
        """A peer did not take a task: no try is spent."""
        if attempt.state is not AttemptState.OFFERED:
            return
        attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.REFUSE)
        self.release(job, attempt)
        self._board.uncount(job)
        task = attempt.task
        if why == "busy":
            self._too_fast(peer)
            # It may have had to forget the job; the next offer tells it again.
            peer.specs.discard(job.id)
        elif why in {"policy", "unknown_handler", "version"}:
            peer.handlers.pop(job.spec.handler, None)
        else:
            task.avoid.add(attempt.owner)
        if effects.once(job):
            effects.keep_attempt(self._board.orders, job, attempt, why)
        del task.attempts[attempt.number]
        job.extra -= attempt.hedge
        wait_s = min(retry_s, self._board.times.retry_cap_s)
        if wait_s >= REST_S:
            # It is the peer that wants rest, whatever the task; others may have it at once.
            peer.rest_end = now + wait_s
            wait_s = 0.0
        self._take_back(job, task, now + wait_s if wait_s else 0.0)

    def beat(self, attempt: Attempt, now: float, *, running: bool, share: float) -> None:
        """A peer still has a task."""
        if not attempt.live:
            return
        self._renew(attempt, now)
        if running and attempt.started is None:
            attempt.started = now
            if attempt.began is None or attempt.began > now:
                attempt.began = now
            attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.START)
            if attempt.task.state is TaskState.LEASED:
                attempt.task.state = step(
                    TASK_TRANSITIONS, attempt.task.state, TaskInput.BEAT_RUNNING
                )
        elif not running and attempt.started is None:
            attempt.began = math.inf
        attempt.progress = min(1.0, max(0.0, share))

    def _renew(self, attempt: Attempt, now: float) -> None:
        attempt.seen = now
        attempt.lease_end = now + self._board.times.lease_s

    def answered(
        self, job: Job, peer: PeerCell, attempt: Attempt, told_s: float, now: float
    ) -> None:
        """A result came back: the window grows when a whole one did, and the peer is known better.

        Its own word on how long it took counts up to what was seen from here.
        """
        handler = job.spec.handler
        took_s = max(TOOK_LEAST_S, min(told_s, now - attempt.offered))
        if attempt.expected_s:
            peer.view.observe(handler, took_s / attempt.expected_s)
        rest_s = max(TOOK_LEAST_S, took_s - attempt.apart_s)
        self.durations.add(handler, attempt.task.bytes, rest_s)
        peer.view.corrected(attempt.offered, took_s / attempt.slots)
        peer.busy = 0
        peer.clean += 1
        if peer.clean >= peer.window and peer.window < WINDOW_MAX:
            peer.window *= 2
            peer.clean = 0

    def _too_fast(self, peer: PeerCell) -> None:
        peer.busy += 1
        peer.clean = 0
        if peer.busy >= HALVE_AFTER:
            peer.busy = 0
            peer.window = max(1, peer.window // 2)

    # ---- ends of attempts

    def release(self, job: Job, attempt: Attempt) -> None:
        """An attempt is live no more."""
        attempt.task.live -= 1
        job.live.pop(attempt, None)
        peer = self._board.peers.get(attempt.peer)
        if peer is not None:
            peer.outstanding.pop(attempt, None)
            peer.view.corrected(attempt.offered, -attempt.share_s)

    def _take_back(self, job: Job, task: TaskCell, due: float) -> None:
        """Queue a task again that no peer has; at once, or when `due`."""
        if task.live or task.state not in TAKEN_BACK_FROM:
            return
        if due > 0:
            self._wait(job, task, due)
        else:
            task.state = step(TASK_TRANSITIONS, task.state, TaskInput.TAKEN_BACK)
            job.queue.appendleft(task)

    def _wait(self, job: Job, task: TaskCell, due: float) -> None:
        task.due = due
        task.state = step(TASK_TRANSITIONS, task.state, TaskInput.RETRY)
        job.waiting.append(task)

    def failed(
        self, job: Job, attempt: Attempt, reason: str, now: float, wall_ms: int,
        retry_s: float = 0.0,
    ) -> None:  # fmt: skip
        """An attempt ended without an answer: try again elsewhere, or give the task up."""
        task = attempt.task
        task.avoid.add(attempt.owner)
        if task.audit:
            self._gave_up(job, task, reason, wall_ms)
        if task.live or task.open == 0:
            return
        if not effects.repeatable(self._board, job):
            self._gave_up(job, task, effects.OUTCOME_UNKNOWN, wall_ms)
            return
        if reason in RETRYABLE:
            task.tries += 1
            last = task.tries > job.spec.max_retries
        else:
            # An exception of the handler runs once more elsewhere: it may be that peer's fault.
            task.errors += 1
            last = task.errors > 1
        if last:
            told = effects.OUTCOME_UNKNOWN if effects.once(job) else reason
            self._gave_up(job, task, told, wall_ms)
            return
        times = self._board.times
        longest = min(times.retry_cap_s, times.retry_base_s * 2 ** (task.tries + task.errors))
        self._wait(job, task, now + max(retry_s, self._board.rng.random() * longest))

    def give_back(self, job: Job, task: TaskCell) -> None:
        """Queue a task whose attempt was taken from a peer."""
        self._take_back(job, task, 0.0)

    def requeue(self, job: Job, task: TaskCell) -> None:
        """A task's rows need more answers."""
        task.state = step(TASK_TRANSITIONS, task.state, TaskInput.MORE_NEEDED)
        job.queue.appendleft(task)

    def peer_lost(self, peer: PeerCell, now: float) -> None:
        """A link went down: what is there has little time to come back."""
        end = now + self._board.times.lease_down_s
        for attempt in peer.outstanding:
            attempt.lease_end = min(attempt.lease_end, end)

    def tick(self, now: float, wall_ms: int) -> None:
        """Leases that end, waits that are over."""
        self._listen(now)
        for job in list(self._board.jobs.values()):
            for attempt in [one for one in job.live if one.lease_end <= now]:
                if not effects.keeps(self._board, job, attempt):
                    self.lose(job, attempt, now, wall_ms)
            due = [task for task in job.waiting if task.due <= now]
            if due:
                job.waiting = [task for task in job.waiting if task.due > now]
            for task in due:
                if task.state is TaskState.RETRY_WAIT:
                    task.state = step(TASK_TRANSITIONS, task.state, TaskInput.RETRY_DUE)
                    job.queue.append(task)

    def _listen(self, now: float) -> None:
        """Peers that let two beats go by get nothing until they are heard of again."""
        times = self._board.times
        for cell in self._board.peers.values():
            if cell.rest_end <= now:
                cell.rest_end = 0.0
            if cell.silent and cell.silent_end <= now:
                cell.silent = False
            elif cell.outstanding and not cell.silent and not cell.down:
                oldest = next(iter(cell.outstanding))
                if now - max(cell.heard, oldest.offered) > SILENT_SHARE * times.lease_s:
                    cell.silent = True
                    cell.silent_end = now + SILENT_LEASES * times.lease_s
                    cell.window = 1

    def lose(self, job: Job, attempt: Attempt, now: float, wall_ms: int) -> None:
        """An attempt will bring nothing in time; a result that comes all the same is late."""
        attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.LEASE_END)
        self.release(job, attempt)
        self._board.count("attempts_lost")
        self._board.orders.write(
            "attempt",
            (job.id, attempt.task.index, attempt.number, attempt.peer, attempt.owner,
             attempt.state, wall_ms, int((now - attempt.offered) * 1000), "lost"),
        )  # fmt: skip
        self.failed(job, attempt, "lost", now, wall_ms)

    def cancel_live(self, job: Job, attempts: Sequence[Attempt]) -> None:
        """Have peers stop attempts whose answers nobody wants any more."""
        by_peer: dict[PeerId, list[tuple[int, int]]] = {}
        for attempt in attempts:
            attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.CANCEL)
            self.release(job, attempt)
            ref = (attempt.task.index, attempt.number)
            by_peer.setdefault(attempt.peer, []).append(ref)
        for peer, refs in by_peer.items():
            cell = self._board.peers.get(peer)
            if cell is not None and not cell.down:
                self._board.orders.send(peer, Cancel(job.id, refs, False))
