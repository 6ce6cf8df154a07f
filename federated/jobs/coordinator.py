"""The coordinator's machine: inputs in, orders out, no clock, no socket, no disk.

    coordinator = Coordinator(door, rng, epoch=3)
    coordinator.submit(job, now=..., wall_ms=...)
    coordinator.received(peer, item, now=..., wall_ms=...)
    orders = coordinator.take_orders()

`leasing` hands tasks out, `settling` takes answers in; this module is the door of both and holds
what concerns a job or a session as a whole. Source: docs/specs/jobs.md s.3 to 5.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec

from federated.errors import JobError
from federated.jobs import effects
from federated.jobs.board import Board, PeerCell, Times
from federated.jobs.canon import canonical
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
    Spec,
)
from federated.jobs.leasing import Leasing, prefix_of
from federated.jobs.plan import reduces
from federated.jobs.quoting import WHOLE, bare_spec
from federated.jobs.settling import Settling, row_bytes
from federated.jobs.state import (
    ATTEMPT_TRANSITIONS,
    TASK_TRANSITIONS,
    Attempt,
    AttemptInput,
    JobInput,
    JobPhase,
    RowState,
    TaskInput,
    TaskState,
    step,
)
from federated.jobs.types import JobId
from p2p.errors import DecodeError
from p2p.identity import PeerId

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

    from federated.jobs.board import Door
    from federated.jobs.items import Item, Offer
    from federated.jobs.leasing import PrefixOf
    from federated.jobs.orders import Orders
    from federated.jobs.state import Job, TaskCell

NOBODY: Final = "no_eligible_peer"
NOBODY_S: Final = 3.0
"""How long nobody may offer a job's handler before its watchers are told. Guess: sessions take
less."""

JOURNAL_FULL: Final = "journal_full"
"""Reason of a job that is paused until its journal can be written."""
QUEUE_S_MAX: Final = 60.0
"""What a worker's word on its queue counts at most: it orders candidates, it ends no job."""
REFUSED_S: Final = 0.2
"""Least time until a task that a stranger refused is offered again: one that refuses all is not to
keep us busy."""

TICK_S: Final = 0.2
"""How often `tick` wants to be called while jobs live (tasks.md s.5)."""


BLOCK: Final = re.compile(r"[0-9a-f]{16}")
"""A prefix block in what a worker says is warm; other words there name handlers."""


class Coordinator:
    """Runs jobs through workers.

    Args:
        door: who peers are, and their signatures.
        rng: for attempt numbers and waiting times.
        epoch: greater than every earlier one of this node.
        times: settings.
        next_event: number of the first event.
        prefix_of: hashes of the blocks that a task begins with; see `leasing.prefix_of`.
    """

    def __init__(
        self, door: Door, rng: random.Random, *, epoch: int, times: Times | None = None,
        next_event: int = 1, prefix_of: PrefixOf = prefix_of,
    ) -> None:  # fmt: skip
        self._board = Board(door, rng, epoch=epoch, times=times or Times(), next_event=next_event)
        self._leasing = Leasing(
            self._board, spec_item=spec_item, row_bytes=row_bytes,
            gave_up=self._gave_up, prefix_of=prefix_of,
        )  # fmt: skip
        self._settling = Settling(self._board, self._leasing)

    def _gave_up(self, job: Job, task: TaskCell, reason: str, wall_ms: int) -> None:
        self._settling.gave_up(job, task, reason, wall_ms)

    @property
    def board(self) -> Board:
        """What it remembers, to look at."""
        return self._board

    def take_orders(self) -> Orders:
        """What is to be done since the last time."""
        return self._board.take_orders()

    # ---- jobs

    def learn(self, durations: Iterable[tuple[str, int, bytes]]) -> None:
        """Know again how long tasks took in earlier runs; of `Journal.durations`."""
        self._leasing.durations.load(durations)

    def submit(self, job: Job, *, now: float, wall_ms: int) -> None:
        """Begin a job whose rows and tasks are in the journal."""
        board = self._board
        board.jobs[job.id] = job
        for cell in board.peers.values():
            if not cell.down:
                board.orders.send(cell.peer, Have(self._ids_for(cell.peer)))
        board.tell_state(job, wall_ms)
        self._settling.check_done(job)
        self._leasing.fill(now, wall_ms)

    def resume_loaded(self, job: Job) -> None:
        """Go on with a job of an earlier run, built from the journal."""
        self._board.jobs[job.id] = job
        for row in job.rows:
            # Whose devices they are is nothing the journal could know.
            row.answers = [
                replace(one, own=self._board.standing(job, PeerId(one.device))[0] == "own")
                for one in row.answers
            ]
        job.cache_ms = self._board.cache_ms(job.spec)
        if _is_halted(job):
            # There was room again, and a kill before it was said.
            job.move(JobInput.RESUME)
            job.reason = ""
            self._board.keep_job(job)
        if job.phase is JobPhase.REDUCING:
            self._board.orders.reduces.append(job.id)
        else:
            self._settling.check_done(job)

    def job(self, ident: JobId) -> Job | None:
        """A job that lives, or ended a moment ago."""
        return self._board.jobs.get(ident)

    def cancel(self, ident: JobId, *, now: float, wall_ms: int) -> dict[str, int]:
        """End a job; its tasks are stopped wherever they are.

        Returns:
            How many tasks were `running` and `unstarted` at peers, and how many peers are
            `unreachable`.
        """
        job = self._live(ident)
        told: dict[str, int] = {"running": 0, "unstarted": 0, "unreachable": 0}
        for attempt in job.live:
            told["running" if attempt.started is not None else "unstarted"] += 1
        peers = {attempt.peer for attempt in job.live}
        told["unreachable"] = sum(
            1 for peer in peers
            if (cell := self._board.peers.get(peer)) is None or cell.down
        )  # fmt: skip
        self._end(job, JobInput.CANCEL, "cancelled", now, wall_ms)
        return told

    def _end(self, job: Job, happened: JobInput, reason: str, now: float, wall_ms: int) -> None:
        """A job is over before its rows are."""
        board = self._board
        job.move(happened)
        job.reason = "" if happened is JobInput.CANCEL else reason
        job.finished_ms = wall_ms
        reached = {one.peer for one in job.live}
        for attempt in list(job.live):
            attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.CANCEL)
            self._leasing.release(job, attempt)
        for peer in reached:
            cell = board.peers.get(peer)
            if cell is not None and not cell.down:
                board.orders.send(peer, Cancel(job.id, None, False))
        ended = TaskInput.CANCEL if happened is JobInput.CANCEL else TaskInput.DEADLINE
        self._settling.expire(job, reason, ended)
        board.keep_job(job, full=True)
        board.tell_state(job, wall_ms)
        self._close(job, wall_ms)
        self._leasing.fill(now, wall_ms)

    def _close(self, job: Job, wall_ms: int) -> None:
        due = self._leasing.durations.due(job.spec.handler, least=1)
        self._board.keep_durations(due, wall_ms)
        self._board.orders.ended.append(job.id)
        self._board.forget_standing(job.id)
        self._board.reputation.forget(job.id)
        for cell in self._board.peers.values():
            cell.specs.discard(job.id)

    def pause(self, ident: JobId, *, wall_ms: int) -> None:
        """Lease no more tasks of a job; its deadline goes on."""
        job = self._live(ident)
        if not job.leasing:
            raise JobError("bad_state", f"the job is {job.phase}")
        job.move(JobInput.PAUSE)
        self._board.keep_job(job, full=True)
        self._board.tell_state(job, wall_ms)

    def go_on(self, ident: JobId, *, executions: int | None, now: float, wall_ms: int) -> None:
        """Lease again after a pause, or after `executions` more attempts were granted."""
        job = self._live(ident)
        if job.phase not in {JobPhase.PAUSED, JobPhase.WAITING_INPUT}:
            raise JobError("bad_state", f"the job is {job.phase}")
        if job.phase is JobPhase.WAITING_INPUT:
            if not executions:
                raise JobError("bad_state", "say how many more executions the job may use")
            job.executions_max = job.executions + executions
        job.move(JobInput.RESUME)
        job.reason = ""
        self._board.keep_job(job, full=True)
        self._board.tell_state(job, wall_ms)
        self._leasing.fill(now, wall_ms)

    def halt(self, wall_ms: int) -> list[Job]:
        """The journal cannot be written: hand nothing out until `unhalt`; the jobs that wait."""
        self._board.halted = True
        stopped = [job for job in self._board.live_jobs() if job.leasing]
        for job in stopped:
            job.move(JobInput.PAUSE)
            job.reason = JOURNAL_FULL
            self._board.keep_job(job)
            self._board.tell_state(job, wall_ms)
        return stopped

    def unhalt(self, now: float, wall_ms: int) -> list[Job]:
        """The journal can be written again: go on; the jobs that waited."""
        self._board.halted = False
        waited = [job for job in self._board.live_jobs() if _is_halted(job)]
        for job in waited:
            job.move(JobInput.RESUME)
            job.reason = ""
            self._board.keep_job(job)
            self._board.tell_state(job, wall_ms)
        self._leasing.fill(now, wall_ms)
        return waited

    def reduced(self, ident: JobId, *, wall_ms: int, problem: str = "") -> None:
        """The driver has reduced a job's rows, or could not."""
        job = self._board.jobs.get(ident)
        if job is None or job.phase is not JobPhase.REDUCING:
            return
        ok = job.counts[RowState.OK]
        failed = bool(problem) or (bool(job.rows) and ok == 0)
        job.move(JobInput.NO_ROW_OK if failed else JobInput.REDUCED)
        job.reason = problem or ("no_row_ok" if failed else "")
        job.finished_ms = wall_ms
        self._board.keep_job(job, full=True)
        self._board.tell_state(job, wall_ms)
        self._close(job, wall_ms)

    def erased(self, found: Mapping[bytes, set[int]], *, wall_ms: int) -> list[Job]:
        """Drop rows that quote what was erased, of jobs in memory; these jobs."""
        dropped = []
        for ident, ks in sorted(found.items()):
            job = self._board.job_of(ident)
            if job is None:
                continue
            if WHOLE in ks:
                job.spec = bare_spec(job.spec)
            rows = range(len(job.rows)) if WHOLE in ks else ks
            self._settling.erased(job, rows, wall_ms)
            dropped.append(job)
        return dropped

    def forget(self, ident: JobId) -> None:
        """Drop an ended job from memory; the journal has it."""
        self._board.jobs.pop(ident, None)

    def _live(self, ident: JobId) -> Job:
        job = self._board.jobs.get(ident)
        if job is None:
            raise JobError("unknown_job", "no such job is under way")
        if job.final:
            raise JobError("bad_state", f"the job is {job.phase} already")
        return job

    # ---- sessions

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
        cell.handlers = {}
        board.orders.send(peer, self.greeting())
        board.orders.send(peer, Have(self._ids_for(peer)))

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

    def _ids_for(self, peer: PeerId) -> list[bytes]:
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

    # ---- time

    def tick(self, *, now: float, wall_ms: int) -> None:
        """Deadlines, leases, waits; call it each `TICK_S` while jobs live."""
        for job in self._board.live_jobs():
            if job.deadline <= now and job.phase is not JobPhase.REDUCING:
                self._end(job, JobInput.DEADLINE, "deadline", now, wall_ms)
        self._leasing.tick(now, wall_ms)
        for job in self._board.live_jobs():
            self._settling.look_again(job, wall_ms)
            self._tell_waiting(job, now, wall_ms)
            self._progress(job, now, wall_ms)
        self._leasing.fill(now, wall_ms)
        self._leasing.hedging.tick(now, wall_ms)

    def _progress(self, job: Job, now: float, wall_ms: int) -> None:
        """Tell how far a job is, at most four times a second and only when it moved."""
        done = len(job.rows) - job.counts[RowState.PENDING]
        if job.final or done == job.told or now - job.last_progress < self._board.times.progress_s:
            return
        job.last_progress = now
        job.told = done
        data: dict[str, object] = {
            "rows": len(job.rows), "done": done, "executions": job.executions,
            "at_peers": len(job.live), **self._board.row_counts(job),
        }  # fmt: skip
        self._board.tell(job, "progress", data, wall_ms)

    def _tell_waiting(self, job: Job, now: float, wall_ms: int) -> None:
        """Say once that a job waits because nobody offers its handler."""
        if not job.leasing or job.live or not job.queue or job.idle_since < 0:
            job.idle_since = now
            return
        if now - job.idle_since < NOBODY_S or job.reason == NOBODY:
            return
        if any(self._board.usable(job, cell, wall_ms) for cell in self._board.peers.values()):
            return
        job.reason = NOBODY
        self._board.keep_job(job)
        self._board.tell_state(job, wall_ms)

    def offers_kept(self, offers: Sequence[tuple[PeerId, int, Offer]]) -> None:
        """The attempts of these offers are on the disk: they leave now, or never."""
        effects.release_offers(self._board, offers)

    def next_timer(self) -> float | None:
        """Seconds until `tick` wants to be called; None while no job lives."""
        return TICK_S if self._board.live_jobs() else None


def _is_halted(job: Job) -> bool:
    return job.phase is JobPhase.PAUSED and job.reason == JOURNAL_FULL


def spec_item(job: Job) -> Spec:
    """What a worker must know of a job."""
    spec = job.spec
    limits = spec.limits
    columns = canonical(msgspec.to_builtins(spec.columns))
    return Spec(
        job.id,
        job.group,
        spec.handler,
        canonical(spec.params),
        spec.template,
        columns,
        int((limits.wall_s or 0) * 1000),
        limits.mem_bytes or 0,
        limits.out_bytes or 0,
        spec.effect == "once",
        reduces(spec),
    )
