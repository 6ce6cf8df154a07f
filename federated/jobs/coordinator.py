"""The coordinator's machine: inputs in, orders out, no clock, no socket, no disk.

    coordinator = Coordinator(door, rng, epoch=3)
    coordinator.submit(job, now=..., wall_ms=...)
    coordinator.received(peer, item, now=..., wall_ms=...)
    orders = coordinator.take_orders()

`leasing` hands tasks out, `hearing` takes what workers say, `settling` their answers; this module
is the door of all and holds what concerns a job as a whole. Source: docs/specs/jobs.md s.3 to 5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec

from federated.errors import JobError
from federated.jobs import effects
from federated.jobs.board import Board, Times
from federated.jobs.canon import canonical
from federated.jobs.choosing import prefix_of
from federated.jobs.hearing import Hearing
from federated.jobs.items import (
    Cancel,
    Have,
    Hello,
    Spec,
)
from federated.jobs.leasing import Leasing
from federated.jobs.plan import reduces
from federated.jobs.quoting import WHOLE, bare_spec
from federated.jobs.settling import Settling, row_bytes
from federated.jobs.state import (
    ATTEMPT_TRANSITIONS,
    AttemptInput,
    JobInput,
    JobPhase,
    RowState,
    TaskInput,
    step,
)
from p2p.identity import PeerId

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

    from federated.jobs.board import Door
    from federated.jobs.choosing import PrefixOf
    from federated.jobs.items import Item, Offer, TaskResult
    from federated.jobs.orders import Orders
    from federated.jobs.state import Job, TaskCell
    from federated.jobs.types import JobId

NOBODY: Final = "no_eligible_peer"
NOBODY_S: Final = 3.0
"""How long nobody may offer a job's handler before its watchers are told. Guess: sessions take
less."""

JOURNAL_FULL: Final = "journal_full"
"""Reason of a job that is paused until its journal can be written."""

TICK_S: Final = 0.2
"""How often `tick` wants to be called while jobs live (tasks.md s.5)."""


class Coordinator:
    """Runs jobs through workers.

    Args:
        door: who peers are, and their signatures.
        rng: for attempt numbers and waiting times.
        epoch: greater than every earlier one of this node.
        times: settings.
        next_event: number of the first event.
        prefix_of: hashes of the blocks that a task begins with; see `choosing.prefix_of`.
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
        self._hearing = Hearing(self._board, self._leasing, self._settling, self._progress)

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
                board.orders.send(cell.peer, Have(self._hearing.ids_for(cell.peer)))
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

    def fetched(
        self, peer: PeerId, ident: JobId, result: TaskResult, rows: bytes | None, *, now: float,
        wall_ms: int,
    ) -> None:  # fmt: skip
        """An answer that came in a blob, of `Orders.fetches`; None: it could not be had."""
        job, cell = self._board.jobs.get(ident), self._board.peers.get(peer)
        if job is None or cell is None:
            return
        self._settling.fetched(job, cell, result, rows, now, wall_ms)
        self._progress(job, now, wall_ms)
        self._leasing.fill(now, wall_ms)

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
        return self._hearing.greeting()

    def peer_up(self, peer: PeerId, session: int) -> None:
        """A session with a worker begins; an older one of it is over."""
        self._hearing.peer_up(peer, session)

    def peer_down(self, peer: PeerId, session: int, *, now: float, wall_ms: int) -> None:
        """A session ended; what it holds may come back in the next one."""
        self._hearing.peer_down(peer, session, now=now, wall_ms=wall_ms)

    def received(self, peer: PeerId, session: int, item: Item, *, now: float, wall_ms: int) -> None:
        """An item of a worker.

        Raises:
            DecodeError: the worker broke the rules; end the session.
        """
        self._hearing.received(peer, session, item, now=now, wall_ms=wall_ms)

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
