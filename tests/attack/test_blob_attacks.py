"""Hostile sources and hostile readers of blobs: nothing wrong is kept, nothing foreign is given."""

# ruff: noqa: ARG001 - the shape of a handler is fixed, whatever it needs of it

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from p2p.blobs.config import BlobConfig
from p2p.blobs.manifest import (
    CHUNK_BYTES_MIN,
    MANIFEST_BYTES_MAX,
    BlobId,
    Manifest,
    parse_blob_untrusted,
)
from p2p.blobs.messages import (
    GET,
    HAVE,
    ITEM_BYTES_MAX,
    MANIFEST,
    GetQuery,
    HaveQuery,
    Held,
    ManifestQuery,
    Piece,
)
from p2p.blobs.pins import PUBLIC
from p2p.blobs.storage import BlobFiles
from p2p.env import SystemEnv
from p2p.errors import (
    AuthError,
    DecodeError,
    DiskFull,
    LimitError,
    RemoteError,
    TimedOut,
    TransientError,
    Unreachable,
    UsageError,
)
from p2p.rpc import Code
from tests.helpers.blob_kit import GROUP, OTHER_GROUP, FaultyEnv, Source, content, keep_blobs
from tests.helpers.fabrics import MEM, WIRE_MEM, Kit, NodeMember, play

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from p2p.blobs.messages import HaveReply
    from p2p.blobs.service import Blobs
    from p2p.identity import PeerId
    from p2p.rpc import CallStream

pytestmark = pytest.mark.attack

DATA = content(20 * CHUNK_BYTES_MIN + 5)
CONFIG = replace(BlobConfig(), sync_bytes=4 * CHUNK_BYTES_MIN)


class Scene:
    """One node that fetches, and sources around it."""

    def __init__(self, kit: Kit, member: NodeMember, folder: Path, config: BlobConfig) -> None:
        self.kit = kit
        self.member = member
        self.folder = folder
        self.env = FaultyEnv(1, "blobs")
        self.blobs = keep_blobs(member.node, folder, self.env, config=config)

    @classmethod
    async def make(cls, kit: Kit, folder: Path, config: BlobConfig = CONFIG) -> Scene:
        return cls(kit, await kit.node(1), folder, config)

    async def source(self, number: int, data: bytes = DATA) -> Source:
        member = await self.kit.node(number)
        source = Source(member.node, data)
        await self.kit.connect(self.member, member)
        return source

    def no_wrong_byte(self, source: Source) -> None:
        """Whatever is on disk under a chunk's bit in the map is that chunk."""
        name = source.id.hex()
        part, progress = (
            self.folder / name[:2] / f"{name}{ending}" for ending in (".part", ".map")
        )
        assert not (self.folder / name[:2] / name).exists()
        if not part.exists():
            return
        have = int.from_bytes(progress.read_bytes(), "little") if progress.exists() else 0
        found = part.read_bytes()
        for index in range(source.true_manifest.chunks):
            offset, size = source.true_manifest.span(index)
            if have >> index & 1:
                assert found[offset : offset + size] == source.data[offset : offset + size]


def scenario(
    folder: Path, act: Callable[[Scene], Awaitable[None]], *, config: BlobConfig = CONFIG
) -> None:
    async def main(kit: Kit) -> None:
        await act(await Scene.make(kit, folder, config))

    play(MEM, main)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# --- hostile sources ------------------------------------------------------------------------------


def test_a_wrong_chunk_is_never_kept_and_its_source_never_asked_again(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        liar, honest = await scene.source(2), await scene.source(3)

        async def lie(query: GetQuery, stream: CallStream) -> None:
            (index,) = query.indices
            await stream.send(Piece(index, 0, bytes(liar.true_manifest.span(index).size)))

        liar.give = lie
        path = await scene.blobs.fetch(liar.id, GROUP)
        assert path.read_bytes() == DATA
        # What was under way to it when it was caught, and nothing after that.
        assert liar.asked["get"] <= 2
        assert honest.asked["get"] >= 21

    scenario(tmp_path, act)


def test_a_liar_alone_yields_nothing_and_no_byte_of_it_is_given_on(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        liar = await scene.source(2)
        honest_first = 5

        async def lie_later(query: GetQuery, stream: CallStream) -> None:
            if liar.asked["get"] <= honest_first:
                await liar.send_chunks(query, stream)
            else:
                await stream.send(Piece(query.indices[0], 0, bytes(CHUNK_BYTES_MIN)))

        liar.give = lie_later
        with pytest.raises(Unreachable, match="what came so far is kept"):
            await scene.blobs.fetch(liar.id, GROUP)
        scene.no_wrong_byte(liar)
        assert await scene.blobs.path(liar.id) is None
        info = await scene.blobs.stat(liar.id)
        assert info is not None
        assert not info.whole
        # An honest one later brings the rest alone.
        honest = await scene.source(3)
        assert (await scene.blobs.fetch(liar.id, GROUP)).read_bytes() == DATA
        assert honest.asked["get"] <= 21 - 4

    scenario(tmp_path, act)


@pytest.mark.parametrize("kind", ["other", "garbage", "endless", "silent", "nothing", "deep"])
def test_a_wrong_manifest_costs_its_source_and_the_next_is_asked(tmp_path: Path, kind: str) -> None:
    async def act(scene: Scene) -> None:
        liar = await scene.source(2)
        sent = 0

        async def lie(stream: CallStream) -> None:
            nonlocal sent
            match kind:
                case "other":
                    await stream.send(Manifest(5, bytes(32)).encode())
                case "garbage":
                    await stream.send(b"\xff" * 100)
                case "deep":
                    await stream.send(b"\x91" * 100_000)
                case "endless":
                    while True:
                        await stream.send(bytes(ITEM_BYTES_MAX))
                        sent += ITEM_BYTES_MAX
                case "silent":
                    await trio.sleep_forever()
                case _:
                    return

        liar.manifest = lie
        before = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def fetch() -> None:
                assert (await scene.blobs.fetch(liar.id, GROUP)).read_bytes() == DATA

            nursery.start_soon(fetch)
            await trio.sleep(0.5)
            await scene.source(3)
        assert trio.current_time() - before < 6
        assert sent <= MANIFEST_BYTES_MAX + 6 * ITEM_BYTES_MAX, "read on after it was too long"
        # Silence is no lie: that one may still give chunks.
        assert (liar.asked["get"] > 0) == (kind == "silent")

    scenario(tmp_path, act)


def test_a_lying_size_and_a_bitmap_of_other_length_make_no_source(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        big, odd, beyond, honest = [await scene.source(number) for number in (2, 3, 4, 5)]
        big.held = Held(len(DATA) + 1, b"")
        odd.held = Held(len(DATA), b"\xff")
        beyond.held = Held(len(DATA), b"\xff" * 3)
        assert (await scene.blobs.fetch(honest.id, GROUP)).read_bytes() == DATA
        assert [one.asked["get"] for one in (big, odd, beyond)] == [0, 0, 0]

    scenario(tmp_path, act)


def test_a_blob_larger_than_we_take_is_refused_by_its_manifest(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        source = await scene.source(2)
        source.held = Held(1, b"")  # it says that it is small
        with pytest.raises(LimitError, match="at most 1000000"):
            await scene.blobs.fetch(source.id, GROUP)
        assert source.asked["get"] == 0
        assert files_in(tmp_path) == []

    scenario(tmp_path, act, config=replace(CONFIG, fetch_bytes_max=1_000_000))


@pytest.mark.parametrize("kind", ["silent", "trickle", "half"])
def test_a_slow_loris_delays_a_fetch_by_little_and_alone_ends_it(tmp_path: Path, kind: str) -> None:
    async def act(scene: Scene) -> None:
        loris = await scene.source(2)

        async def stall(query: GetQuery, stream: CallStream) -> None:
            (index,) = query.indices
            if kind == "half":
                await stream.send(Piece(index, 0, DATA[:100]))
            offset = 0
            while kind == "trickle":
                await stream.send(Piece(index, offset, b"x"))
                offset += 1
                await trio.sleep(0.1)
            await trio.sleep_forever()

        loris.give = stall
        await scene.source(3)
        before = trio.current_time()
        assert (await scene.blobs.fetch(loris.id, GROUP)).read_bytes() == DATA
        assert trio.current_time() - before < 5
        other = content(3 * CHUNK_BYTES_MIN, seed=9)
        alone = await scene.source(4, other)
        alone.give = stall
        before = trio.current_time()
        with pytest.raises(Unreachable):
            await scene.blobs.fetch(alone.id, GROUP)
        took_s = trio.current_time() - before
        assert CONFIG.stall_s <= took_s <= CONFIG.stall_s + 6
        assert alone.at_once_max <= 2
        assert alone.asked["get"] < 20

    scenario(tmp_path, act)


@pytest.mark.parametrize("kind", ["index", "offset", "long", "gap", "short", "twice"])
def test_pieces_out_of_their_place_ban_their_source(tmp_path: Path, kind: str) -> None:
    async def act(scene: Scene) -> None:
        liar, _honest = await scene.source(2), await scene.source(3)

        async def lie(query: GetQuery, stream: CallStream) -> None:
            (index,) = query.indices
            half = CHUNK_BYTES_MIN // 2
            pieces = {
                "index": [Piece((index + 1) % 21, 0, b"x")],
                "offset": [Piece(index, 7, b"x")],
                "long": [Piece(index, 0, bytes(CHUNK_BYTES_MIN)), Piece(index, 0, b"x")],
                "gap": [Piece(index, 0, bytes(half)), Piece(index, half + 1, b"x")],
                "short": [Piece(index, 0, b"x")],
                "twice": [Piece(index, 0, bytes(half)), Piece(index, 0, bytes(half))],
            }
            for piece in pieces[kind]:
                await stream.send(piece)

        liar.give = lie
        assert (await scene.blobs.fetch(liar.id, GROUP)).read_bytes() == DATA
        assert liar.asked["get"] <= 2

    scenario(tmp_path, act)


def test_a_source_that_says_busy_for_ever_holds_up_nobody(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        from p2p.errors import Busy

        busy, _honest = await scene.source(2), await scene.source(3)

        async def refuse(query: GetQuery, stream: CallStream) -> None:
            raise Busy("never", retry_after_ms=1)

        busy.give = refuse
        before = trio.current_time()
        assert (await scene.blobs.fetch(busy.id, GROUP)).read_bytes() == DATA
        assert trio.current_time() - before < 5
        assert busy.asked["get"] < 12

    scenario(tmp_path, act)


def test_no_source_is_asked_for_more_than_its_window(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        sources = [await scene.source(number, content(8_000_000)) for number in (2, 3)]
        await scene.blobs.fetch(sources[0].id, GROUP)
        assert max(source.at_once_max for source in sources) <= CONFIG.window_max

    scenario(tmp_path, act)


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_ends_a_fetch_which_goes_on_when_there_is_room(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        source = await scene.source(2)

        async def fill_up(query: GetQuery, stream: CallStream) -> None:
            if source.asked["get"] == 10:
                scene.env.failing.add("blobs.disk_full")
            await source.send_chunks(query, stream)

        source.give = fill_up
        with pytest.raises(DiskFull, match="free some space"):
            await scene.blobs.fetch(source.id, GROUP)
        scene.no_wrong_byte(source)
        with pytest.raises(DiskFull):
            await scene.blobs.put([b"x"], GROUP)
        assert list((tmp_path / "tmp").iterdir()) == []
        scene.env.failing.clear()
        source.give = source.send_chunks
        before = source.asked["get"]
        assert (await scene.blobs.fetch(source.id, GROUP)).read_bytes() == DATA
        assert source.asked["get"] - before <= 21 - 4, "what came before was loaded again"
        assert isinstance(DiskFull("x"), TransientError)

    scenario(tmp_path, act)


# --- hostile readers ------------------------------------------------------------------------------


class Door:
    """A node with a blob of one group, and a peer of another."""

    def __init__(self, kit: Kit, host: NodeMember, visitor: NodeMember, blobs: Blobs) -> None:
        self.kit = kit
        self.host = host
        self.visitor = visitor
        self.blobs = blobs
        self.members: set[tuple[bytes | None, PeerId]] = set()
        blobs.set_readers(lambda group, peer: (group, peer) in self.members)

    @classmethod
    async def make(cls, kit: Kit, folder: Path, config: BlobConfig = CONFIG) -> Door:
        host, visitor = await kit.nodes()
        env = FaultyEnv(1, "host")
        door = cls(kit, visitor, host, keep_blobs(visitor.node, folder, env, config=config))
        await kit.connect(host, visitor)
        return door

    async def have(self, blob: BlobId) -> Held | None:
        reply: HaveReply = await self.visitor.rpc.call(self.host.id, HAVE, HaveQuery([blob]))
        return reply.held[0]

    async def get(self, blob: BlobId, indices: list[int]) -> int:
        size = 0
        query = GetQuery(blob, indices)
        async with self.visitor.rpc.stream(self.host.id, GET, query) as call:
            async for piece in call:
                assert isinstance(piece, Piece)
                size += len(piece.data)
            await call.result()
        return size

    async def manifest(self, blob: BlobId) -> int:
        query = ManifestQuery(blob)
        async with self.visitor.rpc.stream(self.host.id, MANIFEST, query) as call:
            return (await call.result()).size

    async def refusals(self, blob: BlobId) -> list[object]:
        """What a reader without the right gets, by each way."""
        seen: list[object] = [await self.have(blob)]
        for ask in (self.manifest(blob), self.get(blob, [0])):
            with pytest.raises(RemoteError) as refused:
                await ask
            seen.append((refused.value.code, refused.value.message))
        return seen


def test_blobs_of_a_group_are_given_to_its_members_alone_and_asking_tells_nothing(
    tmp_path: Path,
) -> None:
    async def act(kit: Kit) -> None:
        door = await Door.make(kit, tmp_path)
        peer = door.visitor.id
        blob = await door.blobs.put([DATA], GROUP)
        own = await door.blobs.put([DATA + b"own"], None)
        nobody = BlobId(bytes(32))
        nothing = await door.refusals(nobody)
        assert nothing[0] is None
        door.members.add((OTHER_GROUP, peer))
        assert await door.refusals(blob) == nothing
        assert await door.refusals(own) == nothing
        # A member gets it, as soon as it is one and no longer.
        door.members.add((GROUP, peer))
        assert await door.have(blob) == Held(len(DATA), b"")
        assert await door.get(blob, [0, 20]) == CHUNK_BYTES_MIN + 5
        door.members.clear()
        assert await door.refusals(blob) == nothing
        # A pin of another group opens it to that group, and its end closes it.
        door.members.add((OTHER_GROUP, peer))
        await door.blobs.pin(blob, OTHER_GROUP, "job")
        assert await door.have(blob) is not None
        await door.blobs.unpin(blob, "job")
        assert await door.refusals(blob) == nothing

    play(MEM, act)


def test_strangers_are_refused_at_the_door_unless_something_is_public(tmp_path: Path) -> None:
    async def act(kit: Kit) -> None:
        door = await Door.make(kit, tmp_path)
        door.host.node.set_members(lambda _peer: False)
        blob = await door.blobs.put([DATA], GROUP)
        with pytest.raises(AuthError):
            await door.have(blob)
        public = await door.blobs.put([b"for everybody"], PUBLIC)
        assert await door.have(blob) is None
        assert await door.get(public, [0]) == 13
        await door.blobs.drop(public)
        with pytest.raises(AuthError):
            await door.have(public)

    play(MEM, act)


def test_unfinished_fetches_give_only_what_was_found_right(tmp_path: Path) -> None:
    async def act(kit: Kit) -> None:
        door = await Door.make(kit, tmp_path)
        door.members.add((GROUP, door.visitor.id))
        member = await kit.node(7)
        source = Source(member.node, DATA)
        door.members.add((GROUP, member.id))
        await kit.connect(door.host, member)
        release = trio.Event()

        async def give_some(query: GetQuery, stream: CallStream) -> None:
            if source.asked["get"] > 6:
                await release.wait()
            await source.send_chunks(query, stream)

        source.give = give_some
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.blobs.fetch, source.id, GROUP)
            await trio.sleep(1.0)
            held = await door.have(source.id)
            assert held is not None
            have = int.from_bytes(held.bitmap, "little")
            assert have.bit_count() == 6
            inside = next(i for i in range(21) if have >> i & 1)
            outside = next(i for i in range(21) if not have >> i & 1)
            assert await door.get(source.id, [inside]) > 0
            with pytest.raises(RemoteError) as refused:
                await door.get(source.id, [inside, outside])
            assert refused.value.code == Code.APPLICATION
            release.set()

    play(MEM, act)


def test_a_request_that_makes_no_sense_is_refused_before_the_disk(tmp_path: Path) -> None:
    async def act(kit: Kit) -> None:
        door = await Door.make(kit, tmp_path)
        door.members.add((GROUP, door.visitor.id))
        blob = await door.blobs.put([DATA], GROUP)
        for indices in ([3, 3], [21], [32_768], [-1], [], list(range(257))):
            with pytest.raises(RemoteError) as refused:
                await door.get(blob, indices)
            assert refused.value.code == Code.BAD_REQUEST
        for ids in ([], [bytes(31)], [bytes(33)], [bytes(32)] * 65, ["../../etc/passwd"]):
            with pytest.raises(RemoteError) as refused:
                await door.visitor.rpc.call(door.host.id, HAVE, HaveQuery(ids))  # type: ignore[arg-type]
            assert refused.value.code == Code.BAD_REQUEST
        assert door.blobs.report().bytes_out == 0

    play(MEM, act)


def test_floods_of_whole_requests_leave_a_bystander_served_and_memory_bounded(
    tmp_path: Path,
) -> None:
    async def act(kit: Kit) -> None:
        config = replace(CONFIG, serve_stall_s=20.0)
        door = await Door.make(kit, tmp_path, config)
        bystander = await kit.node(8)
        await kit.connect(bystander, door.host)
        door.members |= {(GROUP, door.visitor.id), (GROUP, bystander.id)}
        data = content(256 * CHUNK_BYTES_MIN)
        blob = await door.blobs.put([data], GROUP)
        del data
        ended: list[str] = []

        async def flood(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            query = GetQuery(blob, list(range(256)))
            try:
                async with door.visitor.rpc.stream(door.host.id, GET, query) as call:
                    task_status.started()
                    await trio.sleep(60)  # takes nothing
                    await call.result()
            except (TransientError, RemoteError) as error:
                ended.append(type(error).__name__)

        tracemalloc.start()
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                await nursery.start(flood)
            before = trio.current_time()
            got = 0
            for index in range(8):
                query = GetQuery(blob, [index])
                async with bystander.rpc.stream(door.host.id, GET, query, timeout_s=20) as call:
                    async for piece in call:
                        assert isinstance(piece, Piece)
                        got += len(piece.data)
            assert got == 8 * CHUNK_BYTES_MIN
            assert trio.current_time() - before < 10
            peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # 24 calls of one peer, each with what its stream and its queue hold.
        assert peak < 64 << 20
        assert ended.count(TimedOut.__name__) == 24
        assert ended.count("Busy") == 60 - 24

    play(WIRE_MEM, act)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "../../../../etc/passwd",
        "..%2f" * 13,
        "a" * 63,
        "a" * 65,
        "/" * 64,
        "." * 64,
        "g" * 64,
        "a" * 63 + "\n",
        "a" * 63 + "\x00",
        "٣" * 64,
        " " + "a" * 63,
    ],
)
def test_no_id_leads_out_of_the_folder(text: str, tmp_path: Path) -> None:
    with pytest.raises(DecodeError):
        parse_blob_untrusted(text)
    files = BlobFiles(tmp_path, SystemEnv())
    raw = text.encode()
    if len(raw) != 32:
        with pytest.raises(UsageError):
            files.path_of(BlobId(raw))


def test_any_32_bytes_are_a_name_below_the_folder(tmp_path: Path) -> None:
    files = BlobFiles(tmp_path, SystemEnv())
    for raw in (b"/" * 32, b"." * 32, b"\x00" * 32, b"../" * 10 + b"ab"):
        path = files.path_of(BlobId(raw), ".part")
        assert path.parent.parent == tmp_path
        assert path.name == raw.hex() + ".part"
