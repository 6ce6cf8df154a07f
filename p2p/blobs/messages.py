"""The peer RPC methods of blobs and their messages, each with its limits.

Source: docs/specs/blobs.md s.3.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from p2p.blobs.manifest import (
    BLOB_BYTES_MAX,
    CHUNK_BYTES_MAX,
    CHUNKS_MAX,
    HASH_BYTES,
    MANIFEST_BYTES_MAX,
)
from p2p.rpc_types import Method

HAVE_IDS_MAX: Final = 64
"""Ids in one `blob.have`: its largest answer, of bitmaps alone, is 256 KiB."""

GET_CHUNKS_MAX: Final = 256
"""Chunks in one `blob.get`: 64 MiB of the usual size."""

ITEM_BYTES_MAX: Final = 256 * 1024
"""Data of one item: the credit that a call starts with, so that a usual chunk is one item."""

GET_CONCURRENT_MAX: Final = 24
"""`blob.get` calls of one peer at once: a window of 16 and some that were cancelled just now."""

Id: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Index: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=CHUNKS_MAX)]
Data: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=1, max_length=ITEM_BYTES_MAX)]


class HaveQuery(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Which of these do you have, that I may read?"""

    ids: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=HAVE_IDS_MAX)]


class Held(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a peer has of one blob."""

    size: Annotated[int, msgspec.Meta(ge=0, le=BLOB_BYTES_MAX)]
    """Bytes of the blob: a hint, only the manifest counts."""
    bitmap: Annotated[bytes, msgspec.Meta(max_length=CHUNKS_MAX // 8)]
    """Its chunks, bit `i % 8` of byte `i // 8` for chunk i; empty: all of them."""


class HaveReply(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """An answer for each id asked, in order; nil: not here, or not for you."""

    held: Annotated[list[Held | None], msgspec.Meta(max_length=HAVE_IDS_MAX)]


class ManifestQuery(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The manifest of a blob, please: it comes as items of bytes."""

    id: Id


class ManifestReply(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """All of it was sent."""

    size: Annotated[int, msgspec.Meta(ge=0, le=MANIFEST_BYTES_MAX)]
    """Bytes of the manifest."""


class GetQuery(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """These chunks, please: they come as items, in the order asked."""

    id: Id
    indices: Annotated[list[Index], msgspec.Meta(min_length=1, max_length=GET_CHUNKS_MAX)]


class Piece(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A part of a chunk; the parts of a chunk follow each other without gaps."""

    index: Index
    offset: Annotated[int, msgspec.Meta(ge=0, lt=CHUNK_BYTES_MAX)]
    """Within the chunk."""
    data: Data


class GetReply(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """All of them were sent."""

    chunks: Annotated[int, msgspec.Meta(ge=0, le=GET_CHUNKS_MAX)]


HAVE: Final = Method("blob.have", HaveQuery, HaveReply, idempotent=True)
MANIFEST: Final = Method(
    "blob.manifest",
    ManifestQuery,
    ManifestReply,
    item_out=Data,
    idempotent=True,
    concurrent_max=4,
)
GET: Final = Method(
    "blob.get",
    GetQuery,
    GetReply,
    item_out=Piece,
    idempotent=True,
    concurrent_max=GET_CONCURRENT_MAX,
)
