"""Dials: one race a peer for everybody who wants it, dials beside a connection, raw ones.

Theory of operation. Whoever wants a peer that is not connected starts a race over the addresses it
names and those remembered, or joins the race under way: what it knows is tried next, so that nobody
waits for somebody else's dead addresses. The race belongs to nobody: a caller that gives up leaves
it to the others. A *dial beside* goes to a peer that is connected, because that connection is
doubted or runs over a relay; it shares nothing, and `p2p.net.table` decides which connection stays.

A proven connection is the manager's: the dialler hands it over (`DialHost.carry`) and forgets it.
Source: docs/specs/wire.md s.7; RFC 8305.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from p2p.errors import Unreachable
from p2p.identity import peer_text
from p2p.net.dialing import Race, dial_order
from p2p.net.driver import Connection
from p2p.wire.multiaddr import ip_of, is_public, is_relayed

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.net.book import Book
    from p2p.net.contacts import Contacts
    from p2p.net.gate import Gate
    from p2p.net.handshakes import Handshakes
    from p2p.net.seam import Addr, Path, Transport
    from p2p.net.table import PeerTable


class DialHost(Protocol):
    """What a dial asks of the connection manager."""

    @property
    def paused(self) -> bool:
        """Whether we work offline."""
        ...

    def running(self) -> trio.Nursery:
        """Where connections live.

        Raises:
            UsageError: the fabric does not run.
        """
        ...

    async def carry(self, connection: Connection) -> None:
        """Run a proven connection to its end, or discard it if there is no place for it."""


class _Dial:
    """A dial under way, shared by everybody who wants that peer."""

    def __init__(self, race: Race[Connection]) -> None:
        self.race = race
        self.done = trio.Event()
        self.error = ""


class Dialler:
    """Makes connections.

    Args:
        host: who keeps them.
        handshakes: how a raw stream is proven.
        config: limits and times.
        env: the clock.
        transports: how to dial; the list may grow.
        book: where peers are.
        gate: who is refused.
        contacts: told of each host that hears of us.
        counters: counts `dials`.
        table: who is connected.
    """

    def __init__(
        self,
        host: DialHost,
        handshakes: Handshakes,
        config: P2pConfig,
        env: Env,
        transports: Sequence[Transport],
        book: Book,
        gate: Gate,
        contacts: Contacts,
        counters: Counter[str],
        table: PeerTable,
    ) -> None:
        self._host = host
        self._handshakes = handshakes
        self._config = config
        self._env = env
        self._transports = transports
        self._book = book
        self._gate = gate
        self._contacts = contacts
        self._counters = counters
        self._table = table
        self._dials: dict[PeerId, _Dial] = {}
        self._beside: set[PeerId] = set()

    @property
    def under_way(self) -> list[PeerId]:
        """Peers that are being dialled because somebody wants them."""
        return list(self._dials)

    # --- for whoever wants a peer ---

    async def reach(self, peer: PeerId, addrs: Sequence[Addr]) -> Connection:
        """A connection on which a stream may be opened, dialling if there is none.

        Args:
            peer: whom.
            addrs: where it may be, without their `/p2p/` parts; tried before those remembered.

        Raises:
            Unreachable: nothing answered as that peer, or we work offline.
        """
        error = ""
        for _ in range(2):  # a race that we joined may have been over but for its end
            connection = self._table.best(peer)
            if connection is not None:
                return connection
            self._check_may_dial(peer)
            dial = self._dials.get(peer)
            ours = dial is None
            if dial is None:
                dial = self._start(peer, addrs)
            else:
                dial.race.add(self._usable(dial_order(addrs)), first=True)
            await dial.done.wait()
            error = dial.error
            if error and (ours or not addrs):
                break
        connection = self._table.best(peer)
        if connection is None:
            raise Unreachable(f"{peer_text(peer)}: {error or 'the connection ended at once'}")
        return connection

    def learned(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Somebody named addresses of `peer`: a dial under way tries them too, last."""
        dial = self._dials.get(peer)
        if dial is not None:
            dial.race.add(self._usable(dial_order(addrs)), first=False)

    def _check_may_dial(self, peer: PeerId) -> None:
        if self._host.paused:
            raise Unreachable("we work offline: resume to reach peers")
        if self._gate.banned(peer, self._env.now()):
            raise Unreachable(f"{peer_text(peer)} broke the protocol repeatedly; refused for now")

    def _start(self, peer: PeerId, addrs: Sequence[Addr]) -> _Dial:
        try:
            dial = _Dial(self._race(peer, addrs, remembered=True))
        except Unreachable as error:
            raise Unreachable(f"{peer_text(peer)}: {error}") from error
        self._dials[peer] = dial
        self._host.running().start_soon(self._run_dial, peer, dial)
        return dial

    async def _run_dial(self, peer: PeerId, dial: _Dial) -> None:
        nursery = self._host.running()
        try:
            connection = await self._run(dial.race)
        except Unreachable as error:
            dial.error = str(error)
        else:
            nursery.start_soon(self._host.carry, connection)
            # The waiters look for it in the table, where `carry` puts it first thing.
            await trio.lowlevel.checkpoint()
        finally:
            del self._dials[peer]
            dial.done.set()

    # --- one race ---

    async def dial(
        self, peer: PeerId, addrs: Sequence[Addr], *, remembered: bool = True
    ) -> Connection:
        """A proven connection, not running yet, whatever others there are.

        Raises:
            Unreachable: no address, or none answered as `peer`.
        """
        return await self._run(self._race(peer, addrs, remembered=remembered))

    def _race(self, peer: PeerId, addrs: Sequence[Addr], *, remembered: bool) -> Race[Connection]:
        """A race that has not started.

        Raises:
            Unreachable: no address.
        """
        config = self._config
        known = dial_order(addrs)
        if remembered:
            known += dial_order(self._book.addrs(peer))
        usable = self._usable(known)
        if not usable:
            raise Unreachable("no address known")

        async def attempt(addr: Addr) -> Connection:
            # A peer that is at relays may drop our SYN. Had that left from our listen port, our NAT
            # would keep half a connection between the two ports, and refuse the answer of our
            # listener when the peer knocks from there later: its sequence number is not the one the
            # NAT saw (Linux, for two minutes). Only a punch, where both knock at once, may leave
            # from it.
            hidden = not remembered or any(is_relayed(known) for known in race.known)
            stream, path = await self.raw(peer, addr, reuse_port=is_public(addr) and not hidden)
            return await self._handshakes.prove_dialled(stream, peer, addr, path, initiator=True)

        race = Race(
            attempt,
            Connection.discard,
            each_s=config.dial_each_s,
            stagger_s=config.dial_stagger_s,
            addrs_max=config.dial_addrs_max,
        )
        race.add(usable, first=True)
        return race

    async def _run(self, race: Race[Connection]) -> Connection:
        self._counters["dials"] += 1
        with trio.move_on_after(self._config.dial_all_s):
            return await race.run()
        raise Unreachable(f"no answer in {self._config.dial_all_s:g} s")

    def _usable(self, addrs: Sequence[Addr]) -> list[Addr]:
        return [a for a in dict.fromkeys(addrs) if any(t.dials(a) for t in self._transports)]

    # --- raw streams ---

    async def raw(
        self, peer: PeerId, addr: Addr, *, reuse_port: bool
    ) -> tuple[trio.abc.Stream, Path]:
        """A raw stream to `addr` and how it runs; `addr` must be one that a transport dials.

        Raises:
            Unreachable: no answer.
        """
        transport = self._transport(addr)
        # From the port we listen at, so that the NATs between give us one address for all of them.
        stream = await transport.dial(addr, peer=peer, reuse_port=reuse_port)
        return stream, transport.path

    async def apart(self, addr: Addr) -> trio.abc.Stream:
        """A raw stream from an ephemeral port, for a connection that is none of ours.

        Raises:
            Unreachable: no answer, no transport for `addr`, or we work offline.
        """
        if self._host.paused or not any(t.dials(addr) for t in self._transports):
            raise Unreachable(f"{addr} is not dialled now")
        return await self._transport(addr).dial(addr, reuse_port=False)

    def _transport(self, addr: Addr) -> Transport:
        """Who dials `addr`. From here on its host has heard of us."""
        self._contacts.note(ip_of(addr), self._env.now())
        return next(t for t in self._transports if t.dials(addr))

    # --- beside a connection ---

    async def direct(self, peer: PeerId, addrs: Sequence[Addr]) -> bool:
        """Dial `peer` beside a relayed connection; whether there is a direct one now.

        The caller limits the time.
        """
        own = [addr for addr in addrs if not is_relayed(addr)]
        if self._host.paused or not own:
            return False
        try:
            connection = await self.dial(peer, own, remembered=False)
        except Unreachable:
            return self._table.is_direct(peer)
        self._host.running().start_soon(self._host.carry, connection)
        await connection.opened.wait()
        return self._table.is_direct(peer)

    def beside(self, connection: Connection) -> None:
        """Dial beside a doubted connection until one of the two answers."""
        peer = connection.peer
        if peer not in self._beside and connection.usable and self._book.addrs(peer):
            self._beside.add(peer)
            self._host.running().start_soon(self._dial_beside, connection)

    async def _dial_beside(self, connection: Connection) -> None:
        peer = connection.peer
        try:
            while connection.alive and connection.suspect and not self._host.paused:
                with trio.move_on_after(self._config.suspect_redial_s):
                    try:
                        beside = await self.dial(peer, ())
                    except Unreachable:
                        await connection.done.wait()
                    else:
                        self._host.running().start_soon(self._host.carry, beside)
                        return
        finally:
            self._beside.discard(peer)
