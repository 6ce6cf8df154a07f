"""The doors of `federated`: what jobs and rounds ask of the mesh, of a database and of threads.

`daemon.mesh_door` makes a `Mesh` of `p2p.node.Node` and `p2p.replication`, `memory.storage.db.Db`
satisfies `Db`; `daemon.wiring` introduces them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import apsw

    from p2p.identity import PeerId
    from p2p.net.seam import Fabric
    from p2p.rpc import Rpc

T = TypeVar("T")

GroupId: TypeAlias = bytes

TrustClass: TypeAlias = Literal["own", "friend", "stranger", "none"]
"""Who a peer is to us: a device of our owner's, of an owner listed in `jobs.friends`, another
member of the group asked about, or nobody. Nobody gets nothing."""


class Mesh(Protocol):
    """Peers, proven identities and calls between them."""

    @property
    def id(self) -> PeerId:
        """This node."""
        ...

    @property
    def fabric(self) -> Fabric:
        """Streams to peers."""
        ...

    @property
    def rpc(self) -> Rpc:
        """Typed calls to peers."""
        ...

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """Ed25519 over domain + body."""
        ...

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        """Whether `peer` signed domain + body."""
        ...

    def trust(self, peer: PeerId, group: GroupId | None) -> TrustClass:
        """What `peer` is to us in `group`; None asks about our own devices alone."""
        ...

    def owner(self, peer: PeerId, group: GroupId | None) -> bytes:
        """The owner key `peer` published in `group`, else its own: votes count owners."""
        ...

    def members(self, group: GroupId | None) -> Sequence[PeerId]:
        """The other devices of `group`, or our own other devices, ascending; up or not."""
        ...

    def shared_groups(self, peer: PeerId) -> Sequence[GroupId]:
        """Groups that `peer` may read with us."""
        ...


class Db(Protocol):
    """A journal: one writer with group commit, several readers.

    An error of a full disk has a `reason`, `full`; nothing of what was to be written is there.
    """

    async def read(self, fn: Callable[[apsw.Connection], T]) -> T:
        """Run `fn` in one read transaction."""
        ...

    async def write(self, fn: Callable[[apsw.Connection], T], *, full: bool = True) -> T:
        """Run `fn` as one atomic unit; returns after it is committed.

        Args:
            fn: runs in the writer's thread.
            full: whether a power cut after the return may not lose it; else only a crash of the
                process may not.
        """
        ...
