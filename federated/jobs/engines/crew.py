"""An engine as a worker: takes tasks from our own coordinator, puts them into calls, answers.

Theory of operation. The coordinator speaks with an engine as with every worker, by the items of
`job.session` over a pipe in memory; here is the other end. A session starts the engine and ends
with it: when the engine is gone its session breaks, the coordinator takes the tasks back and tries
again after a while. Tasks wait in one queue. While fewer calls are out than twice the engine's
capacity, the first task and those of the same job behind it make a call: at least 25 rows where so
many wait, because an engine's overhead is a millisecond or more a call, and more of them the faster
they turn out to be, up to what takes about a second. A call's tasks run one after the other.

A running call cannot be stopped: a cancelled task's answer is dropped, and a call none of whose
tasks is wanted any more is withdrawn if it has not begun. One that does not come back within twice
what its tasks may take is given up as `timeout`.

No effect runs here (an engine may run a call twice), and nothing is signed: it is ours.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from federated.errors import HandlerError
from federated.jobs.canon import digest
from federated.jobs.engines.seam import EngineCall
from federated.jobs.engines.tasks import decode_answers, encode_call
from federated.jobs.items import (
    API,
    Ack,
    Beat,
    Cancel,
    Cancelled,
    Credit,
    Have,
    Hello,
    Holding,
    Offer,
    Offered,
    Refusal,
    Reply,
    Result,
    Spec,
    Usage,
    decode_job_item_untrusted,
    encode_item,
    encode_results,
)
from federated.jobs.template import parse_template
from federated.jobs.worker_task import done, failed, read_rows, read_spec, write_rows
from p2p.errors import DecodeError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federated.jobs.engines.seam import Engine
    from federated.jobs.engines.tasks import Code, TaskAnswer
    from federated.jobs.handlers.base import Batch, HandlerInfo
    from federated.jobs.items import Item, OfferTask, Ref, TaskResult
    from federated.jobs.worker_task import JobHere
    from p2p.env import Env, Offload
    from p2p.rpc_types import Caller, CallStream

log = logging.getLogger("covey.jobs.engines")

CALL_ROWS_MIN: Final = 25
"""Rows of a call where so many wait (tasks.md s.12)."""
CALL_ROWS_MAX: Final = 1024
CALL_BYTES_MAX: Final = 4 * 2**20
CALL_S: Final = 1.0
"""What a call should take at most, judged by those before it: the unit in which work is lost,
waited for and spread over the engine. Guess."""
AHEAD: Final = 2
"""Calls out for each that runs: an engine is never idle while an answer travels."""
CREDIT_TASKS_MAX: Final = 4096
RESULT_BYTES_MAX: Final = 196_608
LOOK_S: Final = 1.0
BEAT_SHARE: Final = 3


@dataclass(frozen=True)
class Portable:
    """A handler that an engine can compute.

    Attributes:
        info: as this node says it.
        code: how the engine finds it.
    """

    info: HandlerInfo
    code: Code


@dataclass(eq=False)
class _Task:
    ref: Ref
    job: JobHere
    rows: bytes
    size: int
    deadline: float
    call: int | None = None


@dataclass(eq=False)
class _Call:
    ref: int
    tasks: list[_Task]
    batches: list[Batch]
    began: float
    wall_s: float
    out_bytes: int


class Crew:
    """Makes sessions with one engine.

    Args:
        make: a new engine, not started.
        portable: the handlers it may be asked for, by id.
        env: clocks and random numbers.
        offload: where long computations go.
    """

    def __init__(
        self, make: Callable[[], Engine], portable: Callable[[], Mapping[str, Portable]], env: Env,
        offload: Offload,
    ) -> None:  # fmt: skip
        self._make = make
        self._portable = portable
        self._env = env
        self._offload = offload

    async def serve(self, _caller: Caller, _request: bytes, call: CallStream) -> bytes:
        """One session of our coordinator.

        Raises:
            Unreachable: the engine cannot be reached, or is gone.
        """
        engine = self._make()
        try:
            try:
                await engine.start()
            except HandlerError as error:
                raise Unreachable(str(error)) from None
            await _Session(engine, dict(self._portable()), self._env, self._offload, call).run()
        finally:
            with trio.CancelScope(shield=True):
                await engine.close()
        return b""


class _Session:
    """One session, from the engine's start to its end."""

    def __init__(
        self, engine: Engine, portable: Mapping[str, Portable], env: Env, offload: Offload,
        stream: CallStream,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._portable = portable
        self._env = env
        self._offload = offload
        self._stream = stream
        self._jobs: dict[bytes, JobHere] = {}
        self._tasks: dict[Ref, _Task] = {}
        self._queue: deque[_Task] = deque()
        self._calls: dict[int, _Call] = {}
        self._next_ref = 0
        self._row_s = 0.0
        self._work = trio.Event()
        self._replies: deque[Item] = deque()
        self._outbox: deque[tuple[bytes, TaskResult]] = deque()
        self._say = trio.Event()
        self._lease_s = 10.0
        self._greeted = False

    async def run(self) -> None:
        """Serve until the coordinator ends the session or the engine is gone."""
        async with trio.open_nursery() as nursery:
            for task in (self._write, self._beat, self._hand_over, self._take_back, self._look):
                nursery.start_soon(task)
            async for data in self._stream:
                assert isinstance(data, bytes)
                self._received(decode_job_item_untrusted(data))
            nursery.cancel_scope.cancel()

    def _offered(self) -> list[Offered]:
        capacity = self._engine.capacity
        return [
            Offered(
                ident, one.info.kind, one.info.deterministic, False, capacity,
                int(one.info.cold_s * 1000), True,
            )
            for ident, one in sorted(self._portable.items())
        ]  # fmt: skip

    def _credit(self) -> int:
        calls = max(1, self._engine.capacity) * AHEAD
        return min(CREDIT_TASKS_MAX, calls * max(CALL_ROWS_MIN, self._rows_a_call()))

    def _post(self, item: Item) -> None:
        self._replies.append(item)
        self._say.set()

    # ---- what the coordinator says

    def _received(self, item: Item) -> None:
        match item:
            case Offer():
                self._offer(item)
            case Spec():
                self._jobs[item.job] = read_spec(
                    item, lambda text: parse_template(text, None).render
                )
            case Cancel():
                self._cancel(item)
            case Have():
                self._have(set(item.jobs))
            case Ack() | Hello():
                pass
            case _:
                raise DecodeError("a coordinator sent a worker's item")

    def _have(self, live: set[bytes]) -> None:
        for job in [job for job in self._jobs if job not in live]:
            del self._jobs[job]
            self._stop([task for ref, task in self._tasks.items() if ref[0] == job])
        if not self._greeted:
            # An engine's session begins with nothing. Said before the hello, so that no task is
            # offered before the coordinator knows.
            self._greeted = True
            self._post(Holding([]))
            self._post(Hello(API, 0, self._offered(), None))
            self._post(Credit(self._credit()))

    def _offer(self, item: Offer) -> None:
        self._lease_s = min(60.0, max(1.0, item.lease_ms / 1000))
        job = self._jobs.get(item.job)
        refused = []
        for offered in item.tasks:
            ref = (item.job, offered.task, offered.attempt)
            why = self._why_not(job, offered)
            if why:
                refused.append(Refusal(ref, why, 500 if why == "busy" else 0))
                continue
            assert job is not None
            deadline = self._env.now() + offered.deadline_ms / 1000
            task = _Task(ref, job, offered.rows, len(offered.rows), deadline)
            self._tasks[ref] = task
            self._queue.append(task)
        if refused:
            self._post(Reply([], refused))
        self._work.set()

    def _why_not(self, job: JobHere | None, offered: OfferTask) -> str:
        if job is None or job.spec.handler not in self._portable or job.spec.effect:
            return "policy"
        if offered.in_blob:
            return "too_large"
        return "busy" if len(self._tasks) >= CREDIT_TASKS_MAX else ""

    def _cancel(self, item: Cancel) -> None:
        wanted = None if item.attempts is None else set(item.attempts)
        met = [
            task for ref, task in self._tasks.items()
            if ref[0] == item.job and (wanted is None or ref[1:] in wanted)
            and not (item.unstarted_only and task.call is not None)
        ]  # fmt: skip
        stopped = [task.ref[1:] for task in met if task.call is not None]
        never = [task.ref[1:] for task in met if task.call is None]
        self._stop(met)
        if wanted is None:
            self._jobs.pop(item.job, None)
        self._post(Cancelled(item.job, stopped, never, []))

    def _stop(self, tasks: Sequence[_Task]) -> None:
        """Drop tasks; calls that nobody waits for are withdrawn at the next look."""
        for task in tasks:
            self._tasks.pop(task.ref, None)
        self._queue = deque(task for task in self._queue if task.ref in self._tasks)
        self._work.set()

    # ---- what goes to the engine

    async def _hand_over(self) -> None:
        while True:
            self._work = trio.Event()
            await self._withdraw()
            while self._queue and len(self._calls) < max(1, self._engine.capacity) * AHEAD:
                await self._call_out()
            await self._work.wait()

    async def _withdraw(self) -> None:
        """Take calls back that nobody waits for."""
        gone = [
            call.ref for call in self._calls.values()
            if not any(task.ref in self._tasks for task in call.tasks)
        ]  # fmt: skip
        for ref in gone:
            del self._calls[ref]
        if gone:
            await self._engine.cancel(gone)

    def _rows_a_call(self) -> int:
        if not self._row_s:
            return CALL_ROWS_MIN
        return max(1, min(CALL_ROWS_MAX, int(CALL_S / self._row_s)))

    def _next_tasks(self) -> list[_Task]:
        """The first task that waits and those of its job behind it, as many as make a call."""
        found: list[_Task] = []
        rows = size = 0
        while self._queue and rows < self._rows_a_call() and size < CALL_BYTES_MAX:
            task = self._queue[0]
            if found and task.ref[0] != found[0].ref[0]:
                break
            self._queue.popleft()
            found.append(task)
            rows += task.rows.count(b"],[") + 1  # about: cells may hold arrays, too
            size += task.size
        return found

    async def _call_out(self) -> None:
        tasks = self._next_tasks()
        late = [task for task in tasks if task.deadline <= self._env.now()]
        for task in late:
            self._fail(task, HandlerError("timeout"))
        tasks = [task for task in tasks if task not in late]
        if not tasks:
            return
        ref, self._next_ref = self._next_ref, self._next_ref + 1
        for task in tasks:
            task.call = ref
        found = await self._offload.run(lambda: [_batch_of(task) for task in tasks])
        batches: list[Batch] = []
        for task, batch in zip(list(tasks), found, strict=True):
            if batch is None:
                self._fail(task, HandlerError("bad_rows"))
                tasks.remove(task)
            else:
                batches.append(batch)
        if tasks:
            await self._submit(ref, tasks, batches)

    async def _submit(self, ref: int, tasks: list[_Task], batches: list[Batch]) -> None:
        one = self._portable[tasks[0].job.spec.handler]
        spec, own = tasks[0].job.spec, one.info.limits
        out_bytes = min(own.out_bytes, spec.out_bytes or own.out_bytes)
        wall_s = min(own.wall_s, spec.wall_ms / 1000 or own.wall_s)
        data = await self._offload.run(lambda: encode_call(one.code, batches, out_bytes))
        key = f"covey-{digest(data).hex()[:32]}-{self._env.rng.randbytes(8).hex()}"
        self._calls[ref] = _Call(ref, tasks, batches, self._env.now(), wall_s, out_bytes)
        try:
            await self._engine.submit_batch([EngineCall(ref, key, data)])
        except HandlerError as error:
            raise Unreachable(str(error)) from None

    # ---- what comes from the engine

    async def _take_back(self) -> None:
        async for computed in self._engine.as_completed():
            call = self._calls.pop(computed.ref, None)
            if call is None:
                continue
            if computed.error:
                log.warning(
                    "engine_call_failed",
                    extra={"f": {"why": computed.error, "detail": computed.detail}},
                )
                for task in call.tasks:
                    self._fail(task, HandlerError(computed.error))
            else:
                await self._answered(call, computed.data)
            self._work.set()
        raise Unreachable("the engine is gone")

    async def _answered(self, call: _Call, data: bytes) -> None:
        took_s = self._env.now() - call.began
        rows = sum(len(batch.rows) for batch in call.batches)
        row_s = took_s / max(1, rows) / AHEAD
        self._row_s = row_s if not self._row_s else self._row_s + 0.2 * (row_s - self._row_s)
        usage = Usage(wall_ms=int(took_s * 1000 / max(1, len(call.tasks))))
        results = await self._offload.run(lambda: _results(call, data, usage))
        for task, result in zip(call.tasks, results, strict=True):
            self._finish(task, result)

    def _fail(self, task: _Task, error: HandlerError) -> None:
        self._finish(task, failed(task.ref[1], task.ref[2], error, Usage()))

    def _finish(self, task: _Task, result: TaskResult) -> None:
        if self._tasks.pop(task.ref, None) is not None:
            self._outbox.append((task.ref[0], result))
            self._say.set()

    # ---- what the coordinator is told

    async def _write(self) -> None:
        while True:
            self._say = trio.Event()
            while self._replies or self._outbox:
                item = self._replies.popleft() if self._replies else self._next_result()
                await self._stream.send(encode_item(item))
            await self._say.wait()

    def _next_result(self) -> Result:
        job, first = self._outbox.popleft()
        part, size = [first], len(first.rows)
        while self._outbox and self._outbox[0][0] == job:
            size += len(self._outbox[0][1].rows) + 128
            if size > RESULT_BYTES_MAX:
                break
            part.append(self._outbox.popleft()[1])
        return Result(job, encode_results(part), b"")

    async def _beat(self) -> None:
        while True:
            await trio.sleep(self._lease_s / BEAT_SHARE)
            if self._tasks:
                self._post(
                    Beat(
                        [(*ref, task.call is not None, 0.0) for ref, task in self._tasks.items()],
                        None,
                    )
                )

    async def _look(self) -> None:
        """Each second: calls that do not come back, and whether the engine has grown."""
        told = self._credit()
        while True:
            await trio.sleep(LOOK_S)
            now = self._env.now()
            for call in list(self._calls.values()):
                if now - call.began > AHEAD * call.wall_s * len(call.tasks):
                    for task in call.tasks:
                        self._fail(task, HandlerError("timeout"))
            if self._credit() != told:
                told = self._credit()
                self._post(Credit(told))
            self._work.set()


def _batch_of(task: _Task) -> Batch | None:
    try:
        return read_rows(task.job, task.rows)
    except DecodeError:
        return None


def _results(call: _Call, data: bytes, usage: Usage) -> list[TaskResult]:
    """What a call's tasks came to; slow for many rows."""
    try:
        answers = decode_answers(data, len(call.tasks))
    except HandlerError as error:
        return [failed(task.ref[1], task.ref[2], error, usage) for task in call.tasks]
    return [
        _result(task, batch, answer, call.out_bytes, usage)
        for task, batch, answer in zip(call.tasks, call.batches, answers, strict=True)
    ]


def _result(
    task: _Task, batch: Batch, answer: TaskAnswer, out_bytes: int, usage: Usage
) -> TaskResult:
    if answer.error:
        told = {"why": answer.error, "detail": answer.detail}
        log.warning("engine_task_failed", extra={"f": told})
        return failed(task.ref[1], task.ref[2], HandlerError(answer.error), usage)
    try:
        rows = write_rows(batch, answer.answers, out_bytes)
    except HandlerError as error:
        return failed(task.ref[1], task.ref[2], error, usage)
    return done(task.ref[1], task.ref[2], rows, usage)


def without_effects(portable: Mapping[str, Portable]) -> dict[str, Portable]:
    """Those that an engine may run twice, with as many slots as the engine has."""
    return {
        ident: replace(one, info=replace(one.info, slots=0))
        for ident, one in portable.items()
        if not one.info.effect and not one.info.local
    }
