"""Templates and reductions: what hostile or odd input does to them."""

from __future__ import annotations

import pytest

from federated.errors import PlanError
from federated.jobs.reduce import reduce_rows
from federated.jobs.template import parse_template
from federated.jobs.types import Sum, TopK


def test_a_template_is_filled_once() -> None:
    template = parse_template("Say {{ a }} to {{b}}, not {{}} or {{ }}.", None)
    assert template.names == {"a", "b"}
    assert template.render({"a": "{{b}}", "b": 2}) == "Say {{b}} to 2, not {{}} or {{ }}."


@pytest.mark.attack
@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["{{" + " " * 60_000, "{{a" * 20_000, "{" * 60_000, "{{ }}" * 200])
def test_a_hostile_template_takes_no_time(text: str) -> None:
    assert parse_template(text, None).render({}) == text


def test_sums_beyond_numbers_are_told() -> None:
    rows: list[dict[str, object] | None] = [{"pairs": [["a", 1e308], ["a", 1e308]]}]
    with pytest.raises(PlanError, match="beyond"):
        reduce_rows(Sum(), rows)


def test_ties_are_in_the_order_of_the_keys() -> None:
    rows: list[dict[str, object] | None] = [{"pairs": [["b", 1], ["a", 1], ["c", 2]]}, None]
    assert [row["key"] for row in reduce_rows(TopK(n=2), rows).rows] == ["c", "a"]
