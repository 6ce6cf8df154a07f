"""Which peer has a task done first: estimates from what was seen, and the choice among peers.

    durations.add(handler, size, took_s)
    need = Need(t50_s=durations.t50(handler, size))
    lane = choose(lanes, need, now, rng)

Theory of operation. A task's time is estimated as the peer's queue, plus a cold start, plus what it
must read that it has not read before, plus the handler's median time for rows of that size, times
how slow the peer has been. Few candidates are all compared. Of many, those are compared that the
task's prefix hashes to, its two homes, so that tasks with a common prefix meet at peers that have
read it, and two at random, so that a crowd at the homes goes elsewhere.

What a peer claims of itself (times, load, what it has read) only orders candidates: a claim is
never believed beyond what was seen from here, and a liar gets or loses turns, nothing else.
Pure: the clock and chance are arguments. Source: docs/specs/jobs.md s.5.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    from federated.jobs.board import PeerCell

SAMPLES_MAX: Final = 400
"""Durations kept a (handler, size): tasks.md s.5 point 3."""
SAMPLES_LEAST: Final = 20
"""Below so many, a median says little (tasks.md s.5 point 8)."""
WINDOWS_MAX: Final = 512
"""Handlers and sizes remembered. Guess: more than a machine uses in a day."""
T50_UNKNOWN_S: Final = 1.0
"""Of a handler never seen. Guess; it only weighs queues against cold starts."""
TOOK_LEAST_S: Final = 0.0005
"""Workers tell whole milliseconds: what took none took about half of one."""

SLOWNESS_WEIGHT: Final = 0.2
SLOWNESS_LEAST: Final = 0.05
SLOWNESS_MOST: Final = 50.0

FEW: Final = 16
"""So many candidates are all compared; of more, two homes and two at random."""
HOMES: Final = 2
STRAYS: Final = 2
HOME_SLO_S: Final = 5.0
"""A warm home is taken while the task is done by then, or within two medians."""
AWAY_SHARE: Final = 0.5
"""A peer that is no home is taken when its estimate is below this share of the home's."""
TRIED_S: Final = 1e6
"""Added for a peer at which the task was before: others first."""

ALL_SIZES: Final = -1
"""Kind of the durations of a handler's tasks of all sizes."""
KEEP_EVERY: Final = 64
"""New durations until they are kept: what a kill may take of an estimate. Guess."""
BLOCK_BYTES: Final = 2048
"""Of a prefix; about 512 tokens, the block of Mooncake's traces."""
BLOCK_S: Final = 0.08
"""Reading a block that was not read before: the setting of the routing simulation. Guess for real
models; it weighs a cold peer against a queue."""
KEY_BLOCKS_MAX: Final = 24
HOT: Final = 20
"""A prefix asked for more often than this gets a longer key, so that it has more homes."""
HALVE_S: Final = 3600.0
PREFIXES_MAX: Final = 65_536
BLOCKS_READ_MAX: Final = 4000
"""Blocks a peer is thought to remember: the cache of the routing simulation."""


class Window:
    """The last 400 of a series, with exact quantiles."""

    __slots__ = ("_order", "_sorted")

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._order)

    def add(self, value: float) -> None:
        """The newest; the oldest of 401 goes."""
        if len(self._order) == SAMPLES_MAX:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]
        self._order.append(value)
        insort(self._sorted, value)

    def values(self) -> list[float]:
        """All of them, the oldest first."""
        return list(self._order)

    def at(self, share: float) -> float:
        """The value below which `share` of them are; there must be one."""
        return self._sorted[min(len(self._sorted) - 1, int(share * len(self._sorted)))]


class Durations:
    """How long tasks took, by handler and size of their rows (log2 of bytes)."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, int], Window] = {}
        self._fresh: dict[tuple[str, int], int] = {}
        """How many of a window came since it was last kept."""

    def load(self, rows: Iterable[tuple[str, int, bytes]]) -> None:
        """Know again what the journal kept: (handler, kind, body) of `due`, the newest last."""
        for handler, kind, body in rows:
            window = self._new(handler, kind)
            for took_s in msgspec.msgpack.decode(body, type=list[float])[-SAMPLES_MAX:]:
                window.add(took_s)

    def due(self, handler: str, least: int = KEEP_EVERY) -> list[tuple[str, int, bytes]]:
        """What of a handler is to be kept: (handler, kind, body), once it has `least` new ones."""
        keys = [
            key for key, count in self._fresh.items()
            if key[0] == handler and count >= least and key in self._windows
        ]  # fmt: skip
        for key in keys:
            del self._fresh[key]
        return [(*key, msgspec.msgpack.encode(self._windows[key].values())) for key in keys]

    def add(self, handler: str, size: int, took_s: float) -> None:
        """A task of `size` bytes was done in `took_s` seconds."""
        for kind in (size.bit_length(), ALL_SIZES):
            window = self._windows.get((handler, kind))
            if window is None:
                window = self._new(handler, kind)
            window.add(took_s)
            self._fresh[handler, kind] = self._fresh.get((handler, kind), 0) + 1

    def _new(self, handler: str, kind: int) -> Window:
        if len(self._windows) >= WINDOWS_MAX:
            oldest = next(iter(self._windows))
            del self._windows[oldest]
            self._fresh.pop(oldest, None)
        window = self._windows[handler, kind] = Window()
        return window

    def _window(self, handler: str, size: int) -> Window | None:
        """Of tasks of that size; of all sizes while there are few."""
        window = self._windows.get((handler, size.bit_length()))
        if window is None or len(window) < SAMPLES_LEAST:
            window = self._windows.get((handler, ALL_SIZES))
        return window

    def known(self, handler: str, size: int) -> bool:
        """Whether enough was seen to call a task late."""
        window = self._window(handler, size)
        return window is not None and len(window) >= SAMPLES_LEAST

    def t50(self, handler: str, size: int) -> float:
        """Median seconds."""
        window = self._window(handler, size)
        return T50_UNKNOWN_S if window is None else window.at(0.5)

    def p95(self, handler: str, size: int) -> float:
        """Seconds that one in twenty takes longer than."""
        window = self._window(handler, size)
        return T50_UNKNOWN_S if window is None else window.at(0.95)


class PeerView:
    """A peer as its coordinator sees it.

    Attributes:
        slowness: its durations relative to the handler's median, by handler; absent: 1.
        free_at: monotonic seconds at which a task offered to it now would start.
    """

    __slots__ = ("_blocks", "_told_at", "free_at", "slowness")

    def __init__(self) -> None:
        self.slowness: dict[str, float] = {}
        self.free_at = 0.0
        self._told_at = -1.0
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def slow(self, handler: str) -> float:
        """Its slowness."""
        return self.slowness.get(handler, 1.0)

    def observe(self, handler: str, ratio: float) -> None:
        """It took `ratio` times as long as was expected of an average peer."""
        ratio = min(SLOWNESS_MOST, max(SLOWNESS_LEAST, ratio))
        old = self.slowness.get(handler, 1.0)
        self.slowness[handler] = old + SLOWNESS_WEIGHT * (ratio - old)

    def given(self, now: float, share_s: float) -> None:
        """It was offered a task that keeps all its slots busy for `share_s`."""
        self.free_at = max(self.free_at, now) + share_s

    def corrected(self, offered_at: float, by_s: float) -> None:
        """A task that was offered then kept it busy so much longer than thought.

        Nothing if it has told its queue since: that held the task as it was.
        """
        if offered_at > self._told_at:
            self.free_at += by_s

    def told(self, now: float, queue_s: float, blocks: Iterable[bytes]) -> None:
        """What it says of its queue, tasks of ours included, and of what it has read."""
        self.free_at = now + min(max(0.0, queue_s), TRIED_S)
        self._told_at = now
        self.read(blocks)

    def read(self, blocks: Iterable[bytes]) -> None:
        """It has read these."""
        known = self._blocks
        for block in blocks:
            known[block] = None
            known.move_to_end(block)
        while len(known) > BLOCKS_READ_MAX:
            known.popitem(last=False)

    def hit(self, blocks: Sequence[bytes]) -> int:
        """How many blocks of a prefix it has read, from the first on."""
        known = self._blocks
        if not known:
            return 0
        for count, block in enumerate(blocks):
            if block not in known:
                return count
        return len(blocks)


class Lane:
    """A peer that may have tasks of a job, while offers are made.

    Attributes:
        cell: the peer.
        room: tasks it may still be offered.
        owner: whose device it is in this job.
        slots: tasks at once.
        slowness: with the job's handler.
        cold_s: before its first task of the handler.
    """

    __slots__ = ("cell", "cold_s", "owner", "room", "slots", "slowness", "view")

    def __init__(self, cell: PeerCell, owner: bytes, handler: str) -> None:
        offered = cell.handlers[handler]
        self.cell = cell
        self.room = cell.room
        self.view = cell.view
        self.owner = owner
        self.slots = max(1, offered.slots)
        self.slowness = cell.view.slow(handler)
        self.cold_s = 0.0 if offered.warm else offered.cold_ms / 1000


class Need:
    """What a task needs of a peer.

    Attributes:
        t50_s: median seconds of its handler for its size.
        known: whether enough was seen for that to mean something.
        blocks: hashes of its prefix, each of everything up to a block's end; [] without one.
        key: names its homes; None: any peer is as good.
        tried: owners and peers to ask last.
    """

    __slots__ = ("blocks", "key", "known", "t50_s", "tried")

    def __init__(
        self, t50_s: float, *, known: bool = True, blocks: Sequence[bytes] = (),
        key: bytes | None = None, tried: frozenset[bytes] = frozenset(),
    ) -> None:  # fmt: skip
        self.t50_s = t50_s
        self.known = known
        self.blocks = blocks
        self.key = key
        self.tried = tried

    def cost(self, lane: Lane) -> float:
        """Seconds it keeps a slot of a peer busy."""
        cost = lane.cold_s + self.t50_s * lane.slowness
        if self.blocks:
            cost += BLOCK_S * (len(self.blocks) - lane.view.hit(self.blocks))
        return cost

    def estimate(self, lane: Lane, now: float) -> float:
        """Seconds until a peer has it done."""
        found = max(0.0, lane.view.free_at - now) + self.cost(lane)
        if self.tried and (lane.owner in self.tried or bytes(lane.cell.peer) in self.tried):
            found += TRIED_S
        return found


def choose(lanes: Sequence[Lane], need: Need, now: float, rng: random.Random) -> Lane | None:
    """The peer to offer a task to; None if there is none."""
    if not lanes:
        return None
    if len(lanes) <= FEW:
        return _soonest(lanes, need, now, rng)
    if need.key is None:
        return _soonest(rng.sample(lanes, HOMES + STRAYS), need, now, rng)
    return _at_home(lanes, need, now, rng)


def _soonest(lanes: Sequence[Lane], need: Need, now: float, rng: random.Random) -> Lane:
    """The least estimate; among equals by chance, or all who choose would choose the same."""
    if len(lanes) == 1:
        return lanes[0]
    plain, t50_s = not (need.blocks or need.tried), need.t50_s
    best, best_s, equals = lanes[0], math.inf, 1
    for lane in lanes:
        if plain:
            # `estimate` without its calls: this runs for each task and peer.
            wait_s = lane.view.free_at - now
            found_s = lane.cold_s + t50_s * lane.slowness + (wait_s if wait_s > 0 else 0.0)
        else:
            found_s = need.estimate(lane, now)
        if found_s < best_s:
            best, best_s, equals = lane, found_s, 1
        elif found_s == best_s:
            equals += 1
            if rng.random() * equals < 1:
                best = lane
    return best


def _at_home(lanes: Sequence[Lane], need: Need, now: float, rng: random.Random) -> Lane:
    assert need.key is not None
    first, second = homes(need.key, lanes)
    hits = need.blocks
    warm = min(
        (first, second), key=lambda lane: (-lane.view.hit(hits), max(0.0, lane.view.free_at - now))
    )
    if need.estimate(warm, now) <= max(HOME_SLO_S, 2 * need.t50_s):
        return warm
    home = _soonest((first, second), need, now, rng)
    rest = [lane for lane in lanes if lane is not first and lane is not second]
    away = _soonest(rng.sample(rest, STRAYS), need, now, rng)
    if need.estimate(away, now) < AWAY_SHARE * need.estimate(home, now):
        return away
    return home


def homes(key: bytes, lanes: Sequence[Lane]) -> tuple[Lane, Lane]:
    """The two peers a key belongs to: the greatest hashes of (key, peer).

    Rendezvous hashing keeps no state, and a peer that joins or leaves moves only what is its own.
    """
    ranked = sorted(lanes, key=lambda lane: rank(key, bytes(lane.cell.peer)), reverse=True)
    return ranked[0], ranked[1]


def rank(key: bytes, peer: bytes) -> bytes:
    """blake2b-64 of (key, peer); keys have 8 bytes."""
    return blake2b(key + peer, digest_size=8).digest()


def blocks_of(head: bytes, body: bytes) -> list[bytes]:
    """Hashes of a prefix, block by block, each of everything before it as well.

    Args:
        head: what tasks of one handler and template share.
        body: the rows.
    """
    text = head + b"\0" + body
    found: list[bytes] = []
    before = b""
    for start in range(0, len(text), BLOCK_BYTES):
        block = text[start : start + BLOCK_BYTES]
        before = blake2b(before + block, digest_size=8).digest()
        found.append(before)
    return found


class Popularity:
    """How often prefixes were asked for, halved each hour."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}
        self._halved_s = 0.0

    def key(self, blocks: Sequence[bytes]) -> bytes:
        """The block whose hash names the homes of a task.

        The key grows by a block while its prefix is hot: what everybody shares would send
        everything to the same two peers.
        """
        counts = self._counts
        few = blocks[:KEY_BLOCKS_MAX]
        length = 1
        while length < len(few) and counts.get(few[length - 1], 0) > HOT:
            length += 1
        return few[length - 1]

    def count(self, blocks: Sequence[bytes], now: float) -> None:
        """A task that begins with these was offered."""
        if now - self._halved_s > HALVE_S or len(self._counts) > PREFIXES_MAX:
            self._halved_s = now
            halves = ((block, count // 2) for block, count in self._counts.items())
            self._counts = {block: count for block, count in halves if count}
        counts = self._counts
        for block in blocks[:KEY_BLOCKS_MAX]:
            counts[block] = counts.get(block, 0) + 1
