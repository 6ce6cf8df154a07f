"""Happy eyeballs: the order of addresses, the stagger between them, and who may join a race."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from p2p.errors import Unreachable
from p2p.net.dialing import Race, best_of, dial_order
from tests.helpers.det import run_seeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STAGGER_S = 0.25
EACH_S = 5.0
RELAY = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"


def four(number: int) -> str:
    return f"/ip4/8.8.8.{number}/tcp/1"


def six(number: int) -> str:
    return f"/ip6/2606:4700::{number}/tcp/1"


def relayed(number: int) -> str:
    return f"/ip4/45.77.1.{number}/tcp/4001/p2p/{RELAY}/p2p-circuit"


# --- order ---


def test_addresses_are_tried_near_before_far_and_ipv6_before_ipv4() -> None:
    shuffled = [
        "/dns4/example.org/tcp/1",
        "/ip4/8.8.8.8/tcp/1",
        "/ip4/192.168.1.1/tcp/1",
        "/ip6/2606:4700::1/tcp/1",
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/8.8.8.8/tcp/1",
        "/ip6/fd00::1/tcp/1",
    ]
    assert dial_order(shuffled) == [
        "/ip4/127.0.0.1/tcp/1",
        "/ip6/fd00::1/tcp/1",
        "/ip4/192.168.1.1/tcp/1",
        "/ip6/2606:4700::1/tcp/1",
        "/ip4/8.8.8.8/tcp/1",
        "/dns4/example.org/tcp/1",
    ]


def test_the_families_take_turns() -> None:
    """RFC 8305 s.4: a family that leads nowhere costs one stagger, not one for each address."""
    mixed = [four(1), four(2), four(3), six(1), six(2), six(3), six(4)]
    assert dial_order(mixed) == [six(1), four(1), six(2), four(2), six(3), four(3), six(4)]


def test_many_direct_addresses_leave_room_for_a_relay() -> None:
    direct = [four(n) for n in range(9)]
    assert best_of([*direct, relayed(1)], 8) == [*direct[:7], relayed(1)]
    assert best_of([*direct, *map(relayed, range(4))], 8) == [*direct[:6], relayed(0), relayed(1)]
    assert best_of([*direct[:1], *map(relayed, range(9))], 8) == [
        direct[0],
        *map(relayed, range(7)),
    ]
    assert best_of(direct[:3], 8) == direct[:3]
    assert best_of([relayed(1), *direct], 0) == []


# --- the race ---


class Internet:
    """Addresses that answer after a while, refuse at once, or are silent; it notes each start."""

    def __init__(self, answers_s: dict[str, float], refusing: tuple[str, ...] = ()) -> None:
        self.answers_s = answers_s
        self.refusing = refusing
        self.started: dict[str, float] = {}
        self.discarded: list[str] = []
        self.cancelled: list[str] = []
        self.began_s = trio.current_time()
        self.race = Race(
            self.attempt, self.discard, each_s=EACH_S, stagger_s=STAGGER_S, addrs_max=8
        )

    async def attempt(self, addr: str) -> str:
        self.started[addr] = round(trio.current_time() - self.began_s, 3)
        if addr in self.refusing:
            raise Unreachable("refused")
        try:
            await trio.sleep(self.answers_s.get(addr, trio.current_time() + 1e6))
        except trio.Cancelled:
            self.cancelled.append(addr)
            raise
        return addr

    async def discard(self, addr: str) -> None:
        self.discarded.append(addr)
        await trio.lowlevel.checkpoint()


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    run_seeded(scenario, seed=1)


def test_the_next_address_starts_after_the_stagger_and_the_first_proven_one_wins() -> None:
    async def scenario() -> None:
        net = Internet({six(1): 1.0, four(1): 0.1})
        net.race.add([six(1), four(1), six(2)], first=True)
        assert await net.race.run() == four(1)
        assert net.started == {six(1): 0.0, four(1): STAGGER_S}
        assert net.cancelled == [six(1)]

    play(scenario)


def test_a_refusal_starts_the_next_at_once() -> None:
    async def scenario() -> None:
        net = Internet({four(1): 0.1}, refusing=(six(1), six(2)))
        net.race.add([six(1), six(2), four(1)], first=True)
        assert await net.race.run() == four(1)
        assert set(net.started.values()) == {0.0}

    play(scenario)


def test_a_silent_family_costs_one_stagger() -> None:
    """A machine whose IPv6 is broken, and a peer with four addresses of each family."""

    async def scenario() -> None:
        net = Internet({four(n): 0.05 for n in range(1, 5)})
        addrs = [*map(four, range(1, 5)), *map(six, range(1, 5))]
        net.race.add(dial_order(addrs), first=True)
        assert await net.race.run() == four(1)
        assert trio.current_time() - net.began_s == pytest.approx(STAGGER_S + 0.05)

    play(scenario)


def test_nobody_answering_ends_it_and_says_so_for_each() -> None:
    async def scenario() -> None:
        net = Internet({}, refusing=(four(1),))
        net.race.add([four(1), four(2)], first=True)
        with pytest.raises(Unreachable, match=r"refused.*no answer in 5 s"):
            await net.race.run()
        assert trio.current_time() - net.began_s == pytest.approx(EACH_S)
        with pytest.raises(Unreachable, match="no address"):
            await Internet({}).race.run()

    play(scenario)


@pytest.mark.parametrize(("first", "at_s"), [(True, 0.5), (False, 1.0)])
def test_who_joins_is_next_or_last(first: bool, at_s: float) -> None:
    async def scenario() -> None:
        net = Internet({six(9): 0.1})
        net.race.add(map(four, range(4)), first=True)
        async with trio.open_nursery() as nursery:

            async def join() -> None:
                await trio.sleep(0.3)
                net.race.add([six(9)], first=first)

            nursery.start_soon(join)
            assert await net.race.run() == six(9)
        assert net.started[six(9)] == at_s

    play(scenario)


def test_who_joins_when_all_are_under_way_starts_at_once() -> None:
    async def scenario() -> None:
        net = Internet({six(9): 0.1})
        net.race.add([four(1)], first=True)
        async with trio.open_nursery() as nursery:

            async def join() -> None:
                await trio.sleep(2)
                net.race.add([four(1), six(9)], first=True)

            nursery.start_soon(join)
            assert await net.race.run() == six(9)
        assert net.started == {four(1): 0.0, six(9): 2.0}

    play(scenario)


def test_what_waits_is_bounded_and_known() -> None:
    async def scenario() -> None:
        net = Internet({})
        for n in range(100):
            net.race.add([four(n)], first=True)
        assert net.race.known == [four(n) for n in range(99, 91, -1)]
        await trio.lowlevel.checkpoint()

    play(scenario)


def test_of_two_that_answer_at_the_same_moment_one_is_discarded() -> None:
    async def scenario() -> None:
        net = Internet({four(1): 1.0, four(2): 1.0 - STAGGER_S})
        net.race.add([four(1), four(2)], first=True)
        won = await net.race.run()
        assert {won, *net.discarded, *net.cancelled} == {four(1), four(2)}

    play(scenario)
