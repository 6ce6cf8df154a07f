"""Reads and replaces a file of somebody else's: whole, or not at all.

A replacement is written beside the file, synced, renamed over it and read again. It keeps the mode,
follows symbolic links (dotfiles are often links into a repository, which must stay links), and
refuses when the file changed since it was read. Source: daemon.md 7.
"""

from __future__ import annotations

import difflib
import os
import stat
from typing import Final, NamedTuple

FILE_BYTES_MAX: Final = 32 * 2**20
"""Larger files are not edited: guess, the largest seen has 9 MB."""

_TEMPORARY_TRIES: Final = 100


class FileError(Exception):
    """A file cannot be edited; the message says why."""


class Document(NamedTuple):
    """A file as it was read.

    Attributes:
        path: as the client names it.
        real: where its bytes are, behind symbolic links.
        data: its bytes, None when there is no file.
        mode: its permissions, of a new file those that we give it.
    """

    path: str
    real: str
    data: bytes | None
    mode: int

    @property
    def text(self) -> str:
        """The text, empty when there is no file.

        Raises:
            FileError: it is not UTF-8.
        """
        try:
            return (self.data or b"").decode("utf-8")
        except UnicodeDecodeError:
            raise FileError(f"{self.path} is not UTF-8") from None


def read(path: str) -> Document:
    """Read a file that may be absent.

    Raises:
        FileError: it is no plain file, too large, or not readable.
    """
    real = os.path.realpath(path)
    try:
        # Without waiting for the other end, should it be a pipe.
        descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return Document(path, real, None, 0o600)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from None
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise FileError(f"{path} is no plain file")
    with os.fdopen(descriptor, "rb") as file:
        if info.st_size > FILE_BYTES_MAX:
            raise FileError(f"{path} has more than {FILE_BYTES_MAX} bytes")
        return Document(path, real, file.read(), stat.S_IMODE(info.st_mode))


def check_inside(path: str, folder: str) -> None:
    """Whether a file is below a folder behind all symbolic links, too.

    A project comes from others: a link in it would let them choose what we write to.

    Raises:
        FileError: a link leads out of the folder.
    """
    real, top = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, top]) != top:
        raise FileError(f"{path} leads out of {folder}, to {real}")


def check_writable(document: Document) -> None:
    """Whether the file may be replaced.

    Raises:
        FileError: it is read only, or its folder is.
    """
    if document.data is not None and not document.mode & 0o222:
        raise FileError(f"{document.path} is read only")
    folder = os.path.dirname(document.real)
    while folder and not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise FileError(f"nothing can be written into {folder}")


def replace(document: Document, data: bytes | None) -> None:
    """Put `data` in the place of what was read; None removes the file.

    Raises:
        FileError: the file changed meanwhile, is read only, or cannot be written.
    """
    check_writable(document)
    try:
        if data is None:
            _check_unchanged(document)
            os.unlink(document.real)
        else:
            os.makedirs(os.path.dirname(document.real), mode=0o700, exist_ok=True)
            _write(document, data)
        _sync_folder(os.path.dirname(document.real))
    except OSError as error:
        raise FileError(f"{document.path} cannot be written: {error.strerror}") from None


def _write(document: Document, data: bytes) -> None:
    temporary, descriptor = _temporary(document.real)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), document.mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _check_unchanged(document)
        os.rename(temporary, document.real)
    except BaseException:
        os.unlink(temporary)
        raise


def _temporary(real: str) -> tuple[str, int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    for number in range(_TEMPORARY_TRIES):
        path = f"{real}.covey-{os.getpid()}-{number}"
        try:
            return path, os.open(path, flags, 0o600)
        except FileExistsError:
            continue
    raise FileError(f"too many left files beside {real}")


def _check_unchanged(document: Document) -> None:
    if read(document.path)[1:3] != document[1:3]:
        raise FileError(f"{document.path} was changed by something else meanwhile")


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def diff(path: str, before: str, after: str) -> str:
    """The change as people read it; empty when there is none."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), path, path
    )
    # A last line without its end would run into the next one.
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
