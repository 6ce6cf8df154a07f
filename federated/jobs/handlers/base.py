"""What a handler is: rows in, rows out, within limits, on whichever peer offers it.

A handler never runs in the network loop. `compute` is a pure function that the worker gives to a
thread, many small tasks at a time; `run` is for those that wait for something (a process, an
endpoint, a database) and must themselves keep off the loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federated.jobs.types import Column, Row, RowOut
    from federated.seams import GroupId, TrustClass
    from p2p.env import Offload
    from p2p.identity import PeerId

Kind: TypeAlias = Literal["named", "memory", "llm", "expr"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskLimits:
    """What one task may take on this machine.

    Attributes:
        wall_s: seconds until it is ended.
        mem_bytes: memory of the process it runs in, where it has one.
        out_bytes: bytes of its answer in canonical form.
    """

    wall_s: float = 60.0
    mem_bytes: int = 512 * 2**20
    out_bytes: int = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class HandlerInfo:
    """What a handler says of itself.

    Attributes:
        id: `name@version`; another version is another handler.
        kind: which kind; decides who may use it unless the operator says so.
        deterministic: a row's answer depends on its row, params, template and columns alone, never
            on the batch, the machine or the time.
        effect: it acts on the world: run at most once a token.
        idempotent_by_token: running it twice with one token does no harm.
        local: its answer also depends on the machine (files, memory).
        cold_s: seconds of a first call beyond a later one.
        batch_max: most rows of a call.
        slots: tasks at once; 0: the node's number.
        limits: what one task may take at most.
        summary: a line for people.
    """

    id: str
    kind: Kind
    deterministic: bool
    effect: bool = False
    idempotent_by_token: bool = False
    local: bool = False
    cold_s: float = 0.0
    batch_max: int = 32
    slots: int = 0
    limits: TaskLimits = TaskLimits()
    summary: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRow:
    """One row of a task.

    Attributes:
        k: its index in the job.
        row: its cells.
        text: the template filled with it; None without a template.
        token: names its effect; None unless the job has one.
        partial: what an earlier try answered of it; None on the first.
    """

    k: int
    row: Row
    text: str | None = None
    token: bytes | None = None
    partial: Row | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A task as a handler sees it.

    Attributes:
        rows: what to compute, 1 to 32.
        params: the job's.
        columns: what each answer must have; none: anything.
        reduces: whether answers are `{"pairs": [[key, number], ...]}` for count, sum and topk.
    """

    rows: Sequence[BatchRow]
    params: Mapping[str, object]
    columns: Sequence[Column] = ()
    reduces: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCtx:
    """Around a task: for whom, how long, with what.

    Attributes:
        caller: the coordinator's proven id; our own for local jobs.
        owner: whose device it is.
        trust: what it is to us in the job's group.
        group: the job's group; None: own devices.
        limits: the smaller of the job's and the handler's.
        tokens: of an effect: each row's token by index; what names it for whoever acts, so that the
            same one twice is once.
        progress: say which part of the task is done, 0 to 1; never waits.
        offload: where blocking work goes.
    """

    caller: PeerId
    owner: bytes
    trust: TrustClass
    group: GroupId | None
    limits: TaskLimits
    offload: Offload
    tokens: Mapping[int, bytes] = field(default_factory=dict)
    progress: Callable[[float], None] = field(default=lambda _share: None)


class Handler(Protocol):
    """One thing a peer can compute."""

    @property
    def info(self) -> HandlerInfo:
        """What it says of itself."""
        ...

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        """Answer the rows of a task, in any order.

        Cancellation must end whatever it started within a second. The worker ends it at
        `ctx.limits.wall_s` and checks its output, so a handler needs no timer of its own.

        Raises:
            HandlerError: the whole task failed, and why. Any other exception counts as
                `exception`.
        """
        ...

    async def aclose(self) -> None:
        """End what it keeps between tasks."""
        ...


class PureHandler(Protocol):
    """A handler that is a quick function: the worker runs many tasks in one trip to a thread."""

    @property
    def info(self) -> HandlerInfo:
        """What it says of itself."""
        ...

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        """Answer the rows of a task; runs in a thread, must not block or keep state."""
        ...
