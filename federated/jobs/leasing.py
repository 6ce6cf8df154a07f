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

from typing import TYPE_CHECKING, Final

from federated.jobs.items import Cancel, Offer, OfferTask, Spec
from federated.jobs.limits import INLINE_BYTES_MAX, OFFER_TASKS_MAX
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


class Leasing:
    """Tasks on their way to peers.

    Args:
        board: the machine's memory.
        spec_item: makes the `Spec` of a job; the coordinator knows how.
        row_bytes: canonical bytes of a task's rows for an attempt.
        gave_up: told a task whose rows will get no answer, and why.
    """

    def __init__(
        self,
        board: Board,
        *,
        spec_item: Callable[[Job], Spec],
        row_bytes: Callable[[Job, Sequence[int]], bytes],
        gave_up: Callable[[Job, TaskCell, str, int], None],
    ) -> None:
        self._board = board
        self._spec_item = spec_item
        self._row_bytes = row_bytes
        self._gave_up = gave_up

    # ---- offers

    def fill(self, now: float, wall_ms: int) -> None:
        """Offer what is queued to whoever has room."""
        for job in self._in_order(now):
            peers = [
                peer for peer in self._board.peers.values() if self._may_work(job, peer, wall_ms)
            ]
            if peers:
                self._fill_job(job, peers, now, wall_ms)

    def _in_order(self, now: float) -> list[Job]:
        """Jobs to serve, the most urgent first."""
        board = self._board
        ready = [job for job in board.jobs.values() if job.leasing and job.queue]
        ready.sort(key=lambda job: (-job.spec.priority, job.deadline - now))
        return ready

    def _may_work(self, job: Job, peer: PeerCell, wall_ms: int) -> bool:
        return peer.room > 0 and self._board.usable(job, peer, wall_ms)

    def _fill_job(self, job: Job, peers: list[PeerCell], now: float, wall_ms: int) -> None:
        offers: dict[PeerId, list[OfferTask]] = {}
        passed: list[TaskCell] = []
        queue = job.queue
        while queue and peers and len(passed) < SCAN_MAX:
            task = queue.popleft()
            if task.state is not TaskState.QUEUED:
                continue
            peer = self._choose(job, task, peers)
            if peer is None:
                passed.append(task)
                continue
            offers.setdefault(peer.peer, []).append(self._offer(job, task, peer, now))
            if peer.room <= 0:
                peers.remove(peer)
            if self._out_of_executions(job, wall_ms):
                break
        queue.extendleft(reversed(passed))
        for ident, tasks in offers.items():
            self._send_offers(job, self._board.peers[ident], tasks)
        if offers and job.reason:
            job.reason = ""
        if offers and job.phase is JobPhase.QUEUED:
            job.move(JobInput.LEASED)
            self._board.keep_job(job)
            self._board.tell_state(job, wall_ms)

    def _choose(self, job: Job, task: TaskCell, peers: list[PeerCell]) -> PeerCell | None:
        """The peer that will have a task done first, others than those it failed at if possible."""
        pin = job.rows[task.ks[0]].pin
        if pin is not None:
            return next((peer for peer in peers if peer.peer == pin), None)
        own_only, barred = self._wants(job, task)
        handler = job.spec.handler
        best: PeerCell | None = None
        best_cost = 0.0
        for peer in peers:
            if not self._fits(job, peer, own_only=own_only, barred=barred):
                continue
            offered = peer.handlers[handler]
            cost = (len(peer.outstanding) + 1) / max(1, offered.slots)
            cost *= peer.slowness.get(handler, 1.0)
            if task.avoid and self._board.standing(job, peer.peer)[1] in task.avoid:
                cost += 1e6
            if best is None or cost < best_cost:
                best, best_cost = peer, cost
        return best

    def _wants(self, job: Job, task: TaskCell) -> tuple[bool, set[bytes]]:
        """Whether only a device of ours may have a task, and which owners may not."""
        if task.audit:
            return True, set()
        rows = [job.rows[k] for k in task.ks]
        own_only = any(row.own_only for row in rows)
        barred: set[bytes] = set()
        for row in rows:
            if row.barred:
                barred |= row.barred
        return own_only, barred

    def _fits(self, job: Job, peer: PeerCell, *, own_only: bool, barred: set[bytes]) -> bool:
        own_node = peer.peer == self._board.door.id
        if own_only:
            return own_node
        if (job.spec.engine == "local") != own_node:
            return False
        return not barred or self._board.standing(job, peer.peer)[1] not in barred

    def _offer(self, job: Job, task: TaskCell, peer: PeerCell, now: float) -> OfferTask:
        board = self._board
        ks = task.ks if task.audit else job.pending(task)
        number = board.rng.getrandbits(16)
        while number in task.attempts:
            number = board.rng.getrandbits(16)
        owner = board.standing(job, peer.peer)[1]
        attempt = Attempt(task, number, peer.peer, owner, ks, now, board.times.lease_s)
        if task.live:
            attempt.overlapped = True
            for other in task.attempts.values():
                other.overlapped = other.overlapped or other.live
        task.attempts[number] = attempt
        task.live += 1
        task.state = step(TASK_TRANSITIONS, task.state, TaskInput.OFFERED)
        peer.outstanding.add(attempt)
        job.live.add(attempt)
        job.executions += 1
        rows = self._row_bytes(job, ks)
        left_ms = max(0, int((job.deadline - now) * 1000))
        return OfferTask(task.index, number, rows, False, left_ms)

    def _send_offers(self, job: Job, peer: PeerCell, tasks: list[OfferTask]) -> None:
        orders = self._board.orders
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
        job.executions -= 1
        task = attempt.task
        if why == "busy":
            self._too_fast(peer)
        elif why in {"policy", "unknown_handler", "version"}:
            peer.handlers.pop(job.spec.handler, None)
        else:
            task.avoid.add(attempt.owner)
        del task.attempts[attempt.number]
        wait_s = min(retry_s, self._board.times.retry_cap_s)
        self._take_back(job, task, now + wait_s if wait_s else 0.0)

    def beat(self, attempt: Attempt, now: float, *, running: bool, share: float) -> None:
        """A peer still has a task."""
        if not attempt.live:
            return
        self._renew(attempt, now)
        if running and attempt.started is None:
            attempt.started = now
            attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.START)
            if attempt.task.state is TaskState.LEASED:
                attempt.task.state = step(
                    TASK_TRANSITIONS, attempt.task.state, TaskInput.BEAT_RUNNING
                )
        attempt.progress = min(1.0, max(0.0, share))

    def _renew(self, attempt: Attempt, now: float) -> None:
        attempt.seen = now
        attempt.lease_end = now + self._board.times.lease_s

    def clean(self, peer: PeerCell) -> None:
        """A result came back: the window grows when a whole one did."""
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
        job.live.discard(attempt)
        peer = self._board.peers.get(attempt.peer)
        if peer is not None:
            peer.outstanding.discard(attempt)

    def _take_back(self, job: Job, task: TaskCell, due: float) -> None:
        """Queue a task again that no peer has; at once, or when `due`."""
        if task.live or task.state not in {TaskState.LEASED, TaskState.RUNNING}:
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
        if reason in RETRYABLE:
            task.tries += 1
            last = task.tries > job.spec.max_retries
        else:
            # An exception of the handler runs once more elsewhere: it may be that peer's fault.
            task.errors += 1
            last = task.errors > 1
        if last:
            self._gave_up(job, task, reason, wall_ms)
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
        for job in list(self._board.jobs.values()):
            for attempt in [one for one in job.live if one.lease_end <= now]:
                self._lose(job, attempt, now, wall_ms)
            due = [task for task in job.waiting if task.due <= now]
            if due:
                job.waiting = [task for task in job.waiting if task.due > now]
            for task in due:
                if task.state is TaskState.RETRY_WAIT:
                    task.state = step(TASK_TRANSITIONS, task.state, TaskInput.RETRY_DUE)
                    job.queue.append(task)

    def _lose(self, job: Job, attempt: Attempt, now: float, wall_ms: int) -> None:
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
