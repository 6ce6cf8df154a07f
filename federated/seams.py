"""The doors of `federated`: what jobs and rounds will ask of the mesh and of a database.

`p2p.node.Node` satisfies `Mesh` and `memory.storage.db.Db` satisfies `Db`; `daemon.wiring`
introduces them. Nothing here is implemented yet: jobs and rounds come later, through these doors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import apsw

    from p2p.identity import PeerId
    from p2p.net.seam import Fabric
    from p2p.rpc import Rpc

T = TypeVar("T")


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


class Db(Protocol):
    """A journal: one writer with group commit, several readers."""

    async def read(self, fn: Callable[[apsw.Connection], T]) -> T:
        """Run `fn` in one read transaction."""
        ...

    async def write(self, fn: Callable[[apsw.Connection], T]) -> T:
        """Run `fn` as one atomic unit; returns after it is on disk."""
        ...
