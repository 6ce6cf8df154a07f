"""What finished jobs teach about the number of rows a task should have.

Theory of operation. Many rows in a task share its overhead (a prompt, a warm-up, a round trip), but
a handler that reads too much at once makes mistakes, and few large tasks leave machines idle. Which
of these weighs most is a matter of the handler and of how large its rows are, so finished jobs are
put into classes by both. Of each class we keep, for every size, how many jobs had it and the sum of
their utility, both shrinking by half a percent with each job, so that what changed is learned anew.
The next job takes the size that did best; while a neighbour of that size was never tried it takes
the neighbour, for utility has one peak over sizes and climbing finds it in fewer jobs than trying
all of them; afterwards it goes by utility plus a little for what was tried seldom. The first job of
a class takes what is best for its handler, else for all handlers, where at least five jobs say so:
a place to climb from. To follow them for longer was worse: .891 in the first 50 jobs of the
simulation below against .905.

What it learns from is what this node saw: rows that passed their checks, its own clock, and what
the person or agent says of the result. A peer's word about its own work is never taken.

Pure. Source: docs/specs/jobs.md, Experience; figures: `python -m benchmarks.job_sims.experience`.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from federated.jobs.types import JobId

SIZES: Final = (1, 2, 4, 8, 16, 32)
START: Final = 4
"""Rows of a task before anything was learned (tasks.md s.10)."""
COST: Final = 0.02
"""Utility a second of work a row takes away (tasks.md s.10)."""
DELAY: Final = 0.01
"""Utility a second of waiting takes away, by what one slot would take a row (tasks.md s.10)."""
KEEP: Final = 0.995
"""What is left of a class's memory after another job of it (tasks.md s.10)."""
CURIOSITY: Final = 0.05
"""Weight of what was tried seldom (tasks.md s.10)."""
JOBS_MIN: Final = 5
"""Jobs of a handler, or of all, before a class that has none begins with what they say."""
OUTCOMES_MAX: Final = 5000
"""Jobs remembered. Guess: with the shrinking above, a class forgets after a few hundred."""
GOOD: Final = 0.95
"""Share of verified rows from which on a job went well. Guess."""

LEARNING: Final = frozenset({"auto", "per_row", "chunk"})
"""Kinds of batching whose size is a choice; the others follow what the rows mean."""

Basis: TypeAlias = Literal["start", "class", "handler", "all", "once"]


class Outcome(msgspec.Struct, kw_only=True, frozen=True):
    """What became of a finished job; the body of a row of table `experience`.

    Attributes:
        handler: `name@version`.
        template: hex of the template's hash; empty without one.
        rows: how many.
        columns: how many were declared.
        input_bytes: of the rows in canonical form.
        peers: devices that answered.
        slots: tasks they do at once, all together; at least 1.
        batch: kind of batching; `chunk` for an open one that draws no groups.
        size: most rows of one of its tasks.
        votes: executions a task.
        verify: as the job asked.
        verified: share of the rows that have an answer, checked as far as the job asked.
        gaps: rows that have none.
        cost_s: seconds of work, all executions together.
        delay_s: seconds from the first offer to the last answer.
        why: the commonest reason of a gap.
        rows_good: rows the caller called right.
        rows_bad: rows the caller called wrong.
    """

    handler: str
    template: str = ""
    rows: int
    columns: int = 0
    input_bytes: int
    peers: int = 1
    slots: int = 1
    batch: str = "auto"
    size: int
    votes: float = 1.0
    verify: str = "auto"
    verified: float
    gaps: int = 0
    cost_s: float
    delay_s: float
    why: str = ""
    rows_good: int = 0
    rows_bad: int = 0

    @property
    def share(self) -> float:
        """Share of the rows that are right, as far as anybody said."""
        if not self.rows:
            return 1.0
        good = max(self.verified, min(1.0, self.rows_good / self.rows))
        return max(0.0, good - self.rows_bad / self.rows)

    @property
    def utility(self) -> float:
        """What the job was worth: right rows, less work, less waiting."""
        rows = max(1, self.rows)
        waited = self.delay_s / max(1.0, self.rows / max(1, self.slots))
        return self.share - COST * self.cost_s / rows - DELAY * waited


class Lesson(NamedTuple):
    """A finished job that is remembered.

    Attributes:
        job: its id.
        agent: who submitted it; empty for the person.
        at_ms: Unix milliseconds of its end.
        outcome: what became of it.
    """

    job: JobId
    agent: str
    at_ms: int
    outcome: Outcome


class Choice(NamedTuple):
    """A number of rows for a task, and where it comes from.

    Attributes:
        size: rows.
        basis: whose jobs it was learned from.
        jobs: how many of those there are.
        trying: whether it was never tried there.
    """

    size: int
    basis: Basis
    jobs: int
    trying: bool


class _Arms:
    """What one class knows of each size."""

    __slots__ = ("jobs", "n", "total")

    def __init__(self) -> None:
        self.jobs = 0
        self.n = dict.fromkeys(SIZES, 0.0)
        self.total = dict.fromkeys(SIZES, 0.0)

    def learn(self, size: int, utility: float) -> None:
        for one in SIZES:
            self.n[one] *= KEEP
            self.total[one] *= KEEP
        self.n[size] += 1
        self.total[size] += utility
        self.jobs += 1

    def best(self, allowed: Sequence[int]) -> int | None:
        """The size of `allowed` that did best so far; None if none was tried."""
        tried = [size for size in allowed if self.n[size] > 0]
        return max(tried, key=lambda size: (self.total[size] / self.n[size], size), default=None)

    def choose(self, allowed: Sequence[int]) -> tuple[int, bool] | None:
        """A size of `allowed` (ascending), and whether it is new here; None if none was tried."""
        best = self.best(allowed)
        if best is None:
            return None
        at = allowed.index(best)
        for near in (at + 1, at - 1):
            if 0 <= near < len(allowed) and not self.n[allowed[near]]:
                return allowed[near], True
        seen = math.log(sum(self.n.values()) + 1)
        tried = [size for size in allowed if self.n[size] > 0]
        return max(tried, key=lambda size: (self._score(size, seen), size)), False

    def _score(self, size: int, seen: float) -> float:
        n = self.n[size]
        return self.total[size] / n + CURIOSITY * math.sqrt(seen / n)


class Experience:
    """What was learned so far.

    Args:
        outcomes: earlier jobs, the oldest first.
    """

    def __init__(self, outcomes: Iterable[Outcome] = ()) -> None:
        self._outcomes: deque[Outcome] = deque(maxlen=OUTCOMES_MAX)
        self._arms: dict[str, _Arms] = {}
        for outcome in outcomes:
            self.learn(outcome)

    def learn(self, outcome: Outcome) -> None:
        """A job is over."""
        self._outcomes.append(outcome)
        if outcome.batch not in LEARNING or outcome.rows < 1:
            return
        size = max((one for one in SIZES if one <= outcome.size), default=1)
        for name in (job_class(outcome.handler, outcome.rows, outcome.input_bytes),
                     outcome.handler, ""):  # fmt: skip
            self._arms.setdefault(name, _Arms()).learn(size, outcome.utility)

    def choose(self, handler: str, *, rows: int, input_bytes: int, most: int = SIZES[-1]) -> Choice:
        """How many rows each task of a job should have.

        Args:
            handler: `name@version`.
            rows: of the job.
            input_bytes: of them, in canonical form.
            most: rows the handler takes at once.
        """
        allowed = [size for size in SIZES if size <= max(1, min(rows, most))]
        own = self._arms.get(job_class(handler, rows, input_bytes))
        chosen = None if own is None else own.choose(allowed)
        if own is not None and chosen is not None:
            return Choice(chosen[0], "class", own.jobs, chosen[1])
        places: tuple[tuple[str, Basis], ...] = ((handler, "handler"), ("", "all"))
        for name, basis in places:
            arms = self._arms.get(name)
            if arms is not None and arms.jobs >= JOBS_MIN:
                best = arms.best(allowed)
                if best is not None:
                    return Choice(best, basis, arms.jobs, trying=True)
        return Choice(max(size for size in allowed if size <= START), "start", 0, trying=True)


def _log2(value: float) -> int:
    return round(math.log2(max(1.0, value)))


def job_class(handler: str, rows: int, input_bytes: int) -> str:
    """Jobs that should be cut alike: one handler, rows of about one size (a power of two bytes)."""
    return f"{handler} {_log2(input_bytes / max(1, rows))}"


class Tried(NamedTuple):
    """An attempt that ended, as far as it tells what a job cost.

    Attributes:
        device: where.
        ended_s: when, in any seconds.
        took_s: since it was offered.
    """

    device: bytes
    ended_s: float
    took_s: float


def spent(attempts: Iterable[Tried], slots: Callable[[bytes], int]) -> tuple[float, float]:
    """Seconds of work and seconds from the first offer to the last answer.

    A worker is offered more than it does at once, so an attempt's time is mostly waiting where many
    are with one device. That device has then worked as long as it held any of them, on each of its
    slots, and for no longer.

    Args:
        attempts: all of a job.
        slots: what a device does at once.
    """
    by_device: dict[bytes, list[Tried]] = {}
    for one in attempts:
        by_device.setdefault(one.device, []).append(one)
    cost_s = 0.0
    for device, tried in by_device.items():
        held_s, until = 0.0, -math.inf
        for one in sorted(tried, key=lambda one: one.ended_s - one.took_s):
            held_s += max(0.0, one.ended_s - max(until, one.ended_s - one.took_s))
            until = max(until, one.ended_s)
        cost_s += min(sum(one.took_s for one in tried), held_s * max(1, slots(device)))
    every = [one for tried in by_device.values() for one in tried]
    first = min((one.ended_s - one.took_s for one in every), default=0.0)
    return cost_s, max((one.ended_s for one in every), default=0.0) - first


# ---- what agents note

RULE_SCORE: Final = 2
RULE_AGREE: Final = 1
RULE_REMOVE: Final = -1
RULE_GOOD: Final = 1
RULE_BAD: Final = -2
"""What a note begins with, and what an agent that says it too, an agent that wants it gone, and a
good or bad end of a job whose plan showed it add (tasks.md s.10)."""


def rule_change(outcome: Outcome) -> int:
    """What the end of a job says of the notes its plan showed."""
    return RULE_GOOD if outcome.share >= GOOD else RULE_BAD
