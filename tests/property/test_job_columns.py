"""Columns: the gate is stable, and what two cells have in common does not depend on their order."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from federated.errors import PlanError
from federated.jobs.canon import canonical
from federated.jobs.columns import (
    Gate,
    check_columns,
    equal_cells,
    normal_url,
    vote_key,
)
from federated.jobs.types import Column

TYPES = ["str", "int", "float", "bool", "date", "url", "enum", "list[str]"]
words = st.sampled_from(["a", "b", "e\u0301", "\u00e9", " a  b ", "x" * 50])
dates = st.dates().map(lambda day: day.isoformat())
urls = st.sampled_from([
    "HTTP://A.example:80/x/", "http://a.example/x", "https://[::1]:443/", "https://b.example/?q=1#f",
    "http://a@b/", "ftp://a/", "http://", "http://a:99999/", "http://a.example/e\u0301",
])  # fmt: skip
cells = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), words, dates, urls,
    st.lists(words, max_size=3), st.lists(st.integers(), max_size=2), st.just({"x": 1}),
)  # fmt: skip


@st.composite
def columns(draw: st.DrawFn) -> Column:
    kind = draw(st.sampled_from(TYPES))
    return Column(
        name="c",
        type=kind,  # type: ignore[arg-type]
        required=draw(st.booleans()),
        tol=draw(st.none() | st.floats(0, 3)) if kind in {"float", "date"} else None,
        enum=["a", "b", "\u00e9"] if kind == "enum" else [],
        max_len=draw(st.integers(1, 60)),
        min=draw(st.none() | st.integers(-5, 0)) if kind in {"int", "float"} else None,
        max=draw(st.none() | st.integers(0, 5)) if kind in {"int", "float"} else None,
    )


@given(columns(), cells)
def test_what_passes_the_gate_has_a_form_and_passes_it_again_unchanged(
    column: Column, cell: object
) -> None:
    check_columns([column])
    gate = Gate([column])
    row, why = gate.row({"c": cell, "unasked": object()})
    if row is None:
        assert column.required
        assert why in {"not_returned", "bad_type", "too_large"}
        return
    assert row.keys() == {"c"}
    again = json.loads(canonical(row))
    if not (column.type == "url" and len(str(row["c"])) > column.max_len):
        assert gate.row(again) == (again, "")
    assert canonical(again) == canonical(row)


@given(columns(), cells, cells)
def test_two_cells_are_equal_in_either_order_and_each_to_itself(
    column: Column, a: object, b: object
) -> None:
    gate = Gate([column])
    typed = [found["c"] for cell in (a, b) if (found := gate.row({"c": cell})[0]) is not None]
    for one in typed:
        assert equal_cells(column, one, one)
        for other in typed:
            assert equal_cells(column, one, other) == equal_cells(column, other, one)
            exact = column.type not in {"float", "date"}
            if exact and one is not None and other is not None:
                same = vote_key(column, one) == vote_key(column, other)
                assert equal_cells(column, one, other) == same


@given(st.text(max_size=20) | urls)
def test_a_link_has_one_spelling(text: str) -> None:
    once = normal_url(text)
    assert normal_url(once) == once


@given(st.dictionaries(st.text(max_size=4), cells, max_size=3))
def test_without_columns_a_row_passes_if_it_has_a_form(row: dict[str, object]) -> None:
    found, why = Gate([]).row(row)
    try:
        expected = canonical(row)
    except PlanError:
        assert (found, why) == (None, "bad_value")
        return
    assert canonical(found) == expected


@given(st.lists(st.lists(cells, max_size=3) | cells, max_size=3) | cells)
def test_pairs_are_pairs(found: object) -> None:
    row, why = Gate([], pairs=True).row({"pairs": found})
    if row is not None:
        pairs = row["pairs"]
        assert isinstance(pairs, list)
        for key, number in pairs:
            assert isinstance(key, str)
            assert type(number) in {int, float}
    else:
        assert why in {"bad_type", "bad_value"}
