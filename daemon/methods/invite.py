"""`invite.*`: tickets, both sides of them."""

from __future__ import annotations

import msgspec
import trio

from daemon.errors import RpcError
from daemon.homes import take_home
from daemon.methods.group import ROLES, find_group, role_name
from daemon.rpc.registry import Call, method
from p2p.errors import DecodeError
from p2p.identity import peer_text
from p2p.replication.ops import Role
from p2p.replication.ticket import Ticket, decode_ticket_untrusted

EXPIRES_S_MAX = 30 * 24 * 3600
USES_MAX = 1000
PREFIX_MIN = 4
"""Digits of an invite's id that name it, if no other begins so."""
LISTEN_WAIT_S = 10.0
"""How long an invite waits for the mesh to listen: a ticket without an address is useless."""


class InviteParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A ticket to make.

    Attributes:
        group: local name or id; default home.
        role: relay, read, write or admin.
        uses: how many devices may join with it.
        expires_s: seconds it is good for.
        confirm: whether each device waits for `peers.accept`; always so for more than one use.
    """

    group: str = "home"
    role: str = "write"
    uses: int = 1
    expires_s: int = 600
    confirm: bool = False


class InviteMade(msgspec.Struct, kw_only=True):
    """A ticket. Whoever has it can join: send it over a channel you trust.

    Attributes:
        ticket: the text to give to `covey join`.
        invite: id of the invite, hex.
        group: local name of the group.
        role: what the joining device may do.
        not_after: Unix seconds.
        confirm: whether the device will wait for `peers.accept`.
    """

    ticket: str
    invite: str
    group: str
    role: str
    not_after: int
    confirm: bool


class TicketParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A ticket's text."""

    ticket: str


class TicketInfo(msgspec.Struct, kw_only=True):
    """What a ticket says, read without asking anybody.

    Attributes:
        group: id, hex.
        name: name of the group, as its inviter calls it.
        role: what it lets one do.
        inviter: peer id of the device that made it.
        expired: whether it is too old by our clock.
    """

    group: str
    name: str
    role: str
    inviter: str
    expired: bool


class JoinedInfo(msgspec.Struct, kw_only=True):
    """The result of joining.

    Attributes:
        group: id, hex.
        name: local name.
        home: whether it is the home of the inviter's own machines, and now yours.
        inviter: peer id of the device that made the ticket.
        state: member, or pending until the inviter accepts.
        check_words: six words that the inviter's screen must show too.
    """

    group: str
    name: str
    home: bool
    inviter: str
    state: str
    check_words: list[str]


@method("invite.create", scope="share")
async def create(call: Call, p: InviteParams) -> InviteMade:
    """Make a ticket with which another device joins a group."""
    services = call.services
    if p.role not in ROLES:
        raise RpcError("invalid_params", f"role is one of {', '.join(ROLES)}")
    if not 1 <= p.uses <= USES_MAX:
        raise RpcError("invalid_params", f"uses is 1 to {USES_MAX}")
    if not 1 <= p.expires_s <= EXPIRES_S_MAX:
        raise RpcError("invalid_params", f"expires_s is 1 to {EXPIRES_S_MAX}")
    if p.group == "private":
        raise RpcError("refused", "private stays on this machine: nobody can be invited to it")
    if p.role == "admin" and not call.principal.allows("admin"):
        raise RpcError("forbidden", "inviting an admin needs the scope admin")
    group = find_group(services, p.group)
    await _wait_for_addresses(call)
    made = await services.replication.create_invite(
        group, role=ROLES[p.role], uses=p.uses, expires_s=p.expires_s, confirm=p.confirm
    )
    return InviteMade(
        ticket=made.ticket,
        invite=made.invite_id.hex(),
        group=p.group,
        role=p.role,
        not_after=made.not_after,
        confirm=p.confirm or p.uses > 1,
    )


async def _wait_for_addresses(call: Call) -> None:
    """Just after READY the mesh may not listen yet."""
    with trio.move_on_after(LISTEN_WAIT_S):
        await call.services.mesh_up.wait()
    if call.services.node.report().listen:
        return
    raise RpcError(
        "invalid_state",
        "the daemon does not listen for other machines",
        remedy="`covey status` says why.",
    )


def _read(text: str) -> Ticket:
    try:
        return decode_ticket_untrusted(text)
    except DecodeError as error:
        raise RpcError(
            "invalid_params",
            str(error),
            remedy="Copy the whole line that `covey invite` printed on the other machine.",
        ) from None


@method("invite.show", scope="read")
async def show(call: Call, p: TicketParams) -> TicketInfo:
    """Read a ticket without using it."""
    ticket = _read(p.ticket)
    return TicketInfo(
        group=ticket.group.hex(),
        name=ticket.name,
        role=role_name(Role(ticket.role)),
        inviter=peer_text(ticket.inviter),
        expired=ticket.expired(call.services.env.wall_ms()),
    )


@method("invite.join", scope="admin")
async def join(call: Call, p: TicketParams) -> JoinedInfo:
    """Join the group of a ticket."""
    _read(p.ticket)
    joined = await call.services.replication.join(p.ticket)
    name = joined.name
    if joined.home and joined.state == "member":
        name = await take_home(call.services.replication, joined.group)
    return JoinedInfo(
        group=joined.group.hex(),
        name=name,
        home=joined.home,
        inviter=peer_text(joined.inviter),
        state=joined.state,
        check_words=list(joined.check_words),
    )


class ListParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Of which group; None for all."""

    group: str | None = None


class InviteRow(msgspec.Struct, kw_only=True):
    """An invite.

    Attributes:
        invite: id, hex.
        group: local name.
        role: what it lets one do.
        by: peer id of the device that made it.
        used: how many joined by it.
        uses: how many may.
        not_after: Unix seconds.
        confirm: whether each waits for `peers.accept`.
        state: open, used, closed or expired.
    """

    invite: str
    group: str
    role: str
    by: str
    used: int
    uses: int
    not_after: int
    confirm: bool
    state: str


class RevokeParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An invite by its id, or a unique prefix of at least 4 digits."""

    invite: str


def _rows(call: Call, wanted: str | None) -> list[InviteRow]:
    services = call.services
    only = None if wanted is None else find_group(services, wanted)
    now_s = services.env.wall_ms() // 1000
    rows = []
    for view in services.replication.groups():
        if only not in {None, view.group} or view.state != "member":
            continue
        for one in services.replication.membership.invites(view.group):
            if one.used >= one.uses:
                state = "used"
            elif not one.open:
                state = "closed"
            else:
                state = "expired" if one.not_after_s < now_s else "open"
            rows.append(
                InviteRow(
                    invite=one.id.hex(),
                    group=view.name,
                    role=role_name(one.role),
                    by=peer_text(one.author),
                    used=one.used,
                    uses=one.uses,
                    not_after=one.not_after_s,
                    confirm=one.confirm,
                    state=state,
                )
            )
    return rows


@method("invite.list", scope="read")
async def list_invites(call: Call, p: ListParams) -> list[InviteRow]:
    """List the invites of this device's groups, newest time limit first."""
    return _rows(call, p.group)


@method("invite.revoke", scope="share")
async def revoke(call: Call, p: RevokeParams) -> InviteRow:
    """Let nobody in by an invite any more; who is in stays."""
    found = [
        row
        for row in _rows(call, None)
        if len(p.invite) >= PREFIX_MIN and row.invite.startswith(p.invite)
    ]
    if len(found) != 1:
        raise RpcError(
            "conflict" if found else "not_found",
            "several invites begin so" if found else "no such invite",
            remedy="`covey invite list` shows them.",
        )
    (row,) = found
    group = find_group(call.services, row.group)
    await call.services.replication.membership.close_invite(group, bytes.fromhex(row.invite))
    return next(after for after in _rows(call, row.group) if after.invite == row.invite)
