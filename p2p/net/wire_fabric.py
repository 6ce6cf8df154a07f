"""The fabric over the public libp2p wire: handlers, listeners, events; connections are below.

    fabric = WireFabric(identity, config, env, [TcpTransport(config)], Book(path))
    fabric.handle("/covey/rpc/1", serve, per_peer_max=64)
    await nursery.start(fabric.run)
    stream = await fabric.open(peer, "/covey/rpc/1")

Tasks: `run` nests the manager (connections) around the doors (listeners), so that a stop closes the
doors first. Source: docs/specs/wire.md; the contract is `p2p.net.seam`.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import trio

from p2p.errors import Busy, TransientError, Unreachable, UsageError
from p2p.identity import peer_text
from p2p.limits import PING_BYTES
from p2p.net.book import PORT_MAX, PORT_MIN, Book
from p2p.net.identify import Identify
from p2p.net.interfaces import candidates, list_interfaces
from p2p.net.manager import Manager
from p2p.net.own_addrs import OwnAddrs
from p2p.net.seam import (
    AddrsChanged,
    FabricEvent,
    PathChanged,
    PeerDown,
    PeerIdentified,
    PeerInfo,
    PeerUp,
)
from p2p.net.tcp import source_addresses
from p2p.wire.identify import IDENTIFY, IDENTIFY_PUSH, PING
from p2p.wire.multiaddr import TcpAddr, ip_of, tcp_addr_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import Identity, PeerId
    from p2p.net.driver import Connection
    from p2p.net.seam import Addr, AddrSource, Handler, Path, Stream, Transport

log = logging.getLogger("covey.p2p.fabric")

AGENT: Final = "covey/0.1"
"""What identify calls us; shown to people, never compared."""
_PORT_DRAWS_MAX: Final = 16
_PING_STREAMS_MAX: Final = 2
_IDENTIFY_STREAMS_MAX: Final = 2


@runtime_checkable
class _Exhaustible(Protocol):
    on_exhausted: Callable[[], None] | None


@runtime_checkable
class _Dialling(Protocol):
    on_dial: Callable[[str], None] | None


@dataclass(frozen=True)
class _Service:
    fn: Handler
    per_peer_max: int


class _DrawnPortTaken(Exception):
    """A port that nobody set is taken in one of the families."""


class WireFabric:
    """A node's authenticated streams.

    Args:
        identity: who we are.
        config: limits and times.
        env: clocks and random numbers.
        transports: how to dial and listen.
        book: where peers are; None keeps one in memory.
        agent: our software's name for identify.
    """

    def __init__(
        self,
        identity: Identity,
        config: P2pConfig,
        env: Env,
        transports: Sequence[Transport],
        book: Book | None = None,
        *,
        agent: str = AGENT,
    ) -> None:
        self._identity = identity
        self._config = config
        self._env = env
        self._transports = list(transports)
        self._book = book if book is not None else Book(peers_max=config.book_peers_max)
        self._services: dict[str, _Service] = {}
        self._live: Counter[tuple[PeerId, str]] = Counter()
        self._listening: list[Addr] = []
        self._own = OwnAddrs()
        self.on_observed: Callable[[PeerId, Addr, Addr], None] = lambda *_: None
        """Told (peer, its address, where it sees the port we listen at)."""
        self.on_accepted: Callable[[Connection], None] = lambda _: None
        """Told of each connection that somebody made to us directly, once it works."""
        self._subscribers: list[trio.MemorySendChannel[FabricEvent]] = []
        self._changed = trio.Event()
        self._manager = Manager(
            identity,
            config,
            env,
            self._transports,
            self._book,
            self,
            up=lambda peer: self._publish(PeerUp(peer)),
            down=lambda peer, why: self._publish(PeerDown(peer, why)),
            moved=lambda peer, path: self._publish(PathChanged(peer, path)),
        )
        self._identify = Identify(identity, config, env, self._book, self, agent=agent)
        for transport in transports:
            if isinstance(transport, _Exhaustible):
                transport.on_exhausted = self._manager.shed_idlest
            if isinstance(transport, _Dialling):
                transport.on_dial = self._dialled
        self._serve(IDENTIFY, self._identify.answer, _IDENTIFY_STREAMS_MAX)
        self._serve(IDENTIFY_PUSH, self._identify.take_push, _IDENTIFY_STREAMS_MAX)
        self._serve(PING, self._identify.echo, _PING_STREAMS_MAX)

    # --- Fabric ---

    @property
    def id(self) -> PeerId:
        """Our own peer id."""
        return self._identity.id

    def addrs(self) -> list[Addr]:
        """Addresses to advertise, best first."""
        return self._own.all()

    def set_own_addrs(self, source: AddrSource, addrs: Sequence[Addr]) -> None:
        """Replace what one source knows of our own addresses."""
        if self._own.set(source, addrs):
            self._publish(AddrsChanged(tuple(self._own.all())))
            self._changed.set()

    def own_addrs(self, source: AddrSource) -> tuple[Addr, ...]:
        """What one source knows of our own addresses."""
        return self._own.of(source)

    def listen_addrs(self) -> list[Addr]:
        """Addresses we are bound to, unspecified ones as they are."""
        return list(self._listening)

    def handle(self, protocol: str, fn: Handler, *, per_peer_max: int) -> None:
        """Serve `protocol`; see `p2p.net.seam.Fabric.handle`.

        Raises:
            UsageError: it is served already.
        """
        if protocol in self._services:
            raise UsageError(f"{protocol} is served already")
        self._serve(protocol, fn, per_peer_max)
        self._changed.set()

    def ask_everybody(self) -> None:
        """Identify every connected peer anew: above all, where it sees us now."""
        for connection in self._manager.table:
            if connection.opened.is_set():
                connection.start_soon(self._identify.ask)

    def unhandle(self, protocol: str) -> None:
        """Serve `protocol` no more; see `p2p.net.seam.Fabric.unhandle`."""
        if self._services.pop(protocol, None) is not None:
            self._changed.set()

    def _serve(self, protocol: str, fn: Handler, per_peer_max: int) -> None:
        self._services[protocol] = _Service(fn, per_peer_max)

    async def connect(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        """Have a live connection to `peer`.

        Raises:
            Unreachable: nothing answered as that peer.
        """
        connection = await self._manager.connect(peer, addrs)
        await connection.opened.wait()
        if not connection.alive:
            raise Unreachable(f"{peer_text(peer)}: {connection.reason}")

    async def open(self, peer: PeerId, protocol: str, *, direct_only: bool = False) -> Stream:
        """Open a stream, connecting first if needed.

        Raises:
            Unreachable: no connection could be made.
        """
        connection = await self._manager.connect(peer)
        while not connection.session.can_open or not connection.usable:
            await connection.wait_can_open()
            if not connection.usable:
                # It ended or lost to a better one while we waited.
                connection = await self._manager.connect(peer)
        if direct_only and connection.path == "relay":
            raise Unreachable(f"{peer_text(peer)}: only reached through a relay")
        return connection.open(protocol)

    async def disconnect(self, peer: PeerId) -> None:
        """End all connections to `peer` politely."""
        await self._manager.disconnect(peer)

    def peers(self) -> Mapping[PeerId, PeerInfo]:
        """Connected peers, a snapshot."""
        return {peer: self._info(peer) for peer in self._manager.table.peers()}

    def info(self, peer: PeerId) -> PeerInfo | None:
        """One connected peer."""
        entry = self._manager.table.entry(peer)
        # A connection whose muxer is not agreed yet is none.
        return self._info(peer) if entry is not None and entry.opened else None

    def protocols(self, peer: PeerId) -> frozenset[str]:
        """What a connected peer said that it serves; empty until it did."""
        entry = self._manager.table.entry(peer)
        connections = entry.opened if entry is not None else []
        return frozenset[str]().union(*(c.remote_protocols for c in connections))

    def events(self) -> trio.MemoryReceiveChannel[FabricEvent]:
        """A new subscription."""
        send, receive = trio.open_memory_channel[FabricEvent](self._config.events_max)
        self._subscribers.append(send)
        return receive

    async def ping(self, peer: PeerId) -> float:
        """Round trip of one `/ipfs/ping/1.0.0`, in seconds.

        Raises:
            Unreachable: no connection could be made.
            trio.BrokenResourceError: the other side does not speak it, or answered wrongly.
        """
        stream = await self.open(peer, PING)
        try:
            payload = self._env.rng.randbytes(PING_BYTES)
            started_s = self._env.now()
            await stream.send_all(payload)
            held = b""
            while len(held) < PING_BYTES:
                data = await stream.receive_some(PING_BYTES - len(held))
                if not data:
                    break
                held += data
            rtt_s = self._env.now() - started_s
            await stream.send_eof()
        except BaseException:
            stream.reset()
            raise
        await stream.aclose()
        if held != payload:
            raise trio.BrokenResourceError("the peer did not echo the ping")
        return rtt_s

    # --- what a node needs besides ---

    async def dial_direct(self, peer: PeerId, addrs: Sequence[Addr]) -> bool:
        """Dial beside a relayed connection; whether there is a direct one now."""
        return await self._manager.dial_direct(peer, addrs)

    async def punch(
        self, peer: PeerId, addrs: Sequence[Addr], *, initiator: bool, limit_s: float
    ) -> bool:
        """Dial `peer` while it dials us; whether the two met. See `Puncher.punch`."""
        return await self._manager.puncher.punch(peer, addrs, initiator=initiator, limit_s=limit_s)

    async def dial_apart(self, addr: Addr) -> trio.abc.Stream:
        """A raw stream from an ephemeral port; see `Dialler.apart`."""
        return await self._manager.dialler.apart(addr)

    def _dialled(self, ip: str) -> None:
        self._manager.contacts.note(ipaddress.ip_address(ip), self._env.now())

    def add_transport(self, transport: Transport) -> None:
        """Dial with one more transport from now on, after those that are there."""
        self._transports.append(transport)

    async def accept(self, stream: trio.abc.Stream, addr: Addr, *, path: Path) -> None:
        """Take over a raw stream that came in by other ways than a listener of ours."""
        await self._manager.accept(stream, addr, path=path)

    def pin(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        """Keep `peer` connected: dial now, and again with backoff."""
        self._manager.pin(peer, addrs)

    def unpin(self, peer: PeerId) -> None:
        """Stop keeping `peer` connected; a live connection stays."""
        self._manager.keeper.unpin(peer)

    def pinned(self) -> list[PeerId]:
        """Peers we keep connected, ascending."""
        return self._manager.keeper.pinned()

    def learn(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Remember addresses of `peer`; the handshake proves them when they are used."""
        self._manager.learn(peer, addrs)

    def wants(self, peer: PeerId) -> bool:
        """Whether we keep `peer` connected or share a group with it."""
        return self._book.keeps(peer)

    def known_peers(self) -> list[PeerId]:
        """Peers that we remember, the last seen first."""
        return self._book.peers()[::-1]

    def known_addrs(self, peer: PeerId) -> list[Addr]:
        """Remembered addresses, best first."""
        return self._book.addrs(peer)

    def pause(self) -> None:
        """Work offline: end every connection, refuse new ones both ways."""
        self._manager.pause()

    def resume(self) -> None:
        """End `pause`."""
        self._manager.resume()

    @property
    def paused(self) -> bool:
        """Whether we work offline."""
        return self._manager.paused

    def counters(self) -> Mapping[str, int]:
        """Counts since the start."""
        return dict(self._manager.counters)

    def set_members(self, fn: Callable[[PeerId], bool]) -> None:
        """Tell who counts as a member of a shared group, for limits."""
        self._manager.standings.is_member = fn

    def set_useful(
        self, *, is_relay: Callable[[PeerId], bool], in_dht: Callable[[PeerId], bool]
    ) -> None:
        """Tell whose connection other parts need, for whom to let go when places run out.

        Args:
            is_relay: whether we have a place at that peer.
            in_dht: whether it is in our table of the DHT.
        """
        self._manager.standings.is_relay = is_relay
        self._manager.standings.in_dht = in_dht

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started when listening.

        Raises:
            Busy: another process has our port.
            Unreachable: no address could be listened at.
        """
        problem: TransientError | None = None
        self._changed = trio.Event()  # identify tells what was registered before
        try:
            async with trio.open_nursery() as inside:
                await inside.start(self._manager.run)
                async with trio.open_nursery() as doors:
                    try:
                        await self._listen(doors)
                    except TransientError as error:
                        # Raised below, outside of the nurseries that would wrap it twice.
                        problem = error
                        inside.cancel_scope.cancel()
                    else:
                        doors.start_soon(self._save_book_forever)
                        doors.start_soon(self._push_changes_forever)
                        task_status.started()
        finally:
            self._listening.clear()
            self._own.clear()
            if self._book.dirty:
                self._book.save()
            for subscriber in self._subscribers:
                subscriber.close()
            self._subscribers.clear()
        if problem is not None:
            raise problem

    async def _listen(self, doors: trio.Nursery) -> None:
        """Open all doors; a port drawn here is one that every family has free.

        Raises:
            Busy: another process has the port that was set or kept.
            Unreachable: no address could be listened at.
        """
        port, problems = 0, list[TransientError]()
        for draw in range(_PORT_DRAWS_MAX):
            port = self._book.port or self._draw_port()
            scopes: list[trio.CancelScope] = []
            try:
                problems = await self._open_doors(doors, port, scopes)
            except _DrawnPortTaken as taken:
                # Free in one family and taken in another: what is open already must move along.
                self._listening.clear()
                for scope in scopes:
                    scope.cancel()
                if self._book.port or draw == _PORT_DRAWS_MAX - 1:
                    raise Busy(str(taken)) from taken
                continue
            break
        if self._config.listen and not self._listening:
            raise problems[0]
        if port and not self._book.port:
            self._book.set_port(port)
        self.interfaces_changed()

    def interfaces_changed(self) -> None:
        """Ask the system anew at which of its addresses our doors can be found."""
        addrs = [own for addr in self._listening for own in _own_addrs(addr)]
        self.set_own_addrs("interface", addrs)

    def network_changed(self) -> None:
        """Our addresses are others, or we slept: find out at once what still holds."""
        self.interfaces_changed()
        self._manager.network_changed()

    def _draw_port(self) -> int:
        """A port for the addresses that name none; 0 if there are none or none is to be kept."""
        if not any(self._is_drawn(addr) for addr in self._config.listen):
            return 0
        return self._env.rng.randint(PORT_MIN, PORT_MAX)

    def _is_drawn(self, addr: Addr) -> bool:
        tcp = tcp_addr_untrusted(addr)
        return tcp is not None and not tcp.port and self._config.draw_port

    async def _open_doors(
        self, doors: trio.Nursery, port: int, scopes: list[trio.CancelScope]
    ) -> list[TransientError]:
        """Listen at each address, at `port` where none is set; what could not be listened at.

        Raises:
            Busy: a port that was set is taken.
            _DrawnPortTaken: `port` is; `scopes` end what was opened before.
        """
        problems: list[TransientError] = []
        for addr in self._config.listen:
            drawn = self._is_drawn(addr)
            try:
                bound = await self._open_door(doors, addr, port if drawn else 0, scopes)
            except Busy as error:
                if drawn:
                    raise _DrawnPortTaken(str(error)) from error
                raise
            except Unreachable as error:
                # A machine without IPv6 is no reason not to start.
                problems.append(error)
                log.warning("not_listening", extra={"f": {"addr": addr, "why": str(error)}})
            else:
                self._listening.append(bound)
        return problems

    async def _open_door(
        self, doors: trio.Nursery, addr: Addr, port: int, scopes: list[trio.CancelScope]
    ) -> Addr:
        """Listen at one address, at `port` unless that is 0; its scope ends it alone."""
        transport = next((t for t in self._transports if t.dials(addr)), None)
        if transport is None:
            raise UsageError(f"no transport can listen at {addr}")
        tcp = tcp_addr_untrusted(addr)
        if port and tcp is not None:
            addr = TcpAddr(tcp.kind, tcp.host, port).text
        scope = trio.CancelScope()

        async def door(*, task_status: trio.TaskStatus[Addr]) -> None:
            with scope:
                await transport.listen(addr, self._manager.accept, task_status=task_status)

        bound: Addr = await doors.start(door)
        scopes.append(scope)
        return bound

    async def _save_book_forever(self) -> None:
        while True:
            await trio.sleep(self._config.book_save_s)
            if self._book.dirty:
                self._book.save()

    async def _push_changes_forever(self) -> None:
        while True:
            await self._changed.wait()
            await trio.sleep(self._config.push_delay_s)
            self._changed = trio.Event()
            self._push_to_all()

    def _push_to_all(self) -> None:
        # Not in the loop above: its frame would keep the last connection until the next change.
        for connection in self._manager.table:
            connection.start_soon(self._identify.push)

    def identified(self, peer: PeerId) -> None:
        """A peer told what it serves."""
        self._publish(PeerIdentified(peer))

    def observed(self, connection: Connection, addr: Addr) -> None:
        """A peer told where it sees the other end of a connection."""
        ports = {tcp.port for bound in self._listening if (tcp := tcp_addr_untrusted(bound))}
        # From any other port than the one we listen at, what it sees is of no use to others.
        if not connection.dialled or connection.local_port in ports:
            self.on_observed(connection.peer, connection.addr, addr)

    # --- ConnectionOwner ---

    @property
    def served(self) -> Container[str]:
        """What we serve."""
        return self._services

    def protocol_names(self) -> list[str]:
        """What we serve, in a fixed order."""
        return sorted(self._services)

    def admit_stream(self, connection: Connection, protocol: str) -> Handler | None:
        """The handler for a new inbound stream, or None over the peer's limit."""
        service = self._services[protocol]
        key = connection.peer, protocol
        if self._live[key] >= service.per_peer_max:
            self._manager.counters["streams_refused"] += 1
            return None
        self._live[key] += 1
        return service.fn

    def release_stream(self, connection: Connection, protocol: str) -> None:
        """A stream that was admitted has ended."""
        key = connection.peer, protocol
        self._live[key] -= 1
        if not self._live[key]:
            del self._live[key]

    def opened(self, connection: Connection) -> None:
        """Streams flow both ways from now on."""
        self._manager.opened(connection)
        if connection.inbound and not connection.dialled and connection.path != "relay":
            self.on_accepted(connection)
        connection.start_soon(self._identify.ask)

    def doubted(self, connection: Connection) -> None:
        """A ping is overdue."""
        self._manager.doubted(connection)

    def followed(self, connection: Connection) -> None:
        """The other side opened a stream here."""
        self._manager.table.follow(connection)

    def leaving(self, connection: Connection) -> None:
        """The other side takes no more streams; the live ones go on."""
        self._manager.leaving(connection)

    def violated(self, connection: Connection, why: str) -> None:
        """The peer broke a rule."""
        self._manager.violated(connection, why)

    def failed(self, where: str, error: Exception) -> None:
        """Our code raised: a bug here, which must not stop the node."""
        self._manager.counters["bug"] += 1
        log.error("bug", extra={"f": {"where": where}, "remote": True}, exc_info=error)

    def connection_of(self, stream: Stream) -> Connection | None:
        """The connection that carries a stream."""
        return next((c for c in self._manager.table if c.carries(stream)), None)

    # --- helpers ---

    def _info(self, peer: PeerId) -> PeerInfo:
        entry = self._manager.table.entry(peer)
        assert entry is not None
        connection = entry.current or entry.opened[-1]
        return PeerInfo(
            peer=peer,
            path=connection.path,
            addr=connection.addr,
            inbound=connection.inbound,
            since_s=connection.since_s,
            seen_s=connection.seen_s,
            rtt_s=connection.mux.rtt_s,
            bytes_in=sum(c.bytes_in for c in entry.opened),
            bytes_out=sum(c.bytes_out for c in entry.opened),
            streams=sum(c.mux.streams for c in entry.opened),
            agent=connection.agent,
        )

    def _publish(self, event: FabricEvent) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber.send_nowait(event)
            except trio.WouldBlock:
                # It lags 256 events behind: a closed channel tells it to reread `peers()`.
                subscriber.close()
                self._subscribers.remove(subscriber)
            except trio.BrokenResourceError:
                self._subscribers.remove(subscriber)


def _own_addrs(bound: Addr) -> list[Addr]:
    """Addresses that stand for a bound one: an unspecified one becomes this machine's own."""
    ip = ip_of(bound)
    tcp = tcp_addr_untrusted(bound)
    if ip is None or tcp is None or not ip.is_unspecified:
        return [bound]
    known = [*source_addresses(), *candidates(list_interfaces())]
    hosts = [host for host in known if (":" in host) == (ip.version == 6)]
    hosts.append("127.0.0.1" if ip.version == 4 else "::1")
    return [TcpAddr(tcp.kind, host, tcp.port).text for host in dict.fromkeys(hosts)]
