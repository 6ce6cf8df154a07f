"""An operator's program as a handler: a Python function, or a command.

A function (`module:function`) is called in a runner process that is kept between tasks, with
(rows, task): rows are [{"k", "row", "text", "token", "partial"}], task is {"params", "columns",
"reduces"}. It returns one answer a row in their order: a dict, None (no answer) or a text (why
there is none).

A command is started for each task with the operator's arguments and nothing else; rows come as JSON
lines with the same keys and "params" on standard input, answers go as JSON lines {"k", "row"} or
{"k", "missing"} to standard output. Status 0 or the task has failed.

Cells and templates are data throughout: none becomes an argument, a variable of the environment or
a name of a file. Every process runs within the limits of its handler, in the best sandbox there
is, in a group that is killed when the task is cancelled.

Source: docs/specs/jobs.md s.6.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from federated.errors import HandlerError
from federated.jobs.handlers.aside import with_aside
from federated.jobs.handlers.base import HandlerInfo, TaskLimits
from federated.jobs.handlers.child import Child
from federated.jobs.handlers.runner_main import LENGTH
from federated.jobs.handlers.sandbox import confinement, python_folders, sandbox_kind, wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.jobs.config import HandlerConfig
    from federated.jobs.handlers.base import Batch, Handler, TaskCtx
    from federated.jobs.handlers.sandbox import SandboxKind
    from federated.jobs.types import Row, RowOut

log = logging.getLogger("covey.jobs.handlers")

# tasks.md s.6.
TASKS_MAX: Final = 1000
# A runner whose peak is above this share of what it may have is not kept.
_PEAK_SHARE: Final = 0.5
# An answer is checked in canonical form; on the pipe it may take more.
_WIRE_FACTOR: Final = 2
_WIRE_MORE_BYTES: Final = 65_536
_REASON_CHARS_MAX: Final = 64
_RUNNER: Final = str(Path(__file__).with_name("runner_main.py"))


class _Reply(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a runner says."""

    ready: bool = False
    answers: list[dict[str, object] | str | None] | None = None
    peak_bytes: int = 0
    error: str = ""
    detail: str = ""


class _Line(msgspec.Struct, kw_only=True):
    """What a command says of a row; it may leave in what else came with it, as a filter does."""

    k: int
    row: dict[str, object] | None = None
    missing: str = ""


_REPLIES: Final = msgspec.msgpack.Decoder(_Reply)
_LINES: Final = msgspec.json.Decoder(_Line)
# A reason of another word than these is none that a peer is told.
_REASONS: Final = {"exception", "memory", "output", "bad_output", "unavailable"}


def operator_handler(handler_id: str, config: HandlerConfig) -> Handler:
    """The handler of `[jobs.handlers."name@1"]`.

    Raises:
        HandlerError: `unavailable`: the command is not on this machine.
    """
    if isinstance(config.run, str):
        return FunctionHandler(handler_id, config)
    return CommandHandler(handler_id, config)


class _Operators:
    """What both kinds have in common."""

    def __init__(self, handler_id: str, config: HandlerConfig) -> None:
        self.info: Final = HandlerInfo(
            id=handler_id,
            kind="named",
            deterministic=config.deterministic,
            effect=config.effect,
            idempotent_by_token=config.idempotent_by_token,
            local=config.local,
            cold_s=0.1,
            slots=config.slots,
            limits=TaskLimits(
                wall_s=config.wall_s, mem_bytes=config.mem_bytes, out_bytes=config.out_bytes
            ),
            summary=config.summary,
        )
        self._config = config
        self._slots = trio.CapacityLimiter(config.slots)

    async def _start(self, ctx: TaskCtx, setup: dict[str, object], read: Sequence[str]) -> Child:
        kind = await ctx.offload.run(sandbox_kind)
        return Child(self._command(kind, ctx.limits, setup, read))

    def _command(
        self, kind: SandboxKind, limits: TaskLimits, setup: dict[str, object], read: Sequence[str]
    ) -> list[str]:
        folders = [*python_folders(), _RUNNER, *self._config.read, *read]
        network = self._config.sandbox == "network"
        text = json.dumps(
            {
                **setup,
                "confine": confinement(kind, folders, network=network),
                "mem_bytes": self._config.mem_bytes,
                "cpu_s": _cpu_s(limits),
                "parent": 0 if kind == "bubblewrap" else os.getpid(),
            }
        )
        flags = ["-I", "-S"] if "exec" in setup else ["-I"]
        return wrapped(
            [sys.executable, *flags, _RUNNER, text],
            kind=kind,
            read=folders,
            network=network,
        )

    def _complain(self, child: Child, error: HandlerError) -> None:
        """Tell this machine's log, and it alone, what went wrong."""
        told = {"handler": self.info.id, "error": str(error), "stderr": child.complaint()[-500:]}
        log.warning("handler_failed", extra={"f": told})


class FunctionHandler(_Operators):
    """An operator's Python function, in runner processes that are kept between tasks."""

    def __init__(self, handler_id: str, config: HandlerConfig) -> None:
        super().__init__(handler_id, config)
        assert isinstance(config.run, str), "a list is a command"
        self.function: Final = config.run
        self._idle: list[_Runner] = []
        self._closed = False

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        """Answer the rows of a task in one call of the function."""
        async with self._slots:
            runner = await self._taken(ctx)
            try:
                return await runner.answers(batch, ctx.limits)
            except HandlerError as error:
                self._complain(runner.child, error)
                raise
            finally:
                if self._keeps(runner):
                    self._idle.append(runner)
                else:
                    await runner.child.aclose()

    async def aclose(self) -> None:
        """End the runner processes."""
        self._closed = True
        while self._idle:
            await self._idle.pop().child.aclose()

    async def _taken(self, ctx: TaskCtx) -> _Runner:
        while self._idle:
            runner = self._idle.pop()
            if runner.child.alive():
                return runner
            await runner.child.aclose()
        run = self._config.run
        setup: dict[str, object] = {
            "run": run,
            "path": list(self._config.read),
            "answer_bytes": _wire_bytes(self.info.limits),
        }
        runner = _Runner(await self._start(ctx, setup, ()))
        try:
            await runner.ready()
        except HandlerError as error:
            self._complain(runner.child, error)
            await runner.child.aclose()
            raise
        except BaseException:
            await runner.child.aclose()
            raise
        return runner

    def _keeps(self, runner: _Runner) -> bool:
        most = self._config.mem_bytes * _PEAK_SHARE
        fresh = runner.tasks < TASKS_MAX and runner.peak_bytes < most
        return runner.reusable and fresh and not self._closed and runner.child.alive()


class _Runner:
    """A runner process and what is known of it.

    Attributes:
        reusable: between two tasks, and sound.
    """

    def __init__(self, child: Child) -> None:
        self.child = child
        self.tasks = 0
        self.peak_bytes = 0
        self.reusable = False

    async def ready(self) -> None:
        """Wait until the function is imported.

        Raises:
            HandlerError: `unavailable`: it cannot be, and why.
        """
        reply = await with_aside(lambda: self._reply(_WIRE_MORE_BYTES), self.child.drain)
        if not reply.ready:
            raise HandlerError("unavailable", reply.detail or "it is no runner")
        self.reusable = True

    async def answers(self, batch: Batch, limits: TaskLimits) -> list[RowOut]:
        """The function's answers for a task.

        Raises:
            HandlerError: it raised, died, or said too much.
        """
        self.reusable = False
        self.tasks += 1
        request = {
            "rows": [_row_of(item) for item in _items(batch)],
            "task": _task_of(batch),
            "cpu_s": _cpu_s(limits),
        }
        body = msgspec.msgpack.encode(request)

        async def send() -> None:
            await self.child.write(LENGTH.pack(len(body)) + body)

        reply = await with_aside(lambda: self._reply(_wire_bytes(limits)), self.child.drain, send)
        self.peak_bytes = reply.peak_bytes
        self.reusable = True
        if reply.error:
            reason = reply.error if reply.error in _REASONS else "exception"
            raise HandlerError(reason, reply.detail)
        if reply.answers is None or len(reply.answers) != len(batch.rows):
            self.reusable = False
            raise HandlerError("bad_output", "not one answer a row")
        return [_out(item.k, found) for item, found in zip(batch.rows, reply.answers, strict=True)]

    async def _reply(self, bytes_max: int) -> _Reply:
        head = await self.child.read_exactly(LENGTH.size)
        if len(head) < LENGTH.size:
            raise _death(await self.child.exited())
        size = LENGTH.unpack(head)[0]
        if size > bytes_max:
            raise HandlerError("output", f"{size} bytes")
        body = await self.child.read_exactly(size)
        if len(body) < size:
            raise _death(await self.child.exited())
        try:
            return _REPLIES.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
            raise HandlerError("bad_output", "its answer is no table") from None


class CommandHandler(_Operators):
    """An operator's command, started anew for each task.

    Raises:
        HandlerError: `unavailable`: the program is not on this machine.
    """

    def __init__(self, handler_id: str, config: HandlerConfig) -> None:
        super().__init__(handler_id, config)
        program = shutil.which(config.run[0])
        if program is None:
            raise HandlerError("unavailable", f"{handler_id}: there is no program {config.run[0]}")
        self._program = str(Path(program).absolute())
        self._arguments = list(config.run[1:])

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        """Answer the rows of a task with one run of the command."""
        async with self._slots:
            setup: dict[str, object] = {"exec": [self._program, *self._arguments]}
            child = await self._start(ctx, setup, (self._program,))
            try:
                return await self._answers(child, batch, ctx.limits)
            except HandlerError as error:
                self._complain(child, error)
                raise
            finally:
                await child.aclose()

    async def aclose(self) -> None:
        """Nothing is kept between tasks."""

    async def _answers(self, child: Child, batch: Batch, limits: TaskLimits) -> list[RowOut]:
        task = {"params": dict(batch.params)}
        lines = [msgspec.json.encode({**_row_of(item), **task}) for item in _items(batch)]

        async def feed() -> None:
            await child.write(b"".join(line + b"\n" for line in lines))
            await child.stdin.aclose()

        async def read() -> tuple[bytes, int]:
            return await child.read_all(_wire_bytes(limits)), await child.exited()

        written, status = await with_aside(read, feed, child.drain)
        if status != 0:
            raise _death(status)
        found: dict[int, RowOut] = {}
        for line in written.splitlines():
            if line.strip():
                answer = _line_out(line)
                found.setdefault(answer[0], answer)
        # A line about a row that was not asked, or a second one about the same, says nothing.
        return [found[item.k] for item in batch.rows if item.k in found]


def _items(batch: Batch) -> Sequence[dict[str, object]]:
    return [
        {
            "k": item.k,
            "row": item.row,
            "text": item.text,
            "token": item.token.hex() if item.token is not None else None,
            "partial": item.partial,
        }
        for item in batch.rows
    ]


def _row_of(item: dict[str, object]) -> dict[str, object]:
    """Without what is not there."""
    return {name: value for name, value in item.items() if value is not None}


def _task_of(batch: Batch) -> dict[str, object]:
    return {
        "params": dict(batch.params),
        "columns": [column.name for column in batch.columns],
        "reduces": batch.reduces,
    }


def _out(k: int, found: Row | str | None) -> RowOut:
    if isinstance(found, dict):
        return k, found, ""
    return k, None, (found or "no_answer")[:_REASON_CHARS_MAX]


def _line_out(line: bytes) -> RowOut:
    try:
        found = _LINES.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        raise HandlerError("bad_output", "a line is no answer") from None
    return _out(found.k, found.row if found.row is not None else found.missing)


def _wire_bytes(limits: TaskLimits) -> int:
    return limits.out_bytes * _WIRE_FACTOR + _WIRE_MORE_BYTES


def _cpu_s(limits: TaskLimits) -> float:
    """More than a task could use in its time; the worker ends it before."""
    return limits.wall_s * (os.cpu_count() or 1)


def _death(status: int) -> HandlerError:
    """Why a process that ended by itself did."""
    # bubblewrap reports a signal as 128 + its number.
    killed_by = -status if status < 0 else status - 128
    if killed_by == signal.SIGXCPU:
        return HandlerError("timeout", "it used up its processor time")
    return HandlerError("exception", f"it ended with status {status}")
