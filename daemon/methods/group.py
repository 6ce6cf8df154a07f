"""`group.*`: who shares what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from daemon.errors import RpcError
from daemon.rpc.registry import Call, Empty, method
from p2p.identity import peer_text

if TYPE_CHECKING:
    from daemon.services import Services

NAMES_TAKEN = frozenset({"own", "private", "home"})


class GroupInfo(msgspec.Struct, kw_only=True):
    """A group of this device.

    Attributes:
        name: local name.
        group: id, hex.
        home: whether it is the home of your own machines.
        role: what this device may do in it; empty while it waits to be accepted.
        state: member, or pending until somebody accepts us.
        members: how many devices are in it.
        pending: devices that wait to be accepted.
    """

    name: str
    group: str
    home: bool
    role: str
    state: str
    members: int
    pending: int


class MemberInfo(msgspec.Struct, kw_only=True):
    """A device in a group.

    Attributes:
        name: shown name.
        peer_id: its key in text form.
        node_id: its key, hex.
        role: relay, read, write or admin.
        relation: own (this device), own_device, invited or other.
    """

    name: str
    peer_id: str
    node_id: str
    role: str
    relation: str


class CreateParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A group to found.

    Attributes:
        name: 1 to 32 of a-z, 0-9, dot, underscore and hyphen.
    """

    name: str


class Created(msgspec.Struct, kw_only=True):
    """A new group; this device is its first admin."""

    name: str
    group: str


class GroupParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A group by local name, id, or unique prefix of its id."""

    group: str


def group_infos(services: Services) -> list[GroupInfo]:
    """All groups of this device, home first."""
    pending = services.replication.pending()
    infos = [
        GroupInfo(
            name=view.name,
            group=view.group.hex(),
            home=view.home,
            role=role_name(view.role),
            state=view.state,
            members=view.members,
            pending=sum(waiting.group == view.group for waiting in pending),
        )
        for view in services.replication.groups()
    ]
    return sorted(infos, key=lambda info: (not info.home, info.name))


def role_name(role: object) -> str:
    """`relay`, `read`, `write` or `admin`; empty without one."""
    return "" if role is None else str(getattr(role, "name", role)).lower()


def find_group(services: Services, wanted: str) -> bytes:
    """Id of the group called `wanted`.

    Raises:
        RpcError: not_found, or conflict for a prefix of several.
    """
    views = services.replication.groups()
    for view in views:
        if view.name == wanted:
            return view.group
    found = [v.group for v in views if len(wanted) >= 8 and v.group.hex().startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RpcError("conflict", "several groups begin so: give more digits")
    raise RpcError("not_found", "no group of that name", remedy="`covey groups` lists them.")


@method("group.list", scope="read")
async def list_groups(call: Call, p: Empty) -> list[GroupInfo]:
    """List the groups of this device."""
    del p
    return group_infos(call.services)


@method("group.create", scope="share")
async def create(call: Call, p: CreateParams) -> Created:
    """Found a group for people or machines that are not all yours."""
    from daemon.agents import AGENT_NAME
    from daemon.first_start import recovery_keeper

    if not AGENT_NAME.fullmatch(p.name) or len(p.name) > 32 or p.name in NAMES_TAKEN:
        raise RpcError(
            "invalid_params",
            "a group's name is 1 to 32 of a-z, 0-9, dot, underscore and hyphen, and not own,"
            " private or home",
        )
    if any(view.name == p.name for view in call.services.replication.groups()):
        raise RpcError("conflict", "a group of that name is here already")
    services = call.services
    made = await services.replication.create_group(
        p.name, keep_seed=recovery_keeper(services.paths, p.name)
    )
    await services.memory.set_device_name(services.config.node.name, [made.group])
    return Created(name=p.name, group=made.group.hex())


@method("group.members", scope="read")
async def members(call: Call, p: GroupParams) -> list[MemberInfo]:
    """List the devices in a group and what they may do."""
    from daemon.methods.peers import device_names, shown_name

    services = call.services
    names = await device_names(services)
    return [
        MemberInfo(
            name=shown_name(names, view.member, services),
            peer_id=peer_text(view.member),
            node_id=view.member.hex(),
            role=role_name(view.role),
            relation=view.relation,
        )
        for view in services.replication.members(find_group(services, p.group))
    ]
