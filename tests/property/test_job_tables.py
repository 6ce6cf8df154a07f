"""Keys, batches, templates and reductions: what holds whatever the rows are."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from federated.errors import PlanError
from federated.jobs.batching import batches
from federated.jobs.canon import canonical, encode_normal, normal
from federated.jobs.keys import row_keys
from federated.jobs.limits import BATCH_BYTES_MAX, BATCH_ROWS_MAX
from federated.jobs.reduce import pairs_of, reduce_rows
from federated.jobs.template import parse_template
from federated.jobs.types import (
    Auto,
    Batching,
    ByAttr,
    Collect,
    Count,
    GroupBy,
    JobSpec,
    Open,
    PerRow,
    Row,
    Sum,
    TopK,
)

cells = st.one_of(st.sampled_from(["a", "b", "", "\u00e9"]), st.integers(0, 3), st.none())
rows = st.lists(st.fixed_dictionaries({"x": cells, "y": cells}), max_size=60)
chunk = st.integers(1, BATCH_ROWS_MAX)


@st.composite
def drawn(draw: st.DrawFn, count: int) -> Open:
    """Groups of different indices."""
    ks: list[object] = list(draw(st.permutations(range(count))))[: draw(st.integers(0, count))]
    cuts = sorted(draw(st.sets(st.integers(0, len(ks)), max_size=4)))
    ends = [0, *cuts, len(ks)]
    groups = [ks[a:b] for a, b in pairwise(ends)]
    return Open(groups=groups, chunk=draw(chunk))


@st.composite
def batched(draw: st.DrawFn) -> tuple[Batching, list[Row], list[int], int]:
    found = draw(rows)
    sizes = draw(st.lists(st.integers(10, 70_000), min_size=len(found), max_size=len(found)))
    how: Batching = draw(
        st.one_of(
            st.just(PerRow()), st.just(Auto()),
            st.builds(ByAttr, column=st.just("x"), max=chunk), drawn(len(found)),
            st.builds(Open, groups=st.just([["a"], ["b", 1]]), column=st.just("x"), chunk=chunk),
        )
    )  # fmt: skip
    return how, found, sizes, draw(chunk)


@given(batched())
def test_every_row_is_in_exactly_one_batch_that_fits_an_item(
    drawn: tuple[Batching, list[Row], list[int], int],
) -> None:
    how, table, sizes, auto = drawn
    found = batches(how, table, sizes, auto=lambda: auto)
    assert sorted(k for ks in found for k in ks) == list(range(len(table)))
    for ks in found:
        assert 0 < len(ks) <= BATCH_ROWS_MAX
        assert len(ks) == 1 or sum(sizes[k] for k in ks) <= BATCH_BYTES_MAX * 3 // 4
        if isinstance(how, ByAttr):
            assert len({encode_normal(table[k].get("x")) for k in ks}) == 1


@given(rows, st.lists(st.sampled_from(["x", "y"]), unique=True, max_size=2), st.booleans())
def test_a_key_names_one_row(table: list[Row], names: list[str], first: bool) -> None:
    spec = JobSpec(
        handler="echo@1", rows=[], key_columns=names, on_duplicate="first" if first else "error"
    )
    wanted = [tuple(row[name] for name in names) for row in table]
    try:
        keys, kept = row_keys(spec, table)
    except PlanError as error:
        empty = any(cell is None for key in wanted for cell in key)
        why = error.reason
    else:
        why, empty = "", False
    if why:
        assert empty if why == "bad_spec" else len(set(wanted)) < len(wanted)
        assert why in {"bad_spec", "duplicate_key"}
        assert why == "bad_spec" or not first
        return
    assert len(set(keys)) == len(keys) == len(kept)
    assert kept == sorted(kept)
    if not names:
        assert kept == list(range(len(table)))
        return
    assert [wanted[k] for k in kept] == list(dict.fromkeys(wanted))


names = st.sampled_from(["a", "b", "long name"])
pieces = st.one_of(
    st.text("{} x\u00e9", max_size=6), names.map(lambda name: f"{{{{ {name} }}}}"),
    names.map(lambda name: f"{{{{{name}}}}}"),
)  # fmt: skip
values = st.one_of(st.text(max_size=6), pieces, st.integers(-9, 9), st.none(), st.lists(cells))


@given(
    st.lists(pieces, max_size=6).map("".join),
    st.fixed_dictionaries({"a": values, "b": values, "long name": values}),
)
def test_a_template_is_filled_in_one_pass_as_a_simple_replacement_would(
    text: str, row: Row
) -> None:
    assume(all(not isinstance(cell, str) or cell.isprintable() for cell in row.values()))

    def said(found: re.Match[str]) -> str:
        name = found.group(1).strip()
        if not 0 < len(name) <= 128:
            return found.group(0)
        cell = row.get(name)
        return cell if isinstance(cell, str) else "" if cell is None else canonical(cell).decode()

    assert parse_template(text, None).render(row) == re.sub(r"\{\{([^{}]+)\}\}", said, text)


numbers = st.integers(-(2**50), 2**50) | st.floats(-1e100, 1e100)
answers = st.lists(
    st.none()
    | st.lists(st.tuples(st.sampled_from("abc"), numbers).map(list), max_size=5).map(
        lambda pairs: {"pairs": pairs}
    ),
    max_size=8,
)


def pairs_in(table: list[Row | None]) -> dict[str, list[int | float]]:
    found: dict[str, list[int | float]] = defaultdict(list)
    for row in table:
        for key, number in pairs_of(row) if row is not None else ():
            found[key].append(number)
    return found


@given(answers)
def test_counts_and_sums_are_exact(table: list[Row | None]) -> None:
    expected = pairs_in(table)
    counts = reduce_rows(Count(), table).rows
    assert counts == [{"key": k, "count": len(v)} for k, v in sorted(expected.items())]
    sums = reduce_rows(Sum(), table).rows
    assert [row["key"] for row in sums] == sorted(expected)
    for row in sums:
        parts = expected[str(row["key"])]
        exact = sum((Fraction(part) for part in parts), Fraction(0))
        if all(isinstance(part, int) for part in parts):
            assert row["sum"] == exact
        else:
            assert row["sum"] == float(exact)


@given(answers, st.integers(0, 4))
def test_the_greatest_sums_are_those_of_sorting_them(table: list[Row | None], n: int) -> None:
    sums = reduce_rows(Sum(), table).rows
    ranked = sorted(sums, key=lambda row: (-row["sum"], row["key"]))  # type: ignore[operator]
    assert reduce_rows(TopK(n=n), table).rows == ranked[:n]


@given(rows, st.integers(1, 5))
def test_groups_hold_each_row_once_up_to_their_cap(table: list[Row], cap: int) -> None:
    reduced = reduce_rows(GroupBy(by="x", cap=cap), list(table))
    sizes = Counter(
        row["x"] if isinstance(row["x"], str) else encode_normal(row["x"]).decode() for row in table
    )
    assert {str(group["key"]) for group in reduced.rows} == set(sizes)
    for group in reduced.rows:
        kept, dropped = group["rows"], group["dropped"]
        assert isinstance(kept, list)
        assert isinstance(dropped, int)
        assert len(kept) == min(cap, sizes[str(group["key"])])
        assert len(kept) + dropped == sizes[str(group["key"])]
    assert sum(reduced.capped.values()) == sum(max(0, size - cap) for size in sizes.values())


@given(answers)
def test_a_reduction_depends_on_the_table_alone(table: list[Row | None]) -> None:
    """Computed again after the journal was read back, it has the same bytes."""
    again = [None if row is None else normal(row) for row in table]
    for how in (Collect(), Count(), Sum(), TopK(n=3)):
        first = [canonical_or_none(row) for row in reduce_rows(how, table).rows]
        second = [canonical_or_none(row) for row in reduce_rows(how, again).rows]  # type: ignore[arg-type]
        assert first == second


def canonical_or_none(row: Row) -> bytes | None:
    """A sum may be beyond what canonical numbers say; then it is so both times."""
    try:
        return canonical(row)
    except PlanError:
        return None


@pytest.mark.parametrize("bad", [{"pairs": 1}, {}, {"pairs": [["a"]]}, {"pairs": [["a", True]]}])
def test_what_has_no_pairs_is_told(bad: Row) -> None:
    with pytest.raises(PlanError):
        pairs_of(bad)
