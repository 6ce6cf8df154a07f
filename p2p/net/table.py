"""One connection a peer: which of several stays, and what becomes of the others.

Theory of operation
-------------------
Two sides that dial each other at the same moment get two connections and must keep the same one,
without talking about it: the one whose initiator has the lower peer id stays. If one side initiated
both (it dialled beside a connection it doubted, or was restarted), it keeps the newer, and the
other side follows to wherever the initiator opens its next stream. Before all that, a direct
connection replaces one over a relay, whoever dialled it, and is never replaced by one.

The old connection may be a ghost: the peer restarted, and TCP has not noticed. So before an old
connection wins it must answer a ping within max(1 s, 4 round trips); new streams use the new one
meanwhile. A restarted peer never loses to its ghost.

The loser is never cut: it *drains*. It takes no new streams, and when its last one has ended (and a
grace has passed, for streams that the other side opened before it decided) it says goodbye.

Source: docs/specs/wire.md s.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from p2p.config import P2pConfig
    from p2p.identity import PeerId
    from p2p.net.driver import Connection
    from p2p.net.seam import Path


class PeerEntry:
    """Connections of one peer."""

    def __init__(self) -> None:
        self.current: Connection | None = None
        """Where new streams go."""
        self.opened: list[Connection] = []
        """Connections with an agreed muxer, `current` and draining ones included."""
        self.path: Path | None = None
        """How the last connection that streams were sent to ran."""
        self.fresh: list[Connection] = []
        """Proven, but the muxer is not confirmed: streams go there only if there is no other."""


class PeerTable:
    """All live connections.

    Args:
        us: our peer id.
        config: times and limits.
        up: called when a peer's first connection opened.
        down: called with the reason when its last one ended.
        replaced: called when new streams take another connection.
        moved: called when that one runs another way.
    """

    def __init__(
        self,
        us: PeerId,
        config: P2pConfig,
        *,
        up: Callable[[PeerId], None],
        down: Callable[[PeerId, str], None],
        replaced: Callable[[PeerId, Connection], None],
        moved: Callable[[PeerId, Path], None],
    ) -> None:
        self._us = us
        self._config = config
        self._up = up
        self._down = down
        self._replaced = replaced
        self._moved = moved
        self._entries: dict[PeerId, PeerEntry] = {}

    def __iter__(self) -> Iterator[Connection]:
        for entry in list(self._entries.values()):
            yield from [*entry.opened, *entry.fresh]

    def entry(self, peer: PeerId) -> PeerEntry | None:
        """The connections of `peer`, if there are any."""
        return self._entries.get(peer)

    def peers(self) -> list[PeerId]:
        """Peers with an open connection."""
        return [peer for peer, entry in self._entries.items() if entry.opened]

    def best(self, peer: PeerId) -> Connection | None:
        """Where a new stream to `peer` goes: a connection that is not doubted if there is one."""
        entry = self._entries.get(peer)
        if entry is None:
            return None
        current = entry.current
        if current is not None and current.usable and not current.suspect:
            return current
        usable = [c for c in [*entry.opened, *entry.fresh] if c.usable]
        sure = [c for c in usable if not c.suspect]
        candidates = sure or usable
        return candidates[-1] if candidates else None

    def is_direct(self, peer: PeerId) -> bool:
        """Whether new streams to `peer` run without a relay."""
        best = self.best(peer)
        return best is not None and best.path != "relay"

    def add_fresh(self, connection: Connection) -> None:
        """A peer is proven."""
        self._entries.setdefault(connection.peer, PeerEntry()).fresh.append(connection)

    def add_opened(self, connection: Connection, nursery: trio.Nursery) -> None:
        """The muxer is agreed: decide which connection stays.

        Args:
            connection: was given to `add_fresh` before.
            nursery: for the tasks that wait for a pong, or for a loser's last stream.
        """
        peer = connection.peer
        entry = self._entries[peer]
        entry.fresh.remove(connection)
        entry.opened.append(connection)
        if len(entry.opened) > self._config.connections_per_peer_max:
            connection.abort("too many connections of one peer")
            return
        old = entry.current
        if len(entry.opened) == 1:
            entry.current = connection
            entry.path = connection.path
            self._up(peer)
        elif old is None or not old.usable:
            self._use(entry, connection)
        elif self._newer_wins(old, connection):
            self._use(entry, connection)
            self.drain(old, nursery)
            if old.suspect:
                nursery.start_soon(self._end_if_silent, old)
        else:
            self._use(entry, connection)
            nursery.start_soon(self._confirm, entry, old, connection, nursery)

    def follow(self, connection: Connection) -> None:
        """The other side opened a stream on `connection`: it means to use it."""
        entry = self._entries.get(connection.peer)
        if entry is None or not connection.usable or connection not in entry.opened:
            return
        current = entry.current
        if current is None or current is connection or not connection.inbound:
            return
        same_initiator = current.initiator == connection.initiator
        worse = connection.path == "relay" and current.path != "relay" and current.usable
        if same_initiator and not worse:
            self._use(entry, connection)

    def remove(self, connection: Connection) -> None:
        """A connection ended."""
        peer = connection.peer
        entry = self._entries.get(peer)
        if entry is None:
            return
        was_open = connection in entry.opened
        for group in (entry.opened, entry.fresh):
            if connection in group:
                group.remove(connection)
        if entry.current is connection:
            entry.current = None
            usable = [c for c in entry.opened if c.usable]
            if usable:
                self._use(entry, usable[-1])
        if not entry.opened and not entry.fresh:
            del self._entries[peer]
        if was_open and not entry.opened:
            self._down(peer, connection.reason or "it ended")

    def _use(self, entry: PeerEntry, connection: Connection) -> None:
        entry.current = connection
        self._replaced(connection.peer, connection)
        if connection.path != entry.path:
            entry.path = connection.path
            self._moved(connection.peer, connection.path)

    def _newer_wins(self, old: Connection, new: Connection) -> bool:
        """Whether both sides agree, without a word, that `new` stays."""
        if (old.path == "relay") != (new.path == "relay"):
            return old.path == "relay"  # whoever dialled, a direct connection is the better one
        if old.initiator == new.initiator:
            # Ours to decide if we dialled both; else the other side shows which one it keeps.
            return not new.inbound
        return self._initiator(new) < self._initiator(old)

    def _initiator(self, connection: Connection) -> bytes:
        return connection.initiator or self._us

    async def _confirm(
        self, entry: PeerEntry, old: Connection, new: Connection, nursery: trio.Nursery
    ) -> None:
        """`old` should stay: make sure that it lives, then drain `new`."""
        await self._end_if_silent(old)
        if not old.alive:
            return
        if old.initiator == new.initiator and new.path != "relay":
            # The other side dialled both and will drain the one it gives up; see `follow`.
            return
        if new.alive and old.usable:
            self._use(entry, old)
            self.drain(new, nursery)

    async def _end_if_silent(self, old: Connection) -> None:
        """Cut a connection whose peer answers on a newer one only: its streams wait in vain."""
        if not await old.answers() and old.alive:
            old.abort("the peer answers on a newer connection only", broken=True)

    def drain(self, connection: Connection, nursery: trio.Nursery) -> None:
        """Put no more streams on `connection` and end it after its last one."""
        if not connection.draining:
            connection.draining = True
            nursery.start_soon(self._end_when_idle, connection)

    async def _end_when_idle(self, connection: Connection) -> None:
        while connection.alive:
            await connection.idle.wait()
            with trio.move_on_after(
                max(self._config.drain_grace_s, 4 * (connection.mux.rtt_s or 0.0))
            ):
                await connection.done.wait()
            if connection.idle.is_set():
                await connection.close("another connection to this peer stays")
