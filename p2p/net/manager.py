"""The connection manager: accepts, dials, keeps, doubts, refuses.

Everything about *which* connections exist is here or in its parts: `gate` (who may connect),
`table` (one connection a peer), `dialing` (several addresses), `book` (where peers are). What runs
*on* a connection is the fabric's (`p2p.net.wire_fabric`), reached through `ConnectionOwner`.

Every connection runs in the manager's nursery, so that cancelling `run` ends them all, each with
its own short goodbye. Source: docs/specs/wire.md s.7.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import trio

from p2p.errors import AuthError, P2pError, PeerError, Unreachable, UsageError
from p2p.identity import peer_text
from p2p.net.contacts import Contacts
from p2p.net.dialing import Race, dial_order
from p2p.net.driver import Buffers, Connection
from p2p.net.framed import HandedOverStream
from p2p.net.gate import Gate
from p2p.net.ports import NowaitStream
from p2p.net.punching import CONNECT_S, PAUSE_S, SILENCE_S, Punch, Punches
from p2p.net.table import PeerTable
from p2p.wire.multiaddr import ip_of, is_private, is_public, is_relayed, split_peer_untrusted
from p2p.wire.noise import KEY_BYTES
from p2p.wire.session import Session
from p2p.wire.yamux_frames import YamuxLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import Identity, PeerId
    from p2p.net.book import Book
    from p2p.net.gate import Origin
    from p2p.net.ports import ConnectionOwner
    from p2p.net.seam import Addr, Path, Transport

log = logging.getLogger("covey.p2p.manager")


class _Dial:
    """A dial under way, shared by everybody who wants that peer."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error = ""


class _Pin:
    """A peer to keep connected."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.kick = trio.Event()
        """Set when something changed: connected, lost, a new address, resumed."""
        self.attempt = 0


class Manager:
    """All connections of a node.

    Args:
        identity: who we are.
        config: limits and times.
        env: clocks and random numbers.
        transports: how to dial.
        book: where peers are.
        owner: what runs on the connections.
        up: called when a peer came.
        down: called with the reason when a peer went.
        moved: called when new streams to a peer take another path.
    """

    def __init__(
        self,
        identity: Identity,
        config: P2pConfig,
        env: Env,
        transports: Sequence[Transport],
        book: Book,
        owner: ConnectionOwner,
        *,
        up: Callable[[PeerId], None],
        down: Callable[[PeerId, str], None],
        moved: Callable[[PeerId, Path], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.gate = Gate(config)
        self.contacts = Contacts(config.reach.contact_s)
        self.book = book
        self.paused = False
        self.is_member: Callable[[PeerId], bool] = lambda _: False
        self.table = PeerTable(
            identity.id,
            config,
            up=self._peer_up,
            down=self._peer_down,
            replaced=self._replaced,
            moved=moved,
        )
        self._identity = identity
        self._config = config
        self._env = env
        self._transports = transports
        self._owner = owner
        self._up = up
        self._down = down
        book.keeps = self._is_wanted
        self._dials: dict[PeerId, _Dial] = {}
        self._pins: dict[PeerId, _Pin] = {}
        self._beside: set[PeerId] = set()
        self._punches = Punches()
        self._direct: dict[PeerId, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._buffers = Buffers()
        self._limits = YamuxLimits(
            stream_send_buffer_bytes=config.stream_send_buffer_bytes,
            stream_window_bytes_max=config.stream_window_bytes_max,
            connection_window_bytes_max=config.connection_window_bytes_max,
            streams_inbound_max=config.streams_inbound_max,
            control_bytes_max=config.control_bytes_max,
            unknown_bytes_per_min=config.unknown_bytes_per_min,
        )

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Hold connections until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for peer in self._pins:
                    self._start_keeping(peer)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise UsageError("the fabric is not running: start `run` first")
        return self._nursery

    def _is_wanted(self, peer: PeerId) -> bool:
        return peer in self._pins or self.is_member(peer)

    # --- inbound ---

    async def accept(self, stream: trio.abc.Stream, addr: Addr, *, path: Path = "direct") -> None:
        """Take over an accepted stream, or close it unread."""
        nursery = self._nursery
        now = self._env.now()
        # A circuit comes from its relay's address, which must not pay for who uses it.
        origin = self.gate.origin(None if path == "relay" else ip_of(addr))
        refusal = "paused" if self.paused or nursery is None else self.gate.begin(origin, now)
        if refusal is not None or nursery is None:
            self.counters[f"refused_{refusal}"] += 1
            await trio.aclose_forcefully(stream)
            return
        ip = ip_of(addr)
        unasked = path != "relay" and self.contacts.unknown(ip, now)
        self.contacts.note(ip, now)
        # The transport's task ends here: a closing door does not cut who is already inside.
        nursery.start_soon(self._serve_inbound, stream, addr, path, origin, unasked)

    async def _serve_inbound(
        self,
        stream: trio.abc.Stream,
        addr: Addr,
        path: Path,
        origin: Origin | None,
        unasked: bool,
    ) -> None:
        punch = None
        try:
            if path != "relay":
                punch, stream = await self._agreed_role(stream, addr)
        except BaseException:
            self.gate.end_pending(origin)
            await trio.aclose_forcefully(stream)
            raise
        connection = self._connection(
            stream,
            addr,
            path,
            expected=punch.peer if punch is not None else None,
            inbound=punch is None or not punch.initiator,
            dialled=False,
        )
        connection.unasked = unasked
        proven = False
        try:
            proven = await self._prove_inbound(connection, origin)
        finally:
            self.gate.end_pending(origin)
            if not proven:
                with trio.move_on_after(self._config.close_grace_s, shield=True):
                    await connection.discard()
        if not proven:
            return
        peer = connection.peer
        member = self._is_wanted(peer)
        refusal = (
            "paused"
            if self.paused
            else self.gate.enter(origin, peer, self._env.now(), member=member)
        )
        if refusal is not None:
            self.counters[f"refused_{refusal}"] += 1
            await trio.aclose_forcefully(stream)
            return
        try:
            await self._carry(connection)
        finally:
            self.gate.leave(origin, member=member)

    async def _agreed_role(
        self, stream: trio.abc.Stream, addr: Addr
    ) -> tuple[Punch | None, trio.abc.Stream]:
        """The punch that an accepted connection belongs to, and the stream to go on with."""
        punch = self._punches.expected(addr)
        if punch is not None:
            return punch, stream
        punch = self._punches.from_host(addr)
        if punch is None or not punch.initiator:
            return None, stream
        with trio.move_on_after(SILENCE_S):
            if isinstance(stream, NowaitStream):
                await stream.wait_readable()
                return None, stream
            assert isinstance(stream, trio.abc.HalfCloseableStream)
            early = await stream.receive_some()
            return None, HandedOverStream(stream, bytes(early))
        return punch, stream

    async def _prove_inbound(self, connection: Connection, origin: Origin | None) -> bool:
        why = "no proof in time"
        try:
            with trio.move_on_after(self._config.upgrade_deadline_s):
                await connection.upgrade()
                return True
        except PeerError as error:
            why = str(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001 - a supervisor: no stranger may stop the node
            self._owner.failed("handshake", error)
            why = "a fault of ours"
        self.counters["handshakes_failed"] += 1
        self.gate.failed_handshake(origin, self._env.now())
        log.debug(
            "handshake_failed", extra={"f": {"addr": connection.addr, "why": why}, "remote": True}
        )
        return False

    async def _carry(self, connection: Connection) -> None:
        """Run a proven connection to its end."""
        peer = connection.peer
        ip = connection.remote_ip
        self.contacts.begin(ip)
        self.table.add_fresh(connection)
        try:
            await connection.run()
        except Exception as error:  # noqa: BLE001 - a supervisor: no peer may stop the node
            self._owner.failed("connection", error)
        finally:
            self.contacts.end(ip, self._env.now())
            self.table.remove(connection)
            log.info(
                "connection_closed",
                extra={
                    "f": {
                        "peer": peer_text(peer),
                        "addr": connection.addr,
                        "inbound": connection.inbound,
                        "seconds": round(self._env.now() - connection.since_s, 3),
                        "bytes_in": connection.bytes_in,
                        "bytes_out": connection.bytes_out,
                        "why": connection.reason,
                    },
                    "remote": True,
                },
            )

    def _connection(
        self,
        stream: trio.abc.Stream,
        addr: Addr,
        path: Path,
        *,
        expected: PeerId | None,
        inbound: bool,
        dialled: bool,
    ) -> Connection:
        rng = self._env.rng
        session = Session(
            self._identity,
            initiator=not inbound,
            static=rng.randbytes(KEY_BYTES),
            ephemeral=rng.randbytes(KEY_BYTES),
            expected=expected,
            limits=self._limits,
        )
        return Connection(
            stream,
            session,
            self._owner,
            self._env,
            self._config,
            buffers=self._buffers,
            addr=addr,
            inbound=inbound,
            dialled=dialled,
            path="lan" if path == "direct" and is_private(addr) else path,
        )

    def opened(self, connection: Connection) -> None:
        """Both sides agreed on the muxer."""
        if connection.path != "relay":
            direct = self._direct.pop(connection.peer, None)
            if direct is not None:
                direct.set()
        if connection.dialled:
            self.book.succeeded(connection.peer, connection.addr, self._env.wall_ms())
        self.table.add_opened(connection, self._running())

    def leaving(self, connection: Connection) -> None:
        """The other side said goodbye."""
        self.table.drain(connection, self._running())

    # --- dialling ---

    async def connect(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> Connection:
        """A connection on which a stream may be opened, dialling if there is none.

        Raises:
            Unreachable: nothing answered as that peer, or we work offline.
        """
        await trio.lowlevel.checkpoint()
        nursery = self._running()
        if peer == self._identity.id:
            raise UsageError("a node does not connect to itself")
        wanted = _own_parts(addrs, peer)
        error = ""
        for _ in range(2):  # a dial that others began may not know our addresses
            connection = self.table.best(peer)
            if connection is not None:
                return connection
            self._check_may_dial(peer)
            dial = self._dials.get(peer)
            ours = dial is None
            if dial is None:
                dial = self._dials[peer] = _Dial()
                nursery.start_soon(self._dial, peer, wanted, dial)
            await dial.done.wait()
            error = dial.error
            if error and (ours or not wanted):
                break
        connection = self.table.best(peer)
        if connection is None:
            raise Unreachable(f"{peer_text(peer)}: {error or 'the connection ended at once'}")
        return connection

    def _check_may_dial(self, peer: PeerId) -> None:
        if self.paused:
            raise Unreachable("we work offline: resume to reach peers")
        if self.gate.banned(peer, self._env.now()):
            raise Unreachable(f"{peer_text(peer)} broke the protocol repeatedly; refused for now")

    async def _dial(self, peer: PeerId, addrs: tuple[Addr, ...], dial: _Dial) -> None:
        nursery = self._running()
        try:
            connection = await self._dial_addrs(peer, addrs)
        except Unreachable as error:
            dial.error = str(error)
        else:
            nursery.start_soon(self._carry_dialled, connection)
            # The waiters look for it in the table, where `_carry` puts it first thing.
            await trio.lowlevel.checkpoint()
        finally:
            del self._dials[peer]
            dial.done.set()

    async def _carry_dialled(self, connection: Connection) -> None:
        refusal = self.gate.enter(None, connection.peer, self._env.now(), member=True)
        if refusal is not None or self.paused:
            self.counters[f"refused_{refusal or 'paused'}"] += 1
            await connection.discard()
            return
        try:
            await self._carry(connection)
        finally:
            self.gate.leave(None, member=True)

    async def _dial_addrs(
        self, peer: PeerId, addrs: Sequence[Addr], *, remembered: bool = True
    ) -> Connection:
        """A proven connection, not running yet.

        Raises:
            Unreachable: no address, or none answered as `peer`.
        """
        config = self._config
        known = dial_order(addrs)
        if remembered:
            known += dial_order(self.book.addrs(peer))
        usable = [a for a in dict.fromkeys(known) if any(t.dials(a) for t in self._transports)]
        if not usable:
            raise Unreachable("no address known")
        self.counters["dials"] += 1
        # A peer that is at relays may drop our SYN. Had that left from our listen port, our NAT
        # would keep half a connection between the two ports, and refuse the answer of our listener
        # when the peer knocks from there later: its sequence number is not the one the NAT saw
        # (Linux, for two minutes). Only a punch, where both knock at once, may leave from it.
        hidden = not remembered or any(is_relayed(addr) for addr in usable)

        async def attempt(addr: Addr) -> Connection:
            stream, path = await self._dial_raw(
                peer, addr, reuse_port=is_public(addr) and not hidden
            )
            return await self._prove_dialled(stream, peer, addr, path, initiator=True)

        race = Race(attempt, Connection.discard)
        with trio.move_on_after(config.dial_all_s):
            return await race.run(
                usable[: config.dial_addrs_max],
                each_s=config.dial_each_s,
                stagger_s=config.dial_stagger_s,
            )
        raise Unreachable(f"no answer in {config.dial_all_s:g} s")

    async def _dial_raw(
        self, peer: PeerId, addr: Addr, *, reuse_port: bool
    ) -> tuple[trio.abc.Stream, Path]:
        transport = self._transport(addr)
        # From the port we listen at, so that the NATs between give us one address for all of them.
        stream = await transport.dial(addr, peer=peer, reuse_port=reuse_port)
        return stream, transport.path

    def _transport(self, addr: Addr) -> Transport:
        """Who dials `addr`. From here on its host has heard of us."""
        self.contacts.note(ip_of(addr), self._env.now())
        return next(t for t in self._transports if t.dials(addr))

    async def dial_apart(self, addr: Addr) -> trio.abc.Stream:
        """A raw stream from an ephemeral port, for a connection that is none of ours.

        Raises:
            Unreachable: no answer, no transport for `addr`, or we work offline.
        """
        if self.paused or not any(t.dials(addr) for t in self._transports):
            raise Unreachable(f"{addr} is not dialled now")
        return await self._transport(addr).dial(addr, reuse_port=False)

    async def _prove_dialled(
        self, stream: trio.abc.Stream, peer: PeerId, addr: Addr, path: Path, *, initiator: bool
    ) -> Connection:
        connection = self._connection(
            stream, addr, path, expected=peer, inbound=not initiator, dialled=True
        )
        proven = False
        try:
            await connection.upgrade()
            proven = True
        except AuthError:
            # Somebody else lives there now: do not knock again.
            self.book.forget_addr(peer, addr)
            raise
        except (P2pError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as error:
            # A supervisor: whoever answers at an address may not stop the node.
            self._owner.failed("handshake", error)
            raise Unreachable(f"{addr}: a fault of ours, see the log") from error
        finally:
            if not proven:
                with trio.move_on_after(self._config.close_grace_s, shield=True):
                    await connection.discard()
        return connection

    # --- beside a relay ---

    async def dial_direct(self, peer: PeerId, addrs: Sequence[Addr]) -> bool:
        """Dial `peer` beside a relayed connection; whether there is a direct one now.

        The caller limits the time.
        """
        own = [addr for addr in _own_parts(addrs, peer) if not is_relayed(addr)]
        if self.paused or not own:
            return False
        try:
            connection = await self._dial_addrs(peer, own, remembered=False)
        except Unreachable:
            return self._is_direct(peer)
        self._running().start_soon(self._carry_dialled, connection)
        await connection.opened.wait()
        return self._is_direct(peer)

    async def punch(
        self, peer: PeerId, addrs: Sequence[Addr], *, initiator: bool, limit_s: float
    ) -> bool:
        """Dial `peer` while it dials us, until the two meet; whether they did.

        Args:
            peer: who dials us at this moment.
            addrs: its public addresses.
            initiator: whether we start the handshake, as agreed with it.
            limit_s: when to give up.
        """
        with self._punches.under_way(peer, addrs, initiator=initiator):
            direct = self._direct.setdefault(peer, trio.Event())
            with trio.move_on_after(limit_s):
                async with trio.open_nursery() as nursery:
                    for addr in addrs:
                        nursery.start_soon(self._punch_one, peer, addr, initiator)
                    await direct.wait()
                    nursery.cancel_scope.cancel()
        return self._is_direct(peer)

    async def _punch_one(self, peer: PeerId, addr: Addr, initiator: bool) -> None:
        while True:
            try:
                with trio.fail_after(CONNECT_S):
                    stream, path = await self._dial_raw(peer, addr, reuse_port=True)
                connection = await self._prove_dialled(
                    stream, peer, addr, path, initiator=initiator
                )
            except (P2pError, trio.TooSlowError, trio.BrokenResourceError) as error:
                log.debug("punch_missed", extra={"f": {"addr": addr, "why": str(error)}})
                await trio.sleep(PAUSE_S)
            else:
                self._running().start_soon(self._carry_dialled, connection)
                return

    def _is_direct(self, peer: PeerId) -> bool:
        best = self.table.best(peer)
        return best is not None and best.path != "relay"

    # --- doubt ---

    def doubted(self, connection: Connection) -> None:
        """A ping is overdue: dial beside the connection until one of them answers."""
        peer = connection.peer
        if peer not in self._beside and connection.usable and self.book.addrs(peer):
            self._beside.add(peer)
            self._running().start_soon(self._dial_beside, connection)

    def network_changed(self) -> None:
        """Our addresses are others, or we slept: try every connection, and reach pinned peers."""
        nursery = self._running()
        for connection in list(self.table):
            if connection.opened.is_set():
                nursery.start_soon(self._try_out, connection)
        for peer in self._pins:
            self._kick(peer, fresh=True)

    async def _try_out(self, connection: Connection) -> None:
        if not await connection.answers():
            connection.doubt()

    async def _dial_beside(self, connection: Connection) -> None:
        peer = connection.peer
        try:
            while connection.alive and connection.suspect and not self.paused:
                with trio.move_on_after(self._config.suspect_redial_s):
                    try:
                        beside = await self._dial_addrs(peer, ())
                    except Unreachable:
                        await connection.done.wait()
                    else:
                        self._running().start_soon(self._carry_dialled, beside)
                        return
        finally:
            self._beside.discard(peer)

    # --- keeping connected ---

    def pin(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        """Keep `peer` connected."""
        if peer == self._identity.id:
            raise UsageError("a node does not connect to itself")
        self.learn(peer, addrs)
        if peer not in self._pins:
            self._pins[peer] = _Pin()
            if self._nursery is not None:
                self._start_keeping(peer)

    def unpin(self, peer: PeerId) -> None:
        """Stop keeping `peer` connected; a live connection stays."""
        pin = self._pins.pop(peer, None)
        if pin is not None:
            pin.scope.cancel()

    def pinned(self) -> list[PeerId]:
        """Peers we keep connected, ascending."""
        return sorted(self._pins)

    def learn(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Remember addresses; a new one is tried at once if the peer is wanted."""
        own = _own_parts(addrs, peer)
        if own and self.book.learn(peer, own, self._env.wall_ms()):
            self._kick(peer, fresh=True)

    def _kick(self, peer: PeerId, *, fresh: bool = False) -> None:
        pin = self._pins.get(peer)
        if pin is not None:
            if fresh:
                pin.attempt = 0
            pin.kick.set()

    def _start_keeping(self, peer: PeerId) -> None:
        pin = self._pins[peer]
        pin.scope = trio.CancelScope()
        self._running().start_soon(self._keep, peer, pin)

    async def _keep(self, peer: PeerId, pin: _Pin) -> None:
        connected_s: float | None = None
        with pin.scope:
            while True:
                pin.kick = trio.Event()
                now = self._env.now()
                if self.table.best(peer) is not None:
                    connected_s = now if connected_s is None else connected_s
                    await pin.kick.wait()
                    continue
                if connected_s is not None and now - connected_s >= self._config.stable_s:
                    pin.attempt = 1  # as after a first failure: the shortest wait
                connected_s = None
                if self.paused:
                    await pin.kick.wait()
                    continue
                if pin.attempt:
                    with trio.move_on_after(self._backoff_s(peer, pin.attempt - 1)):
                        await pin.kick.wait()
                    if self.table.best(peer) is not None or self.paused:
                        continue
                pin.attempt += 1
                try:
                    await self.connect(peer)
                except Unreachable as error:
                    log.debug("keep_failed", extra={"f": {"why": str(error)}})

    def _backoff_s(self, peer: PeerId, attempt: int) -> float:
        wait_s = min(self._config.backoff_max_s, 2.0 ** min(attempt, 30))
        # The side with the higher id waits longer, so that both do not dial at the same moment.
        extra_s = self._config.backoff_yield_s if self._identity.id > peer else 0.0
        return wait_s * self._env.rng.uniform(0.5, 1.0) + extra_s

    def _peer_up(self, peer: PeerId) -> None:
        self.counters["peers_up"] += 1
        self._kick(peer)
        self._up(peer)

    def _peer_down(self, peer: PeerId, why: str) -> None:
        self._kick(peer)
        self._down(peer, why)

    def _replaced(self, peer: PeerId, connection: Connection) -> None:
        log.debug("connection_replaced", extra={"f": {"addr": connection.addr}})
        self._kick(peer)

    # --- ending ---

    def violated(self, connection: Connection, why: str) -> None:
        """Count a violation; the third within ten minutes ends and refuses the peer."""
        self.counters["violations"] += 1
        log.warning(
            "violation",
            extra={"f": {"peer": peer_text(connection.peer), "why": why}, "remote": True},
        )
        if self.gate.violation(connection.peer, self._env.now()):
            self.counters["bans"] += 1
            self.end_peer(connection.peer, "the peer broke the protocol repeatedly")

    def end_peer(self, peer: PeerId, why: str) -> list[Connection]:
        """End every connection of `peer`; which ones."""
        ended = [c for c in self.table if c.peer == peer]
        for connection in ended:
            connection.abort(why)
        return ended

    async def disconnect(self, peer: PeerId) -> None:
        """End every connection of `peer` and wait for it."""
        await trio.lowlevel.checkpoint()
        for connection in self.end_peer(peer, "we disconnected"):
            await connection.done.wait()

    def pause(self) -> None:
        """Work offline."""
        self.paused = True
        for connection in list(self.table):
            connection.abort("we work offline")

    def resume(self) -> None:
        """End `pause` and reach the pinned peers at once."""
        self.paused = False
        for peer in self._pins:
            self._kick(peer, fresh=True)

    def shed_idlest(self) -> None:
        """Descriptors ran out: end the connection that has been silent longest."""
        strangers = [c for c in self.table if not self.is_member(c.peer) and c.mux.streams == 0]
        if strangers:
            min(strangers, key=lambda c: c.seen_s).abort("out of file descriptors")


def _own_parts(addrs: Sequence[Addr], peer: PeerId) -> tuple[Addr, ...]:
    """`addrs` without their trailing `/p2p/` parts. What is no multiaddr is left out.

    Raises:
        UsageError: an address names another peer.
    """
    own: list[Addr] = []
    for addr in addrs:
        try:
            text, named = split_peer_untrusted(addr)
        except PeerError:
            log.warning("bad_address", extra={"f": {"addr": addr[:256]}})
            continue
        if named is not None and named != peer:
            raise UsageError(f"{addr} names another peer")
        own.append(text)
    return tuple(own)
