"""Carrying erase records out, at once or after the time in which an admin's can be undone.

Theory of operation
-------------------
An author's erase record has its own records' content gone as soon as it is known. An admin may do
the same to the records of members that rank below it, and such a word can be a hostile one: so what
it names is hidden at once and goes 24 hours after the record came *here*. By our clock, since the
record's own time says what its author likes. In these hours a limit that does not keep the record
(`covey group remove --keep`) undoes it, and all it hid is shown again. Afterwards it is carried
out, for good, also on records of these ids that come later: nothing brings them back.

Hiding is a matter of this machine's clock, so it must not change the set that replicas compare: a
hidden record is void for everything that reads, and stays in the set. A row of `hold` says so, and
another one when the time of an erase record is over. The row comes first, then the record is made
void: a crash between the two is made up for at the start, which goes through all erase records.
Source: docs/specs/record.md s.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2p.replication.again import MAX_SEQ
from p2p.replication.erasures import confirm, unconfirmed
from p2p.replication.groups import HOLD_HIDDEN, HOLD_WINDOW
from p2p.replication.ops import ERASE_MAX, Erase, Kind
from p2p.replication.record import (
    LANE_CONTROL,
    STATE_LIVE,
    STATE_SEALED,
    decode_header_untrusted,
    is_authority,
    lane_of,
)
from p2p.replication.shares import payload_of, record_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.env import Env
    from p2p.replication.events import Emit
    from p2p.replication.groups import Group
    from p2p.replication.ops import Payload
    from p2p.replication.record import Record
    from p2p.replication.store import LocalRow, RecordStore

WINDOW_MS: Final = 24 * 3_600_000
"""Between an admin's erase record coming here and its effect. Guess: time to notice and object."""

CONFIRMED_AT_A_TIME: Final = 256
"""Erase records looked at for confirming at one upkeep."""

WALK_BYTES: Final = 64 * 1024
"""Of an author's control log read at one upkeep to look for erase records beyond its share."""

_SHOWN: Final = frozenset({STATE_LIVE, STATE_SEALED})
"""States of what can be hidden: what is void for another reason is in no set."""

_BEARING: Final = frozenset({Kind.ERASE, Kind.FORK_PROOF})
"""Kinds beside the A ops that can change which erase records count."""


class Erasing:
    """Erase records of all groups, carried out here.

    Args:
        me: this device.
        store: records.
        env: clock.
        emit: events.
    """

    def __init__(self, me: bytes, store: RecordStore, env: Env, emit: Emit) -> None:
        self._me = me
        self._store = store
        self._env = env
        self._emit = emit

    async def settle_all(self, group: Group, targets: Sequence[bytes]) -> int:
        """As `settle`, with what is due or saved by now."""
        return await self.settle(group, [*targets, *await self.look_at_windows(group)])

    async def settle(self, group: Group, targets: Sequence[bytes]) -> int:
        """Carry out erase records about data that is here; how many records lost their content.

        Args:
            group: whose lock the caller holds.
            targets: ids that erase records name; those not here wait for their header.
        """
        done = 0
        for at in range(0, len(targets), ERASE_MAX):
            done += await self._settle_part(group, targets[at : at + ERASE_MAX])
        if done:
            group.unpublished_erasures = True  # what we derived from it went with it
            self._emit("erasure.progress", {"group": group.id, "records": done})
        return done

    async def _settle_part(self, group: Group, part: Sequence[bytes]) -> int:
        erase, hide = [], []
        for row in await self._store.fetch(part, bodies=False):
            header = decode_header_untrusted(row.header)
            if header.group != group.id or lane_of(header.kind) == LANE_CONTROL:
                continue  # another group's author said nothing in this one
            erasure = group.erasure_of(row.id, header.author)
            if erasure is not None:
                erase.append((row.id, erasure.id, erasure.head.hlc))
            elif (
                row.state in _SHOWN
                and group.standing.live(header, row.id)
                and group.announced_erasure_of(row.id, header.author) is not None
            ):
                hide.append(row.id)
        await self._hide(group, hide)
        if not erase:
            return 0
        done = await self._store.settle(group.id, erase=erase)
        group.hidden.difference_update(ident for ident, _, _ in erase)
        return done

    async def _hide(self, group: Group, ids: Sequence[bytes]) -> None:
        fresh = [ident for ident in ids if ident not in group.hidden]
        if fresh:
            rows = [_row(group, ident, HOLD_HIDDEN, 0) for ident in fresh]
            await self._store.admit(group.id, [], rows)
            group.hidden.update(fresh)
        if ids and await self._store.settle(group.id, void=ids):
            self._emit("erasure.announced", {"group": group.id, "records": len(ids)})

    async def follow(self, group: Group, records: Sequence[Record]) -> int:
        """Carry out what new control records ask for, and show again what they saved."""
        named = [
            ident
            for record in records
            if record.id in group.erase_records
            for ident in group.erase_records[record.id].targets
        ]
        if any(is_authority(record.kind) or record.kind in _BEARING for record in records):
            return await self.settle_all(group, named)
        return await self.settle(group, named)

    async def look_at_windows(self, group: Group) -> list[bytes]:
        """Begin and end the times of admins' erase records; ids that go now or were saved.

        What was saved is shown again before this returns.
        """
        now_ms = self._env.wall_ms()
        rows: list[LocalRow] = []
        due: list[bytes] = []
        for ident, record in group.erase_records.items():
            until_ms = group.windows.get(ident)
            if until_ms == 0:
                continue
            if not group.standing.admin_at(record.head):
                if until_ms is not None:
                    del group.windows[ident]
                    rows.append(("hold-", (ident,)))
            elif until_ms is None:
                group.windows[ident] = now_ms + WINDOW_MS
                rows.append(_row(group, ident, HOLD_WINDOW, group.windows[ident]))
            elif until_ms <= now_ms:
                group.windows[ident] = 0
                rows.append(_row(group, ident, HOLD_WINDOW, 0))
                due += record.targets
        if rows:
            await self._store.admit(group.id, [], rows)
        # Each record hidden is looked at again when that can have changed, not at every upkeep.
        if group.hidden and group.hidden_under is not group.standing:
            await self._show_saved(group)
            group.hidden_under = group.standing
        return due

    async def _show_saved(self, group: Group) -> None:
        """Show what no erase record that counts names any more."""
        hidden = sorted(group.hidden)
        for at in range(0, len(hidden), ERASE_MAX):
            part = hidden[at : at + ERASE_MAX]
            saved, gone = [], []
            for row in await self._store.fetch(part, bodies=False):
                header = decode_header_untrusted(row.header)
                if not group.standing.live(header, row.id):
                    gone.append(row.id)
                elif (
                    group.erasure_of(row.id, header.author) is None
                    and group.announced_erasure_of(row.id, header.author) is None
                ):
                    saved.append(row.id)
            await self._let_go(group, saved, gone)

    async def _let_go(self, group: Group, saved: Sequence[bytes], gone: Sequence[bytes]) -> None:
        """Take the marks off: of what is shown again, and of what is void for other reasons."""
        both = [*saved, *gone]
        if not both:
            return
        await self._store.settle(group.id, revive=both)
        await self._store.admit(group.id, [], [("hold-", (ident,)) for ident in both])
        group.hidden.difference_update(both)
        if gone:
            await self._store.settle(group.id, void=gone)
        if saved:
            self._emit("erasure.undone", {"group": group.id, "records": len(saved)})

    async def walk(self, group: Group) -> int:
        """Carry out a piece of what authors want erased beyond their share of the index.

        Their own records only, and a piece of each author's log at a call; how many lost their
        content.
        """
        done = 0
        logs = sorted(log.key for log in await self._store.logs(group.id) if log.key[3] == 0)
        for author, place in sorted(group.erase_index.left_out.items()):
            own = [key for key in logs if key[1] == author]
            here = next((key for key in own if (key[2], MAX_SEQ) > place), None)
            if here is None:
                group.erase_index.left_out[author] = (0, 0)
                continue
            first = place[1] + 1 if here[2] == place[0] else 1
            rows = await self._store.tail(here, first, MAX_SEQ, WALK_BYTES)
            group.erase_index.left_out[author] = (here[2], MAX_SEQ)
            for row in rows:
                record = record_of(row)
                group.erase_index.left_out[author] = (here[2], record.seq)
                if record.kind == Kind.ERASE and record.id not in group.erase_records:
                    done += await self._carry_out(group, record)
        if done:
            self._emit("erasure.progress", {"group": group.id, "records": done})
        return done

    async def _carry_out(self, group: Group, record: Record) -> int:
        payload = payload_of(record)
        if not isinstance(payload, Erase) or not group.standing.live(record.head, record.id):
            return 0
        rows = await self._store.fetch(payload.ids, bodies=False)
        headers = [(row.id, decode_header_untrusted(row.header)) for row in rows]
        named = [
            (ident, record.id, record.hlc)
            for ident, header in headers
            if header.author == record.author and header.group == group.id
        ]
        return await self._store.settle(group.id, erase=named) if named else 0

    # --- our own words --------------------------------------------------------------------------

    async def unpublished(self, group: Group) -> list[tuple[Kind, Payload]]:
        """Erase records for what of ours was erased here and no living record of ours says so."""
        if not group.unpublished_erasures:
            return []
        group.unpublished_erasures = False
        ids = [
            ident
            for ident in await self._store.erased(group.id, self._me)
            if group.erasure_of(ident, self._me) is None
        ]
        return [
            (Kind.ERASE, Erase(tuple(ids[at : at + ERASE_MAX]), 0))
            for at in range(0, len(ids), ERASE_MAX)
        ]

    async def confirmations(self, group: Group) -> list[tuple[Kind, Payload]]:
        """Records that say which erase records were carried out here."""
        due = unconfirmed(group, self._me)
        # A few at a time, and round: those without effect stay unconfirmed for ever, and somebody
        # who writes many of them must not keep us from confirming the others.
        start = group.confirmed_up_to if group.confirmed_up_to < len(due) else 0
        part = due[start : start + CONFIRMED_AT_A_TIME]
        gone: dict[bytes, int] = {}
        for ident in part:
            bodies = await self._carried_out(group, ident)
            if bodies is not None:
                gone[ident] = bodies
        group.confirmed_up_to = start + len(part) - len(gone)
        return confirm(gone)

    async def _carried_out(self, group: Group, ident: bytes) -> int | None:
        """How many records an erase record left without content here; None: it is not done."""
        record = group.erase_records[ident]
        rows = await self._store.fetch(record.targets, bodies=True)
        if any(row.envelope is not None for row in rows):
            return None  # not yet, or never: it has no effect here
        own = [decode_header_untrusted(row.header).author == record.head.author for row in rows]
        told_of_all = len(own) == len(record.targets) and all(own)
        # Before its time is over a body that it names would be taken, if hidden.
        return None if group.windows.get(ident) and not told_of_all else len(rows)


def _row(group: Group, ident: bytes, reason: str, due_ms: int) -> LocalRow:
    return ("hold", (ident, group.id, reason, due_ms, b""))
