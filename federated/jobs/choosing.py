"""Which peer a task goes to: who may have it, and who of them will have it done first.

Source: docs/specs/jobs.md s.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from federated.jobs.schedule import Durations, Lane, Need, Popularity, blocks_of, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from federated.jobs.board import Board, PeerCell
    from federated.jobs.state import Job, TaskCell

PrefixOf: TypeAlias = "Callable[[Job, TaskCell], Sequence[bytes]]"


def prefix_of(job: Job, task: TaskCell) -> Sequence[bytes]:
    """Hashes of the blocks a task begins with, where it matters who has read them before.

    That is so for models, which keep what they have read; they get handler, template and rows in
    this order.
    """
    if job.spec.template is None and not job.spec.handler.startswith("llm:"):
        return ()
    head = f"{job.spec.handler}\0{job.spec.template or ''}".encode()
    return blocks_of(head, b"".join(job.rows[k].source for k in task.ks))


class Choosing:
    """Chooses peers for tasks.

    Args:
        board: the machine's memory.
        prefix_of: blocks a task begins with; empty where all peers are alike.

    Attributes:
        durations: how long tasks took.
        popularity: how often prefixes were asked for.
    """

    def __init__(self, board: Board, prefix_of: PrefixOf) -> None:
        self._board = board
        self._prefix_of = prefix_of
        self.popularity = Popularity()
        self.durations = Durations()

    def slots(self, job: Job, cell: PeerCell, wall_ms: int) -> int:
        """Tasks of a job that a peer runs at once; 0: it may have none."""
        if not self._board.usable(job, cell, wall_ms):
            return 0
        return max(1, cell.handlers[job.spec.handler].slots)

    def lanes(self, job: Job, cells: Iterable[PeerCell], wall_ms: int) -> list[Lane]:
        """Those of some peers that may have tasks of a job."""
        return [
            Lane(cell, self._board.standing(job, cell.peer)[1], job.spec.handler)
            for cell in cells if self._board.usable(job, cell, wall_ms)
        ]  # fmt: skip

    def need(self, job: Job, task: TaskCell) -> Need:
        """What a task needs of a peer."""
        t50_s = self.durations.t50(job.spec.handler, task.bytes)
        known = self.durations.known(job.spec.handler, task.bytes)
        if task.prefix is None:
            task.prefix = self._prefix_of(job, task)
        tried = frozenset(bytes(one.peer) for one in task.attempts.values()) | task.avoid
        key = self.popularity.key(task.prefix) if task.prefix else None
        return Need(t50_s, known=known, blocks=task.prefix, key=key, tried=tried)

    def too_late(self, job: Job, lane: Lane, need: Need, now: float) -> bool:
        """Whether a task would be done after the deadline, as far as enough was seen to say."""
        return need.known and max(now, lane.view.free_at) + need.cost(lane) > job.deadline

    def pick(
        self, job: Job, task: TaskCell, lanes: Sequence[Lane], need: Need, now: float
    ) -> Lane | None:
        """The peer that will have a task done first, others than those it failed at if possible."""
        pin = job.rows[task.ks[0]].pin
        if pin is not None:
            return next((lane for lane in lanes if lane.cell.peer == pin), None)
        fitting = self.fitting(job, task, lanes)
        if job.holders and not task.audit:
            fitting = _holding(job, task, fitting)
        return choose(fitting, need, now, self._board.rng)

    def fitting(self, job: Job, task: TaskCell, lanes: Sequence[Lane]) -> list[Lane]:
        """Those peers that may have a task: its rows' votes bar owners, an arbiter is our own."""
        own_only, barred = self._wants(job, task)
        if not own_only and not barred and job.spec.engine != "local":
            return [lane for lane in lanes if lane.cell.peer != self._board.door.id]
        return [lane for lane in lanes if self._fits(job, lane, own_only=own_only, barred=barred)]

    def _wants(self, job: Job, task: TaskCell) -> tuple[bool, set[bytes]]:
        """Whether only a device of ours may have a task, and which owners may not."""
        if task.audit:
            return True, set()
        own_only, barred = False, set[bytes]()
        for k in task.ks:
            row = job.rows[k]
            own_only = own_only or row.own_only
            if row.barred:
                barred |= row.barred
        return own_only, barred

    def _fits(self, job: Job, lane: Lane, *, own_only: bool, barred: set[bytes]) -> bool:
        own_node = lane.cell.peer == self._board.door.id
        if own_only:
            return own_node
        if (job.spec.engine == "local") != own_node:
            return False
        return not barred or lane.owner not in barred


def _holding(job: Job, task: TaskCell, lanes: list[Lane]) -> list[Lane]:
    """Those that have most of the blobs that a task's rows name; all if nobody has any."""
    wanted = [job.blobs[k] for k in task.ks if k in job.blobs]
    if not wanted:
        return lanes
    counts = [sum(lane.cell.peer in job.holders.get(blob, ()) for blob in wanted) for lane in lanes]
    most = max(counts, default=0)
    return [lane for lane, count in zip(lanes, counts, strict=True) if count == most]
