"""The typed clients of jobs, blocking and in trio, against a daemon that is killed meanwhile."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from daemon.client import CallFailed, LocalClient
from daemon.job_client import PAGE, BlockingJobs, Jobs
from daemon.methods.job_lookup import JobState
from federated.jobs.types import JobSpec, Limits, PerRow, TopK
from tests.helpers.daemons import Home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.methods.job_events import JobEvent

TEXTS = [{"text": "the cat and the dog"}, {"text": "the end"}, {"n": 3}]
TOP = [{"key": "the", "sum": 3}, {"key": "and", "sum": 1}]
STEPS = 64


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("jc"), "alone")
    made.up()
    yield made
    made.stop()


def socket_of(home: Home) -> str:
    return str(home.folder / "run" / "daemon.sock")


def words(**more: object) -> JobSpec:
    return JobSpec(handler="wordcount@1", rows=TEXTS, engine="local", cache="off", **more)  # type: ignore[arg-type]


def waiting_job() -> JobSpec:
    """A job that asks after one execution whether to go on, and so is under way until told."""
    return JobSpec(
        handler="echo@1",
        rows=[{"n": n} for n in range(STEPS)],
        engine="local",
        batch=PerRow(),
        limits=Limits(executions=1),
        cache="off",
    )


def states(events: list[JobEvent]) -> list[object]:
    return [event.data["state"] for event in events if event.name == "state"]  # type: ignore[index]


def test_a_program_that_waits_gets_structs(home: Home) -> None:
    with BlockingJobs.open(socket_of(home)) as jobs:
        assert "wordcount@1" in {handler.id for handler in jobs.handlers()}
        ident = jobs.submit(words(reduce=TopK(n=2)), key="once")
        assert jobs.submit(words(reduce=TopK(n=2)), key="once") == ident
        state = jobs.wait(ident)
        assert (state.state, state.by_state["ok"], state.by_state["missing"]) == ("done", 2, 1)
        assert list(jobs.reduced(ident)) == TOP
        rows = list(jobs.rows(ident))
        assert [row.reason for row in rows] == ["", "", "no_text"]
        assert jobs.result(ident, limit=1, raw=True).next == 1
        why = jobs.explain(ident, 0)
        assert (why.row.k, why.row.level) == (0, 3)
        assert {attempt["machine"] for attempt in why.attempts} == {home.name}
        assert jobs.cancel(ident).stopped == 0
        assert jobs.newest(1)[0].id == ident
        assert jobs.purge(ident).id == ident
        with pytest.raises(CallFailed) as failed:
            jobs.status(ident)
        assert (failed.value.name, failed.value.code) == ("not_found", 1003)
        assert "covey job list" in failed.value.remedy


async def test_a_program_in_trio_gets_the_same(home: Home) -> None:
    async with await Jobs.connect(socket_of(home)) as jobs:
        assert "wordcount@1" in {handler.id for handler in await jobs.handlers()}
        ident = await jobs.submit(words(reduce=TopK(n=2)), key="again")
        assert await jobs.submit(words(reduce=TopK(n=2)), key="again") == ident
        assert (await jobs.wait(ident)).state == "done"
        assert await jobs.reduced(ident) == TOP
        assert [row.reason for row in await jobs.rows(ident)] == ["", "", "no_text"]
        assert (await jobs.result(ident, limit=1, raw=True)).next == 1
        assert (await jobs.explain(ident, 0)).row.k == 0
        assert (await jobs.cancel(ident)).stopped == 0
        assert (await jobs.newest(1))[0].id == ident
        assert (await jobs.purge(ident)).id == ident
        with pytest.raises(CallFailed, match="no such job"):
            await jobs.status(ident)


def test_a_plan_is_run_and_gaps_are_asked_again(home: Home) -> None:
    with BlockingJobs.open(socket_of(home)) as jobs:
        plan = jobs.plan(words())
        assert (plan.handler, plan.rows, plan.group) == ("wordcount@1", 3, "own")
        ident = jobs.submit_plan(plan.plan_id, key="planned")
        assert jobs.submit_plan(plan.plan_id, key="planned") == ident
        assert jobs.wait(ident).by_state["missing"] == 1
        again = jobs.retry_gaps(ident)
        state = jobs.wait(again)
        assert (again != ident, state.rows, state.by_state["ok"]) == (True, 3, 2)
        assert jobs.wait(jobs.retry_gaps(ident, rows=[2])).rows == 3


async def test_in_trio_a_plan_is_run_and_gaps_are_asked_again(home: Home) -> None:
    async with Jobs(socket_of(home)) as jobs:
        plan = await jobs.plan(words())
        ident = await jobs.submit_plan(plan.plan_id)
        await jobs.wait(ident)
        again = await jobs.retry_gaps(ident)
        assert (await jobs.wait(again)).by_state["ok"] == 2


def test_more_rows_than_a_page_has_come_all(home: Home) -> None:
    with BlockingJobs.open(socket_of(home)) as jobs:
        numbers = [{"n": n} for n in range(PAGE + 5)]
        ident = jobs.submit(JobSpec(handler="echo@1", rows=numbers, engine="local"))
        jobs.wait(ident)
        assert [row.row for row in jobs.rows(ident)] == numbers


async def test_paused_and_resumed(home: Home) -> None:
    async with Jobs(socket_of(home)) as jobs:
        ident = await jobs.submit(waiting_job())
        async for event in jobs.watch(ident):
            if states([event]) == ["waiting_input"]:
                break
        with pytest.raises(CallFailed, match="waiting_input"):
            await jobs.pause(ident)
        going = await jobs.resume(ident, STEPS)
        assert isinstance(going, JobState)
        assert (await jobs.wait(ident)).state == "done"


def test_a_job_that_asks_is_answered_and_a_finished_one_judged(home: Home) -> None:
    with BlockingJobs.open(socket_of(home)) as jobs:
        ident = jobs.submit(waiting_job())
        until_it_asks(jobs, ident)
        assert jobs.answer(ident, STEPS).state == "running"
        assert jobs.wait(ident).state == "done"
        assert jobs.feedback(ident, good=[0, 1], bad=[2], rule="count twice").tainted == 1
        with pytest.raises(CallFailed, match="no row 64"):
            jobs.feedback(ident, bad=[STEPS])
        again = jobs.submit(waiting_job())
        until_it_asks(jobs, again)
        assert jobs.answer(again).state == "cancelled"
        assert jobs.quarantines() == []
        with pytest.raises(CallFailed, match="nobody is quarantined"):
            jobs.lift("ab" * 32)


def until_it_asks(jobs: BlockingJobs, ident: str) -> None:
    for event in jobs.watch(ident):
        if states([event]) == ["waiting_input"]:
            return


async def test_in_trio_a_job_is_answered_and_judged(home: Home) -> None:
    async with Jobs(socket_of(home)) as jobs:
        ident = await jobs.submit(waiting_job())
        async for event in jobs.watch(ident):
            if states([event]) == ["waiting_input"]:
                break
        assert (await jobs.answer(ident, STEPS)).state == "running"
        await jobs.wait(ident)
        assert (await jobs.feedback(ident, bad=[1, 2])).tainted == 2
        assert await jobs.quarantines() == []
        with pytest.raises(CallFailed, match="nobody is quarantined"):
            await jobs.lift("ab" * 32)


def test_a_watch_goes_on_behind_the_last_event_seen(home: Home) -> None:
    with BlockingJobs.open(socket_of(home)) as jobs:
        ident = jobs.submit(words())
        jobs.wait(ident)
        everything = list(jobs.watch(ident))
        assert [event.seq for event in everything] == sorted({event.seq for event in everything})
        for i, event in enumerate(everything):
            assert list(jobs.watch(ident, event.seq)) == everything[i + 1 :]


def start_again(home: Home, ident: str) -> threading.Thread:
    """Bring the daemon back and let the job go on, while somebody watches."""

    def run() -> None:
        home.up()
        home.ok("job", "resume", ident, "--executions", str(STEPS))

    home.kill()
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_who_watches_hears_the_end_though_the_daemon_was_killed(home: Home) -> None:
    with BlockingJobs.open(socket_of(home)) as jobs:
        ident = jobs.submit(waiting_job())
        watch = jobs.watch(ident)
        seen = []
        for event in watch:
            seen.append(event)
            if states([event]) == ["waiting_input"]:
                break
        thread = start_again(home, ident)
        seen += watch
        thread.join()
        assert states(seen)[-1] == "done"
        assert seen == list(jobs.watch(ident)), "each event once, none left out"


async def test_in_trio_too(home: Home) -> None:
    async with Jobs(socket_of(home)) as jobs:
        ident = await jobs.submit(waiting_job())
        watch = jobs.watch(ident)
        seen = []
        async for event in watch:
            seen.append(event)
            if states([event]) == ["waiting_input"]:
                break
        thread = start_again(home, ident)
        seen += [event async for event in watch]
        await trio.to_thread.run_sync(thread.join)
        assert states(seen)[-1] == "done"
        assert watch.last_seq == seen[-1].seq
        assert seen == [event async for event in jobs.watch(ident)]


def open_files() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir()}


async def test_a_daemon_that_hangs_up_at_the_greeting_leaves_no_socket_open(
    tmp_path: Path,
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()

        async def hang_up() -> None:
            peer, _ = await trio.to_thread.run_sync(listening.accept)
            peer.close()

        before = open_files()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up)
            with pytest.raises(EOFError) as failed:
                await LocalClient.connect(str(tmp_path / "s"))
        # Its traceback still holds the client, so that nothing but a close closes the socket.
        assert failed.tb is not None
        assert open_files() == before


async def test_a_change_is_not_repeated_when_the_daemon_dies(home: Home) -> None:
    async with Jobs(socket_of(home)) as jobs:
        await jobs.handlers()
        home.kill()
        with pytest.raises(EOFError):
            await jobs.submit(words())
        await trio.to_thread.run_sync(home.up)
        assert isinstance(await jobs.newest(), list)
