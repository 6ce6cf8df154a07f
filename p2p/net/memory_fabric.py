"""MemFabric: a `Fabric` over MemNet without crypto and without multiplexing, for fast simulations.

Theory of operation: fabrics of one `MemNet` know each other as objects, so a peer's identity needs
no proof by keys: dialling an address reaches whatever fabric is attached there, and one with
another id is refused like a failed handshake. Each of two connected fabrics keeps its own `_Side`.
Every stream is a pair of pipes of its own, so streams cannot disturb each other. News that the real
wire would learn from packets (a stream opened, a connection closed) travels as a stamp on the link
and waits there through partitions. A partition that lasts makes each side give up by itself, after
`DEAD_IDLE_S`, or after `DEAD_BUSY_S` when streams are open.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVarTuple

import trio
from trio.lowlevel import ParkingLot
from typing_extensions import override

from p2p.errors import Unreachable, UsageError
from p2p.net.memory_link import Pipe, PipeStream
from p2p.net.own_addrs import OwnAddrs
from p2p.net.seam import (
    AddrsChanged,
    FabricEvent,
    PeerDown,
    PeerIdentified,
    PeerInfo,
    PeerUp,
    Stream,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.net.memory import MemNet
    from p2p.net.memory_host import MemTransport
    from p2p.net.seam import Addr, AddrSource, Handler

Ts = TypeVarTuple("Ts")
log = logging.getLogger("covey.p2p.memory_fabric")

EVENTS_MAX: Final = 256
"""Events a subscription holds before it is closed. Source: `p2p.net.seam`."""

DEAD_IDLE_S: Final = 40.0
"""Silence after which an idle peer counts as dead. Source: docs/specs/wire.md, liveness."""

DEAD_BUSY_S: Final = 15.0
"""The same while streams are open."""

LOOK_AGAIN_S: Final = 5.0
"""How often a partitioned side looks whether streams were opened. Source: the wire's busy ping."""

UPGRADE_ROUND_TRIPS: Final = 2
"""TCP's, then Noise's, pipelined. Source: docs/specs/wire.md."""

BACKOFF_S_MAX: Final = 300.0
"""Longest wait between two tries to reach a pinned peer. Source: docs/specs/wire.md, reconnect."""


class MemStream(Stream):
    """A stream of a `MemFabric`: two pipes and a name."""

    def __init__(self, pipes: PipeStream, side: _Side, protocol: str) -> None:
        self.peer = side.peer
        self.protocol = protocol
        self.path = "mem"
        self.pipes = pipes
        self._side = side
        side.streams[self] = None
        pipes.on_closed = self._closed

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue `data`; waits while the buffers are full."""
        await self.pipes.send_all(data)

    @override
    async def wait_send_all_might_not_block(self) -> None:
        """Never waits: `send_all` does."""
        await self.pipes.wait_send_all_might_not_block()

    @override
    async def send_eof(self) -> None:
        """End our direction; the other stays usable."""
        await self.pipes.send_eof()

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most `max_bytes`; `b""` at the end."""
        data = await self.pipes.receive_some(max_bytes)
        self._side.bytes_in += len(data)
        self._side.seen_s = self._side.now()
        return data

    @override
    async def aclose(self) -> None:
        """End our direction and read no more."""
        await self.pipes.aclose()

    @override
    def reset(self) -> None:
        """Abandon both directions at once."""
        self.pipes.reset()

    def fail(self, why: str) -> None:
        """Break because the connection ended."""
        self.pipes.fail(why)

    def _closed(self, pipes: PipeStream) -> None:
        self._side.streams.pop(self, None)
        self._side.bytes_out += pipes.outgoing.bytes_total


class _Side:
    """What one fabric knows of its connection to another."""

    def __init__(self, remote: MemFabric, *, addr: Addr, inbound: bool, now: Callable[[], float]):
        self.remote = remote
        self.peer = remote.id
        self.addr = addr
        self.inbound = inbound
        self.now = now
        self.since_s = self.seen_s = now()
        self.streams: dict[MemStream, None] = {}
        self.bytes_in = 0
        self.bytes_out = 0
        self.watched = False
        """Whether a task already waits for a partition to outlast us."""
        self.served: dict[str, int] = {}
        """Inbound streams now being handled, per protocol."""


class MemFabric:
    """Satisfies `p2p.net.seam.Fabric` and what `p2p.node.Node` needs beyond it."""

    def __init__(self, net: MemNet, host: MemTransport, peer: PeerId, env: Env) -> None:
        from p2p.net.memory_host import mem_addr

        self.addr: Addr = mem_addr(host.ip, host.take_port())
        self.ip = host.ip
        self._net = net
        self._id = peer
        self._env = env
        self.sides: dict[PeerId, _Side] = {}
        self._handlers: dict[str, tuple[Handler, int]] = {}
        self._events: list[trio.MemorySendChannel[FabricEvent]] = []
        self._book: dict[PeerId, list[Addr]] = {}
        self._own = OwnAddrs()
        self._pins: dict[PeerId, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._paused = False
        self._changed = ParkingLot()
        self._counters = {"dials": 0, "dials_failed": 0, "handler_errors": 0, "streams_refused": 0}

    @override
    def __repr__(self) -> str:
        return f"MemFabric({self._id.hex()[:8]} at {self.addr})"

    # --- Fabric -------------------------------------------------------------------------------

    @property
    def id(self) -> PeerId:
        """Our own peer id."""
        return self._id

    def addrs(self) -> list[Addr]:
        """The address of this fabric, and what else it was told of its own."""
        return list(dict.fromkeys([self.addr, *self._own.all()]))

    def set_own_addrs(self, source: AddrSource, addrs: Sequence[Addr]) -> None:
        """Replace what one source knows of our own addresses."""
        if self._own.set(source, addrs):
            self._emit(AddrsChanged(tuple(self.addrs())))

    def handle(self, protocol: str, fn: Handler, *, per_peer_max: int) -> None:
        """Serve `protocol`; see `p2p.net.seam.Fabric.handle`."""
        if protocol in self._handlers:
            raise UsageError(f"{protocol} already has a handler")
        self._handlers[protocol] = (fn, per_peer_max)
        self._tell_protocols()

    def unhandle(self, protocol: str) -> None:
        """Serve `protocol` no more; see `p2p.net.seam.Fabric.unhandle`."""
        if self._handlers.pop(protocol, None) is not None:
            self._tell_protocols()

    def _tell_protocols(self) -> None:
        """What we serve changed: those connected hear of it, as by identify's push."""
        for side in list(self.sides.values()):
            remote, stamp = side.remote, self._net.direction(self.ip, side.remote.ip).stamp(0)
            remote.later(self, stamp, "identified", partial(remote.identified, self.id))

    def identified(self, peer: PeerId) -> None:
        """What a connected peer serves changed."""
        if peer in self.sides:
            self._emit(PeerIdentified(peer))

    async def connect(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        """Have a live connection; see `p2p.net.seam.Fabric.connect`."""
        await trio.lowlevel.checkpoint()
        if peer == self._id:
            raise UsageError("cannot connect to ourselves")
        if peer in self.sides:
            return
        if self._nursery is None:
            raise Unreachable("this fabric is not running")
        if self._paused:
            raise Unreachable("we work offline: resume first")
        tried = list(dict.fromkeys([*addrs, *self._book.get(peer, ())]))
        for addr in tried:
            self._counters["dials"] += 1
            if await self._dial(peer, addr):
                return
            self._counters["dials_failed"] += 1
        raise Unreachable(f"no answer as that peer at {', '.join(tried) or 'any known address'}")

    async def open(self, peer: PeerId, protocol: str, *, direct_only: bool = False) -> Stream:  # noqa: ARG002 - every path here is direct
        """Open a stream; see `p2p.net.seam.Fabric.open`."""
        await self.connect(peer)
        side = self.sides[peer]
        out = self._net.direction(self.ip, side.remote.ip)
        forth, home = Pipe(out), Pipe(self._net.direction(side.remote.ip, self.ip))
        ours = MemStream(PipeStream(forth, home), side, protocol)
        side.remote.later(
            self, out.stamp(0), "opened", lambda: side.remote.opened(self, protocol, home, forth)
        )
        return ours

    async def disconnect(self, peer: PeerId) -> None:
        """End the connection; the other side hears of it one latency later."""
        await trio.lowlevel.checkpoint()
        self._hang_up(peer, "we disconnected")

    def peers(self) -> Mapping[PeerId, PeerInfo]:
        """Connected peers, a snapshot."""
        return {peer: self._info(side) for peer, side in self.sides.items()}

    def info(self, peer: PeerId) -> PeerInfo | None:
        """One connected peer."""
        side = self.sides.get(peer)
        return None if side is None else self._info(side)

    def protocols(self, peer: PeerId) -> frozenset[str]:
        """What a connected peer serves."""
        side = self.sides.get(peer)
        return frozenset() if side is None else side.remote.served()

    def served(self) -> frozenset[str]:
        """What we serve."""
        return frozenset(self._handlers)

    def events(self) -> trio.MemoryReceiveChannel[FabricEvent]:
        """A new subscription; see `p2p.net.seam.Fabric.events`."""
        send, receive = trio.open_memory_channel[FabricEvent](EVENTS_MAX)
        self._events.append(send)
        return receive

    # --- What a node needs --------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; every connection ends with it."""
        if self._nursery is not None:
            raise UsageError("this fabric already runs")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for peer in self._pins:
                    self._start_keeping(peer)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # it takes no tasks any more
        finally:
            for peer in list(self.sides):
                self._hang_up(peer, "this fabric stopped")

    def pin(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        """Keep `peer` connected: dial now, and again with backoff."""
        self.learn(peer, addrs)
        if peer not in self._pins and peer != self._id:
            self._start_keeping(peer)

    def unpin(self, peer: PeerId) -> None:
        """Stop keeping `peer` connected; a live connection stays."""
        if peer in self._pins:
            self._pins.pop(peer).cancel()

    def pinned(self) -> list[PeerId]:
        """Peers we keep connected, ascending."""
        return sorted(self._pins)

    def learn(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Remember addresses of `peer`, newest first."""
        if addrs:
            known = self._book.pop(peer, [])
            self._book[peer] = list(dict.fromkeys([*addrs, *known]))[:32]
            if self._book[peer] != known and peer in self._pins:
                self._changed.unpark_all()

    def known_peers(self) -> list[PeerId]:
        """Peers that we remember, the last met first."""
        return list(self._book)[::-1]

    def known_addrs(self, peer: PeerId) -> list[Addr]:
        """Remembered addresses of `peer`, best first."""
        return list(self._book.get(peer, ()))

    def pause(self) -> None:
        """Work offline: end every connection, refuse new ones both ways."""
        self._paused = True
        for peer in list(self.sides):
            self._hang_up(peer, "we went offline")

    def resume(self) -> None:
        """End `pause`."""
        self._paused = False
        self._changed.unpark_all()

    @property
    def paused(self) -> bool:
        """Whether we work offline."""
        return self._paused

    def counters(self) -> Mapping[str, int]:
        """Counts since the start."""
        return dict(self._counters)

    def set_members(self, fn: Callable[[PeerId], bool]) -> None:
        """Accepted for the sake of the seam: this fabric has no limits that members escape."""

    def links_changed(self) -> None:
        """A partition began or ended somewhere: watch the sides it may concern."""
        for side in self.sides.values():
            if not side.watched and self._net.blocked(self.ip, side.remote.ip):
                self._spawn(self._watch, side)

    # --- Connections --------------------------------------------------------------------------

    async def _dial(self, peer: PeerId, addr: Addr) -> bool:
        """Whether `peer` answered at `addr` and a connection to it exists now."""
        from p2p.net.memory_host import CONNECT_S_MAX, split_mem_addr

        target = split_mem_addr(addr)
        if target is None:
            return False
        out = self._net.direction(self.ip, target[0])
        back = self._net.direction(target[0], self.ip)
        with trio.move_on_after(CONNECT_S_MAX):
            for _ in range(UPGRADE_ROUND_TRIPS):
                await out.wait_due(out.stamp(0))
                await back.wait_due(back.stamp(0))
            remote = self._net.fabrics.get(addr)
            if remote is None or not remote.accepts(peer):
                return False
            if peer not in self.sides:  # else they were faster: one connection a peer
                remote.joined(self, addr=self.addr, inbound=True)
                self.joined(remote, addr=addr, inbound=False)
            return True
        return False

    # `accepts`, `joined`, `drop`, `opened`, `later` are for the fabrics of the same network only.

    def accepts(self, peer: PeerId) -> bool:
        """Whether a handshake that expects `peer` would succeed here now."""
        return self._id == peer and self._nursery is not None and not self._paused

    def joined(self, remote: MemFabric, *, addr: Addr, inbound: bool) -> None:
        """A connection with `remote` is ready; it replaces an older one."""
        old = self.sides.pop(remote.id, None)
        self.sides[remote.id] = _Side(remote, addr=addr, inbound=inbound, now=self._env.now)
        self.learn(remote.id, [remote.addr])
        if old is not None:  # a peer that restarted: its ghost's streams end, the peer stays up
            self._fail_streams(old, "the peer connected anew")
        else:
            self._emit(PeerUp(remote.id))
            self._emit(PeerIdentified(remote.id))
        self._changed.unpark_all()

    def _hang_up(self, peer: PeerId, reason: str) -> None:
        """End our side now and let the other hear of it."""
        side = self.sides.get(peer)
        if side is None:
            return
        theirs = side.remote.sides.get(self._id)
        stamp = self._net.direction(self.ip, side.remote.ip).stamp(0)
        self.drop(side, reason)
        if theirs is not None:
            remote = side.remote
            remote.later(self, stamp, "closed", lambda: remote.drop(theirs, "the peer closed"))

    def drop(self, side: _Side, reason: str) -> None:
        """Our side of a connection ended."""
        if self.sides.get(side.peer) is side:
            del self.sides[side.peer]
            self._emit(PeerDown(side.peer, reason))
        self._fail_streams(side, reason)
        self._changed.unpark_all()

    def _fail_streams(self, side: _Side, reason: str) -> None:
        for stream in list(side.streams):
            stream.fail(reason)

    async def _watch(self, side: _Side) -> None:
        """Give a side up when a partition outlasts it."""
        side.watched = True
        start = trio.current_time()
        try:
            while self._net.blocked(self.ip, side.remote.ip):
                left = start + (DEAD_BUSY_S if side.streams else DEAD_IDLE_S) - trio.current_time()
                if left <= 0:
                    self.drop(side, "the peer is silent")
                    return
                # Wake now and then: a stream opened meanwhile shortens the wait.
                with trio.move_on_after(min(left, LOOK_AGAIN_S)):
                    await self._net.direction(side.remote.ip, self.ip).waiters.park()
        finally:
            side.watched = False

    def _start_keeping(self, peer: PeerId) -> None:
        # The scope exists before its task runs, so that an unpin in between ends it too.
        scope = self._pins[peer] = trio.CancelScope()
        self._spawn(self._keep, peer, scope)

    async def _keep(self, peer: PeerId, scope: trio.CancelScope) -> None:
        """Have a connection to a pinned peer whenever possible."""
        with scope:
            failures = 0
            while True:
                while self._paused or peer in self.sides:
                    failures = 0
                    await self._changed.park()
                try:
                    await self.connect(peer)
                except Unreachable:
                    wait_s = min(BACKOFF_S_MAX, 2.0**failures) * self._env.rng.uniform(0.5, 1.0)
                    failures += 1
                    with trio.move_on_after(wait_s):
                        await self._changed.park()

    # --- Streams ------------------------------------------------------------------------------

    def opened(self, opener: MemFabric, protocol: str, out: Pipe, incoming: Pipe) -> None:
        """A peer's open arrived: serve it or reset it."""
        pipes = PipeStream(out, incoming)
        side = self.sides.get(opener.id)
        handler = self._handlers.get(protocol)
        if side is None or side.remote is not opener or handler is None:
            pipes.reset()
            return
        fn, per_peer_max = handler
        if side.served.get(protocol, 0) >= per_peer_max:
            self._counters["streams_refused"] += 1
            pipes.reset()
            return
        side.served[protocol] = side.served.get(protocol, 0) + 1
        self._spawn(self._serve, side, MemStream(pipes, side, protocol), fn)

    async def _serve(self, side: _Side, stream: MemStream, fn: Handler) -> None:
        clean = False
        try:
            try:
                await fn(stream)
            finally:
                # Before the peer hears of the end: it may open the next stream at once.
                side.served[stream.protocol] -= 1
            await stream.aclose()
            clean = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the stream ended under its handler: an expected ending
        except Exception:  # a supervisor: a handler's fault ends its own stream, nothing else
            self._counters["handler_errors"] += 1
            log.exception("handler_failed", extra={"f": {"protocol": stream.protocol}})
        finally:
            if not clean:
                stream.reset()

    # --- Plumbing -----------------------------------------------------------------------------

    def later(self, sender: MemFabric, stamp: float, what: str, fn: Callable[[], None]) -> None:
        """Run `fn` here when news stamped by the link from `sender` arrives."""

        async def arrive() -> None:
            await self._net.direction(sender.ip, self.ip).wait_due(stamp)
            fn()

        if self._nursery is not None:
            self._nursery.start_soon(arrive, name=f"{what} from {sender!r}")

    def _spawn(self, fn: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(fn, *args)

    def _emit(self, event: FabricEvent) -> None:
        for channel in list(self._events):
            try:
                channel.send_nowait(event)
            except trio.WouldBlock:
                channel.close()  # its reader rereads peers()
                self._events.remove(channel)
            except trio.BrokenResourceError:
                self._events.remove(channel)

    def _info(self, side: _Side) -> PeerInfo:
        out = self._net.direction(self.ip, side.remote.ip)
        back = self._net.direction(side.remote.ip, self.ip)
        rtt_s = out.config.latency_s + back.config.latency_s
        queued = sum(stream.pipes.outgoing.bytes_total for stream in side.streams)
        return PeerInfo(
            peer=side.peer,
            path="mem",
            addr=side.addr,
            inbound=side.inbound,
            since_s=side.since_s,
            seen_s=side.seen_s,
            rtt_s=rtt_s if math.isfinite(rtt_s) else None,
            bytes_in=side.bytes_in,
            bytes_out=side.bytes_out + queued,
            streams=len(side.streams),
        )
