"""Signing anew what of ours became void through no fault of its content.

An honest device forks its log when it was restored from an old image, and writes on for a while
after a removal that it has not heard of. What it wrote so is worth keeping: it is sealed and signed
once more, at the end of the log in force. That takes many transactions, and a crash between two
must neither lose the rest nor write the first part twice; so how far it has come is a row of
`hold`, written with each part. Source: docs/specs/sync.md s.7.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from p2p.replication.groups import HOLD_AGAIN
from p2p.replication.ops import Kind, Role
from p2p.replication.record import LANE_DATA
from p2p.replication.sealing import ControlDraft
from p2p.replication.shares import record_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.replication.groups import Group
    from p2p.replication.store import LocalRow, LogKey, RecordStore, Stored

PART_BYTES: Final = 256 * 1024
"""Records read at once and signed anew in one transaction."""

MAX_SEQ: Final = 2**63 - 1
DOMAIN_AGAIN: Final = b"covey/again/1\0"


class Again:
    """What of our logs is to be signed anew, and how far that has come.

    Args:
        me: this device.
        store: records and local rows.
        open_row: the plain body of a stored record, None if it does not open.
    """

    def __init__(
        self, me: bytes, store: RecordStore, open_row: Callable[[Stored], bytes | None]
    ) -> None:
        self._me = me
        self._store = store
        self._open_row = open_row

    async def plan(self, group: Group, log: LogKey, first: int, last: int = MAX_SEQ) -> None:
        """Remember that places of a log of ours are to be signed anew; done by `go_on`.

        Args:
            group: whose lock the caller holds.
            log: a data log of ours; nothing is remembered of another.
            first: lowest place.
            last: highest place.
        """
        if log[1] == self._me and log[3] == LANE_DATA:
            await self._store.admit(group.id, [], [_row(log, first, last)])
            group.again = True

    async def go_on(self, group: Group) -> None:
        """Sign anew what is planned, while we may write; the caller holds the group's lock."""
        if not group.again or (group.role(self._me) or Role.RELAY) < Role.WRITE:
            return
        for _, (_, _, reason, first, packed) in await self._store.local("hold", group.id):
            if reason == HOLD_AGAIN:
                assert isinstance(first, int), "we wrote it"
                assert isinstance(packed, bytes), "we wrote it"
                incarnation, last = msgspec.msgpack.decode(packed, type=tuple[int, int])
                await self._sign(group, (group.id, self._me, incarnation, LANE_DATA), first, last)
        group.again = False

    async def _sign(self, group: Group, log: LogKey, first: int, last: int) -> None:
        while rows := await self._store.tail(log, first, last, PART_BYTES):
            drafts = []
            for row in rows:
                record = record_of(row)
                first = record.seq + 1
                plain = self._open_row(row)
                # Not shared values: signed anew they would count twice, or beat what came since.
                if plain is not None and record.kind != Kind.STATE:
                    drafts.append(
                        ControlDraft(record.kind, plain, record.key_tag, record.supersedes)
                    )
            await self._store.append(group.id, drafts, None, [_row(log, first, last)])
        await self._store.admit(group.id, [], [("hold-", (_id(log, last),))])


def _id(log: LogKey, last: int) -> bytes:
    group, author, incarnation, lane = log
    place = incarnation.to_bytes(4, "big") + bytes([lane]) + last.to_bytes(8, "big")
    return hashlib.sha256(DOMAIN_AGAIN + group + author + place).digest()


def _row(log: LogKey, first: int, last: int) -> LocalRow:
    packed = msgspec.msgpack.encode((log[2], last))
    return ("hold", (_id(log, last), log[0], HOLD_AGAIN, first, packed))
