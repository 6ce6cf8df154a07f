"""What `state.*` takes and answers. Source: docs/specs/state.md."""

from __future__ import annotations

from typing import Literal

import msgspec

TypeName = Literal["lww", "mv", "set", "counter", "map"]


class CellParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which cell.

    Attributes:
        path: its name: 1 to 8 parts, written `a/b` or as a list. The first part is its scope.
        type: lww (last writer wins), mv (all concurrent values), set, counter or map; default what
            is there, else lww.
        group: local name or id of the group that shares it.
    """

    path: str | list[str]
    type: TypeName | None = None
    group: str = "home"


class GetParams(CellParams, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A cell to read.

    Attributes:
        as_of: ISO 8601 date: as it stood then.
        without: machines or devices: as if they had never written.
    """

    as_of: str | None = None
    without: list[str] = []


class SetParams(CellParams, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A value for a lww, mv or map cell.

    Attributes:
        value: any JSON, at most 32 KiB.
        expect_ids: ids of the heads you saw: refused with `conflict` if they are others now.
    """

    value: object
    expect_ids: list[str] | None = None


class DeleteParams(CellParams, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A lww, mv or map cell to empty."""

    expect_ids: list[str] | None = None


class ElementParams(CellParams, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An element of a set.

    Attributes:
        value: any JSON.
    """

    value: object
    type: TypeName | None = "set"


class IncrParams(CellParams, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How far a counter goes.

    Attributes:
        by: a whole number other than 0.
    """

    by: int = 1
    type: TypeName | None = "counter"


class ListParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which cells: those of a group below a path."""

    path: str | list[str] = ""
    group: str = "home"


class WatchParams(CellParams, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What to wait for.

    Attributes:
        seen: ids of the heads you know; answered as soon as they are others.
        wait_s: longest wait, at most 300 seconds.
    """

    seen: list[str] = []
    wait_s: float = 60.0


class HoldersParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whose disks hold a record.

    Attributes:
        id: a record's id, as a write or a head names it.
        machines: wait until so many hold it, this one included; 0 to answer at once.
        wait_s: longest wait for them.
    """

    id: str
    group: str = "home"
    machines: int = 0
    wait_s: float = 10.0


class Head(msgspec.Struct, kw_only=True):
    """A record a value comes from.

    Attributes:
        id: hex.
        author: shown name of the machine that wrote it.
        agent: the agent there; empty for the person.
        at: ISO 8601.
        op: what it did.
        value: what it says.
        superseded: whether a later record replaces it (in a history).
    """

    id: str
    author: str
    agent: str
    at: str
    op: str
    value: object
    superseded: bool = False


class Cell(msgspec.Struct, kw_only=True):
    """A cell as this machine sees it.

    Attributes:
        path: its parts.
        type: its type.
        exists: whether it has a value.
        value: lww, map: the value; mv: a list of all concurrent ones; set: a list; counter: a
            number. Of a map path with entries below: their names.
        heads: the records it comes from.
        keys: of type map: the names of the entries below the path.
    """

    path: list[str]
    type: str
    exists: bool
    value: object
    heads: list[Head]
    keys: list[str] = []


class Changed(msgspec.Struct, kw_only=True):
    """A change that is on this machine's disk.

    Attributes:
        ids: its records, hex; none if there was nothing to remove.
        value: the cell's value after it, seen from here; null in the answer to a repeated call.
    """

    ids: list[str]
    value: object = None


class CellRow(msgspec.Struct, kw_only=True):
    """A cell that has a value."""

    path: list[str]
    type: str


class HeldBy(msgspec.Struct, kw_only=True):
    """Who holds a record.

    Attributes:
        held: shown names of machines that have it on disk.
        missing: asked, and it is not there yet.
        unknown: not connected, or without an answer.
    """

    held: list[str]
    missing: list[str]
    unknown: list[str]


class ReadTool(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A shared value to read, as an agent asks for it.

    Attributes:
        path: its name, such as todo/items.
        type: default what is there.
        group: whose; home is the user's own machines.
    """

    path: str
    type: TypeName | None = None
    group: str = "home"


class ChangeTool(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A change of a shared value, as an agent makes it.

    Attributes:
        path: its name, such as todo/items.
        op: add and remove a set's element; incr a counter, by value.
        type: default what is there, or what op asks for.
        value: any JSON.
        group: whose; home is the user's own machines.
    """

    path: str
    op: Literal["set", "delete", "add", "remove", "incr"]
    type: TypeName | None = None
    value: object = None
    group: str = "home"


class ChangeParams(CellParams, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Any change of a cell.

    Attributes:
        op: set, delete, add, remove or incr.
        value: any JSON; of incr a whole number, of delete nothing.
    """

    op: Literal["set", "delete", "add", "remove", "incr"]
    value: object = None
