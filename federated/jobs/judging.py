"""From answers to rows that count: who must be asked next, what is accepted, what reopens.

Theory of operation. The judge (`verify`) looks at one row's answers, the reputation at an owner's
past; this joins both with the job. A row that needs another vote goes back into its task, whose
next attempt is barred to every owner that has voted; a row that needs an arbiter goes to a device
of our own, which always has the last word where equal rows have equal answers. Rows that one owner
gave alone are audited now and then by recomputation, after they were accepted, so that nobody can
tell. Whoever is caught is quarantined, and every row that only such owners vouch for is open again.
Source: docs/specs/jobs.md s.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from federated.jobs.cache import CACHED
from federated.jobs.canon import encode_normal
from federated.jobs.columns import equal_cells
from federated.jobs.effects import once
from federated.jobs.loading import ANSWER_DROPPED
from federated.jobs.state import (
    KEPT,
    TASK_TRANSITIONS,
    JobInput,
    JobPhase,
    RowState,
    TaskCell,
    TaskInput,
    TaskState,
    step,
)
from federated.jobs.verify import (
    LEVEL_REPUTATION,
    Accepted,
    Answer,
    Disputed,
    Judge,
    NeedArbiter,
    NeedVote,
    NoQuorum,
    reopen,
    resolve_policy,
    wants_audit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.jobs.board import Board
    from federated.jobs.leasing import Leasing
    from federated.jobs.reputation import Reputation, Settled
    from federated.jobs.state import Attempt, Job, RowCell
    from federated.jobs.types import Row
    from federated.jobs.verify import Conflict, Policy
    from federated.seams import TrustClass

CLAIMS_TOLD: Final = 16
"""Claims of a conflict that its event names."""


class Judging:
    """The rows of all jobs before the judge.

    Args:
        board: the machine's memory.
        leasing: whose attempts end when an owner is quarantined.
    """

    def __init__(self, board: Board, leasing: Leasing) -> None:
        self._board = board
        self._leasing = leasing
        self.reputation: Reputation = board.reputation

    # ---- an answer

    def answered(
        self, job: Job, attempt: Attempt, row: RowCell, value: Row, trust: TrustClass, wall_ms: int
    ) -> None:
        """A peer gave a row: keep its answer and see what follows."""
        answer = Answer(
            attempt.owner, bytes(attempt.peer), attempt.number, value, "", attempt.overlapped,
            trust == "own",
        )  # fmt: skip
        row.answers.append(answer)
        policy = self._policy(job, row, trust)
        if policy.kind not in {"none", "spot"} or len(row.answers) > 1:
            self._keep_answer(job, row, answer)
        self._judge(job, attempt.task, row, policy, wall_ms)

    def _policy(self, job: Job, row: RowCell, trust: TrustClass) -> Policy:
        """How far the row is checked: as its first answer's giver requires."""
        first: TrustClass = "own" if row.answers and row.answers[0].own else trust
        found = job.policies.get(first)
        if found is None:
            kind, local = self._board.nature(job)
            # What acts on the world is done once: nobody else can tell whether it was right.
            once = local or job.spec.effect == "once"
            found = resolve_policy(job.spec.verify, trust=first, kind=kind, local=once)
            job.policies[first] = found
        return found

    def _keep_answer(self, job: Job, row: RowCell, answer: Answer) -> None:
        self._board.orders.write(
            "answer",
            (job.id, row.k, answer.device, answer.owner, answer.attempt, int(answer.overlapped),
             encode_normal(answer.row)),
        )  # fmt: skip

    def _judge(self, job: Job, task: TaskCell, row: RowCell, policy: Policy, wall_ms: int) -> None:
        handler = job.spec.handler
        if row.alone is None and policy.kind == "adaptive":
            # Drawn once, after the first answer has come.
            row.alone = self.reputation.trusted_alone(
                row.answers[0].owner, handler, self._board.rng, wall_ms
            )
        verdict = job_judge(job).judge(
            row.answers, policy, alone=bool(row.alone) and not row.doubted,
            arbiter=self._board.arbiter(job),
            owners_left=self._board.owners_left(job, row, wall_ms),
        )  # fmt: skip
        match verdict:
            case Accepted():
                self._accepted(job, task, row, verdict, policy, wall_ms)
            case NeedVote():
                row.barred.update(verdict.owners)
            case NeedArbiter():
                row.own_only = True
            case Disputed():
                self._conflict(job, row, verdict.conflicts, wall_ms)
                self.move_row(job, task, row, RowState.DISPUTED, "disputed")
            case NoQuorum():
                self.move_row(job, task, row, RowState.MISSING, "no_quorum")
                self._board.tell(job, "gap", {"k": row.k, "reason": "no_quorum"}, wall_ms)

    def _accepted(
        self, job: Job, task: TaskCell, row: RowCell, verdict: Accepted, policy: Policy,
        wall_ms: int,
    ) -> None:  # fmt: skip
        row.value = verdict.row
        row.level = verdict.level
        row.agreed = tuple(sorted(verdict.agreed))
        row.backing = verdict.backing
        row.own_only = False
        if verdict.conflicts:
            self._conflict(job, row, verdict.conflicts, wall_ms)
        self._board.keep_cached(job, row, wall_ms)
        if row.base is not None:
            row.base.merge(row, job.spec.gap_columns)
        self.move_row(job, task, row, RowState.OK, "")
        alone = verdict.level <= LEVEL_REPUTATION or (
            len(row.answers) == 1 and row.answers[0].device != bytes(self._board.door.id)
        )
        if alone and self._board.arbiter(job) and wants_audit(policy, self._board.rng):
            self._audit(job, row, wall_ms)
        self._settled(job, row, verdict, wall_ms)
        if not job.audits:
            row.trim()

    def _settled(self, job: Job, row: RowCell, verdict: Accepted, wall_ms: int) -> None:
        """What the row's end means for those who answered it, and for other rows."""
        if all(answer.own for answer in row.answers) and not verdict.lost:
            return
        settled = self.reputation.settle(
            verdict, row.answers, job.spec.handler, (job.id, row.k),
            deterministic=self._board.deterministic(job), wall_ms=wall_ms,
        )  # fmt: skip
        for stat in self.reputation.take_changed():
            self._board.orders.write("peer_stat", tuple(stat))
        self._follow(settled, wall_ms)

    def _follow(self, settled: Settled, wall_ms: int) -> None:
        for revote in settled.revote:
            job = self._board.job_of(revote.ref[0])
            if job is not None and not job.final:
                self._open_again(job, job.rows[revote.ref[1]], frozenset((revote.owner,)), wall_ms)
        if settled.quarantined:
            self._quarantined(settled.quarantined, wall_ms)
            self._board.caught(settled.quarantined, wall_ms)

    def look_again(self, job: Job, task: TaskCell, wall_ms: int) -> None:
        """Judge rows anew that wait for another vote: who was to give it may be gone."""
        for k in task.ks:
            row = job.rows[k]
            if row.state is RowState.PENDING and row.answers and not row.own_only:
                trust: TrustClass = "own" if row.answers[0].own else "stranger"
                self._judge(job, task, row, self._policy(job, row, trust), wall_ms)

    # ---- quarantine

    def is_quarantined(self, job: Job, attempt: Attempt, wall_ms: int) -> bool:
        """Whether an attempt's answers count no more."""
        return self.reputation.quarantined(
            attempt.owner, bytes(attempt.peer), job.spec.handler, wall_ms
        )

    def _quarantined(self, caught: Sequence[bytes], wall_ms: int) -> None:
        """Owners were caught: stop asking them, and open what such owners alone vouch for.

        Colluders are caught one by one, so all that are quarantined by now count together.
        """
        for job in self._board.live_jobs():
            if once(job):
                continue  # what acts on the world is neither taken back nor done again
            owners = frozenset(self.reputation.quarantined_owners(job.spec.handler, wall_ms))
            if owners.isdisjoint(caught):
                continue
            at_them = [one for one in job.live if one.owner in owners]
            peers = sorted({bytes(one.peer).hex() for one in at_them})
            self._leasing.cancel_live(job, at_them)
            for attempt in at_them:
                self._leasing.give_back(job, attempt.task)
            backing = {
                row.k: row.backing for row in job.rows if row.state is RowState.OK and row.backing
            }
            opened = reopen(backing, owners)
            for owner in sorted(owners.intersection(caught)):
                data: dict[str, object] = {
                    "owner": owner.hex(), "peers": peers, "reopened": len(opened),
                }  # fmt: skip
                self._board.tell(job, "quarantine", data, wall_ms)
            for row in job.rows:
                if row.base is not None and reopen({0: row.base.backing}, owners):
                    row.base = row.partial = None
                    if row.state is RowState.PENDING:
                        self._board.keep_row(job, row)
                if row.state is RowState.PENDING and row.answers:
                    self._drop_answers(job, row, owners)
            for k in opened:
                self._open_again(job, job.rows[k], owners, wall_ms)

    def _open_again(self, job: Job, row: RowCell, without: frozenset[bytes], wall_ms: int) -> None:
        """A row is pending again, without the answers of some owners."""
        if row.state is not RowState.OK or once(job):
            return
        self._drop_answers(job, row, without)
        row.barred |= without
        row.doubted = True
        row.value, row.backing, row.agreed, row.level = None, frozenset(), (), 0
        job.cached -= row.reason == CACHED
        row.reason = ""
        self._board.drop_cached(job, row)
        job.counts[RowState.OK] -= 1
        job.counts[RowState.PENDING] += 1
        row.state = RowState.PENDING
        self._board.keep_row(job, row)
        self._board.tell(job, "reopened", {"k": row.k}, wall_ms)
        if job.phase is JobPhase.REDUCING:
            job.move(JobInput.REOPENED)
            self._board.keep_job(job)
        task = job.task_of(row.k)
        task.open += 1
        if task.state in {TaskState.DONE, TaskState.FAILED}:
            task.state = step(TASK_TRANSITIONS, task.state, TaskInput.REOPENED)
            job.queue.append(task)

    def _drop_answers(self, job: Job, row: RowCell, owners: frozenset[bytes]) -> None:
        """A row's answers of some owners count no more, nor do they after a restart."""
        kept = []
        for one in row.answers:
            if one.owner not in owners:
                kept.append(one)
                continue
            self._board.orders.write(
                "answer_dropped",
                (job.id, row.k, one.device, one.owner, one.attempt, ANSWER_DROPPED, b""),
            )
        # What was drawn for the giver of the first answer is nothing for another's.
        row.doubted = row.doubted or len(kept) < len(row.answers)
        row.answers = kept

    # ---- audits

    def _audit(self, job: Job, row: RowCell, wall_ms: int) -> None:
        """Have a device of our own compute an accepted row again."""
        del wall_ms
        task = TaskCell(len(job.tasks), (row.k,), len(row.source), 0.0)
        task.open = 0
        task.audit = True
        job.tasks.append(task)
        job.queue.append(task)
        job.audits += 1
        self._keep_answer(job, row, row.answers[0])
        self._board.keep_audit(job, task, due=True)

    def audited(self, job: Job, attempt: Attempt, row: RowCell, value: Row, wall_ms: int) -> None:
        """An own device computed an accepted row again."""
        if row.state is not RowState.OK or row.value is None or not row.answers:
            return
        given = row.answers[0]
        audit = Answer(attempt.owner, bytes(attempt.peer), attempt.number, value, "", own=True)
        verdict = job_judge(job).judge_audit(given, audit)
        if not isinstance(verdict, Accepted):
            return
        row.value, row.level = verdict.row, verdict.level
        row.agreed, row.backing = tuple(sorted(verdict.agreed)), verdict.backing
        self._board.keep_cached(job, row, wall_ms)
        if row.base is not None:
            row.base.merge(row, job.spec.gap_columns)
        self._board.keep_row(job, row)
        if verdict.conflicts:
            self._conflict(job, row, verdict.conflicts, wall_ms)
        self._settled(job, row, verdict, wall_ms)

    # ---- shared

    def _conflict(
        self, job: Job, row: RowCell, conflicts: tuple[Conflict, ...], wall_ms: int
    ) -> None:
        """Tell what was answered in several ways, and by whom."""
        for conflict in conflicts:
            self._board.tell(
                job, "conflict",
                {
                    "k": row.k,
                    "column": conflict.column,
                    "claims": [
                        {"owner": claim.owner.hex(), "device": claim.device.hex()}
                        for claim in conflict.claims[:CLAIMS_TOLD]
                    ],
                },
                wall_ms,
            )  # fmt: skip

    def move_row(
        self, job: Job, task: TaskCell, row: RowCell, state: RowState, reason: str
    ) -> None:
        """A row is settled."""
        if row.base is not None and state is not RowState.OK:
            row.base.give(row)
            state, reason = RowState.OK, KEPT
        job.counts[row.state] -= 1
        job.counts[state] += 1
        row.state = state
        row.reason = reason
        task.open -= 1
        self._board.keep_row(job, row)


def job_judge(job: Job) -> Judge:
    """The job's judge, made when it is first needed."""
    if job.judge is None:
        job.judge = Judge(job.spec.columns, equal_cells)
    return job.judge
