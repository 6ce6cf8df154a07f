"""The groups this device is in: their authority, keys, and what waits to be judged.

A `Group` is memory only; all of it follows from the store (`load_group`) and from what arrived
since. `Groups` answers questions across groups: which ones a peer shares with us, and how near an
author is to us. Source: docs/specs/sync.md s.7.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2p.replication.authority import Authority
from p2p.replication.erase_index import EraseIndex
from p2p.replication.hlc import clock_was_wrong, next_incarnation
from p2p.replication.ops import Role, decode_payload_untrusted
from p2p.replication.record import (
    LANE_CONTROL,
    LANE_DATA,
    STATE_VOID,
    Envelope,
    RecordWire,
    decode_envelope_untrusted,
    decode_header_untrusted,
    decode_wire_untrusted,
    record_id,
)
from p2p.replication.wires import wire_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from p2p.identity import Verifier
    from p2p.replication.config import ReplicationConfig
    from p2p.replication.erase_index import EraseRecord, EraseWord, Erasure
    from p2p.replication.ops import Payload
    from p2p.replication.record import Header
    from p2p.replication.standing import Standing
    from p2p.replication.store import LogKey, LogState, RecordStore, Stored

STATE_MEMBER: Final = "member"
STATE_PENDING: Final = "pending"
STATE_REFUSED: Final = "refused"
STATE_LEFT: Final = "left"
"""Shown of a group that this device was taken out of, or left; stored as `member`."""

HOLD_SKEW: Final = "skew"
"""Dated too far ahead; due when our clock gets there."""
HOLD_FORK: Final = "fork"
"""A control record beside another at one place: kept because others cite it, served by id."""

HOLD_REJECTED: Final = "rejected"
"""A join a person turned away here; no record, only its id."""
HOLD_WINDOW: Final = "window"
"""An admin's erase record of what others wrote: due when it is carried out here, 0 once it was."""
HOLD_HIDDEN: Final = "hidden"
"""A data record that such a one names: hidden, and still a part of the set."""

HOLD_AGAIN: Final = "again"
"""A data log of ours of which what follows is to be signed anew; `due_ms` is the next place."""

HOLD_CUT: Final = "cut"
"""What the limits on us cut off was planned to be signed anew; no record, their hash."""

HOLD_JUDGE: Final = "judge"
"""Stored with operations whose effect on other records is not on disk yet; no record."""

SECRET_EXCHANGE: Final = "x25519"  # noqa: S105 - a purpose, not a secret
SECRET_OWNER: Final = "owner"  # noqa: S105 - a purpose


@dataclass(frozen=True)
class Waiting:
    """A record that cites control records which are not here."""

    wire: RecordWire
    peer: bytes | None
    missing: tuple[bytes, ...]
    until_s: float


@dataclass(frozen=True)
class Evidence:
    """Two headers of one log that contradict each other: material of a fork proof."""

    seq: int
    header_a: bytes
    signature_a: bytes
    header_b: bytes
    signature_b: bytes
    first: bool
    """Whether nothing below differs: both cite the same predecessor."""


@dataclass(frozen=True)
class Held:
    """A row of quarantine."""

    id: bytes
    author: bytes
    due_ms: int
    size: int


@dataclass
class Group:
    """One group as this device knows it."""

    id: bytes
    name: str
    home: bool
    state: str
    authority: Authority
    lock: AbstractAsyncContextManager[None]
    """Held while records are judged and stored, and while we write control records."""
    exchange: dict[bytes, bytes] = field(default_factory=dict)
    """Our X25519 keys: public -> private."""
    epochs: dict[bytes, bytes] = field(default_factory=dict)
    """Id of the epoch *record* -> secret."""
    shares: dict[bytes, list[bytes]] = field(default_factory=dict)
    """Id of the epoch record -> sealed secrets for us that did not open yet."""
    handed: dict[bytes, set[bytes]] = field(default_factory=dict)
    """Id of the epoch record -> members that its secret was sealed to."""
    owed_since: dict[bytes, float] = field(default_factory=dict)
    """Reader without a key that is here -> when this was noticed, by the monotonic clock."""
    waiting: OrderedDict[bytes, Waiting] = field(default_factory=OrderedDict)
    evidence: dict[LogKey, Evidence] = field(default_factory=dict)
    known_members: dict[bytes, Role] = field(default_factory=dict)
    """As last told to subscribers."""
    erase_index: EraseIndex = field(default_factory=EraseIndex)
    """What erase records name, and the words on them."""
    windows: dict[bytes, int] = field(default_factory=dict)
    """Id of an admin's erase record -> Unix ms at which it is carried out here; 0: it was."""
    hidden: set[bytes] = field(default_factory=set)
    """Data records that are hidden until then."""
    hidden_under: Standing | None = None
    """What these were last judged by."""
    confirmed_up_to: int = 0
    """Where upkeep goes on looking for erase records to confirm."""
    quarantine: dict[bytes, Held] | None = None
    """What is dated too far ahead and waits, by id; None: not read from the store yet."""
    unpublished_erasures: bool = True
    """Whether something of ours may have been erased here that no erase record tells the others."""
    again: bool = True
    """Whether something of ours may still have to be signed anew."""
    cut_planned: bytes | None = None
    """For which limits on us that was planned."""
    void_ops: frozenset[bytes] = frozenset()
    unjudged: bool = False
    """Whether operations are stored whose effect on other records may not be."""
    incarnations: list[int] = field(default_factory=lambda: [1, 1])
    """In force for control and data."""
    control_confirmed: bool = False
    """Whether another member holds our control log, or this start began a new one."""
    synced_once: bool = False
    """Whether a session ended equal: until then the sender's rate does not count."""
    stale: bool = False
    """Whether a turn broke off: what is in memory may not be what is on disk."""
    rejected: set[bytes] = field(default_factory=set)
    """Joins a person turned away on this device."""
    headers: int = 0
    """Records here, about."""
    headers_of: dict[bytes, int] = field(default_factory=dict)
    """The same by author, all logs of one together."""

    @property
    def standing(self) -> Standing:
        """Membership that follows from the control records."""
        return self.authority.standing()

    @property
    def founded(self) -> bool:
        """Whether the genesis is here."""
        return len(self.authority) > 0

    def note_stored(self, counts: Mapping[bytes, int]) -> None:
        """Records were stored: so many of each author."""
        for author, count in counts.items():
            self.headers_of[author] = self.headers_of.get(author, 0) + count
            self.headers += count

    @property
    def erasures(self) -> Mapping[bytes, Sequence[Erasure]]:
        """Id of a data record, here or not yet -> the erase records that name it."""
        return self.erase_index.targets

    @property
    def erase_records(self) -> Mapping[bytes, EraseRecord]:
        """Erase records by their id, whether they count or not."""
        return self.erase_index.records

    @property
    def confirmations(self) -> Mapping[bytes, Mapping[bytes, EraseWord]]:
        """Id of an erase record -> member -> its newest word on it."""
        return self.erase_index.words

    def erasure_of(self, target: bytes, author: bytes) -> Erasure | None:
        """The record that has a data record's content gone now, if there is one.

        Its own author's at once; an admin's when the time to object to it is over here, and then
        for good, whatever becomes of that admin.
        """
        for erasure in self.erasures.get(target, ()):
            head = erasure.head
            if head.author == author:
                if self.standing.live(head, erasure.id):
                    return erasure
            elif self.windows.get(erasure.id) == 0 and self.standing.outranks(head, author):
                return erasure
        return None

    def announced_erasure_of(self, target: bytes, author: bytes) -> Erasure | None:
        """An admin's record that will have a data record's content gone unless it is undone."""
        for erasure in self.erasures.get(target, ()):
            head = erasure.head
            if head.author != author and self.standing.may_erase(head, author):
                return erasure
        return None

    def role(self, member: bytes) -> Role | None:
        """The member's role, None for who is none."""
        return self.standing.role(member) if self.founded else None


class Groups:
    """All groups of this device.

    Args:
        me: our key.
    """

    def __init__(self, me: bytes) -> None:
        self.me = me
        self._groups: dict[bytes, Group] = {}
        self._doors: dict[bytes, AbstractAsyncContextManager[None]] = {}

    def __contains__(self, group: bytes) -> bool:
        return group in self._groups

    def get(self, group: bytes) -> Group | None:
        """The group of that id."""
        return self._groups.get(group)

    def add(self, group: Group) -> None:
        """Take a group in."""
        group.erase_index.me = self.me
        self._groups[group.id] = group

    def remove(self, group: bytes) -> None:
        """Forget a group that did not come about."""
        self._groups.pop(group, None)

    def door(
        self, group: bytes, new_lock: Callable[[], AbstractAsyncContextManager[None]]
    ) -> AbstractAsyncContextManager[None]:
        """Held while a group is made ready to be joined.

        Of two joins at once the second must find what the first made: with a state of its own each
        would begin the same log, and a forked join lets nobody in ever.
        """
        return self._doors.setdefault(group, new_lock())

    def all(self) -> list[Group]:
        """Every group, by id."""
        return [self._groups[group_id] for group_id in sorted(self._groups)]

    def shared_with(self, peer: bytes) -> list[Group]:
        """Groups in which both we and the peer are members, as far as we know."""
        return [
            group
            for group in self.all()
            if group.state == STATE_MEMBER and group.role(peer) is not None
        ]

    def is_member(self, peer: bytes) -> bool:
        """Whether the peer shares a group with us."""
        return any(
            group.role(peer) is not None for group in self.all() if group.state != STATE_REFUSED
        )

    def introduces(self, asker: bytes, subject: bytes) -> bool:
        """Whether both are members of one of our groups, so that we may name addresses."""
        return any(group.role(subject) is not None for group in self.shared_with(asker))

    def peers(self) -> list[bytes]:
        """Members of our groups other than us, by key."""
        found: set[bytes] = set()
        for group in self.all():
            if group.founded and group.state != STATE_REFUSED:
                found.update(group.standing.members())
        return sorted(found - {self.me})

    def own_devices(self) -> frozenset[bytes]:
        """Devices of the same person: who may write in a `home` of ours."""
        found = {self.me}
        for group in self.all():
            if group.home and group.founded and group.role(self.me) is not None:
                members = group.standing.members()
                found.update(m for m, role in members.items() if role >= Role.WRITE)
        return frozenset(found)

    def relation(self, group: Group, author: bytes, own: frozenset[bytes] | None = None) -> str:
        """How near an author of a group is to us."""
        if author == self.me:
            return "own"
        standing = group.standing
        mine = standing.owner(self.me)
        if author in (self.own_devices() if own is None else own):
            return "own_device"
        if mine != self.me and standing.owner(author) == mine:
            return "own_device"
        # Whose ticket we took we chose to believe, as much as whom we gave one.
        ours, theirs = standing.invited_by(self.me), standing.invited_by(author)
        if author == ours or (theirs is not None and theirs in {self.me, ours}):
            return "invited"
        return "other"

    def free_name(self, wanted: str, *, but: bytes | None = None) -> str:
        """A local name nobody has: the wanted one, or with `-2`, `-3` ... behind it."""
        taken = {
            group.name
            for group in self._groups.values()
            if group.id != but and group.state != STATE_REFUSED
        }
        if wanted not in taken:
            return wanted
        n = 2
        while f"{wanted}-{n}" in taken:
            n += 1
        return f"{wanted}-{n}"


def control_payload(header: Header, envelope: bytes | None) -> Payload | None:
    """The typed payload of a control record in wire form.

    Raises:
        DecodeError: malformed, or no envelope.
    """
    part = decode_envelope_untrusted(b"" if envelope is None else envelope, header.kind)
    return decode_payload_untrusted(header.kind, part.ct)


async def load_authority(group: Group, store: RecordStore, verify: Verifier) -> None:
    """Fill a new `Authority` from the store: after a start, or after a failed write."""
    ops: list[tuple[int, bytes, Header, Payload | None]] = []
    for row in await store.control(group.id):
        header = decode_header_untrusted(row.header)
        if row.envelope is None:
            continue
        payload = decode_payload_untrusted(header.kind, row.envelope.ct)
        ops.append((header.hlc, row.id, header, payload))
    for wire in await held_beside(store, group.id):
        header = decode_header_untrusted(wire.header)
        ident = record_id(wire.header)
        ops.append((header.hlc, ident, header, control_payload(header, wire.envelope)))
    authority = Authority(group.id, verify)
    group.erase_index.clear()
    group.windows.clear()
    group.hidden.clear()
    group.hidden_under = None
    group.quarantine = None
    group.unpublished_erasures = True
    # Whatever an operation cites has a lower hlc, so this order needs no second pass.
    for _, ident, header, payload in sorted(ops, key=lambda op: op[:2]):
        authority.add(ident, header, payload)
        group.erase_index.note(ident, header, payload)
    group.authority = authority
    for _, (held, _, reason, due_ms, _) in await store.local("hold", group.id):
        assert isinstance(held, bytes), "we wrote it"
        assert isinstance(due_ms, int), "we wrote it"
        if reason == HOLD_WINDOW:
            group.windows[held] = due_ms
        elif reason == HOLD_HIDDEN:
            group.hidden.add(held)


async def held_beside(store: RecordStore, group: bytes) -> list[RecordWire]:
    """Operations of forked logs that others cite: kept outside the set and served by id."""
    return [
        decode_wire_untrusted(columns[4])
        for _, columns in await store.local("hold", group)
        if columns[2] == HOLD_FORK and isinstance(columns[4], bytes)
    ]


@dataclass(frozen=True)
class Beside:
    """A record of quarantine in the shape of `store.Stored`."""

    id: bytes
    header: bytes
    signature: bytes
    envelope: Envelope | None
    state: str = STATE_VOID
    n: int = 0


async def fetch_of(store: RecordStore, group: bytes, ids: Sequence[bytes]) -> list[Stored]:
    """Records of one group by id, those beside a forked log too; ids of other groups find nothing.

    Without the last a member of one group could read another's by knowing ids.
    """
    rows = list(await store.fetch(ids, bodies=True))
    found = [r for r in rows if (decode_header_untrusted(r.header).group or r.id) == group]
    if len(rows) < len(ids):
        asked = set(ids)
        for wire in await held_beside(store, group):
            ident = record_id(wire.header)
            if ident in asked and wire.envelope is not None:
                kind = decode_header_untrusted(wire.header).kind
                part = decode_envelope_untrusted(wire.envelope, kind)
                found.append(Beside(ident, wire.header, wire.signature, part))
    return found


def choose_incarnations(
    me: bytes, logs: Iterable[LogState], wall_ms: int, marks: Mapping[LogKey, int] | None = None
) -> tuple[int, int]:
    """Incarnations to go on with after a start: (control, data).

    A log that ends in a fork, or far in the future of our clock, is not continued. Nor is one of
    which we once had more than is here now: the database is an older image, and its next place has
    been signed before.

    Args:
        me: our device key.
        logs: the group's logs as the store has them.
        wall_ms: own wall clock.
        marks: how far our own logs of this group had come, by `high.mark`.
    """
    logs = [log for log in logs if log.key[1] == me]
    ours = {key: seq for key, seq in (marks or {}).items() if key[1] == me}
    last = max((key[2] for key in [*(log.key for log in logs), *ours]), default=0)
    chosen = []
    for lane in (LANE_CONTROL, LANE_DATA):
        newest = max(
            (log for log in logs if log.key[3] == lane), key=lambda log: log.key[2], default=None
        )
        unusable = newest is None or newest.fork_seq is not None
        if newest is not None and clock_was_wrong(newest.head_hlc, wall_ms):
            unusable = True
        if newest is not None and _was_ahead(newest, ours):
            unusable = True
        if newest is None or unusable:
            chosen.append(next_incarnation(last, wall_ms))
        else:
            chosen.append(newest.key[2])
    return chosen[0], chosen[1]


def _was_ahead(newest: LogState, marks: Mapping[LogKey, int]) -> bool:
    """Whether a lane of ours was further than its newest log here: on it, or on a newer one."""
    return any(
        (key[2], seq) > (newest.key[2], newest.max_seq)
        for key, seq in marks.items()
        if key[3] == newest.key[3]
    )


def trim_waiting(group: Group, config: ReplicationConfig, now: float) -> None:
    """Let go of records that waited too long, and of what is over a limit.

    Peers that are no members have a small share of their own: whoever knows the group's id can
    send as one, under any number of keys, and must not push out what members brought.
    """
    if not group.waiting:
        return
    roles = {
        waiting.peer: group.role(waiting.peer)
        for waiting in group.waiting.values()
        if waiting.peer is not None
    }
    of_strangers = [
        ident
        for ident, waiting in group.waiting.items()
        if waiting.peer is not None and roles[waiting.peer] is None
    ]
    for ident in of_strangers[: max(0, len(of_strangers) - config.pending_stranger_records_max)]:
        del group.waiting[ident]
    while group.waiting:
        oldest, waiting = next(iter(group.waiting.items()))
        if waiting.until_s > now:
            break
        del group.waiting[oldest]
    _trim_shares(group, config)


def _trim_shares(group: Group, config: ReplicationConfig) -> None:
    """Over a limit the oldest of whoever brought most goes: one flood pushes out itself only."""
    size = 0
    shares: dict[bytes | None, int] = {}
    brought: dict[bytes | None, deque[bytes]] = {}
    for ident, waiting in group.waiting.items():
        taken = wire_bytes(waiting.wire)
        size += taken
        shares[waiting.peer] = shares.get(waiting.peer, 0) + taken
        brought.setdefault(waiting.peer, deque()).append(ident)
    while len(group.waiting) > config.pending_records_max or size > config.pending_bytes_max:
        most = max(shares, key=lambda peer: (shares[peer], peer or b""))
        gone = wire_bytes(group.waiting.pop(brought[most].popleft()).wire)
        size -= gone
        shares[most] -= gone
        if not brought[most]:
            del shares[most]
