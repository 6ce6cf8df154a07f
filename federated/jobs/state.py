"""Job, task, attempt and row: what states they have and which input leads where.

Theory of operation. A job is a table of rows. Rows are put into tasks, a task is offered to a peer
as an attempt, and attempts end in results, refusals or silence. What counts lives at the rows: a
row is pending until an answer was accepted for it, or there is a reason why there is none, or its
answers contradict each other for good. A task is only the unit in which rows travel, so it is done
when none of its rows is pending, whatever became of its attempts. Final is final but for
reopening, which happens when every owner that vouched for a row turned out to lie.

Transitions stand in the three tables below and nowhere else. Everything here is memory; the
journal has the same rows (`journal`), and a restart builds this from it.
Source: docs/specs/jobs.md s.3.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from federated.errors import UsageError
from federated.jobs.columns import Gate
from federated.jobs.types import Count, Sum, TopK
from federated.jobs.verify import LEVEL_OWN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federated.jobs.types import JobId, JobSpec, Row
    from federated.jobs.verify import Answer, Judge, Policy
    from federated.seams import GroupId
    from p2p.identity import PeerId


class JobPhase(enum.StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    WAITING_INPUT = "waiting_input"
    REDUCING = "reducing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


JOB_FINAL: Final = frozenset({
    JobPhase.DONE, JobPhase.FAILED, JobPhase.CANCELLED, JobPhase.EXPIRED,
})  # fmt: skip


class JobInput(enum.StrEnum):
    """What happens to a job."""

    LEASED = "leased"
    NO_OPEN_ROW = "no_open_row"
    REDUCED = "reduced"
    REOPENED = "reopened"
    PAUSE = "pause"
    RESUME = "resume"
    OUT_OF_EXECUTIONS = "out_of_executions"
    CANCEL = "cancel"
    DEADLINE = "deadline"
    NO_ROW_OK = "no_row_ok"


_P, _I = JobPhase, JobInput
_OPEN: Final = (_P.QUEUED, _P.RUNNING, _P.PAUSED, _P.WAITING_INPUT)
JOB_TRANSITIONS: Final[Mapping[tuple[JobPhase, JobInput], JobPhase]] = {
    (_P.QUEUED, _I.LEASED): _P.RUNNING,
    (_P.RUNNING, _I.LEASED): _P.RUNNING,
    **{(phase, _I.NO_OPEN_ROW): _P.REDUCING for phase in _OPEN},
    (_P.REDUCING, _I.REDUCED): _P.DONE,
    (_P.REDUCING, _I.NO_ROW_OK): _P.FAILED,
    (_P.REDUCING, _I.REOPENED): _P.RUNNING,
    (_P.QUEUED, _I.PAUSE): _P.PAUSED,
    (_P.RUNNING, _I.PAUSE): _P.PAUSED,
    (_P.PAUSED, _I.RESUME): _P.RUNNING,
    (_P.QUEUED, _I.OUT_OF_EXECUTIONS): _P.WAITING_INPUT,
    (_P.RUNNING, _I.OUT_OF_EXECUTIONS): _P.WAITING_INPUT,
    (_P.WAITING_INPUT, _I.RESUME): _P.RUNNING,
    **{(phase, _I.CANCEL): _P.CANCELLED for phase in (*_OPEN, _P.REDUCING)},
    **{(phase, _I.DEADLINE): _P.EXPIRED for phase in (*_OPEN, _P.REDUCING)},
}


class TaskState(enum.StrEnum):
    """Where a task is."""

    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    VERIFYING = "verifying"
    RETRY_WAIT = "retry_wait"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class TaskInput(enum.StrEnum):
    """What happens to a task."""

    OFFERED = "offered"
    BEAT_RUNNING = "beat_running"
    TAKEN_BACK = "taken_back"
    ANSWERED = "answered"
    MORE_NEEDED = "more_needed"
    SETTLED = "settled"
    RETRY = "retry"
    RETRY_DUE = "retry_due"
    GAVE_UP = "gave_up"
    CANCEL = "cancel"
    DEADLINE = "deadline"
    REOPENED = "reopened"


_T, _J = TaskState, TaskInput
_WORKED: Final = (_T.LEASED, _T.RUNNING)
_UNSETTLED: Final = (_T.QUEUED, _T.LEASED, _T.RUNNING, _T.VERIFYING, _T.RETRY_WAIT)
TASK_TRANSITIONS: Final[Mapping[tuple[TaskState, TaskInput], TaskState]] = {
    (_T.QUEUED, _J.OFFERED): _T.LEASED,
    **{(state, _J.OFFERED): state for state in _WORKED},  # a hedge
    **{(state, _J.BEAT_RUNNING): _T.RUNNING for state in _WORKED},
    **{(state, _J.TAKEN_BACK): _T.QUEUED for state in (*_WORKED, _T.VERIFYING)},
    **{(state, _J.ANSWERED): _T.VERIFYING for state in _UNSETTLED},  # late ones count, too
    (_T.VERIFYING, _J.MORE_NEEDED): _T.QUEUED,
    (_T.VERIFYING, _J.SETTLED): _T.DONE,
    **{(state, _J.SETTLED): _T.DONE for state in _UNSETTLED if state is not _T.VERIFYING},
    **{(state, _J.RETRY): _T.RETRY_WAIT for state in (*_WORKED, _T.VERIFYING)},
    (_T.RETRY_WAIT, _J.RETRY_DUE): _T.QUEUED,
    **{(state, _J.GAVE_UP): _T.FAILED for state in _UNSETTLED},
    **{(state, _J.CANCEL): _T.CANCELLED for state in _UNSETTLED},
    **{(state, _J.DEADLINE): _T.EXPIRED for state in _UNSETTLED},
    (_T.DONE, _J.REOPENED): _T.QUEUED,
    (_T.FAILED, _J.REOPENED): _T.QUEUED,
}


class AttemptState(enum.StrEnum):
    """Where an attempt is."""

    OFFERED = "offered"
    ACCEPTED = "accepted"
    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    LOST = "lost"
    STALE = "stale"


ATTEMPT_LIVE: Final = frozenset({
    AttemptState.OFFERED, AttemptState.ACCEPTED, AttemptState.RUNNING,
})  # fmt: skip


class AttemptInput(enum.StrEnum):
    """What happens to an attempt."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    START = "start"
    RESULT_OK = "result_ok"
    RESULT_ERROR = "result_error"
    CANCEL = "cancel"
    LEASE_END = "lease_end"


_A, _K = AttemptState, AttemptInput
_LIVE: Final = (_A.OFFERED, _A.ACCEPTED, _A.RUNNING)
ATTEMPT_TRANSITIONS: Final[Mapping[tuple[AttemptState, AttemptInput], AttemptState]] = {
    (_A.OFFERED, _K.ACCEPT): _A.ACCEPTED,
    (_A.OFFERED, _K.REFUSE): _A.REFUSED,
    **{(state, _K.START): _A.RUNNING for state in _LIVE},
    **{(state, _K.RESULT_OK): _A.OK for state in _LIVE},
    **{(state, _K.RESULT_ERROR): _A.ERROR for state in _LIVE},
    **{(state, _K.CANCEL): _A.CANCELLED for state in _LIVE},
    **{(state, _K.LEASE_END): _A.LOST for state in _LIVE},
    (_A.LOST, _K.RESULT_OK): _A.STALE,
    (_A.CANCELLED, _K.RESULT_OK): _A.STALE,
}

S = TypeVar("S", bound=enum.StrEnum)
N = TypeVar("N", bound=enum.StrEnum)


def step(table: Mapping[tuple[S, N], S], state: S, happened: N) -> S:
    """The next state.

    Raises:
        UsageError: the table has no such pair: our own mistake, foreign input is checked before.
    """
    found = table.get((state, happened))
    if found is None:
        raise UsageError(f"{happened} in state {state}")
    return found


class RowState(enum.IntEnum):
    """Where a row is; the numbers stand in the journal."""

    PENDING = 0
    OK = 1
    MISSING = 2
    DISPUTED = 3


KEPT: Final = "kept"
"""Reason of a row whose answer stands in the finished job that this one fills the gaps of."""


class Base(NamedTuple):
    """A row's answer in the job whose gaps this one fills.

    Attributes:
        value: the answer.
        level: as of `verify`.
        agreed: owners that vouch for it.
    """

    value: Row
    level: int
    agreed: tuple[bytes, ...]

    @property
    def backing(self) -> frozenset[frozenset[bytes]]:
        """Sets of owners that carry it; see `verify.Accepted`."""
        if self.level >= LEVEL_OWN or not self.agreed:
            return frozenset()
        return frozenset((frozenset(self.agreed),))

    def give(self, row: RowCell) -> None:
        """Let it be the row's answer."""
        row.value, row.level = self.value, self.level
        row.agreed, row.backing = self.agreed, self.backing

    def merge(self, row: RowCell, columns: Sequence[str]) -> None:
        """Take `columns` of the row's answer and the rest of this one."""
        assert row.value is not None
        fresh = {name: row.value[name] for name in columns if row.value.get(name) is not None}
        row.value = {**self.value, **fresh}
        row.level = min(row.level, self.level)
        row.agreed = tuple(sorted({*row.agreed, *self.agreed}))
        row.backing |= self.backing


class RowCell:
    """One row of a job.

    Attributes:
        k: its index.
        key: canonical bytes of its key columns.
        hash: its row hash.
        source: canonical bytes of the input row.
        pin: the device it is for; None: any.
        state, level, reason: see docs/specs/jobs.md s.3 and s.8.
        value: the accepted answer.
        agreed: owners that vouched for it.
        answers: what came, in order.
        alone: whether the giver of the first answer is trusted alone; drawn after it came.
        backing: sets of owners that carry it; see `verify.Accepted`.
        barred: owners that may not be asked (again).
        doubted: it was accepted once and opened again.
        own_only: a device of our own must compute it.
        partial: what a first try answered, for the second.
        base: what it is merged over once it is answered, and falls back to if it is not.
    """

    __slots__ = (
        "agreed", "alone", "answers", "backing", "barred", "base", "doubted", "hash", "k", "key",
        "level", "own_only", "partial", "pin", "reason", "source", "state", "value",
    )  # fmt: skip

    def __init__(self, k: int, key: bytes, hashed: bytes, source: bytes) -> None:
        self.k = k
        self.key = key
        self.hash = hashed
        self.source = source
        self.pin: PeerId | None = None
        self.state = RowState.PENDING
        self.level = 0
        self.reason = ""
        self.value: Row | None = None
        self.agreed: tuple[bytes, ...] = ()
        self.answers: list[Answer] = []
        self.alone: bool | None = None
        self.backing: frozenset[frozenset[bytes]] = frozenset()
        self.barred: set[bytes] = set()
        self.doubted = False
        self.own_only = False
        self.partial: Row | None = None
        self.base: Base | None = None

    def trim(self) -> None:
        """Drop what a row that is settled for good needs no more: a job has many."""
        if self.level > 1 and not self.backing:
            self.answers = []
            self.barred = set()


class Attempt:
    """A task at a peer.

    Attributes:
        ks: the rows it was asked for.
        overlapped: another attempt of the task was live meanwhile, or it came late: it may not
            complete a quorum.
        started: monotonic seconds of its first running beat; None before.
        seen: monotonic seconds of its offer or last beat.
        check: an audit or an arbiter's recomputation: its answers judge, they are not candidates.
        began: monotonic seconds at which a slot there was free for it, as far as we know; None:
            none is yet; infinite: its worker says that it waits.
        slots: tasks at once there.
        share_s: how much longer it was thought to keep all of them busy.
        apart_s: seconds of it that were thought to go into reading and a cold start.
        expected_s: seconds it was thought to take an average peer; 0: nobody knew.
        fetching: its answer is in a blob that is on its way.
        hedge: it is the second live one of its task.
        revoking: its worker was asked to give it back if it has not started.
        session: of the offer; 0: of an earlier run of ours.
    """

    __slots__ = (
        "apart_s", "began", "check", "expected_s", "fetching", "hedge", "ks", "lease_end", "number",
        "offered", "overlapped", "owner", "peer", "progress", "revoking", "seen", "session",
        "share_s", "slots", "started", "state", "task",
    )  # fmt: skip

    def __init__(
        self, task: TaskCell, number: int, peer: PeerId, owner: bytes, ks: tuple[int, ...],
        now: float, lease_s: float,
    ) -> None:  # fmt: skip
        self.task = task
        self.number = number
        self.peer = peer
        self.owner = owner
        self.ks = ks
        self.state = AttemptState.OFFERED
        self.offered = now
        self.seen = now
        self.started: float | None = None
        self.lease_end = now + lease_s
        self.overlapped = False
        self.progress = 0.0
        self.check = False
        self.began: float | None = None
        self.slots = 1
        self.share_s = 0.0
        self.apart_s = 0.0
        self.expected_s = 0.0
        self.fetching = False
        self.hedge = False
        self.revoking = False
        self.session = 0

    @property
    def live(self) -> bool:
        """Whether a result of it is still awaited."""
        return self.state in ATTEMPT_LIVE


class TaskCell:
    """Rows that travel together.

    Attributes:
        index: number in the job.
        ks: its rows.
        open: how many of them are pending.
        tries: losses and passing failures that count.
        errors: exceptions of the handler; the second one is final.
        due: monotonic seconds before which it is not offered again.
        bytes: of its rows in canonical form.
        attempts: by number, live and ended.
        avoid: owners to ask last: they failed it.
        audit: it computes an accepted row again, at a device of our own.
        prefix: hashes of the blocks it begins with; None: not computed yet.
    """

    __slots__ = (
        "attempts", "audit", "avoid", "bytes", "due", "errors", "index", "ks", "live", "open",
        "prefix", "queued_at", "state", "tries",
    )  # fmt: skip

    def __init__(self, index: int, ks: tuple[int, ...], size: int, now: float) -> None:
        self.index = index
        self.ks = ks
        self.open = len(ks)
        self.state = TaskState.QUEUED
        self.tries = 0
        self.errors = 0
        self.due = 0.0
        self.bytes = size
        self.queued_at = now
        self.attempts: dict[int, Attempt] = {}
        self.live = 0
        self.avoid: set[bytes] = set()
        self.audit = False
        self.prefix: Sequence[bytes] | None = None


class Job:
    """A job under way.

    Attributes:
        nonce: 16 random bytes, in the hashes of rows that are no cache keys.
        agent: who submitted; empty for the person.
        group: whose members may see the rows; None: own devices.
        rows, tasks: by index.
        queue: tasks to offer, in order; may hold some that are settled meanwhile.
        waiting: tasks in retry_wait.
        submitted_ms, deadline_ms: Unix milliseconds; `deadline` the same in monotonic seconds.
        counts: rows by state.
        executions: attempts that were accepted or answered.
        live: attempts at peers, in the order of their offers.
        served_at: monotonic seconds of the last offer; -1: not looked at yet.
        extra: hedges.
        audits: rows that are being computed again.
        parent: the job whose gaps it fills, while it is new.
        only: the devices a plan named; None: whoever the group lets may see the rows.
        stage: 0 for a caller's job; of one that combines answers, its level.
        cache_ms: how long its answers are kept for later jobs; 0: not at all.
        cached: rows that an earlier job answered.
        erasures: how often rows were erased: what was computed of them before is void.
        blobs: the blob that each row names, of those that do.
        holders: who has such a blob, as far as is known.
        judge, policies: made when first needed.
    """

    def __init__(
        self, ident: JobId, spec: JobSpec, *, group: GroupId | None, agent: str, nonce: bytes,
        submitted_ms: int, deadline: float,
    ) -> None:  # fmt: skip
        self.id = ident
        self.spec = spec
        self.group = group
        self.agent = agent
        self.nonce = nonce
        self.phase = JobPhase.QUEUED
        self.reason = ""
        self.submitted_ms = submitted_ms
        self.finished_ms = 0
        self.deadline = deadline
        self.rows: list[RowCell] = []
        self.tasks: list[TaskCell] = []
        self.queue: deque[TaskCell] = deque()
        self.waiting: list[TaskCell] = []
        self.live: dict[Attempt, None] = {}
        self.served_at = -1.0
        self.counts = [0, 0, 0, 0]
        self.executions = 0
        self.executions_max = spec.limits.executions
        self.extra = 0
        self.peers: dict[PeerId, int] = {}
        self.last_progress = -1.0
        self.told = -1
        self.idle_since = -1.0
        self.gate = Gate(spec.columns, pairs=isinstance(spec.reduce, Count | Sum | TopK))
        self.judge: Judge | None = None
        self.policies: dict[str, Policy] = {}
        self.audits = 0
        self.only: frozenset[PeerId] | None = None
        self.parent: JobId | None = None
        self.stage = 0
        self.cache_ms = 0
        self.cached = 0
        self.erasures = 0
        self.blobs: dict[int, bytes] = {}
        self.holders: dict[bytes, set[PeerId]] = {}
        self._tasks_of: list[int] = []

    def move(self, happened: JobInput) -> None:
        """Follow the table."""
        self.phase = step(JOB_TRANSITIONS, self.phase, happened)

    @property
    def final(self) -> bool:
        """Whether it is over."""
        return self.phase in JOB_FINAL

    @property
    def leasing(self) -> bool:
        """Whether its tasks may be offered."""
        return self.phase is JobPhase.QUEUED or self.phase is JobPhase.RUNNING

    def task_of(self, k: int) -> TaskCell:
        """The task a row travels in."""
        if not self._tasks_of:
            self._tasks_of = [0] * len(self.rows)
            for task in self.tasks:
                if not task.audit:
                    for one in task.ks:
                        self._tasks_of[one] = task.index
        return self.tasks[self._tasks_of[k]]

    def pending(self, task: TaskCell) -> tuple[int, ...]:
        """Indices of a task's rows that still need an answer."""
        rows = self.rows
        return tuple(k for k in task.ks if rows[k].state is RowState.PENDING)
