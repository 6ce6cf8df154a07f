"""Records that wait for their time: dated too far ahead to be judged now.

They are kept as local rows and never let near our clock. Source: docs/specs/sync.md s.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.replication.groups import HOLD_SKEW, Held
from p2p.replication.record import decode_header_untrusted, decode_wire_untrusted, lane_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.replication.config import ReplicationConfig
    from p2p.replication.groups import Group
    from p2p.replication.store import LocalRow, LogKey, RecordStore


def held_of(row: LocalRow) -> Held:
    """Read a `hold` row of ours."""
    ident, _, _, due_ms, wire = row[1]
    assert isinstance(ident, bytes), "we wrote it"
    assert isinstance(due_ms, int), "we wrote it"
    assert isinstance(wire, bytes), "we wrote it"
    header = decode_header_untrusted(decode_wire_untrusted(wire).header)
    return Held(ident, header.author, due_ms, len(wire))


async def quarantine_of(store: RecordStore, group: Group) -> dict[bytes, Held]:
    """What waits in a group's quarantine, by id; read from the store once.

    Callers hold the group's turn and keep the answer in step with what they write. Reading and
    decoding all rows for each record that comes would cost the square of a flood.
    """
    if group.quarantine is None:
        rows = await store.local("hold", group.id)
        held = [held_of(row) for row in rows if row[1][2] == HOLD_SKEW]
        group.quarantine = {one.id: one for one in held}
    return group.quarantine


async def held_logs(store: RecordStore, group: bytes) -> dict[LogKey, int]:
    """Logs of a group with quarantined records, and the lowest seq of those."""
    lowest: dict[LogKey, int] = {}
    for _, columns in await store.local("hold", group):
        if columns[2] == HOLD_SKEW and isinstance(columns[4], bytes):
            header = decode_header_untrusted(decode_wire_untrusted(columns[4]).header)
            log = (group, header.author, header.incarnation, lane_of(header.kind))
            lowest[log] = min(header.seq, lowest.get(log, header.seq))
    return lowest


def make_room(
    held: Sequence[Held], newcomer: Held, config: ReplicationConfig
) -> tuple[bool, bytes | None]:
    """Whether a record may be held, and which one has to go for it.

    The one farthest in the future goes first: it is the last that could be of use.
    """
    if sum(1 for other in held if other.author == newcomer.author) >= config.quarantine_author_max:
        return False, None
    size = sum(other.size for other in held) + newcomer.size
    if len(held) < config.quarantine_records_max and size <= config.quarantine_bytes_max:
        return True, None
    farthest = max(held, key=lambda other: (other.due_ms, other.id), default=newcomer)
    if farthest.due_ms <= newcomer.due_ms:
        return False, None
    return True, farthest.id
