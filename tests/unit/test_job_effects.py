"""Effects: what a job says of them, what runs, what a row says whose outcome nobody knows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from federated.errors import HandlerError, PlanError
from federated.jobs.handlers.base import HandlerInfo, TaskLimits
from federated.jobs.types import Column, JobSpec, PerRow
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.jobs.handlers.base import Batch, TaskCtx
    from federated.jobs.types import RowOut
    from tests.helpers.jobs_kit import Desk, Office

PAY = JobSpec(
    handler="pay@1", rows=[{"n": n} for n in range(4)], effect="once", batch=PerRow(),
    deadline_s=200,
)  # fmt: skip


@dataclass
class Pay:
    """`pay@1`: acts, and then does what the test says."""

    paid: Counter[bytes] = field(default_factory=Counter)
    takes_s: float = 0.0
    raises: bool = False
    silent: bool = False
    idempotent: bool = False
    effect: bool = True
    runs: int = 0

    @property
    def info(self) -> HandlerInfo:
        return HandlerInfo(
            id="pay@1", kind="named", deterministic=False, effect=self.effect,
            idempotent_by_token=self.idempotent, limits=TaskLimits(wall_s=30),
        )  # fmt: skip

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        self.runs += 1
        for row in batch.rows:
            assert row.token is not None
            assert ctx.tokens[row.k] == row.token
            self.paid[row.token] += 1
        await trio.sleep(self.takes_s)
        if self.raises:
            raise HandlerError("unavailable")
        return [] if self.silent else [(row.k, {"paid": True}, "") for row in batch.rows]

    async def aclose(self) -> None:
        """Nothing is kept."""


async def ended(desk: Desk, spec: JobSpec = PAY) -> list[dict[str, object] | str]:
    """The rows of a job when it is over."""
    ident = await desk.jobs.submit(spec, agent="", group=None)
    await desk.jobs.finished(ident)
    return await desk.table(ident)


def test_each_row_acts_once_under_a_token_of_its_own(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        pay = Pay()
        await office.desk(2, handlers=[pay])
        same = msgspec.structs.replace(PAY, rows=[{"n": 1}] * 4)
        assert await ended(boss, same) == [{"paid": True}] * 4
        assert sorted(pay.paid.values()) == [1] * 4, "equal rows are different effects"
        assert await ended(boss, same) == [{"paid": True}] * 4
        assert len(pay.paid) == 8, "another job pays again: no answer is taken from a cache"

    play_office(scenario, tmp_path, seed=1)


@pytest.mark.parametrize(
    ("pay", "reason"),
    [
        (Pay(raises=True), "outcome_unknown"),
        (Pay(silent=True), "outcome_unknown"),
        (Pay(takes_s=60), "outcome_unknown"),
    ],
)
def test_an_error_leaves_the_outcome_unknown_and_nothing_runs_again(
    tmp_path: Path, pay: Pay, reason: str
) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2, handlers=[pay])
        await office.desk(3, handlers=[pay])
        assert await ended(boss) == [reason] * 4
        assert sorted(pay.paid.values()) == [1] * 4

    play_office(scenario, tmp_path, seed=2)


def test_an_answer_of_no_use_does_not_make_it_happen_again(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        pay = Pay()
        await office.desk(2, handlers=[pay])
        spec = msgspec.structs.replace(PAY, columns=[Column(name="paid", type="int")])
        assert await ended(boss, spec) == ["outcome_unknown"] * 4
        assert sorted(pay.paid.values()) == [1] * 4

    play_office(scenario, tmp_path, seed=10)


def test_filling_gaps_runs_no_effect_again_that_may_have_happened(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        pay = Pay(raises=True)
        await office.desk(2, handlers=[pay])
        ident = await boss.jobs.submit(PAY, agent="", group=None)
        await boss.jobs.finished(ident)
        again = msgspec.structs.replace(PAY, rows=[], gaps_of=ident.hex())
        assert await ended(boss, again) == ["outcome_unknown"] * 4
        assert len(pay.paid) == 4
        pay.raises = False
        named = msgspec.structs.replace(again, gap_rows=[1])
        found = await ended(boss, named)
        assert found == ["outcome_unknown", {"paid": True}, "outcome_unknown", "outcome_unknown"]
        assert len(pay.paid) == 5, "whoever names a row wants it run"

    play_office(scenario, tmp_path, seed=11)


def test_a_handler_that_may_run_twice_is_asked_again(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        bad, good = Pay(raises=True, idempotent=True), Pay(idempotent=True)
        boss = await office.desk(1, handlers=[Pay(idempotent=True)])
        await office.desk(2, handlers=[bad])
        await office.desk(3, handlers=[good], owner=b"q" * 32)
        spec = msgspec.structs.replace(PAY, max_retries=50)
        assert await ended(boss, spec) == [{"paid": True}] * 4
        assert bad.paid, "it was asked too"
        assert set(bad.paid) <= set(good.paid), "with the same tokens"

    play_office(scenario, tmp_path, seed=3)


def test_a_worker_that_declares_another_effect_refuses(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        pure = Pay(effect=False)
        worker = await office.desk(2, handlers=[pure])
        ident = await boss.jobs.submit(
            msgspec.structs.replace(PAY, deadline_s=30), agent="", group=None
        )
        await trio.sleep(10)
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert (job.phase, job.reason) == ("queued", "no_eligible_peer")
        # A coordinator that offers it all the same is refused.
        cell = boss.jobs.core.board.peers[worker.id]
        lied = msgspec.structs.replace(cell.handlers["pay@1"], effect=True)
        cell.handlers["pay@1"] = lied
        await trio.sleep(5)
        assert pure.runs == 0
        assert "pay@1" not in cell.handlers, "it said `version`"
        await boss.jobs.finished(ident)
        assert await boss.table(ident) == ["deadline"] * 4

    play_office(scenario, tmp_path, seed=4)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"verify": "quorum:2"}, "verify"),
        ({"verify": "spot:.1"}, "verify"),
        ({"engine": "dask://127.0.0.1:1"}, "engine"),
        ({"handler": "echo@1"}, "effect"),
        ({"effect": "none"}, "effect"),
    ],
)
def test_a_spec_says_of_its_effect_what_can_be_kept(
    tmp_path: Path, change: dict[str, str], path: str
) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, handlers=[Pay()])
        await office.desk(2)
        spec = msgspec.structs.replace(PAY, **change)
        with pytest.raises(PlanError) as refused:
            await boss.jobs.submit(spec, agent="", group=None)
        assert (refused.value.reason, refused.value.path) == ("bad_spec", path)

    play_office(scenario, tmp_path, seed=5)


def test_what_was_out_at_the_deadline_is_unknown_and_the_rest_is_not(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        pay = Pay(takes_s=1000)
        worker = await office.desk(2, handlers=[pay], slots=1)
        spec = msgspec.structs.replace(PAY, deadline_s=20)
        ident = await boss.jobs.submit(spec, agent="", group=None)
        while not pay.runs:  # noqa: ASYNC110 - a virtual clock
            await trio.sleep(0.1)
        worker.scope.cancel()
        worker.member.scope.cancel()
        await boss.jobs.finished(ident)
        found = await boss.table(ident)
        assert found.count("outcome_unknown") == 1, "one was at the worker"
        assert found.count("deadline") == 3, "the others never left"

    play_office(scenario, tmp_path, seed=6)


def test_a_worker_that_comes_back_says_what_it_began(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        pay = Pay(takes_s=20)
        worker = await office.desk(2, handlers=[pay], slots=1)
        ident = await boss.jobs.submit(PAY, agent="", group=None)
        while not pay.runs:  # noqa: ASYNC110 - a virtual clock
            await trio.sleep(0.1)
        again = Pay()
        await office.restart(worker, handlers=[again])
        await boss.jobs.finished(ident)
        found = await boss.table(ident)
        assert found.count("outcome_unknown") == 1
        assert found.count({"paid": True}) == 3
        assert not set(pay.paid) & set(again.paid), "what began did not begin again"

    play_office(scenario, tmp_path, seed=7)


def test_a_coordinator_that_comes_back_waits_for_what_is_out(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        pay = Pay(takes_s=20)
        await office.desk(2, handlers=[pay], slots=1)
        other = Pay()
        ident = await boss.jobs.submit(PAY, agent="", group=None)
        while not pay.runs:  # noqa: ASYNC110 - a virtual clock
            await trio.sleep(0.1)
        await office.desk(3, handlers=[other])
        boss = await office.restart(boss)
        job = boss.jobs.core.job(ident)
        assert job is not None
        assert len(job.live) == 1, "it knows that one is out"
        while not job.final:
            await boss.jobs.news()
        assert await boss.table(ident) == [{"paid": True}] * 4
        assert max((pay.paid + other.paid).values()) == 1

    play_office(scenario, tmp_path, seed=8)


def test_a_cancelled_effect_is_unknown(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        pay = Pay(takes_s=20)
        await office.desk(2, handlers=[pay], slots=1)
        ident = await boss.jobs.submit(PAY, agent="", group=None)
        while not pay.runs:  # noqa: ASYNC110 - a virtual clock
            await trio.sleep(0.1)
        await boss.jobs.cancel(ident)
        await boss.jobs.finished(ident)
        found = await boss.table(ident)
        assert "outcome_unknown" in found
        assert set(map(str, found)) == {"outcome_unknown", "cancelled"}

    play_office(scenario, tmp_path, seed=9)
