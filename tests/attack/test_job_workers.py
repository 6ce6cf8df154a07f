"""Hostile workers: whatever they answer or claim, the table is right and the daemon serves on.

Each speaks real `job.session` items to the real jobs of a coordinator, beside an honest peer. After
each, every row is right, the journal says so and holds each row once, and the next job is done.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from federated.jobs import sessions
from federated.jobs.canon import digest
from federated.jobs.items import (
    Ack,
    Beat,
    Bye,
    Credit,
    Failed,
    Have,
    Hello,
    Holding,
    Offer,
    Refusal,
    Reply,
    TaskResult,
    Usage,
)
from federated.jobs.types import Column, JobSpec, Limits, PerRow, Sum
from tests.helpers.job_rogues import ECHO, Seat, answer, echo, hello, rogue_worker
from tests.helpers.jobs_kit import GROUP, play_office
from tests.helpers.memories import InlineOffload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from federated.jobs.types import JobId
    from p2p.blobs.service import Blobs
    from tests.helpers.jobs_kit import Desk, Office

    Script = Callable[[Seat, Offer], Awaitable[None]]

pytestmark = pytest.mark.attack

ROWS: list[dict[str, object]] = [{"n": n} for n in range(24)]
OTHER_JOB = b"j" * 16


def owner(number: int) -> bytes:
    return bytes([number]) * 32


def a_job(rows: list[dict[str, object]] = ROWS, **changes: object) -> JobSpec:
    spec = JobSpec(
        handler="echo@1", rows=rows, columns=[Column(name="n", type="int")], batch=PerRow(),
        group="g", verify="adaptive", max_retries=8,
    )  # fmt: skip
    return msgspec.structs.replace(spec, **changes)


async def done(desk: Desk, spec: JobSpec) -> JobId:
    """Run a job to its end."""
    ident = await desk.jobs.submit(spec, agent="", group=GROUP)
    with trio.fail_after(400):
        await desk.jobs.finished(ident)
    return ident


async def right(desk: Desk, ident: JobId, rows: list[dict[str, object]] = ROWS) -> None:
    """The table is right, and the journal holds each row once."""
    assert await desk.table(ident) == rows
    kept = await desk.jobs.journal.rows(ident, 0, 100_000)
    assert [row.k for row in kept] == list(range(len(rows)))
    found = await desk.jobs.journal.job(ident)
    assert found is not None
    assert found.phase == "done"


def attacked(folder: Path, script: Script, **changes: object) -> dict[str, int]:
    """A job beside a rogue, then another one; how often what was counted."""
    counted: dict[str, int] = {}

    async def scenario(office: Office) -> None:
        boss = await office.desk(1, owner=owner(1))
        await office.desk(2, owner=owner(2))
        await office.desk(4, owner=owner(4))
        greet = changes.pop("greet", hello)
        rogue = await rogue_worker(office, 3, script, owner=owner(3), greet=greet)  # type: ignore[arg-type]
        await right(boss, await done(boss, a_job(**changes)))
        assert rogue.sessions, "the rogue had its chance"
        await trio.sleep(20)  # what comes late is still to come
        counted.update(boss.jobs.core.board.counters, offers=len(rogue.offers))
        await right(boss, await done(boss, a_job(ROWS[:3], **changes)), ROWS[:3])

    play_office(scenario, folder, seed=31)
    return counted


def rows_of(task_rows: bytes) -> list[list[object]]:
    found: list[list[object]] = msgspec.json.decode(task_rows)
    return found


def forged(change: Callable[[int], bytes]) -> Script:
    """Answers each task with bytes made of its row's index."""

    async def script(seat: Seat, offer: Offer) -> None:
        for task in offer.tasks:
            k = rows_of(task.rows)[0][0]
            assert isinstance(k, int)
            await seat.send(seat.signed(offer.job, answer(task, change(k))))

    return script


@pytest.mark.parametrize(
    "change",
    [
        lambda _k: b"\xff\xfe garbage",
        lambda _k: b"",
        lambda _k: b"{}",
        lambda _k: b"[[",
        lambda k: b'[[%d,{"n":NaN}]]' % k,
        lambda k: b'[[%d,{"n":1e999}]]' % k,
        lambda k: b'[[%d,{"n":%s}]]' % (k, b"9" * 4000),
        lambda k: b'[[%d,{"n":%s1%s}]]' % (k, b"[" * 5000, b"]" * 5000),
        lambda k: b'[[%d,{"n":"\\ud800"}]]' % k,
        lambda k: b'[[%d,{"n":%d,"n":"x"}]]' % (k, k),
        lambda k: b'[[%d,{"n":"%s"}]]' % (k, b"x" * 150_000),
        lambda k: b"[[%d,null,7]]" % k,
        lambda k: b'[[%d,null,"\\u001b[2J"]]' % k,
        lambda k: b"[[%d]]" % k,
        lambda k: b'[[%d,{"n":%d},1,2,3]]' % (k, k),
        lambda _k: b'[[-1,{"n":0}],[1000000,{"n":0}],["0",{}],[true,{}],[0.5,{}],[]]',
        lambda _k: b"[" + b",".join([b"[]"] * 60_000) + b"]",
        lambda _k: b"[[%s,{}]]" % (b"9" * 4000),
    ],
    ids=[
        "garbage", "nothing", "an object", "cut", "NaN", "beyond floats", "a huge number", "deep",
        "half a surrogate", "two of a key", "oversize", "a bad reason", "an escape", "no row",
        "too long", "foreign indices", "empty rows", "a huge index",
    ],
)  # fmt: skip
def test_rows_that_are_none_cost_their_own_task_a_try_and_no_more(
    tmp_path: Path, change: Callable[[int], bytes]
) -> None:
    assert attacked(tmp_path, forged(change))["offers"]


async def bad_hash(seat: Seat, offer: Offer) -> None:
    await seat.send(seat.echoed(offer, out_hash=digest(b"other rows")))


async def twice(seat: Seat, offer: Offer) -> None:
    await seat.send(*[seat.echoed(offer)] * 3)


async def late(seat: Seat, offer: Offer) -> None:
    await trio.sleep(15)
    await seat.send(seat.echoed(offer))


async def sleeps(_seat: Seat, _offer: Offer) -> None:
    await trio.sleep_forever()


async def of_another(seat: Seat, offer: Offer) -> None:
    """Results of tasks that were offered to others, whose attempts it has to guess."""
    for task in offer.tasks:
        found = echo(task)
        guesses = [
            msgspec.structs.replace(found, task=other, attempt=attempt)
            for other in range(len(ROWS))
            for attempt in (task.attempt, 0, 65_535)
            if other != task.task
        ]
        await seat.send(seat.signed(offer.job, *guesses))


async def errors_for_ever(seat: Seat, offer: Offer) -> None:
    await seat.send(seat.echoed(offer, error="busy", rows=b"", retry_ms=2**62))


async def odd_errors(seat: Seat, offer: Offer) -> None:
    await seat.send(seat.echoed(offer, error="\x1b[2J" + "x" * 5000, rows=b""))


async def refuses(seat: Seat, offer: Offer) -> None:
    refused = [Refusal((offer.job, task.task, task.attempt), "draining", 0) for task in offer.tasks]
    await seat.send(Reply([], refused))


async def refuses_and_offers_again(seat: Seat, offer: Offer) -> None:
    refused = [Refusal((offer.job, task.task, task.attempt), "policy", 0) for task in offer.tasks]
    await seat.send(Reply([], refused), Hello(1, 0, [ECHO], None))


async def claims_and_forgets(seat: Seat, offer: Offer) -> None:
    refs = [(offer.job, task.task, task.attempt) for task in offer.tasks]
    await seat.send(Reply(refs, []), Holding([]), Reply(refs, []), Holding([]))


async def boasts(seat: Seat, offer: Offer) -> None:
    """Beats with shares that are no numbers, and loads that cannot be."""
    beats = [(offer.job, task.task, task.attempt, True, math.nan) for task in offer.tasks]
    await seat.send(Beat(beats, None), Credit(2**63 - 1), Bye(2**63 - 1), Hello(1, 0, [ECHO], None))
    await seat.send(seat.echoed(offer, usage=Usage(2**63 - 1, 2**63 - 1, 2**63 - 1, 0, 0)))


@pytest.mark.parametrize(
    ("script", "counted"),
    [
        (bad_hash, "results_bad"),
        (twice, "results_twice"),
        (late, "results_late"),
        (sleeps, "attempts_lost"),
        (of_another, "results_unknown"),
        (errors_for_ever, ""),
        (odd_errors, ""),
        (refuses, ""),
        (refuses_and_offers_again, ""),
        (claims_and_forgets, "attempts_lost"),
        (boasts, ""),
    ],
)
def test_results_that_do_not_fit_are_counted_and_change_nothing(
    tmp_path: Path, script: Script, counted: str
) -> None:
    found = attacked(tmp_path, script, hedge=False)
    assert found["offers"]
    assert not counted or found[counted]


async def unsigned(seat: Seat, offer: Offer) -> None:
    await seat.send(msgspec.structs.replace(seat.echoed(offer), signature=b""))


async def signed_for_another_job(seat: Seat, offer: Offer) -> None:
    found = [echo(task) for task in offer.tasks]
    await seat.send(seat.signed(offer.job, *found, signed_job=OTHER_JOB))


async def signed_in_another_epoch(seat: Seat, offer: Offer) -> None:
    found = [echo(task) for task in offer.tasks]
    await seat.send(seat.signed(offer.job, *found, epoch=seat.epoch - 1))


def sends(make: Callable[[Seat, Offer], object]) -> Script:
    async def script(seat: Seat, offer: Offer) -> None:
        found = make(seat, offer)
        await (seat.raw(found) if isinstance(found, bytes | list) else seat.send(found))  # type: ignore[arg-type]

    return script


def result_of(task: int, attempt: int) -> list[object]:
    """A body with numbers that no field has room for."""
    result = [task, attempt, "", 0, b"", False, bytes(32), [0] * 5, False]
    return [6, OTHER_JOB, msgspec.msgpack.encode([result]), b""]


BREAKS = {
    "no signature": unsigned,
    "the signature of another job": signed_for_another_job,
    "the signature of another epoch": signed_in_another_epoch,
    "garbage": sends(lambda *_: b"\xc1" * 100),
    "nothing": sends(lambda *_: b""),
    "oversize": sends(lambda *_: bytes(300_000)),
    "deep": sends(lambda *_: b"\x91" * 100_000),
    "a negative task": sends(lambda _seat, offer: [4, [[offer.job, -1, 1]], []]),
    "a huge task": sends(lambda _seat, offer: [4, [[offer.job, 2**63, 1]], []]),
    "a huge attempt": sends(lambda _seat, offer: [12, [[offer.job, 0, 2**62, "running"]]]),
    "a beat of a negative task": sends(
        lambda _seat, offer: [5, [[offer.job, -1, -1, True, 0.5]], None]
    ),
    "a negative credit": sends(lambda *_: [10, -5]),
    "a negative wait": sends(lambda _seat, offer: [4, [], [[[offer.job, 0, 0], "busy", -9]]]),
    "a job's id of one byte": sends(lambda *_: [11, [b"j"]]),
    "a coordinator's item": sends(lambda _seat, offer: offer),
    "a list of jobs": sends(lambda *_: Have([OTHER_JOB])),
    "an acknowledgement": sends(lambda *_: Ack([])),
    "another version": sends(lambda *_: Hello(2, 0, [ECHO], None)),
    "failure": sends(lambda *_: Failed("x" * 1000, "\x1b[2J")),
}


@pytest.mark.parametrize("name", BREAKS)
def test_who_breaks_the_rules_loses_its_session_and_nothing_else(tmp_path: Path, name: str) -> None:
    assert attacked(tmp_path, BREAKS[name])["offers"]


def test_a_body_with_numbers_out_of_range_ends_the_session(tmp_path: Path) -> None:
    for number, pair in enumerate([(-1, 0), (2**40, 0), (0, -1), (0, 65_536)]):

        async def script(seat: Seat, offer: Offer, pair: tuple[int, int] = pair) -> None:
            found = result_of(*pair)
            found[1] = offer.job
            await seat.raw(found)

        folder = tmp_path / str(number)
        folder.mkdir()
        assert attacked(folder, script)["offers"]


def test_nobody_takes_a_task_by_saying_that_he_has_it(tmp_path: Path) -> None:
    """Whoever could would sit in judgement: an arbiter's and an audit's tasks are tasks, too."""

    async def script(seat: Seat, offer: Offer) -> None:
        refs = [(offer.job, task, 7) for task in range(len(ROWS) + 5)]
        await seat.send(Holding([(*ref, "running") for ref in refs]))
        lies = [
            TaskResult(task, 7, "", 0, rows, False, digest(rows), Usage(), False)
            for task in range(len(ROWS) + 5)
            for rows in [b'[[%d,{"n":-1}]]' % min(task, len(ROWS) - 1)]
        ]
        for lie in lies:
            await seat.send(seat.signed(offer.job, lie))
        await seat.send(seat.echoed(offer))

    found = attacked(tmp_path, script)
    assert found["results_unknown"] >= len(ROWS)


def test_a_million_refs_are_read_and_forgotten(tmp_path: Path) -> None:
    """Beats, replies and holdings of tasks there are not: 125 items of 8,000 refs each."""

    async def script(seat: Seat, offer: Offer) -> None:
        refs = [(offer.job, task, 7) for task in range(10_000, 18_000)]
        for _ in range(42):
            await seat.send(
                Beat([(*ref, True, 0.5) for ref in refs[:6000]], None),
                Reply(refs, []),
                Holding([(*ref, "running") for ref in refs[:6000]]),
            )
        await seat.send(seat.echoed(offer))

    assert attacked(tmp_path, script, deadline_s=300.0)["offers"]


def test_a_worker_that_does_not_read_fills_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each result of an unknown job is answered; whoever takes no answers is cut off."""

    monkeypatch.setattr(sessions, "OUTBOX_BYTES_MAX", 4 * 2**20)

    async def greet(seat: Seat) -> None:
        await hello(seat)
        for _ in range(60):
            await seat.send(Holding([(OTHER_JOB, task, 7, "running") for task in range(6000)]))
        await trio.sleep_forever()

    async def scenario(office: Office) -> None:
        boss = await office.desk(1, owner=owner(1))
        await office.desk(2, owner=owner(2))
        rogue = await rogue_worker(office, 3, sleeps, owner=owner(3), greet=greet)
        most = 0
        ident = await boss.jobs.submit(a_job(verify="none"), agent="", group=GROUP)
        with trio.move_on_after(60):
            while True:
                outbox = boss.jobs._sessions._open.get(rogue.id)
                most = max(most, outbox.bytes if outbox else 0)
                await trio.sleep(0.05)
        assert 2**20 < most <= 5 * 2**20
        await boss.jobs.finished(ident)
        await right(boss, ident)

    play_office(scenario, tmp_path, seed=32)


def test_a_device_that_changes_its_owner_between_two_votes_has_one(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, owner=owner(1))

        async def lies(seat: Seat, offer: Offer) -> None:
            office.owners[rogue.id] = owner(100 + len(rogue.offers))
            for task in offer.tasks:
                k = rows_of(task.rows)[0][0]
                await seat.send(seat.signed(offer.job, answer(task, b'[[%d,{"n":-1}]]' % k)))

        async def greet(seat: Seat) -> None:
            offered = msgspec.structs.replace(ECHO, id="echo@2")
            await seat.send(Hello(1, 0, [offered], None), Credit(9))

        rogue = await rogue_worker(office, 3, lies, owner=owner(3), greet=greet)
        spec = a_job(ROWS[:5], verify="quorum:2", handler="echo@2", max_retries=1)
        ident = await done(boss, spec)
        assert await boss.table(ident) == ["no_quorum"] * 5
        assert sum(len(offer.tasks) for offer in rogue.offers) == 5

    play_office(scenario, tmp_path, seed=33)


def test_one_wrong_pair_spoils_no_sum(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, owner=owner(1))
        await office.desk(2, owner=owner(2))

        async def script(seat: Seat, offer: Offer) -> None:
            for task in offer.tasks:
                k = rows_of(task.rows)[0][0]
                bad = b'[[%d,{"pairs":[["a",true],"b"]}]]' % k
                await seat.send(seat.signed(offer.job, answer(task, bad)))

        rogue = await rogue_worker(office, 3, script, owner=owner(3))
        rows: list[dict[str, object]] = [{"pairs": [["a", 1], ["b", 2]]}] * 20
        spec = a_job(rows, columns=[], verify="none", reduce=Sum())
        ident = await done(boss, spec)
        assert rogue.offers
        assert await boss.jobs.journal.reduced(ident, 0, 10) == [
            b'{"key":"a","sum":20}', b'{"key":"b","sum":40}',
        ]  # fmt: skip

    play_office(scenario, tmp_path, seed=34)


@pytest.mark.parametrize("hedge", [True, False])
def test_a_worker_that_beats_and_never_ends_has_its_tasks_taken(
    tmp_path: Path, *, hedge: bool
) -> None:
    async def beats(seat: Seat, offer: Offer) -> None:
        refs = [(offer.job, task.task, task.attempt) for task in offer.tasks]
        while True:
            await seat.send(Beat([(*ref, True, 0.5) for ref in refs], None))
            await trio.sleep(3)

    limits = Limits(wall_s=20)
    assert attacked(tmp_path, beats, hedge=hedge, limits=limits, verify="none")["offers"]


def test_a_worker_that_keeps_tasks_waiting_has_them_taken(tmp_path: Path) -> None:
    async def queues(seat: Seat, offer: Offer) -> None:
        refs = [(offer.job, task.task, task.attempt) for task in offer.tasks]
        while True:
            await seat.send(Beat([(*ref, False, 0.0) for ref in refs], None))
            await trio.sleep(3)

    limits = Limits(wall_s=2)
    assert attacked(tmp_path, queues, hedge=False, limits=limits, verify="none")["offers"]


def test_what_others_were_asked_is_answered_by_nobody_else(tmp_path: Path) -> None:
    """Not even with the numbers of their attempts, which it could not guess, in either job."""

    async def scenario(office: Office) -> None:
        boss = await office.desk(1, owner=owner(1))
        await office.desk(2, owner=owner(2))
        tried = 0

        async def steals(seat: Seat, offer: Offer) -> None:
            nonlocal tried
            for job in boss.jobs.core.board.live_jobs():
                stolen = [
                    (attempt.task.index, attempt.number, attempt.ks[0])
                    for attempt in job.live
                    if attempt.peer != rogue.id
                ]
                for task, number, k in stolen:
                    tried += 1
                    lie = b'[[%d,{"n":-1}]]' % k
                    result = TaskResult(
                        task, number, "", 0, lie, False, digest(lie), Usage(), False
                    )
                    ref = (bytes(job.id), task, number)
                    await seat.send(
                        seat.signed(bytes(job.id), result),
                        Reply([], [Refusal(ref, "policy", 0)]),
                        Beat([(*ref, True, 1.0)], None),
                    )
            await seat.send(seat.echoed(offer))

        rogue = await rogue_worker(office, 3, steals, owner=owner(3))
        first = await boss.jobs.submit(a_job(verify="none"), agent="", group=GROUP)
        second = await boss.jobs.submit(a_job(ROWS[:9], verify="none"), agent="", group=None)
        for ident, rows in ((first, ROWS), (second, ROWS[:9])):
            await boss.jobs.finished(ident)
            await right(boss, ident, rows)
        assert tried
        assert boss.jobs.core.board.counters["results_unknown"] >= tried

    play_office(scenario, tmp_path, seed=35)


async def names_blobs(seat: Seat, offer: Offer) -> None:
    """Answers each task with a blob that is nowhere, an id that is none, and again and again."""
    for task in offer.tasks:
        plain = answer(task, task.rows)
        for rows in (b"\x07" * 32, b"short", b""):
            named = msgspec.structs.replace(plain, rows=rows, in_blob=True)
            for _ in range(20):
                await seat.send(seat.signed(offer.job, named))
        unknown = msgspec.structs.replace(plain, attempt=task.attempt ^ 1, in_blob=True)
        await seat.send(seat.signed(offer.job, unknown))


def test_blobs_that_are_nowhere_cost_their_own_task_a_try(tmp_path: Path) -> None:
    counted = attacked(tmp_path, names_blobs)
    assert counted["results_unknown"] > 0
    assert counted["offers"] > 0


def test_a_blob_that_holds_something_else_or_too_much_is_no_answer(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        boss = await office.desk(1, owner=owner(1))
        await office.desk(2, owner=owner(2))
        await office.desk(4, owner=owner(4))
        stores: list[Blobs] = []

        async def holds_rubbish(seat: Seat, offer: Offer) -> None:
            for number, task in enumerate(offer.tasks):
                size = 300_000 if number % 2 else 3 * 2**20
                blob = await stores[0].put([b"x" * size], GROUP)
                plain = answer(task, task.rows)
                named = msgspec.structs.replace(plain, rows=bytes(blob), in_blob=True)
                await seat.send(seat.signed(offer.job, named))

        rogue = await rogue_worker(office, 3, holds_rubbish, owner=owner(3))
        member = rogue.member.node.keep_blobs(
            tmp_path / "rogue blobs", office.kit._env("rogue blobs"), InlineOffload()
        )
        member.set_readers(lambda _group, _peer: True)
        stores.append(member)
        await right(boss, await done(boss, a_job()))
        assert rogue.offers
        assert boss.jobs.core.board.counters["results_bad"] > 0
        await trio.sleep(5)
        assert await boss.blobs.listed() == [], "nothing of it stays here"

    play_office(scenario, tmp_path, seed=32)
