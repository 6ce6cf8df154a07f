"""What finished jobs taught, kept in jobs.db: outcomes for `experience`, notes of agents.

    lessons = Lessons(db)
    await lessons.load()
    size = lessons.experience.choose(handler, rows=..., input_bytes=...)
    await lessons.finished(job, slots, wall_ms)          # a job is over
    await lessons.feedback(ident, rows_bad=3, ...)        # `job.feedback`

Cells of a job are not kept here: only counts, sizes, times and the words of notes.
Source: docs/specs/jobs.md, Experience.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import trio

from federated.errors import JobError, PlanError
from federated.jobs.cache import CACHED
from federated.jobs.canon import digest
from federated.jobs.experience import (
    OUTCOMES_MAX,
    RULE_AGREE,
    RULE_REMOVE,
    RULE_SCORE,
    Experience,
    Lesson,
    Outcome,
    Tried,
    job_class,
    rule_change,
    spent,
)
from federated.jobs.state import KEPT, JobPhase, RowState
from federated.jobs.types import JobId, Open
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import apsw

    from federated.jobs.state import Job
    from federated.seams import Db

TEACHING: Final = frozenset({JobPhase.DONE, JobPhase.FAILED, JobPhase.EXPIRED})
"""Ends that say something about how the work was cut; a cancel says something about its caller."""

GIVEN: Final = frozenset({CACHED, KEPT})
"""Reasons of rows that this job did not compute."""

RULE_CHARACTERS_MAX: Final = 280
RULE_SCORE_MAX: Final = 10
"""No note stands above five bad jobs in a row. Guess."""
RULES_MAX: Final = 200
"""Notes kept of one handler; the lowest go. Guess: a plan shows three."""


class Rule(NamedTuple):
    """A note of an agent about a handler: text for other agents of the same owner."""

    id: int
    handler: str
    agent: str
    text: str
    score: int


class Lessons:
    """What was learned, in memory and on disk.

    Args:
        db: jobs.db.
    """

    def __init__(self, db: Db) -> None:
        self._db = db
        self._lessons: list[Lesson] = []
        self._rules: dict[int, Rule] = {}
        self._voted: set[tuple[str, int]] = set()
        self.experience = Experience()
        self.news = trio.Event()
        """Set when the next job has been learned from."""

    async def load(self) -> None:
        """Read what earlier runs left."""

        def read(connection: apsw.Connection) -> tuple[list[Lesson], list[Rule]]:
            lessons = [
                Lesson(JobId(job or b""), agent, at_ms, msgspec.json.decode(body, type=Outcome))
                for job, agent, at_ms, body in connection.execute(
                    "SELECT job, agent, at_ms, body FROM experience ORDER BY id"
                )
            ]
            rules = connection.execute("SELECT id, handler, agent, text, score FROM rule")
            return lessons, [Rule._make(row) for row in rules]

        self._lessons, rules = await self._db.read(read)
        self._rules = {rule.id: rule for rule in rules}
        self._learn_anew()

    def _learn_anew(self) -> None:
        self.experience = Experience(lesson.outcome for lesson in self._lessons)

    # ---- jobs

    async def finished(self, job: Job, slots: Mapping[bytes, int], wall_ms: int) -> None:
        """A job is over and its attempts are kept; nothing is learned of one that never began.

        Args:
            job: still in memory.
            slots: tasks each device does at once.
            wall_ms: Unix milliseconds.
        """
        if job.phase not in TEACHING or not job.executions or job.stage or job.spec.gap_rows:
            return
        # In the reader's thread: a job may have had a hundred thousand attempts.
        outcome = await self._db.read(
            lambda connection: outcome_of(job, _tried(connection, job.id), slots)
        )
        lesson = Lesson(job.id, job.agent, wall_ms, outcome)
        name = job_class(outcome.handler, outcome.rows, outcome.input_bytes)

        def write(connection: apsw.Connection) -> bytes:
            connection.execute(
                "INSERT OR IGNORE INTO experience(class, handler, at_ms, body, job, agent)"
                " VALUES (?,?,?,?,?,?)",
                (name, outcome.handler, wall_ms, msgspec.json.encode(outcome), job.id, job.agent),
            )
            connection.execute(
                "DELETE FROM experience WHERE id <= (SELECT max(id) FROM experience) - ?",
                (OUTCOMES_MAX,),
            )
            row = connection.execute("SELECT rules FROM planned WHERE job=?", (job.id,)).fetchone()
            return bytes(row[0]) if row else b""

        shown = await self._db.write(write, full=False)
        self._lessons = [*self._lessons, lesson][-OUTCOMES_MAX:]
        self.experience.learn(outcome)
        for rule in unpack_rules(shown):
            await self._score(rule, rule_change(outcome))
        news, self.news = self.news, trio.Event()
        news.set()

    async def plan(self, job: JobId, peers: Iterable[PeerId], rules: Sequence[int]) -> None:
        """Say, before a job is kept, who may see its rows and which notes its plan showed."""
        seeing = b"".join(sorted(bytes(peer) for peer in peers))

        def write(connection: apsw.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO planned VALUES (?,?,?)", (job, seeing, pack_rules(rules))
            )

        await self._db.write(write, full=False)

    async def seeing(self, job: JobId) -> frozenset[PeerId] | None:
        """The devices that may see a job's rows, or those it combines; None: all its group lets."""

        def read(connection: apsw.Connection) -> frozenset[PeerId] | None:
            row = connection.execute(
                "SELECT peers FROM planned WHERE job=?1"
                " OR job=(SELECT parent FROM stage WHERE job=?1)",
                (job,),
            ).fetchone()
            if row is None:
                return None
            data = bytes(row[0])
            return frozenset(PeerId(data[i : i + 32]) for i in range(0, len(data), 32))

        return await self._db.read(read)

    def of_handler(self, handler: str, agent: str | None) -> list[Lesson]:
        """Finished jobs of a handler, the newest first; of one agent, or of all with None."""
        return [
            lesson
            for lesson in reversed(self._lessons)
            if lesson.outcome.handler == handler and (agent is None or lesson.agent == agent)
        ]

    async def feedback(
        self, job: JobId, handler: str, *, agent: str, rows_good: int = 0, rows_bad: int = 0,
        rule: str = "", wall_ms: int,
    ) -> None:  # fmt: skip
        """What the caller says of a finished job's result; `job.feedback` ends here.

        Args:
            job: which; the caller has proved it is theirs.
            handler: its handler.
            agent: who says so; empty for the person.
            rows_good: rows found right.
            rows_bad: rows found wrong.
            rule: a note about the handler, at most 280 characters; said again it counts more.
            wall_ms: Unix milliseconds.

        Raises:
            JobError: `bad_state`: the job is not over, or too old to be remembered.
            PlanError: `bad_spec`, `too_large`: what the numbers or the text are not.
        """
        text = _one_line(rule)
        if rows_good < 0 or rows_bad < 0:
            raise PlanError("bad_spec", "numbers of rows are 0 or more", path="rows_bad")
        if rows_good or rows_bad:
            await self._judge(job, rows_good, rows_bad)
        if text:
            await self._note(handler, agent, text, wall_ms)

    async def _judge(self, job: JobId, rows_good: int, rows_bad: int) -> None:
        at = next((i for i, one in enumerate(self._lessons) if one.job == job), None)
        if at is None:
            raise JobError("bad_state", "nothing is remembered of that job: it is not over, was"
                           " cancelled, or is too old")  # fmt: skip
        lesson = self._lessons[at]
        outcome = msgspec.structs.replace(lesson.outcome, rows_good=rows_good, rows_bad=rows_bad)
        self._lessons[at] = lesson._replace(outcome=outcome)
        self._learn_anew()
        body = msgspec.json.encode(outcome)

        def write(connection: apsw.Connection) -> None:
            connection.execute("UPDATE experience SET body=? WHERE job=?", (body, job))

        await self._db.write(write, full=True)

    # ---- notes

    async def _note(self, handler: str, agent: str, text: str, wall_ms: int) -> None:
        known = next(
            (one for one in self._rules.values() if (one.handler, one.text) == (handler, text)),
            None,
        )
        if known is not None:
            if known.agent != agent and self._votes(agent, known.id):
                await self._score(known.id, RULE_AGREE)
            return

        def write(connection: apsw.Connection) -> int:
            connection.execute(
                "INSERT INTO rule(handler, agent, text, score, at_ms) VALUES (?,?,?,?,?)",
                (handler, agent, text, RULE_SCORE, wall_ms),
            )
            return connection.last_insert_rowid()

        number = await self._db.write(write, full=True)
        self._rules[number] = Rule(number, handler, agent, text, RULE_SCORE)
        of_it = [one for one in self._rules.values() if one.handler == handler]
        for one in sorted(of_it, key=lambda one: (one.score, one.id))[: len(of_it) - RULES_MAX]:
            await self._score(one.id, -one.score)

    def _votes(self, agent: str, rule: int) -> bool:
        """Whether an agent's word on a note counts: once, while the daemon runs."""
        counts = (agent, rule) not in self._voted
        self._voted.add((agent, rule))
        return counts

    async def remove(self, rule: int, *, agent: str) -> int:
        """Somebody wants a note gone: its author or the person at once, else it loses a point.

        Returns:
            The points it has left.

        Raises:
            JobError: `unknown_job`: there is no such note.
        """
        found = self._rules.get(rule)
        if found is None:
            raise JobError("unknown_job", "there is no such note")
        if agent in {"", found.agent}:
            await self._score(rule, -found.score)
        elif self._votes(agent, rule):
            await self._score(rule, RULE_REMOVE)
        left = self._rules.get(rule)
        return 0 if left is None else left.score

    async def _score(self, number: int, change: int) -> None:
        """Move a note up or down; at 0 it is gone."""
        rule = self._rules.get(number)
        if rule is None:
            return
        score = min(RULE_SCORE_MAX, rule.score + change)

        def write(connection: apsw.Connection) -> None:
            if score > 0:
                connection.execute("UPDATE rule SET score=? WHERE id=?", (score, number))
            else:
                connection.execute("DELETE FROM rule WHERE id=?", (number,))

        if score > 0:
            self._rules[number] = rule._replace(score=score)
        else:
            del self._rules[number]
        await self._db.write(write, full=False)

    def notes(self, handler: str, most: int) -> list[Rule]:
        """Notes about a handler, the best first."""
        found = [one for one in self._rules.values() if one.handler == handler]
        return sorted(found, key=lambda one: (-one.score, one.id))[:most]


def outcome_of(job: Job, tried: Sequence[Tried], slots: Mapping[bytes, int]) -> Outcome:
    """What became of a job that is over, without the rows that an earlier one had answered.

    Args:
        job: it.
        tried: its attempts.
        slots: tasks each device does at once; 1 for one that is not named.
    """
    rows = [row for row in job.rows if row.reason not in GIVEN]
    done = [
        task for task in job.tasks
        if not task.audit and any(job.rows[k].reason not in GIVEN for k in task.ks)
    ]  # fmt: skip
    spec = job.spec
    reasons = Counter(row.reason for row in rows if row.state is RowState.MISSING)
    count: Callable[[bytes], int] = lambda device: max(1, slots.get(device, 1))  # noqa: E731
    cost_s, delay_s = spent(tried, count)
    ok = sum(row.state is RowState.OK for row in rows)
    return Outcome(
        handler=spec.handler,
        template="" if spec.template is None else digest(spec.template.encode()).hex(),
        rows=len(rows),
        columns=len(spec.columns),
        input_bytes=sum(len(row.source) for row in rows),
        peers=len(job.peers),
        slots=sum(count(bytes(peer)) for peer in job.peers) or 1,
        batch=_kind(job),
        size=max((len(task.ks) for task in done), default=1),
        votes=job.executions / max(1, len(done)),
        verify=spec.verify,
        verified=ok / max(1, len(rows)),
        gaps=len(rows) - ok,
        cost_s=cost_s,
        delay_s=delay_s,
        why=max(reasons, key=lambda one: (reasons[one], one), default=""),
    )


def _kind(job: Job) -> str:
    if isinstance(job.spec.batch, Open) and not job.spec.batch.groups:
        return "chunk"
    fields = msgspec.to_builtins(job.spec.batch)
    assert isinstance(fields, dict)
    return str(fields["kind"])


def _tried(connection: apsw.Connection, job: JobId) -> list[Tried]:
    return [
        Tried(bytes(device), at_ms / 1000, took_ms / 1000)
        for device, at_ms, took_ms in connection.execute(
            "SELECT device, at_ms, took_ms FROM attempt WHERE job=?", (job,)
        )
    ]


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    if len(line) > RULE_CHARACTERS_MAX:
        raise PlanError("too_large", f"at most {RULE_CHARACTERS_MAX} characters", path="rule")
    return line


def pack_rules(rules: Sequence[int]) -> bytes:
    """Ids of notes in eight bytes each."""
    return struct.pack(f">{len(rules)}q", *rules)


def unpack_rules(data: bytes) -> list[int]:
    """The inverse of `pack_rules`."""
    return list(struct.unpack(f">{len(data) // 8}q", data))
