"""What a column may be, and what its gate lets pass."""

from __future__ import annotations

import math

import pytest

from federated.errors import PlanError
from federated.jobs.columns import Gate, check_columns
from federated.jobs.types import Column

COMPOSED, APART = "\u00e9", "e\u0301"


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (Column(name="x", type="int", min=2, max=1), "bad_spec"),
        (Column(name="x", type="float", min=math.nan), "bad_spec"),
        (Column(name="x", type="float", max=math.inf), "bad_spec"),
        (Column(name="x", type="str", max=1), "bad_spec"),
        (Column(name="x", type="enum", enum=[APART]), "bad_spec"),
        (Column(name="x", type="enum", enum=["a", "a"]), "bad_spec"),
        (Column(name="x", type="enum", enum=["a" * 5000]), "too_large"),
        (Column(name="x", type="enum"), "bad_spec"),
        (Column(name="x", enum=["a"]), "bad_spec"),
        (Column(name=APART), "bad_spec"),
        (Column(name=""), "bad_spec"),
        (Column(name="a\nb"), "bad_spec"),
        (Column(name="x", type="float", tol=math.nan), "bad_spec"),
        (Column(name="x", type="int", tol=1), "bad_spec"),
        (Column(name="x", max_len=0), "bad_spec"),
    ],
)
def test_a_column_that_contradicts_itself_is_refused(column: Column, reason: str) -> None:
    with pytest.raises(PlanError) as refused:
        check_columns([Column(name="first"), column])
    assert (refused.value.reason, refused.value.path) == (reason, "columns[1]")


def test_columns_as_they_are_meant() -> None:
    check_columns(
        [
            Column(name=COMPOSED, type="enum", enum=[COMPOSED, "x"]),
            Column(name="n", type="int", min=1, max=1),
            Column(name="f", type="float", min=-0.5, tol=0),
        ]
    )


@pytest.mark.parametrize(
    ("column", "cell", "value", "reason"),
    [
        (Column(name="x", max_len=3), "abcd", None, "too_large"),
        (Column(name="x", type="url", max_len=12), "https://a.example", None, "too_large"),
        (Column(name="x", type="list[str]", max_len=1), ["a", "b"], None, "too_large"),
        (Column(name="x", type="list[str]"), ["a", 1], None, "bad_type"),
        (Column(name="x", type="int", max=3), 4, None, "bad_type"),
        (Column(name="x", type="int"), 2**53 + 1, None, "bad_type"),
        (Column(name="x", type="int"), True, None, "bad_type"),
        (Column(name="x", type="float"), math.nan, None, "bad_type"),
        (Column(name="x", type="enum", enum=[COMPOSED]), APART, COMPOSED, ""),
        (Column(name="x", type="enum", enum=["a"]), "b", None, "bad_type"),
        (Column(name="x", type="url"), f"HTTP://A.example:80/{APART}/#f",
         f"http://a.example/{COMPOSED}", ""),
        (Column(name="x", type="date"), "2024-02-30", None, "bad_type"),
        (Column(name="x"), None, None, "not_returned"),
    ],
)  # fmt: skip
def test_a_cell_passes_typed_or_says_why_not(
    column: Column, cell: object, value: object, reason: str
) -> None:
    row, why = Gate([column]).row({"x": cell, "unasked": 1})
    assert (row, why) == (None if reason else {"x": value}, reason)


def test_what_need_not_be_there_is_null_if_it_is_wrong() -> None:
    gate = Gate([Column(name="x", max_len=1, required=False), Column(name="y")])
    assert gate.row({"x": "long", "y": "here"}) == ({"x": None, "y": "here"}, "")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"pairs": [["a", 1], ["b", 0.5]]}, ""),
        ({"pairs": []}, ""),
        ({}, "bad_type"),
        ({"pairs": "ab"}, "bad_type"),
        ({"pairs": [["a"]]}, "bad_type"),
        ({"pairs": [["a", True]]}, "bad_type"),
        ({"pairs": [[1, 1]]}, "bad_type"),
        ({"pairs": [["a", math.inf]]}, "bad_value"),
        ({"pairs": [["a", 2**60]]}, "bad_value"),
    ],
)
def test_what_is_to_be_summed_is_pairs(row: dict[str, object], reason: str) -> None:
    found, why = Gate([Column(name="x")], pairs=True).row(row)
    assert why == reason
    assert (found == row) is not bool(reason)
