"""Answers of strangers: votes, audits, an arbiter, and what becomes of who lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.types import Column, JobSpec, PerRow
from tests.helpers.jobs_kit import GROUP, play_office

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.jobs.handlers.base import Batch
    from federated.jobs.types import RowOut
    from tests.helpers.jobs_kit import Office


class Double:
    """Twice the number of a row; or what a liar says instead."""

    def __init__(self, lie: int = 0, *, deterministic: bool = True) -> None:
        self.lie = lie
        self.rows = 0
        self.info = HandlerInfo(id="double@1", kind="named", deterministic=deterministic)

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        self.rows += len(batch.rows)
        return [(row.k, {"d": 2 * int(str(row.row["n"])) + self.lie}, "") for row in batch.rows]


def owner(number: int) -> bytes:
    return bytes([number]) * 32


def test_a_liar_is_caught_quarantined_and_its_rows_are_done_again(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, handlers=[Double()], owner=owner(1))
        liar = Double(lie=1)
        for number in range(2, 6):
            handler = liar if number == 5 else Double()
            await office.desk(number, handlers=[handler], owner=owner(number))
        spec = JobSpec(
            handler="double@1",
            rows=[{"n": n} for n in range(300)],
            columns=[Column(name="d", type="int")],
            batch=PerRow(),
            group="friends",
        )
        ident = await boss.jobs.submit(spec, agent="", group=GROUP)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == [{"d": 2 * n} for n in range(300)]
        events = await boss.jobs.journal.events(ident, 0, 10_000)
        caught = [event for event in events if event.kind == "quarantine"]
        assert len(caught) == 1
        assert owner(5).hex() in caught[0].body.decode()
        assert 0 < liar.rows < 150, "it was asked, and then no more"

    play_office(scenario, tmp_path, seed=11)


def test_a_quarantine_outlives_the_process(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, handlers=[Double()], owner=owner(1))
        liar = Double(lie=1)
        await office.desk(2, handlers=[liar], owner=owner(2))
        await office.desk(3, handlers=[Double()], owner=owner(3))
        spec = JobSpec(
            handler="double@1", rows=[{"n": n} for n in range(30)], batch=PerRow(), group="g"
        )
        first = await boss.jobs.submit(spec, agent="", group=GROUP)
        await boss.jobs.finished(first)
        asked = liar.rows
        assert asked
        again = await office.restart(boss, handlers=[Double()])
        second = await again.jobs.submit(spec, agent="", group=GROUP)
        await again.jobs.finished(second)
        assert await again.table(second) == [{"d": 2 * n} for n in range(30)]
        assert liar.rows == asked

    play_office(scenario, tmp_path, seed=12)


def test_without_an_arbiter_two_owners_must_agree(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, owner=owner(1))
        for number in range(2, 6):
            lie = 7 if number == 2 else 0
            await office.desk(
                number, handlers=[Double(lie, deterministic=False)], owner=owner(number)
            )
        spec = JobSpec(
            handler="double@1",
            rows=[{"n": n} for n in range(40)],
            columns=[Column(name="d", type="int")],
            batch=PerRow(),
            verify="quorum:2",
            group="g",
        )
        ident = await boss.jobs.submit(spec, agent="", group=GROUP)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == [{"d": 2 * n} for n in range(40)]
        rows = await boss.jobs.journal.rows(ident, 0, 100)
        assert {row.level for row in rows} == {2}

    play_office(scenario, tmp_path, seed=13)


def test_too_few_owners_leave_a_gap_not_a_guess(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, owner=owner(1))
        await office.desk(2, handlers=[Double(deterministic=False)], owner=owner(2))
        spec = JobSpec(handler="double@1", rows=[{"n": 1}], verify="quorum:2", group="g")
        ident = await boss.jobs.submit(spec, agent="", group=GROUP)
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == ["no_quorum"]

    play_office(scenario, tmp_path, seed=14)
