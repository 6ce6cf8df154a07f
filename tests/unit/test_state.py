"""Folding state values, and the records that change them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from p2p.errors import DecodeError, UsageError
from p2p.replication.state import (
    COUNT_MAX,
    VALUE_BYTES_MAX,
    Change,
    Entry,
    as_it_was,
    canonical_value,
    decode_body_untrusted,
    drafts_of,
    encode_body,
    fold,
    mark_superseded,
)

if TYPE_CHECKING:
    from p2p.replication.state import CellType, Json, Op

PATH = ("todo", "items")


class Pen:
    """Writes into one cell on behalf of several logs, as if all of them saw everything."""

    def __init__(self, kind: CellType) -> None:
        self.kind = kind
        self.entries: list[Entry] = []
        self.clock = 1 << 16

    def write(self, op: Op, value: Json = None, *, by: str = "a", seen: int | None = None) -> None:
        """One change, made by `by` who has seen the first `seen` entries (all by default)."""
        author = by.encode().ljust(32, b"-")
        known = mark_superseded(self.entries[:seen])
        change = Change(self.kind, PATH, op, value)
        for draft in drafts_of(change, bytes(16), known, (author, 1)):
            self.clock += 1
            self.entries.append(
                Entry(
                    self.clock.to_bytes(32, "big"),
                    self.clock,
                    author,
                    1,
                    self.clock,
                    draft.supersedes,
                    decode_body_untrusted(draft.body),
                )
            )

    @property
    def value(self) -> Json:
        """The cell's value; None where there is none."""
        return fold(self.kind, mark_superseded(self.entries)).value

    @property
    def exists(self) -> bool:
        """Whether it has one."""
        return fold(self.kind, mark_superseded(self.entries)).exists


def test_the_last_writer_wins_and_a_delete_is_a_write() -> None:
    pen = Pen("lww")
    pen.write("set", {"a": 1})
    pen.write("set", "two", by="b", seen=0)
    assert pen.value == "two"
    pen.write("delete")
    assert not pen.exists


def test_concurrent_sets_of_mv_stand_side_by_side_until_one_saw_both() -> None:
    pen = Pen("mv")
    pen.write("set", 1)
    pen.write("set", 2, by="b", seen=0)
    assert pen.value == [1, 2]
    pen.write("set", 3, by="c")
    assert pen.value == [3]
    pen.write("delete")
    assert not pen.exists


def test_an_add_wins_over_a_concurrent_remove() -> None:
    pen = Pen("set")
    pen.write("add", "milk")
    pen.write("add", "milk", by="b", seen=0)
    pen.write("remove", "milk", seen=1)
    assert pen.value == ["milk"]
    pen.write("remove", "milk")
    assert not pen.exists


def test_removing_what_is_not_there_writes_nothing() -> None:
    pen = Pen("set")
    pen.write("add", "milk")
    pen.write("remove", "bread")
    assert len(pen.entries) == 1


def test_a_removal_that_has_done_its_work_costs_readers_nothing() -> None:
    pen = Pen("set")
    for n in range(20):
        pen.write("add", n)
        pen.write("remove", n)
    pen.write("add", "last")
    alive = [one for one in mark_superseded(pen.entries) if not one.superseded]
    assert pen.value == ["last"]
    assert len(alive) <= 2


def test_more_than_eight_targets_take_several_records() -> None:
    pen = Pen("mv")
    for n in range(20):
        pen.write("set", n, by=str(n), seen=0)
    assert len(pen.value if isinstance(pen.value, list) else []) == 20
    pen.write("set", "all", by="z")
    assert pen.value == ["all"]
    assert all(len(one.supersedes) <= 8 for one in pen.entries)


def test_a_counter_sums_each_logs_own_total() -> None:
    pen = Pen("counter")
    pen.write("incr", 5)
    pen.write("incr", 2, by="b", seen=0)
    pen.write("incr", -3)
    assert pen.value == 4


def test_nobody_takes_away_what_another_counted() -> None:
    pen = Pen("counter")
    pen.write("incr", 5)
    body = encode_body("", "counter", PATH, "incr", [1, 0])
    thief = b"m" * 32
    pen.entries.append(
        Entry(b"m" * 32, 9 << 16, thief, 1, 1, (pen.entries[0].id,), decode_body_untrusted(body))
    )
    assert pen.value == 6


@pytest.mark.parametrize("by", [0, 1.5, "1", True, None])
def test_a_counter_goes_by_whole_numbers_only(by: Json) -> None:
    with pytest.raises(UsageError):
        Pen("counter").write("incr", by)


def test_a_counter_has_an_end() -> None:
    pen = Pen("counter")
    pen.write("incr", COUNT_MAX - 1)
    with pytest.raises(UsageError, match="limit"):
        pen.write("incr", 1)


def test_a_put_wins_over_a_concurrent_delete() -> None:
    pen = Pen("map")
    pen.write("put", 1)
    pen.write("put", 2, by="b", seen=1)
    pen.write("delete", seen=1)
    assert pen.value == 2
    pen.write("delete")
    assert not pen.exists


def test_without_an_author_is_as_if_it_had_never_written() -> None:
    pen = Pen("mv")
    pen.write("set", "good")
    pen.write("set", "bad", by="m")
    folded = fold("mv", as_it_was(pen.entries, without=[b"m".ljust(32, b"-")]))
    assert folded.value == ["good"]


def test_as_of_shows_what_stood_then() -> None:
    pen = Pen("lww")
    pen.write("set", 1)
    then = pen.clock
    pen.write("set", 2)
    assert fold("lww", as_it_was(pen.entries, as_of=then)).value == 1


@pytest.mark.parametrize(
    "value", [b"bytes", {1: 2}, float("nan"), float("inf"), 2**70, "x" * VALUE_BYTES_MAX]
)
def test_a_value_is_json_within_limits(value: object) -> None:
    with pytest.raises(UsageError):
        canonical_value(value)  # type: ignore[arg-type]


def test_a_value_nested_too_deeply_is_refused() -> None:
    deep: Json = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(UsageError):
        canonical_value(deep)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x95",
        msgspec.msgpack.encode(["a", "lww", ["p"], "add", 1]),
        msgspec.msgpack.encode(["a", "none", ["p"], "set", 1]),
        msgspec.msgpack.encode(["a", "lww", [], "set", 1]),
        msgspec.msgpack.encode(["a", "lww", ["p"] * 9, "set", 1]),
        msgspec.msgpack.encode(["a", "lww", [""], "set", 1]),
        msgspec.msgpack.encode(["a", "lww", ["p"], "set", b"bytes"]),
        msgspec.msgpack.encode(["a", "lww", ["p"], "set", {"b": 1, "a": 2}]),
        msgspec.msgpack.encode(["a", "counter", ["p"], "incr", [-1, 0]]),
        msgspec.msgpack.encode(["a", "counter", ["p"], "incr", [2**53, 0]]),
        msgspec.msgpack.encode(["a", "lww", ["p"], "set", msgspec.msgpack.Ext(1, b"x")]),
        b"\x95\xa1a\xa3lww\x91\xa1p\xa3set" + b"\x91" * 5000 + b"\xc0",
        encode_body("a", "lww", ["p"], "set", 1) + b"\xc0",
    ],
)
def test_a_malformed_body_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_body_untrusted(body)
