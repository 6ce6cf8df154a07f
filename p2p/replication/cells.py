"""State cells of groups: change them, read them, hear of changes, ask who holds one.

A change is one or more signed records, made from what the cell holds inside the writer's
transaction; a value is folded from records whose bodies this device can open. A record whose body
names another cell than its header does not count here: its tag was chosen by somebody without a
right to the name. Source: docs/specs/state.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import DecodeError
from p2p.replication.epoch import key_tag
from p2p.replication.events import GroupError
from p2p.replication.groups import STATE_REFUSED
from p2p.replication.holders import Holding
from p2p.replication.opened import OpenedCells, open_row
from p2p.replication.ops import Role
from p2p.replication.record import LANE_DATA
from p2p.replication.shares import record_of
from p2p.replication.state import (
    CELL_TYPES,
    KIND_STATE,
    WRITING,
    Change,
    Entry,
    Folded,
    Silent,
    as_it_was,
    canonical_path,
    check_path,
    decode_body_untrusted,
    drafts_of,
    fold,
    mark_superseded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from p2p.node import Node
    from p2p.replication.core import Core
    from p2p.replication.groups import Group
    from p2p.replication.holders import Holders
    from p2p.replication.opened import Opened
    from p2p.replication.record import Record
    from p2p.replication.state import CellType
    from p2p.replication.store import CellRow, Draft, Receipt, Stored

log = logging.getLogger("covey.p2p.replication")

CELL_RECORDS_MAX: Final = 10_000
"""Records the value of a cell may be made of; a write beyond is refused here, never a foreign one
(replicas would differ)."""

CELL_OWN_MIN: Final = 1_000
"""Of these, how many this device may write however many others wrote: a member that fills a cell
closes it for itself, and leaves everybody else this much."""

EXPECTED_MAX: Final = 20_000
"""Records between admission and telling whose cells are remembered. Guess: many frames' worth."""

OPEN_BATCH: Final = 64
"""Entries opened between two turns of the loop."""


@dataclass(frozen=True, slots=True)
class CellName:
    """A cell that exists."""

    type: CellType
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CellChange:
    """Records of a cell came, or count no more or again, on this device's disk."""

    group: bytes
    cell: CellName
    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A change on disk.

    Attributes:
        ids: its records, oldest first; none if there was nothing to remove.
        folded: the cell after it, as this device sees it.
    """

    ids: tuple[bytes, ...]
    folded: Folded


class Cells:
    """State cells over a replicated store.

    Args:
        core: the parts of replication.
        node: the mesh; serves `sync.holds`.
    """

    def __init__(self, core: Core, node: Node) -> None:
        self._core = core
        self._holding = Holding(core, node)
        self._opened = OpenedCells(core.sealer)
        self._names: dict[tuple[bytes, bytes], CellName] = {}
        """(group, tag) -> name, of cells read before."""
        self._expected: dict[bytes, CellName | None] = {}
        """Of records being stored: the cell of each; None for what is no value."""
        self._watchers: list[Callable[[CellChange], None]] = []
        self._turned: list[tuple[bytes, tuple[bytes, ...]]] = []
        """(group, ids) of records that came, or count otherwise than before."""
        self._news = trio.Event()
        self._changed = trio.Event()
        """Of the next change to any cell."""
        core.store.on_commit(self._on_commit)
        core.store.on_turn(self._on_turn)

    # ---- changing

    async def change(
        self,
        group: bytes,
        change: Change,
        *,
        expect: Sequence[bytes] | None = None,
        receipt: Receipt | None = None,
    ) -> Written:
        """Write to a cell; on disk when it returns.

        Args:
            group: where.
            change: what.
            expect: ids of the heads the caller saw: refused if they are others now. None: whatever
                they are.
            receipt: stored with the effect, so that a repeated call finds it.

        Raises:
            GroupError: `unknown_group`, `not_permitted`, `key_missing`, `expect_failed` or
                `cell_too_large`.
            UsageError: the value or path is over its limits, or the type has no such operation.
        """
        found = self._member_of(group)
        role = found.role(self._core.me)
        if role is None or role < Role.WRITE:
            raise GroupError("not_permitted", f"this device may only read in {found.name}")
        tag = self._tag(found, change.type, change.path)
        # Opened here: in the writer's thread, where others wait, only what came meanwhile is.
        await self._read(found, tag, whole=False)
        held = self._opened.of((group, tag))

        def make(rows: Sequence[CellRow]) -> Sequence[Draft]:
            # In the writer's thread: nothing it reads changes meanwhile.
            here = self._opened.open((row.stored for row in rows), held)
            before = _entries_of(change.type, change.path, _marked(rows, here))
            if expect is not None:
                heads = {one.id for one in fold(change.type, before).heads}
                if heads != set(expect):
                    raise GroupError(
                        "expect_failed", "the cell has changed since: read it again, then write"
                    )
            adds = change.op == WRITING[change.type]
            own = sum(one.author == self._core.me for one, _ in here.values())
            if adds and len(rows) >= CELL_RECORDS_MAX and own >= CELL_OWN_MIN:
                raise GroupError(
                    "cell_too_large",
                    f"a cell holds {CELL_RECORDS_MAX} records: spread it over several paths",
                )
            # Read here: between a read outside and this write the log might have been changed.
            _, author, incarnation, _ = self._core.sealer.log(group, LANE_DATA)
            return drafts_of(change, tag, before, (author, incarnation))

        ids = tuple(await self._core.store.compose(group, tag, make, receipt, held))
        return Written(ids, await self.get(group, change.type, change.path))

    # ---- reading

    async def get(
        self,
        group: bytes,
        kind: CellType,
        path: Sequence[str],
        *,
        as_of: int | None = None,
        without: Collection[bytes] = (),
    ) -> Folded:
        """The value of a cell.

        Args:
            group: where.
            kind: its type.
            path: its path.
            as_of: highest hlc that takes part; None for now.
            without: device keys that are left out, as if they had never written.

        Raises:
            GroupError: `unknown_group` or `key_missing`.
            UsageError: no such path can be.
        """
        found = self._member_of(group)
        whole = as_of is not None or bool(without)
        parts = check_path(path)
        tag = self._tag(found, kind, parts)
        records = await self._read(found, tag, whole=whole)
        if not whole:
            return fold(kind, _entries_of(kind, parts, records))
        named = _of_cell(kind, parts, records)
        return fold(kind, as_it_was(named, as_of=as_of, without=without))

    async def type_of(self, group: bytes, path: Sequence[str]) -> CellType | None:
        """The type of what stands at a path, if there is one thing.

        Returns:
            The type of the cell there that has a value, `map` where entries begin with the path,
            None if there is neither.

        Raises:
            GroupError: `unknown_group`, `key_missing`, or `ambiguous`: several types are there.
        """
        parts = check_path(path)
        found = [kind for kind in CELL_TYPES if (await self.get(group, kind, parts)).exists]
        if len(found) > 1:
            raise GroupError("ambiguous", f"several values are at this path: {', '.join(found)}")
        if found:
            return found[0]
        return "map" if await self.keys(group, parts) else None

    async def history(self, group: bytes, kind: CellType, path: Sequence[str]) -> list[Entry]:
        """Every record of a cell that counts, oldest first, with whether it is superseded.

        Raises:
            GroupError: `unknown_group` or `key_missing`.
        """
        found = self._member_of(group)
        parts = check_path(path)
        tag = self._tag(found, kind, parts)
        records = _of_cell(kind, parts, await self._read(found, tag, whole=True))
        return sorted(mark_superseded(records), key=lambda one: one.order)

    async def names(self, group: bytes, prefix: Sequence[str] = ()) -> list[CellName]:
        """The cells below a path that have a value, by path.

        Raises:
            GroupError: `unknown_group`.
        """
        found = self._member_of(group)
        below = tuple(prefix)
        tags = await self._core.store.cell_tags(group)
        await self._learn_names(found, tags)
        names: list[CellName] = []
        for tag, _ in tags:
            name = self._names.get((group, tag))
            if name is None or name.path[: len(below)] != below:
                continue
            records = await self._read(found, tag, whole=False)
            if fold(name.type, _entries_of(name.type, name.path, records)).exists:
                names.append(name)
        return sorted(names, key=lambda one: (one.path, one.type))

    async def keys(self, group: bytes, path: Sequence[str]) -> list[str]:
        """The next parts of the paths of `map` entries below a path.

        Raises:
            GroupError: `unknown_group`.
        """
        depth = len(tuple(path))
        names = await self.names(group, path)
        return sorted(
            {one.path[depth] for one in names if one.type == "map" and len(one.path) > depth}
        )

    async def _learn_names(self, group: Group, tags: Sequence[tuple[bytes, bytes]]) -> None:
        unknown = [(tag, ident) for tag, ident in tags if (group.id, tag) not in self._names]
        for at in range(0, len(unknown), OPEN_BATCH):
            part = unknown[at : at + OPEN_BATCH]
            rows = await self._core.store.fetch([ident for _, ident in part], bodies=True)
            for row in rows:
                self._name_of(group, row)
            await trio.lowlevel.checkpoint()
            for tag, _ in part:
                if (group.id, tag) not in self._names:
                    # Its first record may be filed there by somebody without a right to the name.
                    self._name_by(group, tag, await self._read(group, tag, whole=False))

    def _name_of(self, group: Group, row: Stored) -> CellName | None:
        """The cell a record belongs to: as its tag was read before, else by its own true word."""
        tag = record_of(row).key_tag
        if tag is None:
            return None
        found = self._names.get((group.id, tag))
        opened = None if found is not None else open_row(self._core.sealer, row)
        return found if opened is None else self._name_by(group, tag, [opened[0]])

    def _name_by(self, group: Group, tag: bytes, records: Iterable[Opened]) -> CellName | None:
        """The cell that records of a tag name, if one of them tells the truth."""
        for one in records:
            if isinstance(one, Entry) and tag == self._tag(group, one.said.type, one.said.path):
                name = CellName(one.said.type, one.said.path)
                self._names[group.id, tag] = name
                return name
        return None

    async def name_of(self, group: bytes, ident: bytes) -> CellName | None:
        """The cell that a record of this device's disk belongs to.

        Raises:
            GroupError: `unknown_group` or `key_missing`.
        """
        found = self._member_of(group)
        rows = await self._core.store.fetch([ident], bodies=True)
        return next((self._name_of(found, r) for r in rows if record_of(r).group == group), None)

    # ---- following

    def on_change(self, fn: Callable[[CellChange], None]) -> None:
        """Call `fn` in the loop after each commit that may have changed a cell; not to block.

        New records, and such as were opened, voided, revived or erased.
        """
        self._watchers.append(fn)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell watchers of changes until cancelled."""
        task_status.started()
        while True:
            self._news = trio.Event()
            turned, self._turned = self._turned, []
            for group_id, ids in turned:
                try:
                    await self._tell(group_id, ids)
                except Exception:  # a supervisor: a full disk costs watchers a word, not the daemon
                    log.exception("cell_change_untold", extra={"f": {"records": len(ids)}})
            if not self._turned:
                await self._news.wait()

    async def wait_changed(
        self, group: bytes, kind: CellType, path: Sequence[str], seen: Collection[bytes]
    ) -> Folded:
        """The value of a cell, as soon as its heads are others than those seen.

        Raises:
            GroupError: as `get`.
        """
        while True:
            changed = self._changed
            folded = await self.get(group, kind, path)
            if {one.id for one in folded.heads} != set(seen):
                return folded
            await changed.wait()

    def expect(self, group: Group, records: Iterable[Record]) -> None:
        """Foreign records, their bodies open, are about to be stored.

        Whose cells they are is told by what is open anyway: to read and open each once more, when
        watchers are told, takes a third of the time of taking over many values.
        """
        if len(self._expected) > EXPECTED_MAX:
            self._expected.clear()  # Of transactions that failed: the others are told soon.
        for one in records:
            if one.lane != LANE_DATA:
                continue
            if one.kind != KIND_STATE:
                self._expected[one.id] = None
            elif one.plain is not None and one.key_tag is not None:
                name = self._names.get((group.id, one.key_tag)) or self._name_said(group, one)
                if name is not None:
                    self._expected[one.id] = name

    def _name_said(self, group: Group, record: Record) -> CellName | None:
        """The cell that an open record names, if that is true."""
        assert record.key_tag is not None, "asked for a value only"
        assert record.plain is not None, "asked for an open one only"
        try:
            said = decode_body_untrusted(record.plain)
        except DecodeError:
            return None
        name = CellName(said.type, said.path)
        if self._tag(group, name.type, name.path) != record.key_tag:
            return None
        self._names[group.id, record.key_tag] = name
        return name

    def _on_commit(self, group: bytes, ids: Sequence[bytes]) -> None:
        self._turned.append((group, tuple(ids)))
        self._news.set()

    def _on_turn(self, group: bytes, ids: Sequence[bytes]) -> None:
        # Before anybody reads again: what was erased must not be kept open.
        self._opened.drop_records(ids)
        self._on_commit(group, ids)

    async def _tell(self, group_id: bytes, ids: Sequence[bytes]) -> None:
        group = self._core.groups.get(group_id)
        changed: dict[CellName, list[bytes]] = {}
        unknown = []
        for ident in ids:
            if ident not in self._expected:
                unknown.append(ident)
            elif (name := self._expected.pop(ident)) is not None:
                changed.setdefault(name, []).append(ident)
        state_ids = await self._core.store.state_among(unknown) if unknown else ()
        if group is None or not (state_ids or changed):
            return
        for at in range(0, len(state_ids), OPEN_BATCH):
            rows = await self._core.store.fetch(state_ids[at : at + OPEN_BATCH], bodies=True)
            for row in rows:
                name = self._name_of(group, row)
                if name is not None:
                    changed.setdefault(name, []).append(row.id)
        # Readers first, so that whoever is told and reads sees it.
        self._changed.set()
        self._changed = trio.Event()
        for name, its in changed.items():
            for fn in self._watchers:
                fn(CellChange(group_id, name, tuple(its)))

    # ---- who holds a record

    async def holders(self, group: bytes, ident: bytes) -> Holders:
        """Ask the group's connected members whether a record is on their disks.

        Raises:
            GroupError: `unknown_group`.
        """
        return await self._holding.holders(self._member_of(group), ident)

    # ---- inside

    def _member_of(self, group: bytes) -> Group:
        found = self._core.groups.get(group)
        if found is None or found.state == STATE_REFUSED or not found.founded:
            raise GroupError("unknown_group", "this device is in no such group")
        return found

    def _tag(self, group: Group, kind: CellType, path: Sequence[str]) -> bytes:
        assert kind in CELL_TYPES, "typed at the edge"
        for secret in self._core.sealer.epochs(group.id).values():
            return key_tag(secret, kind, canonical_path(path))
        raise GroupError(
            "key_missing",
            f"no key of {group.name} has arrived yet: keep this device connected to a member",
        )

    async def _read(self, group: Group, tag: bytes, *, whole: bool) -> list[Opened]:
        """The records of a cell that are open here, superseded ones marked unless `whole`."""
        cell, drops = (group.id, tag), self._opened.drops
        held = self._opened.of(cell)
        rows = await self._core.store.cell(group.id, tag, whole=whole, known=held)
        here: dict[bytes, tuple[Opened, int]] = {}
        for at in range(0, len(rows), OPEN_BATCH):
            if at:
                await trio.lowlevel.checkpoint()
            part = (row.stored for row in rows[at : at + OPEN_BATCH])
            here |= self._opened.open(part, held)
        if not whole:
            self._opened.keep(cell, here, drops)
        return list(_marked(rows, here))


def _marked(rows: Iterable[CellRow], here: Mapping[bytes, tuple[Opened, int]]) -> Iterator[Opened]:
    """The records of rows that are open, with the store's word on whether they are superseded."""
    for row in rows:
        found = here.get(row.stored.id)
        if found is not None:
            one = found[0]
            if row.superseded and isinstance(one, Entry):
                one = replace(one, superseded=True)
            yield one


def _of_cell(kind: CellType, path: Sequence[str], records: Iterable[Opened]) -> list[Opened]:
    """Records of a tag; of one that names another cell only what its header says."""
    named = (kind, tuple(path))
    return [
        one
        if isinstance(one, Silent) or (one.said.type, one.said.path) == named
        else Silent(one.id, one.hlc, one.author, one.incarnation, one.seq, one.supersedes)
        for one in records
    ]


def _entries_of(kind: CellType, path: Sequence[str], records: Iterable[Opened]) -> list[Entry]:
    """The records that say of themselves what their tag says."""
    return [one for one in _of_cell(kind, path, records) if isinstance(one, Entry)]
