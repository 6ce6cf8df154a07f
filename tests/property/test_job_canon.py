"""The canonical form, against an independent encoder and against itself."""

from __future__ import annotations

import json
import math
import runpy
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federated.errors import PlanError
from federated.jobs.canon import canonical, decode_table_untrusted, encode_normal, normal
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable

MAKER = Path(__file__).parents[1] / "vectors" / "make_canonical.py"
reference = cast("Callable[[object], str]", runpy.run_path(str(MAKER))["canonical"])

texts = st.text(max_size=8)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), texts,
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
nfc_keys = texts.map(lambda text: unicodedata.normalize("NFC", text))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(nfc_keys, inner, max_size=4),
    max_leaves=12,
)


@given(values)
@example([1e16, 1e-5, 1e-6, 2.0**53, -0.0, 5e-324])
def test_it_is_what_an_independent_encoder_writes(value: object) -> None:
    assert canonical(value).decode() == reference(value)


@given(values)
def test_what_was_read_back_has_the_same_bytes(value: object) -> None:
    data = canonical(value)
    assert canonical(json.loads(data)) == data
    assert encode_normal(normal(normal(value))) == data


@given(st.dictionaries(nfc_keys, scalars, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, object], rng: object) -> None:
    names = list(value)
    rng.shuffle(names)  # type: ignore[attr-defined]
    assert canonical({name: value[name] for name in names}) == canonical(value)


@given(st.text(max_size=20))
def test_text_that_looks_the_same_is_the_same(text: str) -> None:
    forms = {canonical(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert len(forms) == 1


@given(st.floats() | st.integers())
def test_a_number_has_a_form_or_is_refused(value: float) -> None:
    fits = math.isfinite(value) if isinstance(value, float) else abs(value) <= 2**53
    if fits:
        assert json.loads(canonical(value)) == value
        return
    with pytest.raises(PlanError):
        canonical(value)


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps([[value]]).encode()))
def test_foreign_bytes_are_a_table_or_refused(data: bytes) -> None:
    try:
        table = decode_table_untrusted(data)
    except DecodeError:
        return
    assert all(isinstance(row, list) for row in table)
