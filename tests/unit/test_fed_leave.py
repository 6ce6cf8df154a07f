"""`covey fed leave --keep`: the last state outlives the model, or nothing is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from daemon.cli.client import CliError
from daemon.cli.fed_models import keep_state

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.json_types import Json


def waited(path: Path) -> Json:
    return {"applied": True, "model": {"name": "m", "path": str(path)}}


def test_a_copy_is_made_and_never_over_another_file(tmp_path: Path) -> None:
    state, copy = tmp_path / "state", tmp_path / "copy"
    state.write_bytes(b"numbers")
    keep_state(waited(state), str(copy))
    assert copy.read_bytes() == b"numbers"
    state.write_bytes(b"others")
    with pytest.raises(CliError, match="copy") as caught:
        keep_state(waited(state), str(copy))
    assert (copy.read_bytes(), caught.value.exit_code) == (b"numbers", 2)


def test_a_state_that_is_gone_leaves_no_copy(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="state"):
        keep_state(waited(tmp_path / "state"), str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
