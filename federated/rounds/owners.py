"""Who may take part: whose device may see what a member of a plain round brings.

Who merges a part sees it of every member, so the rule is asked again of everybody who comes, not
only when a federation begins: a group may get another owner later.
Source: docs/specs/rounds.md s.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federated.seams import GroupId, Mesh


def owners_among(mesh: Mesh, group: GroupId | None, peers: Iterable[bytes]) -> set[bytes]:
    """The owners of devices and of this one."""
    return {mesh.owner(PeerId(peer), group) for peer in (bytes(mesh.id), *peers)}


def admits(mesh: Mesh, group: GroupId | None, peer: bytes, *, several: bool) -> bool:
    """Whether a device may take part in plain rounds of ours, or see anything of them.

    Args:
        mesh: who is who.
        group: whose rounds; None: our own devices'.
        peer: the device.
        several: whether members of several owners may see each other's updates.
    """
    device = PeerId(peer)
    if device == mesh.id:
        return True
    if mesh.trust(device, group) == "none":
        return False
    return several or mesh.owner(device, group) == mesh.owner(mesh.id, group)
