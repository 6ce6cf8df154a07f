"""Jobs from a Python program: typed calls of `job.*`, blocking or in trio.

    spec = JobSpec(handler="wordcount@1", rows=[{"text": "a b a"}], reduce=TopK(n=2))

    with BlockingJobs.open() as jobs:
        ident = jobs.submit(spec)
        for event in jobs.watch(ident):
            print(event.name, event.data)
        print(list(jobs.reduced(ident)))

    async with Jobs() as jobs:
        ident = await jobs.submit(spec)
        state = await jobs.wait(ident)

Both say the same in the same words. A watch goes on where it was when the daemon was started anew
meanwhile. Source: docs/specs/local-rpc.md, docs/guides/jobs.md.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from typing_extensions import override

from daemon import job_asks as asks
from daemon.cli.client import Client, CliError, open_client, socket_candidates
from daemon.client import CallFailed, LocalClient
from daemon.closing import Closes
from daemon.methods.job_control import Stopped
from daemon.methods.job_lookup import JobState
from daemon.paths import resolve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from daemon.json_types import Json
    from daemon.methods.job import Events, Explained, JobRow, ResultPage
    from daemon.methods.job_after import JobQuarantine
    from daemon.methods.job_events import JobEvent
    from daemon.methods.job_plan import JobPlan
    from daemon.methods.job_submit import HandlerRow
    from federated.jobs.types import JobSpec

T = TypeVar("T")

PAGE: Final = 1000
"""Rows of a page; the most that one answer has."""
AGAIN_S: Final = 0.2
AGAIN_TRIES: Final = 150
"""Half a minute for a daemon that is being started again."""
_NOT_THERE: Final = frozenset({"not_running", "draining"})


# ---- trio


class Jobs:
    """The jobs of a running daemon, for a program in trio. Calls from several tasks take turns.

    Args:
        path: the daemon's socket; None: where this user's daemon listens.
        hello: more fields of `rpc.hello`, such as `agent` and `token`.
    """

    def __init__(self, path: str | None = None, **hello: Json) -> None:
        self._path = path
        self._hello = hello
        self._client: LocalClient | None = None
        self._turn = trio.Lock()

    @classmethod
    async def connect(cls, path: str | None = None, **hello: Json) -> Jobs:
        """Connect now rather than at the first call.

        Raises:
            OSError: no daemon listens there.
            CallFailed: it refused us.
        """
        jobs = cls(path, **hello)
        jobs._client = await jobs._dial()
        return jobs

    async def submit(self, spec: JobSpec, *, key: str | None = None) -> str:
        """Begin a job; it is on disk before the answer and goes on without us.

        Args:
            spec: the job.
            key: the same key and spec name the same job however often it is submitted.

        Returns:
            Its id.

        Raises:
            CallFailed: it cannot be run as it stands; `remedy` and `data["reason"]` say more.
        """
        return (await self._do(asks.submit(spec, key))).job_id

    async def plan(self, spec: JobSpec) -> JobPlan:
        """What would become of a job: who would see its rows, how long it takes. Runs nothing."""
        return await self._do(asks.plan(spec))

    async def submit_plan(self, plan_id: str, *, key: str | None = None) -> str:
        """Begin exactly what a plan showed; its id.

        Raises:
            CallFailed: conflict, `data["reason"]` is `plan_changed`: it would be another job now.
        """
        return (await self._do(asks.planned(plan_id, key))).job_id

    async def retry_gaps(
        self, ident: str, *, columns: Sequence[str] = (), rows: Sequence[int] = ()
    ) -> str:
        """Begin a job that asks a finished one's rows without a sound answer again; its id.

        Args:
            ident: the finished job; the new one has the answers that were there, too.
            columns: ask also for rows whose answer lacks one of these.
            rows: ask for these alone, by index.
        """
        return (await self._do(asks.retry(ident, columns, rows))).job_id

    async def status(self, ident: str) -> JobState:
        """How far a job is."""
        return await self._do(asks.of("status", JobState, ident))

    async def newest(self, limit: int = 20) -> list[JobState]:
        """The newest jobs first; an agent sees its own."""
        return await self._do(asks.list_ask(limit))

    def watch(self, ident: str, since_seq: int = 0) -> Watch:
        """A job's events after number `since_seq`, until it is over."""
        return Watch(self, ident, since_seq)

    async def wait(self, ident: str) -> JobState:
        """Wait until a job is over; its last state."""
        async for _ in self.watch(ident):
            pass
        return await self.status(ident)

    async def result(
        self, ident: str, offset: int = 0, limit: int = PAGE, *, raw: bool = False
    ) -> ResultPage:
        """One page of a job's rows, or of what they were reduced to; `next` is the next offset.

        Args:
            ident: the job.
            offset: from which row on.
            limit: 1 to 1,000.
            raw: the rows themselves where the job reduces them.
        """
        return await self._do(asks.page(ident, offset, limit, raw=raw))

    async def rows(self, ident: str) -> list[JobRow]:
        """All rows, answered and not, in their order, from as many pages as there are."""
        return [row async for page in self._pages(ident, raw=True) for row in page.rows]

    async def reduced(self, ident: str) -> list[object]:
        """All that the rows were reduced to, from as many pages as there are."""
        return [row async for page in self._pages(ident, raw=False) for row in page.reduced]

    async def cancel(self, ident: str) -> Stopped:
        """End a job wherever its tasks are; one that is over stays as it is."""
        return await self._do(asks.of("cancel", Stopped, ident))

    async def pause(self, ident: str) -> JobState:
        """Hand out no more tasks; the deadline goes on."""
        return await self._do(asks.of("pause", JobState, ident, twice=False))

    async def resume(self, ident: str, executions: int | None = None) -> JobState:
        """Go on, with so many more executions if it asks for them."""
        return await self._do(asks.resume(ident, executions))

    async def answer(self, ident: str, executions: int | None = None) -> JobState:
        """Tell a job that has used up its executions how many more, or None to stop it."""
        return await self._do(asks.answer(ident, executions))

    async def feedback(
        self, ident: str, *, good: Sequence[int] = (), bad: Sequence[int] = (), rule: str = ""
    ) -> JobState:
        """Say which rows of a finished job are right and wrong.

        Args:
            ident: the finished job.
            good: indices of rows that are right.
            bad: of those that are wrong: `retry_gaps` asks for them again.
            rule: a note that the next plans of its handler show, at most 280 characters.
        """
        return await self._do(asks.feedback(ident, good, bad, rule))

    async def quarantines(self) -> list[JobQuarantine]:
        """The owners whose answers turned out wrong and who are asked no more, until when."""
        return await self._do(asks.QUARANTINES)

    async def lift(self, who: str) -> str:
        """Ask an owner's devices again; the owner's key.

        Args:
            who: the owner's or a device's key in hex, its beginning, or a device's name.
        """
        return (await self._do(asks.lift(who))).owner

    async def explain(self, ident: str, row: int) -> Explained:
        """How a row came to its state: each try, where, how long, and who vouches for it."""
        return await self._do(asks.row(ident, row))

    async def handlers(self, group: str = "own") -> list[HandlerRow]:
        """What this machine computes for that group."""
        return await self._do(asks.handlers(group))

    async def purge(self, ident: str) -> JobState:
        """Remove a finished job; what it was."""
        return await self._do(asks.of("purge", JobState, ident, twice=False))

    async def aclose(self) -> None:
        """Hang up."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _pages(self, ident: str, *, raw: bool) -> AsyncIterator[ResultPage]:
        offset: int | None = 0
        while offset is not None:
            page = await self.result(ident, offset, raw=raw)
            yield page
            offset = page.next

    async def _do(self, ask: asks.Ask[T]) -> T:
        """Ask; once more on a new connection if the old one broke and asking twice does no harm.

        Raises:
            CallFailed: the daemon's error.
            EOFError: the daemon went away under a call that is not repeated.
            OSError: no daemon listens.
        """
        async with self._turn:
            for again in (True, False):
                try:
                    if self._client is None:
                        self._client = await self._dial()
                    return ask.answer(await self._client.call(ask.method, ask.json))
                except EOFError:
                    await self.aclose()
                    if not (again and ask.twice):
                        raise
        raise AssertionError

    async def _dial(self) -> LocalClient:
        candidates = [self._path] if self._path else socket_candidates(resolve(), os.environ)
        for path in candidates[:-1]:
            try:
                return await LocalClient.connect(path, **self._hello)
            except OSError:
                continue
        return await LocalClient.connect(candidates[-1], **self._hello)


class Watch:
    """The events of one job, as an asynchronous iterator; `last_seq` is where another goes on.

    Args:
        jobs: whose.
        ident: the job.
        since_seq: number of the last event already seen; 0: all.
    """

    def __init__(self, jobs: Jobs, ident: str, since_seq: int = 0) -> None:
        self._jobs = jobs
        self._ident = ident
        self._seen = asks.Seen(since_seq)

    @property
    def last_seq(self) -> int:
        """Number of the last event given out."""
        return self._seen.last_seq

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> JobEvent:
        """The next event.

        Raises:
            OSError, EOFError: no daemon for half a minute.
            CallFailed: there is no such job.
        """
        while True:
            event = self._seen.take()
            if event is not None:
                return event
            if self._seen.over:
                raise StopAsyncIteration
            self._seen.add(await self._ask())

    async def _ask(self) -> Events:
        ask = asks.events(self._ident, self._seen.last_seq)
        for _ in range(AGAIN_TRIES):
            try:
                return await self._jobs._do(ask)  # noqa: SLF001 - the other half of this class
            except (OSError, EOFError):
                await trio.sleep(AGAIN_S)
        return await self._jobs._do(ask)  # noqa: SLF001


# ---- blocking


class BlockingJobs(Closes):
    """The jobs of a running daemon, for a program that waits. Of one thread.

    Args:
        client: a connection.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    def open(cls, path: str | None = None) -> BlockingJobs:
        """The daemon at the socket `path`; None: this user's, which is started if need be."""
        return cls(open_client(socket_path=path))

    def submit(self, spec: JobSpec, *, key: str | None = None) -> str:
        """Begin a job; see `Jobs.submit`."""
        return self._do(asks.submit(spec, key)).job_id

    def plan(self, spec: JobSpec) -> JobPlan:
        """What would become of a job: who would see its rows, how long it takes. Runs nothing."""
        return self._do(asks.plan(spec))

    def submit_plan(self, plan_id: str, *, key: str | None = None) -> str:
        """Begin exactly what a plan showed; see `Jobs.submit_plan`."""
        return self._do(asks.planned(plan_id, key)).job_id

    def retry_gaps(
        self, ident: str, *, columns: Sequence[str] = (), rows: Sequence[int] = ()
    ) -> str:
        """Begin a job that fills a finished one's gaps; see `Jobs.retry_gaps`."""
        return self._do(asks.retry(ident, columns, rows)).job_id

    def status(self, ident: str) -> JobState:
        """How far a job is."""
        return self._do(asks.of("status", JobState, ident))

    def newest(self, limit: int = 20) -> list[JobState]:
        """The newest jobs first; an agent sees its own."""
        return self._do(asks.list_ask(limit))

    def watch(self, ident: str, since_seq: int = 0) -> Iterator[JobEvent]:
        """A job's events after number `since_seq`, until it is over.

        Raises:
            CallFailed: there is no such job, or no daemon for half a minute.
        """
        seen = asks.Seen(since_seq)
        while not seen.over:
            seen.add(self._patiently(asks.events(ident, seen.last_seq)))
            while (event := seen.take()) is not None:
                yield event

    def wait(self, ident: str) -> JobState:
        """Wait until a job is over; its last state."""
        for _ in self.watch(ident):
            pass
        return self.status(ident)

    def result(
        self, ident: str, offset: int = 0, limit: int = PAGE, *, raw: bool = False
    ) -> ResultPage:
        """One page; see `Jobs.result`."""
        return self._do(asks.page(ident, offset, limit, raw=raw))

    def rows(self, ident: str) -> Iterator[JobRow]:
        """All rows, answered and not, in their order, from as many pages as there are."""
        for page in self._pages(ident, raw=True):
            yield from page.rows

    def reduced(self, ident: str) -> Iterator[object]:
        """All that the rows were reduced to, from as many pages as there are."""
        for page in self._pages(ident, raw=False):
            yield from page.reduced

    def cancel(self, ident: str) -> Stopped:
        """End a job wherever its tasks are; one that is over stays as it is."""
        return self._do(asks.of("cancel", Stopped, ident))

    def pause(self, ident: str) -> JobState:
        """Hand out no more tasks; the deadline goes on."""
        return self._do(asks.of("pause", JobState, ident))

    def resume(self, ident: str, executions: int | None = None) -> JobState:
        """Go on, with so many more executions if it asks for them."""
        return self._do(asks.resume(ident, executions))

    def answer(self, ident: str, executions: int | None = None) -> JobState:
        """Tell a job that has used up its executions how many more, or None to stop it."""
        return self._do(asks.answer(ident, executions))

    def feedback(
        self, ident: str, *, good: Sequence[int] = (), bad: Sequence[int] = (), rule: str = ""
    ) -> JobState:
        """Say which rows of a finished job are right and wrong; see `Jobs.feedback`."""
        return self._do(asks.feedback(ident, good, bad, rule))

    def quarantines(self) -> list[JobQuarantine]:
        """The owners whose answers turned out wrong and who are asked no more, until when."""
        return self._do(asks.QUARANTINES)

    def lift(self, who: str) -> str:
        """Ask an owner's devices again; see `Jobs.lift`."""
        return self._do(asks.lift(who)).owner

    def explain(self, ident: str, row: int) -> Explained:
        """How a row came to its state: each try, where, how long, and who vouches for it."""
        return self._do(asks.row(ident, row))

    def handlers(self, group: str = "own") -> list[HandlerRow]:
        """What this machine computes for that group."""
        return self._do(asks.handlers(group))

    def purge(self, ident: str) -> JobState:
        """Remove a finished job; what it was."""
        return self._do(asks.of("purge", JobState, ident))

    @override
    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _pages(self, ident: str, *, raw: bool) -> Iterator[ResultPage]:
        offset: int | None = 0
        while offset is not None:
            page = self.result(ident, offset, raw=raw)
            yield page
            offset = page.next

    def _do(self, ask: asks.Ask[T]) -> T:
        """Ask. The connection repeats what was not answered; what was done is not done twice.

        Raises:
            CallFailed: the daemon's error; name `not_running` if there is none.
        """
        try:
            return ask.answer(self._client.call(ask.method, ask.json))
        except CliError as error:
            data = {"name": error.name, "remedy": error.remedy, **error.data}
            raise CallFailed(error.code, error.message, data) from None

    def _patiently(self, ask: asks.Ask[T]) -> T:
        for _ in range(AGAIN_TRIES):
            try:
                return self._do(ask)
            except CallFailed as failed:
                if failed.name not in _NOT_THERE:
                    raise
                time.sleep(AGAIN_S)
        return self._do(ask)
