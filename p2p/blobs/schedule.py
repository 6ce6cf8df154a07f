"""Which chunk to ask of whom, and when to ask somebody else: the pure part of a fetch.

Theory of operation. One `Schedule` serves one fetch. Its driver tells it of *sources* (peers that
have the blob or a part of it) and of what became of each request; it answers with requests to send
and to give up. It knows no bytes: the driver hashes and stores chunks and says so.

    source_up, source_has, source_down      who has what
    to_send -> Request ... arrived ... stored or wrong
                       ... refused, busy    the source's own answer
    on_timer -> requests that took too long are given up

- Each source starts at a place drawn for it and goes on in order, over what nobody else was asked
  for. So several fetchers of one blob soon have different parts, and can serve each other.
- Each source has a *window*: chunks it may be asked for at once, twice what fits between it and us:
  its rate times the shortest time in which a chunk of it came, at least two. The rate is what was
  delivered while a request was under way, so that a window of two grows until the path is full (as
  BBR's start does: draft-ietf-ccwg-bbr s.4.1). A ping's round trip instead of a chunk's time left a
  path of 4 MB/s and 100 ms at 2.9 MB/s: a chunk is a little longer than a fresh stream's window.
- A request has a *limit*: four times what it should take, at least two seconds. Past it the chunk
  is free for others. A source that only ever lets us wait goes when there is another; the last one
  is given twice the time instead, for it may be a slow line.
- The *end game*: for the last eight chunks a source with nothing to do is asked too when it is
  likely faster than the one asked first, or that one is late. Whoever is second is given up.

What a hostile source may try: bytes that are not the chunk (it is dropped for the whole fetch,
`wrong`); silence or a trickle (limits above; it holds at most its window); claims to have what it
has not (`refused` takes the claim away, three in a row drop it); `busy` for ever (each pauses it
twice as long, and `stalled` ends the fetch when nothing comes from anybody).

Source: docs/specs/blobs.md s.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2p.blobs.manifest import lowest_from

if TYPE_CHECKING:
    from p2p.blobs.config import BlobConfig
    from p2p.blobs.manifest import Manifest
    from p2p.identity import PeerId

END_GAME_CHUNKS: Final = 8
"""Missing chunks from which on a chunk may be asked of two. Source: docs/specs/blobs.md s.5."""

WINDOW_MIN: Final = 2
"""One chunk on the wire and one at its source's disk."""

UNKNOWN_S: Final = 0.5
"""What a chunk is expected to take from a source that delivered none yet. Guess: 4 Mbit/s."""

LIMIT_FACTOR: Final = 4.0
"""How much longer than expected a chunk may take."""

LIMIT_S_MAX: Final = 60.0
"""Longest wait for one chunk."""

FAILURES_MAX: Final = 3
"""Late or refused answers in a row after which a source goes."""

PAUSE_S_MAX: Final = 8.0
"""Longest pause of a source that is busy."""

ROUND_TRIP_S: Final = 0.05
"""Assumed of a path that was not measured. Guess: within a continent."""


@dataclass(frozen=True, slots=True)
class Request:
    """One chunk asked of one source. `number` tells apart two requests for the same."""

    number: int
    peer: PeerId
    index: int


@dataclass(slots=True)
class _Flight:
    request: Request
    sent_s: float
    expected_s: float
    limit_s: float
    delivered_bytes: int
    """What the source had delivered when this was sent."""
    late: bool = False
    """Whether it was noticed that `expected_s` is over."""


@dataclass(slots=True)
class _Source:
    peer: PeerId
    has: int
    cursor: int
    round_trip_s: float
    relay: bool
    window: int = WINDOW_MIN
    flights: dict[int, _Flight] = field(default_factory=dict)
    bytes_per_s: float | None = None
    shortest_s: float = math.inf
    """In which a chunk came: the round trips that one takes, and its own time on the wire."""
    delivered_bytes: int = 0
    failures: int = 0
    patience: float = 1.0
    paused_until_s: float = -math.inf
    pause_s: float = 0.0

    def expected_s(self, more_bytes: int, chunk_bytes: int) -> float:
        """Seconds until `more_bytes` asked now should be here, behind what is under way."""
        if self.bytes_per_s is None:
            return UNKNOWN_S
        waiting_bytes = len(self.flights) * chunk_bytes
        return self.round_trip_s + (waiting_bytes + more_bytes) / self.bytes_per_s


class Schedule:
    """See the module's theory of operation.

    Args:
        manifest: of the blob.
        have: bitmap of the chunks that are here already.
        config: windows and times.
        now: monotonic seconds.

    Invariants: a chunk is under way from at most two sources, from two only in the end game; a
    source never has more requests than its window; requests and chunks being checked together never
    exceed `in_flight_max`.
    """

    def __init__(self, manifest: Manifest, have: int, config: BlobConfig, now: float) -> None:
        self.have = have
        self.window_max = config.window_max
        self.in_flight_max = max(2, config.in_flight_bytes_max // manifest.chunk_bytes)
        self._manifest = manifest
        self._config = config
        self._sources: dict[PeerId, _Source] = {}
        self._owners: dict[int, list[Request]] = {}
        self._checking: dict[int, PeerId] = {}
        self._taken = 0
        self._banned: set[PeerId] = set()
        self._slow: set[PeerId] = set()
        self._cancelled: list[Request] = []
        self._number = 0
        self._progress_s = now

    # --- What is so ---------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether every chunk is here."""
        return self.have == self._manifest.whole

    @property
    def sources(self) -> tuple[PeerId, ...]:
        """Whom we ask, in the order in which they came."""
        return tuple(self._sources)

    def window(self, peer: PeerId) -> int:
        """Chunks that `peer` may be asked for at once; 0 if it is no source."""
        source = self._sources.get(peer)
        return 0 if source is None else min(source.window, self.window_max)

    def in_flight(self, peer: PeerId) -> int:
        """Chunks that `peer` is asked for now."""
        source = self._sources.get(peer)
        return 0 if source is None else len(source.flights)

    def has_room(self, peer: PeerId) -> bool:
        """Whether `peer` may become a source."""
        if peer in self._banned or peer in self._sources:
            return False
        if peer in self._slow and self._sources:
            return False
        return len(self._sources) < self._config.sources_max

    def is_banned(self, peer: PeerId) -> bool:
        """Whether `peer` sent bytes that were not the blob's."""
        return peer in self._banned

    def stalled(self, now: float) -> bool:
        """Whether nothing came for so long that the fetch should end."""
        return not self.done and now >= self._progress_s + self._config.stall_s

    # --- Sources ------------------------------------------------------------------------------

    def source_up(
        self, peer: PeerId, *, has: int, start: int, round_trip_s: float | None, relay: bool
    ) -> bool:
        """A peer has chunks of the blob.

        Args:
            peer: who.
            has: bitmap of what it has.
            start: drawn index at which it begins.
            round_trip_s: measured to it; None: unknown.
            relay: whether it is reached over a relay, whose bytes are counted.

        Returns:
            Whether it is a source now: False for one that was dropped, or when there are enough.
        """
        if not self.has_room(peer):
            return False
        self._slow.discard(peer)
        trip_s = ROUND_TRIP_S if round_trip_s is None else round_trip_s
        self._sources[peer] = _Source(peer, has, start, trip_s, relay)
        return True

    def source_has(self, peer: PeerId, has: int) -> None:
        """A source has more, or less, than it said before."""
        source = self._sources.get(peer)
        if source is not None:
            source.has = has

    def source_down(self, peer: PeerId) -> None:
        """A source went away; it may come back."""
        source = self._sources.pop(peer, None)
        if source is not None:
            for flight in list(source.flights.values()):
                self._give_up(source, flight)

    # --- Answers ------------------------------------------------------------------------------

    def arrived(self, request: Request, now: float) -> bool:
        """All bytes of a request are here; they still have to be checked.

        Returns:
            False when nobody waits for them any more: throw them away.
        """
        source = self._sources.get(request.peer)
        flight = None if source is None else source.flights.get(request.number)
        if source is None or flight is None:
            return False
        self._measure(source, flight, now)
        self._end(source, request)
        for other in list(self._owners.get(request.index, ())):
            second = self._sources[other.peer]
            self._give_up(second, second.flights[other.number])
        self._checking[request.index] = request.peer
        self._taken |= 1 << request.index
        return True

    def stored(self, index: int, now: float) -> None:
        """A chunk was right and is kept."""
        self._checking.pop(index, None)
        self._release(index)
        self.have |= 1 << index
        self._progress_s = now

    def wrong(self, request: Request) -> None:
        """What a source sent is not the chunk, or breaks the protocol: never ask it again."""
        if self._checking.get(request.index) == request.peer:
            del self._checking[request.index]
            self._release(request.index)
        self._banned.add(request.peer)
        self.source_down(request.peer)

    def refused(self, request: Request) -> None:
        """A source says that it has not got what it was asked for."""
        source, flight = self._flight(request)
        if source is None or flight is None:
            return
        source.has &= ~(1 << request.index)
        self._end(source, request)
        self._failed(source)

    def busy(self, request: Request, wait_s: float, now: float) -> None:
        """A source has no room for the request now: ask it less, and later."""
        source, flight = self._flight(request)
        if source is None or flight is None:
            return
        self._end(source, request)
        if now >= source.paused_until_s:  # once for all that were refused together
            source.pause_s = min(max(wait_s, source.pause_s * 2), PAUSE_S_MAX)
            source.paused_until_s = now + source.pause_s
            source.window = max(1, source.window // 2)

    # --- Time ---------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When `on_timer` and `to_send` have something to do; None when the fetch is done."""
        if self.done:
            return None
        times = [self._progress_s + self._config.stall_s]
        end_game = self._in_end_game
        for source in self._sources.values():
            if source.paused_until_s > -math.inf:
                times.append(source.paused_until_s)
            for flight in source.flights.values():
                times.append(flight.sent_s + flight.limit_s)
                if end_game and not flight.late:
                    times.append(flight.sent_s + flight.expected_s)
        return min(times)

    def on_timer(self, now: float) -> None:
        """Give up what took too long; end pauses."""
        for source in list(self._sources.values()):
            if now >= source.paused_until_s:
                source.paused_until_s = -math.inf
            for flight in source.flights.values():
                flight.late = now >= flight.sent_s + flight.expected_s
            late = [f for f in source.flights.values() if now >= f.sent_s + f.limit_s]
            for flight in late:
                self._give_up(source, flight)
            if late:  # together they count once: one silence makes many late
                source.window = 1
                source.patience *= 2
                self._failed(source)

    # --- Requests -----------------------------------------------------------------------------

    def to_send(self, now: float) -> list[Request]:
        """Requests to send now: one of each source in turn, until the windows are full."""
        requests: list[Request] = []
        open_sources = [s for s in self._sources.values() if now >= s.paused_until_s]
        while open_sources:
            still_open = []
            for source in open_sources:
                request = self._next_of(source, now)
                if request is not None:
                    requests.append(request)
                    still_open.append(source)
            open_sources = still_open
        return requests

    def to_cancel(self) -> list[Request]:
        """Requests that are given up: nobody reads their answer. Told once."""
        cancelled, self._cancelled = self._cancelled, []
        return cancelled

    # --- Inside -------------------------------------------------------------------------------

    @property
    def _in_end_game(self) -> bool:
        return self._manifest.chunks - self.have.bit_count() <= END_GAME_CHUNKS

    def _next_of(self, source: _Source, now: float) -> Request | None:
        if len(source.flights) >= min(source.window, self.window_max):
            return None
        under_way = sum(len(owners) for owners in self._owners.values()) + len(self._checking)
        if under_way >= self.in_flight_max:
            return None
        index = lowest_from(source.has & ~self.have & ~self._taken, source.cursor)
        if index is None:
            index = self._second_for(source, now)
            if index is None:
                return None
        else:
            source.cursor = index + 1
        return self._ask(source, index, now)

    def _second_for(self, source: _Source, now: float) -> int | None:
        """A chunk under way elsewhere that `source` is likely to bring sooner."""
        if source.relay or not self._in_end_game:
            return None
        size = self._manifest.chunk_bytes
        own_s = source.expected_s(size, size)
        best: tuple[float, int] | None = None
        for index, owners in self._owners.items():
            if len(owners) != 1 or owners[0].peer == source.peer or not source.has >> index & 1:
                continue
            flight = self._sources[owners[0].peer].flights[owners[0].number]
            left_s = flight.sent_s + flight.expected_s - now
            if (left_s <= 0 or left_s > own_s) and (best is None or flight.sent_s < best[0]):
                best = (flight.sent_s, index)
        return None if best is None else best[1]

    def _ask(self, source: _Source, index: int, now: float) -> Request:
        self._number += 1
        request = Request(self._number, source.peer, index)
        size = self._manifest.span(index).size
        expected_s = source.expected_s(size, self._manifest.chunk_bytes)
        limit_s = max(self._config.chunk_s_min, LIMIT_FACTOR * expected_s) * source.patience
        source.flights[request.number] = _Flight(
            request, now, expected_s, min(limit_s, LIMIT_S_MAX), source.delivered_bytes
        )
        self._owners.setdefault(index, []).append(request)
        self._taken |= 1 << index
        return request

    def _measure(self, source: _Source, flight: _Flight, now: float) -> None:
        """Learn from a delivery: rate, window, that the source lives."""
        source.delivered_bytes += self._manifest.span(flight.request.index).size
        took_s = max(now - flight.sent_s, 1e-6)
        rate = (source.delivered_bytes - flight.delivered_bytes) / took_s
        known = source.bytes_per_s
        # A slower sample counts a quarter: one late chunk is not a slower path.
        source.bytes_per_s = rate if known is None else max(rate, 0.75 * known + 0.25 * rate)
        source.shortest_s = min(source.shortest_s, took_s)
        in_path = source.bytes_per_s * source.shortest_s / self._manifest.chunk_bytes
        source.window = min(max(WINDOW_MIN, math.ceil(2 * in_path)), self._config.window_max)
        source.failures = 0
        source.patience = 1.0
        source.pause_s = 0.0

    def _failed(self, source: _Source) -> None:
        source.failures += 1
        if source.failures >= FAILURES_MAX and len(self._sources) > 1:
            self._slow.add(source.peer)
            self.source_down(source.peer)

    def _flight(self, request: Request) -> tuple[_Source | None, _Flight | None]:
        source = self._sources.get(request.peer)
        return source, None if source is None else source.flights.get(request.number)

    def _give_up(self, source: _Source, flight: _Flight) -> None:
        self._cancelled.append(flight.request)
        self._end(source, flight.request)

    def _end(self, source: _Source, request: Request) -> None:
        """The request is over, whatever became of it."""
        del source.flights[request.number]
        owners = self._owners[request.index]
        owners.remove(request)
        if not owners:
            del self._owners[request.index]
            self._release(request.index)

    def _release(self, index: int) -> None:
        if index not in self._owners and index not in self._checking:
            self._taken &= ~(1 << index)
