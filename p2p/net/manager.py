"""The connection manager: accepts, dials, keeps, doubts, refuses.

Everything about *which* connections exist is here or in its parts: `gate` (who may connect),
`standing` (whose place is taken when they run out), `handshakes` (from a raw stream to a proven
peer), `table` (one connection a peer), `dialler` (how connections are made), `puncher` (both dial
at once), `keeper` (peers to stay connected to), `book` (where peers are). Here they meet, and a
proven connection lives and ends. What runs *on* it is the fabric's (`p2p.net.wire_fabric`), reached
through `ConnectionOwner`.

Every connection runs in the manager's nursery, so that cancelling `run` ends them all, each with
its own short goodbye. Source: docs/specs/wire.md s.7.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import trio

from p2p.errors import PeerError, UsageError
from p2p.identity import peer_text
from p2p.net.contacts import Contacts
from p2p.net.dialler import Dialler
from p2p.net.gate import Gate
from p2p.net.handshakes import Handshakes
from p2p.net.keeper import Keeper
from p2p.net.puncher import Puncher
from p2p.net.standing import Standing, Standings
from p2p.net.table import PeerTable
from p2p.wire.multiaddr import ip_of, split_peer_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import Identity, PeerId
    from p2p.net.book import Book
    from p2p.net.driver import Connection
    from p2p.net.gate import Origin
    from p2p.net.ports import ConnectionOwner
    from p2p.net.seam import Addr, Path, Transport

log = logging.getLogger("covey.p2p.manager")


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
        self.standings = Standings()
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
        self._owner = owner
        self._up = up
        self._down = down
        book.keeps = self._is_wanted
        self.handshakes = Handshakes(identity, config, env, book, self.gate, self.counters, owner)
        self.dialler = Dialler(
            self,
            self.handshakes,
            config,
            env,
            transports,
            book,
            self.gate,
            self.contacts,
            self.counters,
            self.table,
        )
        self.puncher = Puncher(self, self.handshakes, self.dialler, self.table)
        self.keeper = Keeper(identity.id, self, config, env, self.table)
        self.standings.is_pinned = self.keeper.__contains__
        self._nursery: trio.Nursery | None = None

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Hold connections until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self.keeper.start(nursery)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self.keeper.stop()
                self._nursery = None

    def running(self) -> trio.Nursery:
        """Where connections live.

        Raises:
            UsageError: the fabric does not run.
        """
        if self._nursery is None:
            raise UsageError("the fabric is not running: start `run` first")
        return self._nursery

    def _is_wanted(self, peer: PeerId) -> bool:
        return self.standings.of(peer) >= Standing.MEMBER

    # --- inbound ---

    async def accept(self, stream: trio.abc.Stream, addr: Addr, *, path: Path = "direct") -> None:
        """Take over an accepted stream, or close it unread."""
        nursery = self._nursery
        now = self._env.now()
        # A circuit comes from its relay's address, which must not pay for who uses it.
        origin = self.gate.origin(None if path == "relay" else ip_of(addr))
        if self.paused or nursery is None:
            refusal: str | None = "paused"
        elif self.gate.full and self.standings.least(self.table, below=Standing.PINNED) is None:
            refusal = "full"
        else:
            refusal = self.gate.begin(origin, now)
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
                punch, stream = await self.puncher.agreed_role(stream, addr)
        except BaseException:
            self.gate.end_pending(origin)
            await trio.aclose_forcefully(stream)
            raise
        connection = self.handshakes.make(
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
            proven = await self.handshakes.prove_accepted(connection, origin)
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
            else self._take_place(origin, peer, self.standings.of(peer), member=member)
        )
        if refusal is not None:
            self.counters[f"refused_{refusal}"] += 1
            await trio.aclose_forcefully(stream)
            return
        try:
            await self._carry(connection)
        finally:
            self.gate.leave(origin, member=member)

    def _take_place(
        self, origin: Origin | None, peer: PeerId, standing: Standing, *, member: bool
    ) -> str | None:
        """Take a proven place, if need be that of a peer that stands lower; a word of why not."""
        now = self._env.now()
        refusal = self.gate.enter(origin, peer, now, member=member)
        if refusal != "full":
            return refusal
        least = self.standings.least(self.table, below=standing)
        if least is None:
            return refusal
        refusal = self.gate.enter(origin, peer, now, member=member, displacing=True)
        if refusal is None:
            self.counters["connections_displaced"] += 1
            least.abort("its place is needed")
        return refusal

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

    def opened(self, connection: Connection) -> None:
        """Both sides agreed on the muxer."""
        if connection.path != "relay":
            self.puncher.met(connection.peer)
        if connection.dialled:
            self.book.succeeded(connection.peer, connection.addr, self._env.wall_ms())
        self.table.add_opened(connection, self.running())

    def leaving(self, connection: Connection) -> None:
        """The other side said goodbye."""
        self.table.drain(connection, self.running())

    # --- dialling ---

    async def connect(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> Connection:
        """A connection on which a stream may be opened, dialling if there is none.

        Raises:
            Unreachable: nothing answered as that peer, or we work offline.
        """
        await trio.lowlevel.checkpoint()
        self.running()
        if peer == self._identity.id:
            raise UsageError("a node does not connect to itself")
        return await self.dialler.reach(peer, own_parts(addrs, peer))

    async def carry(self, connection: Connection) -> None:
        """Run a connection that we dialled to its end, or discard it if there is no place."""
        standing = self.standings.of(connection.peer, dialled=True)
        refusal = self._take_place(None, connection.peer, standing, member=True)
        if refusal is not None or self.paused:
            self.counters[f"refused_{refusal or 'paused'}"] += 1
            await connection.discard()
            return
        try:
            await self._carry(connection)
        finally:
            self.gate.leave(None, member=True)

    async def dial_direct(self, peer: PeerId, addrs: Sequence[Addr]) -> bool:
        """Dial `peer` beside a relayed connection; whether there is a direct one now.

        The caller limits the time.
        """
        return await self.dialler.direct(peer, own_parts(addrs, peer))

    # --- doubt ---

    def doubted(self, connection: Connection) -> None:
        """A ping is overdue: dial beside the connection until one of them answers."""
        self.dialler.beside(connection)

    def network_changed(self) -> None:
        """Our addresses are others, or we slept: try every connection, and reach pinned peers."""
        nursery = self.running()
        for connection in list(self.table):
            if connection.opened.is_set():
                nursery.start_soon(self._try_out, connection)
        self.keeper.kick_all()

    async def _try_out(self, connection: Connection) -> None:
        if not await connection.answers():
            connection.doubt()

    # --- keeping connected ---

    def pin(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        """Keep `peer` connected."""
        if peer == self._identity.id:
            raise UsageError("a node does not connect to itself")
        self.learn(peer, addrs)
        self.keeper.pin(peer)

    def learn(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Remember addresses; a new one is tried at once if the peer is wanted."""
        own = own_parts(addrs, peer)
        if own and self.book.learn(peer, own, self._env.wall_ms()):
            self.dialler.learned(peer, own)
            self.keeper.kick(peer, fresh=True)

    def _peer_up(self, peer: PeerId) -> None:
        self.counters["peers_up"] += 1
        self.keeper.kick(peer)
        self._up(peer)

    def _peer_down(self, peer: PeerId, why: str) -> None:
        self.keeper.kick(peer)
        self._down(peer, why)

    def _replaced(self, peer: PeerId, connection: Connection) -> None:
        log.debug("connection_replaced", extra={"f": {"addr": connection.addr}})
        self.keeper.kick(peer)

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
        self.keeper.kick_all()

    def shed_idlest(self) -> None:
        """Descriptors ran out: end the connection that matters least."""
        # A relayed connection holds no descriptor of its own.
        direct = [c for c in self.table if c.path != "relay"]
        least = self.standings.least(direct, below=Standing.MEMBER)
        if least is not None:
            least.abort("out of file descriptors")


def own_parts(addrs: Sequence[Addr], peer: PeerId) -> tuple[Addr, ...]:
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
