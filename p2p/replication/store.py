"""What replication needs of a store, as Protocols of plain bytes.

`memory.records.replica.Replica` has this shape without importing it, the simulators have another
implementation (`p2p.replication.memstore.MemStore`), and one conformance suite
(`tests/helpers/store_conformance.py`) runs on both. Ids, keys and groups are 32 raw bytes.

The path of every foreign record: `verify` (signature, structure), `admit` (policy), then
`RecordStore.admit` (one durable transaction that cannot refuse).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

LogKey: TypeAlias = tuple[bytes, bytes, int, int]
"""(group, author, incarnation, lane); lane 0 is control, 1 is data."""

LocalRow: TypeAlias = tuple[str, tuple[bytes | str | int | None, ...]]
"""A row that never leaves this node, written in the same transaction: (table, columns).

Tables and columns: `grp` (id, name, home 0|1, state text), `secret` (grp, purpose text, public,
private), `epoch` (grp, id 16, secret 64), `hold` (id, grp, reason text, due_ms, wire), `peer` (grp,
peer, at_ms, root), `device` (key, name, published 0|1, verified_ms). An existing row with the same
key (the leading columns: grp.id; secret.grp+purpose+public; epoch.grp+id; hold.id; peer.grp+peer;
device.key) is replaced. (table + "-", key columns) deletes.
"""


class Draft(Protocol):
    """A record before it has a place in a chain."""

    @property
    def kind(self) -> int:
        """Record kind; < 32 is the control lane."""
        ...

    @property
    def body(self) -> bytes:
        """Plain body of a data record, payload of a control record; at most 65,536 bytes."""
        ...

    @property
    def key_tag(self) -> bytes | None:
        """16 bytes for a state cell, else None."""
        ...

    @property
    def supersedes(self) -> Sequence[bytes]:
        """At most 8 ids, ascending."""
        ...


class Envelope(Protocol):
    """A record's detachable part; of a control record `epoch` and `wrap` are None, `ct` plain."""

    @property
    def salt(self) -> bytes:
        """16 bytes."""
        ...

    @property
    def epoch(self) -> bytes | None:
        """16 bytes: which epoch key wraps the data key."""
        ...

    @property
    def wrap(self) -> bytes | None:
        """60 bytes: nonce and sealed data key."""
        ...

    @property
    def ct(self) -> bytes:
        """Ciphertext, or the control payload."""
        ...


class Verified(Protocol):
    """A record whose signature and structure hold, with everything a store writes of it."""

    @property
    def id(self) -> bytes:
        """Record id."""
        ...

    @property
    def group(self) -> bytes:
        """The group id; of a genesis its own id."""
        ...

    @property
    def author(self) -> bytes:
        """Device key that signed."""
        ...

    @property
    def incarnation(self) -> int:
        """Which of the author's logs."""
        ...

    @property
    def lane(self) -> int:
        """0 control, 1 data."""
        ...

    @property
    def seq(self) -> int:
        """Place in the log, from 1."""
        ...

    @property
    def prev(self) -> bytes | None:
        """Id of the record at seq - 1; None at seq 1."""
        ...

    @property
    def hlc(self) -> int:
        """Hybrid logical clock."""
        ...

    @property
    def kind(self) -> int:
        """Record kind."""
        ...

    @property
    def key_tag(self) -> bytes | None:
        """16 bytes for a state cell, else None."""
        ...

    @property
    def supersedes(self) -> Sequence[bytes]:
        """Ids this record replaces."""
        ...

    @property
    def header(self) -> bytes:
        """Signed bytes, as received."""
        ...

    @property
    def signature(self) -> bytes:
        """64 bytes over the header."""
        ...

    @property
    def envelope(self) -> Envelope | None:
        """None when only the header is known."""
        ...

    @property
    def plain(self) -> bytes | None:
        """The opened body of a data record; None when the key is missing (state `sealed`)."""
        ...

    @property
    def state(self) -> str:
        """`live`, `sealed`, `void` or `stub`."""
        ...

    @property
    def owner(self) -> bytes:
        """Owner key of the author in this group, else the author."""
        ...

    @property
    def relation(self) -> str:
        """`own` (this device), `own_device`, `invited`, or `other`."""
        ...


class Position(Protocol):
    """Where in its chain a draft will stand."""

    @property
    def log(self) -> LogKey:
        """The log."""
        ...

    @property
    def seq(self) -> int:
        """The draft's place in it."""
        ...

    @property
    def prev(self) -> bytes | None:
        """Id of the record before it; None at seq 1."""
        ...

    @property
    def hlc_min(self) -> int:
        """The new record's hlc must be greater than this (prev's hlc, 0 for the first)."""
        ...


class Sealer(Protocol):
    """Turns drafts into signed records. Runs inside the writer's transaction: pure CPU, ~60 us."""

    def log(self, group: bytes, lane: int) -> LogKey:
        """Our own log in `group`, with the incarnation in force.

        Raises:
            KeyError: the group is unknown here.
        """
        ...

    def seal(self, draft: Draft, at: Position) -> Verified:
        """Encrypt, sign and date the draft; the caller stores the result or drops it."""
        ...


class Stored(Protocol):
    """A record as the store has it."""

    @property
    def id(self) -> bytes:
        """Record id."""
        ...

    @property
    def header(self) -> bytes:
        """Signed bytes, as received."""
        ...

    @property
    def signature(self) -> bytes:
        """64 bytes over the header."""
        ...

    @property
    def envelope(self) -> Envelope | None:
        """None when only the header is here."""
        ...

    @property
    def state(self) -> str:
        """`live`, `sealed`, `void` or `stub`."""
        ...

    @property
    def n(self) -> int:
        """Order of arrival, increasing; `control(g, after=n)` continues behind it."""
        ...


class CellRow(Protocol):
    """A record of a state cell."""

    @property
    def stored(self) -> Stored:
        """The record."""
        ...

    @property
    def superseded(self) -> bool:
        """Whether a record that counts, of the same cell, supersedes it."""
        ...


class LogState(Protocol):
    """Where a log stands here."""

    @property
    def key(self) -> LogKey:
        """Which log."""
        ...

    @property
    def contiguous(self) -> int:
        """Highest seq below which nothing is missing; 0 when seq 1 is."""
        ...

    @property
    def max_seq(self) -> int:
        """Highest seq held, gaps or not."""
        ...

    @property
    def head_id(self) -> bytes:
        """Id of the record at `contiguous`; 32 zero bytes when that is 0."""
        ...

    @property
    def head_hlc(self) -> int:
        """Its hlc; 0 when there is none."""
        ...

    @property
    def fork_seq(self) -> int | None:
        """From here up the log is void by a fork; None without one."""
        ...


class Verdict(Protocol):
    """What the store did with one record."""

    @property
    def id(self) -> bytes:
        """Record id."""
        ...

    @property
    def outcome(self) -> str:
        """`stored`, `duplicate`, `body` (a missing body was added), `fork`, or `erased`.

        `erased`: the id was erased here before the record came; its header was stored, as a stub.
        """
        ...

    @property
    def other(self) -> bytes | None:
        """With `fork`: the id already at this place of the log. The new record was not stored."""
        ...


class IdIndex(Protocol):
    """An immutable snapshot of a lane's live and stub ids, sorted by (hlc, id)."""

    def __len__(self) -> int: ...
    @property
    def packed(self) -> bytes:
        """40 bytes an item: hlc big-endian u64, id 32."""
        ...


class Receipt(Protocol):
    """Result of a mutating call, stored with its effect, so that a replay finds it."""

    @property
    def key(self) -> bytes:
        """What a replay of the call is recognised by."""
        ...

    def encode(self, ids: Sequence[bytes]) -> bytes:
        """The bytes to keep; runs in the writer's transaction."""
        ...


class RecordStore(Protocol):
    """Durable records. Every writing call returns after its transaction is on disk."""

    async def append(
        self,
        group: bytes,
        drafts: Sequence[Draft],
        receipt: Receipt | None = None,
        local: Sequence[LocalRow] = (),
    ) -> Sequence[bytes]:
        """Seal the drafts at the ends of our own logs, in order, in one transaction; their ids."""
        ...

    async def compose(
        self,
        group: bytes,
        tag: bytes,
        make: Callable[[Sequence[CellRow]], Sequence[Draft]],
        receipt: Receipt | None = None,
        known: Container[bytes] = (),
    ) -> Sequence[bytes]:
        """Append what `make` answers to a state cell's records, read in the same transaction.

        Of records that are `known` it gets the ids only: other writers wait meanwhile, so whoever
        changes a big cell reads it before. `make` is pure CPU and runs inside the transaction.
        What it raises is passed on, and nothing is stored.
        """
        ...

    async def cell(
        self, group: bytes, tag: bytes, *, whole: bool = False, known: Container[bytes] = ()
    ) -> Sequence[CellRow]:
        """The live records of a state cell.

        Args:
            group: its group.
            tag: `epoch.key_tag` of it.
            whole: all of them, `superseded` unset; else those that none of the cell supersedes, and
                of each log the newest.
            known: ids of records the caller has: they come without header and body.
        """
        ...

    async def cell_tags(self, group: bytes) -> Sequence[tuple[bytes, bytes]]:
        """(tag, id of one live record) of each state cell, by tag."""
        ...

    async def state_among(self, ids: Sequence[bytes]) -> Sequence[bytes]:
        """Those of the ids that are state records here."""
        ...

    async def admit(
        self, group: bytes, batch: Sequence[Verified], local: Sequence[LocalRow] = ()
    ) -> Sequence[Verdict]:
        """Store verified records (own, already sealed ones too); a verdict each, in order."""
        ...

    async def control(self, group: bytes, after: int = 0) -> Sequence[Stored]:
        """Control records in order of arrival, bodies included."""
        ...

    async def logs(self, group: bytes) -> Sequence[LogState]:
        """All logs of a group, both lanes."""
        ...

    async def counts(self, group: bytes) -> Mapping[bytes, int]:
        """Records that are here, by author: all logs and lanes.

        Not what the logs' places say: a log may begin at 2**62.
        """
        ...

    async def index(self, group: bytes, lane: int) -> IdIndex:
        """The ids that count in set comparison: not below a fork, void ones in lane 0 only."""
        ...

    async def known(self, ids: Sequence[bytes]) -> Mapping[bytes, str]:
        """State of those known: live, sealed, void, stub, held; `erased` without its header."""
        ...

    async def tail(self, log: LogKey, first: int, last: int, bytes_max: int) -> Sequence[Stored]:
        """Records first..last of a log that are here, cut at `bytes_max` (at least one)."""
        ...

    async def fetch(self, ids: Sequence[bytes], *, bodies: bool) -> Sequence[Stored]:
        """Those that are here, in the order asked."""
        ...

    async def at(self, log: LogKey, seq: int) -> Stored | None:
        """The record at one place of a log."""
        ...

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
        """Carry out what the authority fold decided; the number of records changed.

        Args:
            group: the group.
            void: records that no longer count (hidden from recall, kept).
            revive: records that count again.
            fork: (log, seq, id a, id b): the log is void from seq up, for ever.
            owners: (device, owner key, relation) that changed.
            erase: (id, id of the erase record, its hlc): the content of these data records goes,
                for ever, with what this device derived from it; the header stays as a stub, and
                no body is taken for the id again. One that is not here yet is remembered. A control
                record is left alone. Not undone by anything, and counted once.
        """
        ...

    async def erased(self, group: bytes, author: bytes) -> Sequence[bytes]:
        """Ids of an author's records in a group that were erased here, ascending.

        Also those erased without an erase record: told to this device alone, or derived from what
        had to go.
        """
        ...

    async def unsealed(self, group: bytes, bodies: Sequence[tuple[bytes, bytes]]) -> None:
        """Bodies (id, plain) whose key has come: project them."""
        ...

    async def sealed(self, group: bytes, epoch: bytes, limit: int) -> Sequence[Stored]:
        """Records still waiting for `epoch`'s key."""
        ...

    async def local(self, table: str, group: bytes | None = None) -> Sequence[LocalRow]:
        """Rows of a local table (see `LocalRow`), of one group or all."""
        ...

    def on_commit(self, fn: Callable[[bytes, Sequence[bytes]], None]) -> None:
        """Call `fn(group, ids)` after each commit that stored records, in commit order."""
        ...

    def on_turn(self, fn: Callable[[bytes, Sequence[bytes]], None]) -> None:
        """Call `fn(group, ids)` after each commit in which state records that were here turned.

        They began or ceased to count: opened, voided, revived, erased.
        """
        ...
