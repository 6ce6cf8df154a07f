"""Files beneath a named folder, and never one outside: how a peer's path is read.

A path is opened component by component, each from its parent's descriptor and none through a
symbolic link, so that whoever swaps a folder for a link between two looks gains nothing: there is
no moment at which the kernel follows a name that we did not just open. Only regular files and
folders are read; what could block or act when opened (pipes, devices, sockets) is refused before.
Names that begin with a dot are not served: that is where secrets lie.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Bytes of a path: Linux's own limit; levels: more than any tree of documents has (guess).
PATH_BYTES_MAX: Final = 4096
DEPTH_MAX: Final = 32
# A pattern's part is compared with each name in a folder: short ones keep that linear.
PATTERN_CHARS_MAX: Final = 1024
# Names looked at for one row, a second or so of a warm disk.
ENTRIES_MAX: Final = 100_000

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Refusal(Exception):
    """Why a row gets no file.

    Args:
        reason: `bad_path`, `bad_pattern`, `hidden`, `not_found`, `no_file`, `too_large`,
            `unreadable` or `cancelled`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Found:
    """A file beneath the root.

    Attributes:
        path: from the root, `/` between its parts.
        size_bytes: when it was looked at.
    """

    path: str
    size_bytes: int


def parts_of(path: str) -> list[str]:
    """The components of a peer's path.

    Raises:
        Refusal: `bad_path` for what is absolute, empty, too long or deep, or has an empty, `.` or
            `..` component, a NUL or half of a surrogate pair; `hidden` for names with a dot first.
    """
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise Refusal("bad_path") from None
    parts = path.split("/")
    if not path or size > PATH_BYTES_MAX or len(parts) > DEPTH_MAX or "\0" in path:
        raise Refusal("bad_path")
    if any(part in {"", ".", ".."} for part in parts):
        raise Refusal("bad_path")
    if any(part.startswith(".") for part in parts):
        raise Refusal("hidden")
    return parts


class Root:
    """A folder whose files may be read.

    Args:
        path: where it is; itself the operator's word, so it may be a link.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self) -> int:
        """A descriptor of the folder; the caller closes it.

        Raises:
            Refusal: `unreadable`.
        """
        try:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            raise Refusal("unreadable") from None

    def read(self, path: str, *, bytes_max: int) -> bytes:
        """The bytes of one file.

        Raises:
            Refusal: and why.
        """
        *folders, name = parts_of(path)
        folder = self._folder(folders)
        try:
            return _read(folder, name, bytes_max)
        finally:
            os.close(folder)

    def look(self, path: str) -> Found:
        """One file, unopened.

        Raises:
            Refusal: and why.
        """
        *folders, name = parts_of(path)
        folder = self._folder(folders)
        try:
            return Found(path, _look(folder, name))
        finally:
            os.close(folder)

    def find(self, pattern: str, *, stopped: Callable[[], bool]) -> tuple[list[Found], int]:
        """Files that match, ascending by path, and how many were left out for their names.

        Args:
            pattern: parts between `/`, each with `*`, `?` and `[...]`; `**` is any number of
                folders, at the end everything below.
            stopped: asked at each folder whether to give up.

        Raises:
            Refusal: `bad_pattern`; `too_large` when more names were seen than a row may cost;
                `cancelled`; `unreadable` when the root is gone.
        """
        matcher = Pattern(pattern)
        found: list[Found] = []
        walk = _Walk(self, matcher, found)
        while walk.waiting:
            if stopped():
                raise Refusal("cancelled")
            walk.step()
        found.sort(key=lambda file: file.path)
        return found, walk.unnamed

    def _folder(self, parts: Sequence[str]) -> int:
        """A descriptor of the folder at `parts`."""
        here = self.open()
        for part in parts:
            try:
                below = os.open(part, _FOLDER_FLAGS, dir_fd=here)
            except OSError as error:
                raise Refusal(_reason(error)) from None
            finally:
                os.close(here)
            here = below
        return here


class _Walk:
    """Folders still to look into, each with the places of the pattern it may continue."""

    def __init__(self, root: Root, pattern: Pattern, found: list[Found]) -> None:
        self.waiting: list[tuple[list[str], frozenset[int]]] = [([], pattern.start())]
        self.unnamed = 0
        self._root = root
        self._pattern = pattern
        self._found = found
        self._seen = 0

    def step(self) -> None:
        """Look into one folder; one that has gone or may not be read has no files."""
        parts, places = self.waiting.pop()
        try:
            folder = self._root._folder(parts)  # noqa: SLF001 - the walk is a part of the root
        except Refusal:
            if not parts:
                raise
            return
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._entry(parts, places, entry)
        except OSError:
            return
        finally:
            os.close(folder)

    def _entry(self, parts: list[str], places: frozenset[int], entry: os.DirEntry[str]) -> None:
        self._seen += 1
        if self._seen > ENTRIES_MAX:
            raise Refusal("too_large")
        name = entry.name
        if name.startswith("."):
            return
        if not _nameable(name):
            self.unnamed += 1
            return
        if entry.is_dir(follow_symlinks=False):
            below = self._pattern.below(places, name)
            if below and len(parts) + 2 <= DEPTH_MAX:
                self.waiting.append(([*parts, name], below))
        elif entry.is_file(follow_symlinks=False) and self._pattern.matches(places, name):
            size_bytes = entry.stat(follow_symlinks=False).st_size
            self._found.append(Found("/".join([*parts, name]), size_bytes))


class Pattern:
    """A pattern as a small automaton: its state is the set of parts that may come next.

    So a tree is walked once, and a pattern full of `**` costs no more than its length a name.

    Raises:
        Refusal: `bad_pattern`.
    """

    def __init__(self, pattern: str) -> None:
        parts = pattern.split("/")
        if not pattern or len(pattern) > PATTERN_CHARS_MAX or len(parts) > DEPTH_MAX:
            raise Refusal("bad_pattern")
        if "\0" in pattern or any(part in {"", ".", ".."} for part in parts):
            raise Refusal("bad_pattern")
        if parts[-1] == "**":
            parts.append("*")
        self._parts = [None if part == "**" else _compiled(part) for part in parts]

    def start(self) -> frozenset[int]:
        """The state at the root."""
        return self._closed({0})

    def below(self, places: frozenset[int], name: str) -> frozenset[int]:
        """The state in the folder `name`; empty: nothing below can match."""
        reached = set()
        for place in places:
            part = self._parts[place]
            if part is None:
                reached.add(place)
            elif part.match(name) and place + 1 < len(self._parts):
                reached.add(place + 1)
        return self._closed(reached)

    def matches(self, places: frozenset[int], name: str) -> bool:
        """Whether the file `name` ends a match."""
        last = self._parts[-1]
        assert last is not None, "a pattern that ends in ** got a * behind it"
        return len(self._parts) - 1 in places and last.match(name) is not None

    def _closed(self, places: set[int]) -> frozenset[int]:
        """`**` may also stand for no folder at all."""
        closed = set(places)
        for place, part in enumerate(self._parts):
            if part is None and place in closed:
                closed.add(place + 1)
        return frozenset(closed)


def _compiled(part: str) -> re.Pattern[str]:
    try:
        return re.compile(fnmatch.translate(part))
    except (re.error, OverflowError):
        raise Refusal("bad_pattern") from None


def _nameable(name: str) -> bool:
    """Whether a row can say `name`: rows are UTF-8 in NFC, file names are any bytes."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return unicodedata.is_normalized("NFC", name)


def _look(folder: int, name: str) -> int:
    """Bytes of the regular file `name` in `folder`, without opening it."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        raise Refusal(_reason(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise Refusal("no_file")
    return status.st_size


def _read(folder: int, name: str, bytes_max: int) -> bytes:
    # Looked at first, so that a pipe's writer is not woken nor a device opened; looked at again
    # afterwards, because the name may be another file's by then.
    if _look(folder, name) > bytes_max:
        raise Refusal("too_large")
    try:
        file = os.open(name, _FILE_FLAGS, dir_fd=folder)
    except OSError as error:
        raise Refusal(_reason(error)) from None
    with os.fdopen(file, "rb", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise Refusal("no_file")
        return _read_all(stream.read, bytes_max)


def _read_all(read: Callable[[int], bytes | None], bytes_max: int) -> bytes:
    """All of a file that may grow meanwhile."""
    blocks: list[bytes] = []
    left = bytes_max + 1
    while left > 0:
        try:
            block = read(min(left, 1 << 20))
        except OSError:
            raise Refusal("unreadable") from None
        if not block:
            return b"".join(blocks)
        blocks.append(block)
        left -= len(block)
    raise Refusal("too_large")


def _reason(error: OSError) -> str:
    if error.errno in {errno.ENOENT, errno.ENAMETOOLONG}:
        return "not_found"
    if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.ENXIO}:
        return "no_file"
    return "unreadable"
