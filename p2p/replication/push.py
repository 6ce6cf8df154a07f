"""Eager push, the pure part: what waits for each peer, who gets records in full, what to ask for.

A committed record goes within 20 ms to the connected members of its group. Each peer has a bounded
outbox that drops its oldest record and says so, because a session will bring what was dropped. In a
group with many connected members most get ids only and ask after a second (Plumtree's lazy links).
Source: docs/specs/sync.md s.6; Leitao, Pereira, Rodrigues 2007.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from p2p.replication.messages import (
    FRAME_BYTES_MAX,
    IDS_MAX,
    Have,
    Message,
    Records,
    WantBodies,
    encode_frame,
)
from p2p.replication.wires import records_frames, wire_bytes

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    from p2p.replication.config import ReplicationConfig
    from p2p.replication.record import RecordWire

PROTOCOL: Final = "/covey/push/1"

SEND_BYTES: Final = 256 * 1024
"""Cut into frames at once; more stays in the outbox, where it can still be dropped."""

ORIGINS_MAX: Final = 65_536
"""Records remembered with who brought them, so that they are not sent back."""

ANNOUNCED_MAX: Final = 16_384
"""Announced ids remembered until they come or are asked for."""


class Outbox:
    """What waits for one peer.

    Args:
        config: limits.
    """

    def __init__(self, config: ReplicationConfig) -> None:
        self._config = config
        self._records: deque[tuple[bytes, RecordWire, int]] = deque()
        self._bytes = 0
        self._have: dict[bytes, dict[bytes, None]] = {}
        self._want: dict[bytes, dict[bytes, None]] = {}
        self.lagged = False
        """Whether records were dropped since the flag was last cleared."""

    def __len__(self) -> int:
        return len(self._records)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (self._records or self._have or self._want)

    @property
    def has_room(self) -> bool:
        """Whether more would fit without dropping anything, but for what was just read."""
        return (
            len(self._records) < self._config.push_queue_records_max // 2
            and self._bytes < self._config.push_queue_bytes_max // 2
        )

    def put(self, group: bytes, wire: RecordWire) -> None:
        """Queue a record; over a limit the oldest is dropped."""
        size = wire_bytes(wire)
        self._records.append((group, wire, size))
        self._bytes += size
        while (
            len(self._records) > self._config.push_queue_records_max
            or self._bytes > self._config.push_queue_bytes_max
        ):
            _, _, dropped = self._records.popleft()
            self._bytes -= dropped
            self.lagged = True

    def announce(self, group: bytes, ids: Iterable[bytes]) -> None:
        """Queue ids of records the peer may ask for."""
        _fill(self._have.setdefault(group, {}), ids)

    def ask(self, group: bytes, ids: Iterable[bytes]) -> None:
        """Queue a question for records by id."""
        _fill(self._want.setdefault(group, {}), ids)

    def clear(self) -> None:
        """Drop everything: the peer is gone, a session will repair."""
        self.lagged = self.lagged or not self.empty
        self._records.clear()
        self._bytes = 0
        self._have.clear()
        self._want.clear()

    def take(self) -> bytes:
        """Frames of at most about `SEND_BYTES`, questions first."""
        frames: list[Message] = []
        for group, ids in self._want.items():
            frames.append(WantBodies(group, tuple(ids)))
        self._want = {}
        for group, ids in self._have.items():
            frames.append(Have(group, tuple(ids)))
        self._have = {}
        frames += self._take_records()
        return b"".join(encode_frame(frame) for frame in frames)

    def _take_records(self) -> list[Records]:
        taken: dict[bytes, list[RecordWire]] = {}
        size = 0
        while self._records and size < SEND_BYTES - FRAME_BYTES_MAX:
            group, wire, weight = self._records.popleft()
            taken.setdefault(group, []).append(wire)
            self._bytes -= weight
            size += weight
        return [frame for group, wires in taken.items() for frame in records_frames(group, wires)]


def _fill(ids: dict[bytes, None], more: Iterable[bytes]) -> None:
    for ident in more:
        if len(ids) < IDS_MAX:
            ids[ident] = None


def spread(
    peers: Sequence[bytes], config: ReplicationConfig, rng: random.Random
) -> tuple[list[bytes], list[bytes]]:
    """Split the connected members of a group: who gets records in full, who gets ids."""
    if len(peers) <= config.push_full_max:
        return list(peers), []
    full = set(rng.sample(list(peers), config.push_sample))
    return [p for p in peers if p in full], [p for p in peers if p not in full]


class Origins:
    """Who brought a record, for as long as it may still be on its way to others."""

    def __init__(self) -> None:
        self._peers: OrderedDict[bytes, bytes] = OrderedDict()

    def note(self, ident: bytes, peer: bytes) -> None:
        """`peer` brought this record first."""
        self._peers.setdefault(ident, peer)
        if len(self._peers) > ORIGINS_MAX:
            self._peers.popitem(last=False)

    def of(self, ident: bytes) -> bytes | None:
        """Who brought it; None for our own."""
        return self._peers.get(ident)


class Announced:
    """Ids we heard of and do not have."""

    def __init__(self) -> None:
        self._ids: OrderedDict[bytes, tuple[bytes, bytes, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ids)

    def note(self, group: bytes, ident: bytes, peer: bytes, ask_at: float) -> None:
        """`peer` has it; ask then unless it came."""
        self._ids.setdefault(ident, (group, peer, ask_at))
        if len(self._ids) > ANNOUNCED_MAX:
            self._ids.popitem(last=False)

    def arrived(self, ident: bytes) -> None:
        """It is here."""
        self._ids.pop(ident, None)

    def next_ask(self) -> float | None:
        """When to look again, in seconds."""
        return next(iter(self._ids.values()))[2] if self._ids else None

    def due(self, now: float) -> list[tuple[bytes, bytes, bytes]]:
        """(peer, group, id) to ask for now; each is handed out once."""
        found = []
        while self._ids:
            ident, (group, peer, ask_at) = next(iter(self._ids.items()))
            if ask_at > now:
                break
            del self._ids[ident]
            found.append((peer, group, ident))
        return found
