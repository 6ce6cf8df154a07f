"""Running tasks at a worker: quick pure ones many at a time, the others one by one, effects once.

Whatever a handler raises ends its task, never the daemon. Nothing of a handler runs in the loop.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from federated.errors import HandlerError
from federated.jobs.effects import OUTCOME_UNKNOWN
from federated.jobs.handlers.base import Batch, TaskCtx, TaskLimits
from federated.jobs.held import EFFECT_BYTES, HELD_MS, Put
from federated.jobs.items import Refusal, Reply, Usage
from federated.jobs.limits import OUTPUT_BYTES_MAX, RESULT_BYTES_MAX
from federated.jobs.worker_task import (
    done,
    failed,
    join_entries,
    missing_entry,
    read_rows,
    write_entries,
    write_rows,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from federated.jobs.bulk import Bulk
    from federated.jobs.desk import TaskHere
    from federated.jobs.held import Held
    from federated.jobs.items import TaskResult
    from federated.jobs.types import RowOut
    from p2p.env import Env, Offload

log = logging.getLogger("covey.jobs.worker")

NOT_BEGUN: Final = "not_begun"
"""Of an effect that did not run and has no result: its coordinator was told, or does not care."""
NOT_KEPT_MS: Final = 5000
"""When a coordinator may offer an effect again that could not be written down. Guess: a full disk
does not become empty sooner."""
DEADLINE_S_MAX: Final = 31 * 86_400.0
"""Longest that an effect is kept before its day after the deadline begins."""


class Running:
    """Runs tasks.

    Args:
        env: clocks.
        offload: where blocking work goes.
        held: where effects are written down; None: none are taken.
        bulk: carries large answers.
    """

    def __init__(self, env: Env, offload: Offload, held: Held | None, bulk: Bulk) -> None:
        self._env = env
        self._offload = offload
        self._held = held
        self._bulk = bulk

    async def quick(self, tasks: Sequence[TaskHere]) -> list[TaskResult]:
        """Run pure tasks in one trip to a thread."""
        most = self._bulk.out_bytes_max
        results = await self._offload.run(lambda: [_compute(task, most) for task in tasks])
        return [
            await self._bulk.carried(result, task.ref, task.job.spec.group)
            for task, result in zip(tasks, results, strict=True)
        ]

    async def one(self, task: TaskHere) -> TaskResult:
        """Run a task without effects."""
        began = self._env.now()
        task.begun = True

        async def run() -> bytes:
            batch = read_rows(task.job, task.rows)
            answers = await self._answers(task, batch)
            most = min(task_limits(task).out_bytes, self._bulk.out_bytes_max)
            return write_rows(batch, answers, most)

        result = await self._guarded(task, began, run)
        return await self._bulk.carried(result, task.ref, task.job.spec.group)

    async def _guarded(
        self, task: TaskHere, began: float, run: Callable[[], Awaitable[bytes]]
    ) -> TaskResult:
        """What `run` answers, or why not."""
        try:
            rows = await run()
            return done(task.task, task.attempt, rows, self._usage(began))
        except trio.TooSlowError:
            error = HandlerError("timeout")
        except HandlerError as raised:
            error = raised
        except DecodeError:
            error = HandlerError("bad_rows")
        except Exception:
            # A handler's own fault ends its task, never the daemon.
            log.exception("handler_failed", extra={"f": {"handler": task.job.spec.handler}})
            error = HandlerError("exception")
        return failed(task.task, task.attempt, error, self._usage(began))

    async def _answers(self, task: TaskHere, batch: Batch) -> Sequence[RowOut]:
        """What the handler says, within its wall time.

        Raises:
            trio.TooSlowError: its time is over.
        """
        handler = task.handler
        if hasattr(handler, "compute"):
            return await self._offload.run(lambda: handler.compute(batch))
        limits = task_limits(task)
        ctx = TaskCtx(
            caller=task.desk.peer, owner=task.owner, trust=task.trust,
            group=task.job.spec.group, limits=limits, offload=self._offload,
            tokens={row.k: row.token for row in batch.rows if row.token is not None},
            progress=lambda share: setattr(task, "progress", share),
        )  # fmt: skip
        wall_s = min(limits.wall_s, max(0.0, task.deadline - self._env.now()))
        try:
            with trio.fail_after(wall_s) as task.scope:
                return await handler.run(batch, ctx)
        finally:
            task.scope = None

    def _usage(self, began: float) -> Usage:
        return Usage(wall_ms=int((self._env.now() - began) * 1000))

    # ---- effects

    async def effect(self, task: TaskHere) -> tuple[TaskResult, bool] | None:
        """Run what of a task has not run yet, and say of the rest how it ended.

        Returns:
            The result, and whether it is on the disk; None if nothing ran and nothing is to be
            told.
        """
        began = self._env.now()
        kept = False

        async def run() -> bytes:
            nonlocal kept
            batch = read_rows(task.job, task.rows)
            if task.deadline <= began:
                raise HandlerError("deadline")
            rows, kept = await self._once(task, batch, began)
            return rows

        result = await self._guarded(task, began, run)
        if task.cancelled or result.error == NOT_BEGUN:
            return None
        return result, kept

    async def _once(self, task: TaskHere, batch: Batch, began: float) -> tuple[bytes, bool]:
        """Canonical answers of a task; whether they had to be written down, and are."""
        tokens = {row.k: row.token for row in batch.rows if row.token is not None}
        known = await self._begin(task, list(tokens.values()))
        entries = self._known(task, tokens, known)
        fresh = [row for row in batch.rows if row.k not in entries]
        if not fresh:
            return join_entries(batch, entries), False
        asked = Batch(rows=fresh, params=batch.params, columns=batch.columns, reduces=batch.reduces)
        answers = await self._answers(task, asked)
        most = min(task_limits(task).out_bytes, RESULT_BYTES_MAX)
        found = write_entries(asked, answers, most)
        for row in fresh:
            entries[row.k] = found.get(row.k) or missing_entry(row.k, OUTCOME_UNKNOWN)
        rows = join_entries(batch, entries)
        result = done(task.task, task.attempt, rows, self._usage(began))
        await self._end(task, result, {tokens[k]: entry for k, entry in found.items()})
        return rows, True

    async def _begin(self, task: TaskHere, tokens: list[bytes]) -> dict[bytes, bytes | None]:
        """Write down that a task begins; what is known of its tokens.

        Raises:
            HandlerError: `NOT_BEGUN`: it did not, and will not.
        """
        assert self._held is not None, "no effect is taken without a place to write it down"
        desk = task.desk
        left_s = min(max(0.0, task.deadline - self._env.now()), DEADLINE_S_MAX)
        until_ms = self._env.wall_ms() + int(left_s * 1000) + HELD_MS
        try:
            known = await self._held.begin(bytes(desk.peer), task.ref, tokens, until_ms)
        except Exception:
            # Nothing has begun, so somebody else may do it: a full disk here is no loss there.
            log.exception("effect_not_kept", extra={"f": {"handler": task.job.spec.handler}})
            desk.post(Reply([], [Refusal(task.ref, "busy", NOT_KEPT_MS)]))
            raise HandlerError(NOT_BEGUN) from None
        if task.cancelled:
            raise HandlerError(NOT_BEGUN)
        task.begun = True
        desk.effect_bytes += EFFECT_BYTES * (len(tokens) - len(known))
        return known

    @staticmethod
    def _known(
        task: TaskHere, tokens: Mapping[int, bytes], known: Mapping[bytes, bytes | None]
    ) -> dict[int, bytes]:
        """What is answered of a task without running it."""
        again = task.handler.info.idempotent_by_token
        entries: dict[int, bytes] = {}
        for k, token in tokens.items():
            answer = known.get(token)
            if answer is not None:
                entries[k] = answer
            elif token in known and not again:
                entries[k] = missing_entry(k, OUTCOME_UNKNOWN)
        return entries

    async def _end(self, task: TaskHere, result: TaskResult, answers: dict[bytes, bytes]) -> None:
        """Write down how a task ended."""
        assert self._held is not None, "it began, so there is a place"
        desk = task.desk
        until_ms = self._env.wall_ms() + HELD_MS
        put = Put(bytes(desk.peer), task.ref, desk.epoch, result, until_ms)
        await self._held.finish(put, answers)
        desk.effect_bytes += sum(map(len, answers.values()))


def task_limits(task: TaskHere) -> TaskLimits:
    """The smallest of what the job asks for, the handler allows and an answer may be."""
    own, spec = task.handler.info.limits, task.job.spec
    return TaskLimits(
        wall_s=min(own.wall_s, spec.wall_ms / 1000 or own.wall_s),
        mem_bytes=min(own.mem_bytes, spec.mem_bytes or own.mem_bytes),
        out_bytes=min(own.out_bytes, spec.out_bytes or own.out_bytes, OUTPUT_BYTES_MAX),
    )


def _compute(task: TaskHere, out_bytes_max: int) -> TaskResult:
    """Run a quick task; in a thread."""
    handler = task.handler
    assert hasattr(handler, "compute")
    try:
        batch = read_rows(task.job, task.rows)
        most = min(task_limits(task).out_bytes, out_bytes_max)
        rows = write_rows(batch, handler.compute(batch), most)
        return done(task.task, task.attempt, rows, Usage())
    except HandlerError as error:
        return failed(task.task, task.attempt, error, Usage())
    except DecodeError:
        return failed(task.task, task.attempt, HandlerError("bad_rows"), Usage())
    except Exception:
        log.exception("handler_failed", extra={"f": {"handler": task.job.spec.handler}})
        return failed(task.task, task.attempt, HandlerError("exception"), Usage())
