"""The thin driver of one connection: moves bytes between a transport and the session machine.

Three tasks: a reader, a writer, a timer, and one per inbound stream. All frames are cut in
`Connection.flush`, which is synchronous: it runs in the caller of `send_all` when the socket takes
bytes at once (two task switches fewer per request than waking the writer), and in the writer task
when it does not, or when many callers send at once. Either way only whole frames leave, and nothing
that is cancelled can stand between two halves of one.

A transport stream that can say "would block" (`NowaitStream`, our TCP) is driven so; any other one
is written by the writer task alone.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import deque
from typing import TYPE_CHECKING

import trio

from p2p.errors import PeerError, TimedOut
from p2p.net.inbound import InboundStreams
from p2p.net.ports import LocatedStream, NowaitStream, PortedStream
from p2p.net.streams import WireStream
from p2p.net.wakeup import Wakeup
from p2p.wire.liveness import Liveness, LivenessTimes, Verdict
from p2p.wire.multiaddr import ip_of
from p2p.wire.multistream import Dialer
from p2p.wire.session import Opened, Phase, Proven, Session, SessionEvent
from p2p.wire.yamux_frames import (
    GoAway,
    Pong,
    StreamData,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WentAway,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.net.ports import ConnectionOwner
    from p2p.net.seam import Addr, Handler, Path, Stream
    from p2p.wire.multiaddr import IpAddress
    from p2p.wire.yamux import Yamux

log = logging.getLogger("covey.p2p.connection")

READ_BYTES = 262_144
"""One read of the socket; larger ones gain nothing (benchmark: bulk)."""
WRITE_BYTES = 262_144
"""Frames cut for one write, so that a small message waits behind at most this much."""
INLINE_WRITES_MAX = 8
"""Writes in the callers' turns before something is read, or the writer had its turn. More of them
are a burst, which the writer sends in few large ones: a thousand streams opened at once take .32 s
of CPU so, and .53 s with a write and a sealed message each (benchmark: streams). The number is a
guess, far above what one call takes."""
ANSWER_MIN_S = 1.0
"""Shortest time a connection has to prove that it lives, when somebody asks."""
END_DELAY_S = 0.02
"""How long our end of a stream waits behind the other side's agreement; see `end_soon`."""


class Buffers:
    """Scratch for reads and writes: filled and used up without giving up control in between."""

    def __init__(self) -> None:
        self.read = bytearray(READ_BYTES)
        self.write = bytearray(WRITE_BYTES)


class Connection:
    """One connection to one peer.

    Args:
        stream: the raw transport; owned from here on.
        session: the machine, fresh.
        owner: see `ConnectionOwner`.
        env: clocks.
        config: limits and times.
        buffers: scratch shared by all connections of the fabric.
        addr: where it was dialled, or came from.
        inbound: whether the other side started the handshake.
        dialled: whether we dialled `addr`; both sides did if the connection was punched.
        path: how it runs.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        session: Session,
        owner: ConnectionOwner,
        env: Env,
        config: P2pConfig,
        *,
        buffers: Buffers,
        addr: Addr,
        inbound: bool,
        dialled: bool,
        path: Path = "direct",
    ) -> None:
        self.session = session
        self.mux: Yamux = session.mux
        self.addr = addr
        self.inbound = inbound
        self.dialled = dialled
        self.unasked = False
        """Whether it was accepted from a host that we had not sent to for long."""
        self.path: Path = path
        self.since_s = env.now()
        self.bytes_in = 0
        self.bytes_out = 0
        self.waiting = 0
        self.suspect = False
        self.draining = False
        self.reason: str | None = None
        """Why it ended; None while it lives."""
        self.agent = ""
        """What identify said of its software."""
        self.remote_protocols: frozenset[str] = frozenset()
        """What identify said that it serves."""
        self.opened = trio.Event()
        """Set when streams flow both ways, or never will."""
        self.idle = trio.Event()
        """Set while no stream is live, replaced when one begins."""
        self.pong = trio.Event()
        """Set and replaced at every pong."""
        self.done = trio.Event()
        """Set when `run` is over."""
        self._stream = stream
        self._fast = stream if isinstance(stream, NowaitStream) else None
        self._owner = owner
        self._env = env
        self._config = config
        self._buffers = buffers
        self._liveness = Liveness(
            LivenessTimes(
                ping_idle_s=config.ping_idle_s,
                dead_idle_s=config.dead_idle_s,
                ping_busy_s=config.ping_busy_s,
                dead_busy_s=config.dead_busy_s,
                suspect_s=config.suspect_s,
            ),
            self.since_s,
        )
        self._pending: list[SessionEvent] = []
        self._streams: dict[int, WireStream] = {}
        self._inbound = InboundStreams(
            self.mux,
            owner.served,
            limit_s=config.negotiate_s,
            start=self._start_stream,
            blame=self.blame,
        )
        self._lingering: dict[int, float] = {}
        self._senders: dict[int, WireStream] = {}
        self._ends: deque[tuple[float, WireStream]] = deque()
        self.prompt_ends = False
        """Whether the other side is known to notice an end at any time."""
        self._unsent: memoryview | None = None
        self._inline_writes = 0
        self._work = Wakeup()  # wakes the writer
        self._can_open = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._broken = False  # the transport itself failed: no goodbye
        self.idle.set()

    # --- facts ---

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, proven."""
        peer = self.session.peer
        assert peer is not None, "the handshake has not finished"
        return peer

    @property
    def local_port(self) -> int | None:
        """The port of ours it uses, if it has one."""
        return self._stream.local_port if isinstance(self._stream, PortedStream) else None

    @property
    def local_ip(self) -> IpAddress | None:
        """The address of ours it uses, if the transport tells."""
        text = self._stream.local_ip if isinstance(self._stream, LocatedStream) else None
        return None if text is None else ipaddress.ip_address(text)

    @property
    def remote_ip(self) -> IpAddress | None:
        """The address it leads to; a relay's if it is relayed."""
        ip = ip_of(self.addr)
        if ip is None and isinstance(self._stream, LocatedStream):
            text = self._stream.remote_ip
            ip = None if text is None else ipaddress.ip_address(text)
        return ip

    @property
    def initiator(self) -> PeerId | None:
        """The peer that started the handshake, None if we did."""
        return self.peer if self.inbound else None

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.reason is None

    @property
    def usable(self) -> bool:
        """Whether new streams may be put here."""
        return self.alive and not self.draining

    @property
    def seen_s(self) -> float:
        """When a byte last arrived."""
        return self._liveness.seen_s

    def now(self) -> float:
        """Monotonic seconds."""
        return self._env.now()

    # --- life ---

    async def upgrade(self) -> None:
        """Run the handshake until the peer is proven. The caller limits the time.

        Raises:
            PeerError: they broke the protocol, or are somebody else.
            trio.BrokenResourceError: the transport ended.
        """
        session = self.session
        while session.peer is None:
            # Flight 2 of an initiator is left to `run`, so that early streams can join it.
            if session.has_output:
                await self._stream.send_all(self._cut())
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                raise trio.BrokenResourceError("the peer closed during the handshake")
            self._heard(len(data))
            self._pending += session.receive(memoryview(data), self.now())

    async def run(self) -> None:
        """Carry streams until the connection ends or is cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._writer)
                nursery.start_soon(self._timer)
                pending, self._pending = self._pending, []
                self._dispatch(pending)
                await self._reader()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._end("the node stopped")
            with trio.move_on_after(self._config.close_grace_s, shield=True):
                await self._goodbye()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)
            self.done.set()

    def abort(self, why: str, *, broken: bool = False) -> None:
        """End now: every stream breaks. `broken`: without a goodbye."""
        self._broken = self._broken or broken
        self._end(why)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def discard(self) -> None:
        """Close a connection that was never run."""
        self._end("it is not wanted any more")
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)
        self.done.set()

    def carries(self, stream: Stream) -> bool:
        """Whether `stream` is one of ours."""
        return isinstance(stream, WireStream) and self._streams.get(stream.id) is stream

    def blame(self, why: str) -> None:
        """A part above found that the peer broke a rule."""
        self._owner.violated(self, why)

    def start_soon(self, fn: Callable[[Connection], Awaitable[None]]) -> None:
        """Run `fn` beside the streams; it ends with the connection."""
        if self._nursery is not None:
            self._nursery.start_soon(fn, self)

    async def close(self, why: str) -> None:
        """Say goodbye and end. What was sent leaves first, within the grace."""
        self.abort(why)  # `run` sends what is buffered and the goodbye
        await self.done.wait()

    async def _goodbye(self) -> None:
        """Tell the other side, if it can still hear. Time is limited by the caller."""
        half_sent = self._fast is None and self._unsent is not None
        if self._broken or half_sent or self.session.phase is not Phase.OPEN:
            return
        self.mux.go_away(GoAway.NORMAL)
        try:
            if self._unsent:
                await self._stream.send_all(self._unsent)
            while self.session.has_output and (data := self._cut()):
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def _end(self, why: str) -> None:
        if self.reason is not None:
            return
        self.reason = why
        for stream in list(self._streams.values()):
            stream.break_off(f"the connection ended: {why}")
        self._streams.clear()
        self._senders.clear()
        self.opened.set()
        self.idle.set()
        self._can_open.set()
        self.pong.set()

    # --- streams ---

    async def wait_can_open(self) -> None:
        """Return when a stream may be opened, or the connection ended."""
        while self.alive and not self.session.can_open:
            if self._can_open.is_set():
                self._can_open = trio.Event()
            await self._can_open.wait()

    def open(self, protocol: str) -> WireStream:
        """Open a stream; ask `session.can_open` first. The proposal leaves with the first data."""
        dialer = Dialer(protocol)
        stream_id = self.session.open_stream(self.now())
        stream = WireStream(
            self, stream_id, peer=self.peer, protocol=protocol, path=self.path, dialer=dialer
        )
        self._add(stream)
        self.mux.send(stream_id, dialer.greeting())
        self._work.wake()
        return stream

    def wait_for_room(self, stream: WireStream) -> None:
        """Wake `stream.writable` once its buffer is half empty."""
        self._senders[stream.id] = stream

    def end_soon(self, stream: WireStream) -> None:
        """Send the end of a stream whose handler over there may not be attached yet.

        js-libp2p never tells its handler of an end that arrives while it still negotiates or
        between its agreement and the handler's start (seen live, 1 of 20). So an end waits for the
        first byte of the handler, or 20 ms; not with peers that said they are of our kind.
        """
        if self.prompt_ends:
            stream.end_now()
        elif self._nursery is not None:
            if not self._ends:
                self._nursery.start_soon(self._send_ends)
            self._ends.append((self.now() + END_DELAY_S, stream))

    async def _send_ends(self) -> None:
        while self._ends:
            await trio.sleep(max(0.0, self._ends[0][0] - self.now()))
            self._ends.popleft()[1].end_now()
            self.flush()

    def closed_by_us(self, stream: WireStream) -> None:
        """Reset `stream` if the other side has not ended it in a while."""
        if self.mux.alive(stream.id):
            self._lingering[stream.id] = self.now() + self._config.linger_s
        self._forget_streams()

    def _add(self, stream: WireStream) -> None:
        if self.idle.is_set():
            self.idle = trio.Event()
        self._streams[stream.id] = stream

    def _forget_streams(self) -> None:
        forgotten = self.mux.take_forgotten()
        if not forgotten:
            return
        for stream_id in forgotten:
            self._streams.pop(stream_id, None)
            self._lingering.pop(stream_id, None)
            self._inbound.forget(stream_id)
            self._senders.pop(stream_id, None)
        if not self.mux.streams:
            self.idle.set()
        self._tell_openers()

    def _tell_openers(self) -> None:
        if not self._can_open.is_set() and self.session.can_open:
            self._can_open.set()

    # --- sending ---

    def flush(self) -> None:
        """Send what the transport takes now; the writer task sends the rest. Never blocks."""
        if self._unsent is not None or not self.alive:
            return  # the writer is at it, or nothing will leave any more
        burst = self._inline_writes >= INLINE_WRITES_MAX and self.session.has_output
        if burst or self._fast is None or not self._flush_fast(self._fast):
            self._work.wake()

    def _flush_fast(self, fast: NowaitStream) -> bool:
        """Cut and write until nothing is left (True) or the socket is full (False)."""
        session, buffer = self.session, self._buffers.write
        try:
            while True:
                if self._unsent is None:
                    if not session.has_output or not (size := session.send_into(buffer)):
                        break
                    unsent = memoryview(buffer)[:size]
                else:
                    unsent = self._unsent
                sent = fast.send_nowait(unsent)
                self._inline_writes += 1
                self.bytes_out += sent
                if sent == len(unsent):
                    self._unsent = None
                else:
                    # What is left moves out of the buffer, which serves other connections next.
                    self._unsent = memoryview(bytes(unsent[sent:]))
                    self._after_cut()
                    return False
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.abort(str(error), broken=True)
        self._after_cut()
        return True

    def _after_cut(self) -> None:
        self._forget_streams()
        if self._senders:
            half = self._config.stream_send_buffer_bytes // 2
            for stream in list(self._senders.values()):
                if self.mux.room(stream.id) >= half:
                    del self._senders[stream.id]
                    stream.writable.wake()

    async def _writer(self) -> None:
        fast = self._fast
        while True:
            # Let the handlers that were woken by the same read run first: their answers share
            # the write.
            await trio.lowlevel.checkpoint()
            if fast is None:
                await self._write_slow()
            else:
                while not self._flush_fast(fast):
                    await fast.wait_writable()
            self._inline_writes = 0
            await self._work.wait()

    def _cut(self) -> bytes:
        """Frames for one write, in memory of their own."""
        buffer = self._buffers.write
        return bytes(memoryview(buffer)[: self.session.send_into(buffer)])

    async def _write_slow(self) -> None:
        try:
            while self.session.has_output and (data := self._cut()):
                self._after_cut()
                # A cancel in here ends the connection, so a half-sent message cannot be followed.
                self._unsent = memoryview(b"")
                await self._stream.send_all(data)
                self._unsent = None
                self.bytes_out += len(data)
            self._after_cut()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.abort(str(error), broken=True)

    # --- receiving ---

    async def _reader(self) -> None:
        try:
            if self._fast is not None:
                await self._read_fast(self._fast)
            else:
                while data := await self._stream.receive_some(READ_BYTES):
                    self._take(memoryview(data))
            self.abort("the peer closed the connection", broken=True)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.abort(f"the transport broke: {error}", broken=True)
        except PeerError as error:
            self._owner.violated(self, str(error))
            self.abort(f"the peer broke the protocol: {error}")

    async def _read_fast(self, fast: NowaitStream) -> None:
        buffer = self._buffers.read
        view = memoryview(buffer)
        while True:
            await fast.wait_readable()
            size = fast.receive_nowait(buffer)
            if size is None:
                continue
            if size == 0:
                return
            self._take(view[:size])

    def _take(self, data: memoryview) -> None:
        self._heard(len(data))
        self._inline_writes = 0
        now = self._liveness.seen_s
        self._dispatch(self.session.receive(data, now))
        self._forget_streams()
        self._tell_openers()
        if self.session.has_output and self._unsent is None:
            self._work.wake()

    def _heard(self, size: int) -> None:
        self.bytes_in += size
        self._liveness.seen_s = self._env.now()
        self.suspect = False

    def _dispatch(self, events: list[SessionEvent]) -> None:
        for event in events:
            match event:
                case StreamData(stream_id, data):
                    self._deliver(stream_id, data)
                case StreamEnded(stream_id):
                    stream = self._streams.get(stream_id)
                    if stream is not None:
                        stream.end()
                    else:
                        self._inbound.end(stream_id)
                case StreamReset(stream_id):
                    stream = self._streams.get(stream_id)
                    if stream is not None:
                        stream.break_off("the stream was reset")
                case StreamOpened(stream_id):
                    self._inbound.begin(stream_id, self.now())
                    if self.idle.is_set():
                        self.idle = trio.Event()
                    self._owner.followed(self)
                case Pong():
                    self.pong.set()
                    self.pong = trio.Event()
                case Opened():
                    self.opened.set()
                    self._can_open.set()
                    self.mux.ping(self.now())  # the round trip is wanted before it is needed
                    self._owner.opened(self)
                case WentAway(code):
                    if code == GoAway.NORMAL and self.mux.streams:
                        self._owner.leaving(self)
                    else:
                        self.abort(f"the peer said goodbye, code {code}")
                case Proven():
                    pass

    def _deliver(self, stream_id: int, data: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            self._inbound.receive(stream_id, data, self.now())
            return
        try:
            stream.feed(data)
        except PeerError as error:
            self.mux.send_reset(stream_id)
            stream.break_off(str(error))

    def _start_stream(self, stream_id: int, protocol: str, rest: bytes) -> None:
        """The other side's stream named a protocol that is served."""
        handler = self._owner.admit_stream(self, protocol)
        if handler is None or self._nursery is None:
            self.mux.send_reset(stream_id)
            return
        stream = WireStream(
            self, stream_id, peer=self.peer, protocol=protocol, path=self.path, dialer=None
        )
        self._add(stream)
        if rest:
            stream.feed(rest)
        self._nursery.start_soon(self._serve, handler, stream)

    async def _serve(self, handler: Handler, stream: WireStream) -> None:
        """Run a handler: whatever it raises ends its own stream only."""
        try:
            try:
                await handler(stream)
            finally:
                # Before the peer hears of the end: it may open the next stream at once.
                self._owner.release_stream(self, stream.protocol)
        except Exception as error:  # noqa: BLE001 - a supervisor: no peer may stop the node
            stream.reset()
            self._explain(stream.protocol, error)
        except BaseException:
            stream.reset()
            raise
        else:
            await stream.aclose()

    def _explain(self, protocol: str, error: Exception) -> None:
        """Tell whose fault it was."""
        if isinstance(error, ExceptionGroup):
            for part in error.exceptions:
                self._explain(protocol, part)
        elif isinstance(error, PeerError):
            self._owner.violated(self, str(error))
        elif not isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError | TimedOut):
            self._owner.failed(protocol, error)

    # --- time ---

    async def _timer(self) -> None:
        config = self._config
        while True:
            now = self.now()
            if self.session.phase is not Phase.OPEN:
                left_s = self.since_s + config.upgrade_deadline_s - now
                if left_s <= 0:
                    self.abort("the muxer was not agreed on in time", broken=True)
                with trio.move_on_after(max(0.0, left_s)):
                    await self.opened.wait()
                continue
            busy = self.waiting > 0 or self._unsent is not None
            verdict = self._liveness.check(now, busy=busy, ping_sent_s=self.mux.ping_sent_s)
            if verdict is Verdict.DEAD:
                self.abort("the peer went silent", broken=True)
            elif verdict is Verdict.PING:
                self.ping()
            elif verdict is Verdict.SUSPECT:
                self.doubt()
            self._reset_overdue(now)
            wake_s = self._liveness.next_timer(now, busy=busy, ping_sent_s=self.mux.ping_sent_s)
            await trio.sleep(wake_s - now)

    def ping(self) -> None:
        """Ask for a sign of life, unless one is asked for."""
        if self.mux.ping(self.now()):
            self.flush()

    async def answers(self) -> bool:
        """Whether the peer gives a sign of life within a second or four round trips."""
        answered = self.pong
        self.ping()
        with trio.move_on_after(max(ANSWER_MIN_S, 4 * (self.mux.rtt_s or 0.0))):
            await answered.wait()
        return answered.is_set()

    def doubt(self) -> None:
        """The path may be dead: others are dialled beside it, until the peer is heard again."""
        if self.alive and not self.suspect:
            self.suspect = True
            self._owner.doubted(self)

    def _reset_overdue(self, now: float) -> None:
        """Reset streams that never named a protocol, or that the other side does not end."""
        overdue = [i for i, limit_s in self._lingering.items() if now >= limit_s]
        for stream_id in overdue:
            self.mux.send_reset(stream_id)
        if self._inbound.reset_overdue(now) or overdue:
            self._forget_streams()
            self.flush()
