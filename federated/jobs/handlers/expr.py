r"""`expr:`: a small Python function that comes with the job, in Monty's sandbox processes.

    params = {"code": "def map(row):\n    return {'y': row['x'] * 2}"}

Theory of operation. The only kind of handler in which a peer's code runs here, so it is offered to
own devices and friends at most, and only by the operator's word. Monty interprets a subset of
Python in worker processes of its own that get no host function, no file, no clock and no entropy:

- Every row has a session of its own. State kept between rows would make two honest peers with
  other batches disagree.
- The clock stands still at 2000-01-01, sleeping takes no time, and random numbers start from
  SHA-256(code, row): what a row answers depends on the code and the row alone. A seed by task or
  the time of submission would, again, make honest peers disagree.
- The guest returns one JSON text, cut inside the guest: a value would cross to us whole, whatever
  its size, before we could look.
- The time of a session ends the guest inside the worker; `GRACE_S` later the pool kills the worker.
  A session that reached its time is never used again. Cancelling kills the worker at once: its
  process id is read before the guest is fed, because it cannot be asked while the guest runs.
- What the guest prints is kept from our own output, and capped.

Source: docs/specs/jobs.md s.6; measured on pydantic-monty 1.4.0.
"""

from __future__ import annotations

import datetime as dt
import os
import signal
import threading
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from federated.errors import HandlerError, PlanError
from federated.jobs.canon import canonical
from federated.jobs.handlers.base import HandlerInfo, TaskLimits
from federated.jobs.handlers.names import EXPR_ID, MONTY_VERSION
from federated.jobs.handlers.threads import offload_stoppable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic_monty import Monty, MontySession, OSPolicy, ResourceLimits

    from federated.jobs.handlers.base import Batch, BatchRow, TaskCtx
    from federated.jobs.types import RowOut

# tasks.md s.6.
ROW_WALL_S: Final = 1.0
ROW_MEM_BYTES: Final = 32 * 2**20
RECURSION_MAX: Final = 200
PRINTED_BYTES_MAX: Final = 65_536
CODE_BYTES_MAX: Final = 65_536
# How long the pool waits for a guest to end by itself: with ROW_WALL_S, "limit + .5 s".
GRACE_S: Final = 0.4
# A worker is replaced after so many sessions, whatever it may have kept.
SESSIONS_MAX: Final = 1000
# A guest has no host to wait for; importing a module of the sandbox's own counts too (guess).
_SUSPENSIONS_MAX: Final = 16
_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_ENTRY: Final = {
    "map": "map(_json.loads(_row))",
    "reduce": "reduce(*(lambda _r: (_r['a'], _r['b']))(_json.loads(_row)))",
}
# A slice of a str is a str whatever the guest calls `len` or `str` by now.
_TAIL: Final = "\n\nimport json as _json\n(_json.dumps({call}))[:{most}]\n"


class Expr:
    """The handler `expr:@VERSION`.

    A job's `params`: `code`, which defines `map(row)`; or `code` with `function: "reduce"`, which
    defines `reduce(a, b)` over rows {a, b}. The function returns a dict, the answer.

    Args:
        slots: rows at once, each in a worker process of its own.

    Raises:
        HandlerError: `unavailable`: the extra `expr` is not installed, or in another version.
    """

    def __init__(self, *, slots: int = 2) -> None:
        _check_installed()
        self.info: Final = HandlerInfo(
            id=EXPR_ID,
            kind="expr",
            deterministic=True,
            cold_s=0.01,
            slots=slots,
            limits=TaskLimits(wall_s=60.0, mem_bytes=ROW_MEM_BYTES),
            summary="computes a Python expression of the job's in a sandbox",
        )
        self._slots = trio.CapacityLimiter(slots)
        self._processes = slots
        self._pool: Monty | None = None
        self._lock = threading.Lock()

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        """Answer each row in a session of its own; a row whose code fails is missing.

        Reasons: `bad_params`, `bad_row`, `bad_code`, `exception`, `recursion`, `timeout`,
        `memory`, `output`, `bad_output`, `crashed`.

        Raises:
            HandlerError: `unavailable`: the sandbox does not start.
        """
        program = _Program.of(batch, ctx.limits)
        if program is None:
            return [(item.k, None, "bad_params") for item in batch.rows]
        guest = _Guest()

        def compute(stopped: Callable[[], bool]) -> list[RowOut]:
            pool = self._started()
            return [program.answer(pool, item, guest) for item in batch.rows if not stopped()]

        async with self._slots:
            return await offload_stoppable(ctx.offload, compute, on_stop=guest.kill)

    async def aclose(self) -> None:
        """End the worker processes."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.__exit__(None, None, None)

    def _started(self) -> Monty:
        from pydantic_monty import Monty

        with self._lock:
            if self._pool is None:
                pool = Monty(
                    min_processes=1,
                    max_processes=self._processes,
                    max_checkouts_per_worker=SESSIONS_MAX,
                    feed_duration_limit_grace=GRACE_S,
                )
                try:
                    pool.__enter__()
                except (OSError, RuntimeError) as error:
                    raise HandlerError("unavailable", f"Monty does not start: {error}") from error
                self._pool = pool
            return self._pool


class _Guest:
    """The worker process that is running our guest now, if any, and whether it is to die."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._killed = False

    def enter(self, pid: int | None) -> None:
        """From here on `kill` ends process `pid`.

        Raises:
            HandlerError: `cancelled`: it came before.
        """
        with self._lock:
            if self._killed:
                raise HandlerError("cancelled")
            self._pid = pid

    def leave(self) -> None:
        """The process may serve another task now: do not kill it any more."""
        with self._lock:
            self._pid = None

    def kill(self) -> None:
        """End the guest that runs, and let none begin."""
        with self._lock:
            self._killed = True
            if self._pid is not None:
                try:
                    os.kill(self._pid, signal.SIGKILL)
                except ProcessLookupError:
                    self._pid = None


class _Program:
    """A task's code, ready to be fed with one row after another."""

    def __init__(self, code: str, function: str, limits: TaskLimits) -> None:
        self._code_hash = sha256(code.encode())
        self._out_bytes = limits.out_bytes
        tail = _TAIL.format(call=_ENTRY[function], most=limits.out_bytes + 1)
        self._source = code + tail
        self._limits: ResourceLimits = {
            "max_feed_duration_secs": min(ROW_WALL_S, limits.wall_s),
            "max_memory": min(ROW_MEM_BYTES, limits.mem_bytes),
            "max_recursion_depth": RECURSION_MAX,
            "max_suspensions": _SUSPENSIONS_MAX,
            "max_total_sleep_secs": 0.0,
        }

    @classmethod
    def of(cls, batch: Batch, limits: TaskLimits) -> _Program | None:
        """What a job's params say.

        None: `code` is no text of 1 to CODE_BYTES_MAX bytes, or `function` neither map nor reduce.
        """
        code, function = batch.params.get("code"), batch.params.get("function", "map")
        if not isinstance(code, str) or not isinstance(function, str) or function not in _ENTRY:
            return None
        try:
            size = len(code.encode())
        except UnicodeEncodeError:
            return None
        return cls(code, function, limits) if 0 < size <= CODE_BYTES_MAX else None

    def answer(self, pool: Monty, item: BatchRow, guest: _Guest) -> RowOut:
        """Compute one row in a fresh session; in a thread."""
        from pydantic_monty import MontyError

        try:
            row = canonical(item.row)
        except PlanError:
            return item.k, None, "bad_row"
        session = pool.checkout(limits=self._limits, os_policy=self._policy(row))
        try:
            with session:
                guest.enter(session.worker_pid)
                try:
                    text = self._feed(session, row)
                finally:
                    guest.leave()
        except MontyError as error:
            return item.k, None, _reason(error)
        return self._decoded(item.k, text)

    def _policy(self, row: bytes) -> OSPolicy:
        seed = self._code_hash.copy()
        seed.update(row)
        return {"datetime": _EPOCH, "sleep": "zero", "random_start": {"seed": seed.digest()}}

    def _feed(self, session: MontySession, row: bytes) -> object:
        from pydantic_monty import CollectString

        printed = CollectString(PRINTED_BYTES_MAX)
        found: object = session.feed_run(
            self._source, inputs={"_row": row.decode()}, print_callback=printed
        )
        return found

    def _decoded(self, k: int, text: object) -> RowOut:
        if not isinstance(text, str):
            return k, None, "bad_output"
        if len(text) > self._out_bytes:
            return k, None, "output"
        try:
            answer = msgspec.json.decode(text, type=dict[str, object])
        except (msgspec.DecodeError, RecursionError, UnicodeError, OverflowError):
            return k, None, "bad_output"
        return k, answer, ""


def _reason(error: Exception) -> str:
    """Why a guest gave no answer, in a word."""
    from pydantic_monty import MontyCrashedError, MontyRuntimeError, MontySyntaxError

    if isinstance(error, MontySyntaxError):
        return "bad_code"
    if isinstance(error, MontyCrashedError):
        return "timeout" if error.timed_out else "crashed"
    if isinstance(error, MontyRuntimeError):
        raised = error.exception()
        if isinstance(raised, TimeoutError):
            return "timeout"
        if isinstance(raised, MemoryError):
            return "memory"
        if isinstance(raised, RecursionError):
            return "recursion"
    return "exception"


def _check_installed() -> None:
    try:
        import pydantic_monty
    except ImportError:
        raise HandlerError(
            "unavailable", "`expr:` needs the extra `expr`: install covey[expr]"
        ) from None
    if pydantic_monty.__version__ != MONTY_VERSION:
        raise HandlerError(
            "unavailable",
            f"`expr:` needs pydantic-monty {MONTY_VERSION}, not {pydantic_monty.__version__}:"
            " install covey[expr]",
        )
