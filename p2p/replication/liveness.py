"""Which records count, brought in line with what the authority says now.

Records are stored in one transaction and what they void in others, for a log may be long. A crash
between the two would leave records of somebody who was taken out counting on this device for ever,
so operations that can take something away are stored together with a row of `hold`, and the row
goes when all is judged. A start that finds it judges the group once more.
Source: docs/specs/sync.md s.7.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from p2p.replication.groups import HOLD_JUDGE
from p2p.replication.ops import Kind
from p2p.replication.record import STATE_VOID, decode_header_untrusted, is_authority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from p2p.replication.erasing import Erasing
    from p2p.replication.groups import Group
    from p2p.replication.record import Record
    from p2p.replication.store import LocalRow, RecordStore

RESCAN_BYTES: Final = 256 * 1024
"""Records read at once when liveness is judged anew."""

DOMAIN_JUDGE: Final = b"covey/judge/1\0"

_UNSETTLING: Final = frozenset({Kind.LIMIT, Kind.INVITE_CLOSE})
"""Kinds that can take away what stood; data records are judged anew after one."""

_BEARING: Final = frozenset({Kind.FORK_PROOF, Kind.OWNER, Kind.OWNER_KEY})
"""Kinds beside the A ops that bear on records already here."""


def unjudged_rows(group: Group, records: Iterable[Record]) -> list[LocalRow]:
    """What is stored beside records that may change what other records count; none for others."""
    if not any(is_authority(record.kind) or record.kind in _BEARING for record in records):
        return []
    group.unjudged = True
    return [("hold", (_id(group), group.id, HOLD_JUDGE, 0, b""))]


def _id(group: Group) -> bytes:
    return hashlib.sha256(DOMAIN_JUDGE + group.id).digest()


class Liveness:
    """Judges the records of groups.

    Args:
        store: records.
        erasing: what becomes of revived records that were to be erased.
        checkpoint: lets other tasks run.
    """

    def __init__(
        self, store: RecordStore, erasing: Erasing, checkpoint: Callable[[], Awaitable[None]]
    ) -> None:
        self._store = store
        self._erasing = erasing
        self._checkpoint = checkpoint

    async def judge_anew(self, group: Group, records: Sequence[Record]) -> None:
        """Void what no longer counts and revive what counts again, if that can have changed."""
        if not group.founded:
            return
        standing = group.standing
        before, now = group.void_ops, standing.void_ops()
        fresh = {record.id for record in records}
        lost = any(member not in standing.members() for member in group.known_members)
        unsettled = any(record.kind in _UNSETTLING for record in records)
        group.void_ops = now
        if lost or unsettled or (before - now) or (now - before - fresh):
            # An erase record of ours may be cut off with what else we wrote: then it is said again.
            group.unpublished_erasures = True
            await self.rescan(group)
        else:
            void = [record.id for record in records if record.id in now]
            if void:
                await self._store.settle(group.id, void=void)

    async def judged(self, group: Group) -> None:
        """Note that all follow-up of the group's records is on disk."""
        if group.unjudged:
            await self._store.admit(group.id, [], [("hold-", (_id(group),))])
            group.unjudged = False

    async def rescan(self, group: Group) -> int:
        """Judge every record of the group against the standing; how many changed."""
        standing = group.standing
        changed = 0
        for log in await self._store.logs(group.id):
            first = 1
            while first <= log.max_seq:
                rows = await self._store.tail(log.key, first, log.max_seq, RESCAN_BYTES)
                if not rows:
                    break
                void, revive = [], []
                for row in rows:
                    header = decode_header_untrusted(row.header)
                    first = header.seq + 1
                    live = standing.live(header, row.id)
                    if live and row.state == STATE_VOID:
                        if row.id not in group.hidden:
                            revive.append(row.id)
                    elif not live and row.state != STATE_VOID:
                        void.append(row.id)
                if void or revive:
                    changed += await self._store.settle(group.id, void=void, revive=revive)
                    named = [ident for ident in revive if ident in group.erasures]
                    await self._erasing.settle(group, named)
                await self._checkpoint()
        return changed
