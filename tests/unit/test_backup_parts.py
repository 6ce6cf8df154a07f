"""The sealed key, the manifest, the journal of a restore: what is refused and why."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import msgspec
import pytest

from daemon.errors import RpcError
from daemon.keyseal import LOG2_N, open_sealed, seal_key
from daemon.manifest import (
    DATABASE,
    FORMAT,
    KEYS,
    FileEntry,
    Manifest,
    check_files,
    decode_manifest_untrusted,
    entry_of,
    read_manifest,
    write_manifest,
)
from daemon.restore import finish_restore
from memory.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

WORD = "correct horse battery"


def test_a_sealed_key_opens_with_its_passphrase_only() -> None:
    files = {"key": b"k" * 68, "recovery": b"{}\n"}
    sealed = seal_key(files, WORD, random.Random(1))
    assert b"k" * 16 not in sealed
    assert open_sealed(sealed, WORD) == files
    head = sealed[:8] + bytes([LOG2_N - 4]) + sealed[9:]
    for altered in (sealed[:-1], b"X" + sealed[1:], b"", sealed[:30], head):
        with pytest.raises(RpcError) as caught:
            open_sealed(altered, WORD)
        assert caught.value.name == "locked"
    with pytest.raises(RpcError, match="does not open"):
        open_sealed(sealed, WORD + " ")


def test_two_seals_of_one_key_differ() -> None:
    rng = random.Random(1)
    assert seal_key({"key": b"a"}, WORD, rng) != seal_key({"key": b"a"}, WORD, rng)


def manifest(folder: Path, **fields: object) -> Manifest:
    for name in (DATABASE, KEYS):
        (folder / name).write_bytes(name.encode())
    base: dict[str, object] = {
        "format": FORMAT, "covey": "0", "sqlite": "3", "schema": 2, "created_ms": 1,
        "node": "0" * 64, "records": 1, "bodies": 1, "memories": 1, "with_key": False,
        "files": {name: entry_of(folder / name) for name in (DATABASE, KEYS)}, "heads": [],
    }  # fmt: skip
    return msgspec.convert(msgspec.to_builtins({**base, **fields}), Manifest)


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    made = manifest(tmp_path)
    write_manifest(tmp_path, made)
    assert read_manifest(tmp_path) == made
    check_files(tmp_path, made)
    assert (tmp_path / "manifest.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "name", ["../covey.db", "/etc/passwd", "key", "covey.db/../x", "", "manifest.json"]
)
def test_a_manifest_names_no_other_file(tmp_path: Path, name: str) -> None:
    made = manifest(tmp_path)
    made.files[name] = made.files[DATABASE]
    with pytest.raises(RpcError, match="files that no backup has"):
        decode_manifest_untrusted(msgspec.json.encode(made))


def test_a_manifest_of_another_format_or_shape_is_refused(tmp_path: Path) -> None:
    made = manifest(tmp_path, format=FORMAT + 1)
    with pytest.raises(RpcError, match="format 2"):
        decode_manifest_untrusted(msgspec.json.encode(made))
    for broken in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format":1}'):
        with pytest.raises(RpcError, match="cannot be read"):
            decode_manifest_untrusted(broken)


def test_both_hashes_of_a_shredding_are_good_and_no_third(tmp_path: Path) -> None:
    made = manifest(tmp_path)
    old = made.files[KEYS].sha256
    made.files[KEYS] = FileEntry(bytes=3, sha256="1" * 64, was=old)
    check_files(tmp_path, made)
    made.files[KEYS] = FileEntry(bytes=3, sha256="1" * 64, was="2" * 64)
    with pytest.raises(RpcError, match=r"covey\.db\.keys is not what was backed up"):
        check_files(tmp_path, made)


@pytest.mark.parametrize(
    "journal",
    [
        "",
        "[]",
        json.dumps({"stage": "../x", "aside": "before-restore-1"}),
        json.dumps({"stage": ".restoring-1", "aside": "/etc/x"}),
        json.dumps({"stage": ".restoring-1/../..", "aside": "before-restore-1"}),
    ],
)
def test_a_foreign_journal_moves_nothing(tmp_path: Path, journal: str) -> None:
    (tmp_path / "restore.json").write_text(journal)
    (tmp_path / "covey.db").write_text("here")
    with pytest.raises(StoreError):
        finish_restore(tmp_path)
    assert (tmp_path / "covey.db").read_text() == "here"


def test_what_a_dead_restore_prepared_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".restoring-1").mkdir()
    (tmp_path / ".restoring-1" / "covey.db").write_text("half")
    assert not finish_restore(tmp_path)
    assert list(tmp_path.iterdir()) == []
