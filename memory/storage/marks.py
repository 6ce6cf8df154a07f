"""`high.mark`: how far our own logs have come, in a file beside the database.

A restored database image is older than what this device has already signed; continuing its chains
would sign a place twice, a fork. The mark is rewritten after each commit, before its callers wake,
and compared on the next start: if it is ahead of the database, new incarnations are opened. A torn
or missing file only loses this one sign (peers showing us our own log are the other); so it is
written in place and synced at a clean close, not once a commit.

Source: docs/specs/memory.md, *high.mark*.
"""

from __future__ import annotations

import hashlib
import logging
import os
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from memory.seams import LogKey

log = logging.getLogger("covey.memory.marks")

_DOMAIN: Final = b"covey/high-mark/1\0"
MARK_BYTES_MAX: Final = 1 << 20
"""Some ten thousand logs."""

_Mark = tuple[bytes, bytes, int, int, int]
_decoder: Final = msgspec.msgpack.Decoder(list[_Mark])


def decode_marks_untrusted(data: bytes) -> dict[LogKey, int] | None:
    """The file's positions; None if it is torn, foreign or too large."""
    body = data[32:]
    if len(data) > MARK_BYTES_MAX or hashlib.sha256(_DOMAIN + body).digest() != data[:32]:
        return None
    try:
        return {mark[:4]: mark[4] for mark in _decoder.decode(body)}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def encode_marks(marks: dict[LogKey, int]) -> bytes:
    """SHA-256 of the domain and the list, then the list."""
    body = msgspec.msgpack.encode([(*key, seq) for key, seq in sorted(marks.items())])
    return hashlib.sha256(_DOMAIN + body).digest() + body


class HighMark:
    """The file and its content.

    Args:
        path: where it lies; created when first written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._written = b""
        self.positions: dict[LogKey, int] = {}

    def load(self) -> None:
        """Read the file, if there is a good one."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        found = decode_marks_untrusted(data)
        # Also of a bad file: the next write must cut off what stands behind the new content.
        self._written = data
        if found is None:
            log.warning("high_mark_unreadable", extra={"f": {"bytes": len(data)}})
            return
        self.positions = found

    def raise_to(self, marks: dict[LogKey, int]) -> None:
        """Move positions forward; never back."""
        for key, seq in marks.items():
            if seq > self.positions.get(key, 0):
                self.positions[key] = seq

    def write(self) -> None:
        """Rewrite the file if a position moved. Errors are logged: the commit itself stands."""
        data = encode_marks(self.positions)
        if data == self._written:
            return
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._fd, data, 0)
            if len(data) < len(self._written):
                os.ftruncate(self._fd, len(data))
            self._written = data
        except OSError as exc:
            log.warning("high_mark_unwritten", extra={"f": {"errno": exc.errno}})

    def close(self) -> None:
        """Sync and close."""
        if self._fd is not None:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None
