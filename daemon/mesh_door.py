"""The mesh as `federated` sees it: a node, and who its peers are by the groups they share with us.

Trust is asked for every task that comes, so what the groups say is kept until they change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.identity import PeerId, peer_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from federated.seams import GroupId, TrustClass
    from p2p.net.seam import Fabric
    from p2p.node import Node
    from p2p.replication.events import ReplicationEvent
    from p2p.replication.service import Replication
    from p2p.rpc import Rpc


class MeshDoor:
    """A `federated.seams.Mesh`.

    Args:
        node: the mesh.
        replication: the groups.
        friends: owners by key in hex, or device ids, whose devices are friends.
    """

    def __init__(self, node: Node, replication: Replication, friends: Collection[str]) -> None:
        self._node = node
        self._replication = replication
        self._friends = frozenset(friends)
        self._known: dict[tuple[PeerId, GroupId | None], tuple[TrustClass, bytes]] = {}
        replication.subscribe(self._on_event)

    def _on_event(self, event: ReplicationEvent) -> None:
        if event.topic == "group":
            self._known.clear()

    @property
    def id(self) -> PeerId:
        """This node."""
        return self._node.id

    @property
    def fabric(self) -> Fabric:
        """Streams to peers."""
        return self._node.fabric

    @property
    def rpc(self) -> Rpc:
        """Typed calls to peers."""
        return self._node.rpc

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """Ed25519 over domain + body."""
        return self._node.sign(domain, body)

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        """Whether `peer` signed domain + body."""
        return self._node.verify(peer, domain, body, signature)

    def trust(self, peer: PeerId, group: GroupId | None) -> TrustClass:
        """What `peer` is to us in `group`; None asks about our own devices alone."""
        return self._standing(peer, group)[0]

    def owner(self, peer: PeerId, group: GroupId | None) -> bytes:
        """The owner key `peer` published in `group`, else its own; all our devices have one."""
        return self._standing(peer, group)[1]

    def _standing(self, peer: PeerId, group: GroupId | None) -> tuple[TrustClass, bytes]:
        found = self._known.get((peer, group))
        if found is None:
            found = self._known[peer, group] = self._look(peer, group)
        return found

    def _look(self, peer: PeerId, group: GroupId | None) -> tuple[TrustClass, bytes]:
        ours = bytes(self._node.id)
        if peer == self._node.id or self._replication.may_read(None, peer):
            return ("own", ours)
        if group is None or not self._replication.may_read(group, peer):
            return ("none", bytes(peer))
        owner = next(
            (view.owner for view in self._replication.members(group) if view.member == bytes(peer)),
            bytes(peer),
        )
        known = {owner.hex(), bytes(peer).hex(), peer_text(peer)}
        return ("friend" if self._friends & known else "stranger", owner)

    def members(self, group: GroupId | None) -> Sequence[PeerId]:
        """The other devices of `group`, or our own other devices, ascending; up or not."""
        found: set[bytes] = set()
        for view in self._replication.groups():
            if group is not None and view.group != group:
                continue
            for member in self._replication.members(view.group):
                if self.trust(PeerId(member.member), group) != "none":
                    found.add(member.member)
        found.discard(bytes(self._node.id))
        return [PeerId(member) for member in sorted(found)]

    def shared_groups(self, peer: PeerId) -> Sequence[GroupId]:
        """Groups that `peer` may read with us."""
        return [
            view.group
            for view in self._replication.groups()
            if self._replication.may_read(view.group, peer)
        ]

    def group_named(self, name: str) -> GroupId | None:
        """The group that this machine calls so."""
        return next((view.group for view in self._replication.groups() if view.name == name), None)
