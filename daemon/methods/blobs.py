"""`blob.*`: files of any size, by the hash of their content, from whichever machine has them."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from daemon.errors import RpcError
from daemon.methods.group import find_group
from daemon.rpc.registry import Call, method
from p2p.blobs.manifest import BlobId, blob_text, parse_blob_untrusted
from p2p.blobs.pins import PUBLIC, Public
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from daemon.services import Services
    from p2p.blobs.fetch import Progress
    from p2p.blobs.pins import Group
    from p2p.blobs.service import BlobInfo, Blobs

PIECE_BYTES_MAX: Final = 1 << 20
"""Data of one call: a line of 1.4 MiB in base64."""

LIST_LIMIT_MAX: Final = 500
TAG_DEFAULT: Final = "user"


class PutParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A piece of a blob to store.

    Attributes:
        upload: what the first call answered; empty in the first call.
        offset: where the piece begins; a piece that came already may be sent again.
        data: up to a mebibyte, in base64.
        last: whether this makes it a blob.
        group: with the last: which group may read it; default your own machines.
        public: with the last: whether everybody may read it.
        tag: with the last: pin it under this name; empty: it may be collected when room is needed.
    """

    upload: str = ""
    offset: int = 0
    data: str = ""
    last: bool = False
    group: str | None = None
    public: bool = False
    tag: str = TAG_DEFAULT


class Put(msgspec.Struct, kw_only=True):
    """How far an upload is.

    Attributes:
        upload: names it in the next call.
        size: bytes so far.
        id: the blob's id, after the last piece: then it is on disk.
    """

    upload: str
    size: int
    id: str


class GetParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A blob to have here, and a piece of it to read.

    Attributes:
        id: 64 hexadecimal digits.
        offset: where the piece begins.
        length: at most a mebibyte; 0 fetches the blob and reads nothing.
        group: whom to ask if it is not here; default your own machines.
        public: ask everybody.
    """

    id: str
    offset: int = 0
    length: int = 0
    group: str | None = None
    public: bool = False


class BlobPiece(msgspec.Struct, kw_only=True):
    """A piece of a blob that is here whole.

    Attributes:
        id: which.
        size: bytes of the whole blob.
        offset: where the piece begins.
        data: base64; empty at the end.
    """

    id: str
    size: int
    offset: int
    data: str


class BlobParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A blob by its id."""

    id: str


class PinParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A blob to keep.

    Attributes:
        id: one that is here.
        tag: who holds it, 1 to 64 characters.
        group: which group may read it; default your own machines.
        public: whether everybody may read it.
    """

    id: str
    tag: str = TAG_DEFAULT
    group: str | None = None
    public: bool = False


class UnpinParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A blob to hold no longer, under a tag."""

    id: str
    tag: str = TAG_DEFAULT


class DropParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A blob to remove.

    Attributes:
        force: also if it is pinned.
    """

    id: str
    force: bool = False


class ListParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A page of the blobs that are here.

    Attributes:
        after: id of the last one of the page before.
        limit: at most 500.
    """

    after: str = ""
    limit: int = 100


class BlobPin(msgspec.Struct, kw_only=True):
    """Who holds a blob.

    Attributes:
        tag: a name of the holder's choice.
        group: name of the group that may read it by this pin; `own` your machines, `*` everybody.
    """

    tag: str
    group: str


class BlobState(msgspec.Struct, kw_only=True):
    """What is known of a blob that is here.

    Attributes:
        id: 64 hexadecimal digits.
        size: bytes of the blob.
        whole: whether all of it is here.
        bytes_here: what it takes of the disk.
        used_ms: Unix milliseconds of its last use.
        groups: who may read it: names of groups, `own` your machines, `*` everybody.
        pins: who holds it; without any it may be collected when room is needed.
    """

    id: str
    size: int
    whole: bool
    bytes_here: int
    used_ms: int
    groups: list[str]
    pins: list[BlobPin]


class BlobList(msgspec.Struct, kw_only=True):
    """A page of blobs, the last used first.

    Attributes:
        blobs: the page.
        total: how many there are.
        bytes_used: what all of them take of the disk.
        more: whether another page follows.
    """

    blobs: list[BlobState]
    total: int
    bytes_used: int
    more: bool


class Dropped(msgspec.Struct, kw_only=True):
    """Whether something was there to remove."""

    id: str
    removed: bool


def _blobs(services: Services) -> Blobs:
    blobs = services.node.blobs
    if blobs is None:
        raise RpcError("invalid_state", "this daemon keeps no blobs")
    return blobs


def _id(text: str) -> BlobId:
    try:
        return parse_blob_untrusted(text)
    except DecodeError as error:
        raise RpcError("invalid_params", str(error)) from None


def _group(services: Services, name: str | None, *, public: bool) -> Group:
    if public:
        if name is not None:
            raise RpcError("invalid_params", "give either a group or public, not both")
        return PUBLIC
    return None if name is None else find_group(services, name)


def _tag(text: str) -> str:
    if not 0 < len(text) <= 64 or not text.isprintable():
        raise RpcError("invalid_params", "a tag has 1 to 64 printable characters")
    return text


def _data(text: str) -> bytes:
    if len(text) > PIECE_BYTES_MAX * 4 // 3 + 4:
        raise RpcError(
            "too_large",
            f"a piece has at most {PIECE_BYTES_MAX} bytes",
            data={"limit": PIECE_BYTES_MAX},
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RpcError("invalid_params", "data is not base64") from None


@method("blob.put", scope="share")
async def put(call: Call, p: PutParams) -> Put:
    """Store a file as a blob, in pieces; with the answer to the last one it is on disk."""
    services, agent = call.services, call.principal.agent
    group = _group(services, p.group, public=p.public)
    tag = _tag(p.tag) if p.tag else None
    data = _data(p.data)
    if p.offset < 0:
        raise RpcError("invalid_params", "offset is 0 or more")
    upload = p.upload or await services.uploads.begin(agent)
    size = await services.uploads.write(upload, agent, p.offset, data)
    ident = ""
    if p.last:
        ident = await services.uploads.finish(upload, agent, group, tag)
    return Put(upload=upload, size=size, id=ident)


@method("blob.get", scope="share")
async def get(call: Call, p: GetParams) -> BlobPiece:
    """Fetch a blob from the machines that have it, verified, and read a piece of it."""
    if p.offset < 0 or not 0 <= p.length <= PIECE_BYTES_MAX:
        raise RpcError("invalid_params", f"offset is 0 or more, length 0 to {PIECE_BYTES_MAX}")
    blobs, blob = _blobs(call.services), _id(p.id)
    group = _group(call.services, p.group, public=p.public)
    if await blobs.path(blob) is None:
        await _fetch(call, blobs, blob, group)
    info = await blobs.stat(blob)
    data = await blobs.read(blob, p.offset, p.length) if p.length else b""
    if info is None:
        raise RpcError("not_found", "the blob was removed meanwhile")
    return BlobPiece(
        id=p.id, size=info.size, offset=p.offset, data=base64.b64encode(data).decode("ascii")
    )


async def _fetch(call: Call, blobs: Blobs, blob: BlobId, group: Group) -> None:
    """Fetch, and report how far it is, the latest state at a time."""
    send, receive = trio.open_memory_channel[None](1)
    latest: list[Progress] = []

    def heard(progress: Progress) -> None:
        latest[:] = [progress]
        try:
            send.send_nowait(None)
        except trio.WouldBlock:
            return  # whoever reads finds the newer one

    async def tell() -> None:
        async for _ in receive:
            now = latest[0]
            word = "machine" if now.sources == 1 else "machines"
            await call.progress(now.bytes_done, now.bytes_total, f"from {now.sources} {word}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        with send:
            await blobs.fetch(blob, group, on_progress=heard)


@method("blob.stat", scope="share")
async def stat(call: Call, p: BlobParams) -> BlobState:
    """Show what is here of a blob, who may read it and who holds it."""
    info = await _blobs(call.services).stat(_id(p.id))
    if info is None:
        raise _not_here()
    return _state(call.services, info)


@method("blob.pin", scope="share")
async def pin(call: Call, p: PinParams) -> BlobState:
    """Keep a blob that is here, and let a group read it."""
    blobs, blob = _blobs(call.services), _id(p.id)
    group = _group(call.services, p.group, public=p.public)
    tag = _tag(p.tag)
    if await blobs.stat(blob) is None:
        raise _not_here()
    await blobs.pin(blob, group, tag)
    return await stat.handler(call, BlobParams(id=p.id))  # type: ignore[return-value]


@method("blob.unpin", scope="share")
async def unpin(call: Call, p: UnpinParams) -> Dropped:
    """Hold a blob no longer; it may be collected when nobody else does and room is needed."""
    removed = await _blobs(call.services).unpin(_id(p.id), p.tag)
    return Dropped(id=p.id, removed=removed)


@method("blob.drop", scope="share")
async def drop(call: Call, p: DropParams) -> Dropped:
    """Remove a blob from this machine at once."""
    blobs, blob = _blobs(call.services), _id(p.id)
    info = await blobs.stat(blob)
    if info is not None and info.pins and not p.force:
        tags = ", ".join(sorted({tag for tag, _ in info.pins})[:5])
        raise RpcError(
            "conflict", f"it is pinned: {tags}", remedy="Unpin it first, or remove it with --force."
        )
    return Dropped(id=p.id, removed=await blobs.drop(blob))


@method("blob.list", scope="share")
async def list_blobs(call: Call, p: ListParams) -> BlobList:
    """List the blobs that are here, the last used first."""
    if not 1 <= p.limit <= LIST_LIMIT_MAX:
        raise RpcError("invalid_params", f"limit is 1 to {LIST_LIMIT_MAX}")
    found = await _blobs(call.services).listed()
    start = 0
    if p.after:
        after = _id(p.after)
        start = next((i + 1 for i, one in enumerate(found) if one.id == after), 0)
    page = found[start : start + p.limit]
    return BlobList(
        blobs=[_state(call.services, info) for info in page],
        total=len(found),
        bytes_used=sum(info.bytes_here for info in found),
        more=start + p.limit < len(found),
    )


def _not_here() -> RpcError:
    return RpcError(
        "not_found", "no such blob is here", remedy="`covey blob get ID` fetches it from others."
    )


def _state(services: Services, info: BlobInfo) -> BlobState:
    names = {view.group: view.name for view in services.replication.groups()}

    def name(group: Group) -> str:
        if group is None:
            return "own"
        if isinstance(group, Public):
            return "*"
        return names.get(group, group.hex()[:16])

    return BlobState(
        id=blob_text(info.id),
        size=info.size,
        whole=info.whole,
        bytes_here=info.bytes_here,
        used_ms=info.used_ms,
        groups=[name(group) for group in info.groups],
        pins=[BlobPin(tag=tag, group=name(group)) for tag, group in info.pins],
    )
