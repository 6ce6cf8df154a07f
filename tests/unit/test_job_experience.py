"""Experience: the rows of a task are learned from what finished jobs cost and brought."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from benchmarks.job_sims import experience as sim
from federated.errors import JobError, PlanError
from federated.jobs.experience import (
    JOBS_MIN,
    RULE_BAD,
    RULE_GOOD,
    SIZES,
    START,
    Experience,
    Outcome,
    Tried,
    job_class,
    rule_change,
    spent,
)
from federated.jobs.types import JobSpec, PerRow
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.jobs_kit import Desk, Office


def outcome(size: int, verified: float = 1.0, *, handler: str = "h@1", **more: object) -> Outcome:
    plain = Outcome(
        handler=handler, rows=64, input_bytes=6400, size=size, verified=verified, cost_s=0.0,
        delay_s=0.0,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **more)


def chosen(known: Experience, handler: str = "h@1", **more: int) -> int:
    return known.choose(handler, **{"rows": 64, "input_bytes": 6400, **more}).size


def test_it_starts_at_four_and_climbs_to_the_peak() -> None:
    worth = {1: 0.5, 2: 0.6, 4: 0.7, 8: 0.9, 16: 0.8, 32: 0.1}
    known, sizes = Experience(), []
    for _ in range(8):
        size = chosen(known)
        sizes.append(size)
        known.learn(outcome(size, worth[size]))
    assert sizes[0] == START
    assert sizes[1] == 8, "the larger neighbour of the best comes first"
    assert sizes[2] == 16
    assert sizes[3] == 8, "both neighbours of 8 are known: 4 and 16"
    assert not {1, 32} & set(sizes), "what is no neighbour of the best is never tried"


def test_where_small_is_better_it_goes_down() -> None:
    known = Experience()
    sizes = []
    for _ in range(4):
        size = chosen(known)
        sizes.append(size)
        known.learn(outcome(size, 1 / size))
    assert sizes == [4, 8, 2, 1]


def test_what_changed_is_learned_anew() -> None:
    known = Experience()
    for _ in range(100):
        size = chosen(known)
        known.learn(outcome(size, 1.0 if size == 8 else 0.5))
    assert chosen(known) == 8
    for _ in range(400):
        size = chosen(known)
        known.learn(outcome(size, 1.0 if size == 4 else 0.2))
    last = [chosen(known)]
    for _ in range(50):
        size = chosen(known)
        last.append(size)
        known.learn(outcome(size, 1.0 if size == 4 else 0.2))
    assert last.count(4) > 40


def test_a_new_class_begins_with_what_its_handler_says_then_all_handlers() -> None:
    known = Experience()
    assert known.choose("h@1", rows=64, input_bytes=6400).basis == "start"
    for _ in range(JOBS_MIN):
        known.learn(outcome(16))
    other_rows = known.choose("h@1", rows=64, input_bytes=64_000_000)
    assert (other_rows.size, other_rows.basis, other_rows.trying) == (16, "handler", True)
    other_handler = known.choose("other@1", rows=64, input_bytes=6400)
    assert (other_handler.size, other_handler.basis) == (16, "all")
    known.learn(outcome(2, handler="other@1"))
    own = known.choose("other@1", rows=64, input_bytes=6400)
    assert (own.basis, own.jobs) == ("class", 1)


def test_versions_and_row_sizes_are_classes_of_their_own() -> None:
    assert job_class("h@1", 10, 1000) == job_class("h@1", 1000, 110_000)
    assert job_class("h@1", 10, 1000) != job_class("h@2", 10, 1000)
    assert job_class("h@1", 10, 1000) != job_class("h@1", 10, 10_000)
    assert job_class("h@1", 0, 0) == "h@1 0"


@pytest.mark.parametrize(
    ("rows", "most", "wanted"), [(1, 32, 1), (3, 32, 2), (64, 2, 2), (0, 9, 1)]
)
def test_no_task_is_larger_than_the_job_or_the_handler_takes(
    rows: int, most: int, wanted: int
) -> None:
    assert chosen(Experience(), rows=rows, most=most) == wanted
    known = Experience([outcome(32) for _ in range(9)])
    assert chosen(known, rows=rows, most=most) <= max(1, min(rows, most))


def test_batches_that_mean_something_teach_nothing_about_sizes() -> None:
    known = Experience([outcome(32, batch="by_attr"), outcome(32, batch="open")])
    assert chosen(known) == START
    known.learn(outcome(1, batch="per_row"))
    assert chosen(known) == 2, "a task a row is a choice of size"


def test_utility_counts_right_rows_work_and_waiting() -> None:
    assert outcome(4).utility == 1.0
    assert outcome(4, cost_s=64.0).utility == pytest.approx(0.98)
    assert outcome(4, delay_s=8.0, slots=8).utility == pytest.approx(0.99)
    assert outcome(4, delay_s=64.0).utility == pytest.approx(0.99)
    assert outcome(4, rows_bad=32).utility == pytest.approx(0.5)
    assert outcome(4, 0.5, rows_good=48).utility == pytest.approx(0.75)
    assert outcome(4, 0.5, rows_bad=64).share == 0.0
    assert outcome(4, rows=0).share == 1.0


def test_waiting_at_a_worker_is_not_work() -> None:
    one = lambda _device: 1  # noqa: E731
    # Ten tasks of a second, all offered at 0 to a device that does one at a time.
    queue = [Tried(b"a", float(n), float(n)) for n in range(1, 11)]
    assert spent(queue, one) == (10.0, 10.0)
    assert spent(queue, lambda _device: 2)[0] == 20.0
    # Two devices in turn, with a gap between.
    assert spent([Tried(b"a", 2.0, 2.0), Tried(b"b", 9.0, 1.0)], one) == (3.0, 9.0)
    assert spent([], one) == (0.0, 0.0)


def test_a_note_gains_and_loses_with_the_jobs_that_saw_it() -> None:
    assert rule_change(outcome(4)) == RULE_GOOD
    assert rule_change(outcome(4, 0.5)) == RULE_BAD
    assert rule_change(outcome(4, rows_bad=30)) == RULE_BAD


# ---- in a node


async def run_echo(boss: Desk, count: int, **more: object) -> bytes:
    rows: list[dict[str, object]] = [{"n": n} for n in range(count)]
    spec = msgspec.structs.replace(JobSpec(handler="echo@1", rows=rows, cache="off"), **more)
    ident = await boss.jobs.submit(spec, agent="", group=None)
    await boss.jobs.finished(ident)
    while not boss.jobs.lessons.of_handler("echo@1", None) or (
        boss.jobs.lessons.of_handler("echo@1", None)[0].job != ident
    ):
        await boss.jobs.lessons.news.wait()
    return ident


def test_jobs_teach_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        first = await run_echo(boss, 64)
        lesson = boss.jobs.lessons.of_handler("echo@1", None)[0]
        assert lesson.outcome.rows == 64
        assert (lesson.outcome.size, lesson.outcome.batch) == (START, "auto")
        assert lesson.outcome.verified == 1.0
        assert lesson.outcome.gaps == 0
        assert lesson.outcome.slots == 2
        second = await run_echo(boss, 64)
        assert boss.jobs.lessons.of_handler("echo@1", None)[0].outcome.size == 8
        await run_echo(boss, 20, batch=PerRow())
        again = await office.restart(boss)
        kept = again.jobs.lessons.of_handler("echo@1", None)
        assert [one.job for one in kept[1:]] == [second, first]
        assert kept[0].outcome.size == 1
        assert again.jobs.lessons.of_handler("echo@1", "claude") == []
        assert again.jobs.lessons.experience.choose("echo@1", rows=64, input_bytes=600).jobs > 0

    play_office(scenario, tmp_path, seed=11)


def test_a_cancelled_job_teaches_nothing(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        spec = JobSpec(handler="nobody@1", rows=[{"n": 1}])
        ident = await boss.jobs.submit(spec, agent="", group=None)
        await boss.jobs.cancel(ident)
        await boss.jobs.finished(ident)
        done = await run_echo(boss, 4)
        assert [one.job for one in boss.jobs.lessons.of_handler("echo@1", None)] == [done]
        assert boss.jobs.lessons.of_handler("nobody@1", None) == []

    play_office(scenario, tmp_path, seed=12)


def test_what_the_caller_says_counts_and_notes_rise_and_fall(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        ident = await run_echo(boss, 40)
        lessons = boss.jobs.lessons

        async def say(**more: object) -> None:
            await lessons.feedback(ident, "echo@1", agent="claude", wall_ms=1, **more)

        before = lessons.experience
        await say(rows_bad=10)
        assert lessons.of_handler("echo@1", None)[0].outcome.share == 0.75
        assert lessons.experience is not before
        with pytest.raises(PlanError, match="280"):
            await say(rule="x" * 281)
        with pytest.raises(PlanError, match="0 or more"):
            await say(rows_bad=-1)
        with pytest.raises(JobError, match="nothing is remembered"):
            await lessons.feedback(bytes(16), "echo@1", agent="", rows_good=1, wall_ms=1)
        await say(rule="keep  rows\nshort")
        await say(rule="other")
        for agent in ("claude", "codex", "codex"):
            await lessons.feedback(
                ident, "echo@1", agent=agent, rule="keep rows short", wall_ms=1
            )  # fmt: skip
        assert [(one.text, one.score) for one in lessons.notes("echo@1", 3)] == [
            ("keep rows short", 3), ("other", 2),
        ], "its author's word and a repeated one count once"  # fmt: skip
        other = lessons.notes("echo@1", 3)[1].id
        assert await lessons.remove(other, agent="codex") == 1
        assert await lessons.remove(other, agent="codex") == 1
        assert await lessons.remove(other, agent="gemini") == 0
        with pytest.raises(JobError, match="no such note"):
            await lessons.remove(other, agent="gemini")
        await say(rule="mine")
        assert await lessons.remove(lessons.notes("echo@1", 3)[1].id, agent="claude") == 0
        again = await office.restart(boss)
        assert [one.score for one in again.jobs.lessons.notes("echo@1", 3)] == [3]
        assert again.jobs.lessons.of_handler("echo@1", None)[0].outcome.rows_bad == 10

    play_office(scenario, tmp_path, seed=13)


# ---- the simulation


def test_the_simulation_is_the_same_each_time_and_learning_beats_common_sizes() -> None:
    assert sim.utilities(sim.Learned(), 7, 60) == sim.utilities(sim.Learned(), 7, 60)
    best = sim.best_sizes()
    assert (best[0], best[2]) == (8, 16)
    assert {best[1], best[3]} <= {1, 2, 4}, "these three are all but equal"
    found = {size: sim.measure(lambda size=size: sim.Fixed([size] * 4), 4) for size in SIZES}
    learned = sim.measure(sim.Learned, 4)
    assert learned.later > max(value.later for value in found.values())
    assert learned.first > sim.measure(sim.Ucb, 4).first
