"""One node of the mesh: owns the tasks, shows identity, fabric and RPC to the parts above.

A `Node` is built inert. `await nursery.start(node.run)` returns when it listens; cancelling that
task is the only way to stop it. Services register on `node.rpc` and `node.fabric` before or after.

    node = Node(identity, P2pConfig.wan(), env, [TcpTransport(config)], book_path=path)
    node = Node.over(fabric, identity)                 # any fabric, for simulations
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final, Protocol, Self

import trio

from p2p.discovery import Discovery, make_dht
from p2p.errors import UsageError
from p2p.identity import verify as verify_signature
from p2p.nat.reachability import Reach
from p2p.net.seam import Fabric
from p2p.rpc import Rpc
from p2p.rpc_mesh import MeshMethods

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from p2p.blobs.config import BlobConfig
    from p2p.blobs.service import Blobs
    from p2p.config import P2pConfig
    from p2p.dht.service import Dht, DhtReport
    from p2p.env import Env, Offload
    from p2p.identity import Identity, PeerId, Signer
    from p2p.nat.surroundings import Surroundings, SurroundingsReport
    from p2p.nat.traversal import Traversal, TraversalReport
    from p2p.net.seam import Addr, PeerInfo, Transport

UNKNOWN_VERSION: Final = "covey/0"
"""Told when the distribution is not installed, as when run from a source tree."""


@dataclass(frozen=True, kw_only=True)
class NetReport:
    """What the network does right now, a snapshot for people and the local socket."""

    id: PeerId
    listen: tuple[Addr, ...]
    peers: Mapping[PeerId, PeerInfo]
    pinned: tuple[PeerId, ...]
    """Peers we keep connected, ascending."""
    paused: bool
    counters: Mapping[str, int]
    """Counts since the start: the fabric's, and `rpc_calls_in`, `rpc_violations`, `bugs`..."""
    traversal: TraversalReport | None
    """How others reach us; None on a fabric that has no such question."""
    surroundings: SurroundingsReport | None
    """What the network around us is like; None likewise."""
    dht: DhtReport | None
    """The distributed hash table; None if it is off."""


class ManagedFabric(Fabric, Protocol):
    """What a node needs of its fabric beyond streams: a life, and whom to keep connected."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled; started when listening."""

    def pin(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        """Keep `peer` connected: dial now, and again with backoff."""

    def unpin(self, peer: PeerId) -> None:
        """Stop keeping `peer` connected; a live connection stays."""

    def learn(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Remember addresses of `peer`; the handshake proves them when they are used."""

    def known_addrs(self, peer: PeerId) -> list[Addr]:
        """Remembered addresses, best first."""
        ...

    def known_peers(self) -> list[PeerId]:
        """Remembered peers, the last seen first."""
        ...

    def pinned(self) -> list[PeerId]:
        """Peers we keep connected, ascending."""
        ...

    def pause(self) -> None:
        """Work offline: end every connection, refuse new ones both ways."""

    def resume(self) -> None:
        """End `pause`."""

    @property
    def paused(self) -> bool:
        """Whether we work offline."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Counts since the start."""
        ...

    def set_members(self, fn: Callable[[PeerId], bool]) -> None:
        """Tell who counts as a member of a shared group, for limits."""


class Node:
    """A member of the mesh.

    Args:
        identity: our key.
        config: limits, times and listen addresses.
        env: clock, wall clock and random numbers.
        transports: what carries bytes, tried in this order.
        book_path: where addresses of peers are kept between runs; None: nowhere.
    """

    traversal: Traversal | None
    """How others reach us; None on a fabric that has no such question."""
    surroundings: Surroundings | None
    """What looks at the network around us, likewise."""
    dht: Dht | None
    """Finds peers that moved; None if it is off, or on a fabric made without an `Env`."""
    discovery: Discovery | None
    """Looks missing peers up; there is one if there is a DHT."""

    def __init__(
        self,
        identity: Identity,
        config: P2pConfig,
        env: Env,
        transports: Sequence[Transport],
        *,
        book_path: Path | None = None,
    ) -> None:
        # Here, because a simulation over another fabric needs nothing of the real wire.
        from p2p.nat.surroundings import Surroundings
        from p2p.nat.traversal import Traversal
        from p2p.net.book import Book
        from p2p.net.wire_fabric import WireFabric

        book = None if book_path is None else Book(book_path)
        fabric = WireFabric(identity, config, env, transports, book)
        self._join(identity, fabric, config, env)
        self.traversal = Traversal(identity, fabric, self.rpc, config, env)
        self.surroundings = Surroundings(fabric, config, env)
        self.surroundings.on_change(self.traversal.network_changed)
        if self.dht is not None:
            self.surroundings.on_found = self.dht.heard_of
        self.traversal.on_state = self._reach_changed
        fabric.set_useful(
            is_relay=self.traversal.is_our_relay,
            in_dht=lambda peer: self.dht is not None and peer in self.dht.table,
        )

    def _reach_changed(self, state: Reach) -> None:
        """Only who can be dialled by everybody may hold what others look for."""
        if self.dht is not None:
            self.dht.set_server(self._always_serves or state is Reach.PUBLIC)

    @classmethod
    def over(
        cls,
        fabric: ManagedFabric,
        identity: Signer,
        config: P2pConfig | None = None,
        *,
        env: Env | None = None,
    ) -> Self:
        """A node over a fabric that exists already; with an `env` it takes part in the DHT."""
        node = cls.__new__(cls)
        node._join(identity, fabric, config, env)  # noqa: SLF001 - a second constructor
        return node

    def _join(
        self,
        identity: Signer,
        fabric: ManagedFabric,
        config: P2pConfig | None,
        env: Env | None,
    ) -> None:
        if identity.id != fabric.id:
            raise UsageError("the fabric speaks for another identity")
        self.id: PeerId = identity.id
        self.fabric: ManagedFabric = fabric
        self.rpc = Rpc(fabric, config)
        self.traversal = None
        self.surroundings = None
        self._identity = identity
        self._introduces: Callable[[PeerId, PeerId], bool] | None = None
        self.blobs: Blobs | None = None
        self.dht = self.discovery = None
        self._always_serves = config is not None and config.dht.server
        if config is not None and env is not None and config.dht.enabled:
            self.dht = make_dht(identity, fabric, config, env, is_member=self.rpc.is_member)
            self.discovery = Discovery(self.dht, fabric, env)
        MeshMethods(
            self.rpc,
            version=_software(),
            known_addrs=self._addrs_to_tell,
            introduces=self._may_introduce,
        )

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """Our Ed25519 signature over `domain + body`."""
        return self._identity.sign(domain, body)

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        """Whether `peer` signed `domain + body`."""
        return verify_signature(peer, domain, body, signature)

    def keep_blobs(
        self, folder: Path, env: Env, offload: Offload, config: BlobConfig | None = None
    ) -> Blobs:
        """Keep, serve and fetch blobs; before `run`, at most once.

        Args:
            folder: where they are kept; nobody else writes there.
            env: clocks and random numbers.
            offload: where blocking work goes.
            config: limits.
        """
        # Here, because a node without a disk needs nothing of it.
        from p2p.blobs.directory import DhtDirectory
        from p2p.blobs.service import Blobs

        if self.blobs is not None:
            raise UsageError("this node keeps blobs already")
        self.blobs = Blobs(self.rpc, self.fabric, folder, env, offload, config)
        if self.dht is not None:
            self.blobs.set_providers(DhtDirectory(self.dht))
        return self.blobs

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; started when listening."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.rpc.run)
            await nursery.start(self.fabric.run)
            if self.traversal is not None:
                await nursery.start(self.traversal.run)
            if self.surroundings is not None:
                await nursery.start(self.surroundings.run)
            if self.blobs is not None:
                nursery.start_soon(self.blobs.run)
            if self.dht is not None and self.discovery is not None:
                await nursery.start(self.dht.run)
                await nursery.start(self.discovery.run)
            task_status.started()

    def pin(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        """Keep `peer` connected: dial now, and again with backoff."""
        if peer == self.id:
            raise UsageError("cannot pin ourselves")
        self.fabric.pin(peer, addrs)

    def unpin(self, peer: PeerId) -> None:
        """Stop keeping `peer` connected; a live connection stays."""
        self.fabric.unpin(peer)

    def learn(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Remember addresses of `peer`, from a ticket or a member's word."""
        self.fabric.learn(peer, addrs)

    def known_addrs(self, peer: PeerId) -> list[Addr]:
        """Remembered addresses of `peer`, best first."""
        return self.fabric.known_addrs(peer)

    def meet(self, names: Iterable[bytes]) -> None:
        """Be found by, and find, whoever meets under one of `names`, through the DHT."""
        if self.discovery is not None:
            self.discovery.meet(names)

    def pause(self) -> None:
        """Work offline: end every connection, refuse new ones both ways."""
        self.fabric.pause()
        if self.surroundings is not None:
            self.surroundings.pause()

    def resume(self) -> None:
        """End `pause`."""
        self.fabric.resume()
        if self.surroundings is not None:
            self.surroundings.resume()

    def report(self) -> NetReport:
        """What the network does right now."""
        traversal = self.traversal
        return NetReport(
            id=self.id,
            listen=tuple(self.fabric.addrs()),
            peers=self.fabric.peers(),
            pinned=tuple(self.fabric.pinned()),
            paused=self.fabric.paused,
            counters={
                **self.fabric.counters(),
                **self.rpc.counters(),
                **({} if self.blobs is None else self.blobs.counters()),
                **(traversal.counters() if traversal is not None else {}),
                **(self.surroundings.counters() if self.surroundings is not None else {}),
            },
            traversal=traversal.report() if traversal is not None else None,
            surroundings=self.surroundings.report() if self.surroundings is not None else None,
            dht=self.dht.report() if self.dht is not None else None,
        )

    def set_members(
        self,
        fn: Callable[[PeerId], bool],
        *,
        introduces: Callable[[PeerId, PeerId], bool] | None = None,
    ) -> None:
        """Tell who counts as a member of a shared group: limits and the default of `allow`.

        Args:
            fn: whether a peer shares a group with us.
            introduces: whether we may tell the first peer the second's addresses: they share a
                group. None: that both are members of groups of ours is enough.
        """
        self._introduces = introduces
        self.fabric.set_members(fn)
        self.rpc.set_members(fn)

    def _may_introduce(self, asker: PeerId, subject: PeerId) -> bool:
        if subject == self.id:
            return True
        if self._introduces is not None:
            return self._introduces(asker, subject)
        return self.rpc.is_member(asker) and self.rpc.is_member(subject)

    def _addrs_to_tell(self, peer: PeerId) -> list[Addr]:
        return self.fabric.addrs() if peer == self.id else self.fabric.known_addrs(peer)


def _software() -> str:
    try:
        return f"covey/{version('covey')}"
    except PackageNotFoundError:
        return UNKNOWN_VERSION
