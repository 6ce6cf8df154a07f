"""Changing who is in a group: roles, removal with a new key, leaving, invites.

Each change is a batch of control records in one transaction: a removal is a limit and the epoch
that the remaining readers write under from then on, so there is no moment in which somebody is out
and still holds the key. What a change will do can be asked first (`plan_removal`).
Source: docs/specs/authority.md; docs/specs/record.md s.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from p2p.replication.epoch import next_epoch, readers
from p2p.replication.events import GroupError
from p2p.replication.groups import STATE_MEMBER
from p2p.replication.invites import make_close
from p2p.replication.ops import (
    ERASE_MAX,
    KEEP_MAX,
    REASON_TAKEN_BACK,
    Erase,
    Grant,
    Kind,
    Limit,
    Role,
)
from p2p.replication.record import LANE_CONTROL, LANE_DATA, decode_header_untrusted, lane_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from p2p.replication.core import Core
    from p2p.replication.groups import Group
    from p2p.replication.ops import Epoch, Payload
    from p2p.replication.store import LogState

REASON_UNSTATED: Final = 0

Keep: TypeAlias = "int | None"
"""What stays of a removed member's records: None all that is here; Unix milliseconds: what it dated
up to then, so 0 nothing."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a removal does, or did."""

    member: bytes
    role: Role
    """Its role before."""
    records: int
    """Data records of the member that are here."""
    voided: int
    """Of these, how many stop counting everywhere."""
    readers: int
    """Members who get the new key."""


@dataclass(frozen=True, kw_only=True)
class InviteRow:
    """An invite that stands."""

    id: bytes
    author: bytes
    role: Role
    uses: int
    used: int
    not_after_s: int
    confirm: bool
    open: bool
    """Whether it can still let somebody in, its time apart."""


class Membership:
    """Membership changes of our groups.

    Args:
        core: the parts of replication.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    # ---- looking

    def rank(self, group: bytes, member: bytes) -> int | None:
        """1 for the founder, one more each step of admins away; None for who is no admin.

        Raises:
            GroupError: unknown group.
        """
        return self._group(group).standing.rank(member)

    def invites(self, group: bytes) -> list[InviteRow]:
        """Invites of a group that stand, newest time limit first.

        Raises:
            GroupError: unknown group.
        """
        rows = [
            InviteRow(
                id=view.id,
                author=view.author,
                role=view.invite.role,
                uses=view.invite.uses,
                used=view.used,
                not_after_s=view.invite.not_after_s,
                confirm=view.invite.accept == 1,
                open=view.open,
            )
            for view in self._group(group).standing.invites().values()
            if view.stands
        ]
        return sorted(rows, key=lambda row: (-row.not_after_s, row.id))

    async def plan_removal(self, group: bytes, member: bytes, keep: Keep = None) -> Removal:
        """What `remove` would do now.

        Raises:
            GroupError: `unknown_group`, `unknown_member`, or `not_permitted`: we are no admin, or
                the member's rank is not below ours.
        """
        found = self._group(group)
        role = self._check_limit(found, member)
        total, kept = 0, 0
        for log, last in await self._kept(found, member, keep):
            if log.key[3] == LANE_DATA:
                total += log.max_seq
                kept += last
        left = len(readers(found.standing, but={member}))
        return Removal(member=member, role=role, records=total, voided=total - kept, readers=left)

    # ---- changing

    async def remove(self, group: bytes, member: bytes, keep: Keep = None) -> Removal:
        """Take a member out, and give the others a new key, in one transaction.

        What it has read it can keep; it reads nothing that is written from now on.

        Raises:
            GroupError: as `plan_removal`.
        """
        found = self._group(group)
        async with self._core.keeper.turn(found):
            plan = await self.plan_removal(group, member, keep)
            payloads: list[tuple[Kind, Payload]] = [
                (Kind.LIMIT, await self._limit(found, member, keep)),
                (Kind.EPOCH, self._epoch(found, but={member})),
            ]
            await self._core.keeper.write(found, payloads)
            if found.standing.rotation_due():
                # Somebody fell with the member, whose invite it was, and was handed the new key.
                await self._core.keeper.write(found, [(Kind.EPOCH, self._epoch(found))])
        return plan

    async def set_role(self, group: bytes, member: bytes, role: Role) -> None:
        """Give a member another role.

        A lower one is a limit that keeps all it wrote, and a grant; who may read no more is left
        out of a new key.

        Raises:
            GroupError: as `plan_removal`; `expect_failed`: it has that role already.
        """
        found = self._group(group)
        async with self._core.keeper.turn(found):
            before = found.role(member)
            if before is None:
                raise GroupError("unknown_member", "no member of that group: invite it")
            if before == role:
                raise GroupError("expect_failed", f"it has the role {role.name.lower()} already")
            grant = (Kind.GRANT, Grant(member, role))
            payloads: list[tuple[Kind, Payload]]
            if role > before:
                self._check_admin(found)
                payloads = [grant]
                key = found.standing.exchange_key(member)
                if before < Role.READ and key is not None:
                    share = self._core.keeper.shares.key_share(found, member, key)
                    payloads.append((Kind.KEY_SHARE, share))
            else:
                self._check_limit(found, member)
                payloads = [(Kind.LIMIT, await self._limit(found, member, None)), grant]
                if role < Role.READ <= before:
                    payloads.append((Kind.EPOCH, self._epoch(found, but={member})))
            await self._core.keeper.write(found, payloads)

    async def leave(self, group: bytes) -> None:
        """Take ourselves out; what we wrote stays. An admin gives the others a new key.

        Raises:
            GroupError: `unknown_group`; `not_permitted`: nobody else could let anybody in.
        """
        found = self._group(group)
        me = self._core.me
        async with self._core.keeper.turn(found):
            role = found.role(me)
            if role is None:
                raise GroupError("not_a_member", f"this device is not in {found.name}")
            others = {m: r for m, r in found.standing.members().items() if m != me}
            if role == Role.ADMIN and Role.ADMIN not in others.values():
                raise GroupError(
                    "not_permitted",
                    "this device is the last admin: make another one first"
                    if others
                    else "nobody else is in this group: there is nobody to leave it to",
                )
            await self._core.keeper.begin_control_log(found)
            payloads: list[tuple[Kind, Payload]] = []
            if role == Role.ADMIN:
                # Before the limit, which keeps it: afterwards we are nobody who may write one.
                payloads = [(Kind.EPOCH, self._epoch(found, but={me}))]
            limit = await self._limit(found, me, None, ahead=len(payloads))
            await self._core.keeper.write(found, [*payloads, (Kind.LIMIT, limit)])

    async def rotate(self, group: bytes) -> int:
        """Give all readers a new key; how many they are.

        Raises:
            GroupError: unknown group, or we are no admin.
        """
        found = self._group(group)
        async with self._core.keeper.turn(found):
            self._check_admin(found)
            await self._core.keeper.write(found, [(Kind.EPOCH, self._epoch(found))])
        return len(readers(found.standing))

    async def close_invite(self, group: bytes, invite: bytes) -> None:
        """Let nobody in by an invite any more; who is in stays.

        Raises:
            GroupError: `unknown_group`, `unknown_invite`, or `not_permitted`.
        """
        found = self._group(group)
        async with self._core.keeper.turn(found):
            self._check_admin(found)
            view = found.standing.invites().get(invite)
            if view is None or not view.stands:
                raise GroupError("unknown_invite", "no such invite: see `covey invite list`")
            if not view.closed:
                await self._core.keeper.write(found, [(Kind.INVITE_CLOSE, make_close(invite))])

    # ---- erasing what others wrote

    async def erasable(self, group: bytes, ids: Sequence[bytes]) -> list[bytes]:
        """Those of the ids that we may have erased by every member, as an admin; in their order.

        Raises:
            GroupError: unknown group.
        """
        found = self._group(group)
        if found.role(self._core.me) != Role.ADMIN:
            return []
        standing = found.standing
        ours, members = standing.rank(self._core.me) or 0, standing.members()
        allowed = []
        for row in await self._core.store.fetch(ids, bodies=False):
            header = decode_header_untrusted(row.header)
            theirs = standing.rank(header.author) if header.author in members else None
            if (
                header.group == group
                and lane_of(header.kind) == LANE_DATA
                and header.author != self._core.me
                and (theirs is None or theirs > ours)
            ):
                allowed.append(row.id)
        return allowed

    async def erase(self, group: bytes, ids: Sequence[bytes]) -> list[bytes]:
        """Have other members' records erased by all members; the ids that are.

        Each member hides them at once and erases them 24 hours after it heard of it, unless this
        device is limited meanwhile by somebody above it. Afterwards nothing brings them back.

        Raises:
            GroupError: `unknown_group`, or `not_permitted`: we are no admin.
        """
        found = self._group(group)
        async with self._core.keeper.turn(found):
            self._check_admin(found)
            allowed = sorted(set(await self.erasable(group, ids)))
            payloads: list[tuple[Kind, Payload]] = [
                (Kind.ERASE, Erase(tuple(allowed[at : at + ERASE_MAX]), 0))
                for at in range(0, len(allowed), ERASE_MAX)
            ]
            if payloads:
                await self._core.keeper.write(found, payloads)
        return allowed

    # ---- inside

    def _group(self, group: bytes) -> Group:
        found = self._core.groups.get(group)
        if found is None or found.state != STATE_MEMBER or not found.founded:
            raise GroupError("unknown_group", "this device is in no such group")
        return found

    def _check_admin(self, group: Group) -> None:
        if group.role(self._core.me) != Role.ADMIN:
            raise GroupError("not_permitted", f"only an admin of {group.name} may do that")

    def _check_limit(self, group: Group, member: bytes) -> Role:
        """The member's role, if we may limit it (authority.md, rule 3)."""
        self._check_admin(group)
        role = group.role(member)
        if role is None:
            raise GroupError("unknown_member", "no member of that group")
        if member == self._core.me:
            raise GroupError("not_permitted", "to take this device out, leave the group")
        ours, theirs = group.standing.rank(self._core.me), group.standing.rank(member)
        if theirs is not None and (ours is None or theirs <= ours):
            raise GroupError(
                "not_permitted",
                "that admin ranks as high as this device or higher: only one who ranks above it, or"
                " the group's recovery key, can take it out",
            )
        return role

    async def _kept(self, group: Group, member: bytes, keep: Keep) -> list[tuple[LogState, int]]:
        """Each log of a member, and the last place of it that stays."""
        logs = [log for log in await self._core.store.logs(group.id) if log.key[1] == member]
        return [
            (log, log.max_seq if keep is None else await self._last_until(log, keep))
            for log in logs
        ]

    async def _last_until(self, log: LogState, at_ms: int) -> int:
        """The last place up to a time. Times ascend along a log; what is past a gap goes."""
        low, high = 0, log.contiguous
        while low < high:
            middle = (low + high + 1) // 2
            row = await self._core.store.at(log.key, middle)
            if row is not None and decode_header_untrusted(row.header).hlc >> 16 <= at_ms:
                low = middle
            else:
                high = middle - 1
        return low

    async def _limit(self, group: Group, member: bytes, keep: Keep, *, ahead: int = 0) -> Limit:
        """The limit that ends what a member holds.

        Args:
            group: whose lock the caller holds.
            member: who.
            keep: what of its records stays.
            ahead: so many control records of ours come before it in the same transaction.
        """
        kept = await self._kept(group, member, keep)
        places = {(log.key[2], log.key[3]): last for log, last in kept}
        if ahead:
            here = (group.incarnations[LANE_CONTROL], LANE_CONTROL)
            places[here] = places.get(here, 0) + ahead
        rows = sorted((*place, last) for place, last in places.items() if last)
        newest = rows[-KEEP_MAX:]
        after = max((incarnation for incarnation, _ in places), default=0) + 1
        reason = REASON_UNSTATED if keep is None else REASON_TAKEN_BACK
        return Limit(member, tuple(newest), after, reason)

    def _epoch(self, group: Group, *, but: Collection[bytes] = ()) -> Epoch:
        """A new epoch for everybody who may read, but some."""
        return next_epoch(group, self._core.env.rng, but=but)
