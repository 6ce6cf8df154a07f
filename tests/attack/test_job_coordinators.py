"""Hostile coordinators: whatever they send, the worker's memory is bounded and others are served.

Each opens a real `job.session` with the real worker of a node, as a stranger of a group. Meanwhile
and afterwards an honest coordinator has its rows computed by that same worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from federated.jobs import worker
from federated.jobs.desk import REPLIES_MAX
from federated.jobs.handlers.base import HandlerInfo, TaskLimits
from federated.jobs.items import (
    Ack,
    Beat,
    Cancel,
    Cancelled,
    Credit,
    Failed,
    Have,
    Hello,
    Holding,
    Offer,
    OfferTask,
    Reply,
    Result,
    decode_results_untrusted,
)
from federated.jobs.limits import SPECS_BYTES_MAX, STRANGER_TASKS_MAX
from federated.jobs.quota import BURST_S, BYTES_PER_S, HOUR_S, Pace, WorkQuota
from federated.jobs.types import JobSpec, PerRow
from p2p.errors import P2pError
from tests.helpers.job_rogues import offer_of, rogue_member, rogue_session, spec_of
from tests.helpers.jobs_kit import play_office

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from federated.jobs.desk import Desk as WorkerDesk
    from federated.jobs.handlers.base import Batch, TaskCtx
    from federated.jobs.types import RowOut
    from tests.helpers.fabrics import NodeMember
    from tests.helpers.job_rogues import RogueCoordinator
    from tests.helpers.jobs_kit import Desk, Office

pytestmark = pytest.mark.attack

JOB, OTHER = b"j" * 16, b"k" * 16
ROW = b'[[0,{"n":0}]]'


def owner(number: int) -> bytes:
    return bytes([number]) * 32


class Slow:
    """`slow@1`: takes ten seconds a task."""

    info = HandlerInfo(id="slow@1", kind="named", deterministic=False, limits=TaskLimits(wall_s=60))

    async def run(self, batch: Batch, _ctx: TaskCtx) -> Sequence[RowOut]:
        await trio.sleep(10)
        return [(item.k, item.row, "") for item in batch.rows]

    async def aclose(self) -> None:
        return


class Scene:
    """An honest coordinator, a worker, and a rogue who shares a group with both."""

    def __init__(self, office: Office, boss: Desk, worker: Desk, rogue: NodeMember) -> None:
        self.office = office
        self.boss = boss
        self.worker = worker
        self.rogue = rogue

    @property
    def desk(self) -> WorkerDesk:
        """What the rogue has at the worker."""
        return self.worker.jobs.worker._desks[self.rogue.id]

    async def served(self, count: int = 10) -> None:
        """The worker computes rows for the honest one."""
        rows: list[dict[str, object]] = [{"n": n} for n in range(count)]
        spec = JobSpec(handler="echo@1", rows=rows, batch=PerRow(), verify="none")
        ident = await self.boss.jobs.submit(spec, agent="", group=None)
        with trio.fail_after(60):
            await self.boss.jobs.finished(ident)
        assert await self.boss.table(ident) == rows


def attack(folder: Path, act: Callable[[Scene], Awaitable[None]], *, slots: int = 2) -> None:
    """Play an attack, then have the honest one served."""

    async def scenario(office: Office) -> None:
        desk = await office.desk(2, owner=owner(1), handlers=[Slow()], slots=slots)
        boss = await office.desk(1, owner=owner(1))
        rogue = await rogue_member(office, 3, owner=owner(3))
        scene = Scene(office, boss, desk, rogue)
        await act(scene)
        await scene.served()

    play_office(scenario, folder, seed=41)


def whys(rogue: RogueCoordinator) -> list[str]:
    """Why tasks were refused."""
    return [
        refusal.why
        for item in rogue.of(Reply)
        if isinstance(item, Reply)
        for refusal in item.refused
    ]


def errors(rogue: RogueCoordinator) -> list[str]:
    """What became of tasks: empty for those that have an answer."""
    return [
        result.error
        for item in rogue.of(Result)
        if isinstance(item, Result)
        for result in decode_results_untrusted(item.body)
    ]


def raw(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1" * 100,
        b"",
        bytes(300_000),
        b"\x91" * 100_000,
        raw([3, JOB, -1, []]),
        raw([3, JOB, 1, [[-1, 0, ROW, False, 1]]]),
        raw([3, JOB, 1, [[2**40, 0, ROW, False, 1]]]),
        raw([3, JOB, 1, [[0, 2**16, ROW, False, 1]]]),
        raw([3, JOB, 1, [[0, 0, ROW, False, 2**64 - 1]]]),
        raw([3, b"j", 1, []]),
        raw([1, 1, 2**64 - 1, [], None]),
        raw([1, 2, 1, [], None]),
        raw([2, JOB, None, "echo@1", b"[", None, b"[]", 0, 0, 0, False, False]),
        raw([2, JOB, None, "echo@1", b"[" * 100_000, None, b"[]", 0, 0, 0, False, False]),
        raw([2, JOB, None, "echo@1", b"{}", None, b'[{"name":1}]', 0, 0, 0, False, False]),
        raw([2, JOB, None, "echo@1", b"{}", "{{a}}" * 300, b"[]", 0, 0, 0, False, False]),
        raw([3, JOB, 1, [[task, 0, b"", False, 1] for task in range(65)]]),
        msgspec.msgpack.encode(Beat([], None)),
        msgspec.msgpack.encode(Credit(5)),
    ],
    ids=[
        "garbage", "nothing", "oversize", "deep", "a negative lease", "a negative task",
        "a huge task", "a huge attempt", "a huge deadline", "a short id", "a huge epoch",
        "another version", "bad params", "deep params", "bad columns", "a template of 300 fields",
        "65 tasks at once", "a worker's beat", "a worker's credit",
    ],
)  # fmt: skip
def test_who_breaks_the_rules_is_told_and_loses_its_session(tmp_path: Path, data: bytes) -> None:
    async def act(scene: Scene) -> None:
        ended = False
        async with rogue_session(scene.rogue, scene.worker) as rogue:
            await rogue.until(Hello)
            try:
                await rogue.call.send(data)
                with trio.move_on_after(5):
                    await rogue.until(Failed)
                while scene.desk.scope is not None:  # noqa: ASYNC110 - under a virtual clock
                    await trio.sleep(0.01)
                ended = True
            except P2pError:
                ended = True
        await trio.sleep(1)
        assert scene.desk.scope is None
        del ended

    attack(tmp_path, act)


def test_what_is_not_offered_looks_like_what_there_is_not(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        async with rogue_session(scene.rogue, scene.worker) as rogue:
            await rogue.send(offer_of(OTHER, ROW))
            for handler in ("expr:@1.4.0", "exec@1", "files.list@1", "nothing@1"):
                await rogue.send(spec_of(JOB, handler), offer_of(JOB, ROW))
            await rogue.send(spec_of(JOB, "echo@1", group=b"x" * 32), offer_of(JOB, ROW, first=9))
            await rogue.until(Reply, 5)
            await trio.sleep(1)
            assert set(whys(rogue)) == {"policy"}
            assert not scene.desk.tasks

    attack(tmp_path, act)


def test_a_stranger_may_leave_eight_tasks_and_no_more(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        async with rogue_session(scene.rogue, scene.worker) as rogue:
            (told,) = await rogue.until(Credit)
            assert told == Credit(STRANGER_TASKS_MAX)
            await rogue.send(spec_of(JOB, "slow@1"), offer_of(JOB, *[ROW] * 60))
            await rogue.until(Reply)
            assert whys(rogue) == ["busy"] * (60 - STRANGER_TASKS_MAX)
            assert len(scene.desk.tasks) == STRANGER_TASKS_MAX

    attack(tmp_path, act)


def test_offers_taken_back_leave_nothing_behind(tmp_path: Path) -> None:
    """While its slots are taken, a worker is offered tasks and told to forget them, often."""

    async def act(scene: Scene) -> None:
        large = b'[[0,{"n":"%s"}]]' % (b"x" * 100_000)
        async with rogue_session(scene.rogue, scene.worker) as rogue:
            await rogue.send(spec_of(JOB, "slow@1"), spec_of(OTHER, "slow@1"))
            await rogue.send(offer_of(OTHER, ROW, ROW))
            for turn in range(100):
                await rogue.send(offer_of(JOB, large, first=turn + 5))
                await rogue.send(Cancel(JOB, [(turn + 5, 0)], False))
            await rogue.until(Cancelled, 100)
            assert len(scene.desk.tasks) == 2
            assert len(scene.desk.queue) == 1
            assert len(scene.worker.jobs.worker._turns) <= 2

    attack(tmp_path, act, slots=1)


def test_specs_are_bounded_in_number_and_in_bytes(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        for params, most in ((b"{}", 64), (b'{"x":"%s"}' % (b"x" * 200_000), 20)):
            async with rogue_session(scene.rogue, scene.worker) as rogue:
                await rogue.send(Have([]))
                for number in range(70):
                    ident = number.to_bytes(16, "big")
                    await rogue.send(spec_of(ident, params=params))
                await trio.sleep(5)
                assert 0 < len(scene.desk.jobs) <= most
                kept = sum(len(job.spec.params) for job in scene.desk.jobs.values())
                assert kept <= SPECS_BYTES_MAX
                assert (69).to_bytes(16, "big") in scene.desk.jobs, "the newest has room"
                assert len(scene.desk.left_out) == 70 - len(scene.desk.jobs)
                assert scene.desk.scope is not None, "an honest coordinator may come to this"

    attack(tmp_path, act)


def test_rows_that_are_none_fail_their_task_alone(tmp_path: Path) -> None:
    bad = [
        b'[[0,{"n":NaN}]]', b"[" * 50_000, b"", b"{}", b'[[-1,{}]]', b'[[0,{}],[0,{}]]',
        b'[[0,{},"zz"]]', b"[[%s,{}]]" % (b"9" * 4000),
    ]  # fmt: skip

    async def act(scene: Scene) -> None:
        async with rogue_session(scene.rogue, scene.worker) as rogue:
            await rogue.send(spec_of(JOB), offer_of(JOB, *bad))
            while len(errors(rogue)) < len(bad):  # noqa: ASYNC110 - under a virtual clock
                await trio.sleep(0.01)
            assert errors(rogue) == ["bad_rows"] * len(bad)

    attack(tmp_path, act)


def test_a_template_that_multiplies_its_cells_is_not_filled(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        async with rogue_session(scene.rogue, scene.worker) as rogue:
            await rogue.send(spec_of(JOB, "wordcount@1", template="{{a}}" * 250))
            await rogue.send(offer_of(JOB, b'[[0,{"a":"%s"}]]' % (b"x" * 60_000)))
            await rogue.until(Result)
            assert errors(rogue) == ["bad_rows"]

    attack(tmp_path, act)


@pytest.mark.parametrize("deadline_ms", [0, 2**63 - 1])
def test_odd_times_end_a_task_or_do_nothing(tmp_path: Path, deadline_ms: int) -> None:
    async def act(scene: Scene) -> None:
        async with rogue_session(scene.rogue, scene.worker) as rogue:
            await rogue.send(spec_of(JOB, "slow@1", wall_ms=1))
            tasks = [OfferTask(0, 0, ROW, False, deadline_ms)]
            await rogue.send(Offer(JOB, 2**63 - 1, tasks))
            await rogue.until(Result)
            assert errors(rogue) == ["timeout" if deadline_ms > 0 else "deadline"]

    attack(tmp_path, act)


def test_a_coordinator_that_does_not_read_is_not_read(tmp_path: Path) -> None:
    """Each `have` is answered; who takes no answers is heard no more, and left after a while."""

    async def act(scene: Scene) -> None:
        async with rogue_session(scene.rogue, scene.worker, reads=False) as rogue:
            await rogue.send(spec_of(JOB, "slow@1"), offer_of(JOB, *[ROW] * 8))
            await trio.sleep(1)

            async def flood() -> None:
                jobs = [n.to_bytes(16, "big") for n in range(10_000)]
                while True:
                    await rogue.send(Have([JOB, *jobs]))
                    await rogue.send(offer_of(OTHER, *[b""] * 64))

            most = 0
            with trio.move_on_after(120):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(flood)
                    while scene.desk.scope is not None:
                        most = max(most, len(scene.desk.replies))
                        await trio.sleep(0.05)
                    nursery.cancel_scope.cancel()
            assert REPLIES_MAX < most <= REPLIES_MAX + 8
            assert scene.desk.scope is None, "it took nothing for half a minute"

    attack(tmp_path, act)


def test_a_newer_session_ends_the_older_and_tasks_are_not_doubled(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        async with rogue_session(scene.rogue, scene.worker) as older:
            await older.send(Have([JOB]), spec_of(JOB, "slow@1"), offer_of(JOB, ROW))
            await older.until(Holding)
            await trio.sleep(0.5)
            async with rogue_session(scene.rogue, scene.worker) as newer:
                await newer.send(Have([JOB]), offer_of(JOB, ROW))
                (holding,) = await newer.until(Holding)
                assert holding == Holding([(JOB, 0, 0, "running")])
                await newer.until(Result)
                assert len(older.of(Result)) == 0
                assert len(newer.of(Result)) == 1
                await newer.send(Ack([(JOB, 0, 0)]))
                await trio.sleep(0.5)
                assert not scene.desk.unacked

    attack(tmp_path, act)


def test_an_epoch_that_was_left_is_refused(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        async with rogue_session(scene.rogue, scene.worker, epoch=9) as rogue:
            await rogue.until(Hello)
        async with rogue_session(scene.rogue, scene.worker, epoch=8) as rogue:
            await rogue.send(spec_of(JOB), offer_of(JOB, ROW))
            await rogue.until(Reply)
            assert whys(rogue) == ["stale_epoch"]

    attack(tmp_path, act)


def test_results_nobody_acknowledges_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "UNACKED_MAX", 100)

    async def act(scene: Scene) -> None:
        async with rogue_session(scene.rogue, scene.worker) as rogue:
            await rogue.send(spec_of(JOB))
            for turn in range(30):
                await rogue.send(offer_of(JOB, *[ROW] * 8, first=turn * 8))
                await trio.sleep(0.1)
            assert len(scene.desk.unacked) <= 100 + STRANGER_TASKS_MAX
            assert "busy" in whys(rogue)
            await rogue.send(Have([]))
            await rogue.until(Holding)
            assert not scene.desk.unacked
            assert scene.desk.held_bytes == 0

    attack(tmp_path, act)


def test_who_had_its_hour_of_work_gets_no_more_under_whatever_owner(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        scene.worker.jobs.worker._quota = WorkQuota(stranger_s_per_h=25)
        async with rogue_session(scene.rogue, scene.worker) as rogue:
            await rogue.send(spec_of(JOB, "slow@1"))
            for task in range(3):
                await rogue.send(offer_of(JOB, ROW, first=task))
                await rogue.until(Result, task + 1)
            await rogue.send(offer_of(JOB, ROW, first=5))
            await rogue.until(Reply)
            assert whys(rogue) == ["quota"]
            scene.office.owners[scene.rogue.id] = owner(77)
            await rogue.send(offer_of(JOB, ROW, first=6))
            await rogue.until(Reply, 2)
            assert whys(rogue) == ["quota"] * 2
            # An own device is not counted.
            await scene.served()

    attack(tmp_path, act)


def test_a_flood_is_read_no_faster_than_it_may_come(tmp_path: Path) -> None:
    """Forty seconds of flooding: what the worker took of it, and others beside it."""

    async def act(scene: Scene) -> None:
        taken = 0
        async with rogue_session(scene.rogue, scene.worker) as rogue:

            async def flood() -> None:
                nonlocal taken
                data = spec_of(JOB, params=b'{"x":"%s"}' % (b"x" * 250_000))
                while True:
                    await rogue.send(data)
                    taken += 250_000

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                await trio.sleep(2)
                await scene.served(20)
                await trio.sleep(8)
                nursery.cancel_scope.cancel()
        assert 2**20 < taken <= (10 + BURST_S + 5) * BYTES_PER_S

    attack(tmp_path, act)


def test_quotas_count_the_last_hour_alone() -> None:
    quota = WorkQuota(friend_s_per_h=100, stranger_s_per_h=10)
    assert not quota.spent(b"o", b"d", "stranger", 0.0)
    quota.charge(b"o", b"d", "stranger", 10, 0.0)
    assert quota.spent(b"o", b"d", "stranger", 1.0)
    assert quota.spent(b"o", b"another", "stranger", 1.0), "the owner's other device"
    assert quota.spent(b"another", b"d", "stranger", 1.0), "the device under another owner"
    assert not quota.spent(b"o", b"d", "friend", 1.0)
    assert not quota.spent(b"o", b"d", "own", 1.0)
    assert quota.spent(b"o", b"d", "stranger", HOUR_S - 1)
    assert not quota.spent(b"o", b"d", "stranger", HOUR_S)
    quota.charge(b"mine", b"mine", "own", 1e9, 0.0)
    assert not quota.spent(b"mine", b"mine", "stranger", 0.0)
    assert WorkQuota(stranger_s_per_h=0).spent(b"o", b"d", "stranger", 0.0)


def test_many_owners_do_not_fill_the_books() -> None:
    quota = WorkQuota()
    for number in range(30_000):
        quota.charge(number.to_bytes(32, "big"), b"d", "stranger", 0.001, 0.0)
    assert len(quota._used) <= 10_001


def test_a_pace_is_the_rate_after_a_burst() -> None:
    pace = Pace(0.0)
    assert pace.wait_s(2**40, "own", 0.0) == 0
    assert pace.wait_s(BYTES_PER_S, "stranger", 0.0) == 0
    assert pace.wait_s(2 * BYTES_PER_S, "stranger", 0.0) == pytest.approx(3 - BURST_S)
    assert pace.wait_s(0, "stranger", 100.0) == 0
