"""`state.*`: values that agents on several machines change at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from daemon.errors import RpcError
from daemon.methods.group import find_group
from daemon.methods.peers import device_names, find_peer, shown_name
from daemon.methods.state_types import (
    Cell,
    CellParams,
    CellRow,
    Changed,
    ChangeParams,
    ChangeTool,
    DeleteParams,
    ElementParams,
    GetParams,
    Head,
    HeldBy,
    HoldersParams,
    IncrParams,
    ListParams,
    ReadTool,
    SetParams,
    WatchParams,
)
from daemon.rpc.registry import Call, Tool, method
from memory.provenance import hlc_ms, iso, parse_iso
from memory.scopes import allows, write_scope
from p2p.errors import UsageError
from p2p.replication.state import Change, check_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from daemon.services import Services
    from memory.model import ScopeSet
    from p2p.replication.cells import Written
    from p2p.replication.state import CellType, Entry, Folded, Json, Op

T = TypeVar("T")

_ID: Final = re.compile(r"[0-9a-f]{64}")
OP_TYPES: Final[Mapping[str, CellType]] = {"add": "set", "remove": "set", "incr": "counter"}
"""What an operation is about that only one type has."""
WATCH_S_MAX: Final = 300.0
"""Longest wait of one `state.watch`; call again for more."""
LIST_MAX: Final = 1_000
"""Cells of one `state.list`."""
HOLD_POLL_S: Final = 0.25
"""Between two questions to the members who holds a write; each is one small call a member."""


class _Receipt:
    """What a repeated call is answered with."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def encode(self, ids: Sequence[bytes]) -> bytes:
        """The JSON to keep; runs in the writer's transaction."""
        return msgspec.json.encode(Changed(ids=[one.hex() for one in ids]))


def split_path(path: str | list[str]) -> tuple[str, ...]:
    """The parts of a path as written.

    Raises:
        RpcError: invalid_params.
    """
    parts = path.split("/") if isinstance(path, str) else path
    try:
        return check_path(parts)
    except UsageError as error:
        raise RpcError("invalid_params", str(error)) from error


def _scope(services: Services, group: bytes, part: str) -> str:
    """A cell's scope, as memories' are written: the first part of its path, of its group."""
    if "/" in part:  # or it could name a scope of another group
        raise RpcError("invalid_params", "the first part of a path is a scope: it has no slash")
    for view in services.replication.groups():
        if view.group == group:
            return write_scope(view.name, part, home=view.home)
    raise RpcError("not_found", "no group of that name", remedy="`covey group` lists them.")


def _check(scopes: ScopeSet, scope: str, verb: str) -> None:
    if not allows(scopes, scope):
        raise RpcError(
            "forbidden",
            f"this agent may not {verb} {scope}, the first part of the path",
            remedy="`covey agents set_scopes` changes that.",
        )


def _place(call: Call, p: CellParams, *, write: bool) -> tuple[bytes, tuple[str, ...]]:
    """Group and path of a cell the caller may read or write."""
    group, parts = find_group(call.services, p.group), split_path(p.path)
    scope = _scope(call.services, group, parts[0])
    caller = call.context.caller()
    if write:
        _check(caller.write, scope, "write to")
    else:
        _check(caller.read, scope, "read")
    return group, parts


async def _asked(work: Callable[[], Awaitable[T]]) -> T:
    """Run what the caller's own values may make impossible.

    Raises:
        RpcError: invalid_params.
    """
    try:
        return await work()
    except UsageError as error:
        raise RpcError("invalid_params", str(error)) from error


def _ids(written: Sequence[str] | None) -> list[bytes] | None:
    if written is None:
        return None
    for one in written:
        if not _ID.fullmatch(one):
            raise RpcError(
                "invalid_params",
                "an id is 64 hexadecimal digits",
                remedy="`covey state history PATH --json` shows them whole.",
            )
    return [bytes.fromhex(one) for one in written]


async def _type(
    call: Call, group: bytes, parts: tuple[str, ...], given: CellType | None
) -> CellType:
    """The type that is meant: a second cell of another type at one path is made on purpose only."""
    return given or await call.services.replication.cells.type_of(group, parts) or "lww"


async def _change(
    call: Call, p: CellParams, op: Op, value: Json, expect_ids: Sequence[str] | None = None
) -> Changed:
    group, parts = _place(call, p, write=True)
    kind = await _type(call, group, parts, p.type)
    if (kind, op) == ("map", "set"):
        op = "put"
    change = Change(kind, parts, op, value, call.principal.agent)
    expect = _ids(expect_ids)
    receipt = None if call.receipt_key is None else _Receipt(call.receipt_key)

    async def work() -> Written:
        return await call.services.replication.cells.change(
            group, change, expect=expect, receipt=receipt
        )

    done = await _asked(work)
    return Changed(ids=[one.hex() for one in done.ids], value=done.folded.value)


async def _heads(services: Services, entries: Sequence[Entry]) -> list[Head]:
    names = await device_names(services)
    return [
        Head(
            id=one.id.hex(),
            author=shown_name(names, one.author, services),
            agent=one.said.agent,
            at=iso(hlc_ms(one.hlc)),
            op=one.said.op,
            value=one.said.value,
            superseded=one.superseded,
        )
        for one in entries
    ]


async def _cell(
    call: Call, group: bytes, parts: tuple[str, ...], kind: CellType, folded: Folded
) -> Cell:
    keys: list[str] = []
    if kind == "map":
        keys = await call.services.replication.cells.keys(group, parts)
    return Cell(
        path=list(parts),
        type=kind,
        exists=folded.exists,
        value=folded.value,
        heads=await _heads(call.services, folded.heads),
        keys=keys,
    )


@method("state.set", scope="write", mutates=True)
async def set_value(call: Call, p: SetParams) -> Changed:
    """Give a lww, mv or map cell a value; on this machine's disk when it answers."""
    return await _change(call, p, "set", _json(p.value), p.expect_ids)


@method("state.delete", scope="write", mutates=True)
async def delete(call: Call, p: DeleteParams) -> Changed:
    """Empty a lww, mv or map cell; what others write at the same time stays."""
    return await _change(call, p, "delete", None, p.expect_ids)


@method("state.add", scope="write", mutates=True)
async def add(call: Call, p: ElementParams) -> Changed:
    """Put an element into a set."""
    return await _change(call, p, "add", _json(p.value))


@method("state.remove", scope="write", mutates=True)
async def remove(call: Call, p: ElementParams) -> Changed:
    """Take an element out of a set; one that is added elsewhere at the same time stays."""
    return await _change(call, p, "remove", _json(p.value))


@method("state.incr", scope="write", mutates=True)
async def incr(call: Call, p: IncrParams) -> Changed:
    """Move a counter; no two machines' steps are ever lost."""
    return await _change(call, p, "incr", p.by)


def _json(value: object) -> Json:
    return value  # type: ignore[return-value] # decoded from JSON; limits are checked where it is encoded


def _read_params(arguments: msgspec.Struct) -> GetParams:
    assert isinstance(arguments, ReadTool)
    return GetParams(path=arguments.path, type=arguments.type, group=arguments.group)


@method(
    "state.get",
    scope="read",
    tool=Tool(
        name="state_get",
        read_only=True,
        idempotent=True,
        summary=(
            "Read a value that the user's agents and machines share: a setting (lww), a to-do list"
            " (set), a counter, or the entries of a map."
        ),
        arguments=ReadTool,
        adapt=_read_params,
    ),
)
async def get(call: Call, p: GetParams) -> Cell:
    """Read a cell: its value, and the records it comes from."""
    group, parts = _place(call, p, write=False)
    kind = await _type(call, group, parts, p.type)
    as_of = None if p.as_of is None else (parse_iso(p.as_of, "as_of") << 16) | 0xFFFF
    without = [bytes.fromhex(await _device(call, one)) for one in p.without]

    async def work() -> Folded:
        return await call.services.replication.cells.get(
            group, kind, parts, as_of=as_of, without=without
        )

    return await _cell(call, group, parts, kind, await _asked(work))


async def _device(call: Call, wanted: str) -> str:
    services = call.services
    if wanted in {"self", services.config.node.name}:
        return bytes(services.device).hex()
    return (await find_peer(services, wanted)).node_id


def _change_params(arguments: msgspec.Struct) -> ChangeParams:
    assert isinstance(arguments, ChangeTool)
    return ChangeParams(**msgspec.structs.asdict(arguments))


@method(
    "state.change",
    scope="write",
    mutates=True,
    tool=Tool(
        name="state_change",
        summary=(
            "Change a value that the user's agents and machines share. Agents on other machines may"
            " change it at the same time: sets and counters lose nothing."
        ),
        arguments=ChangeTool,
        adapt=_change_params,
    ),
)
async def change(call: Call, p: ChangeParams) -> Changed:
    """Change a cell by any operation; the other methods say the same with fewer words."""
    kind = p.type or OP_TYPES.get(p.op)
    return await _change(call, msgspec.structs.replace(p, type=kind), p.op, _json(p.value))


@method("state.list", scope="read")
async def list_cells(call: Call, p: ListParams) -> list[CellRow]:
    """List the cells of a group that have a value, by path; at most 1,000."""
    group = find_group(call.services, p.group)
    prefix = split_path(p.path) if p.path else ()
    read = call.context.caller().read
    names = await call.services.replication.cells.names(group, prefix)
    return [
        CellRow(path=list(name.path), type=name.type)
        for name in names
        if allows(read, _scope(call.services, group, name.path[0]))
    ][:LIST_MAX]


@method("state.history", scope="read")
async def history(call: Call, p: CellParams) -> list[Head]:
    """Show every change of a cell, oldest first: who, when, what."""
    group, parts = _place(call, p, write=False)
    kind = await _type(call, group, parts, p.type)
    entries = await call.services.replication.cells.history(group, kind, parts)
    return await _heads(call.services, entries)


@method("state.watch", scope="read")
async def watch(call: Call, p: WatchParams) -> Cell:
    """Wait until a cell differs from what you saw, then read it; as it is after `wait_s`."""
    group, parts = _place(call, p, write=False)
    cells = call.services.replication.cells
    kind = await _type(call, group, parts, p.type)
    seen = _ids(p.seen) or []
    with trio.move_on_after(max(0.0, min(p.wait_s, WATCH_S_MAX))):
        folded = await cells.wait_changed(group, kind, parts, seen)
        return await _cell(call, group, parts, kind, folded)
    return await _cell(call, group, parts, kind, await cells.get(group, kind, parts))


async def _check_record(call: Call, group: bytes, ident: bytes) -> None:
    """Refuse an agent a record that is not of a value it may read.

    Raises:
        RpcError: not_found, or forbidden.
    """
    read = call.context.caller().read
    if read.everything:
        return
    name = await call.services.replication.cells.name_of(group, ident)
    if name is None:
        raise RpcError("not_found", "no shared value here has a record of that id")
    _check(read, _scope(call.services, group, name.path[0]), "read")


@method("state.holders", scope="read")
async def holders(call: Call, p: HoldersParams) -> HeldBy:
    """Ask the machines of a group which of them have a write on disk."""
    services = call.services
    group = find_group(services, p.group)
    (ident,) = _ids([p.id]) or []
    await _check_record(call, group, ident)
    found = await services.replication.cells.holders(group, ident)
    with trio.move_on_after(max(0.0, min(p.wait_s, WATCH_S_MAX))):
        while len(found.held) < p.machines:
            await trio.sleep(HOLD_POLL_S)
            found = await services.replication.cells.holders(group, ident)
    names = await device_names(services)
    return HeldBy(
        held=[shown_name(names, one, services) for one in found.held],
        missing=[shown_name(names, one, services) for one in found.missing],
        unknown=[shown_name(names, one, services) for one in found.unknown],
    )
