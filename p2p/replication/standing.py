"""Who may do what in a group, and why: the answers read from one fold of its A ops.

A `Standing` is a snapshot. `Authority.standing()` gives a new one when the set of ops has changed.
Source: docs/specs/authority.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeVar

from p2p.replication.fold import positions
from p2p.replication.ops import (
    Genesis,
    Grant,
    Invite,
    Join,
    Kind,
    Limit,
    Limits,
    OwnerKey,
    Policy,
    Role,
)
from p2p.replication.record import is_authority, lane_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from p2p.replication.fold import Fold, Op
    from p2p.replication.ops import Epoch
    from p2p.replication.record import Header

# What kinds outside the A ops ask of their author, docs/specs/record.md s.6; data asks for write.
_NEED: Final[Mapping[int, Role]] = {
    Kind.EPOCH: Role.ADMIN,
    Kind.KEY_SHARE: Role.WRITE,
    Kind.OWNER_KEY: Role.ADMIN,
}


@dataclass(frozen=True, slots=True)
class Support:
    """Why a member has a role."""

    role: Role
    level: int
    """Distance from the founder; lower cannot be undone by deeper."""
    by: bytes
    """Who granted or invited; the founder's own is by itself."""
    op_ids: tuple[bytes, ...]
    """The genesis, the grant, or invite, join and admit."""


@dataclass(frozen=True, slots=True)
class InviteView:
    """An invite as it stands."""

    id: bytes
    author: bytes
    invite: Invite
    stands: bool
    closed: bool
    used: int
    """Joins it let in; it is used up at `invite.uses`."""

    @property
    def open(self) -> bool:
        """Whether it could let in one more, its time apart."""
        return self.stands and not self.closed and self.used < self.invite.uses


@dataclass(frozen=True, slots=True)
class PendingJoin:
    """A valid join nobody has admitted yet."""

    join_id: bytes
    member: bytes
    join: Join
    invite_id: bytes
    hlc: int


@dataclass(frozen=True, slots=True)
class ControlRecord:
    """A control record below the A ops that bears on keys or owners."""

    id: bytes
    head: Header


R = TypeVar("R", bound=ControlRecord)


@dataclass(frozen=True, slots=True)
class OwnerRecord(ControlRecord):
    """A device's own word on who owns it, the owner key's signature checked."""

    owner_key: bytes


@dataclass(frozen=True, slots=True)
class OwnerKeyRecord(ControlRecord):
    """An owner key sealed to a home's admins, with its vouchers."""

    payload: OwnerKey


@dataclass(frozen=True, slots=True)
class EpochRecord(ControlRecord):
    """An epoch."""

    payload: Epoch


@dataclass(frozen=True, slots=True)
class Book:
    """What a standing needs beside the fold: all of it snapshots, never changed afterwards."""

    group: bytes
    ops: Sequence[Op]
    positions: Mapping[bytes, int]
    ancestors: Sequence[int]
    forks: Mapping[tuple[bytes, int, int], int]
    """(author, incarnation, lane) -> seq from which the log is void."""
    owners: Mapping[bytes, Sequence[OwnerRecord]]
    owner_keys: Sequence[OwnerKeyRecord]
    epochs: Sequence[EpochRecord]


class Standing:
    """The state of a group's membership, computed from a set of A ops.

    Args:
        fold: the verdict on every op.
        book: the set, and the control records that need it to be judged.
    """

    def __init__(self, fold: Fold, book: Book) -> None:
        self._fold = fold
        self._book = book
        self._members: dict[bytes, Role] | None = None
        # Asked for each record of a batch, of few members.
        self._supports: dict[bytes, list[Support]] = {}
        self._owners: dict[bytes, bytes] = {}
        # One entry an (author, auth, role needed): a log of thousands of records cites few of them.
        self._judged: dict[tuple[bytes, tuple[bytes, ...], int], tuple[int, tuple[int, ...]]] = {}

    @property
    def founder(self) -> bytes:
        """Author of the genesis."""
        return self._fold.founder

    @property
    def recovery_key(self) -> bytes | None:
        """The key that outranks the founder, if the genesis names one."""
        return self._fold.recovery_key

    @property
    def home(self) -> bool:
        """Whether the group is one person's devices."""
        return self._genesis.home == 1

    @property
    def genesis(self) -> Genesis:
        """The founding payload."""
        return self._genesis

    @property
    def _genesis(self) -> Genesis:
        genesis = self._book.ops[0].payload
        assert isinstance(genesis, Genesis), "the first op is the genesis"
        return genesis

    def role(self, member: bytes) -> Role | None:
        """The member's highest role that stands; None for who is no member."""
        return self.members().get(member)

    def members(self) -> Mapping[bytes, Role]:
        """Every member and its role, in order of their keys."""
        if self._members is None:
            self._members = {}
            for member in sorted(self._candidates()):
                roles = [role for role, _ in self._fold.uncancelled(member)]
                if roles:
                    self._members[member] = Role(max(roles))
        return self._members

    def ever_members(self) -> set[bytes]:
        """Every device that was a member at some time by operations that stand."""
        limited = {
            op.payload.member
            for op, stands in zip(self._book.ops, self._fold.stands, strict=True)
            if stands and isinstance(op.payload, Limit)
        }
        return limited | self.members().keys()

    def _candidates(self) -> set[bytes]:
        found = {self.founder}
        for op in self._book.ops:
            if isinstance(op.payload, Grant):
                found.add(op.payload.member)
            elif isinstance(op.payload, Join):
                found.add(op.head.author)
        return found

    def rank(self, member: bytes) -> int | None:
        """1 for the founder, one more for each step of admins away; None for who is no admin."""
        rank = self._fold.rank(member)
        return None if self.role(member) != Role.ADMIN else rank

    def supports(self, member: bytes) -> list[Support]:
        """Why the member has its role: standing supports, the one that counts most first."""
        found = self._supports.get(member)
        if found is None:
            found = [
                self._support(Role(role), level, i)
                for role, level, bits in self._fold.uncancelled_bits(member)
                for i in positions(bits)
            ]
            found.sort(key=lambda s: (-s.role, s.level, s.op_ids))
            self._supports[member] = found
        return list(found)

    def _support(self, role: Role, level: int, i: int) -> Support:
        parts = [self._book.ops[p] for p in self._fold.parts(i)]
        return Support(role, level, parts[0].head.author, tuple(op.id for op in parts))

    def invited_by(self, member: bytes) -> bytes | None:
        """Who granted or invited the member (by the support that counts most); None: nobody did."""
        supports = self.supports(member)
        return supports[0].by if supports and supports[0].by != member else None

    # Rule 5 and its neighbours: does a record count?

    def live(self, header: Header, record_id: bytes) -> bool:
        """Whether a record counts: an A op that stands, any other by its author's standing.

        False as well for a record that cites ops this standing does not know.
        """
        if is_authority(header.kind):
            i = self._book.positions.get(record_id)
            return i is not None and self._fold.stands[i] is True
        log = (header.author, header.incarnation, lane_of(header.kind))
        if header.kind == Kind.FORK_PROOF:
            return True  # it proves itself, whoever carries it
        if header.seq >= self._book.forks.get(log, header.seq + 1):
            return False
        if header.kind == Kind.OWNER_KEY and not self.home:
            return False
        return self._supported(header)

    def admin_at(self, header: Header) -> bool:
        """Whether a record counts as an admin's: by its author's standing where it was written."""
        log = (header.author, header.incarnation, lane_of(header.kind))
        if header.seq >= self._book.forks.get(log, header.seq + 1):
            return False
        return self._supported(header, Role.ADMIN)

    def outranks(self, header: Header, member: bytes) -> bool:
        """Whether a record's author ranked above a member where the record was written.

        As a limit would need it (authority.md, rule 3): what came later changes nothing, so that
        every replica says the same.
        """
        within = self.closure(header.auth)
        if within is None:
            return False
        return self._fold.rank(member, within) > self._fold.rank(header.author, within)

    def may_erase(self, header: Header, author: bytes) -> bool:
        """Whether an erase record counts for what another member wrote."""
        return self.admin_at(header) and self.outranks(header, author)

    def _supported(self, header: Header, need: Role | None = None) -> bool:
        data = lane_of(header.kind) == 1
        if need is None:
            need = _NEED.get(header.kind, Role.WRITE if data else Role.RELAY)
        key = (header.author, header.auth, need)
        judged = self._judged.get(key)
        if judged is None:
            judged = self._judged[key] = self._judge(*key)
        within, excused = judged
        # Each entry: the limits that reach one support. A support counts if none of them voids.
        lane = lane_of(header.kind)
        beyond = 0
        for lim in self._fold.holding(header.author).limits:
            if self._fold.beyond(lim, header, lane, within):
                beyond |= 1 << lim
        return any(not reaching & beyond for reaching in excused)

    def _judge(
        self, author: bytes, auth: tuple[bytes, ...], need: int
    ) -> tuple[int, tuple[int, ...]]:
        """A(auth), and for each support that gives the role there, the limits that reach it."""
        within = self.closure(auth)
        if within is None:
            return 0, ()
        limits = self._fold.holding(author).limits
        reaching = []
        for role, level in self._fold.uncancelled(author, within):
            if role >= need:
                reaching.append(
                    sum(1 << lim for lim in limits if self._fold.reaches(lim, role, level))
                )
        return within, tuple(reaching)

    def closure(self, auth: tuple[bytes, ...]) -> int | None:
        """A(auth) as bits of op positions; None if one of them is not here."""
        within = 0
        for cited in auth:
            i = self._book.positions.get(cited)
            if i is None:
                return None
            within |= self._book.ancestors[i] | 1 << i
        return within

    def void_ops(self) -> frozenset[bytes]:
        """Ids of the A ops that do not stand."""
        ops = zip(self._book.ops, self._fold.stands, strict=True)
        return frozenset(op.id for op, stands in ops if not stands)

    def standing_removals(self, auth: tuple[bytes, ...]) -> int:
        """How many standing limits the author of a record with this `auth` knew of."""
        within = self.closure(auth) or 0
        return sum(
            1
            for i, op in enumerate(self._book.ops)
            if within >> i & 1 and self._fold.stands[i] and isinstance(op.payload, Limit)
        )

    def limits_on(self, member: bytes) -> list[Limit]:
        """Standing limits that name a member, oldest first."""
        found = [
            (op.head.hlc, op.id, op.payload)
            for op, stands in zip(self._book.ops, self._fold.stands, strict=True)
            if stands and isinstance(op.payload, Limit) and op.payload.member == member
        ]
        return [payload for _, _, payload in sorted(found, key=lambda one: one[:2])]

    def cut_off(self, header: Header) -> list[Limit]:
        """The standing limits on its author that a record lies beyond."""
        within = self.closure(header.auth) or 0
        lane = lane_of(header.kind)
        return [
            payload
            for lim in self._fold.holding(header.author).limits
            if self._fold.beyond(lim, header, lane, within)
            and isinstance(payload := self._book.ops[lim].payload, Limit)
        ]

    def shown_to(self, member: bytes) -> list[bytes]:
        """Ids of the operations by which a device learns that it is out.

        The standing limits that name it, and what they cite: nothing that came after.
        """
        within = 0
        for i, op in enumerate(self._book.ops):
            named = isinstance(op.payload, Limit) and op.payload.member == member
            if named and self._fold.stands[i]:
                within |= self._book.ancestors[i] | 1 << i
        return [self._book.ops[i].id for i in positions(within)]

    def rotation_due(self) -> bool:
        """Whether who is out may hold the newest key: it was handed it, or left afterwards.

        By time, not by what the epoch cites: a record cites 8 operations at most, so with more
        heads than that an epoch might never be seen to know of a limit.
        """
        newest = max(self.epochs(), key=lambda e: (e.head.hlc, e.id), default=None)
        if newest is None:
            return False
        members = self.members()
        if any(members.get(who, Role.RELAY) < Role.READ for who, _ in newest.payload.shares):
            return True
        return any(
            stands and isinstance(op.payload, Limit) and op.head.hlc > newest.head.hlc
            for op, stands in zip(self._book.ops, self._fold.stands, strict=True)
        )

    @cached_property
    def upgrade_needed(self) -> bool:
        """Whether an admin used an A op unknown to this version: data must wait for a newer one."""
        return any(
            op.payload is None and stands
            for op, stands in zip(self._book.ops, self._fold.stands, strict=True)
        )

    # Invites and joins.

    def invites(self) -> Mapping[bytes, InviteView]:
        """Every invite by id, in order of the ids."""
        found = {}
        for i, op in enumerate(self._book.ops):
            if isinstance(op.payload, Invite):
                counted, closed, _ = self._fold.invitation_state(i)
                stands = bool(self._fold.stands[i])
                found[op.id] = InviteView(
                    op.id, op.head.author, op.payload, stands, closed, len(counted)
                )
        return dict(sorted(found.items()))

    def pending_joins(self) -> list[PendingJoin]:
        """Joins that an open invite allows and nobody admitted, oldest first.

        Who is a member already is left out: there is nothing to decide.
        """
        found = []
        for i, op in enumerate(self._book.ops):
            if not isinstance(op.payload, Invite):
                continue
            counted, closed, joins = self._fold.invitation_state(i)
            if closed or not self._fold.stands[i] or len(counted) >= op.payload.uses:
                continue
            found += [self._pending(j, op.id) for j in joins if j not in counted]
        members = self.members()
        return sorted(
            (p for p in found if p.member not in members), key=lambda p: (p.hlc, p.join_id)
        )

    def _pending(self, j: int, invite_id: bytes) -> PendingJoin:
        op = self._book.ops[j]
        assert isinstance(op.payload, Join), "an invite lists joins"
        return PendingJoin(op.id, op.head.author, op.payload, invite_id, op.head.hlc)

    def exchange_key(self, member: bytes) -> bytes | None:
        """The X25519 key to seal epoch keys to, from the newest valid join or the genesis."""
        newest: tuple[int, bytes, bytes] | None = None
        for i, op in enumerate(self._book.ops):
            if op.head.author != member or not self._fold.stands[i]:
                continue
            if isinstance(op.payload, Join | Genesis):
                here = (op.head.hlc, op.id, op.payload.exchange_key)
                newest = here if newest is None else max(newest, here)
        return None if newest is None else newest[2]

    def policy(self) -> Limits:
        """The group's limits: the newest standing policy's, else the genesis's, else ours."""
        return self._policy

    @cached_property
    def _policy(self) -> Limits:
        standing = [
            (op.head.hlc, op.id, op.payload.limits)
            for op, stands in zip(self._book.ops, self._fold.stands, strict=True)
            if stands and isinstance(op.payload, Policy)
        ]
        if standing:
            return max(standing, key=lambda p: p[:2])[2]
        return self._genesis.policy or Limits()

    # Owners and epochs.

    def owner(self, device: bytes) -> bytes:
        """The owner key a device published here (its newest live owner record), else the device."""
        owner = self._owners.get(device)
        if owner is None:
            newest = next(self._live(self._book.owners.get(device, ())), None)
            owner = self._owners[device] = device if newest is None else newest.owner_key
        return owner

    def owner_keys(self) -> list[OwnerKeyRecord]:
        """Live records that hand a home's owner key to its admins, newest first."""
        return list(self._live(self._book.owner_keys))

    def epochs(self) -> list[EpochRecord]:
        """Live epochs, the one to write under first.

        That is the one whose author knew of most standing removals (so that a removed reader does
        not hold the key), then the newest.
        """
        live = self._live(self._book.epochs)
        return sorted(live, key=lambda e: self.standing_removals(e.head.auth), reverse=True)

    def _live(self, records: Sequence[R]) -> Iterator[R]:
        newest_first = sorted(records, key=lambda r: (r.head.hlc, r.id), reverse=True)
        return (r for r in newest_first if self.live(r.head, r.id))
