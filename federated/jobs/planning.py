"""What would become of a job before it runs: who sees the rows, how it is cut, what it may take.

A plan is made of the job itself, drawn as `submit` would draw it, of what devices said of
themselves, and of finished jobs of the same handler. Nothing of it is a promise but two things: the
rows are cut as the plan says, and no device sees them that the plan did not name. When one of the
two can no longer be kept the plan is void, and says why. What nobody knows is None, never a guess.

Pure. Source: docs/specs/jobs.md, Plans.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from federated.jobs.canon import digest
from federated.jobs.effects import once
from federated.jobs.engines.seam import engine_id
from federated.jobs.experience import GOOD, job_class
from federated.jobs.state import RowState
from federated.jobs.verify import resolve_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.jobs.board import Board
    from federated.jobs.experience import Choice, Lesson
    from federated.jobs.state import Job
    from federated.jobs.types import JobSpec
    from federated.jobs.verify import Policy
    from federated.seams import GroupId, TrustClass
    from p2p.identity import PeerId

VALID_S: Final = 3600.0
"""How long a plan may be submitted (tasks.md s.2)."""
HINTS_MAX: Final = 3
NOTES_MAX: Final = 3
LESSONS_MAX: Final = 20
"""Finished jobs a forecast is made of. Guess: the newest ones ran on what is there now."""

NOT_CONNECTED: Final = "not_connected"
NO_SESSION: Final = "no_session"
NOT_TRUSTED: Final = "not_trusted"
NO_HANDLER: Final = "no_handler"
QUARANTINED: Final = "quarantined"
DRAINING: Final = "draining"
NOT_PINNED: Final = "not_pinned"
RUNS_HERE: Final = "runs_here"
ELSEWHERE: Final = "runs_elsewhere"


class Seer(NamedTuple):
    """A device, and whether it will see rows.

    Attributes:
        peer: which.
        trust: what it is to us.
        owner: whose it is.
        slots: tasks it does at once; 0 if it does none.
        why: empty if it will see rows, else one of the words above.
    """

    peer: PeerId
    trust: TrustClass
    owner: bytes
    slots: int
    why: str

    @property
    def sees(self) -> bool:
        """Whether rows may be shown to it."""
        return not self.why


class Forecast(NamedTuple):
    """What a job may take.

    Attributes:
        executions_min, executions_max: tasks done, votes included; equal where known.
        seconds: until it is done; None: no job of the handler has finished yet.
        jobs: finished jobs this was learned from.
    """

    executions_min: int
    executions_max: int
    seconds: float | None
    jobs: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job as it would run.

    Attributes:
        id: 16 random bytes.
        agent: who asked; nobody else may submit it.
        made: monotonic seconds.
        spec: of the job.
        group: whose members may see the rows.
        rows: how many.
        rows_hash: of the rows.
        sizes: rows of each task.
        choice: how the size of a task was chosen; None where the spec says it.
        seers: all devices of the group.
        forecast: what it may take.
        good: a finished job of the handler that went well; None if there is none.
        bad: one that did not.
        hints: what the caller may want to change, at most three.
        rules: ids of the notes shown with it.
        cached: rows an earlier job has answered; None: nobody looked.
    """

    id: bytes
    agent: str
    made: float
    spec: JobSpec
    group: GroupId | None
    rows: int
    rows_hash: bytes
    sizes: tuple[int, ...]
    choice: Choice | None
    seers: tuple[Seer, ...]
    forecast: Forecast
    good: Lesson | None
    bad: Lesson | None
    hints: tuple[str, ...]
    rules: tuple[int, ...]
    cached: int | None

    @property
    def seeing(self) -> frozenset[PeerId]:
        """Devices that may see rows."""
        return frozenset(seer.peer for seer in self.seers if seer.sees)


def rows_hash(job: Job) -> bytes:
    """Names the rows of a job: those of a blob or another job may have changed since."""
    return digest(b"\n".join(row.source for row in job.rows))


def task_sizes(job: Job) -> tuple[int, ...]:
    """Rows of each task."""
    return tuple(len(task.ks) for task in job.tasks)


# ---- who sees the rows


def look_at(
    board: Board, job: Job, members: Sequence[PeerId], *, connected: Callable[[PeerId], bool],
    wall_ms: int,
) -> tuple[Seer, ...]:  # fmt: skip
    """What each device is to a job that is not known to any of them.

    Args:
        board: what devices said of themselves.
        job: as drawn.
        members: other devices of its group, ascending.
        connected: whether there is a connection.
        wall_ms: Unix milliseconds.
    """
    own = board.door.id
    pins = {row.pin for row in job.rows}
    found = []
    for peer in dict.fromkeys([*members, own]):
        trust, owner = board.door.trust(peer, job.group), board.door.owner(peer, job.group)
        if peer == own:
            trust = "own"
        why = _why_not(board, job, peer, trust, owner, connected=connected, wall_ms=wall_ms)
        if not why and pins and None not in pins and peer not in pins:
            why = NOT_PINNED
        if peer == own and job.spec.engine != "local" and peer not in pins:
            why = ELSEWHERE
        cell = board.peers.get(peer)
        offered = None if cell is None else cell.handlers.get(job.spec.handler)
        found.append(Seer(peer, trust, owner, 0 if why or offered is None else offered.slots, why))
    return tuple(found)


def _why_not(
    board: Board, job: Job, peer: PeerId, trust: TrustClass, owner: bytes, *,
    connected: Callable[[PeerId], bool], wall_ms: int,
) -> str:  # fmt: skip
    handler = job.spec.handler
    own = peer == board.door.id
    engine = job.spec.engine
    if engine == "local" and not own:
        return RUNS_HERE
    if engine not in {"local", "peers"} and peer != engine_id(engine) and not own:
        return ELSEWHERE
    if trust == "none":
        return NOT_TRUSTED
    if not own and not connected(peer):
        return NOT_CONNECTED
    cell = board.peers.get(peer)
    if cell is None or cell.down:
        return NO_SESSION
    if cell.draining:
        return DRAINING
    offered = cell.handlers.get(handler)
    if offered is None or offered.effect != once(job):
        return NO_HANDLER
    if trust != "own" and board.reputation.quarantined(owner, bytes(peer), handler, wall_ms):
        return QUARANTINED
    return ""


# ---- what it may take


def forecast(
    board: Board, job: Job, seers: Sequence[Seer], lessons: Sequence[Lesson], *, cached: int = 0
) -> Forecast:
    """Executions and seconds, from finished jobs where there are some.

    Args:
        board: what handlers are.
        job: as drawn.
        seers: of `look_at`.
        lessons: finished jobs of the handler, the newest first.
        cached: rows that need no execution; taken to be spread over the tasks.
    """
    left = (job.counts[RowState.PENDING] - cached) / max(1, len(job.rows))
    tasks = len(job.tasks) * left
    alike = _alike(job, lessons)
    least, most = _votes(board, job, seers)
    same = [one.outcome.votes for one in alike if one.outcome.verify == job.spec.verify]
    if same and least != most:
        least = most = max(1.0, statistics.fmean(same))
    seconds = _seconds(job, seers, alike, left * (least + most) / 2)
    return Forecast(round(tasks * least), round(tasks * most), seconds, len(alike))


def _alike(job: Job, lessons: Sequence[Lesson]) -> list[Lesson]:
    """Jobs whose rows were about as large, else all of the handler."""
    size = sum(len(row.source) for row in job.rows)
    name = job_class(job.spec.handler, len(job.rows), size)
    same = [
        one for one in lessons
        if job_class(one.outcome.handler, one.outcome.rows, one.outcome.input_bytes) == name
    ]  # fmt: skip
    return (same or list(lessons))[:LESSONS_MAX]


def _votes(board: Board, job: Job, seers: Sequence[Seer]) -> tuple[float, float]:
    """Executions a task, at least and at most, as the checking of answers wants them."""
    kind, local = board.nature(job)
    least, most = [], []
    for seer in seers:
        if seer.sees:
            policy = resolve_policy(job.spec.verify, trust=seer.trust, kind=kind, local=local)
            low, high = _votes_of(policy)
            least.append(low)
            most.append(high)
    return min(least, default=1.0), max(most, default=1.0)


def _votes_of(policy: Policy) -> tuple[float, float]:
    match policy.kind:
        case "none":
            return 1.0, 1.0
        case "spot":
            return 1.0, 1.0 + policy.p
        case "adaptive":
            return 1.0, 2.0 + policy.p
        case "quorum":
            return float(policy.m), 2.0 * policy.m + 1


def _seconds(
    job: Job, seers: Sequence[Seer], alike: Sequence[Lesson], votes: float
) -> float | None:
    """Work of all rows, spread over the slots there are; a task is done on one of them."""
    known = [one.outcome for one in alike if one.outcome.rows and one.outcome.votes > 0]
    slots = sum(seer.slots for seer in seers if seer.sees)
    if not known or not slots or not job.tasks:
        return None
    a_row = statistics.fmean(one.cost_s / one.rows / one.votes for one in known)
    longest = max(len(task.ks) for task in job.tasks)
    lanes = min(slots, len(job.tasks))
    return max(a_row * votes * len(job.rows) / lanes, a_row * longest if votes else 0.0)


# ---- what finished jobs say


def examples(job: Job, lessons: Sequence[Lesson]) -> tuple[Lesson | None, Lesson | None]:
    """A finished job like this one that went well, and one that did not.

    Args:
        job: as drawn.
        lessons: finished jobs of the handler, the newest first.
    """
    template = None if job.spec.template is None else digest(job.spec.template.encode()).hex()

    def unlike(one: Lesson) -> tuple[bool, float]:
        ratio = max(1, one.outcome.rows) / max(1, len(job.rows))
        return one.outcome.template != (template or ""), max(ratio, 1 / ratio)

    good = [one for one in lessons if one.outcome.share >= GOOD]
    bad = [one for one in lessons if one.outcome.share < GOOD]
    return min(good, key=unlike, default=None), min(bad, key=unlike, default=None)


def hints(
    job: Job, seers: Sequence[Seer], expected: Forecast, bad: Lesson | None
) -> tuple[str, ...]:
    """What the caller may want to change before the job runs; the weightiest first."""
    seeing = [seer for seer in seers if seer.sees]
    slots = sum(seer.slots for seer in seeing)
    owners = len({seer.owner for seer in seeing})
    found = []
    if not seeing:
        found.append("no device would take the rows now: the job would wait until its deadline")
    elif (want := _quorum(job.spec.verify)) > owners:
        found.append(f"verify asks {want} owners for each row and only {owners} can be asked")
    if expected.seconds is not None and expected.seconds > job.spec.deadline_s:
        found.append(
            f"it may take {expected.seconds:.0f} s and its deadline is {job.spec.deadline_s:.0f} s"
        )
    if bad is not None and bad.outcome.why:
        gone = bad.outcome
        found.append(
            f"{gone.gaps} of {gone.rows} rows of an earlier job had no answer, mostly: {gone.why}"
        )
    if 0 < len(job.tasks) < slots and len(job.rows) > len(job.tasks):
        found.append(
            f"{len(job.tasks)} tasks for {slots} slots: smaller batches would use all of them"
        )
    if not job.spec.columns:
        found.append("no columns are declared, so no answer is checked for what it must have")
    return tuple(found[:HINTS_MAX])


def _quorum(verify: str) -> int:
    word, _, number = verify.partition(":")
    return int(number) if word == "quorum" else 0


# ---- whether it still holds


def changes(
    plan: Plan, job: Job, seers: Sequence[Seer], name: Callable[[PeerId], str]
) -> list[str]:
    """What of a plan no longer holds, in words; nothing if it can be run.

    Args:
        plan: as made.
        job: drawn anew.
        seers: as they are now.
        name: what to call a device.
    """
    found = []
    if rows_hash(job) != plan.rows_hash:
        found.append("the rows are others")
    elif task_sizes(job) != plan.sizes:
        found.append("the rows would be cut otherwise")
    before = {seer.peer: seer for seer in plan.seers}
    now = {seer.peer: seer for seer in seers}
    for peer in sorted(before.keys() | now.keys()):
        then, here = before.get(peer), now.get(peer)
        saw, sees = then is not None and then.sees, here is not None and here.sees
        if sees and not saw:
            found.append(f"{name(peer)} would see the rows too")
        elif saw and not sees:
            why = here.why if here is not None else "left"
            found.append(f"{name(peer)} would no longer see them ({why})")
        elif (
            saw and then is not None and here is not None
            and (then.trust, then.owner) != (here.trust, here.owner)
        ):  # fmt: skip
            found.append(f"{name(peer)} is now {here.trust}, or another owner's")
    return found
