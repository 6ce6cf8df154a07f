"""What a worker keeps until it is acknowledged: over restarts, for a day, and only so much."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import trio

from federated.jobs.canon import canonical
from federated.jobs.desk import Desk as WorkerDesk
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.handlers.registry import ANYBODY, Handlers
from federated.jobs.held import HELD_MS, Held, Put
from federated.jobs.items import Ack, Have, Offer, OfferTask, Reply, Result, Spec, Usage
from federated.jobs.items import decode_results_untrusted as results_of
from federated.jobs.types import JobSpec, PerRow
from federated.jobs.worker import Worker
from federated.jobs.worker_task import done
from memory.storage.db import Db
from tests.helpers.det import run_seeded
from tests.helpers.effect_world import BOSS, JOB, WORKERS, Door, World
from tests.helpers.jobs_kit import play_office
from tests.helpers.memories import InlineOffload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from federated.jobs.handlers.base import Batch, TaskCtx
    from federated.jobs.types import RowOut
    from federated.seams import Mesh
    from p2p.env import Env
    from tests.helpers.jobs_kit import Office

START_MS = 1_800_000_000_000
REF = (JOB, 0, 7)


SLOW = HandlerInfo(id="slow@1", kind="named", deterministic=True)


@dataclass
class Slow:
    """`slow@1`: takes two seconds a row."""

    runs: Counter[int] = field(default_factory=Counter)
    info: HandlerInfo = SLOW

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        await trio.sleep(ctx.limits.wall_s / 30)
        self.runs.update(row.k for row in batch.rows)
        return [(row.k, {"n": row.k}, "") for row in batch.rows]

    async def aclose(self) -> None:
        """Nothing is kept."""


class Clock:
    """An `Env` as far as a database and a worker ask."""

    def __init__(self) -> None:
        self.ms = START_MS

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return self.ms

    def fault(self, name: str) -> bool:  # noqa: ARG002
        return False


def with_db(folder: Path, scenario: Callable[[Db, Clock], Awaitable[None]]) -> None:
    """Run a scenario with a journal that is open."""

    async def main() -> None:
        clock = Clock()
        db = Db(folder / "jobs.db", clock, inline=True, migrations="federated.migrations")  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            await nursery.start(db.run)
            await scenario(db, clock)
            nursery.cancel_scope.cancel()

    run_seeded(main, seed=1)


def put(result: bytes = b'[[0,{"n":1}]]', *, expires_ms: int = START_MS + HELD_MS) -> Put:
    """A result of task 0, attempt 7."""
    return Put(bytes(BOSS), REF, 5, done(0, 7, result, Usage(wall_ms=3)), expires_ms)


# ---- over restarts


def test_a_result_outlives_the_worker_and_is_not_computed_again(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1)
        first, second = Slow(), Slow()
        worker = await office.desk(2, handlers=[first], slots=2)
        spec = JobSpec(handler="slow@1", rows=[{"n": n} for n in range(6)], batch=PerRow())
        ident = await boss.jobs.submit(spec, agent="", group=None)
        while not first.runs:  # noqa: ASYNC110 - virtual clock
            await trio.sleep(0.1)
        boss.scope.cancel()
        at_worker = set(range(6)) - {
            row.k for row in await rows_done(office, boss.member.number)
        }  # fmt: skip
        await trio.sleep(30)
        await office.restart(worker, handlers=[second])
        again = await office.restart(boss)
        job = again.jobs.core.job(ident)
        assert job is not None
        while not job.final:
            await again.jobs.news()
        assert await again.table(ident) == [{"n": n} for n in range(6)]
        kept = set(first.runs) & at_worker
        assert kept, "something had been computed while nobody was there to take it"
        assert not kept & set(second.runs), "and was taken over from the disk"

    play_office(scenario, tmp_path, seed=1)


@dataclass
class Done:
    """A row that is settled."""

    k: int


async def rows_done(office: Office, number: int) -> list[Done]:
    """Rows that the journal of a stopped node holds."""
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        db = Db(
            office.folder / f"jobs{number}.db", office.kit._env("look"), inline=True,
            migrations="federated.migrations",
        )  # fmt: skip
        await nursery.start(db.run)
        found = await db.read(
            lambda connection: [
                Done(int(cast("int", row[0])))
                for row in connection.execute("SELECT k FROM row WHERE state=1")
            ]
        )
        nursery.cancel_scope.cancel()
    return found


def test_an_answer_to_a_token_is_given_again_without_running() -> None:
    world = World(1).run()
    (token,) = world.paid
    i = next(i for i, node in enumerate(world.nodes) if node.desk.effect_bytes)
    node = world.nodes[i]
    node.desk.answer_have({JOB})
    node.desk.replies.clear()
    rows = b'[[0,{"n":0},"%s"]]' % token.hex().encode()
    params, columns = canonical({}), canonical([])
    spec = Spec(JOB, None, "pay@1", params, None, columns, 0, 0, 0, effect=True, reduces=False)
    node.worker._received(node.desk, spec)
    offer = Offer(JOB, 10_000, [OfferTask(0, 99, rows, False, 60_000)])
    node.worker._received(node.desk, offer)
    while node.worker._turns or node.running:
        world._work(i)
    (waiting,) = node.desk.unacked.values()
    assert waiting.result.rows == b'[[0,{"paid":true}]]'
    assert sum(world.paid.values()) == 1, "it did not run again"


# ---- the tables


def test_a_token_begins_once_and_ends_once(tmp_path: Path) -> None:
    async def scenario(db: Db, _clock: Clock) -> None:
        held = Held(db)
        until_ms = START_MS + HELD_MS
        boss, token, other = bytes(BOSS), b"t" * 32, b"u" * 32
        assert await held.begin(boss, REF, [token], until_ms) == {}
        assert await held.begin(boss, REF, [token, other], until_ms) == {token: None}
        kept = await held.load(boss, START_MS)
        assert kept.started == {REF}
        await held.finish(put(), {token: b"[0,1]"})
        assert await held.begin(boss, REF, [token, other], until_ms) == {
            token: b"[0,1]", other: None,
        }  # fmt: skip
        assert await held.begin(b"another boss", REF, [token], until_ms) == {}, "tokens are its own"
        kept = await held.load(boss, START_MS)
        assert kept.results[REF][0].rows == b'[[0,{"n":1}]]'
        assert kept.started == set(), "an attempt with a result is no unknown one"

    with_db(tmp_path, scenario)


def test_a_day_later_it_is_gone(tmp_path: Path) -> None:
    async def scenario(db: Db, _clock: Clock) -> None:
        held = Held(db)
        boss, token = bytes(BOSS), b"t" * 32
        await held.begin(boss, REF, [token], START_MS + 1000 + HELD_MS)
        await held.change([put()], [])
        await held.prune(START_MS + HELD_MS - 1)
        assert (await held.load(boss, START_MS + HELD_MS - 1)).results
        assert not (await held.load(boss, START_MS + HELD_MS)).results
        await held.prune(START_MS + HELD_MS)
        assert (await held.load(boss, 0)).results == {}
        assert (await held.load(boss, 0)).started == {REF}, "its deadline came later"
        await held.prune(START_MS + 1000 + HELD_MS)
        assert await held.begin(boss, REF, [token], START_MS) == {}

    with_db(tmp_path, scenario)


def test_what_is_acknowledged_leaves_the_disk(tmp_path: Path) -> None:
    async def scenario(db: Db, _clock: Clock) -> None:
        held = Held(db)
        await held.change([put()], [])
        await held.change([], [(b"another boss", REF)])
        assert (await held.load(bytes(BOSS), 0)).results
        await held.change([], [(bytes(BOSS), REF)])
        assert not (await held.load(bytes(BOSS), 0)).results

    with_db(tmp_path, scenario)


# ---- a coordinator that never acknowledges


def silent_boss(
    db: Db, clock: Clock, *, bytes_max: int
) -> tuple[Worker, WorkerDesk, Callable[[int], str]]:
    """A worker of echoes, what it has of a coordinator, and that one's next offer."""
    handlers = Handlers([(Echo(), ANYBODY)], named=lambda _name: None)
    worker = Worker(
        cast("Mesh", Door(WORKERS[0])), handlers, cast("Env", clock), InlineOffload(), slots=1,
        parse_template=lambda _text: lambda _row: "", held=Held(db), held_bytes_max=bytes_max,
    )  # fmt: skip
    desk = worker._desks[BOSS] = WorkerDesk(BOSS, trust="own", loaded=True)
    params, columns = canonical({}), canonical([])
    spec = Spec(JOB, None, "big@1", params, None, columns, 0, 0, 0, effect=False, reduces=False)
    worker._received(desk, spec)

    def offer(n: int) -> str:
        task = OfferTask(n, n, b'[[%d,{"text":"%s"}]]' % (n, b"x" * 10_000), False, 60_000)
        desk.replies.clear()
        worker._received(desk, Offer(JOB, 10_000, [task]))
        replies = [item for item in desk.replies if isinstance(item, Reply)]
        return replies[0].refused[0].why if replies else ""

    return worker, desk, offer


class Echo:
    """`big@1`: gives back what it got."""

    info = HandlerInfo(id="big@1", kind="named", deterministic=True)

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        return [(row.k, row.row, "") for row in batch.rows]


def test_results_of_who_never_acknowledges_are_bounded(tmp_path: Path) -> None:
    async def scenario(db: Db, clock: Clock) -> None:
        worker, desk, offer = silent_boss(db, clock, bytes_max=100_000)
        taken = 0
        while not (why := offer(taken)):
            await worker._work_on(worker._next_tasks())
            taken += 1
            assert taken < 100, "it takes for ever"
        assert why == "quota"
        assert 8 <= taken <= 11
        assert desk.held_bytes <= 111_000
        worker._received(desk, Ack(list(desk.unacked)))
        assert desk.held_bytes == 0
        assert offer(taken) == "", "whoever acknowledges goes on"

    with_db(tmp_path, scenario)


def test_without_a_session_results_wait_on_the_disk_alone(tmp_path: Path) -> None:
    async def scenario(db: Db, clock: Clock) -> None:
        worker, desk, offer = silent_boss(db, clock, bytes_max=10**9)
        for n in range(5):
            assert offer(n) == ""
            await worker._work_on(worker._next_tasks())
        await trio.sleep(2)
        await worker._saving.once()
        assert desk.unacked == {}, "memory is free again"
        assert desk.held_bytes == 0
        desk.merge(await Held(db).load(bytes(BOSS), clock.wall_ms()), trio.current_time())
        assert len(desk.unacked) == 5
        worker._received(desk, Have([JOB]))
        sent = worker._next_result(desk)
        assert isinstance(sent, Result)
        assert [one.task for one in results_of(sent.body)] == [0, 1, 2, 3, 4]
        worker._received(desk, Have([]))
        assert desk.unacked == {}, "its job is over"
        desk.scope = trio.CancelScope()
        await worker._saving.once()
        assert not (await Held(db).load(bytes(BOSS), 0)).results

    with_db(tmp_path, scenario)
