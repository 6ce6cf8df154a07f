"""Signing anew what of ours became void through no fault of its content.

An honest device forks its log when it was restored from an old image, and writes on for a while
after a removal or a demotion that it has not heard of. What it wrote so is worth keeping: once it
may write, it is sealed and signed once more, at the end of the log in force. That takes many
transactions, and a crash between two must neither lose the rest nor write the first part twice; so
how far it has come is a row of `hold`, written with each part.

A copy names its original in its header (`supersedes`), which says for ever, and to every member,
that the two are one. So nothing is copied twice, whatever is planned, and erasing the copy takes
the original along. Ids in bodies are opaque here: `readdress` puts those of copies in the place of
originals', lest a link or a parent named what counts nowhere. Source: docs/specs/sync.md s.7.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from p2p.replication.groups import HOLD_AGAIN, HOLD_CUT
from p2p.replication.ops import REASON_TAKEN_BACK, Kind, Role, encode_payload
from p2p.replication.record import LANE_DATA, STATE_VOID, decode_header_untrusted
from p2p.replication.sealing import ControlDraft

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from p2p.replication.groups import Group
    from p2p.replication.record import Header
    from p2p.replication.store import LocalRow, LogKey, RecordStore, Stored

PART_BYTES: Final = 256 * 1024
"""Records read at once and signed anew in one transaction."""

MAX_SEQ: Final = 2**63 - 1
DOMAIN_AGAIN: Final = b"covey/again/1\0"
DOMAIN_CUT: Final = b"covey/cut/1\0"

Readdress: TypeAlias = "Callable[[bytes, Mapping[bytes, bytes]], bytes]"
"""(plain body, id -> id in its place) -> the body that names those instead."""


def as_it_is(plain: bytes, moved: Mapping[bytes, bytes]) -> bytes:  # noqa: ARG001 - a hook
    """Bodies that name no records."""
    return plain


class Again:
    """What of our logs is to be signed anew, and how far that has come.

    Args:
        me: this device.
        store: records and local rows.
        open_row: the plain body of a stored record, None if it does not open.
        readdress: changes the ids that a body names.
    """

    def __init__(
        self,
        me: bytes,
        store: RecordStore,
        open_row: Callable[[Stored], bytes | None],
        readdress: Readdress = as_it_is,
    ) -> None:
        self._me = me
        self._store = store
        self._open_row = open_row
        self._readdress = readdress

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

    async def plan_cut(self, group: Group) -> None:
        """Plan for what we wrote before we heard of the limits on us, once for each set of them.

        Whichever way we heard: by the member that let us in again, by a session, or at a start.
        """
        limits = group.standing.limits_on(self._me) if group.founded else []
        if not limits:
            return
        said = b"".join(encode_payload(limit) for limit in limits)
        ident = hashlib.sha256(DOMAIN_CUT + group.id + hashlib.sha256(said).digest()).digest()
        if group.cut_planned == ident:
            return
        rows = await self._store.local("hold", group.id)
        if not any(row[1][0] == ident for row in rows):
            plans = [_row(log, 1, MAX_SEQ) for log in await self._own_logs(group)]
            plans.append(("hold", (ident, group.id, HOLD_CUT, 0, b"")))
            await self._store.admit(group.id, [], plans)
            group.again = True
        group.cut_planned = ident

    async def go_on(self, group: Group) -> None:
        """Sign anew what is planned, while we may write; the caller holds the group's lock."""
        if not group.again or (group.role(self._me) or Role.RELAY) < Role.WRITE:
            return
        plans = [
            (first, packed)
            for _, (_, _, reason, first, packed) in await self._store.local("hold", group.id)
            if reason == HOLD_AGAIN
        ]
        moved = await self._moved(group) if plans else {}
        for first, packed in plans:
            assert isinstance(first, int), "we wrote it"
            assert isinstance(packed, bytes), "we wrote it"
            incarnation, last = msgspec.msgpack.decode(packed, type=tuple[int, int])
            await self._sign(
                group, (group.id, self._me, incarnation, LANE_DATA), first, last, moved
            )
        group.again = False

    async def _own_logs(self, group: Group) -> list[LogKey]:
        logs = await self._store.logs(group.id)
        return [log.key for log in logs if log.key[1] == self._me and log.key[3] == LANE_DATA]

    async def _moved(self, group: Group) -> dict[bytes, bytes]:
        """Original -> its newest copy, of all that was signed anew before."""
        copies: dict[bytes, bytes] = {}
        for log in await self._own_logs(group):
            first = 1
            while rows := await self._store.tail(log, first, MAX_SEQ, PART_BYTES):
                for row in rows:
                    header = decode_header_untrusted(row.header)
                    first = header.seq + 1
                    if header.kind == Kind.ENTRY:
                        copies.update(dict.fromkeys(header.supersedes, row.id))
        return {original: _newest(copies, original) for original in copies}

    async def _sign(
        self, group: Group, log: LogKey, first: int, last: int, moved: dict[bytes, bytes]
    ) -> None:
        forks = {state.key: state.fork_seq for state in await self._store.logs(group.id)}
        fork = forks.get(log) or MAX_SEQ
        done = False
        while True:
            rows = await self._store.tail(log, first, last, PART_BYTES)
            if not rows and done:
                return
            if not rows:
                await self._store.admit(group.id, [], [("hold-", (_id(log, last),))])
                # What was sealed in the old log as it ended may have been on its way to the disk.
                done = True
                continue
            first = await self._sign_part(group, rows, (log, last, fork), moved)
            done = False

    async def _sign_part(
        self,
        group: Group,
        rows: Sequence[Stored],
        plan: tuple[LogKey, int, int],
        moved: dict[bytes, bytes],
    ) -> int:
        """Sign what of some rows is due; the place that comes after them."""
        log, last, fork = plan
        part: dict[bytes, ControlDraft] = {}
        after = 0
        for row in rows:
            header = decode_header_untrusted(row.header)
            after = header.seq + 1
            plain = self._open_row(row) if self._due(group, row, header, fork, moved) else None
            if plain is None:
                continue
            if part and self._readdress(plain, dict.fromkeys(part, bytes(32))) != plain:
                # It names one whose new id is known only when that is stored.
                await self._store_part(group, part, _row(log, header.seq, last), moved)
            names = (row.id,) if header.kind == Kind.ENTRY else header.supersedes
            body = self._readdress(plain, moved)
            part[row.id] = ControlDraft(header.kind, body, header.key_tag, names)
        if part:
            await self._store_part(group, part, _row(log, after, last), moved)
        return after

    async def _store_part(
        self,
        group: Group,
        part: dict[bytes, ControlDraft],
        progress: LocalRow,
        moved: dict[bytes, bytes],
    ) -> None:
        ids = await self._store.append(group.id, list(part.values()), None, [progress])
        moved.update(zip(part, ids, strict=True))
        part.clear()

    def _due(
        self, group: Group, row: Stored, header: Header, fork: int, moved: Mapping[bytes, bytes]
    ) -> bool:
        """Whether a record of ours is void without anybody having wanted that, and not copied."""
        # Not shared values: signed anew they would count twice, or beat what came since.
        if row.state != STATE_VOID or header.kind == Kind.STATE:
            return False
        if row.id in moved or row.id in group.hidden:
            return False
        cut = group.standing.cut_off(header)
        if any(limit.reason == REASON_TAKEN_BACK for limit in cut):
            return False
        return bool(cut) or header.seq >= fork


def _newest(copies: Mapping[bytes, bytes], ident: bytes) -> bytes:
    """The last of the copies of copies. Ends: a record names what was there before it."""
    while ident in copies:
        ident = copies[ident]
    return ident


def _id(log: LogKey, last: int) -> bytes:
    group, author, incarnation, lane = log
    place = incarnation.to_bytes(4, "big") + bytes([lane]) + last.to_bytes(8, "big")
    return hashlib.sha256(DOMAIN_AGAIN + group + author + place).digest()


def _row(log: LogKey, first: int, last: int) -> LocalRow:
    packed = msgspec.msgpack.encode((log[2], last))
    return ("hold", (_id(log, last), log[0], HOLD_AGAIN, first, packed))
