"""The A ops of one group, as they arrive, and the standing that follows from them.

Admission keeps one `Authority` a group: `missing` says what to ask for first, `check` holds a
header against the ops it cites, `named` tells strangers from members without a fold, `add` takes an
admitted record in, and `standing()` answers everything else, folded again only when the set has
changed. Source: docs/specs/authority.md; the rules are in `p2p.replication.fold`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from p2p.errors import AuthError, UsageError
from p2p.identity import verify as verify_signature
from p2p.replication.fold import Fold, Op
from p2p.replication.ops import (
    Epoch,
    Fork,
    ForkProof,
    Genesis,
    Grant,
    Invite,
    Join,
    Kind,
    Owner,
    OwnerKey,
    Role,
    verify_fork_proof,
    verify_join,
    verify_owner,
)
from p2p.replication.record import AUTH_MAX, LANE_CONTROL, is_authority
from p2p.replication.standing import (
    Book,
    EpochRecord,
    InviteView,
    OwnerKeyRecord,
    OwnerRecord,
    PendingJoin,
    Standing,
    Support,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2p.identity import Verifier
    from p2p.replication.ops import Payload
    from p2p.replication.record import Header

__all__ = ["Authority", "InviteView", "PendingJoin", "Role", "Standing", "Support"]

V = TypeVar("V")
_KNOWN_KINDS = frozenset(Kind)


@dataclass(slots=True)
class _Chain:
    """The A ops of one author's incarnation, in the order of (hlc, id)."""

    indices: list[int] = field(default_factory=list)
    seq_max: int = 0
    hlc_max: int = 0
    straight: bool = True
    """Whether seq and hlc grew together so far, as in every honest log."""


class Authority:
    """The set of A ops of one group.

    Args:
        group: the group's id, which is the id of its genesis record.
        verify: signature check for what payloads carry (joins, owners, fork proofs).
    """

    def __init__(self, group: bytes, verify: Verifier = verify_signature) -> None:
        self.group = group
        self._verify = verify
        self._ops: list[Op] = []
        self._positions: dict[bytes, int] = {}
        self._ancestors: list[int] = []
        self._ancestors_stale = False
        self._covered = 0
        self._chains: dict[tuple[bytes, int], _Chain] = {}
        self._naming: dict[bytes, int] = {}
        self._joins_checked: dict[int, bool] = {}
        self._forks: dict[tuple[bytes, int, int], int] = {}
        self._owners: dict[bytes, dict[bytes, OwnerRecord]] = {}
        self._owner_keys: dict[bytes, OwnerKeyRecord] = {}
        self._epochs: dict[bytes, EpochRecord] = {}
        self._standing: Standing | None = None
        # Asked for each record we seal.
        self._heads: dict[bytes | None, tuple[bytes, ...]] = {}
        self._hlc_max = 0

    def __contains__(self, record_id: bytes) -> bool:
        """Whether this A op is here."""
        return record_id in self._positions

    def __len__(self) -> int:
        """Number of A ops."""
        return len(self._ops)

    @property
    def hlc_max(self) -> int:
        """Highest HLC of an A op; what cites it must be later."""
        return self._hlc_max

    def missing(self, header: Header) -> tuple[bytes, ...]:
        """Ids in the header's `auth` that are not here, to be asked for first."""
        return tuple(cited for cited in header.auth if cited not in self._positions)

    def check(self, header: Header, record_id: bytes) -> None:
        """Hold a header of this group against the A ops it cites, which must be here.

        Raises:
            AuthError: another group's, or dated no later than an op it cites.
            UsageError: a cited op is missing; `missing` tells which.
        """
        if (header.group or record_id) != self.group:
            raise AuthError("record: belongs to another group")
        if self.missing(header):
            raise UsageError("admit the cited ops first")
        if any(self._op(cited).head.hlc >= header.hlc for cited in header.auth):
            raise AuthError("record: dated no later than an operation it cites")

    def named(self, author: bytes, auth: tuple[bytes, ...]) -> bool:
        """Whether a genesis, grant or join among what `auth` reaches names the author.

        Needs no fold: whoever is not named was never a member, and its record is refused.
        """
        self._refresh_ancestors()
        naming = self._naming.get(author, 0)
        for cited in auth:
            i = self._positions[cited]
            if (self._ancestors[i] | 1 << i) & naming:
                return True
        return False

    def add(self, record_id: bytes, header: Header, payload: Payload | None) -> bool:
        """Take in an admitted control record; kinds that bear on nothing here are ignored.

        Args:
            record_id: its id.
            header: its header, shape and signature verified.
            payload: decoded; None for a kind this version does not know.

        Returns:
            Whether the set changed.

        Raises:
            AuthError: see `check`; or a signature inside the payload is not what it claims.
            UsageError: an op it cites is missing, or the payload of a known kind.
        """
        if payload is None and header.kind in _KNOWN_KINDS:
            raise UsageError("a control record needs its payload")
        changed = (
            self._add_op(Op(record_id, header, payload))
            if is_authority(header.kind)
            else self._add_control(record_id, header, payload)
        )
        if changed:
            self._standing = None
            self._heads.clear()
        return changed

    def fork_seq(self, author: bytes, incarnation: int, lane: int) -> int | None:
        """From which seq a log is void by a proven fork; None without one."""
        return self._forks.get((author, incarnation, lane))

    def heads(self, member: bytes | None = None) -> tuple[bytes, ...]:
        """What a record written now cites: the A ops no other one reaches, ascending, at most 8.

        Void ops count too, or they would be cited for ever.

        Args:
            member: the author. With more than 8 heads those that reach its own supports come
                first, or its record would not show why it may write.
        """
        found = self._heads.get(member)
        if found is None:
            self._refresh_ancestors()
            heads = [i for i in range(len(self._ops)) if not self._covered >> i & 1]
            if len(heads) > AUTH_MAX:
                heads = self._choose_heads(heads, member)
            found = self._heads[member] = tuple(sorted(self._ops[i].id for i in heads))
        return found

    def standing(self) -> Standing:
        """The membership that follows from the set, folded again if the set has changed.

        Raises:
            UsageError: the genesis is not here yet.
        """
        if self._standing is None:
            if not self._ops:
                raise UsageError("a group without its genesis has no standing")
            self._refresh_ancestors()
            control = {
                (author, inc): seq
                for (author, inc, lane), seq in self._forks.items()
                if lane == LANE_CONTROL
            }
            fold = Fold(list(self._ops), list(self._ancestors), control, self._valid_joins())
            self._standing = Standing(fold, self._book(fold))
        return self._standing

    def _book(self, fold: Fold) -> Book:
        return Book(
            self.group,
            fold.ops,
            dict(self._positions),
            fold.ancestors,
            dict(self._forks),
            {device: tuple(rows.values()) for device, rows in self._owners.items()},
            tuple(self._owner_keys.values()),
            tuple(self._epochs.values()),
        )

    # Taking in.

    def _op(self, record_id: bytes) -> Op:
        return self._ops[self._positions[record_id]]

    def _add_op(self, op: Op) -> bool:
        if op.id in self._positions:
            return False
        if not self._ops and not isinstance(op.payload, Genesis):
            raise UsageError("the genesis comes first")
        self.check(op.head, op.id)
        if isinstance(op.payload, Join):
            self._check_join(len(self._ops), op)
        i = len(self._ops)
        self._ops.append(op)
        self._positions[op.id] = i
        self._hlc_max = max(self._hlc_max, op.head.hlc)
        for name in _names(op):
            self._naming[name] = self._naming.get(name, 0) | 1 << i
        self._place(i)
        return True

    def _check_join(self, i: int, op: Op) -> None:
        """Verify a join against its invite if that is here; otherwise the fold does it later."""
        assert isinstance(op.payload, Join), "called for joins"
        position = self._positions.get(op.payload.invite_id)
        invite = None if position is None else self._ops[position].payload
        if isinstance(invite, Invite):
            verify_join(op.payload, self.group, op.head.author, invite, self._verify)
            self._joins_checked[i] = True

    def _valid_joins(self) -> list[int]:
        valid = []
        for i, op in enumerate(self._ops):
            if not isinstance(op.payload, Join):
                continue
            if i not in self._joins_checked:
                try:
                    self._check_join(i, op)
                except AuthError:
                    self._joins_checked[i] = False
            if self._joins_checked.get(i, False):
                valid.append(i)
        return valid

    def _add_control(self, record_id: bytes, header: Header, payload: Payload | None) -> bool:
        match payload:
            case ForkProof():
                return self._add_fork(verify_fork_proof(payload, self.group, self._verify))
            case Owner():
                verify_owner(payload, header.author, self._verify)
                rows = self._owners.setdefault(header.author, {})
                return _put(rows, record_id, OwnerRecord(record_id, header, payload.owner_key))
            case OwnerKey():
                # A device publishes its voucher as it stands; a false one must not get that far.
                for device, signature in payload.vouchers:
                    verify_owner(Owner(payload.owner_key, signature), device, self._verify)
                row = OwnerKeyRecord(record_id, header, payload)
                return _put(self._owner_keys, record_id, row)
            case Epoch():
                return _put(self._epochs, record_id, EpochRecord(record_id, header, payload))
            case _:
                return False

    def _add_fork(self, fork: Fork) -> bool:
        log = (fork.author, fork.incarnation, fork.lane)
        known = self._forks.get(log)
        if known is not None and known <= fork.seq:
            return False
        self._forks[log] = fork.seq
        return True

    # Ancestors: A(x), one bit an op.

    def _place(self, i: int) -> None:
        """Compute A of the newest op, or mark all stale if it is an earlier part of a chain."""
        head = self._ops[i].head
        chain = self._chains.setdefault((head.author, head.incarnation), _Chain())
        late = head.seq < chain.seq_max and any(self._precedes(i, later) for later in chain.indices)
        if late or self._ancestors_stale:
            # It closes a gap: ops above it in its chain, and what cites them, reach it too.
            self._ancestors_stale = True
            self._ancestors.append(0)
            return
        self._ancestors.append(0)
        self._reach(i, chain)

    def _reach(self, i: int, chain: _Chain) -> None:
        head = self._ops[i].head
        within = 0
        for cited in head.auth:
            j = self._positions[cited]
            within |= self._ancestors[j] | 1 << j
        for j in self._earlier(i, chain):
            within |= self._ancestors[j] | 1 << j
        self._ancestors[i] = within
        self._covered |= within
        chain.straight &= head.seq > chain.seq_max and head.hlc > chain.hlc_max
        chain.indices.append(i)
        chain.seq_max = max(chain.seq_max, head.seq)
        chain.hlc_max = max(chain.hlc_max, head.hlc)

    def _earlier(self, i: int, chain: _Chain) -> Iterable[int]:
        head = self._ops[i].head
        if chain.straight and head.seq > chain.seq_max and head.hlc > chain.hlc_max:
            return chain.indices[-1:]  # it reaches the others
        return [j for j in chain.indices if self._precedes(j, i)]

    def _precedes(self, j: int, i: int) -> bool:
        """Whether j is an earlier op of the same chain: lower seq and lower hlc.

        The second condition matters for hostile chains alone. It keeps A free of cycles: above a
        gap nobody can check `prev` yet, so an author could let seq 2 cite its own seq 5.
        """
        a, b = self._ops[j].head, self._ops[i].head
        return a.seq < b.seq and a.hlc < b.hlc

    def _refresh_ancestors(self) -> None:
        if not self._ancestors_stale:
            return
        self._ancestors_stale = False
        self._ancestors = [0] * len(self._ops)
        self._covered = 0
        self._chains = {}
        # Everything an op reaches has a lower hlc, so this order is topological.
        order = sorted(
            range(len(self._ops)), key=lambda i: (self._ops[i].head.hlc, self._ops[i].id)
        )
        for i in order:
            head = self._ops[i].head
            self._reach(i, self._chains.setdefault((head.author, head.incarnation), _Chain()))

    def _choose_heads(self, heads: list[int], member: bytes | None) -> list[int]:
        """Eight of many heads: enough to reach the member's supports, then the newest."""
        newest = sorted(heads, key=lambda i: (self._ops[i].head.hlc, self._ops[i].id), reverse=True)
        chosen: list[int] = []
        wanted = [] if member is None else self.standing().supports(member)
        for support in wanted:
            last = self._positions[support.op_ids[-1]]
            reaching = [i for i in newest if (self._ancestors[i] | 1 << i) >> last & 1]
            if not any(i in chosen for i in reaching) and len(chosen) < AUTH_MAX:
                chosen.append(reaching[0])
        rest = [i for i in newest if i not in chosen]
        return chosen + rest[: AUTH_MAX - len(chosen)]


def _names(op: Op) -> tuple[bytes, ...]:
    """Whose membership an op could be about."""
    match op.payload:
        case Genesis(recovery_key=key):
            return (op.head.author,) if key is None else (op.head.author, key)
        case Grant(member=member):
            return (member,)
        case Join():
            return (op.head.author,)
        case _:
            return ()


def _put(rows: dict[bytes, V], key: bytes, row: V) -> bool:
    if key in rows:
        return False
    rows[key] = row
    return True
