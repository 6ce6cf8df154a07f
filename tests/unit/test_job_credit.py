"""How much of a worker each coordinator gets: tasks it may leave there, its share of the slots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from federated.jobs.credit import AHEAD_MAX, Grant, Shares, ahead
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.items import Credit, Failed, Hello, decode_job_item_untrusted
from federated.jobs.sessions import pipe
from federated.jobs.types import JobSpec, PerRow
from p2p.identity import PeerId
from p2p.rpc_types import Caller
from tests.helpers.jobs_kit import GROUP, play_office

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federated.jobs.handlers.base import Batch, TaskCtx
    from federated.jobs.types import RowOut
    from federated.seams import TrustClass
    from tests.helpers.jobs_kit import Desk, Office


@pytest.mark.parametrize(
    ("slots", "trip_s", "t50_s", "expected"),
    [(2, 0.02, 1.0, 0), (2, 0.02, 0.05, 2), (4, 0.1, 0.1, 8), (1, 0.02, 1e-5, 64), (2, 5, 1, 20)],
)
def test_ahead_hides_the_round_trip(slots: int, trip_s: float, t50_s: float, expected: int) -> None:
    assert ahead(slots, trip_s, t50_s) == expected


def test_a_grant_follows_what_tasks_take_and_is_told_when_it_moves() -> None:
    grant = Grant()
    first = grant.tasks(2, 0.02)
    assert first == 2 + AHEAD_MAX
    assert grant.news(first)
    assert not grant.news(first)
    assert grant.news(first, begin=True), "each session is told"
    for _ in range(30):
        grant.took(1.0)
    assert grant.tasks(2, 0.02) == 2
    assert grant.tasks(2, 0.02, contended=True) == 3
    assert grant.news(2)
    assert grant.news(3)
    assert grant.tasks(2, None) == 2, "a distance nobody knows counts as a tenth of a second"


@dataclass(eq=False)
class Customer:
    share: TrustClass
    slots_s: float = 0.0
    line: list[float] = field(default_factory=list)


def shared(customers: Sequence[Customer], took_s: dict[Customer, float], turns: int) -> None:
    """One slot, and desks that always have a task."""
    shares: Shares[Customer] = Shares()
    for one in customers:
        shares.add(one)
    for _ in range(turns):
        desk = shares.take()
        shares.begin(desk.share, took_s[desk])
        shares.add(desk)
        desk.slots_s += took_s[desk]
        shares.end(desk.share)


def test_classes_share_the_time_4_to_2_to_1_and_desks_of_a_class_equally() -> None:
    own, friend, one, other = (
        Customer("own"), Customer("friend"), Customer("stranger"), Customer("stranger"),
    )  # fmt: skip
    took_s = {own: 1.0, friend: 5.0, one: 0.5, other: 0.5}
    shared([one, other, friend, own], took_s, 20_000)
    total = own.slots_s + friend.slots_s + one.slots_s + other.slots_s
    shares = [desk.slots_s / total for desk in (own, friend, one, other)]
    assert shares == pytest.approx([4 / 7, 2 / 7, 1 / 14, 1 / 14], abs=0.005)


def test_who_idled_has_saved_nothing_up() -> None:
    shares: Shares[Customer] = Shares()
    own, stranger = Customer("own"), Customer("stranger")
    shares.add(stranger)
    for _ in range(100):
        desk = shares.take()
        shares.begin(desk.share, 1.0)
        shares.add(desk)
        shares.end(desk.share)
    shares.add(own)
    taken = []
    for _ in range(50):
        desk = shares.take()
        taken.append(desk)
        shares.begin(desk.share, 1.0)
        shares.add(desk)
        shares.end(desk.share)
    assert taken.count(own) == pytest.approx(40, abs=2)
    assert not shares.contended("none") or shares.contended("own")


class Slow:
    """Takes a second, and remembers whose tasks it ran."""

    info = HandlerInfo(id="slow@1", kind="named", deterministic=False)

    def __init__(self) -> None:
        self.owners: list[bytes] = []

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        await trio.sleep(1)
        self.owners.append(ctx.caller)
        return [(row.k, dict(row.row), "") for row in batch.rows]

    async def aclose(self) -> None:
        pass


def test_own_work_gets_four_times_a_strangers_and_both_go_on(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        slow = Slow()
        ours = await office.desk(1)
        theirs = await office.desk(2, owner=b"s" * 32)
        await office.desk(3, handlers=[slow], slots=1)
        rows: list[dict[str, object]] = [{"n": n} for n in range(200)]
        spec = JobSpec(handler="slow@1", rows=rows, batch=PerRow(), verify="none")
        await theirs.jobs.submit(spec, agent="", group=GROUP)
        await ours.jobs.submit(spec, agent="", group=None)
        await trio.sleep(130)
        late = slow.owners[20:120]
        assert late.count(theirs.id) == pytest.approx(20, abs=6)
        assert late.count(ours.id) == pytest.approx(80, abs=6)

    play_office(scenario, tmp_path, seed=1)


async def greeted(desk: Desk, peer: PeerId) -> list[object]:
    """What a worker first says to a caller."""
    found: list[object] = []
    here, there = pipe()
    async with trio.open_nursery() as nursery:
        caller = Caller(peer, "mem", float("inf"))
        nursery.start_soon(desk.jobs.worker.serve, caller, b"", there)
        with trio.move_on_after(1):
            while len(found) < 2:
                data = await here.receive()
                assert isinstance(data, bytes)
                found.append(decode_job_item_untrusted(data))
        with trio.move_on_after(0.1):
            await here.receive()
        nursery.cancel_scope.cancel()
    return found


def test_a_stranger_has_eight_tasks_and_one_session_however_many_devices(tmp_path: Path) -> None:
    async def scenario(office: Office) -> None:
        worker = await office.desk(1)
        one, other = (PeerId(bytes([n]) * 32) for n in (201, 202))
        office.owners[one] = office.owners[other] = b"s" * 32
        answers: dict[PeerId, list[object]] = {}

        async def ask(peer: PeerId) -> None:
            answers[peer] = await greeted(worker, peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, one)
            await trio.sleep(0.01)
            nursery.start_soon(ask, other)
        hello, credit = answers[one]
        assert isinstance(hello, Hello)
        assert credit == Credit(8)
        (refused,) = answers[other]
        assert isinstance(refused, Failed)
        assert refused.code == "quota"
        again = await greeted(worker, other)
        assert again[1] == Credit(8), "the first has gone"

    play_office(scenario, tmp_path, seed=2)
