"""What a worker puts around a handler, for tests of handlers alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from federated.jobs.handlers.base import Batch, BatchRow, TaskCtx, TaskLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federated.jobs.types import Column, Row
    from federated.seams import TrustClass
    from p2p.identity import PeerId

T = TypeVar("T")

PEER: PeerId = b"\x01" * 32  # type: ignore[assignment]
OWNER = b"\x02" * 32


class Threads:
    """Blocking work in trio's threads, as in the daemon."""

    async def run(self, fn: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(fn)


def make_batch(
    *rows: Row,
    params: Mapping[str, object] | None = None,
    columns: Sequence[Column] = (),
    texts: Sequence[str] | None = None,
) -> Batch:
    """Rows 0, 1, ... as one task, with their filled templates where there are any."""
    return Batch(
        rows=[
            BatchRow(k=k, row=row, text=None if texts is None else texts[k])
            for k, row in enumerate(rows)
        ],
        params=params or {},
        columns=columns,
    )


def make_ctx(
    *,
    caller: PeerId = PEER,
    trust: TrustClass = "own",
    group: bytes | None = None,
    limits: TaskLimits | None = None,
) -> TaskCtx:
    """A task of `caller`."""
    return TaskCtx(
        caller=caller,
        owner=OWNER,
        trust=trust,
        group=group,
        limits=limits or TaskLimits(),
        offload=Threads(),
    )


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has asked about yet (a zombie) has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


async def until_gone(pid: int) -> None:
    """Wait until a process has ended; the caller limits how long."""
    while not gone(pid):  # noqa: ASYNC110 - a stranger's process tells nobody of its end
        await trio.sleep(0.01)
