"""The coordinator whatever its peers do: a Hypothesis machine over the real one, its peers played.

Peers come, go, fall silent, answer rightly, wrongly, late, twice, in part or not at all, refuse,
give back what was not asked of them. After every step each attempt is where it should be, nobody
holds more than its credit, who is quarantined gets nothing, no row counts twice and what is over
stays over; every accepted vote was given by its owner; and the journal, read anew, is the memory.
At the end one honest device of our own is enough for every job to end.

What the checks are worth is seen in the same machine with rules of the coordinator broken.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from typing_extensions import override

from benchmarks.job_sims.fleet import HANDLER, US, Fleet
from federated.errors import UsageError
from federated.jobs import hedging
from federated.jobs.board import Board, PeerCell
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.hedging import Hedging
from federated.jobs.items import Cancelled, Credit
from federated.jobs.journal import Journal
from federated.jobs.leasing import Leasing
from federated.jobs.settling import Settling
from federated.jobs.state import JobPhase, RowState, TaskState
from federated.jobs.types import JobId, Limits, Open, PerRow
from tests.helpers.job_journal import PlainDb, at_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.job_sims.fleet import PlayedTask
    from federated.jobs.items import TaskResult
    from federated.jobs.orders import Orders
    from federated.jobs.state import Attempt, Job, RowCell, TaskCell
    from federated.seams import TrustClass

PEERS: dict[str, tuple[TrustClass, bytes]] = {
    "ours": ("own", US),
    "own": ("own", US),
    "one": ("stranger", b"1" * 32),
    "one too": ("stranger", b"1" * 32),
    "two": ("stranger", b"2" * 32),
    "three": ("stranger", b"3" * 32),
    "friend": ("friend", b"4" * 32),
}
INFO = HandlerInfo(id=HANDLER, kind="named", deterministic=True)
CREDIT = 3
VERBS = (
    "submit", "come", "go", "right", "wrong", "part", "error", "late", "twice", "refuse", "beat",
    "give back", "credit", "cancel", "pause", "resume", "silence", "copy", "asked back",
    "quarantine", "lost",
)  # fmt: skip
"""Reopening is rarer than so many stories can promise; where it comes, the rules are kept."""


OFTEN = ("submit", "right", "late", "lost", "twice", "refuse", "copy", "quarantine", "silence")
"""What even few stories hold."""


class Coordination(RuleBasedStateMachine):
    """A coordinator, its journal, and a model of what its peers said."""

    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(seed=1)
        self.board = self.fleet.core.board
        self.board.own_handlers = {HANDLER: INFO}
        self.journal = Journal(PlainDb())
        self.jobs: list[Job] = []
        self.given: defaultdict[tuple[bytes, int], set[tuple[bytes, bytes]]] = defaultdict(set)
        """(owner, value) by row: what was ever answered."""
        self.answered: list[PlayedTask] = []
        self.dropped: list[PlayedTask] = []
        self.row_states: dict[tuple[bytes, int], RowState] = {}
        self.over: dict[bytes, tuple[JobPhase, list[RowState]]] = {}
        self.up: set[str] = set()
        self.fleet.on_offer = self.offered
        self.fleet.on_stop = self.dropped.append
        self.fleet.on_orders = self.ordered
        self.fleet.on_submit = self.keep_job
        for name in PEERS:
            self.join(name)
        self.warm_up()

    # ---- what is checked as it happens

    def offered(self, task: PlayedTask) -> None:
        cell = self.board.peers[self.fleet.id_of(task.peer)]
        assert len(cell.outstanding) <= min(cell.credit, cell.window), "beyond its credit"
        trust, owner = PEERS[task.peer]
        if trust != "own":
            out = self.board.reputation.quarantined(
                owner, bytes(cell.peer), HANDLER, self.fleet.wall_ms
            )
            assert not out, "a quarantined peer was asked"
        job = self.board.jobs[task.job]
        live = sum(one.live for one in job.tasks[task.offered.task].attempts.values())
        assert live <= 2, "three attempts at once"
        self.seen["copy"] += live == 2

    def ordered(self, orders: Orders) -> None:
        for params in orders.writes.get("row_state", ()):
            self.check_row(RowState(params[0]), params)  # type: ignore[arg-type]
        for event in orders.writes.get("event", ()):
            self.seen[str(event[3])] += 1
        self.seen["lost"] += sum(one[-1] == "lost" for one in orders.writes.get("attempt", ()))
        at_once(self.journal.apply([orders]))

    def check_row(self, state: RowState, params: tuple[object, ...]) -> None:
        _, level, _, value, agreed, job, k = params
        assert isinstance(job, bytes)
        assert isinstance(k, int)
        before = self.row_states.get((job, k), RowState.PENDING)
        self.row_states[job, k] = state
        if before is not RowState.PENDING and state is not RowState.PENDING:
            assert state is RowState.OK, "a row that is settled is settled again"
            assert level == 3, "only an own device's audit replaces an answer"
        if state is not RowState.OK:
            return
        assert isinstance(agreed, bytes)
        assert isinstance(value, bytes)
        owners = [agreed[i : i + 32] for i in range(0, len(agreed), 32)]
        assert owners or level == 3, "nobody vouches for it, nor did we compute it"
        assert len(set(owners)) == len(owners), "one owner voted twice"
        assert level != 2 or len(owners) >= 2
        said = {owner for owner, answer in self.given[job, k] if answer == value}
        assert set(owners) <= said, "an owner vouches for what it never said"

    def keep_job(self, job: Job) -> None:
        deadline_ms = self.fleet.wall_ms + int(job.spec.deadline_s * 1000)
        at_once(
            self.journal.add(
                job, spec_hash=bytes(32), idem=None, deadline_ms=deadline_ms, parent=None
            )
        )

    # ---- what happens

    def warm_up(self) -> None:
        """A job of our own, so that what is late is known."""
        job = self.fleet.submit(rows=24)
        self.jobs.append(job)
        while not job.final:
            self.fleet.now += 0.7
            for task in self.fleet.offered("own"):
                self.say(task, "right")
        assert self.fleet.core._leasing.durations.known(HANDLER, 7)

    def join(self, name: str) -> None:
        trust, owner = PEERS[name]
        self.up.add(name)
        self.dropped += self.fleet.held.get(name, {}).values()
        self.fleet.join(name, slots=1, credit=CREDIT, trust=trust, owner=owner)

    def held(self) -> list[PlayedTask]:
        return [task for name in sorted(self.up) for task in self.fleet.offered(name)]

    def say(self, task: PlayedTask, kind: str) -> None:
        """A peer's answer: rows, some of them, wrong ones, or none."""
        rows = msgspec.json.decode(task.offered.rows, type=list[list[object]])
        answer: list[list[object]] = [[k, row] for k, row, *_ in rows]
        if kind == "wrong":
            answer = [[k, {"n": "lie"}] for k, _ in answer]
        if kind == "part":
            answer = answer[1:]
        for k, row in answer:
            assert isinstance(k, int)
            self.given[task.job, k].add((PEERS[task.peer][1], msgspec.json.encode(row)))
        if kind == "error":
            self.fleet.answer(task, error="exception")
        else:
            self.fleet.answer(task, rows=msgspec.json.encode(answer), wall_ms=700)
        self.answered.append(task)

    @precondition(lambda self: sum(not job.final for job in self.jobs) < 3)
    @rule(
        rows=st.sampled_from((1, 2, 3, 5, 20)),
        verify=st.sampled_from(("none", "adaptive", "quorum:2", "spot:1")),
        together=st.booleans(),
        group=st.sampled_from(("own", "everybody", "everybody")),
        limit=st.sampled_from((None, None, 4)),
    )
    def submit(self, rows: int, verify: str, together: bool, group: str, limit: int | None) -> None:
        self.seen["submit"] += 1
        batch = Open(groups=[], chunk=2) if together else PerRow()
        limits = Limits(executions=limit)
        job = self.fleet.submit(
            rows=rows, verify=verify, batch=batch, group=group, deadline_s=600.0, limits=limits
        )  # fmt: skip
        self.jobs.append(job)

    @precondition(lambda self: len(self.up) < len(PEERS))
    @rule(data=st.data())
    def come(self, data: st.DataObject) -> None:
        self.seen["come"] += 1
        self.join(data.draw(st.sampled_from(sorted(set(PEERS) - self.up))))

    @precondition(lambda self: len(self.up) > 1)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        self.seen["go"] += 1
        name = data.draw(st.sampled_from(sorted(self.up)))
        self.up.discard(name)
        self.fleet.leave(name)

    @precondition(lambda self: self.held())
    @rule(data=st.data(), kind=st.sampled_from(("right", "wrong", "wrong", "part", "error")))
    def answer(self, data: st.DataObject, kind: str) -> None:
        task = data.draw(st.sampled_from(self.held()))
        # A device of our own that lies is nobody's fault but ours: it has the last word.
        kind = "right" if kind == "wrong" and PEERS[task.peer][0] == "own" else kind
        self.seen[kind] += 1
        self.say(task, kind)

    @precondition(lambda self: self.held())
    @rule(count=st.integers(1, 8), liar=st.sampled_from(("", "one", "two")))
    def many_answer(self, count: int, liar: str) -> None:
        for _ in range(count):
            if held := self.held():
                self.say(held[0], "wrong" if liar and held[0].peer == liar else "right")

    @precondition(lambda self: "own" in self.up and len(self.up) > 1)
    @rule(data=st.data(), wait_s=st.sampled_from((0, 3)))
    def pile_up(self, data: st.DataObject, wait_s: int) -> None:
        """All tasks of a job are at one peer, and then there are others."""
        one = data.draw(st.sampled_from(sorted(self.up)))
        for name in sorted(self.up):
            self.fleet.say(name, Credit(CREDIT if name == one else 0))
        batch = Open(groups=[], chunk=2)
        job = self.fleet.submit(rows=6, group="everybody", batch=batch, deadline_s=600.0)
        self.jobs.append(job)
        for name in sorted(self.up):
            self.fleet.say(name, Credit(CREDIT))
        self.fleet.tick(at=self.fleet.now + 0.2)
        for _ in range(wait_s):
            for name in sorted(self.up):
                self.fleet.beat(name, self.fleet.offered(name)[:1])
            self.fleet.tick(at=self.fleet.now + 1.0)

    def twins(self) -> list[tuple[PlayedTask, PlayedTask]]:
        """Attempts of one task that two peers hold."""
        first: dict[tuple[bytes, int], PlayedTask] = {}
        found = []
        for task in self.held():
            other = first.setdefault(task.ref[:2], task)
            if other is not task:
                found.append((other, task))
        return found

    @precondition(lambda self: self.twins())
    @rule(data=st.data())
    def one_answers_in_part_and_the_other_refuses(self, data: st.DataObject) -> None:
        one, other = data.draw(st.sampled_from(self.twins()))
        self.say(one, "part")
        if other.ref in self.fleet.held[other.peer]:
            self.fleet.refuse(other)

    @precondition(lambda self: any(task.peer in self.up for task in self.dropped))
    @rule(data=st.data(), kind=st.sampled_from(("right", "wrong", "error")))
    def answer_what_was_dropped(self, data: st.DataObject, kind: str) -> None:
        self.seen["late"] += 1
        late = [task for task in self.dropped if task.peer in self.up]
        self.say(data.draw(st.sampled_from(late)), kind)

    @precondition(lambda self: any(task.peer in self.up for task in self.answered))
    @rule(data=st.data(), kind=st.sampled_from(("right", "wrong")))
    def answer_twice(self, data: st.DataObject, kind: str) -> None:
        self.seen["twice"] += 1
        again = [task for task in self.answered if task.peer in self.up]
        self.say(data.draw(st.sampled_from(again)), kind)

    @precondition(lambda self: self.held())
    @rule(data=st.data(), why=st.sampled_from(("busy", "quota", "draining")))
    def refuse(self, data: st.DataObject, why: str) -> None:
        self.seen["refuse"] += 1
        self.fleet.refuse(data.draw(st.sampled_from(self.held())), why, retry_ms=500)

    @precondition(lambda self: {"ours", "one", "two"} <= self.up and len(self.jobs) < 6)
    @rule()
    def collude(self) -> None:
        """Two agree on a lie about row 0, and each is caught at another row."""
        wall_ms = self.fleet.wall_ms
        if any(
            self.board.reputation.quarantined(owner * 32, bytes(32), HANDLER, wall_ms)
            for owner in (b"1", b"2")
        ):
            return
        self.alone(None)
        job = self.fleet.submit(rows=3, group="everybody", verify="quorum:2", deadline_s=600.0)
        self.jobs.append(job)
        for name, lies in (("one", {0, 1}), ("two", {0, 2}), ("ours", set[int]())):
            self.alone(name)
            for _ in range(9):
                mine = [task for task in self.fleet.offered(name) if task.job == job.id]
                for task in mine:
                    if task.ref in self.fleet.held[name]:
                        self.say(task, "wrong" if task.offered.task in lies else "right")
        self.alone("ours")
        for name in sorted(self.up):
            self.fleet.say(name, Credit(CREDIT))

    def alone(self, name: str | None) -> None:
        for one in sorted(self.up):
            self.fleet.say(one, Credit(CREDIT + 2 if one == name else 0))

    @rule(data=st.data(), runs=st.booleans())
    def beat(self, data: st.DataObject, runs: bool) -> None:
        self.seen["beat"] += 1
        name = data.draw(st.sampled_from(sorted(self.up)))
        self.fleet.beat(name, self.fleet.offered(name)[: int(runs)])

    @precondition(lambda self: bool(self.fleet.cancels))
    @rule(started=st.booleans())
    def give_back(self, started: bool) -> None:
        self.seen["asked back"] += 1
        name, cancel = self.fleet.cancels.pop(0)
        if name in self.up:
            refs = [
                ref for ref in cancel.attempts or () if (cancel.job, *ref) in self.fleet.held[name]
            ]
            self.fleet.give_back(name, cancel, [] if started else refs)

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def give_back_unasked(self, data: st.DataObject) -> None:
        self.seen["give back"] += 1
        task = data.draw(st.sampled_from(self.held()))
        self.fleet.say(task.peer, Cancelled(task.job, [], [(99, 1), task.ref[1:]], []))

    @rule(data=st.data(), tasks=st.integers(0, 5))
    def grant(self, data: st.DataObject, tasks: int) -> None:
        self.seen["credit"] += 1
        self.fleet.say(data.draw(st.sampled_from(sorted(self.up))), Credit(tasks))

    @rule(
        for_s=st.sampled_from((0.2, 1.0, 4.0, 12.0)),
        silent=st.sets(st.sampled_from(sorted(PEERS)), max_size=3),
    )
    def pass_time(self, for_s: float, silent: set[str]) -> None:
        self.seen["silence"] += bool(silent)
        until = self.fleet.now + for_s
        while self.fleet.now < until - 1e-9:
            self.fleet.tick(at=min(until, self.fleet.now + 1.0))
            for name in sorted(self.up - silent):
                self.fleet.beat(name, self.fleet.offered(name)[:1])
            for job in self.jobs:
                for attempt in job.live:
                    assert attempt.lease_end > self.fleet.now, "a lease goes on for ever"

    @precondition(lambda self: any(not job.final for job in self.jobs))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.seen["cancel"] += 1
        job = data.draw(st.sampled_from([job for job in self.jobs if not job.final]))
        self.fleet.core.cancel(job.id, now=self.fleet.now, wall_ms=self.fleet.wall_ms)
        self.fleet.carry_out()

    @precondition(lambda self: any(job.leasing for job in self.jobs))
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        self.seen["pause"] += 1
        job = data.draw(st.sampled_from([job for job in self.jobs if job.leasing]))
        self.fleet.core.pause(job.id, wall_ms=self.fleet.wall_ms)
        self.fleet.carry_out()

    @precondition(lambda self: self.waiting())
    @rule()
    def resume(self) -> None:
        self.seen["resume"] += 1
        for job in self.waiting():
            self.fleet.core.go_on(
                job.id, executions=5, now=self.fleet.now, wall_ms=self.fleet.wall_ms
            )
            self.fleet.carry_out()

    def waiting(self) -> list[Job]:
        return [
            job for job in self.jobs if job.phase in {JobPhase.PAUSED, JobPhase.WAITING_INPUT}
        ]  # fmt: skip

    # ---- what always holds

    @invariant()
    def attempts_are_where_they_should_be(self) -> None:
        at_peers: Counter[bytes] = Counter()
        for job in self.jobs:
            live = [one for task in job.tasks for one in task.attempts.values() if one.live]
            assert set(job.live) == set(live)
            for task in job.tasks:
                assert task.live == sum(one.live for one in task.attempts.values()) <= 2
                if not task.audit:
                    pending = sum(job.rows[k].state is RowState.PENDING for k in task.ks)
                    assert task.open == pending or job.final
            at_peers.update(bytes(one.peer) for one in live)
        for cell in self.board.peers.values():
            assert len(cell.outstanding) == at_peers[bytes(cell.peer)]
            assert all(one.live and one.peer == cell.peer for one in cell.outstanding)

    @invariant()
    def no_task_is_forgotten(self) -> None:
        for job in self.jobs:
            if job.final or job.phase is JobPhase.REDUCING:
                continue
            around = set(job.queue) | set(job.waiting) | {one.task for one in job.live}
            for task in job.tasks:
                assert task in around or not task.open

    @invariant()
    def rows_are_counted(self) -> None:
        for job in self.jobs:
            assert [sum(r.state is state for r in job.rows) for state in RowState] == job.counts

    @invariant()
    def what_is_over_stays_over(self) -> None:
        for job in self.jobs:
            if job.final:
                now = (job.phase, [row.state for row in job.rows])
                assert self.over.setdefault(job.id, now) == now

    @invariant()
    def the_journal_is_the_memory(self) -> None:
        kept = {
            job.id: job for job in at_once(self.journal.live(self.fleet.now, self.fleet.wall_ms))
        }
        for job in self.jobs:
            if job.final:
                assert job.id not in kept
                found = at_once(self.journal.job(JobId(job.id)))
                assert found is not None
                assert found.phase is job.phase
                continue
            read = kept[job.id]
            assert read.phase is job.phase
            for row, other in zip(job.rows, read.rows, strict=True):
                assert (row.state, row.level) == (other.state, other.level)
                if row.state is RowState.OK:
                    assert (row.value, row.agreed) == (other.value, other.agreed)
                said = {(one.owner, one.device) for one in row.answers}
                assert {(one.owner, one.device) for one in other.answers} <= said
            assert read.audits == job.audits
            if job.executions_max is not None:
                assert read.executions == job.executions

    @override
    def teardown(self) -> None:
        """Every job ends when one honest device of our own is left."""
        self.fleet.auto_cancel = True
        if "ours" not in self.up:
            self.join("ours")
        if "own" not in self.up:
            self.join("own")
        for name in ("ours", "own"):
            self.fleet.say(name, Credit(CREDIT))
        end = self.fleet.now + 700.0
        while self.fleet.now < end and not all(job.final for job in self.jobs):
            for job in self.waiting():
                self.fleet.core.go_on(
                    job.id, executions=50, now=self.fleet.now, wall_ms=self.fleet.wall_ms
                )
                self.fleet.carry_out()
            for name in ("ours", "own"):
                for task in self.fleet.offered(name):
                    self.say(task, "right")
            self.fleet.tick(at=self.fleet.now + 1.0)
        assert all(job.final for job in self.jobs)
        assert not any(job.live for job in self.jobs)
        self.what_is_over_stays_over()
        self.the_journal_is_the_memory()


def run_machine(examples: int, steps: int, phases: Sequence[Phase] = tuple(Phase)) -> None:
    run_state_machine_as_test(
        Coordination,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def rules_are_kept(examples: int, steps: int, verbs: Sequence[str]) -> None:
    Coordination.seen.clear()
    run_machine(examples, steps)
    assert not [verb for verb in verbs if not Coordination.seen[verb]], Coordination.seen


def test_a_coordinator_keeps_its_rules() -> None:
    rules_are_kept(60, 40, OFTEN)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_coordinator_keeps_its_rules_in_longer_stories() -> None:
    rules_are_kept(150, 60, VERBS)


# ---- controls: the same machine finds each of these


def give_more_than_credit(cell: PeerCell) -> int:
    return 0 if cell.draining or cell.down else 9


def copy_again_and_again(self: Hedging, job: Job, attempt: Attempt, now: float) -> bool:
    del self, job
    return now - attempt.offered > 0.5


def ask_whoever_is_there(self: Board, job: Job, cell: PeerCell, wall_ms: int) -> bool:
    del wall_ms
    return not cell.down and self.standing(job, cell.peer)[0] != "none"


def wait_for_ever(self: Leasing, job: Job, attempt: Attempt, now: float, wall_ms: int) -> None:
    del self, job, attempt, now, wall_ms


def forget_a_task(self: Leasing, job: Job, task: TaskCell, due: float) -> None:
    """What was wrong once: a refused copy of a task that waited for the rest of its rows."""
    if task.state is not TaskState.VERIFYING:
        TAKE_BACK(self, job, task, due)


def keep_no_row(self: Board, job: Job, row: RowCell) -> None:
    """Every third row never reaches the journal."""
    if row.k % 3:
        KEEP_ROW(self, job, row)


def believe_everybody(
    self: Settling, job: Job, peer: PeerCell, result: TaskResult
) -> Attempt | None:
    """A result counts for whichever attempt of the task is there."""
    del self, peer
    task = job.tasks[result.task] if result.task < len(job.tasks) else None
    return None if task is None else next(iter(task.attempts.values()), None)


TAKE_BACK = Leasing._take_back
KEEP_ROW = Board.keep_row
BROKEN: dict[str, list[tuple[object, str, object]]] = {
    "credit": [(PeerCell, "room", property(give_more_than_credit))],
    "two attempts": [(Hedging, "_late", copy_again_and_again), (hedging, "EXTRA_SHARE", 9.0)],
    "quarantine": [(Board, "usable", ask_whoever_is_there)],
    "leases": [(Leasing, "lose", wait_for_ever)],
    "lost task": [(Leasing, "_take_back", forget_a_task)],
    "journal": [(Board, "keep_row", keep_no_row)],
    "foreign result": [(Settling, "_attempt_of", believe_everybody)],
}


STORIES: Final = 2_500
"""Until the fault is found: the dearest needs 250 in the mean, the others ten."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rule", BROKEN)
def test_control_a_broken_rule_is_found(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    for place, name, broken in BROKEN[rule]:
        monkeypatch.setattr(place, name, broken)
    with pytest.raises((AssertionError, UsageError, ExceptionGroup)):
        run_machine(STORIES, 50, [Phase.generate])
