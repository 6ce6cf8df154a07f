"""Looking for what was erased in every file of a node.

Before an erasure `prepare` takes of each text three random slices and its three rarest words;
afterwards every file below the state folder is searched for them, as bytes. Slices find a text that
was left whole, in a table, a free page, a log or a backup. Words find what an index kept: FTS5
stores stems, and of a stem that shares its beginning with the one before only the rest, so the end
of the stem is looked for. Words are the weaker sign: other memories may use them, and so may a
program's log; the caller rules out the first, files of logs are searched for unmistakable ones
only.

The search runs in a process of its own (`python -m memory.erasure.residue`, a request on its
standard input): whoever opens and closes a database's file beside SQLite inside one process drops
SQLite's locks on it (https://www.sqlite.org/howtocorrupt.html s.2.2). Source: docs/specs/memory.md,
*Erasure*.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from memory.erasure.needleindex import NeedleIndex

SLICES: Final = 3
WORDS: Final = 3
SLICE_BYTES: Final = 32
KEY_BYTES: Final = 6
"""Shortest needle: six bytes that occur by chance once in 2^48 places, so never in a node's files;
a shorter one says little even if it is there."""

CANDIDATES: Final = 12
"""Longest words of a text whose frequency is looked up."""

PLAIN_BYTES: Final = 12
"""Words of letters this long, or with a digit, are looked for in logs too: they are no words of the
program's own."""

BLOCK_BYTES: Final = 1 << 20
HITS_MAX: Final = 1_000
"""Findings after which a search ends: enough to know that it failed."""

LOG_FOLDERS: Final = ("logs", "audit")

_WORD: Final = re.compile(r"\w+")


class Needle(msgspec.Struct, frozen=True, array_like=True):
    """Bytes to look for.

    Attributes:
        item: number of the text it is of.
        kind: `slice`, `word`, or `stem` for the end of a word as an index spells it.
        data: 6 to 64 bytes.
        logs: whether it is looked for in logs too.
    """

    item: int
    kind: str
    data: bytes
    logs: bool


class Finding(msgspec.Struct, frozen=True, array_like=True):
    """A needle in a file.

    Attributes:
        needle: its number.
        file: path below the state folder.
        offset: of its first byte.
    """

    needle: int
    file: str
    offset: int


class Scan(msgspec.Struct, array_like=True):
    """What a search went over and found.

    Attributes:
        files: how many were read.
        bytes: how many bytes those have.
        findings: at most 1,000.
        unread: files that could not be read.
    """

    files: int
    bytes: int
    findings: list[Finding]
    unread: list[str]


class _Request(msgspec.Struct, array_like=True):
    folder: str
    needles: list[Needle]


# ---- before the erasure


def prepare(
    item: int,
    pieces: Sequence[str],
    rng: random.Random,
    frequency: Callable[[str], tuple[str, int]],
) -> list[Needle]:
    """Needles of one text.

    Args:
        item: number that the needles carry.
        pieces: the text as it is stored: chunks, title, values of claims.
        rng: draws the slices.
        frequency: (stem, number of chunks that hold it) of a word.
    """
    needles = [Needle(item, "slice", data, logs=True) for data in _slices(pieces, rng)]
    words = {word for piece in pieces for word in _WORD.findall(piece)}
    long = sorted(
        (word for word in words if len(word.encode()) >= KEY_BYTES),
        key=lambda word: (not _unmistakable(word), -len(word), word),
    )
    known = [(word, *frequency(word)) for word in long[:CANDIDATES]]
    for word, stem, _ in sorted(known, key=lambda entry: entry[2])[:WORDS]:
        needles.append(Needle(item, "word", word.encode()[:64], logs=_unmistakable(word)))
        end = stem.encode()[-KEY_BYTES:]
        if len(end) == KEY_BYTES:
            needles.append(Needle(item, "stem", end, logs=False))
    return list(dict.fromkeys(needles))


def _unmistakable(word: str) -> bool:
    return any(c.isdigit() for c in word) or len(word.encode()) >= PLAIN_BYTES


def _slices(pieces: Sequence[str], rng: random.Random) -> Iterator[bytes]:
    usable = [piece for piece in pieces if len(piece.strip().encode()) >= KEY_BYTES]
    for _ in range(SLICES if usable else 0):
        piece = rng.choice(usable)
        data = _slice(piece, rng)
        for _ in range(8):
            if len(set(data)) > 3:
                break
            data = _slice(piece, rng)  # a slice of blanks or dashes says nothing
        yield data
        if not data.isascii():
            escaped = json.dumps(data.decode())[1:-1].encode()
            yield escaped[:64]


def _slice(piece: str, rng: random.Random) -> bytes:
    """A random part of about 32 bytes that begins and ends with whole characters."""
    data = piece.encode()
    start = rng.randrange(max(1, len(data) - SLICE_BYTES + 1))
    part = data[start : start + SLICE_BYTES]
    text = part.decode("utf-8", "ignore").encode()
    return text if len(text) >= KEY_BYTES else data[:SLICE_BYTES].decode("utf-8", "ignore").encode()


# ---- afterwards


def request(folder: Path, needles: Sequence[Needle]) -> bytes:
    """What the searching process reads from its standard input."""
    return msgspec.msgpack.encode(_Request(str(folder), list(needles)))


def read_answer(data: bytes) -> Scan:
    """What it wrote to its standard output."""
    return msgspec.msgpack.decode(data, type=Scan)


def scan(folder: Path, needles: Sequence[Needle]) -> Scan:
    """Search every regular file below a folder; links are not followed.

    Not for the process that has the database open: see the module's text.
    """
    from memory.erasure.needleindex import NeedleIndex

    index = NeedleIndex(needles)
    result = Scan(0, 0, [], [])
    for path in _files(folder):
        name = str(path.relative_to(folder))
        in_logs = name.split(os.sep, maxsplit=1)[0] in LOG_FOLDERS
        try:
            with path.open("rb") as file:
                result.files += 1
                result.bytes += _scan_file(file.read, name, index, result, in_logs=in_logs)
        except OSError:
            result.unread.append(name)
        if len(result.findings) >= HITS_MAX:
            break
    return result


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        try:
            if stat.S_ISREG(path.lstat().st_mode):
                yield path
        except OSError:
            continue  # gone meanwhile, with what it held


def _scan_file(
    read: Callable[[int], bytes], name: str, index: NeedleIndex, result: Scan, *, in_logs: bool
) -> int:
    """Search one file, block by block; how many bytes it has."""
    overlap = index.longest - 1
    tail = b""
    at = 0
    while block := read(BLOCK_BYTES):
        data = tail + block
        # What lies wholly inside the former block's end was reported with it.
        for offset, needle in index.find(data):
            seen = offset + len(index.needles[needle].data) <= len(tail)
            if not seen and (index.needles[needle].logs or not in_logs):
                result.findings.append(Finding(needle, name, at - len(tail) + offset))
        at += len(block)
        tail = data[-overlap:] if overlap else b""
        if len(result.findings) >= HITS_MAX:
            break
    return at


def main() -> int:
    """Answer one request of standard input on standard output."""
    asked = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Request)
    found = scan(Path(asked.folder), asked.needles)
    sys.stdout.buffer.write(msgspec.msgpack.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
