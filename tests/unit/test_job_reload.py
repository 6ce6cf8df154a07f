"""What a kill of the coordinator may not bring back or take away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks.job_sims.fleet import HANDLER
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.state import RowState
from tests.helpers.job_journal import KeptFleet

if TYPE_CHECKING:
    from benchmarks.job_sims.fleet import PlayedTask

LIE = {"n": "lie"}


def said(task: PlayedTask, lies: bool) -> bytes:
    rows = msgspec.json.decode(task.offered.rows, type=list[list[object]])
    return msgspec.json.encode([[row[0], LIE if lies else row[1]] for row in rows])


def strangers(*names: str, seed: int, credit: int = 9) -> KeptFleet:
    """A coordinator that can compute rows itself, and owners of one device each."""
    fleet = KeptFleet(seed=seed)
    fleet.core.board.own_handlers = {
        HANDLER: HandlerInfo(id=HANDLER, kind="named", deterministic=True)
    }
    fleet.join("ours", credit=credit)
    for name in names:
        fleet.join(name, credit=credit, trust="stranger", owner=name.encode() * 32)
    return fleet


def all_answer(fleet: KeptFleet, name: str, *, lies: bool = False, but: int = 0) -> int:
    """A peer answers what it holds but for the last few; how much that was."""
    held = fleet.offered(name)
    done = held[: len(held) - but]
    for task in done:
        if task.ref in fleet.held[name]:
            fleet.answer(task, rows=said(task, lies))
    return len(done)


def test_a_liars_votes_stay_dropped_after_a_kill() -> None:
    fleet = strangers("l", "h", seed=1)
    fleet.core.board.peers[fleet.id_of("l")].window = 9
    job = fleet.submit(rows=8, group="everybody", verify="adaptive")
    liar = b"l" * 32
    while not all_answer(fleet, "l", lies=True):
        all_answer(fleet, "h")
    voted = [row.k for row in job.rows if any(one.owner == liar for one in row.answers)]
    assert voted
    # The other owner contradicts one of them, and our own device decides.
    while not fleet.core.board.reputation.quarantines(fleet.wall_ms):
        task = next((one for one in fleet.offered("h")), None)
        if task is not None:
            fleet.answer(task, rows=said(task, lies=False))
        for own in fleet.offered("ours"):
            fleet.answer(own, rows=said(own, lies=False))
        fleet.tick(at=fleet.now + 0.2)
    open_still = [k for k in voted if job.rows[k].state is RowState.PENDING]
    assert open_still, "rows the liar voted on are open"
    assert not any(one.owner == liar for k in open_still for one in job.rows[k].answers)
    read = fleet.read(job)
    for k in open_still:
        row = read.rows[k]
        assert not any(one.owner == liar for one in row.answers), "its vote is back"
        assert liar in row.barred
        assert row.doubted
