"""Events: the ring, slow readers, other boots."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from daemon.errors import RpcError
from daemon.events import QUEUE_EVENTS, RING_EVENTS, Event, EventHub, Lagged, hex_ids


def make_hub() -> EventHub:
    return EventHub("boot", lambda: 5)


async def drain(subscription: object, count: int) -> list[Event | Lagged]:
    receive = subscription.receive  # type: ignore[attr-defined]
    return [await receive() for _ in range(count)]


async def test_only_wanted_topics_come_in_order() -> None:
    hub = make_hub()
    subscription, reset = hub.subscribe(["memory", "peer"], None)
    assert not reset
    for name in ("memory.stored", "group.changed", "peer.up"):
        hub.publish(name, {})
    hub.publish("record.admitted", {}, topic="memory")
    names = [item.name for item in await drain(subscription, 3) if isinstance(item, Event)]
    assert names == ["memory.stored", "peer.up", "record.admitted"]


async def test_a_reader_that_comes_back_misses_nothing() -> None:
    hub = make_hub()
    for number in range(10):
        hub.publish("memory.stored", {"number": number})
    subscription, reset = hub.subscribe(["memory"], ("boot", 7))
    assert not reset
    assert [item.seq for item in await drain(subscription, 3) if isinstance(item, Event)] == [
        8,
        9,
        10,
    ]


async def test_too_long_ago_or_another_boot_resets() -> None:
    hub = make_hub()
    assert hub.subscribe(["memory"], ("boot", 0))[1] is False
    for _ in range(RING_EVENTS + 5):
        hub.publish("memory.stored", {})
    assert hub.subscribe(["memory"], ("boot", 4))[1] is True
    assert hub.subscribe(["memory"], ("boot", 5))[1] is False
    assert hub.subscribe(["memory"], ("other", 9000))[1] is True
    assert hub.subscribe(["memory"], ("boot", RING_EVENTS + 6))[1] is True


@pytest.mark.attack
async def test_a_slow_reader_loses_the_oldest_and_learns_which() -> None:
    hub = make_hub()
    slow, _ = hub.subscribe(["memory"], None)
    for _ in range(QUEUE_EVENTS + 3):
        hub.publish("memory.stored", {})
    first = await slow.receive()
    assert first == Lagged(first=1, last=3)
    second = await slow.receive()
    assert isinstance(second, Event)
    assert second.seq == 4


async def test_receive_waits_for_the_next_event() -> None:
    hub = make_hub()
    subscription, _ = hub.subscribe(["memory"], None)
    got: list[Event | Lagged] = []

    async def read() -> None:
        got.append(await subscription.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        hub.publish("memory.stored", {})
    assert len(got) == 1


def test_an_unsubscribed_reader_gets_nothing_more() -> None:
    hub = make_hub()
    subscription, _ = hub.subscribe(["memory"], None)
    hub.unsubscribe(subscription)
    hub.unsubscribe(subscription)
    hub.publish("memory.stored", {})
    assert not subscription._queue


def test_unknown_topics_are_named() -> None:
    with pytest.raises(RpcError, match="gossip"):
        make_hub().subscribe(["memory", "gossip"], None)


def test_ids_are_shown_in_hex_wherever_they_are() -> None:
    data: dict[str, object] = {"a": b"\x01\xff", "b": [b"\x02", 3], "c": {"d": b"\x04"}, "e": None}
    assert hex_ids(data) == {"a": "01ff", "b": ["02", 3], "c": {"d": "04"}, "e": None}
