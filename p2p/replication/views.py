"""What replication shows of groups, members and sessions: plain snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from p2p.replication.ops import Role


@dataclass(frozen=True, kw_only=True)
class CreatedGroup:
    """A group we founded."""

    group: bytes
    recovery_seed: bytes | None
    """32 bytes to show once and keep off this machine; None without a recovery key."""


@dataclass(frozen=True, kw_only=True)
class Invite:
    """A ticket to hand over; a secret until used."""

    ticket: str
    invite_id: bytes
    not_after: int
    """Unix seconds."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A group we entered, or asked to."""

    group: bytes
    name: str
    """Local name; daemon may change it."""
    inviter: bytes
    state: str
    """`member`, or `pending` until somebody accepts."""
    check_words: tuple[str, ...]
    """Six words that must be the same on both devices."""
    home: bool


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """A group of ours."""

    group: bytes
    name: str
    home: bool
    state: str
    """`member`; `pending` until somebody accepts us; `left` where we are out."""
    role: Role | None
    """Ours; None while pending, and where we are out."""
    members: int
    epoch: bytes | None
    """Id of the epoch we write under; None: no key has come yet."""
    upgrade_needed: bool
    """Whether an admin used an operation this version does not know."""


@dataclass(frozen=True, kw_only=True)
class MemberView:
    """A member of a group."""

    group: bytes
    member: bytes
    role: Role
    owner: bytes
    """Owner key it published there, else its own key."""
    relation: str
    """`own`, `own_device`, `invited` or `other`."""
    invited_by: bytes | None


@dataclass(frozen=True, kw_only=True)
class PendingView:
    """A device that waits to be let in."""

    join_id: bytes
    group: bytes
    member: bytes
    role: Role
    at_ms: int
    check_words: tuple[str, ...]


RecordIds: TypeAlias = "tuple[bytes, ...]"


@dataclass(frozen=True, kw_only=True)
class PeerSync:
    """How the last comparison of a group with a peer ended."""

    group: bytes
    peer: bytes
    last_ms: int
    """Unix milliseconds."""
    equal: bool
    missing: int
    """Records the peer has and did not bring, at most."""
    received: int
    sent: int
    bytes: int
    """Of the whole session, both ways."""
    rounds: int
    why: str
    """Why not equal; empty when it is."""
    records: int = 0
    """Records of ours that were compared, both lanes."""
    verified: bool = False
    """Whether the sets were compared to the last record: they were equal, or what differed was
    counted."""
    only_here: int = 0
    """Records only we held when that was counted."""
    only_there: int = 0
    """Records only the peer held then."""
    here: RecordIds = ()
    """Ids of the first records that only we held."""


@dataclass(frozen=True, kw_only=True)
class RecordView:
    """What a header tells of a record."""

    id: bytes
    author: bytes
    kind: int
    at_ms: int
    """Its clock, Unix milliseconds."""


SyncResult: TypeAlias = PeerSync
"""What `Replication.sync_now` found, a group and peer each."""
