"""Records for store tests: real headers and chains, a stand-in for signature and cipher.

A store never checks a signature, so these need no key; whatever checks one uses real records.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from p2p.replication.record import (
    STATE_LIVE,
    Envelope,
    Header,
    Record,
    body_commit,
    encode_header,
    lane_of,
    record_id,
)

if TYPE_CHECKING:
    from p2p.replication.store import Draft, LogKey, Position

WALL_MS = 1_700_000_000_000


def digest(text: str) -> bytes:
    """32 bytes named by a text."""
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class PlainDraft:
    """A draft of plain values."""

    kind: int
    body: bytes
    key_tag: bytes | None = None
    supersedes: tuple[bytes, ...] = ()


def build(
    log: LogKey,
    seq: int,
    prev: bytes | None,
    hlc: int,
    body: bytes,
    *,
    kind: int = 32,
    epoch: bytes = bytes(16),
    auth: tuple[bytes, ...] = (),
    state: str = STATE_LIVE,
    key_tag: bytes | None = None,
    supersedes: tuple[bytes, ...] = (),
) -> Record:
    """A record of the given place; a data body is `plain`, its ciphertext the body reversed."""
    group, author, incarnation, lane = log
    assert lane == lane_of(kind)
    salt = hashlib.sha256(b"salt" + body + seq.to_bytes(8, "big")).digest()[:16]
    if lane == 0:
        envelope = Envelope(salt, None, None, body)
    else:
        envelope = Envelope(salt, epoch, bytes(60), body[::-1] + bytes(16))
    encoded = envelope.encode()
    head = Header(
        version=1,
        kind=kind,
        group=group,
        author=author,
        incarnation=incarnation,
        seq=seq,
        prev=prev,
        hlc=hlc,
        auth=auth or (group,),
        key_tag=key_tag,
        supersedes=tuple(sorted(supersedes)),
        body_commit=body_commit(encoded),
        body_size=len(encoded),
        flags=0,
    )
    header = encode_header(head)
    plain = body if lane == 1 else None
    return Record(
        record_id(header), head, header, bytes(64), envelope, author, plain=plain, state=state
    )


@dataclass
class Chain:
    """Writes one log, record after record."""

    group: bytes
    author: bytes
    incarnation: int = 1
    lane: int = 1
    seq: int = 0
    prev: bytes | None = None
    hlc: int = WALL_MS << 16
    records: list[Record] = field(default_factory=list)

    @property
    def log(self) -> LogKey:
        """The log's key."""
        return (self.group, self.author, self.incarnation, self.lane)

    def next(
        self,
        body: bytes = b"body",
        *,
        epoch: bytes = bytes(16),
        state: str = "live",
        kind: int | None = None,
        key_tag: bytes | None = None,
        supersedes: tuple[bytes, ...] = (),
    ) -> Record:
        """The next record of the log."""
        self.seq += 1
        self.hlc += 1 << 16
        record = build(
            self.log,
            self.seq,
            self.prev,
            self.hlc,
            body,
            kind=(32 if self.lane else 13) if kind is None else kind,
            epoch=epoch,
            state=state,
            key_tag=key_tag,
            supersedes=supersedes,
        )
        self.prev = record.id
        self.records.append(record)
        return record

    def many(self, count: int, label: str = "") -> list[Record]:
        """The next `count` records."""
        return [self.next(f"{label}{self.seq + 1}".encode()) for _ in range(count)]

    def fork(self) -> Chain:
        """A second pen that continues from the same place."""
        return replace(self, records=list(self.records))


class PlainSealer:
    """A `Sealer` for one device, without keys."""

    def __init__(self, me: bytes, incarnation: int = 1) -> None:
        self.me = me
        self.incarnation = incarnation
        self.fail_at: int | None = None
        """Raise when sealing the n-th draft from now, counted from 0."""

    def log(self, group: bytes, lane: int) -> LogKey:
        """Our own log."""
        return (group, self.me, self.incarnation, lane)

    def seal(self, draft: Draft, at: Position) -> Record:
        """Give the draft its place."""
        if self.fail_at is not None:
            self.fail_at -= 1
            if self.fail_at < 0:
                raise RuntimeError("the sealer was told to fail")
        hlc = max(at.hlc_min + 1, WALL_MS << 16)
        return build(
            at.log,
            at.seq,
            at.prev,
            hlc,
            draft.body,
            kind=draft.kind,
            key_tag=draft.key_tag,
            supersedes=tuple(draft.supersedes),
        )
