"""Finding peers again: what the mesh asks of the DHT, and tells it.

Members of a group remember where they reached each other. When a peer we keep connected does not
answer there for 30 s, it has probably moved: we look its own signed record up, learn the addresses
and dial. When *we* move, our record is published again within 30 s (`p2p.dht.publisher`). So a
group whose members all moved finds itself through any node of the DHT that stayed.
Source: docs/specs/dht.md s.9.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2p.config import bootstrap_peers
from p2p.dht.keys import provider_key
from p2p.dht.records import seal_own_record
from p2p.dht.service import Dht
from p2p.identity import peer_text
from p2p.net.identify import REACH_EVERYBODY, dialable_addrs, reach_of
from p2p.net.seam import Fabric
from p2p.wire.multiaddr import ip_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from p2p.config import P2pConfig
    from p2p.env import Env
    from p2p.identity import PeerId, Signer
    from p2p.net.seam import Addr

log = logging.getLogger("covey.p2p.discovery")

MISSING_S: Final = 30.0
"""A pinned peer that could not be reached for so long is looked up."""
LOOK_S: Final = 5.0
"""How often we see who is missing."""
AGAIN_S_MIN: Final = 30.0
AGAIN_S_MAX: Final = 600.0
"""Looked up again after the one, then twice as long each time, up to the other."""
LOOKUPS_MAX: Final = 4
"""Peers looked up at once."""
RECORD_S_MAX: Final = 3600.0
"""Our record is signed again when it is older, so that a fresh one beats a recording."""
FELLOWS_MAX: Final = 20
"""Providers of a group's key asked for at once."""
MEETINGS_MAX: Final = 128
"""Meeting points of a node: half of what one sender may store at another."""

# What a stranger names for a peer is dialled only if everybody can reach it: as if seen from there.
_EVERYWHERE: Final = "/ip4/1.1.1.1/tcp/4001"


def public_addrs(addrs: Iterable[Addr], config: P2pConfig) -> list[Addr]:
    """Of our own addresses, those that everybody may be told."""
    return [addr for addr in addrs if reach_of(addr, config) == REACH_EVERYBODY]


def usable_addrs(peer: PeerId, addrs: Iterable[Addr], config: P2pConfig) -> list[Addr]:
    """Of the addresses that somebody names for `peer`, those we dial on that word.

    No private ranges, no ports of the system, no names: a name may lead anywhere.
    """
    dialable = dialable_addrs(addrs, peer, _EVERYWHERE, config)
    return [addr for addr in dialable if ip_of(addr) is not None]


def make_dht(
    signer: Signer,
    fabric: Keeping,
    config: P2pConfig,
    env: Env,
    *,
    is_member: Callable[[PeerId], bool],
) -> Dht:
    """The DHT of a node: joined from the configuration and from whom the node remembers."""
    record = OwnRecord(signer, env, lambda: public_addrs(fabric.addrs(), config))
    bootstrap = bootstrap_peers(config.bootstrap)

    def seeds() -> list[tuple[PeerId, list[Addr]]]:
        remembered = [(peer, fabric.known_addrs(peer)) for peer in fabric.known_peers()]
        return [*bootstrap.items(), *(seed for seed in remembered if seed[0] not in bootstrap)]

    return Dht(
        signer,
        fabric,
        replace(config.dht, server=config.dht.server or config.reachability == "public"),
        env,
        protocol=config.dht.protocol or f"/covey/{config.network}/kad/1",
        our_record=record.current,
        seeds=seeds,
        usable=lambda peer, addrs: usable_addrs(peer, addrs, config),
        wanted=lambda peer: is_member(peer) or peer in fabric.pinned(),
    )


class OwnRecord:
    """Our signed peer record, signed anew when our addresses changed or an hour passed.

    Args:
        signer: who we are.
        env: clocks.
        addrs: where everybody can reach us, as of now.
    """

    def __init__(self, signer: Signer, env: Env, addrs: Callable[[], list[Addr]]) -> None:
        self._signer = signer
        self._env = env
        self._addrs = addrs
        self._seq = 0
        self._signed_s = 0.0
        self._current: tuple[tuple[Addr, ...], bytes] = ((), b"")

    def current(self) -> bytes:
        """The record; empty while nobody can reach us."""
        addrs = tuple(self._addrs())
        if not addrs:
            return b""
        if self._current[0] != addrs or self._env.now() - self._signed_s > RECORD_S_MAX:
            self._seq = max(self._env.wall_ms(), self._seq + 1)
            self._signed_s = self._env.now()
            self._current = addrs, seal_own_record(self._signer, self._seq, addrs)
        return self._current[1]


class Keeping(Fabric, Protocol):
    """A fabric that remembers peers and keeps some of them connected."""

    def pinned(self) -> list[PeerId]:
        """Peers to keep connected."""
        ...

    def known_peers(self) -> list[PeerId]:
        """Remembered peers, the last seen first."""
        ...

    def known_addrs(self, peer: PeerId) -> list[Addr]:
        """Remembered addresses, best first."""
        ...

    def learn(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Remember addresses of `peer`, and dial if it is wanted."""

    @property
    def paused(self) -> bool:
        """Whether we work offline."""
        ...


class _Missing:
    """A pinned peer that is not connected."""

    def __init__(self, now: float) -> None:
        self.due_s = now + MISSING_S
        self.wait_s = AGAIN_S_MIN
        self.looking = False


class Discovery:
    """Looks missing peers up.

    Args:
        dht: where to look.
        fabric: whom to keep connected.
        env: the clock.
    """

    def __init__(self, dht: Dht, fabric: Keeping, env: Env) -> None:
        self._dht = dht
        self._fabric = fabric
        self._env = env
        self._missing: dict[PeerId, _Missing] = {}
        self._meeting: dict[bytes, None] = {}
        self._limiter = trio.CapacityLimiter(LOOKUPS_MAX)

    def meet(self, names: Iterable[bytes]) -> None:
        """Be found by, and find, whoever meets under one of `names`; replaces the former ones.

        The DHT holds hashes of the names: who does not know a name cannot ask for it. At most 128
        count, so that a node in many groups does not spend its whole share of other nodes' stores.
        """
        keys = {provider_key(name): None for name in sorted(names)[:MEETINGS_MAX]}
        for key in self._meeting:
            if key not in keys:
                self._dht.unprovide(key)
        for key in keys:
            if key not in self._meeting:
                self._dht.keep_provided(key)
        self._meeting = keys

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await trio.sleep(LOOK_S)
                for peer in self._due():
                    nursery.start_soon(self._look_up, peer)

    def _due(self) -> list[PeerId]:
        """Pinned peers that have been missing for too long and are not being looked for."""
        now = self._env.now()
        live = self._fabric.peers()
        wanted = [] if self._fabric.paused else self._fabric.pinned()
        missing = {peer for peer in wanted if peer not in live}
        for peer in [peer for peer in self._missing if peer not in missing]:
            del self._missing[peer]
        due = []
        for peer in wanted:
            if peer in missing:
                entry = self._missing.setdefault(peer, _Missing(now))
                if entry.due_s <= now and not entry.looking:
                    entry.looking = True
                    entry.due_s = now + entry.wait_s
                    entry.wait_s = min(AGAIN_S_MAX, 2 * entry.wait_s)
                    due.append(peer)
        return due

    async def _look_up(self, peer: PeerId) -> None:
        try:
            async with self._limiter:
                addrs = await self._dht.find_peer(peer)
                if not addrs:
                    addrs = await self._ask_meetings(peer)
        finally:
            entry = self._missing.get(peer)
            if entry is not None:
                entry.looking = False
        log.info("peer_looked_up", extra={"f": {"peer": peer_text(peer), "addrs": len(addrs)}})
        if addrs:
            self._fabric.learn(peer, addrs)

    async def _ask_meetings(self, peer: PeerId) -> list[Addr]:
        """Where `peer` is by its own word at one of our meeting points."""
        for key in list(self._meeting):
            for fellow, addrs in await self._dht.providers(key, FELLOWS_MAX):
                if fellow == peer:
                    return addrs
        return []
