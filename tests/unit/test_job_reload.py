"""What a kill of the coordinator may not bring back or take away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks.job_sims.fleet import HANDLER
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.state import RowState
from federated.jobs.types import Limits
from tests.helpers.job_journal import KeptFleet, at_once

if TYPE_CHECKING:
    from benchmarks.job_sims.fleet import PlayedTask

LIE = {"n": "lie"}


def said(task: PlayedTask, lies: bool) -> bytes:
    rows = msgspec.json.decode(task.offered.rows, type=list[list[object]])
    return msgspec.json.encode([[row[0], LIE if lies else row[1]] for row in rows])


def strangers(*names: str, seed: int, credit: int = 9) -> KeptFleet:
    """A coordinator that can compute rows itself, and owners of one device each."""
    fleet = KeptFleet(seed=seed)
    fleet.core.board.own_handlers = {
        HANDLER: HandlerInfo(id=HANDLER, kind="named", deterministic=True)
    }
    fleet.join("ours", credit=credit)
    for name in names:
        fleet.join(name, credit=credit, trust="stranger", owner=name.encode() * 32)
    return fleet


def all_answer(fleet: KeptFleet, name: str, *, lies: bool = False, but: int = 0) -> int:
    """A peer answers what it holds but for the last few; how much that was."""
    held = fleet.offered(name)
    done = held[: len(held) - but]
    for task in done:
        if task.ref in fleet.held[name]:
            fleet.answer(task, rows=said(task, lies))
    return len(done)


def test_a_liars_votes_stay_dropped_after_a_kill() -> None:
    fleet = strangers("l", "h", seed=1)
    fleet.core.board.peers[fleet.id_of("l")].window = 9
    job = fleet.submit(rows=8, group="everybody", verify="adaptive")
    liar = b"l" * 32
    while not all_answer(fleet, "l", lies=True):
        all_answer(fleet, "h")
    voted = [row.k for row in job.rows if any(one.owner == liar for one in row.answers)]
    assert voted
    # The other owner contradicts one of them, and our own device decides.
    while not fleet.core.board.reputation.quarantines(fleet.wall_ms):
        task = next((one for one in fleet.offered("h")), None)
        if task is not None:
            fleet.answer(task, rows=said(task, lies=False))
        for own in fleet.offered("ours"):
            fleet.answer(own, rows=said(own, lies=False))
        fleet.tick(at=fleet.now + 0.2)
    open_still = [k for k in voted if job.rows[k].state is RowState.PENDING]
    assert open_still, "rows the liar voted on are open"
    assert not any(one.owner == liar for k in open_still for one in job.rows[k].answers)
    read = fleet.read(job)
    for k in open_still:
        row = read.rows[k]
        assert not any(one.owner == liar for one in row.answers), "its vote is back"
        assert liar in row.barred
        assert row.doubted


def test_what_ran_before_a_kill_counts_towards_the_limit_of_executions() -> None:
    fleet = KeptFleet(seed=2)
    fleet.join("a", credit=4)
    fleet.core.board.peers[fleet.id_of("a")].window = 4
    job = fleet.submit(rows=20, limits=Limits(executions=12))
    all_answer(fleet, "a")
    assert 5 <= job.executions < 12
    assert fleet.read(job).executions == job.executions
    fleet.refuse(fleet.offered("a")[0], why="quota", retry_ms=500)
    assert fleet.read(job).executions == job.executions


def test_no_offer_of_a_limited_job_leaves_before_it_is_counted_on_the_disk() -> None:
    fleet = KeptFleet(seed=3)
    fleet.join("a", credit=4)
    counted: list[int] = []
    jobs = fleet.core.board.jobs
    fleet.on_offer = lambda task: counted.append(fleet.read(jobs[task.job]).executions)
    fleet.submit(rows=3, limits=Limits(executions=3))
    all_answer(fleet, "a")
    assert counted
    assert all(have >= at for at, have in enumerate(counted, 1))


def test_executions_of_a_job_without_a_limit_are_counted_from_its_attempts() -> None:
    fleet = KeptFleet(seed=4)
    fleet.join("a", credit=2)
    job = fleet.submit(rows=6)
    ended = sum(all_answer(fleet, "a") for _ in range(2))
    assert ended
    assert fleet.read(job).executions == ended


def test_an_audit_that_is_due_is_done_after_a_kill() -> None:
    fleet = strangers("l", seed=5)
    job = fleet.submit(rows=2, group="everybody", verify="spot:1")
    while not job.audits:
        all_answer(fleet, "l", lies=True)
    assert job.rows[0].state is RowState.OK
    read = fleet.read(job)
    assert read.audits == job.audits
    again = strangers("l", seed=6)
    again.journal = fleet.journal
    fresh = again.read(job)
    again.core.resume_loaded(fresh)
    again.tick(at=again.now + 0.2)
    (audit, *_) = again.offered("ours")
    again.answer(audit, rows=said(audit, lies=False))
    banned = again.core.board.reputation.quarantines(again.wall_ms)
    assert [one.owner for one in banned] == [b"l" * 32]
    assert fresh.rows[0].value == {"n": 0}
    assert fresh.rows[0].level == 3
    left = again.read(job)
    assert left.audits == fresh.audits, "what was audited is not audited again"


def test_a_restart_knows_how_long_tasks_took() -> None:
    fleet = KeptFleet(seed=7)
    fleet.join("a", credit=4)
    job = fleet.submit(rows=30)
    while not job.final:
        fleet.now += 3.0
        for task in fleet.offered("a"):
            fleet.answer(task, wall_ms=2500)
    size = job.tasks[0].bytes
    before = fleet.core._leasing.durations
    assert before.known(HANDLER, size)
    again = KeptFleet(seed=8)
    again.core.learn(at_once(fleet.journal.durations()))
    after = again.core._leasing.durations
    assert after.known(HANDLER, size)
    assert after.t50(HANDLER, size) == before.t50(HANDLER, size) == 2.5
    assert after.p95(HANDLER, size) == before.p95(HANDLER, size)
    at_once(fleet.journal.begin(fleet.wall_ms // 1000 + 31 * 86_400))
    assert at_once(fleet.journal.durations()) == [], "too old to be believed"


def test_a_kill_in_a_long_job_takes_few_durations() -> None:
    fleet = KeptFleet(seed=9)
    fleet.join("a", credit=8)
    job = fleet.submit(rows=200)
    while sum(row.state is RowState.OK for row in job.rows) < 150:
        fleet.now += 1.0
        for task in fleet.offered("a"):
            fleet.answer(task, wall_ms=500)
    again = KeptFleet(seed=10)
    again.core.learn(at_once(fleet.journal.durations()))
    assert again.core._leasing.durations.known(HANDLER, job.tasks[0].bytes)
