"""Links and byte pipes of the simulated network: delay, rate, outages, bounded buffers.

Theory of operation: a `Link` is one direction between two hosts. Whatever is sent gets a *stamp*,
the time at which it would arrive: after what is already queued at the link's rate, plus latency and
a drawn jitter. An *outage* (partition, clog) is a pair of times; a stamp inside one is moved behind
its end, as TCP's retransmission would do, so streams lose nothing and keep their order. The end of
a partition is unknown until it is healed, so arrival is computed when somebody asks (`Link.due`),
never stored. No stream owns a task: a reader sleeps until the first stamp is due, and a heal wakes
it. A link has one while packets of handshakes or datagrams are under way.

A stream loses nothing: a lost segment comes late, by the time TCP takes to repeat it. A datagram
(`Link.copies`, `Link.stamp_once`) is lost, or comes twice, or after a later one when jitter says
so. A stream can be *cut*: from then on nothing arrives in either direction and nobody is told, as
when a NAT forgot it or a host changed its address.

All times are `trio.current_time()`, so a virtual clock moves them.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import trio
from trio.lowlevel import ParkingLot
from typing_extensions import override

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

SEGMENT_BYTES_MAX: Final = 65_536
"""Largest piece that gets a stamp of its own: small enough that a rate limit is smooth. Guess."""

PIPE_BYTES_MAX: Final = 262_144
"""Bytes in flight or unread in one direction before the sender waits: a usual socket buffer."""

RTO_S: Final = 0.2
"""Delay of a segment whose first copy was lost; doubles for each further loss. Source: the usual
kernel's lower bound of the retransmission time-out."""

RTO_S_MAX: Final = 60.0
"""It doubles no further. Source: RFC 6298 s.2.5."""

OUTAGES_KEPT_MAX: Final = 64
"""Ended outages remembered per link. Older ones cannot hold anything back any more."""


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """How a link behaves while it works."""

    latency_s: float = 0.001
    """One-way delay."""
    jitter_s: float = 0.0
    """Upper bound of a uniformly drawn extra delay."""
    bytes_per_s: float = math.inf
    """Rate shared by everything on the link, in this direction."""
    loss: float = 0.0
    """Probability that a packet is lost. Below 1: a link that loses all is a partition."""
    duplicate: float = 0.0
    """Probability that a datagram arrives twice."""

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.jitter_s < 0 or not self.bytes_per_s > 0:
            raise ValueError("latency_s and jitter_s must be >= 0 and bytes_per_s > 0")
        if not (0 <= self.loss < 1 and 0 <= self.duplicate <= 1):
            raise ValueError("loss must be in [0, 1) and duplicate in [0, 1]")


class _Packet(NamedTuple):
    """Something under way that is no part of a stream. Sorted by time, then as it was sent."""

    stamp: float
    number: int
    arrive: Callable[[], None]
    repeated: bool


class Link:
    """One direction between two hosts.

    Args:
        config: how it behaves.
        rng: draws the jitter and the losses.
    """

    def __init__(self, config: LinkConfig, rng: random.Random) -> None:
        self.config = config
        self.waiters = ParkingLot()
        self.pipes: dict[Pipe, None] = {}
        self._rng = rng
        self._free_at = -math.inf
        self._outages: list[tuple[float, float]] = []
        self._packets: list[_Packet] = []
        self._sent = 0
        self._carrying = False

    def stamp(self, size: int) -> float:
        """When `size` bytes of a stream sent now would arrive, repeated as often as it takes."""
        late_s, rto_s = 0.0, RTO_S
        while self.loses():
            late_s += rto_s
            rto_s = min(2 * rto_s, RTO_S_MAX)
        return self.stamp_once(size) + late_s

    def loses(self) -> bool:
        """Whether the next packet is lost."""
        return self.config.loss > 0 and self._rng.random() < self.config.loss

    def copies(self) -> int:
        """How many times the next datagram arrives."""
        if self.blocked or self.loses():
            return 0
        twice = self.config.duplicate > 0 and self._rng.random() < self.config.duplicate
        return 2 if twice else 1

    def stamp_once(self, size: int) -> float:
        """When one packet of `size` bytes sent now would arrive if the link worked."""
        now = trio.current_time()
        self._free_at = max(self._free_at, now) + size / self.config.bytes_per_s
        jitter_s = self._rng.uniform(0, self.config.jitter_s) if self.config.jitter_s else 0.0
        return self._free_at + self.config.latency_s + jitter_s

    def due(self, stamp: float) -> float:
        """When something stamped so arrives, as far as is known now; `inf` during a partition."""
        for start, end in self._outages:
            if start < stamp <= end:
                stamp = end + self.config.latency_s
        return stamp

    @property
    def blocked(self) -> bool:
        """Whether a partition holds this direction now."""
        return bool(self._outages) and self._outages[-1][1] == math.inf

    def block(self, until: float = math.inf) -> None:
        """Deliver nothing from now on, until `until` or `unblock`."""
        if not self.blocked:
            self._outages.append((trio.current_time(), until))
            del self._outages[:-OUTAGES_KEPT_MAX]

    def unblock(self) -> None:
        """End a partition; what was held arrives one latency later."""
        if self.blocked:
            start, _ = self._outages.pop()
            self._outages.append((start, trio.current_time()))
            self.waiters.unpark_all()
            for pipe in self.pipes:
                pipe.wake()

    def carry(self, stamp: float, arrive: Callable[[], None], *, repeated: bool) -> None:
        """Call `arrive` when something stamped so is due, in the order of the stamps.

        Args:
            stamp: of `stamp` or `stamp_once`.
            arrive: what happens then.
            repeated: whether an outage holds it, since its sender repeats it, or loses it.
        """
        heapq.heappush(self._packets, _Packet(stamp, self._sent, arrive, repeated))
        self._sent += 1
        if self._carrying:
            self.waiters.unpark_all()  # it may be the first now
        else:
            self._carrying = True
            # A system task: the network is nobody's child, and a packet outlives its sender.
            trio.lowlevel.spawn_system_task(self._carry_packets)

    async def _carry_packets(self) -> None:
        while self._packets:
            packet = self._packets[0]
            due = self.due(packet.stamp)
            if due <= trio.current_time() or not (packet.repeated or due == packet.stamp):
                heapq.heappop(self._packets)
                if packet.repeated or due == packet.stamp:
                    packet.arrive()
            else:
                with trio.move_on_at(due):
                    await self.waiters.park()
        self._carrying = False

    async def wait_due(self, stamp: float) -> None:
        """Return when something stamped so has arrived; never, while a partition lasts."""
        while (due := self.due(stamp)) > trio.current_time():
            with trio.move_on_at(due):
                await self.waiters.park()


class Segment(NamedTuple):
    """Bytes under way or unread; empty bytes are the end of the stream."""

    stamp: float
    data: bytes


class Pipe:
    """One direction of a byte stream: ordered, bounded, as late as its link.

    Invariants: stamps only matter through `link.due`; `size` counts bytes in flight and unread and
    exceeds `PIPE_BYTES_MAX` never; after `kill` nothing is delivered any more.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.size = 0
        self.bytes_total = 0
        self._segments: deque[Segment] = deque()
        self._readers = ParkingLot()
        self._writers = ParkingLot()
        self._ended = False
        self._reset_stamp = math.inf
        self._refused: tuple[Link, float] | None = None
        self._cut_s = math.inf
        self.before_send: Callable[[], None] | None = None
        """Asked before each segment: NATs on the way notice it, or have forgotten us."""
        link.pipes[self] = None

    def wake(self) -> None:
        """Let both ends look again: times have changed."""
        self._readers.unpark_all()
        self._writers.unpark_all()

    def cut(self) -> None:
        """Deliver nothing more, no bytes and no news; the sender is not told."""
        self._cut_s = min(self._cut_s, trio.current_time())
        self.wake()

    def _due(self, link: Link, stamp: float) -> float:
        due = link.due(stamp)
        return due if due <= self._cut_s else math.inf

    # What the sending end does.

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Queue `data`, waiting while the pipe is full.

        Raises:
            BrokenResourceError: the receiving end is gone, as far as we can know.
        """
        with memoryview(data) as view:
            offset = 0
            while True:
                self._check_refused()
                if self._ended or self._reset_stamp < math.inf:
                    raise trio.BrokenResourceError("this direction was closed here")
                if offset == len(view):
                    return
                room = min(PIPE_BYTES_MAX - self.size, SEGMENT_BYTES_MAX, len(view) - offset)
                if room > 0:
                    self._put(bytes(view[offset : offset + room]))
                    offset += room
                else:
                    await self._wait_writable()

    def end(self) -> None:
        """Nothing more follows."""
        if not self._ended:
            self._put(b"")
            self._ended = True

    def reset(self) -> None:
        """Destroy what is under way; the receiving end breaks one latency later."""
        if self._reset_stamp == math.inf:
            self._reset_stamp = self.link.stamp(0)
            self._readers.unpark_all()

    def _put(self, data: bytes) -> None:
        assert not self._ended, "send after end: the stream above must refuse it"
        if self.before_send is not None:
            self.before_send()
        self.size += len(data)
        self.bytes_total += len(data)
        self._segments.append(Segment(self.link.stamp(len(data)), data))
        self._readers.unpark_all()

    async def _wait_writable(self) -> None:
        with trio.move_on_at(self._refused_due()):
            await self._writers.park()

    def _refused_due(self) -> float:
        if self._refused is None:
            return math.inf
        back, stamp = self._refused
        return self._due(back, stamp)

    def _check_refused(self) -> None:
        if self._refused_due() <= trio.current_time():
            raise trio.BrokenResourceError("the other side closed or reset the stream")

    # What the receiving end does.

    def refuse(self, back: Link) -> None:
        """Read no more; the sender learns it over `back`, as by a TCP reset."""
        if self._refused is None:
            self._refused = (back, back.stamp(0))
            self._segments.clear()
            self.size = 0
        self._writers.unpark_all()
        self.link.pipes.pop(self, None)

    async def receive(self, bytes_max: int) -> bytes:
        """The next bytes that have arrived, waiting for some; `b""` at the end.

        Raises:
            BrokenResourceError: the sender reset the stream.
        """
        while True:
            if self._refused is not None:
                raise trio.BrokenResourceError("this direction was closed here")
            now = trio.current_time()
            reset_due = self._due(self.link, self._reset_stamp)
            if reset_due <= now:
                raise trio.BrokenResourceError("the other side reset the stream")
            head_due = math.inf
            if self._segments:
                head_due = self._due(self.link, self._segments[0].stamp)
            if head_due <= now:
                return self._take(bytes_max)
            with trio.move_on_at(min(head_due, reset_due)):
                await self._readers.park()

    def _take(self, bytes_max: int) -> bytes:
        stamp, data = self._segments[0]
        if not data:
            return b""
        if len(data) > bytes_max:
            self._segments[0] = Segment(stamp, data[bytes_max:])
            data = data[:bytes_max]
        else:
            self._segments.popleft()
        self.size -= len(data)
        self._writers.unpark_all()
        return data


class PipeStream(trio.abc.HalfCloseableStream):
    """Two pipes as a trio stream.

    Args:
        outgoing: what we send into.
        incoming: what we read from.
    """

    def __init__(self, outgoing: Pipe, incoming: Pipe) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self.local_error: str | None = None
        """Set when this end broke by itself, for example because its host was killed."""
        self.on_closed: Callable[[PipeStream], None] | None = None
        """Told once when this end closes or breaks."""
        self.local_port: int | None = None
        """The port that this end has, if it is of a connection between hosts."""
        self._sending = False
        self._receiving = False
        self._eof_sent = False
        self._closed = False

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue `data`; waits while the buffers are full."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint()
        self._check_usable()
        if self._eof_sent:
            raise trio.ClosedResourceError("sent after send_eof")
        self._sending = True
        try:
            await self.outgoing.send(data)
        except trio.BrokenResourceError:
            self._check_usable()  # our own closing explains it better
            raise
        finally:
            self._sending = False

    @override
    async def wait_send_all_might_not_block(self) -> None:
        """Never waits: `send_all` does."""
        await trio.lowlevel.checkpoint()
        self._check_usable()

    @override
    async def send_eof(self) -> None:
        """End our direction; the other stays usable."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint()
        self._check_usable()
        self._eof_sent = True
        self.outgoing.end()

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most `max_bytes`."""
        if self._receiving:
            raise trio.BusyResourceError("another task is reading from this stream")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        await trio.lowlevel.checkpoint()
        self._check_usable()
        self._receiving = True
        try:
            data = await self.incoming.receive(max_bytes or SEGMENT_BYTES_MAX)
        except trio.BrokenResourceError:
            self._check_usable()  # our own closing explains it better
            raise
        finally:
            self._receiving = False
        self._check_usable()
        return data

    @override
    async def aclose(self) -> None:
        """End our direction after what was sent, and read no more."""
        if not self._closed:
            self._closed = True
            if self.local_error is None:
                self.outgoing.end()
                self.incoming.refuse(self.outgoing.link)
            self._gone()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """Abandon both directions at once; never blocks."""
        self._closed = True
        self.fail("we reset the stream")

    def fail(self, why: str) -> None:
        """Break this end from below; the other end sees a reset."""
        if self.local_error is None:
            self.local_error = why
            self.outgoing.reset()
            self.incoming.refuse(self.outgoing.link)
            self._gone()

    def vanish(self, why: str) -> None:
        """Break this end without a word to the other, as when the power fails."""
        if self.local_error is None:
            self.local_error = why
            self._gone()

    def _gone(self) -> None:
        self.incoming.wake()
        self.outgoing.wake()
        if self.on_closed is not None:
            self.on_closed(self)
            self.on_closed = None

    def _check_usable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed here")
        if self.local_error is not None:
            raise trio.BrokenResourceError(self.local_error)


def pipe_streams(out: Link, back: Link) -> tuple[PipeStream, PipeStream]:
    """Two ends of a new byte stream over the links `out` (from the first end) and `back`."""
    forth, home = Pipe(out), Pipe(back)
    return PipeStream(forth, home), PipeStream(home, forth)
