"""Plans: what a job would become is told before it runs, and kept or refused when it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from federated.errors import JobError, PlanError
from federated.jobs.experience import Lesson, Outcome
from federated.jobs.plan import make_job
from federated.jobs.planner import PLANS_MAX
from federated.jobs.planning import VALID_S, Forecast, Seer, examples, hints
from federated.jobs.types import ByHandler, Column, JobId, JobSpec, PerRow
from p2p.identity import PeerId
from tests.helpers.job_engines import COMBINE, both
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from pathlib import Path

    from federated.jobs.planning import Plan
    from federated.jobs.state import Job
    from tests.helpers.jobs_kit import Desk, Office


def spec(count: int = 12, **more: object) -> JobSpec:
    rows: list[dict[str, object]] = [{"n": n} for n in range(count)]
    return msgspec.structs.replace(JobSpec(handler="echo@1", rows=rows, cache="off"), **more)


async def planned(boss: Desk, wanted: JobSpec, agent: str = "") -> Plan:
    return (await boss.jobs.plan(wanted, agent=agent, group=None)).plan


def why(plan: Plan, desk: Desk) -> str:
    return next(seer.why for seer in plan.seers if seer.peer == desk.id)


def test_a_plan_says_who_sees_the_rows_and_runs_nothing(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2)
        nobody = await office.desk(3)
        office.nobodies.add(nobody.id)
        plan = await planned(boss, spec())
        assert plan.seeing == {worker.id}
        assert [why(plan, one) for one in (boss, worker, nobody)] == [
            "runs_elsewhere", "", "not_trusted",
        ]  # fmt: skip
        assert next(one.slots for one in plan.seers if one.peer == worker.id) == 2
        assert plan.sizes == (4, 4, 4)
        assert plan.choice is not None
        assert plan.choice.basis == "start"
        assert (plan.forecast.executions_min, plan.forecast.executions_max) == (3, 3)
        assert plan.forecast.seconds is None, "nothing is known, so nothing is said"
        assert (plan.good, plan.bad, plan.cached) == (None, None, None)
        assert await boss.jobs.journal.jobs(None, 10) == []
        assert not boss.jobs.core.board.jobs
        assert worker.jobs.worker is not None
        assert not boss.jobs.planner.wanted, "nobody is asked any more"

    play_office(scenario, tmp_path, seed=21)


def test_each_reason_not_to_see_rows_is_told(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2)
        plan = await planned(boss, spec(handler="nothing@1"))
        assert why(plan, worker) == "no_handler"
        assert plan.hints[0].startswith("no device would take the rows")
        plan = await planned(boss, spec(engine="local"))
        assert (why(plan, worker), why(plan, boss)) == ("runs_here", "")
        name = bytes(worker.id).hex()
        rows: list[dict[str, object]] = [{"n": 1, "@peer": name}]
        third = await office.desk(3)
        plan = (
            await boss.jobs.plan(
                JobSpec(handler="echo@1", rows=rows), agent="", group=None,
                find_peer=lambda text: worker.id if text == name else None,
            )
        ).plan  # fmt: skip
        assert (why(plan, worker), why(plan, third)) == ("", "not_pinned")
        third.member.scope.cancel()
        third.scope.cancel()
        await trio.sleep(60)
        plan = await planned(boss, spec())
        assert why(plan, third) == "not_connected"

    play_office(scenario, tmp_path, seed=22)


def test_a_plan_is_run_as_it_says_and_by_nobody_else(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2)
        plan = await planned(boss, spec(200))
        ident = await boss.jobs.submit_plan(plan.id, agent="")
        late = await office.desk(3)
        await boss.jobs.finished(ident)
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert set(job.peers) == {worker.id}, "who came later sees no row of it"
        assert late.id not in job.peers
        assert tuple(len(task.ks) for task in job.tasks if not task.audit) == plan.sizes
        assert await boss.table(ident) == [{"n": n} for n in range(200)]

    play_office(scenario, tmp_path, seed=23)


def test_the_promise_outlives_a_kill(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2)
        plan = await planned(boss, spec(2000, batch=PerRow()))
        ident = await boss.jobs.submit_plan(plan.id, agent="")
        await boss.jobs.news()
        again = await office.restart(boss)
        job = again.jobs.core.job(ident)
        assert job is not None
        assert not job.final, "it was killed midway"
        assert job.only == {worker.id, boss.id}
        with pytest.raises(JobError, match="no such plan"):
            await again.jobs.submit_plan(plan.id, agent="")

    play_office(scenario, tmp_path, seed=24)


def test_levels_that_combine_a_planned_jobs_answers_keep_its_promise(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, handlers=both())
        worker = await office.desk(2, handlers=both())
        wanted = JobSpec(
            handler="echo@1", rows=[{"n": n / 7} for n in range(300)],
            columns=[Column(name="n", type="float")], reduce=ByHandler(handler=COMBINE),
        )  # fmt: skip
        plan = await planned(boss, wanted)
        ident = await boss.jobs.submit_plan(plan.id, agent="")
        while not any(job.stage for job in boss.jobs.core.board.live_jobs()):
            await boss.jobs.news()
        levels = [job for job in boss.jobs.core.board.live_jobs() if job.stage]
        assert [job.only for job in levels] == [{worker.id, boss.id}] * len(levels)
        again = await office.restart(boss, handlers=both())
        live = again.jobs.core.board.live_jobs()
        assert ident in {job.id for job in live}
        assert {job.only for job in live} == {frozenset({worker.id, boss.id})}

    play_office(scenario, tmp_path, seed=31)


def test_what_changed_is_named(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        worker = await office.desk(2)
        plan = await planned(boss, spec())
        third = await office.desk(3)
        names = {worker.id: "desktop", third.id: "nas"}

        async def refused() -> str:
            with pytest.raises(PlanError) as changed:
                await boss.jobs.submit_plan(plan.id, agent="", name=lambda peer: names[peer])
            assert changed.value.reason == "plan_changed"
            return str(changed.value)

        assert await refused() == "nas would see the rows too: plan again"
        office.nobodies |= {worker.id, third.id}
        assert await refused() == "desktop would no longer see them (not_trusted): plan again"
        office.nobodies -= {worker.id}
        office.owners[worker.id] = b"p" * 32
        assert await refused() == "desktop is now stranger, or another owner's: plan again"
        assert await boss.jobs.journal.jobs(None, 10) == [], "none of them ran"

    play_office(scenario, tmp_path, seed=25)


def test_a_plan_is_its_agents_and_ends_after_an_hour(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        plan = await planned(boss, spec(), agent="claude")
        with pytest.raises(JobError, match="no such plan"):
            await boss.jobs.submit_plan(plan.id, agent="codex")
        await boss.jobs.submit_plan(plan.id, agent="claude", idem="once")
        again = await boss.jobs.submit_plan(plan.id, agent="claude", idem="once")
        assert (await boss.jobs.journal.jobs("claude", 10))[0].id == again
        assert len(await boss.jobs.journal.jobs("claude", 10)) == 1
        await trio.sleep(VALID_S)
        with pytest.raises(JobError, match="an hour"):
            await boss.jobs.submit_plan(plan.id, agent="claude")

    play_office(scenario, tmp_path, seed=26, within_s=2 * VALID_S)


def test_plans_are_few(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        first = await planned(boss, spec(1))
        for _ in range(PLANS_MAX):
            last = await planned(boss, spec(1))
        boss.jobs.planner.find(last.id, "")
        with pytest.raises(JobError):
            boss.jobs.planner.find(first.id, "")

    play_office(scenario, tmp_path, seed=27)


def test_finished_jobs_make_the_forecast_and_the_examples(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        ident = await boss.jobs.submit(spec(64), agent="claude", group=None)
        learned = boss.jobs.lessons.news
        await boss.jobs.finished(ident)
        await learned.wait()
        plan = (await boss.jobs.plan(spec(64), agent="", group=None, owner=True)).plan
        assert plan.choice is not None
        assert (plan.choice.size, plan.choice.basis, plan.choice.trying) == (8, "class", True)
        assert plan.forecast.seconds is not None
        assert plan.forecast.jobs == 1
        assert plan.good is not None
        assert plan.good.job == ident
        others = await planned(boss, spec(64), agent="codex")
        assert others.good is None, "an agent hears of its own jobs alone"
        assert others.forecast.jobs == 1, "but of what all of them took"

    play_office(scenario, tmp_path, seed=28)


def test_what_earlier_jobs_answered_is_counted_and_teaches_nothing(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        ident = await boss.jobs.submit(spec(30, cache="use"), agent="", group=None)
        learned = boss.jobs.lessons.news
        await boss.jobs.finished(ident)
        await learned.wait()
        plan = await planned(boss, spec(40, cache="use"))
        assert plan.cached == 30
        assert plan.forecast.executions_max < len(plan.sizes)
        learned = boss.jobs.lessons.news
        await boss.jobs.submit_plan(plan.id, agent="")
        await learned.wait()
        last = boss.jobs.lessons.of_handler("echo@1", None)[0].outcome
        assert (last.rows, last.verified) == (10, 1.0)
        assert (await planned(boss, spec(40))).cached is None, "nobody looked"

    play_office(scenario, tmp_path, seed=30)


def test_notes_are_shown_and_pay_for_what_they_bring(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        lessons = boss.jobs.lessons

        async def note(text: str) -> None:
            await lessons.feedback(
                JobId(bytes(16)), "echo@1", agent="claude", rule=text, wall_ms=1
            )  # fmt: skip

        for text in ("one", "two", "three", "four"):
            await note(text)
        shown = await boss.jobs.plan(spec(8), agent="codex", group=None)
        assert [one.text for one in shown.notes] == ["one", "two", "three"]
        assert [one.agent for one in shown.notes] == ["claude"] * 3
        learned = lessons.news
        await boss.jobs.submit_plan(shown.plan.id, agent="codex")
        await learned.wait()
        assert [(one.text, one.score) for one in lessons.notes("echo@1", 9)] == [
            ("one", 3), ("two", 3), ("three", 3), ("four", 2),
        ]  # fmt: skip
        bad = spec(8, columns=[Column(name="absent")], max_retries=0)
        shown = await boss.jobs.plan(bad, agent="codex", group=None)
        learned = lessons.news
        await boss.jobs.submit_plan(shown.plan.id, agent="codex")
        await learned.wait()
        assert [(one.text, one.score) for one in lessons.notes("echo@1", 9)] == [
            ("four", 2), ("one", 1), ("two", 1), ("three", 1),
        ]  # fmt: skip

    play_office(scenario, tmp_path, seed=29)


# ---- examples and hints alone


def lesson(job: int, rows: int, verified: float, **more: object) -> Lesson:
    outcome = Outcome(
        handler="echo@1", rows=rows, input_bytes=rows, size=4, verified=verified, cost_s=1.0,
        delay_s=1.0, gaps=round(rows * (1 - verified)),
    )  # fmt: skip
    return Lesson(JobId(bytes([job])), "", 1, msgspec.structs.replace(outcome, **more))


def drawn(wanted: JobSpec) -> Job:
    assert isinstance(wanted.rows, list)
    return make_job(
        wanted, wanted.rows, ident=JobId(bytes(16)), nonce=bytes(16), group=None, agent="", now=0.0,
        wall_ms=0, code_hash=None, cacheable=False, find_peer=lambda _name: None,
    )  # fmt: skip


def test_the_examples_are_those_most_like_the_job() -> None:
    job = drawn(spec(100))
    good, bad = examples(
        job,
        [
            lesson(1, 5, 1.0), lesson(2, 90, 1.0), lesson(3, 100, 1.0, template="t"),
            lesson(4, 1000, 0.5), lesson(5, 100, 1.0, rows_bad=50), lesson(6, 99, 0.2),
        ],
    )  # fmt: skip
    assert good is not None
    assert good.job == bytes([2])
    assert bad is not None
    assert bad.job == bytes([5]), "what the caller called wrong went badly"
    assert examples(job, []) == (None, None)


def test_hints_are_at_most_three_and_the_weightiest() -> None:
    job = drawn(spec(100, verify="quorum:3", deadline_s=10.0))
    seers = [
        Seer(peer, "stranger", bytes(peer), 64, "")
        for peer in (PeerId(b"a" * 32), PeerId(b"b" * 32))
    ]
    found = hints(job, seers, Forecast(75, 75, 50.0, 3), lesson(1, 10, 0.5, why="timeout"))
    assert found == (
        "verify asks 3 owners for each row and only 2 can be asked",
        "it may take 50 s and its deadline is 10 s",
        "5 of 10 rows of an earlier job had no answer, mostly: timeout",
    )
    calm = drawn(spec(100, columns=[Column(name="n", type="int")]))
    assert hints(calm, seers[:1], Forecast(25, 25, None, 0), None) == (
        "25 tasks for 64 slots: smaller batches would use all of them",
    )
    assert hints(calm, [], Forecast(25, 25, None, 0), None)[0].startswith("no device")
