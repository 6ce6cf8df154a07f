"""A queue of bytes that neither copies large pieces nor drowns in small ones.

Large pieces are kept as they came. Small ones are gathered: a peer that sends its window of 256 KiB
as single bytes would otherwise cost some 60 bytes of bookkeeping for each.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_SMALL_BYTES_MAX: Final = 2048
_GATHER_BYTES_MAX: Final = 16_384


class ChunkQueue:
    """First in, first out bytes."""

    __slots__ = ("_chunks", "_gathering", "_size")

    def __init__(self) -> None:
        self._chunks: deque[bytes | bytearray | memoryview] = deque()
        self._size = 0
        self._gathering = False  # the last chunk is a bytearray of ours that may still grow

    def __len__(self) -> int:
        return self._size

    def append(self, data: bytes | memoryview) -> None:
        """Add `data`, which must not change afterwards."""
        size = len(data)
        if not size:
            return
        self._size += size
        if size > _SMALL_BYTES_MAX:
            self._chunks.append(data)
            self._gathering = False
            return
        if self._gathering:
            last = self._chunks[-1]
            assert isinstance(last, bytearray)
            last += data
            self._gathering = len(last) < _GATHER_BYTES_MAX
            return
        if self._chunks and len(self._chunks[-1]) <= _SMALL_BYTES_MAX:
            # Two small ones in a row: from here on they are gathered.
            self._chunks[-1] = bytearray(self._chunks[-1]) + data
            self._gathering = True
            return
        self._chunks.append(data)

    def take_piece(self, size_max: int) -> bytes | bytearray:
        """Remove and return 1 to `size_max` bytes, whatever comes without joining; b"" if empty."""
        if not self._size:
            return b""
        first = self._chunks[0]
        if len(first) <= size_max:
            self._pop_first()
            return bytes(first) if isinstance(first, memoryview) else first
        piece = bytes(memoryview(first)[:size_max])
        self._cut_first(size_max)
        return piece

    def take_into(self, parts: list[bytes | bytearray | memoryview], size: int) -> None:
        """Move exactly `size` bytes (no more than there are) to the end of `parts`."""
        assert size <= self._size
        while size:
            first = self._chunks[0]
            if len(first) <= size:
                size -= len(first)
                self._pop_first()
                parts.append(first)
            else:
                piece = memoryview(first)[:size]
                # A bytearray of ours is cut in place next, which needs its memory unshared.
                parts.append(bytes(piece) if isinstance(first, bytearray) else piece)
                del piece
                self._cut_first(size)
                size = 0

    def clear(self) -> None:
        """Forget everything."""
        self._chunks.clear()
        self._size = 0
        self._gathering = False

    def _pop_first(self) -> None:
        self._size -= len(self._chunks.popleft())
        if not self._chunks:
            self._gathering = False

    def _cut_first(self, size: int) -> None:
        first = self._chunks[0]
        self._size -= size
        if isinstance(first, bytearray):
            del first[:size]
        else:
            self._chunks[0] = memoryview(first)[size:]
