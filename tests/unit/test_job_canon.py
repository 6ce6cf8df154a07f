"""Canonical bytes are what peers vote on: ours against those of an independent encoder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from federated.errors import PlanError
from federated.jobs.canon import canonical, decode_table_untrusted, hash_parts, row_hasher
from p2p.errors import DecodeError

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS: dict[str, Any] = json.loads((FOLDER / "canonical_v1.json").read_text("utf-8"))


@pytest.mark.parametrize("case", VECTORS["good"], ids=lambda case: case["name"])
def test_values_have_the_bytes_they_always_had(case: Any) -> None:
    data = bytes.fromhex(case["hex"])
    assert canonical(json.loads(case["json"])) == data
    assert canonical(json.loads(data)) == data


@pytest.mark.parametrize("case", VECTORS["bad"], ids=lambda case: case["name"])
def test_what_has_no_form_is_refused(case: Any) -> None:
    with pytest.raises(PlanError) as refused:
        canonical(json.loads(case["json"]))
    assert refused.value.reason == "bad_value"


@pytest.mark.parametrize("case", VECTORS["hashes"], ids=range(len(VECTORS["hashes"])))
def test_rows_have_the_hashes_they_always_had(case: Any) -> None:
    *prefix, row = case["parts"]
    assert hash_parts(*case["parts"]).hex() == case["hash"]
    assert row_hasher(prefix).hash(canonical(row)).hex() == case["hash"]


def test_the_committed_vectors_are_what_their_maker_writes() -> None:
    code = "import make_canonical; print(make_canonical.make(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    assert done.stdout == (FOLDER / "canonical_v1.json").read_text("utf-8")


@pytest.mark.attack
@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[{}]", b"[1]", b"[[NaN]]", b"[[1e999]]", b"\xff", b"[" * 100_000]
)
def test_a_table_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_table_untrusted(data)
