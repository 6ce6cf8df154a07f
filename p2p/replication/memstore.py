"""A `RecordStore` of plain dictionaries: for simulations, and the model the real store is held to.

What must survive a restart lies in a `MemDisk`; a new `MemStore` over the same disk is the
restarted node. Calls are atomic because nothing in them awaits. Source: p2p/replication/store.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2p.replication.groups import HOLD_HIDDEN
from p2p.replication.ops import Kind
from p2p.replication.record import (
    LANE_CONTROL,
    STATE_LIVE,
    STATE_SEALED,
    STATE_STUB,
    STATE_VOID,
)
from p2p.replication.state import KIND_STATE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from p2p.replication.store import (
        CellRow,
        Draft,
        Envelope,
        LocalRow,
        LogKey,
        Receipt,
        Sealer,
        Verified,
    )

LOCAL_KEY_COLUMNS: Final[Mapping[str, int]] = {
    "grp": 1,
    "secret": 3,
    "epoch": 2,
    "hold": 1,
    "peer": 2,
    "device": 1,
}
"""How many leading columns are a local row's key."""

_GROUP_COLUMN: Final[Mapping[str, int]] = {
    "grp": 0,
    "secret": 0,
    "epoch": 0,
    "hold": 1,
    "peer": 0,
    "mark": 0,
}

NO_HEAD: Final = bytes(32)


@dataclass(frozen=True)
class MemPosition:
    """Where a draft will stand."""

    log: LogKey
    seq: int
    prev: bytes | None
    hlc_min: int


@dataclass(frozen=True)
class MemVerdict:
    """What became of one record."""

    id: bytes
    outcome: str
    other: bytes | None = None


@dataclass(frozen=True)
class MemIndex:
    """An immutable snapshot of ids."""

    packed: bytes

    def __len__(self) -> int:
        return len(self.packed) // 40


@dataclass(frozen=True)
class MemLogState:
    """Where a log stands."""

    key: LogKey
    contiguous: int
    max_seq: int
    head_id: bytes
    head_hlc: int
    fork_seq: int | None


@dataclass
class Row:
    """A record on the disk; satisfies `Stored`."""

    n: int
    record: Verified
    state: str
    envelope: Envelope | None
    plain: bytes | None
    owner: bytes
    relation: str

    @property
    def id(self) -> bytes:
        """Record id."""
        return self.record.id

    @property
    def header(self) -> bytes:
        """Signed bytes."""
        return self.record.header

    @property
    def signature(self) -> bytes:
        """Of the header."""
        return self.record.signature

    def size_bytes(self) -> int:
        """Wire size, near enough for a limit."""
        return len(self.header) + 100 + (0 if self.envelope is None else len(self.envelope.ct) + 96)


@dataclass(frozen=True)
class MemCellRow:
    """A record of a state cell."""

    stored: Row
    superseded: bool


@dataclass
class MemLog:
    """Seq to id of one log."""

    ids: dict[int, bytes] = field(default_factory=dict)
    contiguous: int = 0
    max_seq: int = 0
    fork_seq: int | None = None


@dataclass
class MemDisk:
    """What survives a restart."""

    rows: dict[bytes, Row] = field(default_factory=dict)
    logs: dict[LogKey, MemLog] = field(default_factory=dict)
    local: dict[tuple[str, tuple[bytes | str | int | None, ...]], LocalRow] = field(
        default_factory=dict
    )
    receipts: dict[bytes, bytes] = field(default_factory=dict)
    erased: set[bytes] = field(default_factory=set)
    forks: list[tuple[LogKey, int, bytes, bytes]] = field(default_factory=list)
    n: int = 0


def _log_of(record: Verified) -> LogKey:
    return record.group, record.author, record.incarnation, record.lane


class MemStore:
    """Records in memory.

    Args:
        sealer: seals what `append` is given.
        disk: where to keep things; a new empty one by default.
    """

    def __init__(self, sealer: Sealer, disk: MemDisk | None = None) -> None:
        self.disk = disk if disk is not None else MemDisk()
        self._sealer = sealer
        self._on_commit: list[Callable[[bytes, Sequence[bytes]], None]] = []
        self._on_turn: list[Callable[[bytes, Sequence[bytes]], None]] = []
        self._turned: list[bytes] = []
        """State records that turned in the present call."""
        self._indexes: dict[tuple[bytes, int], MemIndex] = {}
        """Until something changes what counts."""

    def on_commit(self, fn: Callable[[bytes, Sequence[bytes]], None]) -> None:
        """Call `fn(group, ids)` after each commit that stored records."""
        self._on_commit.append(fn)

    def on_turn(self, fn: Callable[[bytes, Sequence[bytes]], None]) -> None:
        """Call `fn(group, ids)` after each commit in which state records that were here turned."""
        self._on_turn.append(fn)

    async def append(
        self,
        group: bytes,
        drafts: Sequence[Draft],
        receipt: Receipt | None = None,
        local: Sequence[LocalRow] = (),
    ) -> Sequence[bytes]:
        """Seal the drafts at the ends of our own logs, all or none."""
        sealed: list[Verified] = []
        ends: dict[LogKey, tuple[int, bytes | None, int]] = {}
        for draft in drafts:
            log = self._sealer.log(group, 0 if draft.kind < 32 else 1)
            seq, prev, hlc = ends.get(log) or self._end(log)
            record = self._sealer.seal(draft, MemPosition(log, seq + 1, prev, hlc))
            ends[log] = (record.seq, record.id, record.hlc)
            sealed.append(record)
        for record in sealed:
            self._put(record)
        ids = [record.id for record in sealed]
        if receipt is not None:
            self.disk.receipts[receipt.key] = receipt.encode(ids)
        self._put_local(local)
        self._committed(group, ids)
        return ids

    async def compose(
        self,
        group: bytes,
        tag: bytes,
        make: Callable[[Sequence[CellRow]], Sequence[Draft]],
        receipt: Receipt | None = None,
        known: Container[bytes] = (),  # noqa: ARG002 - reading costs nothing here
    ) -> Sequence[bytes]:
        """Append what `make` answers to a state cell's records."""
        return await self.append(group, make(await self.cell(group, tag)), receipt)

    async def cell(
        self,
        group: bytes,
        tag: bytes,
        *,
        whole: bool = False,
        known: Container[bytes] = (),  # noqa: ARG002 - reading costs nothing here
    ) -> Sequence[MemCellRow]:
        """The live records of a state cell, by order of arrival."""
        rows = [row for row in self._state_rows(group) if row.record.key_tag == tag]
        if whole:
            return [MemCellRow(row, superseded=False) for row in rows]
        gone = {target for row in rows for target in row.record.supersedes}
        newest: Counter[LogKey] = Counter()
        for row in rows:
            log = _log_of(row.record)
            newest[log] = max(newest[log], row.record.seq)
        return [
            MemCellRow(row, row.id in gone)
            for row in rows
            if row.id not in gone or row.record.seq == newest[_log_of(row.record)]
        ]

    async def cell_tags(self, group: bytes) -> Sequence[tuple[bytes, bytes]]:
        """(tag, id of its first record) of each state cell."""
        found: dict[bytes, bytes] = {}
        for row in self._state_rows(group):
            assert row.record.key_tag is not None, "chosen by it"
            found.setdefault(row.record.key_tag, row.id)
        return sorted(found.items())

    async def state_among(self, ids: Sequence[bytes]) -> Sequence[bytes]:
        """Those of the ids that are state records."""
        rows = self.disk.rows
        return [i for i in ids if i in rows and rows[i].record.kind == KIND_STATE]

    def _state_rows(self, group: bytes) -> list[Row]:
        return [
            row
            for row in self.disk.rows.values()
            if row.record.group == group
            and row.record.kind == KIND_STATE
            and row.record.key_tag is not None
            and row.state == STATE_LIVE
            and row.envelope is not None
        ]

    async def admit(
        self, group: bytes, batch: Sequence[Verified], local: Sequence[LocalRow] = ()
    ) -> Sequence[MemVerdict]:
        """Store verified records; a verdict each, in order."""
        verdicts = [self._admit_one(record) for record in batch]
        self._put_local(local)
        self._committed(
            group, [v.id for v in verdicts if v.outcome in {"stored", "body", "erased"}]
        )
        return verdicts

    def _admit_one(self, record: Verified) -> MemVerdict:
        row = self.disk.rows.get(record.id)
        if row is not None:
            gone = row.state == STATE_STUB or record.id in self.disk.erased
            if row.envelope is None and record.envelope is not None and not gone:
                row.envelope, row.plain = record.envelope, record.plain
                row.state = record.state
                return MemVerdict(record.id, "body")
            return MemVerdict(record.id, "duplicate")
        other = self._log(record).ids.get(record.seq)
        if other is not None:
            return MemVerdict(record.id, "fork", other)
        self._put(record)
        if record.id in self.disk.erased:
            self._strip(self.disk.rows[record.id])
            return MemVerdict(record.id, "erased")
        return MemVerdict(record.id, "stored")

    def _strip(self, row: Row) -> None:
        """Leave a stub: the header."""
        row.envelope = row.plain = None
        if row.state != STATE_VOID:
            row.state = STATE_STUB

    async def control(self, group: bytes, after: int = 0) -> Sequence[Row]:
        """Control records in order of arrival."""
        return [
            row
            for row in self.disk.rows.values()
            if row.n > after and row.record.group == group and row.record.lane == LANE_CONTROL
        ]

    async def logs(self, group: bytes) -> Sequence[MemLogState]:
        """All logs of a group, by key."""
        return [self._state(key) for key in sorted(self.disk.logs) if key[0] == group]

    async def counts(self, group: bytes) -> Mapping[bytes, int]:
        """Records that are here, by author."""
        return Counter(
            row.record.author for row in self.disk.rows.values() if row.record.group == group
        )

    async def index(self, group: bytes, lane: int) -> MemIndex:
        """The ids that count in set comparison, by (hlc, id)."""
        return self.index_now(group, lane)

    def index_now(self, group: bytes, lane: int) -> MemIndex:
        """As `index`, for whoever cannot await."""
        found = self._indexes.get((group, lane))
        if found is None:
            found = self._indexes[group, lane] = self._make_index(group, lane)
        return found

    def _make_index(self, group: bytes, lane: int) -> MemIndex:
        items = sorted(
            row.record.hlc.to_bytes(8, "big") + row.id
            for row in self.disk.rows.values()
            if row.record.group == group and row.record.lane == lane and self._counts(row)
        )
        return MemIndex(b"".join(items))

    def _counts(self, row: Row) -> bool:
        fork = self._log(row.record).fork_seq
        if fork is not None and row.record.seq >= fork:
            return False
        if row.record.lane == LANE_CONTROL or row.state != STATE_VOID:
            return True
        return self._hidden(row.id)

    def _hidden(self, record_id: bytes) -> bool:
        found = self.disk.local.get(("hold", (record_id,)))
        return found is not None and found[1][2] == HOLD_HIDDEN

    async def known(self, ids: Sequence[bytes]) -> Mapping[bytes, str]:
        """State of those that are here."""
        found: dict[bytes, str] = {}
        for record_id in ids:
            row = self.disk.rows.get(record_id)
            if row is not None:
                found[record_id] = row.state
            elif record_id in self.disk.erased:
                found[record_id] = "erased"
            elif ("hold", (record_id,)) in self.disk.local:
                found[record_id] = "held"
        return found

    async def tail(self, log: LogKey, first: int, last: int, bytes_max: int) -> Sequence[Row]:
        """Records first..last of a log that are here, cut at `bytes_max`, at least one."""
        state = self.disk.logs.get(log)
        if state is None:
            return []
        rows: list[Row] = []
        size = 0
        # Over what is here, not over the numbers: a hostile log may begin at 2**62.
        for seq in sorted(seq for seq in state.ids if first <= seq <= last):
            row = self.disk.rows[state.ids[seq]]
            size += row.size_bytes()
            if rows and size > bytes_max:
                break
            rows.append(row)
        return rows

    async def fetch(self, ids: Sequence[bytes], *, bodies: bool) -> Sequence[Row]:  # noqa: ARG002
        """Those that are here, in the order asked; bodies cost nothing here."""
        return [self.disk.rows[i] for i in ids if i in self.disk.rows]

    async def at(self, log: LogKey, seq: int) -> Row | None:
        """The record at one place of a log."""
        state = self.disk.logs.get(log)
        record_id = None if state is None else state.ids.get(seq)
        return None if record_id is None else self.disk.rows[record_id]

    async def settle(
        self,
        group: bytes,
        *,
        void: Sequence[bytes] = (),
        revive: Sequence[bytes] = (),
        fork: Sequence[tuple[LogKey, int, bytes, bytes]] = (),
        owners: Sequence[tuple[bytes, bytes, str]] = (),
        erase: Sequence[tuple[bytes, bytes, int]] = (),
    ) -> int:
        """Carry out what the authority fold decided; the number of records changed."""
        changed = 0
        for record_id in void:
            changed += self._set_void(record_id)
        for record_id in revive:
            changed += self._revive(record_id)
        for log, seq, first, second in fork:
            changed += self._fork(log, seq)
            self.disk.forks.append((log, seq, first, second))
        for device, owner, relation in owners:
            for row in self.disk.rows.values():
                if row.record.author == device and (row.owner, row.relation) != (owner, relation):
                    row.owner, row.relation = owner, relation
                    changed += 1
        changed += sum(self._erase(record_id) for record_id, _, _ in erase)
        self._tell_turned(group)
        return changed

    def _erase(self, record_id: bytes) -> int:
        row = self.disk.rows.get(record_id)
        if record_id in self.disk.erased or (row and row.record.lane == LANE_CONTROL):
            return 0
        self.disk.erased.add(record_id)
        if row is not None and self._hidden(record_id):
            row.state = STATE_STUB
        self.disk.local.pop(("hold", (record_id,)), None)
        self._indexes.clear()
        if row is None:
            return 1
        self._strip(row)
        self._turn(row)
        return 1 + sum(self._erase(other) for other in self._signed_anew(row))

    def _signed_anew(self, row: Row) -> list[bytes]:
        """Entries of the same author that say the same: one names the other as its original."""
        record = row.record
        return [
            other.id
            for other in self.disk.rows.values()
            if other.record.kind == record.kind == Kind.ENTRY
            and (other.record.group, other.record.author) == (record.group, record.author)
            and (row.id in other.record.supersedes or other.id in record.supersedes)
        ]

    def _turn(self, row: Row) -> None:
        if row.record.kind == KIND_STATE:
            self._turned.append(row.id)

    def _tell_turned(self, group: bytes) -> None:
        turned, self._turned = self._turned, []
        if turned:
            for fn in self._on_turn:
                fn(group, turned)

    async def erased(self, group: bytes, author: bytes) -> Sequence[bytes]:
        """Ids of an author's records that were erased here, ascending."""
        return sorted(
            row.id
            for row in self.disk.rows.values()
            if row.id in self.disk.erased
            and (row.record.group, row.record.author) == (group, author)
        )

    def _set_void(self, record_id: bytes) -> int:
        self._indexes.clear()
        row = self.disk.rows.get(record_id)
        if row is None or row.state == STATE_VOID:
            return 0
        row.state = STATE_VOID
        self._turn(row)
        return 1

    def _revive(self, record_id: bytes) -> int:
        self._indexes.clear()
        row = self.disk.rows.get(record_id)
        if row is None or row.state != STATE_VOID:
            return 0
        fork = self._log(row.record).fork_seq
        if fork is not None and row.record.seq >= fork:
            return 0  # A fork is for ever.
        if record_id in self.disk.erased:
            row.state = STATE_STUB
            return 1
        opened = row.record.lane == LANE_CONTROL or row.plain is not None
        row.state = STATE_LIVE if opened else STATE_SEALED
        self._turn(row)
        return 1

    def _fork(self, log: LogKey, seq: int) -> int:
        self._indexes.clear()
        state = self.disk.logs.setdefault(log, MemLog())
        if state.fork_seq is not None and state.fork_seq <= seq:
            return 0
        state.fork_seq = seq
        return sum(self._set_void(i) for at, i in sorted(state.ids.items()) if at >= seq)

    async def unsealed(
        self,
        group: bytes,
        bodies: Sequence[tuple[bytes, bytes]],
    ) -> None:
        """Bodies whose key has come."""
        for record_id, plain in bodies:
            row = self.disk.rows.get(record_id)
            if row is None or row.envelope is None:
                continue
            row.plain = plain
            if row.state == STATE_SEALED:
                row.state = STATE_LIVE
                self._turn(row)
        self._tell_turned(group)

    async def sealed(self, group: bytes, epoch: bytes, limit: int) -> Sequence[Row]:
        """Records still waiting for `epoch`'s key, oldest first."""
        waiting = [
            row
            for row in self.disk.rows.values()
            if row.state == STATE_SEALED
            and row.record.group == group
            and row.envelope is not None
            and row.envelope.epoch == epoch
        ]
        return waiting[:limit]

    async def local(self, table: str, group: bytes | None = None) -> Sequence[LocalRow]:
        """Rows of a local table, by key."""
        rows = [row for (name, _), row in self.disk.local.items() if name == table]
        if group is None:
            return rows
        column = _GROUP_COLUMN[table]
        return [row for row in rows if row[1][column] == group]

    # --- inside -------------------------------------------------------------------------------

    def _log(self, record: Verified) -> MemLog:
        return self.disk.logs.setdefault(_log_of(record), MemLog())

    def _end(self, log: LogKey) -> tuple[int, bytes | None, int]:
        state = self.disk.logs.get(log)
        if state is None or not state.max_seq:
            return 0, None, 0
        row = self.disk.rows[state.ids[state.max_seq]]
        return state.max_seq, row.id, row.record.hlc

    def _put(self, record: Verified) -> None:
        self._indexes.clear()
        self.disk.n += 1
        self.disk.rows[record.id] = Row(
            self.disk.n,
            record,
            record.state,
            record.envelope,
            record.plain,
            record.owner,
            record.relation,
        )
        log = self._log(record)
        log.ids[record.seq] = record.id
        log.max_seq = max(log.max_seq, record.seq)
        while log.contiguous + 1 in log.ids:
            log.contiguous += 1

    def _put_local(self, rows: Sequence[LocalRow]) -> None:
        for table, columns in rows:
            name = table.removesuffix("-")
            key = columns[: LOCAL_KEY_COLUMNS[name]]
            if table.endswith("-"):
                self.disk.local.pop((name, key), None)
            else:
                self.disk.local[name, key] = (table, columns)

    def _committed(self, group: bytes, ids: Sequence[bytes]) -> None:
        if ids:
            for fn in self._on_commit:
                fn(group, ids)

    def _state(self, key: LogKey) -> MemLogState:
        log = self.disk.logs[key]
        head = log.ids.get(log.contiguous)
        hlc = 0 if head is None else self.disk.rows[head].record.hlc
        return MemLogState(key, log.contiguous, log.max_seq, head or NO_HEAD, hlc, log.fork_seq)
