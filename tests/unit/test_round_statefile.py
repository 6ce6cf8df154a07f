"""State files: written whole or not at all, mapped if ours, read if a user's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federated.errors import UsageError
from federated.rounds import statefile
from federated.rounds.numeric.tensors import schema_of
from federated.rounds.statefile import load_state, map_state, write_state
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from federated.rounds.numeric.dtypes import Array

FDS = Path("/dev/fd")
STATE: dict[str, Array] = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1, 2], np.float16),
}


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_state(path, schema_of(STATE), STATE)
    for read in (map_state, load_state):
        found = read(path)
        assert list(found) == ["b", "w"], "in the schema's order"
        assert all(np.array_equal(found[name], STATE[name]) for name in STATE)
        assert not any(array.flags.writeable for array in found.values())
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o077 == 0, "a model is its owner's alone"


def test_equal_states_make_equal_files(tmp_path: Path) -> None:
    write_state(tmp_path / "a", schema_of(STATE), STATE)
    write_state(tmp_path / "b", schema_of(STATE), dict(reversed(STATE.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_replaced_file_stays_whole_for_who_mapped_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_state(path, schema_of(STATE), STATE)
    mapped = map_state(path)
    newer: dict[str, Array] = {"w": np.zeros(1, np.float32)}
    write_state(path, schema_of(newer), newer)
    assert np.array_equal(mapped["w"], STATE["w"])
    assert np.array_equal(map_state(path)["w"], newer["w"])


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    write_state(path, schema_of(STATE), STATE)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_state(path, schema_of(STATE), {**STATE, "b": np.zeros(2, np.float16)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_that_does_not_follow_its_schema_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'b' is missing"):
        write_state(tmp_path / "state", schema_of(STATE), {"w": STATE["w"]})
    assert not list(tmp_path.iterdir())


def test_long_files_are_moved_in_several_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statefile, "_CALL_BYTES_MAX", 7)
    write_state(tmp_path / "state", schema_of(STATE), STATE)
    assert np.array_equal(load_state(tmp_path / "state")["w"], STATE["w"])


@pytest.mark.attack
def test_a_users_file_that_shrinks_afterwards_does_no_harm(tmp_path: Path) -> None:
    # Looking at a map of it would be a bus error, and the daemon's end.
    path = tmp_path / "state"
    large: dict[str, Array] = {"w": np.ones(1 << 20, np.float32)}
    write_state(path, schema_of(large), large)
    found = load_state(path)
    os.truncate(path, 0)
    assert found["w"].sum() == 1 << 20


@pytest.mark.attack
def test_no_regular_file_and_no_tensor_file_are_refused_with_the_reason(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="no regular file"):
        load_state(pipe)
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(DecodeError):
        map_state(empty)
    torn = tmp_path / "torn"
    write_state(torn, schema_of(STATE), STATE)
    os.truncate(torn, torn.stat().st_size - 1)
    for path in (empty, torn):
        with pytest.raises(UsageError, match=f"{path.name}: tensor file: "):
            load_state(path)
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, statefile.FILE_BYTES_MAX + 1)
    with pytest.raises(UsageError, match="over"):
        load_state(huge)


def test_descriptors_are_closed_whatever_happens(tmp_path: Path) -> None:
    before = len(list(FDS.iterdir()))
    for name in ("missing", "pipe"):
        if name == "pipe":
            os.mkfifo(tmp_path / name)
        with pytest.raises((OSError, UsageError)):
            load_state(Path(tmp_path / name))
    write_state(tmp_path / "state", schema_of(STATE), STATE)
    load_state(tmp_path / "state")
    map_state(tmp_path / "state")
    assert len(list(FDS.iterdir())) <= before
