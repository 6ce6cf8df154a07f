"""Answers of earlier jobs: who gets them, who does not, when they go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from federated.jobs.cache import (
    DAY_MS,
    EXPR_MS,
    LLM_MS,
    NAMED_MS,
    Entry,
    Need,
    Payoff,
    ResultCache,
    kept_ms,
    needed,
    served,
)
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.types import JobSpec, PerRow, TopK
from tests.helpers.jobs_kit import GROUP, play_office

if TYPE_CHECKING:
    from pathlib import Path

    from federated.jobs.state import Job
    from federated.jobs.types import JobId
    from tests.helpers.jobs_kit import Desk, Office

P, Q, R = b"p" * 32, b"q" * 32, b"r" * 32


def _spec(handler: str = "wordcount@1", rows: int = 40, **more: object) -> JobSpec:
    texts: list[dict[str, object]] = [{"text": f"row {n} of many", "n": n} for n in range(rows)]
    return msgspec.structs.replace(JobSpec(handler=handler, rows=texts), **more)


async def _done(desk: Desk, spec: JobSpec) -> tuple[JobId, Job]:
    ident = await desk.jobs.submit(spec, agent="", group=None)
    await desk.jobs.finished(ident)
    job = desk.jobs.core.job(ident)
    assert job is not None
    return ident, job


# ---- between nodes


def test_the_same_rows_are_not_computed_twice_in_any_order_or_batch(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        first, job = await _done(boss, _spec())
        assert (job.cached, job.executions) == (0, 10)
        again, job = await _done(boss, _spec(batch=PerRow()))
        assert (job.cached, job.executions) == (40, 0)
        assert job.phase == "done"
        assert await boss.table(again) == await boss.table(first)
        events = await boss.jobs.journal.events(again, 0, 100)
        states = [msgspec.json.decode(one.body)["state"] for one in events if one.kind == "state"]
        assert states == ["queued", "done"], "no lease in between"
        assert '"cached":40' in events[0].body.decode()
        spec = _spec()
        assert isinstance(spec.rows, list)
        more = [*spec.rows[::-1], {"text": "a row that is new"}]
        third, job = await _done(boss, msgspec.structs.replace(spec, rows=more))
        assert (job.cached, job.executions) == (40, 1)
        assert (await boss.table(third))[:40] == (await boss.table(first))[::-1]

    play_office(scenario, tmp_path, seed=1)


@pytest.mark.parametrize(
    "changed",
    [
        {"handler": "hash@1"},
        {"params": {"a": 1}},
        {"reduce": TopK(n=3)},
        {"cache": "off"},
        {"cache": "refresh"},
    ],
)
def test_what_differs_is_computed(tmp_path: Path, changed: dict[str, object]) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        await _done(boss, _spec(rows=8))
        _, job = await _done(boss, _spec(rows=8, **changed))
        assert (job.cached, job.executions) == (0, 2)

    play_office(scenario, tmp_path, seed=2)


def test_off_leaves_nothing_behind_and_refresh_does(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        await _done(boss, _spec(rows=8, cache="off"))
        _, job = await _done(boss, _spec(rows=8, cache="refresh"))
        assert job.executions == 2
        _, job = await _done(boss, _spec(rows=8))
        assert (job.cached, job.executions) == (8, 0)

    play_office(scenario, tmp_path, seed=3)


def test_a_restart_keeps_what_is_cached_and_what_came_from_there(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        first, _ = await _done(boss, _spec(rows=8))
        again = await office.restart(boss)
        ident, job = await _done(again, _spec(rows=9, reduce=TopK(n=3)))
        assert job.cached == 0
        ident, job = await _done(again, _spec(rows=9))
        assert (job.cached, job.executions) == (8, 1)
        assert (await again.table(ident))[:8] == await again.table(first)
        rows = await again.jobs.journal.rows(ident, 0, 100)
        assert [(row.reason, row.level) for row in rows] == [("cached", 3)] * 8 + [("", 3)]

    play_office(scenario, tmp_path, seed=4)


def test_entries_of_strangers_are_not_enough_for_own_devices(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2, owner=P)
        await office.desk(3, owner=Q)
        spec = _spec(rows=4, verify="quorum:2", batch=PerRow())
        ident = await boss.jobs.submit(spec, agent="", group=GROUP)
        await boss.jobs.finished(ident)
        rows = await boss.jobs.journal.rows(ident, 0, 10)
        assert {row.level for row in rows} == {2}
        # One that would ask the same strangers takes them; three owners are more than two.
        ident = await boss.jobs.submit(spec, agent="", group=GROUP)
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert job.cached == 4
        for other, group in ((spec, None), (_spec(rows=4, verify="quorum:3"), GROUP)):
            ident = await boss.jobs.submit(other, agent="", group=group)
            job = boss.jobs.core.job(ident)
            assert job is not None
            assert job.cached == 0
            await boss.jobs.cancel(ident)

    play_office(scenario, tmp_path, seed=5)


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        await _done(boss, _spec(rows=10))
        size = await boss.db.read(lambda c: c.execute("SELECT sum(bytes) FROM cache").fetchone()[0])
        boss.jobs.cache = ResultCache(boss.db, bytes_max=size * 3 // 2)
        await boss.jobs.cache.grew(0, 0)
        spec = _spec(rows=20)
        assert isinstance(spec.rows, list)
        _, job = await _done(boss, msgspec.structs.replace(spec, rows=spec.rows[10:]))
        assert job.cached == 0
        left = await boss.db.read(
            lambda c: c.execute("SELECT sum(bytes), count(*) FROM cache").fetchone()
        )
        assert left[0] <= size * 3 // 2
        assert 10 < left[1] < 20
        _, job = await _done(boss, msgspec.structs.replace(spec, rows=spec.rows[10:]))
        assert job.cached == 10, "the newer ones are all there"

    play_office(scenario, tmp_path, seed=6)


# ---- rules


def test_what_a_job_needs_of_an_entry() -> None:
    for verify, need in (
        ("none", Need(0)),
        ("spot:.1", Need(1)),
        ("adaptive", Need(1)),
        ("auto", Need(1)),
        ("quorum:3", Need(2, 3)),
    ):
        spec = JobSpec(handler="echo@1", rows=[], verify=verify)
        assert needed(spec, b"g" * 32, kind="named") == need
        assert needed(spec, None, kind="named") == Need(3)
    spec = JobSpec(handler="llm:m", rows=[])
    assert needed(spec, b"g" * 32, kind="llm") == Need(2, 2)


def test_who_is_served() -> None:
    alone, pair = frozenset({frozenset({P})}), frozenset({frozenset({P, Q})})
    assert served(Entry(b"1", 1, alone), Need(1), bad=())
    assert not served(Entry(b"1", 1, alone), Need(1), bad={P})
    assert not served(Entry(b"1", 0, alone), Need(1), bad=())
    assert not served(Entry(b"1", 1, alone), Need(2, 2), bad=())
    assert served(Entry(b"1", 2, pair), Need(2, 2), bad={P})
    assert not served(Entry(b"1", 2, pair), Need(2, 2), bad={P, Q, R})
    assert not served(Entry(b"1", 2, pair), Need(2, 3), bad=())
    assert served(Entry(b"1", 3, alone), Need(2, 3), bad={P})
    cells = frozenset({frozenset({P, Q}), frozenset({R})})
    assert not served(Entry(b"1", 2, cells), Need(1), bad={R}), "one cell hangs on R alone"
    assert not served(Entry(b"1", 2, frozenset()), Need(1), bad=())


def test_how_long_answers_are_kept() -> None:
    def info(**more: object) -> HandlerInfo:
        told: dict[str, object] = {"id": "a@1", "kind": "named", "deterministic": True, **more}
        return HandlerInfo(**told)  # type: ignore[arg-type]

    assert kept_ms(info(), {}) == NAMED_MS
    assert kept_ms(info(kind="expr"), {}) == EXPR_MS
    assert kept_ms(info(kind="llm", deterministic=False), {}) == LLM_MS
    assert kept_ms(info(kind="llm", deterministic=False), {"temperature": 0}) == LLM_MS
    assert kept_ms(info(kind="llm", deterministic=False), {"temperature": 0.1}) == 0
    assert kept_ms(info(deterministic=False), {}) == 0
    assert kept_ms(info(local=True), {}) == 0
    assert kept_ms(info(effect=True, deterministic=False), {}) == 0
    assert kept_ms(None, {}) == 0


def test_looking_that_does_not_pay_is_off_for_a_day() -> None:
    payoff = Payoff()
    payoff.looked("a@1", 10_000, 0, 9.0, 0)
    assert payoff.on("a@1", 0), "the first job finds nothing"
    payoff.computed("a@1", 1000, 1.0)
    for _ in range(4):
        payoff.looked("a@1", 10_000, 0, 1.0, 0)
        assert payoff.on("a@1", 0), "a job is one experience, not ten thousand"
    payoff.looked("a@1", 10_000, 0, 1.0, 0)
    assert not payoff.on("a@1", 0)
    assert not payoff.on("a@1", DAY_MS - 1)
    assert payoff.on("a@1", DAY_MS)
    assert payoff.on("b@1", 0)


@pytest.mark.parametrize(("hits", "on"), [(900, False), (1100, True)])
def test_a_hit_in_ten_pays_if_it_saves_ten_looks(hits: int, on: bool) -> None:
    payoff = Payoff()
    payoff.computed("a@1", 1000, 1.0)  # 1 ms a row
    for _ in range(60):
        payoff.looked("a@1", 10_000, hits, 1.0, 0)  # .1 ms a look
    assert payoff.on("a@1", 0) is on


def test_off_outlives_a_restart(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        await _done(boss, _spec(rows=8))
        now_ms = boss.jobs._env.wall_ms()
        for _ in range(5):
            await boss.jobs.cache.looked("wordcount@1", 1000, 0, 900.0, now_ms)
        again = await office.restart(boss)
        _, job = await _done(again, _spec(rows=8))
        assert (job.cached, job.cache_ms) == (0, 0)
        _, job = await _done(again, _spec("hash@1", rows=8))
        assert job.cache_ms == NAMED_MS

    play_office(scenario, tmp_path, seed=8)


def test_use_is_marked_once_an_hour(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        _, job = await _done(boss, _spec(rows=2))
        begun_ms, marks = boss.jobs._env.wall_ms(), []
        for later_s in (0, 3000, 4000):
            now_ms = begun_ms + 1000 * later_s
            found = await boss.jobs.cache.look(
                [row.hash for row in job.rows], now_ms, lambda _entry: True
            )
            assert len(found) == 2
            rows = await boss.db.read(lambda c: c.execute("SELECT used_ms FROM cache").fetchall())
            marks.append(rows)
        assert marks[0] == marks[1]
        assert marks[2] == [(now_ms,), (now_ms,)]

    play_office(scenario, tmp_path, seed=9)
