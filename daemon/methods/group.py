"""`group.*`: who shares what, and changing that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from daemon.errors import RpcError
from daemon.rpc.registry import Call, Empty, method
from memory.provenance import parse_iso
from p2p.identity import peer_text
from p2p.replication.ops import Role

if TYPE_CHECKING:
    from daemon.services import Services

ROLES = {"relay": Role.RELAY, "read": Role.READ, "write": Role.WRITE, "admin": Role.ADMIN}
NAMES_TAKEN = frozenset({"own", "private", "home"})


class GroupInfo(msgspec.Struct, kw_only=True):
    """A group of this device.

    Attributes:
        name: local name.
        group: id, hex.
        home: whether it is the home of your own machines.
        role: what this device may do in it; empty while it waits to be accepted, or is out.
        state: member; pending until somebody accepts us; left: this device was taken out, or left.
            What it holds stays here, and a new ticket brings it back.
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
        rank: of an admin: 1 for the founder, one more each step away; a lower one can take out a
            higher one. None for others.
    """

    name: str
    peer_id: str
    node_id: str
    role: str
    relation: str
    rank: int | None = None


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


class RoleParams(GroupParams, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A member and the role it is to have.

    Attributes:
        member: name, id or unique part of an id.
        role: relay, read, write or admin.
    """

    member: str
    role: str


class RemoveParams(GroupParams, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whom to take out of a group.

    Attributes:
        member: name, id or unique part of an id.
        keep: what of its records goes on counting: all, none, or an ISO 8601 date: up to then.
        dry_run: only say what it would do.
    """

    member: str
    keep: str = "all"
    dry_run: bool = False


class Removed(msgspec.Struct, kw_only=True):
    """What a removal does, or did.

    Attributes:
        group: local name.
        name: shown name of the member.
        peer_id: its key in text form.
        role: what it had.
        records: notes and other data of it that are here.
        voided: how many of these stop counting, on every machine.
        readers: members who get the new key.
        done: False for a dry run.
    """

    group: str
    name: str
    peer_id: str
    role: str
    records: int
    voided: int
    readers: int
    done: bool


class Rotated(msgspec.Struct, kw_only=True):
    """A new key.

    Attributes:
        readers: members who got it.
    """

    readers: int


class Left(msgspec.Struct, kw_only=True):
    """A group this device is no longer in; what it holds of it stays here."""

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
    raise RpcError("not_found", "no group of that name", remedy="`covey group` lists them.")


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
    return await _member_infos(call.services, find_group(call.services, p.group))


async def _member_infos(services: Services, group: bytes) -> list[MemberInfo]:
    from daemon.methods.peers import device_names, shown_name

    names = await device_names(services)
    return [
        MemberInfo(
            name=shown_name(names, view.member, services),
            peer_id=peer_text(view.member),
            node_id=view.member.hex(),
            role=role_name(view.role),
            relation=view.relation,
            rank=services.replication.membership.rank(view.group, view.member),
        )
        for view in services.replication.members(group)
    ]


async def _member(services: Services, group: bytes, wanted: str) -> bytes:
    """A member by name, id, or unique part of an id.

    Raises:
        RpcError: not_found, or conflict for several.
    """
    from daemon.methods.peers import device_names, shown_name

    names = await device_names(services)
    keys = [view.member for view in services.replication.members(group)]
    named = [key for key in keys if shown_name(names, key, services) == wanted]
    part = wanted.lstrip("…")
    found = named or [
        key
        for key in keys
        if len(part) >= 4 and (part in peer_text(key) or key.hex().startswith(part))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise RpcError("conflict", "several members are called so: give the id")
    raise RpcError("not_found", "no such member", remedy="`covey group members` lists them.")


def _keep(written: str) -> int | None:
    if written == "all":
        return None
    return 0 if written == "none" else parse_iso(written, "keep")


@method("group.remove", scope="admin")
async def remove(call: Call, p: RemoveParams) -> Removed:
    """Take a member out and give the others a new key; it reads nothing written afterwards."""
    from daemon.methods.peers import device_names, shown_name

    services = call.services
    group = find_group(services, p.group)
    member = await _member(services, group, p.member)
    change = services.replication.membership
    keep = _keep(p.keep)
    done = await (change.plan_removal if p.dry_run else change.remove)(group, member, keep)
    return Removed(
        group=p.group,
        name=shown_name(await device_names(services), member, services),
        peer_id=peer_text(member),
        role=role_name(done.role),
        records=done.records,
        voided=done.voided,
        readers=done.readers,
        done=not p.dry_run,
    )


@method("group.set_role", scope="admin")
async def set_role(call: Call, p: RoleParams) -> MemberInfo:
    """Give a member another role."""
    services = call.services
    if p.role not in ROLES:
        raise RpcError("invalid_params", f"role is one of {', '.join(ROLES)}")
    group = find_group(services, p.group)
    member = await _member(services, group, p.member)
    await services.replication.membership.set_role(group, member, ROLES[p.role])
    after = await _member_infos(services, group)
    return next(info for info in after if info.node_id == member.hex())


@method("group.leave", scope="admin")
async def leave(call: Call, p: GroupParams) -> Left:
    """Take this device out of a group; what it wrote stays there, what it holds stays here."""
    group = find_group(call.services, p.group)
    own = {view.group for view in call.services.replication.groups() if view.home}
    if group in own or p.group == "private":
        raise RpcError(
            "refused",
            f"{p.group} is this device's own",
            remedy="To take it out of a home, remove it there on another machine.",
        )
    await call.services.replication.membership.leave(group)
    return Left(group=p.group)


@method("group.rotate", scope="admin")
async def rotate(call: Call, p: GroupParams) -> Rotated:
    """Give a group's readers a new key: what is written from now on needs it."""
    group = find_group(call.services, p.group)
    return Rotated(readers=await call.services.replication.membership.rotate(group))
