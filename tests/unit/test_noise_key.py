"""The secret of this machine's noise: made once, kept, for us alone."""

from __future__ import annotations

import errno
import os
import random
import stat
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from daemon.errors import RpcError
from daemon.methods.fed_topk import TopKParams, _question
from daemon.noise_key import NOISE_KEY_BYTES, noise_key

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.services import Services

WORDS = ["apple"] * 3


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


def test_it_is_on_the_disk_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, then its name in the folder; only then is the other name gone."""
    path, seen = tmp_path / "noise.key", []
    sync = os.fsync

    def watched(fd: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
        seen.append((kind, path.exists(), len(list(tmp_path.iterdir()))))
        sync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    noise_key(path, random.Random(1))
    assert seen == [("file", False, 1), ("folder", True, 2)]
    noise_key(path, random.Random(2))
    assert len(seen) == 2, "it is there: nothing is written"


@pytest.mark.parametrize("linked", [True, False], ids=["after the link", "before it"])
def test_what_a_crash_left_is_swept_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    path = tmp_path / "noise.key"
    left = tmp_path / f"noise.key.{bytes(8).hex()}"
    left.write_bytes(b"s" * NOISE_KEY_BYTES)
    others = {"noise.key.bak", "noise.key.0123", "noise.keys", f"noise.key.{bytes(9).hex()}"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    if linked:
        path.hardlink_to(left)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    found = noise_key(path, random.Random(1))
    assert (found == b"s" * NOISE_KEY_BYTES) == linked
    assert {one.name for one in tmp_path.iterdir()} == {"noise.key", *others}
    assert synced[-1], "the crash may have come before the folder was written"


def test_one_that_is_swept_while_it_is_made_takes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "noise.key"
    others: list[bytes] = []
    sync = os.fsync

    def meanwhile(fd: int) -> None:
        sync(fd)
        if not others:
            others.append(b"")
            others[0] = noise_key(path, random.Random(2))

    monkeypatch.setattr(os, "fsync", meanwhile)
    assert noise_key(path, random.Random(1)) == others[0]
    assert [one.name for one in tmp_path.iterdir()] == ["noise.key"]


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (errno.ENOSPC, "storage_full"),
        (errno.EDQUOT, "storage_full"),
        (errno.EACCES, "invalid_state"),
        (errno.EROFS, "invalid_state"),
    ],
)
def test_a_disk_that_cannot_take_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "noise.key"
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RpcError, match=r"noise\.key cannot be") as caught:
        noise_key(path, random.Random(1))
    assert caught.value.name == name
    assert not list(tmp_path.iterdir())


def test_a_name_that_may_not_be_on_the_disk_is_written_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret is there, but what says so could not be written: not by who asks next either."""
    path = tmp_path / "noise.key"
    sync, broken, synced = os.fsync, [True], []

    def watched(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            if broken[0]:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            synced.append(path.exists())
        sync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    for seed in (1, 2):
        with pytest.raises(RpcError, match="cannot be read or made: Input/output error"):
            noise_key(path, random.Random(seed))
        assert path.exists()
    broken[0] = False
    found = noise_key(path, random.Random(3))
    assert synced == [True]
    assert found == path.read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["noise.key"]


def test_one_that_cannot_be_linked_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(RpcError, match="cannot be read or made"):
        noise_key(tmp_path / "noise.key", random.Random(1))
    assert not list(tmp_path.iterdir())


def test_one_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "noise.key"
    path.mkdir()
    with pytest.raises(RpcError, match="cannot be read or made: Is a directory") as caught:
        noise_key(path, random.Random(1))
    assert caught.value.name == "invalid_state"
    with pytest.raises(RpcError, match="cannot be read or made"):
        noise_key(tmp_path / "none" / "noise.key", random.Random(1))


def test_without_noise_no_secret_is_made_or_needed(tmp_path: Path) -> None:
    path = tmp_path / "noise.key"
    services = cast(
        "Services",
        SimpleNamespace(
            paths=SimpleNamespace(noise_key=str(path)), env=SimpleNamespace(rng=random.Random(1))
        ),
    )
    _question(services, TopKParams(items=WORDS, k=1, mode="plain"), None)
    assert not path.exists()
    path.write_bytes(b"damaged")
    _question(services, TopKParams(items=WORDS, k=1, mode="plain"), None)
    with pytest.raises(RpcError, match="is damaged"):
        _question(services, TopKParams(items=WORDS, k=1), None)
    path.unlink()
    _question(services, TopKParams(items=WORDS, k=1), None)
    assert path.exists()
