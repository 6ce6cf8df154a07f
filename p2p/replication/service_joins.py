"""Invites and joins, as people and the daemon ask for them. Source: docs/specs/join.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import Unreachable
from p2p.identity import PeerId
from p2p.replication import join as door
from p2p.replication.checkwords import check_words
from p2p.replication.events import GroupError
from p2p.replication.groups import HOLD_REJECTED, STATE_MEMBER, Group
from p2p.replication.hlc import ms_of
from p2p.replication.invites import (
    can_admit,
    find_invite,
    invite_identity,
    make_close,
    make_invite,
)
from p2p.replication.ops import Kind, Role
from p2p.replication.service_base import Facet
from p2p.replication.talk import FramedTalk
from p2p.replication.ticket import decode_ticket_untrusted, encode_ticket
from p2p.replication.views import Invite, Joined, PendingView
from p2p.wire.multiaddr import decode_addr_untrusted, encode_addr, ip_of, scope_of

if TYPE_CHECKING:
    from p2p.net.seam import Addr
    from p2p.replication.standing import PendingJoin
    from p2p.replication.ticket import Ticket

_LOOPBACK: Final = 3


def _reach(addr: Addr) -> int:
    """How far an address reaches: 0 everywhere, 1 a name, 2 this network, 3 this machine."""
    ip = ip_of(addr)
    if ip is None:
        return 1
    return {"public": 0, "private": 2}.get(scope_of(ip), _LOOPBACK)


class JoinService(Facet):
    """Letting devices in, and asking to be let in."""

    def invite_of(self, group: bytes, member: bytes) -> tuple[bytes, tuple[str, ...]] | None:
        """By which invite a member came in, and the check words of that join; None without one.

        Raises:
            GroupError: unknown group.
        """
        standing = self._group(group).standing
        invites = standing.invites()
        for support in standing.supports(member):
            view = invites.get(support.op_ids[0])
            if view is not None:
                words = check_words(member, view.author, view.invite.invite_key)
                return view.id, tuple(words)
        return None

    async def create_invite(
        self,
        group: bytes,
        *,
        role: Role = Role.WRITE,
        uses: int = 1,
        expires_s: int = 600,
        confirm: bool = False,
    ) -> Invite:
        """Make a ticket with which a device joins.

        Args:
            group: to which group.
            role: what it may do there.
            uses: how many devices; more than one always waits for an accept.
            expires_s: seconds from now.
            confirm: whether each join waits for an accept.

        Raises:
            GroupError: unknown group, or we are no admin of it.
        """
        found = self._group(group)
        if found.role(self._core.me) != Role.ADMIN:
            raise GroupError("not_permitted", "only an admin of the group can invite to it")
        not_after = self._core.env.wall_ms() // 1000 + expires_s
        ticket, payload = make_invite(
            group,
            self._core.me,
            role=role,
            uses=uses,
            not_after_s=not_after,
            confirm=confirm,
            addrs=self._own_addrs(),
            name=found.name,
            rng=self._core.env.rng,
        )
        async with self._core.keeper.turn(found):
            (record,) = await self._core.keeper.write(found, [(Kind.INVITE, payload)])
        return Invite(ticket=encode_ticket(ticket), invite_id=record.id, not_after=not_after)

    def _own_addrs(self) -> list[bytes]:
        """Addresses for a ticket: wide ones first, loopback only if there is no other."""
        ranked = sorted(self._node.fabric.addrs(), key=_reach)
        wide = [addr for addr in ranked if _reach(addr) < _LOOPBACK]
        return [encode_addr(addr) for addr in wide or ranked]

    async def join(self, ticket: str) -> Joined:
        """Enter a group with a ticket.

        Raises:
            GroupError: the ticket is damaged, too old or used, or the group refused.
            Unreachable: the inviter does not answer.
            PeerError: it broke the protocol.
        """
        read = decode_ticket_untrusted(ticket)
        if read.expired(self._core.env.wall_ms()):
            raise GroupError("ticket_expired", "the ticket is too old: ask for a new one")
        if read.inviter == self._core.me:
            raise GroupError("already_member", "this ticket was made on this device")
        known = self._core.groups.get(read.group)
        me = self._core.me
        if known is not None and known.state == STATE_MEMBER and known.role(me) is not None:
            # Whoever was taken out does not know it, but does not know the new invite either.
            key = invite_identity(read.seed, read.group).id
            if find_invite(known.standing, key) is not None:
                raise GroupError("already_member", f"this device is in {known.name} already")
        inviter = PeerId(read.inviter)
        self._node.learn(inviter, [decode_addr_untrusted(addr) for addr in read.addrs])
        group = await self._enter(inviter, read)
        invite_key = invite_identity(read.seed, read.group).id
        self._driver.members_changed(group)
        return Joined(
            group=group.id,
            name=group.name,
            inviter=read.inviter,
            state=group.state,
            check_words=tuple(check_words(self._core.me, read.inviter, invite_key)),
            home=group.home,
        )

    async def _enter(self, inviter: PeerId, ticket: Ticket) -> Group:
        try:
            with trio.fail_after(self._core.config.join_s):
                try:
                    return await self._ask_in(inviter, ticket)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    # The connection may be one that ended with the inviter's last start, unnoticed
                    # here until now. Asking again repeats nothing: our join is on disk.
                    return await self._ask_in(inviter, ticket)
        except trio.TooSlowError:
            raise Unreachable(
                "the inviting device did not finish in time: see that it runs, and try again"
            ) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Unreachable(
                "the inviting device ended the exchange: ask there, then try again"
            ) from None

    async def _ask_in(self, inviter: PeerId, ticket: Ticket) -> Group:
        stream = await self._node.fabric.open(inviter, door.PROTOCOL)
        async with stream:
            return await door.enter_group(self._core, FramedTalk(stream), ticket)

    def pending(self) -> list[PendingView]:
        """Devices that wait to be let in, oldest first."""
        found = []
        for group in self._core.groups.all():
            if group.state != STATE_MEMBER or not group.founded:
                continue
            found += [
                self._pending_view(group, one)
                for one in group.standing.pending_joins()
                if one.join_id not in group.rejected
            ]
        return sorted(found, key=lambda view: (view.at_ms, view.join_id))

    def _pending_view(self, group: Group, one: PendingJoin) -> PendingView:
        view = group.standing.invites()[one.invite_id]
        words = check_words(one.member, view.author, view.invite.invite_key)
        return PendingView(
            join_id=one.join_id,
            group=group.id,
            member=one.member,
            role=view.invite.role,
            at_ms=ms_of(one.hlc),
            check_words=tuple(words),
        )

    def _find_pending(self, join_id: bytes) -> tuple[Group, PendingJoin]:
        for group in self._core.groups.all():
            if group.state == STATE_MEMBER and group.founded:
                found = door.find_pending(group, join_id)
                if found is not None:
                    return group, found
        raise GroupError("unknown_join", "no such device waits: see `covey peers pending`")

    async def accept(self, join_id: bytes) -> None:
        """Let a waiting device in.

        Raises:
            GroupError: nobody waits under that id, or we may not admit.
        """
        group, one = self._find_pending(join_id)
        view = group.standing.invites()[one.invite_id]
        if not can_admit(group.standing, self._core.me, view.invite):
            raise GroupError("not_permitted", "only an admin of the group can accept this device")
        async with self._core.keeper.turn(group):
            if door.find_pending(group, join_id) is None:
                return
            await door.admit_join(self._core, group, one)

    async def reject(self, join_id: bytes) -> None:
        """Turn a waiting device away; an invite for one is closed with it.

        Raises:
            GroupError: nobody waits under that id.
        """
        group, one = self._find_pending(join_id)
        view = group.standing.invites()[one.invite_id]
        row = ("hold", (join_id, group.id, HOLD_REJECTED, 0, b""))
        async with self._core.keeper.turn(group):
            group.rejected.add(join_id)
            if view.invite.uses == 1 and group.role(self._core.me) == Role.ADMIN:
                close = [(Kind.INVITE_CLOSE, make_close(view.id))]
                await self._core.keeper.write(group, close, [row])
            else:
                await self._core.store.admit(group.id, [], [row])
