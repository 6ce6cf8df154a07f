"""What a blob's name stands for: a list of chunk hashes, and the hash of that list.

A blob is cut into chunks of one size. The *manifest* lists their SHA-256 hashes, and a `BlobId` is
the SHA-256 of the manifest. So whoever has the id can check a manifest, whoever has the manifest
can check each chunk by itself, and chunks may come from anybody in any order.

The chunk size is a function of the blob's size, so that the same bytes have the same id wherever
they are put. Source: docs/specs/blobs.md s.2.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal, NamedTuple, NewType

import msgspec

from p2p.errors import DecodeError

BlobId = NewType("BlobId", bytes)
"""SHA-256 of a manifest: 32 bytes."""

ID_BYTES: Final = 32
HASH_BYTES: Final = 32

CHUNK_BYTES_MIN: Final = 256 * 1024
"""The usual chunk. Source: docs/specs/blobs.md s.2; BitTorrent's and IPFS's usual size too."""

CHUNK_BYTES_MAX: Final = 4 * 1024 * 1024
"""The largest chunk: what a receiver must hold unverified."""

CHUNKS_MAX: Final = 32_768
"""Chunks of one blob: a manifest of a mebibyte."""

BLOB_BYTES_MAX: Final = CHUNK_BYTES_MAX * CHUNKS_MAX
"""128 GiB: larger content is several blobs."""

MANIFEST_BYTES_MAX: Final = CHUNKS_MAX * HASH_BYTES + 32
"""All hashes, and room for the five bytes to 17 before them."""


class _Wire(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    size: Annotated[int, msgspec.Meta(ge=0, le=BLOB_BYTES_MAX)]
    chunk_bytes: Annotated[int, msgspec.Meta(ge=CHUNK_BYTES_MIN, le=CHUNK_BYTES_MAX)]
    hashes: Annotated[bytes, msgspec.Meta(max_length=CHUNKS_MAX * HASH_BYTES)]


_decoder: Final = msgspec.msgpack.Decoder(_Wire)
_encoder: Final = msgspec.msgpack.Encoder()


class Span(NamedTuple):
    """Where a chunk lies in its blob."""

    offset: int
    size: int


class Manifest:
    """The chunks of one blob. Immutable.

    Args:
        size: bytes of the blob.
        hashes: SHA-256 of each chunk, joined.

    Invariants: `chunk_bytes` follows from `size`; there is a hash for every chunk.
    """

    __slots__ = ("chunk_bytes", "chunks", "hashes", "size")

    def __init__(self, size: int, hashes: bytes) -> None:
        self.size = size
        self.chunk_bytes = chunk_bytes_for(size)
        self.chunks = chunk_count(size)
        self.hashes = hashes
        assert len(hashes) == self.chunks * HASH_BYTES, "a hash for each chunk"

    def hash_of(self, index: int) -> bytes:
        """SHA-256 of a chunk."""
        assert 0 <= index < self.chunks
        return self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def span(self, index: int) -> Span:
        """Where a chunk lies; the last one may be short."""
        assert 0 <= index < self.chunks
        offset = index * self.chunk_bytes
        return Span(offset, min(self.chunk_bytes, self.size - offset))

    def bytes_of(self, have: int) -> int:
        """Bytes of the chunks whose bits are set in `have`."""
        count = have.bit_count() * self.chunk_bytes
        if self.chunks and have >> (self.chunks - 1) & 1:
            count -= self.chunk_bytes - self.span(self.chunks - 1).size
        return count

    @property
    def whole(self) -> int:
        """The bitmap of all chunks."""
        return (1 << self.chunks) - 1

    def encode(self) -> bytes:
        """The one encoding, whose hash is the blob's id."""
        return _encoder.encode(_Wire(1, self.size, self.chunk_bytes, self.hashes))

    @property
    def id(self) -> BlobId:
        """The blob's name."""
        return BlobId(hashlib.sha256(self.encode()).digest())


def chunk_bytes_for(size: int) -> int:
    """The chunk size of a blob of `size` bytes: 256 KiB, doubled until 32,768 chunks suffice."""
    chunk_bytes = CHUNK_BYTES_MIN
    while chunk_bytes < CHUNK_BYTES_MAX and chunk_bytes * CHUNKS_MAX < size:
        chunk_bytes *= 2
    return chunk_bytes


def chunk_count(size: int) -> int:
    """How many chunks a blob of `size` bytes has; 0 for the empty one."""
    return -(-size // chunk_bytes_for(size))


def decode_manifest_untrusted(data: bytes) -> Manifest:
    """Decode a manifest.

    Args:
        data: foreign bytes.

    Raises:
        DecodeError: no manifest, one with too many or too few hashes, or not in its one encoding.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise DecodeError(f"manifest of {len(data)} bytes, at most {MANIFEST_BYTES_MAX} allowed")
    try:
        wire = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecodeError("not a manifest") from None
    if wire.chunk_bytes != chunk_bytes_for(wire.size):
        raise DecodeError("the manifest's chunk size is not the one its blob's size asks for")
    if len(wire.hashes) != chunk_count(wire.size) * HASH_BYTES:
        raise DecodeError("the manifest has not one hash for each chunk")
    manifest = Manifest(wire.size, wire.hashes)
    if manifest.encode() != data:
        raise DecodeError("the manifest is not in its smallest encoding")
    return manifest


def open_manifest(blob: BlobId, data: bytes) -> Manifest:
    """The manifest of a blob, proved by the blob's id.

    Raises:
        DecodeError: these bytes are not the manifest of that blob.
    """
    if hashlib.sha256(data).digest() != blob:
        raise DecodeError("the manifest is that of another blob")
    return decode_manifest_untrusted(data)


def chunk_is(manifest: Manifest, index: int, data: bytes | bytearray | memoryview) -> bool:
    """Whether `data` is chunk `index`. Hashes up to 4 MiB: offload it."""
    return len(data) == manifest.span(index).size and hashlib.sha256(
        data
    ).digest() == manifest.hash_of(index)


def blob_text(blob: BlobId) -> str:
    """The id as people write it: 64 hexadecimal digits."""
    return blob.hex()


def parse_blob_untrusted(text: str) -> BlobId:
    """Read an id that somebody wrote.

    Raises:
        DecodeError: not 64 hexadecimal digits.
    """
    if len(text) != 2 * ID_BYTES or not set(text.lower()) <= set("0123456789abcdef"):
        raise DecodeError("a blob's id has 64 hexadecimal digits")
    return BlobId(bytes.fromhex(text))


def provider_key(blob: BlobId) -> bytes:
    """The key under which the DHT knows who has a blob: its SHA-256 multihash."""
    return b"\x12\x20" + blob


# --- bitmaps --------------------------------------------------------------------------------------
# In memory a bitmap is an int, bit i for chunk i: and, or and lowest-bit cost a microsecond for the
# largest blob. On the wire and on disk it is its little-endian bytes, all of them.


def encode_bitmap(have: int, chunks: int) -> bytes:
    """The bytes of a bitmap: chunk i is bit `i % 8` of byte `i // 8`."""
    return have.to_bytes(-(-chunks // 8), "little")


def decode_bitmap_untrusted(data: bytes, chunks: int) -> int:
    """A foreign bitmap of `chunks` chunks.

    Raises:
        DecodeError: another length, or a bit beyond the last chunk.
    """
    if len(data) != -(-chunks // 8):
        raise DecodeError(f"bitmap of {len(data)} bytes for {chunks} chunks")
    have = int.from_bytes(data, "little")
    if have >> chunks:
        raise DecodeError("the bitmap names chunks beyond the last one")
    return have


def lowest_from(bits: int, start: int) -> int | None:
    """The lowest set bit at or above `start`, else the lowest of all; None if there is none."""
    above = bits >> start
    if above:
        return start + (above & -above).bit_length() - 1
    return (bits & -bits).bit_length() - 1 if bits else None
