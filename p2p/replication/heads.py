"""Pure parts of set comparison: salts, tags, roots, heads, and what to ask for.

Two replicas first compare a root (a salted hash over all ids of a lane). When it differs they
compare where each log stands; what is above the own end of a log, or in a gap, is asked for. That
is usually the end. What heads cannot show, a different record at one place of a log, is a
*suspect* and looked for backwards (`p2p.replication.exchange`). Everything here is a function of
its arguments.
Source: docs/specs/sync.md s.3-5.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2p.replication.messages import HeadEntry, WantRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from p2p.replication.store import LogKey, LogState

DOMAIN_SALT: Final = b"covey/salt/1\0"
DOMAIN_TAG: Final = b"covey/tag/1\0"
DOMAIN_ROOT: Final = b"covey/root/1\0"
DOMAIN_RANGE: Final = b"covey/range/1\0"
DOMAIN_SHORT: Final = b"covey/short/1\0"

INITIATOR: Final = b"i"
RESPONDER: Final = b"r"

ITEM_BYTES: Final = 40
"""hlc big-endian u64 and id: one item of `IdIndex.packed`."""

NOT_COMPARED: Final = bytes(8)
"""Head of a log that ends in a fork: its prefix is settled by the fork proof."""

MAX_SEQ: Final = 2**63 - 1

BACKWARDS: Final = 64
"""Records asked for at once when looking for the first difference of a log."""


def session_salt(nonce_initiator: bytes, nonce_responder: bytes) -> bytes:
    """16 bytes both sides contribute to; from one nonce alone its side could prepare collisions."""
    return hashlib.sha256(DOMAIN_SALT + nonce_initiator + nonce_responder).digest()[:16]


def group_tag(salt: bytes, group: bytes) -> bytes:
    """16 bytes that name a group to those who know it and to nobody else."""
    return hashlib.sha256(DOMAIN_TAG + salt + group).digest()[:16]


def short_id(salt: bytes, value: bytes) -> bytes:
    """8 bytes standing for an id or an author's key within one session."""
    return hashlib.sha256(DOMAIN_SHORT + salt + value).digest()[:8]


def fingerprint(salt: bytes, packed: bytes) -> bytes:
    """16 bytes over all ids of an index, in its order.

    A hash over the ordered list, not a sum or XOR: sets with equal sums can be forged in
    milliseconds. Source: docs/specs/sync.md s.4.
    """
    count, rest = divmod(len(packed), ITEM_BYTES)
    if rest:
        raise ValueError(f"an index has whole items of {ITEM_BYTES} B, got {len(packed)} B")
    digest = hashlib.sha256(DOMAIN_RANGE + salt + count.to_bytes(8, "big"))
    digest.update(b"".join([packed[at + 8 : at + 40] for at in range(0, len(packed), ITEM_BYTES)]))
    return digest.digest()[:16]


def bound_root(salt: bytes, side: bytes, *fingerprints: bytes) -> bytes:
    """32 bytes that only the holder of the set can say for its own side: an echo is no proof."""
    return hashlib.sha256(DOMAIN_ROOT + salt + side + b"".join(fingerprints)).digest()


@dataclass(frozen=True)
class Summary:
    """What a root is made of: a fingerprint and a count for each lane."""

    control: bytes
    data: bytes
    control_count: int
    data_count: int


@dataclass(frozen=True)
class Place:
    """A log as this session names it."""

    author: bytes
    """Salted short form of the author's key."""
    incarnation: int
    lane: int


def place_of(salt: bytes, log: LogKey) -> Place:
    """How a log is named in this session."""
    return Place(short_id(salt, log[1]), log[2], log[3])


def usable_end(log: LogState) -> tuple[int, int]:
    """(contiguous, max) of the part of a log that counts: below its fork."""
    if log.fork_seq is None:
        return log.contiguous, log.max_seq
    return min(log.contiguous, log.fork_seq - 1), min(log.max_seq, log.fork_seq - 1)


def head_entries(salt: bytes, logs: Iterable[LogState], lane: int) -> list[HeadEntry]:
    """Entries for all logs of a lane, in a fixed order."""
    entries = []
    for log in sorted(logs, key=lambda log: log.key):
        if log.key[3] != lane:
            continue
        contiguous, top = usable_end(log)
        compare = log.fork_seq is None and contiguous > 0
        head = short_id(salt, log.head_id) if compare else NOT_COMPARED
        entries.append(HeadEntry(short_id(salt, log.key[1]), log.key[2], contiguous, top, head))
    return entries


def by_place(salt: bytes, logs: Iterable[LogState]) -> dict[Place, LogState]:
    """Our logs under their names of this session."""
    return {place_of(salt, log.key): log for log in logs}


def wanted_ranges(
    theirs: Sequence[HeadEntry],
    ours: Mapping[Place, LogState],
    lane: int,
    skip_gaps: frozenset[LogKey] = frozenset(),
    held: Mapping[Place, int] | None = None,
) -> list[WantRange]:
    """What the peer has and we lack, as far as heads show it.

    Args:
        theirs: the peer's heads of `lane`.
        ours: our logs by place.
        lane: 0 control, 1 data.
        skip_gaps: logs whose gap this peer failed to fill within the hour.
        held: lowest seq of a log that waits in quarantine: what is above it is later still.
    """
    ranges = []
    for entry in theirs:
        place = Place(entry.author, entry.incarnation, lane)
        log = ours.get(place)
        end = min(entry.max_seq, (held or {}).get(place, MAX_SEQ + 1) - 1)
        if log is None:
            if end:
                ranges.append(WantRange(entry.author, entry.incarnation, lane, 1, end))
            continue
        contiguous, top = usable_end(log)
        if log.fork_seq is not None:
            end = min(end, log.fork_seq - 1)
        gap = contiguous < top and log.key not in skip_gaps
        first = contiguous + 1 if gap else top + 1
        if first <= end:
            ranges.append(WantRange(entry.author, entry.incarnation, lane, first, end))
    return ranges


def missing_count(ranges: Iterable[WantRange]) -> int:
    """Records the ranges cover: an upper bound of what we lack."""
    return sum(r.last - r.first + 1 for r in ranges)


def compared_places(
    theirs: Sequence[HeadEntry], ours: Mapping[Place, LogState], lane: int
) -> list[tuple[LogState, HeadEntry]]:
    """Logs whose chain both sides have up to some seq: one id there shows if it is one chain.

    The id to compare is ours at `entry.contiguous`; equal ids there mean equal history below.
    """
    pairs = []
    for entry in theirs:
        log = ours.get(Place(entry.author, entry.incarnation, lane))
        if log is None or log.fork_seq is not None or entry.head == NOT_COMPARED:
            continue
        if 0 < entry.contiguous <= log.contiguous:
            pairs.append((log, entry))
    return pairs


def gap_suspects(
    theirs: Sequence[HeadEntry], ours: Mapping[Place, LogState], lane: int
) -> list[tuple[LogKey, int, int]]:
    """Logs where both sides hold records above a gap: no head speaks for those.

    Returns:
        (log, first, last) to fetch and compare when the roots differ after the tails.
    """
    found = []
    for entry in theirs:
        log = ours.get(Place(entry.author, entry.incarnation, lane))
        if log is None or log.fork_seq is not None:
            continue
        first = min(log.contiguous, entry.contiguous) + 1
        last = min(log.max_seq, entry.max_seq)
        above_gap = log.max_seq > log.contiguous or entry.max_seq > entry.contiguous
        if above_gap and first <= last:
            found.append((log.key, first, last))
    return found


def confirms(salt: bytes, theirs: Sequence[HeadEntry], log: LogState) -> bool:
    """Whether the peer's heads show that it holds all of this log of ours, and no more.

    Of more it would have to show the records: then our database is an old copy.
    """
    place = place_of(salt, log.key)
    head = short_id(salt, log.head_id)
    return any(
        (entry.author, entry.incarnation) == (place.author, place.incarnation)
        and (entry.contiguous, entry.head) == (log.contiguous, head)
        for entry in theirs
    )
