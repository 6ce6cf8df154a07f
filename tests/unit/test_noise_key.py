"""The secret of this machine's noise: made once, kept, for us alone."""

from __future__ import annotations

import random
import stat
from typing import TYPE_CHECKING

import pytest

from daemon.errors import RpcError
from daemon.noise_key import NOISE_KEY_BYTES, noise_key

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_made_once_and_readable_by_us_alone(tmp_path: Path) -> None:
    path = tmp_path / "noise.key"
    made = noise_key(path, random.Random(1))
    assert len(made) == NOISE_KEY_BYTES
    assert noise_key(path, random.Random(2)) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["noise.key"]


def test_of_two_that_make_it_at_once_the_second_takes_the_firsts(tmp_path: Path) -> None:
    path = tmp_path / "noise.key"

    class Beaten(random.Random):
        """Somebody else is done while we draw."""

        def randbytes(self, n: int) -> bytes:
            if not path.exists():
                path.write_bytes(b"f" * NOISE_KEY_BYTES)
            return super().randbytes(n)

    assert noise_key(path, Beaten(1)) == b"f" * NOISE_KEY_BYTES
    assert [one.name for one in tmp_path.iterdir()] == ["noise.key"]


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_damaged_one_is_said_and_not_replaced(tmp_path: Path, size: int) -> None:
    path = tmp_path / "noise.key"
    path.write_bytes(b"x" * size)
    with pytest.raises(RpcError) as caught:
        noise_key(path, random.Random(1))
    assert caught.value.name == "storage_corrupt"
    assert path.read_bytes() == b"x" * size
