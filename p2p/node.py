"""One node of the mesh: owns the tasks, shows identity, fabric and RPC to the parts above.

A `Node` is built inert. `await nursery.start(node.run)` returns when it listens; cancelling that
task is the only way to stop it. Services register on `node.rpc` and `node.fabric` before or after.

Source: docs/specs/rpc.md; the seam below it is `p2p.net.seam`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from p2p.identity import verify as verify_signature
from p2p.net.seam import Fabric

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from p2p.env import Env
    from p2p.identity import Identity, PeerId
    from p2p.net.seam import Addr, PeerInfo
    from p2p.rpc import Rpc


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
    """Counts since the start, such as `handshakes_refused`, `frames_bad`, `rpc_calls_in`."""


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


class Node(Protocol):
    """A member of the mesh."""

    id: PeerId
    fabric: ManagedFabric
    rpc: Rpc

    def __init__(self, identity: Identity, fabric: ManagedFabric, env: Env) -> None: ...

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """Our Ed25519 signature over `domain + body`."""
        ...

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        """Whether `peer` signed `domain + body`."""
        return verify_signature(peer, domain, body, signature)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run until cancelled; started when listening."""

    def pin(self, peer: PeerId, addrs: Sequence[Addr] = ()) -> None:
        """Keep `peer` connected: dial now, and again with backoff."""

    def unpin(self, peer: PeerId) -> None:
        """Stop keeping `peer` connected; a live connection stays."""

    def learn(self, peer: PeerId, addrs: Sequence[Addr]) -> None:
        """Remember addresses of `peer`, from a ticket or a member's word."""

    def known_addrs(self, peer: PeerId) -> list[Addr]:
        """Remembered addresses of `peer`, best first."""
        ...

    def pause(self) -> None:
        """Work offline: end every connection, refuse new ones both ways."""

    def resume(self) -> None:
        """End `pause`."""

    def report(self) -> NetReport:
        """What the network does right now."""
        ...

    def set_members(
        self,
        fn: Callable[[PeerId], bool],
        *,
        introduces: Callable[[PeerId, PeerId], bool] | None = None,
    ) -> None:
        """Tell who counts as a member of a shared group: limits and the default of `allow`.

        Args:
            fn: whether a peer shares a group with us.
            introduces: whether we may tell the first peer the second's addresses (they share a group);
                None: both being members is enough.
        """
