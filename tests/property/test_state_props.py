"""State values: one value whatever the order, and the same from what a store keeps of a cell."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from p2p.replication.state import (
    CELL_TYPES,
    OPS,
    REMOVING,
    Change,
    Entry,
    as_it_was,
    canonical_value,
    decode_body_untrusted,
    drafts_of,
    encode_body,
    fold,
    mark_superseded,
    newest_by_log,
)

if TYPE_CHECKING:
    from p2p.replication.state import CellType, Json, Op

PATH = ("p",)
WRITERS = [bytes([n]) * 32 for n in (1, 2, 3)]

Json_ = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[CellType, list[Entry]]:
    """A cell's records by three writers, each of which has seen some of what was before it."""
    kind = draw(st.sampled_from(CELL_TYPES))
    entries: list[Entry] = []
    for step in range(draw(st.integers(1, 14))):
        author = draw(st.sampled_from(WRITERS))
        op: Op = draw(st.sampled_from(sorted(OPS[kind])))
        value: Json = draw(st.integers(-3, 3).filter(bool)) if kind == "counter" else None
        if kind in {"lww", "mv", "map"} and op != REMOVING[kind]:
            value = draw(st.integers(0, 3))
        if kind == "set":
            value = draw(st.integers(0, 2))
        seen = [e for e in entries if e.author == author or draw(st.booleans())]
        change = Change(kind, PATH, op, value)
        drafts = drafts_of(change, bytes(16), mark_superseded(seen), (author, 1))
        for at, draft in enumerate(drafts):
            hlc = (step * 64 + at + 1) << 16 | draw(st.integers(0, 1))
            entries.append(
                Entry(
                    hlc.to_bytes(32, "big"),
                    hlc,
                    author,
                    1,
                    step * 64 + at + 1,
                    draft.supersedes,
                    decode_body_untrusted(draft.body),
                )
            )
    return kind, entries


@given(histories(), st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(
    history: tuple[CellType, list[Entry]], rng: object
) -> None:
    kind, entries = history
    shuffled = list(entries)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fold(kind, mark_superseded(entries)) == fold(kind, mark_superseded(shuffled))


@given(histories())
def test_what_a_store_keeps_of_a_cell_is_enough(history: tuple[CellType, list[Entry]]) -> None:
    kind, entries = history
    marked = mark_superseded(entries)
    newest = {one.id for one in newest_by_log(marked).values()}
    kept = [one for one in marked if not one.superseded or one.id in newest]
    assert fold(kind, kept) == fold(kind, marked)


@given(histories())
def test_a_later_record_that_saw_all_decides(history: tuple[CellType, list[Entry]]) -> None:
    kind, entries = history
    if kind == "counter":
        return
    marked = mark_superseded(entries)
    last: Json = 99
    op: Op = {"lww": "set", "mv": "set", "map": "put", "set": "add"}[kind]  # type: ignore[assignment]
    drafts = drafts_of(Change(kind, PATH, op, last), bytes(16), marked, (WRITERS[0], 2))
    after = [
        Entry(
            bytes([255]) + bytes(30) + bytes([at]),
            (1 << 40) + at,
            WRITERS[0],
            2,
            at + 1,
            draft.supersedes,
            decode_body_untrusted(draft.body),
        )
        for at, draft in enumerate(drafts)
    ]
    value = fold(kind, mark_superseded([*entries, *after])).value
    before = fold(kind, marked).value
    if kind == "set":
        expected = sorted([*(before if isinstance(before, list) else []), last])  # type: ignore[type-var]
        assert sorted(value) == expected  # type: ignore[arg-type, type-var]
    else:
        assert value == ([last] if kind == "mv" else last)


@given(histories())
def test_a_counter_is_the_sum_of_what_each_writer_counted(
    history: tuple[CellType, list[Entry]],
) -> None:
    kind, entries = history
    if kind != "counter":
        return
    by_writer = [
        fold(kind, [one for one in entries if one.author == author]).value or 0
        for author in WRITERS
    ]
    assert fold(kind, mark_superseded(entries)).value == sum(map(int, by_writer))  # type: ignore[arg-type]


@given(histories())
def test_without_nobody_and_up_to_the_end_is_now(history: tuple[CellType, list[Entry]]) -> None:
    kind, entries = history
    assert fold(kind, as_it_was(entries)) == fold(kind, mark_superseded(entries))
    assert fold(kind, as_it_was(entries, without=WRITERS)).exists is False


@given(Json_)
def test_a_value_comes_back_and_has_one_encoding(value: Json) -> None:
    body = encode_body("agent", "lww", PATH, "set", value)
    said = decode_body_untrusted(body)
    assert canonical_value(said.value) == canonical_value(value)
    assert encode_body("agent", "lww", PATH, "set", said.value) == body
    assert replace(said, value=None) == replace(decode_body_untrusted(body), value=None)
