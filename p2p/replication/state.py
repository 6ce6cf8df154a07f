"""Values that several machines change at once, as a fold over signed records.

A cell is (group, type, path). Its value is a pure function of the records that count in it, in
whatever order they came, so equal sets show equal values. Types: `lww` (last writer wins), `mv`
(all concurrent values), `set` (observed-remove, an add wins over a concurrent remove), `counter`
(each log's own running total), `map` (one cell an entry; a put wins over a concurrent delete).

The type is part of what the cell's tag hashes, so two types under one path never meet. Pure.
Source: docs/specs/state.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias, get_args

import msgspec

from p2p.errors import DecodeError, UsageError
from p2p.replication.record import SUPERSEDES_MAX

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

KIND_STATE: Final = 33
"""Record kind that carries these bodies."""

CellType: TypeAlias = Literal["lww", "mv", "set", "counter", "map"]
Op: TypeAlias = Literal["set", "delete", "add", "remove", "incr", "put"]
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""What JSON and MessagePack share."""

CELL_TYPES: Final[tuple[CellType, ...]] = get_args(CellType)
OPS: Final[Mapping[CellType, frozenset[Op]]] = {
    "lww": frozenset({"set", "delete"}),
    "mv": frozenset({"set", "delete"}),
    "set": frozenset({"add", "remove"}),
    "counter": frozenset({"incr"}),
    "map": frozenset({"put", "delete"}),
}
"""What may be done to a cell of each type."""

WRITING: Final[Mapping[CellType, Op]] = {
    "lww": "set", "mv": "set", "set": "add", "counter": "incr", "map": "put",
}  # fmt: skip
REMOVING: Final[Mapping[CellType, Op]] = {
    "lww": "delete", "mv": "delete", "set": "remove", "map": "delete",
}  # fmt: skip

PATH_PARTS_MAX: Final = 8
PART_CHARS_MAX: Final = 128
VALUE_BYTES_MAX: Final = 32 * 1024
DEPTH_MAX: Final = 32
"""Nesting of a value: deeper ones are refused, not recursed into."""
COUNT_MAX: Final = 2**53
"""Of a counter's running totals, exclusive: larger ones are no JSON integers."""

_Part: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=PART_CHARS_MAX)]


class StateBody(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Plain body of a state record, in wire order."""

    agent: Annotated[str, msgspec.Meta(max_length=64)]
    type: CellType
    path: Annotated[tuple[_Part, ...], msgspec.Meta(min_length=1, max_length=PATH_PARTS_MAX)]
    op: Op
    value: msgspec.Raw


_bodies: Final = msgspec.msgpack.Decoder(StateBody)
_paths: Final = msgspec.msgpack.Encoder()
_values: Final = msgspec.msgpack.Encoder(order="deterministic")
_plain: Final = msgspec.msgpack.Decoder()


def check_path(path: Sequence[str]) -> tuple[str, ...]:
    """A path of a cell.

    Raises:
        UsageError: not 1 to 8 parts of 1 to 128 characters.
    """
    parts = tuple(path)
    if not 1 <= len(parts) <= PATH_PARTS_MAX:
        raise UsageError(f"a path has 1 to {PATH_PARTS_MAX} parts, this one {len(parts)}")
    for part in parts:
        if not 1 <= len(part) <= PART_CHARS_MAX:
            raise UsageError(f"a part of a path has 1 to {PART_CHARS_MAX} characters")
    return parts


def canonical_path(path: Sequence[str]) -> bytes:
    """What a cell's tag hashes of its path: the MessagePack array of its parts."""
    return _paths.encode(tuple(path))


def canonical_value(value: Json) -> bytes:
    """The one spelling of a value: keys sorted, smallest numbers.

    Raises:
        UsageError: it is no JSON value, is nested too deeply, or has over 32 KiB.
    """
    try:
        _check_value(value, DEPTH_MAX)
        packed = _values.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise UsageError(f"a state value is JSON, at most {DEPTH_MAX} levels deep") from error
    if len(packed) > VALUE_BYTES_MAX:
        raise UsageError(f"a state value has at most {VALUE_BYTES_MAX} bytes, this {len(packed)}")
    return packed


def _check_value(value: object, depth: int) -> None:
    if depth < 0:
        raise ValueError("too deep")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("not a number of JSON")
    elif isinstance(value, list):
        for item in value:
            _check_value(item, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError("keys are text")
            _check_value(item, depth - 1)
    elif value is not None and not isinstance(value, bool | int | str):
        raise TypeError("no value of JSON")


def encode_body(agent: str, kind: CellType, path: Sequence[str], op: Op, value: Json) -> bytes:
    """The plain body of a state record.

    Raises:
        UsageError: the value or path is over its limits.
    """
    raw = msgspec.Raw(canonical_value(value))
    return _values.encode(StateBody(agent, kind, check_path(path), op, raw))


@dataclass(frozen=True, slots=True)
class Said:
    """What one body says, checked."""

    agent: str
    type: CellType
    path: tuple[str, ...]
    op: Op
    value: Json


def decode_body_untrusted(plain: bytes) -> Said:
    """Read a foreign body.

    Raises:
        DecodeError: malformed, over its limits, an operation its type has not, or not canonical.
    """
    try:
        body = _bodies.decode(plain)
        value = _plain.decode(body.value)
        canonical = canonical_value(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UsageError) as error:
        raise DecodeError("state body: malformed, or over its limits") from error
    if body.op not in OPS[body.type]:
        raise DecodeError(f"state body: a {body.type} has no {body.op}")
    if body.type == "counter" and not _is_total(value):
        raise DecodeError("state body: a counter's value is its two running totals")
    again = StateBody(body.agent, body.type, body.path, body.op, msgspec.Raw(canonical))
    if _values.encode(again) != plain:
        raise DecodeError("state body: not in its one encoding")
    return Said(body.agent, body.type, body.path, body.op, value)


def _is_total(value: Json) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(part) is int and 0 <= part < COUNT_MAX for part in value)
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of a cell that counts, with what it says."""

    id: bytes
    hlc: int
    author: bytes
    incarnation: int
    seq: int
    supersedes: tuple[bytes, ...]
    said: Said
    superseded: bool = False
    """Whether a record that counts, of the same cell, supersedes it."""

    @property
    def order(self) -> tuple[int, bytes]:
        """By time, and where that is equal by id."""
        return self.hlc, self.id


@dataclass(frozen=True, slots=True)
class Silent:
    """A record of a cell whose body says nothing that the cell may say.

    It adds nothing, and what its header names is superseded all the same: stores read headers.
    """

    id: bytes
    hlc: int
    author: bytes
    incarnation: int
    seq: int
    supersedes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Folded:
    """The value of a cell.

    Attributes:
        exists: whether there is one.
        value: lww and map: the value; mv: a list of all concurrent ones, oldest first; set: its
            elements in the order of their encoding; counter: the sum.
        heads: the records it comes from, oldest first; what a conditional write names.
    """

    exists: bool
    value: Json
    heads: tuple[Entry, ...]


NOTHING: Final = Folded(exists=False, value=None, heads=())


def mark_superseded(records: Iterable[Entry | Silent]) -> list[Entry]:
    """The entries among a cell's records, each with whether another record supersedes it."""
    known = list(records)
    gone = {target for one in known for target in one.supersedes}
    return [replace(one, superseded=one.id in gone) for one in known if isinstance(one, Entry)]


def as_it_was(
    records: Iterable[Entry | Silent], *, as_of: int | None = None, without: Collection[bytes] = ()
) -> list[Entry]:
    """What a reader would have had up to a time, had some authors never written.

    The same choice as a store makes of what counts now, so that both give the same value.

    Args:
        records: all of a cell that count.
        as_of: highest hlc that takes part; None for all.
        without: device keys to leave out.
    """
    known = [
        one for one in records if (as_of is None or one.hlc <= as_of) and one.author not in without
    ]
    newest: dict[tuple[bytes, int], int] = {}
    for one in known:
        log = (one.author, one.incarnation)
        newest[log] = max(newest.get(log, 0), one.seq)
    return [
        one
        for one in mark_superseded(known)
        if not one.superseded or one.seq == newest[one.author, one.incarnation]
    ]


def fold(kind: CellType, entries: Iterable[Entry]) -> Folded:
    """The value of a cell.

    Needs only the entries nobody supersedes, and of each log the newest: others change nothing.
    Order does not matter.

    Args:
        kind: the cell's type.
        entries: its records that count.
    """
    ordered = sorted(entries, key=lambda one: one.order)
    if kind == "counter":
        return _fold_counter(ordered)
    if kind == "lww":
        return _fold_last(ordered)
    heads = tuple(one for one in ordered if not one.superseded and one.said.op == WRITING[kind])
    if not heads:
        return NOTHING
    if kind == "map":
        return Folded(exists=True, value=heads[-1].said.value, heads=heads)
    if kind == "mv":
        return Folded(exists=True, value=[one.said.value for one in heads], heads=heads)
    elements = {canonical_value(one.said.value): one.said.value for one in heads}
    return Folded(exists=True, value=[elements[key] for key in sorted(elements)], heads=heads)


def _fold_last(ordered: Sequence[Entry]) -> Folded:
    if not ordered:
        return NOTHING
    last = ordered[-1]
    if last.said.op == "delete":
        return Folded(exists=False, value=None, heads=(last,))
    return Folded(exists=True, value=last.said.value, heads=(last,))


def newest_by_log(entries: Iterable[Entry]) -> dict[tuple[bytes, int], Entry]:
    """Of each log (author, incarnation) the entry with the highest seq."""
    newest: dict[tuple[bytes, int], Entry] = {}
    for one in entries:
        log = (one.author, one.incarnation)
        if log not in newest or one.seq > newest[log].seq:
            newest[log] = one
    return newest


def totals_of(entry: Entry | None) -> tuple[int, int]:
    """Running totals (plus, minus) a counter's record states; none yet is (0, 0)."""
    if entry is None:
        return 0, 0
    value = entry.said.value
    assert isinstance(value, list), "checked when it was decoded"
    plus, minus = value
    assert isinstance(plus, int), "checked when it was decoded"
    assert isinstance(minus, int), "checked when it was decoded"
    return plus, minus


def _fold_counter(ordered: Sequence[Entry]) -> Folded:
    heads = tuple(sorted(newest_by_log(ordered).values(), key=lambda one: one.order))
    if not heads:
        return NOTHING
    totals = [totals_of(one) for one in heads]
    return Folded(exists=True, value=sum(plus - minus for plus, minus in totals), heads=heads)


# ---- writing


@dataclass(frozen=True, slots=True)
class Change:
    """What a caller wants done to a cell."""

    type: CellType
    path: tuple[str, ...]
    op: Op
    value: Json
    agent: str = ""


class Drafted(msgspec.Struct, frozen=True):
    """A state record before it has a place. Satisfies `store.Draft`."""

    body: bytes
    key_tag: bytes
    supersedes: tuple[bytes, ...]
    kind: int = KIND_STATE


def drafts_of(
    change: Change, tag: bytes, entries: Sequence[Entry], own_log: tuple[bytes, int]
) -> list[Drafted]:
    """The records that make a change, given what the cell holds.

    A record names at most 8 others, so a change that replaces more begins with removals of eight,
    in the same transaction. What a record names counts on every replica once the record is there;
    a target that comes later is superseded on arrival.

    Args:
        change: what to do.
        tag: the cell's.
        entries: the cell's entries, as `fold` needs them.
        own_log: (author, incarnation) of the log that is written to.

    Returns:
        None or more drafts; none when there is nothing to remove.

    Raises:
        UsageError: the type has no such operation, or a counter would leave its range.
    """
    if change.op not in OPS[change.type]:
        raise UsageError(f"a {change.type} has no {change.op}")
    if change.type == "counter":
        return [_incremented(change, tag, newest_by_log(entries).get(own_log))]
    targets = _replaced(change, entries)
    if change.op == REMOVING[change.type] and not targets:
        return []
    drafts: list[Drafted] = []
    remover = REMOVING[change.type]
    blank = change.value if change.type == "set" else None
    while len(targets) > SUPERSEDES_MAX:
        batch, targets = targets[:SUPERSEDES_MAX], targets[SUPERSEDES_MAX:]
        body = encode_body(change.agent, change.type, change.path, remover, blank)
        drafts.append(Drafted(body, tag, tuple(sorted(batch))))
    value = blank if change.op == remover else change.value
    body = encode_body(change.agent, change.type, change.path, change.op, value)
    drafts.append(Drafted(body, tag, tuple(sorted(targets))))
    return drafts


def _replaced(change: Change, entries: Sequence[Entry]) -> list[bytes]:
    """Ids that the change supersedes: what it replaces, then removals that have done their work."""
    writing = WRITING[change.type]
    live = [one for one in entries if not one.superseded]
    values = [one for one in live if one.said.op == writing]
    if change.type == "set":
        wanted = canonical_value(change.value)
        values = [one for one in values if canonical_value(one.said.value) == wanted]
    targets = [one.id for one in values]
    if targets or change.op == writing:
        # Their own targets stay superseded; a removal that is superseded costs readers nothing.
        spent = [one.id for one in live if one.said.op != writing]
        room = -len(targets) % SUPERSEDES_MAX if targets else SUPERSEDES_MAX
        targets += spent[:room]
    return targets


def _incremented(change: Change, tag: bytes, last: Entry | None) -> Drafted:
    by = change.value
    if type(by) is not int or not by:
        raise UsageError("a counter goes up or down by a whole number other than 0")
    plus, minus = totals_of(last)
    plus, minus = plus + max(by, 0), minus + max(-by, 0)
    if max(plus, minus) >= COUNT_MAX:
        raise UsageError("this counter has reached its limit of 2**53")
    body = encode_body(change.agent, "counter", change.path, "incr", [plus, minus])
    return Drafted(body, tag, () if last is None else (last.id,))
