"""What `covey connect` wrote where, so that `covey disconnect` can undo it to the byte.

For each file there is a record and, if the file existed, its bytes as they were, in the state
folder, which only we can read (a client's file may hold others' secrets). Source: daemon.md 7.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING, Literal, NamedTuple

from daemon.paths import make_private

if TYPE_CHECKING:
    from daemon.connect.files import Document


class Record(NamedTuple):
    """One file that we wrote, or had a client write.

    Attributes:
        client: its name.
        agent: whose token the entry uses.
        what: our server, or our hooks.
        path: the file.
        project: whether it is a project's.
        existed: whether the file was there before.
        folder_existed: whether its folder was.
        written: SHA-256 of the file after we wrote it, hex; empty while that is not known.
        keep: by place in the file, how many steps of the way were there before us.
        command: the `covey` that the entry names.
        env: the entry's environment.
    """

    client: str
    agent: str
    what: Literal["server", "hooks"]
    path: str
    project: bool
    existed: bool
    folder_existed: bool
    written: str
    keep: dict[str, int]
    command: str
    env: dict[str, str]

    @property
    def key(self) -> str:
        """Name of its files."""
        place = "." + digest(os.path.realpath(self.path).encode())[:12] if self.project else ""
        return f"{self.client}.{self.what}{place}"


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


class Records:
    """The records of one node.

    Args:
        folder: where they are; made when the first one is written.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def all(self, client: str) -> list[Record]:
        """Of one client; what cannot be read is left out: its file is then edited by span."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        found: list[Record] = []
        for name in names:
            if not name.startswith(f"{client}.") or not name.endswith(".json"):
                continue
            with (
                contextlib.suppress(OSError, ValueError, TypeError),
                open(self._path(name), encoding="utf-8") as file,
            ):
                found.append(Record(**json.load(file)))
        return found

    def find(self, client: str, what: str, path: str) -> Record | None:
        """The record of a file, None if we did not write it."""
        return next((r for r in self.all(client) if r.what == what and r.path == path), None)

    def save(self, record: Record, before: bytes | None) -> None:
        """Keep a record, and the bytes from before us.

        Args:
            record: what is written.
            before: None leaves those of an earlier save as they are.
        """
        make_private(self._folder)
        if before is not None:
            self._write(f"{record.key}.before", before)
        self._write(f"{record.key}.json", json.dumps(record._asdict()).encode())

    def before(self, record: Record) -> bytes | None:
        """The file's bytes from before us; None if there was no file.

        Raises:
            FileNotFoundError: there was one, and its bytes are not known any more.
        """
        if not record.existed:
            return None
        with open(self._path(f"{record.key}.before"), "rb") as file:
            return file.read()

    def forget(self, record: Record) -> None:
        """Drop a record and the bytes."""
        for name in (f"{record.key}.before", f"{record.key}.json"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(name))

    def forget_bytes(self, record: Record) -> None:
        """Drop the bytes alone: the file was changed by others since, they are no way back."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(f"{record.key}.before"))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _write(self, name: str, data: bytes) -> None:
        temporary = self._path(f"{name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self._path(name))


def is_untouched(record: Record, document: Document) -> bool:
    """Whether the file is still as it was after us."""
    return (
        bool(record.written)
        and document.data is not None
        and (digest(document.data) == record.written)
    )
