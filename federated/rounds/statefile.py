"""States on disk: safetensors, written whole or not at all.

A file of ours is never changed in place, so it may be mapped. A file that somebody else may rewrite
is read instead: a map of a file that shrinks kills the process that looks.
"""

from __future__ import annotations

import mmap
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from federated.errors import UsageError
from federated.rounds.numeric import safetensors
from federated.rounds.numeric.tensors import check_shape
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federated.rounds.numeric.dtypes import Array
    from federated.rounds.numeric.tensors import Schema

FILE_BYTES_MAX: Final = safetensors.DATA_BYTES_MAX + safetensors.HEADER_BYTES_MAX + 8
_CALL_BYTES_MAX: Final = 1 << 30
"""Darwin refuses a call for 2 GiB or more, Linux shortens it."""


def write_state(path: Path, schema: Schema, tensors: Mapping[str, Array]) -> None:
    """Write a state in the schema's order; after a crash the old file or the new one is there.

    Blocks: run it in a worker.

    Args:
        path: where; an older file is replaced. Its folder must exist.
        schema: of the state.
        tensors: the state.

    Raises:
        UsageError: the state does not follow the schema.
        OSError: the disk is full or refuses; `path` is as it was.
    """
    check_shape(schema, tensors)
    head, chunks = safetensors.dump({spec.name: tensors[spec.name] for spec in schema.tensors})
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(head))
            for chunk in chunks:
                _write_all(file.fileno(), chunk)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data[:_CALL_BYTES_MAX]) :]


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def map_state(path: Path) -> dict[str, Array]:
    """The tensors of a file that nobody changes in place, mapped: nothing is read until it is used.

    The arrays are read-only; the map is closed with the last of them.

    Raises:
        DecodeError: not a tensor file of ours.
        OSError: there is none, or it cannot be read.
    """
    data = memoryview(map_file(path))
    return safetensors.view(data, safetensors.read_header_untrusted(data))


def map_file(path: Path) -> mmap.mmap:
    """A state's file as it lies there, mapped.

    Raises:
        DecodeError: empty, too large, or no regular file.
        OSError: there is none, or it cannot be read.
    """
    descriptor, size = _open(path)
    try:
        if size == 0:  # there is no empty map
            raise DecodeError("tensor file: shorter than its header's length")
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def load_state(path: Path) -> dict[str, Array]:
    """The tensors of a user's file, read into memory: it may change afterwards.

    Blocks: run it in a worker. The arrays are read-only.

    Raises:
        UsageError: not a tensor file that rounds can use, or no regular file; says what is wrong.
        OSError: there is none, or it cannot be read.
    """
    try:
        descriptor, size = _open(path)
        try:
            buffer = memoryview(bytearray(size))
            got = _read_all(descriptor, buffer)
        finally:
            os.close(descriptor)
        data = buffer[:got].toreadonly()
        return safetensors.view(data, safetensors.read_header_untrusted(data))
    except DecodeError as error:
        raise UsageError(f"{path}: {error}") from error


def _open(path: Path) -> tuple[int, int]:
    """Descriptor and size of a regular file."""
    # Without NONBLOCK a pipe would hold the worker until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return descriptor, _size(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise


def _size(status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("tensor file: no regular file")
    if status.st_size > FILE_BYTES_MAX:
        raise DecodeError(f"tensor file: over {FILE_BYTES_MAX} bytes")
    return status.st_size


def _read_all(descriptor: int, buffer: memoryview) -> int:
    got = 0
    while got < len(buffer):
        count = os.readv(descriptor, [buffer[got : got + _CALL_BYTES_MAX]])
        if count == 0:
            break
        got += count
    return got
