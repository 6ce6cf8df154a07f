"""Taking answers in: from a worker's result to rows that are settled.

Theory of operation. A result is bound to (job, task, attempt, epoch) and signed unless it comes
from a device of our own. Whatever does not fit an attempt we know is counted and dropped. Its rows
pass the gates (known index, asked for, columns, size) one by one, so garbage in one row spoils no
other. An answer that passed is kept and judged together with the row's earlier ones; the judge
accepts, wants another vote, or gives up. A row that came back `missing` is asked again, elsewhere,
with what was answered of it, until the tries are spent.
"""

from __future__ import annotations

import string
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from federated.jobs import effects
from federated.jobs.cache import CACHED
from federated.jobs.canon import canonical, decode_table_untrusted, digest
from federated.jobs.items import (
    RESULT_DOMAIN,
    Ack,
    decode_results_untrusted,
    signed_part,
)
from federated.jobs.judging import Judging
from federated.jobs.limits import OUTPUT_BYTES_MAX
from federated.jobs.orders import Large
from federated.jobs.quoting import ERASED, NOTHING
from federated.jobs.state import (
    ATTEMPT_TRANSITIONS,
    TASK_TRANSITIONS,
    AttemptInput,
    AttemptState,
    JobInput,
    JobPhase,
    RowState,
    TaskInput,
    TaskState,
    step,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from federated.jobs.board import Board, PeerCell
    from federated.jobs.items import Ref, Result, TaskResult
    from federated.jobs.leasing import Leasing
    from federated.jobs.state import Attempt, Job, TaskCell
    from federated.jobs.types import Row
    from federated.seams import TrustClass
    from p2p.identity import PeerId

FETCH_LEASE_S: Final = 60.0
"""How long an attempt is not lost whose answer is being fetched: twice the longest fetch."""
REASON_CHARACTERS_MAX: Final = 64
LOOK_AGAIN_MAX: Final = 256
NOT_RETURNED: Final = "not_returned"
PEER_GONE: Final = "peer_gone"
"""The row was for one device, which was away when the time was over."""
_WORD_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "_-")
OPEN_TASKS: Final = frozenset({
    TaskState.QUEUED, TaskState.LEASED, TaskState.RUNNING, TaskState.VERIFYING,
    TaskState.RETRY_WAIT,
})  # fmt: skip
HELD: Final = frozenset({JobPhase.PAUSED, JobPhase.WAITING_INPUT})


class Settling:
    """Answers on their way into rows.

    Args:
        board: the machine's memory.
        leasing: where tasks go that need more.
    """

    def __init__(self, board: Board, leasing: Leasing) -> None:
        self._board = board
        self._leasing = leasing
        self._judging = Judging(board, leasing)

    # ---- results of peers

    def result(self, job: Job, peer: PeerCell, item: Result, now: float, wall_ms: int) -> None:
        """Take the results of one item in.

        Raises:
            DecodeError: it is none, or its signature is not the peer's.
        """
        board = self._board
        trust = board.standing(job, peer.peer)[0]
        if trust == "none":
            return
        if trust != "own":
            part = signed_part(bytes(board.door.id), job.id, board.epoch, item.body)
            if not board.door.verify(bytes(peer.peer), RESULT_DOMAIN, part, item.signature):
                raise DecodeError("a job result is not signed by its sender", peer.peer)
        refs: list[Ref] = []
        for result in decode_results_untrusted(item.body):
            if result.in_blob and self._is_fetched(job, peer, result, now):
                continue
            taken = self._one(job, peer, trust, result, now, wall_ms)
            if taken or not board.halted:
                # What is said again and again fills no memory while nothing can be written.
                refs.append((job.id, result.task, result.attempt))
        if refs:
            board.orders.after.append((peer.peer, Ack(refs)))
        board.orders.full = board.orders.full or effects.once(job)

    def _is_fetched(self, job: Job, peer: PeerCell, result: TaskResult, now: float) -> bool:
        """Whether an answer in a blob is fetched first; if not nobody waits for it."""
        attempt = self._attempt_of(job, peer, result)
        if attempt is None or job.final:
            return False
        if not attempt.live and attempt.state not in {AttemptState.LOST, AttemptState.CANCELLED}:
            return False
        if not attempt.fetching:
            attempt.fetching = True
            attempt.lease_end = now + FETCH_LEASE_S  # its worker has ended it and beats no more
            self._board.orders.fetches.append(Large(peer.peer, job.id, job.group, result))
        return True

    def fetched(
        self, job: Job, peer: PeerCell, result: TaskResult, rows: bytes | None, now: float,
        wall_ms: int,
    ) -> None:  # fmt: skip
        """An answer that came in a blob; None: it could not be had."""
        attempt = self._attempt_of(job, peer, result)
        if attempt is not None:
            attempt.fetching = False
        if rows is None:
            result = msgspec.structs.replace(result, error="lost", rows=b"", in_blob=False)
        else:
            result = msgspec.structs.replace(result, rows=rows, in_blob=False)
        trust = self._board.standing(job, peer.peer)[0]
        self._one(job, peer, trust, result, now, wall_ms)
        ref = (job.id, result.task, result.attempt)
        self._board.orders.after.append((peer.peer, Ack([ref])))

    def _one(
        self, job: Job, peer: PeerCell, trust: TrustClass, result: TaskResult, now: float,
        wall_ms: int,
    ) -> bool:  # fmt: skip
        """Take a result in; False if nobody asked for it, or it is known."""
        attempt = self._attempt_of(job, peer, result)
        if attempt is None:
            self._board.count("results_unknown")
            return False
        was_live = attempt.live
        if not was_live and attempt.state not in {AttemptState.LOST, AttemptState.CANCELLED}:
            self._board.count("results_twice")
            return False
        if result.error:
            self._error(job, peer, attempt, result, now, wall_ms)
            return True
        attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.RESULT_OK)
        if was_live:
            # Tasks at a peer run side by side or wait for each other: each took its part.
            took_s = (now - attempt.offered) / max(1, len(peer.outstanding))
            self._board.on_computed(job.spec.handler, len(attempt.ks), took_s)
            self._leasing.release(job, attempt)
        else:
            attempt.overlapped = True
            self._board.count("results_late")
        self._keep_attempt(job, attempt, result, now, wall_ms)
        self._leasing.answered(job, peer, attempt, result.usage.wall_ms / 1000, now)
        self._board.keep_durations(self._leasing.durations.due(job.spec.handler), wall_ms)
        task = attempt.task
        if trust != "own" and self._judging.is_quarantined(job, attempt, wall_ms):
            self._board.count("results_quarantined")
            if effects.once(job):
                self._leasing.failed(job, attempt, effects.OUTCOME_UNKNOWN, now, wall_ms)
            else:
                self._leasing.give_back(job, task)
            return True
        if task.audit and not job.final:
            self._audited(job, attempt, result, wall_ms)
        elif task.open and not job.final:
            self._answers(job, attempt, trust, result, wall_ms)
        return True

    def _audited(self, job: Job, attempt: Attempt, result: TaskResult, wall_ms: int) -> None:
        task = attempt.task
        if task.state not in OPEN_TASKS:
            return  # given up, or done: too late
        found, _ = self._read(job, attempt, result)
        task.state = step(TASK_TRANSITIONS, task.state, TaskInput.SETTLED)
        self._board.end_audit(job, task)
        for k, value in found.items():
            self._judging.audited(job, attempt, job.rows[k], value, wall_ms)
        self.check_done(job)

    def _attempt_of(self, job: Job, peer: PeerCell, result: TaskResult) -> Attempt | None:
        """The attempt a result is of; another peer's is nobody's."""
        if result.task >= len(job.tasks):
            return None
        attempt = job.tasks[result.task].attempts.get(result.attempt)
        return attempt if attempt is not None and attempt.peer == peer.peer else None

    def _keep_attempt(
        self, job: Job, attempt: Attempt, result: TaskResult, now: float, wall_ms: int
    ) -> None:
        self._board.orders.write(
            "attempt",
            (job.id, attempt.task.index, attempt.number, attempt.peer, attempt.owner,
             attempt.state, wall_ms, int((now - attempt.offered) * 1000), result.error[:64]),
        )  # fmt: skip

    def _error(
        self, job: Job, peer: PeerCell, attempt: Attempt, result: TaskResult, now: float,
        wall_ms: int,
    ) -> None:  # fmt: skip
        if not attempt.live:
            return
        attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.RESULT_ERROR)
        self._leasing.release(job, attempt)
        self._keep_attempt(job, attempt, result, now, wall_ms)
        peer.busy = 0
        reason = plain_reason(result.error)
        retry_s = result.retry_ms / 1000
        if self._board.standing(job, peer.peer)[0] == "stranger":
            # Its task must not wait for as long as it likes.
            retry_s = min(retry_s, self._board.times.retry_cap_s)
        self._leasing.failed(job, attempt, reason, now, wall_ms, retry_s)

    # ---- rows

    def _answers(
        self, job: Job, attempt: Attempt, trust: TrustClass, result: TaskResult, wall_ms: int
    ) -> None:
        task = attempt.task
        found, missing = self._read(job, attempt, result)
        task.state = step(TASK_TRANSITIONS, task.state, TaskInput.ANSWERED)
        for k, value in found.items():
            row = job.rows[k]
            if row.state is RowState.PENDING:
                self._judging.answered(job, attempt, row, value, trust, wall_ms)
                job.peers[attempt.peer] = job.peers.get(attempt.peer, 0) + 1
        self._after_answers(job, attempt, missing, wall_ms)

    def _read(
        self, job: Job, attempt: Attempt, result: TaskResult
    ) -> tuple[dict[int, Row], dict[int, str]]:
        """What an answer holds of the rows asked for; each is in one of the two."""
        if len(result.rows) > OUTPUT_BYTES_MAX or digest(result.rows) != result.out_hash:
            self._board.count("results_bad")
            return {}, dict.fromkeys(attempt.ks, "bad_output")
        try:
            table = decode_table_untrusted(result.rows)
        except DecodeError:
            self._board.count("results_bad")
            return {}, dict.fromkeys(attempt.ks, "bad_output")
        found: dict[int, Row] = {}
        missing = dict.fromkeys(attempt.ks, NOT_RETURNED)
        for entry in table:
            k = entry[0] if entry else None
            if type(k) is not int or k not in missing or len(entry) not in {2, 3}:
                self._board.count("rows_unknown")
                continue
            if entry[1] is None:
                missing[k] = plain_reason(entry[2] if len(entry) > 2 else "")
                continue
            value, reason = job.gate.row(entry[1])
            if value is None:
                missing[k] = reason
            else:
                found[k] = value
                del missing[k]
        return found, missing

    def _after_answers(
        self, job: Job, attempt: Attempt, missing: dict[int, str], wall_ms: int
    ) -> None:
        task = attempt.task
        for k, reason in missing.items():
            job.rows[k].reason = reason
        if task.open == 0:
            self._settle(job, task)
        elif task.live == 0:
            self._again(job, attempt, missing, wall_ms)
        self.check_done(job)

    def look_again(self, job: Job, wall_ms: int) -> None:
        """Judge what waits for votes anew, a part of it each time."""
        if job.spec.verify == "none":
            return
        for task in list(islice(job.queue, LOOK_AGAIN_MAX)):
            if task.open and task.state is TaskState.QUEUED:
                self._judging.look_again(job, task, wall_ms)
                if task.open == 0:
                    self._settle(job, task)
        self.check_done(job)

    def _settle(self, job: Job, task: TaskCell) -> None:
        task.state = step(TASK_TRANSITIONS, task.state, TaskInput.SETTLED)
        if task.live:
            self._leasing.cancel_live(job, [one for one in task.attempts.values() if one.live])

    def _again(self, job: Job, attempt: Attempt, missing: dict[int, str], wall_ms: int) -> None:
        """A second try for the rows that did not come, while there are tries."""
        task = attempt.task
        if effects.once(job):
            effects.plain_missing(job, task)
            self.gave_up(job, task, effects.OUTCOME_UNKNOWN, wall_ms)
            return
        task.avoid.add(attempt.owner)
        for k in missing:
            if job.rows[k].answers:
                # Asked for its vote, it gave none: somebody else's is wanted now.
                job.rows[k].barred.add(attempt.owner)
        if missing:
            task.tries += 1
        if task.tries > job.spec.max_retries:
            self.gave_up(job, task, NOT_RETURNED, wall_ms)
        else:
            self._leasing.requeue(job, task)

    def _to_arbiter(self, job: Job, task: TaskCell) -> bool:
        """Ask a device of ours about rows that had votes, but never enough; False if it cannot."""
        voted = [row for k in job.pending(task) if (row := job.rows[k]).answers]
        if task.audit or not voted or not self._board.arbiter(job):
            return False
        if any(row.own_only for row in voted):
            return False
        for row in voted:
            row.own_only = True
        if task.state is TaskState.VERIFYING:
            self._leasing.requeue(job, task)
        else:
            self._leasing.give_back(job, task)
        return task.state is TaskState.QUEUED

    def gave_up(self, job: Job, task: TaskCell, reason: str, wall_ms: int) -> None:
        """A task's open rows get no answer; each keeps the reason it has, or this one."""
        if task.state not in OPEN_TASKS:
            return
        if reason != "deadline" and self._to_arbiter(job, task):
            return
        if task.audit:
            self._board.end_audit(job, task)
        for k in job.pending(task):
            row = job.rows[k]
            why = row.reason or reason
            self._judging.move_row(job, task, row, RowState.MISSING, why)
            self._board.tell(job, "gap", {"k": k, "reason": why}, wall_ms)
        task.state = step(TASK_TRANSITIONS, task.state, TaskInput.GAVE_UP)
        self.check_done(job)

    def erased(self, job: Job, ks: Iterable[int], wall_ms: int) -> None:
        """Drop rows that quote what was erased; whatever still comes of them is too late."""
        tasks = set()
        for k in sorted(ks):
            row = job.rows[k]
            if row.reason == ERASED:
                continue
            was, row.source = row.state, NOTHING
            row.base = row.partial = row.value = None
            row.answers, row.agreed, row.backing, row.level = [], (), frozenset(), 0
            job.cached -= row.reason == CACHED
            task = job.task_of(k)
            tasks.add(task.index)
            if was is not RowState.PENDING:
                task.open += 1  # as if it had been: a row is settled only once
            self._judging.move_row(job, task, row, RowState.MISSING, ERASED)
            if not job.final:
                self._board.tell(job, "gap", {"k": k, "reason": ERASED}, wall_ms)
        job.erasures += 1
        for task in (job.tasks[index] for index in sorted(tasks)):
            if task.open == 0 and task.state in OPEN_TASKS:
                self._settle(job, task)
        self.check_done(job)

    def check_done(self, job: Job) -> None:
        """Reduce a job whose rows are all settled."""
        if job.final:
            return
        if job.counts[RowState.PENDING] or job.audits:
            return
        if job.leasing or job.phase in HELD:
            job.move(JobInput.NO_OPEN_ROW)
            self._board.keep_job(job)
            self._board.orders.reduces.append(job.id)

    def expire(self, job: Job, reason: str, state: TaskInput) -> None:
        """Give every open row of a job up: it is cancelled or its time is over."""
        for task in job.tasks:
            if task.open:
                why = effects.reason_at_the_end(job, task, reason)
                for k in job.pending(task):
                    row = job.rows[k]
                    gone = why == "deadline" and row.pin is not None and self._is_gone(row.pin)
                    word = PEER_GONE if gone else why
                    self._judging.move_row(job, task, row, RowState.MISSING, word)
                if task.state is not TaskState.DONE:
                    task.state = step(TASK_TRANSITIONS, task.state, state)

    def _is_gone(self, peer: PeerId) -> bool:
        """Whether a row's own device is away."""
        cell = self._board.peers.get(peer)
        return cell is None or cell.down


def plain_reason(text: object) -> str:
    """A foreign reason as a word that is safe to show."""
    if not isinstance(text, str) or not text:
        return NOT_RETURNED
    word = "".join(c for c in text[:REASON_CHARACTERS_MAX] if c in _WORD_CHARACTERS)
    return word or NOT_RETURNED


def row_bytes(job: Job, ks: Sequence[int]) -> bytes:
    """Canonical rows of a task as they travel: [[k, row, token, partial]...]."""
    rows = job.rows
    with_token = job.spec.effect == "once"
    parts = []
    for k in ks:
        row = rows[k]
        text = b"[%d,%s" % (k, row.source)
        if with_token or row.partial is not None:
            text += b',"%s"' % row.hash.hex().encode() if with_token else b",null"
        if row.partial is not None:
            text += b"," + canonical(row.partial)
        parts.append(text + b"]")
    return b"[" + b",".join(parts) + b"]"
