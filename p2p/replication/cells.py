"""State cells of groups: change them, read them, hear of changes, ask who holds one.

A change is one or more signed records, made from what the cell holds inside the writer's
transaction; a value is folded from records whose bodies this device can open. A record whose body
names another cell than its header does not count here: its tag was chosen by somebody without a
right to the name. Source: docs/specs/state.md.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import trio

from p2p.errors import DecodeError, P2pError
from p2p.identity import PeerId
from p2p.replication.epoch import key_tag
from p2p.replication.events import GroupError
from p2p.replication.groups import STATE_REFUSED
from p2p.replication.ops import Role
from p2p.replication.record import LANE_DATA
from p2p.replication.shares import record_of
from p2p.replication.state import (
    CELL_TYPES,
    WRITING,
    Change,
    Entry,
    Folded,
    as_it_was,
    canonical_path,
    check_path,
    decode_body_untrusted,
    drafts_of,
    fold,
    mark_superseded,
)
from p2p.rpc_types import Caller, CallStream, Method

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from p2p.node import Node
    from p2p.replication.core import Core
    from p2p.replication.groups import Group
    from p2p.replication.state import CellType
    from p2p.replication.store import CellRow, Draft, Receipt, Stored

log = logging.getLogger("covey.p2p.replication")

ENTRIES_KEPT: Final = 20_000
"""Opened entries remembered: opening one takes some 20 us, and a set reads all of its elements."""

CELL_RECORDS_MAX: Final = 10_000
"""Records the value of a cell may be made of; a write beyond is refused here, never a foreign one
(replicas would differ)."""

OPEN_BATCH: Final = 64
"""Entries opened between two turns of the loop."""

HELD_IDS_MAX: Final = 256
"""Ids one `sync.holds` may ask about."""
HELD_WAIT_S: Final = 2.0
"""Longest wait for one member's answer."""

_Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class HoldsQuery(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Are these records of a group durable at yours?"""

    group: _Id
    ids: Annotated[list[_Id], msgspec.Meta(max_length=HELD_IDS_MAX)]


class HoldsReply(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Those that are."""

    held: Annotated[list[_Id], msgspec.Meta(max_length=HELD_IDS_MAX)]


HOLDS: Final = Method("sync.holds", HoldsQuery, HoldsReply, idempotent=True, concurrent_max=4)


@dataclass(frozen=True, slots=True)
class CellName:
    """A cell that exists."""

    type: CellType
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CellChange:
    """New records of a cell are on disk."""

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


@dataclass(frozen=True, slots=True)
class Holders:
    """Which members hold a record.

    Attributes:
        held: by these device keys, ours included.
        missing: asked, and not there yet.
        unknown: not connected, or without an answer.
    """

    held: tuple[bytes, ...]
    missing: tuple[bytes, ...]
    unknown: tuple[bytes, ...]


class Cells:
    """State cells over a replicated store.

    Args:
        core: the parts of replication.
        node: the mesh; serves `sync.holds`.
    """

    def __init__(self, core: Core, node: Node) -> None:
        self._core = core
        self._node = node
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._names: dict[tuple[bytes, bytes], CellName] = {}
        """(group, tag) -> name, of cells read before."""
        self._watchers: list[Callable[[CellChange], None]] = []
        self._stored: list[tuple[bytes, tuple[bytes, ...]]] = []
        self._news = trio.Event()
        self._changed = trio.Event()
        """Of the next change to any cell."""
        core.store.on_commit(self._on_commit)
        node.rpc.serve(HOLDS, self._holds)

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

        def make(rows: Sequence[CellRow]) -> Sequence[Draft]:
            # In the writer's thread; the loop shares nothing with it but the cache of entries.
            before = self._entries_of(change.type, change.path, rows)
            if expect is not None:
                heads = {one.id for one in fold(change.type, before).heads}
                if heads != set(expect):
                    raise GroupError(
                        "expect_failed", "the cell has changed since: read it again, then write"
                    )
            adds = change.op == WRITING[change.type]
            if adds and len(rows) >= CELL_RECORDS_MAX:
                raise GroupError(
                    "cell_too_large",
                    f"a cell holds {CELL_RECORDS_MAX} records: spread it over several paths",
                )
            # Read here: between a read outside and this write the log might have been changed.
            _, author, incarnation, _ = self._core.sealer.log(group, LANE_DATA)
            return drafts_of(change, tag, before, (author, incarnation))

        ids = tuple(await self._core.store.compose(group, tag, make, receipt))
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
        entries = await self._read(found, tag, kind, parts, whole=whole)
        if whole:
            entries = as_it_was(entries, as_of=as_of, without=without)
        return fold(kind, entries)

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
        entries = mark_superseded(await self._read(found, tag, kind, parts, whole=True))
        return sorted(entries, key=lambda one: one.order)

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
            entries = await self._read(found, tag, name.type, name.path, whole=False)
            if fold(name.type, entries).exists:
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
        unknown = [ident for tag, ident in tags if (group.id, tag) not in self._names]
        for at in range(0, len(unknown), OPEN_BATCH):
            rows = await self._core.store.fetch(unknown[at : at + OPEN_BATCH], bodies=True)
            for row in rows:
                self._name_of(group, row)
            await trio.lowlevel.checkpoint()

    def _name_of(self, group: Group, row: Stored) -> CellName | None:
        """The cell a record belongs to by its own word, if that is true."""
        record = record_of(row)
        entry = self._open(row)
        if entry is None or record.key_tag is None:
            return None
        name = CellName(entry.said.type, entry.said.path)
        if self._tag(group, name.type, name.path) != record.key_tag:
            return None
        self._names[group.id, record.key_tag] = name
        return name

    # ---- following

    def on_change(self, fn: Callable[[CellChange], None]) -> None:
        """Call `fn` in the loop after each commit that changed a cell; it must not block."""
        self._watchers.append(fn)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell watchers of changes until cancelled."""
        task_status.started()
        while True:
            self._news = trio.Event()
            stored, self._stored = self._stored, []
            for group_id, ids in stored:
                try:
                    await self._tell(group_id, ids)
                except Exception:  # a supervisor: a full disk costs watchers a word, not the daemon
                    log.exception("cell_change_untold", extra={"f": {"records": len(ids)}})
            if not self._stored:
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

    def _on_commit(self, group: bytes, ids: Sequence[bytes]) -> None:
        self._stored.append((group, tuple(ids)))
        self._news.set()

    async def _tell(self, group_id: bytes, ids: Sequence[bytes]) -> None:
        group = self._core.groups.get(group_id)
        state_ids = await self._core.store.state_among(ids)
        if group is None or not state_ids:
            return
        changed: dict[CellName, list[bytes]] = {}
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
        found = self._member_of(group)
        me = self._core.me
        here = bool(await self._held(group, [ident]))
        held: list[bytes] = [me] if here else []
        missing: list[bytes] = [] if here else [me]
        unknown: list[bytes] = []
        connected = self._node.fabric.peers()

        async def ask(peer: bytes) -> None:
            try:
                with trio.fail_after(HELD_WAIT_S):
                    reply = await self._node.rpc.call(
                        PeerId(peer), HOLDS, HoldsQuery(group, [ident])
                    )
            except (P2pError, trio.TooSlowError):
                unknown.append(peer)
            else:
                (held if ident in reply.held else missing).append(peer)

        async with trio.open_nursery() as nursery:
            for member, role in found.standing.members().items():
                if member == me or role < Role.READ:
                    continue
                if member in connected:
                    nursery.start_soon(ask, member)
                else:
                    unknown.append(member)
        return Holders(tuple(sorted(held)), tuple(sorted(missing)), tuple(sorted(unknown)))

    async def _holds(self, caller: Caller, query: HoldsQuery, stream: CallStream) -> HoldsReply:  # noqa: ARG002 - a handler's shape
        group = self._core.groups.get(query.group)
        if group is None or not group.founded or group.role(caller.peer) is None:
            return HoldsReply([])  # a stranger to the group learns nothing of it
        return HoldsReply(await self._held(query.group, list(dict.fromkeys(query.ids))))

    async def _held(self, group: bytes, ids: Sequence[bytes]) -> list[bytes]:
        """Those of the ids that are records of the group and here with their bodies."""
        rows = await self._core.store.fetch(ids, bodies=True)
        return [
            row.id for row in rows if row.envelope is not None and record_of(row).group == group
        ]

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

    async def _read(
        self, group: Group, tag: bytes, kind: CellType, path: Sequence[str], *, whole: bool
    ) -> list[Entry]:
        rows = await self._core.store.cell(group.id, tag, whole=whole)
        entries: list[Entry] = []
        for at in range(0, len(rows), OPEN_BATCH):
            if at:
                await trio.lowlevel.checkpoint()
            entries += self._entries_of(kind, path, rows[at : at + OPEN_BATCH])
        return entries

    def _entries_of(
        self, kind: CellType, path: Sequence[str], rows: Sequence[CellRow]
    ) -> list[Entry]:
        """The entries of rows that say of themselves what their tag says."""
        entries: list[Entry] = []
        for row in rows:
            entry = self._open(row.stored)
            if entry is None or (entry.said.type, entry.said.path) != (kind, tuple(path)):
                continue
            if row.superseded:
                entry = replace(entry, superseded=True)
            entries.append(entry)
        return entries

    def _open(self, row: Stored) -> Entry | None:
        """What a record says; None where it does not open or says nothing a cell may say."""
        entry = self._entries.get(row.id)
        if entry is None:
            entry = _entry_of(self._core, row)
            if entry is not None:
                self._entries[row.id] = entry
                while len(self._entries) > ENTRIES_KEPT:
                    self._entries.popitem(last=False)
        return entry


def _entry_of(core: Core, row: Stored) -> Entry | None:
    record = record_of(row)
    if record.envelope is None or record.key_tag is None:
        return None
    try:
        plain = core.sealer.open_body(record)
        if plain is None:
            return None
        said = decode_body_untrusted(plain)
    except DecodeError:
        return None
    return Entry(
        record.id, record.hlc, record.author, record.incarnation, record.seq,
        tuple(record.supersedes), said,
    )  # fmt: skip
