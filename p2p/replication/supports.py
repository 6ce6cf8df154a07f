"""The supports of members, as far as a group's operations are decided.

`Supports` holds the verdicts given so far and answers what follows from them: which grants and
triples of invite, join and admit hold a member up, which of them a limit cancels, whom an invite
let in. `p2p.replication.fold.Fold` gives the verdicts. Ops are named by their position in the set;
sets of ops (A above all) are Python integers, one bit a position.
Source: docs/specs/authority.md s.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2p.replication.ops import (
    Admit,
    Genesis,
    Grant,
    Invite,
    InviteClose,
    Join,
    Limit,
    Payload,
    Role,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from p2p.replication.record import Header

LEVEL_VOID: Final = 99
"""Level of what never stood, and rank of who is no admin: deeper than any."""
FOUNDER_LEVEL: Final = 0
PHASE_ADMINS: Final = 1
PHASE_OTHERS: Final = 2


@dataclass(frozen=True, slots=True)
class Op:
    """An A op: its record's id and header, and its payload (None: a kind we do not know)."""

    id: bytes
    head: Header
    payload: Payload | None


@dataclass(slots=True)
class _Invitation:
    """What is decided so far about one invite."""

    index: int
    invite: Invite
    joins: list[int] = field(default_factory=list)
    admits: list[int] = field(default_factory=list)
    """All admits of its joins, standing or not."""
    closes: list[int] = field(default_factory=list)
    """Standing closes."""
    keys: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)
    """Join -> its best standing admit's place in the queue: (phase, level, join id)."""
    counted: frozenset[int] = frozenset()
    stale: bool = False


@dataclass(slots=True)
class Holding:
    """The supports of one member, in buckets of equal role and level.

    A support is named by the bit of its last op: the genesis, the grant, or the admit.
    """

    buckets: dict[tuple[int, int], int] = field(default_factory=dict)
    """(role, level) -> bits of the supports."""
    limits: list[int] = field(default_factory=list)
    """Standing limits on the member."""
    limit_mask: int = 0
    version: int = 0
    stale: bool = True


class Supports:
    """What holds members up, given the verdicts so far.

    Args:
        ops: the set; the genesis is `ops[0]`, the rest in any order.
        ancestors: A(x) of each, as bits of positions in `ops`.
        joins_valid: positions of joins whose invite-key signature holds.
    """

    def __init__(
        self, ops: Sequence[Op], ancestors: Sequence[int], joins_valid: Iterable[int]
    ) -> None:
        self.ops = ops
        self.ancestors = ancestors
        self.stands: list[bool | None] = [None] * len(ops)
        """The verdict on each op; None while there is none."""
        self.level = [LEVEL_VOID] * len(ops)
        self._phase = [PHASE_OTHERS + 1] * len(ops)
        self._position = {op.id: i for i, op in enumerate(ops)}
        self._holdings: dict[bytes, Holding] = {}
        self._refs: dict[int, int] = {}
        """Support -> the op whose A tells what the giver knew: the grant or the invite."""
        self._limits_at: dict[int, int] = {}
        """Level -> standing limits of that level."""
        self._invitations: dict[int, _Invitation] = {}
        self._grants: dict[bytes, list[int]] = {}
        self._joined: dict[bytes, list[int]] = {}
        self._invite_of_join: dict[int, int] = {}
        self._join_of_admit: dict[int, int] = {}
        self._admits_of: dict[int, list[int]] = {}
        self._keeps: dict[int, dict[tuple[int, int], int]] = {}
        genesis = ops[0].payload
        assert isinstance(genesis, Genesis), "the first op is the genesis"
        self.founder = ops[0].head.author
        self.recovery_key = genesis.recovery_key
        self._index(frozenset(joins_valid))

    # What is known before any decision.

    def _index(self, joins_valid: frozenset[int]) -> None:
        self._settle(0, phase=PHASE_ADMINS, level=FOUNDER_LEVEL)
        for i, op in enumerate(self.ops):
            match op.payload:
                case Invite() as invite:
                    self._invitations[i] = _Invitation(i, invite)
                case Grant(member=member):
                    self._grants.setdefault(member, []).append(i)
                case Limit(member=member, keep=keep):
                    self._keeps[i] = {(inc, lane): seq for inc, lane, seq in keep}
                    if member == op.head.author:
                        # Level 0, so that one's own limit reaches every support.
                        self._settle(i, phase=0, level=0)
                case _:
                    pass
        for i in sorted(joins_valid):
            self._index_join(i)
        for i, op in enumerate(self.ops):
            if isinstance(op.payload, Join):
                self.stands[i] = i in self._invite_of_join
                self.level[i], self._phase[i] = 0, 0
            elif isinstance(op.payload, Admit):
                self._index_admit(i, self._position.get(op.payload.join_id))

    def _index_join(self, i: int) -> None:
        join = self.ops[i].payload
        assert isinstance(join, Join), "only joins are marked valid joins"
        v = self._position.get(join.invite_id, -1)
        if v in self._invitations and self.ancestors[i] >> v & 1:
            self._invite_of_join[i] = v
            self._invitations[v].joins.append(i)
            self._joined.setdefault(self.ops[i].head.author, []).append(i)

    def _index_admit(self, i: int, j: int | None) -> None:
        if j is not None and j in self._invite_of_join and self.ancestors[i] >> j & 1:
            self._join_of_admit[i] = j
            self._admits_of.setdefault(j, []).append(i)
            self._invitations[self._invite_of_join[j]].admits.append(i)
        else:
            self.stands[i] = False

    # Verdicts, and what they change.

    def _settle(self, i: int, *, phase: int, level: int) -> None:
        """Op i stands."""
        self.stands[i] = True
        self.level[i], self._phase[i] = level, phase
        match self.ops[i].payload:
            case Grant(member=member, role=role):
                self._add_grant(i, member, role)
            case Limit(member=member):
                self._add_limit(i, member)
            case Invite():
                self._invitation_changed(self._invitations[i])
            case InviteClose(invite_id=invite_id):
                self._add_close(i, invite_id)
            case Admit():
                self._add_admit(i)
            case _:
                pass

    def _reject(self, i: int, *, phase: int, level: int) -> None:
        """Op i is void."""
        self.stands[i] = False
        self.level[i], self._phase[i] = level, phase

    def _touch(self, member: bytes) -> Holding:
        holding = self._holdings.setdefault(member, Holding())
        holding.version += 1
        return holding

    def _add_grant(self, g: int, member: bytes, role: int) -> None:
        holding = self._touch(member)
        if not holding.stale:
            self._put(holding, g, g, role, self.level[g])

    def _add_limit(self, lim: int, member: bytes) -> None:
        holding = self._touch(member)
        holding.limits.append(lim)
        holding.limit_mask |= 1 << lim
        at = self.level[lim]
        self._limits_at[at] = self._limits_at.get(at, 0) | 1 << lim

    def _add_close(self, c: int, invite_id: bytes) -> None:
        invitation = self._invitations.get(self._position.get(invite_id, -1))
        if invitation is not None:
            invitation.closes.append(c)
            self._invitation_changed(invitation)

    def _add_admit(self, a: int) -> None:
        j = self._join_of_admit[a]
        invitation = self._invitations[self._invite_of_join[j]]
        room = j in invitation.keys or len(invitation.keys) < invitation.invite.uses
        if invitation.stale or not room or not self.stands[invitation.index]:
            self._invitation_changed(invitation)
            return
        # The usual case, nobody is displaced: only the joiner's supports change.
        if not self._closed(invitation, a):
            key = self._queue_key(invitation, a)
            invitation.keys[j] = min(invitation.keys.get(j, key), key)
            invitation.counted |= {j}
            self._touch(self.ops[j].head.author).stale = True

    def _invitation_changed(self, invitation: _Invitation) -> None:
        if invitation.stale:
            return  # Its joiners' supports are stale too, and none was looked at since.
        invitation.stale = True
        for member in {self.ops[j].head.author: None for j in invitation.joins}:
            self._touch(member).stale = True

    def _counted(self, invitation: _Invitation) -> frozenset[int]:
        """The first `uses` joins of an invite that standing, open admits let in."""
        if not invitation.stale:
            return invitation.counted
        invitation.keys.clear()
        for a in self._open_admits(invitation, invitation.admits):
            j, key = self._join_of_admit[a], self._queue_key(invitation, a)
            invitation.keys[j] = min(invitation.keys.get(j, key), key)
        queue = sorted(invitation.keys, key=invitation.keys.__getitem__)
        invitation.counted = frozenset(queue[: invitation.invite.uses])
        invitation.stale = False
        return invitation.counted

    def _queue_key(self, invitation: _Invitation, a: int) -> tuple[int, int, bytes]:
        join = self.ops[self._join_of_admit[a]]
        return self._phase[a], self._triple_level(invitation, a), join.id

    def _open_admits(self, invitation: _Invitation, admits: Iterable[int]) -> Iterator[int]:
        """Those of some of an invite's admits that stand and that no close bars."""
        if self.stands[invitation.index]:
            for a in admits:
                if self.stands[a] and not self._closed(invitation, a):
                    yield a

    def _closed(self, invitation: _Invitation, a: int) -> bool:
        """Whether a standing close that reaches the triple had not seen its admit."""
        role, level = invitation.invite.role, self._triple_level(invitation, a)
        return any(
            not self.ancestors[c] >> a & 1 and self.reaches(c, role, level)
            for c in invitation.closes
        )

    # Supports.

    def holding(self, member: bytes) -> Holding:
        """The member's supports and limits as decided so far."""
        holding = self._holdings.get(member)
        if holding is None:
            holding = self._holdings[member] = Holding()
        if holding.stale:
            self._rebuild(member, holding)
        return holding

    def uncancelled(self, member: bytes, within: int | None = None) -> Iterator[tuple[int, int]]:
        """(role, level) of the member's supports that no limit cancels, each pair once.

        Args:
            member: whose.
            within: consider only ops of this set (an A); None for all.
        """
        for role, level, bits, limits in self._candidates(member, within):
            # Newest first: who was let in again was let in by somebody who knew of the removal.
            if not limits or any(
                not limits & ~self.ancestors[self._refs[s]] for s in positions(bits)
            ):
                yield role, level

    def uncancelled_bits(
        self, member: bytes, within: int | None = None
    ) -> Iterator[tuple[int, int, int]]:
        """As `uncancelled`, with the bits of the supports."""
        for role, level, bits, limits in self._candidates(member, within):
            alive = 0
            for s in positions(bits):
                if not limits & ~self.ancestors[self._refs[s]]:
                    alive |= 1 << s
            if alive:
                yield role, level, alive

    def _candidates(self, member: bytes, within: int | None) -> Iterator[tuple[int, int, int, int]]:
        """(role, level, supports, limits that reach them) as decided so far, in `within`.

        A support is alive if its giver knew all those limits.
        """
        holding = self.holding(member)
        limits = holding.limit_mask if within is None else holding.limit_mask & within
        for (role, level), bits in holding.buckets.items():
            here = bits if within is None else bits & within
            if here:
                yield role, level, here, self._reaching(limits, role, level)

    def _reaching(self, limits: int, role: int, level: int) -> int:
        if role < Role.ADMIN or not limits:
            return limits
        shallow = 0
        for at, mask in self._limits_at.items():
            if at <= level:
                shallow |= mask
        return limits & shallow

    def rank(self, member: bytes, within: int | None = None) -> int:
        """1 + level of the member's best admin support; `LEVEL_VOID` without one."""
        levels = [lv for role, lv in self.uncancelled(member, within) if role == Role.ADMIN]
        return 1 + min(levels) if levels else LEVEL_VOID

    def reaches(self, lim: int, role: int, level: int) -> bool:
        """Whether the limit or close reaches a support of this role and level."""
        return role < Role.ADMIN or level >= self.level[lim]

    def beyond(self, lim: int, head: Header, lane: int, within: int) -> bool:
        """Whether a record of the limited member lies beyond what the limit leaves it.

        Kept are the logs up to the given seq, and what was written in the limit's knowledge under a
        new incarnation (by a member who was let in again).
        """
        limit = self.ops[lim].payload
        assert isinstance(limit, Limit), "only limits are listed as limits"
        if head.seq <= self._keeps[lim].get((head.incarnation, lane), 0):
            return False
        return not (within >> lim & 1 and head.incarnation >= limit.next_incarnation)

    def _rebuild(self, member: bytes, holding: Holding) -> None:
        holding.buckets.clear()
        if member == self.founder:
            self._put(holding, 0, 0, Role.ADMIN, FOUNDER_LEVEL)
        for g in self._grants.get(member, ()):
            grant = self.ops[g].payload
            if self.stands[g] and isinstance(grant, Grant):
                self._put(holding, g, g, grant.role, self.level[g])
        for j in self._joined.get(member, ()):
            invitation = self._invitations[self._invite_of_join[j]]
            if j not in self._counted(invitation):
                continue
            for a in self._open_admits(invitation, self._admits_of[j]):
                level = self._triple_level(invitation, a)
                self._put(holding, a, invitation.index, invitation.invite.role, level)
        holding.stale = False

    def _put(self, holding: Holding, support: int, ref: int, role: int, level: int) -> None:
        key = (role, level)
        holding.buckets[key] = holding.buckets.get(key, 0) | 1 << support
        self._refs[support] = ref

    def _triple_level(self, invitation: _Invitation, admit: int) -> int:
        return max(self.level[invitation.index], self.level[admit])

    def need(self, i: int) -> Role:
        """The role an op of this kind asks of its author."""
        if i not in self._join_of_admit:
            return Role.ADMIN
        invite = self._invitations[self._invite_of_join[self._join_of_admit[i]]].invite
        manual = invite.accept == 1 or invite.role == Role.ADMIN
        return Role.ADMIN if manual else Role.WRITE

    # Read afterwards.

    def invitation_state(self, v: int) -> tuple[frozenset[int], bool, Sequence[int]]:
        """Of the invite at v: the joins that count, whether a close stands, all its joins."""
        invitation = self._invitations[v]
        return self._counted(invitation), bool(invitation.closes), invitation.joins

    def parts(self, support: int) -> tuple[int, ...]:
        """The ops a support consists of: genesis, grant, or invite, join and admit."""
        j = self._join_of_admit.get(support)
        return (support,) if j is None else (self._invite_of_join[j], j, support)


def positions(bits: int) -> Iterator[int]:
    """The positions of set bits, highest first."""
    while bits:
        high = bits.bit_length() - 1
        yield high
        bits ^= 1 << high
