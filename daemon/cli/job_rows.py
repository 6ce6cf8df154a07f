"""Rows for `covey job` from files of any size: JSON Lines or CSV, read a line at a time.

Few rows go with the job; more are streamed into a blob on this machine, and the job names it.
"""

from __future__ import annotations

import base64
import csv
import itertools
import json
import sys
from contextlib import contextmanager

from daemon.cli import out
from daemon.cli.client import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from daemon.cli.client import Client
    from daemon.json_types import Json

INLINE_BYTES_MAX = 1 << 20
"""Rows beyond travel as a blob: a request has a limit, and the daemon reads one at a time."""
PIECE_BYTES = 512 * 1024


def rows_of(client: Client, path: str) -> Json:
    """What stands for the rows of a file in a job: themselves, or {"blob": id}.

    Args:
        client: takes the blob.
        path: a file; `-` is standard input; `.csv` is a table with a header, else JSON Lines.
    """
    pieces = _pieces(_lines(path))
    first = next(pieces, b"")
    second = next(pieces, b"")
    if not second and len(first) <= INLINE_BYTES_MAX:
        return [json.loads(line) for line in first.splitlines()]
    return {"blob": _upload(client, itertools.chain((first, second), pieces))}


def _lines(path: str) -> Iterator[bytes]:
    """Each row as a line of JSON."""
    with _opened(path) as file:
        if path.endswith(".csv"):
            yield from _csv_lines(path, file)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _checked(path, number, line)


def _checked(path: str, number: int, line: str) -> bytes:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _wrong(f"{path}, line {number}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise _wrong(f"{path}, line {number}: a row is a JSON object")
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _csv_lines(path: str, file: TextIO) -> Iterator[bytes]:
    reader = csv.reader(file)
    try:
        header = next(reader, None)
        if header is None or len(set(header)) != len(header) or "" in header:
            raise _wrong(f"{path}: the first line must name each column once")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise _wrong(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, the header has"
                    f" {len(header)}"
                )
            row = dict(zip(header, cells, strict=True))
            yield json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except csv.Error as error:
        raise _wrong(f"{path}, line {reader.line_num}: {error}") from None


@contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    if path == "-":
        yield sys.stdin
        return
    try:
        with open(
            path, encoding="utf-8-sig", newline="" if path.endswith(".csv") else None
        ) as file:
            yield file
    except OSError as error:
        raise _wrong(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _wrong(f"{path}: not UTF-8") from None


def _pieces(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines, about `PIECE_BYTES` at a time, the first piece up to what goes inline."""
    most = INLINE_BYTES_MAX
    piece = bytearray()
    for line in lines:
        if piece and len(piece) + len(line) > most:
            yield bytes(piece)
            piece.clear()
            most = PIECE_BYTES
        piece += line
    if piece:
        yield bytes(piece)


def _upload(client: Client, pieces: Iterator[bytes]) -> Json:
    """Store pieces as one blob that may go when room is needed; its id."""
    upload, offset = "", 0
    for piece in pieces:
        for start in range(0, len(piece), PIECE_BYTES):
            data = piece[start : start + PIECE_BYTES]
            answer = out.mapping(client.call("blob.put", _put(upload, offset, data)))
            upload = out.text(answer.get("upload"))
            offset += len(data)
    done = out.mapping(client.call("blob.put", {**_put(upload, offset, b""), "last": True}))
    return done.get("id")


def _put(upload: str, offset: int, data: bytes) -> dict[str, Json]:
    text = base64.b64encode(data).decode("ascii")
    return {"upload": upload, "offset": offset, "data": text, "tag": ""}


def _wrong(message: str) -> CliError:
    return CliError(message, 2, name="invalid_params")
