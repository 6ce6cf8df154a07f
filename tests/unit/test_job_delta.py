"""Delta jobs: only what is missing, disputed or in doubt is asked for again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import pytest
import trio

from daemon.methods.job_submit import SubmitTool, _submit_params
from federated.errors import PlanError
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.types import Column, JobSpec, PerRow, Sum
from tests.helpers.jobs_kit import GROUP, play_office

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.jobs.handlers.base import Batch
    from federated.jobs.state import Job
    from federated.jobs.types import JobId, RowOut
    from tests.helpers.jobs_kit import Desk, Office

P, Q = b"p" * 32, b"q" * 32
ROWS: Final[list[dict[str, object]]] = [{"n": n} for n in range(6)]


class Half:
    """`half@1`: answers a row with `n`, `twice` only once it may; odd rows never or later."""

    info: Final = HandlerInfo(id="half@1", kind="named", deterministic=False)

    def __init__(self) -> None:
        self.odd_too = False
        self.twice_too = True
        self.asked: list[object] = []
        self.partial: list[object] = []

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        return [self._one(item.k, item.row["n"], item.partial) for item in batch.rows]

    def _one(self, k: int, n: object, partial: object) -> RowOut:
        assert isinstance(n, int)
        self.asked.append(n)
        if partial is not None:
            self.partial.append(partial)
        if n % 2 and not self.odd_too:
            return k, None, "odd"
        return k, {"n": n, "twice": 2 * n if self.twice_too else None}, ""


async def _run(desk: Desk, spec: JobSpec, group: bytes | None = None) -> tuple[JobId, Job]:
    ident = await desk.jobs.submit(spec, agent="", group=group)
    await desk.jobs.finished(ident)
    job = desk.jobs.core.job(ident)
    assert job is not None
    return ident, job


def _delta(spec: JobSpec, parent: JobId, **more: object) -> JobSpec:
    return msgspec.structs.replace(spec, rows=[], gaps_of=parent.hex(), **more)


def test_only_the_gaps_are_asked_and_the_table_is_whole(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        half = Half()
        boss = await office.desk(1)
        await office.desk(2, handlers=[half])
        spec = JobSpec(handler="half@1", rows=ROWS, max_retries=0)
        first, _ = await _run(boss, spec)
        assert (await boss.table(first))[1::2] == ["odd"] * 3
        half.odd_too, half.asked = True, []
        again, job = await _run(boss, _delta(spec, first))
        assert sorted(half.asked) == [1, 3, 5]
        assert await boss.table(again) == [{"n": n, "twice": 2 * n} for n in range(6)]
        rows = await boss.jobs.journal.rows(again, 0, 10)
        assert [row.reason for row in rows] == ["kept", ""] * 3
        assert job.phase == "done"
        half.asked = []
        third, job = await _run(boss, _delta(spec, again, reduce=Sum()))
        assert (job.phase, half.asked) == ("failed", []), "the answers are no pairs"
        third, job = await _run(boss, _delta(spec, again, batch=PerRow()))
        assert (job.executions, half.asked) == (0, [])
        assert await boss.table(third) == await boss.table(again)

    play_office(scenario, tmp_path, seed=1)


def test_an_agent_says_that_a_handler_acts_on_the_world() -> None:
    tool = SubmitTool(handler="pay@1", rows=[{"n": 1}], effect="once")
    spec = _submit_params(tool).spec
    assert spec is not None
    assert spec.effect == "once"
    plain = _submit_params(SubmitTool(handler="pay@1", rows=[{"n": 1}])).spec
    assert plain is not None
    assert plain.effect == "none"


def test_named_rows_alone(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        half = Half()
        boss = await office.desk(1)
        await office.desk(2, handlers=[half])
        spec = JobSpec(handler="half@1", rows=ROWS, max_retries=0)
        first, _ = await _run(boss, spec)
        half.odd_too, half.asked = True, []
        again, _ = await _run(boss, _delta(spec, first, gap_rows=[3]))
        assert half.asked == [3]
        whole = await boss.table(again)
        assert whole[1::2] == ["odd", {"n": 3, "twice": 6}, "odd"]

    play_office(scenario, tmp_path, seed=2)


def test_what_may_have_acted_is_asked_again_only_by_name(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        half = Half()
        boss = await office.desk(1)
        await office.desk(2, handlers=[half])
        spec = JobSpec(handler="half@1", rows=ROWS, max_retries=0)
        first, _ = await _run(boss, spec)

        def unknown(connection: object) -> None:
            connection.execute(  # type: ignore[attr-defined]
                "UPDATE row SET reason='outcome_unknown' WHERE k=3"
            )

        await boss.db.write(unknown)
        half.odd_too, half.asked = True, []
        again, _ = await _run(boss, _delta(spec, first))
        assert sorted(half.asked) == [1, 5]
        assert (await boss.table(again))[3] == "outcome_unknown"
        last, _ = await _run(boss, _delta(spec, again, gap_rows=[3]))
        assert await boss.table(last) == [{"n": n, "twice": 2 * n} for n in range(6)]

    play_office(scenario, tmp_path, seed=3)


COLUMNS: Final = [Column(name="n", type="int"), Column(name="twice", type="int", required=False)]


@pytest.mark.parametrize("restart", [False, True])
def test_chosen_columns_are_merged_over_what_was_there(tmp_path: Path, restart: bool) -> None:
    async def scenario(office: Office) -> None:
        half = Half()
        boss = await office.desk(1)
        worker = await office.desk(2, handlers=[half])
        half.odd_too, half.twice_too = True, False
        spec = JobSpec(handler="half@1", rows=ROWS, columns=COLUMNS)
        first, _ = await _run(boss, spec)
        assert await boss.table(first) == [{"n": n, "twice": None} for n in range(6)]
        half.twice_too, half.odd_too = True, False
        delta = _delta(spec, first, gap_columns=["twice"], max_retries=0)
        if restart:
            worker.scope.cancel()
            ident = await boss.jobs.submit(delta, agent="", group=None)
            boss = await office.restart(boss)
            await office.restart(worker, handlers=[half])
            job = boss.jobs.core.job(ident)
            assert job is not None
            while not job.final:
                await boss.jobs.news()
        else:
            ident, job = await _run(boss, delta)
        assert await boss.table(ident) == [
            {"n": n, "twice": None if n % 2 else 2 * n} for n in range(6)
        ], "the odd ones keep what they had"
        assert job.phase == "done"
        assert {"n": 0, "twice": None} in half.partial, "the worker sees what is there"

    play_office(scenario, tmp_path, seed=4)


def test_what_is_no_delta_job_is_refused(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2)
        spec = JobSpec(handler="echo@1", rows=[{"n": 1}])
        first, _ = await _run(boss, spec)
        live = await boss.jobs.submit(
            JobSpec(handler="nobody@1", rows=[{"n": 1}]), agent="", group=None
        )
        good = _delta(spec, first)
        _, job = await _run(boss, good)
        assert (job.phase, job.executions) == ("done", 0), "what has no gaps is whole"
        for changed, path in (
            ({"rows": [{"n": 1}]}, "rows"),
            ({"gaps_of": "00"}, "gaps_of"),
            ({"gaps_of": "no hex"}, "gaps_of"),
            ({"gaps_of": live.hex()}, "gaps_of"),
            ({"columns": COLUMNS}, "columns"),
            ({"gaps_of": None, "gap_rows": [1]}, "gap_rows"),
            ({"gaps_of": None, "gap_columns": ["n"]}, "gap_columns"),
        ):
            with pytest.raises(PlanError) as refused:
                await boss.jobs.submit(
                    msgspec.structs.replace(good, **changed), agent="", group=None
                )
            assert refused.value.path == path
        with pytest.raises(PlanError, match="no such job"):
            await boss.jobs.submit(good, agent="somebody else", group=None)

    play_office(scenario, tmp_path, seed=5)


class Liar:
    """`echo@1`, but rows with a `bait` get a lie."""

    info: Final = HandlerInfo(id="echo@1", kind="named", deterministic=True)

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        return [
            (item.k, {**item.row, "n": -1} if "bait" in item.row else item.row, "")
            for item in batch.rows
        ]


def test_what_a_caught_owner_alone_gave_is_tainted_in_finished_jobs_and_asked_again(
    tmp_path: Path,
) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        await office.desk(2, owner=P, handlers=[Liar()])
        spec = JobSpec(
            handler="echo@1", rows=[{"n": 1}, {"n": 2, "bait": 1}], verify="none", deadline_s=120
        )
        alone, _ = await _run(boss, spec, GROUP)
        assert await boss.table(alone) == [{"n": 1}, {"n": -1, "bait": 1}]
        await office.desk(3, owner=Q)
        both = JobSpec(handler="echo@1", rows=[{"n": 3}], verify="quorum:2", deadline_s=120)
        agreed, _ = await _run(boss, both, GROUP)
        heard: list[tuple[JobId, str]] = []
        boss.jobs.on_event(lambda job, _seq, kind, _body: heard.append((job, kind)))
        bait = msgspec.structs.replace(both, rows=[{"n": 4, "bait": 1}])
        await _run(boss, bait, GROUP)
        assert (alone, "tainted") in heard
        assert (agreed, "tainted") not in heard, "another owner vouches for it"
        assert await boss.jobs.journal.marks(alone) == {"tainted": 2}
        last = (await boss.jobs.journal.events(alone, 0, 100))[-1]
        assert (last.kind, last.body) == ("tainted", b'{"rows":2,"ks":[0,1]}')
        again, job = await _run(boss, _delta(spec, alone), GROUP)
        assert job.executions > 0
        assert await boss.table(again) == [{"n": 1}, {"n": 2, "bait": 1}]
        assert await boss.jobs.journal.marks(again) == {}

    play_office(scenario, tmp_path, seed=6)


def test_what_was_taken_alone_is_known_after_a_restart(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        spec = JobSpec(handler="nobody@1", rows=[{"n": n} for n in range(4)])
        await office.desk(2)
        ident = await boss.jobs.submit(spec, agent="", group=None)

        def alone(connection: object) -> None:
            connection.execute(  # type: ignore[attr-defined]
                "UPDATE row SET state=1, level=k, agreed=?, value=CAST('{}' AS BLOB)"
                " WHERE k IN (1, 2)",
                (P,),
            )

        await boss.db.write(alone)
        assert await boss.jobs.journal.alone() == [(P, "nobody@1", (ident, 1))]
        again = await office.restart(boss)
        assert again.jobs.core.board.reputation._alone == {(P, "nobody@1"): [(ident, 1)]}

    play_office(scenario, tmp_path, seed=7)


def test_the_operator_lifts_a_quarantine_for_good(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        liar = await office.desk(2, owner=P, handlers=[Liar()])
        await office.desk(3, owner=Q)
        spec = JobSpec(
            handler="echo@1", rows=[{"n": 4, "bait": 1}], verify="quorum:2", deadline_s=120
        )
        await _run(boss, spec, GROUP)
        reputation = boss.jobs.core.board.reputation
        (one,) = reputation.quarantines(boss.jobs._env.wall_ms())
        assert (one.owner, one.handler, one.times, one.devices) == (P, "echo@1", 1, (liar.id,))
        assert await boss.jobs.lift(P)
        assert not await boss.jobs.lift(P)
        assert reputation.quarantines(boss.jobs._env.wall_ms()) == []
        await trio.sleep(1)
        again = await office.restart(boss)
        reputation = again.jobs.core.board.reputation
        assert reputation.quarantines(again.jobs._env.wall_ms()) == []
        assert not reputation.quarantined(P, liar.id, "echo@1", again.jobs._env.wall_ms())

    play_office(scenario, tmp_path, seed=8)


def test_an_agent_names_only_the_job_whose_gaps_it_wants_filled() -> None:
    tool = msgspec.json.decode(b'{"gaps_of": "3f2a"}', type=SubmitTool)
    spec = _submit_params(tool).spec
    assert spec is not None
    assert (spec.handler, spec.rows, spec.gaps_of) == ("", [], "3f2a")
