"""Effects: jobs whose handler acts on the world, and so may run at most once a row.

Theory of operation. A pure row may be asked for as often as anybody likes; a payment may not. From
the moment an offer of such a task can have left, nobody but the worker knows whether it ran, and
whatever the coordinator cannot learn it must not guess. Three records carry the knowledge over
crashes and cuts. The attempt is in the coordinator's journal, synced to the disk, before its offer
leaves, and the offer leaves in the session it was made for or never. The worker's row `started` is
synced before the handler runs, and its result before it is sent (`held`). The result is in the
coordinator's journal, synced, before it is acknowledged.

An attempt is leased again only when its worker says that it never had it: by a refusal, or by what
it holds at the beginning of a session. That list speaks of earlier sessions only, so no effect is
offered in a session before its list has come. Everything else that ends an attempt (an error, a
timeout, `started` without a result, the deadline) leaves its rows missing, `outcome_unknown`: it
may have happened. A handler that its own device declares `idempotent_by_token` may run again, as
often as a pure one, with the same token.

A hostile worker may run an effect and deny it; no protocol helps against that, so effects go to
whom the job's group says and to nobody else. A hostile coordinator can spend its own tokens only:
they are kept by coordinator. Source: docs/specs/jobs.md s.8.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from federated.errors import PlanError
from federated.jobs.items import Offer
from federated.jobs.state import (
    ATTEMPT_TRANSITIONS,
    TASK_TRANSITIONS,
    Attempt,
    AttemptInput,
    AttemptState,
    TaskInput,
    step,
)
from federated.jobs.types import JobId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from federated.jobs.board import Board, PeerCell
    from federated.jobs.handlers.base import HandlerInfo
    from federated.jobs.items import Item
    from federated.jobs.orders import Orders
    from federated.jobs.state import Job, TaskCell
    from federated.jobs.types import JobSpec
    from p2p.identity import PeerId

OUTCOME_UNKNOWN: Final = "outcome_unknown"
"""Reason of a row whose effect may or may not have happened."""

EFFECT_ROWS: Final = 1
"""Rows of a task where the spec leaves it to us: one failure makes one outcome unknown."""

RESTORED_S: Final = 10.0
"""Lease of what was out when we stopped: as of what is offered anew."""

_SAYS_NOTHING: Final = frozenset({"not_returned", "bad_output", "bad_type", "bad_value", ""})
"""Reasons that mean that no answer came, or none of use: the effect may well have happened."""


# ---- the spec


def check_once(spec: JobSpec) -> None:
    """What a spec with `effect: once` may not ask for.

    Raises:
        PlanError: `bad_spec`.
    """
    if spec.verify not in {"auto", "none"}:
        raise PlanError(
            "bad_spec", "what happens once is not computed twice to be checked: leave it at auto",
            path="verify",
        )  # fmt: skip
    if spec.engine not in {"peers", "local"}:
        raise PlanError(
            "bad_spec", "another engine may run a call twice: `peers` or `local`", path="engine"
        )


def check_declared(spec: JobSpec, info: HandlerInfo | None) -> None:
    """That a job says of its handler what this device declares of it.

    Args:
        spec: the job.
        info: what this device says of the handler; None: it has none of that name.

    Raises:
        PlanError: `bad_spec`.
    """
    if info is None or info.effect == (spec.effect == "once"):
        return
    if info.effect:
        raise PlanError(
            "bad_spec",
            f"{info.id} acts on the world: say `effect: once`; a row whose answer gets lost is then"
            " missing with outcome_unknown instead of being run again",
            path="effect",
        )
    raise PlanError(
        "bad_spec", f"{info.id} has no effect: leave out `effect: once`, and lost rows run again",
        path="effect",
    )  # fmt: skip


def rows_of_a_task(spec: JobSpec, otherwise: int) -> int:
    """How many rows travel together when the spec leaves it to us."""
    return EFFECT_ROWS if spec.effect == "once" else otherwise


# ---- rules


def once(job: Job) -> bool:
    """Whether a job's rows act on the world."""
    return job.spec.effect == "once"


def repeatable(board: Board, job: Job) -> bool:
    """Whether a row may run again though nobody knows whether it did: by our own word alone."""
    if not once(job):
        return True
    info = board.own_handlers.get(job.spec.handler)
    return info is not None and info.effect and info.idempotent_by_token


def suits(job: Job, cell: PeerCell) -> bool:
    """Whether a peer declares of a job's handler what the job says, and may be offered it now."""
    if cell.handlers[job.spec.handler].effect != once(job):
        return False
    return not once(job) or cell.told


def keeps(board: Board, job: Job, attempt: Attempt) -> bool:
    """Whether an attempt outlives its lease: only its worker can say what became of it."""
    if repeatable(board, job):
        return False
    attempt.lease_end = math.inf
    return True


def plain_missing(job: Job, task: TaskCell) -> None:
    """Rows that came back without an answer of use or a word of their handler: nobody knows."""
    for k in job.pending(task):
        if job.rows[k].reason in _SAYS_NOTHING:
            job.rows[k].reason = OUTCOME_UNKNOWN


def reason_at_the_end(job: Job, task: TaskCell, reason: str) -> str:
    """Why the open rows of a task have no answer when their job ends early."""
    if once(job) and any(
        one.live or one.state is AttemptState.CANCELLED for one in task.attempts.values()
    ):
        return OUTCOME_UNKNOWN
    return reason


# ---- offers


class Outlet:
    """Where offers go that must be in the journal before they leave.

    Args:
        board: the machine's memory.
        job: a job with effects, or with a limit of executions.
        session: the session they may leave in.
    """

    def __init__(self, board: Board, job: Job, session: int) -> None:
        self._board = board
        self._job = job
        self._session = session

    def send(self, peer: PeerId, item: Item) -> None:
        """Keep the attempts of an offer, or their number; anything else leaves at once."""
        board, job = self._board, self._job
        if not isinstance(item, Offer):
            board.orders.send(peer, item)
            return
        if once(job):
            for offered in item.tasks:
                attempt = job.tasks[offered.task].attempts[offered.attempt]
                keep_attempt(board.orders, job, attempt)
            board.orders.full = True
        else:
            board.keep_job(job)
        board.orders.offers.append((peer, self._session, item))


def outlet(board: Board, job: Job, cell: PeerCell) -> Orders | Outlet:
    """Where to send the offers of a job."""
    if once(job) or job.executions_max is not None:
        return Outlet(board, job, cell.session)
    return board.orders


def keep_attempt(orders: Orders, job: Job, attempt: Attempt, reason: str = "") -> None:
    """Record where an attempt is; its time is that of its offer."""
    since_s = job.spec.deadline_s - (job.deadline - attempt.offered)
    orders.write(
        "attempt",
        (job.id, attempt.task.index, attempt.number, attempt.peer, attempt.owner, attempt.state,
         job.submitted_ms + int(since_s * 1000), 0, reason),
    )  # fmt: skip


def release_offers(board: Board, offers: Iterable[tuple[PeerId, int, Offer]]) -> None:
    """The attempts of these are on the disk: let them leave, as far as that still makes sense."""
    for peer, session, offer in offers:
        cell = board.peers.get(peer)
        job = board.jobs.get(JobId(offer.job))
        if cell is None or cell.down or cell.session != session or job is None or job.final:
            continue
        tasks = [
            one for one in offer.tasks
            # Whoever guessed its number has refused it already.
            if (attempt := job.tasks[one.task].attempts.get(one.attempt)) and attempt.live
        ]  # fmt: skip
        if tasks:
            board.orders.send(peer, Offer(offer.job, offer.lease_ms, tasks))


# ---- after a start, and at the beginning of a session


def restore(job: Job, offered: Sequence[tuple[int, int, PeerId, bytes]], now: float) -> None:
    """Attempts that were out when we stopped are out still.

    Args:
        job: built from the journal.
        offered: (task, attempt, device, owner) of attempts without an end.
        now: monotonic seconds.
    """
    for index, number, device, owner in offered:
        task = job.tasks[index]
        if task.open == 0:
            continue
        attempt = Attempt(task, number, device, owner, job.pending(task), now, RESTORED_S)
        task.attempts[number] = attempt
        task.live += 1
        task.state = step(TASK_TRANSITIONS, task.state, TaskInput.OFFERED)
        job.live[attempt] = None


def never_had(board: Board, job: Job, attempt: Attempt) -> None:
    """A worker does not know an attempt of an earlier session: it never ran and never will."""
    attempt.state = step(ATTEMPT_TRANSITIONS, attempt.state, AttemptInput.LEASE_END)
    keep_attempt(board.orders, job, attempt, "never_started")
    board.count("effects_never_started")
