"""What happened, for whoever subscribes: `memory.stored`, `group.join_pending` and so on.

Events carry ids and counts, never text. The last 10,000 are kept, so that a client that comes
back within them misses nothing; the numbers start anew with each boot, and `epoch` tells the
boots apart. A subscriber that reads too slowly loses its oldest events and is told which.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from daemon.errors import RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# daemon.md s.5: enough for hours of a busy day, at about 300 bytes an event.
RING_EVENTS: Final = 10_000
# daemon.md s.5: a reader this far behind is not reading.
QUEUE_EVENTS: Final = 1_000
TOPICS: Final = frozenset({
    "memory", "peer", "group", "sync", "trust", "job", "round", "health",
    "config", "agent", "audit", "state",
})  # fmt: skip
# These tell about the machine and its principals, not about what an agent works on.
ADMIN_TOPICS: Final = frozenset({"agent", "audit", "config"})


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened.

    Attributes:
        seq: number since the start of the daemon, from 1.
        topic: first word; what one subscribes to.
        name: `topic.what`.
        at_ms: Unix milliseconds.
        data: ids and counts.
    """

    seq: int
    topic: str
    name: str
    at_ms: int
    data: dict[str, object]


class Lagged(msgspec.Struct, frozen=True, kw_only=True):
    """Events `first` to `last` were dropped for this subscriber."""

    first: int
    last: int


class Subscription:
    """One reader's queue. Overflow: the oldest are dropped and reported as `Lagged`."""

    def __init__(self, topics: Collection[str]) -> None:
        self.topics = frozenset(topics)
        self._queue: deque[Event] = deque()
        self._lost: tuple[int, int] | None = None
        self._news = trio.Event()

    def offer(self, event: Event) -> None:
        """Queue `event` if its topic is wanted. Never blocks."""
        if event.topic not in self.topics:
            return
        if len(self._queue) >= QUEUE_EVENTS:
            gone = self._queue.popleft()
            self._lost = (self._lost[0] if self._lost else gone.seq, gone.seq)
        self._queue.append(event)
        self._news.set()

    async def receive(self) -> Event | Lagged:
        """The next event, or what was lost before it."""
        while not self._queue:
            self._news = trio.Event()
            await self._news.wait()
        if self._lost is not None:
            first, last = self._lost
            self._lost = None
            return Lagged(first=first, last=last)
        return self._queue.popleft()


class EventHub:
    """Takes events from all parts and hands them out.

    Args:
        epoch: random id of this boot.
        wall_ms: clock of `at_ms`.
    """

    def __init__(self, epoch: str, wall_ms: Callable[[], int]) -> None:
        self.epoch = epoch
        self.seq = 0
        self._wall_ms = wall_ms
        self._ring: deque[Event] = deque(maxlen=RING_EVENTS)
        self._subscriptions: set[Subscription] = set()

    def publish(self, name: str, data: dict[str, object], *, topic: str | None = None) -> None:
        """Record that `name` happened.

        Args:
            name: `topic.what`.
            data: ids and counts, never text.
            topic: when it is not the name's first word.
        """
        self.seq += 1
        event = Event(
            seq=self.seq,
            topic=topic or name.partition(".")[0],
            name=name,
            at_ms=self._wall_ms(),
            data=data,
        )
        self._ring.append(event)
        for subscription in self._subscriptions:
            subscription.offer(event)

    def subscribe(
        self, topics: Collection[str], since: tuple[str, int] | None
    ) -> tuple[Subscription, bool]:
        """Start a subscription.

        Args:
            topics: what to hear of.
            since: (epoch, seq) of the last event seen; None for only new ones.

        Returns:
            The subscription, and whether events may be missing (`reset`): another boot, or longer
            ago than the ring reaches.

        Raises:
            RpcError: invalid_params for a topic that does not exist.
        """
        unknown = sorted(set(topics) - TOPICS)
        if unknown:
            raise RpcError(
                "invalid_params", f"unknown topic {unknown[0]}; known: {', '.join(sorted(TOPICS))}"
            )
        subscription = Subscription(topics)
        reset = False
        if since is not None:
            epoch, seq = since
            oldest = self._ring[0].seq if self._ring else self.seq + 1
            reset = epoch != self.epoch or seq > self.seq or seq + 1 < oldest
            if not reset:
                for event in self._ring:
                    if event.seq > seq:
                        subscription.offer(event)
        self._subscriptions.add(subscription)
        return subscription, reset

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; ending it twice does nothing."""
        self._subscriptions.discard(subscription)


def hex_ids(data: dict[str, object]) -> dict[str, object]:
    """Copy of `data` with bytes (ids, groups, keys) as lower-case hex, also inside lists."""

    def plain(value: object) -> object:
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return value

    return {key: plain(value) for key, value in data.items()}
