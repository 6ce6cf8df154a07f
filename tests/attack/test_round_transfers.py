"""Who sends a byte now and then holds no transfers longer than the view they belong to."""

from __future__ import annotations

from hashlib import sha256
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing

from federated.rounds.post import Wanted
from federated.rounds.protocol.orders import FetchResult, ResultArrived
from federated.rounds.protocol.wire import PartOf
from federated.rounds.seat import FETCHES_MAX, NoKeeper, RoundSeat
from federated.rounds.workshop import Workshop
from tests.helpers.memories import InlineOffload
from tests.helpers.rounds_kit import peers
from tests.helpers.rounds_office import Team, play_team

if TYPE_CHECKING:
    from pathlib import Path

    from federated.rounds.post import Post
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.machine import Machine
    from federated.rounds.protocol.orders import Event, Order
    from p2p.env import Env

pytestmark = pytest.mark.attack

ME, SLOW, GOOD = peers(3)


def bytes_of(number: int) -> bytes:
    return number.to_bytes(4, "little")


class Machinery:
    """A machine that orders what it is told to, and keeps what happened."""

    def __init__(self) -> None:
        self.member = SimpleNamespace(view=0, made=None, decided=None)
        self.orders: list[Order] = []
        self.events: list[Event] = []

    def take(self) -> list[Order]:
        orders, self.orders = self.orders, []
        return orders

    def event(self, _: float, event: Event) -> None:
        self.events.append(event)


class Lines:
    """One member gives what it is asked for, the other never comes to an end."""

    async def fetch(self, peer: bytes, wanted: Wanted, _: int) -> bytes:
        if peer == SLOW:
            await trio.sleep_forever()
        return bytes_of(wanted.part)


def order(number: int, holder: bytes) -> FetchResult:
    data = bytes_of(number)
    piece = PartOf(0, 1, GOOD, ME)
    return FetchResult(b"p" * 32, number, piece, len(data), sha256(data).digest(), (holder,))


def seat_of(machine: Machinery) -> RoundSeat:
    setting = SimpleNamespace(
        me=ME, federation=b"f" * 32, circle=(ME, SLOW, GOOD), newcomers=(), candidates=frozenset(),
        deadline_s=1.0, policy=SimpleNamespace(codec="f32"),
    )  # fmt: skip
    env = SimpleNamespace(now=lambda: 0.0, fault=lambda _: None)
    return RoundSeat(
        cast("Setting", setting), cast("Machine", machine), Workshop(), cast("Post", Lines()),
        cast("Env", env), InlineOffload(), NoKeeper(), lambda _: None,
    )  # fmt: skip


async def settled(seat: RoundSeat, nursery: trio.Nursery) -> None:
    await seat._carry_out(nursery)
    await trio.testing.wait_all_tasks_blocked()


def test_transfers_of_a_view_that_is_over_hold_no_places() -> None:
    async def scenario() -> None:
        machine = Machinery()
        seat = seat_of(machine)
        async with trio.open_nursery() as nursery:
            machine.orders = [order(number, SLOW) for number in range(FETCHES_MAX)]
            await settled(seat, nursery)
            machine.orders = [order(100, GOOD)]
            await settled(seat, nursery)
            assert machine.events == [], "all places are taken"
            machine.member.view = 1
            # The last is one of those that hang, asked of somebody else now.
            machine.orders = [order(101, GOOD), order(0, GOOD)]
            await settled(seat, nursery)
            arrived = {one.part for one in machine.events if isinstance(one, ResultArrived)}
            assert arrived == {101, 0}
            assert seat._slots.borrowed_tokens == 0
            nursery.cancel_scope.cancel()

    trio.run(scenario)


def test_what_a_decision_is_made_of_is_fetched_in_whatever_view() -> None:
    async def scenario() -> None:
        machine = Machinery()
        seat = seat_of(machine)
        async with trio.open_nursery() as nursery:
            machine.orders = [order(0, SLOW)]
            await settled(seat, nursery)
            machine.member.decided = object()
            machine.member.view = 1
            machine.orders = [order(1, GOOD)]
            await settled(seat, nursery)
            assert seat._slots.borrowed_tokens == 1
            nursery.cancel_scope.cancel()

    trio.run(scenario)


def test_what_came_before_a_transfer_was_ended_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(team: Team) -> None:
        post = (await team.seat(1)).rounds._post
        data = b"abcdef"
        wanted = Wanted(b"f" * 32, b"p" * 32, 0, True, sha256(data).digest(), 0)
        offsets = []

        async def receive(_: bytes, rest: Wanted, into: bytearray, nbytes: int) -> bool:
            offsets.append(rest.offset)
            into += data[rest.offset :] if rest.offset else data[:4]
            if len(into) < nbytes:
                await trio.sleep_forever()
            return True

        monkeypatch.setattr(post, "_receive", receive)
        with trio.move_on_after(1):
            await post.fetch(GOOD, wanted, len(data))
        assert await post.fetch(GOOD, wanted, len(data)) == data
        assert offsets == [0, 4]

    play_team(scenario, tmp_path, seed=1)
