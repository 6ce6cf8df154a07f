"""Estimates, the choice among peers, whose job is served next, and what is late.

What is decided about peers is seen through a real coordinator whose peers are played.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
import pytest

from benchmarks.job_sims.fleet import HANDLER, Fleet, peer_id
from federated.jobs.board import PeerCell
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.items import Cancelled, Load, Offered
from federated.jobs.schedule import (
    BLOCKS_READ_MAX,
    FEW,
    SAMPLES_MAX,
    Durations,
    Lane,
    Need,
    PeerView,
    Popularity,
    Window,
    blocks_of,
    choose,
    homes,
)
from federated.jobs.state import AttemptState, RowState, TaskState
from federated.jobs.turns import Turns, level
from federated.jobs.types import Limits, Open

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.jobs.state import Job


# ---- estimates


def test_quantiles_are_exact_over_the_last_400() -> None:
    rng, window, kept = random.Random(1), Window(), list[float]()
    for _ in range(3 * SAMPLES_MAX):
        value = rng.choice((0.25, rng.random()))
        window.add(value)
        kept = [*kept, value][-SAMPLES_MAX:]
        ordered = sorted(kept)
        assert window.at(0.5) == ordered[len(kept) // 2]
        assert window.at(0.95) == ordered[int(0.95 * len(kept))]
    assert len(window) == SAMPLES_MAX


def test_a_size_speaks_for_itself_once_it_was_seen_twenty_times() -> None:
    durations = Durations()
    assert not durations.known("h@1", 100)
    for _ in range(30):
        durations.add("h@1", 100, 1.0)
    for _ in range(19):
        durations.add("h@1", 100_000, 50.0)
    assert durations.t50("h@1", 100_000) == 1.0, "too few of that size: those of all sizes"
    durations.add("h@1", 100_000, 50.0)
    assert durations.t50("h@1", 100_000) == 50.0
    assert durations.t50("h@1", 120) == 1.0
    assert not durations.known("other@1", 100)


def test_slowness_moves_a_fifth_of_the_way_and_within_bounds() -> None:
    view = PeerView()
    view.observe("h@1", 6.0)
    assert view.slow("h@1") == pytest.approx(2.0)
    assert view.slow("other@1") == 1.0
    for _ in range(100):
        view.observe("h@1", 1e9)
    assert view.slow("h@1") <= 50.0


# ---- the choice


def lane(name: str, *, slots: int = 1, cold_ms: int = 0, warm: bool = True) -> Lane:
    cell = PeerCell(peer_id(name), 1)
    cell.handlers[HANDLER] = Offered(HANDLER, "named", True, False, slots, cold_ms, warm)
    return Lane(cell, name.encode(), HANDLER)


def test_of_few_the_one_that_is_done_first_gets_the_task() -> None:
    busy, slow, cold, quick = (
        lane("busy"),
        lane("slow"),
        lane("cold", cold_ms=4000, warm=False),
        lane("q"),
    )
    busy.view.given(10.0, 3.0)
    slow.slowness = 5.0
    need = Need(1.0)
    lanes = [busy, slow, cold, quick]
    assert choose(lanes, need, 10.0, random.Random(1)) is quick
    assert [need.estimate(one, 10.0) for one in lanes] == [4.0, 5.0, 5.0, 1.0]
    assert choose(lanes[:3], need, 10.0, random.Random(1)) is busy
    assert choose(lanes[:3], need, 10.0 + 60, random.Random(1)) is busy, "its queue is done"
    assert choose([], need, 10.0, random.Random(1)) is None


def test_who_tried_a_task_gets_it_last() -> None:
    first, second = lane("a"), lane("b")
    second.slowness = 40.0
    assert choose([first, second], Need(1.0), 0.0, random.Random(1)) is first
    tried = Need(1.0, tried=frozenset([bytes(first.cell.peer)]))
    assert choose([first, second], tried, 0.0, random.Random(1)) is second
    assert choose([first], tried, 0.0, random.Random(1)) is first, "better than nobody"


def test_a_peer_that_has_read_the_prefix_is_worth_a_queue() -> None:
    warm, cold = lane("warm"), lane("cold")
    blocks = blocks_of(b"llm:m", b"x" * 40_960)
    warm.view.read(blocks[:10])
    warm.view.given(0.0, 0.7)
    need = Need(0.5, blocks=blocks, key=blocks[0])
    assert warm.view.hit(blocks) == 10
    assert choose([cold, warm], need, 0.0, random.Random(1)) is warm
    warm.view.given(0.0, 0.2)
    assert choose([cold, warm], need, 0.0, random.Random(1)) is cold


def test_a_peer_forgets_what_it_read_longest_ago() -> None:
    view = PeerView()
    view.read([b"%08d" % n for n in range(BLOCKS_READ_MAX)])
    view.read([b"%08d" % 0, b"newcomer"])
    assert view.hit([b"%08d" % 0, b"newcomer"]) == 2
    assert view.hit([b"%08d" % 1]) == 0


def test_blocks_name_everything_before_them() -> None:
    one, other = blocks_of(b"h", b"a" * 5000), blocks_of(b"h", b"b" + b"a" * 4999)
    assert len(one) == 3
    assert not set(one) & set(other), "they differ in the first block"
    longer = blocks_of(b"h", b"a" * 9000)
    assert longer[:2] == one[:2]
    assert longer[2] != one[2]


def test_many_peers_a_prefix_has_two_homes_and_a_newcomer_moves_at_most_one() -> None:
    lanes = [lane(f"peer {n}") for n in range(40)]
    moved = 0
    for n in range(200):
        key = b"%08d" % n
        before = homes(key, lanes)
        after = homes(key, [*lanes, lane("newcomer")])
        assert len({before[0].cell.peer, before[1].cell.peer}) == 2
        assert set(before) & set(after), "one home stays"
        moved += set(before) != set(after)
    assert 0 < moved < 30, "two of 41 keys in the mean"


def test_many_peers_tasks_of_one_prefix_meet_until_the_queue_is_too_long() -> None:
    lanes = [lane(f"peer {n}") for n in range(FEW + 24)]
    blocks = blocks_of(b"llm:m", b"q" * 3000)
    need = Need(1.0, blocks=blocks, key=blocks[0])
    rng = random.Random(3)
    first = choose(lanes, need, 0.0, rng)
    assert first is not None
    first.view.read(blocks)
    assert all(choose(lanes, need, 0.0, rng) is first for _ in range(20))
    first.view.given(0.0, 30.0)
    second = choose(lanes, need, 0.0, rng)
    assert second in homes(blocks[0], lanes)
    assert second is not first
    assert second is not None
    second.view.given(0.0, 30.0)
    strays = {choose(lanes, need, 0.0, rng) for _ in range(20)}
    assert len(strays) > 5
    assert first not in strays


def test_many_peers_without_a_prefix_the_better_of_four() -> None:
    lanes = [lane(f"peer {n}") for n in range(40)]
    for one in lanes[:20]:
        one.view.given(0.0, 10.0)
    rng = random.Random(5)
    chosen = [choose(lanes, Need(1.0), 0.0, rng) for _ in range(200)]
    assert sum(one in lanes[:20] for one in chosen) < 30, "all four are busy 1 time in 16"
    assert len({id(one) for one in chosen}) > 10


def test_what_everybody_shares_names_no_home_for_long() -> None:
    popular = Popularity()
    shared = [b"%08d" % n for n in range(30)]
    keys = []
    for n in range(1000):
        blocks = [*shared[:2], b"own %04d" % n]
        keys.append(popular.key(blocks))
        popular.count(blocks, 0.0)
    assert keys[0] == shared[0]
    assert keys[-1] == b"own 0999"
    assert popular.key(shared[:1]) == shared[0], "nothing longer to take"
    popular.count(shared, 3601.0)
    popular.count(shared, 7300.0)
    assert popular._counts[shared[0]] == 251, "halved each hour"


# ---- whose job


def jobs_of(*asked: tuple[str, int]) -> list[Job]:
    fleet = Fleet(seed=1)
    return [fleet.submit(rows=1, agent=agent, priority=priority) for agent, priority in asked]


def served(
    turns: Turns, jobs: list[Job], now: float, room: int, *, cost_s: Callable[[Job], float]
) -> list[Job]:
    """Who gets `room` free slots, each job having tasks without end."""
    found: list[Job] = []

    def give(job: Job, budget_s: float) -> float:
        given = 0.0
        while given < budget_s and len(found) < room:
            given += cost_s(job)
            found.append(job)
        return given

    turns.serve(jobs, now, rest_s=lambda _job: 1.0, give=give, more=lambda: len(found) < room)
    return found


def test_agents_have_equal_shares_however_many_jobs_they_have() -> None:
    jobs = jobs_of(("a", 5), ("b", 5), ("b", 5), ("b", 5))
    turns, got = Turns(), dict.fromkeys(jobs, 0)
    for _ in range(600):
        for job in served(turns, jobs, 0.0, 1, cost_s=lambda _job: 0.5):
            got[job] += 1
    assert got[jobs[0]] == pytest.approx(300, abs=4)
    assert all(got[job] == pytest.approx(100, abs=4) for job in jobs[1:])


def test_shares_are_of_time_not_of_tasks() -> None:
    long, short = jobs = jobs_of(("a", 5), ("b", 5))
    turns, got = Turns(), {long: 0, short: 0}
    for _ in range(1100):
        for job in served(turns, jobs, 0.0, 1, cost_s=lambda job: 10.0 if job is long else 1.0):
            got[job] += 1
    assert got[short] == pytest.approx(1000, abs=15)
    assert got[long] == pytest.approx(100, abs=2)


def test_a_higher_priority_goes_first_and_waiting_raises_it() -> None:
    low, high = jobs = jobs_of(("a", 2), ("b", 4))
    turns = Turns()
    assert set(served(turns, jobs, 0.0, 5, cost_s=lambda _job: 1.0)) == {high}
    high.served_at = 65.0
    assert level(low, 65.0) == 4
    assert set(served(turns, jobs, 65.0, 6, cost_s=lambda _job: 1.0)) == {low, high}
    assert level(low, 1e6) == 9
    (loud,) = jobs_of(("agent", 9))
    (ours,) = jobs_of(("", 9))
    loud.served_at = ours.served_at = 0.0
    assert (level(loud, 0.0), level(ours, 0.0)) == (6, 9), "an agent's word goes to 6"


def test_a_job_near_its_deadline_goes_before_its_level_the_nearest_first() -> None:
    jobs = jobs_of(("a", 5), ("b", 5), ("c", 5), ("d", 6))
    jobs[1].deadline, jobs[2].deadline = 1.5, 1.0
    assert served(Turns(), jobs, 0.0, 1, cost_s=lambda _job: 1.0) == [jobs[3]], "a level above"
    assert served(Turns(), jobs[:3], 0.0, 1, cost_s=lambda _job: 1.0) == [jobs[2]]
    jobs[2].deadline = 100.0
    assert served(Turns(), jobs[:3], 0.0, 1, cost_s=lambda _job: 1.0) == [jobs[1]]


def test_a_task_of_a_day_does_not_make_the_others_wait_for_a_loop() -> None:
    long, short = jobs = jobs_of(("a", 5), ("b", 5))
    turns = Turns()
    got = [served(turns, jobs, 0.0, 1, cost_s=lambda j: 86_400.0 if j is long else 1.0)[0]
           for _ in range(50)]  # fmt: skip
    assert got.count(long) == 1
    assert got.count(short) == 49


def test_two_jobs_share_real_peers() -> None:
    fleet = Fleet(seed=2)
    fleet.join("p", slots=2, credit=2)
    first = fleet.submit(rows=40, agent="a")
    second = fleet.submit(rows=40, agent="b")
    done = []
    while len(done) < 60:
        fleet.now += 0.5
        task = fleet.offered("p")[0]
        done.append(task.job)
        fleet.answer(task, wall_ms=500)
    assert 20 <= done.count(first.id) <= 40
    assert 20 <= done.count(second.id) <= 40


# ---- peers as the coordinator sees them


def warmed(fleet: Fleet, names: str, *, rows: int = 30, took_s: float = 1.0) -> None:
    """Have peers do tasks until their windows are open and a median is known."""
    job = fleet.submit(rows=rows)
    while job.id not in fleet.ended:
        fleet.now += took_s
        for name in names:
            for task in fleet.offered(name):
                fleet.answer(task, wall_ms=int(took_s * 1000))


def test_the_quicker_peer_gets_the_task_when_both_are_free() -> None:
    fleet = Fleet(seed=1)
    fleet.join("a", slots=1, credit=1)
    fleet.join("b", slots=1, credit=1)
    job = fleet.submit(rows=100)
    while fleet.core.board.peers[peer_id("b")].view.slow(HANDLER) < 1.5:
        fleet.now += 1.0
        for task in fleet.offered("a"):
            fleet.answer(task, wall_ms=1000)
        if fleet.now % 4 == 0:
            for task in fleet.offered("b"):
                fleet.answer(task, wall_ms=4000)
    assert fleet.core.board.peers[peer_id("a")].view.slow(HANDLER) < 1.1
    fleet.core.cancel(job.id, now=fleet.now, wall_ms=fleet.wall_ms)
    fleet.carry_out()
    fleet.submit(rows=1)
    assert [len(fleet.offered(name)) for name in "ab"] == [1, 0]


def test_what_a_peer_says_of_its_queue_sends_tasks_elsewhere() -> None:
    fleet = Fleet(seed=1)
    fleet.join("a", slots=1, credit=1)
    fleet.join("b", slots=1, credit=1)
    fleet.say("a", Load(1, 1, 60_000, [], True, 255))
    fleet.submit(rows=1)
    assert [len(fleet.offered(name)) for name in "ab"] == [0, 1]


def test_a_claim_of_no_time_counts_as_half_a_millisecond_and_of_ages_as_what_was_seen() -> None:
    fleet = Fleet(seed=1)
    fleet.join("a", slots=1, credit=1)
    fleet.submit(rows=2)
    fleet.now = 2.0
    fleet.answer(fleet.offered("a")[0], wall_ms=10**9)
    durations = fleet.core._leasing.durations
    assert durations.t50(HANDLER, 7) == 2.0
    fleet.answer(fleet.offered("a")[0], wall_ms=0)
    assert durations._windows[HANDLER, -1].at(0.0) == 0.0005


def test_a_peer_whose_lease_ended_in_silence_gets_nothing_until_it_speaks() -> None:
    fleet = Fleet(seed=1)
    fleet.join("a", slots=1, credit=1)
    job = fleet.submit(rows=1, max_retries=9)
    fleet.pass_time(12.0)
    assert job.tasks[0].state is not TaskState.LEASED
    fleet.pass_time(30.0)
    assert len(fleet.held["a"]) == 1, "nothing new came"
    fleet.beat("a")
    fleet.tick(at=30.2)
    assert len(fleet.held["a"]) == 2, "it spoke"
    fleet.pass_time(41.0)
    before = fleet.executions
    fleet.pass_time(80.0)
    assert fleet.executions > before, "tried again after three leases"


# ---- deadlines and limits


def test_a_task_that_cannot_be_done_in_time_is_not_begun() -> None:
    fleet = Fleet(seed=1)
    fleet.join("a", slots=1, credit=1)
    warmed(fleet, "a", took_s=5.0)
    before = fleet.executions
    job = fleet.submit(rows=3, deadline_s=12.0)
    while job.id not in fleet.ended:
        fleet.now += 5.0
        for task in fleet.offered("a"):
            fleet.answer(task, wall_ms=5000)
        fleet.tick(at=fleet.now)
    assert fleet.executions - before == 2
    assert [row.reason for row in job.rows] == ["", "", "deadline"]


@pytest.mark.parametrize("runs", [True, False])
def test_a_task_is_lost_despite_its_beats_beyond_its_limit(runs: bool) -> None:
    fleet = Fleet(seed=1)
    fleet.join("a", slots=1, credit=1)
    job = fleet.submit(rows=1, hedge=False, limits=Limits(wall_s=20.0))
    (attempt,) = job.live
    end = 25.0 if runs else 200.0
    while fleet.now < end + 4.0:
        assert attempt.live or fleet.now >= end
        fleet.tick(at=fleet.now + 1.0)
        fleet.beat("a", fleet.offered("a") if runs else ())
    assert attempt.state is AttemptState.LOST
    assert job.tasks[0].tries >= 1


# ---- late tasks


def late_job(fleet: Fleet, **spec: object) -> Job:
    """One task at `a` that does not come to an end; `b` idles."""
    fleet.join("a", slots=1, credit=1)
    warmed(fleet, "a")
    fleet.join("b", slots=1, credit=1)
    fleet.core.board.peers[peer_id("b")].view.given(fleet.now, 1.0)
    if spec.get("effect") == "once":
        for cell in fleet.core.board.peers.values():
            cell.told = True
            for handler, offered in cell.handlers.items():
                cell.handlers[handler] = msgspec.structs.replace(offered, effect=True)
    job = fleet.submit(rows=1, **spec)
    assert len(fleet.offered("a")) == 1
    return job


def test_a_late_task_is_copied_and_the_first_answer_wins() -> None:
    fleet = Fleet(seed=1)
    job = late_job(fleet)
    fleet.pass_time(fleet.now + 1.4, beating="a")
    assert not fleet.offered("b"), "not late yet"
    fleet.pass_time(fleet.now + 0.4, beating="a")
    (copy,) = fleet.offered("b")
    assert len(job.live) == 2
    fleet.pass_time(fleet.now + 20.0, beating="ab")
    assert len(job.live) == 2, "no third"
    fleet.answer(copy, wall_ms=900)
    assert job.id in fleet.ended
    assert not fleet.offered("a"), "the other was cancelled"
    assert [row.state for row in job.rows] == [RowState.OK]
    assert job.extra == 1


@pytest.mark.parametrize("spec", [{"hedge": False}, {"effect": "once"}])
def test_no_copy_where_the_job_forbids_it(spec: dict[str, object]) -> None:
    fleet = Fleet(seed=1)
    late_job(fleet, **spec)
    fleet.pass_time(fleet.now + 30.0, beating="a")
    assert not fleet.offered("b")


def test_at_most_three_copies_of_twenty_tasks() -> None:
    fleet = Fleet(seed=1)
    fleet.join("a", slots=20, credit=20)
    warmed(fleet, "a", rows=200)
    fleet.join("b", slots=20, credit=20)
    fleet.core.board.peers[peer_id("b")].view.given(fleet.now, 1e4)
    job = fleet.submit(rows=20)
    assert len(fleet.offered("a")) == 20
    fleet.core.board.peers[peer_id("b")].window = 20
    fleet.pass_time(fleet.now + 30.0, beating="ab")
    assert job.extra == 3
    assert all(task.live <= 2 for task in job.tasks)


def test_a_waiting_task_is_asked_back_for_an_idle_peer_and_that_is_no_try() -> None:
    fleet = Fleet(seed=1)
    fleet.join("a", slots=1, credit=4)
    warmed(fleet, "a")
    job = fleet.submit(rows=4)
    waiting = fleet.offered("a")
    assert len(waiting) == 4
    fleet.join("b", slots=1, credit=1)
    fleet.tick(at=fleet.now + 0.2)
    ((name, cancel),) = fleet.cancels
    assert (name, cancel.unstarted_only) == ("a", True)
    assert cancel.attempts == [waiting[-1].ref[1:]], "the last in the queue"
    fleet.tick(at=fleet.now + 0.2)
    assert len(fleet.cancels) == 2, "no answer yet: the next one is asked back"
    fleet.give_back("a", cancel, cancel.attempts)
    (stolen,) = fleet.offered("b")
    assert stolen.ref[1] == waiting[-1].ref[1]
    task = job.tasks[stolen.ref[1]]
    assert (task.tries, len(task.attempts), job.executions) == (0, 1, 4)


def test_what_was_not_asked_back_cannot_be_given_back() -> None:
    fleet = Fleet(seed=1)
    fleet.join("a", slots=1, credit=1)
    job = fleet.submit(rows=1)
    (task,) = fleet.offered("a")
    fleet.say("a", Cancelled(job.id, [], [task.ref[1:], (77, 1), (-1, 2)], []))
    assert len(job.live) == 1


def test_a_refused_copy_of_a_task_that_waits_for_more_answers_queues_it_again() -> None:
    """Its first attempt brought one row of two, and nobody else has it."""
    fleet = Fleet(seed=1)
    fleet.join("a", slots=1, credit=1)
    warmed(fleet, "a")
    fleet.join("b", slots=1, credit=1)
    fleet.core.board.peers[peer_id("b")].view.given(fleet.now, 5.0)
    job = fleet.submit(rows=2, batch=Open(groups=[[0, 1]]))
    fleet.pass_time(fleet.now + 2.0, beating="a")
    (first,), (copy,) = fleet.offered("a"), fleet.offered("b")
    fleet.answer(first, rows=b'[[0,{"n":0}]]')
    assert job.tasks[0].state is TaskState.VERIFYING
    fleet.refuse(copy)
    assert job.tasks[0].state is TaskState.LEASED, "offered again at once"
    (again,) = fleet.offered("a") + fleet.offered("b")
    fleet.answer(again, rows=b'[[1,{"n":1}]]')
    assert job.id in fleet.ended
    assert job.extra == 0


def test_an_audit_that_was_given_up_may_still_bring_its_answer() -> None:
    """Found by the machine of tests/property/test_job_machine.py."""
    fleet = Fleet(seed=1)
    fleet.core.board.own_handlers = {
        HANDLER: HandlerInfo(id=HANDLER, kind="named", deterministic=True)
    }
    fleet.join("ours", slots=1, credit=1)
    fleet.join("a", slots=1, credit=1, trust="stranger", owner=b"a" * 32)
    job = fleet.submit(rows=2, group="everybody", verify="spot:1")
    fleet.answer(fleet.offered("a")[0])
    (audit,) = fleet.offered("ours")
    fleet.pass_time(11.0, beating=["a"])
    assert job.tasks[audit.offered.task].state is TaskState.FAILED, "nobody audits twice"
    fleet.answer(audit)
    assert [row.state for row in job.rows] == [RowState.OK, RowState.PENDING]
