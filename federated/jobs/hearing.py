"""What workers say, as their coordinator hears it: sessions, credit, refusals, results.

A hostile worker may say anything in any order: what fits no attempt of its own is counted and
dropped, and what breaks the rules ends its session. Source: docs/specs/jobs.md s.4.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from federated.jobs import effects
from federated.jobs.board import PeerCell
from federated.jobs.items import (
    API,
    Ack,
    Beat,
    Bye,
    Cancel,
    Cancelled,
    Credit,
    Failed,
    Have,
    Hello,
    Holding,
    Load,
    Reply,
    Result,
)
from federated.jobs.state import (
    ATTEMPT_TRANSITIONS,
    TASK_TRANSITIONS,
    Attempt,
    AttemptInput,
    JobInput,
    JobPhase,
    TaskInput,
    TaskState,
    step,
)
from federated.jobs.types import JobId
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.jobs.board import Board
    from federated.jobs.items import Item
    from federated.jobs.leasing import Leasing
    from federated.jobs.settling import Settling
    from federated.jobs.state import Job, TaskCell
    from p2p.identity import PeerId

QUEUE_S_MAX: Final = 60.0
"""What a worker's word on its queue counts at most: it orders candidates, it ends no job."""
REFUSED_S: Final = 0.2
"""Least time until a task that a stranger refused is offered again: one that refuses all is not to
keep us busy."""
BLOCK: Final = re.compile(r"[0-9a-f]{16}")
"""A prefix block in what a worker says is warm; other words there name handlers."""


class Hearing:
    """Takes the items of workers.

    Args:
        board: the machine's memory.
        leasing: where tasks go and come back from.
        settling: where results go.
        progress: tells how far a job is, if it moved.
    """

    def __init__(
        self, board: Board, leasing: Leasing, settling: Settling,
        progress: Callable[[Job, float, int], None],
    ) -> None:  # fmt: skip
        self._board = board
        self._leasing = leasing
        self._settling = settling
        self._progress = progress

    def greeting(self) -> Hello:
        """What we say first on a session."""
        return Hello(API, self._board.epoch, [], None)

    def peer_up(self, peer: PeerId, session: int) -> None:
        """A session with a worker begins; an older one of it is over."""
        board = self._board
        cell = board.peers.get(peer)
        if cell is None:
            cell = board.peers[peer] = PeerCell(peer, session)
            cell.outstanding = {
                one: None for job in board.live_jobs() for one in job.live if one.peer == peer
            }
        cell.session = session
        cell.specs.clear()
        cell.told = False
        cell.down = False
        cell.draining = False
        cell.rest_end = 0.0
        cell.handlers = {}
        board.orders.send(peer, self.greeting())
        board.orders.send(peer, Have(self.ids_for(peer)))

    def peer_down(self, peer: PeerId, session: int, *, now: float, wall_ms: int) -> None:
        """A session ended; what it holds may come back in the next one."""
        cell = self._board.peers.get(peer)
        if cell is None or cell.session != session or cell.down:
            return
        cell.down = True
        cell.window = 1
        self._leasing.peer_lost(cell, now)
        for ident in self._jobs_at(cell):
            job = self._board.jobs[ident]
            self._board.tell(job, "peer_lost", {"peer": bytes(peer).hex()}, wall_ms)

    def _jobs_at(self, cell: PeerCell) -> list[JobId]:
        return [
            job.id for job in self._board.live_jobs()
            if any(attempt.peer == cell.peer for attempt in job.live)
        ]  # fmt: skip

    def ids_for(self, peer: PeerId) -> list[bytes]:
        """Jobs a peer may know of."""
        board = self._board
        return [job.id for job in board.live_jobs() if board.standing(job, peer)[0] != "none"]

    def received(self, peer: PeerId, session: int, item: Item, *, now: float, wall_ms: int) -> None:
        """An item of a worker.

        Raises:
            DecodeError: the worker broke the rules; end the session.
        """
        cell = self._board.peers.get(peer)
        if cell is None or cell.session != session:
            return
        cell.silent = False
        cell.heard = now
        match item:
            case Result():
                self._results(cell, item, now, wall_ms)
            case Beat():
                self._beats(cell, item, now)
                return
            case Reply():
                self._reply(cell, item, now)
            case Credit():
                cell.credit = max(0, item.tasks)
            case Hello():
                self._hello(cell, item)
            case Holding():
                self._holding(cell, item, now, wall_ms)
            case Load():
                self._load(cell, item, now)
                return
            case Cancelled():
                self._leasing.hedging.gave_back(cell, item)
            case Bye():
                cell.draining = True
                return
            case Failed():
                raise DecodeError(f"the worker gave up: {item.code[:32]!r}", peer)
            case _:
                raise DecodeError("a worker sent a coordinator's item", peer)
        self._leasing.fill(now, wall_ms)

    def _hello(self, cell: PeerCell, item: Hello) -> None:
        if item.api != API:
            raise DecodeError(f"job items of version {item.api}, ours are {API}", cell.peer)
        cell.handlers = {offered.id: offered for offered in item.handlers}
        cell.load = item.load

    def _attempt(self, cell: PeerCell, job: bytes, task: int, number: int) -> Attempt | None:
        """An attempt of ours at this peer; None for what others claim."""
        found = self._board.jobs.get(JobId(job))
        if found is None or task >= len(found.tasks) or task < 0:
            return None
        attempt = found.tasks[task].attempts.get(number)
        return attempt if attempt is not None and attempt.peer == cell.peer else None

    def _results(self, cell: PeerCell, item: Result, now: float, wall_ms: int) -> None:
        job = self._board.jobs.get(JobId(item.job))
        if job is None:
            # A job that is over: let the worker forget.
            self._board.count("results_unknown")
            self._board.orders.send(cell.peer, Cancel(item.job, None, False))
            return
        self._settling.result(job, cell, item, now, wall_ms)
        self._progress(job, now, wall_ms)

    def _beats(self, cell: PeerCell, item: Beat, now: float) -> None:
        if item.load is not None:
            self._load(cell, item.load, now)
        for job, task, number, running, share in item.refs:
            attempt = self._attempt(cell, job, task, number)
            if attempt is not None:
                self._leasing.beat(attempt, now, running=running, share=share)

    def _load(self, cell: PeerCell, load: Load, now: float) -> None:
        cell.load = load
        blocks = (bytes.fromhex(one) for one in load.warm if BLOCK.fullmatch(one))
        cell.view.told(now, min(QUEUE_S_MAX, load.queue_ms / 1000), blocks)

    def _reply(self, cell: PeerCell, item: Reply, now: float) -> None:
        for job, task, number in item.accepted:
            attempt = self._attempt(cell, job, task, number)
            if attempt is not None:
                self._leasing.accepted(attempt, now)
        for refusal in item.refused:
            attempt = self._attempt(cell, *refusal.ref)
            found = self._board.jobs.get(JobId(refusal.ref[0]))
            if attempt is not None and found is not None:
                retry_s = refusal.retry_ms / 1000
                if self._board.standing(found, cell.peer)[0] == "stranger":
                    retry_s = max(REFUSED_S, retry_s)
                    attempt.task.avoid.add(attempt.owner)
                self._leasing.refused(found, attempt, cell, refusal.why, retry_s, now)

    def _holding(self, cell: PeerCell, item: Holding, now: float, wall_ms: int) -> None:
        """What a worker has of ours after a reconnection, of this run or an earlier one."""
        known = set()
        unwanted: dict[bytes, list[tuple[int, int]]] = {}
        gone = []
        for job, task, number, state in item.refs:
            known.add((job, task, number))
            found = self._board.jobs.get(JobId(job))
            if found is None or found.final or not 0 <= task < len(found.tasks):
                unwanted.setdefault(job, []).append((task, number))
                gone.append((job, task, number))
                continue
            attempt = found.tasks[task].attempts.get(number)
            if attempt is None:
                attempt = self._adopt(found, found.tasks[task], number, cell, now)
            elif attempt.peer == cell.peer:
                self._leasing.beat(attempt, now, running=state == "running", share=0.0)
            if attempt is not None and attempt.peer == cell.peer and state == "unknown":
                self._unknown(found, attempt, now, wall_ms)
        for job, refs in unwanted.items():
            self._board.orders.send(cell.peer, Cancel(job, refs, False))
        if gone:
            self._board.orders.send(cell.peer, Ack(gone))
        self._drop_unknown(cell, known, now)
        cell.told = True

    def _unknown(self, job: Job, attempt: Attempt, now: float, wall_ms: int) -> None:
        """A worker began an attempt and can never say how it ended."""
        if attempt.live:
            attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.RESULT_ERROR)
            self._leasing.release(job, attempt)
            effects.keep_attempt(self._board.orders, job, attempt, effects.OUTCOME_UNKNOWN)
            self._board.orders.full = True
            self._leasing.failed(job, attempt, effects.OUTCOME_UNKNOWN, now, wall_ms)

    def _adopt(
        self, job: Job, task: TaskCell, number: int, cell: PeerCell, now: float
    ) -> Attempt | None:
        """An attempt of an earlier run of ours goes on."""
        if not self._adoptable(job, task, cell):
            return None
        owner = self._board.standing(job, cell.peer)[1]
        attempt = Attempt(task, number, cell.peer, owner, task.ks, now, self._board.times.lease_s)
        attempt.overlapped = task.live > 0
        task.attempts[number] = attempt
        task.live += 1
        job.live[attempt] = None
        cell.outstanding[attempt] = None
        if job.executions_max is None:
            job.executions += 1  # a job with a limit counted it, on the disk, before it was offered
        task.state = step(TASK_TRANSITIONS, task.state, TaskInput.OFFERED)
        attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.ACCEPT)
        attempt.slots = max(1, max((one.slots for one in cell.handlers.values()), default=1))
        if job.phase is JobPhase.QUEUED:
            job.move(JobInput.LEASED)
        if effects.once(job):
            effects.keep_attempt(self._board.orders, job, attempt)
            self._board.orders.full = True
        return attempt

    def _adoptable(self, job: Job, task: TaskCell, cell: PeerCell) -> bool:
        """Whether a peer's word is enough that it has a task.

        Only a device of our own is believed: whoever could name tasks himself would choose whose
        votes he completes, or sit in judgement over his own answers.
        """
        trust, owner = self._board.standing(job, cell.peer)
        if trust != "own" or job.spec.handler not in cell.handlers or task.audit:
            return False
        if (job.spec.engine == "local") != (cell.peer == self._board.door.id):
            return False
        rows = [job.rows[k] for k in task.ks]
        if any(row.own_only or owner in row.barred for row in rows):
            return False
        if rows[0].pin not in {None, cell.peer} or task.open == 0:
            return False
        return task.state in {TaskState.QUEUED, TaskState.LEASED}

    def _drop_unknown(self, cell: PeerCell, known: set[tuple[bytes, int, int]], now: float) -> None:
        """Attempts of earlier sessions that the worker knows nothing of are lost."""
        for job in self._board.live_jobs():
            for attempt in list(job.live):
                ref = (job.id, attempt.task.index, attempt.number)
                if attempt.peer != cell.peer or attempt.session == cell.session or ref in known:
                    continue
                if effects.once(job):
                    effects.never_had(self._board, job, attempt)
                    self._leasing.release(job, attempt)
                    self._leasing.give_back(job, attempt.task)
                else:
                    attempt.lease_end = now
